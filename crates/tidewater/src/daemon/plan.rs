//! Which tables are synced, and what each becomes in the lake.
//!
//! A plan is made from the configuration and the source's catalog alone, before anything is touched:
//! every mistake that can be seen beforehand is found here.

use super::SyncError;
use super::sync_state::Folders;
use crate::config::{self, Mode, ToLake};
use delta_writer::{HISTORY_COLUMNS, TableKind};
use globset::{Glob, GlobSet, GlobSetBuilder};
use postgres_connector::{
    AnnouncedColumns, CopyColumn, Generated, PublishedTable, ReplicaIdentity, SourceColumn, SourceTable,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use wal_decoder::{ArrayForm, BuilderOptions, ColumnSpec, TableSchema, TypeCatalog, TypeOptions};

const HISTORY_SUFFIX: &str = "_history";

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

    /// Columns that the lake adds to its own.
    pub fn added_columns(&self) -> &'static [&'static str] {
        added_columns(self.mode)
    }

    /// Where its tables in the lake are.
    pub fn folders(&self) -> Folders {
        let within = |[_, schema, name]: &[String; 3]| [schema.clone(), name.clone()];
        match self.mode {
            Mode::History => Folders { mirror: None, history: Some(within(&self.folder)) },
            Mode::Mirror | Mode::Both => Folders {
                mirror: Some(within(&self.folder)),
                history: self.history_folder.as_ref().map(within),
            },
        }
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

/// Plans every table that the entries of one database name. A table in `folders` keeps the one it has.
pub fn plan_tables(
    database: &str,
    entries: &[ToLake],
    found: Vec<SourceTable>,
    types: Arc<TypeCatalog>,
    folders: &BTreeMap<u32, Folders>,
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
    choose_folders(database, &mut planned, folders);
    Ok(planned)
}

/// A renamed table stays where it is; one that takes the old name goes beside it.
fn choose_folders(database: &str, planned: &mut [PlannedTable], kept: &BTreeMap<u32, Folders>) {
    let kept_by = |table: &PlannedTable| kept.get(&table.relation).cloned().unwrap_or_default();
    let taken: Vec<[String; 2]> = planned
        .iter()
        .map(kept_by)
        .flat_map(|folders| folders.mirror.into_iter().chain(folders.history))
        .collect();
    let mut names = Vec::new();
    for table in &*planned {
        let (Folders { mirror, history }, SourceTable { schema, name, .. }) = (kept_by(table), &table.source);
        if table.mode != Mode::History && mirror.is_none() {
            names.push((schema.clone(), name.clone()));
        }
        if table.mode != Mode::Mirror && history.is_none() {
            names.push((schema.clone(), history_name(name)));
        }
    }
    let names: Vec<_> = names.iter().map(|(schema, name)| (schema.as_str(), name.as_str())).collect();
    let mut chosen = wal_decoder::table_folders(&names, &taken).into_iter();
    for table in planned {
        let Folders { mirror, history } = kept_by(table);
        let mut place = |kept: Option<[String; 2]>| {
            let [schema, name] = kept.or_else(|| chosen.next()).unwrap_or_default();
            [wal_decoder::folder_name(database), schema, name]
        };
        let mirror = (table.mode != Mode::History).then(|| place(mirror));
        let history = (table.mode != Mode::Mirror).then(|| place(history));
        (table.folder, table.history_folder) = match mirror {
            Some(mirror) => (mirror, history),
            None => (history.unwrap_or_default(), None),
        };
    }
}

/// The history of a table stands beside it.
pub fn history_name(table: &str) -> String {
    format!("{table}{HISTORY_SUFFIX}")
}

/// The table that a history of this name is of.
pub fn table_of_history(history: &str) -> &str {
    history.strip_suffix(HISTORY_SUFFIX).unwrap_or(history)
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

/// The plan of a table with the columns that the source's event trigger announced; `None` where they do not say enough:
/// which rows of the partitions have a frozen default, or which columns the key has now.
pub fn plan_announced(
    entries: &[ToLake],
    before: &PlannedTable,
    announced: AnnouncedColumns,
    types: Arc<TypeCatalog>,
) -> Option<PlannedTable> {
    let known = |attnum: i16| before.source.columns.iter().find(|column| column.attnum == attnum);
    let mut source = before.source.clone();
    let is_partitioned = source.kind == postgres_connector::TableKind::Partitioned;
    if is_partitioned && announced.columns.iter().any(|column| known(column.attnum).is_none()) {
        return None;
    }
    source.columns = announced
        .columns
        .into_iter()
        .map(|column| SourceColumn {
            // A stored one is published if it was; the file of a table that gets one is another.
            published: match column.generated.as_str() {
                "" => true,
                "v" => false,
                _ => known(column.attnum).is_some_and(|known| known.published),
            },
            generated: match column.generated.as_str() {
                "" => Generated::None,
                "v" => Generated::Virtual,
                _ => Generated::Stored,
            },
            not_null: known(column.attnum).is_some_and(|known| known.not_null),
            name: column.name,
            attnum: column.attnum,
            type_oid: column.type_oid,
            typmod: column.typmod,
            missing_value: column.missing_value,
        })
        .collect();
    source.storage.attributes = announced.attributes;
    if !is_partitioned {
        source.storage.files = BTreeMap::from([(before.relation, announced.file.to_string())]);
    }
    let entry = entries.iter().find(|entry| entry.matches(&source.schema, &source.name))?;
    let planned = plan_table(entry, source, &types).ok()?;
    let (folder, history_folder) = (before.folder.clone(), before.history_folder.clone());
    Some(PlannedTable { folder, history_folder, ..planned })
}

fn added_columns(mode: Mode) -> &'static [&'static str] {
    if mode == Mode::Mirror { &[] } else { &HISTORY_COLUMNS }
}

/// The columns that the source sends and the configuration does not exclude, under their lake names.
fn lake_columns(table: &SourceTable, mode: Mode, builder: &BuilderOptions) -> Vec<ColumnSpec> {
    let kept: Vec<&SourceColumn> =
        table.published_columns().filter(|column| !builder.excluded_columns.contains(&column.name)).collect();
    // A history adds columns of its own, which a column of the source makes way for.
    let added = added_columns(mode);
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
