//! One keeper's log, without a keeper around it.

use uuid::Uuid;
use wal_decoder::Lsn;

use crate::CoreError;
use crate::ids::{Term, Timeline};
use crate::wal_keeper::keeper_log::{KeeperLog, Refusal, TermBegin};
use crate::wal_keeper::record_scanner::SEGMENT;
use crate::wal_keeper::record_scanner::tests::WalWriter;
use crate::wal_keeper::segment_files::SegmentFiles;
use crate::wal_keeper::term_history::TermStart;

const ORIGIN: Lsn = Lsn(SEGMENT + 40);

fn begin(history: &[(u64, Lsn)], archived: Lsn) -> TermBegin {
    let entry =
        |(term, start): &(u64, Lsn)| TermStart { term: Term(*term), start: *start, timeline: Timeline(1) };
    let term = Term(history.last().unwrap().0);
    let history = history.iter().map(entry).collect::<Vec<_>>().try_into().unwrap();
    TermBegin { term, candidate: candidate(term), system_identifier: 7, archived, history }
}

fn candidate(term: Term) -> Uuid {
    Uuid::from_u128(term.0.into())
}

struct Proposer {
    wal: WalWriter,
    sent: usize,
    term: Term,
    origin: Lsn,
}

/// A proposer that has begun, and whose WAL begins at `at`.
fn propose(log: &mut KeeperLog, begin: &TermBegin, at: Lsn, last: Lsn) -> Proposer {
    log.promise(begin.term, begin.candidate).unwrap();
    log.begin(begin).unwrap();
    Proposer { wal: WalWriter::new(at, last), sent: 0, term: begin.term, origin: at }
}

impl Proposer {
    /// Writes a record and has it flushed.
    fn commit(&mut self, log: &mut KeeperLog, size: usize) -> Lsn {
        let end = self.wal.record(&vec![self.term.0 as u8; size]);
        self.send(log, usize::MAX);
        assert_eq!(log.sync().unwrap(), end);
        end
    }

    fn send(&mut self, log: &mut KeeperLog, limit: usize) {
        let to = self.wal.bytes.len().min(self.sent.saturating_add(limit));
        let at = Lsn(self.origin.0 + self.sent as u64);
        log.append(self.term, at, &self.wal.bytes[self.sent..to]).unwrap();
        self.sent = to;
    }
}

#[test]
fn what_was_flushed_is_there_after_any_end_of_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = KeeperLog::open(folder.path()).unwrap();
    let mut proposer = propose(&mut log, &begin(&[(1, ORIGIN)], ORIGIN), ORIGIN, Lsn(5));
    let mut end = ORIGIN;
    for size in [10, 9000, 3 << 20, 20 << 20, 1] {
        end = proposer.commit(&mut log, size);
        log = KeeperLog::open(folder.path()).unwrap();
        assert_eq!((log.status().flushed, log.status().record_end), (end, end));
        assert_eq!(log.begin(&begin(&[(1, ORIGIN)], ORIGIN)), Ok(end));
    }
    // Half a record is nobody's.
    proposer.wal.record(&[1; 5000]);
    proposer.send(&mut log, 2000);
    assert_eq!(log.sync().unwrap(), Lsn(end.0 + 2000));
    assert_eq!(log.status().record_end, end);
    log = KeeperLog::open(folder.path()).unwrap();
    assert_eq!(log.status().flushed, end);
    let mut read = Vec::new();
    while let Ok(bytes) = log.read(Lsn(ORIGIN.0 + read.len() as u64), end)
        && !bytes.is_empty()
    {
        read.extend(bytes);
    }
    assert!(read == proposer.wal.bytes[..(end.0 - ORIGIN.0) as usize]);
}

#[test]
fn a_promise_outlives_the_process_and_is_given_to_one_candidate_only() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("project/branch");
    let mut log = KeeperLog::open(&directory).unwrap();
    assert!(!directory.exists(), "asking after a log must not make one");
    log.promise(Term(5), candidate(Term(5))).unwrap();
    let mut log = KeeperLog::open(&directory).unwrap();
    let stale = Err(Refusal::StaleTerm { promised: Term(5) });
    assert_eq!(log.promise(Term(4), candidate(Term(4))), stale);
    assert_eq!(log.promise(Term(5), candidate(Term(6))), stale);
    log.promise(Term(5), candidate(Term(5))).unwrap();
    log.begin(&begin(&[(5, ORIGIN)], ORIGIN)).unwrap();
    log.promise(Term(6), candidate(Term(6))).unwrap();
    assert_eq!(log.append(Term(5), ORIGIN, b"late"), Err(Refusal::StaleTerm { promised: Term(6) }));
    assert!(log.begin(&begin(&[(5, ORIGIN)], ORIGIN)).is_err());
}

