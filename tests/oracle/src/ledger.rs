//! Two tables that show whether a version of the lake holds whole transactions.
//!
//! Each transaction writes its own number into both, a few rows each, spread over all it does; every row says how
//! many there are. Later ones mark all rows of an earlier transaction, or remove them all. So at any commit, in
//! any version, each transaction's rows are all there with one mark, or none of them is. A row that was written
//! under a savepoint and rolled back would be one too many.

use crate::dice::Dice;
use std::collections::BTreeMap;

/// The two tables, in schema `public`.
pub const LEDGERS: [&str; 2] = ["ledger_a", "ledger_b"];

/// What makes them.
pub fn create() -> Vec<String> {
    let table = |name: &str| {
        format!(
            "CREATE TABLE {name} (txn bigint, part integer, parts integer NOT NULL, mark integer NOT NULL, note text, \
             PRIMARY KEY (txn, part))"
        )
    };
    LEDGERS.map(table).to_vec()
}

/// The entries of one transaction.
#[derive(Debug)]
pub struct Entries {
    txn: u64,
    parts: u32,
}

impl Entries {
    /// Entries of the transaction with this number.
    pub fn draw(dice: &mut Dice, txn: u64) -> Entries {
        Entries { txn, parts: dice.between(1, 4) }
    }

    /// Their statements, one for each row, to be spread over the transaction.
    pub fn statements(&self) -> Vec<String> {
        let Entries { txn, parts } = self;
        LEDGERS
            .iter()
            .flat_map(|table| {
                (0..*parts).map(move |part| {
                    format!(
                        "INSERT INTO {table} VALUES ({txn}, {part}, {parts}, 0, repeat('note {txn} ', 20))"
                    )
                })
            })
            .collect()
    }

    /// A row that must never be seen: written under a savepoint that is rolled back.
    pub fn phantom(&self, number: usize) -> String {
        let Entries { txn, parts } = self;
        format!("INSERT INTO {} VALUES ({txn}, {}, {parts}, 0, 'rolled back')", LEDGERS[0], 1000 + number)
    }
}

/// Marks or removes all entries of an earlier transaction, in both tables by one statement: two could be parted by a
/// savepoint, or see different commits of others.
pub fn touch(dice: &mut Dice, txn: u64) -> String {
    let removes = dice.chance(30);
    let [one, other] = LEDGERS.map(|table| {
        if removes {
            format!("DELETE FROM {table} WHERE txn = {txn}")
        } else {
            format!("UPDATE {table} SET mark = mark + 1 WHERE txn = {txn}")
        }
    });
    format!("WITH one AS ({one}) {other}")
}

/// What each transaction has in one table: rows, and their mark. `rows` are its `txn`, `parts` and `mark`.
pub fn transactions(rows: &[Vec<Option<String>>]) -> BTreeMap<&str, (u64, &str)> {
    let mut seen = BTreeMap::new();
    for row in rows {
        if let [Some(txn), _, Some(mark)] = row.as_slice() {
            seen.entry(txn.as_str()).or_insert((0, mark.as_str())).0 += 1;
        }
    }
    seen
}

/// What is wrong with a version: `rows` are its `txn`, `parts` and `mark`.
pub fn torn_transaction(rows: &[Vec<Option<String>>]) -> Option<String> {
    let mut seen: BTreeMap<&str, (u64, &str, &str)> = BTreeMap::new();
    for row in rows {
        let [Some(txn), Some(parts), Some(mark)] = row.as_slice() else {
            return Some(format!("a row with nulls: {row:?}"));
        };
        let entry = seen.entry(txn).or_insert((0, parts, mark));
        if (entry.1, entry.2) != (parts.as_str(), mark.as_str()) {
            return Some(format!("transaction {txn} has rows with marks {} and {mark}", entry.2));
        }
        entry.0 += 1;
    }
    seen.into_iter()
        .find(|(_, (count, parts, _))| *parts != count.to_string())
        .map(|(txn, (count, parts, _))| format!("transaction {txn} has {count} of {parts} rows"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(txn: &str, parts: &str, mark: &str) -> Vec<Option<String>> {
        [txn, parts, mark].map(|text| Some(text.to_owned())).to_vec()
    }

    #[test]
    fn whole_transactions_are_not_torn() {
        assert_eq!(torn_transaction(&[]), None);
        assert_eq!(torn_transaction(&[row("7", "2", "1"), row("8", "1", "0"), row("7", "2", "1")]), None);
    }

    #[test]
    fn a_missing_an_extra_and_a_stale_row_are_each_found() {
        assert!(torn_transaction(&[row("7", "2", "0")]).is_some());
        assert!(torn_transaction(&[row("7", "1", "0"), row("7", "1", "0")]).is_some());
        assert!(torn_transaction(&[row("7", "2", "0"), row("7", "2", "1")]).is_some());
    }
}
