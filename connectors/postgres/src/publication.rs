//! The two publications of a database.
//!
//! ```text
//!   tidewater_<instance>_<database>           insert, update, delete, truncate    tables with a replica identity
//!   tidewater_<instance>_<database>_inserts   insert, truncate                    tables without
//! ```
//!
//! Postgres refuses an application's UPDATE or DELETE on a table that is in a publication with updates and has no replica
//! identity. So a table without one is only ever in the second, a table moves when its identity changes, and the identity
//! is looked at again under the lock that adding the table takes, before the transaction commits.

use crate::catalog::{PUBLISHES_GENERATED, ReplicaIdentity, SourceTable, list_chosen};
use crate::client::{Client, server_version};
use crate::error::{Error, Result};
use crate::object_name::{object_stem, quote_identifier, quote_qualified};
use std::collections::{BTreeMap, BTreeSet};

const INSERTS_SUFFIX: &str = "_inserts";
const KEYED_OPERATIONS: &str = "insert, update, delete, truncate";
const INSERTS_OPERATIONS: &str = "insert, truncate";
/// Column lists came with Postgres 15.
const COLUMN_LISTS: u32 = 150_000;
/// A statement that names more tables than this is cut, to keep its text and its locks within reason.
const TABLES_PER_STATEMENT: usize = 500;

/// What the publications of one database are called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicationNames {
    /// The one with updates and deletes.
    pub keyed: String,
    /// The one without.
    pub inserts: String,
}

/// The names for a database of an installation.
pub fn publication_names(instance: &str, database: &str) -> PublicationNames {
    let keyed = object_stem(instance, database, INSERTS_SUFFIX.len());
    PublicationNames { inserts: format!("{keyed}{INSERTS_SUFFIX}"), keyed }
}

/// A table as it is to be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedTable {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// The columns to send; none: all, and those added later too. Before Postgres 15 the list is not sent to the server.
    pub columns: Option<Vec<String>>,
}

impl PublishedTable {
    /// The table without the columns that the configuration excludes. A column of the replica identity cannot be excluded,
    /// and of a table with REPLICA IDENTITY FULL none can.
    pub fn new(table: &SourceTable, excluded: &[String]) -> Result<PublishedTable> {
        let (schema, name) = (table.schema.clone(), table.name.clone());
        if excluded.is_empty() {
            return Ok(PublishedTable { schema, name, columns: None });
        }
        let refuse = |problem: String| {
            Err(Error::InvalidRequest { subject: format!("exclude_columns of {schema}.{name}"), problem })
        };
        if let Some(unknown) = excluded.iter().find(|name| !table.columns.iter().any(|c| c.name == **name)) {
            return refuse(format!("there is no column `{unknown}`"));
        }
        if table.identity == ReplicaIdentity::Full {
            return refuse("with REPLICA IDENTITY FULL every column is part of the identity; give the table a primary key and REPLICA IDENTITY DEFAULT instead".to_owned());
        }
        if let Some(key) = table.key_names().iter().find(|key| excluded.iter().any(|name| name == *key)) {
            return refuse(format!("column `{key}` is part of the replica identity and cannot be left out"));
        }
        let columns: Vec<String> = table
            .published_columns()
            .filter(|c| !excluded.contains(&c.name))
            .map(|c| c.name.clone())
            .collect();
        if columns.is_empty() {
            return refuse("no column would be left".to_owned());
        }
        Ok(PublishedTable { schema, name, columns: Some(columns) })
    }

    fn clause(&self) -> String {
        let columns = self.columns.iter().map(|names| {
            let names: Vec<String> = names.iter().map(|name| quote_identifier(name)).collect();
            format!(" ({})", names.join(", "))
        });
        format!("ONLY {}{}", quote_qualified(&self.schema, &self.name), columns.collect::<String>())
    }
}

/// One publication: its name, what it publishes, and of which tables.
struct Wanted<'a> {
    name: &'a str,
    operations: &'static str,
    flags: [bool; 4],
    tables: BTreeMap<(String, String), PublishedTable>,
}

