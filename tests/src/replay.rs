//! A history replayed row for row, which has to end at what its source holds.

use std::collections::BTreeMap;

use crate::reader::{Engine, LakeTable, Reader};

/// A row's values as canonical texts.
pub type Cells = Vec<Option<String>>;

/// A history's row: the source's cells, and what happened.
#[derive(Debug)]
pub struct Recorded {
    /// The source's cells.
    pub cells: Cells,
    /// `_pg_change_type`.
    pub change: String,
    xid: Option<String>,
}

/// All rows in the order of time. No two may stand at the same place.
pub async fn recorded(reader: &mut Reader, lake: &LakeTable) -> Vec<Recorded> {
    let mut rows = reader.rows(Engine::DuckDb, lake).await;
    let number = |cell: &Option<String>| cell.as_deref().unwrap().parse::<i64>().unwrap();
    rows.sort_by_key(|row| (number(&row[row.len() - 4]), number(&row[row.len() - 1])));
    for pair in rows.windows(2) {
        let place = |row: &Cells| (row[row.len() - 4].clone(), row[row.len() - 1].clone());
        let streamed = pair[1][pair[1].len() - 2].is_some();
        assert!(!streamed || place(&pair[0]) != place(&pair[1]), "two rows at one place: {pair:?}");
    }
    rows.into_iter()
        .map(|mut row| {
            let added = row.split_off(row.len() - 5);
            Recorded { cells: row, change: added[0].clone().unwrap(), xid: added[3].clone() }
        })
        .collect()
}

/// Replays a history row for row. Rows may be equal, as in a table without a key.
pub fn replay(table: &str, history: Vec<Recorded>) -> Vec<Cells> {
    let mut state: BTreeMap<Cells, u64> = BTreeMap::new();
    // Those that wait for their postimage: one, or all that a load after a gap found.
    let mut preimages: Vec<Recorded> = Vec::new();
    for row in history {
        let Recorded { cells, change, xid } = &row;
        let alone = preimages.last().is_some_and(|before| before.xid != *xid || xid.is_some());
        assert!(!alone || change == "update_postimage", "{table}: a preimage stands alone before {cells:?}");
        match change.as_str() {
            "insert" => *state.entry(row.cells).or_default() += 1,
            "update_postimage" => {
                assert!(preimages.pop().is_some(), "{table}: no preimage of {cells:?}");
                *state.entry(row.cells).or_default() += 1;
            }
            "update_preimage" | "delete" => {
                let there = state.get_mut(cells).filter(|count| **count > 0);
                *there.unwrap_or_else(|| panic!("{table}: {change} of {cells:?}, which is not there")) -= 1;
                if change == "update_preimage" {
                    preimages.push(row);
                }
            }
            "truncate" => state.clear(),
            other => panic!("{table}: {other}"),
        }
    }
    state.into_iter().flat_map(|(row, count)| std::iter::repeat_n(row, count as usize)).collect()
}
