//! `tidewater.served_tables`: which Delta version each served table holds.
//!
//! The invariant of all serving: **the row here changes in the transaction that changes the table's rows, and only
//! there.** Whatever crashes, the version and the rows agree; after a start one reads the version and goes on.
//!
//! Keys that several rows of the Delta table share are listed beside it. None of their rows is served, so a later
//! change of such a key cannot be applied by itself: the table is then compared as a whole.

use super::column::ServedColumn;
use super::definition::{Layout, OWN_SCHEMA, ServedDefinition};
use super::kept_out::KeptOut;
use super::target::Target;
use crate::error::{Result, ReverseSyncError};
use postgres_connector::Client;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// More keys than this are not listed; then every change compares the table as a whole.
pub(super) const LISTED_DUPLICATES: i64 = 10_000;

const TABLES: &str = "CREATE TABLE IF NOT EXISTS tidewater.served_tables (
    schema_name text NOT NULL, table_name text NOT NULL, instance text NOT NULL,
    source text NOT NULL, table_id text NOT NULL, version bigint NOT NULL, applied_at timestamptz NOT NULL,
    rows bigint NOT NULL, null_keys bigint NOT NULL, misfits bigint NOT NULL, duplicates bigint NOT NULL,
    columns jsonb NOT NULL, selection text NOT NULL, paused boolean NOT NULL DEFAULT false,
    PRIMARY KEY (schema_name, table_name));
  CREATE TABLE IF NOT EXISTS tidewater.served_duplicate_keys (
    schema_name text NOT NULL, table_name text NOT NULL, key text NOT NULL,
    PRIMARY KEY (schema_name, table_name, key),
    FOREIGN KEY (schema_name, table_name) REFERENCES tidewater.served_tables ON DELETE CASCADE);";

/// Superusers and owners pass every GRANT; a statement of theirs is stopped here, unless they say that they mean it. The
/// owner's role is asked for as well, so that nobody else gets through by saying so.
const GUARD: &str = "CREATE OR REPLACE FUNCTION tidewater.refuse_writes() RETURNS trigger LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp AS $body$
    BEGIN
      IF current_setting('tidewater.applying', true) IS DISTINCT FROM 'on' OR NOT EXISTS (
          SELECT FROM pg_class WHERE oid = TG_RELID AND pg_has_role(session_user, relowner, 'MEMBER')) THEN
        RAISE EXCEPTION 'table %.% is served from Delta Lake and read-only here', TG_TABLE_SCHEMA, TG_TABLE_NAME
          USING ERRCODE = 'read_only_sql_transaction',
                HINT = 'Write to the Delta table; the change arrives here with its next version.';
      END IF;
      RETURN NULL;
    END $body$;";

/// What a served table holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Where its rows come from.
    pub source: String,
    /// The Delta table's own id.
    pub table_id: String,
    /// The applied Delta version.
    pub version: u64,
    /// Rows served.
    pub rows: i64,
    /// Rows not served.
    pub kept_out: KeptOut,
    /// Names and types of the columns that Tidewater made.
    pub columns: Vec<(String, String)>,
    /// Which rows were chosen: see [`ServedDefinition::selection`].
    pub selection: String,
    /// Whether it stays at its version until somebody resumes it.
    pub paused: bool,
}

/// A version that rows are brought to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// Where the rows come from.
    pub source: String,
    /// The Delta table's own id.
    pub table_id: String,
    /// The Delta version.
    pub number: u64,
}

/// Spells `tidewate`.
const MAKERS_LOCK: i64 = 8_388_346_167_911_609_445;

/// Makes what Tidewater keeps for itself, unless it is there.
pub(super) async fn ensure_tables(client: &Client) -> Result<()> {
    let doing = "looking for the schema tidewater";
    let there = "SELECT to_regclass('tidewater.served_duplicate_keys') IS NOT NULL
                   AND to_regprocedure('tidewater.refuse_writes()') IS NOT NULL";
    let row = client.query_one(there, &[]).await.map_err(|source| client.error(doing, source))?;
    if row.try_get::<_, bool>(0).map_err(|source| client.error(doing, source))? {
        return Ok(());
    }
    let sql = format!("BEGIN; CREATE SCHEMA IF NOT EXISTS {OWN_SCHEMA}; {TABLES} {GUARD} COMMIT");
    make_alone(client, "making the schema tidewater (needs CREATE on the database)", &sql).await
}

