//! Reading tables as they were at a slot's consistent point, by many sessions at once.
//!
//! ```text
//!   slot's session ── exports ──> snapshot name ── import_snapshot ──> SnapshotSession × workers
//!   ctid_ranges:  [0, n)  [n, 2n)  …  [kn, ∞)      a queue of pieces; each worker takes the next
//! ```
//!
//! Every worker sees the same rows: those whose transactions ended at or below the consistent point. Pieces are ranges of
//! a table's physical pages, so no piece needs an index and no row is in two. The last range has no end, because the file
//! may have grown since it was measured and rows of the snapshot may lie there.

use crate::copy_out::CopyOut;
use crate::error::Result;
use crate::object_name::{quote_identifier, quote_literal, quote_qualified};
use crate::source_config::SourceConfig;
use crate::wire::broken;
use crate::wire_session::{Backend, WireSession};

/// Timeouts that would end a long COPY or the transaction around it. Which of them exist depends on the version.
const LIFT_TIMEOUTS: &str = "SELECT set_config(name, '0', false) FROM pg_settings WHERE name IN \
    ('statement_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout', 'idle_session_timeout')";

/// Built-in types whose cast to text is not what they print: `char(n)` loses its padding, `inet` gains a netmask,
/// `boolean` becomes a word. From `pg_cast.dat`: bool, "char", name, xml, cidr, inet, bpchar.
const CASTS_UNLIKE_OUTPUT: [u32; 7] = [16, 18, 19, 142, 650, 869, 1042];
/// `FirstNormalObjectId`: types from here on are the user's, who may have given them any cast to text.
const FIRST_USER_OID: u32 = 16_384;

/// A piece of a table: pages from `start` up to but without `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CtidRange {
    /// The first page.
    pub start: u32,
    /// The page after the last; none: to the end of the table, wherever that is.
    pub end: Option<u32>,
}

impl CtidRange {
    /// The whole table in one piece; also right for tables that are not a heap.
    pub const WHOLE: CtidRange = CtidRange { start: 0, end: None };
}

/// Cuts a table of `pages` pages into pieces of `per_range`; the last has no end.
pub fn ctid_ranges(pages: u64, per_range: u32) -> Vec<CtidRange> {
    // A table has at most 2^32 - 1 pages (`MaxBlockNumber`).
    let pages = u32::try_from(pages).unwrap_or(u32::MAX);
    let step = per_range.max(1);
    let mut ranges = Vec::new();
    let mut start = 0;
    while pages.saturating_sub(start) > step {
        ranges.push(CtidRange { start, end: Some(start + step) });
        start += step;
    }
    ranges.push(CtidRange { start, end: None });
    ranges
}

/// A table that holds rows itself: an ordinary table, or a leaf of a partitioned one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafTable {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// Its size in pages, measured in the snapshot's session.
    pub pages: u64,
    /// Whether its rows can be addressed by page; otherwise only [`CtidRange::WHOLE`] is right.
    pub is_heap: bool,
}

/// A column to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyColumn {
    /// Its name; the same in every partition.
    pub name: String,
    /// Its declared type.
    pub type_oid: u32,
    /// In its type's binary form; otherwise as the text that the type prints.
    pub binary: bool,
}

impl CopyColumn {
    /// The expression in COPY's SELECT. Text must be exactly what the stream sends, which is the type's *output*; a cast
    /// to text is something else for a few types, and `format` always uses the output function.
    fn expression(&self) -> String {
        let name = quote_identifier(&self.name);
        if self.binary {
            name
        } else if self.type_oid < FIRST_USER_OID && !CASTS_UNLIKE_OUTPUT.contains(&self.type_oid) {
            format!("{name}::text")
        } else {
            // `IS NULL` would be true for a row of nulls too, which prints as (,).
            format!("CASE WHEN num_nulls({name}) = 0 THEN format('%s', {name}) END")
        }
    }
}

/// A session that sees an exported snapshot until it ends.
pub struct SnapshotSession {
    session: WireSession,
}

/// Opens a session inside an exported snapshot. The exporting session must still be there, without a command in between.
pub async fn import_snapshot(config: &SourceConfig, snapshot: &str) -> Result<SnapshotSession> {
    let mut session = WireSession::connect(config, Backend::Sql).await?;
    let doing = "importing a snapshot";
    session.command(doing, LIFT_TIMEOUTS).await?;
    // On its own: a query before it in the same message would be the transaction's first.
    let sql = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}",
        quote_literal(snapshot)
    );
    session.command(doing, &sql).await?;
    Ok(SnapshotSession { session })
}

