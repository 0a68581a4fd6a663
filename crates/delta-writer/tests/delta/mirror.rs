//! A mirror table against a model, judged by delta-rs with DataFusion.

use crate::support;
use crate::support::Change::{Delete, Insert, Truncate, Update, UpdateKeepingNote, UpdateKey};
use crate::support::model::{Model, change, follow};
use crate::support::{Bench, Change, Row, definition, flush, row};
use delta_writer::{DeltaError, MirrorTable, PendingBudget, TableLoad};
use proptest::prelude::*;

#[tokio::test]
async fn a_first_load_is_one_version_with_the_rows_of_all_workers() {
    let bench = Bench::new();
    let rows: Vec<Row> = (0..10).map(|id| row(id, "DE", &format!("note {id}"))).collect();
    let table = bench.load(definition(), &rows).await;
    assert_eq!(table.version(), 0);
    assert_eq!(table.txn(support::APP), Some(1));
    assert_eq!(table.stats().rows, 10);
    assert_eq!(bench.read().await, rows);
}

#[tokio::test]
async fn one_flush_mixes_every_kind_of_change() {
    let bench = Bench::new();
    let rows: Vec<Row> = (0..6).map(|id| row(id, "DE", "old")).collect();
    let mut table = bench.load(definition(), &rows).await;
    let list = [
        Insert(row(10, "FR", "new")),
        Update(row(1, "DE", "changed")),
        UpdateKey(2, row(20, "DE", "moved")),
        Delete(3),
        Insert(row(3, "FR", "again")),
        Delete(10),
        UpdateKeepingNote(4, Some("IT".into())),
    ];
    let committed = flush(&mut table, &list, 2).await.unwrap().unwrap();
    assert_eq!((committed.version, committed.rows_added, committed.rows_deleted), (1, 4, 4));
    let expected = [
        row(0, "DE", "old"),
        row(1, "DE", "changed"),
        row(3, "FR", "again"),
        row(4, "IT", "old"),
        row(5, "DE", "old"),
        row(20, "DE", "moved"),
    ];
    assert_eq!(bench.read().await, expected);
    assert_eq!(bench.read_version(Some(0)).await, rows);
    assert_eq!(table.stats().rows, 6);
    assert_eq!(table.txn(support::APP), Some(2));
}

#[tokio::test]
async fn a_flush_that_cancels_itself_out_makes_no_version() {
    let bench = Bench::new();
    let mut table = bench.load(definition(), &[]).await;
    assert_eq!(flush(&mut table, &[Insert(row(1, "DE", "x")), Delete(1)], 2).await.unwrap(), None);
    assert_eq!(table.version(), 0);
    flush(&mut table, &[Insert(row(1, "DE", "y"))], 3).await.unwrap().unwrap();
    assert_eq!(bench.read().await, [row(1, "DE", "y")]);
}

#[tokio::test]
async fn tables_that_share_a_budget_stay_near_it_however_many_they_are() {
    const BUDGET: usize = 64 << 10;
    let mut bench = Bench::new();
    bench.options.pending_budget = PendingBudget::new(BUDGET);
    let mut tables = Vec::new();
    for name in 0..10 {
        let location = bench.lake.table(&["shop", "public", &format!("t{name}")]);
        let load = TableLoad::begin(location, definition(), bench.options.clone()).await.unwrap();
        tables.push(load.commit(Vec::new(), &support::spec(1)).await.unwrap());
    }
    for round in 0..20_i64 {
        for table in &mut tables {
            let rows = (0..100).map(|n| Insert(row(round * 100 + n, "DE", &"x".repeat(100))));
            table.apply(support::changes(&rows.collect::<Vec<_>>())).await.unwrap();
            let held = bench.options.pending_budget.held();
            assert!(held < 2 * BUDGET, "{held} bytes in round {round}");
        }
    }
    for table in &mut tables {
        let flush = table.write().await.unwrap().unwrap();
        table.commit(flush, &support::spec(2)).await.unwrap();
        assert_eq!(table.stats().rows, 2000);
    }
    assert_eq!(bench.options.pending_budget.held(), 0);
}

#[tokio::test]
async fn a_row_the_mirror_does_not_hold_is_never_passed_over() {
    let bench = Bench::new();
    let mut table = bench.load(definition(), &[row(1, "DE", "x")]).await;
    for change in [Delete(2), Update(row(2, "DE", "x")), UpdateKey(2, row(3, "DE", "x"))] {
        let error = flush(&mut table, std::slice::from_ref(&change), 2).await.unwrap_err();
        assert!(matches!(&error, DeltaError::MissingRow { key, .. } if key == "id=2"), "{change:?}: {error}");
        table.abandon();
    }
    let error = flush(&mut table, &[Delete(1), Delete(1)], 2).await.unwrap_err();
    assert!(matches!(error, DeltaError::MissingRow { .. }), "{error}");
    table.abandon();
    let error =
        flush(&mut table, &[Insert(row(5, "DE", "x")), Insert(row(5, "DE", "y"))], 2).await.unwrap_err();
    assert!(matches!(error, DeltaError::DuplicateKey { .. }), "{error}");
    table.abandon();
    flush(&mut table, &[Delete(1)], 2).await.unwrap().unwrap();
    assert_eq!(bench.read().await, []);
}

