//! A table's rows inside an exported snapshot, decoded batch by batch.
//!
//! A table is read in pieces: page ranges of its own heap, or of each leaf of a partitioned table. Which session reads
//! which piece does not matter, all see the same snapshot.

use super::SyncError;
use super::plan::PlannedTable;
use arrow::array::RecordBatch;
use postgres_connector::{CtidRange, LeafTable, SnapshotCopy, SnapshotSession, ctid_ranges};
use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use wal_decoder::{CopyDecoder, DeadLetter};

/// Heap pages in one COPY: 128 MiB. Small enough that the sessions end together, large enough that the
/// start of a COPY does not count.
const PAGES_PER_RANGE: u32 = 16 << 10;

/// Rows and bytes decoded before they are handed on.
const BATCH_ROWS: usize = 32 << 10;
const BATCH_BYTES: usize = 8 << 20;

/// How long the lake may take over a batch, from when on it is asked who waits for the table meanwhile. As long as we
/// wait for a lock ourselves.
const LAKE_PATIENCE: Duration = Duration::from_secs(5);

/// What one COPY reads.
#[derive(Debug, Clone)]
pub struct Piece {
    leaf: Arc<LeafTable>,
    range: CtidRange,
}

/// Cuts a table, or all leaves of a partitioned one, into pieces.
pub async fn pieces(session: &mut SnapshotSession, relation: u32) -> Result<VecDeque<Piece>, SyncError> {
    let mut pieces = VecDeque::new();
    for leaf in session.leaf_tables(relation).await? {
        let ranges =
            if leaf.is_heap { ctid_ranges(leaf.pages, PAGES_PER_RANGE) } else { vec![CtidRange::WHOLE] };
        let leaf = Arc::new(leaf);
        pieces.extend(ranges.into_iter().map(|range| Piece { leaf: leaf.clone(), range }));
    }
    Ok(pieces)
}

/// Rows of a piece, and what the lake cannot hold of them.
#[derive(Debug)]
pub struct SourceBatch {
    /// The rows, in the lake's columns.
    pub rows: RecordBatch,
    /// Values that are null in `rows`.
    pub letters: Vec<DeadLetter>,
}

/// Reads one piece. Dropped before its end it leaves its session unusable.
pub struct PieceReader<'a> {
    /// Gone once the COPY is over.
    decoder: Option<CopyDecoder>,
    rows: SnapshotCopy<'a>,
}

impl<'a> PieceReader<'a> {
    /// Begins the COPY of `piece`.
    pub async fn open(
        session: &'a mut SnapshotSession,
        planned: &PlannedTable,
        piece: &Piece,
    ) -> Result<PieceReader<'a>, SyncError> {
        let rows = session.copy(&piece.leaf, &planned.copy_columns(), piece.range).await?;
        let decoder = CopyDecoder::new(planned.schema.clone(), planned.builder.clone());
        Ok(PieceReader { decoder: Some(decoder), rows })
    }

    /// The next rows; `None` after the last.
    pub async fn next(&mut self) -> Result<Option<SourceBatch>, SyncError> {
        let Some(decoder) = &mut self.decoder else { return Ok(None) };
        while let Some(chunk) = self.rows.next().await? {
            chunk.pieces().try_for_each(|piece| decoder.push(piece))?;
            if decoder.rows() >= BATCH_ROWS || decoder.byte_size() >= BATCH_BYTES {
                let batch = taken(decoder);
                // One row may be larger than what a batch is meant to hold.
                if batch.rows.num_rows() > 0 {
                    return Ok(Some(batch));
                }
            }
        }
        let last = taken(decoder);
        if let Some(decoder) = self.decoder.take() {
            decoder.finish()?;
        }
        Ok((last.rows.num_rows() > 0).then_some(last))
    }

    /// Waits until the lake has taken what was read. The table is locked meanwhile, and a lake that is away may take
    /// minutes to say so: whoever wants to alter the table goes first then, and the table is left to another snapshot.
    pub async fn handed_over(
        &mut self,
        handing: impl Future<Output = Result<(), SyncError>>,
    ) -> Result<(), SyncError> {
        let mut handing = pin!(handing);
        loop {
            if let Ok(done) = tokio::time::timeout(LAKE_PATIENCE, handing.as_mut()).await {
                return done;
            }
            if self.rows.is_in_the_way().await? {
                self.decoder = None;
                self.rows.pass_over().await?;
                return Err(SyncError::GaveWay);
            }
        }
    }
}

fn taken(decoder: &mut CopyDecoder) -> SourceBatch {
    let letters = decoder.take_dead_letters();
    SourceBatch { rows: decoder.take_batch(), letters }
}
