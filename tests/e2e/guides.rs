//! The guides to the forward sync, run as they are written.
//!
//! A test takes every fenced block of its page, in the page's order, and does with it what its reader would: SQL goes
//! to psql, YAML into `tidewater.yaml`, and of a console the commands to a shell, which has to answer what stands
//! below them, other numbers aside. Names of machines and certificates are the one thing that is replaced.
//! A block that a page gains without its test fails that test.

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use tidewater_e2e::{
    Daemon, Engine, LakeTable, Postgres, Reader, Site, Source, assert_equal, binary, free_port, repository,
};
use tokio::process::Command;

const SOON: Duration = Duration::from_secs(90);
const RETRY: Duration = Duration::from_millis(100);
const COMMAND_LIMIT: Duration = Duration::from_secs(180);

/// The fenced blocks of a page, which has to have just these.
fn blocks<const N: usize>(page: &str, languages: [&str; N]) -> [String; N] {
    let text = std::fs::read_to_string(repository().join("docs/guides").join(page)).unwrap();
    let mut found: Vec<(String, String)> = Vec::new();
    let mut open = false;
    for line in text.lines() {
        match line.trim_start().strip_prefix("```") {
            Some(language) if !open => found.push((language.to_owned(), String::new())),
            Some(_) => {}
            None => {
                if let Some((_, text)) = found.last_mut().filter(|_| open) {
                    text.push_str(line);
                    text.push('\n');
                }
                continue;
            }
        }
        open = !open;
    }
    let (kinds, texts): (Vec<_>, Vec<_>) = found.into_iter().unzip();
    assert_eq!(kinds, languages, "the blocks of {page} are others than its test runs");
    texts.try_into().unwrap()
}

/// What a shell in the site's folder answers; `tidewater` is the one under test.
async fn shell(site: &Site, command: &str) -> Output {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut shell = Command::new("bash");
    shell.args(["-c", command]).current_dir(site.path()).stdin(Stdio::null()).kill_on_drop(true);
    shell.env("PATH", format!("{}:{path}", binary().parent().unwrap().display()));
    // What the page's configuration asks for; the cluster trusts its own machine.
    shell.env("CRM_PASSWORD", "change-me");
    let output = tokio::time::timeout(COMMAND_LIMIT, shell.output()).await;
    output.unwrap_or_else(|_| panic!("`{command}` did not end")).unwrap()
}

/// A command that has to succeed; gives what it printed.
async fn succeeds(site: &Site, command: &str) -> String {
    let output = shell(site, command).await;
    let [printed, errors] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    assert!(output.status.success(), "`{command}` ended with {}:\n{printed}{errors}", output.status);
    printed.into_owned()
}

/// Runs the commands of a console, each of which has to succeed and to print what stands below it, if anything does.
async fn console(site: &Site, block: &str) {
    let (_, commands) = block.split_once("$ ").unwrap();
    for command in commands.split("\n$ ") {
        let (command, expected) = command.split_once('\n').unwrap_or((command, ""));
        let printed = succeeds(site, command).await;
        if !expected.trim().is_empty() {
            assert_eq!(shape(&printed), shape(expected), "`{command}` prints\n{printed}");
        }
    }
}

/// A text without what differs from machine to machine: positions, figures and the width of columns.
fn shape(text: &str) -> Vec<Vec<&str>> {
    let is_figure = |word: &str| {
        word.chars().any(|c| c.is_ascii_digit())
            && word.chars().all(|c| c.is_ascii_hexdigit() || "/.".contains(c))
    };
    let word = |word| match word {
        "B" | "KiB" | "MiB" => "bytes",
        word if is_figure(word) => "figure",
        word => word,
    };
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    lines.map(|line| line.split_whitespace().map(word).collect()).collect()
}

/// Runs statements as psql does, one after the other; gives what they print.
async fn psql(postgres: &Postgres, role: &str, sql: &str) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), sql).unwrap();
    let mut program = postgres.client_program("psql", "crm");
    program.env("PGUSER", role).args(["-X", "-v", "ON_ERROR_STOP=1", "-f"]).arg(file.path());
    let output = tokio::time::timeout(COMMAND_LIMIT, program.output()).await;
    let output = output.unwrap_or_else(|_| panic!("psql did not end:\n{sql}")).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "psql ended with {}:\n{sql}\n{errors}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The database of the guides, with its two tables, of which `events` has no key.
async fn crm() -> Postgres {
    let postgres = Postgres::start().await;
    let client = postgres.create_database("crm").await;
    client
        .batch_execute(
            "CREATE ROLE app LOGIN; GRANT CREATE ON SCHEMA public TO app; SET ROLE app;
             CREATE TABLE orders (id int PRIMARY KEY, total numeric(10,2));
             INSERT INTO orders SELECT n, n / 4.0 FROM generate_series(1, 1001) n;
             CREATE TABLE events (what text); INSERT INTO events VALUES ('opened')",
        )
        .await
        .unwrap();
    postgres
}

