//! Runs that last: an application at work, its schema in motion, processes killed, the store away.
//!
//! Short ones belong to the suite; `TIDEWATER_ENDURANCE_SECONDS=600` makes them as long as one likes, and
//! `TIDEWATER_TEST_SEED` repeats their choices (not the machine's timing).

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tidewater_e2e::{
    Engine, LakeTable, Postgres, Reader, S3Server, Shop, Site, Source, Traffic, assert_equal, free_port,
};

use crate::crashes::seed;
use crate::followed::SOON;
use crate::order_system::{self, Business, KEYED, Owners, WITHOUT_KEY};
use crate::replayed::{assert_replays, configuration};

/// Loads and comparisons after a long run take their time.
const LATER: Duration = Duration::from_secs(300);

/// More than the daemon may ever hold, however long the store is away, in a debug build.
const MEMORY_LIMIT: u64 = 768 << 20;

fn lasting(default: u64) -> Duration {
    let seconds = std::env::var("TIDEWATER_ENDURANCE_SECONDS").ok();
    Duration::from_secs(seconds.map_or(default, |text| text.parse().unwrap()))
}

/// Keeps `pgbench` at work until Postgres goes away under it; another one begins then.
async fn keep_benching(postgres: &Postgres, bench: &mut Option<tokio::process::Child>) {
    if bench.as_mut().is_some_and(|running| running.try_wait().unwrap().is_none()) {
        return;
    }
    let mut command = postgres.client_program("pgbench", "shop");
    command.args(["--no-vacuum", "--client=2", "--time=100000", "--rate=60", "--max-tries=100"]);
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    *bench = Some(command.spawn().unwrap());
}

#[tokio::test]
async fn an_order_system_under_kills_and_schema_changes_ends_equal_and_its_history_replays() {
    let mut random = StdRng::seed_from_u64(seed());
    let mut postgres = Postgres::start().await;
    let client = postgres.create_database("shop").await;
    order_system::create(&client).await;
    let made =
        postgres.client_program("pgbench", "shop").args(["-i", "-s", "1", "-q"]).output().await.unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let url = postgres.url("shop");
    let site = Site::new(&configuration(&url, "both"));
    let mut daemon = site.spawn();
    let business = Business::start(&url, random.random(), 2);
    let mut owners = Owners::new(random.random());
    let mut bench = None;

    let end = Instant::now() + lasting(20);
    let (mut kills, mut changes) = ([0_u32; 2], 0_u32);
    while Instant::now() < end {
        keep_benching(&postgres, &mut bench).await;
        tokio::time::sleep(Duration::from_millis(random.random_range(200..4000))).await;
        match random.random_range(0..10) {
            0..=4 => {
                owners.change(&postgres.connect("shop").await).await;
                changes += 1;
            }
            5..=8 => {
                daemon.kill9().await;
                daemon = site.spawn();
                kills[0] += 1;
            }
            _ => {
                postgres.kill9().await;
                postgres.restart().await;
                kills[1] += 1;
            }
        }
    }
    drop(bench);
    let done = business.stop().await;
    println!("{done} transactions, {changes} changes of the schema, kills of daemon and server: {kills:?}");
    assert!(done > 0 && changes > 0);

    daemon.wait_ready().await;
    daemon.wait_streaming(LATER).await;
    let verified = site.command(&["verify"]).await;
    assert_eq!(verified.code, Some(0), "{}\n{}\n{}", verified.stdout, verified.stderr, daemon.log());
    daemon.stop().await;
    site.run_until_caught_up().await;
    let mut reader = Reader::start();
    let benched = ["pgbench_accounts", "pgbench_branches", "pgbench_tellers"];
    let side = owners.side_tables().iter().map(String::as_str);
    let keyed: Vec<&str> = KEYED.into_iter().chain(benched).chain(side).collect();
    for table in keyed.iter().chain(&WITHOUT_KEY).chain(&["pgbench_history"]) {
        let lake = LakeTable::at(&site.table(&format!("shop/public/{table}")));
        let source = Source { dsn: &url, schema: "public", table };
        assert_equal(&mut reader, Engine::DuckDb, &source, &lake).await;
    }
    for table in keyed {
        assert_replays(&mut reader, &url, &site, table).await;
    }
}

/// The value of a metric that has no other label than the table, for `public.accounts`.
fn metric(metrics: &str, name: &str) -> Option<f64> {
    let line = metrics.lines().find(|line| line.starts_with(name) && line.contains("public.accounts"))?;
    line.rsplit(' ').next()?.parse().ok()
}

