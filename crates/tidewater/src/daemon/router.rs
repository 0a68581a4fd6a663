//! From the slot's messages to each table's changes, in commit order.
//!
//! The router is told every message of the stream, one after the other, and keeps what must be
//! remembered between them: the relations' shapes, the transaction under way, the transactions still in
//! progress at the source (spooled until they commit), and for each table at which stage it is.
//!
//! ```text
//!   message ──▶ in a stream chunk? ── yes ──▶ that transaction's spool ─┐ stream commit: replayed,
//!                      │ no                                             │ aborted subtransactions left out
//!                      ▼                                                ▼
//!                table's stage:  Live ──▶ change builder ──▶ (flush.rs)
//!                                Loading ──▶ table's spool ──▶ replayed once its load is in the lake
//!                                Halted ──▶ dropped; `sync_state.json` names the table
//! ```
//!
//! It does no I/O but for spools that overflow memory, and never waits. What needs waiting is returned
//! as a [`Step`].

mod live_rows;
mod spooled;
mod step;

use super::SyncError;
use super::batch::Batch;
use super::spool::Spool;
use bytes::Bytes;
use live_rows::{Row, in_order};
use postgres_connector::AnnouncedColumns;
use spooled::{CHUNKED, SPOOLED_ORIGIN, plain_relation, push_to, spooled_origin, tag};
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use wal_decoder::pgoutput::{self, Message, Relation};
use wal_decoder::{BuilderOptions, ChangeBuilder, ChangeOrigin, Lsn, RowError, TableSchema};

pub use step::{CommitPoint, Step, TransactionReplay};

/// Value bytes a table's builder holds before they are handed to its writer, so that one large
/// transaction does not grow in memory.
const HAND_OVER_BYTES: usize = 4 << 20;

/// Operations a builder holds before they are handed over: keeps Arrow offsets and row numbers small.
const HAND_OVER_OPS: usize = 64 << 10;

/// Value bytes in all builders together above which all are handed over.
const PENDING_LIMIT: usize = 64 << 20;

/// What becomes of a table's changes.
enum Stage {
    Live {
        builder: Box<ChangeBuilder>,
        /// Whether the builder knows the relation's present column order.
        bound: bool,
        /// Transactions whose commit record begins below are in the lake already.
        from: Lsn,
    },
    Loading {
        spool: Spool,
    },
    Halted,
}

struct Table {
    stage: Stage,
    /// Changes were taken since the last cut.
    dirty: bool,
    /// Bytes of the messages whose changes its builder holds. Their values take about as much, and to
    /// ask the builder would mean to visit each of its columns for each row.
    held: usize,
    /// Where the changes in its builder come from, if somebody wants to know.
    origins: Option<Vec<ChangeOrigin>>,
}

/// A transaction in progress at the source.
struct InProgress {
    spool: Spool,
    aborted: HashSet<u32>,
}

/// A relation as last described, and the message that did.
struct KnownRelation {
    relation: Relation,
    message: Bytes,
}

/// See the module's essay.
pub struct Router {
    spool_directory: PathBuf,
    tables: HashMap<u32, Table>,
    relations: HashMap<u32, KnownRelation>,
    in_progress: HashMap<u32, InProgress>,
    /// The chunk being received.
    chunk: Option<u32>,
    /// The transaction being received, and its last row change.
    current: Option<ChangeOrigin>,
    /// Tables whose changes are handed over with their origins.
    with_origins: HashSet<u32>,
    full: Vec<u32>,
    /// Batches taken out of builders that could hold no more.
    ready: Vec<(u32, Batch)>,
    /// Value bytes in all builders, not handed over yet.
    pending_bytes: usize,
    ops_since_cut: u64,
    bytes_since_cut: u64,
}

impl Router {
    /// A router without tables; spools that overflow go to `spool_directory`.
    pub fn new(spool_directory: PathBuf) -> Router {
        Router {
            spool_directory,
            tables: HashMap::new(),
            relations: HashMap::new(),
            in_progress: HashMap::new(),
            chunk: None,
            current: None,
            with_origins: HashSet::new(),
            full: Vec::new(),
            ready: Vec::new(),
            pending_bytes: 0,
            ops_since_cut: 0,
            bytes_since_cut: 0,
        }
    }

    /// Hands a table's changes over with where they come from, whenever it is taken up.
    pub fn keep_origins(&mut self, relation: u32) {
        self.with_origins.insert(relation);
    }

