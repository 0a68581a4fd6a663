//! What a real PostgreSQL wrote, read back (see `fixtures/README.md`).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "the whole binary is tests"
)]

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Date32Type, Decimal128Type, Int64Type, TimestampMicrosecondType};
use std::collections::HashSet;
use std::sync::Arc;
use wal_decoder::pgoutput::parse;
use wal_decoder::{
    BuilderOptions, ChangeBuilder, ColumnSpec, CopyDecoder, Lsn, Message, Op, PgType, Relation, RowChanges,
    TableSchema, TypeCatalog, TypeEntry, TypeOptions, UnchangedValue, Unrepresentable,
};

const TYPES: &str = include_str!("../fixtures/types.tsv");
const EXPECTED: &str = include_str!("../fixtures/wide.csv");
const COPY: &[u8] = include_bytes!("../fixtures/wide.copy");
const CHANGES: &str = include_str!("../fixtures/wide.pgoutput");
const STREAMED: &str = include_str!("../fixtures/streamed.pgoutput");

/// Rows of `wide` with a value that Delta cannot hold have ids from here to below 1,000.
const FIRST_UNREPRESENTABLE: i32 = 100;
const UNREPRESENTABLE: usize = 13;

fn messages(hex: &str) -> Vec<Vec<u8>> {
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    hex.lines().map(|line| line.as_bytes().chunks(2).map(byte).collect()).collect()
}

fn catalog() -> Arc<TypeCatalog> {
    Arc::new(TypeCatalog::new(TYPES.lines().map(|line| {
        let fields: Vec<&str> = line.split('\t').collect();
        let letter = |at: usize| fields[at].chars().next().unwrap();
        TypeEntry {
            oid: fields[0].parse().unwrap(),
            name: fields[1].to_owned(),
            kind: letter(2),
            category: letter(3),
            element: fields[4].parse().unwrap(),
            base: fields[5].parse().unwrap(),
            base_typmod: fields[6].parse().unwrap(),
            delimiter: letter(7),
        }
    })))
}

fn options() -> BuilderOptions {
    BuilderOptions { catalog: catalog(), ..BuilderOptions::default() }
}

/// The schema that a table would get from its Relation: key columns by their flags.
fn schema_of(relation: &Relation) -> Arc<TableSchema> {
    let catalog = catalog();
    let column = |(at, column): (usize, &wal_decoder::RelationColumn)| ColumnSpec {
        source_name: column.name.clone(),
        lake_name: column.name.clone(),
        attnum: at as i16 + 1,
        pg_type: catalog.resolve(column.type_oid, column.typmod, &TypeOptions::default()),
    };
    Arc::new(TableSchema {
        source: (relation.schema.clone(), relation.name.clone()),
        columns: relation.columns.iter().enumerate().map(column).collect(),
        key: (0..relation.columns.len()).filter(|&at| relation.columns[at].is_key).collect(),
    })
}

fn relation(messages: &[Vec<u8>], in_stream: bool, name: &str) -> Relation {
    messages
        .iter()
        .find_map(|bytes| match parse(bytes, in_stream) {
            Ok(Message::Relation { relation, .. }) if relation.name == name => Some(relation),
            _ => None,
        })
        .expect("the fixture holds this relation")
}

fn builder(relation: &Relation, options: BuilderOptions) -> ChangeBuilder {
    let mut builder = ChangeBuilder::new(schema_of(relation), options);
    builder.bind(relation).unwrap();
    builder
}

/// Runs one table's messages, up to the end or the first that is not an insert.
fn changes(name: &str, only_inserts: bool, builder: &mut ChangeBuilder) {
    let messages = messages(CHANGES);
    let id = relation(&messages, false, name).id;
    for bytes in &messages {
        match parse(bytes, false).unwrap() {
            Message::Insert { relation_id, new, .. } if relation_id == id => builder.insert(&new).unwrap(),
            Message::Update { relation_id, .. } | Message::Delete { relation_id, .. }
                if relation_id == id && only_inserts =>
            {
                return;
            }
            Message::Update { relation_id, old, new, .. } if relation_id == id => {
                builder.update(&old, &new).unwrap()
            }
            Message::Delete { relation_id, old, .. } if relation_id == id => builder.delete(&old).unwrap(),
            Message::Truncate { relation_ids, .. } if relation_ids.contains(&id) => builder.truncate(),
            _ => {}
        }
    }
}

