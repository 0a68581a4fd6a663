//! A lake opened for queries.
//!
//! ```text
//! text --LakeDialect--> statement --time_travel::collect--> references
//!   each reference: folders::find -> SnapshotCache (newest now, or pinned) -> source_names::provider
//! statement with the full names --DataFusion--> stream of record batches
//! ```
//!
//! The invariant: within one query a table's newest state is one version, fixed at the query's start, and
//! every row comes from the version its reference asked for. DataFusion gets to see only the tables that
//! this query resolved, in a catalog of its own.

use crate::changes;
use crate::commit_log::CommitLog;
use crate::consistent_points;
use crate::dialect::LakeDialect;
use crate::error::LakeSqlError;
use crate::folders::{self, TableFolder, Wanted};
use crate::snapshot_cache::SnapshotCache;
use crate::source_names;
use crate::store::LakeStore;
use crate::table_name::{TableName, quoted};
use crate::time_travel::{self, Reference, Version};
use crate::timestamp::{self, Moment};
use arrow::datatypes::SchemaRef;
use datafusion::catalog::{
    CatalogProvider, CatalogProviderList, MemoryCatalogProvider, MemoryCatalogProviderList,
    MemorySchemaProvider, SchemaProvider, TableProvider,
};
use datafusion::execution::context::SQLOptions;
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::physical_plan::SendableRecordBatchStream;
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion::sql::parser::Statement as PlannedStatement;
use deltalake::DeltaTable;
use futures::{StreamExt, TryStreamExt, stream};
use reverse_sync::TableSource;
use sqlparser::ast::Statement;
use sqlparser::parser::Parser;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use wal_decoder::Lsn;

/// Tables opened at a time when all are listed.
const CONCURRENT_OPENS: usize = 8;

/// Memory for the operators of all running queries: sorts and joins that need more spill to disk.
const QUERY_MEMORY: usize = 1024 * 1024 * 1024;

/// The schema that an unqualified name means first, as Postgres's default search path has it.
const DEFAULT_SCHEMA: &str = "public";

/// A lake opened for queries. Cheap to share behind an `Arc`; queries do not wait for each other.
pub struct LakeSession {
    lake: LakeStore,
    context: SessionContext,
    snapshots: SnapshotCache,
}

/// A table that discovery found.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LakeTable {
    /// Its original name.
    pub name: TableName,
    /// Its folder, as a path inside the store.
    pub location: String,
}

/// A query's rows, streamed: nothing is held but what the query's operators need.
pub struct QueryResult {
    /// The columns.
    pub schema: SchemaRef,
    /// The rows.
    pub stream: SendableRecordBatchStream,
}

impl fmt::Debug for LakeSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LakeSession").field("root", &self.lake.root).finish_non_exhaustive()
    }
}

impl fmt::Debug for QueryResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueryResult").field("schema", &self.schema).finish_non_exhaustive()
    }
}

/// A table in a state, on its way into a query's catalog.
struct Resolved {
    folder: TableFolder,
    name: TableName,
    state: State,
}

/// What of a table a reference reads.
enum State {
    Newest(DeltaTable),
    Pinned(u64, DeltaTable),
    /// What the versions from one to another did.
    Changes(u64, u64),
}

impl Resolved {
    /// Its name in the query's catalog. A folder's name holds no `@`, so versions cannot clash with databases.
    fn catalog_name(&self) -> [String; 3] {
        let database = self.name.database.as_deref().unwrap_or("lake");
        let catalog = match self.state {
            State::Newest(_) => database.to_owned(),
            State::Pinned(version, _) => format!("{database}@v{version}"),
            State::Changes(from, to) => format!("{database}@c{from}-{to}"),
        };
        [catalog, self.name.schema.clone(), self.name.table.clone()]
    }
}

impl LakeSession {
    /// Opens the lake at a local path or `s3://bucket/prefix`; `options` are the contract's `lake.options`.
    ///
    /// A local folder must exist; a bucket is first spoken to by the first query.
    pub async fn open(uri: &str, options: &BTreeMap<String, String>) -> Result<LakeSession, LakeSqlError> {
        let lake = LakeStore::open(uri, options)?;
        let mut config = SessionConfig::new().with_create_default_catalog_and_schema(false);
        let settings = config.options_mut();
        // Views would show in the Arrow output, where older readers fail on them.
        settings.execution.parquet.schema_force_view_types = false;
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_pool(Arc::new(FairSpillPool::new(QUERY_MEMORY)))
            .build_arc()?;
        Ok(LakeSession {
            lake,
            context: SessionContext::new_with_config_rt(config, runtime),
            snapshots: SnapshotCache::default(),
        })
    }

