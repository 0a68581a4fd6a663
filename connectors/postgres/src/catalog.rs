//! What tables there are, what their columns hold, and by what their rows can be named.
//!
//! The question that matters here is the *replica identity*: Postgres refuses an UPDATE or DELETE on a table that is in a
//! publication with updates and has none it can use. So the answer is worked out by Postgres's own rules
//! (`RelationGetIndexList` and `CheckCmdReplicaIdentity` in its source), for every partition of a partitioned table too,
//! because the check is made on the partition and not on the root.

mod identity;
mod storage;

use crate::client::{Client, connect, server_version};
use crate::error::Result;
use crate::object_name::quote_literal;
use crate::publication::PublicationNames;
use crate::source_config::SourceConfig;
use globset::GlobSet;
use identity::{Relation, tree_identity};
pub use identity::{ReplicaIdentity, Unusable};
use std::collections::HashMap;
pub use storage::Storage;
use tokio_postgres::Row;
use wal_decoder::TypeEntry;

/// Postgres 18 publishes stored generated columns, where asked to.
pub(crate) const PUBLISHES_GENERATED: u32 = 180_000;

type Rows<T> = std::result::Result<T, tokio_postgres::Error>;

/// What kind of table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableKind {
    /// An ordinary table.
    Ordinary,
    /// The root of a partitioned table, standing for all its partitions.
    Partitioned,
}

/// Whether and how a column is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Generated {
    /// It is not.
    None,
    /// When the row is written.
    Stored,
    /// When the row is read: the WAL never holds it.
    Virtual,
}

/// A column of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceColumn {
    /// Its name.
    pub name: String,
    /// `pg_attribute.attnum`: survives renames, is never used again.
    pub attnum: i16,
    /// Its declared type.
    pub type_oid: u32,
    /// Its type modifier, -1 for none.
    pub typmod: i32,
    /// Whether it is declared NOT NULL.
    pub not_null: bool,
    /// Whether and how it is computed.
    pub generated: Generated,
    /// Whether this server's pgoutput sends it: not when it is virtual, nor when it is stored before Postgres 18.
    pub published: bool,
    /// The value that rows older than the column have, as Postgres froze it at ADD COLUMN … DEFAULT. A partitioned
    /// table has none of its own: see [`Storage::frozen_columns`].
    pub missing_value: Option<String>,
}

/// A table that can be synced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceTable {
    /// Its oid, which is also its relation id in pgoutput.
    pub oid: u32,
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// What kind of table.
    pub kind: TableKind,
    /// Its columns in order, those included that are not published.
    pub columns: Vec<SourceColumn>,
    /// By what the stream names its rows.
    pub identity: ReplicaIdentity,
    /// The primary key's columns in key order, also when it cannot serve as identity. Empty: there is none.
    pub primary_key: Vec<i16>,
    /// Rows as of the last ANALYZE, all partitions together; none before the first.
    pub estimated_rows: Option<u64>,
    /// Pages as of the last VACUUM or ANALYZE, all partitions together.
    pub pages: u64,
    /// What tells that rows changed without any message in the stream.
    pub storage: Storage,
}

impl SourceTable {
    /// `schema.table`, as globs match it.
    pub fn qualified_name(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    /// The columns that the stream sends.
    pub fn published_columns(&self) -> impl Iterator<Item = &SourceColumn> {
        self.columns.iter().filter(|column| column.published)
    }

    /// The identity's column names; empty unless it is a key.
    pub fn key_names(&self) -> Vec<&str> {
        let ReplicaIdentity::Key(key) = &self.identity else { return Vec::new() };
        let name = |attnum: &i16| self.columns.iter().find(|c| c.attnum == *attnum).map(|c| c.name.as_str());
        key.iter().filter_map(name).collect()
    }
}

/// Something that a glob names and that cannot be synced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkippedTable {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// Why, and what to do instead.
    pub reason: SkipReason,
}

