//! The row changes between two versions of a Delta table.
//!
//! ```text
//!   commits from+1 ..= to ──▶ changed rows of files ──▶ one side only: as they are
//!      (feed, or added and                       └────▶ both sides: compared, and
//!       removed files)                                  told where they differ
//! ```
//!
//! A commit with files of a Change Data Feed says by itself what it did. Any other is told from the files that it
//! added and removed and from deletion vectors that grew or shrank. An engine that copies on write removes a file of
//! a million rows and adds another to change one of them: there the two sides are compared as multisets of rows
//! ([`comparison`]), and what is equal is no change. Versions that only move rows, such as OPTIMIZE, are none either.
//!
//! All rows come under the schema of the range's last version: null where a column is newer than the row.
//!
//! The order is part of the contract: within a version (with [`Detail::Net`] and [`Detail::Upserts`], within the range) rows that go away come
//! before rows that come, so that applying them one after the other never meets a key twice.

mod commit;
mod comparison;
mod file_changes;
mod key_groups;
mod ledger;
mod row_hash;
mod schema_change;

use crate::delta_source::{CHANGE_TYPE, Column, Part, ReadPlan, TableSource, TableVersion, received};
use crate::error::{Result, ReverseSyncError, Unavailable};
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use commit::{Commit, FileChange};
use file_changes::{ChangedRows, NetFiles, Side};
use futures::stream::{self, BoxStream, StreamExt};
use futures::{Stream, TryStreamExt};
use std::fmt;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Commits fetched ahead of the one that is worked on.
const COMMITS_AHEAD: usize = 8;

/// Batches that wait for their taker.
const WAITING: usize = 2;

/// How closely changes are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Detail {
    /// Every version by itself, as its feed tells it: what Spark's `table_changes` gives. Versions from a time
    /// without a feed are told from files, as inserts and deletes.
    AsRecorded,
    /// Every version by itself, with rows told apart by the key of these columns: a row that went and one that came
    /// under the same key are an update, and an equal one is no change.
    ByKey(Vec<String>),
    /// The range as a whole, by the key of these columns: what differs in the end. Of a key that changed many times
    /// only the first and the last row appear.
    Net(Vec<String>),
    /// As [`Detail::Net`], without the rows before updates: enough for whoever keeps one row a key, and half the reading
    /// and sending.
    Upserts(Vec<String>),
}

impl Detail {
    /// Whether the range is told as a whole.
    fn is_net(&self) -> bool {
        matches!(self, Detail::Net(_) | Detail::Upserts(_))
    }

    /// The names of the key's columns; none if rows are told by their files alone.
    fn key(&self) -> &[String] {
        match self {
            Detail::AsRecorded => &[],
            Detail::ByKey(names) | Detail::Net(names) | Detail::Upserts(names) => names,
        }
    }

    /// The columns by which rows of a part are grouped. A condition may leave out some of the rows that they name.
    fn key_part(&self, part: &Part) -> Part {
        match self.key() {
            [] => part.clone(),
            names => Part { columns: names.to_vec(), filter: None },
        }
    }
}

/// What happened to a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChangeKind {
    /// It is new.
    Insert,
    /// It changed; this is the row before.
    UpdatePreimage,
    /// It changed; this is the row after.
    UpdatePostimage,
    /// It is gone; this is the row that it was.
    Delete,
}

/// Rows to which the same thing happened.
#[derive(Debug, Clone)]
pub struct ChangeBatch {
    /// What happened to them.
    pub kind: ChangeKind,
    /// The version that did it; of several, the last that touched the rows' file.
    pub version: u64,
    /// That version's time, in milliseconds since 1970.
    pub timestamp: i64,
    /// The rows.
    pub rows: RecordBatch,
}

/// The changes of a range of versions as they come.
pub struct Changes {
    /// The columns of the rows.
    pub schema: SchemaRef,
    /// The changes, versions in order, within each the rows that go before those that come.
    pub stream: BoxStream<'static, Result<ChangeBatch>>,
}

impl fmt::Debug for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Changes").field("schema", &self.schema).finish_non_exhaustive()
    }
}

impl ChangeKind {
    /// The kinds of rows that go.
    pub(crate) const GOING: [ChangeKind; 2] = [ChangeKind::Delete, ChangeKind::UpdatePreimage];
    /// The kinds of rows that come.
    pub(crate) const COMING: [ChangeKind; 2] = [ChangeKind::Insert, ChangeKind::UpdatePostimage];

    /// Its name in the column `_change_type`.
    pub fn as_str(self) -> &'static str {
        match self {
            ChangeKind::Insert => "insert",
            ChangeKind::UpdatePreimage => "update_preimage",
            ChangeKind::UpdatePostimage => "update_postimage",
            ChangeKind::Delete => "delete",
        }
    }

    /// Whether the row is not there after the change.
    pub fn removes_row(self) -> bool {
        matches!(self, ChangeKind::Delete | ChangeKind::UpdatePreimage)
    }
}

