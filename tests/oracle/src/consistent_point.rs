//! Whether versions belong together that the lake says do.
//!
//! Every transaction writes the same into both ledgers, so at each consistent point the two hold the same transactions,
//! with the same marks. A version that is off by one commit would show a transaction in one of them only.

use crate::dice::Dice;
use crate::ledger::{LEDGERS, transactions};
use std::collections::BTreeSet;
use std::path::Path;
use tidewater_e2e::{Engine, LakeTable, Reader};

/// Points that are looked at.
const POINTS: usize = 5;

/// A row of the table of points.
struct Row {
    incarnation: String,
    lsn: i64,
    table: String,
    /// None: the table is at no version there that belongs to the others.
    version: Option<u64>,
}

/// Fails if at some of the points, chosen at random, the ledgers differ. Gives how many were looked at.
pub async fn assert_consistent(reader: &mut Reader, dice: &mut Dice, lake: &Path) -> u64 {
    let points = lake.join("_tidewater/consistent_points");
    if !points.exists() {
        return 0;
    }
    let columns = ["incarnation", "lsn", "table", "version"];
    let rows = reader.columns(Engine::DeltaRs, &LakeTable::at(&points), &columns).await;
    let rows: Vec<Row> = rows.into_iter().map(read).collect();
    let mut places: Vec<(String, i64)> = rows
        .iter()
        .map(|row| (row.incarnation.clone(), row.lsn))
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    let mut looked = 0;
    for _ in 0..POINTS.min(places.len()) {
        let last = u32::try_from(places.len() - 1).expect("few points");
        let (incarnation, lsn) = places.swap_remove(dice.between(0, last) as usize);
        let version_of = |ledger: &str| {
            let name = format!("public.{ledger}");
            let of_it = rows.iter().filter(|row| row.table == name && row.incarnation == incarnation);
            of_it.filter(|row| row.lsn <= lsn).max_by_key(|row| row.lsn)?.version
        };
        let [Some(one), Some(other)] = LEDGERS.map(version_of) else { continue };
        let mut found = Vec::new();
        for (ledger, version) in LEDGERS.iter().zip([one, other]) {
            let at = LakeTable::at(&lake.join("public").join(ledger)).version(version);
            found.push(reader.columns(Engine::DuckDb, &at, &["txn", "parts", "mark"]).await);
        }
        let [one_has, other_has] = [&found[0], &found[1]].map(|rows| transactions(rows));
        assert!(
            one_has == other_has,
            "at {lsn} of {incarnation}, versions {one} and {other} of the ledgers differ:\n{one_has:?}\n{other_has:?}"
        );
        looked += 1;
    }
    looked
}

fn read(row: Vec<Option<String>>) -> Row {
    let [Some(incarnation), Some(lsn), Some(table), version] =
        <[Option<String>; 4]>::try_from(row).expect("four columns")
    else {
        panic!("a consistent point with nulls");
    };
    let version = version.map(|version| version.parse().expect("a number"));
    Row { incarnation, lsn: lsn.parse().expect("a number"), table, version }
}
