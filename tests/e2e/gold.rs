//! A Delta table that others write into the lake, and what is served of it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tidewater_e2e::{Engine, LakeTable, Postgres, Reader, S3Server, Site, free_port};
use tokio_postgres::Client;

const SOON: Duration = Duration::from_secs(90);

/// Rows as canonical texts.
pub type Texts = Vec<Vec<Option<String>>>;

/// A lake with a table, a database `app` that it is served in, and the readers.
pub struct Gold {
    pub postgres: Postgres,
    pub client: Client,
    pub site: Site,
    pub reader: Reader,
    store: Option<S3Server>,
}

impl Gold {
    /// In a folder. `entries` are those of `to_postgres`, as YAML.
    pub async fn new(entries: &[&str]) -> Gold {
        Gold::with(entries, None).await
    }

    /// In the bucket of an S3 server.
    pub async fn in_s3(entries: &[&str]) -> Gold {
        Gold::with(entries, Some(S3Server::start().await)).await
    }

    async fn with(entries: &[&str], store: Option<S3Server>) -> Gold {
        let postgres = Postgres::start().await;
        let client = postgres.create_database("app").await;
        let (url, http) = (postgres.url("app"), free_port());
        let lake = match &store {
            Some(store) => json!({"uri": "s3://lake", "options": store.lake_options()}).to_string(),
            None => "{uri: ./lake}".to_owned(),
        };
        let entries: String =
            entries.iter().map(|entry| format!("  - {{database: app, {entry}}}\n")).collect();
        let site = Site::new(&format!(
            "version: 1\nlake: {lake}\nlisten: {{http: \"127.0.0.1:{http}\"}}\n\
             databases:\n  app: {{url: \"{url}\", tls: disable}}\nto_postgres:\n{entries}"
        ));
        std::fs::create_dir_all(site.lake()).unwrap();
        Gold { postgres, client, site, reader: Reader::start(), store }
    }

    /// Where a table's files are.
    pub fn folder(&self, table: &str) -> PathBuf {
        match &self.store {
            Some(store) => store.folder().join(table),
            None => self.site.table(table),
        }
    }

    /// A table as readers name it.
    pub fn table(&self, table: &str) -> LakeTable {
        match &self.store {
            Some(store) => store.table(table),
            None => LakeTable::at(&self.site.table(table)),
        }
    }

    /// Has an engine write: statements in which the table is called `{t}`, or delta-rs's methods.
    pub async fn write(&mut self, engine: &str, table: &str, statements: Value) {
        let table = self.table(table);
        let request = json!({"engine": engine, "op": "run", "path": table.path, "storage_options": table.storage_options, "statements": statements});
        self.reader.ask(request).await;
    }

    /// The applied version of `serving.<name>`; `None` before the first load.
    pub async fn applied(&self, name: &str) -> Option<u64> {
        let there = "SELECT to_regclass('tidewater.served_tables') IS NOT NULL";
        if !self.client.query_one(there, &[]).await.unwrap().get::<_, bool>(0) {
            return None;
        }
        let sql = "SELECT version FROM tidewater.served_tables WHERE table_name = $1";
        self.client.query_opt(sql, &[&name]).await.unwrap().map(|row| row.get::<_, i64>(0).unsigned_abs())
    }

    /// Fails unless `serving.<name>` comes to hold, in these columns, the rows that an engine reads in the newest version.
    pub async fn assert_served(&mut self, engine: Engine, table: &str, name: &str, columns: &[&str]) {
        let table = self.table(table);
        // DuckDB tells no versions; the log is the same for all.
        let teller = if engine == Engine::DuckDb { Engine::DeltaRs } else { engine };
        let newest = self.reader.versions(teller, &table).await.into_iter().max();
        let deadline = Instant::now() + SOON;
        loop {
            let applied = self.applied(name).await;
            if applied == newest {
                break;
            }
            assert!(Instant::now() < deadline, "{newest:?} is not applied, but {applied:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let mut expected = self.reader.columns(engine, &table, columns).await;
        let mut served = self.served(name, columns).await;
        expected.sort();
        served.sort();
        assert_eq!(served, expected, "version {newest:?}");
    }

    async fn served(&mut self, name: &str, columns: &[&str]) -> Texts {
        let request = json!({"op": "source_rows", "dsn": self.postgres.url("app"), "schema": "serving", "table": name, "columns": columns});
        let answer = self.reader.ask(request).await;
        let cell = |cell: &Value| cell.as_str().map(str::to_owned);
        let row = |row: &Value| row.as_array().unwrap().iter().map(cell).collect();
        answer["rows"].as_array().unwrap().iter().map(row).collect()
    }
}
