//! What people do to a running sync: verify, pause, resume, reload.

use std::time::Duration;

use serde_json::Value;
use tidewater_e2e::{Daemon, Engine, LakeTable, Postgres, Reader, Shop, Site, Source, Traffic, assert_equal};

const SOON: Duration = Duration::from_secs(90);

async fn shop() -> (Postgres, tokio_postgres::Client, Site) {
    let postgres = Postgres::start().await;
    let client = postgres.create_database("shop").await;
    client
        .batch_execute(
            "CREATE TABLE orders (id int PRIMARY KEY, v text, n int);
             INSERT INTO orders SELECT n, md5(n::text), n % 100 FROM generate_series(1, 5000) n;
             CREATE TABLE items (id int, part text, at timestamptz, PRIMARY KEY (id, part));
             INSERT INTO items SELECT n, 'p' || n, now() FROM generate_series(1, 500) n",
        )
        .await
        .unwrap();
    let site = Site::of_shop(&postgres.url("shop"));
    (postgres, client, site)
}

fn state_of<'a>(status: &'a Value, table: &str) -> Option<&'a str> {
    let tables = status["tables"].as_array().unwrap();
    tables.iter().find(|found| found["table"] == table)?["state"].as_str()
}

async fn wait_state(daemon: &mut Daemon, table: &str, state: &str) {
    daemon.wait_status(SOON, |status| state_of(status, table) == Some(state)).await;
}

async fn assert_done(site: &Site, arguments: &[&str]) {
    let ended = site.command(arguments).await;
    assert_eq!(ended.code, Some(0), "{arguments:?}\n{}\n{}", ended.stdout, ended.stderr);
}

async fn assert_mirrored(postgres: &Postgres, site: &Site, reader: &mut Reader, tables: &[&str]) {
    let url = postgres.url("shop");
    for table in tables {
        let source = Source { dsn: &url, schema: "public", table };
        let lake = LakeTable::at(&site.table(&format!("shop/public/{table}")));
        assert_equal(reader, Engine::DuckDb, &source, &lake).await;
    }
}

/// Makes the daemon lose what `sql` does: the stream never carries it.
async fn behind_its_back(client: &tokio_postgres::Client, sql: &str) {
    client.batch_execute(sql).await.unwrap();
    let advance = "SELECT pg_replication_slot_advance(slot_name, pg_current_wal_lsn())
                     FROM pg_replication_slots WHERE slot_name LIKE 'tidewater%'";
    client.batch_execute(advance).await.unwrap();
}

#[tokio::test]
async fn verify_finds_equal_tables_equal_while_they_are_written_to() {
    let postgres = Postgres::start().await;
    let client = postgres.create_database("shop").await;
    Shop::create(&client).await;
    let url = postgres.url("shop");
    let site = Site::of_shop(&url);
    let mut daemon = site.start().await;
    daemon.wait_streaming(SOON).await;
    let traffic = Traffic::start(&url, 77, 3, None, Duration::from_millis(2));
    traffic.wait_for(50).await;
    for _ in 0..5 {
        let before = traffic.committed();
        let ended = site.command(&["verify", "--json"]).await;
        assert_eq!(ended.code, Some(0), "{}\n{}", ended.stdout, ended.stderr);
        let report: Value = serde_json::from_str(&ended.stdout).unwrap();
        for table in report["tables"].as_array().unwrap() {
            let name = table["table"].as_str().unwrap().trim_start_matches("public.");
            let expected = if Shop::INSERTS_ONLY.contains(&name) { "not_compared" } else { "equal" };
            assert_eq!(table["verdict"], expected, "{table}");
        }
        assert!(traffic.committed() > before, "the application stood still");
        traffic.wait_for(20).await;
    }
    traffic.stop().await;
    daemon.stop().await;
}