/// Why something that looks like a table cannot be synced.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SkipReason {
    /// A partition.
    #[error("it is a partition: sync its root {root}, which holds its rows")]
    Partition {
        /// The root of its tree.
        root: String,
    },
    /// A view.
    #[error("it is a view, which has no rows of its own: sync the tables it reads")]
    View,
    /// A materialized view.
    #[error("it is a materialized view, whose changes are not in the WAL stream")]
    MaterializedView,
    /// A foreign table.
    #[error("it is a foreign table: sync it at the server that holds its rows")]
    Foreign,
    /// An unlogged table.
    #[error("it is unlogged, so its changes are not in the WAL: ALTER TABLE … SET LOGGED")]
    Unlogged,
    /// A partitioned table with a foreign table among its partitions.
    #[error("its partition {partition} is a foreign table, whose changes are not in this server's WAL")]
    ForeignPartition {
        /// The partition.
        partition: String,
    },
    /// A partitioned table with an unlogged partition.
    #[error("its partition {partition} is unlogged: ALTER TABLE {partition} SET LOGGED")]
    UnloggedPartition {
        /// The partition.
        partition: String,
    },
}

/// What the globs select.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TableListing {
    /// Sorted by schema and name.
    pub tables: Vec<SourceTable>,
    /// Sorted by schema and name.
    pub skipped: Vec<SkippedTable>,
}

/// Every type of the database, as `wal_decoder` reduces them.
pub async fn read_types(client: &Client) -> Result<Vec<TypeEntry>> {
    let doing = "reading the types";
    // A true array has its element's subscripting; `name` and `point` have elements and are none.
    let sql = "SELECT oid, typname::text, typtype::text, typcategory::text, \
                 CASE WHEN typcategory = 'A' AND typsubscript = 'array_subscript_handler'::regproc THEN typelem ELSE 0 END, \
                 typbasetype, typtypmod, typdelim::text \
               FROM pg_type";
    let letter = |row: &Row, at: usize| -> Rows<char> {
        Ok(row.try_get::<_, &str>(at)?.chars().next().unwrap_or(' '))
    };
    let read = |row: &Row| -> Rows<TypeEntry> {
        Ok(TypeEntry {
            oid: row.try_get(0)?,
            name: row.try_get(1)?,
            kind: letter(row, 2)?,
            category: letter(row, 3)?,
            element: row.try_get(4)?,
            base: row.try_get(5)?,
            base_typmod: row.try_get(6)?,
            delimiter: letter(row, 7)?,
        })
    };
    let rows = client.query(sql, &[]).await.map_err(|source| client.error(doing, source))?;
    rows.iter().map(|row| read(row).map_err(|source| client.error(doing, source))).collect()
}

/// The tables that `include` names and `exclude` does not, globs over `schema.table`. Partitions are synced as their root
/// and system schemas never; what a glob names and cannot be synced is listed with its reason.
pub async fn list_tables(client: &Client, include: &GlobSet, exclude: &GlobSet) -> Result<TableListing> {
    list_chosen(client, |_, schema, name| {
        let name = format!("{schema}.{name}");
        include.is_match(&name) && !exclude.is_match(&name)
    })
    .await
}

/// As [`list_tables`], nothing excluded, with each table's membership of the publications.
pub async fn list_followed_tables(
    client: &Client,
    include: &GlobSet,
    publications: &PublicationNames,
) -> Result<TableListing> {
    let mut listing = list_tables(client, include, &GlobSet::empty()).await?;
    storage::read_memberships(client, publications, &mut listing.tables).await?;
    Ok(listing)
}

/// Those of the tables with these oids that can be synced, as an exported snapshot has them. The exporting session must
/// still be there, without a command in between.
pub async fn read_tables_in_snapshot(
    config: &SourceConfig,
    snapshot: &str,
    oids: &[u32],
    publications: &PublicationNames,
) -> Result<Vec<SourceTable>> {
    let client = connect(config).await?;
    let sql = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}",
        quote_literal(snapshot)
    );
    let begun = client.batch_execute(&sql).await;
    begun.map_err(|source| client.error("importing a snapshot", source))?;
    let mut tables = list_chosen(&client, |oid, _, _| oids.contains(&oid)).await?.tables;
    storage::read_memberships(&client, publications, &mut tables).await?;
    Ok(tables)
}

