//! A table that holds rows, as a snapshot shows it, and whether it is still so.
//!
//! Both looks ask the catalog the same question, one inside the snapshot and one outside, and compare the answers:
//!
//! | what happened since | seen by |
//! |---|---|
//! | a rewrite by `ALTER TABLE`, `TRUNCATE`, `VACUUM FULL` | another file |
//! | a rename, another schema | another name |
//! | columns renamed, dropped, of another type | another number or type under a column's name |
//!
//! Columns that came since do not matter. `VACUUM FULL` keeps old snapshots working, but moves rows to other pages than
//! those that the pieces were cut from.

use super::{Client, Result};
use crate::catalog::trees;
use crate::object_name::quote_qualified;
use std::collections::BTreeMap;

/// A table that holds rows itself: an ordinary table, or a leaf of a partitioned one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafTable {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// Its size in pages, measured in the snapshot's session.
    pub pages: u64,
    /// Whether its rows can be addressed by page; otherwise only [`CtidRange::WHOLE`](super::CtidRange::WHOLE) is right.
    pub is_heap: bool,
    oid: u32,
    /// The file of its rows.
    file: String,
    /// By name, each column's number and type.
    columns: BTreeMap<String, String>,
}

/// Schema, name, file and columns of `c`.
const DEFINITION: &str = "n.nspname::text, c.relname::text, c.relfilenode::text, \
    (SELECT coalesce(jsonb_object_agg(a.attname, concat_ws(':', a.attnum, a.atttypid, a.atttypmod)), '{}')::text \
     FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)";

/// Asks for the leaves of the table with this oid, the largest first.
pub(super) fn of_table(oid: u32) -> String {
    format!(
        "{} SELECT {DEFINITION}, c.oid::int8, coalesce(m.amname, 'heap') = 'heap', \
           (pg_relation_size(c.oid) / current_setting('block_size')::int8)::int8 \
         FROM tree t JOIN pg_class c ON c.oid = t.relid AND c.relkind = 'r' \
         JOIN pg_namespace n ON n.oid = c.relnamespace \
         LEFT JOIN pg_am m ON m.oid = c.relam \
         ORDER BY 7 DESC, 1, 2",
        trees(&format!("'{{{oid}}}'"))
    )
}

/// Whether an answer to [`of_table`] is about a table that is gone: its size is asked of the present.
pub(super) fn is_gone(row: &[Option<String>]) -> bool {
    row.last().is_some_and(Option::is_none)
}

impl LeafTable {
    /// Reads an answer to [`of_table`].
    pub(super) fn read(row: Vec<Option<String>>) -> Option<LeafTable> {
        let row: Vec<String> = row.into_iter().collect::<Option<_>>()?;
        let [schema, name, file, columns, oid, is_heap, pages] = <[String; 7]>::try_from(row).ok()?;
        Some(LeafTable {
            schema,
            name,
            pages: pages.parse().ok()?,
            is_heap: is_heap == "t",
            oid: oid.parse().ok()?,
            file,
            columns: serde_json::from_str(&columns).ok()?,
        })
    }

    pub(super) fn quoted_name(&self) -> String {
        quote_qualified(&self.schema, &self.name)
    }

    /// Whether the table is now what the snapshot shows, as far as these columns go.
    pub(super) async fn is_still_so<'a>(
        &self,
        present: &Client,
        mut columns: impl Iterator<Item = &'a str>,
    ) -> Result<bool> {
        let sql = format!(
            "SELECT {DEFINITION} FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1"
        );
        let failed = |source| present.error("looking at a table that is being read", source);
        let Some(row) = present.query_opt(&sql, &[&self.oid]).await.map_err(failed)? else {
            return Ok(false);
        };
        let text = |at: usize| row.try_get::<_, String>(at).map_err(failed);
        let same_rows = text(0)? == self.schema && text(1)? == self.name && text(2)? == self.file;
        let now: Option<BTreeMap<String, String>> = serde_json::from_str(&text(3)?).ok();
        Ok(same_rows && now.is_some_and(|now| columns.all(|name| now.get(name) == self.columns.get(name))))
    }

    pub(super) fn oid(&self) -> u32 {
        self.oid
    }
}

/// Whether somebody waits for a lock of this table.
pub(super) async fn is_waited_for(oid: u32, present: &Client) -> Result<bool> {
    let sql = "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation = $1 \
               AND database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()))";
    let failed = |source| present.error("looking for who waits for a table", source);
    present.query_one(sql, &[&oid]).await.map_err(failed)?.try_get(0).map_err(failed)
}