impl SnapshotSession {
    /// The tables that hold the rows of `oid`: itself, or the leaves of a partitioned table.
    pub async fn leaf_tables(&mut self, oid: u32) -> Result<Vec<LeafTable>> {
        let sql = format!(
            "SELECT n.nspname::text, c.relname::text, \
               (pg_relation_size(c.oid) / current_setting('block_size')::int8)::int8, \
               coalesce(m.amname, 'heap') = 'heap' \
             FROM (SELECT relid FROM pg_partition_tree({oid}::oid) WHERE isleaf UNION SELECT {oid}::oid) t \
             JOIN pg_class c ON c.oid = t.relid AND c.relkind = 'r' \
             JOIN pg_namespace n ON n.oid = c.relnamespace \
             LEFT JOIN pg_am m ON m.oid = c.relam \
             ORDER BY 3 DESC, 1, 2"
        );
        let rows = self.session.command("measuring a table", &sql).await?;
        let leaf = |row: Vec<Option<String>>| match <[Option<String>; 4]>::try_from(row) {
            Ok([Some(schema), Some(name), Some(pages), Some(is_heap)]) => {
                let pages = pages.parse().ok()?;
                Some(LeafTable { schema, name, pages, is_heap: is_heap == "t" })
            }
            _ => None,
        };
        let leaves: Option<Vec<LeafTable>> = rows.into_iter().map(leaf).collect();
        leaves.ok_or_else(|| broken(&self.session.place, "a table's measures that cannot be read".to_owned()))
    }

    /// The rows of one piece, as `COPY (FORMAT binary)` data.
    pub async fn copy(
        &mut self,
        table: &LeafTable,
        columns: &[CopyColumn],
        range: CtidRange,
    ) -> Result<CopyOut<'_>> {
        CopyOut::begin(&mut self.session, "copying a table", &copy_statement(table, columns, range)).await
    }

    /// Ends the session in order: the server would log a connection that is merely dropped.
    pub async fn close(self) -> Result<()> {
        self.session.close().await
    }
}

/// Nothing but quoted names and the catalog's own: the session's `search_path` is empty.
fn copy_statement(table: &LeafTable, columns: &[CopyColumn], range: CtidRange) -> String {
    let list = columns.iter().map(CopyColumn::expression).collect::<Vec<_>>().join(", ");
    let mut bounds = Vec::new();
    if range.start > 0 {
        bounds.push(format!("ctid >= '({},0)'::tid", range.start));
    }
    if let Some(end) = range.end {
        bounds.push(format!("ctid < '({end},0)'::tid"));
    }
    let bounds = if bounds.is_empty() { String::new() } else { format!(" WHERE {}", bounds.join(" AND ")) };
    // ONLY: the children of an inheritance parent are tables of their own.
    format!(
        "COPY (SELECT {list} FROM ONLY {}{bounds}) TO STDOUT (FORMAT binary)",
        quote_qualified(&table.schema, &table.name)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_empty_table_is_one_piece_without_an_end() {
        assert_eq!(ctid_ranges(0, 1000), [CtidRange::WHOLE]);
    }

    #[test]
    fn the_largest_table_is_cut_without_overflow() {
        let ranges = ctid_ranges(u64::MAX, 1 << 30);
        assert_eq!(ranges.len(), 4);
        assert_eq!(ranges.last(), Some(&CtidRange { start: 3 << 30, end: None }));
    }

    proptest! {
        #[test]
        fn pieces_touch_without_overlap(pages in 0u64..100_000, per_range in 0u32..5_000) {
            let ranges = ctid_ranges(pages, per_range.max(50));
            prop_assert_eq!(ranges[0].start, 0);
            for pair in ranges.windows(2) {
                prop_assert_eq!(pair[0].end, Some(pair[1].start));
            }
            prop_assert_eq!(ranges.last().and_then(|range| range.end), None);
        }
    }

    #[test]
    fn a_statement_reads_one_piece_of_one_table_only() {
        let table =
            LeafTable { schema: "public".into(), name: "Odd \"one\"".into(), pages: 9, is_heap: true };
        let column = |name: &str, type_oid, binary| CopyColumn { name: name.into(), type_oid, binary };
        let columns = [column("id", 20, true), column("mood", 20_000, false), column("at", 1083, false)];
        assert_eq!(
            copy_statement(&table, &columns, CtidRange { start: 2, end: Some(4) }),
            "COPY (SELECT \"id\", CASE WHEN num_nulls(\"mood\") = 0 THEN format('%s', \"mood\") END, \"at\"::text \
             FROM ONLY \"public\".\"Odd \"\"one\"\"\" WHERE ctid >= '(2,0)'::tid AND ctid < '(4,0)'::tid) \
             TO STDOUT (FORMAT binary)"
        );
    }
}
