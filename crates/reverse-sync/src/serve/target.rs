//! The session with the target, and the served table as its catalog has it.
//!
//! One session belongs to one served table, holds a lock on its name, and nobody else changes that table. Rows reach it
//! only inside [`Target::begin`] … [`Target::commit`]; what an error interrupts is rolled back, and a session that ends
//! takes everything back by itself.

use super::column::ServedColumn;
use super::definition::{Layout, ServedDefinition};
use super::record::{self, Record};
use crate::error::{Result, ReverseSyncError};
use postgres_connector::{Client, SourceConfig, connect, quote_identifier};
use std::collections::BTreeSet;
use tokio_postgres::types::ToSql;

/// Staging and sorting a million rows should not take thousands of files, and several tables apply at a time. Notices that
/// what `IF EXISTS` asked for does not exist are no news.
const SESSION: &str = "SET statement_timeout = 0; SET work_mem = '64MB'; SET maintenance_work_mem = '256MB';
    SET client_min_messages = warning;
    SET tidewater.applying = 'on'";

/// Names in overrides, indexes and extra columns mean what they mean to the role in psql. Everywhere else the path stays
/// empty: where others may make functions, one of theirs could be a better match than Postgres's own.
const OWN_PATH: &str = "RESET search_path";
const EMPTY_PATH: &str = "SET search_path = ''";

const GUARD_TRIGGERS: [(&str, &str); 2] =
    [("tidewater_refuses_writes", "INSERT OR UPDATE OR DELETE"), ("tidewater_refuses_truncate", "TRUNCATE")];

/// A session with the database that one table is served in.
pub struct Target {
    pub(super) client: Client,
    pub(super) config: SourceConfig,
    pub(super) definition: ServedDefinition,
    /// The layout that the session's temporary tables have.
    pub(super) temporary: Option<Layout>,
}

/// How the served table differs from what the Delta table wants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Alterations {
    /// Columns it lacks.
    pub added: Vec<ServedColumn>,
    /// Columns of ours that the Delta table has no more.
    pub dropped: Vec<String>,
    /// Columns with another type, and the type that they had.
    pub retyped: Vec<(ServedColumn, String)>,
    /// Somebody took a column away that rows are in: its values are in the Delta table only.
    pub lost: bool,
}

impl Alterations {
    /// Rows that are there already stay as they are.
    pub fn keep_rows(&self) -> bool {
        self.dropped.is_empty() && self.retyped.is_empty() && !self.lost
    }

    fn statements(&self, target: &str) -> Vec<String> {
        let alter = |what: String| format!("ALTER TABLE {target} {what}");
        let dropped =
            self.dropped.iter().map(|name| alter(format!("DROP COLUMN {}", quote_identifier(name))));
        let retyped = self.retyped.iter().flat_map(|(column, before)| {
            let name = quote_identifier(&column.name);
            match is_wider(before, &column.declared) {
                true => vec![alter(format!("ALTER COLUMN {name} TYPE {}", column.declared))],
                // Its values come with the same transaction: nothing is worth converting.
                false => vec![
                    alter(format!("DROP COLUMN {name}")),
                    alter(format!("ADD COLUMN {name} {}", column.declared)),
                ],
            }
        });
        let added = self.added.iter().map(|column| {
            alter(format!("ADD COLUMN {} {}", quote_identifier(&column.name), column.declared))
        });
        dropped.chain(retyped).chain(added).collect()
    }
}

/// Whether every value of a type is one of the other, and the server knows how.
fn is_wider(from: &str, to: &str) -> bool {
    let word = |declared: &str| declared.split('(').next().unwrap_or_default().trim().to_ascii_lowercase();
    match (word(from).as_str(), word(to).as_str()) {
        ("smallint", "integer" | "bigint") | ("integer", "bigint") | ("real", "double precision") => true,
        // Of one kind: a length or precision that is too short for what is there is an error, and said so.
        ("numeric", "numeric")
        | ("varchar" | "character varying", "varchar" | "character varying" | "text") => true,
        _ => false,
    }
}

impl Target {
    /// Opens a session and makes what Tidewater keeps for itself, unless it is there.
    pub async fn open(config: &SourceConfig, definition: ServedDefinition) -> Result<Target> {
        let client = session(config, &definition).await?;
        record::ensure_tables(&client).await?;
        // As long as the session lives: staged rows have one name, and must never be of two processes.
        let lock = "SELECT pg_try_advisory_lock($1)";
        let failed = |source| client.error("locking the served table for this process", source);
        let row = client.query_one(lock, &[&definition.lock_key()]).await.map_err(failed)?;
        if !row.try_get::<_, bool>(0).map_err(failed)? {
            return Err(ReverseSyncError::ServedElsewhere { table: definition.name() });
        }
        Ok(Target { client, config: config.clone(), definition, temporary: None })
    }

