//! Which tables are synced, and what each becomes in the lake.
//!
//! A plan is made from the configuration and the source's catalog alone, before anything is touched:
//! every mistake that can be seen beforehand is found here.

use super::SyncError;
use crate::config::{self, Mode, ToLake};
use delta_writer::{HISTORY_COLUMNS, TableDefinition, TableKind, history_schema};
use globset::{Glob, GlobSet, GlobSetBuilder};
use postgres_connector::{CopyColumn, PublishedTable, ReplicaIdentity, SourceColumn, SourceTable};
use std::collections::BTreeMap;
use std::sync::Arc;
use wal_decoder::{ArrayForm, BuilderOptions, ColumnSpec, TableSchema, TypeCatalog, TypeOptions};

/// One table of the source on its way to the lake.
#[derive(Debug, Clone)]
pub struct PlannedTable {
    /// `schema.table` as in the source, for people.
    pub name: String,
    /// The relation's oid: how the stream names it.
    pub relation: u32,
    /// What the catalog says of it.
    pub source: SourceTable,
    /// Its columns in the lake.
    pub schema: Arc<TableSchema>,
    /// Its folder, which is that of its history where it has no mirror: database, schema, table.
    pub folder: [String; 3],
    /// What the rows of its mirror are.
    pub kind: TableKind,
    /// What the lake holds of it.
    pub mode: Mode,
    /// The folder of the history beside its mirror, with `mode: both`.
    pub history_folder: Option<[String; 3]>,
    /// Lake names of the columns that the Delta table is partitioned by.
    pub partition_by: Vec<String>,
    /// Deletes are deletion vectors, or files are written anew.
    pub deletion_vectors: bool,
    /// How values the lake cannot hold are treated.
    pub builder: BuilderOptions,
    /// Why updates and deletes cannot follow, for tables that only take inserts.
    pub inserts_only: Option<String>,
}

impl PlannedTable {
    /// As it is to be published.
    pub fn published(&self) -> Result<PublishedTable, SyncError> {
        Ok(PublishedTable::new(&self.source, &self.builder.excluded_columns)?)
    }

    /// The names under which people see it: its own, and that of the history beside its mirror.
    pub fn shown_names(&self) -> impl Iterator<Item = String> + use<> {
        let history = (self.mode == Mode::Both).then(|| history_name(&self.name));
        std::iter::once(self.name.clone()).chain(history)
    }

    /// What it lacks in the lake can be found by comparing keys, and no history has to be told of it.
    pub fn can_be_mended(&self) -> bool {
        self.mode == Mode::Mirror && self.kind == TableKind::Mirror && !self.schema.key.is_empty()
    }

    /// What its first load reads, in the order of the lake's columns.
    pub fn copy_columns(&self) -> Vec<CopyColumn> {
        let type_oid = |attnum: i16| {
            self.source
                .columns
                .iter()
                .find(|column| column.attnum == attnum)
                .map_or(0, |column| column.type_oid)
        };
        self.schema
            .columns
            .iter()
            .map(|column| CopyColumn {
                name: column.source_name.clone(),
                type_oid: type_oid(column.attnum),
                binary: column.pg_type.copy_as_binary(),
            })
            .collect()
    }
}

/// The globs of all entries of one database: what to ask the catalog for. What one entry excludes,
/// another may include, so nothing is excluded yet.
pub fn selection(entries: &[ToLake]) -> Result<GlobSet, SyncError> {
    let mut set = GlobSetBuilder::new();
    for pattern in entries.iter().flat_map(|entry| &entry.tables) {
        set.add(Glob::new(pattern).map_err(|error| {
            SyncError::configuration(format!("`{pattern}` is no table pattern: {}", error.kind()))
        })?);
    }
    set.build().map_err(|error| SyncError::configuration(format!("table patterns: {error}")))
}

