//! Tables that Apache Spark writes, served row for row at each version that is applied, with and without a Change Data
//! Feed. Spark writes and Spark judges: what Postgres serves, read by psycopg, against Spark's own rows.

use crate::gold::Gold;
use crate::serving::wait_state;
use crate::serving_trouble::wait_error;
use serde_json::json;
use tidewater_e2e::Engine;

/// What people do to a table. Columns of every plain type, so that texts of both sides can be compared.
const STEPS: &[&[&str]] = &[
    &["MERGE INTO {t} t USING (SELECT id * 3 AS id, 'merged' AS name FROM range(200)) s ON t.id = s.id
       WHEN MATCHED AND t.id % 2 = 0 THEN UPDATE SET name = s.name WHEN MATCHED THEN DELETE
       WHEN NOT MATCHED THEN INSERT (id, name) VALUES (s.id, s.name)"],
    &[
        "UPDATE {t} SET amount = amount * 2, at = NULL WHERE id BETWEEN 10 AND 40",
        "DELETE FROM {t} WHERE id > 380",
    ],
    &["OPTIMIZE {t} ZORDER BY (id)"],
    &["ALTER TABLE {t} ADD COLUMNS (added string)", "UPDATE {t} SET added = name WHERE id % 5 = 0"],
    &["RESTORE TABLE {t} TO VERSION AS OF 2"],
    &["INSERT OVERWRITE {t} SELECT * FROM {t} WHERE id < 100"],
];

/// Columns that exist in every version.
const COLUMNS: [&str; 10] = ["id", "name", "amount", "ratio", "flag", "day", "at", "local", "bytes", "part"];

/// A column gets a type that holds more. Not to be undone by RESTORE, so it comes last.
const WIDENING: &[&[&str]] = &[
    &["ALTER TABLE {t} ALTER COLUMN part TYPE bigint"],
    &["UPDATE {t} SET part = part + 5000000000 WHERE id < 10"],
];

fn create(properties: &str) -> Vec<String> {
    vec![
        format!(
            "CREATE TABLE {{t}} (id bigint, name string, amount decimal(12,2), ratio double, flag boolean, day date,
             at timestamp, local timestamp_ntz, bytes binary, part int, region int) USING delta PARTITIONED BY (region)
             TBLPROPERTIES ({properties})"
        ),
        "INSERT INTO {t} SELECT id, concat('n', id), CAST(id AS decimal(12,2)) / 3, id / 7, id % 2 = 0,
         date_add(date '2020-02-28', CAST(id AS int)), timestamp '2026-01-01 00:00:00.123456' + make_interval(0, 0, 0, CAST(id AS int)),
         timestamp_ntz '1999-12-31 23:59:59.999999', encode(concat('b', id), 'UTF-8'), CAST(id AS int), CAST(id % 3 AS int) FROM range(400)"
            .to_owned(),
    ]
}

#[tokio::test]
async fn whatever_spark_does_to_a_table_is_served_at_each_version() {
    let feed = "'delta.enableChangeDataFeed' = 'true', 'delta.enableDeletionVectors' = 'true'";
    // All that a table may have beside its rows.
    let mapped = "'delta.columnMapping.mode' = 'name', 'delta.enableDeletionVectors' = 'false',
        'delta.enableRowTracking' = 'true', 'delta.enableInCommitTimestamps' = 'true',
        'delta.checkpointPolicy' = 'v2', 'delta.checkpointInterval' = '3', 'delta.enableTypeWidening' = 'true'";
    let mut gold = Gold::new(&["table: gold.t, into: serving.t, mode: triggered, primary_key: [id]"]).await;
    for (properties, widening) in [(feed, &[][..]), (mapped, WIDENING)] {
        let _ = std::fs::remove_dir_all(gold.folder("gold/t"));
        gold.write("spark", "gold/t", json!(create(properties))).await;
        gold.site.run_until_caught_up().await;
        gold.assert_served(Engine::Spark, "gold/t", "t", &COLUMNS).await;
        for step in STEPS.iter().chain(widening) {
            gold.write("spark", "gold/t", json!(step)).await;
            gold.site.run_until_caught_up().await;
            gold.assert_served(Engine::Spark, "gold/t", "t", &COLUMNS).await;
        }
    }
    // What was in between is gone from the store: the newest version is not.
    let vacuumed = [
        "UPDATE {t} SET name = 'x'",
        "UPDATE {t} SET name = 'y'",
        "SET spark.databricks.delta.retentionDurationCheck.enabled = false",
        "VACUUM {t} RETAIN 0 HOURS",
    ];
    gold.write("spark", "gold/t", json!(vacuumed)).await;
    gold.site.run_until_caught_up().await;
    gold.assert_served(Engine::Spark, "gold/t", "t", &COLUMNS).await;
}

