use super::*;
use crate::pgoutput::{RelationColumn, parse};
use crate::{ColumnSpec, Message, PgType};
use arrow::array::{Array, AsArray};
use arrow::datatypes::{Int32Type, Int64Type};

fn spec(name: &str, pg_type: PgType) -> ColumnSpec {
    ColumnSpec { source_name: name.to_owned(), lake_name: name.to_owned(), attnum: 1, pg_type }
}

/// id int8 (key), amount numeric(10,2), note text
fn schema() -> TableSchema {
    TableSchema {
        source: ("public".to_owned(), "orders".to_owned()),
        columns: vec![
            spec("id", PgType::Int8),
            spec("amount", PgType::Decimal { precision: 10, scale: 2 }),
            spec("note", PgType::Text),
        ],
        key: vec![0],
    }
}

fn relation() -> Relation {
    let column = |name: &str, type_oid, typmod, is_key| RelationColumn {
        name: name.to_owned(),
        type_oid,
        typmod,
        is_key,
    };
    Relation {
        id: 1,
        schema: "public".to_owned(),
        name: "orders".to_owned(),
        replica_identity: ReplicaIdentity::Default,
        columns: vec![
            column("id", 20, -1, true),
            column("amount", 1700, (10 << 16 | 2) + 4, false),
            column("note", 25, -1, false),
        ],
    }
}

fn bound(schema: TableSchema, unrepresentable: Unrepresentable) -> ChangeBuilder {
    let mut builder =
        ChangeBuilder::new(Arc::new(schema), BuilderOptions { unrepresentable, ..BuilderOptions::default() });
    builder.bind(&relation()).unwrap();
    builder
}

fn builder() -> ChangeBuilder {
    bound(schema(), Unrepresentable::Null)
}

/// `~` is null, `=` unchanged, anything else text.
fn message(values: &[&str]) -> Vec<u8> {
    let mut bytes = [&b"I\0\0\0\x01N"[..], &(values.len() as u16).to_be_bytes()].concat();
    for value in values {
        match *value {
            "~" => bytes.push(b'n'),
            "=" => bytes.push(b'u'),
            text => {
                bytes.push(b't');
                bytes.extend((text.len() as u32).to_be_bytes());
                bytes.extend_from_slice(text.as_bytes());
            }
        }
    }
    bytes
}

fn tuple(bytes: &[u8]) -> TupleData<'_> {
    let Ok(Message::Insert { new, .. }) = parse(bytes, false) else { panic!("{bytes:?}") };
    new
}

#[derive(Clone, Copy)]
enum Known {
    Nothing,
    Key,
    Full,
}

fn insert(builder: &mut ChangeBuilder, new: &[&str]) -> Result<(), RowError> {
    builder.insert(&tuple(&message(new)))
}

fn update(builder: &mut ChangeBuilder, known: Known, old: &[&str], new: &[&str]) -> Result<(), RowError> {
    let (old, new) = (message(old), message(new));
    let old = match known {
        Known::Nothing => OldRow::Absent,
        Known::Key => OldRow::Key(tuple(&old)),
        Known::Full => OldRow::Full(tuple(&old)),
    };
    builder.update(&old, &tuple(&new))
}

fn ids(batch: &arrow::array::RecordBatch) -> Vec<i64> {
    batch.column(0).as_primitive::<Int64Type>().values().to_vec()
}

#[test]
fn operations_keep_their_order_and_consume_their_batches() {
    let mut builder = builder();
    insert(&mut builder, &["1", "1.00", "a"]).unwrap();
    update(&mut builder, Known::Nothing, &[], &["1", "2.00", "b"]).unwrap();
    update(&mut builder, Known::Key, &["1", "~", "~"], &["2", "2.00", "b"]).unwrap();
    builder.delete(&OldRow::Key(tuple(&message(&["2", "~", "~"])))).unwrap();
    builder.truncate();
    insert(&mut builder, &["3", "~", "~"]).unwrap();
    let changes = builder.finish();
    assert_eq!(changes.ops, [Op::Insert, Op::Update, Op::UpdateKey, Op::Delete, Op::Truncate, Op::Insert]);
    assert_eq!(ids(&changes.rows), [1, 1, 2, 3]);
    assert_eq!(ids(&changes.old_keys), [1, 2]);
    assert!(builder.is_empty() && builder.finish().rows.num_rows() == 0);
}

#[test]
fn an_old_key_that_is_the_new_one_is_a_plain_update() {
    let mut builder = builder();
    update(&mut builder, Known::Key, &["1", "~", "~"], &["1", "2.00", "b"]).unwrap();
    update(&mut builder, Known::Full, &["1", "1.00", "a"], &["=", "2.00", "b"]).unwrap();
    let changes = builder.finish();
    assert_eq!(changes.ops, [Op::Update, Op::Update]);
    assert_eq!((ids(&changes.rows), changes.old_keys.num_rows()), (vec![1, 1], 0));
}

