//! The changes between two versions, applied to the served table in one transaction.
//!
//! ```text
//!   net changes ══COPY══▶ tidewater_changes          −1 a row that went · +1 one that came · 0 one that replaces its key's
//!        one row a key ──▶ tidewater_net             with its place in the served table, found once
//!                           ├─ went, not come ─▶ DELETE
//!                           ├─ is there ───────▶ UPDATE, unless it is equal
//!                           └─ is not there ───▶ INSERT
//! ```
//!
//! The invariant: after the transaction a key is served if and only if exactly one row of the Delta table has it. Of a
//! key, what was served before plus what came minus what went has to be one row or none, as the last change says. Where
//! it is not, several rows share the key (or somebody wrote into the table), and the changes alone do not tell what is
//! right: nothing is applied, and the caller reloads.
//!
//! With a time series key only rows that come can be followed: an older row that would take a removed one's place is
//! not among the changes.

use super::copy_in::CopyIn;
use super::definition::Layout;
use super::kept_out::KeptOut;
use super::load::{Applied, key_text};
use super::record::{LISTED_DUPLICATES, Record, Version};
use super::target::Target;
use crate::error::{Result, ReverseSyncError};
use arrow::array::RecordBatch;
use futures::StreamExt;
use futures::stream::BoxStream;
use postgres_connector::quote_identifier;
use std::time::Instant;

pub(super) const DELETING: &str = "deleting rows of the served table";
pub(super) const UPDATING: &str = "updating rows of the served table";
pub(super) const INSERTING: &str = "inserting rows into the served table";

const CHANGES: &str = "pg_temp.tidewater_changes";
const NET: &str = "pg_temp.tidewater_net";

/// Every change's place was just looked up and its page is in memory, which Postgres does not know: it would read the whole
/// table once for the deletes and once for the updates (seen, at four times the time).
const BY_PLACE: &str = "SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off";

/// Fewer changes are joined well by Postgres's own guess of how many they are.
const ANALYZED_CHANGES: u64 = 5_000;

/// What happened to rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// They are new to the Delta table, or the row that they replace is told as well, as one that went.
    Came,
    /// Each takes the place of a row of the same key, which is not told.
    Replaced,
    /// They are gone.
    Went,
}

impl Change {
    /// By how many rows of its key the Delta table grew.
    pub(super) fn sign(self) -> i16 {
        match self {
            Change::Came => 1,
            Change::Replaced => 0,
            Change::Went => -1,
        }
    }
}

/// Rows to which the same thing happened.
#[derive(Debug, Clone)]
pub struct RowChanges {
    /// What happened.
    pub change: Change,
    /// The rows.
    pub rows: RecordBatch,
}

/// Net changes: the rows of one difference between two versions.
pub type ChangeStream = BoxStream<'static, Result<RowChanges>>;

/// What came of changes.
#[derive(Debug)]
pub enum Outcome {
    /// The table is at the new version.
    Applied(Applied),
    /// Nothing was changed: the table has to be compared as a whole.
    Reload {
        /// Why.
        reason: &'static str,
    },
}

const COLUMNS_CHANGED: &str = "columns were dropped, or have other types";
const SELECTION_CHANGED: &str = "the entry's key or condition changed";
const SHARED_KEYS: &str = "keys that several rows have were changed";
const OLDER_ROWS: &str = "rows were removed or updated, and older ones may take their place";

