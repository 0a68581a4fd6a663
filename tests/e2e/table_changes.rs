//! Tables that get other keys, names, places and publications while they are followed.

use std::path::Path;
use std::time::{Duration, Instant};

use tidewater_e2e::{
    Engine, LakeTable, Postgres, Reader, Site, Source, assert_equal, free_port, operations, property,
};

use crate::followed::{Followed, ORDERS, SOON, end, followed, followed_as, loads, rows_of, wait_loads};

#[tokio::test]
async fn a_key_that_comes_goes_or_changes_is_followed_and_the_application_goes_on() {
    let mut followed = followed(ORDERS).await;
    followed
        .client
        .batch_execute(
            "BEGIN; ALTER TABLE orders DROP CONSTRAINT orders_pkey; ALTER TABLE orders ADD PRIMARY KEY (n); COMMIT;
             UPDATE orders SET n = -n WHERE id % 2 = 0; DELETE FROM orders WHERE n = 7",
        )
        .await
        .unwrap();
    followed.daemon.wait_status(SOON, |status| rows_of(status, "public.orders") == Some(98)).await;
    followed.client.batch_execute("UPDATE orders SET id = id + 1000 WHERE n = 9").await.unwrap();
    followed.client.batch_execute("ALTER TABLE orders DROP CONSTRAINT orders_pkey").await.unwrap();
    followed.daemon.wait_status(SOON, |status| status["tables"][0]["state"] == "inserts only").await;
    // It is in the other publication by now: this would be refused in the first.
    followed.client.batch_execute("UPDATE orders SET v = 'free'; DELETE FROM orders").await.unwrap();
    followed
        .client
        .batch_execute("INSERT INTO orders VALUES (1, 'a', 1); ALTER TABLE orders ADD PRIMARY KEY (id)")
        .await
        .unwrap();
    followed.daemon.wait_status(SOON, |status| rows_of(status, "public.orders") == Some(1)).await;
    let (_postgres, _site) = end(followed, "orders").await;
}

