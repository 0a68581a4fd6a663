//! A whole version of a Delta table: the first load, and the reload that brings a served table to any version.
//!
//! ```text
//!   first:   rows ══COPY══▶ tidewater.load_… ── key, indexes, grants ──▶ renamed into its place     one transaction
//!   later:   rows ══COPY══▶ tidewater.stage_… ── delete · update · insert what differs ──▶ table    one transaction
//! ```
//!
//! The invariant: **readers see the version before or the version after.** A first load grows under another name; a
//! reload changes, row by row, only what differs, in the table that views, foreign keys and grants hang on.
//!
//! What is left of a load that a crash ended has a fixed name, and the next load begins by dropping it.

use super::apply::{DELETING, INSERTING, UPDATING};
use super::copy_in::{RowStream, copy_all};
use super::definition::Layout;
use super::kept_out::{KeptOut, KeptOutRow};
use super::record::{self, LISTED_DUPLICATES, Record, Version};
use super::target::Target;
use crate::error::{Result, ReverseSyncError};
use postgres_connector::{quote_identifier, quote_literal};

/// Of each page, so that a row's next version fits beside it: then no index has to be told (a HOT update), and the room of the
/// one before is had again without VACUUM.
const FILLED_PERCENT: u8 = 90;

/// Tells how many rows a load has copied.
pub type Progress<'a> = &'a (dyn Fn(u64) + Send + Sync);

/// What a version brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// What the table holds now.
    pub record: Record,
    /// Rows deleted, updated and inserted.
    pub changed: u64,
}

impl Target {
    /// Brings the served table to a version of which all rows are given, whatever it holds now; makes it first if it is
    /// not there.
    pub async fn load(
        &mut self,
        layout: &Layout,
        version: &Version,
        rows: RowStream,
        progress: Progress<'_>,
    ) -> Result<Applied> {
        let loaded = match self.record().await? {
            None => self.first_load(layout, version, rows, progress).await,
            Some(record) => self.reload(layout, version, rows, &record, progress).await,
        };
        if loaded.is_err() {
            self.clear_away().await;
        }
        loaded
    }

    /// Takes what a failed load has copied off the server's disk: others need the room until it is tried again.
    pub(super) async fn clear_away(&self) {
        let copied = format!("DROP TABLE IF EXISTS {}, {}", self.definition.stage(), self.definition.load());
        let cleared = async {
            self.roll_back().await?;
            self.run("dropping what a failed load has copied", &copied).await
        };
        if let Err(gone) = cleared.await {
            tracing::debug!(
                table = %self.definition.name(), error = &gone as &dyn std::error::Error,
                "what was copied stays until the next load"
            );
        }
    }

    async fn first_load(
        &mut self,
        layout: &Layout,
        version: &Version,
        rows: RowStream,
        progress: Progress<'_>,
    ) -> Result<Applied> {
        self.ensure_schema().await?;
        let load = self.definition.load();
        self.create_load(layout, &load).await?;
        let (mut count, mut kept_out);
        if layout.is_direct() {
            (count, kept_out) =
                copy_all(&self.config, &self.definition, &load, layout, rows, progress).await?;
            if !self.add_key(layout, &load).await? {
                self.settle_duplicates(layout, &load, &mut kept_out).await?;
                count -= kept_out.duplicates;
                self.add_key(layout, &load).await?;
            }
        } else {
            kept_out = self.stage(layout, rows, progress).await?;
            let sql = format!(
                "INSERT INTO {load} ({}) SELECT {} FROM {} s",
                layout.names(),
                layout.cast_of("s"),
                self.definition.stage()
            );
            count =
                self.cast_rows(layout, &self.definition.stage(), "inserting the first rows", &sql).await?;
            self.add_key(layout, &load).await?;
        }
        self.furnish(&load).await?;
        self.begin().await?;
        let (schema, name) = (&self.definition.schema, &self.definition.table);
        let moved = format!(
            "DELETE FROM tidewater.served_tables WHERE schema_name = {} AND table_name = {};
             ALTER TABLE {load} SET SCHEMA {};
             ALTER TABLE {}.{} RENAME TO {}",
            quote_literal(schema),
            quote_literal(name),
            quote_identifier(schema),
            quote_identifier(schema),
            quote_identifier(&self.definition.load_name()),
            quote_identifier(name)
        );
        self.run("putting the first load into its place", &moved).await?;
        let record = self.write_record(version, count, &kept_out, &layout.columns).await?;
        self.list_duplicates(layout).await?;
        crate::crash_point::death_point!("serving-before-first-commit");
        self.commit().await?;
        crate::crash_point::death_point!("serving-after-first-commit");
        self.drop_stage().await?;
        self.run("analyzing the served table", &format!("ANALYZE {}", self.definition.target())).await?;
        Ok(Applied { changed: u64::try_from(count).unwrap_or_default(), record })
    }

