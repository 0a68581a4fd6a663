//! Rows of the Delta table that are not served, and why.

use std::fmt;

/// Named of each kind: enough to see what is wrong, and bounded whatever the table holds.
const NAMED: usize = 5;

/// A row that is not served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptOutRow {
    /// Its key, as `id=7`.
    pub key: String,
    /// The column that does not fit, if it is one.
    pub column: Option<String>,
    /// What is wrong with it.
    pub reason: String,
}

/// How many rows are kept out. Of changes, the counts are differences and may be negative.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeptOut {
    /// Rows with a null in their key.
    pub null_keys: i64,
    /// Rows with a value that Postgres or the column cannot hold.
    pub misfits: i64,
    /// Rows that share their key with others.
    pub duplicates: i64,
    /// The first of them.
    pub named: Vec<KeptOutRow>,
}

impl KeptOut {
    /// Every kept-out row.
    pub fn rows(&self) -> i64 {
        self.null_keys + self.misfits + self.duplicates
    }

    /// Adds what others found.
    pub fn add(&mut self, other: KeptOut) {
        self.null_keys += other.null_keys;
        self.misfits += other.misfits;
        self.duplicates += other.duplicates;
        for row in other.named {
            self.name(|| row);
        }
    }

    pub(super) fn null_key(&mut self, sign: i64, row: impl FnOnce() -> KeptOutRow) {
        self.null_keys += sign;
        if sign > 0 {
            self.name(row);
        }
    }

    pub(super) fn misfit(&mut self, sign: i64, row: impl FnOnce() -> KeptOutRow) {
        self.misfits += sign;
        if sign > 0 {
            self.name(row);
        }
    }

    pub(super) fn name(&mut self, row: impl FnOnce() -> KeptOutRow) {
        if self.named.len() < NAMED {
            self.named.push(row());
        }
    }
}

impl fmt::Display for KeptOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds = [
            (self.null_keys, "with a null key"),
            (self.duplicates, "that share their key"),
            (self.misfits, "with a value that does not fit"),
        ];
        let kinds: Vec<_> =
            kinds.iter().filter(|(n, _)| *n != 0).map(|(n, kind)| format!("{n} {kind}")).collect();
        write!(f, "{} rows are not served: {}", self.rows(), kinds.join(", "))?;
        for row in &self.named {
            match &row.column {
                Some(column) => write!(f, "; {}: column {column} holds {}", row.key, row.reason)?,
                None => write!(f, "; {}: {}", row.key, row.reason)?,
            }
        }
        Ok(())
    }
}
