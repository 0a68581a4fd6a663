//! The shape of a table's source, kept with the lake's table, and what a later look at the source means.
//!
//! Each column of the lake carries the attribute number and the type it has at the source, and the table the
//! source's [`Storage`]; so the log alone says in which shape the rows up to its `txn` are. A later look at the
//! catalog is compared with that by attribute number, which survives renames and is never given twice:
//!
//! ```text
//!   lake      id:1  name:2  note:3          catalog   id:1  title:2  price:4
//!                                                     kept  renamed  new, rows before have its frozen default
//! ```
//!
//! The comparison also finds what the stream shows nothing of (rewritten rows, partitions that came or went): that table
//! is loaded anew. **Nothing is guessed**: what two looks and the stream's own description of the columns leave
//! open is a reload, never a column's values under another name.

use super::plan::{PlannedTable, history_name, table_of_history};
use crate::config::Mode;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use delta_writer::{ColumnOrigin, HISTORY_COLUMNS, Reshape, TableDefinition, history_schema};
use postgres_connector::{Generated, SourceColumn, Storage, TableKind};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use wal_decoder::{ColumnSpec, PgType, Relation, TableSchema, Unrepresentable};

const SOURCE_NAME: &str = "tidewater.source_name";
/// Table property: the schema within that name, either of whose halves may hold dots.
const SOURCE_SCHEMA: &str = "tidewater.source_schema";
/// Table property: the id that the table keeps through renames.
pub const TABLE_ID: &str = "tidewater.table_id";
/// Table property: the relation's oid at the source.
const SOURCE_OID: &str = "tidewater.source_oid";
/// Table property: the source's storage, as JSON.
const SOURCE_STORAGE: &str = "tidewater.source_storage";
/// Column property: the attribute number at the source.
const ATTNUM: &str = "tidewater.attnum";
/// Column property: type oid and type modifier at the source, `1043,14`.
const TYPE: &str = "tidewater.type";

/// What becomes of a table whose source was looked at again.
#[derive(Debug)]
pub enum Change {
    /// Nothing.
    None,
    /// It takes the new shape, in place; for each new column, where its values come from.
    Follow(Vec<ColumnOrigin>),
    /// Columns came and went, and two looks do not say which rows in between had which. The stream may.
    Unclear(String),
    /// It has to be loaded anew, because of this.
    Reload(String),
}

/// The shape of a table's own table in the lake: its mirror, or its history where it has no mirror.
pub fn definition(planned: &PlannedTable, table_id: &str) -> TableDefinition {
    match planned.mode {
        Mode::History => history_definition(planned, table_id),
        Mode::Mirror | Mode::Both => TableDefinition {
            schema: described_columns(planned),
            kind: planned.kind,
            key: planned.schema.key.clone(),
            partition_by: planned.partition_by.clone(),
            configuration: origin_properties(planned, &planned.name, table_id),
            deletion_vectors: planned.deletion_vectors,
        },
    }
}

/// The shape of a table's history. Its rows never change, so it needs no deletion vectors; whoever reads it follows time,
/// so it is not parted by the source's columns.
pub fn history_definition(planned: &PlannedTable, table_id: &str) -> TableDefinition {
    TableDefinition {
        schema: history_schema(&described_columns(planned)),
        kind: delta_writer::TableKind::History,
        // Whole old rows come with the changes: no row has to be found by a key.
        key: match planned.kind {
            delta_writer::TableKind::Multiset => Vec::new(),
            _ => planned.schema.key.clone(),
        },
        partition_by: Vec::new(),
        configuration: origin_properties(planned, &history_name(&planned.name), table_id),
        deletion_vectors: false,
    }
}