fn streamed_wide() -> (RowChanges, Vec<wal_decoder::DeadLetter>) {
    let mut builder = builder(&relation(&messages(CHANGES), false, "wide"), options());
    changes("wide", true, &mut builder);
    (builder.finish(), builder.take_dead_letters())
}

fn copied_wide(chunk: usize) -> (RecordBatch, Vec<wal_decoder::DeadLetter>) {
    let schema = schema_of(&relation(&messages(CHANGES), false, "wide"));
    let mut decoder = CopyDecoder::new(schema, options());
    COPY.chunks(chunk).for_each(|chunk| decoder.push(chunk).unwrap());
    let taken = (decoder.take_batch(), decoder.take_dead_letters());
    decoder.finish().unwrap();
    taken
}

#[test]
fn copy_and_stream_give_the_same_rows() {
    let (streamed, streamed_letters) = streamed_wide();
    let (copied, copied_letters) = copied_wide(COPY.len());
    assert!(streamed.ops.iter().all(|op| *op == Op::Insert));
    assert_eq!(streamed.rows, copied);
    assert_eq!(streamed_letters, copied_letters);
}

#[test]
fn the_cut_of_the_chunks_does_not_matter() {
    let whole = copied_wide(COPY.len());
    for chunk in [1, 2, 3, 7, 64, 1000] {
        assert_eq!(copied_wide(chunk), whole, "chunks of {chunk}");
    }
}

/// A cell as `wide.csv` writes it.
fn canonical(array: &ArrayRef, row: usize, pg_type: &PgType) -> String {
    if array.is_null(row) {
        return "\\N".to_owned();
    }
    match pg_type {
        PgType::Bool => if array.as_boolean().value(row) { "t" } else { "f" }.to_owned(),
        PgType::Date => array.as_primitive::<Date32Type>().value(row).to_string(),
        PgType::Timestamp | PgType::Timestamptz => {
            array.as_primitive::<TimestampMicrosecondType>().value(row).to_string()
        }
        PgType::Decimal { .. } => array.as_primitive::<Decimal128Type>().value(row).to_string(),
        PgType::Oid | PgType::Int8 => array.as_primitive::<Int64Type>().value(row).to_string(),
        PgType::Bytea => {
            let hex: String =
                array.as_binary::<i32>().value(row).iter().map(|b| format!("{b:02x}")).collect();
            format!("\\x{hex}")
        }
        PgType::Text => array.as_string::<i32>().value(row).to_owned(),
        _ => arrow::util::display::array_value_to_string(array, row).unwrap(),
    }
}

fn csv_rows() -> Vec<Vec<String>> {
    let schema = arrow::datatypes::Schema::new(
        (0..38)
            .map(|at| arrow::datatypes::Field::new(at.to_string(), DataType::Utf8, true))
            .collect::<Vec<_>>(),
    );
    let reader = arrow::csv::ReaderBuilder::new(Arc::new(schema))
        .with_header(false)
        .build(EXPECTED.as_bytes())
        .unwrap();
    let mut rows = Vec::new();
    for batch in reader {
        let batch = batch.unwrap();
        for row in 0..batch.num_rows() {
            rows.push(
                batch
                    .columns()
                    .iter()
                    .map(|column| column.as_string::<i32>().value(row).to_owned())
                    .collect(),
            );
        }
    }
    rows
}