    /// What the table holds; `None` before its first load, or when somebody dropped it.
    pub async fn record(&self) -> Result<Option<Record>> {
        let record = Record::read(&self.client, &self.definition).await?;
        let Some(owner) = self.owner().await? else { return Ok(None) };
        if record.is_none() {
            return Err(ReverseSyncError::ForeignTarget { table: self.definition.name() });
        }
        match owner {
            (owner, false) => Err(ReverseSyncError::NotOwner {
                table: self.definition.target(),
                owner: quote_identifier(&owner),
                role: quote_identifier(&self.config.user),
            }),
            (_, true) => Ok(record),
        }
    }

    /// Who owns whatever has the served table's name, and whether that is as good as us.
    async fn owner(&self) -> Result<Option<(String, bool)>> {
        let doing = "looking for the served table";
        let sql = "SELECT r.rolname::text, pg_has_role(current_user, c.relowner, 'USAGE')
                   FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner WHERE c.oid = to_regclass($1)";
        let failed = |source| self.client.error(doing, source);
        let found = self.client.query_opt(sql, &[&self.definition.target()]).await.map_err(failed)?;
        found.map(|row| Ok((row.try_get(0).map_err(failed)?, row.try_get(1).map_err(failed)?))).transpose()
    }

    /// What has to change about the served table's columns.
    pub(super) async fn alterations(&self, layout: &Layout, record: &Record) -> Result<Alterations> {
        let there = self.column_names().await?;
        let mut alterations = Alterations::default();
        for column in layout.columns.iter() {
            let recorded = record.columns.iter().find(|(name, _)| *name == column.name);
            match recorded {
                None => alterations.added.push(column.clone()),
                Some(_) if !there.contains(&column.name) => {
                    alterations.lost = true;
                    alterations.added.push(column.clone());
                }
                Some((_, before)) if *before != column.declared => {
                    alterations.retyped.push((column.clone(), before.clone()));
                }
                Some(_) => {}
            }
        }
        let kept = |name: &String| layout.columns.iter().any(|column| column.name == *name);
        let dropped =
            record.columns.iter().map(|(name, _)| name).filter(|name| !kept(name) && there.contains(*name));
        alterations.dropped = dropped.cloned().collect();
        Ok(alterations)
    }

    async fn column_names(&self) -> Result<BTreeSet<String>> {
        let sql = "SELECT attname::text FROM pg_attribute
                   WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped";
        self.texts("reading the served table's columns", sql, &[&self.definition.target()]).await
    }

    /// The columns that take no null.
    pub(super) async fn not_null_columns(&self) -> Result<BTreeSet<String>> {
        let sql = "SELECT attname::text FROM pg_attribute
                   WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped AND attnotnull";
        self.texts("reading the served table's columns", sql, &[&self.definition.target()]).await
    }

    /// Changes the columns, inside the transaction that brings their values.
    pub(super) async fn alter(&self, alterations: &Alterations) -> Result<()> {
        for statement in alterations.statements(&self.definition.target()) {
            self.run_configured("changing the served table's columns", &statement).await?;
        }
        Ok(())
    }

    /// Runs a statement with SQL of the configuration in it.
    pub(super) async fn run_configured(&self, doing: &'static str, sql: &str) -> Result<()> {
        match self.definition.type_overrides.is_empty() {
            // An error in between closes the session.
            true => self.run(doing, &format!("{OWN_PATH}; {sql}; {EMPTY_PATH}")).await,
            false => self.run(doing, sql).await,
        }
    }

    pub(super) async fn begin(&self) -> Result<()> {
        self.run("beginning a transaction", "BEGIN").await
    }

    pub(super) async fn commit(&self) -> Result<()> {
        self.run("committing a version", "COMMIT").await
    }

    pub(super) async fn roll_back(&self) -> Result<()> {
        self.run("rolling a version back", "ROLLBACK").await
    }

    /// Statements without parameters and without rows.
    pub(super) async fn run(&self, doing: &'static str, sql: &str) -> Result<()> {
        Ok(self.client.batch_execute(sql).await.map_err(|source| self.client.error(doing, source))?)
    }

    /// One statement; the number of rows it touched.
    pub(super) async fn execute(&self, doing: &'static str, sql: &str) -> Result<i64> {
        let rows = self.client.execute(sql, &[]).await.map_err(|source| self.client.error(doing, source))?;
        Ok(i64::try_from(rows).unwrap_or(i64::MAX))
    }

    /// One number.
    pub(super) async fn count(&self, doing: &'static str, sql: &str) -> Result<i64> {
        let failed = |source| self.client.error(doing, source);
        Ok(self.client.query_one(sql, &[]).await.map_err(failed)?.try_get(0).map_err(failed)?)
    }

    /// Makes what belongs to the table beside its rows (indexes, extra columns, privileges, the guard against writes)
    /// as the configuration has it. What is there already is not touched, so that no lock is asked for in vain.
    pub async fn ensure_fittings(&self) -> Result<()> {
        let target = self.definition.target();
        let there = self.column_names().await?;
        for statement in self.missing_columns(&target, &there).chain(self.guard_statements(&target).await?) {
            self.run_configured("fitting the served table", &statement).await?;
        }
        for statement in self.missing_indexes(&target).await? {
            self.run_configured("making an index of the served table", &statement).await?;
        }
        for statement in self.missing_privileges(&target).await? {
            self.run("setting the served table's privileges", &statement).await?;
        }
        Ok(())
    }