    /// The served table's schema; whoever may read a served table may look into a schema that is made for it.
    async fn ensure_schema(&self) -> Result<()> {
        let schema = &self.definition.schema;
        let sql = format!("SELECT count(*) FROM pg_namespace WHERE nspname = {}", quote_literal(schema));
        if self.count("looking for the served table's schema", &sql).await? > 0 {
            return Ok(());
        }
        let sql = format!("CREATE SCHEMA IF NOT EXISTS {}", quote_identifier(schema));
        record::make_alone(&self.client, "making the served table's schema", &sql).await
    }

    async fn create_load(&self, layout: &Layout, load: &str) -> Result<()> {
        let extra = self.definition.extra_columns.iter();
        let extra: String =
            extra.map(|(name, rest)| format!(", {} {rest}", quote_identifier(name))).collect();
        let sql = format!(
            "DROP TABLE IF EXISTS {load}; CREATE TABLE {load} ({}{extra}) WITH (fillfactor = {FILLED_PERCENT})",
            layout.declared_columns()
        );
        self.run_configured("making the served table", &sql).await
    }

    /// Adds the primary key; false if several rows have one key.
    async fn add_key(&self, layout: &Layout, table: &str) -> Result<bool> {
        let columns: Vec<_> = layout.key_columns().map(|column| quote_identifier(&column.name)).collect();
        let sql = format!(
            "ALTER TABLE {table} ADD CONSTRAINT {} PRIMARY KEY ({})",
            quote_identifier(&self.definition.key_constraint()),
            columns.join(", ")
        );
        match self.client.batch_execute(&sql).await {
            Ok(()) => Ok(true),
            Err(error) if error.code() == Some(&tokio_postgres::error::SqlState::UNIQUE_VIOLATION) => {
                Ok(false)
            }
            Err(source) => Err(self.client.error("making the primary key", source).into()),
        }
    }

    /// What the table has beside its rows, before anyone sees it.
    async fn furnish(&self, table: &str) -> Result<()> {
        for (_, sql) in self.index_statements(table) {
            self.run_configured("making an index of the served table", &sql).await?;
        }
        for sql in Target::guard_of(table) {
            self.run("guarding the served table", &sql).await?;
        }
        for (privilege, roles) in &self.definition.grants {
            for role in roles {
                for sql in self.grant(table, &privilege.to_ascii_uppercase(), role) {
                    self.run("granting privileges on the served table", &sql).await?;
                }
            }
        }
        Ok(())
    }

    async fn reload(
        &mut self,
        layout: &Layout,
        version: &Version,
        rows: RowStream,
        record: &Record,
        progress: Progress<'_>,
    ) -> Result<Applied> {
        let kept_out = self.stage(layout, rows, progress).await?;
        let alterations = self.alterations(layout, record).await?;
        let new_key = record.selection != self.definition.selection();
        self.begin().await?;
        let applied = async {
            self.lock_record(record).await?;
            if new_key && self.has_key().await? {
                self.drop_key(layout).await?;
            }
            self.alter(&alterations).await?;
            let (deleted, updated, inserted) = self.apply_difference(layout).await?;
            // It also goes with a column of it that somebody dropped.
            if !self.has_key().await? {
                self.add_key(layout, &self.definition.target()).await?;
            }
            let count = record.rows + inserted - deleted;
            let record = self.write_record(version, count, &kept_out, &layout.columns).await?;
            self.list_duplicates(layout).await?;
            let changed = u64::try_from(deleted + updated + inserted).unwrap_or_default();
            Ok::<_, ReverseSyncError>(Applied { record, changed })
        };
        let applied = match applied.await {
            Ok(applied) => applied,
            Err(error) => return Err(self.give_up(error).await),
        };
        crate::crash_point::death_point!("serving-before-reload-commit");
        self.commit().await?;
        crate::crash_point::death_point!("serving-after-reload-commit");
        self.drop_stage().await?;
        Ok(applied)
    }