    /// Takes a table's changes from now on, but for transactions whose commit record begins below `from`.
    pub fn go_live(&mut self, relation: u32, schema: Arc<TableSchema>, options: BuilderOptions, from: Lsn) {
        let builder = Box::new(ChangeBuilder::new(schema, options));
        let origins = self.with_origins.contains(&relation).then(Vec::new);
        let stage = Stage::Live { builder, bound: false, from };
        let table = Table { stage, dirty: false, held: 0, origins };
        self.tables.insert(relation, table);
    }

    /// Sets a table's changes aside from now on, until [`Router::take_spool`].
    pub fn start_loading(&mut self, relation: u32) -> Result<(), SyncError> {
        let mut spool = Spool::new(&self.spool_directory);
        if let Some(known) = self.relations.get(&relation) {
            // The stream describes a relation once: the spool must know what was described before.
            push_to(&mut spool, 0, ChangeOrigin::default(), &known.message)?;
        }
        self.replace_stage(relation, Stage::Loading { spool });
        Ok(())
    }

    /// Drops a table's changes from now on.
    pub fn halt(&mut self, relation: u32) {
        self.replace_stage(relation, Stage::Halted);
    }

    fn replace_stage(&mut self, relation: u32, stage: Stage) {
        let old = self.tables.insert(relation, Table { stage, dirty: false, held: 0, origins: None });
        self.pending_bytes = self.pending_bytes.saturating_sub(old.map_or(0, |table| table.held));
        self.full.retain(|full| *full != relation);
        self.ready.retain(|(id, _)| *id != relation);
    }

    /// A loading table's changes so far, in order; the table keeps spooling into a new one.
    pub fn take_spool(&mut self, relation: u32) -> Option<Spool> {
        match self.tables.get_mut(&relation) {
            Some(Table { stage: Stage::Loading { spool }, .. }) => {
                Some(std::mem::replace(spool, Spool::new(&self.spool_directory)))
            }
            _ => None,
        }
    }

    /// No transaction is half received: a flush may be cut.
    pub fn between_transactions(&self) -> bool {
        self.current.is_none()
    }

    /// Where the commit record begins of the transaction that is being received.
    pub fn commit_under_way(&self) -> Option<Lsn> {
        self.current.map(|origin| origin.commit_lsn)
    }

    /// Changes wait for a cut.
    pub fn has_changes(&self) -> bool {
        self.ops_since_cut > 0
    }

    /// Row changes since the last cut, handed over or not.
    pub fn ops_since_cut(&self) -> u64 {
        self.ops_since_cut
    }

    /// Their values' bytes.
    pub fn bytes_since_cut(&self) -> u64 {
        self.bytes_since_cut
    }

    /// Where the commit record begins of the transaction that `message` starts to deliver; everything that was committed
    /// before has been received then.
    pub fn commit_announced_by(&self, message: &Bytes) -> Option<Lsn> {
        if self.chunk.is_some() || !self.between_transactions() {
            return None;
        }
        // What does not parse fails when it is taken in.
        match pgoutput::parse(message, false).ok()? {
            Message::Begin { final_lsn, .. } => Some(final_lsn),
            Message::StreamCommit { commit_lsn, .. } => Some(commit_lsn),
            // Outside of any transaction: sent when the stream came by its place in the log.
            Message::Logical { transactional: false, lsn, .. } => Some(lsn),
            _ => None,
        }
    }

    /// The next message of the stream.
    pub fn message(&mut self, bytes: &Bytes) -> Result<Step, SyncError> {
        let message = pgoutput::parse(bytes, self.chunk.is_some())?;
        if let Some(top) = self.chunk {
            return self.chunk_message(top, message, bytes);
        }
        match message {
            Message::Begin { final_lsn, commit_time, xid } => {
                self.current = Some(ChangeOrigin { commit_lsn: final_lsn, commit_time, xid, seq: 0 });
                Ok(Step::Continue)
            }
            Message::Commit { end_lsn, commit_time, .. } => {
                self.current = None;
                Ok(Step::Committed(CommitPoint { end_lsn, commit_time: commit_time.0 }))
            }
            Message::StreamStart { xid, first_segment } => {
                if first_segment {
                    let spool = Spool::new(&self.spool_directory);
                    self.in_progress.insert(xid, InProgress { spool, aborted: HashSet::new() });
                }
                self.chunk = Some(xid);
                Ok(Step::Continue)
            }
            Message::StreamAbort { xid, subxid, .. } => {
                if xid == subxid {
                    self.in_progress.remove(&xid);
                } else if let Some(open) = self.in_progress.get_mut(&xid) {
                    open.aborted.insert(subxid);
                }
                Ok(Step::Continue)
            }
            Message::StreamCommit { xid, commit_lsn, end_lsn, commit_time } => {
                let open = self.in_progress.remove(&xid).ok_or(SyncError::UnknownTransaction { xid })?;
                self.current = Some(ChangeOrigin { commit_lsn, commit_time, xid, seq: 0 });
                Ok(Step::Replay(Box::new(TransactionReplay {
                    messages: open.spool.into_reader().map_err(SyncError::Spool)?,
                    aborted: open.aborted,
                    point: CommitPoint { end_lsn, commit_time: commit_time.0 },
                })))
            }
            other => self.change(other, bytes, None),
        }
    }

