//! Finding tables: the lake's folders, listed one level at a time and only where a name leads.
//!
//! ```text
//! <root>/<database>/<schema>/<table>/_delta_log     database.schema.table
//! <root>/<schema>/<table>/_delta_log                schema.table
//! ```
//!
//! There is no catalog to keep in step: a folder with a Delta log is a table. A lookup lists the levels
//! that its name leaves open, never the files inside tables it does not mean.

use crate::error::LakeSqlError;
use crate::store::LakeStore;
use crate::table_name::{folder_spelling, is_lake_folder, may_hold};
use futures::{StreamExt, TryStreamExt, stream};
use object_store::ObjectStore;
use object_store::path::Path;

/// Listings under way at a time: enough to hide a store's latency, few enough not to be throttled.
const CONCURRENT_LISTINGS: usize = 16;

const LOG_FOLDER: &str = "_delta_log";

/// A folder that holds a Delta table, by the names of the folders above it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TableFolder {
    pub(crate) database: Option<String>,
    pub(crate) schema: String,
    pub(crate) table: String,
    /// Its place in the store.
    pub(crate) location: Path,
}

/// A name of which some parts may be left open.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub(crate) database: Option<&'a str>,
    pub(crate) schema: Option<&'a str>,
    pub(crate) table: Option<&'a str>,
}

impl Wanted<'_> {
    fn database(&self, folder: &str) -> bool {
        self.database.is_none_or(|name| folder == name || folder == folder_spelling(name))
    }

    fn schema(&self, folder: &str) -> bool {
        self.schema.is_none_or(|name| may_hold(folder, name))
    }

    fn table(&self, folder: &str) -> bool {
        self.table.is_none_or(|name| may_hold(folder, name))
    }
}

/// Every table folder that may answer to the name; the table's own metadata then decides.
pub(crate) async fn find(lake: &LakeStore, wanted: Wanted<'_>) -> Result<Vec<TableFolder>, LakeSqlError> {
    let top = subfolders(lake, &lake.root).await?;
    let mut found: Vec<TableFolder> = stream::iter(top)
        .map(|first| async move { under_top(lake, &first, wanted).await })
        .buffer_unordered(CONCURRENT_LISTINGS)
        .try_concat()
        .await?;
    found.sort();
    Ok(found)
}

/// The tables below one folder of the first level, be it a database or a schema.
async fn under_top(
    lake: &LakeStore,
    first: &str,
    wanted: Wanted<'_>,
) -> Result<Vec<TableFolder>, LakeSqlError> {
    let as_schema = wanted.database.is_none() && wanted.schema(first);
    let as_database = wanted.database(first);
    if !as_schema && !as_database {
        return Ok(Vec::new());
    }
    let first_path = lake.root.clone().join(first);
    let mut found = Vec::new();
    for second in subfolders(lake, &first_path).await? {
        let second_path = first_path.clone().join(second.as_str());
        if as_schema && wanted.table(&second) && has_log(lake, &second_path).await? {
            let (schema, table) = (first.to_owned(), second);
            found.push(TableFolder { database: None, schema, table, location: second_path });
            continue;
        }
        if !as_database || !wanted.schema(&second) {
            continue;
        }
        let third = subfolders(lake, &second_path).await?;
        let tables: Vec<Option<TableFolder>> = stream::iter(third)
            .filter(|table| futures::future::ready(wanted.table(table)))
            .map(|table| {
                let location = second_path.clone().join(table.as_str());
                let (database, schema) = (Some(first.to_owned()), second.clone());
                async move {
                    let is_table = has_log(lake, &location).await?;
                    Ok::<_, LakeSqlError>(is_table.then_some(TableFolder {
                        database,
                        schema,
                        table,
                        location,
                    }))
                }
            })
            .buffer_unordered(CONCURRENT_LISTINGS)
            .try_collect()
            .await?;
        found.extend(tables.into_iter().flatten());
    }
    Ok(found)
}

/// The folders directly below one, without those that the naming rule cannot produce.
async fn subfolders(lake: &LakeStore, folder: &Path) -> Result<Vec<String>, LakeSqlError> {
    let listing = match lake.objects.list_with_delimiter(Some(folder)).await {
        Ok(listing) => listing,
        Err(object_store::Error::NotFound { .. }) => return Ok(Vec::new()),
        Err(source) => return Err(store_error(folder, source)),
    };
    Ok(listing
        .common_prefixes
        .iter()
        .filter_map(|prefix| prefix.filename())
        .filter(|name| is_lake_folder(name) && *name != LOG_FOLDER)
        .map(str::to_owned)
        .collect())
}

async fn has_log(lake: &LakeStore, folder: &Path) -> Result<bool, LakeSqlError> {
    let log = folder.clone().join(LOG_FOLDER);
    match lake.objects.list(Some(&log)).try_next().await {
        Ok(first) => Ok(first.is_some()),
        Err(object_store::Error::NotFound { .. }) => Ok(false),
        Err(source) => Err(store_error(&log, source)),
    }
}

pub(crate) fn store_error(at: &Path, source: object_store::Error) -> LakeSqlError {
    LakeSqlError::Store { at: at.to_string(), source: Box::new(source) }
}
