use super::*;
use arrow::array::AsArray;
use arrow::datatypes::Int32Type;
use postgres_connector::{ReplicaIdentity, SourceTable};
use wal_decoder::{BuilderOptions, RelationColumn, TypeEntry};

const INT4: u32 = 23;
const INT8: u32 = 20;
const TEXT: u32 = 25;
const VARCHAR: u32 = 1043;
const NUMERIC: u32 = 1700;
const CIDR: u32 = 650;
const INET: u32 = 869;

fn column(attnum: i16, name: &str, type_oid: u32, typmod: i32) -> SourceColumn {
    SourceColumn {
        name: name.to_owned(),
        attnum,
        type_oid,
        typmod,
        not_null: false,
        generated: Generated::None,
        published: true,
        missing_value: None,
    }
}

/// A table as a look at the catalog plans it, with its first column as the key. `dropped` columns were there once.
fn planned(columns: Vec<SourceColumn>, dropped: i16) -> PlannedTable {
    let builder = BuilderOptions::default();
    let names: Vec<String> = columns.iter().map(|column| column.name.clone()).collect();
    let specs =
        columns.iter().zip(wal_decoder::lake_column_names(&names)).map(|(column, lake_name)| ColumnSpec {
            source_name: column.name.clone(),
            lake_name,
            attnum: column.attnum,
            pg_type: builder.catalog.resolve(column.type_oid, column.typmod, &builder.type_options),
        });
    let schema =
        TableSchema { source: ("public".into(), "t".into()), columns: specs.collect(), key: vec![0] };
    let last = columns.iter().map(|column| column.attnum).max().unwrap_or_default();
    let storage = Storage {
        attributes: last.max(dropped),
        stamp: "a".into(),
        files: BTreeMap::from([(500, "500".into())]),
        ..Storage::default()
    };
    PlannedTable {
        name: "public.t".into(),
        relation: 500,
        schema: Arc::new(schema),
        folder: Default::default(),
        history_folder: None,
        mode: Mode::Mirror,
        kind: delta_writer::TableKind::Mirror,
        partition_by: Vec::new(),
        deletion_vectors: true,
        builder,
        inserts_only: None,
        source: SourceTable {
            oid: 500,
            schema: "public".into(),
            name: "t".into(),
            kind: TableKind::Ordinary,
            columns,
            identity: ReplicaIdentity::Key(vec![1]),
            primary_key: vec![1],
            estimated_rows: None,
            pages: 0,
            storage,
        },
    }
}

fn base() -> Vec<SourceColumn> {
    vec![column(1, "id", INT4, -1), column(2, "name", VARCHAR, 14)]
}

fn origins(old: &PlannedTable, new: &PlannedTable) -> Vec<Option<usize>> {
    match change(old, new) {
        Change::Follow(origins) => origins
            .iter()
            .map(|origin| match origin {
                ColumnOrigin::Kept(at) => Some(*at),
                _ => None,
            })
            .collect(),
        other => panic!("{other:?}"),
    }
}

fn assert_reload(old: &PlannedTable, new: &PlannedTable, word: &str) {
    match change(old, new) {
        Change::Reload(reason) | Change::Unclear(reason) => assert!(reason.contains(word), "{reason}"),
        other => panic!("{other:?} instead of a reload because of {word}"),
    }
}

#[test]
fn a_shape_reads_back_from_the_lake_and_is_no_change() {
    let table = planned(base(), 0);
    let lake = definition(&table, "id-1");
    let back = as_in_lake(&table, &lake).unwrap();
    assert!(matches!(change(&back, &table), Change::None));
    let other = PlannedTable { relation: 501, ..table };
    assert!(as_in_lake(&other, &lake).is_none(), "another relation of the same name");
}

#[test]
fn a_shape_whose_type_is_unknown_by_now_is_not_taken_for_another_one() {
    let mut table = planned(base(), 0);
    let list = TypeEntry {
        oid: 9000,
        name: "_n".into(),
        kind: 'b',
        category: 'A',
        element: INT4,
        base: 0,
        base_typmod: -1,
        delimiter: ',',
    };
    table.builder.catalog = Arc::new(wal_decoder::TypeCatalog::new([list]));
    Arc::make_mut(&mut table.schema).columns[1].pg_type = PgType::Array(Box::new(PgType::Int4));
    table.source.columns[1].type_oid = 9000;
    let lake = definition(&table, "id-1");
    assert!(as_in_lake(&table, &lake).is_some());
    table.builder.catalog = Arc::default();
    assert!(as_in_lake(&table, &lake).is_none());
}

#[test]
fn columns_that_join_have_null_or_their_frozen_default() {
    let mut columns = base();
    columns.push(column(3, "plain", TEXT, -1));
    columns.push(SourceColumn { missing_value: Some("7".into()), ..column(4, "seven", INT4, -1) });
    let Change::Follow(origins) = change(&planned(base(), 0), &planned(columns, 0)) else { panic!() };
    assert!(matches!(origins[..2], [ColumnOrigin::Kept(0), ColumnOrigin::Kept(1)]));
    assert!(matches!(origins[2], ColumnOrigin::Null));
    let ColumnOrigin::Constant(value) = &origins[3] else { panic!("{origins:?}") };
    assert_eq!(value.as_primitive::<Int32Type>().values(), &[7]);
}

