//! A history against the list of changes it was given, judged by delta-rs with DataFusion.

use crate::commits::foreign_optimize_any;
use crate::support::Change::{Delete, Insert, Truncate, Update, UpdateKeepingNote, UpdateKey};
use crate::support::{self, Bench, Change, Row, definition, row, rows_batch, schema, spec};
use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{DataType, Int64Type};
use delta_writer::{
    DeltaError, MirrorTable, TableDefinition, TableKind, TableLoad, history_schema, loaded_rows,
};
use deltalake::datafusion::prelude::SessionContext;
use proptest::prelude::*;
use std::collections::BTreeMap;
use url::Url;
use wal_decoder::{ChangeOrigin, Lsn, PgTimestamp};

/// Source columns, change type, LSN, transaction, number within it.
type Recorded = (Option<i64>, Option<String>, Option<String>, String, i64, Option<i64>, i64);

fn history() -> TableDefinition {
    TableDefinition {
        schema: history_schema(&schema()),
        kind: TableKind::History,
        deletion_vectors: false,
        ..definition()
    }
}

/// A history and all that it has to hold.
struct Rig {
    bench: Bench,
    table: Option<MirrorTable>,
    model: BTreeMap<i64, Row>,
    expected: Vec<Recorded>,
    lsn: i64,
}

impl Rig {
    async fn load(bench: Bench, rows: &[Row]) -> Rig {
        let load = TableLoad::begin(bench.location(), history(), bench.options.clone()).await.unwrap();
        let mut worker = load.worker();
        worker.write(loaded_rows(&rows_batch(rows), Lsn(1)).unwrap()).await.unwrap();
        let table = load.commit(vec![worker.finish().await.unwrap()], &spec(1)).await.unwrap();
        let expected = rows
            .iter()
            .map(|(id, country, note)| {
                (Some(*id), country.clone(), note.clone(), "insert".to_owned(), 1, None, 0)
            })
            .collect();
        let model = rows.iter().map(|row| (row.0, row.clone())).collect();
        Rig { bench, table: Some(table), model, expected, lsn: 1 }
    }

    fn table(&mut self) -> &mut MirrorTable {
        self.table.as_mut().unwrap()
    }

    fn expect(&mut self, row: Option<&Row>, change: &str, seq: i64) {
        let (id, country, note) = match row {
            Some((id, country, note)) => (Some(*id), country.clone(), note.clone()),
            None => (None, None, None),
        };
        self.expected.push((id, country, note, change.to_owned(), self.lsn, Some(700), seq));
    }

    /// One transaction of what the source could have done; gives the changes that it did.
    async fn transaction(&mut self, list: Vec<Change>) -> Result<(), DeltaError> {
        self.lsn += 10;
        let mut kept = Vec::new();
        for change in list {
            let seq = 2 * (kept.len() as i64 + 1);
            let (old, new) = match &change {
                Insert(row) => (None, Some(row.clone())),
                Update(row) => (Some(row.0), Some(row.clone())),
                UpdateKeepingNote(id, country) => {
                    let note = self.model.get(id).and_then(|row| row.2.clone());
                    (Some(*id), Some((*id, country.clone(), note)))
                }
                UpdateKey(id, row) => (Some(*id), Some(row.clone())),
                Delete(id) => (Some(*id), None),
                Truncate => {
                    self.model.clear();
                    self.expect(None, "truncate", seq);
                    kept.push(change);
                    continue;
                }
            };
            let before = old.map(|id| self.model.get(&id).cloned());
            let taken = new.as_ref().is_some_and(|new| old != Some(new.0) && self.model.contains_key(&new.0));
            if before == Some(None) || taken {
                continue;
            }
            if let Some(before) = before.flatten() {
                self.model.remove(&before.0);
                let change = if new.is_some() { "update_preimage" } else { "delete" };
                self.expect(Some(&before), change, if new.is_some() { seq - 1 } else { seq });
            }
            if let Some(new) = new {
                self.expect(Some(&new), if old.is_some() { "update_postimage" } else { "insert" }, seq);
                self.model.insert(new.0, new);
            }
            kept.push(change);
        }
        let origins: Vec<ChangeOrigin> = (1..=kept.len() as i64)
            .map(|seq| ChangeOrigin {
                commit_lsn: Lsn(self.lsn as u64),
                commit_time: PgTimestamp(self.lsn),
                xid: 700,
                seq,
            })
            .collect();
        self.table().record(support::changes(&kept), &origins).await
    }

