//! Values that Delta cannot hold.

use super::plan::PlannedTable;
use std::collections::BTreeMap;
use wal_decoder::DeadLetter;

/// Says which columns lost values to null, and why: once a batch and column, not once a value.
pub fn report(table: &PlannedTable, letters: Vec<DeadLetter>) {
    let mut by_column: BTreeMap<(usize, String), u64> = BTreeMap::new();
    for letter in letters {
        *by_column.entry((letter.column, letter.reason.to_string())).or_default() += 1;
    }
    for ((column, reason), count) in by_column {
        let column = table.schema.columns.get(column).map_or("?", |column| column.source_name.as_str());
        tracing::warn!(table = %table.name, column, reason, count, "values that Delta cannot hold became null");
    }
}
