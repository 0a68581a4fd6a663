//! Queries over real Delta tables: one that Spark wrote with deletion vectors (see `fixtures/README.md`),
//! and ones that each test writes for itself.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "the whole binary is tests"
)]

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Int64Type, TimeUnit};
use deltalake::kernel::{DataType as DeltaType, PrimitiveType, StructField};
use deltalake::protocol::SaveMode;
use deltalake::{DeltaTable, DeltaTableBuilder};
use lake_sql::{LakeSession, LakeSqlError, OutputFormat, format};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

async fn open(folder: &Path) -> LakeSession {
    LakeSession::open(folder.to_str().unwrap(), &BTreeMap::new()).await.unwrap()
}

async fn spark_lake() -> LakeSession {
    open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/lake")).await
}

async fn csv(lake: &LakeSession, query: &str) -> Result<Vec<String>, LakeSqlError> {
    let mut out = Vec::new();
    format(lake.sql(query).await?, OutputFormat::Csv, &mut out).await?;
    Ok(String::from_utf8(out).unwrap().lines().skip(1).map(str::to_owned).collect())
}

async fn error(lake: &LakeSession, query: &str) -> String {
    csv(lake, query).await.expect_err(query).to_string()
}

/// A table `id bigint, v string` whose versions 1, 2, … each append one row `id = version`.
async fn table_with_rows(folder: &Path, appends: i64, properties: &[(&str, &str)]) -> DeltaTable {
    std::fs::create_dir_all(folder).unwrap();
    let url = deltalake::ensure_table_uri(folder.to_str().unwrap()).unwrap();
    let column = |name: &str, kind| StructField::new(name, DeltaType::Primitive(kind), true);
    let mut table = DeltaTableBuilder::from_url(url).unwrap().build().unwrap();
    table = table
        .create()
        .with_columns([column("id", PrimitiveType::Long), column("v", PrimitiveType::String)])
        .with_raise_if_key_not_exists(false)
        .with_configuration(properties.iter().map(|(key, value)| (key.to_string(), Some(value.to_string()))))
        .await
        .unwrap();
    for id in 1..=appends {
        table = append(table, id).await;
    }
    table
}

async fn append(table: DeltaTable, id: i64) -> DeltaTable {
    let columns: [(&str, ArrayRef); 2] = [
        ("id", Arc::new(Int64Array::from(vec![id]))),
        ("v", Arc::new(StringArray::from(vec![format!("v{id}")]))),
    ];
    let rows = RecordBatch::try_from_iter_with_nullable(columns.map(|(name, values)| (name, values, true)));
    table.write([rows.unwrap()]).with_save_mode(SaveMode::Append).await.unwrap()
}

fn commit_file(table: &Path, version: u64) -> PathBuf {
    table.join("_delta_log").join(format!("{version:020}.json"))
}

/// Sets the time that a commit's writer claims.
fn set_commit_time(table: &Path, version: u64, millis: i64) {
    let file = commit_file(table, version);
    let lines: Vec<String> = std::fs::read_to_string(&file)
        .unwrap()
        .lines()
        .map(|line| {
            let mut action: serde_json::Value = serde_json::from_str(line).unwrap();
            if let Some(info) = action.get_mut("commitInfo") {
                info["timestamp"] = millis.into();
            }
            action.to_string()
        })
        .collect();
    std::fs::write(&file, lines.join("\n")).unwrap();
}