impl Target {
    /// Brings the served table from the version in `record` to another by the net changes between them.
    pub async fn apply(
        &mut self,
        layout: &Layout,
        record: &Record,
        version: &Version,
        changes: ChangeStream,
    ) -> Result<Outcome> {
        let reload = |reason| Ok(Outcome::Reload { reason });
        if record.selection != self.definition.selection() {
            return reload(SELECTION_CHANGED);
        }
        let alterations = self.alterations(layout, record).await?;
        if !alterations.keep_rows() {
            return reload(COLUMNS_CHANGED);
        }
        let began = Instant::now();
        let staged = self.stage_changes(layout, changes).await?;
        tracing::debug!(table = %self.definition.name(), rows = staged.rows, took = ?began.elapsed(), "changes staged");
        if staged.removed > 0 && layout.timeseries.is_some() {
            return reload(OLDER_ROWS);
        }
        if record.kept_out.duplicates > 0 && self.touches_shared_keys(layout).await? {
            return reload(SHARED_KEYS);
        }
        self.begin().await?;
        let applied = async {
            self.lock_record(record).await?;
            self.alter(&alterations).await?;
            let Some((deleted, updated, inserted)) = self.apply_net(layout, staged.rows).await? else {
                return Ok(None);
            };
            let mut kept_out = KeptOut { named: Vec::new(), ..record.kept_out.clone() };
            kept_out.add(staged.kept_out);
            let rows = record.rows + inserted - deleted;
            let record = self.write_record(version, rows, &kept_out, &layout.columns).await?;
            let changed = u64::try_from(deleted + updated + inserted).unwrap_or_default();
            Ok::<_, ReverseSyncError>(Some(Applied { record, changed }))
        };
        match applied.await {
            Ok(Some(applied)) => {
                crate::crash_point::death_point!("serving-before-commit");
                self.commit().await?;
                crate::crash_point::death_point!("serving-after-commit");
                Ok(Outcome::Applied(applied))
            }
            Ok(None) => {
                self.roll_back().await?;
                reload(SHARED_KEYS)
            }
            Err(error) => Err(self.give_up(error).await),
        }
    }

    async fn stage_changes(&mut self, layout: &Layout, mut changes: ChangeStream) -> Result<Staged> {
        self.ensure_temporary(layout).await?;
        let mut copy = CopyIn::begin(&self.client, CHANGES, layout, "tidewater_sign, ").await?;
        let (mut rows, mut removed) = (0, 0);
        while let Some(batch) = changes.next().await {
            let batch = batch?;
            let staged = copy.write(&batch.rows, Some(batch.change)).await?;
            rows += staged;
            removed += if batch.change == Change::Came { 0 } else { staged };
        }
        let kept_out = copy.finish().await?;
        Ok(Staged { rows, removed, kept_out })
    }

    /// Temporary tables of the layout, empty.
    async fn ensure_temporary(&mut self, layout: &Layout) -> Result<()> {
        if self.temporary.as_ref() == Some(layout) {
            return self.run("emptying temporary tables", &format!("TRUNCATE {CHANGES}, {NET}")).await;
        }
        let sql = format!(
            "DROP TABLE IF EXISTS {CHANGES}, {NET};
             CREATE TEMP TABLE tidewater_changes (tidewater_sign smallint, {});
             CREATE TEMP TABLE tidewater_net (tidewater_sign smallint, tidewater_sum bigint, tidewater_place tid,
               tidewater_same boolean, {})",
            layout.staged_columns(),
            layout.base_columns()
        );
        self.run("making temporary tables", &sql).await?;
        self.temporary = Some(layout.clone());
        Ok(())
    }

    async fn touches_shared_keys(&self, layout: &Layout) -> Result<bool> {
        let (schema, table) = (&self.definition.schema, &self.definition.table);
        let sql = format!(
            "WITH keys AS (SELECT key FROM tidewater.served_duplicate_keys WHERE schema_name = $1 AND table_name = $2)
             SELECT (SELECT count(*) FROM keys) > {LISTED_DUPLICATES}
                 OR EXISTS (SELECT FROM {CHANGES} c JOIN keys ON keys.key = {})",
            key_text(layout, "c")
        );
        let failed = |source| self.client.error("looking for keys that several rows have", source);
        let row = self.client.query_one(&sql, &[schema, table]).await.map_err(failed)?;
        Ok(row.try_get(0).map_err(failed)?)
    }