/// Plans every table that the entries of one database name.
pub fn plan_tables(
    database: &str,
    entries: &[ToLake],
    found: Vec<SourceTable>,
    types: Arc<TypeCatalog>,
) -> Result<Vec<PlannedTable>, SyncError> {
    let mut planned = Vec::new();
    for table in found {
        let mut matching = entries.iter().filter(|entry| entry.matches(&table.schema, &table.name));
        let Some(entry) = matching.next() else { continue };
        if matching.next().is_some() {
            return Err(SyncError::configuration(format!(
                "table {} of database `{database}` is matched by two entries of `to_lake`; let one of them \
                 exclude it",
                table.qualified_name()
            )));
        }
        planned.push(plan_table(entry, table, &types)?);
    }
    for named in entries.iter().flat_map(|entry| entry.overrides.keys()) {
        if !planned.iter().any(|table| table.name == *named) {
            // No error: a table may come later, or be dropped while the daemon runs.
            tracing::warn!(database, table = %named, "`overrides` names a table that is not there");
        }
    }
    // In the order in which they were made: a later one does not take an earlier one's folder.
    planned.sort_by_key(|table| table.relation);
    let names: Vec<_> = planned.iter().flat_map(lake_tables).collect();
    let names: Vec<_> = names.iter().map(|(schema, name)| (schema.as_str(), name.as_str())).collect();
    let mut folders = wal_decoder::table_folders(&names).into_iter();
    let mut next = || {
        let [schema, name] = folders.next().unwrap_or_default();
        [wal_decoder::folder_name(database), schema, name]
    };
    for table in &mut planned {
        table.folder = next();
        table.history_folder = (table.mode == Mode::Both).then(&mut next);
    }
    Ok(planned)
}

/// What the tables are called that a source table becomes, mirror first.
fn lake_tables(table: &PlannedTable) -> impl Iterator<Item = (String, String)> + use<> {
    let SourceTable { schema, name, .. } = &table.source;
    let mirror = (table.mode != Mode::History).then(|| (schema.clone(), name.clone()));
    let history = (table.mode != Mode::Mirror).then(|| (schema.clone(), history_name(name)));
    mirror.into_iter().chain(history)
}

/// The history of a table stands beside it.
pub fn history_name(table: &str) -> String {
    format!("{table}_history")
}

fn plan_table(
    entry: &ToLake,
    table: SourceTable,
    types: &Arc<TypeCatalog>,
) -> Result<PlannedTable, SyncError> {
    let name = table.qualified_name();
    let chosen = entry.table_override(&table.schema, &table.name).cloned().unwrap_or_default();
    for column in chosen.exclude_columns.iter().chain(&chosen.partition_by) {
        if !table.columns.iter().any(|known| known.name == *column) {
            return Err(SyncError::configuration(format!(
                "`overrides` of table {name} names column `{column}`, which it does not have"
            )));
        }
    }
    let mut builder = BuilderOptions {
        unrepresentable: match entry.unrepresentable {
            config::Unrepresentable::Null => wal_decoder::Unrepresentable::Null,
            config::Unrepresentable::Fail => wal_decoder::Unrepresentable::Fail,
        },
        excluded_columns: chosen.exclude_columns.clone(),
        catalog: types.clone(),
        type_options: TypeOptions {
            arrays: match entry.arrays {
                config::Arrays::Native => ArrayForm::Native,
                config::Arrays::Json => ArrayForm::Json,
            },
        },
        key_is_whole_row: false,
    };
    let columns = lake_columns(&table, entry.mode, &builder);
    let mut kind = TableKind::Mirror;
    let (identity, inserts_only) = match &table.identity {
        ReplicaIdentity::Key(attnums) => (attnums.clone(), None),
        // The whole old row is sent: the primary key still names it where there is one.
        ReplicaIdentity::Full if !table.primary_key.is_empty() => (table.primary_key.clone(), None),
        ReplicaIdentity::Full if columns.is_empty() => (Vec::new(), Some("it has no columns".to_owned())),
        ReplicaIdentity::Full => {
            kind = TableKind::Multiset;
            builder.key_is_whole_row = true;
            (columns.iter().map(|column| column.attnum).collect(), None)
        }
        ReplicaIdentity::None(reason) => (Vec::new(), Some(reason.to_string())),
    };
    let mut key = Vec::with_capacity(identity.len());
    for attnum in &identity {
        let Some(at) = columns.iter().position(|column| column.attnum == *attnum) else {
            let column = table.columns.iter().find(|column| column.attnum == *attnum);
            let column = column.map_or("?", |column| column.name.as_str());
            return Err(SyncError::configuration(format!(
                "column `{column}` of table {name} belongs to its key, so it cannot be in `exclude_columns`"
            )));
        };
        key.push(at);
    }
    let partition_by = chosen
        .partition_by
        .iter()
        .map(|wanted| {
            let column = columns.iter().find(|column| column.source_name == *wanted);
            column.map(|column| column.lake_name.clone()).ok_or_else(|| {
                SyncError::configuration(format!(
                    "column `{wanted}` of table {name} is in `partition_by` but not in the lake"
                ))
            })
        })
        .collect::<Result<Vec<_>, SyncError>>()?;

    Ok(PlannedTable {
        relation: table.oid,
        folder: Default::default(),
        history_folder: None,
        mode: entry.mode,
        schema: Arc::new(TableSchema { source: (table.schema.clone(), table.name.clone()), columns, key }),
        kind,
        partition_by,
        deletion_vectors: entry.deletion_vectors,
        builder,
        inserts_only,
        source: table,
        name,
    })
}