/// `tidewater.yaml` with the page's part in it.
fn configuration(part: &str) -> String {
    format!("version: 1\nlake: {{uri: ./lake}}\nlisten: {{http: \"127.0.0.1:{}\"}}\n{part}", free_port())
}

async fn assert_table(postgres: &Postgres, site: &Site, table: &str) {
    let dsn = postgres.url("crm");
    let source = Source { dsn: &dsn, schema: "public", table };
    let lake = LakeTable::at(&site.table("crm/public").join(table));
    assert_equal(&mut Reader::start(), Engine::DuckDb, &source, &lake).await;
}

#[tokio::test]
async fn an_existing_postgres_is_set_up_followed_and_left_as_its_guide_says() {
    let sql = "sql";
    let [server, role, membership, publications, way_in, connection, identity, look, leaving, dropped, last] =
        blocks("existing-postgres.md", [sql, sql, sql, sql, "", "yaml", sql, sql, "console", sql, sql]);
    let postgres = crm().await;
    for block in [&server, &role] {
        psql(&postgres, "postgres", block).await;
    }
    assert_hba_line(&postgres, way_in.trim()).await;
    let entry = "to_lake:\n  - {database: crm, tables: [public.orders, public.events]}\n";
    let site = Site::new(&configuration(&format!("{connection}{entry}")));
    std::fs::write(site.path().join("ca.pem"), "").unwrap();
    succeeds(&site, "tidewater config check").await;
    let connection = connection
        .replace("db.example", &format!("127.0.0.1:{}", postgres.port()))
        .replace("tls: verify-full", "tls: disable")
        .replace("    ca_file: ./ca.pem\n", "");
    let configured = configuration(&format!("{connection}{entry}"));

    // The first way: Tidewater makes the publications.
    site.configure(&configured);
    psql(&postgres, "postgres", &membership).await;
    succeeds(&site, "tidewater doctor").await;
    succeeds(&site, "tidewater run --until-caught-up").await;
    psql(&postgres, "app", &identity).await;
    psql(&postgres, "app", "UPDATE orders SET total = 0 WHERE id < 9; UPDATE events SET what = 'closed'")
        .await;
    succeeds(&site, "tidewater run --until-caught-up").await;
    assert_table(&postgres, &site, "orders").await;
    assert_table(&postgres, &site, "events").await;
    let seen = psql(&postgres, "sync", &look).await;
    for name in ["tidewater_main_crm_inserts", "tidewater_main_crm_g1", "orders", "events"] {
        assert!(seen.contains(name), "{name} is missing:\n{seen}");
    }
    console(&site, &leaving).await;
    assert_left(&postgres).await;

    // The second way: somebody else makes them, and the role only reads.
    let back = "REVOKE app FROM sync; ALTER TABLE events REPLICA IDENTITY DEFAULT";
    psql(&postgres, "postgres", back).await;
    psql(&postgres, "postgres", &publications).await;
    let site = Site::new(&configured);
    succeeds(&site, "tidewater doctor").await;
    succeeds(&site, "tidewater run --until-caught-up").await;
    psql(&postgres, "app", "DELETE FROM orders WHERE id = 7; INSERT INTO events VALUES ('new')").await;
    succeeds(&site, "tidewater run --until-caught-up").await;
    assert_table(&postgres, &site, "orders").await;
    assert_table(&postgres, &site, "events").await;
    let refused = shell(&site, "tidewater cleanup crm").await;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("tidewater_main_crm"), "{said}");
    psql(&postgres, "postgres", &dropped).await;
    assert_left(&postgres).await;
    psql(&postgres, "postgres", &last).await;
}

/// Postgres has to be able to read the line.
async fn assert_hba_line(postgres: &Postgres, line: &str) {
    use std::io::Write as _;
    let client = postgres.connect("crm").await;
    let file: String = client.query_one("SHOW hba_file", &[]).await.unwrap().get(0);
    let mut file = std::fs::OpenOptions::new().append(true).open(Path::new(&file)).unwrap();
    writeln!(file, "{line}").unwrap();
    let sql = "SELECT type, database, user_name, auth_method, error FROM pg_hba_file_rules \
               ORDER BY line_number DESC LIMIT 1";
    let row = client.query_one(sql, &[]).await.unwrap();
    // This cluster has no TLS, which is all that may be wrong with the line here.
    let error: Option<String> = row.get(4);
    assert!(error.as_deref().is_none_or(|error| error.contains("SSL is")), "{line}: {error:?}");
    assert_eq!(row.get::<_, Option<String>>(0).as_deref(), Some("hostssl"));
}

/// Nothing of Tidewater is left in the database.
async fn assert_left(postgres: &Postgres) {
    let client = postgres.connect("crm").await;
    let sql = "SELECT (SELECT count(*) FROM pg_replication_slots) + (SELECT count(*) FROM pg_publication) \
               + (SELECT count(*) FROM pg_event_trigger)";
    assert_eq!(client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0), 0);
}

