//! The lake keeps itself in order, and puts up with others who do so.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;
use tidewater_e2e::{
    Daemon, Engine, LakeTable, Postgres, Reader, Site, Source, assert_equal, compactions, free_port,
};
use tokio_postgres::Client;

const SOON: Duration = Duration::from_secs(60);
const LATER: Duration = Duration::from_secs(180);
const LOOK: Duration = Duration::from_millis(50);

/// A site with settings of the lake and of its one entry of `to_lake`.
fn site(url: &str, lake: &str, entry: &str) -> Site {
    Site::new(&format!(
        "version: 1\nlake: {{uri: ./lake{lake}}}\nlisten: {{http: \"127.0.0.1:{}\"}}\n\
         databases:\n  shop: {{url: \"{url}\", tls: disable}}\n\
         to_lake:\n  - {{database: shop, tables: [\"public.*\"], flush: 100ms{entry}}}\n",
        free_port()
    ))
}

/// Does something again and again until a condition holds.
async fn until(what: &str, mut holds: impl FnMut() -> bool, mut again: impl AsyncFnMut()) {
    let deadline = Instant::now() + LATER;
    while !holds() {
        assert!(Instant::now() < deadline, "{what} did not come about");
        again().await;
        tokio::time::sleep(LOOK).await;
    }
}

fn versions(table: &Path) -> usize {
    let Ok(log) = std::fs::read_dir(table.join("_delta_log")) else { return 0 };
    log.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().ends_with(".json")).count()
}

async fn assert_tables_equal(reader: &mut Reader, url: &str, site: &Site, tables: &[&str]) {
    for engine in [Engine::DuckDb, Engine::Spark] {
        for table in tables {
            let source = Source { dsn: url, schema: "public", table };
            let lake = LakeTable::at(&site.table(&format!("shop/public/{table}")));
            assert_equal(reader, engine, &source, &lake).await;
        }
    }
}

async fn shop(sql: &str) -> (Postgres, Client, String) {
    let postgres = Postgres::start().await;
    let client = postgres.create_database("shop").await;
    client.batch_execute(sql).await.unwrap();
    let url = postgres.url("shop");
    (postgres, client, url)
}

#[tokio::test]
async fn deletes_made_while_a_compaction_runs_are_never_undone() {
    let (_postgres, client, url) = shop(
        "CREATE TABLE big (id int PRIMARY KEY, v text);
         INSERT INTO big SELECT n, md5(n::text) || md5((-n)::text) FROM generate_series(1, 400000) n",
    )
    .await;
    let site = site(&url, "", "");
    let mut daemon = site.start().await;
    daemon.wait_streaming(LATER).await;
    let table = site.table("shop/public/big");
    // A third of every file: it is rewritten, which takes a while.
    client.batch_execute("DELETE FROM big WHERE id % 3 = 0").await.unwrap();
    let mut next = 1;
    until(
        "a compaction",
        || !compactions(&table).is_empty(),
        async || {
            let sql = format!(
                "DELETE FROM big WHERE id % 1000 = {next};
             UPDATE big SET v = 'changed ' || {next} WHERE id % 1000 = {next} + 500;
             INSERT INTO big VALUES ({next} * 3000, 'back') ON CONFLICT DO NOTHING"
            );
            client.batch_execute(&sql).await.unwrap();
            next += 1;
        },
    )
    .await;
    // Rows that were moved change once more.
    client
        .batch_execute("DELETE FROM big WHERE id % 1000 = 999; UPDATE big SET v = 'last' WHERE id % 7 = 0")
        .await
        .unwrap();
    daemon.stop().await;
    site.run_until_caught_up().await;
    let translated =
        compactions(&table).iter().flatten().any(|action| action["add"]["deletionVector"].is_object());
    assert!(translated, "nothing was deleted while a compaction ran");
    let mut reader = Reader::start();
    assert_tables_equal(&mut reader, &url, &site, &["big"]).await;
}

#[tokio::test]
async fn the_number_of_files_stays_bounded_however_often_a_table_is_flushed() {
    let (_postgres, client, url) = shop(
        "CREATE TABLE events (id serial PRIMARY KEY, v text);
         CREATE TABLE sales (id serial PRIMARY KEY, country text, v int)",
    )
    .await;
    let site = site(&url, "", ", overrides: {public.sales: {partition_by: [country]}}");
    let mut daemon = site.start().await;
    daemon.wait_streaming(SOON).await;
    let (events, sales) = (site.table("shop/public/events"), site.table("shop/public/sales"));
    let enough = || versions(&events) > 120 && versions(&sales) > 120;
    until("a long log", enough, async || {
        let sql = "INSERT INTO events (v) SELECT md5(random()::text) FROM generate_series(1, 20);
                   INSERT INTO sales (country, v) SELECT c, n FROM unnest(ARRAY['DE', 'FR', NULL]) c, generate_series(1, 5) n;
                   UPDATE sales SET v = v + 1 WHERE id % 50 = 0;
                   DELETE FROM events WHERE id % 97 = 0";
        client.batch_execute(sql).await.unwrap();
    })
    .await;
    daemon.stop().await;
    site.run_until_caught_up().await;
    let mut reader = Reader::start();
    let files = reader.files(Engine::DeltaRs, &LakeTable::at(&events)).await;
    assert!(files <= 24, "{files} files after {} versions", versions(&events));
    let files = reader.files(Engine::DeltaRs, &LakeTable::at(&sales)).await;
    assert!(files <= 3 * 24, "{files} files in three partitions after {} versions", versions(&sales));
    assert_tables_equal(&mut reader, &url, &site, &["events", "sales"]).await;
}