/// What the reading of one range needs everywhere.
pub(crate) struct Range {
    source: TableSource,
    /// The version before the first; `None`: from the table's beginning.
    after: Option<u64>,
    to: u64,
    target: TableVersion,
    plan: Arc<ReadPlan>,
    feed_plan: Arc<ReadPlan>,
    /// The key's columns alone; all of them where there is no key.
    key_plan: Arc<ReadPlan>,
    detail: Detail,
    /// Places of the key's columns.
    key: Vec<usize>,
}

impl TableSource {
    /// What changed after version `after` up to and with version `to`; `None` begins before version 0.
    ///
    /// An error that is [`Unavailable`] means that the range cannot be told; it may also come in the stream, and
    /// then everything that came before it is to be dropped.
    pub async fn row_changes(
        &self,
        after: Option<u64>,
        to: u64,
        part: &Part,
        detail: Detail,
    ) -> Result<Changes> {
        let target = self.snapshot_at(to).await?;
        let target = TableVersion::new(&target).map_err(|source| self.log_error(source))?;
        let plan = Arc::new(ReadPlan::new(self.uri(), &target, part)?);
        let schema = Arc::clone(plan.schema());
        let mut has_feed = false;
        if let Some(after) = after {
            let before = self.snapshot_at(after).await?;
            let before = TableVersion::new(&before).map_err(|source| self.log_error(source))?;
            has_feed = commit::has_feed(&before.configuration);
            self.check_schema(to, &before.columns, &target)?;
        }
        let range = Arc::new(Range {
            source: self.clone(),
            after,
            to,
            key: key_places(self.uri(), &target, &schema, &detail)?,
            feed_plan: Arc::new(ReadPlan::of_feed(self.uri(), &target, part)?),
            key_plan: Arc::new(ReadPlan::new(self.uri(), &target, &detail.key_part(part))?),
            target,
            plan,
            detail,
        });
        let (sender, receiver) = mpsc::channel(WAITING);
        let mut reading = JoinSet::new();
        reading.spawn(async move {
            if let Err(error) = range.send_all(has_feed, &sender).await {
                // Nobody listens any more: then nobody wants the error either.
                _ = sender.send(Err(error)).await;
            }
        });
        Ok(Changes { schema, stream: received(self.uri().to_owned(), reading, receiver) })
    }

    fn check_schema(&self, version: u64, before: &[Column], after: &TableVersion) -> Result<()> {
        match schema_change::obstacle(before, &after.columns) {
            None => Ok(()),
            Some((column, reason)) => {
                let reason = Unavailable::SchemaIncompatible { version, column, reason };
                Err(self.unavailable(version, after.version, reason))
            }
        }
    }
}

fn key_places(table: &str, target: &TableVersion, schema: &SchemaRef, detail: &Detail) -> Result<Vec<usize>> {
    let place = |name: &String| {
        schema.index_of(name).map_err(|_| ReverseSyncError::NoSuchColumn {
            table: table.to_owned(),
            version: target.version,
            column: name.clone(),
        })
    };
    detail.key().iter().map(place).collect()
}

/// Where changes go. Its end is the end of all interest in them.
pub(crate) type Sender = mpsc::Sender<Result<ChangeBatch>>;

impl Range {
    async fn send_all(self: &Arc<Self>, mut has_feed: bool, sender: &Sender) -> Result<()> {
        let mut net = NetFiles::default();
        let first = self.after.map_or(0, |after| after.saturating_add(1));
        let source = &self.source;
        let commits = stream::iter(first..=self.to).map(|version| source.commit(version));
        let mut commits = std::pin::pin!(commits.buffered(COMMITS_AHEAD));
        while let Some(commit) = commits.try_next().await? {
            self.check(&commit)?;
            if let Some(metadata) = &commit.metadata {
                has_feed = metadata.has_feed;
            }
            if self.detail.is_net() {
                net.push(commit);
                continue;
            }
            // Where there is a feed, what it leaves out is recorded as it is: files that came and went.
            let is_told = has_feed && self.detail == Detail::AsRecorded;
            self.send(file_changes::of_commit(commit), is_told, sender).await?;
        }
        self.send(net.finish(), false, sender).await
    }