#[tokio::test]
async fn what_operators_look_at_is_what_their_guide_shows() {
    let [status, points, slots] = blocks("operating.md", ["console", "sql", "sql"]);
    let [changes] = blocks("changes.md", ["console"]);
    let postgres = crm().await;
    let client = postgres.connect("crm").await;
    let site = Site::new(&configuration(&format!(
        "databases:\n  crm: {{url: \"{}\", tls: disable}}\n\
         to_lake:\n  - {{database: crm, tables: [\"public.*\"], flush: 10ms}}\n",
        postgres.url("crm")
    )));
    let mut daemon = site.start().await;
    daemon.wait_streaming(SOON).await;
    // Small files enough for a compaction, which one of the metrics counts.
    for n in 1..=12 {
        let before = version(&daemon.wait_status(SOON, |_| true).await);
        let sql = format!("UPDATE orders SET total = total + 1 WHERE id = {n}");
        client.batch_execute(&sql).await.unwrap();
        daemon.wait_status(SOON, |status| version(status) > before).await;
    }
    daemon.wait_status(SOON, |status| status["tables"][1]["lag_seconds"] == 0.0).await;
    console(&site, &status).await;
    console(&site, &changes).await;
    assert!(psql(&postgres, "postgres", &slots).await.contains("tidewater_main_crm_g1"));

    let asked = "SELECT (pg_current_wal_lsn() - '0/0')::text";
    let now: String = client.query_one(asked, &[]).await.unwrap().get(0);
    let points = points.replace("'lake/", &format!("'{}/", site.lake().display())).replace("23869256", &now);
    let orders = LakeTable::at(&site.table("crm/public/orders"));
    let rows = Reader::start().query(Engine::DuckDb, &orders, points.trim().trim_end_matches(';')).await;
    let of_orders = rows.iter().find(|row| row[0].as_deref() == Some("public.orders"));
    assert!(of_orders.is_some_and(|row| row[1].is_some()), "{rows:?}");
    assert_metrics_of_the_guide(&daemon).await;
    daemon.stop().await;
}

fn version(status: &serde_json::Value) -> u64 {
    let tables = status["tables"].as_array().unwrap();
    tables.iter().find(|table| table["table"] == "public.orders").unwrap()["version"].as_u64().unwrap_or(0)
}

/// Every metric that the page names is there, once it has been measured for the first time.
async fn assert_metrics_of_the_guide(daemon: &Daemon) {
    let page = std::fs::read_to_string(repository().join("docs/guides/operating.md")).unwrap();
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `tidewater_"));
    let named: Vec<&str> = rows.filter_map(|row| row.split(['`', ' ']).next()).collect();
    assert!(named.len() > 5, "{named:?}");
    let deadline = Instant::now() + SOON;
    loop {
        let (code, metrics) = daemon.get("/metrics").await.unwrap_or_default();
        let missing: Vec<_> =
            named.iter().filter(|name| !metrics.contains(&format!("\ntidewater_{name}"))).collect();
        if code == 200 && missing.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "no such metrics: {missing:?}\n{metrics}");
        tokio::time::sleep(RETRY).await;
    }
}

#[tokio::test]
async fn a_history_is_kept_and_read_as_its_guide_says() {
    let [kept, read, spark, versions, current] =
        blocks("history.md", ["yaml", "console", "python", "sql", "sql"]);
    let postgres = crm().await;
    let client = postgres.connect("crm").await;
    client
        .batch_execute(
            "CREATE TABLE customers (id int PRIMARY KEY, name text, city text);
             INSERT INTO customers VALUES (1, 'Ada', 'Bergen'), (2, 'Bo', 'Oslo')",
        )
        .await
        .unwrap();
    let databases = format!("databases:\n  crm: {{url: \"{}\", tls: disable}}\n", postgres.url("crm"));
    let site = Site::new(&configuration(&format!("{databases}{kept}")));
    succeeds(&site, "tidewater run --until-caught-up").await;
    let change = "UPDATE customers SET city = 'Oslo' WHERE id = 1; DELETE FROM customers WHERE id = 2";
    client.batch_execute(change).await.unwrap();
    succeeds(&site, "tidewater run --until-caught-up").await;
    console(&site, &read).await;

    // Where the page's Spark looks for it. What Spark makes of the queries is asked in `history.rs`.
    let (_, place) = spark.split_once("load(\"").unwrap();
    let history = LakeTable::at(&site.path().join(place.split_once('"').unwrap().0));
    let mut reader = Reader::start();
    let query = |text: &str| text.trim().trim_end_matches(';').to_owned();
    assert_eq!(reader.query(Engine::DuckDb, &history, &query(&versions)).await.len(), 3);
    let rows = reader.query(Engine::DuckDb, &history, &query(&current)).await;
    assert_eq!(rows, [["1", "Ada", "Oslo"].map(|text| Some(text.to_owned())).to_vec()]);
}

#[test]
fn pages_without_a_test_have_nothing_to_run() {
    let [] = blocks("limits.md", []);
    // Each row of its tables is a test of `schema_changes.rs` and its neighbours.
    let [] = blocks("schema-changes.md", []);
}