#[tokio::test]
async fn verify_prints_the_first_differing_keys_and_exits_with_3() {
    let (postgres, client, site) = shop().await;
    site.run_until_caught_up().await;
    behind_its_back(
        &client,
        "UPDATE orders SET v = 'other' WHERE id = 17; DELETE FROM orders WHERE id = 99;
         INSERT INTO orders VALUES (70001, NULL, 1); DELETE FROM items WHERE id = 3",
    )
    .await;
    let mut daemon = site.start().await;
    daemon.wait_streaming(SOON).await;
    let ended = site.command(&["verify"]).await;
    assert_eq!(ended.code, Some(3), "{}\n{}", ended.stdout, ended.stderr);
    for line in ["  id=17: other values", "  id=99: only in the lake", "  id=70001: only at the source"] {
        assert!(ended.stdout.lines().any(|found| found == line), "{line} is not in\n{}", ended.stdout);
    }
    assert!(ended.stdout.contains("  id=3, part=p3: only in the lake"), "{}", ended.stdout);
    // A resync mends it, and verify agrees.
    for table in ["public.orders", "shop.public.items"] {
        assert_done(&site, &["resync", table]).await;
    }
    daemon.wait_status(SOON, |status| state_of(status, "public.orders") != Some("streaming")).await;
    daemon.wait_streaming(SOON).await;
    assert_done(&site, &["verify", "public.orders", "public.items"]).await;
    let unknown = site.command(&["verify", "public.none"]).await;
    assert_eq!(unknown.code, Some(1), "{}", unknown.stderr);
    daemon.stop().await;
    let mut reader = Reader::start();
    assert_mirrored(&postgres, &site, &mut reader, &["orders", "items"]).await;
    let alone = site.command(&["verify"]).await;
    assert_eq!(alone.code, Some(1), "{}", alone.stderr);
    assert!(alone.stderr.contains("no daemon runs"), "{}", alone.stderr);
}