#[tokio::test]
async fn a_renamed_table_stays_in_its_place_under_its_id_and_is_found_by_its_new_name() {
    let mut followed = followed(ORDERS).await;
    let old = followed.site.table("shop/public/orders");
    let id = property(&old, "tidewater.table_id").unwrap();
    followed
        .client
        .batch_execute(
            "ALTER TABLE orders RENAME TO sales;
             INSERT INTO sales VALUES (101, 'sale', 1);
             CREATE TABLE orders (id int PRIMARY KEY, other text); INSERT INTO orders VALUES (1, 'new one')",
        )
        .await
        .unwrap();
    followed.daemon.wait_status(SOON, |status| rows_of(status, "public.sales") == Some(100)).await;
    let status =
        followed.daemon.wait_status(SOON, |status| rows_of(status, "public.orders") == Some(1)).await;
    let tables = status["tables"].as_array().unwrap();
    assert_eq!(tables.len(), 2, "{status}");
    let location = |name: &str| {
        let table = tables.iter().find(|table| table["table"] == name).unwrap();
        Path::new(table["location"].as_str().unwrap()).to_owned()
    };
    assert_eq!(location("public.sales"), std::fs::canonicalize(&old).unwrap());
    let deadline = Instant::now() + SOON;
    while property(&old, "tidewater.source_name").as_deref() != Some("public.sales") {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!((loads(&old), property(&old, "tidewater.table_id").unwrap()), (1, id));
    let new = location("public.orders");
    let Followed { postgres, site, daemon, .. } = followed;
    daemon.stop().await;
    let (mut reader, dsn) = (Reader::start(), postgres.url("shop"));
    for (table, folder) in [("sales", &old), ("orders", &new)] {
        let source = Source { dsn: &dsn, schema: "public", table };
        assert_equal(&mut reader, Engine::DuckDb, &source, &LakeTable::at(folder)).await;
    }
    for (name, rows) in [("shop.public.sales", "100"), ("shop.public.orders", "1")] {
        let counted =
            site.command(&["sql", &format!("SELECT count(*) FROM {name}"), "--format", "csv"]).await;
        assert!(counted.stdout.lines().any(|line| line == rows), "{name}: {counted:?}");
    }
}

#[tokio::test]
async fn a_table_made_again_under_its_name_replaces_the_old_one_in_one_version() {
    let mut followed = followed(ORDERS).await;
    let table = followed.site.table("shop/public/orders");
    followed
        .client
        .batch_execute(
            "INSERT INTO orders VALUES (101, 'last of the old', 1);
             BEGIN;
             DROP TABLE orders;
             CREATE TABLE orders (id int PRIMARY KEY, v text, n int);
             INSERT INTO orders VALUES (1, 'new', 1), (2, 'new', 2);
             COMMIT;
             INSERT INTO orders VALUES (3, 'new', 3)",
        )
        .await
        .unwrap();
    followed.daemon.wait_status(SOON, |status| rows_of(status, "public.orders") == Some(3)).await;
    followed.client.batch_execute("UPDATE orders SET v = 'newer' WHERE id = 1").await.unwrap();
    let (_postgres, _site) = end(followed, "orders").await;
    assert_eq!(loads(&table), 2);
    let mut reader = Reader::start();
    for version in 0..operations(&table).len() as u64 {
        let rows = reader.columns(Engine::DuckDb, &LakeTable::at(&table).version(version), &["v"]).await;
        let new = rows.iter().filter(|row| row[0].as_deref().is_some_and(|v| v.starts_with("new"))).count();
        assert!(new == 0 || new == rows.len(), "version {version} mixes old and new rows");
    }
}

#[tokio::test]
async fn a_table_that_was_out_of_reach_for_a_while_misses_nothing() {
    let postgres = Postgres::start().await;
    let client = postgres.create_database("shop").await;
    client.batch_execute(ORDERS).await.unwrap();
    client.batch_execute("CREATE TABLE other (id int PRIMARY KEY)").await.unwrap();
    let site = Site::of_shop(&postgres.url("shop"));
    site.run_until_caught_up().await;
    client
        .batch_execute(
            "CREATE SCHEMA aside; ALTER TABLE orders SET SCHEMA aside; INSERT INTO other VALUES (1)",
        )
        .await
        .unwrap();
    site.run_until_caught_up().await;
    client.batch_execute("UPDATE aside.orders SET v = 'aside' WHERE id < 10").await.unwrap();
    site.run_until_caught_up().await;
    client.batch_execute("ALTER TABLE aside.orders SET SCHEMA public").await.unwrap();
    site.run_until_caught_up().await;
    let (mut reader, dsn) = (Reader::start(), postgres.url("shop"));
    let source = Source { dsn: &dsn, schema: "public", table: "orders" };
    let lake = LakeTable::at(&site.table("shop/public/orders"));
    assert_equal(&mut reader, Engine::DuckDb, &source, &lake).await;
}

#[tokio::test]
async fn a_table_with_excluded_columns_stays_published_when_one_of_the_others_is_dropped() {
    let postgres = Postgres::start().await;
    let client = postgres.create_database("shop").await;
    client
        .batch_execute(
            "CREATE TABLE orders (id int PRIMARY KEY, v text, card text);
             INSERT INTO orders SELECT n, 'old', '4111' FROM generate_series(1, 100) n",
        )
        .await
        .unwrap();
    let site = Site::new(&format!(
        "version: 1\nlake: {{uri: ./lake}}\nlisten: {{http: \"127.0.0.1:{}\"}}\n\
         databases:\n  shop: {{url: \"{}\", tls: disable}}\n\
         to_lake:\n  - database: shop\n    tables: [\"public.*\"]\n    flush: 200ms\n\
         \x20   overrides: {{public.orders: {{exclude_columns: [card]}}}}\n",
        free_port(),
        postgres.url("shop")
    ));
    let daemon = site.start().await;
    let mut followed = Followed { postgres, client, site, daemon };
    followed.wait_caught_up().await;
    // The list of columns goes with the column, and the table's membership with the list.
    followed
        .client
        .batch_execute("ALTER TABLE orders DROP COLUMN v CASCADE; INSERT INTO orders VALUES (101, '4222')")
        .await
        .unwrap();
    let table = followed.site.table("shop/public/orders");
    wait_loads(&table, 2).await;
    followed
        .client
        .batch_execute("INSERT INTO orders VALUES (102, '4333'); DELETE FROM orders WHERE id = 1")
        .await
        .unwrap();
    followed.wait_caught_up().await;
    let rows = Reader::start().rows(Engine::DuckDb, &LakeTable::at(&table)).await;
    let ids: Vec<i32> = rows.iter().map(|row| row[0].as_ref().unwrap().parse().unwrap()).collect();
    assert!(rows.iter().all(|row| row.len() == 1), "{:?}", rows[0]);
    assert_eq!((ids.len(), ids.iter().max(), ids.iter().min()), (101, Some(&102), Some(&2)));
}

#[tokio::test]
async fn a_table_that_moves_to_another_schema_stays_in_its_place() {
    let mut followed = followed_as(ORDERS, |url| Site::mirroring(url, r#"["*.*"]"#)).await;
    followed.wait_caught_up().await;
    let table = followed.site.table("shop/public/orders");
    followed
        .client
        .batch_execute(
            "UPDATE orders SET v = 'before' WHERE id < 10;
             CREATE SCHEMA sales;
             BEGIN; UPDATE orders SET v = 'inside' WHERE id = 1; ALTER TABLE orders SET SCHEMA sales;
             ALTER TABLE sales.orders RENAME COLUMN v TO remark; INSERT INTO sales.orders VALUES (101, 'moved', 1); COMMIT;
             DELETE FROM sales.orders WHERE id = 2",
        )
        .await
        .unwrap();
    followed.daemon.wait_status(SOON, |status| rows_of(status, "sales.orders") == Some(99)).await;
    followed.wait_caught_up().await;
    let Followed { postgres, site, daemon, .. } = followed;
    daemon.stop().await;
    let source = Source { dsn: &postgres.url("shop"), schema: "sales", table: "orders" };
    let lake = LakeTable::at(&table);
    let mut reader = Reader::start();
    for engine in [Engine::DuckDb, Engine::DeltaRs] {
        assert_equal(&mut reader, engine, &source, &lake).await;
    }
    assert_eq!(loads(&table), 1, "{:?}", operations(&table));
    assert!(!site.table("shop/sales").exists(), "it has no second folder");
}

/// A site whose `orders` has these overrides.
fn with_override(url: &str, choices: &str) -> Site {
    Site::new(&format!(
        "version: 1\nlake: {{uri: ./lake}}\nlisten: {{http: \"127.0.0.1:{}\"}}\n\
         databases:\n  shop: {{url: \"{url}\", tls: disable}}\n\
         to_lake:\n  - database: shop\n    tables: [\"public.*\"]\n    flush: 200ms\n\
         \x20   overrides: {{public.orders: {{{choices}}}}}\n",
        free_port()
    ))
}

#[tokio::test]
async fn columns_change_in_place_in_a_table_with_partitions_in_the_lake() {
    let tables = "CREATE TABLE orders (id int PRIMARY KEY, country text, v text, n int);
        INSERT INTO orders SELECT n, (ARRAY['DE', 'FR', NULL])[1 + n % 3], 'old', n FROM generate_series(1, 90) n";
    let followed = followed_as(tables, |url| with_override(url, "partition_by: [country]")).await;
    followed
        .client
        .batch_execute(
            "UPDATE orders SET v = 'before', country = 'IT' WHERE id <= 5;
             BEGIN;
             ALTER TABLE orders ADD COLUMN five int DEFAULT 5;
             INSERT INTO orders VALUES (101, 'ES', 'new', 1, 6);
             ALTER TABLE orders RENAME COLUMN v TO w;
             UPDATE orders SET country = 'DE' WHERE id = 101;
             ALTER TABLE orders DROP COLUMN n;
             DELETE FROM orders WHERE country = 'FR' AND id < 20;
             COMMIT;
             UPDATE orders SET w = 'after', country = 'ES' WHERE id > 80",
        )
        .await
        .unwrap();
    let table = followed.site.table("shop/public/orders");
    let (_postgres, _site) = end(followed, "orders").await;
    assert_eq!(loads(&table), 1, "{:?}", operations(&table));
    assert!(table.join("country=ES").is_dir(), "the files are laid out as before");
}

#[tokio::test]
async fn columns_change_beside_excluded_ones_and_none_of_those_reaches_the_lake() {
    let tables = "CREATE TABLE orders (id int PRIMARY KEY, v text, card text);
        INSERT INTO orders SELECT n, 'old', '4111' FROM generate_series(1, 100) n";
    let mut followed = followed_as(tables, |url| with_override(url, "exclude_columns: [card]")).await;
    let table = followed.site.table("shop/public/orders");
    for sql in [
        "ALTER TABLE orders RENAME COLUMN v TO w; UPDATE orders SET w = 'renamed' WHERE id < 10",
        "ALTER TABLE orders ADD COLUMN five int DEFAULT 5; UPDATE orders SET five = 6, card = '4222' WHERE id < 5",
        "ALTER TABLE orders ADD COLUMN plain text; INSERT INTO orders VALUES (101, 'new', '4333', 7, 'p')",
    ] {
        followed.client.batch_execute(sql).await.unwrap();
        followed.wait_caught_up().await;
    }
    let lake = LakeTable::at(&table);
    let mut reader = Reader::start();
    let expected = "SELECT id::text, w, five::text, plain FROM orders ORDER BY orders.id";
    let deadline = Instant::now() + SOON;
    loop {
        let rows = followed.client.query(expected, &[]).await.unwrap();
        let rows: Vec<Vec<Option<String>>> =
            rows.iter().map(|row| (0..4).map(|at| row.get(at)).collect()).collect();
        let mut found = reader.rows(Engine::DuckDb, &lake).await;
        found.sort_by_key(|row| row[0].as_deref().unwrap().parse::<i32>().unwrap());
        if found == rows {
            break;
        }
        // A column that is new has to be published first, which a look at the catalog sees to.
        assert!(Instant::now() < deadline, "{:?}", first_of_each(&rows, &found));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for version in 0..operations(&table).len() as u64 {
        let at = LakeTable::at(&table).version(version);
        let columns = reader.schema(Engine::DeltaRs, &at).await;
        assert!(columns.iter().all(|(name, _)| name != "card"), "version {version}: {columns:?}");
        // Each statement's changes are one transaction, so no version has a column without its values. The stream does
        // not have them: it sends a column that is new only once it is published.
        if columns.iter().any(|(name, _)| name == "five") {
            for row in reader.columns(Engine::DuckDb, &at, &["id", "five"]).await {
                let id: i32 = row[0].as_deref().unwrap().parse().unwrap();
                let expected = match id {
                    ..5 => "6",
                    101 => "7",
                    _ => "5",
                };
                assert_eq!(row[1].as_deref(), Some(expected), "version {version}, id {id}");
            }
        }
    }
    // Once they are published, their changes come with the stream and not by a load.
    let deadline = Instant::now() + SOON;
    for n in 100.. {
        assert!(Instant::now() < deadline, "each change of a new column is a load: {:?}", operations(&table));
        let before = loads(&table);
        let sql = format!("UPDATE orders SET five = {n}, plain = 'published' WHERE id = 20");
        followed.client.batch_execute(&sql).await.unwrap();
        followed.wait_caught_up().await;
        let rows = reader.columns(Engine::DuckDb, &lake, &["id", "five"]).await;
        let expected = vec![Some("20".to_owned()), Some(n.to_string())];
        if loads(&table) == before && rows.contains(&expected) {
            break;
        }
    }
    followed.daemon.stop().await;
}

type Rows = Vec<Vec<Option<String>>>;

fn first_of_each<'a>(source: &'a Rows, lake: &'a Rows) -> impl std::fmt::Debug {
    (source.first(), lake.first(), source.last(), lake.last())
}

/// Nothing of what happens to a table outside of the publication is in the stream.
#[tokio::test]
async fn a_table_that_others_took_out_of_the_publication_for_a_while_misses_nothing() {
    for is_down in [false, true] {
        let mut followed = followed(ORDERS).await;
        followed.wait_caught_up().await;
        let Followed { postgres, client, site, daemon } = followed;
        let sql = "ALTER PUBLICATION tidewater_main_shop DROP TABLE ONLY orders;
            UPDATE orders SET v = 'unseen' WHERE id < 20; DELETE FROM orders WHERE id = 60;
            ALTER PUBLICATION tidewater_main_shop ADD TABLE ONLY orders;
            UPDATE orders SET v = 'seen' WHERE id = 70";
        let daemon = if is_down {
            daemon.stop().await;
            client.batch_execute(sql).await.unwrap();
            let mut daemon = site.start().await;
            daemon.wait_streaming(SOON).await;
            daemon
        } else {
            client.batch_execute(sql).await.unwrap();
            let mut daemon = daemon;
            daemon.wait_log(SOON, &["it was taken out of the publication"]).await;
            daemon.wait_streaming(SOON).await;
            daemon
        };
        let (_postgres, _site) = end(Followed { postgres, client, site, daemon }, "orders").await;
    }
}

#[tokio::test]
async fn a_table_that_others_took_out_of_the_publication_for_good_is_put_back() {
    let mut followed = followed(ORDERS).await;
    followed.wait_caught_up().await;
    let sql = "ALTER PUBLICATION tidewater_main_shop DROP TABLE ONLY orders; UPDATE orders SET v = 'unseen' WHERE id < 20";
    followed.client.batch_execute(sql).await.unwrap();
    followed.daemon.wait_log(SOON, &["it was taken out of the publication"]).await;
    let (_postgres, _site) = end(followed, "orders").await;
}

/// A resync is asked for because a table differs: a crash before it is done must not make anyone forget that.
#[tokio::test]
async fn a_resync_that_a_crash_interrupts_is_made_up_for() {
    for point in ["snapshot-after-export=return(die)", "commit-after-put=return(die)"] {
        let postgres = Postgres::start().await;
        let client = postgres.create_database("shop").await;
        client.batch_execute(ORDERS).await.unwrap();
        let site = Site::of_shop(&postgres.url("shop"));
        site.run_until_caught_up().await;
        // The stream never carries it: nothing but a comparison finds it.
        let unseen = "UPDATE orders SET v = 'unseen' WHERE id < 20";
        let skip =
            "SELECT pg_replication_slot_advance(slot_name, pg_current_wal_lsn()) FROM pg_replication_slots";
        client.batch_execute(unseen).await.unwrap();
        client.batch_execute(skip).await.unwrap();
        let mut daemon = site.spawn_armed(point);
        daemon.wait_streaming(SOON).await;
        let asked = site.command(&["resync", "public.orders"]).await;
        assert_eq!(asked.code, Some(0), "{}", asked.stderr);
        daemon.ended(SOON).await;
        let state = std::fs::read_to_string(site.table("shop/_tidewater/sync_state.json")).unwrap();
        assert!(state.contains("stale"), "{state}");
        site.run_until_caught_up().await;
        let (mut reader, dsn) = (Reader::start(), postgres.url("shop"));
        let source = Source { dsn: &dsn, schema: "public", table: "orders" };
        let lake = LakeTable::at(&site.table("shop/public/orders"));
        assert_equal(&mut reader, Engine::DuckDb, &source, &lake).await;
    }
}
