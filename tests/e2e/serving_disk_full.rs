//! A target whose disk is full, for real: its tablespace is a memory file system of a few megabytes.

use std::time::Duration;

use crate::serving::{Served, wait_state};
use crate::serving_trouble::{OTHER, assert_others_go_on, wait_error, wait_rows, with_other};
use tidewater_e2e::{Postgres, Reader};

const BIG: &str =
    "table: shop.public.big, into: serving.big, mode: continuous, primary_key: [id], indexes: [\"(v)\"]";

/// Room for a database of its own (8 MB), and not for 40,000 rows of 400 bytes beside it.
const SMALL: u64 = 20;
const LARGE: u64 = 400;

/// What loads have copied and not put into its place.
const LEFTOVERS: &str = "SELECT count(*) FROM pg_class WHERE relnamespace = 'tidewater'::regnamespace
    AND relname ~ '^(load|stage)_' AND relkind = 'r'";

#[tokio::test]
async fn a_full_disk_is_said_and_what_was_copied_gives_way_until_there_is_room() {
    let postgres = Postgres::start().await;
    // Only root mounts disks; `make test` as anyone else leaves this one out, and says so.
    let Some(disk) = postgres.small_disk(SMALL) else { return };
    let make = format!("CREATE TABLESPACE small LOCATION '{}'", disk.path().display());
    let admin = postgres.connect("postgres").await;
    admin.batch_execute(&make).await.unwrap();
    admin.batch_execute("CREATE DATABASE app TABLESPACE small").await.unwrap();
    let app = postgres.connect("app").await;
    let sql = with_other(
        "CREATE TABLE big (id int PRIMARY KEY, v text, w text);
         INSERT INTO big SELECT n, n::text, repeat('x', 400) FROM generate_series(1, 40000) n",
    );
    let served = Served::over(postgres, app, &sql, &[BIG, OTHER]).await;
    let mut daemon = served.site.start().await;

    let failed = wait_error(&mut daemon, "serving.big", &["disk", "is full", "No space left"]).await;
    assert!(["waiting", "loading"].contains(&failed["state"].as_str().unwrap()), "{failed}");
    wait_rows(&served, LEFTOVERS, &["0"]).await;
    assert_others_go_on(&served, "while it is full").await;
    disk.resize(LARGE);
    wait_state(&mut daemon, "serving.big", "serving").await;
    wait_rows(&served, "SELECT count(*) FROM serving.big", &["40000"]).await;

    // Changes run full as loads do: the version before stays whole, and the next one comes when there is room.
    let size: i64 =
        served.target.query_one("SELECT pg_tablespace_size('small') / (1 << 20)", &[]).await.unwrap().get(0);
    disk.resize(size.unsigned_abs() + 4);
    served.source.batch_execute("UPDATE big SET w = repeat('y', 400)").await.unwrap();
    wait_error(&mut daemon, "serving.big", &["is full"]).await;
    wait_rows(&served, "SELECT DISTINCT left(w, 1) FROM serving.big", &["x"]).await;
    assert_others_go_on(&served, "while it is full again").await;
    disk.resize(LARGE);
    wait_rows(&served, "SELECT DISTINCT left(w, 1) FROM serving.big", &["y"]).await;
    tokio::time::timeout(Duration::from_secs(60), daemon.stop()).await.unwrap();
    served.site.run_until_caught_up().await;
    assert_eq!(served.assert_served(&mut Reader::start(), "big").await, 40_000);
}
