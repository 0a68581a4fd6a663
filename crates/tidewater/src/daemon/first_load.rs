//! A table's rows as of one moment, into the lake in one commit.
//!
//! A temporary slot with an exported snapshot fixes the moment: its consistent point. Transactions whose
//! commit record begins before it are in the snapshot, all later ones are in the main slot's stream,
//! which sets this table's changes aside meanwhile. Several sessions import the snapshot and copy page
//! ranges from one queue, table after table; whoever leaves a table last commits it.
//!
//! ```text
//!   temporary slot ──▶ snapshot S at LSN L
//!                          ├──▶ session 1 ─ COPY pages 0.. ──▶ decoder ──▶ data files ─┐
//!                          ├──▶ session 2 ─ COPY pages n.. ──▶ decoder ──▶ data files ─┤ one commit, txn = L
//!                          └──▶ …                                                      ┘
//! ```
//!
//! A crash leaves data files that nothing refers to; the load starts over with another snapshot.

use super::SyncError;
use super::load_target::{FinishedWriter, TargetLoad, TargetWriter};
use super::plan::PlannedTable;
use super::stream_loop::HistoryBeside;
use super::table_writer::Shown;
use crate::status::TableState;
use delta_writer::{MirrorTable, TableDefinition, TableLocation, WriterOptions};
use futures::StreamExt;
use postgres_connector::{
    CtidRange, LeafTable, ReplicationSession, SlotOptions, SnapshotSession, SourceConfig, ctid_ranges,
    import_snapshot,
};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use wal_decoder::{CopyDecoder, Lsn};

/// Heap pages in one COPY: 128 MiB. Small enough that the sessions end together, large enough that the
/// start of a COPY does not count.
const PAGES_PER_RANGE: u32 = 16 << 10;

/// Rows and bytes decoded before they go to the data file writer.
const BATCH_ROWS: usize = 32 << 10;
const BATCH_BYTES: usize = 8 << 20;

/// One table to load.
#[derive(Debug)]
pub struct LoadTable {
    /// What it is.
    pub planned: PlannedTable,
    /// Where it goes.
    pub location: TableLocation,
    /// Its shape in the lake.
    pub definition: TableDefinition,
    /// How its files are written.
    pub options: WriterOptions,
    /// The `txn` application id its commit carries.
    pub app_id: String,
    /// Where progress is shown.
    pub shown: Shown,
    /// The history beside it, with `mode: both`.
    pub history: Option<HistoryBeside>,
}

/// A table that is in the lake as of `snapshot`.
#[derive(Debug)]
pub struct Loaded {
    /// Its relation.
    pub relation: u32,
    /// The table, ready to take changes.
    pub table: MirrorTable,
    /// So is the history beside it.
    pub history: Option<MirrorTable>,
    /// The consistent point: every later transaction is the stream's.
    pub snapshot: Lsn,
}

/// What one COPY reads.
struct Piece {
    leaf: Arc<LeafTable>,
    range: CtidRange,
}

/// Cuts a table, or all leaves of a partitioned one, into pieces.
async fn pieces(session: &SnapshotSession, relation: u32) -> Result<VecDeque<Piece>, SyncError> {
    let mut pieces = VecDeque::new();
    for leaf in session.leaf_tables(relation).await? {
        let ranges =
            if leaf.is_heap { ctid_ranges(leaf.pages, PAGES_PER_RANGE) } else { vec![CtidRange::WHOLE] };
        let leaf = Arc::new(leaf);
        pieces.extend(ranges.into_iter().map(|range| Piece { leaf: leaf.clone(), range }));
    }
    Ok(pieces)
}

/// A table on its way, shared by the sessions.
struct Underway {
    request: LoadTable,
    /// Taken by the commit.
    load: Mutex<Option<TargetLoad>>,
    pieces: Mutex<VecDeque<Piece>>,
    arrived: Mutex<Vec<FinishedWriter>>,
    rows: AtomicU64,
}

/// A load ended early; tables that were not sent off have to be loaded again.
#[derive(Debug)]
pub struct LoadFailed {
    /// The table it failed at, when it was one table's fault or turn.
    pub relation: Option<u32>,
    /// Why.
    pub error: SyncError,
}

impl LoadFailed {
    fn at(relation: u32) -> impl Fn(SyncError) -> LoadFailed {
        move |error| LoadFailed { relation: Some(relation), error }
    }
}

impl From<SyncError> for LoadFailed {
    fn from(error: SyncError) -> LoadFailed {
        LoadFailed { relation: None, error }
    }
}

impl From<postgres_connector::Error> for LoadFailed {
    fn from(error: postgres_connector::Error) -> LoadFailed {
        SyncError::from(error).into()
    }
}

