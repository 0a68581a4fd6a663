//! Compaction beside flushes, judged by delta-rs with DataFusion.

use crate::support;
use crate::support::Change::{self, Delete, Insert, Truncate, Update, UpdateKeepingNote};
use crate::support::model::{Model, change, follow};
use crate::support::{Bench, Row, definition, flush, hundred_rows, row, spec};
use delta_writer::{Compaction, DeltaError, MirrorTable, TableDefinition};
use proptest::prelude::*;

fn partitioned() -> TableDefinition {
    TableDefinition { partition_by: vec!["country".into()], ..definition() }
}

async fn compact(table: &mut MirrorTable) {
    let compaction = table.begin_compaction().unwrap();
    let done = compaction.run().await.unwrap();
    table.adopt_compaction(done).await.unwrap().unwrap();
}

#[tokio::test]
async fn small_files_become_one_and_every_row_is_found_again() {
    let bench = Bench::new();
    let mut table = bench.load_many_files(definition()).await;
    flush(&mut table, &[Delete(5), Update(row(15, "FR", "second"))], 2).await.unwrap().unwrap();
    assert_eq!(table.stats().files, 11);
    compact(&mut table).await;
    let stats = table.stats();
    assert_eq!((stats.files, stats.rows, stats.deleted_rows, table.version()), (1, 99, 0, 2));
    assert_eq!(table.txn(support::APP), Some(2));
    assert!(!table.wants_compaction());
    let list = [Delete(99), UpdateKeepingNote(15, Some("IT".into())), Insert(row(5, "IT", "again"))];
    flush(&mut table, &list, 3).await.unwrap().unwrap();
    let mut expected = hundred_rows();
    expected.truncate(99);
    expected[5] = row(5, "IT", "again");
    expected[15] = row(15, "IT", "second");
    assert_eq!(bench.read().await, expected);
    let before = bench.read_version(Some(1)).await;
    assert_eq!(before, bench.read_version(Some(2)).await, "moving rows changes none");
}

#[tokio::test]
async fn rows_deleted_and_changed_while_a_compaction_runs_stay_so() {
    for definition in [definition(), partitioned()] {
        let bench = Bench::new();
        let mut table = bench.load_many_files(definition).await;
        let compaction = table.begin_compaction().unwrap();
        // Two flushes, so that an updated row is updated again in a file that came meanwhile.
        let list = [Delete(0), Delete(55), Update(row(20, "DE", "second")), Delete(30), Delete(31)];
        flush(&mut table, &list, 2).await.unwrap().unwrap();
        let done = compaction.run().await.unwrap();
        // A whole file is emptied, and a deleted row comes back.
        let list: Vec<Change> = (40..50)
            .map(Delete)
            .chain([Update(row(20, "DE", "third")), Insert(row(30, "DE", "back"))])
            .collect();
        flush(&mut table, &list, 3).await.unwrap().unwrap();
        table.adopt_compaction(done).await.unwrap().unwrap();
        let expected: Vec<Row> = hundred_rows()
            .into_iter()
            .filter(|row| ![0, 55, 31].contains(&row.0) && !(40..50).contains(&row.0))
            .map(|old| match old.0 {
                20 => row(20, "DE", "third"),
                30 => row(30, "DE", "back"),
                _ => old,
            })
            .collect();
        assert_eq!(bench.read().await, expected);
        assert_eq!(table.stats().rows, expected.len() as u64);
        for gone in [0, 45, 31] {
            let error = flush(&mut table, &[Delete(gone)], 4).await.unwrap_err();
            assert!(matches!(error, DeltaError::MissingRow { .. }), "{error}");
            table.abandon();
        }
        flush(&mut table, &[Delete(20), Delete(30), Update(row(99, "DE", "last"))], 4)
            .await
            .unwrap()
            .unwrap();
        let rows = bench.read().await;
        assert_eq!((rows.len(), rows.last()), (expected.len() - 2, Some(&row(99, "DE", "last"))));
    }
}

#[tokio::test]
async fn a_truncate_while_a_compaction_runs_leaves_nothing_of_it() {
    let bench = Bench::new();
    let mut table = bench.load_many_files(definition()).await;
    let compaction = table.begin_compaction().unwrap();
    flush(&mut table, &[Truncate, Insert(row(1, "DE", "new"))], 2).await.unwrap().unwrap();
    let done = compaction.run().await.unwrap();
    assert_eq!(table.adopt_compaction(done).await.unwrap(), None);
    assert_eq!((bench.read().await, table.version()), (vec![row(1, "DE", "new")], 1));
    assert_eq!(data_files(&bench), 11, "the files of the compaction are removed");
    flush(&mut table, &[Update(row(1, "DE", "newer"))], 3).await.unwrap().unwrap();
    assert_eq!(bench.read().await, [row(1, "DE", "newer")]);
}

fn data_files(bench: &Bench) -> usize {
    let table = bench.folder.path().join("lake/shop/public/orders");
    let names = std::fs::read_dir(table).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_str().unwrap().starts_with("part-")).count()
}

#[tokio::test]
async fn a_compaction_whose_files_copy_on_write_replaced_is_given_up() {
    let bench = Bench::new();
    let definition = TableDefinition { deletion_vectors: false, ..definition() };
    let mut table = bench.load_many_files(definition).await;
    let compaction = table.begin_compaction().unwrap();
    flush(&mut table, &[Delete(7)], 2).await.unwrap().unwrap();
    let done = compaction.run().await.unwrap();
    assert_eq!(table.adopt_compaction(done).await.unwrap(), None);
    let mut expected = hundred_rows();
    expected.remove(7);
    assert_eq!(bench.read().await, expected);
    assert!(!table.wants_compaction(), "the next attempt waits");
}

