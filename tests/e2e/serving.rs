//! Delta tables served from Postgres. The lake is written by a database's own sync, whose tables are judged elsewhere:
//! so a served table is right when it equals the table that the rows came from, and when stock readers read the same
//! at the version that it says it holds.

use std::time::Duration;

use serde_json::Value;
use tidewater_e2e::{
    Daemon, Engine, LakeTable, Postgres, Reader, Shop, Site, Source, Traffic, assert_equal, free_port,
};
use tokio_postgres::Client;

const SOON: Duration = Duration::from_secs(90);

/// A database that is mirrored, and the same tables served in the schema `serving` of another.
pub struct Served {
    pub postgres: Postgres,
    pub source: Client,
    pub target: Client,
    pub site: Site,
}

impl Served {
    /// Runs `sql` at the source. `entries` are those of `to_postgres`, as YAML, each on a line of its own.
    pub async fn new(sql: &str, entries: &[&str]) -> Served {
        let postgres = Postgres::start().await;
        let target = postgres.create_database("app").await;
        Served::over(postgres, target, sql, entries).await
    }

    /// The same, with a database `app` that is there.
    pub async fn over(postgres: Postgres, target: Client, sql: &str, entries: &[&str]) -> Served {
        let source = postgres.create_database("shop").await;
        source.batch_execute(sql).await.unwrap();
        let site = Site::new(&configuration(&postgres, entries));
        Served { postgres, source, target, site }
    }

    /// The applied version, as the target has it.
    pub async fn version(&self, table: &str) -> i64 {
        let sql = "SELECT version FROM tidewater.served_tables WHERE table_name = $1";
        self.target.query_one(sql, &[&table]).await.unwrap().get(0)
    }

    /// Fails unless `serving.<table>` has the rows that DuckDB reads in `shop/public/<table>` at the applied version.
    pub async fn assert_served(&self, reader: &mut Reader, table: &str) -> u64 {
        let version = u64::try_from(self.version(table).await).unwrap();
        let lake = LakeTable::at(&self.site.table(&format!("shop/public/{table}"))).version(version);
        let url = self.postgres.url("app");
        let served = Source { dsn: &url, schema: "serving", table };
        assert_equal(reader, Engine::DeltaRs, &served, &lake).await
    }

    pub async fn rows(&self, sql: &str) -> Vec<Vec<Option<String>>> {
        rows(&self.target, sql).await
    }
}

/// A configuration that mirrors `shop` and serves in `app`.
pub fn configuration(postgres: &Postgres, entries: &[&str]) -> String {
    let entries: String = entries.iter().map(|entry| format!("  - {{database: app, {entry}}}\n")).collect();
    format!(
        "version: 1\nlake: {{uri: ./lake}}\nlisten: {{http: \"127.0.0.1:{}\"}}\n\
         databases:\n  shop: {{url: \"{}\", tls: disable}}\n  app: {{url: \"{}\", tls: disable}}\n\
         to_lake:\n  - {{database: shop, tables: [\"public.*\"], flush: 200ms}}\nto_postgres:\n{entries}",
        free_port(),
        postgres.url("shop"),
        postgres.url("app")
    )
}

pub async fn rows(client: &Client, sql: &str) -> Vec<Vec<Option<String>>> {
    let messages = client.simple_query(sql).await.unwrap();
    let row = |message: &tokio_postgres::SimpleQueryMessage| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => {
            Some((0..row.len()).map(|at| row.get(at).map(str::to_owned)).collect())
        }
        _ => None,
    };
    messages.iter().filter_map(row).collect()
}

pub fn status_of<'a>(status: &'a Value, table: &str) -> Option<&'a Value> {
    status["tables"]
        .as_array()?
        .iter()
        .find(|found| found["direction"] == "to_postgres" && found["table"] == table)
}

pub async fn wait_state(daemon: &mut Daemon, table: &str, state: &str) -> Value {
    let status = daemon
        .wait_status(SOON, |status| status_of(status, table).is_some_and(|found| found["state"] == state));
    status_of(&status.await, table).unwrap().clone()
}

/// Tables of the shop with their keys.
const SHOP: [(&str, &str); 4] =
    [("keyed", "id"), ("composite", "region, id"), ("partitioned", "id"), ("accounts", "id")];

const ORDERS: &str = "CREATE TABLE orders (id int PRIMARY KEY, customer text, amount numeric(10,2), at timestamptz, tags text[]);
     INSERT INTO orders SELECT n, 'c' || n % 100, n * 1.25, timestamptz '2026-01-01' + n * interval '1 minute',
       ARRAY['t' || n % 3, NULL] FROM generate_series(1, 5000) n";

