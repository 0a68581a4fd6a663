//! Tables without a primary key whose owner set REPLICA IDENTITY FULL: mirrored, equal rows included.

use std::time::Duration;

use tidewater_e2e::{Engine, LakeTable, Postgres, Reader, Site, Source, assert_equal, free_port};

const SOON: Duration = Duration::from_secs(90);

/// Values for which equal and identical are two things, in a table that nothing but its rows tells apart.
const TABLES: &str = "
    CREATE TABLE odd (
        f float8, g float4, exact numeric, money numeric(10, 2), j json, b jsonb, raw bytea, at timestamptz,
        day date, span interval, words text[], grid float8[], big text, fixed char(5), yes bool
    );
    ALTER TABLE odd REPLICA IDENTITY FULL;
    ALTER TABLE odd ALTER big SET STORAGE EXTERNAL;
    INSERT INTO odd
        SELECT v.f, v.f::float4, v.exact, 1.5, '{\"a\":  1}', '{\"a\":  1}', '\\x00ff', '2026-11-20 10:00+02', '2026-11-20',
               '1 mon 2 days', ARRAY['a', NULL, 'NULL', ''], ARRAY[v.f, '-0'], repeat(md5(v.exact::text), 200), 'ab', NULL
        FROM (VALUES ('NaN'::float8, '1.0'::numeric), ('-0', 1.00), ('0', 'NaN'), (NULL, NULL)) v(f, exact),
             generate_series(1, 3);
    INSERT INTO odd (f) SELECT '-Infinity'::float8 - '-Infinity'::float8 FROM generate_series(1, 2);

    CREATE TABLE events (region text, n int, note text) PARTITION BY LIST (region);
    CREATE TABLE events_eu PARTITION OF events FOR VALUES IN ('eu');
    CREATE TABLE events_other PARTITION OF events DEFAULT;
    ALTER TABLE events REPLICA IDENTITY FULL;
    ALTER TABLE events_eu REPLICA IDENTITY FULL;
    ALTER TABLE events_other REPLICA IDENTITY FULL;
    INSERT INTO events SELECT CASE n % 3 WHEN 0 THEN 'eu' WHEN 1 THEN 'us' END, n % 7, 'same' FROM generate_series(1, 300) n;";

/// One row of several equal ones goes, changes, or comes again, in every way there is.
const CHANGES: &str = "
    DELETE FROM odd WHERE ctid IN (SELECT max(ctid) FROM odd GROUP BY f, exact);
    UPDATE odd SET yes = true WHERE ctid IN (SELECT min(ctid) FROM odd GROUP BY f, exact);
    UPDATE odd SET f = f;
    INSERT INTO odd SELECT * FROM odd WHERE yes;
    BEGIN;
    DELETE FROM events WHERE n = 0;
    INSERT INTO events SELECT 'eu', 1, 'same' FROM generate_series(1, 50);
    SAVEPOINT s;
    DELETE FROM events WHERE n = 1;
    ROLLBACK TO s;
    DELETE FROM events WHERE ctid IN (SELECT ctid FROM ONLY events_eu WHERE n = 1 LIMIT 20) AND tableoid = 'events_eu'::regclass;
    UPDATE events SET region = 'eu' WHERE region = 'us' AND n = 2;
    UPDATE events SET note = NULL WHERE n = 3;
    COMMIT;";

fn site(url: &str) -> Site {
    Site::new(&format!(
        "version: 1\nlake: {{uri: ./lake}}\nlisten: {{http: \"127.0.0.1:{}\"}}\n\
         databases:\n  shop: {{url: \"{url}\", tls: disable}}\n\
         to_lake:\n  - database: shop\n    tables: [\"public.*\"]\n    flush: 200ms\n    \
         overrides: {{public.events: {{partition_by: [region]}}}}\n",
        free_port()
    ))
}