/// Makes what several tables need, one session at a time: `IF NOT EXISTS` fails where another session is making the same.
///
/// The lock is taken in a transaction of its own. One that waits for it inside of its transaction goes on with the
/// catalog as it was before, and fails all the same (seen on PostgreSQL 18).
pub(super) async fn make_alone(client: &Client, doing: &'static str, sql: &str) -> Result<()> {
    let failed = |source| client.error(doing, source);
    let lock = |act: &str| format!("SELECT pg_catalog.pg_advisory_{act}({MAKERS_LOCK})");
    client.batch_execute(&lock("lock")).await.map_err(failed)?;
    let made = client.batch_execute(sql).await;
    if made.is_err() {
        // What failed may have left a transaction open, which takes no other statement.
        client.batch_execute("ROLLBACK").await.map_err(failed)?;
    }
    client.batch_execute(&lock("unlock")).await.map_err(failed)?;
    Ok(made.map_err(failed)?)
}

impl Record {
    /// Whether the entry chooses other rows or columns now than the table holds.
    pub fn differs_from(&self, layout: &Layout, definition: &ServedDefinition) -> bool {
        let wanted = layout.columns.iter().map(|column| (&column.name, &column.declared));
        let held = self.columns.iter().map(|(name, declared)| (name, declared));
        self.selection != definition.selection()
            || wanted.collect::<BTreeSet<_>>() != held.collect::<BTreeSet<_>>()
    }

    /// Whether the changes have to tell the rows before updates too. Which of them was served, they alone say: of rows
    /// that did not fit, and of a time series, where an older row may have been kept.
    pub fn needs_preimages(&self, layout: &Layout) -> bool {
        self.kept_out.misfits != 0 || layout.timeseries.is_some()
    }

    /// The record of a served table; `None` before its first load.
    pub(super) async fn read(client: &Client, definition: &ServedDefinition) -> Result<Option<Record>> {
        let doing = "reading tidewater.served_tables";
        let sql =
            "SELECT instance, source, table_id, version, rows, null_keys, misfits, duplicates, columns::text,
                     selection, paused
                   FROM tidewater.served_tables WHERE schema_name = $1 AND table_name = $2";
        let failed = |source| client.error(doing, source);
        let found = client.query_opt(sql, &[&definition.schema, &definition.table]).await.map_err(failed)?;
        let Some(row) = found else { return Ok(None) };
        let bad = |problem: &str| ReverseSyncError::BadRecord {
            table: definition.name(),
            problem: problem.to_owned(),
        };
        let instance: String = row.try_get(0).map_err(failed)?;
        if instance != definition.instance {
            return Err(ReverseSyncError::OtherInstance { table: definition.name(), instance });
        }
        let version: i64 = row.try_get(3).map_err(failed)?;
        let columns: String = row.try_get(8).map_err(failed)?;
        Ok(Some(Record {
            source: row.try_get(1).map_err(failed)?,
            table_id: row.try_get(2).map_err(failed)?,
            version: u64::try_from(version).map_err(|_| bad("its version is negative"))?,
            rows: row.try_get(4).map_err(failed)?,
            kept_out: KeptOut {
                null_keys: row.try_get(5).map_err(failed)?,
                misfits: row.try_get(6).map_err(failed)?,
                duplicates: row.try_get(7).map_err(failed)?,
                named: Vec::new(),
            },
            columns: columns_from_json(&columns)
                .ok_or_else(|| bad("its columns are no list of names and types"))?,
            selection: row.try_get(9).map_err(failed)?,
            paused: row.try_get(10).map_err(failed)?,
        }))
    }
}

