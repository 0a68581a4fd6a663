//! What the catalog shows of changes that the stream does not.
//!
//! Some statements change what a table's rows read as without sending a row: a rewrite (`ALTER COLUMN … TYPE … USING`,
//! a volatile default), a partition that is attached, detached, dropped or truncated alone, an enum value that is
//! renamed. Each leaves a trace in the catalog that nothing else takes away again:
//!
//! ```text
//!   statement                        trace
//!   rewrite by ALTER TABLE           other files, and another stamp
//!   VACUUM FULL, CLUSTER, TRUNCATE   other files, the same stamp
//!   ATTACH, DETACH, DROP             other partitions, or the same ones since another transaction
//!   CREATE TABLE … PARTITION OF      a partition that was born as one
//!   RENAME VALUE                     another label under the enum value's oid
//!   ALTER PUBLICATION, and back      another membership of the publication
//! ```
//!
//! Two looks that find the same storage prove that none of these happened between them.

use super::{Rows, SourceTable, trees};
use crate::client::Client;
use crate::error::Result;
use crate::publication::PublicationNames;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use tokio_postgres::Row;

/// A table's storage as of one look at the catalog. Equal where nothing happened that the stream does not show.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Storage {
    /// Attribute numbers given so far, those of dropped columns included: higher ones are of later columns.
    pub attributes: i16,
    /// Another one after every statement that touched a column's definition.
    pub stamp: String,
    /// By oid, the file of the table, or of each partition that holds rows; of a partition also since when it is one.
    pub files: BTreeMap<u32, String>,
    /// Partitions that were made as such: whatever they hold came through the stream.
    #[serde(skip)]
    pub born_as_partitions: BTreeSet<u32>,
    /// Columns of which some partition has rows with a frozen default.
    #[serde(skip)]
    pub frozen_columns: BTreeSet<String>,
    /// In which publications of ours it is, and since when without a gap. What it went through outside is in no stream.
    #[serde(default)]
    pub membership: String,
    /// The labels of the enums among its columns, by oid.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<u32, String>,
}

/// How partitions were made and what is frozen in them matters where they come in, and is no difference by itself.
impl PartialEq for Storage {
    fn eq(&self, other: &Storage) -> bool {
        let parts = |of: &Storage| {
            (of.attributes, of.stamp.clone(), of.files.clone(), of.membership.clone(), of.labels.clone())
        };
        parts(self) == parts(other)
    }
}

impl Eq for Storage {}

/// Dropped columns count: their rows stay, with the dropping transaction's id.
const STAMPS: &str = "SELECT a.attrelid, max(a.attnum), md5(string_agg(a.attnum || ':' || a.xmin, ',' ORDER BY a.attnum)) \
    FROM pg_attribute a WHERE a.attrelid = ANY($1) AND a.attnum > 0 GROUP BY a.attrelid";

/// A partition that was detached and attached again has another row in `pg_inherits`.
///
/// ATTACH writes every column's row anew, so a table that still has one beside its system columns' as CREATE TABLE wrote
/// them was never attached. All tables on the way up to the root have to be of that kind.
const FILES: &str = "SELECT t.root, c.oid, c.relfilenode::text || coalesce('@' || ( \
        SELECT string_agg(i.xmin::text, ',' ORDER BY i.inhrelid) FROM pg_inherits i WHERE i.inhrelid = ANY(t.way)), ''), \
      NOT EXISTS (SELECT 1 FROM unnest(t.way) n(oid) WHERE NOT EXISTS ( \
        SELECT 1 FROM pg_attribute s JOIN pg_attribute a ON a.attrelid = s.attrelid \
        WHERE s.attrelid = n.oid AND s.attnum = -1 AND a.attnum > 0 AND a.xmin = s.xmin AND a.cmin = s.cmin)), \
      ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE t.root <> c.oid AND a.attrelid = c.oid AND a.atthasmissing) \
    FROM tree t JOIN pg_class c ON c.oid = t.relid AND c.relkind = 'r'";

/// Enums, arrays of them, domains over them, and arrays of such domains or domains over such arrays.
const LABELS: &str = "SELECT DISTINCT a.attrelid, e.oid, e.enumlabel::text \
    FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid \
    LEFT JOIN pg_type element ON element.oid = t.typelem LEFT JOIN pg_type base ON base.oid = t.typbasetype \
    JOIN pg_enum e ON e.enumtypid IN (t.oid, t.typelem, t.typbasetype, element.typbasetype, base.typelem, base.typbasetype) \
    WHERE a.attrelid = ANY($1) AND a.attnum > 0 AND NOT a.attisdropped";

/// Takes one row of a query into its table's storage.
type Take = fn(&mut Storage, &Row) -> Rows<()>;

/// The storage of these tables.
pub(super) async fn read(client: &Client, oids: &[u32]) -> Result<HashMap<u32, Storage>> {
    let doing = "reading the tables' storage";
    let failed = |source| client.error(doing, source);
    let mut found: HashMap<u32, Storage> = HashMap::new();
    let files = format!("{} {FILES}", trees("$1"));
    let parts: [(&str, Take); 3] = [(STAMPS, take_stamp), (&files, take_file), (LABELS, take_label)];
    for (sql, take) in parts {
        for row in client.query(sql, &[&oids]).await.map_err(failed)? {
            let of: u32 = row.try_get(0).map_err(failed)?;
            take(found.entry(of).or_default(), &row).map_err(failed)?;
        }
    }
    Ok(found)
}

/// Taking a table out of a publication and putting it back gives its membership another oid; altering what a publication
/// publishes, another transaction.
const MEMBERSHIPS: &str = "SELECT r.prrelid, string_agg(r.oid || '@' || p.xmin, ',' ORDER BY r.oid) \
    FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid \
    WHERE p.pubname = ANY($1::text[]::name[]) AND r.prrelid = ANY($2) GROUP BY r.prrelid";

/// Says of each table in which of these publications it is.
pub(super) async fn read_memberships(
    client: &Client,
    publications: &PublicationNames,
    tables: &mut [SourceTable],
) -> Result<()> {
    let failed = |source| client.error("reading publications", source);
    let names = [publications.keyed.as_str(), publications.inserts.as_str()];
    let oids: Vec<u32> = tables.iter().map(|table| table.oid).collect();
    let rows = client.query(MEMBERSHIPS, &[&names.as_slice(), &oids]).await.map_err(failed)?;
    let found = rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?)));
    let mut found: HashMap<u32, String> = found.collect::<Rows<_>>().map_err(failed)?;
    for table in tables {
        table.storage.membership = found.remove(&table.oid).unwrap_or_default();
    }
    Ok(())
}

fn take_stamp(storage: &mut Storage, row: &Row) -> Rows<()> {
    storage.attributes = row.try_get(1)?;
    storage.stamp = row.try_get(2)?;
    Ok(())
}

fn take_file(storage: &mut Storage, row: &Row) -> Rows<()> {
    let oid: u32 = row.try_get(1)?;
    storage.files.insert(oid, row.try_get(2)?);
    if oid != row.try_get::<_, u32>(0)? && row.try_get(3)? {
        storage.born_as_partitions.insert(oid);
    }
    storage.frozen_columns.extend(row.try_get::<_, Vec<String>>(4)?);
    Ok(())
}

fn take_label(storage: &mut Storage, row: &Row) -> Rows<()> {
    storage.labels.insert(row.try_get(1)?, row.try_get(2)?);
    Ok(())
}
