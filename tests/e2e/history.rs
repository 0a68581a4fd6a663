//! `mode: history` and `mode: both`: every change as a row, whole old rows, without REPLICA IDENTITY FULL.
//!
//! A history is judged by replaying it: read by DuckDB, its rows in the order of (`_pg_lsn`, `_pg_seq`) must make
//! sense one after the other (nothing comes twice, nothing changes or goes that is not there, and each old image is
//! exactly what the row held) and end in what Postgres has now.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tidewater_e2e::{Cells, Engine, LakeTable, Postgres, Reader, Shop, Site, Traffic, recorded, replay};

use crate::replayed::{assert_replays, configuration, history_of};

const SOON: Duration = Duration::from_secs(90);

fn site(url: &str, mode: &str) -> Site {
    Site::new(&configuration(url, mode))
}

#[tokio::test]
async fn a_history_replays_to_what_the_source_holds_beside_its_mirror() {
    let postgres = Postgres::start().await;
    let client = postgres.create_database("shop").await;
    Shop::create(&client).await;
    let url = postgres.url("shop");
    let site = site(&url, "both");
    let mut daemon = site.start().await;
    let status = daemon.wait_streaming(SOON).await;
    let tables = status["tables"].as_array().unwrap();
    let shown = |name: &str| tables.iter().find(|table| table["table"] == name).unwrap();
    assert!(shown("public.keyed")["location"].as_str().unwrap().ends_with("/shop/public/keyed"));
    assert!(
        shown("public.keyed_history")["location"].as_str().unwrap().ends_with("/shop/public/keyed_history")
    );
    let traffic = Traffic::start(&url, 41, 2, None, Duration::from_millis(2));
    traffic.wait_for(500).await;
    traffic.stop().await;
    daemon.stop().await;
    site.run_until_caught_up().await;

    let mut reader = Reader::start();
    Shop::assert_mirrored(&mut reader, Engine::DuckDb, &url, &site.lake(), &[]).await;
    for table in Shop::MIRRORED.iter().chain(&["accounts"]) {
        assert_replays(&mut reader, &url, &site, table).await;
    }
    for table in Shop::INSERTS_ONLY {
        let history = recorded(&mut reader, &history_of(&site, table)).await;
        let mirror = LakeTable::at(&site.table(&format!("shop/public/{table}")));
        let mut mirror = reader.rows(Engine::DuckDb, &mirror).await;
        mirror.sort();
        assert_eq!(replay(table, history), mirror, "{table}");
    }
}

#[tokio::test]
async fn old_rows_are_whole_and_untouched_values_present_without_replica_identity_full() {
    let postgres = Postgres::start().await;
    let client = postgres.create_database("shop").await;
    client
        .batch_execute(
            "CREATE TABLE documents (id int PRIMARY KEY, body text, edition int);
             ALTER TABLE documents ALTER body SET STORAGE EXTERNAL;
             INSERT INTO documents SELECT n, repeat(md5(n::text), 4000), 0 FROM generate_series(1, 8) n",
        )
        .await
        .unwrap();
    let url = postgres.url("shop");
    let site = site(&url, "history");
    let mut daemon = site.start().await;
    let status = daemon.wait_streaming(SOON).await;
    assert!(status["tables"][0]["location"].as_str().unwrap().ends_with("documents_history"), "{status}");
    client
        .batch_execute(
            "UPDATE documents SET edition = 1 WHERE id <= 4;
             BEGIN;
             UPDATE documents SET edition = 2 WHERE id <= 2;
             UPDATE documents SET id = 100 WHERE id = 1;
             UPDATE documents SET edition = 3 WHERE id = 100;
             COMMIT;
             DELETE FROM documents WHERE id IN (2, 8)",
        )
        .await
        .unwrap();
    daemon.stop().await;
    site.run_until_caught_up().await;
    assert!(!site.table("shop/public/documents").exists(), "a history alone keeps no mirror");
    let mut reader = Reader::start();
    let rows = assert_replays(&mut reader, &url, &site, "documents").await;
    assert_eq!(rows, 8 + 2 * 4 + 2 * 2 + 2 + 2 + 2);

    // After a truncate nothing of before is an image, with the index as it is and with one made anew.
    client
        .batch_execute(
            "BEGIN; UPDATE documents SET edition = 9; TRUNCATE documents;
             INSERT INTO documents VALUES (3, repeat('x', 100000), 0); UPDATE documents SET edition = 1; COMMIT",
        )
        .await
        .unwrap();
    site.run_until_caught_up().await;
    std::fs::remove_dir_all(site.path().join(".tidewater")).unwrap();
    client.batch_execute("UPDATE documents SET edition = 2; DELETE FROM documents").await.unwrap();
    site.run_until_caught_up().await;
    assert_replays(&mut reader, &url, &site, "documents").await;
}

