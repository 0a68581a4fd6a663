//! Tables that others published.
//!
//! One is in a pinned crate: delta-rs's `checkpoint_v2_table`, 154 versions written by Spark, with checkpoints of version 2
//! in sidecars, column mapping, and a log that was cleaned up in part.
//!
//! Some fifty are in the source package of the Python `deltalake`, those that delta-rs tests with, written over the years
//! by Spark, Databricks and delta-rs, one of Delta's golden tables among them. Spark takes minutes over them, so they have
//! a run of their own: `make public-tables`, which fetches them into `.tools/public-tables`.

use crate::multiset::Multiset;
use crate::open;
use crate::spark::{Spark, Texts};
use arrow::array::AsArray;
use arrow::compute::sum;
use arrow::datatypes::Int64Type;
use delta_kernel::schema::StructField;
use futures::TryStreamExt;
use reverse_sync::{Detail, Part, Result, ReverseSyncError, TableSource, TableVersion};
use std::path::{Path, PathBuf};
use std::process::Command;
use tidewater_e2e::repository;

/// Where cargo keeps the sources of delta-rs.
fn delta_rs_sources() -> PathBuf {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let metadata =
        Command::new(cargo).args(["metadata", "--format-version", "1", "--offline"]).output().unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&metadata.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let package = packages.iter().find(|package| package["name"] == "deltalake-core").unwrap();
    PathBuf::from(package["manifest_path"].as_str().unwrap()).parent().unwrap().to_owned()
}

pub async fn a_table_with_checkpoints_of_version_2_is_read_as_spark_reads_it(spark: &mut Spark) {
    let folder = delta_rs_sources().join("checkpoint_v2_table");
    let table = open(&folder);
    let latest = table.latest_version().await.unwrap();
    let rows: Vec<_> =
        table.snapshot(latest, &Part::default()).await.unwrap().stream.try_collect().await.unwrap();
    let total = |column: usize| -> i64 {
        rows.iter().filter_map(|batch| sum(batch.column(column).as_primitive::<Int64Type>())).sum()
    };
    let count: usize = rows.iter().map(|batch| batch.num_rows()).sum();
    let ours = [count.to_string(), total(0).to_string(), total(1).to_string()];
    let theirs = spark.query(&folder, "SELECT count(*), sum(col1), sum(col2) FROM t").await;
    assert_eq!(theirs, [ours.map(Some)]);
}

/// Tables that Spark reads and we refuse, by what the error says.
const REFUSED: &[(&str, &str)] = &[("spark-shredded-variant-preview-delta", "shredded variant")];

/// More rows than are worth comparing as texts.
const LARGE: &str = "COVID-19_NYT";

/// Versions looked back from the newest; some have more than a hundred.
const VERSIONS: u64 = 6;

fn tables() -> Vec<PathBuf> {
    let root = repository().join(".tools/public-tables");
    let in_folder = |folder: &Path| {
        let entries = std::fs::read_dir(folder)
            .unwrap_or_else(|_| panic!("{folder:?} is missing: run `make public-tables`"));
        entries.map(|entry| entry.unwrap().path()).collect::<Vec<_>>()
    };
    let all = in_folder(&root).into_iter().chain(in_folder(&root.join("golden")));
    let mut tables: Vec<_> = all.filter(|table| table.join("_delta_log").is_dir()).collect();
    tables.retain(|table| !table.ends_with(LARGE));
    tables.sort();
    tables
}

pub async fn every_public_table_is_read_as_spark_reads_it(spark: &mut Spark) {
    let (mut read, mut told, mut by_nobody, mut wrong) = (0, 0, Vec::new(), Vec::new());
    for folder in tables() {
        let name = folder.file_name().unwrap().to_str().unwrap();
        let table = open(&folder);
        let refused = REFUSED.iter().find(|(refused, _)| *refused == name);
        match (newest(&table, spark).await, spark.rows_of_newest(&folder).await, refused) {
            (Ok(ours), Ok(theirs), None) if ours == theirs => {
                read += 1;
                told += ranges_told(&table, name).await;
            }
            (Err(error), Ok(_), Some((_, reason))) if error_chain(&error).contains(reason) => {}
            // Some have a log and no data.
            (Err(_), Err(_), None) => by_nobody.push(name.to_owned()),
            (ours, theirs, _) => {
                let ours = ours.map(|rows| rows.len()).map_err(|error| error_chain(&error));
                wrong.push(format!("{name}: we read {ours:?}, Spark {:?}", theirs.map(|rows| rows.len())));
            }
        }
    }
    println!(
        "{read} public tables are read as Spark reads them, {told} ranges told; by nobody: {by_nobody:?}"
    );
    assert!(wrong.is_empty(), "{wrong:#?}");
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
            let renamed =
                renamed(&table.table_at(from).await.unwrap(), &table.table_at(newest).await.unwrap());
            let renamed: Vec<_> = renamed.iter().map(|(was, is)| (was.as_str(), is.as_str())).collect();
            let Ok(mut rows) = Multiset::under(&after, before, &renamed).await else { continue };
            if rows.apply(changes, name).await.is_ok() {
                assert_eq!(rows, after, "{name}: {from} to {newest}");
                told += 1;
            }
        }
    }
    told
}

/// Columns of another name in a later version, where column mapping tells that they are the same.
fn renamed(before: &TableVersion, after: &TableVersion) -> Vec<(String, String)> {
    let physical = |field: &StructField| field.metadata().get("delta.columnMapping.physicalName").cloned();
    let was = |is: &StructField| {
        let same = |was: &&StructField| physical(is).is_some() && physical(was) == physical(is);
        before.schema.fields().find(same).map(|was| (was.name().clone(), is.name().clone()))
    };
    after.schema.fields().filter_map(was).filter(|(was, is)| was != is).collect()
}

fn error_chain(error: &ReverseSyncError) -> String {
    let first: &dyn std::error::Error = error;
    let chain = std::iter::successors(Some(first), |error| error.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