/// Loads the tables; each is sent off as soon as its commit is in the log.
pub async fn load(
    source: SourceConfig,
    slot: String,
    tables: Vec<LoadTable>,
    sessions: usize,
    loaded: mpsc::Sender<Loaded>,
) -> Result<(), LoadFailed> {
    let mut anchor = ReplicationSession::connect(&source).await?;
    let options = SlotOptions { temporary: true, export_snapshot: true, failover: false };
    let created = anchor.create_logical_slot(&slot, options).await?;
    let snapshot = created.snapshot.ok_or(SyncError::NoSnapshot)?;
    let position = created.consistent_point;
    tracing::info!(%position, tables = tables.len(), "first load begins");

    let mut imported = Vec::with_capacity(sessions);
    for _ in 0..sessions.max(1) {
        imported.push(import_snapshot(&source, &snapshot).await?);
    }
    // The sessions hold the snapshot now: the slot that made it may go, and with it the WAL it retains.
    anchor.close().await?;

    let mut underway = Vec::with_capacity(tables.len());
    for request in tables {
        let pieces = match imported.first() {
            Some(session) => pieces(session, request.planned.relation).await?,
            None => VecDeque::new(),
        };
        let relation = request.planned.relation;
        let load = TargetLoad::begin(&request, position).await.map_err(LoadFailed::at(relation))?;
        underway.push(Underway {
            request,
            load: Mutex::new(Some(load)),
            pieces: Mutex::new(pieces),
            arrived: Mutex::default(),
            rows: AtomicU64::new(0),
        });
    }
    let underway = Arc::new(underway);
    let everyone = imported.len();
    let mut workers = JoinSet::new();
    for session in imported {
        workers.spawn(work(session, underway.clone(), everyone, position, loaded.clone()));
    }
    while let Some(ended) = workers.join_next().await {
        // The first failure ends the others with the set: the load starts over as a whole.
        ended.map_err(|_| SyncError::WriterGone)??;
    }
    Ok(())
}

/// One session: its share of every table, in order.
async fn work(
    session: SnapshotSession,
    tables: Arc<Vec<Underway>>,
    everyone: usize,
    position: Lsn,
    loaded: mpsc::Sender<Loaded>,
) -> Result<(), LoadFailed> {
    for table in tables.iter() {
        let relation = table.request.planned.relation;
        let done = share(&session, table, everyone, position).await.map_err(LoadFailed::at(relation))?;
        if let Some(done) = done {
            loaded.send(done).await.map_err(|_| SyncError::WriterGone)?;
        }
    }
    Ok(())
}

/// Copies pieces of a table until none is left; whoever is the last commits.
async fn share(
    session: &SnapshotSession,
    table: &Underway,
    everyone: usize,
    position: Lsn,
) -> Result<Option<Loaded>, SyncError> {
    let begun = table.load.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(TargetLoad::worker);
    // Only the last to arrive takes it, and this session has not arrived yet.
    let Some(mut worker) = begun else { return Ok(None) };
    loop {
        let next = table.pieces.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let Some(piece) = next else { break };
        copy(session, table, &piece, &mut worker).await?;
    }
    let finished = worker.finish().await?;
    let everyones = {
        let mut arrived = table.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        arrived.push(finished);
        (arrived.len() == everyone).then(|| std::mem::take(&mut *arrived))
    };
    let Some(finished) = everyones else { return Ok(None) };
    let Some(load) = table.load.lock().unwrap_or_else(PoisonError::into_inner).take() else {
        return Ok(None);
    };
    let rows = table.rows.load(Ordering::Relaxed);
    let spec = super::commit_info::of_load(&table.request.app_id, position, rows);
    let (mirror, history) = load.commit(finished, &spec).await?;
    tracing::info!(table = %table.request.planned.name, rows, version = mirror.version(), "load is in the lake");
    Ok(Some(Loaded { relation: table.request.planned.relation, table: mirror, history, snapshot: position }))
}

async fn copy(
    session: &SnapshotSession,
    table: &Underway,
    piece: &Piece,
    worker: &mut TargetWriter,
) -> Result<(), SyncError> {
    let planned = &table.request.planned;
    let mut decoder = CopyDecoder::new(planned.schema.clone(), planned.builder.clone());
    let mut bytes = std::pin::pin!(session.copy(&piece.leaf, &planned.copy_columns(), piece.range).await?);
    while let Some(chunk) = bytes.next().await {
        decoder.push(&chunk?)?;
        if decoder.rows() >= BATCH_ROWS || decoder.byte_size() >= BATCH_BYTES {
            hand_over(&mut decoder, table, worker).await?;
        }
    }
    hand_over(&mut decoder, table, worker).await?;
    decoder.finish()?;
    Ok(())
}

async fn hand_over(
    decoder: &mut CopyDecoder,
    table: &Underway,
    worker: &mut TargetWriter,
) -> Result<(), SyncError> {
    super::dead_letters::report(&table.request.planned, decoder.take_dead_letters());
    let batch = decoder.take_batch();
    if batch.num_rows() == 0 {
        return Ok(());
    }
    let rows = table.rows.fetch_add(batch.num_rows() as u64, Ordering::Relaxed) + batch.num_rows() as u64;
    worker.write(batch).await?;
    let shown = &table.request.shown;
    let estimated = table.request.planned.source.estimated_rows;
    shown.board.update(&shown.database, &shown.table, |status| {
        status.state = TableState::Loading { rows_done: rows, rows_estimated: Some(estimated) };
        status.rows = Some(rows);
    });
    Ok(())
}
