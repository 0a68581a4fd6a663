//! The tour, chapter by chapter.

use super::DemoError;
use super::branches;
use super::comparison::{self, Rows};
use super::narrator::{Narrator, grouped};
use super::recommendations;
use super::shop::{self, TABLES};
use super::stage::{Stage, is_past, line};
use super::traffic::Traffic;
use crate::commands::CommandError;
use crate::status::StatusReport;
use lake_sql::LakeSession;
use postgres_connector::Client;
use std::io;
use std::path::Path;
use std::time::Duration;
use tokio::time::Instant;

/// For Postgres to be made and started, on a machine that is busy building something else.
const START_LIMIT: Duration = Duration::from_secs(120);

/// For the first load.
const LOAD_LIMIT: Duration = Duration::from_secs(180);

/// For a committed change to be in the lake: a second when all is well.
const CHANGE_LIMIT: Duration = Duration::from_secs(60);

/// How long customers come.
const TRAFFIC_SECONDS: u32 = 10;

/// The way of the order that is followed; it begins as `placed`.
const STEPS: [&str; 4] = ["paid", "packed", "shipped", "delivered"];

const BY_STATUS: &str = "\
SELECT status, count(*) AS orders, sum(total) AS total
FROM shop.public.orders GROUP BY status ORDER BY status";

/// One number or two of each table that no lost, doubled or stale row leaves as they are.
pub(super) const FINGERPRINTS: [(&str, &str); 4] = [
    ("customers", "SELECT count(*), sum(id) FROM shop.public.customers"),
    ("products", "SELECT count(*), sum(price) FROM shop.public.products"),
    ("orders", "SELECT count(*), sum(total) FROM shop.public.orders"),
    ("order_items", "SELECT count(*), sum(quantity * price) FROM shop.public.order_items"),
];

/// From an empty folder to an order's history.
pub(super) async fn lead(stage: &Stage, narrator: &Narrator) -> Result<(), CommandError> {
    narrator.title("Tidewater: a shop in Postgres, its rows in Delta Lake")?;
    let client = start(stage, narrator).await?;
    open_shop(narrator, &client).await?;
    let loaded = first_load(stage, narrator).await?;
    live_traffic(stage, narrator).await?;

    let lake = &stage.config().lake;
    let lake = LakeSession::open(lake.uri.as_str(), &lake.options.expose()).await?;
    let order = compare(stage, narrator, &client, &lake).await?;
    time_travel(stage, narrator, &client, &lake, order, loaded).await?;
    recommendations::serve(stage, narrator, &client, &lake).await?;
    match stage.core()? {
        Some(core) => branches::show(stage, narrator, &core, client, &lake).await,
        None => Ok(()),
    }
}

async fn start(stage: &Stage, narrator: &Narrator) -> Result<Client, CommandError> {
    narrator.chapter("A private PostgreSQL 18")?;
    let began = Instant::now();
    let running = |report: &StatusReport| report.sources.iter().any(|source| source.connected).then_some(());
    stage.until("private Postgres", START_LIMIT, running).await?;
    let address = stage.address().await?;
    narrator.line(&format!("{}, ready after {}", address.shown(), seconds(began.elapsed())))?;
    let client = postgres_connector::connect(&address.source()?).await;
    Ok(client.map_err(DemoError::from)?)
}

async fn open_shop(narrator: &Narrator, client: &Client) -> Result<(), CommandError> {
    narrator.chapter("A shop in it")?;
    let began = Instant::now();
    shop::open(client).await?;
    narrator.line(&format!("four tables filled in {}", seconds(began.elapsed())))?;
    Ok(())
}

/// Shows the load until every table is live; returns the version that `orders` was loaded as.
async fn first_load(stage: &Stage, narrator: &Narrator) -> Result<i64, CommandError> {
    narrator.chapter("First load: Postgres to Delta")?;
    let began = Instant::now();
    let bar = narrator.bar(0);
    let live = |report: &StatusReport| {
        bar.set_length(report.loads.iter().filter_map(|load| load.rows_estimated).sum());
        bar.set_position(report.loads.iter().map(|load| load.rows_done).sum());
        let lines: Option<Vec<_>> = TABLES.iter().map(|table| line(report, table)).collect();
        let lines = lines?;
        lines.iter().all(|line| line.state == "streaming").then(|| report.clone())
    };
    let report = stage.until("first load in the lake", LOAD_LIMIT, live).await;
    bar.finish_and_clear();
    let report = report?;
    let elapsed = began.elapsed();
    let mut rows = 0;
    for table in TABLES {
        let held = line(&report, table).and_then(|line| line.rows).unwrap_or_default();
        narrator.entry(table, &format!("{:>9} rows", grouped(held)))?;
        rows += held;
    }
    narrator.line(&format!("{} rows are Delta tables after {}", grouped(rows), seconds(elapsed)))?;
    Ok(line(&report, "orders").and_then(|line| line.version).unwrap_or_default())
}

async fn live_traffic(stage: &Stage, narrator: &Narrator) -> Result<(), CommandError> {
    narrator.chapter("Live traffic: orders, payments, prices, cancellations")?;
    let began = Instant::now();
    let shop = stage.address().await?.source()?;
    let mut traffic = Traffic::start(&shop, began + Duration::from_secs(TRAFFIC_SECONDS.into())).await?;
    let mut before = 0;
    for second in 1..=TRAFFIC_SECONDS {
        tokio::time::sleep_until(began + Duration::from_secs(second.into())).await;
        let (now, report) = (traffic.transactions(), stage.report());
        narrator.line(&format!(
            "{second:>2} s {:>5} transactions/s   lag {}   orders at version {}",
            now - before,
            lag(&report),
            line(&report, "orders").and_then(|line| line.version).unwrap_or_default(),
        ))?;
        before = now;
    }
    traffic.finish().await?;
    narrator.line(&format!("{} transactions in all", grouped(traffic.transactions())))?;
    Ok(())
}