    /// Rolls back and hands the reason on; a session that is gone needs no rollback.
    pub(super) async fn give_up(&self, error: ReverseSyncError) -> ReverseSyncError {
        match self.roll_back().await {
            Ok(()) => error,
            Err(gone) => {
                tracing::debug!(
                    error = &gone as &dyn std::error::Error,
                    "the session ended with its transaction"
                );
                error
            }
        }
    }

    async fn has_key(&self) -> Result<bool> {
        let sql = format!(
            "SELECT count(*) FROM pg_constraint WHERE conrelid = to_regclass({}) AND conname = {}",
            quote_literal(&self.definition.target()),
            quote_literal(&self.definition.key_constraint())
        );
        Ok(self.count("looking for the primary key", &sql).await? > 0)
    }

    /// Drops the key, whose columns may hold nulls after that. The foreign keys of others that hang on it keep it from
    /// being dropped, and the error names them.
    async fn drop_key(&self, layout: &Layout) -> Result<()> {
        let target = self.definition.target();
        let constraint = quote_identifier(&self.definition.key_constraint());
        let mut sql = format!("ALTER TABLE {target} DROP CONSTRAINT {constraint}");
        let not_null = self.not_null_columns().await?;
        let is_key = |name: &String| layout.key_columns().any(|column| column.name == *name);
        for column in layout.columns.iter().map(|column| &column.name) {
            if not_null.contains(column) && !is_key(column) {
                sql.push_str(&format!(", ALTER COLUMN {} DROP NOT NULL", quote_identifier(column)));
            }
        }
        self.run("changing the primary key", &sql).await
    }

    /// Stages every row, and leaves of each key the one row that is to be served.
    pub(super) async fn stage(
        &mut self,
        layout: &Layout,
        rows: RowStream,
        progress: Progress<'_>,
    ) -> Result<KeptOut> {
        let stage = self.definition.stage();
        let sql = format!(
            "DROP TABLE IF EXISTS {stage}; CREATE UNLOGGED TABLE {stage} ({}) WITH (autovacuum_enabled = off)",
            layout.staged_columns()
        );
        self.run("making a staging table", &sql).await?;
        let (_, mut kept_out) =
            copy_all(&self.config, &self.definition, &stage, layout, rows, progress).await?;
        match layout.latest_first("s") {
            Some(order) => self.keep_latest(layout, &stage, &order).await?,
            None => self.settle_duplicates(layout, &stage, &mut kept_out).await?,
        }
        self.run("analyzing staged rows", &format!("ANALYZE {stage}")).await?;
        Ok(kept_out)
    }

    pub(super) async fn drop_stage(&self) -> Result<()> {
        self.run("dropping staged rows", &format!("DROP TABLE IF EXISTS {}", self.definition.stage())).await
    }