/// `oldest_version` as status shows it, once it is above `above`.
async fn oldest_version(daemon: &mut Daemon, above: i64) -> u64 {
    let oldest = |status: &Value| status["tables"][0]["oldest_version"].as_i64();
    let status = daemon.wait_status(SOON, |status| oldest(status) > Some(above)).await;
    assert!(status["tables"][0]["oldest_timestamp"].as_str().unwrap().ends_with('Z'), "{status}");
    oldest(&status).unwrap().unsigned_abs()
}

#[tokio::test]
async fn every_version_inside_the_window_survives_expiry_and_an_expired_one_is_a_clear_error() {
    // The newest fifty numbers, and older ones below zero that go one by one, so that their file gets another
    // vector with every version. Whatever a version holds, the numbers of each kind lie side by side.
    let (_postgres, client, url) = shop(
        "CREATE TABLE numbers (n serial PRIMARY KEY, v text);
         INSERT INTO numbers SELECT -n, 'old' FROM generate_series(1, 2000) n",
    )
    .await;
    let site = site(&url, ", max_versions: 40", "");
    let mut daemon = site.start().await;
    daemon.wait_streaming(SOON).await;
    let table = site.table("shop/public/numbers");
    let newest = async |daemon: &mut Daemon| {
        let status = daemon.wait_status(SOON, |_| true).await;
        status["tables"][0]["version"].as_i64().unwrap_or(0)
    };
    let deadline = Instant::now() + LATER;
    while newest(&mut daemon).await < 130 {
        assert!(Instant::now() < deadline, "too few versions");
        let sql = "INSERT INTO numbers (v) SELECT 'x' FROM generate_series(1, 5);
                   DELETE FROM numbers WHERE n > 0 AND n <= (SELECT max(n) FROM numbers) - 50;
                   DELETE FROM numbers WHERE n = (SELECT min(n) FROM numbers)";
        client.batch_execute(sql).await.unwrap();
        tokio::time::sleep(LOOK).await;
    }
    oldest_version(&mut daemon, 80).await;
    daemon.stop().await;
    // Nothing changes any more, so what it says now stays true.
    let mut daemon = site.start().await;
    let oldest = oldest_version(&mut daemon, 80).await;
    daemon.stop().await;
    assert!(versions(&table) <= 40, "the log holds {} versions", versions(&table));

    let mut reader = Reader::start();
    let latest = *reader.versions(Engine::DeltaRs, &LakeTable::at(&table)).await.iter().max().unwrap();
    let mut last = 0;
    for version in oldest..=latest {
        let rows = reader.rows(Engine::DuckDb, &LakeTable::at(&table).version(version)).await;
        let numbers = rows.iter().map(|row| row[0].as_deref().unwrap().parse::<i64>().unwrap());
        let (mut old, mut new): (Vec<i64>, Vec<i64>) = numbers.partition(|number| *number < 0);
        for numbers in [&mut old, &mut new] {
            numbers.sort_unstable();
            let (first, newest) = (numbers[0], numbers[numbers.len() - 1]);
            assert_eq!(*numbers, (first..=newest).collect::<Vec<_>>(), "version {version}");
        }
        let newest = new[new.len() - 1];
        assert!(newest >= last && new.len() < 55, "version {version}");
        last = newest;
    }
    for version in [oldest, latest] {
        let at = LakeTable::at(&table).version(version);
        assert_eq!(reader.rows(Engine::Spark, &at).await, reader.rows(Engine::DuckDb, &at).await);
    }
    let query = format!("SELECT * FROM numbers VERSION AS OF {}", oldest - 1);
    let refused = site.command(&["sql", &query]).await;
    let said: String =
        refused.stderr.split_whitespace().filter(|word| *word != "│").collect::<Vec<_>>().join(" ");
    assert_eq!(refused.code, Some(1), "{said}");
    assert!(said.contains("has expired") && said.contains(&format!("is {oldest}")), "{said}");
    assert_tables_equal(&mut reader, &url, &site, &["numbers"]).await;
}

fn caught_up(status: &Value) -> bool {
    let tables = status["tables"].as_array().unwrap();
    tables.iter().all(|table| table["lag_bytes"] == 0 && table["lag_seconds"] == 0.0)
}

/// Makes every data file look as if it was written eight days ago.
fn age_files(table: &Path) {
    let long_ago = SystemTime::now() - Duration::from_secs(8 * 24 * 3600);
    for entry in std::fs::read_dir(table).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            // A file may have been removed by its owner since the folder was listed.
            let Ok(file) = std::fs::File::options().write(true).open(&path) else { continue };
            file.set_modified(long_ago).unwrap();
        }
    }
}