/// The last customer's order; when the lake has it, it has everything. Returns the order's id.
async fn compare(
    stage: &Stage,
    narrator: &Narrator,
    client: &Client,
    lake: &LakeSession,
) -> Result<i64, CommandError> {
    narrator.chapter("The same query in the lake and in Postgres")?;
    let (order, position) = shop::place_adas_order(client).await?;
    let caught_up = |report: &StatusReport| is_past(report, &TABLES, position).then_some(());
    stage.until("last order in the lake", CHANGE_LIMIT, caught_up).await?;

    narrator.query(BY_STATUS)?;
    for row in comparison::in_both(lake, client, BY_STATUS).await? {
        if let [status, orders, total] = row.as_slice() {
            narrator.entry(status, &format!("{orders:>9}{total:>16}"))?;
        }
    }
    narrator.line("Both gave these rows. Each table's count and sum are the same, too:")?;
    for (table, query) in FINGERPRINTS {
        if let [count, sum] = only(query, comparison::in_both(lake, client, query).await?)?.as_slice() {
            narrator.entry(table, &format!("{count:>9}{sum:>16}"))?;
        }
    }
    Ok(order)
}

async fn time_travel(
    stage: &Stage,
    narrator: &Narrator,
    client: &Client,
    lake: &LakeSession,
    order: i64,
    loaded: i64,
) -> Result<(), CommandError> {
    narrator.chapter(&format!("Back in time: order {order}, step by step"))?;
    let version = |report: &StatusReport| line(report, "orders").and_then(|line| line.version);
    let mut history = vec![("placed", version(&stage.report()).unwrap_or_default())];
    for step in STEPS {
        let position = shop::set_status(client, order, step).await?;
        let committed = Instant::now();
        let arrived = |report: &StatusReport| {
            if is_past(report, &["orders"], position) { version(report) } else { None }
        };
        let at = stage.until("changed order in the lake", CHANGE_LIMIT, arrived).await?;
        narrator.entry(step, &format!("in the lake {} after its commit", seconds(committed.elapsed())))?;
        history.push((step, at));
    }

    let now = format!("SELECT status FROM shop.public.orders WHERE id = {order}");
    let current = only(&now, comparison::in_both(lake, client, &now).await?)?.concat();
    narrator.query("SELECT status FROM shop.public.orders VERSION AS OF …\nWHERE id = …")?;
    for (status, version) in history {
        let then =
            format!("SELECT status FROM shop.public.orders VERSION AS OF {version} WHERE id = {order}");
        let rows = comparison::in_lake(lake, &then).await?;
        let shown = comparison::same(&then, rows, &vec![vec![status.to_owned()]])?.concat().concat();
        narrator.entry(&format!("version {version}"), &shown)?;
    }
    narrator.entry("now", &current)?;

    let first = format!("SELECT count(*) FROM shop.public.orders VERSION AS OF {loaded}");
    let rows = comparison::in_lake(lake, &first).await?;
    let count = comparison::same(&first, rows, &vec![vec![shop::ORDERS.to_string()]])?.concat().concat();
    narrator
        .entry(&format!("version {loaded}"), &format!("as first loaded, still has its {count} orders"))?;
    Ok(())
}

/// How to look further: at this shop if it stays up, else at one's own.
pub(super) async fn invite(stage: &Stage, narrator: &Narrator) -> Result<(), CommandError> {
    if !stage.is_kept() {
        narrator.chapter("Look further")?;
        narrator.entry("this shop", "tidewater demo --keep   leaves it up to look at")?;
        narrator.entry("your own", "tidewater init --from postgres://role@host/database")?;
        narrator.entry("", "tidewater doctor && tidewater run")?;
        narrator.entry("more", "README.md, docs/guides/")?;
        return Ok(());
    }
    narrator.chapter("It stays up until Ctrl-C; from another terminal")?;
    let file = stage.folder().join("tidewater.yaml");
    let orders = stage.folder().join("lake/shop/public/orders");
    let lines = [
        format!("psql {}", stage.address().await?.with_password()),
        format!("tidewater -c {} status", file.display()),
        format!("tidewater -c {} sql", file.display()),
        format!("duckdb -c \"SELECT count(*) FROM delta_scan('{}')\"", orders.display()),
        format!("curl http://{}/metrics", stage.config().listen.http),
    ];
    lines.iter().try_for_each(|line| narrator.line(line))?;
    Ok(())
}

/// The last words, when everything has been stopped.
pub(super) fn bid_farewell(narrator: &Narrator, well: bool, kept: Option<&Path>) -> Result<(), io::Error> {
    match kept {
        Some(folder) => {
            narrator.title("Everything has been stopped and stays on disk.")?;
            narrator
                .entry("go on", &format!("tidewater -c {} run", folder.join("tidewater.yaml").display()))?;
            narrator.entry("remove", &format!("rm -r {}", folder.display()))
        }
        None if well => narrator.title("Everything has been stopped and removed."),
        None => narrator.title("Everything has been stopped and removed, before the tour's end."),
    }
}

/// The one row of an answer.
fn only(query: &str, rows: Rows) -> Result<Vec<String>, DemoError> {
    rows.into_iter().next().ok_or_else(|| DemoError::NoRow { query: query.to_owned() })
}

/// The largest lag of any table, from the status board.
fn lag(report: &StatusReport) -> String {
    let lags = report.tables.iter().filter_map(|table| table.lag_seconds);
    lags.reduce(f64::max).map_or_else(|| "    -".to_owned(), |lag| format!("{lag:>3.1} s"))
}

pub(super) fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}