#[tokio::test]
async fn a_table_is_loaded_and_then_follows_its_changes_version_by_version() {
    let entry = "table: shop.public.orders, into: serving.orders, mode: triggered, primary_key: [id]";
    let served = Served::new(ORDERS, &[entry]).await;
    let mut reader = Reader::start();
    served.site.run_until_caught_up().await;
    assert_eq!(served.assert_served(&mut reader, "orders").await, 5000);
    let first = served.version("orders").await;

    let changes =
        "UPDATE orders SET amount = amount + 1 WHERE id % 10 = 0; DELETE FROM orders WHERE id % 7 = 0;
                   INSERT INTO orders SELECT n, NULL, 0, NULL, NULL FROM generate_series(6001, 6100) n;
                   UPDATE orders SET id = id + 10000 WHERE id BETWEEN 100 AND 110";
    served.source.batch_execute(changes).await.unwrap();
    served.site.run_until_caught_up().await;
    assert!(served.version("orders").await > first);
    served.assert_served(&mut reader, "orders").await;
    let source = rows(&served.source, "SELECT * FROM public.orders ORDER BY id").await;
    assert_eq!(served.rows("SELECT * FROM serving.orders ORDER BY id").await, source);
    // Only what differs was written: the rest is still in its first place.
    let untouched = "SELECT count(*) = (SELECT count(*) FROM generate_series(1, 5000) n
                       WHERE n % 10 <> 0 AND n % 7 <> 0 AND n NOT BETWEEN 100 AND 110)
                     FROM serving.orders WHERE xmin = (SELECT xmin FROM serving.orders WHERE id = 1)";
    assert_eq!(served.rows(untouched).await, [[Some("t".to_owned())]]);
}

#[tokio::test]
async fn a_continuous_table_follows_live_traffic() {
    let tables = SHOP.map(|(table, key)| {
        format!("table: shop.public.{table}, into: serving.{table}, mode: continuous, primary_key: [{key}]")
    });
    let entries: Vec<&str> = tables.iter().map(String::as_str).collect();
    let served = Served::new("", &entries).await;
    Shop::create(&served.source).await;
    let mut daemon = served.site.start().await;
    for (table, _) in SHOP {
        wait_state(&mut daemon, &format!("serving.{table}"), "serving").await;
    }
    let traffic = Traffic::start(&served.postgres.url("shop"), 11, 3, None, Duration::from_millis(2));
    traffic.wait_for(300).await;
    traffic.stop().await;
    daemon.stop().await;
    served.site.run_until_caught_up().await;
    let mut reader = Reader::start();
    for (table, _) in SHOP {
        served.assert_served(&mut reader, table).await;
    }
}