#[tokio::test]
async fn while_the_lake_is_away_memory_is_bounded_the_lag_is_told_and_nothing_is_lost() {
    let away = lasting(15);
    // A long run is to fill the slot with changes, not the disk with images of their pages.
    let postgres = Postgres::start_with(&[("full_page_writes", "off")]).await;
    let client = postgres.create_database("shop").await;
    Shop::create(&client).await;
    Shop::create_big(&client, 100_000).await;
    let url = postgres.url("shop");
    let mut store = S3Server::start().await;
    let mut options = store.lake_options();
    options["timeout"] = json!("1s");
    let http = format!("127.0.0.1:{}", free_port());
    let site = Site::new(
        &json!({
            "version": 1,
            "lake": {"uri": "s3://lake/main", "options": options},
            "listen": {"http": http},
            "databases": {"shop": {"url": url, "tls": "disable"}},
            "to_lake": [{"database": "shop", "tables": ["public.*"], "flush": "200ms"}],
        })
        .to_string(),
    );
    let mut daemon = site.start().await;
    daemon.wait_streaming(SOON).await;
    let traffic = Traffic::start(&url, seed(), 2, Some(("big", 100_000)), Duration::from_millis(2));
    traffic.wait_for(50).await;

    store.stop().await;
    let began = Instant::now();
    let mut largest = 0;
    let mut retained = Vec::new();
    let mut told = Vec::new();
    while began.elapsed() < away {
        client.batch_execute("UPDATE big SET n = n + 1 WHERE id % 100 = 7").await.unwrap();
        largest = largest.max(daemon.resident());
        assert!(largest < MEMORY_LIMIT, "{largest} bytes after {:?}", began.elapsed());
        let (_, metrics) = daemon.get("/metrics").await.unwrap();
        told.extend(metric(&metrics, "tidewater_sync_lag_seconds{"));
        retained.push(retained_wal(&client).await);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    // A request is made again for a while before its failure is one.
    let tells = |status: &Value| {
        let source = &status["sources"][0];
        source["error"].is_string()
            && source["retained_wal_bytes"].as_i64().is_some_and(|kept| kept > 1_000_000)
    };
    let shown = daemon.wait_status(SOON, tells).await;
    let (_, metrics) = daemon.get("/metrics").await.unwrap();
    told.extend(metric(&metrics, "tidewater_sync_lag_seconds{"));
    let accounts =
        shown["tables"].as_array().unwrap().iter().find(|table| table["table"] == "public.accounts");
    let lag = accounts.unwrap()["lag_seconds"].as_f64().unwrap();
    let (passed, last) = (began.elapsed().as_secs_f64(), told.last().copied().unwrap());
    println!(
        "away {passed:.0} s: largest resident {} MiB, lag {lag:.1} s, metric {last:.1} s",
        largest >> 20
    );
    // Both say how long the oldest change has waited: about as long as the store is away.
    for said in [lag, last] {
        assert!(said > passed - 8.0 && said < passed + 10.0, "{said} s, away for {passed} s: {shown}");
    }
    // What the lake has taken just before is still confirmed at first.
    let since = retained.len() / 3;
    assert!(retained[since..].windows(2).all(|pair| pair[0] <= pair[1]), "the slot moved: {retained:?}");
    let source = &shown["sources"][0];
    assert!(source["error"].as_str().unwrap().contains("S3"), "nothing of the store in {source}");

    store.restart().await;
    traffic.wait_for(50).await;
    traffic.stop().await;
    // What waited for so long is worked off while more of it comes, on a machine that does other things too.
    daemon.wait_status(LATER + 2 * away, |status| is_within(status, 5.0)).await;
    daemon.stop().await;
    site.run_until_caught_up().await;
    let (mut reader, folder) = (Reader::start(), store.folder().join("main"));
    Shop::assert_mirrored(&mut reader, Engine::DuckDb, &url, &folder, &["big"]).await;
    Shop::assert_whole_transactions(&mut reader, Engine::DuckDb, &folder, 30).await;
}

/// How much WAL the daemon's slot keeps at the source, in bytes.
async fn retained_wal(client: &tokio_postgres::Client) -> i64 {
    let retained = "SELECT max(pg_current_wal_lsn() - restart_lsn)::int8 FROM pg_replication_slots
                    WHERE slot_name LIKE 'tidewater%' AND NOT temporary";
    client.query_one(retained, &[]).await.unwrap().get(0)
}

fn is_within(status: &Value, seconds: f64) -> bool {
    let tables = status["tables"].as_array().unwrap();
    !tables.is_empty()
        && tables.iter().all(|table| table["lag_seconds"].as_f64().is_some_and(|lag| lag < seconds))
}