#[tokio::test]
async fn an_unchanged_value_is_found_through_chains_and_in_open_files() {
    let mut bench = Bench::new();
    bench.options.pending_bytes = 1;
    let mut table = bench.load(definition(), &[row(1, "DE", "committed")]).await;
    let keep = |id, country: &str| UpdateKeepingNote(id, Some(country.to_owned()));
    // With this budget each apply ends in a data file that stays open.
    table.apply(support::changes(&[Insert(row(2, "DE", "in this flush"))])).await.unwrap();
    table.apply(support::changes(&[keep(1, "A"), keep(2, "A"), keep(1, "B"), keep(2, "B")])).await.unwrap();
    let list = [keep(2, "C"), Insert(row(3, "DE", "pending")), keep(3, "C"), keep(3, "D")];
    flush(&mut table, &list, 2).await.unwrap().unwrap();
    let expected = [row(1, "B", "committed"), row(2, "C", "in this flush"), row(3, "D", "pending")];
    assert_eq!(bench.read().await, expected);
}

#[tokio::test]
async fn a_truncate_empties_the_table_in_its_place_among_the_changes() {
    let bench = Bench::new();
    let mut table = bench.load(definition(), &[row(1, "DE", "x"), row(2, "DE", "x")]).await;
    let list = [Update(row(1, "DE", "y")), Insert(row(3, "DE", "y")), Truncate, Insert(row(1, "FR", "z"))];
    flush(&mut table, &list, 2).await.unwrap().unwrap();
    assert_eq!(bench.read().await, [row(1, "FR", "z")]);
    let error = flush(&mut table, &[Delete(2)], 3).await.unwrap_err();
    assert!(matches!(error, DeltaError::MissingRow { .. }), "{error}");
    table.abandon();
    flush(&mut table, &[Truncate], 3).await.unwrap().unwrap();
    assert_eq!(bench.read().await, []);
    assert_eq!(table.stats(), delta_writer::TableStats::default());
}

#[tokio::test]
async fn a_table_without_a_key_grows_and_is_truncated() {
    let bench = Bench::new();
    let mut definition = definition();
    definition.key.clear();
    let mut table = bench.load(definition, &[row(1, "DE", "x")]).await;
    flush(&mut table, &[Insert(row(1, "DE", "x")), Insert(row(2, "DE", "y"))], 2).await.unwrap().unwrap();
    assert_eq!(bench.read().await.len(), 3);
    let error = table.apply(support::changes(&[Delete(1)])).await.unwrap_err();
    assert!(matches!(error, DeltaError::BadChanges { .. }), "{error}");
    table.abandon();
    let mut table = bench.open().await;
    flush(&mut table, &[Truncate, Insert(row(9, "DE", "z"))], 3).await.unwrap().unwrap();
    assert_eq!(bench.read().await, [row(9, "DE", "z")]);
}

#[tokio::test]
async fn a_reload_replaces_every_row_in_one_version_and_keeps_history() {
    let bench = Bench::new();
    let mut table = bench.load(definition(), &[row(1, "DE", "x"), row(2, "DE", "x")]).await;
    flush(&mut table, &[Delete(1)], 2).await.unwrap().unwrap();
    drop(table);
    let mut table = bench.load(definition(), &[row(7, "DE", "new")]).await;
    assert_eq!(table.version(), 2);
    assert_eq!(bench.read().await, [row(7, "DE", "new")]);
    assert_eq!(bench.read_version(Some(1)).await, [row(2, "DE", "x")]);
    flush(&mut table, &[Update(row(7, "DE", "newer"))], 3).await.unwrap().unwrap();
    assert_eq!(bench.read().await, [row(7, "DE", "newer")]);
}

#[tokio::test]
async fn partitions_survive_odd_values() {
    let bench = Bench::new();
    let mut definition = definition();
    definition.partition_by = vec!["country".into()];
    let rows: Vec<Row> = ["a/b", "a=b", "100%", "ü ö", "..", "q?&#"]
        .iter()
        .zip(0..)
        .map(|(country, id)| row(id, country, "x"))
        .chain([(100, None, None)])
        .collect();
    let mut table = bench.load(definition, &rows).await;
    assert_eq!(bench.read().await, rows);
    let list = [Delete(0), UpdateKeepingNote(2, Some("a/b".into())), UpdateKeepingNote(100, None)];
    flush(&mut table, &list, 2).await.unwrap().unwrap();
    let mut expected = rows[1..].to_vec();
    expected[1].1 = Some("a/b".into());
    assert_eq!(bench.read().await, expected);
}

