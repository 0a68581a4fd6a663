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
//! A table that is in the lake already, in the same shape, is compared with the snapshot instead and only its
//! differences are written ([`super::mending`]), one table a session.
//!
//! A table that was rewritten or renamed after S is not what S shows any more, and one that somebody has locked cannot be
//! read now: these are left to the next snapshot, and the others go on.
//!
//! A crash leaves data files that nothing refers to; the load starts over with another snapshot.

use super::SyncError;
use super::crash_point::death_point;
use super::dead_letters::DeadLetters;
use super::error::error_chain;
use super::live_table::HistoryBeside;
use super::load_target::{FinishedWriter, TargetLoad, TargetWriter};
use super::mending::{self, Mended};
use super::plan::PlannedTable;
use super::source_rows::{Piece, PieceReader, SourceBatch, pieces};
use super::table_writer::Shown;
use crate::built_in::Gate;
use crate::status::TableState;
use delta_writer::{MirrorTable, TableLocation, WriterOptions};
use lake_sql::LakeSession;
use postgres_connector::{
    PublicationNames, ReplicationSession, SlotOptions, SnapshotSession, SourceConfig, import_snapshot,
};
use std::collections::{BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use wal_decoder::Lsn;

/// One table to load.
#[derive(Debug)]
pub struct LoadTable {
    /// What it is.
    pub planned: PlannedTable,
    /// Where it goes.
    pub location: TableLocation,
    /// How its files are written.
    pub options: WriterOptions,
    /// The `txn` application id its commit carries.
    pub app_id: String,
    /// Where progress is shown.
    pub shown: Shown,
    /// Where values go that the lake cannot hold.
    pub dead_letters: DeadLetters,
    /// It is in the lake in this shape: comparing may do.
    pub mend: bool,
    /// Reads the lake's rows for that.
    pub lake: Arc<LakeSession>,
    /// Where what is compared is spilled.
    pub spool: PathBuf,
    /// The history beside it, with `mode: both`.
    pub history: Option<HistoryBeside>,
    /// The table's own id, for its metadata.
    pub table_id: String,
    /// An older copy is in the lake, which readers see until the commit.
    pub in_lake: bool,
}

/// A table that is in the lake as of `snapshot`.
#[derive(Debug)]
pub struct Loaded {
    /// What it is, as of the snapshot.
    pub planned: PlannedTable,
    /// The table, ready to take changes.
    pub table: MirrorTable,
    /// So is the history beside it.
    pub history: Option<MirrorTable>,
    /// The consistent point: every later transaction is the stream's.
    pub snapshot: Lsn,
}

/// A table on its way, shared by the sessions.
struct Underway {
    request: LoadTable,
    /// Taken by the commit.
    load: Mutex<Option<TargetLoad>>,
    pieces: Mutex<VecDeque<Piece>>,
    arrived: Mutex<Vec<FinishedWriter>>,
    rows: AtomicU64,
    /// Sessions that take part.
    everyone: usize,
    /// The snapshot's.
    position: Lsn,
}

/// A load ended early; tables that were not sent off have to be loaded again.
#[derive(Debug)]
pub struct LoadFailed {
    /// The table it failed at, when it was one table's fault or turn.
    pub relation: Option<u32>,
    /// Why.
    pub error: SyncError,
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

/// What the sessions of one snapshot share.
struct Shared {
    /// The snapshot's.
    position: Lsn,
    mends: Mutex<VecDeque<LoadTable>>,
    loads: Vec<Underway>,
    /// Tables that this snapshot does not show.
    left: Mutex<BTreeSet<u32>>,
    loaded: mpsc::Sender<Loaded>,
}

impl Shared {
    /// A session is done with a table.
    async fn done(&self, relation: u32, ended: Result<Option<Loaded>, SyncError>) -> Result<(), LoadFailed> {
        match ended {
            Ok(Some(loaded)) => Ok(self.loaded.send(loaded).await.map_err(|_| SyncError::WriterGone)?),
            Ok(None) => Ok(()),
            Err(error) if error.asks_for_another_snapshot() => {
                tracing::info!(relation, reason = %error_chain(&error), "left to the next snapshot");
                self.left.lock().unwrap_or_else(PoisonError::into_inner).insert(relation);
                Ok(())
            }
            Err(error) => Err(LoadFailed { relation: Some(relation), error }),
        }
    }
}

/// Loads the tables; each is sent off as soon as its commit is in the log. Gives those that are left to another snapshot.
pub async fn load(
    (source, gate): (SourceConfig, Option<Gate>),
    publications: PublicationNames,
    slot: String,
    tables: Vec<LoadTable>,
    sessions: usize,
    loaded: mpsc::Sender<Loaded>,
) -> Result<BTreeSet<u32>, LoadFailed> {
    let mut anchor = ReplicationSession::connect(&source).await?;
    let options = SlotOptions { temporary: true, export_snapshot: true, failover: false };
    death_point!("snapshot-before-export");
    let created = anchor.create_logical_slot(&slot, options).await?;
    death_point!("snapshot-after-export");
    let snapshot = created.snapshot.ok_or(SyncError::NoSnapshot)?;
    let position = created.consistent_point;
    if let Some(gate) = gate {
        // The snapshot has every commit before it, also those that only this Postgres knows of yet.
        gate.pass(position).await.map_err(SyncError::from)?;
    }
    tracing::info!(%position, tables = tables.len(), "load begins");

    let tables = as_of_snapshot(&source, &publications, &snapshot, tables).await?;
    let mut imported = import_snapshot(&source, &snapshot, sessions.max(1)).await?;
    // The sessions hold the snapshot now: the slot that made it may go, and with it the WAL it retains.
    anchor.close().await?;

    let (mends, loads): (VecDeque<_>, VecDeque<_>) = tables.into_iter().partition(|table| table.mend);
    let everyone = imported.len();
    let left = Mutex::default();
    let mut shared = Shared { position, mends: Mutex::new(mends), loads: Vec::new(), left, loaded };
    for request in loads {
        let relation = request.planned.relation;
        let Some(session) = imported.first_mut() else { break };
        match begin(session, request, everyone, position).await {
            Ok(underway) => shared.loads.push(underway),
            Err(error) => shared.done(relation, Err(error)).await?,
        }
    }
    let shared = Arc::new(shared);
    let mut workers = JoinSet::new();
    for session in imported {
        workers.spawn(work(session, shared.clone()));
    }
    while let Some(ended) = workers.join_next().await {
        // The first failure ends the others with the set: the load starts over as a whole.
        ended.map_err(|_| SyncError::WriterGone)??;
    }
    Ok(std::mem::take(&mut *shared.left.lock().unwrap_or_else(PoisonError::into_inner)))
}

/// The tables as the snapshot has them. A table whose columns changed since the plan was made is planned again: its
/// rows in the stream are complete only from the shape on that the load has.
async fn as_of_snapshot(
    source: &SourceConfig,
    publications: &PublicationNames,
    snapshot: &str,
    mut tables: Vec<LoadTable>,
) -> Result<Vec<LoadTable>, SyncError> {
    let oids: Vec<u32> = tables.iter().map(|table| table.planned.relation).collect();
    let found = postgres_connector::read_tables_in_snapshot(source, snapshot, &oids, publications).await?;
    for table in &mut tables {
        let planned = &mut table.planned.source;
        let now = found.iter().find(|now| now.oid == planned.oid).ok_or(SyncError::TablesChanged)?;
        let same = now.columns == planned.columns
            && now.identity == planned.identity
            && now.primary_key == planned.primary_key;
        if !same {
            return Err(SyncError::TablesChanged);
        }
        planned.storage = now.storage.clone();
    }
    Ok(tables)
}

/// Prepares a load that `everyone` sessions take part in.
async fn begin(
    session: &mut SnapshotSession,
    request: LoadTable,
    everyone: usize,
    position: Lsn,
) -> Result<Underway, SyncError> {
    let pieces = pieces(session, request.planned.relation).await?;
    let load = TargetLoad::begin(&request, position).await?;
    Ok(Underway {
        load: Mutex::new(Some(load)),
        pieces: Mutex::new(pieces),
        arrived: Mutex::default(),
        rows: AtomicU64::new(0),
        request,
        everyone,
        position,
    })
}

/// One session: whole tables to mend, as long as there are some, then its share of every load, in order.
async fn work(mut session: SnapshotSession, shared: Arc<Shared>) -> Result<(), LoadFailed> {
    loop {
        let next = shared.mends.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let Some(request) = next else { break };
        let relation = request.planned.relation;
        let ended = mend_or_load(&mut session, request, shared.position).await;
        shared.done(relation, ended).await?;
    }
    for table in &shared.loads {
        let ended = share(&mut session, table).await;
        if ended.is_err() {
            // Nobody is the last then, so nobody commits: the others need not go on.
            table.pieces.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
        shared.done(table.request.planned.relation, ended).await?;
    }
    session.close().await?;
    Ok(())
}

async fn mend_or_load(
    session: &mut SnapshotSession,
    request: LoadTable,
    position: Lsn,
) -> Result<Option<Loaded>, SyncError> {
    match mending::mend(session, &request, position).await? {
        Mended::Done(loaded) => Ok(Some(*loaded)),
        // The others mend other tables meanwhile: this session loads it alone.
        Mended::BeyondMending => {
            let underway = begin(session, request, 1, position).await?;
            share(session, &underway).await
        }
    }
}

/// Copies pieces of a table until none is left; whoever is the last commits.
async fn share(session: &mut SnapshotSession, table: &Underway) -> Result<Option<Loaded>, SyncError> {
    let begun = table.load.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(TargetLoad::worker);
    // Only the last to arrive takes it, and this session has not arrived yet.
    let Some(mut worker) = begun else { return Ok(None) };
    loop {
        let next = table.pieces.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let Some(piece) = next else { break };
        let mut rows = PieceReader::open(session, &table.request.planned, &piece).await?;
        while let Some(batch) = rows.next().await? {
            rows.handed_over(hand_over(batch, table, &mut worker)).await?;
        }
    }
    let finished = worker.finish().await?;
    let everyones = {
        let mut arrived = table.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        arrived.push(finished);
        (arrived.len() == table.everyone).then(|| std::mem::take(&mut *arrived))
    };
    let Some(finished) = everyones else { return Ok(None) };
    let Some(load) = table.load.lock().unwrap_or_else(PoisonError::into_inner).take() else {
        return Ok(None);
    };
    let (rows, position) = (table.rows.load(Ordering::Relaxed), table.position);
    let spec = super::commit_info::of_load(&table.request.app_id, position, rows);
    let (mirror, history) = load.commit(finished, &spec).await?;
    tracing::info!(table = %table.request.planned.name, rows, version = mirror.version(), "load is in the lake");
    Ok(Some(Loaded { planned: table.request.planned.clone(), table: mirror, history, snapshot: position }))
}

async fn hand_over(batch: SourceBatch, table: &Underway, worker: &mut TargetWriter) -> Result<(), SyncError> {
    let request = &table.request;
    request.dead_letters.record(&request.planned, batch.letters, table.position).await?;
    let more = batch.rows.num_rows() as u64;
    let rows = table.rows.fetch_add(more, Ordering::Relaxed) + more;
    worker.write(batch.rows).await?;
    let estimated = request.planned.source.estimated_rows;
    request.shown.board.update(&request.shown.database, &request.shown.table, |status| {
        status.state = TableState::of_load(request.in_lake, rows, estimated);
    });
    Ok(())
}
