//! Operating served tables: what doctor, metrics, `status --json` and `verify --json` say, and what a changed entry or
//! a table that vanished leads to.

use std::time::{Duration, Instant};

use crate::gold::Gold;
use crate::http::ask;
use crate::serving::{rows, status_of, wait_state};
use crate::serving_trouble::wait_error;
use serde_json::{Value, json};
use tidewater_e2e::{Daemon, Engine, Postgres, Site, free_port};

const SOON: Duration = Duration::from_secs(90);

const ENTRY: &str = "table: gold.t, into: serving.t, mode: continuous, primary_key: [id]";
const OTHER: &str = "table: gold.other, into: serving.other, mode: continuous, primary_key: [id]";

/// Two tables of ten rows, of which one cannot be served in each: its key is null.
async fn written(entries: &[&str]) -> Gold {
    let mut gold = Gold::new(entries).await;
    for table in ["gold/t", "gold/other"] {
        let select = "SELECT CASE WHEN i < 9 THEN i END AS id, i AS n, 'v' || i AS v FROM range(10) r(i)";
        gold.write("deltalake", table, json!([{"overwrite": select}])).await;
    }
    gold
}

async fn wait_version(daemon: &mut Daemon, table: &str, version: u64) {
    let has = |status: &Value| status_of(status, table).is_some_and(|found| found["version"] == version);
    daemon.wait_status(SOON, has).await;
}

