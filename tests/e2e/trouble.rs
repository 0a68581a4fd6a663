//! What goes wrong around the daemon: each has a clear error or a visible wait, and nothing is lost.

use std::time::Duration;

use serde_json::Value;
use tidewater_e2e::{Engine, Finished, Postgres, Reader, S3Server, Shop, Site, Traffic};

const SOON: Duration = Duration::from_secs(60);

async fn shop() -> (Postgres, tokio_postgres::Client) {
    let postgres = Postgres::start().await;
    let client = postgres.create_database("shop").await;
    client
        .batch_execute(
            "CREATE TABLE orders (id int PRIMARY KEY, v text); INSERT INTO orders VALUES (1, 'one')",
        )
        .await
        .unwrap();
    (postgres, client)
}

/// The daemon has ended by itself with exit code 1, and its error says each of `words`.
fn assert_refused(ended: &Finished, words: &[&str]) {
    assert_eq!(ended.code, Some(1), "{}\n{}", ended.stdout, ended.stderr);
    // As wide as the terminal, wherever that breaks the lines.
    let said: String =
        ended.stderr.split_whitespace().filter(|word| *word != "│").collect::<Vec<_>>().join(" ");
    for word in words {
        assert!(said.contains(word), "`{word}` is not in:\n{}", ended.stderr);
    }
}

fn waits_for_the_source(status: &Value) -> bool {
    let source = &status["sources"][0];
    source["connected"] == false && source["error"].is_string()
}

#[tokio::test]
async fn a_mistake_in_the_configuration_is_shown_with_its_line() {
    let site = Site::new("version: 1\nlake: {uri: ./lake}\nto_lakes: []\n");
    let ended = site.command(&["run"]).await;
    assert_eq!(ended.code, Some(2), "{}\n{}", ended.stdout, ended.stderr);
    assert!(ended.stderr.contains("to_lakes"), "{}", ended.stderr);
    assert!(ended.stderr.contains("tidewater.yaml:3"), "{}", ended.stderr);
}

