//! What the router has its caller do.

use crate::daemon::spool::SpoolReader;
use postgres_connector::AnnouncedColumns;
use std::collections::HashSet;
use wal_decoder::{Lsn, RowError};

/// A committed transaction's place in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommitPoint {
    /// End of the commit record: the transaction's position everywhere else.
    pub end_lsn: Lsn,
    /// When it was committed, in microseconds since 2000-01-01 UTC.
    pub commit_time: i64,
}

/// What the caller has to do before it tells the router the next message.
#[derive(Debug)]
pub enum Step {
    /// Nothing.
    Continue,
    /// Some builder is full: call [`Router::hand_over`].
    HandOver,
    /// A transaction is complete: a flush may be cut here.
    Committed(CommitPoint),
    /// A transaction that arrived in chunks has committed: feed it back with [`Router::replay_message`].
    Replay(Box<TransactionReplay>),
    /// From here on a table's columns are these: its rows that follow are described so.
    Announced(Box<AnnouncedColumns>),
    /// The table's columns are not what its builder knows. The message was not taken: once the table has its new
    /// shape ([`Router::reshape`]), give it again.
    Reshape(u32),
    /// A row of the table cannot be taken; its earlier changes are dropped.
    Stopped(u32, RowError),
}

/// The spooled messages of a transaction that turned out to have committed.
#[derive(Debug)]
pub struct TransactionReplay {
    /// Its messages; the tag is the subtransaction's id.
    pub messages: SpoolReader,
    /// Subtransactions that were rolled back.
    pub aborted: HashSet<u32>,
    /// Its place in the log.
    pub point: CommitPoint,
}