/// A sample of `/metrics`, once it has a value that is wanted.
async fn wait_metric(port: u16, sample: &str, wanted: impl Fn(f64) -> bool) {
    let (deadline, host) = (Instant::now() + SOON, format!("Host: 127.0.0.1:{port}"));
    loop {
        let (code, metrics) = ask(port, "GET /metrics", &[&host]).await;
        assert_eq!(code, 200);
        let found = metrics.lines().find_map(|line| line.strip_prefix(sample)?.trim().parse::<f64>().ok());
        if found.is_some_and(&wanted) {
            return;
        }
        assert!(Instant::now() < deadline, "{sample} is {found:?} in\n{metrics}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn metrics_and_json_reports_cover_served_tables() {
    let mut gold = written(&[ENTRY, OTHER]).await;
    let port = free_port();
    let (host, yaml) = (format!("http: \"127.0.0.1:{port}\""), gold.site.path().join("tidewater.yaml"));
    let before = std::fs::read_to_string(&yaml).unwrap();
    let listen = before.lines().find(|line| line.starts_with("listen:")).unwrap();
    gold.site.configure(&before.replace(listen, &format!("listen: {{{host}}}")));
    let mut daemon = gold.site.start().await;
    wait_state(&mut daemon, "serving.t", "serving").await;
    let label = r#"{database="app",table="serving.t"}"#;
    wait_metric(port, &format!("tidewater_serving_version{label}"), |version| version == 0.0).await;
    wait_metric(port, &format!("tidewater_serving_kept_out_rows{label}"), |rows| rows == 1.0).await;
    wait_metric(port, &format!("tidewater_serving_rows_total{label}"), |rows| rows == 9.0).await;
    gold.write("deltalake", "gold/t", json!([{"update": {"v": "'new'"}, "where": "id < 3"}])).await;
    wait_metric(port, &format!("tidewater_serving_version{label}"), |version| version == 1.0).await;
    wait_metric(port, &format!("tidewater_serving_rows_total{label}"), |rows| rows == 12.0).await;
    wait_metric(port, &format!("tidewater_serving_lag_seconds{label}"), |seconds| seconds == 0.0).await;
    wait_metric(port, &format!("tidewater_serving_apply_seconds_count{label}"), |times| times == 2.0).await;
    gold.site.succeeds(&["resync", "serving.t"]).await;
    wait_metric(port, &format!("tidewater_serving_reloads_total{label}"), |times| times == 1.0).await;

    // The table does one thing after the other: what is verified has been compared as a whole before.
    let verified = gold.site.succeeds(&["verify", "serving.t", "--json"]).await;
    let verified: Value = serde_json::from_str(&verified).unwrap();
    let found = &verified["tables"][0];
    assert_eq!((&found["direction"], &found["verdict"]), (&json!("to_postgres"), &json!("equal")), "{found}");
    let status: Value = serde_json::from_str(&gold.site.succeeds(&["status", "--json"]).await).unwrap();
    let found = status_of(&status, "serving.t").unwrap();
    assert_eq!(
        (&found["state"], &found["version"], &found["rows"]),
        (&json!("serving"), &json!(1), &json!(9))
    );
    assert_eq!(found["error"], Value::Null);
    assert!(found["note"].as_str().unwrap().contains("1 with a null key"), "{found}");
    daemon.stop().await;
}

#[tokio::test]
async fn doctor_looks_at_both_ends_and_prints_what_mends_the_target() {
    // A server that is only served in needs no logical decoding.
    let postgres = Postgres::start_with(&[("wal_level", "replica"), ("max_wal_senders", "0")]).await;
    let admin = postgres.create_database("app").await;
    admin.batch_execute("CREATE ROLE server LOGIN; CREATE SCHEMA serving").await.unwrap();
    let gold = written(&[]).await;
    let url = postgres.url("app").replace("postgres@", "server@");
    let site = Site::new(&format!(
        "version: 1\nlake: {{uri: \"{}\"}}\nlisten: {{http: \"127.0.0.1:{}\"}}\n\
         databases:\n  app: {{url: \"{url}\", tls: disable}}\nto_postgres:\n\
         \x20 - {{database: app, {ENTRY}, grants: {{select: [app_reader]}}}}\n\
         \x20 - {{database: app, table: gold.late, into: serving.late, primary_key: [id], mode: triggered}}\n",
        gold.site.lake().display(),
        free_port()
    ));
    let looked = site.command(&["doctor", "--json"]).await;
    assert_eq!(looked.code, Some(3), "{}{}", looked.stdout, looked.stderr);
    let findings = findings(&looked.stdout);
    let of = |severity: &str, code: &str, subject: &str| {
        findings
            .iter()
            .filter(|f| f["severity"] == severity && f["code"] == code && f["subject"] == subject)
            .count()
    };
    assert_eq!(
        (of("ok", "served-source", "serving.t"), of("error", "served-source", "serving.late")),
        (1, 1)
    );
    // CREATE on the database, CREATE on the schema, and the role that is to read.
    assert_eq!(of("error", "served-target", "serving.t"), 3, "{findings:?}");
    for statement in findings.iter().filter_map(|finding| finding["remedy_sql"].as_str()) {
        admin.batch_execute(statement).await.unwrap();
    }
    let looked = site.command(&["doctor", "--json"]).await;
    let findings = self::findings(&looked.stdout);
    let wrong: Vec<_> = findings.iter().filter(|f| f["severity"] != "ok").map(|f| &f["subject"]).collect();
    assert_eq!(wrong, ["serving.late"], "{findings:?}");
    let mut daemon = site.start().await;
    wait_state(&mut daemon, "serving.t", "serving").await;
    daemon.stop().await;
    assert_eq!(rows(&admin, "SELECT count(*) FROM serving.t").await, [[Some("9".to_owned())]]);
}

fn findings(json: &str) -> Vec<Value> {
    serde_json::from_str::<Value>(json).unwrap()["findings"].as_array().unwrap().clone()
}

#[tokio::test]
async fn another_primary_key_takes_nulls_in_the_columns_of_the_one_before() {
    let mut gold = written(&[ENTRY]).await;
    gold.site.run_until_caught_up().await;
    let yaml = gold.site.path().join("tidewater.yaml");
    let by_id = std::fs::read_to_string(yaml).unwrap();
    gold.site.configure(&by_id.replace("primary_key: [id]", "primary_key: [v, n]"));
    gold.site.run_until_caught_up().await;
    gold.assert_served(Engine::DeltaRs, "gold/t", "t", &["id", "n", "v"]).await;
    gold.write("deltalake", "gold/t", json!([{"update": {"id": "null"}, "where": "n = 3"}])).await;
    gold.site.run_until_caught_up().await;
    gold.assert_served(Engine::DeltaRs, "gold/t", "t", &["id", "n", "v"]).await;
    assert_eq!(
        rows(&gold.client, "SELECT count(*) FROM serving.t WHERE id IS NULL").await,
        [[Some("2".to_owned())]]
    );
    // And back: the rows without an id are kept out again.
    gold.site.configure(&by_id);
    gold.site.run_until_caught_up().await;
    let served = "SELECT count(*), min(null_keys) FROM serving.t, tidewater.served_tables";
    assert_eq!(rows(&gold.client, served).await, [[Some("8".to_owned()), Some("2".to_owned())]]);
}

#[tokio::test]
async fn a_delta_table_that_vanished_stays_served_and_one_made_anew_in_its_place_is_compared() {
    let mut gold = written(&[ENTRY, OTHER]).await;
    let mut daemon = gold.site.start().await;
    wait_state(&mut daemon, "serving.t", "serving").await;
    std::fs::remove_dir_all(gold.folder("gold/t")).unwrap();
    let failed = wait_error(&mut daemon, "serving.t", &["gold/t"]).await;
    assert_eq!(failed["state"], "failed", "{failed}");
    assert_eq!(rows(&gold.client, "SELECT count(*) FROM serving.t").await, [[Some("9".to_owned())]]);
    gold.write("deltalake", "gold/other", json!([{"delete": "id = 1"}])).await;
    wait_version(&mut daemon, "serving.other", 1).await;
    // Two versions more than the table before had: its number alone does not tell that it is another one.
    let anew = json!([{"overwrite": "SELECT i AS id, i AS n, 'anew' AS v FROM range(5) r(i)"}, {"delete": "id = 0"}, {"delete": "id = 1"}]);
    gold.write("deltalake", "gold/t", anew).await;
    gold.assert_served(Engine::DeltaRs, "gold/t", "t", &["id", "n", "v"]).await;
    let found = wait_state(&mut daemon, "serving.t", "serving").await;
    assert!(found["note"].as_str().is_some_and(|note| note.contains("made anew")), "{found}");
    daemon.stop().await;
}
