//! The lake in an object store that behaves as object stores do: it throttles, hangs, and fails after the fact.
//!
//! The S3 server is ours and can be told what to get wrong; the daemon's side of it, client, signatures, retries,
//! is what runs against any store.

use std::time::{Duration, Instant};

use serde_json::json;
use tidewater_e2e::{
    Engine, Fault, LakeTable, Postgres, Reader, S3Server, Shop, Site, Source, Traffic, assert_equal,
    free_port,
};

const SOON: Duration = Duration::from_secs(90);
const RETRY: Duration = Duration::from_millis(50);

/// A shop, followed by a daemon that gives a request up after a second.
struct Followed {
    postgres: Postgres,
    store: S3Server,
    site: Site,
    daemon: tidewater_e2e::Daemon,
}

fn site(url: &str, lake: &serde_json::Value) -> Site {
    let http = format!("127.0.0.1:{}", free_port());
    let to_lake = json!([{"database": "shop", "tables": ["public.*"], "flush": "200ms"}]);
    let databases = json!({"shop": {"url": url, "tls": "disable"}});
    // YAML takes JSON as it is.
    Site::new(
        &json!({"version": 1, "lake": lake, "listen": {"http": http}, "databases": databases, "to_lake": to_lake})
            .to_string(),
    )
}

impl Followed {
    async fn start() -> Followed {
        let postgres = Postgres::start().await;
        let client = postgres.create_database("shop").await;
        Shop::create(&client).await;
        let store = S3Server::start().await;
        let mut options = store.lake_options();
        options["timeout"] = json!("1s");
        let site = site(&postgres.url("shop"), &json!({"uri": "s3://lake/main", "options": options}));
        let mut daemon = site.start().await;
        daemon.wait_streaming(SOON).await;
        Followed { postgres, store, site, daemon }
    }

    fn traffic(&self, seed: u64) -> Traffic {
        Traffic::start(&self.postgres.url("shop"), seed, 2, None, Duration::from_millis(3))
    }

    /// How often a fault has happened.
    fn happened(&self, fault: Fault) -> u64 {
        self.store.faults().happened().get(&fault).copied().unwrap_or(0)
    }

    /// Waits until a fault has happened so often, while the application works.
    async fn wait_for(&self, fault: Fault, times: u64, traffic: &Traffic) {
        while self.happened(fault) < times {
            traffic.wait_for(5).await;
        }
    }

    /// Everything is in the lake once, and every version holds whole transactions.
    async fn assert_nothing_lost_or_doubled(self, traffic: Traffic) {
        traffic.wait_for(50).await;
        traffic.stop().await;
        self.store.faults().clear();
        self.daemon.stop().await;
        self.site.run_until_caught_up().await;
        let (mut reader, folder) = (Reader::start(), self.store.folder().join("main"));
        let url = self.postgres.url("shop");
        Shop::assert_mirrored(&mut reader, Engine::DuckDb, &url, &folder, &[]).await;
        Shop::assert_whole_transactions(&mut reader, Engine::DuckDb, &folder, 30).await;
    }
}

#[tokio::test]
async fn a_store_that_throttles_a_third_of_all_requests_loses_nothing() {
    let followed = Followed::start().await;
    followed.store.faults().set_weather(41, &[(Fault::Throttled, 333)]);
    let traffic = followed.traffic(41);
    followed.wait_for(Fault::Throttled, 100, &traffic).await;
    followed.assert_nothing_lost_or_doubled(traffic).await;
}

#[tokio::test]
async fn requests_that_are_never_answered_are_given_up_and_made_again() {
    let followed = Followed::start().await;
    let traffic = followed.traffic(43);
    // Data, vectors, commits: each has its own way through the client.
    for part in [".parquet", "deletion_vector", "_delta_log/"] {
        followed.store.faults().fail_next("PUT", part, Fault::Hung, 2);
    }
    followed.wait_for(Fault::Hung, 6, &traffic).await;
    followed.assert_nothing_lost_or_doubled(traffic).await;
}

#[tokio::test]
async fn commits_that_took_effect_and_were_answered_with_an_error_are_there_once() {
    let followed = Followed::start().await;
    let traffic = followed.traffic(47);
    for fault in [Fault::ErrorAfterEffect, Fault::AnswerLost] {
        followed.store.faults().fail_next("PUT", "_delta_log/", fault, 10);
        followed.wait_for(fault, 10, &traffic).await;
    }
    followed.assert_nothing_lost_or_doubled(traffic).await;
}