    async fn commit(&mut self) {
        let spec = spec(self.lsn);
        if let Some(flush) = self.table().write().await.unwrap() {
            self.table().commit(flush, &spec).await.unwrap();
        }
    }

    async fn reopen(&mut self, lose_index: bool) {
        self.table = None;
        if lose_index {
            std::fs::remove_dir_all(&self.bench.options.index_dir).unwrap();
        }
        self.table = Some(self.bench.open().await);
    }

    /// Everything that is in the lake, in the order of time.
    async fn read(&self) -> Vec<Recorded> {
        let url = Url::from_directory_path(self.bench.folder.path().join("lake/shop/public/orders")).unwrap();
        let table = deltalake::open_table(url).await.unwrap();
        let context = SessionContext::new();
        context.register_table("t", table.table_provider().await.unwrap()).unwrap();
        let frame = context
            .sql("SELECT id, country, note, _pg_change_type, _pg_lsn, _pg_xid, _pg_seq FROM t ORDER BY _pg_lsn, _pg_seq, id")
            .await
            .unwrap();
        frame.collect().await.unwrap().iter().flat_map(recorded).collect()
    }

    async fn assert_complete(&self) {
        assert_eq!(self.read().await, self.expected);
    }
}

fn recorded(batch: &RecordBatch) -> Vec<Recorded> {
    let text = |at: usize| {
        let column = arrow::compute::cast(batch.column(at), &DataType::Utf8).unwrap();
        column.as_string::<i32>().iter().map(|value| value.map(str::to_owned)).collect::<Vec<_>>()
    };
    let number = |at: usize| batch.column(at).as_primitive::<Int64Type>().iter().collect::<Vec<_>>();
    let (countries, notes, changes) = (text(1), text(2), text(3));
    let (ids, lsns, xids, seqs) = (number(0), number(4), number(5), number(6));
    (0..batch.num_rows())
        .map(|at| {
            (
                ids[at],
                countries[at].clone(),
                notes[at].clone(),
                changes[at].clone().unwrap(),
                lsns[at].unwrap(),
                xids[at],
                seqs[at].unwrap(),
            )
        })
        .collect()
}

#[tokio::test]
async fn every_change_is_a_row_with_whole_old_rows() {
    let mut rig =
        Rig::load(Bench::new(), &[row(1, "DE", "large"), row(2, "DE", "x"), row(3, "DE", "x")]).await;
    let list = vec![
        Insert(row(4, "FR", "new")),
        UpdateKeepingNote(1, Some("IT".into())),
        UpdateKeepingNote(1, Some("FR".into())),
        UpdateKey(2, row(20, "DE", "moved")),
        Delete(3),
        Insert(row(3, "DE", "again")),
        Update(row(4, "FR", "newer")),
    ];
    rig.transaction(list).await.unwrap();
    rig.commit().await;
    assert_eq!(rig.expected.len(), 3 + 1 + 2 + 2 + 2 + 1 + 1 + 2);
    rig.assert_complete().await;
    rig.reopen(true).await;
    let list = vec![UpdateKeepingNote(1, None), Delete(20), Delete(4), UpdateKeepingNote(3, None)];
    rig.transaction(list).await.unwrap();
    rig.commit().await;
    rig.assert_complete().await;
    assert_eq!(rig.table().stats().deleted_rows, 0);
}

#[tokio::test]
async fn a_change_of_a_row_that_the_history_does_not_hold_is_never_made_up() {
    let mut rig = Rig::load(Bench::new(), &[row(1, "DE", "x"), row(2, "DE", "x")]).await;
    rig.transaction(vec![Delete(1), Truncate]).await.unwrap();
    rig.commit().await;
    let gone = [Delete(1), Update(row(2, "DE", "y")), UpdateKey(9, row(10, "DE", "y"))];
    for lose_index in [false, true] {
        rig.reopen(lose_index).await;
        for change in &gone {
            let origin = [ChangeOrigin { seq: 1, ..ChangeOrigin::default() }];
            let error = rig
                .table()
                .record(support::changes(std::slice::from_ref(change)), &origin)
                .await
                .unwrap_err();
            assert!(matches!(&error, DeltaError::MissingRow { .. }), "{change:?}: {error}");
            rig.table().abandon();
        }
    }
    rig.assert_complete().await;
}