/// Brings both publications to exactly these tables, in one transaction and with nothing altered that is right already.
/// Making or altering them needs the ownership of the tables and CREATE on the database; where an owner has made
/// them as they should be, nothing is needed.
///
/// Fails, changing nothing, if a table of `keyed` has no usable replica identity (any more).
pub async fn ensure_publications(
    client: &mut Client,
    names: &PublicationNames,
    keyed: &[PublishedTable],
    inserts_only: &[PublishedTable],
) -> Result<()> {
    let version = server_version(client).await?;
    let tables = |list: &[PublishedTable]| {
        let with_list = |table: &PublishedTable| {
            let columns = table.columns.clone().filter(|_| version >= COLUMN_LISTS);
            ((table.schema.clone(), table.name.clone()), PublishedTable { columns, ..table.clone() })
        };
        list.iter().map(with_list).collect::<BTreeMap<_, _>>()
    };
    let wanted = [
        Wanted { name: &names.keyed, operations: KEYED_OPERATIONS, flags: [true; 4], tables: tables(keyed) },
        Wanted {
            name: &names.inserts,
            operations: INSERTS_OPERATIONS,
            flags: [true, false, false, true],
            tables: tables(inserts_only),
        },
    ];
    execute(client, "BEGIN").await?;
    let result = change(client, &wanted, version).await;
    match result {
        Ok(()) => execute(client, "COMMIT").await,
        Err(error) => {
            // The first error is the one to tell; a session that cannot roll back is closed by its owner's next error.
            if let Err(rollback) = execute(client, "ROLLBACK").await {
                let rollback = &rollback as &dyn std::error::Error;
                tracing::warn!(error = rollback, "could not roll back a change of publications");
            }
            Err(error)
        }
    }
}