#[tokio::test]
async fn deleted_rows_are_counted_filtered_and_limited_away() {
    let lake = spark_lake().await;
    // 100 rows, of which a deletion vector hides the ten whose id ends in 3; two were updated.
    assert_eq!(csv(&lake, "SELECT count(*), sum(id) FROM shop.public.orders").await.unwrap(), ["90,4470"]);
    assert_eq!(csv(&lake, "SELECT count(*) FROM orders").await.unwrap(), ["90"]);
    assert_eq!(csv(&lake, "SELECT count(*) FROM orders WHERE id < 10").await.unwrap(), ["9"]);
    assert_eq!(csv(&lake, "SELECT count(*) FROM orders WHERE id = 3").await.unwrap(), ["0"]);
    assert_eq!(csv(&lake, "SELECT count(*) FROM (SELECT 1 FROM orders LIMIT 95) x").await.unwrap(), ["90"]);
    assert_eq!(csv(&lake, "SELECT count(*) FROM (SELECT id FROM orders LIMIT 5) x").await.unwrap(), ["5"]);
    assert_eq!(
        csv(&lake, "SELECT id FROM orders WHERE id BETWEEN 11 AND 15 ORDER BY id LIMIT 3").await.unwrap(),
        ["11", "12", "14"]
    );
    assert_eq!(
        csv(&lake, "SELECT id FROM orders WHERE customer = 'changed' ORDER BY id").await.unwrap(),
        ["50", "51"]
    );
    assert_eq!(csv(&lake, "SELECT min(id), max(id) FROM orders").await.unwrap(), ["0,99"]);
}

#[tokio::test]
async fn rows_come_back_as_of_every_version_of_a_table_with_deletion_vectors() {
    let lake = spark_lake().await;
    for (version, rows) in [(0, "0,"), (1, "100,4950"), (2, "90,4470"), (3, "90,4470")] {
        let query = format!("SELECT count(*), sum(id) FROM orders VERSION AS OF {version}");
        assert_eq!(csv(&lake, &query).await.unwrap(), [rows], "{query}");
    }
    assert_eq!(
        csv(&lake, "SELECT id FROM orders VERSION AS OF 1 EXCEPT SELECT id FROM orders ORDER BY id LIMIT 2")
            .await
            .unwrap(),
        ["3", "13"]
    );
    assert_eq!(
        csv(
            &lake,
            "SELECT b.customer, a.customer FROM orders AT (VERSION => 2) b JOIN orders a USING (id) \
             WHERE b.customer <> a.customer ORDER BY id"
        )
        .await
        .unwrap(),
        ["c1,changed", "c2,changed"]
    );
}

#[tokio::test]
async fn changes_of_a_range_are_rows_with_their_version_and_kind() {
    let lake = spark_lake().await;
    let by_version = "SELECT _commit_version, _change_type, count(*), min(id), max(id) FROM changes('orders', 0, 3) c \
                      GROUP BY 1, 2 ORDER BY 1, 2";
    assert_eq!(
        csv(&lake, by_version).await.unwrap(),
        ["1,insert,100,0,99", "2,delete,10,3,93", "3,delete,2,50,51", "3,insert,2,50,51"]
    );
    assert_eq!(
        csv(
            &lake,
            "SELECT id, customer, _change_type FROM changes('shop.public.orders', 3, 3) ORDER BY 1, 3"
        )
        .await
        .unwrap(),
        ["50,c1,delete", "50,changed,insert", "51,c2,delete", "51,changed,insert"]
    );
    let of_a_moment = "SELECT count(*) FROM changes('orders', 2, 2) c, orders TIMESTAMP AS OF now() o \
                       WHERE c.id = o.id AND c._commit_timestamp < now()";
    assert_eq!(csv(&lake, of_a_moment).await.unwrap(), ["0"], "what was deleted is not there");
}

#[tokio::test]
async fn changes_of_versions_that_are_not_there_are_errors_with_the_range() {
    let lake = spark_lake().await;
    let message = error(&lake, "SELECT * FROM changes('orders', 2, 4)").await;
    assert_eq!(message, "shop.public.orders has no version 4; its log reaches from 0 to 3");
    let message = error(&lake, "SELECT * FROM changes('orders')").await;
    assert!(message.contains("changes('public.orders', 3, 5)"), "{message}");
    let message = error(&lake, "SELECT * FROM changes('nothing', 1, 1)").await;
    assert!(message.contains("has no table nothing"), "{message}");
}