impl Target {
    /// Locks the record until the transaction ends and makes sure that it is the one that was read.
    pub(super) async fn lock_record(&self, record: &Record) -> Result<()> {
        let doing = "locking the row in tidewater.served_tables";
        let sql = "SELECT version, table_id FROM tidewater.served_tables
                   WHERE schema_name = $1 AND table_name = $2 FOR UPDATE";
        let failed = |source| self.client.error(doing, source);
        let (schema, table) = (&self.definition.schema, &self.definition.table);
        let found = self.client.query_opt(sql, &[schema, table]).await.map_err(failed)?;
        let same = match found {
            Some(row) => {
                let version: i64 = row.try_get(0).map_err(failed)?;
                let id: String = row.try_get(1).map_err(failed)?;
                u64::try_from(version).is_ok_and(|version| version == record.version) && id == record.table_id
            }
            None => false,
        };
        if same { Ok(()) } else { Err(ReverseSyncError::MovedMeanwhile { table: self.definition.name() }) }
    }

    /// Stores what the table holds with this transaction.
    pub(super) async fn write_record(
        &self,
        version: &Version,
        rows: i64,
        kept_out: &KeptOut,
        columns: &[ServedColumn],
    ) -> Result<Record> {
        let doing = "writing tidewater.served_tables";
        let sql = "INSERT INTO tidewater.served_tables AS s (schema_name, table_name, instance, source, table_id,
                     version, applied_at, rows, null_keys, misfits, duplicates, columns, selection)
                   VALUES ($1, $2, $3, $4, $5, $6, clock_timestamp(), $7, $8, $9, $10, $11::text::jsonb, $12)
                   ON CONFLICT (schema_name, table_name) DO UPDATE SET (source, table_id, version, applied_at, rows,
                     null_keys, misfits, duplicates, columns, selection) = ROW(excluded.source, excluded.table_id,
                     excluded.version, excluded.applied_at, excluded.rows, excluded.null_keys, excluded.misfits,
                     excluded.duplicates, excluded.columns, excluded.selection)
                   RETURNING paused";
        let failed = |source| self.client.error(doing, source);
        let definition = &self.definition;
        let selection = definition.selection();
        let number = i64::try_from(version.number).unwrap_or(i64::MAX);
        let named: Vec<(String, String)> =
            columns.iter().map(|column| (column.name.clone(), column.declared.clone())).collect();
        let row = self
            .client
            .query_one(
                sql,
                &[
                    &definition.schema,
                    &definition.table,
                    &definition.instance,
                    &version.source,
                    &version.table_id,
                    &number,
                    &rows,
                    &kept_out.null_keys,
                    &kept_out.misfits,
                    &kept_out.duplicates,
                    &columns_as_json(&named),
                    &selection,
                ],
            )
            .await
            .map_err(failed)?;
        Ok(Record {
            source: version.source.clone(),
            table_id: version.table_id.clone(),
            version: version.number,
            rows,
            kept_out: kept_out.clone(),
            columns: named,
            selection,
            paused: row.try_get(0).map_err(failed)?,
        })
    }

    /// Has the table stay at its version, or go on.
    pub async fn set_paused(&self, paused: bool) -> Result<()> {
        let sql = "UPDATE tidewater.served_tables SET paused = $3 WHERE schema_name = $1 AND table_name = $2";
        let (schema, table) = (&self.definition.schema, &self.definition.table);
        let done = self.client.execute(sql, &[schema, table, &paused]).await;
        done.map_err(|source| self.client.error("writing tidewater.served_tables", source))?;
        Ok(())
    }
}

fn columns_as_json(columns: &[(String, String)]) -> String {
    let columns = columns.iter().map(|(name, declared)| json!({"name": name, "type": declared}));
    Value::Array(columns.collect()).to_string()
}

fn columns_from_json(text: &str) -> Option<Vec<(String, String)>> {
    let columns: Vec<Value> = serde_json::from_str(text).ok()?;
    let part = |column: &Value, key: &str| column.get(key)?.as_str().map(str::to_owned);
    columns.iter().map(|column| Some((part(column, "name")?, part(column, "type")?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_survive_their_way_through_the_record() {
        let columns =
            vec![("a\"b".to_owned(), "numeric(10,2)".to_owned()), ("c".to_owned(), "text".to_owned())];
        assert_eq!(columns_from_json(&columns_as_json(&columns)), Some(columns));
        assert_eq!(columns_from_json("{}"), None);
        assert_eq!(columns_from_json("[{\"name\": 1}]"), None);
    }
}