#[tokio::test]
async fn nested_values_are_jsonb_and_arrays_and_a_zero_byte_keeps_its_row_out() {
    let entry = "table: gold.n, into: serving.n, mode: triggered, primary_key: [id], type_overrides: {v: vector(2)}, where: \"id < 100\"";
    let mut gold = Gold::new(&[entry]).await;
    gold.client.batch_execute("CREATE EXTENSION vector").await.unwrap();
    gold.write(
        "spark",
        "gold/n",
        json!([
            "CREATE TABLE {t} (id int, s struct<a: int, b: array<string>>, m map<string, decimal(5,2)>, l array<bigint>, t array<timestamp>, v array<float>, x string) USING delta",
            "INSERT INTO {t} VALUES
              (1, named_struct('a', 1, 'b', array('x', null)), map('k', 1.50), array(1, null, 3), array(timestamp '2026-01-01 00:00:00'), array(1.5, -2), 'ok'),
              (2, null, null, array(), null, null, null),
              (3, null, null, null, null, null, concat('a', char(0), 'b')),
              (4, null, null, null, null, array(1.0), null),
              (100, null, null, null, null, null, 'elsewhere')",
        ]),
    )
    .await;
    gold.site.run_until_caught_up().await;
    let sql = "SELECT id, s::text, m::text, l::text, t::text, v::text, x FROM serving.n ORDER BY id";
    let rows = crate::serving::rows(&gold.client, sql).await;
    let expected = [
        [
            Some("1"),
            Some(r#"{"a": 1, "b": ["x", null]}"#),
            Some(r#"{"k": 1.50}"#),
            Some("{1,NULL,3}"),
            Some("{\"2026-01-01 00:00:00+00\"}"),
            Some("[1.5,-2]"),
            Some("ok"),
        ],
        [Some("2"), None, None, Some("{}"), None, None, None],
    ];
    assert_eq!(rows, expected.map(|row| row.map(|cell| cell.map(str::to_owned)).to_vec()));
    let kept_out = "SELECT misfits FROM tidewater.served_tables";
    assert_eq!(crate::serving::rows(&gold.client, kept_out).await, [[Some("2".to_owned())]]);
    // Out of the condition, into it, and mended.
    gold.write(
        "spark",
        "gold/n",
        json!([
            "UPDATE {t} SET id = id + 100 WHERE id = 1",
            "UPDATE {t} SET id = 5 WHERE id = 100",
            "UPDATE {t} SET x = 'ab' WHERE id = 3",
        ]),
    )
    .await;
    gold.site.run_until_caught_up().await;
    let rows = crate::serving::rows(&gold.client, "SELECT id, x FROM serving.n ORDER BY id").await;
    let expected = [["2", ""], ["3", "ab"], ["5", "elsewhere"]];
    let rows: Vec<Vec<String>> =
        rows.into_iter().map(|row| row.into_iter().map(Option::unwrap_or_default).collect()).collect();
    assert_eq!(rows, expected);
}

#[tokio::test]
async fn a_shredded_variant_is_refused_by_its_columns_name_and_the_others_go_on() {
    let mut gold = Gold::new(&[
        "table: gold.shredded, into: serving.shredded, mode: continuous, primary_key: [id]",
        "table: gold.whole, into: serving.whole, mode: continuous, primary_key: [id]",
        "table: gold.shredded, into: serving.part, mode: continuous, primary_key: [id], columns: [id]",
    ])
    .await;
    let insert = "INSERT INTO {t} SELECT id, parse_json(concat('{\"a\":', id, '}')) FROM range(10)";
    let whole = ["CREATE TABLE {t} (id bigint, v variant) USING delta", insert];
    gold.write("spark", "gold/whole", json!(whole)).await;
    let shredded = [
        "SET spark.sql.variant.writeShredding.enabled = true",
        "SET spark.sql.variant.forceShreddingSchemaForTest = a int",
        "CREATE TABLE {t} (id bigint, v variant) USING delta TBLPROPERTIES ('delta.enableVariantShredding' = 'true')",
        insert,
    ];
    gold.write("spark", "gold/shredded", json!(shredded)).await;
    let mut daemon = gold.site.start().await;
    wait_error(&mut daemon, "serving.shredded", &["`v`", "shredded variant", "leave it out with `columns`"])
        .await;
    wait_state(&mut daemon, "serving.whole", "serving").await;
    wait_state(&mut daemon, "serving.part", "serving").await;
    let rows = crate::serving::rows(&gold.client, "SELECT v->>'a' FROM serving.whole WHERE id = 7").await;
    assert_eq!(rows, [[Some("7".to_owned())]]);
    gold.assert_served(Engine::Spark, "gold/shredded", "part", &["id"]).await;
    daemon.stop().await;
}
