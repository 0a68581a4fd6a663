//! Row changes, checked against the table and cut into pieces that are consumed at once.
//!
//! A Truncate stands alone, because what comes before it must not be looked up after it. Pieces are
//! short where values have to be read back: each may be as large as a Postgres field can be.

use crate::error::{DeltaError, Result};
use crate::table_definition::{TableDefinition, TableKind};
use arrow::datatypes::Schema;
use wal_decoder::{Op, RowChanges, UnchangedValue};

/// Operations of a piece: large enough that looking keys up in bulk pays.
pub(crate) const SEGMENT_OPS: usize = 16_384;
/// The same where values are read back.
pub(crate) const SEGMENT_OPS_WITH_UNCHANGED: usize = 256;

/// Refuses changes that do not fit the table or contradict themselves.
pub(crate) fn check(table: &str, definition: &TableDefinition, changes: &RowChanges) -> Result<()> {
    let bad = |reason: String| Err(DeltaError::BadChanges { table: table.to_owned(), reason });
    let source = definition.source_schema()?;
    if !same_columns(&changes.rows.schema(), &source) {
        return bad(format!("rows have the columns {}", columns_of(&changes.rows.schema())));
    }
    let takes = |ops: &[Op], kinds: &[Op]| ops.iter().filter(|op| kinds.contains(op)).count();
    let rows = takes(&changes.ops, &[Op::Insert, Op::Update, Op::UpdateKey]);
    let old_keys = takes(&changes.ops, &[Op::Delete, Op::UpdateKey]);
    if rows != changes.rows.num_rows() || old_keys != changes.old_keys.num_rows() {
        return bad(format!(
            "operations take {rows} rows and {old_keys} old keys, but there are {} and {}",
            changes.rows.num_rows(),
            changes.old_keys.num_rows()
        ));
    }
    let finds = takes(&changes.ops, &[Op::Update, Op::UpdateKey, Op::Delete]);
    // A history needs no key where the source sends whole old rows.
    let sends_old_rows = definition.kind == TableKind::History && !definition.has_key();
    if finds > 0 && !definition.has_key() && !sends_old_rows {
        return bad("updates and deletes need a key, and the table has none".to_owned());
    }
    if old_keys > 0 {
        let key = match sends_old_rows {
            true => Schema::clone(&source),
            false => {
                source.project(&definition.key).map_err(DeltaError::arrow("choose the key's columns"))?
            }
        };
        if !same_columns(&changes.old_keys.schema(), &key) {
            return bad(format!("old keys have the columns {}", columns_of(&changes.old_keys.schema())));
        }
    }
    for value in &changes.unchanged {
        let column = value.column as usize;
        if value.row as usize >= rows || column >= source.fields().len() {
            return bad(format!("no value at row {}, column {column} to read back", value.row));
        }
        if definition.key.contains(&column) {
            return bad("a key column was left out as unchanged; the source has to send it".to_owned());
        }
    }
    Ok(())
}

fn same_columns(left: &Schema, right: &Schema) -> bool {
    left.fields().len() == right.fields().len()
        && left
            .fields()
            .iter()
            .zip(right.fields())
            .all(|(left, right)| left.name() == right.name() && left.data_type() == right.data_type())
}

fn columns_of(schema: &Schema) -> String {
    let columns: Vec<_> =
        schema.fields().iter().map(|field| format!("{} {}", field.name(), field.data_type())).collect();
    columns.join(", ")
}

/// Cuts checked changes into pieces of at most `limit` operations.
pub(crate) fn split(changes: &RowChanges, limit: usize) -> impl Iterator<Item = RowChanges> + '_ {
    let (mut op, mut row, mut old, mut value) = (0, 0, 0, 0);
    std::iter::from_fn(move || {
        let rest = changes.ops.get(op..).filter(|rest| !rest.is_empty())?;
        let until_truncate = rest.iter().position(|op| *op == Op::Truncate).unwrap_or(rest.len());
        let ops: Vec<Op> = rest.iter().take(until_truncate.clamp(1, limit)).copied().collect();
        let rows = ops.iter().filter(|op| matches!(op, Op::Insert | Op::Update | Op::UpdateKey)).count();
        let olds = ops.iter().filter(|op| matches!(op, Op::Delete | Op::UpdateKey)).count();
        let unchanged: Vec<UnchangedValue> = changes
            .unchanged
            .iter()
            .skip(value)
            .take_while(|at| (at.row as usize) < row + rows)
            .map(|at| UnchangedValue { row: at.row - row as u32, column: at.column })
            .collect();
        let part = RowChanges {
            rows: changes.rows.slice(row, rows),
            old_keys: changes.old_keys.slice(old, olds),
            unchanged,
            ops,
        };
        op += part.ops.len();
        row += rows;
        old += olds;
        value += part.unchanged.len();
        Some(part)
    })
}
