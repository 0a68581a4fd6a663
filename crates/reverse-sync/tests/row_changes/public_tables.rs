//! Tables that others published: the source package of the Python `deltalake` ships those that delta-rs tests with,
//! written over the years by Spark, Databricks and delta-rs, Delta's golden tables among them. `make readers` puts them
//! into `.tools/public-tables`.
//!
//! Each is read as Spark reads it, and what we tell of its versions leads from one to the other.

use crate::multiset::Multiset;
use crate::open;
use crate::spark::{Spark, Texts};
use reverse_sync::{Detail, Part, Result, ReverseSyncError, TableSource};
use std::path::{Path, PathBuf};
use tidewater_e2e::repository;

/// Tables that Spark reads and we refuse, by what the error says.
const REFUSED: &[(&str, &str)] = &[("spark-shredded-variant-preview-delta", "shredded variant")];

/// Versions looked back from the newest; some have more than a hundred.
const VERSIONS: u64 = 6;

fn tables() -> Vec<PathBuf> {
    let root = repository().join(".tools/public-tables");
    let in_folder = |folder: &Path| {
        let entries =
            std::fs::read_dir(folder).unwrap_or_else(|_| panic!("{folder:?} is missing: run `make readers`"));
        entries.map(|entry| entry.unwrap().path()).collect::<Vec<_>>()
    };
    let all = in_folder(&root).into_iter().chain(in_folder(&root.join("golden")));
    let mut tables: Vec<_> = all.filter(|table| table.join("_delta_log").is_dir()).collect();
    tables.sort();
    tables
}

pub async fn every_public_table_is_read_as_spark_reads_it(spark: &mut Spark) {
    let (mut read, mut told, mut unreadable) = (0, 0, Vec::new());
    for folder in tables() {
        let name = folder.file_name().unwrap().to_str().unwrap();
        let table = open(&folder);
        let refused = REFUSED.iter().find(|(refused, _)| *refused == name);
        match (newest(&table, spark).await, spark.rows_of_newest(&folder).await, refused) {
            (Ok(ours), Ok(theirs), None) => {
                assert_eq!(ours, theirs, "{name}");
                read += 1;
                told += ranges_told(&table, name).await;
            }
            (Err(error), Ok(_), Some((_, reason))) => {
                let text = error_chain(&error);
                assert!(text.contains(reason), "{name}: {text}");
            }
            // Some have a log and no data.
            (Err(_), Err(_), None) => unreadable.push(name.to_owned()),
            (ours, theirs, _) => {
                let ours = ours.map(|rows| rows.len()).map_err(|error| error_chain(&error));
                panic!("{name}: we read {ours:?}, Spark {:?}", theirs.map(|rows| rows.len()));
            }
        }
    }
    println!(
        "{read} public tables are read as Spark reads them, {told} ranges told; by nobody: {unreadable:?}"
    );
    assert!(read >= 30 && told >= 20, "{read} tables, {told} ranges");
}

async fn newest(table: &TableSource, spark: &mut Spark) -> Result<Texts> {
    let newest = table.latest_version().await?;
    spark.texts_of(table.snapshot(newest, &Part::default()).await?).await
}

/// How many of the ranges that end in the newest version could be told, each rightly.
async fn ranges_told(table: &TableSource, name: &str) -> u32 {
    let newest = table.latest_version().await.unwrap();
    let all = Part::default();
    let after = Multiset::of(table.snapshot(newest, &all).await.unwrap(), &[]).await.unwrap();
    let key = table.table_at(newest).await.unwrap().schema.fields().next().unwrap().name().clone();
    let mut told = 0;
    for from in newest.saturating_sub(VERSIONS)..newest {
        for detail in [Detail::AsRecorded, Detail::Net(vec![key.clone()])] {
            let Ok(before) = table.snapshot(from, &all).await else { continue };
            let Ok(changes) = table.row_changes(Some(from), newest, &all, detail).await else { continue };
            let Ok(mut rows) = Multiset::under(&after, before, &[]).await else { continue };
            if rows.apply(changes, name).await.is_ok() {
                assert_eq!(rows, after, "{name}: {from} to {newest}");
                told += 1;
            }
        }
    }
    told
}

fn error_chain(error: &ReverseSyncError) -> String {
    let first: &dyn std::error::Error = error;
    let chain = std::iter::successors(Some(first), |error| error.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