async fn change(client: &Client, wanted: &[Wanted<'_>; 2], version: u32) -> Result<()> {
    let mut drops = Vec::new();
    let mut adds = Vec::new();
    for publication in wanted {
        let name = quote_identifier(publication.name);
        let options = options(publication.operations, version);
        let present = match read_options(client, publication).await? {
            None => {
                execute(client, &format!("CREATE PUBLICATION {name} WITH ({options})")).await?;
                BTreeMap::new()
            }
            Some(right) => {
                if !right {
                    execute(client, &format!("ALTER PUBLICATION {name} SET ({options})")).await?;
                }
                read_tables(client, publication.name).await?
            }
        };
        let unchanged = |key: &(String, String), table: &PublishedTable| {
            present.get(key).is_some_and(|there| there.as_ref() == Some(&column_set(table)))
        };
        let gone = present
            .keys()
            .filter(|key| !publication.tables.get(key).is_some_and(|table| unchanged(key, table)));
        drops.extend(
            gone.map(|(schema, table)| (name.clone(), format!("ONLY {}", quote_qualified(schema, table)))),
        );
        let new = publication.tables.iter().filter(|(key, table)| !unchanged(key, table));
        adds.extend(new.map(|(_, table)| (name.clone(), table.clause())));
    }
    // First out, then in: at no moment does a walsender see one table in both.
    for (verb, tables) in [("DROP", drops), ("ADD", adds)] {
        for same in tables.chunk_by(|a, b| a.0 == b.0).flat_map(|list| list.chunks(TABLES_PER_STATEMENT)) {
            if let Some((name, _)) = same.first() {
                let list = same.iter().map(|(_, table)| table.as_str()).collect::<Vec<_>>().join(", ");
                execute(client, &format!("ALTER PUBLICATION {name} {verb} TABLE {list}")).await?;
            }
        }
    }
    let [keyed, _] = wanted;
    check_identities(client, keyed).await
}

fn options(operations: &str, version: u32) -> String {
    let generated = if version >= PUBLISHES_GENERATED { ", publish_generated_columns = stored" } else { "" };
    format!("publish = '{operations}', publish_via_partition_root = true{generated}")
}

/// The statements with which an owner makes a publication as it is wanted, in place of one that is there.
pub(crate) fn create_statement(name: &str, keyed: bool, tables: &[&PublishedTable], version: u32) -> String {
    let operations = if keyed { KEYED_OPERATIONS } else { INSERTS_OPERATIONS };
    let list: Vec<String> = tables.iter().map(|table| table.clause()).collect();
    let list = if list.is_empty() { String::new() } else { format!(" FOR TABLE {}", list.join(", ")) };
    let (name, options) = (quote_identifier(name), options(operations, version));
    format!("DROP PUBLICATION IF EXISTS {name}; CREATE PUBLICATION {name}{list} WITH ({options})")
}

/// The columns that a table is published with; empty: no list.
fn column_set(table: &PublishedTable) -> BTreeSet<String> {
    table.columns.iter().flatten().cloned().collect()
}

/// Whether the publication is there, and whether its options are right.
async fn read_options(client: &Client, wanted: &Wanted<'_>) -> Result<Option<bool>> {
    let doing = "reading publications";
    let failed = |source| client.error(doing, source);
    let sql = "SELECT p.puballtables, ARRAY[p.pubinsert, p.pubupdate, p.pubdelete, p.pubtruncate], p.pubviaroot, \
                 coalesce(to_jsonb(p) ->> 'pubgencols', 's') = 's' \
               FROM pg_publication p WHERE p.pubname = $1::text::name";
    let Some(row) = client.query_opt(sql, &[&wanted.name]).await.map_err(failed)? else { return Ok(None) };
    if row.try_get::<_, bool>(0).map_err(failed)? {
        return Err(Error::InvalidRequest {
            subject: format!("publication {}", wanted.name),
            problem: "someone made it FOR ALL TABLES, which would publish tables that must not be: drop it and start again".to_owned(),
        });
    }
    let flags: Vec<bool> = row.try_get(1).map_err(failed)?;
    let via_root: bool = row.try_get(2).map_err(failed)?;
    let generated: bool = row.try_get(3).map_err(failed)?;
    Ok(Some(flags == wanted.flags && via_root && generated))
}

/// What is in the publication, each table with its column list; none for one that cannot be right: it has a row filter.
async fn read_tables(
    client: &Client,
    name: &str,
) -> Result<BTreeMap<(String, String), Option<BTreeSet<String>>>> {
    let doing = "reading publications";
    let sql = "SELECT n.nspname::text, c.relname::text, \
                 ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = c.oid AND to_jsonb(a.attnum) IN ( \
                       SELECT jsonb_array_elements(coalesce(nullif(j.rel -> 'prattrs', 'null'), '[]')))), \
                 j.rel ->> 'prqual' IS NOT NULL \
               FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid \
               CROSS JOIN LATERAL (SELECT to_jsonb(r) AS rel) j \
               JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
               WHERE p.pubname = $1::text::name";
    let read = |row: &tokio_postgres::Row| {
        let columns: Vec<String> = row.try_get(2)?;
        let filtered: bool = row.try_get(3)?;
        Ok(((row.try_get(0)?, row.try_get(1)?), (!filtered).then(|| columns.into_iter().collect())))
    };
    let rows = client.query(sql, &[&name]).await.map_err(|source| client.error(doing, source))?;
    rows.iter().map(read).collect::<std::result::Result<_, _>>().map_err(|source| client.error(doing, source))
}

/// Looks at the identities of the keyed tables again. Those that were added just now are locked against ALTER TABLE until
/// the transaction ends, so what is seen here is what commits.
async fn check_identities(client: &Client, keyed: &Wanted<'_>) -> Result<()> {
    let listing = list_chosen(client, |_, schema, name| {
        keyed.tables.contains_key(&(schema.to_owned(), name.to_owned()))
    })
    .await?;
    for table in &listing.tables {
        let key = (table.schema.clone(), table.name.clone());
        let Some(published) = keyed.tables.get(&key) else { continue };
        let refuse =
            |problem: String| Err(Error::InvalidRequest { subject: table.qualified_name(), problem });
        if let ReplicaIdentity::None(reason) = &table.identity {
            return refuse(format!(
                "{reason}: its updates cannot be published without making the application's fail"
            ));
        }
        if let Some(columns) = &published.columns {
            let missing =
                table.key_names().into_iter().find(|key| !columns.iter().any(|column| column == key));
            if table.identity == ReplicaIdentity::Full || missing.is_some() {
                return refuse(format!(
                    "the published columns leave out `{}` of its replica identity",
                    missing.unwrap_or("a part")
                ));
            }
        }
    }
    Ok(())
}

async fn execute(client: &Client, sql: &str) -> Result<()> {
    client.batch_execute(sql).await.map_err(|source| client.error("changing publications", source))
}