/// Transactions that touch every file: rows come, change, move and go.
async fn change(client: &Client, rounds: std::ops::Range<i32>) {
    for round in rounds {
        let sql = format!(
            "INSERT INTO orders SELECT {round} * 100 + n, 'new' FROM generate_series(1, 20) n;
             UPDATE orders SET v = 'changed {round}' WHERE id % 7 = {round} % 7;
             DELETE FROM orders WHERE id % 11 = {round} % 11;
             INSERT INTO sales SELECT {round} * 100 + n, CASE n % 3 WHEN 0 THEN 'DE' WHEN 1 THEN 'FR' END, n
               FROM generate_series(1, 20) n;
             UPDATE sales SET country = 'IT' WHERE id % 13 = {round} % 13;
             DELETE FROM sales WHERE id % 5 = {round} % 5"
        );
        client.batch_execute(&sql).await.unwrap();
        tokio::time::sleep(LOOK).await;
    }
}

#[tokio::test]
async fn optimize_vacuum_and_checkpoints_by_others_beside_the_daemon_are_absorbed() {
    let (_postgres, client, url) = shop(
        "CREATE TABLE orders (id int PRIMARY KEY, v text);
         CREATE TABLE sales (id int PRIMARY KEY, country text, v int)",
    )
    .await;
    let site = site(&url, "", ", overrides: {public.sales: {partition_by: [country]}}");
    let mut daemon = site.start().await;
    daemon.wait_streaming(SOON).await;
    let mut reader = Reader::start();
    let tables = ["orders", "sales"].map(|table| site.table(&format!("shop/public/{table}")));
    for (first, checkpoints_by) in [(1, Engine::Spark), (101, Engine::DeltaRs)] {
        change(&client, first..first + 10).await;
        for (table, first) in tables.iter().zip([first + 10, first + 40]) {
            let lake = LakeTable::at(table);
            tokio::join!(
                reader.maintain(checkpoints_by, &lake, "checkpoint"),
                change(&client, first..first + 10)
            );
            age_files(table);
            tokio::join!(
                reader.maintain(Engine::Spark, &lake, "vacuum"),
                change(&client, first + 10..first + 20)
            );
        }
        // Spark gives up an OPTIMIZE whose files change meanwhile, so it gets a quiet moment. The daemon learns of
        // it with its next flush, which deletes rows of the files that Spark took away.
        daemon.wait_status(SOON, caught_up).await;
        for table in &tables {
            reader.maintain(Engine::Spark, &LakeTable::at(table), "optimize").await;
        }
        change(&client, first + 70..first + 75).await;
    }
    daemon.wait_status(SOON, caught_up).await;
    daemon.stop().await;
    site.run_until_caught_up().await;
    for table in &tables {
        let operations = reader.operations(Engine::DeltaRs, &LakeTable::at(table)).await;
        let optimized = operations.iter().filter(|operation| *operation == "OPTIMIZE").count();
        let own = compactions(table).len();
        assert!(optimized > own, "Spark has optimized nothing: {optimized} in all, {own} of the daemon");
    }
    assert_tables_equal(&mut reader, &url, &site, &["orders", "sales"]).await;
}

#[tokio::test]
async fn rows_written_by_someone_else_stop_that_table_with_its_version_and_writer_and_no_other() {
    let (_postgres, client, url) = shop(
        "CREATE TABLE orders (id int PRIMARY KEY, v text); INSERT INTO orders VALUES (1, 'one');
         CREATE TABLE items (id int PRIMARY KEY, v text); INSERT INTO items VALUES (1, 'one')",
    )
    .await;
    let site = site(&url, "", "");
    let mut daemon = site.start().await;
    daemon.wait_streaming(SOON).await;
    let mut reader = Reader::start();
    let orders = LakeTable::at(&site.table("shop/public/orders"));
    reader.maintain(Engine::Spark, &orders, "append").await;
    let foreign = reader.versions(Engine::DeltaRs, &orders).await.into_iter().max().unwrap();
    client.batch_execute("UPDATE orders SET v = 'two'; UPDATE items SET v = 'two'").await.unwrap();
    let table = |status: &Value, name: &str| {
        let tables = status["tables"].as_array().unwrap();
        tables.iter().find(|table| table["table"] == name).unwrap().clone()
    };
    let status = daemon.wait_status(SOON, |status| table(status, "public.orders")["state"] == "failed").await;
    let error = table(&status, "public.orders")["error"].as_str().unwrap().to_owned();
    assert!(error.contains(&format!("version {foreign}")) && error.contains("Spark"), "{error}");

    client.batch_execute("INSERT INTO items VALUES (2, 'more')").await.unwrap();
    daemon.wait_status(SOON, |status| table(status, "public.items")["rows"] == 2).await;
    daemon.stop().await;
    assert_tables_equal(&mut reader, &url, &site, &["items"]).await;
    assert_eq!(
        reader.count(Engine::DuckDb, &orders).await,
        2,
        "the stranger's row stays for its writer to see"
    );
}