    async fn keep_latest(&self, layout: &Layout, stage: &str, order: &str) -> Result<()> {
        let sql = format!(
            "DELETE FROM {stage} d USING (SELECT s.ctid AS place, row_number() OVER (PARTITION BY {} ORDER BY {order}) AS rank
               FROM {stage} s) r WHERE d.ctid = r.place AND r.rank > 1",
            layout.key_of("s")
        );
        self.execute("choosing the latest rows", &sql).await.map(|_| ())
    }

    /// Takes out every row whose key another row has as well, and remembers these keys for the record.
    async fn settle_duplicates(
        &mut self,
        layout: &Layout,
        table: &str,
        kept_out: &mut KeptOut,
    ) -> Result<()> {
        let sql = format!(
            "DROP TABLE IF EXISTS pg_temp.tidewater_duplicates;
             CREATE TEMP TABLE tidewater_duplicates AS SELECT {} FROM {table} s GROUP BY {} HAVING count(*) > 1",
            layout.key_of("s"),
            layout.key_of("s")
        );
        self.run("looking for keys that several rows have", &sql).await?;
        let keys = self.count("counting keys", "SELECT count(*) FROM pg_temp.tidewater_duplicates").await?;
        if keys == 0 {
            return self.forget_duplicates().await;
        }
        for key in self.first_duplicates(layout).await? {
            kept_out.name(|| KeptOutRow {
                key,
                column: None,
                reason: "several rows have this key".to_owned(),
            });
        }
        let sql = format!(
            "DELETE FROM {table} s USING pg_temp.tidewater_duplicates d WHERE {}",
            layout.same_key("s", "d")
        );
        kept_out.duplicates = self.execute("taking out rows that share their key", &sql).await?;
        Ok(())
    }

    async fn forget_duplicates(&self) -> Result<()> {
        self.run("dropping a temporary table", "DROP TABLE IF EXISTS pg_temp.tidewater_duplicates").await
    }

    async fn first_duplicates(&self, layout: &Layout) -> Result<Vec<String>> {
        let key = layout.shown_key(|name| format!("d.{name}"));
        let sql = format!("SELECT {key} FROM pg_temp.tidewater_duplicates d LIMIT 5");
        let failed = |source| self.client.error("naming keys", source);
        let rows = self.client.query(&sql, &[]).await.map_err(failed)?;
        rows.iter().map(|row| Ok(row.try_get(0).map_err(failed)?)).collect()
    }

    /// Lists the keys that [`Target::settle_duplicates`] found, in the transaction that leaves their rows out.
    async fn list_duplicates(&self, layout: &Layout) -> Result<()> {
        let (schema, table) = (&self.definition.schema, &self.definition.table);
        let doing = "listing keys that several rows have";
        let failed = |source| self.client.error(doing, source);
        let delete = "DELETE FROM tidewater.served_duplicate_keys WHERE schema_name = $1 AND table_name = $2";
        self.client.execute(delete, &[schema, table]).await.map_err(failed)?;
        let found = "SELECT count(*) FROM pg_class WHERE oid = to_regclass('pg_temp.tidewater_duplicates')";
        if self.count(doing, found).await? == 0 {
            return Ok(());
        }
        let insert = format!(
            "INSERT INTO tidewater.served_duplicate_keys SELECT DISTINCT $1::text, $2::text, {} FROM pg_temp.tidewater_duplicates d
             LIMIT {LISTED_DUPLICATES} + 1",
            key_text(layout, "d")
        );
        self.client.execute(&insert, &[schema, table]).await.map_err(failed)?;
        self.forget_duplicates().await
    }

    /// Deletes, updates and inserts what differs from the staged rows.
    async fn apply_difference(&self, layout: &Layout) -> Result<(i64, i64, i64)> {
        let (target, stage) = (self.definition.target(), self.definition.stage());
        let staged = format!("(SELECT {} FROM {stage} s)", layout.cast_of("s"));
        let same_key = layout.same_key("t", "s");
        let delete =
            format!("DELETE FROM {target} t WHERE NOT EXISTS (SELECT FROM {staged} s WHERE {same_key})");
        let update = format!(
            "UPDATE {target} t SET ({}) = ROW({}) FROM {staged} s WHERE {same_key} AND ROW({})::record *<> ROW({})::record",
            layout.names(),
            layout.of("s"),
            layout.of("t"),
            layout.of("s")
        );
        let insert = format!(
            "INSERT INTO {target} ({}) SELECT {} FROM {staged} s WHERE NOT EXISTS (SELECT FROM {target} t WHERE {same_key})",
            layout.names(),
            layout.of("s")
        );
        let deleted = self.cast_rows(layout, &stage, DELETING, &delete).await?;
        let updated = self.cast_rows(layout, &stage, UPDATING, &update).await?;
        let inserted = self.cast_rows(layout, &stage, INSERTING, &insert).await?;
        Ok((deleted, updated, inserted))
    }
}

/// A key as one text, equal for equal keys: how keys are listed.
pub(super) fn key_text(layout: &Layout, alias: &str) -> String {
    let columns = layout.key_columns().map(|column| {
        let name = quote_identifier(&column.name);
        match column.is_cast() {
            true => format!("CAST({alias}.{name} AS {})", column.base),
            false => format!("{alias}.{name}"),
        }
    });
    format!("jsonb_build_array({})::text", columns.collect::<Vec<_>>().join(", "))
}