#[tokio::test]
async fn columns_follow_and_what_users_made_stays() {
    let sql = "CREATE TABLE t (id int PRIMARY KEY, v text, n int, gone text); INSERT INTO t SELECT n, 'v' || n, n, 'g' FROM generate_series(1, 1000) n";
    let entry = "table: shop.public.t, into: serving.t, mode: triggered, primary_key: [id], indexes: [\"(v desc)\"],
        extra_columns: {added: \"int default 7\", words: \"tsvector generated always as (to_tsvector('simple', v)) stored\"}";
    let served = Served::new(sql, &[entry]).await;
    let mut reader = Reader::start();
    served.site.run_until_caught_up().await;
    served
        .target
        .batch_execute(
            "CREATE VIEW serving.big AS SELECT id, n FROM serving.t WHERE n > 500;
             CREATE TABLE notes (id int REFERENCES serving.t, note text); INSERT INTO notes VALUES (1, 'first');
             CREATE INDEX mine ON serving.t (n); ALTER TABLE serving.t ADD COLUMN own text",
        )
        .await
        .unwrap();
    let columns = ["id", "v", "n", "extra"];
    served.source.batch_execute("ALTER TABLE t DROP COLUMN gone, ADD COLUMN extra bigint DEFAULT 5; UPDATE t SET n = n + 1 WHERE id > 990").await.unwrap();
    served.site.run_until_caught_up().await;
    let expected = rows(&served.source, "SELECT id, v, n, extra FROM public.t ORDER BY id").await;
    assert_eq!(served.rows("SELECT id, v, n, extra FROM serving.t ORDER BY id").await, expected);
    let names = "SELECT attname FROM pg_attribute WHERE attrelid = 'serving.t'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attname";
    let names: Vec<String> =
        served.rows(names).await.into_iter().map(|row| row[0].clone().unwrap()).collect();
    assert_eq!(names, ["added", "extra", "id", "n", "own", "v", "words"]);
    assert_eq!(served.rows("SELECT count(*) FROM serving.big").await, [[Some("500".to_owned())]]);
    assert_eq!(
        served.rows("SELECT count(*) FROM serving.t WHERE added = 7 AND words @@ 'v7'").await,
        [[Some("1".to_owned())]]
    );
    let indexes = "SELECT count(*) FROM pg_indexes WHERE schemaname = 'serving' AND tablename = 't'";
    assert_eq!(served.rows(indexes).await, [[Some("3".to_owned())]]);
    // A row that is referred to cannot go: said, and nothing of the version is applied.
    served
        .source
        .batch_execute("DELETE FROM t WHERE id = 1; UPDATE t SET v = 'later' WHERE id = 2")
        .await
        .unwrap();
    let refused = served.site.command(&["run", "--until-caught-up"]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    assert!(refused.stderr.contains("notes_id_fkey"), "{}", refused.stderr);
    assert_eq!(served.rows("SELECT v FROM serving.t WHERE id = 2").await, [[Some("v2".to_owned())]]);
    served.target.batch_execute("DELETE FROM notes").await.unwrap();
    served.site.run_until_caught_up().await;
    let lake = LakeTable::at(&served.site.table("shop/public/t"));
    let in_lake = reader.columns(Engine::DeltaRs, &lake, &columns).await;
    assert_eq!(u64::try_from(in_lake.len()).unwrap(), 999);
    // A type that holds more is taken on, index and all.
    served.target.batch_execute("DROP VIEW serving.big").await.unwrap();
    served
        .source
        .batch_execute(
            "ALTER TABLE t ALTER COLUMN n TYPE bigint; INSERT INTO t VALUES (5000, 'wide', 5000000000, 1)",
        )
        .await
        .unwrap();
    served.site.run_until_caught_up().await;
    assert_eq!(
        served.rows("SELECT n FROM serving.t WHERE id = 5000").await,
        [[Some("5000000000".to_owned())]]
    );
    assert_eq!(served.rows(indexes).await, [[Some("3".to_owned())]]);
}

#[tokio::test]
async fn of_a_time_series_the_latest_row_of_each_key_is_served() {
    let sql = "CREATE TABLE readings (id int PRIMARY KEY, sensor int, at timestamptz, value int);
         INSERT INTO readings SELECT n, n % 10, timestamptz '2026-01-01' + n * interval '1 s', n FROM generate_series(1, 1000) n";
    let entry = "table: shop.public.readings, into: serving.latest, mode: triggered, primary_key: [sensor], timeseries_key: at";
    let served = Served::new(sql, &[entry]).await;
    let latest =
        "SELECT DISTINCT ON (sensor) sensor, id, value FROM public.readings ORDER BY sensor, at DESC";
    for change in [
        "SELECT",
        "INSERT INTO readings VALUES (2001, 3, '2027-01-01', 1), (2002, 4, '2020-01-01', 2), (2003, 99, '2020-01-01', 3)",
        "DELETE FROM readings WHERE id = 2001; UPDATE readings SET value = -1 WHERE id = 1000",
    ] {
        served.source.batch_execute(change).await.unwrap();
        served.site.run_until_caught_up().await;
        let found = served.rows("SELECT sensor, id, value FROM serving.latest ORDER BY sensor").await;
        assert_eq!(found, rows(&served.source, latest).await, "{change}");
    }
}

#[tokio::test]
async fn one_database_is_source_and_target_and_nothing_goes_in_circles() {
    let postgres = Postgres::start().await;
    let client = postgres.create_database("shop").await;
    client
        .batch_execute(
            "CREATE TABLE orders (id int PRIMARY KEY, v text); INSERT INTO orders VALUES (1, 'a');
             CREATE TABLE log (n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, what text)",
        )
        .await
        .unwrap();
    let site = Site::new(&format!(
        "version: 1\nlake: {{uri: ./lake}}\nlisten: {{http: \"127.0.0.1:{}\"}}\n\
         databases:\n  shop: {{url: \"{}\", tls: disable}}\n\
         to_lake:\n  - {{database: shop, tables: [\"*.*\"], flush: 200ms}}\n\
         to_postgres:\n  - {{database: shop, table: shop.public.orders, into: serving.orders, mode: continuous, primary_key: [id]}}\n",
        free_port(),
        postgres.url("shop")
    ));
    let mut daemon = site.start().await;
    wait_state(&mut daemon, "serving.orders", "serving").await;
    // What a trigger on a served table writes into a mirrored one is the application's, and flows to the lake.
    client
        .batch_execute(
            "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
               $$ BEGIN INSERT INTO public.log (what) VALUES (new.v); RETURN NULL; END $$;
             CREATE TRIGGER note AFTER INSERT ON serving.orders FOR EACH ROW EXECUTE FUNCTION note();
             INSERT INTO orders VALUES (2, 'b')",
        )
        .await
        .unwrap();
    let logged = LakeTable::at(&site.table("shop/public/log"));
    let mut reader = Reader::start();
    let deadline = std::time::Instant::now() + SOON;
    loop {
        let found = reader.columns(Engine::DeltaRs, &logged, &["what"]).await;
        if found == [[Some("b".to_owned())]] {
            break;
        }
        assert!(found.is_empty() && std::time::Instant::now() < deadline, "{found:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    daemon.stop().await;
    site.run_until_caught_up().await;
    assert!(!site.table("shop/serving").exists() && !site.table("shop/tidewater").exists());
    let published = "SELECT count(*) FROM pg_publication_tables WHERE schemaname IN ('serving', 'tidewater')";
    assert_eq!(rows(&client, published).await, [[Some("0".to_owned())]]);
}