async fn confirmed(client: &tokio_postgres::Client) -> String {
    let sql = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name LIKE 'tidewater%'";
    client.query_one(sql, &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn a_paused_table_stays_at_its_version_through_a_restart_and_never_holds_the_slot() {
    let (postgres, client, site) = shop().await;
    let mut daemon = site.start().await;
    daemon.wait_streaming(SOON).await;
    assert_done(&site, &["pause", "public.orders"]).await;
    wait_state(&mut daemon, "public.orders", "paused").await;
    let mut reader = Reader::start();
    let orders = LakeTable::at(&site.table("shop/public/orders"));
    let before = reader.checksum(Engine::DuckDb, &orders).await;
    let slot = confirmed(&client).await;
    client
        .batch_execute("UPDATE orders SET v = 'new' WHERE id <= 50; DELETE FROM items WHERE id <= 10")
        .await
        .unwrap();
    daemon.kill9().await;
    let mut daemon = site.start().await;
    wait_state(&mut daemon, "public.orders", "paused").await;
    wait_state(&mut daemon, "public.items", "streaming").await;
    client.batch_execute("DELETE FROM items WHERE id BETWEEN 11 AND 20").await.unwrap();
    daemon.stop().await;
    // Caught up, the others have everything and the slot has moved on; the paused table is as it was.
    site.run_until_caught_up().await;
    assert_mirrored(&postgres, &site, &mut reader, &["items"]).await;
    assert_eq!(reader.checksum(Engine::DuckDb, &orders).await, before);
    assert_ne!(confirmed(&client).await, slot, "the paused table holds the slot");

    let mut daemon = site.start().await;
    wait_state(&mut daemon, "public.orders", "paused").await;
    let refused = site.command(&["resume", "public.items"]).await;
    assert!(refused.code == Some(1) && refused.stderr.contains("not paused"), "{}", refused.stderr);
    assert_done(&site, &["resume", "public.orders"]).await;
    wait_state(&mut daemon, "public.orders", "streaming").await;
    client.batch_execute("INSERT INTO orders VALUES (90000, 'last', 0)").await.unwrap();
    daemon.stop().await;
    site.run_until_caught_up().await;
    assert_mirrored(&postgres, &site, &mut reader, &["orders", "items"]).await;
}

#[tokio::test]
async fn a_pause_that_holds_the_slot_loses_no_change_and_needs_no_comparison() {
    let (postgres, client, site) = shop().await;
    let mut daemon = site.start().await;
    daemon.wait_streaming(SOON).await;
    assert_done(&site, &["pause", "--hold", "public.orders"]).await;
    wait_state(&mut daemon, "public.orders", "paused").await;
    let slot = confirmed(&client).await;
    client
        .batch_execute("UPDATE orders SET v = 'new' WHERE id <= 50; DELETE FROM items WHERE id <= 10")
        .await
        .unwrap();
    daemon.stop().await;
    let mut daemon = site.start().await;
    wait_state(&mut daemon, "public.items", "streaming").await;
    client.batch_execute("DELETE FROM items WHERE id BETWEEN 11 AND 20").await.unwrap();
    let mut reader = Reader::start();
    let items = LakeTable::at(&site.table("shop/public/items"));
    // 480 of the 500 rows are left, in the lake as well: the others go on.
    daemon
        .wait_status(SOON, |status| {
            let tables = status["tables"].as_array().unwrap();
            tables.iter().any(|found| found["table"] == "public.items" && found["rows"] == 480)
        })
        .await;
    assert_eq!(reader.count(Engine::DuckDb, &items).await, 480);
    assert_eq!(confirmed(&client).await, slot, "the slot has moved");
    assert_done(&site, &["resume", "public.orders"]).await;
    wait_state(&mut daemon, "public.orders", "streaming").await;
    daemon.stop().await;
    site.run_until_caught_up().await;
    assert_mirrored(&postgres, &site, &mut reader, &["orders", "items"]).await;
    assert_ne!(confirmed(&client).await, slot, "the slot is still held");
    let log = std::fs::read_dir(site.table("shop/public/orders/_delta_log")).unwrap();
    for commit in
        log.map(|file| file.unwrap().path()).filter(|path| path.extension().is_some_and(|e| e == "json"))
    {
        assert!(!std::fs::read_to_string(&commit).unwrap().contains("\"MEND\""), "it was compared");
    }
}

fn yaml(url: &str, port: u16, tables: &str, more: &str) -> String {
    format!(
        "version: 1\nlake: {{uri: ./lake}}\nlisten: {{http: \"127.0.0.1:{port}\"}}\n\
         databases:\n  shop: {{url: \"{url}/shop\", tls: disable}}\n  crm: {{url: \"{url}/crm\", tls: disable}}\n\
         to_lake:\n  - {{database: shop, tables: {tables}, flush: 200ms}}\n{more}"
    )
}

#[tokio::test]
async fn tables_and_databases_come_and_go_with_sighup_and_a_broken_file_changes_nothing() {
    let (postgres, client, _) = shop().await;
    let crm = postgres.create_database("crm").await;
    crm.batch_execute("CREATE TABLE leads (id int PRIMARY KEY); INSERT INTO leads VALUES (1)").await.unwrap();
    let (url, port) = (postgres.url(""), tidewater_e2e::free_port());
    let url = url.trim_end_matches('/');
    let both = r#"["public.*"]"#;
    let only_items = r#"["public.items"]"#;
    let with_crm = "  - {database: crm, tables: [\"public.*\"], flush: 200ms}\n";
    let site = Site::new(&yaml(url, port, both, ""));
    let mut daemon = site.start().await;
    daemon.wait_streaming(SOON).await;

    // A table leaves, a database comes.
    site.configure(&yaml(url, port, only_items, with_crm));
    daemon.reload();
    daemon
        .wait_status(SOON, |status| {
            state_of(status, "public.orders").is_none()
                && state_of(status, "public.leads") == Some("streaming")
                && state_of(status, "public.items") == Some("streaming")
        })
        .await;
    client
        .batch_execute("DELETE FROM orders WHERE id <= 100; DELETE FROM items WHERE id <= 10")
        .await
        .unwrap();
    crm.batch_execute("INSERT INTO leads VALUES (2)").await.unwrap();

    // A broken file and one that cannot be followed say so, and change nothing.
    for (broken, word) in [
        ("version: 1\nlakes: {}\n", "tidewater.yaml:2"),
        (yaml(url, port, both, "instance: other\n").as_str(), "`instance` cannot change"),
    ] {
        site.configure(broken);
        daemon.reload();
        daemon.wait_log(SOON, &["the earlier configuration stays in force", word]).await;
    }
    wait_state(&mut daemon, "public.leads", "streaming").await;

    // The table comes back: it lacks what happened meanwhile, and gets it. The database leaves.
    site.configure(&yaml(url, port, both, ""));
    daemon.reload();
    daemon
        .wait_status(SOON, |status| {
            state_of(status, "public.orders") == Some("streaming")
                && state_of(status, "public.leads").is_none()
        })
        .await;
    client.batch_execute("UPDATE orders SET n = -1 WHERE id BETWEEN 200 AND 210").await.unwrap();
    daemon.stop().await;
    site.run_until_caught_up().await;
    let mut reader = Reader::start();
    assert_mirrored(&postgres, &site, &mut reader, &["orders", "items"]).await;
    let leads = LakeTable::at(&site.table("crm/public/leads"));
    assert_eq!(reader.count(Engine::DuckDb, &leads).await, 2);
}