    /// A message inside a chunk of a transaction in progress.
    fn chunk_message(&mut self, top: u32, message: Message<'_>, bytes: &Bytes) -> Result<Step, SyncError> {
        let subxid = match &message {
            Message::StreamStop => {
                self.chunk = None;
                return Ok(Step::Continue);
            }
            Message::Relation { xid, .. }
            | Message::Insert { xid, .. }
            | Message::Update { xid, .. }
            | Message::Delete { xid, .. }
            | Message::Truncate { xid, .. } => xid.unwrap_or(top),
            Message::Logical { xid, transactional: true, prefix, content, .. }
                if AnnouncedColumns::parse(prefix, content).is_some() =>
            {
                xid.unwrap_or(top)
            }
            // Types are known from the catalog, origins do not matter, other logical messages carry nothing for us.
            _ => return Ok(Step::Continue),
        };
        let open = self.in_progress.get_mut(&top).ok_or(SyncError::UnknownTransaction { xid: top })?;
        open.spool.push(u64::from(subxid), bytes).map_err(SyncError::Spool)?;
        Ok(Step::Continue)
    }

    /// A spooled message of a transaction that committed; `subxid` is its tag.
    pub fn replay_message(
        &mut self,
        replay: &TransactionReplay,
        subxid: u64,
        bytes: &Bytes,
    ) -> Result<Step, SyncError> {
        let aborted = u32::try_from(subxid).is_ok_and(|id| replay.aborted.contains(&id));
        let message = pgoutput::parse(bytes, true)?;
        if aborted {
            // Its rows never happened. The shape it describes is kept only where none is known: the
            // source describes a relation once for the whole transaction, rolled back part or not.
            return match &message {
                Message::Relation { relation, .. } if !self.relations.contains_key(&relation.id) => {
                    self.change(message, bytes, None)
                }
                _ => Ok(Step::Continue),
            };
        }
        self.change(message, bytes, None)
    }

    /// Ends a replay: its transaction is complete.
    pub fn replay_done(&mut self, replay: &TransactionReplay) -> Step {
        self.current = None;
        Step::Committed(replay.point)
    }

    /// A message out of one table's own spool; `tag` says where its commit record begins.
    pub fn spooled_message(&mut self, relation: u32, tag: u64, bytes: &Bytes) -> Result<Step, SyncError> {
        let cut = bytes.len().min(SPOOLED_ORIGIN);
        let origin = spooled_origin(Lsn(tag & !CHUNKED), bytes.get(..cut).unwrap_or_default());
        let message = &bytes.slice(cut..);
        let parsed = pgoutput::parse(message, tag & CHUNKED != 0)?;
        self.change(parsed, message, Some((relation, origin)))
    }

    /// Where the next row change of the transaction being received comes from.
    fn next_origin(&mut self) -> ChangeOrigin {
        match &mut self.current {
            Some(current) => {
                current.seq += 1;
                *current
            }
            None => ChangeOrigin::default(),
        }
    }