#[tokio::test]
async fn a_table_without_a_key_is_compacted_too() {
    let bench = Bench::new();
    let definition = TableDefinition { key: Vec::new(), ..definition() };
    let mut table = bench.load_many_files(definition).await;
    let compaction = table.begin_compaction().unwrap();
    flush(&mut table, &[Insert(row(100, "DE", "late"))], 2).await.unwrap().unwrap();
    let done = compaction.run().await.unwrap();
    table.adopt_compaction(done).await.unwrap().unwrap();
    assert_eq!((bench.read().await.len(), table.stats().files), (101, 2));
}

#[tokio::test]
async fn a_compaction_is_only_adopted_between_two_flushes() {
    let bench = Bench::new();
    let mut table = bench.load_many_files(definition()).await;
    let done = table.begin_compaction().unwrap().run().await.unwrap();
    table.apply(support::changes(&[Delete(1)])).await.unwrap();
    let error = table.adopt_compaction(done).await.unwrap_err();
    assert!(matches!(error, DeltaError::UnexpectedState { .. }), "{error}");
    let written = table.write().await.unwrap().unwrap();
    table.commit(written, &spec(2)).await.unwrap();
    assert_eq!(bench.read().await.len(), 99);
}

#[tokio::test]
async fn an_index_left_behind_by_a_crash_catches_up_with_a_compaction() {
    let mut bench = Bench::new();
    let mut table = bench.load_many_files(definition()).await;
    flush(&mut table, &[Update(row(1, "DE", "second"))], 2).await.unwrap().unwrap();
    drop(table);
    let saved = bench.folder.path().join("saved");
    support::copy_folder(&bench.options.index_dir, &saved);
    let mut table = bench.open().await;
    let compaction = table.begin_compaction().unwrap();
    flush(&mut table, &[Update(row(2, "DE", "second")), Delete(3)], 3).await.unwrap().unwrap();
    let done = compaction.run().await.unwrap();
    table.adopt_compaction(done).await.unwrap().unwrap();
    drop(table);
    bench.options.index_dir = saved;
    let mut table = bench.open().await;
    let list = [Delete(1), Delete(2), Delete(4), Insert(row(3, "DE", "back"))];
    flush(&mut table, &list, 4).await.unwrap().unwrap();
    let ids: Vec<i64> = bench.read().await.into_iter().map(|row| row.0).collect();
    assert_eq!(ids, [0, 3].into_iter().chain(5..100).collect::<Vec<_>>());
}

#[tokio::test]
async fn one_second_flushes_leave_a_bounded_number_of_files() {
    let bench = Bench::new();
    let mut table = bench.load(definition(), &[]).await;
    let mut most = 0;
    for lsn in 2..300 {
        let list: Vec<Change> = (0..10).map(|n| Insert(row(lsn * 10 + n, "DE", "x"))).collect();
        flush(&mut table, &list, lsn).await.unwrap().unwrap();
        if table.wants_compaction() {
            compact(&mut table).await;
        }
        most = most.max(table.stats().files);
    }
    assert!(most <= 16, "{most} files");
    assert_eq!(bench.read().await.len(), 2980);
}

#[derive(Debug, Clone)]
enum Step {
    Flush(Vec<Change>),
    Begin,
    Adopt,
    Checkpoint,
    Reopen { lose_index: bool },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => proptest::collection::vec(change(40), 0..12).prop_map(Step::Flush),
        3 => Just(Step::Begin),
        3 => Just(Step::Adopt),
        1 => Just(Step::Checkpoint),
        1 => any::<bool>().prop_map(|lose_index| Step::Reopen { lose_index }),
    ]
}

async fn run(definition: TableDefinition, steps: Vec<Step>) {
    let bench = Bench::new();
    let mut table = bench.load_many_files(definition).await;
    let mut model: Model = hundred_rows().into_iter().map(|row| (row.0, row)).collect();
    let mut underway: Option<Compaction> = None;
    for (step, lsn) in steps.into_iter().zip(2..) {
        match step {
            Step::Flush(list) => {
                flush(&mut table, &follow(&mut model, list), lsn).await.unwrap();
            }
            Step::Begin => underway = underway.or_else(|| table.begin_compaction()),
            Step::Adopt => {
                if let Some(compaction) = underway.take() {
                    let done = compaction.run().await.unwrap();
                    table.adopt_compaction(done).await.unwrap();
                }
            }
            Step::Checkpoint => table.checkpoint().write().await.unwrap(),
            Step::Reopen { lose_index } => {
                underway = None;
                drop(table);
                if lose_index {
                    std::fs::remove_dir_all(&bench.options.index_dir).unwrap();
                }
                table = bench.open().await;
            }
        }
        assert_eq!(table.stats().rows, model.len() as u64);
    }
    assert_eq!(bench.read().await, model.into_values().collect::<Vec<_>>());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn the_mirror_equals_its_source_whatever_is_compacted_meanwhile(
        is_partitioned in any::<bool>(),
        has_vectors in any::<bool>(),
        steps in proptest::collection::vec(step(), 1..20),
    ) {
        let definition = if is_partitioned { partitioned() } else { definition() };
        let definition = TableDefinition { deletion_vectors: has_vectors, ..definition };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(run(definition, steps));
    }
}