async fn assert_mirrored(reader: &mut Reader, url: &str, site: &Site) {
    for table in ["odd", "events"] {
        let source = Source { dsn: url, schema: "public", table };
        let lake = LakeTable::at(&site.table(&format!("shop/public/{table}")));
        for engine in [Engine::DuckDb, Engine::Polars, Engine::DeltaRs] {
            assert_equal(reader, engine, &source, &lake).await;
        }
    }
}

#[tokio::test]
async fn a_table_without_a_key_but_with_replica_identity_full_is_a_mirror() {
    let postgres = Postgres::start().await;
    let client = postgres.create_database("shop").await;
    client.batch_execute(TABLES).await.unwrap();
    let url = postgres.url("shop");
    let site = site(&url);
    let mut reader = Reader::start();
    let mut daemon = site.start().await;
    let status = daemon.wait_streaming(SOON).await;
    assert!(
        status["tables"].as_array().unwrap().iter().all(|table| table["state"] == "streaming"),
        "{status}"
    );
    client.batch_execute(CHANGES).await.unwrap();
    daemon.stop().await;
    site.run_until_caught_up().await;
    assert_mirrored(&mut reader, &url, &site).await;

    // The index is soft state: rebuilt from the rows, it still tells how many are equal.
    std::fs::remove_dir_all(site.path().join(".tidewater")).unwrap();
    client.batch_execute(CHANGES).await.unwrap();
    site.run_until_caught_up().await;
    assert_mirrored(&mut reader, &url, &site).await;
    client
        .batch_execute("TRUNCATE odd; INSERT INTO odd (f) VALUES (1), (1); DELETE FROM events")
        .await
        .unwrap();
    site.run_until_caught_up().await;
    assert_mirrored(&mut reader, &url, &site).await;
}

#[tokio::test]
async fn a_value_that_delta_cannot_hold_does_not_stop_a_table_without_a_key() {
    let postgres = Postgres::start().await;
    let client = postgres.create_database("shop").await;
    client
        .batch_execute(
            "CREATE TABLE days (day date, n int);
             ALTER TABLE days REPLICA IDENTITY FULL;
             INSERT INTO days VALUES ('infinity', 1), ('infinity', 2)",
        )
        .await
        .unwrap();
    let url = postgres.url("shop");
    let site = Site::of_shop(&url);
    let mut daemon = site.start().await;
    daemon.wait_streaming(SOON).await;
    client
        .batch_execute(
            "UPDATE days SET n = n + 10; INSERT INTO days VALUES ('-infinity', 3); DELETE FROM days WHERE n = 11",
        )
        .await
        .unwrap();
    daemon.stop().await;
    site.run_until_caught_up().await;
    let lake = LakeTable::at(&site.table("shop/public/days"));
    let mut rows = Reader::start().rows(Engine::DuckDb, &lake).await;
    rows.sort();
    let row = |n: &str| vec![None, Some(n.to_owned())];
    assert_eq!(rows, [row("12"), row("3")]);
}

#[tokio::test]
async fn an_excluded_column_of_a_table_whose_identity_is_the_whole_row_is_a_configuration_error() {
    let postgres = Postgres::start().await;
    let client = postgres.create_database("shop").await;
    client
        .batch_execute("CREATE TABLE days (day date, n int); ALTER TABLE days REPLICA IDENTITY FULL")
        .await
        .unwrap();
    let site = Site::new(&format!(
        "version: 1\nlake: {{uri: ./lake}}\nlisten: {{http: \"127.0.0.1:{}\"}}\n\
         databases:\n  shop: {{url: \"{}\", tls: disable}}\n\
         to_lake:\n  - database: shop\n    tables: [\"public.*\"]\n    \
         overrides: {{public.days: {{exclude_columns: [day]}}}}\n",
        free_port(),
        postgres.url("shop")
    ));
    let finished = site.command(&["run", "--until-caught-up"]).await;
    assert_eq!(finished.code, Some(1), "{}", finished.stderr);
    assert!(finished.stderr.contains("exclude_columns of public.days"), "{}", finished.stderr);
    assert!(finished.stderr.contains("give the table a primary key"), "{}", finished.stderr);
}