#[tokio::test]
async fn types_keep_their_meaning() {
    let lake = spark_lake().await;
    let result = lake.sql("SELECT * FROM orders").await.unwrap();
    let types: Vec<_> = result.schema.fields().iter().map(|field| field.data_type().clone()).collect();
    assert_eq!(
        types,
        [
            DataType::Int64,
            DataType::Utf8,
            DataType::Timestamp(TimeUnit::Microsecond, None),
            DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            DataType::Decimal128(10, 2),
        ]
    );
    assert_eq!(
        csv(&lake, "SELECT placed_at, paid_at, amount FROM orders WHERE id = 5").await.unwrap(),
        ["2026-01-01T00:05:00,2026-01-01T12:05:00Z,1.25"]
    );
    assert_eq!(
        csv(&lake, "SELECT id FROM orders WHERE placed_at = timestamp '2026-01-01 00:05:00'").await.unwrap(),
        ["5"]
    );
}

#[tokio::test]
async fn a_version_that_is_not_there_is_an_error_with_the_range() {
    let lake = spark_lake().await;
    let message = error(&lake, "SELECT * FROM orders VERSION AS OF 4").await;
    assert_eq!(message, "shop.public.orders has no version 4; its log reaches from 0 to 3");
    let message = error(&lake, "SELECT * FROM orders AT (VERSION => 18446744073709551615)").await;
    assert!(message.contains("from 0 to 3"), "{message}");
}

#[tokio::test]
async fn a_query_sees_what_was_committed_before_it_started() {
    let folder = tempfile::tempdir().unwrap();
    let table = table_with_rows(&folder.path().join("shop/public/t"), 1, &[]).await;
    let lake = open(folder.path()).await;
    assert_eq!(csv(&lake, "SELECT id FROM t").await.unwrap(), ["1"]);
    let table = append(table, 2).await;
    assert_eq!(csv(&lake, "SELECT id FROM t ORDER BY id").await.unwrap(), ["1", "2"]);
    assert_eq!(csv(&lake, "SELECT id FROM t VERSION AS OF 1").await.unwrap(), ["1"]);
    append(table, 3).await;
    assert_eq!(csv(&lake, "SELECT count(*) FROM t").await.unwrap(), ["3"]);
}

#[tokio::test]
async fn a_table_that_was_dropped_and_made_anew_shows_its_new_rows() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("shop/public/t");
    table_with_rows(&place, 5, &[]).await;
    let lake = open(folder.path()).await;
    assert_eq!(csv(&lake, "SELECT count(*) FROM t").await.unwrap(), ["5"]);
    assert_eq!(csv(&lake, "SELECT sum(id) FROM t VERSION AS OF 1").await.unwrap(), ["1"]);
    // Fewer, as many, and more versions than the table that went before it.
    for rows in [1, 5, 5, 7] {
        std::fs::remove_dir_all(&place).unwrap();
        assert!(error(&lake, "SELECT * FROM t").await.contains("has no table"));
        table_with_rows(&place, rows, &[]).await;
        assert_eq!(csv(&lake, "SELECT count(*) FROM t").await.unwrap(), [rows.to_string()]);
        assert_eq!(csv(&lake, "SELECT sum(id) FROM t VERSION AS OF 1").await.unwrap(), ["1"]);
    }
}