#[test]
fn a_log_is_cut_where_the_histories_part_and_what_lay_beyond_never_returns() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = KeeperLog::open(folder.path()).unwrap();
    let mut first = propose(&mut log, &begin(&[(1, ORIGIN)], ORIGIN), ORIGIN, Lsn(5));
    let agreed = first.commit(&mut log, 100);
    let last = Lsn(ORIGIN.0);
    // As long as what the second will write: its successors would fit.
    first.commit(&mut log, 50);
    first.commit(&mut log, 18 << 20);
    let second = begin(&[(1, ORIGIN), (3, agreed)], ORIGIN);
    let mut second = propose(&mut log, &second, agreed, last);
    assert_eq!(log.status().flushed, agreed);
    let end = second.commit(&mut log, 50);
    let log = KeeperLog::open(folder.path()).unwrap();
    assert_eq!(log.status().flushed, end);
    assert_eq!(log.status().history.at(end).unwrap().term, Term(3));
}

#[test]
fn bytes_that_were_given_up_do_not_come_back_behind_another_terms() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = KeeperLog::open(folder.path()).unwrap();
    let mut first = propose(&mut log, &begin(&[(1, ORIGIN)], ORIGIN), ORIGIN, Lsn(5));
    let agreed = first.commit(&mut log, 100);
    first.wal.record(&[1; 50]);
    first.wal.record(&[1; 60]);
    first.send(&mut log, usize::MAX);
    log.forget_unflushed();
    assert_eq!(log.status().flushed, agreed);
    let second = begin(&[(1, ORIGIN), (2, agreed)], ORIGIN);
    let mut second = propose(&mut log, &second, agreed, ORIGIN);
    let end = second.commit(&mut log, 50);
    assert_eq!(KeeperLog::open(folder.path()).unwrap().status().flushed, end);
}

#[test]
fn a_log_that_is_behind_the_archive_or_of_another_history_begins_anew() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = KeeperLog::open(folder.path()).unwrap();
    propose(&mut log, &begin(&[(1, ORIGIN)], ORIGIN), ORIGIN, Lsn(5)).commit(&mut log, 100);
    let archived = Lsn(7 * SEGMENT + 4096);
    for (history, term) in [(vec![(1, ORIGIN), (2, archived)], 2), (vec![(9, archived)], 9)] {
        let next = begin(&history, archived);
        let mut proposer = propose(&mut log, &next, archived, Lsn(5));
        assert_eq!(log.status().start, archived);
        let end = proposer.commit(&mut log, 100);
        log = KeeperLog::open(folder.path()).unwrap();
        assert_eq!((log.status().flushed, log.status().promised), (end, Term(term)));
    }
    let mut other = begin(&[(10, archived)], archived);
    other.system_identifier = 8;
    log.promise(other.term, other.candidate).unwrap();
    assert_eq!(log.begin(&other), Err(Refusal::OtherCluster { found: 7 }));
}

#[test]
fn what_is_archived_is_given_up_and_its_files_are_used_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = KeeperLog::open(folder.path()).unwrap();
    let mut proposer = propose(&mut log, &begin(&[(1, ORIGIN)], ORIGIN), ORIGIN, Lsn(5));
    let mut end = ORIGIN;
    for _ in 0..12 {
        let archived = end;
        end = proposer.commit(&mut log, 7 << 20);
        log.trim(archived).unwrap();
        let mut open = KeeperLog::open(folder.path()).unwrap();
        assert_eq!(open.status().flushed, end);
        assert!(SegmentFiles::new(folder.path()).segments().unwrap().len() <= 4);
        assert!(open.read(ORIGIN, end).is_err() || archived.0 / SEGMENT == ORIGIN.0 / SEGMENT);
        open.begin(&begin(&[(1, ORIGIN)], archived)).unwrap();
        log = open;
    }
}

#[test]
fn a_missing_file_of_wal_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = KeeperLog::open(folder.path()).unwrap();
    let mut proposer = propose(&mut log, &begin(&[(1, ORIGIN)], ORIGIN), ORIGIN, Lsn(5));
    proposer.commit(&mut log, 40 << 20);
    let first = SegmentFiles::new(folder.path()).segments().unwrap()[0] * SEGMENT;
    std::fs::remove_file(folder.path().join(format!("{first:016X}.segment"))).unwrap();
    let error = KeeperLog::open(folder.path()).unwrap_err();
    assert!(matches!(error, CoreError::KeeperStateDamaged { .. }), "{error}");
}
