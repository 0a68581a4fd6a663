//! Tables that Spark writes, read and told by us, with Spark as the judge.
//!
//! ```text
//!   Spark writes a table, statement by statement
//!   every version:   our rows                        = Spark's rows
//!   every range:     our rows of a + our changes     = our rows of b     (in each detail, in order)
//!   with a feed:     our changes, as recorded        = Spark's table_changes
//! ```
//!
//! Starting Spark takes longer than any case, so one session writes and judges all of them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "the whole binary is tests"
)]

mod cases;
mod multiset;
mod other_writers;
mod public_tables;
mod spark;
mod unavailable;

use cases::cases;
use multiset::Multiset;
use reverse_sync::{Detail, Part, TableSource};
use spark::Spark;
use std::collections::BTreeMap;

fn open(folder: &std::path::Path) -> TableSource {
    TableSource::open(folder.to_str().unwrap(), &BTreeMap::new()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_spark_writes_is_read_and_told_as_spark_does() {
    let lake = tempfile::tempdir().unwrap();
    let mut spark = Spark::start();
    let only = std::env::var("ROW_CHANGES_CASE").unwrap_or_default();
    for case in cases().into_iter().filter(|case| case.name.contains(&only)) {
        let folder = lake.path().join(case.name.replace(' ', "_"));
        spark.run(&folder, &case.statements).await;
        let table = open(&folder);
        let latest = table.latest_version().await.unwrap();
        let mut theirs = spark.rows_of_versions(&folder, &case, latest).await;
        for version in 0..=latest {
            let rows = table.snapshot(version, &Part::default()).await.unwrap();
            let ours = spark.texts_of(rows).await.unwrap();
            assert_eq!(Some(ours), theirs.remove(&version), "{}: rows of version {version}", case.name);
        }
        every_range_leads_from_one_version_to_the_other(&table, case.name, &case.key, &case.renamed).await;
        if case.has_feed {
            let ours = spark.texts_of_changes(&table, latest).await;
            let theirs = spark.table_changes(&folder, latest).await;
            assert_eq!(ours, theirs, "{}: changes of Spark's feed", case.name);
        }
    }
    public_tables::a_table_with_checkpoints_of_version_2_is_read_as_spark_reads_it(&mut spark).await;
    if std::env::var_os("TIDEWATER_PUBLIC_TABLES").is_some() {
        public_tables::every_public_table_is_read_as_spark_reads_it(&mut spark).await;
    }
    unavailable::what_vacuum_took_makes_a_range_unavailable(&mut spark, lake.path()).await;
}

/// That the rows of each version, with the changes to each later one, are the rows of that.
async fn every_range_leads_from_one_version_to_the_other(
    table: &TableSource,
    name: &str,
    key: &[&str],
    renamed: &[(&str, &str)],
) {
    let key: Vec<String> = key.iter().map(|name| (*name).to_owned()).collect();
    let all = Part::default();
    for to in 1..=table.latest_version().await.unwrap() {
        let after = Multiset::of(table.snapshot(to, &all).await.unwrap(), &[]).await.unwrap();
        for from in 0..to {
            for detail in [Detail::AsRecorded, Detail::ByKey(key.clone()), Detail::Net(key.clone())] {
                let what = format!("{name}: {from} to {to}, {detail:?}");
                let before = table.snapshot(from, &all).await.unwrap();
                let mut rows = Multiset::under(&after, before, renamed).await.unwrap();
                let smallest = rows.distance(&after);
                let changes = table.row_changes(Some(from), to, &all, detail.clone()).await.unwrap();
                let told = rows.apply(changes, &what).await.unwrap();
                assert_eq!(rows, after, "{what}");
                if matches!(detail, Detail::Net(_)) {
                    assert_eq!(told, smallest, "{what}: as few changes as can be");
                }
            }
        }
    }
}