    /// Plans one statement and starts it.
    pub async fn sql(&self, query: &str) -> Result<QueryResult, LakeSqlError> {
        let mut statement = parse_one(query)?;
        let kind = Kind::of(&statement)?;
        if kind == Kind::ShowTables {
            return self.show_tables().await;
        }
        let references = time_travel::collect(&mut statement)?;
        let resolved = self.resolve_all(&references).await?;
        let names: Vec<_> = resolved.iter().map(Resolved::catalog_name).collect();
        time_travel::rename(&mut statement, &names)?;
        let context = self.query_context(resolved).await?;
        let plan =
            context.state().statement_to_plan(PlannedStatement::Statement(Box::new(statement))).await?;
        // The syntax tree was checked; the plan is checked again, so that nothing that writes slips by.
        SQLOptions::new()
            .with_allow_ddl(false)
            .with_allow_dml(false)
            .with_allow_statements(false)
            .verify_plan(&plan)?;
        let stream = context.execute_logical_plan(plan).await?.execute_stream().await?;
        Ok(QueryResult { schema: stream.schema(), stream })
    }

    /// Every table of the lake, by name. Lists the whole lake and opens each table's log: not for every query.
    pub async fn tables(&self) -> Result<Vec<LakeTable>, LakeSqlError> {
        let found = folders::find(&self.lake, Wanted::default()).await?;
        let mut tables: Vec<LakeTable> = stream::iter(found)
            .map(|folder| async move {
                let table = self.snapshots.newest(&self.lake, &folder.location).await?;
                let name = source_names::table_name(&folder, &table)?;
                Ok::<_, LakeSqlError>(LakeTable { name, location: folder.location.to_string() })
            })
            .buffer_unordered(CONCURRENT_OPENS)
            .try_collect()
            .await?;
        tables.sort();
        Ok(tables)
    }

    async fn show_tables(&self) -> Result<QueryResult, LakeSqlError> {
        let rows = crate::show_tables::rows(self.tables().await?)?;
        let stream = self.context.read_batch(rows)?.execute_stream().await?;
        Ok(QueryResult { schema: stream.schema(), stream })
    }

    /// Resolves references in order; a table that occurs twice is looked up and brought up to date once.
    async fn resolve_all(&self, references: &[Reference]) -> Result<Vec<Resolved>, LakeSqlError> {
        let mut newest: HashMap<&[String], (TableFolder, TableName, DeltaTable)> = HashMap::new();
        let mut resolved = Vec::with_capacity(references.len());
        for reference in references {
            if !newest.contains_key(reference.name.as_slice()) {
                let found = self.look_up(&reference.name).await;
                newest
                    .insert(&reference.name, found.map_err(|error| error.of_history(reference.is_history))?);
            }
            let Some((folder, name, table)) = newest.get(reference.name.as_slice()) else { continue };
            let (folder, name) = (folder.clone(), name.clone());
            let version = match &reference.version {
                Version::Newest => None,
                Version::Number(version) => Some(*version),
                Version::AtTime(moment) => {
                    let moment = timestamp::evaluate(&self.context, moment).await?;
                    Some(self.version_at(&folder, &name, moment).await?)
                }
                Version::AtLsn(lsn) => Some(self.version_at_lsn(&name, *lsn).await?),
                Version::Changes { from, to } => {
                    self.check_range(&folder, &name, *from, *to).await?;
                    resolved.push(Resolved { folder, name, state: State::Changes(*from, *to) });
                    continue;
                }
            };
            let state = match version {
                None => State::Newest(table.clone()),
                Some(version) => State::Pinned(version, self.pinned(&folder, &name, version).await?),
            };
            resolved.push(Resolved { folder, name, state });
        }
        Ok(resolved)
    }

