//! Rows into a table by binary COPY: over one session, or over several at once.
//!
//! ```text
//!   stream of batches ──▶ channel ─┬─▶ session 1: encode, COPY
//!                                  ├─▶ session 2                 opened when a batch comes its way
//!                                  └─▶ …
//! ```
//!
//! Several sessions commit one by one, so they only ever write to tables that nobody reads yet. Memory is bounded by
//! two batches a session, and the channel.

use super::apply::Change;
use super::binary_copy::BinaryCopy;
use super::definition::{Layout, ServedDefinition};
use super::kept_out::KeptOut;
use super::target::session;
use crate::error::{Result, ReverseSyncError};
use arrow::array::RecordBatch;
use bytes::{Bytes, BytesMut};
use futures::stream::BoxStream;
use futures::{SinkExt, StreamExt};
use postgres_connector::{Client, SourceConfig};
use std::pin::Pin;
use std::sync::Arc;
use tokio::sync::{Mutex, mpsc};
use tokio::task::{JoinError, JoinSet};
use tokio_postgres::CopyInSink;

/// Beyond four, Postgres's own lock on extending the table is what sessions wait for.
const SESSIONS: usize = 4;

/// Batches of a Delta table's rows.
pub type RowStream = BoxStream<'static, Result<RecordBatch>>;

/// A COPY under way.
pub(super) struct CopyIn<'a> {
    client: &'a Client,
    sink: Pin<Box<CopyInSink<Bytes>>>,
    copy: BinaryCopy,
    buffer: BytesMut,
    kept_out: KeptOut,
}

const COPYING: &str = "copying rows";

impl<'a> CopyIn<'a> {
    /// Begins a COPY of the layout's columns; `lead` names what stands before them.
    pub(super) async fn begin(
        client: &'a Client,
        table: &str,
        layout: &Layout,
        lead: &str,
    ) -> Result<CopyIn<'a>> {
        let sql = format!("COPY {table} ({lead}{}) FROM STDIN (FORMAT binary)", layout.names());
        let sink = client.copy_in(sql.as_str()).await.map_err(|source| client.error(COPYING, source))?;
        let mut buffer = BytesMut::new();
        BinaryCopy::header(&mut buffer);
        let copy = BinaryCopy::new(layout.columns.clone(), layout.key.clone());
        Ok(CopyIn { client, sink: Box::pin(sink), copy, buffer, kept_out: KeptOut::default() })
    }

    /// Sends a batch's rows; gives how many there were to send.
    pub(super) async fn write(&mut self, batch: &RecordBatch, change: Option<Change>) -> Result<u64> {
        let rows = self.copy.write(batch, change, &mut self.buffer, &mut self.kept_out)?;
        let bytes = self.buffer.split().freeze();
        // The next batch is about as large; growing to that step by step would copy it several times.
        self.buffer.reserve(bytes.len());
        self.sink.send(bytes).await.map_err(|source| self.client.error(COPYING, source))?;
        Ok(rows)
    }

    /// Ends the COPY; the rows are there once this returns. Gives what was left out.
    pub(super) async fn finish(mut self) -> Result<KeptOut> {
        BinaryCopy::trailer(&mut self.buffer);
        let failed = |source| self.client.error(COPYING, source);
        self.sink.send(self.buffer.freeze()).await.map_err(failed)?;
        self.sink.as_mut().finish().await.map_err(failed)?;
        Ok(self.kept_out)
    }
}

/// Writes all rows into a table, over several sessions if they are many. `progress` is told the rows so far.
pub(super) async fn copy_all(
    config: &SourceConfig,
    definition: &ServedDefinition,
    table: &str,
    layout: &Layout,
    mut rows: RowStream,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> Result<(i64, KeptOut)> {
    let (batches, received) = mpsc::channel::<RecordBatch>(1);
    let received = Arc::new(Mutex::new(received));
    let (written, mut news) = mpsc::unbounded_channel::<u64>();
    let mut copiers = JoinSet::new();
    for _ in 0..SESSIONS {
        let copier = Copier {
            config: config.clone(),
            definition: definition.clone(),
            table: table.to_owned(),
            layout: layout.clone(),
        };
        copiers.spawn(copier.copy_some(received.clone(), written.clone()));
    }
    drop((received, written));
    let mut total: u64 = 0;
    let mut kept_out = KeptOut::default();
    while let Some(batch) = rows.next().await {
        tokio::select! {
            // One that ends before the rows do has failed.
            Some(ended) = copiers.join_next() => {
                copied(ended)?;
                return Err(ReverseSyncError::CopierGone { source: None });
            }
            sent = batches.send(batch?) => {
                sent.map_err(|_| ReverseSyncError::CopierGone { source: None })?;
            }
        }
        while let Ok(rows) = news.try_recv() {
            total += rows;
        }
        progress(total);
    }
    drop(batches);
    while let Some(ended) = copiers.join_next().await {
        kept_out.add(copied(ended)?);
    }
    while let Some(rows) = news.recv().await {
        total += rows;
    }
    progress(total);
    Ok((i64::try_from(total).unwrap_or(i64::MAX), kept_out))
}

fn copied(ended: Result<Result<KeptOut>, JoinError>) -> Result<KeptOut> {
    ended.map_err(|source| ReverseSyncError::CopierGone { source: Some(source) })?
}

/// One of the sessions.
struct Copier {
    config: SourceConfig,
    definition: ServedDefinition,
    table: String,
    layout: Layout,
}

impl Copier {
    async fn copy_some(
        self,
        batches: Arc<Mutex<mpsc::Receiver<RecordBatch>>>,
        written: mpsc::UnboundedSender<u64>,
    ) -> Result<KeptOut> {
        let next = async || batches.lock().await.recv().await;
        let Some(first) = next().await else { return Ok(KeptOut::default()) };
        let client = session(&self.config, &self.definition).await?;
        let mut copy = CopyIn::begin(&client, &self.table, &self.layout, "").await?;
        let mut batch = Some(first);
        while let Some(rows) = batch {
            // Whoever counts may have given up; then this ends with the task.
            let _ = written.send(copy.write(&rows, None).await?);
            batch = next().await;
        }
        copy.finish().await
    }
}