#[tokio::test]
async fn a_checkpoint_carries_the_table_to_its_next_opening() {
    let mut bench = Bench::new();
    bench.options.checkpoint_every = 3;
    let mut definition = definition();
    definition.partition_by = vec!["country".into()];
    let mut table = bench.load(definition, &[row(1, "DE", "x"), (2, None, None)]).await;
    for lsn in 2..8 {
        let list = [Insert(row(lsn * 10, "DE", "x")), UpdateKeepingNote(2, None)];
        flush(&mut table, &list, lsn).await.unwrap().unwrap();
        if let Some(checkpoint) = table.due_checkpoint() {
            checkpoint.write().await.unwrap();
        }
    }
    let log = bench.folder.path().join("lake/shop/public/orders/_delta_log");
    assert!(log.join("00000000000000000006.checkpoint.parquet").exists());
    // Without the commits before it, the checkpoint has to carry everything.
    for version in 0..=5 {
        std::fs::remove_file(log.join(format!("{version:020}.json"))).unwrap();
    }
    let before = bench.read().await;
    assert_eq!(before.len(), 8);
    let stats = table.stats();
    drop(table);
    let mut table = bench.open().await;
    assert_eq!((table.version(), table.stats(), table.txn(support::APP)), (6, stats, Some(7)));
    flush(&mut table, &[Delete(2), Delete(20)], 8).await.unwrap().unwrap();
    assert_eq!(bench.read().await.len(), 6);
}

/// How a random run is made: what differs between tables and between restarts.
#[derive(Debug, Clone)]
struct Setup {
    deletion_vectors: bool,
    partitioned: bool,
    pending_bytes: usize,
    file_rows: u64,
}

#[derive(Debug, Clone)]
enum Step {
    Flush(Vec<Vec<Change>>),
    /// Close and open again; without the index folder if set.
    Reopen {
        lose_index: bool,
    },
    Checkpoint,
    Abandon(Vec<Change>),
}

fn step() -> impl Strategy<Value = Step> {
    let batches = proptest::collection::vec(proptest::collection::vec(change(12), 0..12), 1..4);
    prop_oneof![
        8 => batches.prop_map(Step::Flush),
        2 => any::<bool>().prop_map(|lose_index| Step::Reopen { lose_index }),
        1 => Just(Step::Checkpoint),
        1 => proptest::collection::vec(change(12), 0..12).prop_map(Step::Abandon),
    ]
}

fn setup() -> impl Strategy<Value = Setup> {
    (any::<bool>(), any::<bool>(), prop_oneof![Just(1), Just(200), Just(1 << 20)], 1..6_u64).prop_map(
        |(deletion_vectors, partitioned, pending_bytes, file_rows)| Setup {
            deletion_vectors,
            partitioned,
            pending_bytes,
            file_rows,
        },
    )
}

async fn run(setup: Setup, steps: Vec<Step>) {
    let mut bench = Bench::new();
    bench.options.pending_bytes = setup.pending_bytes;
    bench.options.target_file_rows = setup.file_rows;
    let mut definition = definition();
    definition.deletion_vectors = setup.deletion_vectors;
    if setup.partitioned {
        definition.partition_by = vec!["country".into()];
    }
    let mut model: Model = (0..4).map(|id| (id, row(id, "a", "first"))).collect();
    let first: Vec<Row> = model.values().cloned().collect();
    let mut table = bench.load(definition, &first).await;
    for (step, lsn) in steps.into_iter().zip(2..) {
        match step {
            Step::Flush(batches) => {
                for batch in batches {
                    table.apply(support::changes(&follow(&mut model, batch))).await.unwrap();
                }
                if let Some(flush) = table.write().await.unwrap() {
                    table.commit(flush, &support::spec(lsn)).await.unwrap();
                }
                assert_eq!(table.stats().rows, model.len() as u64);
            }
            Step::Reopen { lose_index } => table = reopen(&bench, table, lose_index).await,
            Step::Checkpoint => table.checkpoint().write().await.unwrap(),
            Step::Abandon(batch) => {
                table.apply(support::changes(&follow(&mut model.clone(), batch))).await.unwrap();
                table.abandon();
            }
        }
    }
    let expected: Vec<Row> = model.into_values().collect();
    assert_eq!(bench.read().await, expected);
    let table = reopen(&bench, table, false).await;
    assert_eq!(table.stats().rows, expected.len() as u64);
}

async fn reopen(bench: &Bench, table: MirrorTable, lose_index: bool) -> MirrorTable {
    drop(table);
    if lose_index {
        std::fs::remove_dir_all(&bench.options.index_dir).unwrap();
    }
    bench.open().await
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn the_mirror_equals_its_source_after_any_changes(
        setup in setup(),
        steps in proptest::collection::vec(step(), 1..12),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(run(setup, steps));
    }
}