#[tokio::test]
async fn a_daemon_killed_after_a_commit_whose_answer_was_lost_does_not_write_it_again() {
    let mut followed = Followed::start().await;
    let traffic = followed.traffic(53);
    for _ in 0..5 {
        let seen = followed.happened(Fault::AnswerLost);
        followed.store.faults().fail_next("PUT", "_delta_log/", Fault::AnswerLost, 1);
        followed.wait_for(Fault::AnswerLost, seen + 1, &traffic).await;
        followed.daemon.kill9().await;
        followed.daemon = followed.site.start().await;
        followed.daemon.wait_streaming(SOON).await;
    }
    followed.assert_nothing_lost_or_doubled(traffic).await;
}

/// A load locks the table that it reads, as any reader does, and hands its rows to the store meanwhile.
#[tokio::test]
async fn an_alter_table_waits_for_no_store_that_takes_no_rows() {
    let postgres = Postgres::start().await;
    let client = postgres.create_database("shop").await;
    // More than what is held on its way to the store, of rows that zstd makes little of.
    client
        .batch_execute(
            "CREATE TABLE notes (id int PRIMARY KEY, v text);
             INSERT INTO notes SELECT n, (SELECT string_agg(md5(n::text || g), '') FROM generate_series(1, 32) g)
             FROM generate_series(1, 110000) n",
        )
        .await
        .unwrap();
    let store = S3Server::start().await;
    let mut options = store.lake_options();
    // Each request is made again and again before the load would fail by itself.
    options["timeout"] = json!("10s");
    let site = site(&postgres.url("shop"), &json!({"uri": "s3://lake/main", "options": options}));
    store.faults().fail_next("PUT", ".parquet", Fault::Hung, u32::MAX);
    let mut daemon = site.spawn();
    let deadline = Instant::now() + SOON;
    while store.faults().happened().is_empty() {
        assert!(Instant::now() < deadline, "no rows are on their way to the store");
        tokio::time::sleep(RETRY).await;
    }
    client.batch_execute("SET lock_timeout = '60s'; ALTER TABLE notes ADD COLUMN n int").await.unwrap();

    store.faults().clear();
    daemon.wait_streaming(SOON).await;
    client.batch_execute("UPDATE notes SET n = id WHERE id < 100").await.unwrap();
    daemon.stop().await;
    site.run_until_caught_up().await;
    let dsn = postgres.url("shop");
    let source = Source { dsn: &dsn, schema: "public", table: "notes" };
    let lake = LakeTable::at(&store.folder().join("main/shop/public/notes"));
    assert_equal(&mut Reader::start(), Engine::DuckDb, &source, &lake).await;
}

#[tokio::test]
async fn doctor_proves_that_of_racing_conditional_puts_exactly_one_wins() {
    let postgres = Postgres::start().await;
    let client = postgres.create_database("shop").await;
    Shop::create(&client).await;
    let store = S3Server::start().await;
    let found = Site::in_s3(&postgres.url("shop"), &store).command(&["doctor"]).await;
    assert!(found.stdout.contains("of racing conditional puts exactly one wins"), "{}", found.stdout);
}

#[tokio::test]
async fn credentials_come_from_the_environment_when_the_configuration_has_none() {
    let postgres = Postgres::start().await;
    let client = postgres.create_database("shop").await;
    Shop::create(&client).await;
    let store = S3Server::start().await;
    let site = site(&postgres.url("shop"), &json!({"uri": "s3://lake/main"}));
    let (key, secret) = S3Server::credentials();
    let endpoint = store.endpoint();
    let variables = [
        ("AWS_ENDPOINT_URL", endpoint.as_str()),
        ("AWS_ACCESS_KEY_ID", key),
        ("AWS_SECRET_ACCESS_KEY", secret),
        ("AWS_REGION", "us-east-1"),
    ];
    let mut daemon = site.spawn_with(&variables);
    daemon.wait_streaming(SOON).await;
    daemon.stop().await;
    let folder = store.folder().join("main");
    let url = postgres.url("shop");
    let source = tidewater_e2e::Source { dsn: &url, schema: "public", table: "accounts" };
    let mirror = tidewater_e2e::LakeTable::at(&folder.join("shop/public/accounts"));
    tidewater_e2e::assert_equal(&mut Reader::start(), Engine::DuckDb, &source, &mirror).await;
}

#[tokio::test]
async fn a_wrong_secret_key_is_an_error_that_does_not_show_it() {
    let postgres = Postgres::start().await;
    postgres.create_database("shop").await;
    let store = S3Server::start().await;
    let mut options = store.lake_options();
    options["secret_access_key"] = json!("open-sesame");
    let lake = json!({"uri": "s3://lake/main", "options": options});
    let ended = site(&postgres.url("shop"), &lake).command(&["doctor"]).await;
    assert_eq!(ended.code, Some(3), "{}\n{}", ended.stdout, ended.stderr);
    assert!(ended.stdout.contains("s3://lake/main"), "{}", ended.stdout);
    assert!(!format!("{}{}", ended.stdout, ended.stderr).contains("sesame"), "{}", ended.stdout);
}