    /// Applies the staged changes; nothing if they do not fit what is there. Gives deleted, updated, inserted.
    async fn apply_net(&self, layout: &Layout, staged: u64) -> Result<Option<(i64, i64, i64)>> {
        let analyze = staged >= ANALYZED_CHANGES;
        if analyze {
            let key = layout.key_columns().map(|column| quote_identifier(&column.name)).collect::<Vec<_>>();
            self.run("analyzing changes", &format!("ANALYZE {CHANGES} ({})", key.join(", "))).await?;
        }
        self.cast_rows(layout, CHANGES, "finding each change's place", &self.net_statement(layout)).await?;
        self.run("planning for rows whose place is known", BY_PLACE).await?;
        if layout.timeseries.is_none() {
            let misfits = format!(
                "SELECT count(*) FROM {NET} WHERE (tidewater_place IS NOT NULL)::int + tidewater_sum <> (tidewater_sign >= 0)::int"
            );
            if self.count("checking changes", &misfits).await? > 0 {
                return Ok(None);
            }
        }
        let target = self.definition.target();
        let delete = format!(
            "DELETE FROM {target} t USING {NET} n WHERE t.ctid = n.tidewater_place AND n.tidewater_sign < 0"
        );
        let update = format!(
            "UPDATE {target} t SET ({}) = ROW({}) FROM {NET} n
             WHERE t.ctid = n.tidewater_place AND n.tidewater_sign >= 0 AND NOT n.tidewater_same",
            layout.names(),
            layout.of("n")
        );
        let insert = format!(
            "INSERT INTO {target} ({}) SELECT {} FROM {NET} n WHERE n.tidewater_place IS NULL AND n.tidewater_sign > 0",
            layout.names(),
            layout.of("n")
        );
        let deleted = self.execute(DELETING, &delete).await?;
        let updated = self.cast_rows(layout, CHANGES, UPDATING, &update).await?;
        let inserted = self.cast_rows(layout, CHANGES, INSERTING, &insert).await?;
        Ok(Some((deleted, updated, inserted)))
    }

    /// One row a key: the row that came if one did, else the one that replaces, else the one that went. `tidewater_same` marks what need not be
    /// written: rows that are equal, and of a time series those that are older than what is served.
    fn net_statement(&self, layout: &Layout) -> String {
        let target = self.definition.target();
        let key = layout.key_of("c");
        let latest = layout.latest_first("c").map_or_else(String::new, |order| format!(", {order}"));
        let equal = format!("ROW({})::record *= ROW({})::record", layout.of("t"), layout.of("c"));
        let time = layout
            .timeseries
            .and_then(|at| layout.columns.get(at))
            .map(|column| quote_identifier(&column.name));
        let same = match time {
            None => equal,
            // Served rows and changes are compared by the text of the same columns: the target may have more.
            Some(time) => format!(
                "({equal} OR c.{time} IS NULL AND t.{time} IS NOT NULL OR c.{time} < t.{time}
                  OR c.{time} IS NOT DISTINCT FROM t.{time} AND ROW({})::text < ROW({})::text)",
                layout.of("c"),
                layout.of("t")
            ),
        };
        format!(
            "INSERT INTO {NET} SELECT c.tidewater_sign, c.tidewater_sum, t.ctid, {same}, {}
             FROM (SELECT DISTINCT ON ({key}) c.*, sum(c.tidewater_sign) OVER (PARTITION BY {key}) AS tidewater_sum
                   FROM (SELECT c.tidewater_sign, {} FROM {CHANGES} c) c
                   ORDER BY {key}, c.tidewater_sign DESC{latest}) c
             LEFT JOIN {target} t ON {}",
            layout.of("c"),
            layout.cast_of("c"),
            layout.same_key("t", "c")
        )
    }
}

/// Changes that wait in a temporary table.
struct Staged {
    rows: u64,
    removed: u64,
    kept_out: KeptOut,
}
