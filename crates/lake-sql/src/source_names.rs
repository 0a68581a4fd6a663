//! The names a table and its columns had at their source, as kept in the Delta metadata.
//!
//! The writer puts `tidewater.source_name` into the table's properties (`schema.table`) and into the
//! metadata of each column whose name the lake could not take. Tables of other writers have neither and
//! go by their folders.

use crate::error::LakeSqlError;
use crate::folders::TableFolder;
use crate::snapshot_cache::table_error;
use crate::table_name::{TableName, folder_spelling, may_hold};
use datafusion::catalog::TableProvider;
use datafusion::common::Column;
use datafusion::logical_expr::Expr;
use datafusion::prelude::SessionContext;
use deltalake::DeltaTable;
use deltalake::kernel::{MetadataValue, StructField};
use std::sync::Arc;

const SOURCE_NAME: &str = "tidewater.source_name";
const SOURCE_SCHEMA: &str = "tidewater.source_schema";

/// A table's original name.
pub(crate) fn table_name(folder: &TableFolder, table: &DeltaTable) -> Result<TableName, LakeSqlError> {
    let state = table.snapshot().map_err(|source| table_error(&folder.location, source))?;
    let property = |name: &str| state.metadata().configuration().get(name).map(String::as_str);
    let (schema, table) = property(SOURCE_NAME)
        .and_then(|name| split(name, folder).or_else(|| renamed(name, property(SOURCE_SCHEMA)?)))
        .unwrap_or_else(|| (folder.schema.clone(), folder.table.clone()));
    Ok(TableName { database: folder.database.clone(), schema, table })
}

/// A column's original name, where the lake could not take it.
pub(crate) fn original(column: &StructField) -> Option<&String> {
    match column.metadata().get(SOURCE_NAME) {
        Some(MetadataValue::String(original)) => Some(original),
        _ => None,
    }
}

/// Splits `schema.table` where both halves fit the folders: either may hold dots itself.
fn split(name: &str, folder: &TableFolder) -> Option<(String, String)> {
    let table_folder = folder.table.strip_suffix("_history").unwrap_or(&folder.table);
    name.match_indices('.').find_map(|(dot, _)| {
        let (schema, table) = (name.get(..dot)?, name.get(dot + 1..)?);
        if !may_hold(&folder.schema, schema) {
            return None;
        }
        if may_hold(&folder.table, table) {
            return Some((schema.to_owned(), table.to_owned()));
        }
        // A history's metadata names the table whose changes it holds.
        may_hold(table_folder, table).then(|| (schema.to_owned(), format!("{table}_history")))
    })
}

/// The name of a table whose folder has an older one: only the schema tells where the name is to be split.
fn renamed(name: &str, schema: &str) -> Option<(String, String)> {
    let table = name.strip_prefix(schema)?.strip_prefix('.')?;
    Some((schema.to_owned(), table.to_owned()))
}

/// Whether a table so named is what a query's name parts ask for.
pub(crate) fn answers_to(name: &TableName, parts: &[String]) -> bool {
    match parts {
        [table] => *table == name.table,
        [schema, table] => *schema == name.schema && *table == name.table,
        [database, schema, table] => {
            *schema == name.schema
                && *table == name.table
                && name.database.as_ref().is_some_and(|folder| folder_spelling(database) == *folder)
        }
        _ => false,
    }
}

/// The table's rows under its columns' original names.
pub(crate) async fn provider(
    context: &SessionContext,
    folder: &TableFolder,
    table: &DeltaTable,
) -> Result<Arc<dyn TableProvider>, LakeSqlError> {
    let state = table.snapshot().map_err(|source| table_error(&folder.location, source))?;
    let rows = table.table_provider().with_session(Arc::new(context.state())).await?;
    let schema = state.schema();
    let renamed: Vec<(String, String)> = schema
        .fields()
        .map(|field| (field.name().clone(), original(field).unwrap_or(field.name()).clone()))
        .collect();
    if renamed.iter().all(|(lake, original)| lake == original) {
        return Ok(rows);
    }
    let columns = renamed
        .into_iter()
        .map(|(lake, original)| Expr::Column(Column::new_unqualified(lake)).alias(original))
        .collect::<Vec<_>>();
    Ok(context.read_table(rows)?.select(columns)?.into_view())
}