#[tokio::test]
async fn killed_daemons_record_every_change_once() {
    let seed = std::env::var("TIDEWATER_TEST_SEED")
        .map_or_else(|_| rand::rng().random(), |text| text.parse().unwrap());
    println!("TIDEWATER_TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let postgres = Postgres::start().await;
    let client = postgres.create_database("shop").await;
    Shop::create(&client).await;
    let url = postgres.url("shop");
    let site = site(&url, "both");
    let mut daemon = site.start().await;
    daemon.wait_streaming(SOON).await;
    let traffic = Traffic::start(&url, random.random(), 2, None, Duration::from_millis(5));
    for _ in 0..15 {
        tokio::time::sleep(Duration::from_millis(random.random_range(0..2500))).await;
        daemon.kill9().await;
        daemon = site.spawn();
    }
    traffic.wait_for(50).await;
    traffic.stop().await;
    daemon.kill9().await;
    site.run_until_caught_up().await;
    let mut reader = Reader::start();
    Shop::assert_mirrored(&mut reader, Engine::DuckDb, &url, &site.lake(), &[]).await;
    for table in Shop::MIRRORED.iter().chain(&["accounts"]) {
        assert_replays(&mut reader, &url, &site, table).await;
    }
}

#[tokio::test]
async fn rows_know_their_transaction_and_their_place_in_it() {
    let postgres = Postgres::start().await;
    let client = postgres.create_database("shop").await;
    client
        .batch_execute(
            "CREATE TABLE orders (id int PRIMARY KEY, v text); CREATE TABLE lines (id int PRIMARY KEY, v text);
             INSERT INTO orders VALUES (1, 'loaded')",
        )
        .await
        .unwrap();
    let url = postgres.url("shop");
    let site = site(&url, "history");
    let mut daemon = site.start().await;
    daemon.wait_streaming(SOON).await;
    client
        .batch_execute("BEGIN; INSERT INTO lines VALUES (1, 'a'); INSERT INTO orders VALUES (2, 'b'); UPDATE lines SET v = 'c'")
        .await
        .unwrap();
    let xid: i64 = client.query_one("SELECT txid_current()", &[]).await.unwrap().get(0);
    client.batch_execute("COMMIT").await.unwrap();
    daemon.stop().await;
    site.run_until_caught_up().await;
    let mut reader = Reader::start();
    let told = "SELECT id, v, _pg_change_type, _pg_xid, _pg_seq, _pg_timestamp IS NULL, _pg_lsn > 0 FROM t";
    let row = |cells: &[&str]| {
        cells.iter().map(|cell| (*cell != "-").then(|| (*cell).to_owned())).collect::<Cells>()
    };
    let xid = xid.to_string();
    let orders = reader.query(Engine::DuckDb, &history_of(&site, "orders"), told).await;
    assert_eq!(
        orders,
        [
            row(&["1", "loaded", "insert", "-", "0", "t", "t"]),
            row(&["2", "b", "insert", &xid, "4", "f", "t"])
        ]
    );
    let lines = reader.query(Engine::DuckDb, &history_of(&site, "lines"), told).await;
    assert_eq!(
        lines,
        [
            row(&["1", "a", "insert", &xid, "2", "f", "t"]),
            row(&["1", "a", "update_preimage", &xid, "5", "f", "t"]),
            row(&["1", "c", "update_postimage", &xid, "6", "f", "t"]),
        ]
    );
    let of_orders = site
        .command(&[
            "sql",
            "--format",
            "csv",
            "SELECT id, _pg_seq FROM history('shop.public.orders') h ORDER BY h.id",
        ])
        .await;
    assert_eq!(of_orders.code, Some(0), "{}", of_orders.stderr);
    assert_eq!(of_orders.stdout.lines().collect::<Vec<_>>(), ["id,_pg_seq", "1,0", "2,4"]);
    let none = site.command(&["sql", "SELECT * FROM history('customers')"]).await;
    assert_eq!(none.code, Some(1));
    assert!(none.stderr.contains("mode: history"), "{}", none.stderr);
}

#[tokio::test]
async fn a_history_that_was_left_out_for_a_while_gets_what_it_missed() {
    let postgres = Postgres::start().await;
    let client = postgres.create_database("shop").await;
    let fill = "CREATE TABLE orders (id int PRIMARY KEY, v text); INSERT INTO orders SELECT n, 'v' FROM generate_series(1, 100) n";
    client.batch_execute(fill).await.unwrap();
    let url = postgres.url("shop");
    let site = site(&url, "both");
    site.run_until_caught_up().await;
    let mut reader = Reader::start();
    assert_eq!(assert_replays(&mut reader, &url, &site, "orders").await, 100);

    site.configure(&configuration(&url, "mirror"));
    client
        .batch_execute("UPDATE orders SET v = 'missed' WHERE id <= 7; DELETE FROM orders WHERE id > 95")
        .await
        .unwrap();
    site.run_until_caught_up().await;

    site.configure(&configuration(&url, "both"));
    site.run_until_caught_up().await;
    assert_eq!(assert_replays(&mut reader, &url, &site, "orders").await, 100 + 2 * 7 + 5);

    // It follows again, and is not loaded at every start.
    client.batch_execute("UPDATE orders SET v = 'seen' WHERE id = 1").await.unwrap();
    site.run_until_caught_up().await;
    assert_eq!(assert_replays(&mut reader, &url, &site, "orders").await, 100 + 2 * 7 + 5 + 2);
    let state = std::fs::read_to_string(site.table("shop/_tidewater/sync_state.json")).unwrap();
    assert!(!state.contains("stale"), "{state}");
}

#[tokio::test]
async fn after_a_gap_a_history_gets_what_differs_and_keeps_what_it_had() {
    let postgres = Postgres::start().await;
    let client = postgres.create_database("shop").await;
    client
        .batch_execute(
            "CREATE TABLE orders (id int PRIMARY KEY, v text, n float8);
             INSERT INTO orders SELECT n, 'v' || n, CASE WHEN n % 3 = 0 THEN 'NaN'::float8 END FROM generate_series(1, 300) n",
        )
        .await
        .unwrap();
    let url = postgres.url("shop");
    let site = site(&url, "history");
    site.run_until_caught_up().await;
    client
        .batch_execute(
            "UPDATE orders SET v = 'seen' WHERE id <= 10; DELETE FROM orders WHERE id BETWEEN 11 AND 20",
        )
        .await
        .unwrap();
    site.run_until_caught_up().await;
    let mut reader = Reader::start();
    let before = assert_replays(&mut reader, &url, &site, "orders").await;
    assert_eq!(before, 300 + 20 + 10);

    // Changes that no slot saw.
    client
        .batch_execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots;
             UPDATE orders SET v = 'unseen' WHERE id BETWEEN 5 AND 34;
             DELETE FROM orders WHERE id BETWEEN 100 AND 149;
             INSERT INTO orders VALUES (11, 'back', NULL), (1000, 'new', 'NaN')",
        )
        .await
        .unwrap();
    site.run_until_caught_up().await;
    // 6 and 14 rows of the updated ones are still there; 11 was gone and is back.
    let after = assert_replays(&mut reader, &url, &site, "orders").await;
    assert_eq!(after, before + 2 * (6 + 14) + 50 + 2);

    // Nothing differs now, and the stream goes on from there.
    client
        .batch_execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
        .await
        .unwrap();
    std::fs::remove_dir_all(site.path().join(".tidewater")).unwrap();
    site.run_until_caught_up().await;
    client.batch_execute("UPDATE orders SET v = 'followed' WHERE id = 1000").await.unwrap();
    site.run_until_caught_up().await;
    assert_eq!(assert_replays(&mut reader, &url, &site, "orders").await, after + 2);
}

