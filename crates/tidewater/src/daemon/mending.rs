//! A table made equal to its source by comparing: `resync`, `resume`, a lost slot, a new incarnation.
//!
//! All of them leave a table in the lake of which nobody knows how far it is from its source. A fresh exported
//! snapshot is compared with it row for row ([`super::row_comparison`]), and what differs is one commit, with `txn` =
//! the snapshot's position like a load's. Rows that are equal stay where they are, earlier versions stay
//! readable, and readers see either the table before or the table after.
//!
//! ```text
//!   snapshot at L ── all rows ──▶ hashes ─┐                       ┌─ extra keys ──▶ deletes ─┐
//!   lake, newest  ── all rows ──▶ hashes ─┴─▶ keys that differ ───┤                          ├─▶ one commit, txn = L
//!   snapshot at L ── pieces that have some ──▶ whole rows ────────┴─ inserts, updates ───────┘
//! ```
//!
//! Only mirrors with a key are mended, and only where no history stands beside them: what a history lacks is found
//! while its table is loaded ([`super::load_target`]).
//!
//! The comparison asks nothing of the key index. A table that it finds beyond mending (most rows differ, or a
//! key twice) is loaded instead, which replaces its files: also one commit.

use super::SyncError;
use super::error::{error_chain, halts_table};
use super::first_load::{LoadTable, Loaded};
use super::plan::PlannedTable;
use super::row_comparison::{Difference, Differences, RowComparison, RowHasher, Side};
use super::source_rows::{Piece, PieceReader, SourceBatch, pieces};
use super::source_shape;
use crate::status::TableState;
use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::{cast, filter_record_batch};
use delta_writer::{MirrorTable, Reshape};
use futures::TryStreamExt;
use lake_sql::LakeSession;
use postgres_connector::SnapshotSession;
use std::collections::HashMap;
use wal_decoder::{Lsn, Op, RowChanges};

/// Keys that differ, held in memory: some 64 MiB. With more of them a load is no more work.
const MOST_DIFFERENCES: usize = 1 << 20;

/// Below this many a commit of single rows is cheaper than writing the table anew, whatever their share.
const ALWAYS_MENDED: u64 = 1000;

/// What became of a table that was to be mended.
pub enum Mended {
    /// It equals the snapshot.
    Done(Box<Loaded>),
    /// It has to be loaded.
    BeyondMending,
}

/// Makes the table in the lake equal to the session's snapshot, taken at `position`.
pub async fn mend(
    session: &mut SnapshotSession,
    request: &LoadTable,
    position: Lsn,
) -> Result<Mended, SyncError> {
    match attempt(session, request, position).await {
        Err(SyncError::Lake(error)) if halts_table(&error) => {
            // Its log, its index or its rows contradict each other: a load does not ask what was there.
            tracing::warn!(table = %request.planned.name, reason = %error_chain(&error), "it cannot be mended by comparing");
            Ok(Mended::BeyondMending)
        }
        other => other,
    }
}

async fn attempt(
    session: &mut SnapshotSession,
    request: &LoadTable,
    position: Lsn,
) -> Result<Mended, SyncError> {
    let opened = MirrorTable::open(request.location.clone(), request.options.clone()).await?;
    let Some(mut table) = opened else { return Ok(Mended::BeyondMending) };
    let version = table.version().unsigned_abs();
    let definition = source_shape::definition(&request.planned, &request.table_id);
    let hasher = RowHasher::new(definition.schema.clone(), request.planned.schema.key.clone())?;
    let pieces: Vec<Piece> = pieces(session, request.planned.relation).await?.into();
    let progress = |rows| show_progress(request, rows);
    let mut comparison = RowComparison::new(&request.spool);
    add_source(session, &request.planned, &pieces, &hasher, &mut comparison, progress).await?;
    add_lake(&request.lake, &request.planned.folder, version, &hasher, &mut comparison).await?;
    let found = differences(comparison, MOST_DIFFERENCES).await?;
    if is_beyond_mending(&found) {
        tracing::info!(table = %request.planned.name, rows = found.source_rows, differ = found.count, "most differs: it is loaded anew");
        return Ok(Mended::BeyondMending);
    }
    // What the lake says of the source is as of the snapshot as well.
    table.reshape(Reshape::with_same_columns(definition)).await?;
    take_away(request, version, &hasher, &found, &mut table).await?;
    bring_in(session, request, position, &pieces, &hasher, &found, &mut table).await?;
    let flush = table.write_position().await?;
    let spec = super::commit_info::of_mending(&request.app_id, position, found.count);
    let committed = table.commit(flush, &spec).await.map_err(|failure| failure.error)?;
    tracing::info!(table = %request.planned.name, rows = found.source_rows, differed = found.count, version = committed.version, "equal to its source again");
    let planned = request.planned.clone();
    Ok(Mended::Done(Box::new(Loaded { planned, table, history: None, snapshot: position })))
}

fn is_beyond_mending(found: &Differences) -> bool {
    let most_differs = found.count > ALWAYS_MENDED && found.count > found.source_rows / 2;
    found.repeated || !found.is_complete() || most_differs
}

fn show_progress(request: &LoadTable, rows: u64) {
    let shown = &request.shown;
    let estimated = request.planned.source.estimated_rows;
    shown.board.update(&shown.database, &shown.table, |status| {
        status.state = TableState::Reloading { rows_done: rows, rows_estimated: estimated };
    });
}