    /// The one table that a name means, at its newest version.
    async fn look_up(&self, parts: &[String]) -> Result<(TableFolder, TableName, DeltaTable), LakeSqlError> {
        let written = || parts.iter().map(|part| quoted(part)).collect::<Vec<_>>().join(".");
        let wanted = match parts {
            [first, ..] if first == "live" && parts.len() > 2 => {
                return Err(LakeSqlError::NotAvailableYet {
                    what: format!("live rows ({})", written()),
                    instead: "leave `live.` away to read the lake's newest rows",
                });
            }
            [table] => Wanted { table: Some(table), ..Wanted::default() },
            [schema, table] => Wanted { schema: Some(schema), table: Some(table), ..Wanted::default() },
            [database, schema, table] => {
                Wanted { database: Some(database), schema: Some(schema), table: Some(table) }
            }
            _ => return Err(LakeSqlError::NoSuchTable { name: written() }),
        };
        let mut candidates = Vec::new();
        for folder in folders::find(&self.lake, wanted).await? {
            let table = self.snapshots.newest(&self.lake, &folder.location).await?;
            let name = source_names::table_name(&folder, &table)?;
            if source_names::answers_to(&name, parts) {
                candidates.push((folder, name, table));
            }
        }
        if candidates.is_empty() {
            candidates = self.renamed(wanted.database, parts).await?;
        }
        if parts.len() == 1 && candidates.iter().any(|(_, name, _)| name.schema == DEFAULT_SCHEMA) {
            candidates.retain(|(_, name, _)| name.schema == DEFAULT_SCHEMA);
        }
        match (candidates.pop(), candidates.is_empty()) {
            (Some(only), true) => Ok(only),
            (Some(last), false) => {
                candidates.push(last);
                let candidates = candidates.into_iter().map(|(_, name, _)| name).collect();
                Err(LakeSqlError::AmbiguousTable { name: written(), candidates })
            }
            (None, _) => Err(LakeSqlError::NoSuchTable { name: written() }),
        }
    }

    /// Tables of this name in folders of another one: a table that is renamed at its source stays where it is.
    async fn renamed(
        &self,
        database: Option<&str>,
        parts: &[String],
    ) -> Result<Vec<(TableFolder, TableName, DeltaTable)>, LakeSqlError> {
        let mut candidates = Vec::new();
        for folder in folders::find(&self.lake, Wanted { database, ..Wanted::default() }).await? {
            // A table that cannot be opened is not the one that is asked for, as far as anyone can tell.
            let Ok(table) = self.snapshots.newest(&self.lake, &folder.location).await else { continue };
            let name = source_names::table_name(&folder, &table)?;
            if source_names::answers_to(&name, parts) {
                candidates.push((folder, name, table));
            }
        }
        Ok(candidates)
    }

    async fn version_at(
        &self,
        folder: &TableFolder,
        name: &TableName,
        moment: Moment,
    ) -> Result<u64, LakeSqlError> {
        let log = CommitLog::list(&self.lake, &folder.location).await?;
        let Some(log) = log else { return Err(LakeSqlError::NoSuchTable { name: name.to_string() }) };
        log.at(&self.lake, name, moment.micros()).await?.map_err(|(earliest, millis)| {
            LakeSqlError::BeforeFirstVersion {
                table: name.clone(),
                asked: moment.to_string(),
                earliest,
                earliest_time: Moment::from_millis(millis).to_string(),
            }
        })
    }

    /// The version that the newest consistent point at or below a position gives the table.
    async fn version_at_lsn(&self, name: &TableName, lsn: Lsn) -> Result<u64, LakeSqlError> {
        let unknown = |reason| LakeSqlError::NoConsistentPoint { table: name.clone(), lsn, reason };
        let Some(database) = &name.database else {
            return Err(unknown("it belongs to no database, and positions are a database's"));
        };
        let location = consistent_points::location(&self.lake.root, database);
        if CommitLog::list(&self.lake, &location).await?.is_none() {
            return Err(unknown("nothing was recorded for its database yet"));
        }
        let points = self.snapshots.newest(&self.lake, &location).await?;
        let rows = points.table_provider().with_session(Arc::new(self.context.state())).await?;
        let frame = self.context.read_table(rows)?;
        consistent_points::version_at(frame, &format!("{}.{}", name.schema, name.table), lsn)
            .await?
            .map_err(unknown)
    }

    /// Columns of one table of the lake at a version, by their lake names and in the order asked for; `folder` is its
    /// path below the lake. For comparing a table with its source.
    pub async fn rows_at(
        &self,
        folder: &[String],
        version: u64,
        columns: &[&str],
    ) -> Result<SendableRecordBatchStream, LakeSqlError> {
        let location = folder.iter().fold(self.lake.root.clone(), |path, part| path.join(part.as_str()));
        let table = self.snapshots.at_version(&self.lake, &location, version).await?;
        let rows = table.table_provider().with_session(Arc::new(self.context.state())).await?;
        Ok(self.context.read_table(rows)?.select_columns(columns)?.execute_stream().await?)
    }

    /// The folders below the lake of the one table that a name means: `schema.table` or `database.schema.table`.
    pub async fn locate(&self, name: &str) -> Result<Vec<String>, LakeSqlError> {
        let parts: Vec<String> = name.split('.').map(str::to_owned).collect();
        let (folder, _, _) = self.look_up(&parts).await?;
        let below = folder.location.prefix_match(&self.lake.root).into_iter().flatten();
        Ok(below.map(|part| part.as_ref().to_owned()).collect())
    }