#[tokio::test]
async fn a_timestamp_means_the_newest_version_at_or_before_it() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("shop/public/t");
    table_with_rows(&place, 4, &[]).await;
    // 2026-01-01 00:00 UTC and every hour after it.
    for version in 0..=4 {
        set_commit_time(&place, version, 1_767_225_600_000 + version as i64 * 3_600_000);
    }
    let lake = open(folder.path()).await;
    for (moment, rows) in [
        ("'2026-01-01 00:00'", "0"),
        ("'2026-01-01 00:59:59.999'", "0"),
        ("'2026-01-01 01:00:00'", "1"),
        ("'2026-01-01T02:30:00Z'", "2"),
        ("'2026-01-01 04:30:00+02:00'", "2"),
        ("timestamp '2026-01-01 05:00:00' - interval '2 hours'", "3"),
        ("'2026-01-02'::date", "4"),
        ("'2026-01-02'", "4"),
        ("now()", "4"),
    ] {
        for query in [
            format!("SELECT count(*) FROM t TIMESTAMP AS OF {moment}"),
            format!("SELECT count(*) FROM t AT (TIMESTAMP => {moment})"),
        ] {
            assert_eq!(csv(&lake, &query).await.unwrap(), [rows], "{query}");
        }
    }
    let message = error(&lake, "SELECT * FROM t TIMESTAMP AS OF '2025-12-31 23:59:59'").await;
    assert!(message.contains("earliest version is 0, of 2026-01-01T00:00:00.000Z"), "{message}");
    for nonsense in ["'soon'", "12", "NULL", "id", "(SELECT max(id) FROM t)", "true"] {
        let message = error(&lake, &format!("SELECT * FROM t TIMESTAMP AS OF {nonsense}")).await;
        assert!(message.contains("moment in time"), "{message}");
    }
}

#[tokio::test]
async fn a_log_whose_first_commits_expired_reaches_back_to_its_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("shop/public/t");
    let table = table_with_rows(&place, 3, &[]).await;
    deltalake::checkpoints::create_checkpoint(&table, None).await.unwrap();
    append(table, 4).await;
    for version in 0..=4 {
        set_commit_time(&place, version, 1_767_225_600_000 + version as i64 * 3_600_000);
    }
    for version in 0..=2 {
        std::fs::remove_file(commit_file(&place, version)).unwrap();
    }
    let lake = open(folder.path()).await;
    assert_eq!(csv(&lake, "SELECT count(*) FROM t").await.unwrap(), ["4"]);
    assert_eq!(csv(&lake, "SELECT count(*) FROM t VERSION AS OF 3").await.unwrap(), ["3"]);
    let message = error(&lake, "SELECT * FROM t VERSION AS OF 1").await;
    assert!(
        message.starts_with("version 1 of shop.public.t has expired; the oldest that can be read is 3."),
        "{message}"
    );
    let message = error(&lake, "SELECT * FROM t VERSION AS OF 5").await;
    assert!(message.contains("from 3 to 4"), "{message}");
    let message = error(&lake, "SELECT * FROM t TIMESTAMP AS OF '2026-01-01 02:59'").await;
    assert!(message.contains("earliest version is 3"), "{message}");
}

#[tokio::test]
async fn a_name_resolves_when_it_is_unambiguous_and_lists_the_candidates_when_not() {
    let folder = tempfile::tempdir().unwrap();
    for (place, rows) in
        [("shop/public/t", 1), ("shop/sales/t", 2), ("crm/sales/t", 3), ("gold/t", 4), ("shop/sales/only", 5)]
    {
        table_with_rows(&folder.path().join(place), rows, &[]).await;
    }
    let lake = open(folder.path()).await;
    for (name, rows) in [
        ("t", "1"),
        ("public.t", "1"),
        ("shop.sales.t", "2"),
        ("CRM.Sales.T", "3"),
        ("gold.t", "4"),
        ("only", "5"),
        ("sales.only", "5"),
    ] {
        assert_eq!(csv(&lake, &format!("SELECT count(*) FROM {name}")).await.unwrap(), [rows], "{name}");
    }
    let message = error(&lake, "SELECT * FROM sales.t").await;
    assert_eq!(message, "sales.t could be crm.sales.t or shop.sales.t; write the full name");
    for unknown in ["nothing", "public.only", "crm.public.t", "\"T\"", "a.b.c.d"] {
        let message = error(&lake, &format!("SELECT * FROM {unknown}")).await;
        assert!(message.contains("has no table"), "{unknown}: {message}");
    }
    assert_eq!(csv(&lake, "SELECT public.t.id, t.v FROM shop.public.t").await.unwrap(), ["1,v1"]);
    let names: Vec<_> =
        lake.tables().await.unwrap().into_iter().map(|table| table.name.to_string()).collect();
    assert_eq!(names, ["gold.t", "crm.sales.t", "shop.public.t", "shop.sales.only", "shop.sales.t"]);
    assert_eq!(csv(&lake, "SHOW TABLES").await.unwrap().len(), 5);
}