#[test]
fn an_unchanged_value_comes_from_the_full_old_row_and_else_is_listed() {
    let mut builder = builder();
    update(&mut builder, Known::Full, &["1", "1.00", "large"], &["1", "2.00", "="]).unwrap();
    update(&mut builder, Known::Key, &["1", "~", "~"], &["2", "2.00", "="]).unwrap();
    update(&mut builder, Known::Nothing, &[], &["2", "=", "="]).unwrap();
    let changes = builder.finish();
    let notes = changes.rows.column(2).as_string::<i32>();
    assert_eq!((notes.value(0), notes.is_null(1), notes.is_null(2)), ("large", true, true));
    assert_eq!(
        changes.unchanged,
        [
            UnchangedValue { row: 1, column: 2 },
            UnchangedValue { row: 2, column: 1 },
            UnchangedValue { row: 2, column: 2 },
        ]
    );
}

#[test]
fn an_unchanged_key_that_is_nowhere_is_an_error() {
    let mut builder = builder();
    let error = update(&mut builder, Known::Nothing, &[], &["=", "2.00", "b"]).unwrap_err();
    assert_eq!(error, RowError::UnchangedKey { column: "id".to_owned() });
    let error = insert(&mut builder, &["1", "=", "b"]).unwrap_err();
    assert_eq!(error, RowError::UnchangedInsert { column: "amount".to_owned() });
    assert!(builder.is_empty());
}

#[test]
fn a_row_that_fails_leaves_nothing_behind() {
    let mut whole = builder();
    let mut torn = builder();
    for builder in [&mut whole, &mut torn] {
        insert(builder, &["1", "NaN", "a"]).unwrap();
        update(builder, Known::Key, &["1", "~", "~"], &["2", "1.00", "="]).unwrap();
    }
    assert!(insert(&mut torn, &["9", "NaN", "b", "too many"]).is_err());
    assert!(insert(&mut torn, &["nine", "NaN", "b"]).is_err());
    assert!(insert(&mut torn, &["9", "1.001", "b"]).is_err());
    assert!(update(&mut torn, Known::Key, &["2", "~", "~"], &["3", "broken", "="]).is_err());
    assert!(update(&mut torn, Known::Key, &["2", "~", "~"], &["broken", "NaN", "="]).is_err());
    assert!(torn.delete(&OldRow::Absent).is_err());
    assert_eq!(torn.byte_size(), whole.byte_size());
    for builder in [&mut whole, &mut torn] {
        insert(builder, &["4", "4.00", "d"]).unwrap();
    }
    assert_eq!(torn.take_dead_letters(), whole.take_dead_letters());
    let (whole, torn) = (whole.finish(), torn.finish());
    assert_eq!((torn.rows, torn.old_keys), (whole.rows, whole.old_keys));
    assert_eq!((torn.ops, torn.unchanged), (whole.ops, whole.unchanged));
}

#[test]
fn a_dead_letter_names_the_row_and_the_value() {
    let mut builder = builder();
    insert(&mut builder, &["7", "NaN", "a"]).unwrap();
    let letters = builder.take_dead_letters();
    assert_eq!((letters[0].column, letters[0].key.as_str(), letters[0].value.as_str()), (1, "7", "NaN"));
    assert!(builder.finish().rows.column(1).is_null(0));
    assert!(builder.take_dead_letters().is_empty());
}

#[test]
fn under_the_policy_fail_and_in_keys_it_stops_the_table() {
    let mut failing = bound(schema(), Unrepresentable::Fail);
    assert!(insert(&mut failing, &["7", "NaN", "a"]).is_err());
    let keyed = TableSchema { key: vec![1], ..schema() };
    let mut relation = relation();
    relation.replica_identity = ReplicaIdentity::Full;
    let mut keyed = ChangeBuilder::new(Arc::new(keyed), BuilderOptions::default());
    keyed.bind(&relation).unwrap();
    let error = insert(&mut keyed, &["7", "NaN", "a"]).unwrap_err();
    assert!(matches!(error, RowError::Value { source: ValueError::Unrepresentable { .. }, .. }));
    assert!(keyed.take_dead_letters().is_empty());
}

#[test]
fn where_the_whole_row_is_the_key_it_becomes_null_in_both_images() {
    let options = BuilderOptions { key_is_whole_row: true, ..BuilderOptions::default() };
    let mut builder = ChangeBuilder::new(Arc::new(TableSchema { key: vec![0, 1, 2], ..schema() }), options);
    let mut relation = relation();
    relation.replica_identity = ReplicaIdentity::Full;
    builder.bind(&relation).unwrap();
    insert(&mut builder, &["7", "NaN", "a"]).unwrap();
    update(&mut builder, Known::Full, &["7", "NaN", "a"], &["7", "1.00", "a"]).unwrap();
    update(&mut builder, Known::Full, &["7", "1.00", "a"], &["7", "1.00", "a"]).unwrap();
    assert_eq!(builder.take_dead_letters().len(), 1);
    let changes = builder.finish();
    assert_eq!(changes.ops, [Op::Insert, Op::UpdateKey, Op::Update]);
    assert!(changes.rows.column(1).is_null(0) && changes.old_keys.column(1).is_null(0));
}

