//! The router is fed what a walsender would send, built here byte by byte.

use super::*;
use arrow::array::AsArray;
use arrow::datatypes::Int32Type;
use wal_decoder::{ColumnSpec, Op, PgType};

const INT4: u32 = 23;

/// pgoutput messages, as the protocol chapter of Postgres's manual lays them out.
struct Wire {
    /// Inside a chunk every message names its transaction.
    xid: Option<u32>,
}

const PLAIN: Wire = Wire { xid: None };

impl Wire {
    fn message(&self, kind: u8, body: &[u8]) -> Bytes {
        let mut bytes = vec![kind];
        bytes.extend(self.xid.iter().flat_map(|xid| xid.to_be_bytes()));
        bytes.extend_from_slice(body);
        bytes.into()
    }

    fn relation(&self, id: u32, columns: &[&str]) -> Bytes {
        let mut body = id.to_be_bytes().to_vec();
        body.extend_from_slice(b"public\0t\0d");
        body.extend((columns.len() as u16).to_be_bytes());
        for (at, name) in columns.iter().enumerate() {
            body.push(u8::from(at == 0));
            body.extend_from_slice(name.as_bytes());
            body.push(0);
            body.extend(INT4.to_be_bytes());
            body.extend((-1i32).to_be_bytes());
        }
        self.message(b'R', &body)
    }

    fn insert(&self, id: u32, values: &[i32]) -> Bytes {
        let mut body = id.to_be_bytes().to_vec();
        body.push(b'N');
        body.extend((values.len() as u16).to_be_bytes());
        for value in values {
            let text = value.to_string();
            body.push(b't');
            body.extend((text.len() as u32).to_be_bytes());
            body.extend_from_slice(text.as_bytes());
        }
        self.message(b'I', &body)
    }

    /// What the source's event trigger writes.
    fn announcement(&self, relation: u32) -> Bytes {
        let text = format!(r#"{{"relation":{relation},"file":1,"attributes":1,"columns":[]}}"#);
        let mut body = vec![1];
        body.extend([0; 8]);
        body.extend_from_slice(b"tidewater\0");
        body.extend((text.len() as u32).to_be_bytes());
        body.extend_from_slice(text.as_bytes());
        self.message(b'M', &body)
    }

    fn truncate(&self, ids: &[u32]) -> Bytes {
        let mut body = (ids.len() as u32).to_be_bytes().to_vec();
        body.push(0);
        body.extend(ids.iter().flat_map(|id| id.to_be_bytes()));
        self.message(b'T', &body)
    }
}

fn begin(commit_lsn: u64) -> Bytes {
    let mut body = commit_lsn.to_be_bytes().to_vec();
    body.extend([0; 12]);
    PLAIN.message(b'B', &body)
}

fn commit(commit_lsn: u64, end_lsn: u64) -> Bytes {
    let mut body = vec![0];
    body.extend(commit_lsn.to_be_bytes());
    body.extend(end_lsn.to_be_bytes());
    body.extend([0; 8]);
    PLAIN.message(b'C', &body)
}

fn stream_start(xid: u32, first: bool) -> Bytes {
    let mut body = xid.to_be_bytes().to_vec();
    body.push(u8::from(first));
    PLAIN.message(b'S', &body)
}

fn stream_stop() -> Bytes {
    PLAIN.message(b'E', &[])
}

fn stream_abort(xid: u32, subxid: u32) -> Bytes {
    let mut body = xid.to_be_bytes().to_vec();
    body.extend(subxid.to_be_bytes());
    PLAIN.message(b'A', &body)
}

fn stream_commit(xid: u32, commit_lsn: u64, end_lsn: u64) -> Bytes {
    let mut body = xid.to_be_bytes().to_vec();
    body.push(0);
    body.extend(commit_lsn.to_be_bytes());
    body.extend(end_lsn.to_be_bytes());
    body.extend([0; 8]);
    PLAIN.message(b'c', &body)
}

fn schema(columns: &[&str]) -> Arc<TableSchema> {
    let column = |(at, name): (usize, &&str)| ColumnSpec {
        source_name: (*name).to_owned(),
        lake_name: (*name).to_owned(),
        attnum: at as i16 + 1,
        pg_type: PgType::Int4,
    };
    Arc::new(TableSchema {
        source: ("public".into(), "t".into()),
        columns: columns.iter().enumerate().map(column).collect(),
        key: vec![0],
    })
}

struct Rig {
    router: Router,
    _spools: tempfile::TempDir,
}

impl Rig {
    fn new() -> Rig {
        let spools = tempfile::tempdir().unwrap();
        Rig { router: Router::new(spools.path().to_owned()), _spools: spools }
    }