/// As [`list_tables`], of the tables that `is_chosen(oid, schema, name)`.
pub(crate) async fn list_chosen(
    client: &Client,
    is_chosen: impl Fn(u32, &str, &str) -> bool,
) -> Result<TableListing> {
    let doing = "listing tables";
    let version = server_version(client).await?;
    let failed = |source| client.error(doing, source);
    let mut listing = TableListing::default();
    let mut chosen = Vec::new();
    for row in client.query(CANDIDATES, &[]).await.map_err(failed)? {
        let candidate = Candidate::read(&row).map_err(failed)?;
        if !is_chosen(candidate.oid, &candidate.schema, &candidate.name) {
            continue;
        }
        match candidate.reason_to_skip() {
            Some(reason) => {
                listing.skipped.push(SkippedTable { schema: candidate.schema, name: candidate.name, reason });
            }
            None => chosen.push(candidate),
        }
    }
    let oids: Vec<u32> = chosen.iter().map(|table| table.oid).collect();
    let mut columns = read_columns(client, &oids, version).await?;
    let mut trees = read_trees(client, &oids).await?;
    let mut storage = storage::read(client, &oids).await?;
    for table in chosen {
        let columns = columns.remove(&table.oid).unwrap_or_default();
        let tree = trees.remove(&table.oid).unwrap_or_default();
        if let Some(reason) = tree.iter().find_map(|relation| relation.reason_to_skip(table.oid)) {
            listing.skipped.push(SkippedTable { schema: table.schema, name: table.name, reason });
            continue;
        }
        let (identity, primary_key) = tree_identity(table.oid, &tree, &columns);
        listing.tables.push(SourceTable {
            oid: table.oid,
            schema: table.schema,
            name: table.name,
            kind: if table.kind == "p" { TableKind::Partitioned } else { TableKind::Ordinary },
            columns,
            identity,
            primary_key,
            estimated_rows: tree.iter().map(|relation| relation.rows).sum(),
            pages: tree.iter().map(|relation| relation.pages).sum(),
            storage: storage.remove(&table.oid).unwrap_or_default(),
        });
    }
    Ok(listing)
}

/// Begins a query with `tree`: each of the tables `roots`, an expression, with all its partitions, and the way there from
/// the root, which is not on it itself.
///
/// Not by `pg_partition_tree()`: that tells of the present, also inside a snapshot that shows the catalog as it was.
pub(crate) fn trees(roots: &str) -> String {
    format!(
        "WITH RECURSIVE tree(root, relid, way) AS ( \
           SELECT o.oid, o.oid, '{{}}'::oid[] FROM unnest({roots}::oid[]) o(oid) \
           UNION ALL SELECT t.root, i.inhrelid, t.way || i.inhrelid FROM tree t \
             JOIN pg_class p ON p.oid = t.relid AND p.relkind = 'p' \
             JOIN pg_inherits i ON i.inhparent = t.relid AND NOT i.inhdetachpending)"
    )
}

/// Foreign tables, views and the like are read only to say why they are left out. What Tidewater keeps for itself is not
/// for the lake. Temporary tables live in schemas of the
/// system's.
const CANDIDATES: &str = "SELECT c.oid, n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence::text, \
      CASE WHEN c.relispartition THEN pg_partition_root(c.oid)::regclass::text END \
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname NOT IN ('information_schema', 'tidewater') AND n.nspname !~ '^pg_' \
    ORDER BY n.nspname, c.relname";

struct Candidate {
    oid: u32,
    schema: String,
    name: String,
    kind: String,
    persistence: String,
    root: Option<String>,
}

impl Candidate {
    fn read(row: &Row) -> Rows<Candidate> {
        Ok(Candidate {
            oid: row.try_get(0)?,
            schema: row.try_get(1)?,
            name: row.try_get(2)?,
            kind: row.try_get(3)?,
            persistence: row.try_get(4)?,
            root: row.try_get(5)?,
        })
    }

