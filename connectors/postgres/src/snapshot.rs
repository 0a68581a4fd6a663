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
//!
//! **A snapshot alone is not enough.** What `ALTER TABLE` or `TRUNCATE` wrote anew since is invisible to it (PostgreSQL's
//! manual, "Caveats" of MVCC), and a statement takes the names of tables and columns as they are when it begins. So each
//! piece is read under a lock, and only if the table is then still what the snapshot shows:
//!
//! ```text
//!   SELECT FROM ONLY t LIMIT 0     takes the lock; waits for LOCK_PATIENCE at most, and holds no other meanwhile
//!   another session                same file, same name, same columns as in the snapshot?  no: Error::TableChanged
//!   COPY                           nobody can rewrite or rename it now
//!   ROLLBACK TO SAVEPOINT          gives the lock back: an ALTER TABLE waits for one piece, not for the whole load
//! ```

mod leaf_table;

use crate::client::{Client, connect};
use crate::copy_out::{CopyChunk, CopyOut};
use crate::error::{Error, Result};
use crate::object_name::{quote_identifier, quote_literal};
use crate::source_config::SourceConfig;
use crate::wire::broken;
use crate::wire_session::{Backend, WireSession};
pub use leaf_table::LeafTable;
use std::sync::Arc;

/// Timeouts that would end a long COPY or the transaction around it. Which of them exist depends on the version.
const LIFT_TIMEOUTS: &str = "SELECT set_config(name, '0', false) FROM pg_settings WHERE name IN \
    ('statement_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout', 'idle_session_timeout')";

/// How long a table's lock is waited for. Whoever holds it for longer does not hold up the other tables.
const LOCK_PATIENCE: &str = "SET lock_timeout = '5s'";

/// What is locked after this savepoint is unlocked by going back to it, and an error after it ends no transaction.
const BEFORE_LOCKS: &str = "SAVEPOINT before_locks";
const UNLOCK: &str = "ROLLBACK TO SAVEPOINT before_locks";

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
    /// Sees everything as it is now.
    present: Arc<Client>,
}

/// Opens sessions inside an exported snapshot. The exporting session must still be there, without a command in between.
pub async fn import_snapshot(
    config: &SourceConfig,
    snapshot: &str,
    sessions: usize,
) -> Result<Vec<SnapshotSession>> {
    let doing = "importing a snapshot";
    let present = connect(config).await?;
    present.batch_execute(LIFT_TIMEOUTS).await.map_err(|source| present.error(doing, source))?;
    let present = Arc::new(present);
    let begin = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}; {BEFORE_LOCKS}",
        quote_literal(snapshot)
    );
    let mut imported = Vec::with_capacity(sessions);
    for _ in 0..sessions {
        let mut session = WireSession::connect(config, Backend::Sql).await?;
        session.command(doing, &format!("{LIFT_TIMEOUTS}; {LOCK_PATIENCE}")).await?;
        // On its own: a query before it in the same message would be the transaction's first.
        session.command(doing, &begin).await?;
        imported.push(SnapshotSession { session, present: present.clone() });
    }
    Ok(imported)
}

impl SnapshotSession {
    /// The tables that hold the rows of `oid`: itself, or the leaves of a partitioned table. [`Error::TableChanged`] if one
    /// of them is gone.
    pub async fn leaf_tables(&mut self, oid: u32) -> Result<Vec<LeafTable>> {
        let doing = "measuring a table";
        self.session.command(doing, UNLOCK).await?;
        let mut leaves = Vec::new();
        for row in self.session.command(doing, &leaf_table::of_table(oid)).await? {
            if leaf_table::is_gone(&row) {
                return Err(self.changed(&format!("with oid {oid}")));
            }
            let leaf = LeafTable::read(row).ok_or_else(|| {
                broken(&self.session.place, "a table's measures that cannot be read".to_owned())
            });
            leaves.push(leaf?);
        }
        Ok(leaves)
    }

    /// The rows of one piece, as `COPY (FORMAT binary)` data. [`Error::TableChanged`] if the snapshot does not show them
    /// any more, see the module's essay.
    pub async fn copy(
        &mut self,
        table: &LeafTable,
        columns: &[CopyColumn],
        range: CtidRange,
    ) -> Result<SnapshotCopy<'_>> {
        self.lock(table, columns).await?;
        let statement = copy_statement(&table.quoted_name(), columns, range);
        let present = Arc::clone(&self.present);
        let rows = CopyOut::begin(&mut self.session, "copying a table", &statement).await?;
        Ok(SnapshotCopy { rows, present, table: table.oid() })
    }

    /// Locks a table and nothing else, and looks whether it is what the snapshot shows.
    async fn lock(&mut self, table: &LeafTable, columns: &[CopyColumn]) -> Result<()> {
        let doing = "locking a table to read it";
        self.session.command(doing, UNLOCK).await?;
        // LOCK TABLE would ask for the privilege to read every column.
        let lock = format!("SELECT FROM ONLY {} LIMIT 0", table.quoted_name());
        self.session.command(doing, &lock).await?;
        let names = columns.iter().map(|column| column.name.as_str());
        if table.is_still_so(&self.present, names).await? {
            Ok(())
        } else {
            Err(self.changed(&format!("{}.{}", table.schema, table.name)))
        }
    }

    fn changed(&self, table: &str) -> Error {
        Error::TableChanged { place: self.session.place.name.clone(), table: table.to_owned() }
    }

    /// Ends the session in order: the server would log a connection that is merely dropped.
    pub async fn close(self) -> Result<()> {
        self.session.close().await
    }
}

/// The rows of one piece, while they are read.
///
/// Dropped before its end, it leaves the session unusable.
pub struct SnapshotCopy<'a> {
    rows: CopyOut<'a>,
    /// Sees everything as it is now.
    present: Arc<Client>,
    table: u32,
}

impl SnapshotCopy<'_> {
    /// The next rows; `None` at the end, when the table is unlocked.
    pub async fn next(&mut self) -> Result<Option<CopyChunk>> {
        let chunk = self.rows.next().await?;
        if chunk.is_none() {
            self.rows.session().command("unlocking a table", UNLOCK).await?;
        }
        Ok(chunk)
    }

    /// Whether somebody waits for a lock of the table, as an `ALTER TABLE` does until it is unlocked.
    pub async fn is_in_the_way(&self) -> Result<bool> {
        leaf_table::is_waited_for(self.table, &self.present).await
    }

    /// Receives the rest and keeps nothing of it: the quickest way to unlock the table and go on with the session.
    pub async fn pass_over(&mut self) -> Result<()> {
        while self.next().await?.is_some() {}
        Ok(())
    }
}

/// Nothing but quoted names and the catalog's own: the session's `search_path` is empty.
fn copy_statement(table: &str, columns: &[CopyColumn], range: CtidRange) -> String {
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
    format!("COPY (SELECT {list} FROM ONLY {table}{bounds}) TO STDOUT (FORMAT binary)")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object_name::quote_qualified;
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
        let table = quote_qualified("public", "Odd \"one\"");
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