#[test]
fn every_scalar_is_what_postgres_computes() {
    let wide = relation(&messages(CHANGES), false, "wide");
    let schema = schema_of(&wide);
    let (rows, _) = copied_wide(COPY.len());
    let expected = csv_rows();
    assert_eq!(expected.len() + UNREPRESENTABLE, rows.num_rows());
    let mut compared = 0;
    for (row, expected) in expected.iter().enumerate() {
        for (at, spec) in schema.columns.iter().enumerate() {
            let cell = canonical(rows.column(at), row, &spec.pg_type);
            let same = match spec.pg_type {
                // Compared below, or as numbers: the texts of a float differ in their exponents.
                PgType::Array(_) | PgType::DelimitedArray { .. } | PgType::Vector => continue,
                PgType::Float4 | PgType::Float8 if cell != "\\N" => {
                    let bits = |text: &str| {
                        let text = text.replace("Infinity", "inf");
                        text.parse::<f64>().unwrap().to_bits()
                    };
                    bits(&cell) == bits(&expected[at])
                }
                _ => cell == expected[at],
            };
            assert!(same, "row {row}, {}: {cell} is not {}", spec.source_name, expected[at]);
            compared += 1;
        }
    }
    assert_eq!(compared, 5 * 30);
}

#[test]
fn arrays_keep_their_elements_and_nulls() {
    let (rows, _) = copied_wide(COPY.len());
    let shown = |name: &str, row: usize| {
        let array = rows.column_by_name(name).unwrap();
        arrow::util::display::array_value_to_string(array, row).unwrap()
    };
    assert_eq!(shown("ints", 0), "[1, 2, ]");
    assert_eq!(shown("prices", 0), "[1.10, 2.00]");
    assert_eq!(shown("words", 0), "[a, b c, q\"q, , NULL, ]");
    assert_eq!(shown("raws", 0), "[01, ]");
    assert_eq!(shown("boxes", 0), "[(1,1),(0,0), (2,2),(1,1)]");
    assert_eq!(shown("pairs", 0), "[[1, 2], [3]]");
    assert_eq!(shown("embedding", 0), "[1.0, 2.5, -3.0]");
    for name in ["ints", "prices", "words", "days", "raws", "boxes", "pairs"] {
        assert_eq!(shown(name, 2), "[]", "{name}");
    }
    assert_eq!(shown("words", 3), "[Größe, 😀,{}\\]");
    assert_eq!(shown("days", 3), "[0001-01-01, 9999-12-31, +10000-01-01]");
}

#[test]
fn what_delta_cannot_hold_is_null_and_recorded() {
    let (rows, letters) = copied_wide(COPY.len());
    assert_eq!(letters.len(), UNREPRESENTABLE);
    let first = rows.num_rows() - UNREPRESENTABLE;
    for (at, letter) in letters.iter().enumerate() {
        assert!(rows.column(letter.column).is_null(first + at));
        assert_eq!(letter.key, (FIRST_UNREPRESENTABLE + at as i32).to_string());
    }
    let values: Vec<&str> = letters.iter().map(|letter| letter.value.as_str()).collect();
    assert_eq!(
        values,
        [
            "infinity",
            "-infinity",
            "infinity",
            "294276-12-31 23:59:59.999999",
            "-infinity",
            "294276-12-31 23:59:59+00",
            "NaN",
            "NaN",
            "{{1,2},{3,4}}",
            "[2:3]={1,2}",
            "{infinity}",
            "{NaN,1.00}",
            "{{(1,1),(0,0)};{(2,2),(1,1)}}",
        ]
    );
}

#[test]
fn under_the_policy_fail_the_same_values_stop_the_table() {
    let wide = relation(&messages(CHANGES), false, "wide");
    let options = BuilderOptions { unrepresentable: Unrepresentable::Fail, ..options() };
    let mut decoder = CopyDecoder::new(schema_of(&wide), options.clone());
    assert!(decoder.push(COPY).is_err());
    assert_eq!(decoder.take_batch(), copied_wide(COPY.len()).0.slice(0, decoder_rows_before_the_first()));

    let mut builder = builder(&wide, options);
    let mut refused = 0;
    for bytes in &messages(CHANGES) {
        if let Message::Insert { relation_id, new, .. } = parse(bytes, false).unwrap()
            && relation_id == wide.id
        {
            refused += usize::from(builder.insert(&new).is_err());
        }
    }
    assert_eq!(refused, UNREPRESENTABLE);
    assert_eq!(builder.finish().rows.num_rows(), decoder_rows_before_the_first());
}

fn decoder_rows_before_the_first() -> usize {
    EXPECTED.lines().count()
}