#[test]
fn names_follow_the_attribute_numbers_also_when_two_are_swapped() {
    let old = planned(vec![column(1, "id", INT4, -1), column(2, "a", TEXT, -1), column(3, "b", TEXT, -1)], 0);
    let renamed = vec![column(1, "id", INT4, -1), column(2, "b", TEXT, -1), column(3, "a", TEXT, -1)];
    assert_eq!(origins(&old, &planned(renamed, 0)), [Some(0), Some(1), Some(2)]);
    let dropped = vec![column(1, "id", INT4, -1), column(3, "a", TEXT, -1)];
    assert_eq!(origins(&old, &planned(dropped, 0)), [Some(0), Some(2)]);
}

#[test]
fn what_two_looks_leave_open_is_a_reload() {
    let old = planned(base(), 0);
    let replaced = vec![column(1, "id", INT4, -1), column(3, "name", VARCHAR, 14)];
    assert_reload(&old, &planned(replaced, 0), "dropped and added");
    assert_reload(&old, &planned(base(), 3), "dropped and added");
    let uncovered = planned(vec![column(1, "id", INT4, -1)], 2);
    assert_reload(&uncovered, &planned(base(), 0), "left out so far");
}

#[test]
fn a_type_is_followed_only_where_every_value_stays_the_same() {
    let longer = vec![column(1, "id", INT4, -1), column(2, "name", VARCHAR, 24)];
    assert_eq!(origins(&planned(base(), 0), &planned(longer, 0)), [Some(0), Some(1)]);
    let of_type = |oid| planned(vec![column(1, "id", INT4, -1), column(2, "name", oid, -1)], 0);
    assert_eq!(origins(&of_type(VARCHAR), &of_type(TEXT)), [Some(0), Some(1)]);
    assert_reload(&of_type(CIDR), &of_type(INET), "another type");
    let numeric = |precision: i32, scale: i32| {
        planned(vec![column(1, "id", INT4, -1), column(2, "n", NUMERIC, (precision << 16 | scale) + 4)], 0)
    };
    assert_eq!(origins(&numeric(10, 2), &numeric(12, 2)), [Some(0), Some(1)]);
    assert_reload(&numeric(12, 2), &numeric(12, 4), "another type");
    let wider = vec![column(1, "id", INT8, -1), column(2, "name", VARCHAR, 14)];
    assert_reload(&planned(base(), 0), &planned(wider, 0), "another type");
}

#[test]
fn what_the_source_announces_leaves_nothing_open() {
    let old = planned(base(), 0);
    let replaced = planned(vec![column(1, "id", INT4, -1), column(4, "name", VARCHAR, 14)], 0);
    let Change::Follow(origins) = announced_change(&old, &replaced) else { panic!() };
    assert!(matches!(origins[..], [ColumnOrigin::Kept(0), ColumnOrigin::Null]));
    let mut rewritten = replaced;
    rewritten.source.storage.files = BTreeMap::from([(500, "777".into())]);
    assert!(matches!(announced_change(&old, &rewritten), Change::Reload(_)));
}

#[test]
fn rewritten_rows_are_a_reload_and_moved_ones_are_not() {
    let old = planned(base(), 0);
    let mut new = planned(base(), 0);
    new.source.storage.files = BTreeMap::from([(500, "777".into())]);
    assert_eq!(origins(&old, &new), [Some(0), Some(1)]);
    new.source.storage.stamp = "b".into();
    assert_reload(&old, &new, "rewritten");
}

#[test]
fn a_renamed_label_of_an_enum_is_a_reload_and_a_new_one_is_not() {
    let mut old = planned(base(), 0);
    old.source.storage.labels = BTreeMap::from([(1, "sad".into())]);
    let mut new = planned(base(), 0);
    new.source.storage.labels = BTreeMap::from([(1, "sad".into()), (2, "glad".into())]);
    assert_eq!(origins(&old, &new), [Some(0), Some(1)]);
    new.source.storage.labels.insert(1, "low".into());
    assert_reload(&old, &new, "enum");
}

#[test]
fn partitions_that_come_or_go_with_rows_are_a_reload_and_new_ones_are_not() {
    let partitioned = |files: &[(u32, &str)]| {
        let mut table = planned(base(), 0);
        table.source.kind = TableKind::Partitioned;
        table.source.storage.files = files.iter().map(|(oid, file)| (*oid, (*file).to_owned())).collect();
        table
    };
    let old = partitioned(&[(1, "1@5"), (2, "2@5")]);
    assert_reload(&old, &partitioned(&[(1, "1@5")]), "detached");
    assert_reload(&old, &partitioned(&[(1, "1@5"), (2, "9@5")]), "replaced");
    assert_reload(&old, &partitioned(&[(1, "1@5"), (2, "2@6")]), "replaced");
    assert_reload(&old, &partitioned(&[(1, "1@5"), (2, "2@5"), (3, "3@6")]), "attached");
    let mut born = partitioned(&[(1, "1@5"), (2, "2@5"), (3, "3@6")]);
    born.source.storage.born_as_partitions.insert(3);
    assert_eq!(origins(&old, &born), [Some(0), Some(1)]);
    let mut frozen = partitioned(&[(1, "1@5"), (2, "2@5")]);
    frozen.schema = planned([base(), vec![column(3, "new", TEXT, -1)]].concat(), 0).schema;
    frozen.source.columns.push(column(3, "new", TEXT, -1));
    frozen.source.storage.frozen_columns.insert("new".into());
    assert_reload(&old, &frozen, "default");
}

