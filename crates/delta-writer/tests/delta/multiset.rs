//! A table without a key against a model that counts equal rows, judged by delta-rs with DataFusion.

use crate::commits::foreign_optimize;
use crate::support::{Bench, Row, definition, row, rows_batch, spec};
use delta_writer::{DeltaError, MirrorTable, TableDefinition, TableKind};
use proptest::prelude::*;
use wal_decoder::{Op, RowChanges};

/// A change by whole rows, as REPLICA IDENTITY FULL sends it.
#[derive(Debug, Clone)]
enum Change {
    Insert(Row),
    Update(Row, Row),
    Delete(Row),
    Truncate,
}
use Change::{Delete, Insert, Truncate, Update};

fn changes(list: &[Change]) -> RowChanges {
    let (mut rows, mut old, mut ops) = (Vec::new(), Vec::new(), Vec::new());
    for change in list {
        ops.push(match change {
            Insert(new) => {
                rows.push(new.clone());
                Op::Insert
            }
            Update(before, new) => {
                rows.push(new.clone());
                match before == new {
                    true => Op::Update,
                    false => {
                        old.push(before.clone());
                        Op::UpdateKey
                    }
                }
            }
            Delete(before) => {
                old.push(before.clone());
                Op::Delete
            }
            Truncate => Op::Truncate,
        });
    }
    RowChanges { rows: rows_batch(&rows), old_keys: rows_batch(&old), ops, unchanged: Vec::new() }
}

fn multiset() -> TableDefinition {
    TableDefinition { kind: TableKind::Multiset, key: vec![0, 1, 2], ..definition() }
}

async fn flush(table: &mut MirrorTable, list: &[Change], lsn: i64) -> Result<(), DeltaError> {
    table.apply(changes(list)).await?;
    if let Some(flush) = table.write().await? {
        table.commit(flush, &spec(lsn)).await.map_err(|failure| failure.error)?;
    }
    Ok(())
}

#[tokio::test]
async fn of_equal_rows_a_delete_takes_exactly_one() {
    let bench = Bench::new();
    let (a, b) = (row(1, "DE", "same"), row(2, "DE", "other"));
    let mut table = bench.load(multiset(), &[a.clone(), a.clone(), b.clone(), a.clone()]).await;
    flush(&mut table, &[Delete(a.clone())], 2).await.unwrap();
    assert_eq!(bench.read().await, [a.clone(), a.clone(), b.clone()]);
    let list = [Insert(a.clone()), Delete(a.clone()), Delete(a.clone()), Update(a.clone(), b.clone())];
    flush(&mut table, &list, 3).await.unwrap();
    assert_eq!(bench.read().await, [b.clone(), b.clone()]);
    let error = flush(&mut table, &[Delete(b.clone()), Delete(b.clone()), Delete(b)], 4).await.unwrap_err();
    assert!(
        matches!(&error, DeltaError::MissingRow { key, .. } if key == "id=2, country=DE, note=other"),
        "{error}"
    );
}

#[tokio::test]
async fn nulls_are_equal_and_an_update_that_changes_nothing_keeps_the_count() {
    let bench = Bench::new();
    let nothing: Row = (1, None, None);
    let mut table = bench.load(multiset(), &[nothing.clone(), nothing.clone()]).await;
    let list = [Update(nothing.clone(), nothing.clone()), Delete(nothing.clone())];
    flush(&mut table, &list, 2).await.unwrap();
    assert_eq!(bench.read().await, [nothing]);
}

#[tokio::test]
async fn equal_rows_beyond_a_segment_go_in_one_flush() {
    let bench = Bench::new();
    let same = row(1, "DE", "same");
    let rows = vec![same.clone(); 40_000];
    let mut table = bench.load(multiset(), &rows).await;
    flush(&mut table, &vec![Delete(same.clone()); 39_999], 2).await.unwrap();
    assert_eq!(bench.read().await, [same]);
}