#[test]
fn a_table_without_a_key_only_grows() {
    let mut keyless =
        ChangeBuilder::new(Arc::new(TableSchema { key: vec![], ..schema() }), BuilderOptions::default());
    assert_eq!(insert(&mut keyless, &["1", "1", "a"]), Err(RowError::NotBound));
    let mut relation = relation();
    relation.columns[0].is_key = false;
    keyless.bind(&relation).unwrap();
    insert(&mut keyless, &["1", "1.00", "a"]).unwrap();
    keyless.truncate();
    assert_eq!(update(&mut keyless, Known::Nothing, &[], &["1", "1.00", "a"]), Err(RowError::NoKey));
    assert_eq!(keyless.delete(&OldRow::Full(tuple(&message(&["1", "1.00", "a"])))), Err(RowError::NoKey));
    let changes = keyless.finish();
    assert_eq!((changes.ops, changes.old_keys.num_columns()), (vec![Op::Insert, Op::Truncate], 0));
}

#[test]
fn a_change_of_shape_is_told_by_kind() {
    let mut builder = builder();
    let changed = |change: &dyn Fn(&mut Relation)| {
        let mut relation = relation();
        change(&mut relation);
        relation
    };
    let error = builder.bind(&changed(&|r| drop(r.columns.remove(2)))).unwrap_err();
    assert!(matches!(error, BindError::MissingColumn { column, .. } if column == "note"));
    let error = builder.bind(&changed(&|r| r.columns[2].name = "remark".to_owned())).unwrap_err();
    assert!(matches!(error, BindError::UnknownColumn { column, .. } if column == "remark"));
    let error = builder.bind(&changed(&|r| r.columns[0].type_oid = 23)).unwrap_err();
    assert!(matches!(error, BindError::TypeChanged { found: PgType::Int4, .. }));
    let error = builder.bind(&changed(&|r| r.columns[2].is_key = true)).unwrap_err();
    assert!(matches!(error, BindError::KeyChanged { found, .. } if found == ["id", "note"]));
    insert(&mut builder, &["1", "1.00", "still bound"]).unwrap();
}

#[test]
fn columns_are_matched_by_name_and_excluded_ones_skipped() {
    let mut relation = relation();
    relation.columns.swap(0, 2);
    relation.columns.push(RelationColumn {
        name: "card".to_owned(),
        type_oid: 23,
        typmod: -1,
        is_key: false,
    });
    let options = BuilderOptions { excluded_columns: vec!["card".to_owned()], ..BuilderOptions::default() };
    let mut builder = ChangeBuilder::new(Arc::new(schema()), options);
    builder.bind(&relation).unwrap();
    insert(&mut builder, &["note", "1.00", "5", "4111"]).unwrap();
    let rows = builder.finish().rows;
    assert_eq!((rows.num_columns(), ids(&rows)), (3, vec![5]));
    assert!(rows.column_by_name("card").is_none());
}

#[test]
fn a_schema_of_each_type_takes_nulls() {
    let types = [
        PgType::Bool,
        PgType::Int2,
        PgType::Int4,
        PgType::Oid,
        PgType::Float4,
        PgType::Float8,
        PgType::Date,
        PgType::Timestamp,
        PgType::Timestamptz,
        PgType::Bytea,
        PgType::Vector,
        PgType::Array(Box::new(PgType::Int4)),
        PgType::DelimitedArray { delimiter: b';' },
        PgType::JsonArray(Box::new(PgType::Array(Box::new(PgType::Int4)))),
    ];
    for pg_type in types {
        let mut column = crate::column::Column::new(&pg_type);
        column.append_null();
        column.append_null();
        column.truncate(1);
        let array = column.take();
        assert_eq!((array.len(), array.null_count()), (1, 1), "{pg_type:?}");
        assert_eq!(array.data_type(), &pg_type.arrow_type());
        assert_eq!(column.len(), 0);
    }
}

#[test]
fn a_broken_element_takes_its_array_back_with_it() {
    let mut column = crate::column::Column::new(&PgType::Array(Box::new(PgType::Int4)));
    column.append_text(b"{1,2}").unwrap();
    assert!(column.append_text(b"{3,x}").is_err());
    assert!(column.append_text(b"{3,{4}}").is_err());
    column.append_text(b"{5}").unwrap();
    let array = column.take();
    let lists = array.as_list::<i32>();
    assert_eq!(lists.value_offsets(), [0, 2, 3]);
    assert_eq!(lists.values().as_primitive::<Int32Type>().values(), &[1, 2, 5]);
}