/// The source's columns, each with its attribute number and type there.
fn described_columns(planned: &PlannedTable) -> SchemaRef {
    let fields = planned.schema.arrow_schema();
    let fields = fields.fields().iter().zip(&planned.schema.columns).map(|(field, column)| {
        let mut metadata = field.metadata().clone();
        metadata.insert(ATTNUM.to_owned(), column.attnum.to_string());
        if let Some(source) = source_column(planned, column) {
            metadata.insert(TYPE.to_owned(), format!("{},{}", source.type_oid, source.typmod));
        }
        field.as_ref().clone().with_metadata(metadata)
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// What `tidewater.*` table properties say of a table's origin.
fn origin_properties(planned: &PlannedTable, name: &str, table_id: &str) -> BTreeMap<String, String> {
    let mut configuration = BTreeMap::from([
        (SOURCE_NAME.to_owned(), name.to_owned()),
        (SOURCE_SCHEMA.to_owned(), planned.schema.source.0.clone()),
        (TABLE_ID.to_owned(), table_id.to_owned()),
        (SOURCE_OID.to_owned(), planned.relation.to_string()),
    ]);
    // A map of numbers and texts can always be written.
    if let Ok(storage) = serde_json::to_string(&planned.source.storage) {
        configuration.insert(SOURCE_STORAGE.to_owned(), storage);
    }
    configuration
}

/// Whether files of the one shape are files of the other.
pub fn have_same_columns(table: &TableDefinition, wanted: &TableDefinition) -> bool {
    let columns = |definition: &TableDefinition| -> Vec<_> {
        let fields = definition.schema.fields().iter();
        fields.map(|field| (field.name().clone(), field.data_type().clone())).collect()
    };
    columns(table) == columns(wanted)
        && table.kind == wanted.kind
        && table.key == wanted.key
        && table.partition_by == wanted.partition_by
        && table.deletion_vectors == wanted.deletion_vectors
}

/// Where the columns of a history come from that goes on in a new shape; `None` if some of its values would be lost, or
/// it cannot be told which they are.
pub fn carried(history: &TableDefinition, wanted: &TableDefinition) -> Option<Vec<ColumnOrigin>> {
    if have_same_columns(history, wanted) {
        return Some(Reshape::with_same_columns(wanted.clone()).origins);
    }
    let of_source = |definition: &TableDefinition| definition.configuration.get(SOURCE_OID).cloned();
    if of_source(history)? != of_source(wanted)? {
        return None;
    }
    // A column of the source is known by its number, one of the history's own by its name.
    let identity = |field: &Field| field.metadata().get(ATTNUM).cloned().ok_or_else(|| field.name().clone());
    let fields = history.schema.fields();
    let origin = |field: &Arc<Field>| match fields.iter().position(|old| identity(old) == identity(field)) {
        None => Some(ColumnOrigin::Null),
        Some(at) => {
            let old = fields.get(at)?;
            is_wider(old.data_type(), field.data_type()).then_some(ColumnOrigin::Kept(at))
        }
    };
    wanted.schema.fields().iter().map(origin).collect()
}

/// Whether every value of the one type is the same in the other, as Postgres makes it of it.
fn is_wider(old: &DataType, new: &DataType) -> bool {
    use DataType::{Decimal128, Int16, Int32, Int64, Utf8};
    match (old, new) {
        (old, new) if old == new => true,
        (Int16, Int32 | Int64) | (Int32, Int64) | (Int16 | Int32 | Int64, Utf8) => true,
        (Decimal128(precision, scale), Decimal128(wider, finer)) => {
            let whole = |precision: u8, scale: i8| i16::from(precision) - i16::from(scale);
            finer >= scale && whole(*wider, *finer) >= whole(*precision, *scale)
        }
        _ => false,
    }
}

/// The reshape of a history whose source's columns, `known` so far, get these origins.
pub fn history_reshape(definition: TableDefinition, origins: &[ColumnOrigin], known: usize) -> Reshape {
    let own = (known..known + HISTORY_COLUMNS.len()).map(ColumnOrigin::Kept);
    Reshape { definition, origins: origins.iter().cloned().chain(own).collect() }
}

/// The plan of a table as it was when the lake's table got its present shape; `None` where the lake's table is
/// another relation's, or does not say enough.
pub fn as_in_lake(planned: &PlannedTable, lake: &TableDefinition) -> Option<PlannedTable> {
    let property = |name: &str| lake.configuration.get(name);
    let is_history = lake.kind == delta_writer::TableKind::History;
    let is_wanted = if is_history { planned.mode != Mode::Mirror } else { planned.mode != Mode::History };
    if property(SOURCE_OID)?.parse() != Ok(planned.relation) || !is_wanted {
        return None;
    }
    let schema_name = property(SOURCE_SCHEMA)?;
    let storage: Storage = serde_json::from_str(property(SOURCE_STORAGE)?).ok()?;
    let mut columns = Vec::new();
    let mut source_columns = Vec::new();
    let added = if is_history { HISTORY_COLUMNS.len() } else { 0 };
    for field in lake.schema.fields().iter().take(lake.schema.fields().len().saturating_sub(added)) {
        let attnum: i16 = field.metadata().get(ATTNUM)?.parse().ok()?;
        let (type_oid, typmod) = field.metadata().get(TYPE)?.split_once(',')?;
        let (type_oid, typmod) = (type_oid.parse().ok()?, typmod.parse().ok()?);
        let pg_type = planned.builder.catalog.resolve(type_oid, typmod, &planned.builder.type_options);
        // A type that is gone at the source is not known any more.
        if pg_type.arrow_type() != *field.data_type() {
            return None;
        }
        let source_name = field.metadata().get(SOURCE_NAME)?.clone();
        source_columns.push(SourceColumn {
            name: source_name.clone(),
            attnum,
            type_oid,
            typmod,
            not_null: false,
            generated: Generated::None,
            published: true,
            missing_value: None,
        });
        columns.push(ColumnSpec { source_name, lake_name: field.name().clone(), attnum, pg_type });
    }
    let mut known = planned.clone();
    let mut key = lake.key.clone();
    known.name = property(SOURCE_NAME)?.clone();
    if is_history {
        known.name = table_of_history(&known.name).to_owned();
        if planned.builder.key_is_whole_row && key.is_empty() {
            // Its whole old rows come with the changes: it has no key of its own.
            key = (0..columns.len()).collect();
        }
    } else {
        known.kind = lake.kind;
        known.partition_by = lake.partition_by.clone();
        known.deletion_vectors = lake.deletion_vectors;
    }
    let name_within = known.name.get(known.name.len().min(schema_name.len() + 1)..).unwrap_or_default();
    let source = (schema_name.clone(), name_within.to_owned());
    known.schema = Arc::new(TableSchema { source, columns, key });
    known.source.columns = source_columns;
    known.source.storage = storage;
    Some(known)
}

/// Whether the lake's table is this relation's, as far as it says.
pub fn is_of(lake: &TableDefinition, relation: u32) -> bool {
    lake.configuration.get(SOURCE_OID).is_some_and(|oid| oid.parse() == Ok(relation))
}

/// Lets choices that the lake's table has made stand: the names of columns that are called as before, and deletion
/// vectors, which are never switched off again.
pub fn keep_choices(planned: &mut PlannedTable, before: &PlannedTable) {
    planned.deletion_vectors |= before.deletion_vectors;
    let by_attnum: HashMap<i16, &ColumnSpec> =
        before.schema.columns.iter().map(|column| (column.attnum, column)).collect();
    let added = planned.added_columns();
    let schema = Arc::make_mut(&mut planned.schema);
    let added_names = || added.iter().map(|name| (*name).to_owned());
    let own_names = schema.columns.iter().map(|column| column.source_name.clone());
    let names: Vec<String> = added_names().chain(own_names).collect();
    let own_kept = schema.columns.iter().map(|column| {
        let known = by_attnum.get(&column.attnum)?;
        let stays = known.source_name == column.source_name
            && !added.iter().any(|name| name.eq_ignore_ascii_case(&known.lake_name));
        stays.then(|| known.lake_name.clone())
    });
    let kept: Vec<Option<String>> = added_names().map(Some).chain(own_kept).collect();
    let fresh: Vec<String> = schema.columns.iter().map(|column| column.lake_name.clone()).collect();
    let chosen = wal_decoder::lake_column_names_beside(&names, &kept);
    let chosen: Vec<String> = chosen.into_iter().skip(added.len()).collect();
    for (column, name) in schema.columns.iter_mut().zip(&chosen) {
        column.lake_name.clone_from(name);
    }
    for partition in &mut planned.partition_by {
        let at = fresh.iter().position(|name| name == partition);
        if let Some(name) = at.and_then(|at| chosen.get(at)) {
            partition.clone_from(name);
        }
    }
}

/// Whether the stream describes the table as this look at the catalog found it.
pub fn is_described(relation: &Relation, planned: &PlannedTable) -> bool {
    let sent: Vec<_> = relation
        .columns
        .iter()
        .filter(|column| !planned.builder.excluded_columns.contains(&column.name))
        .map(|column| (column.name.as_str(), column.type_oid, column.typmod))
        .collect();
    let found: Vec<_> = planned
        .schema
        .columns
        .iter()
        .filter_map(|column| source_column(planned, column))
        .map(|column| (column.name.as_str(), column.type_oid, column.typmod))
        .collect();
    sent == found
}

/// What has to become of a table in the shape `old`, now that its source is found as `new`.
///
/// The columns are known to be `new`'s at the point where this is asked: the stream described them there, or
/// has passed the look at the catalog.
pub fn change(old: &PlannedTable, new: &PlannedTable) -> Change {
    match (settle(old, new, unseen_rows(old, new)), unseen_columns(old, new)) {
        (Change::Follow(_), Err(reason)) => Change::Unclear(reason),
        (change, _) => change,
    }
}

/// As [`change`], where the source said itself that `new` follows on `old`: nothing came and went between them.
pub fn announced_change(old: &PlannedTable, new: &PlannedTable) -> Change {
    let rewritten = old.source.storage.files != new.source.storage.files;
    settle(old, new, if rewritten { Err("its rows were rewritten".to_owned()) } else { Ok(()) })
}

fn settle(old: &PlannedTable, new: &PlannedTable, unseen: Result<(), String>) -> Change {
    match unseen.and_then(|()| origins(old, new)) {
        Ok(origins) => {
            let same = definition(old, "") == definition(new, "");
            if same { Change::None } else { Change::Follow(origins) }
        }
        Err(reason) => Change::Reload(reason),
    }
}

/// Where each new column comes from, or why none of this can be followed.
fn origins(old: &PlannedTable, new: &PlannedTable) -> Result<Vec<ColumnOrigin>, String> {
    if old.relation != new.relation {
        return Err("another table has its name now".to_owned());
    }
    if key(old) != key(new)
        || old.kind != new.kind
        || old.inserts_only.is_some() != new.inserts_only.is_some()
    {
        return Err("its key or replica identity is another one".to_owned());
    }
    if old.partition_by != new.partition_by || old.deletion_vectors != new.deletion_vectors {
        return Err("its files are to be laid out otherwise".to_owned());
    }
    let before = &old.source.storage;
    let mut origins = Vec::with_capacity(new.schema.columns.len());
    for column in &new.schema.columns {
        let known = old.schema.columns.iter().position(|known| known.attnum == column.attnum);
        origins.push(match known.and_then(|at| Some((at, old.schema.columns.get(at)?))) {
            Some((at, known)) if holds((old, known), (new, column)) => ColumnOrigin::Kept(at),
            Some(_) => return Err(format!("column `{}` is of another type", column.source_name)),
            None if column.attnum <= before.attributes => {
                return Err(format!("column `{}` was left out so far", column.source_name));
            }
            None => value_so_far(new, column)?,
        });
    }
    // A publication with a list of columns depends on each: Postgres drops one only together with the table's membership.
    let listed = !new.builder.excluded_columns.is_empty();
    match gone(old, new).find(|column| listed || is_live(new, column.attnum)) {
        Some(column) => Err(format!("column `{}` is not published any more", column.source_name)),
        None => Ok(origins),
    }
}

/// Columns that came or went between two looks so that nobody can tell which rows in between had which.
fn unseen_columns(old: &PlannedTable, new: &PlannedTable) -> Result<(), String> {
    let before = old.source.storage.attributes;
    let added = new.schema.columns.iter().any(|column| column.attnum > before);
    let mut later = before.saturating_add(1)..=new.source.storage.attributes;
    if (added && gone(old, new).next().is_some()) || later.any(|attnum| !is_live(new, attnum)) {
        return Err("columns were dropped and added between two looks".to_owned());
    }
    Ok(())
}

/// Columns of the lake that the source does not send any more.
fn gone<'a>(old: &'a PlannedTable, new: &'a PlannedTable) -> impl Iterator<Item = &'a ColumnSpec> {
    let is_kept = |known: &&ColumnSpec| new.schema.columns.iter().any(|column| column.attnum == known.attnum);
    old.schema.columns.iter().filter(move |known| !is_kept(known))
}

fn is_live(planned: &PlannedTable, attnum: i16) -> bool {
    planned.source.columns.iter().any(|column| column.attnum == attnum)
}

fn key(planned: &PlannedTable) -> Vec<i16> {
    let columns = &planned.schema.columns;
    planned.schema.key.iter().filter_map(|&at| columns.get(at)).map(|column| column.attnum).collect()
}

/// Changes of rows that the stream does not show.
fn unseen_rows(old: &PlannedTable, new: &PlannedTable) -> Result<(), String> {
    let (before, after) = (&old.source.storage, &new.source.storage);
    if before.membership != after.membership {
        return Err("it was taken out of the publication, or that was altered".to_owned());
    }
    if after.labels.iter().any(|(oid, label)| before.labels.get(oid).is_some_and(|known| known != label)) {
        return Err("a value of an enum was renamed".to_owned());
    }
    if new.source.kind != TableKind::Partitioned {
        // VACUUM FULL and CLUSTER make other files of the same rows; TRUNCATE is in the stream.
        let rewritten = before.files != after.files && before.stamp != after.stamp;
        return if rewritten { Err("its rows were rewritten".to_owned()) } else { Ok(()) };
    }
    if before.files.keys().any(|oid| !after.files.contains_key(oid)) {
        return Err("a partition was detached or dropped".to_owned());
    }
    for (oid, file) in &after.files {
        match before.files.get(oid) {
            Some(known) if known == file => {}
            Some(_) => {
                return Err("the rows of a partition were replaced, or it was away for a while".to_owned());
            }
            None if after.born_as_partitions.contains(oid) => {}
            None => return Err("a partition was attached".to_owned()),
        }
    }
    Ok(())
}

/// `text` and `varchar`, whose values are the same text in either.
const STRINGS: [u32; 2] = [25, 1043];

/// Whether every value of a column reads the same in its new type. Postgres did not rewrite them for it, but another type
/// may print the same bytes otherwise, as `inet` does those of a `cidr`.
fn holds(old: (&PlannedTable, &ColumnSpec), new: (&PlannedTable, &ColumnSpec)) -> bool {
    let base = |(table, column): (&PlannedTable, &ColumnSpec)| {
        source_column(table, column).map(|source| new.0.builder.catalog.base_of(source.type_oid))
    };
    match (&old.1.pg_type, &new.1.pg_type) {
        (
            PgType::Decimal { precision: before, scale },
            PgType::Decimal { precision: after, scale: new_scale },
        ) => scale == new_scale && before <= after,
        (before, after) if before != after => false,
        _ if base(old) == base(new) => true,
        (PgType::Text, _) => [base(old), base(new)].iter().flatten().all(|oid| STRINGS.contains(oid)),
        (PgType::Array(_) | PgType::DelimitedArray { .. } | PgType::JsonArray(_) | PgType::Vector, _) => {
            false
        }
        _ => true,
    }
}

/// What rows older than the column have in it.
fn value_so_far(planned: &PlannedTable, column: &ColumnSpec) -> Result<ColumnOrigin, String> {
    let name = &column.source_name;
    if !planned.builder.excluded_columns.is_empty() {
        // A publication with a list of columns does not send it yet: rows in between came without it.
        return Err(format!("column `{name}` has to be published first"));
    }
    if planned.source.storage.frozen_columns.contains(name) {
        return Err(format!("column `{name}` has a default in the partitions' rows"));
    }
    let source = source_column(planned, column);
    if source.is_some_and(|source| source.generated == Generated::Stored) {
        return Err(format!("column `{name}` is computed for every row"));
    }
    let Some(text) = source.and_then(|source| source.missing_value.as_deref()) else {
        return Ok(ColumnOrigin::Null);
    };
    match (column.pg_type.single_value(text), planned.builder.unrepresentable) {
        (Ok(value), _) => Ok(ColumnOrigin::Constant(value)),
        (Err(_), Unrepresentable::Null) => Ok(ColumnOrigin::Null),
        (Err(_), Unrepresentable::Fail) => {
            Err(format!("the default of column `{name}` cannot be held by Delta"))
        }
    }
}

fn source_column<'a>(planned: &'a PlannedTable, column: &ColumnSpec) -> Option<&'a SourceColumn> {
    planned.source.columns.iter().find(|source| source.attnum == column.attnum)
}

#[cfg(test)]
mod tests;