#[test]
fn updates_deletes_and_truncates_name_their_rows() {
    let wide = relation(&messages(CHANGES), false, "wide");
    let mut wide_builder = builder(&wide, options());
    changes("wide", false, &mut wide_builder);
    let wide = wide_builder.finish();
    assert_eq!(wide.ops[wide.ops.len() - 3..], [Op::Update, Op::UpdateKey, Op::Delete]);
    let old: Vec<i32> =
        wide.old_keys.column(0).as_primitive::<arrow::datatypes::Int32Type>().values().to_vec();
    assert_eq!(old, [5, 2]);
    assert_eq!(wide.unchanged, []);

    let toasted = relation(&messages(CHANGES), false, "toasted");
    let mut toasted_builder = builder(&toasted, options());
    changes("toasted", false, &mut toasted_builder);
    let toasted = toasted_builder.finish();
    assert_eq!(toasted.ops, [Op::Insert, Op::Update, Op::UpdateKey, Op::Truncate]);
    assert_eq!(
        toasted.unchanged,
        [UnchangedValue { row: 1, column: 1 }, UnchangedValue { row: 2, column: 1 }]
    );
    assert_eq!(toasted.rows.column(1).as_string::<i32>().value(0).len(), 10_000);
    assert!(toasted.rows.column(1).is_null(1));
}

#[test]
fn a_table_with_full_identity_takes_every_column_as_its_key() {
    let keyless = relation(&messages(CHANGES), false, "keyless");
    let mut keyless_builder = builder(&keyless, options());
    changes("keyless", false, &mut keyless_builder);
    let changes = keyless_builder.finish();
    assert_eq!(changes.ops, [Op::Insert, Op::Insert, Op::UpdateKey, Op::Delete, Op::Truncate]);
}

#[test]
fn a_streamed_transaction_loses_exactly_its_rolled_back_savepoint() {
    let messages = messages(STREAMED);
    let mut in_stream = false;
    let mut rows: Vec<(Option<u32>, i32)> = Vec::new();
    let mut aborted = HashSet::new();
    let (mut commits, mut prepares, mut contents) = (0, Vec::new(), Vec::new());
    for bytes in &messages {
        match parse(bytes, in_stream).unwrap() {
            Message::StreamStart { .. } => in_stream = true,
            Message::StreamStop => in_stream = false,
            Message::StreamAbort { subxid, abort_lsn, abort_time, .. } => {
                assert!(abort_lsn.is_some_and(|lsn| lsn > Lsn::ZERO) && abort_time.is_some());
                aborted.insert(Some(subxid));
            }
            Message::StreamCommit { commit_lsn, end_lsn, .. } => {
                assert!(commit_lsn < end_lsn);
                commits += 1;
            }
            Message::Insert { xid, new, .. } => {
                let Some(wal_decoder::Value::Text(text)) = new.columns().next() else { panic!("{new:?}") };
                rows.push((xid, std::str::from_utf8(text).unwrap().parse().unwrap()));
            }
            Message::Logical { xid, transactional, content, .. } => {
                assert!(xid.is_some() && transactional);
                contents.push(content.to_vec());
            }
            Message::BeginPrepare(prepared)
            | Message::Prepare(prepared)
            | Message::CommitPrepared(prepared) => {
                assert!(
                    prepared.lsn < prepared.end_lsn || prepared.gid == "kept" || prepared.gid == "dropped"
                );
                prepares.push(prepared.gid.to_owned());
            }
            Message::RollbackPrepared { gid, .. } => prepares.push(gid.to_owned()),
            _ => {}
        }
    }
    assert_eq!((commits, aborted.len()), (1, 1));
    assert_eq!(contents, [b"in a stream".to_vec()]);
    assert_eq!(prepares, ["kept", "kept", "kept", "dropped", "dropped", "dropped"]);
    let before = rows.len();
    rows.retain(|(xid, _)| xid.is_none() || !aborted.contains(xid));
    assert!(rows.len() < before, "part of the savepoint was streamed before it was rolled back");
    let survivors: Vec<i32> = rows.iter().filter(|(xid, _)| xid.is_some()).map(|(_, n)| *n).collect();
    assert_eq!(survivors, (1..=600).chain(1201..=1800).collect::<Vec<_>>());
}
