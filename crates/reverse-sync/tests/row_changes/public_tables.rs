//! A table that others published.
//!
//! Delta's golden tables are in its repository only; no registry has them in a package. The one table that a
//! pinned crate ships is delta-rs's `checkpoint_v2_table`: 154 versions written by Spark, with checkpoints of version 2
//! in sidecars, column mapping, and a log that was cleaned up in part.

use crate::multiset::Multiset;
use crate::open;
use crate::spark::Spark;
use arrow::array::AsArray;
use arrow::compute::sum;
use arrow::datatypes::Int64Type;
use futures::TryStreamExt;
use reverse_sync::{Detail, Part};
use std::path::PathBuf;
use std::process::Command;

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
    // Spark refuses to go back further than the table's retention, which is long over.
    let all = Part::default();
    let after = Multiset::of(table.snapshot(latest, &all).await.unwrap(), &[]).await;
    for detail in [Detail::AsRecorded, Detail::Net(vec!["col1".to_owned()])] {
        let mut rows = Multiset::of(table.snapshot(75, &all).await.unwrap(), &[]).await;
        let changes = table.row_changes(Some(75), latest, &all, detail.clone()).await.unwrap();
        rows.apply(changes, "the public table").await;
        assert_eq!(rows, after, "{detail:?}");
    }
}