#[tokio::test]
async fn an_optimize_by_another_engine_moves_equal_rows_without_losing_count() {
    let bench = Bench::new();
    let (a, b) = (row(1, "DE", "same"), row(2, "DE", "other"));
    let mut table = bench.load(multiset(), &[a.clone(), a.clone(), a.clone(), b.clone()]).await;
    flush(&mut table, &[Delete(a.clone()), Insert(a.clone())], 2).await.unwrap();
    table.apply(changes(&[Delete(a.clone()), Delete(a.clone()), Insert(b.clone())])).await.unwrap();
    let written = table.write().await.unwrap().unwrap();
    foreign_optimize(&bench, &table, false).await;
    table.commit(written, &spec(3)).await.unwrap();
    assert_eq!(bench.read().await, [a.clone(), b.clone(), b.clone()]);
    flush(&mut table, &[Delete(a), Delete(b.clone())], 4).await.unwrap();
    assert_eq!(bench.read().await, [b]);
}

#[derive(Debug, Clone)]
enum Step {
    Flush(Vec<Vec<Change>>),
    Reopen { lose_index: bool },
    Abandon(Vec<Change>),
}

/// Few different rows, so that most of them are there more than once.
fn some_row() -> impl Strategy<Value = Row> {
    (0..3_i64, prop_oneof![Just(None), Just(Some("a".to_owned()))], Just(None))
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        6 => some_row().prop_map(Insert),
        3 => (some_row(), some_row()).prop_map(|(old, new)| Update(old, new)),
        4 => some_row().prop_map(Delete),
        1 => Just(Truncate),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let batches = proptest::collection::vec(proptest::collection::vec(change(), 0..20), 1..4);
    prop_oneof![
        8 => batches.prop_map(Step::Flush),
        2 => any::<bool>().prop_map(|lose_index| Step::Reopen { lose_index }),
        1 => proptest::collection::vec(change(), 0..12).prop_map(Step::Abandon),
    ]
}

/// Keeps the changes that a source could have made, and makes them in the model.
fn follow(model: &mut Vec<Row>, list: Vec<Change>) -> Vec<Change> {
    fn take(model: &mut Vec<Row>, row: &Row) -> bool {
        let found = model.iter().position(|other| other == row);
        found.map(|at| model.swap_remove(at)).is_some()
    }
    list.into_iter()
        .filter(|change| match change {
            Insert(new) => {
                model.push(new.clone());
                true
            }
            Update(old, new) => {
                let there = take(model, old);
                model.extend(there.then(|| new.clone()));
                there
            }
            Delete(old) => take(model, old),
            Truncate => {
                model.clear();
                true
            }
        })
        .collect()
}

async fn run(deletion_vectors: bool, partitioned: bool, pending_bytes: usize, steps: Vec<Step>) {
    let mut bench = Bench::new();
    bench.options.pending_bytes = pending_bytes;
    bench.options.target_file_rows = 5;
    let mut definition = TableDefinition { deletion_vectors, ..multiset() };
    if partitioned {
        definition.partition_by = vec!["country".into()];
    }
    let mut model = vec![row(1, "a", "x"), row(1, "a", "x"), (0, None, None)];
    let mut table = bench.load(definition, &model).await;
    for (step, lsn) in steps.into_iter().zip(2..) {
        match step {
            Step::Flush(batches) => {
                for batch in batches {
                    table.apply(changes(&follow(&mut model, batch))).await.unwrap();
                }
                if let Some(flush) = table.write().await.unwrap() {
                    table.commit(flush, &spec(lsn)).await.unwrap();
                }
            }
            Step::Reopen { lose_index } => {
                drop(table);
                if lose_index {
                    std::fs::remove_dir_all(&bench.options.index_dir).unwrap();
                }
                table = bench.open().await;
            }
            Step::Abandon(batch) => {
                table.apply(changes(&follow(&mut model.clone(), batch))).await.unwrap();
                table.abandon();
            }
        }
        assert_eq!(table.stats().rows, model.len() as u64);
    }
    model.sort();
    let mut found = bench.read().await;
    found.sort();
    assert_eq!(found, model);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn a_table_without_a_key_equals_its_source_after_any_changes(
        deletion_vectors in any::<bool>(),
        partitioned in any::<bool>(),
        pending_bytes in prop_oneof![Just(1), Just(200), Just(1 << 20)],
        steps in proptest::collection::vec(step(), 1..12),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(run(deletion_vectors, partitioned, pending_bytes, steps));
    }
}