/// Hashes every row of the source's snapshot.
pub async fn add_source(
    session: &mut SnapshotSession,
    planned: &PlannedTable,
    pieces: &[Piece],
    hasher: &RowHasher,
    comparison: &mut RowComparison,
    progress: impl Fn(u64),
) -> Result<(), SyncError> {
    let mut rows = 0;
    for (number, piece) in (0u32..).zip(pieces) {
        let mut reader = PieceReader::open(session, planned, piece).await?;
        while let Some(batch) = reader.next().await? {
            comparison.add(Side::Source(number), &hasher.hash(&batch.rows)?)?;
            rows += batch.rows.num_rows() as u64;
            progress(rows);
        }
    }
    Ok(())
}

/// Hashes every row of the lake's table at a version, as any reader would see it.
pub async fn add_lake(
    lake: &LakeSession,
    folder: &[String],
    version: u64,
    hasher: &RowHasher,
    comparison: &mut RowComparison,
) -> Result<(), SyncError> {
    let mut rows = lake.rows_at(folder, version, &hasher.column_names()).await?;
    while let Some(batch) = rows.try_next().await.map_err(lake_sql::LakeSqlError::from)? {
        comparison.add(Side::Lake, &hasher.hash(&batch)?)?;
    }
    Ok(())
}

/// Compares what was added, on a thread that may wait for the disk.
pub async fn differences(comparison: RowComparison, limit: usize) -> Result<Differences, SyncError> {
    tokio::task::spawn_blocking(move || comparison.differences(limit))
        .await
        .map_err(|_| SyncError::WriterGone)?
}

/// Deletes the rows that only the lake has.
async fn take_away(
    request: &LoadTable,
    version: u64,
    hasher: &RowHasher,
    found: &Differences,
    table: &mut MirrorTable,
) -> Result<(), SyncError> {
    if !found.keys.values().any(|difference| *difference == Difference::Extra) {
        return Ok(());
    }
    let schema = request.planned.schema.arrow_schema();
    let key_schema = request.planned.schema.key_schema();
    let names: Vec<&str> = key_schema.fields().iter().map(|field| field.name().as_str()).collect();
    let mut rows = request.lake.rows_at(&request.planned.folder, version, &names).await?;
    while let Some(batch) = rows.try_next().await.map_err(lake_sql::LakeSqlError::from)? {
        let extra: BooleanArray = hasher
            .hash_keys(&batch)?
            .iter()
            .map(|key| Some(found.keys.get(key) == Some(&Difference::Extra)))
            .collect();
        let batch = filter_record_batch(&batch, &extra).map_err(SyncError::Compare)?;
        if batch.num_rows() == 0 {
            continue;
        }
        let columns = key_schema.fields().iter().zip(batch.columns());
        let columns = columns.map(|(field, column)| cast(column, field.data_type()));
        let columns = columns.collect::<Result<Vec<_>, _>>().map_err(SyncError::Compare)?;
        let old_keys = RecordBatch::try_new(key_schema.clone(), columns).map_err(SyncError::Compare)?;
        let changes = RowChanges {
            rows: RecordBatch::new_empty(schema.clone()),
            ops: vec![Op::Delete; old_keys.num_rows()],
            old_keys,
            unchanged: Vec::new(),
        };
        table.apply(changes).await?;
    }
    Ok(())
}

/// Inserts and updates the rows that the lake lacks or has otherwise, from the pieces that hold some.
async fn bring_in(
    session: &mut SnapshotSession,
    request: &LoadTable,
    position: Lsn,
    pieces: &[Piece],
    hasher: &RowHasher,
    found: &Differences,
    table: &mut MirrorTable,
) -> Result<(), SyncError> {
    let wanted = found.pieces();
    for (number, piece) in (0u32..).zip(pieces).filter(|(number, _)| wanted.contains(number)) {
        let mut reader = PieceReader::open(session, &request.planned, piece).await?;
        while let Some(batch) = reader.next().await? {
            let (changes, letters) = upserts(request, batch, number, hasher, &found.keys)?;
            if changes.ops.is_empty() {
                continue;
            }
            let handing = async {
                request.dead_letters.record(&request.planned, letters, position).await?;
                table.apply(changes).await.map_err(SyncError::from)
            };
            reader.handed_over(handing).await?;
        }
    }
    Ok(())
}

/// The rows of a batch that differ, as changes, and their own dead letters.
fn upserts(
    request: &LoadTable,
    batch: SourceBatch,
    piece: u32,
    hasher: &RowHasher,
    keys: &HashMap<u128, Difference>,
) -> Result<(RowChanges, Vec<wal_decoder::DeadLetter>), SyncError> {
    let op_of = |key: &u128| match keys.get(key) {
        Some(Difference::Missing(at)) if *at == piece => Some(Op::Insert),
        Some(Difference::Changed(at)) if *at == piece => Some(Op::Update),
        _ => None,
    };
    let ops: Vec<Option<Op>> = hasher.hash(&batch.rows)?.iter().map(|hash| op_of(&hash.key)).collect();
    let chosen: BooleanArray = ops.iter().map(|op| Some(op.is_some())).collect();
    let letters = batch.letters.into_iter().filter(|letter| ops.get(letter.row).is_some_and(Option::is_some));
    let changes = RowChanges {
        rows: filter_record_batch(&batch.rows, &chosen).map_err(SyncError::Compare)?,
        old_keys: RecordBatch::new_empty(request.planned.schema.key_schema()),
        ops: ops.iter().flatten().copied().collect(),
        unchanged: Vec::new(),
    };
    Ok((changes, letters.collect()))
}