    /// A change that is known to have committed; `spooled` if it stood in one table's spool, with where it came
    /// from. It is for this table only: a TRUNCATE of several stands in the spool of each.
    fn change(
        &mut self,
        message: Message<'_>,
        bytes: &Bytes,
        spooled: Option<(u32, ChangeOrigin)>,
    ) -> Result<Step, SyncError> {
        let step = match message {
            Message::Relation { xid, relation } => {
                if let Some(table) = self.tables.get_mut(&relation.id) {
                    match &mut table.stage {
                        Stage::Loading { spool } => {
                            let origin = self.current.unwrap_or_default();
                            push_to(spool, tag(origin.commit_lsn, xid), origin, bytes)?;
                        }
                        Stage::Live { bound, .. } => *bound = false,
                        Stage::Halted => {}
                    }
                }
                let message = plain_relation(bytes, xid);
                self.relations.insert(relation.id, KnownRelation { relation, message });
                Ok(Step::Continue)
            }
            Message::Insert { xid, relation_id, new } => {
                let origin = spooled.map_or_else(|| self.next_origin(), |(_, origin)| origin);
                self.row(relation_id, bytes, xid, origin, Row::Insert(new))
            }
            Message::Update { xid, relation_id, old, new } => {
                let origin = spooled.map_or_else(|| self.next_origin(), |(_, origin)| origin);
                self.row(relation_id, bytes, xid, origin, Row::Update(old, new))
            }
            Message::Delete { xid, relation_id, old } => {
                let origin = spooled.map_or_else(|| self.next_origin(), |(_, origin)| origin);
                self.row(relation_id, bytes, xid, origin, Row::Delete(old))
            }
            Message::Truncate { xid, relation_ids, .. } => {
                let wanted = |id: &u32| spooled.is_none_or(|(only, _)| only == *id);
                for relation_id in relation_ids.into_iter().filter(wanted) {
                    let origin = spooled.map_or_else(|| self.next_origin(), |(_, origin)| origin);
                    self.row(relation_id, bytes, xid, origin, Row::Truncate)?;
                }
                Ok(Step::Continue)
            }
            Message::Logical { xid, transactional: true, prefix, content, .. } => {
                let origin = spooled.map_or_else(|| self.current.unwrap_or_default(), |(_, origin)| origin);
                self.announced(AnnouncedColumns::parse(prefix, content), bytes, xid, origin)
            }
            _ => Ok(Step::Continue),
        }?;
        if let Step::Reshape(_) = step
            && spooled.is_none()
            && let Some(current) = &mut self.current
        {
            // The message is given again, and numbered again.
            current.seq -= 1;
        }
        Ok(step)
    }

    /// Columns that the source's event trigger announces.
    fn announced(
        &mut self,
        columns: Option<AnnouncedColumns>,
        bytes: &Bytes,
        xid: Option<u32>,
        origin: ChangeOrigin,
    ) -> Result<Step, SyncError> {
        let Some(columns) = columns else { return Ok(Step::Continue) };
        match self.tables.get_mut(&columns.relation).map(|table| &mut table.stage) {
            Some(Stage::Live { from, .. }) if origin.commit_lsn >= *from => {
                Ok(Step::Announced(Box::new(columns)))
            }
            Some(Stage::Loading { spool }) => {
                push_to(spool, tag(origin.commit_lsn, xid), origin, bytes)?;
                Ok(Step::Continue)
            }
            _ => Ok(Step::Continue),
        }
    }

    fn row(
        &mut self,
        relation_id: u32,
        bytes: &Bytes,
        xid: Option<u32>,
        origin: ChangeOrigin,
        row: Row<'_>,
    ) -> Result<Step, SyncError> {
        let Some(table) = self.tables.get_mut(&relation_id) else { return Ok(Step::Continue) };
        let (builder, bound) = match &mut table.stage {
            Stage::Live { from, .. } if origin.commit_lsn < *from => return Ok(Step::Continue),
            Stage::Live { builder, bound, .. } => (builder, bound),
            Stage::Loading { spool } => {
                push_to(spool, tag(origin.commit_lsn, xid), origin, bytes)?;
                return Ok(Step::Continue);
            }
            Stage::Halted => return Ok(Step::Continue),
        };
        if !*bound && !matches!(row, Row::Truncate) {
            let known = self
                .relations
                .get(&relation_id)
                .ok_or(SyncError::UnknownRelation { relation: relation_id })?;
            if !in_order(&known.relation, builder.schema()) || builder.bind(&known.relation).is_err() {
                return Ok(Step::Reshape(relation_id));
            }
            *bound = true;
        }
        let mut taken = row.append_to(builder);
        if taken.as_ref().is_err_and(RowError::is_batch_full) && !builder.is_empty() {
            // Arrow's offsets end at 2 GiB: what is there goes first, the row into the next batch.
            self.pending_bytes = self.pending_bytes.saturating_sub(std::mem::take(&mut table.held));
            let origins = table.origins.as_mut().map(std::mem::take).unwrap_or_default();
            self.ready.push((relation_id, Batch { changes: builder.finish(), origins }));
            taken = row.append_to(builder);
        }
        if let Err(error) = taken {
            return Ok(Step::Stopped(relation_id, error));
        }
        if let Some(origins) = &mut table.origins {
            origins.push(origin);
        }
        table.dirty = true;
        table.held += bytes.len();
        self.pending_bytes += bytes.len();
        self.bytes_since_cut += bytes.len() as u64;
        self.ops_since_cut += 1;
        if table.held >= HAND_OVER_BYTES
            || builder.ops_len() >= HAND_OVER_OPS
            || self.pending_bytes >= PENDING_LIMIT
            || !self.ready.is_empty()
        {
            self.full.push(relation_id);
            return Ok(Step::HandOver);
        }
        Ok(Step::Continue)
    }
}

#[cfg(test)]
mod tests;