    fn reason_to_skip(&self) -> Option<SkipReason> {
        match (self.kind.as_str(), self.persistence.as_str(), &self.root) {
            (_, _, Some(root)) => Some(SkipReason::Partition { root: root.clone() }),
            ("v", ..) => Some(SkipReason::View),
            ("m", ..) => Some(SkipReason::MaterializedView),
            ("f", ..) => Some(SkipReason::Foreign),
            (_, "u", _) => Some(SkipReason::Unlogged),
            _ => None,
        }
    }
}

async fn read_columns(
    client: &Client,
    oids: &[u32],
    version: u32,
) -> Result<HashMap<u32, Vec<SourceColumn>>> {
    let doing = "reading columns";
    // attmissingval is an array of one; its text read as text[] gives the value's own text, whatever the type.
    let sql = "SELECT attrelid, attname::text, attnum, atttypid, atttypmod, attnotnull, attgenerated::text, \
                 CASE WHEN atthasmissing THEN (attmissingval::text::text[])[1] END \
               FROM pg_attribute WHERE attrelid = ANY($1) AND attnum > 0 AND NOT attisdropped ORDER BY attrelid, attnum";
    let read = |row: &Row| -> Rows<SourceColumn> {
        let generated = match row.try_get::<_, &str>(6)? {
            "s" => Generated::Stored,
            "v" => Generated::Virtual,
            _ => Generated::None,
        };
        Ok(SourceColumn {
            name: row.try_get(1)?,
            attnum: row.try_get(2)?,
            type_oid: row.try_get(3)?,
            typmod: row.try_get(4)?,
            not_null: row.try_get(5)?,
            generated,
            published: match generated {
                Generated::None => true,
                Generated::Stored => version >= PUBLISHES_GENERATED,
                Generated::Virtual => false,
            },
            missing_value: row.try_get(7)?,
        })
    };
    let mut columns: HashMap<u32, Vec<SourceColumn>> = HashMap::new();
    for row in client.query(sql, &[&oids]).await.map_err(|source| client.error(doing, source))? {
        let of: u32 = row.try_get(0).map_err(|source| client.error(doing, source))?;
        columns.entry(of).or_default().push(read(&row).map_err(|source| client.error(doing, source))?);
    }
    Ok(columns)
}

/// Each table with all its partitions: what each one's rows can be named by.
async fn read_trees(client: &Client, oids: &[u32]) -> Result<HashMap<u32, Vec<Relation>>> {
    let doing = "reading replica identities";
    // An index's key columns in index order; INCLUDEd ones are no part of the key, expressions have attnum 0.
    let sql = format!(
        "{} SELECT t.root, c.oid, c.oid::regclass::text, c.relkind::text, c.relpersistence::text, \
                 c.relreplident::text, c.reltuples::int8, c.relpages::int8, \
                 i.indisprimary, i.indisreplident, \
                 i.indisvalid OR c.relkind = 'p', i.indimmediate, i.indisunique AND i.indpred IS NULL, \
                 ARRAY(SELECT k.attnum FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, at) \
                       WHERE k.at <= i.indnkeyatts ORDER BY k.at), \
                 ARRAY(SELECT coalesce(a.attname, '')::text FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, at) \
                       LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum \
                       WHERE k.at <= i.indnkeyatts ORDER BY k.at) \
               FROM tree t JOIN pg_class c ON c.oid = t.relid \
               LEFT JOIN pg_index i ON i.indrelid = c.oid AND (i.indisprimary OR i.indisreplident) \
               ORDER BY t.root, c.oid",
        trees("$1")
    );
    let mut trees: HashMap<u32, Vec<Relation>> = HashMap::new();
    for row in client.query(&sql, &[&oids]).await.map_err(|source| client.error(doing, source))? {
        let root: u32 = row.try_get(0).map_err(|source| client.error(doing, source))?;
        let tree = trees.entry(root).or_default();
        Relation::read_into(tree, &row).map_err(|source| client.error(doing, source))?;
    }
    Ok(trees)
}
