//! Which versions belong together, as stock readers find them in `_tidewater/consistent_points`.

use std::time::Duration;

use tidewater_e2e::{Daemon, Engine, LakeTable, Postgres, Reader, Site};

const SOON: Duration = Duration::from_secs(60);

/// Money moves between two tables, so only versions that belong together show all of it.
const TABLES: &str = "
    CREATE TABLE checking (id int PRIMARY KEY, balance bigint NOT NULL);
    CREATE TABLE savings (id int PRIMARY KEY, balance bigint NOT NULL);
    CREATE TABLE idle (id int PRIMARY KEY, balance bigint NOT NULL);
    INSERT INTO checking SELECT n, 100 FROM generate_series(1, 10) n;
    INSERT INTO savings SELECT n, 100 FROM generate_series(1, 10) n;
    INSERT INTO idle VALUES (1, 0)";

const MONEY: i64 = 2000;

async fn transfers(client: &tokio_postgres::Client, count: u32) {
    for n in 0..count {
        let (id, amount) = (n % 10 + 1, n % 7);
        let one = format!("UPDATE checking SET balance = balance - {amount} WHERE id = {id}");
        let other = format!("UPDATE savings SET balance = balance + {amount} WHERE id = {id}");
        client.batch_execute(&format!("BEGIN; {one}; {other}; COMMIT")).await.unwrap();
    }
}

fn points(site: &Site) -> LakeTable {
    LakeTable::at(&site.table("shop/_tidewater/consistent_points"))
}

/// Position, table and version of each row, by position.
async fn rows(reader: &mut Reader, engine: Engine, site: &Site) -> Vec<(i64, String, Option<u64>)> {
    let rows = reader.columns(engine, &points(site), &["lsn", "table", "version"]).await;
    let mut rows: Vec<_> = rows
        .into_iter()
        .map(|row| {
            let mut row = row.into_iter();
            let lsn = row.next().unwrap().unwrap().parse().unwrap();
            let table = row.next().unwrap().unwrap();
            (lsn, table, row.next().unwrap().map(|version| version.parse().unwrap()))
        })
        .collect();
    rows.sort();
    rows
}

/// A table's version at a position, as the contract has readers find it.
fn version_at(rows: &[(i64, String, Option<u64>)], table: &str, lsn: i64) -> Option<u64> {
    let of_it = rows.iter().filter(|(at, name, _)| *at <= lsn && name == table);
    of_it.max_by_key(|(at, ..)| *at).and_then(|(.., version)| *version)
}

async fn money(reader: &mut Reader, site: &Site, table: &str, version: u64) -> i64 {
    let table = LakeTable::at(&site.table(&format!("shop/public/{table}"))).version(version);
    let rows = reader.columns(Engine::DuckDb, &table, &["balance"]).await;
    rows.iter().map(|row| row[0].as_deref().unwrap().parse::<i64>().unwrap()).sum()
}

/// Every recorded position shows all of the money. Gives the positions.
async fn assert_consistent(reader: &mut Reader, site: &Site) -> Vec<i64> {
    let rows = rows(reader, Engine::DuckDb, site).await;
    let mut positions: Vec<i64> = rows.iter().map(|(lsn, ..)| *lsn).collect();
    positions.dedup();
    let mut whole = Vec::new();
    for lsn in positions {
        let versions = ["public.checking", "public.savings"].map(|table| version_at(&rows, table, lsn));
        let [Some(checking), Some(savings)] = versions else { continue };
        let sum =
            money(reader, site, "checking", checking).await + money(reader, site, "savings", savings).await;
        assert_eq!(sum, MONEY, "at {lsn}: checking {checking}, savings {savings}\n{rows:?}");
        whole.push(lsn);
    }
    whole
}