#[tokio::test]
async fn rows_that_another_engine_shuffled_are_still_told_apart_by_their_time() {
    let mut rig = Rig::load(Bench::new(), &[row(1, "DE", "x")]).await;
    for note in ["a", "b", "c"] {
        rig.transaction(vec![Update(row(1, "DE", note)), Insert(row(rig.lsn + 100, "DE", note))])
            .await
            .unwrap();
        rig.commit().await;
    }
    let version = rig.table().version();
    foreign_optimize_any(&rig.bench, version).await;
    rig.reopen(false).await;
    rig.transaction(vec![UpdateKeepingNote(1, Some("FR".into()))]).await.unwrap();
    rig.commit().await;
    rig.assert_complete().await;
}

#[tokio::test]
async fn where_the_source_sends_whole_old_rows_no_key_is_needed() {
    let bench = Bench::new();
    let keyless = TableDefinition { key: Vec::new(), ..history() };
    let load = TableLoad::begin(bench.location(), keyless, bench.options.clone()).await.unwrap();
    let mut table = load.commit(Vec::new(), &spec(1)).await.unwrap();
    let changes = wal_decoder::RowChanges {
        rows: rows_batch(&[
            row(1, "DE", "same"),
            row(1, "DE", "same"),
            row(1, "DE", "same"),
            row(2, "DE", "new"),
        ]),
        old_keys: rows_batch(&[row(1, "DE", "same"), row(2, "DE", "new")]),
        ops: [wal_decoder::Op::Insert, wal_decoder::Op::Insert, wal_decoder::Op::Update]
            .into_iter()
            .chain([wal_decoder::Op::UpdateKey, wal_decoder::Op::Delete])
            .collect(),
        unchanged: Vec::new(),
    };
    let origins: Vec<_> = (1..=5).map(|seq| ChangeOrigin { seq, ..ChangeOrigin::default() }).collect();
    table.record(changes, &origins).await.unwrap();
    let flush = table.write().await.unwrap().unwrap();
    table.commit(flush, &spec(2)).await.unwrap();
    let rig = Rig { bench, table: Some(table), model: BTreeMap::new(), expected: Vec::new(), lsn: 2 };
    let found = rig.read().await;
    let told: Vec<_> = found.iter().map(|row| (row.0.unwrap(), row.3.as_str(), row.6)).collect();
    let expected = [
        (1, "insert", 2),
        (1, "insert", 4),
        (1, "update_preimage", 5),
        (1, "update_postimage", 6),
        (1, "update_preimage", 7),
        (2, "update_postimage", 8),
        (2, "delete", 10),
    ];
    assert_eq!(told, expected);
}

#[derive(Debug, Clone)]
enum Step {
    /// Transactions, committed together.
    Flush(Vec<Vec<Change>>),
    Reopen {
        lose_index: bool,
    },
    Checkpoint,
}

fn change() -> impl Strategy<Value = Change> {
    let id = 0..6_i64;
    let country = prop_oneof![Just(None), "[ab]".prop_map(Some)];
    let row = (id.clone(), country.clone(), proptest::option::of("[a-z]{0,3}"));
    prop_oneof![
        5 => row.clone().prop_map(Insert),
        4 => row.clone().prop_map(Update),
        3 => (id.clone(), country).prop_map(|(id, country)| UpdateKeepingNote(id, country)),
        2 => (id.clone(), row).prop_map(|(id, row)| UpdateKey(id, row)),
        4 => id.prop_map(Delete),
        1 => Just(Truncate),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let transactions = proptest::collection::vec(proptest::collection::vec(change(), 0..12), 1..4);
    prop_oneof![
        8 => transactions.prop_map(Step::Flush),
        3 => any::<bool>().prop_map(|lose_index| Step::Reopen { lose_index }),
        1 => Just(Step::Checkpoint),
    ]
}

async fn run(pending_bytes: usize, file_rows: u64, steps: Vec<Step>) {
    let mut bench = Bench::new();
    bench.options.pending_bytes = pending_bytes;
    bench.options.target_file_rows = file_rows;
    let mut rig = Rig::load(bench, &[row(0, "a", "first"), row(1, "a", "first")]).await;
    for step in steps {
        match step {
            Step::Flush(transactions) => {
                for transaction in transactions {
                    rig.transaction(transaction).await.unwrap();
                }
                rig.commit().await;
            }
            Step::Reopen { lose_index } => rig.reopen(lose_index).await,
            Step::Checkpoint => rig.table().checkpoint().write().await.unwrap(),
        }
    }
    rig.assert_complete().await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_history_holds_every_change_whatever_happens_in_between(
        pending_bytes in prop_oneof![Just(1), Just(500), Just(1 << 20)],
        file_rows in 1..6_u64,
        steps in proptest::collection::vec(step(), 1..12),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(run(pending_bytes, file_rows, steps));
    }
}