    fn live(mut self, relation: u32, from: u64) -> Rig {
        self.router.go_live(relation, schema(&["id"]), BuilderOptions::default(), Lsn(from));
        self
    }

    /// Tells the messages, replaying what is to be replayed; returns where transactions were complete.
    fn tell(&mut self, messages: &[Bytes]) -> Vec<u64> {
        let mut commits = Vec::new();
        for message in messages {
            match self.router.message(message).unwrap() {
                Step::Continue => {}
                Step::Committed(point) => commits.push(point.end_lsn.0),
                Step::Replay(mut replay) => {
                    let mut bytes = Vec::new();
                    while let Some(subxid) = replay.messages.next(&mut bytes).unwrap() {
                        let message = Bytes::copy_from_slice(&bytes);
                        let step = self.router.replay_message(&replay, subxid, &message).unwrap();
                        assert!(matches!(step, Step::Continue));
                    }
                    let Step::Committed(point) = self.router.replay_done(&replay) else { panic!() };
                    commits.push(point.end_lsn.0);
                }
                other => panic!("{other:?}"),
            }
        }
        commits
    }

    /// The ids and operations that a cut takes for one table.
    fn cut(&mut self, relation: u32) -> (Vec<i32>, Vec<Op>) {
        let cut = self.router.cut();
        let changes = cut.into_iter().find(|(id, _)| *id == relation).and_then(|(_, changes)| changes);
        let Some(Batch { changes, .. }) = changes else { return (Vec::new(), Vec::new()) };
        (changes.rows.column(0).as_primitive::<Int32Type>().values().to_vec(), changes.ops)
    }
}

#[test]
fn a_cut_holds_whole_transactions_only() {
    let mut rig = Rig::new().live(7, 0);
    let told = rig.tell(&[begin(10), PLAIN.relation(7, &["id"]), PLAIN.insert(7, &[1])]);
    assert!(told.is_empty() && !rig.router.between_transactions());
    assert_eq!(rig.tell(&[PLAIN.insert(7, &[2]), commit(10, 15)]), [15]);
    assert!(rig.router.between_transactions());
    assert_eq!(rig.cut(7).0, [1, 2]);
    assert!(!rig.router.has_changes());
}

#[test]
fn what_the_lake_has_already_is_not_taken_twice() {
    let mut rig = Rig::new().live(7, 15);
    rig.tell(&[begin(10), PLAIN.relation(7, &["id"]), PLAIN.insert(7, &[1]), commit(10, 15)]);
    assert!(!rig.router.has_changes());
    rig.tell(&[begin(15), PLAIN.insert(7, &[2]), commit(15, 20)]);
    assert_eq!(rig.cut(7).0, [2]);
}

#[test]
fn an_aborted_savepoint_leaves_no_rows() {
    let mut rig = Rig::new().live(7, 0);
    let (top, sub) = (Wire { xid: Some(100) }, Wire { xid: Some(101) });
    let commits = rig.tell(&[
        stream_start(100, true),
        top.relation(7, &["id"]),
        top.insert(7, &[1]),
        sub.insert(7, &[2]),
        stream_stop(),
        stream_start(100, false),
        sub.insert(7, &[3]),
        top.insert(7, &[4]),
        stream_stop(),
        stream_abort(100, 101),
    ]);
    assert!(commits.is_empty() && !rig.router.has_changes(), "nothing is taken before the commit");
    assert_eq!(rig.tell(&[stream_commit(100, 50, 60)]), [60]);
    assert_eq!(rig.cut(7).0, [1, 4]);
}

#[test]
fn a_shape_described_in_an_aborted_savepoint_serves_the_rows_that_survive() {
    let mut rig = Rig::new().live(7, 0);
    let (top, sub) = (Wire { xid: Some(100) }, Wire { xid: Some(101) });
    rig.tell(&[
        stream_start(100, true),
        sub.relation(7, &["id"]),
        sub.insert(7, &[1]),
        top.insert(7, &[2]),
        stream_stop(),
        stream_abort(100, 101),
        stream_commit(100, 50, 60),
    ]);
    assert_eq!(rig.cut(7).0, [2]);
}

#[test]
fn interleaved_streams_commit_apart_and_an_aborted_one_is_gone() {
    let mut rig = Rig::new().live(7, 0);
    let wire = |xid| Wire { xid: Some(xid) };
    let commits = rig.tell(&[
        stream_start(100, true),
        wire(100).relation(7, &["id"]),
        wire(100).insert(7, &[1]),
        stream_stop(),
        stream_start(200, true),
        wire(200).relation(7, &["id"]),
        wire(200).insert(7, &[2]),
        stream_stop(),
        begin(20),
        PLAIN.relation(7, &["id"]),
        PLAIN.insert(7, &[3]),
        commit(20, 25),
        stream_start(300, true),
        wire(300).insert(7, &[9]),
        stream_stop(),
        stream_abort(300, 300),
        stream_commit(200, 30, 35),
        stream_commit(100, 40, 45),
    ]);
    assert_eq!(commits, [25, 35, 45]);
    assert_eq!(rig.cut(7).0, [3, 2, 1]);
    assert!(rig.router.in_progress.is_empty());
}

#[test]
fn a_loading_tables_changes_wait_and_those_in_its_snapshot_are_dropped() {
    let mut rig = Rig::new().live(8, 0);
    rig.tell(&[begin(5), PLAIN.relation(7, &["id"]), PLAIN.insert(7, &[0]), commit(5, 8)]);
    rig.router.start_loading(7).unwrap();
    rig.tell(&[begin(10), PLAIN.insert(7, &[1]), commit(10, 15)]);
    let chunk = Wire { xid: Some(100) };
    rig.tell(&[
        stream_start(100, true),
        chunk.relation(7, &["id"]),
        chunk.insert(7, &[2]),
        stream_stop(),
        stream_commit(100, 20, 25),
    ]);
    rig.tell(&[begin(30), PLAIN.insert(7, &[3]), PLAIN.truncate(&[7, 8]), commit(30, 35)]);
    assert_eq!(rig.cut(8).1, [Op::Truncate], "the other table goes on meanwhile");

    // The load's snapshot holds what was committed before position 20.
    let spool = rig.router.take_spool(7).unwrap();
    rig.router.go_live(7, schema(&["id"]), BuilderOptions::default(), Lsn(20));
    let mut reader = spool.into_reader().unwrap();
    let mut bytes = Vec::new();
    while let Some(tag) = reader.next(&mut bytes).unwrap() {
        let step = rig.router.spooled_message(7, tag, &Bytes::copy_from_slice(&bytes)).unwrap();
        assert!(matches!(step, Step::Continue));
    }
    assert_eq!(rig.cut(7), (vec![2, 3], vec![Op::Insert, Op::Insert, Op::Truncate]));
    assert!(rig.cut(8).1.is_empty(), "a truncate in one table's spool touches no other");
}

#[test]
fn changes_know_their_transaction_and_their_number_in_it_wherever_they_waited() {
    let mut rig = Rig::new();
    rig.router.keep_origins(7);
    let mut rig = rig.live(7, 0).live(8, 0);
    let origins = |rig: &mut Rig| {
        let cut = rig.router.cut();
        let batch = cut.into_iter().find(|(id, _)| *id == 7).and_then(|(_, batch)| batch).unwrap();
        assert_eq!(batch.origins.len(), batch.changes.ops.len());
        batch.origins.iter().map(|origin| (origin.commit_lsn.0, origin.xid, origin.seq)).collect::<Vec<_>>()
    };
    let chunk = Wire { xid: Some(100) };
    let streamed = [
        stream_start(100, true),
        chunk.relation(7, &["id"]),
        chunk.insert(7, &[2]),
        chunk.truncate(&[8, 7]),
        stream_stop(),
        stream_commit(100, 20, 25),
    ];
    rig.tell(&[begin(10), PLAIN.relation(7, &["id"]), PLAIN.relation(8, &["id"]), PLAIN.insert(7, &[1])]);
    rig.tell(&[PLAIN.insert(8, &[1]), PLAIN.insert(7, &[3]), commit(10, 15)]);
    rig.tell(&streamed);
    let expected = [(10, 0, 1), (10, 0, 3), (20, 100, 1), (20, 100, 3)];
    assert_eq!(origins(&mut rig), expected);

    rig.router.start_loading(7).unwrap();
    rig.tell(&[
        begin(10),
        PLAIN.insert(7, &[1]),
        PLAIN.insert(8, &[1]),
        PLAIN.insert(7, &[3]),
        commit(10, 15),
    ]);
    rig.tell(&streamed);
    let spool = rig.router.take_spool(7).unwrap();
    rig.router.go_live(7, schema(&["id"]), BuilderOptions::default(), Lsn(5));
    let mut reader = spool.into_reader().unwrap();
    let mut bytes = Vec::new();
    // In the middle of another transaction.
    rig.tell(&[begin(90), PLAIN.insert(8, &[1])]);
    while let Some(tag) = reader.next(&mut bytes).unwrap() {
        rig.router.spooled_message(7, tag, &Bytes::copy_from_slice(&bytes)).unwrap();
    }
    rig.tell(&[commit(90, 95)]);
    assert_eq!(origins(&mut rig), expected);
}

#[test]
fn a_changed_shape_is_asked_for_before_its_first_row_which_is_taken_in_the_new_one() {
    let mut rig = Rig::new().live(7, 0).live(8, 0);
    rig.tell(&[begin(10), PLAIN.relation(7, &["id"]), PLAIN.insert(7, &[1])]);
    rig.tell(&[PLAIN.relation(7, &["id", "more"]), PLAIN.relation(8, &["id"])]);
    let row = PLAIN.insert(7, &[2, 3]);
    assert!(matches!(rig.router.message(&row).unwrap(), Step::Reshape(7)));
    assert_eq!(rig.router.take(7).unwrap().changes.rows.num_rows(), 1);
    rig.router.reshape(7, schema(&["id", "more"]), BuilderOptions::default());
    rig.tell(&[row, PLAIN.insert(8, &[5]), commit(10, 15)]);
    assert_eq!(rig.cut(8).0, [5]);
}

#[test]
fn two_columns_that_swapped_their_names_are_a_changed_shape() {
    let mut rig = Rig::new();
    rig.router.go_live(7, schema(&["id", "more"]), BuilderOptions::default(), Lsn(0));
    rig.tell(&[begin(10), PLAIN.relation(7, &["more", "id"])]);
    assert!(matches!(rig.router.message(&PLAIN.insert(7, &[1, 2])).unwrap(), Step::Reshape(7)));
}

/// The relations announced by a replay's messages.
fn announced(rig: &mut Rig, replay: &mut TransactionReplay) -> Vec<u32> {
    let mut relations = Vec::new();
    let mut bytes = Vec::new();
    while let Some(subxid) = replay.messages.next(&mut bytes).unwrap() {
        let message = Bytes::copy_from_slice(&bytes);
        if let Step::Announced(columns) = rig.router.replay_message(replay, subxid, &message).unwrap() {
            relations.push(columns.relation);
        }
    }
    relations
}

#[test]
fn columns_announced_in_an_aborted_savepoint_never_were() {
    let mut rig = Rig::new().live(7, 0).live(8, 0);
    let (top, sub) = (Wire { xid: Some(100) }, Wire { xid: Some(101) });
    rig.tell(&[stream_start(100, true), sub.announcement(7), top.announcement(8), stream_stop()]);
    rig.tell(&[stream_abort(100, 101)]);
    let Step::Replay(mut replay) = rig.router.message(&stream_commit(100, 50, 60)).unwrap() else { panic!() };
    assert_eq!(announced(&mut rig, &mut replay), [8]);
}

#[test]
fn columns_announced_below_a_tables_position_are_in_the_lake_already() {
    let mut rig = Rig::new().live(7, 30);
    rig.tell(&[begin(10), PLAIN.announcement(7), PLAIN.announcement(99), commit(10, 15), begin(40)]);
    assert!(matches!(rig.router.message(&PLAIN.announcement(7)).unwrap(), Step::Announced(_)));
}

#[test]
fn full_builders_are_handed_over_before_the_transaction_ends() {
    let mut rig = Rig::new().live(7, 0);
    rig.tell(&[begin(10), PLAIN.relation(7, &["id"])]);
    let mut handed_over = 0;
    for id in 0..3 * HAND_OVER_OPS as i32 {
        if let Step::HandOver = rig.router.message(&PLAIN.insert(7, &[id])).unwrap() {
            handed_over +=
                rig.router.hand_over().iter().map(|(_, batch)| batch.changes.ops.len()).sum::<usize>();
        }
    }
    assert_eq!(handed_over, 3 * HAND_OVER_OPS);
    rig.tell(&[commit(10, 15)]);
    let cut = rig.router.cut();
    assert!(matches!(cut.as_slice(), [(7, None)]), "the cut still commits what was handed over");
}

#[test]
fn a_stream_commit_of_an_unknown_transaction_is_an_error() {
    let mut rig = Rig::new();
    let error = rig.router.message(&stream_commit(5, 1, 2));
    assert!(matches!(error, Err(SyncError::UnknownTransaction { xid: 5 })));
}