    fn missing_columns<'a>(
        &'a self,
        target: &'a str,
        there: &'a BTreeSet<String>,
    ) -> impl Iterator<Item = String> + 'a {
        let missing = self.definition.extra_columns.iter().filter(|(name, _)| !there.contains(*name));
        missing.map(move |(name, rest)| {
            format!("ALTER TABLE {target} ADD COLUMN {} {rest}", quote_identifier(name))
        })
    }

    async fn guard_statements(&self, target: &str) -> Result<Vec<String>> {
        let sql =
            "SELECT tgname::text FROM pg_trigger WHERE tgrelid = to_regclass($1) AND tgenabled IN ('O', 'A')";
        let there = self.texts("reading the served table's triggers", sql, &[&target]).await?;
        let missing = GUARD_TRIGGERS.iter().filter(|(name, _)| !there.contains(*name));
        Ok(missing.map(|(name, events)| guard_trigger(target, name, events)).collect())
    }

    async fn missing_indexes(&self, target: &str) -> Result<Vec<String>> {
        let sql = "SELECT c.relname::text FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
                   WHERE i.indrelid = to_regclass($1) AND i.indisvalid";
        let there = self.texts("reading the served table's indexes", sql, &[&target]).await?;
        Ok(self
            .index_statements(target)
            .filter(|(name, _)| !there.contains(name))
            .map(|(_, sql)| sql)
            .collect())
    }

    /// Name and statement of each configured index.
    pub(super) fn index_statements(&self, on: &str) -> impl Iterator<Item = (String, String)> {
        self.definition.indexes.iter().map(move |text| {
            let name = self.definition.index_name(text);
            let sql = format!("CREATE INDEX {} ON {on} {text}", quote_identifier(&name));
            (name, sql)
        })
    }

    /// Both triggers of the guard, for a new table.
    pub(super) fn guard_of(on: &str) -> impl Iterator<Item = String> {
        GUARD_TRIGGERS.iter().map(move |(name, events)| guard_trigger(on, name, events))
    }

    /// Grants that are missing, and what others must not have.
    async fn missing_privileges(&self, target: &str) -> Result<Vec<String>> {
        let mut statements = Vec::new();
        for (privilege, roles) in &self.definition.grants {
            for role in roles {
                let there = "SELECT has_table_privilege(r.oid, to_regclass($1), $2)
                               AND has_schema_privilege(r.oid, $3, 'USAGE')
                             FROM pg_roles r WHERE rolname = $4";
                let failed = |source| self.client.error("reading privileges", source);
                let wanted = privilege.to_ascii_uppercase();
                let asked: [&(dyn ToSql + Sync); 4] = [&target, &wanted, &self.definition.schema, role];
                let found = self.client.query_opt(there, &asked).await.map_err(failed)?;
                let granted = found.map(|row| row.try_get(0)).transpose().map_err(failed)?.unwrap_or(false);
                if !granted {
                    statements.extend(self.grant(target, &wanted, role));
                }
            }
        }
        let writers = "SELECT format('REVOKE %s ON %s FROM %s', a.privilege_type, $1::text,
                         CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END)
                       FROM pg_class c, aclexplode(c.relacl) a WHERE c.oid = to_regclass($1::text)
                         AND a.grantee <> c.relowner AND a.privilege_type IN ('INSERT', 'UPDATE', 'DELETE', 'TRUNCATE')";
        statements.extend(self.texts("reading privileges", writers, &[&target]).await?);
        Ok(statements)
    }

    /// What gives a role a privilege: without USAGE of the schema it is of no use.
    pub(super) fn grant(&self, on: &str, privilege: &str, role: &str) -> [String; 2] {
        let role = quote_identifier(role);
        [
            format!("GRANT USAGE ON SCHEMA {} TO {role}", quote_identifier(&self.definition.schema)),
            format!("GRANT {privilege} ON {on} TO {role}"),
        ]
    }

    async fn texts(
        &self,
        doing: &'static str,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<BTreeSet<String>> {
        let failed = |source| self.client.error(doing, source);
        let rows = self.client.query(sql, parameters).await.map_err(failed)?;
        rows.iter().map(|row| Ok(row.try_get(0).map_err(failed)?)).collect()
    }
}

fn guard_trigger(on: &str, name: &str, events: &str) -> String {
    format!(
        "CREATE TRIGGER {name} BEFORE {events} ON {on} FOR EACH STATEMENT EXECUTE FUNCTION tidewater.refuse_writes()"
    )
}

/// A session that may write to served tables.
pub(super) async fn session(config: &SourceConfig, definition: &ServedDefinition) -> Result<Client> {
    let client = connect(config).await?;
    if !definition.type_overrides.is_empty() {
        let own = client.batch_execute(OWN_PATH).await;
        own.map_err(|source| client.error("setting up the session", source))?;
    }
    client.batch_execute(SESSION).await.map_err(|source| client.error("setting up the session", source))?;
    Ok(client)
}