#[test]
fn a_table_published_with_a_list_of_columns_is_loaded_when_one_of_them_goes_or_comes() {
    let with_list = |columns| {
        let mut table = planned(columns, 0);
        table.builder.excluded_columns = vec!["card".into()];
        table
    };
    let three = [base(), vec![column(3, "more", TEXT, -1)]].concat();
    assert_reload(&with_list(three.clone()), &with_list(base()), "not published");
    assert_reload(&with_list(base()), &with_list(three), "published first");
}

#[test]
fn another_key_is_a_reload() {
    let mut new = planned(base(), 0);
    Arc::make_mut(&mut new.schema).key = vec![1];
    assert_reload(&planned(base(), 0), &new, "key");
}

#[test]
fn a_column_keeps_its_name_in_the_lake_when_the_one_it_gave_way_to_is_dropped() {
    let old =
        planned(vec![column(1, "k", INT4, -1), column(2, "id", TEXT, -1), column(3, "ID", TEXT, -1)], 0);
    let mut new = planned(vec![column(1, "k", INT4, -1), column(3, "ID", TEXT, -1)], 0);
    assert_eq!(new.schema.columns[1].lake_name, "ID");
    keep_choices(&mut new, &old);
    assert_eq!(new.schema.columns[1].lake_name, old.schema.columns[2].lake_name);
}

#[test]
fn the_stream_describes_a_look_only_with_the_same_columns_in_the_same_order() {
    let described = |columns: &[(&str, u32, i32)]| Relation {
        id: 500,
        schema: "public".into(),
        name: "t".into(),
        replica_identity: wal_decoder::ReplicaIdentity::Default,
        columns: columns
            .iter()
            .map(|(name, type_oid, typmod)| RelationColumn {
                is_key: false,
                name: (*name).to_owned(),
                type_oid: *type_oid,
                typmod: *typmod,
            })
            .collect(),
    };
    let table = planned(base(), 0);
    assert!(is_described(&described(&[("id", INT4, -1), ("name", VARCHAR, 14)]), &table));
    assert!(!is_described(&described(&[("name", VARCHAR, 14), ("id", INT4, -1)]), &table));
    assert!(!is_described(&described(&[("id", INT4, -1)]), &table));
    assert!(!is_described(&described(&[("id", INT4, -1), ("name", VARCHAR, 24)]), &table));
}

#[test]
fn a_table_that_was_out_of_the_publication_is_loaded() {
    let with = |membership: &str| {
        let mut table = planned(base(), 0);
        table.source.storage.membership = membership.to_owned();
        table
    };
    assert!(matches!(change(&with("16500@740"), &with("16500@740")), Change::None));
    for now in ["", "16501@740", "16500@752"] {
        assert_reload(&with("16500@740"), &with(now), "publication");
    }
}

fn history_of(columns: Vec<SourceColumn>) -> TableDefinition {
    history_definition(&planned(columns, 0), "id-1")
}

#[test]
fn a_history_carries_its_columns_by_number_into_types_that_hold_them() {
    let old = history_of(vec![
        column(1, "id", INT4, -1),
        column(2, "name", VARCHAR, 14),
        column(3, "n", INT4, -1),
        column(4, "gone", TEXT, -1),
    ]);
    // Renamed, wider, new; the history's own columns stay behind them.
    let new = history_of(vec![
        column(1, "id", INT4, -1),
        column(2, "title", TEXT, -1),
        column(3, "n", INT8, -1),
        column(5, "name", TEXT, -1),
    ]);
    let origins = carried(&old, &new).unwrap();
    let from: Vec<Option<usize>> = origins
        .iter()
        .map(|origin| match origin {
            ColumnOrigin::Kept(at) => Some(*at),
            _ => None,
        })
        .collect();
    let own = 4..4 + HISTORY_COLUMNS.len();
    let expected: Vec<Option<usize>> =
        [Some(0), Some(1), Some(2), None].into_iter().chain(own.map(Some)).collect();
    assert_eq!(from, expected);

    let narrower = history_of(vec![column(1, "id", INT4, -1), column(2, "name", INT4, -1)]);
    assert!(carried(&old, &narrower).is_none(), "a text is no number");
    let mut of_another = new;
    of_another.configuration.insert(SOURCE_OID.to_owned(), "501".to_owned());
    assert!(carried(&old, &of_another).is_none(), "numbers of another relation mean nothing here");
}