    /// That a commit's rows have a form under the target's schema, and that it says which partition they are in.
    fn check(&self, commit: &Commit) -> Result<()> {
        let version = commit.version;
        if let Some(metadata) = &commit.metadata {
            self.source.check_schema(version, &metadata.columns, &self.target)?;
        }
        if self.target.partition_columns.is_empty() || !commit.feed.is_empty() {
            return Ok(());
        }
        // A file that stays under another vector is named by its Add as well.
        let stays = |path: &str| commit.added.iter().any(|change| change.file.path == path);
        let unnamed = |change: &&FileChange| !change.has_partition_values && !stays(&change.file.path);
        match commit.removed.iter().find(unnamed) {
            Some(change) => {
                let path = change.file.path.clone();
                let reason = Unavailable::NoPartitionValues { version, path };
                Err(self.source.unavailable(version, self.to, reason))
            }
            None => Ok(()),
        }
    }

    /// Tells what happened to rows of files; `is_told` when that stands in the log as it is.
    async fn send(self: &Arc<Self>, changed: Vec<ChangedRows>, is_told: bool, sender: &Sender) -> Result<()> {
        let has = |side| changed.iter().any(|rows| rows.side == side);
        let is_compared =
            (self.detail.is_net() && has(Side::Feed)) || (!is_told && has(Side::Removed) && has(Side::Added));
        match is_compared {
            true => self.send_compared(changed, sender).await,
            false => self.send_as_told(&changed, sender).await,
        }
    }

    /// Rows of files that are all gone or all new, and rows that say for themselves what they are.
    async fn send_as_told(&self, changed: &[ChangedRows], sender: &Sender) -> Result<()> {
        for (side, kind, feed_kinds) in [
            (Side::Removed, ChangeKind::Delete, ChangeKind::GOING),
            (Side::Added, ChangeKind::Insert, ChangeKind::COMING),
        ] {
            for rows in changed {
                if rows.side == side {
                    self.send_rows(rows, kind, sender).await?;
                } else if rows.side == Side::Feed {
                    self.send_feed(rows, feed_kinds, sender).await?;
                }
            }
        }
        Ok(())
    }

    async fn send_rows(&self, changed: &ChangedRows, kind: ChangeKind, sender: &Sender) -> Result<()> {
        let rows = self.source.read_file(&self.plan, &changed.file, &changed.rows).await?;
        self.pass_on(rows.map_ok(|(batch, _)| batch), changed, kind, sender).await
    }

    async fn send_feed(&self, changed: &ChangedRows, kinds: [ChangeKind; 2], sender: &Sender) -> Result<()> {
        let mut rows = self.source.read_file(&self.feed_plan, &changed.file, &changed.rows).await?;
        while let Some((batch, _)) = rows.try_next().await? {
            let (batch, types) = self.split_feed(batch, changed)?;
            for kind in kinds {
                let of_kind = comparison::of_kind(self.source.uri(), &batch, &types, kind)?;
                let of_kind = stream::iter([Ok(of_kind)]);
                self.pass_on(of_kind, changed, kind, sender).await?;
            }
        }
        Ok(())
    }

    async fn pass_on(
        &self,
        mut rows: impl Stream<Item = Result<RecordBatch>> + Unpin,
        changed: &ChangedRows,
        kind: ChangeKind,
        sender: &Sender,
    ) -> Result<()> {
        while let Some(rows) = rows.try_next().await? {
            if rows.num_rows() == 0 {
                continue;
            }
            let batch =
                ChangeBatch { kind, version: changed.file.version, timestamp: changed.timestamp, rows };
            if sender.send(Ok(batch)).await.is_err() {
                // Nobody listens any more: reading on would be for nobody.
                return Ok(());
            }
        }
        Ok(())
    }

    /// The rows of a feed's batch, and what it says happened to each.
    fn split_feed(
        &self,
        batch: RecordBatch,
        changed: &ChangedRows,
    ) -> Result<(RecordBatch, Vec<ChangeKind>)> {
        let damaged = |reason: String| ReverseSyncError::Commit {
            table: self.source.uri().to_owned(),
            version: changed.file.version,
            reason,
        };
        let types = batch
            .column_by_name(CHANGE_TYPE)
            .and_then(|column| column.as_any().downcast_ref::<arrow::array::StringArray>())
            .ok_or_else(|| damaged(format!("`{}` has no column {CHANGE_TYPE}", changed.file.path)))?;
        let types = types.iter().map(|text| match text {
            Some("insert") => Ok(ChangeKind::Insert),
            Some("update_preimage") => Ok(ChangeKind::UpdatePreimage),
            Some("update_postimage") => Ok(ChangeKind::UpdatePostimage),
            Some("delete") => Ok(ChangeKind::Delete),
            other => Err(damaged(format!(
                "`{}` in {CHANGE_TYPE} of `{}` is no change",
                other.unwrap_or("null"),
                changed.file.path
            ))),
        });
        let types = types.collect::<Result<_>>()?;
        let places: Vec<usize> = (0..self.plan.schema().fields().len()).collect();
        let shape = |source| ReverseSyncError::Shape { table: self.source.uri().to_owned(), source };
        Ok((batch.project(&places).map_err(shape)?, types))
    }
}