#[tokio::test]
async fn a_table_goes_by_the_name_it_had_at_its_source() {
    let folder = tempfile::tempdir().unwrap();
    let at = |place: &str| folder.path().join(place);
    table_with_rows(&at("shop/public/my_table"), 1, &[("tidewater.source_name", "public.my table")]).await;
    table_with_rows(&at("shop/public/Orders"), 2, &[("tidewater.source_name", "public.Orders")]).await;
    table_with_rows(&at("shop/public/orders_0a1b2c"), 3, &[("tidewater.source_name", "public.orders")]).await;
    let lake = open(folder.path()).await;
    for (name, rows) in [("\"my table\"", "1"), ("\"Orders\"", "2"), ("orders", "3"), ("Orders", "3")] {
        assert_eq!(csv(&lake, &format!("SELECT count(*) FROM {name}")).await.unwrap(), [rows], "{name}");
    }
    assert!(error(&lake, "SELECT * FROM my_table").await.contains("has no table"));
}

#[tokio::test]
async fn a_table_renamed_at_its_source_is_found_in_the_folder_of_its_first_name() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("shop/public/orders");
    let named = [("tidewater.source_name", "old.stock.sa.les"), ("tidewater.source_schema", "old.stock")];
    table_with_rows(&place, 2, &named).await;
    let lake = open(folder.path()).await;
    for name in ["shop.\"old.stock\".\"sa.les\"", "\"old.stock\".\"sa.les\"", "\"sa.les\""] {
        assert_eq!(csv(&lake, &format!("SELECT count(*) FROM {name}")).await.unwrap(), ["2"], "{name}");
    }
    assert!(error(&lake, "SELECT * FROM shop.public.orders").await.contains("has no table"));
}

#[tokio::test]
async fn a_column_goes_by_the_name_it_had_at_its_source() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("shop/public/t");
    table_with_rows(&place, 3, &[]).await;
    let file = commit_file(&place, 0);
    let commit = std::fs::read_to_string(&file).unwrap();
    let named = commit.replace(
        r#"{\"name\":\"v\",\"type\":\"string\",\"nullable\":true,\"metadata\":{}}"#,
        r#"{\"name\":\"v\",\"type\":\"string\",\"nullable\":true,\"metadata\":{\"tidewater.source_name\":\"the v\"}}"#,
    );
    assert_ne!(commit, named, "the column's metadata was not where this test looks for it");
    std::fs::write(&file, named).unwrap();
    let lake = open(folder.path()).await;
    assert_eq!(
        csv(&lake, "SELECT \"the v\" FROM t WHERE \"the v\" > 'v1' ORDER BY 1").await.unwrap(),
        ["v2", "v3"]
    );
    assert_eq!(csv(&lake, "SELECT count(*) FROM t VERSION AS OF 2").await.unwrap(), ["2"]);
}