/// The columns that the source sends and the configuration does not exclude, under their lake names.
fn lake_columns(table: &SourceTable, mode: Mode, builder: &BuilderOptions) -> Vec<ColumnSpec> {
    let kept: Vec<&SourceColumn> =
        table.published_columns().filter(|column| !builder.excluded_columns.contains(&column.name)).collect();
    // A history adds columns of its own, which a column of the source makes way for.
    let added: &[&str] = if mode == Mode::Mirror { &[] } else { &HISTORY_COLUMNS };
    let names = added.iter().map(|name| (*name).to_owned());
    let names: Vec<String> = names.chain(kept.iter().map(|column| column.name.clone())).collect();
    kept.iter()
        .zip(wal_decoder::lake_column_names(&names).into_iter().skip(added.len()))
        .map(|(column, lake_name)| ColumnSpec {
            source_name: column.name.clone(),
            lake_name,
            attnum: column.attnum,
            pg_type: builder.catalog.resolve(column.type_oid, column.typmod, &builder.type_options),
        })
        .collect()
}

impl PlannedTable {
    /// The shape of its own table in the lake: its mirror, or its history where it has no mirror.
    pub fn definition(&self, table_id: &str) -> TableDefinition {
        match self.mode {
            Mode::History => self.history_definition(table_id),
            Mode::Mirror | Mode::Both => TableDefinition {
                schema: self.schema.arrow_schema(),
                kind: self.kind,
                key: self.schema.key.clone(),
                partition_by: self.partition_by.clone(),
                configuration: origin_properties(&self.name, table_id),
                deletion_vectors: self.deletion_vectors,
            },
        }
    }

    /// The shape of its history. Its rows never change, so it needs no deletion vectors; whoever reads it follows time,
    /// so it is not parted by the source's columns.
    pub fn history_definition(&self, table_id: &str) -> TableDefinition {
        TableDefinition {
            schema: history_schema(&self.schema.arrow_schema()),
            kind: TableKind::History,
            // Whole old rows come with the changes: no row has to be found by a key.
            key: if self.kind == TableKind::Multiset { Vec::new() } else { self.schema.key.clone() },
            partition_by: Vec::new(),
            configuration: origin_properties(&history_name(&self.name), table_id),
            deletion_vectors: false,
        }
    }
}

/// What `tidewater.*` table properties say of a table's origin.
fn origin_properties(name: &str, table_id: &str) -> BTreeMap<String, String> {
    BTreeMap::from([
        ("tidewater.source_name".to_owned(), name.to_owned()),
        ("tidewater.table_id".to_owned(), table_id.to_owned()),
    ])
}