    /// That every version of a range is there, and so is the one before it, from whose rows it starts.
    async fn check_range(
        &self,
        folder: &TableFolder,
        name: &TableName,
        from: u64,
        to: u64,
    ) -> Result<(), LakeSqlError> {
        let table = || name.clone();
        match CommitLog::list(&self.lake, &folder.location).await? {
            None => Err(LakeSqlError::NoSuchTable { name: name.to_string() }),
            Some(CommitLog { earliest, latest, .. }) if to > latest => {
                Err(LakeSqlError::NoSuchVersion { table: table(), version: to, earliest, latest })
            }
            Some(CommitLog { earliest, .. }) if earliest > 0 && from <= earliest => {
                Err(LakeSqlError::VersionExpired { table: table(), version: from, earliest: earliest + 1 })
            }
            Some(_) => Ok(()),
        }
    }

    /// A version that has to be there; what the Delta reader says when it is not names no range, so the log is asked.
    async fn pinned(
        &self,
        folder: &TableFolder,
        name: &TableName,
        version: u64,
    ) -> Result<DeltaTable, LakeSqlError> {
        let failed = match self.snapshots.at_version(&self.lake, &folder.location, version).await {
            Ok(table) => return Ok(table),
            Err(failed) => failed,
        };
        match CommitLog::list(&self.lake, &folder.location).await? {
            Some(CommitLog { earliest, .. }) if version < earliest => {
                Err(LakeSqlError::VersionExpired { table: name.clone(), version, earliest })
            }
            Some(CommitLog { earliest, latest, .. }) if !(earliest..=latest).contains(&version) => {
                Err(LakeSqlError::NoSuchVersion { table: name.clone(), version, earliest, latest })
            }
            _ => Err(failed),
        }
    }

    /// A context whose catalog holds this query's tables and nothing else.
    async fn query_context(&self, resolved: Vec<Resolved>) -> Result<SessionContext, LakeSqlError> {
        let mut tables: HashMap<[String; 3], Arc<dyn TableProvider>> = HashMap::new();
        for table in resolved {
            let name = table.catalog_name();
            if let Entry::Vacant(free) = tables.entry(name) {
                free.insert(match table.state {
                    State::Newest(state) | State::Pinned(_, state) => {
                        source_names::provider(&self.context, &table.folder, &state).await?
                    }
                    State::Changes(from, to) => {
                        let source = TableSource::in_store(&self.lake, &table.folder.location);
                        changes::provider(source, from, to).await?
                    }
                });
            }
        }
        let catalogs = MemoryCatalogProviderList::new();
        for ([database, schema, table], rows) in tables {
            let catalog = match catalogs.catalog(&database) {
                Some(catalog) => catalog,
                None => {
                    let catalog: Arc<dyn CatalogProvider> = Arc::new(MemoryCatalogProvider::new());
                    catalogs.register_catalog(database, Arc::clone(&catalog));
                    catalog
                }
            };
            let tables = match catalog.schema(&schema) {
                Some(tables) => tables,
                None => {
                    let tables: Arc<dyn SchemaProvider> = Arc::new(MemorySchemaProvider::new());
                    catalog.register_schema(&schema, Arc::clone(&tables))?;
                    tables
                }
            };
            tables.register_table(table, rows)?;
        }
        let state = SessionStateBuilder::new_from_existing(self.context.state())
            .with_catalog_list(Arc::new(catalogs))
            .build();
        Ok(SessionContext::new_with_state(state))
    }
}

#[derive(Debug, PartialEq)]
enum Kind {
    Query,
    ShowTables,
}

impl Kind {
    fn of(statement: &Statement) -> Result<Kind, LakeSqlError> {
        match statement {
            Statement::Query(_) => Ok(Kind::Query),
            Statement::Explain { statement: explained, .. } => match Kind::of(explained)? {
                Kind::Query => Ok(Kind::Query),
                Kind::ShowTables => Err(time_travel::read_only(&statement.to_string())),
            },
            // Filters of SHOW TABLES are not there yet, and must not be dropped either.
            Statement::ShowTables { .. } if statement.to_string() == "SHOW TABLES" => Ok(Kind::ShowTables),
            other => Err(time_travel::read_only(&other.to_string())),
        }
    }
}

fn parse_one(query: &str) -> Result<Statement, LakeSqlError> {
    let mut statements = Parser::parse_sql(&LakeDialect::default(), query).map_err(LakeSqlError::Syntax)?;
    match (statements.pop(), statements.len()) {
        (Some(only), 0) => Ok(only),
        (last, others) => Err(LakeSqlError::NotOneStatement { found: others + usize::from(last.is_some()) }),
    }
}
