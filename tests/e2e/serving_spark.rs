//! Tables that Apache Spark writes, served row for row at each version that is applied, with and without a Change Data
//! Feed. Spark writes and Spark judges: what Postgres serves, read by psycopg, against Spark's own rows.

use serde_json::json;
use tidewater_e2e::{Engine, LakeTable, Postgres, Reader, Site, free_port};
use tokio_postgres::Client;

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
const COLUMNS: [&str; 9] = ["id", "name", "amount", "ratio", "flag", "day", "at", "local", "bytes"];

struct Gold {
    postgres: Postgres,
    client: Client,
    site: Site,
    reader: Reader,
}

impl Gold {
    async fn new(entry: &str) -> Gold {
        let postgres = Postgres::start().await;
        let client = postgres.create_database("app").await;
        let url = postgres.url("app");
        let site = Site::new(&format!(
            "version: 1\nlake: {{uri: ./lake}}\nlisten: {{http: \"127.0.0.1:{}\"}}\n\
             databases:\n  app: {{url: \"{url}\", tls: disable}}\nto_postgres:\n  - {{database: app, {entry}}}\n",
            free_port()
        ));
        std::fs::create_dir_all(site.lake()).unwrap();
        Gold { postgres, client, site, reader: Reader::start() }
    }

    async fn spark(&mut self, table: &str, statements: &[&str]) {
        let path = self.site.table(table);
        self.reader
            .ask(json!({"engine": "spark", "op": "run", "path": path, "statements": statements}))
            .await;
    }

    async fn assert_served(&mut self, table: &str, name: &str) {
        let sql = "SELECT version FROM tidewater.served_tables WHERE table_name = $1";
        let version: i64 = self.client.query_one(sql, &[&name]).await.unwrap().get(0);
        let lake = LakeTable::at(&self.site.table(table)).version(version.unsigned_abs());
        let newest = self.reader.versions(Engine::Spark, &lake).await.into_iter().max();
        assert_eq!(newest, Some(version.unsigned_abs()));
        let mut expected = self.reader.columns(Engine::Spark, &lake, &COLUMNS).await;
        let request = json!({"op": "source_rows", "dsn": self.postgres.url("app"), "schema": "serving", "table": name, "columns": COLUMNS});
        let served = self.reader.ask(request).await;
        let mut served: Vec<Vec<Option<String>>> = served["rows"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| row.as_array().unwrap().iter().map(|cell| cell.as_str().map(str::to_owned)).collect())
            .collect();
        expected.sort();
        served.sort();
        assert_eq!(served, expected, "version {version}");
    }
}

fn create(properties: &str) -> Vec<String> {
    vec![
        format!(
            "CREATE TABLE {{t}} (id bigint, name string, amount decimal(12,2), ratio double, flag boolean, day date,
             at timestamp, local timestamp_ntz, bytes binary, part int) USING delta PARTITIONED BY (part)
             TBLPROPERTIES ({properties})"
        ),
        "INSERT INTO {t} SELECT id, concat('n', id), CAST(id AS decimal(12,2)) / 3, id / 7, id % 2 = 0,
         date_add(date '2020-02-28', CAST(id AS int)), timestamp '2026-01-01 00:00:00.123456' + make_interval(0, 0, 0, CAST(id AS int)),
         timestamp_ntz '1999-12-31 23:59:59.999999', encode(concat('b', id), 'UTF-8'), CAST(id % 3 AS int) FROM range(400)"
            .to_owned(),
    ]
}

#[tokio::test]
async fn whatever_spark_does_to_a_table_is_served_at_each_version() {
    let feed = "'delta.enableChangeDataFeed' = 'true', 'delta.enableDeletionVectors' = 'true'";
    let mapped = "'delta.columnMapping.mode' = 'name', 'delta.enableDeletionVectors' = 'false'";
    let mut gold = Gold::new("table: gold.t, into: serving.t, mode: triggered, primary_key: [id]").await;
    for properties in [feed, mapped] {
        let statements = create(properties);
        let _ = std::fs::remove_dir_all(gold.site.table("gold/t"));
        gold.spark("gold/t", &statements.iter().map(String::as_str).collect::<Vec<_>>()).await;
        gold.site.run_until_caught_up().await;
        gold.assert_served("gold/t", "t").await;
        for step in STEPS {
            gold.spark("gold/t", step).await;
            gold.site.run_until_caught_up().await;
            gold.assert_served("gold/t", "t").await;
        }
    }
    // What was in between is gone from the store: the newest version is not.
    gold.spark(
        "gold/t",
        &[
            "UPDATE {t} SET name = 'x'",
            "UPDATE {t} SET name = 'y'",
            "SET spark.databricks.delta.retentionDurationCheck.enabled = false",
            "VACUUM {t} RETAIN 0 HOURS",
        ],
    )
    .await;
    gold.site.run_until_caught_up().await;
    gold.assert_served("gold/t", "t").await;
}

#[tokio::test]
async fn nested_values_are_jsonb_and_arrays_and_a_zero_byte_keeps_its_row_out() {
    let mut gold = Gold::new(
        "table: gold.n, into: serving.n, mode: triggered, primary_key: [id], type_overrides: {v: vector(2)}, where: \"id < 100\"",
    )
    .await;
    gold.client.batch_execute("CREATE EXTENSION vector").await.unwrap();
    gold.spark(
        "gold/n",
        &[
            "CREATE TABLE {t} (id int, s struct<a: int, b: array<string>>, m map<string, decimal(5,2)>, l array<bigint>, t array<timestamp>, v array<float>, x string) USING delta",
            "INSERT INTO {t} VALUES
              (1, named_struct('a', 1, 'b', array('x', null)), map('k', 1.50), array(1, null, 3), array(timestamp '2026-01-01 00:00:00'), array(1.5, -2), 'ok'),
              (2, null, null, array(), null, null, null),
              (3, null, null, null, null, null, concat('a', char(0), 'b')),
              (4, null, null, null, null, array(1.0), null),
              (100, null, null, null, null, null, 'elsewhere')",
        ],
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
    gold.spark(
        "gold/n",
        &[
            "UPDATE {t} SET id = id + 100 WHERE id = 1",
            "UPDATE {t} SET id = 5 WHERE id = 100",
            "UPDATE {t} SET x = 'ab' WHERE id = 3",
        ],
    )
    .await;
    gold.site.run_until_caught_up().await;
    let rows = crate::serving::rows(&gold.client, "SELECT id, x FROM serving.n ORDER BY id").await;
    let expected = [["2", ""], ["3", "ab"], ["5", "elsewhere"]];
    let rows: Vec<Vec<String>> =
        rows.into_iter().map(|row| row.into_iter().map(Option::unwrap_or_default).collect()).collect();
    assert_eq!(rows, expected);
}
