//! Ranges that can no longer be told.

use crate::open;
use crate::spark::Spark;
use futures::TryStreamExt;
use reverse_sync::{Detail, Part, Unavailable};
use std::path::Path;

pub async fn what_vacuum_took_makes_a_range_unavailable(spark: &mut Spark, lake: &Path) {
    let folder = lake.join("vacuumed");
    let statements = [
        "CREATE TABLE {t} (id BIGINT) USING delta TBLPROPERTIES ('delta.enableDeletionVectors' = 'false')",
        "INSERT INTO {t} VALUES (1), (2)",
        "UPDATE {t} SET id = 3 WHERE id = 2",
        "SET spark.databricks.delta.retentionDurationCheck.enabled = false",
        "VACUUM {t} RETAIN 0 HOURS",
    ];
    spark.run(&folder, &statements.map(str::to_owned)).await;
    let table = open(&folder);
    let changes = table.row_changes(Some(1), 2, &Part::default(), Detail::AsRecorded).await.unwrap();
    let error = changes.stream.try_collect::<Vec<_>>().await.unwrap_err();
    assert!(matches!(error.unavailable(), Some(Unavailable::FileVacuumed { .. })), "{error:?}");
    let newest = table.latest_version().await.unwrap();
    let rows: Vec<_> =
        table.snapshot(newest, &Part::default()).await.unwrap().stream.try_collect().await.unwrap();
    assert_eq!(rows.iter().map(|batch| batch.num_rows()).sum::<usize>(), 2);
}