#[tokio::test]
async fn statements_that_are_no_queries_are_refused() {
    let lake = spark_lake().await;
    for statement in [
        "DELETE FROM orders",
        "INSERT INTO orders VALUES (1)",
        "UPDATE orders SET id = 1",
        "DROP TABLE orders",
        "CREATE TABLE x (id int)",
        "CREATE VIEW x AS SELECT 1",
        "CREATE TABLE x AS SELECT * FROM orders",
        "COPY orders TO 'x'",
        "SET search_path = sales",
        "EXPLAIN DELETE FROM orders",
        "TRUNCATE orders",
        "VACUUM",
        "SHOW TABLES LIKE 'x'",
    ] {
        let refused = csv(&lake, statement).await.expect_err(statement);
        assert!(
            matches!(refused, LakeSqlError::ReadOnly { .. } | LakeSqlError::Syntax(_)),
            "{statement}: {refused:?}"
        );
    }
    for several in ["SELECT 1; SELECT 2", "", ";"] {
        assert!(matches!(csv(&lake, several).await, Err(LakeSqlError::NotOneStatement { .. })), "{several}");
    }
    assert_eq!(csv(&lake, "SELECT 1;").await.unwrap(), ["1"]);
    assert!(!csv(&lake, "EXPLAIN SELECT * FROM orders VERSION AS OF 1").await.unwrap().is_empty());
}

#[tokio::test]
async fn what_is_promised_for_later_says_so() {
    let lake = spark_lake().await;
    for query in ["SELECT * FROM live.shop.public.orders"] {
        let message = error(&lake, query).await;
        assert!(message.contains("not available yet"), "{query}: {message}");
    }
}

#[tokio::test]
async fn the_history_of_a_table_without_one_is_an_error_that_names_the_modes() {
    let message = error(&spark_lake().await, "SELECT * FROM history('orders')").await;
    assert!(message.contains("orders_history") && message.contains("mode: history"), "{message}");
}

#[tokio::test]
async fn a_position_of_which_nothing_was_recorded_is_an_error_and_never_the_newest_rows() {
    let message = error(&spark_lake().await, "SELECT * FROM orders AT (LSN => '0/16B3748')").await;
    assert!(message.contains("0/16B3748") && message.contains("nothing was recorded"), "{message}");
}

#[tokio::test]
async fn every_format_writes_what_was_asked() {
    let lake = spark_lake().await;
    let query = "SELECT id, customer, CAST(NULL AS int) AS nothing FROM orders WHERE id < 3 ORDER BY id";
    let write = async |query: &str, wanted| {
        let mut out = Vec::new();
        let rows = format(lake.sql(query).await.unwrap(), wanted, &mut out).await.unwrap();
        (rows, out)
    };
    let text = |(rows, out): (u64, Vec<u8>)| (rows, String::from_utf8(out).unwrap());
    assert_eq!(
        text(write(query, OutputFormat::Csv).await),
        (3, "id,customer,nothing\n0,c0,\n1,c1,\n2,c2,\n".to_owned())
    );
    let (_, json) = write(query, OutputFormat::Json).await;
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(json[2], serde_json::json!({"id": 2, "customer": "c2", "nothing": null}));
    let (_, table) = text(write(query, OutputFormat::Table).await);
    assert!(table.contains("| 2  | c2       | NULL    |"), "{table}");
    let (rows, stream) = write(query, OutputFormat::Arrow).await;
    let batches: Vec<_> = arrow::ipc::reader::StreamReader::try_new(stream.as_slice(), None)
        .unwrap()
        .map(Result::unwrap)
        .collect();
    let ids: Vec<i64> = batches
        .iter()
        .flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec())
        .collect();
    assert_eq!((rows, ids), (3, vec![0, 1, 2]));

    let empty = "SELECT id FROM orders WHERE id < 0";
    assert_eq!(text(write(empty, OutputFormat::Csv).await), (0, "id\n".to_owned()));
    assert_eq!(text(write(empty, OutputFormat::Json).await), (0, "[]\n".to_owned()));
    assert!(text(write(empty, OutputFormat::Table).await).1.contains("| id |"));
    let (_, stream) = write(empty, OutputFormat::Arrow).await;
    assert_eq!(
        arrow::ipc::reader::StreamReader::try_new(stream.as_slice(), None).unwrap().schema().fields().len(),
        1
    );
}