/// As `docs/guides/history.md` has it.
fn query_of_the_guide(name: &str) -> String {
    let guide = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/guides/history.md");
    let text = std::fs::read_to_string(guide).unwrap();
    let (_, after) = text.split_once(&format!("<!-- {name} -->")).unwrap();
    let (_, query) = after.split_once("```sql\n").unwrap();
    query.split_once("```").unwrap().0.trim().trim_end_matches(';').to_owned()
}

#[tokio::test]
async fn spark_builds_a_slowly_changing_dimension_with_the_window_query_of_the_guide() {
    let postgres = Postgres::start().await;
    let client = postgres.create_database("shop").await;
    client
        .batch_execute(
            "CREATE TABLE customers (id int PRIMARY KEY, name text, city text);
             INSERT INTO customers VALUES (1, 'Ada', 'Bergen'), (2, 'Bo', 'Oslo')",
        )
        .await
        .unwrap();
    let url = postgres.url("shop");
    let site = site(&url, "history");
    let mut daemon = site.start().await;
    daemon.wait_streaming(SOON).await;
    for change in [
        "UPDATE customers SET city = 'Oslo' WHERE id = 1",
        "INSERT INTO customers VALUES (3, 'Cy', 'Moss')",
        "UPDATE customers SET id = 30 WHERE id = 3",
        "DELETE FROM customers WHERE id = 2",
        "UPDATE customers SET city = 'Voss' WHERE id = 1",
    ] {
        client.batch_execute(change).await.unwrap();
    }
    daemon.stop().await;
    site.run_until_caught_up().await;

    let lake = history_of(&site, "customers");
    let scd2 = query_of_the_guide("scd2");
    let validity = format!(
        "SELECT id, name, city, valid_from IS NULL AS since_the_load, valid_to IS NULL AS current FROM ({scd2})"
    );
    let row = |id: &str, name: &str, city: &str, loaded: &str, current: &str| {
        [id, name, city, loaded, current].map(|cell| Some(cell.to_owned())).to_vec()
    };
    let mut reader = Reader::start();
    for engine in [Engine::DuckDb, Engine::Spark] {
        let mut rows = reader.query(engine, &lake, &validity).await;
        rows.sort();
        let expected = [
            row("1", "Ada", "Bergen", "t", "f"),
            row("1", "Ada", "Oslo", "f", "f"),
            row("1", "Ada", "Voss", "f", "t"),
            row("2", "Bo", "Oslo", "t", "f"),
            row("3", "Cy", "Moss", "f", "f"),
            row("30", "Cy", "Moss", "f", "t"),
        ];
        assert_eq!(rows, expected, "{engine:?}");
        let chained = format!(
            "SELECT count(*) FROM ({scd2}) a JOIN ({scd2}) b ON a.id = b.id AND a.valid_to = b.valid_from"
        );
        assert_eq!(reader.query(engine, &lake, &chained).await, [vec![Some("2".to_owned())]], "{engine:?}");
    }
    let mut current = reader.query(Engine::Spark, &lake, &query_of_the_guide("current")).await;
    current.sort();
    let mut source = reader.source_rows(&url, "public", "customers").await;
    source.sort();
    assert_eq!(current, source);
}