#[tokio::test]
async fn a_source_that_is_down_at_the_start_is_waited_for_visibly() {
    let (mut postgres, _) = shop().await;
    postgres.kill9().await;
    let site = Site::of_shop(&postgres.url("shop"));
    let mut daemon = site.spawn();
    daemon.wait_status(SOON, waits_for_the_source).await;
    postgres.restart().await;
    daemon.wait_streaming(SOON).await;
    daemon.wait_ready().await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_wrong_password_is_an_error_that_does_not_show_it() {
    let (postgres, client) = shop().await;
    client
        .batch_execute(
            r"CREATE ROLE sync LOGIN REPLICATION PASSWORD 'right';
              DO $$ BEGIN EXECUTE format(
                  'COPY (SELECT unnest(ARRAY[''host all,replication sync all scram-sha-256'', ''host all all all trust''])) TO %L',
                  current_setting('hba_file')); END $$;
              SELECT pg_reload_conf()",
        )
        .await
        .unwrap();
    let url = format!("postgres://sync:sesame@127.0.0.1:{}/shop", postgres.port());
    let ended = Site::of_shop(&url).command(&["run"]).await;
    assert_refused(&ended, &["shop", "sync", "password"]);
    assert!(!format!("{}{}", ended.stdout, ended.stderr).contains("sesame"), "{}", ended.stderr);
}

#[tokio::test]
async fn a_role_without_the_replication_privilege_is_told_so() {
    let (postgres, client) = shop().await;
    client
        .batch_execute(
            "CREATE ROLE poor LOGIN; GRANT CREATE ON DATABASE shop TO poor; ALTER TABLE orders OWNER TO poor",
        )
        .await
        .unwrap();
    let url = format!("postgres://poor@127.0.0.1:{}/shop", postgres.port());
    let ended = Site::of_shop(&url).command(&["run"]).await;
    assert_refused(&ended, &["shop", "REPLICATION"]);
}

#[tokio::test]
async fn a_role_that_may_not_publish_a_table_is_told_so() {
    let (postgres, client) = shop().await;
    client.batch_execute("CREATE ROLE guest LOGIN REPLICATION; GRANT CREATE ON DATABASE shop TO guest; GRANT SELECT ON orders TO guest").await.unwrap();
    let url = format!("postgres://guest@127.0.0.1:{}/shop", postgres.port());
    let ended = Site::of_shop(&url).command(&["run"]).await;
    assert_refused(&ended, &["shop", "owner", "orders"]);
}

#[tokio::test]
async fn a_wal_level_too_low_is_told_with_the_setting() {
    let postgres = Postgres::start_with(&[("wal_level", "replica")]).await;
    let client = postgres.create_database("shop").await;
    client.batch_execute("CREATE TABLE orders (id int PRIMARY KEY)").await.unwrap();
    let ended = Site::of_shop(&postgres.url("shop")).command(&["run"]).await;
    assert_refused(&ended, &["wal_level", "logical"]);
}

#[tokio::test]
async fn a_lake_that_cannot_be_written_is_an_error_at_the_start_and_a_visible_wait_later() {
    let (postgres, _) = shop().await;
    let url = postgres.url("shop");
    let site = Site::of_shop(&url);
    // A file where a folder should be stops everyone, the superuser included.
    std::fs::write(site.lake(), "in the way").unwrap();
    assert_refused(&site.command(&["run"]).await, &["cannot open the folder", "File exists"]);

    std::fs::remove_file(site.lake()).unwrap();
    std::fs::create_dir(site.lake()).unwrap();
    std::fs::write(site.table("shop"), "in the way").unwrap();
    let mut daemon = site.spawn();
    let status = daemon.wait_status(SOON, waits_for_the_source).await;
    assert!(status["sources"][0]["error"].as_str().unwrap().contains("lake"), "{status}");
    std::fs::remove_file(site.table("shop")).unwrap();
    daemon.wait_streaming(SOON).await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_lake_in_s3_that_is_away_for_a_while_loses_nothing() {
    let postgres = Postgres::start().await;
    let client = postgres.create_database("shop").await;
    Shop::create(&client).await;
    let url = postgres.url("shop");
    let mut store = S3Server::start().await;
    let site = Site::in_s3(&url, &store);
    let mut daemon = site.start().await;
    daemon.wait_streaming(SOON).await;
    let traffic = Traffic::start(&url, 3, 2, None, Duration::from_millis(3));
    traffic.wait_for(100).await;
    store.stop().await;
    traffic.wait_for(100).await;
    daemon.wait_status(Duration::from_secs(180), waits_for_the_source).await;
    traffic.wait_for(100).await;
    store.restart().await;
    daemon.wait_streaming(Duration::from_secs(120)).await;
    traffic.wait_for(100).await;
    traffic.stop().await;
    daemon.stop().await;
    site.run_until_caught_up().await;
    // The bucket is a folder, one file an object: readers find the tables there, and over S3 as well.
    let mut reader = Reader::start();
    let folder = store.folder().join("main");
    Shop::assert_mirrored(&mut reader, Engine::DuckDb, &url, &folder, &[]).await;
    Shop::assert_whole_transactions(&mut reader, Engine::DuckDb, &folder, 30).await;
}

#[tokio::test]
async fn a_slot_that_lost_its_wal_is_made_again_and_its_tables_equal_their_source_again() {
    let postgres = Postgres::start_with(&[("max_slot_wal_keep_size", "16MB")]).await;
    let client = postgres.create_database("shop").await;
    Shop::create(&client).await;
    let url = postgres.url("shop");
    let site = Site::of_shop(&url);
    let mut daemon = site.start().await;
    daemon.wait_streaming(SOON).await;
    let traffic = Traffic::start(&url, 23, 2, None, Duration::from_millis(2));
    traffic.wait_for(100).await;
    daemon.stop().await;
    traffic.wait_for(100).await;
    traffic.stop().await;
    let mut lost = false;
    for _ in 0..20 {
        client
            .batch_execute("SELECT pg_logical_emit_message(false, 'filler', ''), pg_switch_wal()")
            .await
            .unwrap();
        client.batch_execute("CHECKPOINT").await.unwrap();
        let status = "SELECT wal_status = 'lost' FROM pg_replication_slots WHERE slot_name LIKE 'tidewater%'";
        lost = client.query_one(status, &[]).await.unwrap().get(0);
        if lost {
            break;
        }
    }
    assert!(lost, "the slot still has its WAL");
    client.batch_execute("DELETE FROM keyed WHERE id % 2 = 0").await.unwrap();
    site.run_until_caught_up().await;
    client.batch_execute("UPDATE keyed SET n = -1 WHERE id % 3 = 0").await.unwrap();
    site.run_until_caught_up().await;
    let mut reader = Reader::start();
    Shop::assert_mirrored(&mut reader, Engine::DuckDb, &url, &site.lake(), &[]).await;
}
