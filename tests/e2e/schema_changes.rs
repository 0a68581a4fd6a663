//! Columns and tables that change while they are followed: `docs/guides/schema-changes.md`, row by row.

use std::time::{Duration, Instant};

use tidewater_e2e::{Engine, LakeTable, Postgres, Reader, Site, Source, assert_equal, operations, property};

use crate::followed::{Followed, ORDERS, SOON, end, followed, followed_by_its_owner, loads, wait_loads};

/// Waits until DuckDB finds these columns in the lake.
async fn wait_columns(reader: &mut Reader, lake: &LakeTable, columns: &[&str]) {
    let deadline = Instant::now() + SOON;
    loop {
        let schema = reader.schema(Engine::DuckDb, lake).await;
        let found: Vec<&str> = schema.iter().map(|(name, _)| name.as_str()).collect();
        if found == columns {
            return;
        }
        assert!(Instant::now() < deadline, "{found:?} instead of {columns:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Follows `orders`, runs `sql`, compares, and gives the number of loads.
async fn loads_after(sql: &str) -> usize {
    let mut followed = followed(ORDERS).await;
    followed.wait_caught_up().await;
    followed.client.batch_execute(sql).await.unwrap();
    let table = followed.site.table("shop/public/orders");
    // The site is kept until the log was read.
    let (postgres, site) = end(followed, "orders").await;
    let loads = loads(&table);
    drop((postgres, site));
    loads
}

#[tokio::test]
async fn added_columns_join_in_order_with_the_rows_around_them_and_without_a_load() {
    let loads = loads_after(
        "INSERT INTO orders VALUES (101, 'before', 1);
         ALTER TABLE orders ADD COLUMN plain text;
         INSERT INTO orders VALUES (102, 'after', 2, 'x');
         UPDATE orders SET v = 'touched' WHERE id <= 10",
    )
    .await;
    assert_eq!(loads, 1);
}

#[tokio::test]
async fn the_rows_before_a_column_with_a_default_get_what_postgres_froze_for_them() {
    let loads = loads_after(
        "UPDATE orders SET v = 'before' WHERE id <= 20;
         ALTER TABLE orders ADD COLUMN five int NOT NULL DEFAULT 5, ADD COLUMN since timestamptz DEFAULT now(),
                            ADD COLUMN tags text[] DEFAULT '{a,\"b c\"}';
         INSERT INTO orders (id, v) VALUES (101, 'after');
         UPDATE orders SET five = 6 WHERE id = 7;
         DELETE FROM orders WHERE id = 8",
    )
    .await;
    assert_eq!(loads, 1);
}

#[tokio::test]
async fn dropped_and_renamed_columns_are_followed_from_the_lakes_own_files() {
    let followed = followed(ORDERS).await;
    let table = followed.site.table("shop/public/orders");
    followed
        .client
        .batch_execute(
            "UPDATE orders SET v = 'before' WHERE id <= 20;
             ALTER TABLE orders RENAME COLUMN v TO remark;
             INSERT INTO orders VALUES (101, 'between', 1)",
        )
        .await
        .unwrap();
    let mut reader = Reader::start();
    wait_columns(&mut reader, &LakeTable::at(&table), &["id", "remark", "n"]).await;
    followed
        .client
        .batch_execute(
            "ALTER TABLE orders DROP COLUMN n; UPDATE orders SET remark = 'after' WHERE id % 3 = 0",
        )
        .await
        .unwrap();
    wait_columns(&mut reader, &LakeTable::at(&table), &["id", "remark"]).await;
    let (_postgres, _site) = end(followed, "orders").await;
    assert_eq!(loads(&table), 1);
    let first = reader.schema(Engine::DuckDb, &LakeTable::at(&table).version(0)).await;
    assert_eq!(first.len(), 3, "the first version keeps its columns: {first:?}");
}

#[tokio::test]
async fn two_columns_that_swap_their_names_keep_their_values() {
    let loads = loads_after(
        "ALTER TABLE orders ADD COLUMN w text DEFAULT 'w';
         UPDATE orders SET w = 'x' WHERE id = 1;
         BEGIN;
         ALTER TABLE orders RENAME COLUMN v TO t;
         ALTER TABLE orders RENAME COLUMN w TO v;
         ALTER TABLE orders RENAME COLUMN t TO w;
         COMMIT;
         INSERT INTO orders VALUES (101, 'is w', 1, 'is v')",
    )
    .await;
    assert_eq!(loads, 1);
}

#[tokio::test]
async fn a_change_that_no_row_follows_arrives_by_itself() {
    let followed = followed(ORDERS).await;
    followed.client.batch_execute("ALTER TABLE orders ADD COLUMN late int DEFAULT 3").await.unwrap();
    let table = followed.site.table("shop/public/orders");
    wait_columns(&mut Reader::start(), &LakeTable::at(&table), &["id", "v", "n", "late"]).await;
    let (_postgres, _site) = end(followed, "orders").await;
    assert_eq!(loads(&table), 1);
}

#[tokio::test]
async fn rewritten_rows_are_loaded_anew_because_the_stream_does_not_show_them() {
    for change in [
        "ALTER TABLE orders ADD COLUMN r float8 DEFAULT random()",
        "ALTER TABLE orders ALTER COLUMN n TYPE int USING n * 2",
        "ALTER TABLE orders ALTER COLUMN n TYPE bigint",
        "ALTER TABLE orders ALTER COLUMN n TYPE text",
        "ALTER TABLE orders ADD COLUMN twice int GENERATED ALWAYS AS (n * 2) STORED",
    ] {
        let sql = format!(
            "UPDATE orders SET v = 'before' WHERE id < 10; {change}; UPDATE orders SET v = 'after' WHERE id < 5"
        );
        assert_eq!(loads_after(&sql).await, 2, "{change}");
    }
}

#[tokio::test]
async fn a_rewrite_that_no_row_follows_is_noticed() {
    let followed = followed(ORDERS).await;
    followed.client.batch_execute("ALTER TABLE orders ALTER COLUMN n TYPE int USING n + 1000").await.unwrap();
    let table = followed.site.table("shop/public/orders");
    wait_loads(&table, 2).await;
    let (_postgres, _site) = end(followed, "orders").await;
}

#[tokio::test]
async fn what_changes_no_value_interrupts_nothing() {
    let followed = followed(
        "CREATE TYPE mood AS ENUM ('sad', 'ok');
         CREATE DOMAIN short AS text;
         CREATE TABLE orders (id int PRIMARY KEY, name varchar(10), amount numeric(10, 2), mood mood, t text);
         INSERT INTO orders SELECT n, 'n' || n, n / 4.0, 'sad', 't' FROM generate_series(1, 100) n",
    )
    .await;
    for sql in [
        "ALTER TABLE orders ALTER name TYPE varchar(20)",
        "INSERT INTO orders VALUES (101, 'twenty characters xx', 1.25, 'ok', 't')",
        "ALTER TABLE orders ALTER amount TYPE numeric(14, 2)",
        "INSERT INTO orders VALUES (102, 'x', 123456789012.25, 'ok', 't')",
        "ALTER TABLE orders ALTER name SET NOT NULL, ALTER t TYPE short, ALTER t SET DEFAULT 'd'",
        "ALTER TYPE mood ADD VALUE 'glad'",
        "INSERT INTO orders VALUES (103, 'y', 0, 'glad', 'u')",
        "ALTER TABLE orders ADD CHECK (id > 0), ALTER COLUMN id SET STATISTICS 500",
    ] {
        followed.client.batch_execute(sql).await.unwrap();
    }
    let table = followed.site.table("shop/public/orders");
    let (_postgres, _site) = end(followed, "orders").await;
    assert_eq!(loads(&table), 1, "{:?}", operations(&table));
}

#[tokio::test]
async fn rows_that_only_move_to_another_file_are_not_loaded_again() {
    let mut followed = followed(ORDERS).await;
    followed.wait_caught_up().await;
    followed.client.batch_execute("VACUUM FULL orders").await.unwrap();
    let file = "SELECT pg_relation_filenode('orders')::text";
    let file: String = followed.client.query_one(file, &[]).await.unwrap().get(0);
    let table = followed.site.table("shop/public/orders");
    let deadline = Instant::now() + SOON;
    while !property(&table, "tidewater.source_storage").is_some_and(|storage| storage.contains(&file)) {
        assert!(Instant::now() < deadline, "the look at the catalog is not in the lake");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    followed.client.batch_execute("UPDATE orders SET v = 'after' WHERE id < 10").await.unwrap();
    let (_postgres, _site) = end(followed, "orders").await;
    assert_eq!(loads(&table), 1);
}

#[tokio::test]
async fn a_renamed_value_of_an_enum_is_renamed_in_every_row() {
    let followed = followed(
        "CREATE TYPE mood AS ENUM ('sad', 'ok');
         CREATE TABLE orders (id int PRIMARY KEY, mood mood);
         INSERT INTO orders SELECT n, 'sad' FROM generate_series(1, 100) n",
    )
    .await;
    followed.client.batch_execute("ALTER TYPE mood RENAME VALUE 'sad' TO 'low'").await.unwrap();
    let table = followed.site.table("shop/public/orders");
    wait_loads(&table, 2).await;
    let (_postgres, _site) = end(followed, "orders").await;
}

#[tokio::test]
async fn changes_made_while_the_daemon_was_down_are_followed_with_the_rows_between_them() {
    let mut followed = followed(ORDERS).await;
    followed.wait_caught_up().await;
    let Followed { postgres, client, site, daemon } = followed;
    daemon.stop().await;
    client
        .batch_execute(
            "INSERT INTO orders VALUES (101, 'a', 1);
             ALTER TABLE orders ADD COLUMN x int DEFAULT 7;
             INSERT INTO orders VALUES (102, 'b', 2, 8);
             ALTER TABLE orders DROP COLUMN n;
             UPDATE orders SET v = 'c' WHERE id < 10;
             ALTER TABLE orders RENAME COLUMN x TO n;
             INSERT INTO orders VALUES (103, 'd', 9)",
        )
        .await
        .unwrap();
    let mut daemon = site.start().await;
    daemon.wait_streaming(SOON).await;
    let (_postgres, site) = end(Followed { postgres, client, site, daemon }, "orders").await;
    assert_eq!(loads(&site.table("shop/public/orders")), 1);
}

#[tokio::test]
async fn several_changes_inside_one_transaction_with_rows_between_arrive_as_one_version() {
    let followed = followed(ORDERS).await;
    followed
        .client
        .batch_execute(
            "BEGIN;
             INSERT INTO orders VALUES (101, 'a', 1);
             ALTER TABLE orders ADD COLUMN x int DEFAULT 7;
             INSERT INTO orders VALUES (102, 'b', 2, 8);
             ALTER TABLE orders RENAME COLUMN v TO w;
             UPDATE orders SET w = 'c' WHERE id < 10;
             ALTER TABLE orders DROP COLUMN n;
             INSERT INTO orders VALUES (103, 'd', 9);
             COMMIT;
             INSERT INTO orders VALUES (104, 'e', 10)",
        )
        .await
        .unwrap();
    let (_postgres, site) = end(followed, "orders").await;
    assert_eq!(loads(&site.table("shop/public/orders")), 1);
}

/// What the stream says by names alone, with the catalog as it is in the end.
#[tokio::test]
async fn without_the_event_trigger_every_change_is_followed_too_at_worst_by_a_load() {
    // How often a table is loaded is certain only where it need not be: loads of several tables may begin anew together.
    let scripts: [(&str, Option<usize>); 8] = [
        ("ALTER TABLE t ADD COLUMN x int; INSERT INTO t VALUES (101, 'a', 1, 2)", Some(1)),
        ("ALTER TABLE t ADD COLUMN x int DEFAULT 5; UPDATE t SET x = 6 WHERE id < 5", Some(1)),
        ("ALTER TABLE t RENAME COLUMN v TO w; UPDATE t SET w = 'b' WHERE id < 5", Some(1)),
        ("ALTER TABLE t DROP COLUMN v; UPDATE t SET n = 0 WHERE id < 5", Some(1)),
        ("ALTER TABLE t ADD COLUMN r float8 DEFAULT random(); UPDATE t SET n = 0 WHERE id < 5", None),
        (
            "ALTER TABLE t DROP COLUMN v; ALTER TABLE t ADD COLUMN v text; UPDATE t SET v = 'b' WHERE id < 5",
            None,
        ),
        (
            "BEGIN; INSERT INTO t VALUES (101, 'a', 1); ALTER TABLE t ADD COLUMN x int DEFAULT 7;
             INSERT INTO t VALUES (102, 'b', 2, 8); ALTER TABLE t RENAME COLUMN v TO w;
             UPDATE t SET w = 'c' WHERE id < 10; ALTER TABLE t DROP COLUMN n;
             INSERT INTO t VALUES (103, 'd', 9); COMMIT",
            None,
        ),
        (
            "ALTER TABLE t RENAME COLUMN v TO w; ALTER TABLE t ADD COLUMN v text DEFAULT 'v';
             UPDATE t SET v = w WHERE id < 50",
            None,
        ),
    ];
    let mut tables = String::new();
    for at in 0..scripts.len() {
        tables.push_str(&ORDERS.replace("orders", &format!("t{at}")));
        tables.push(';');
    }
    let mut followed = followed_by_its_owner(&tables, Site::of_shop).await;
    followed.wait_caught_up().await;
    for (at, (script, _)) in scripts.iter().enumerate() {
        let script = script
            .replace("TABLE t ", &format!("TABLE t{at} "))
            .replace("INTO t ", &format!("INTO t{at} "))
            .replace("UPDATE t ", &format!("UPDATE t{at} "));
        followed.client.batch_execute(&script).await.unwrap();
    }
    followed.wait_caught_up().await;
    let Followed { postgres, site, daemon, .. } = followed;
    daemon.stop().await;
    let (mut reader, dsn) = (Reader::start(), postgres.url("shop"));
    for (at, (script, expected)) in scripts.iter().enumerate() {
        let (name, folder) = (format!("t{at}"), site.table(&format!("shop/public/t{at}")));
        let source = Source { dsn: &dsn, schema: "public", table: &name };
        assert_equal(&mut reader, Engine::DuckDb, &source, &LakeTable::at(&folder)).await;
        if let Some(expected) = expected {
            assert_eq!(loads(&folder), *expected, "{script}");
        }
    }
}

#[tokio::test]
async fn the_event_trigger_is_in_nobodys_way_and_goes_with_cleanup() {
    let Followed { postgres, client, site, daemon } = followed(ORDERS).await;
    client
        .batch_execute(
            "CREATE ROLE clerk LOGIN; GRANT ALL ON SCHEMA public TO clerk; ALTER TABLE orders OWNER TO clerk",
        )
        .await
        .unwrap();
    let doctor = site.command(&["doctor"]).await;
    assert!(doctor.stdout.contains("its event trigger is there"), "{}", doctor.stdout);
    // A role without any right of its own, then a trigger that cannot write its message.
    client
        .batch_execute("SET ROLE clerk; ALTER TABLE orders ADD COLUMN a int DEFAULT 1; RESET ROLE")
        .await
        .unwrap();
    client
        .batch_execute(
            "CREATE ROLE nobody_special;
             REVOKE EXECUTE ON FUNCTION pg_logical_emit_message(boolean, text, text, boolean) FROM PUBLIC;
             ALTER FUNCTION tidewater_main_shop_ddl.announce() OWNER TO nobody_special;
             ALTER TABLE orders ADD COLUMN b int DEFAULT 2;
             GRANT EXECUTE ON FUNCTION pg_logical_emit_message(boolean, text, text, boolean) TO PUBLIC;
             INSERT INTO orders (id, v) VALUES (101, 'after')",
        )
        .await
        .unwrap();
    let (postgres, site) = end(Followed { postgres, client, site, daemon }, "orders").await;
    let cleaned = site.command(&["cleanup", "shop"]).await;
    assert!(cleaned.stdout.contains("removed event trigger tidewater_main_shop_ddl"), "{cleaned:?}");
    let client = postgres.connect("shop").await;
    let left = "SELECT (SELECT count(*) FROM pg_event_trigger) + (SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'tidewater%')";
    assert_eq!(client.query_one(left, &[]).await.unwrap().get::<_, i64>(0), 0);
}

#[tokio::test]
async fn a_change_in_a_rolled_back_savepoint_of_a_large_transaction_never_happened() {
    let followed = followed(ORDERS).await;
    followed
        .client
        .batch_execute(
            "BEGIN;
             INSERT INTO orders SELECT n, md5(n::text), n FROM generate_series(1001, 6000) n;
             SAVEPOINT a;
             ALTER TABLE orders ADD COLUMN never int DEFAULT 1;
             INSERT INTO orders SELECT n, md5(n::text), n, n FROM generate_series(6001, 9000) n;
             ROLLBACK TO a;
             INSERT INTO orders SELECT n, md5(n::text), n FROM generate_series(6001, 8000) n;
             SAVEPOINT b;
             ALTER TABLE orders ADD COLUMN x text DEFAULT 'x';
             INSERT INTO orders SELECT n, md5(n::text), n, 'y' FROM generate_series(10001, 14000) n;
             RELEASE b;
             UPDATE orders SET x = 'z' WHERE id % 5 = 0;
             COMMIT;
             INSERT INTO orders VALUES (20000, 'late', 1, 'late')",
        )
        .await
        .unwrap();
    let table = followed.site.table("shop/public/orders");
    let (_postgres, _site) = end(followed, "orders").await;
    assert_eq!(loads(&table), 1, "{:?}", operations(&table));
}

#[tokio::test]
async fn odd_names_of_schemas_tables_and_columns_are_followed_through_their_changes() {
    let postgres = Postgres::start().await;
    let client = postgres.create_database("shop").await;
    client
        .batch_execute(
            r#"CREATE SCHEMA "Größe";
               CREATE TABLE "Größe"."Bestell ung" ("ID" int PRIMARY KEY, "id" text, "a b" int, "日本" text);
               INSERT INTO "Größe"."Bestell ung" SELECT n, 'x', n, 'y' FROM generate_series(1, 20) n"#,
        )
        .await
        .unwrap();
    let site = Site::mirroring(&postgres.url("shop"), r#"["*.*"]"#);
    let daemon = site.start().await;
    let mut followed = Followed { postgres, client, site, daemon };
    followed.wait_caught_up().await;
    followed
        .client
        .batch_execute(
            r#"ALTER TABLE "Größe"."Bestell ung" RENAME COLUMN "a b" TO "a,b";
               ALTER TABLE "Größe"."Bestell ung" ADD COLUMN "select" text DEFAULT 'quote '' and "double"';
               UPDATE "Größe"."Bestell ung" SET "日本" = 'z' WHERE "ID" < 5;
               ALTER TABLE "Größe"."Bestell ung" DROP COLUMN "id";
               INSERT INTO "Größe"."Bestell ung" VALUES (100, 1, 'neu', 's')"#,
        )
        .await
        .unwrap();
    followed.wait_caught_up().await;
    let Followed { postgres, site, daemon, .. } = followed;
    daemon.stop().await;
    let (mut reader, dsn) = (Reader::start(), postgres.url("shop"));
    let source = Source { dsn: &dsn, schema: "Größe", table: "Bestell ung" };
    let lake = LakeTable::at(&site.table("shop/Gr__e/Bestell_ung"));
    assert_equal(&mut reader, Engine::DuckDb, &source, &lake).await;
    assert_eq!(loads(&site.table("shop/Gr__e/Bestell_ung")), 1);
}

#[tokio::test]
async fn changes_under_load_and_kills_end_equal() {
    let Followed { postgres, client, site, mut daemon } = followed(ORDERS).await;
    for round in 0..6 {
        client
            .batch_execute(&format!(
                "UPDATE orders SET v = 'round {round}' WHERE id % 7 = {round};
                 ALTER TABLE orders ADD COLUMN c{round} int DEFAULT {round};
                 INSERT INTO orders (id, v) SELECT n, 'r' FROM generate_series({from}, {from} + 20) n;
                 UPDATE orders SET c{round} = id WHERE id % 5 = 0",
                from = 1000 + round * 100
            ))
            .await
            .unwrap();
        if round % 2 == 1 {
            client
                .batch_execute(&format!(
                    "ALTER TABLE orders RENAME COLUMN c{round} TO d{round};
                     DELETE FROM orders WHERE id % 11 = {round};
                     ALTER TABLE orders DROP COLUMN c{}",
                    round - 1
                ))
                .await
                .unwrap();
        }
        // At another moment of the flush each time.
        tokio::time::sleep(Duration::from_millis(70 * round)).await;
        daemon.kill9().await;
        daemon = site.start().await;
    }
    let (_postgres, _site) = end(Followed { postgres, client, site, daemon }, "orders").await;
}
