//! A source in memory: random changes, and the rows they leave.

use super::Change::{self, Delete, Insert, Truncate, Update, UpdateKeepingNote, UpdateKey};
use super::Row;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Rows by id.
pub type Model = BTreeMap<i64, Row>;

/// Keeps the changes that a source could have made, and makes them in the model.
pub fn follow(model: &mut Model, list: Vec<Change>) -> Vec<Change> {
    let mut kept = Vec::new();
    for change in list {
        let possible = match &change {
            Insert(row) => model.insert_new(row),
            Update(row) => model.contains_key(&row.0) && model.insert(row.0, row.clone()).is_some(),
            UpdateKeepingNote(id, country) => model.get_mut(id).map(|row| row.1 = country.clone()).is_some(),
            UpdateKey(id, row) => {
                let free = *id == row.0 || !model.contains_key(&row.0);
                model.contains_key(id) && free && model.remove(id).is_some() && model.insert_new(row)
            }
            Delete(id) => model.remove(id).is_some(),
            Truncate => {
                model.clear();
                true
            }
        };
        if possible {
            kept.push(change);
        }
    }
    kept
}

trait InsertNew {
    fn insert_new(&mut self, row: &Row) -> bool;
}

impl InsertNew for Model {
    fn insert_new(&mut self, row: &Row) -> bool {
        let free = !self.contains_key(&row.0);
        if free {
            self.insert(row.0, row.clone());
        }
        free
    }
}

/// Any change of rows with ids from 0 to `ids`.
pub fn change(ids: i64) -> impl Strategy<Value = Change> {
    let id = 0..ids;
    let country = prop_oneof![Just(None), "[ab]".prop_map(Some)];
    let row = (id.clone(), country.clone(), proptest::option::of("[a-z]{0,3}"));
    prop_oneof![
        6 => row.clone().prop_map(Insert),
        4 => row.clone().prop_map(Update),
        3 => (id.clone(), country).prop_map(|(id, country)| UpdateKeepingNote(id, country)),
        2 => (id.clone(), row).prop_map(|(id, row)| UpdateKey(id, row)),
        4 => id.prop_map(Delete),
        1 => Just(Truncate),
    ]
}