async fn caught_up(daemon: &mut Daemon, client: &tokio_postgres::Client) {
    let row = client.query_one("SELECT pg_current_wal_lsn()::text", &[]).await.unwrap();
    let target = lsn(&row.get::<_, String>(0));
    client.batch_execute("SELECT pg_logical_emit_message(false, 'test', '')").await.unwrap();
    daemon
        .wait_status(SOON, |status| {
            status["tables"]
                .as_array()
                .unwrap()
                .iter()
                .all(|table| table["position"].as_str().is_some_and(|position| lsn(position) >= target))
        })
        .await;
}

fn lsn(text: &str) -> u64 {
    let (high, low) = text.split_once('/').unwrap();
    u64::from_str_radix(high, 16).unwrap() << 32 | u64::from_str_radix(low, 16).unwrap()
}

#[tokio::test]
async fn several_tables_are_read_as_of_one_commit_by_their_consistent_points() {
    let postgres = Postgres::start().await;
    let client = postgres.create_database("shop").await;
    client.batch_execute(TABLES).await.unwrap();
    let site = Site::of_shop(&postgres.url("shop"));
    let mut daemon = site.start().await;
    daemon.wait_streaming(SOON).await;
    // Several cuts, however fast the machine is.
    for _ in 0..3 {
        transfers(&client, 100).await;
        caught_up(&mut daemon, &client).await;
    }
    daemon.stop().await;

    let mut reader = Reader::start();
    let positions = assert_consistent(&mut reader, &site).await;
    assert!(positions.len() >= 2, "{positions:?}");
    assert_eq!(
        rows(&mut reader, Engine::DeltaRs, &site).await,
        rows(&mut reader, Engine::DuckDb, &site).await
    );
    // Lake SQL resolves the same; a table without changes since is read as it was.
    for lsn in positions {
        let at = format!("AT (LSN => '{:X}/{:X}')", lsn >> 32, lsn & 0xFFFF_FFFF);
        let query = format!(
            "SELECT (SELECT sum(balance) FROM checking {at}) + (SELECT sum(balance) FROM savings {at})
                  + (SELECT sum(balance) FROM idle {at}) AS money"
        );
        let answer = site.command(&["sql", &query, "--format", "csv"]).await;
        assert_eq!(answer.code, Some(0), "{}", answer.stderr);
        assert_eq!(answer.stdout.lines().last(), Some("2000"), "{lsn}");
    }
    let before = site.command(&["sql", "SELECT * FROM idle AT (LSN => '0/1')"]).await;
    assert_eq!(before.code, Some(1));
    assert!(before.stderr.contains("0/1"), "{}", before.stderr);
}

#[tokio::test]
async fn after_kill_9_a_consistent_point_may_be_missing_and_is_never_wrong() {
    let postgres = Postgres::start().await;
    let client = postgres.create_database("shop").await;
    client.batch_execute(TABLES).await.unwrap();
    let site = Site::of_shop(&postgres.url("shop"));
    let mut daemon = site.start().await;
    daemon.wait_streaming(SOON).await;
    for _ in 0..4 {
        transfers(&client, 60).await;
        caught_up(&mut daemon, &client).await;
        transfers(&client, 60).await;
        daemon.kill9().await;
        daemon = site.start().await;
    }
    transfers(&client, 60).await;
    caught_up(&mut daemon, &client).await;
    daemon.stop().await;
    let mut reader = Reader::start();
    let positions = assert_consistent(&mut reader, &site).await;
    assert!(positions.len() >= 4, "{positions:?}");
    // What comes after a crash is resolved too: the newest point shows the newest versions.
    let rows = rows(&mut reader, Engine::DuckDb, &site).await;
    for table in ["checking", "savings", "idle"] {
        let newest = version_at(&rows, &format!("public.{table}"), i64::MAX);
        let lake = LakeTable::at(&site.table(&format!("shop/public/{table}")));
        let versions = reader.versions(Engine::DeltaRs, &lake).await;
        assert_eq!(newest, versions.into_iter().max(), "{table}");
    }
}
