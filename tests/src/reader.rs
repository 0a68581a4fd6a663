//! Stock Delta readers, behind the Python process that `tests/readers/` describes.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// The server bounds every request itself at five minutes; this is for a server that hangs.
const ANSWER_LIMIT: Duration = Duration::from_secs(330);

/// A reader of Delta tables that we did not write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// Apache Spark with delta-spark: the reference.
    Spark,
    /// DuckDB's delta extension (delta-kernel).
    DuckDb,
    /// Polars: its own Parquet reader under delta-rs's log.
    Polars,
    /// delta-rs.
    DeltaRs,
}

impl Engine {
    /// Every engine.
    pub const ALL: [Engine; 4] = [Engine::Spark, Engine::DuckDb, Engine::Polars, Engine::DeltaRs];

    fn name(self) -> &'static str {
        match self {
            Engine::Spark => "spark",
            Engine::DuckDb => "duckdb",
            Engine::Polars => "polars",
            Engine::DeltaRs => "deltalake",
        }
    }
}

/// A Delta table, perhaps at one version.
#[derive(Debug, Clone)]
pub struct LakeTable {
    /// A folder or an `s3://` URI.
    pub path: String,
    /// `None` is the newest.
    pub version: Option<u64>,
    /// delta-rs's option names; empty for a folder.
    pub storage_options: Value,
}

impl LakeTable {
    /// The newest version of the table in a folder.
    pub fn at(folder: &Path) -> LakeTable {
        LakeTable { path: folder.to_string_lossy().into_owned(), version: None, storage_options: json!({}) }
    }

    /// The same table at `version`.
    pub fn version(self, version: u64) -> LakeTable {
        LakeTable { version: Some(version), ..self }
    }
}

/// The reader process. Spark's JVM starts at its first use, so share one across a test's questions.
#[derive(Debug)]
pub struct Reader {
    _process: Child,
    requests: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    next_id: u64,
}

impl Reader {
    /// Starts the process; `make readers` has to have run.
    pub fn start() -> Reader {
        let root = repository();
        let python = root.join(".venv/bin/python");
        assert!(python.exists(), "{} is missing: run `make setup`", python.display());
        let mut process = Command::new(python)
            .arg(root.join("tests/readers/reader_server.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let requests = process.stdin.take().unwrap();
        let answers = BufReader::new(process.stdout.take().unwrap()).lines();
        Reader { _process: process, requests, answers, next_id: 1 }
    }

    /// All rows as canonical texts, sorted.
    pub async fn rows(&mut self, engine: Engine, table: &LakeTable) -> Vec<Vec<Option<String>>> {
        let answer = self.ask_lake(engine, "rows", table).await;
        assert!(answer.get("unreadable").is_none(), "{engine:?} cannot read {}", answer["unreadable"]);
        rows_of(&answer)
    }

    /// Some columns of all rows, however many, as canonical texts.
    pub async fn columns(
        &mut self,
        engine: Engine,
        table: &LakeTable,
        columns: &[&str],
    ) -> Vec<Vec<Option<String>>> {
        let answer = self
            .ask(json!({
                "engine": engine.name(),
                "op": "rows",
                "path": table.path,
                "version": table.version,
                "storage_options": table.storage_options,
                "columns": columns,
            }))
            .await;
        rows_of(&answer)
    }

    /// The rows of a SELECT in the engine's own SQL, in which the table is called `t`. Spark and DuckDB only.
    pub async fn query(
        &mut self,
        engine: Engine,
        table: &LakeTable,
        query: &str,
    ) -> Vec<Vec<Option<String>>> {
        let request = json!({"engine": engine.name(), "op": "query", "path": table.path, "query": query});
        rows_of(&self.ask(request).await)
    }

    /// Row count and a checksum that does not depend on the order of rows.
    pub async fn checksum(&mut self, engine: Engine, table: &LakeTable) -> (u64, String) {
        checksum_of(&self.ask_lake(engine, "checksum", table).await)
    }

    /// The number of rows, by the engine's own count.
    pub async fn count(&mut self, engine: Engine, table: &LakeTable) -> u64 {
        self.ask_lake(engine, "count", table).await["count"].as_u64().unwrap()
    }

    /// Column names and the engine's own type names.
    pub async fn schema(&mut self, engine: Engine, table: &LakeTable) -> Vec<(String, String)> {
        let answer = self.ask_lake(engine, "schema", table).await;
        let columns = answer["columns"].as_array().unwrap();
        columns.iter().map(|column| (as_text(&column[0]), as_text(&column[1]))).collect()
    }

    /// The versions in the table's log, newest or oldest first as the engine gives them.
    pub async fn versions(&mut self, engine: Engine, table: &LakeTable) -> Vec<u64> {
        let answer = self.ask_lake(engine, "versions", table).await;
        let versions = answer["versions"].as_array().unwrap();
        versions.iter().map(|version| version["version"].as_u64().unwrap()).collect()
    }

    /// The number of live data files.
    pub async fn files(&mut self, engine: Engine, table: &LakeTable) -> u64 {
        self.ask_lake(engine, "files", table).await["count"].as_u64().unwrap()
    }

    /// Has an engine work on the table itself: `optimize`, `vacuum`, `checkpoint`, or `append` one row once more.
    pub async fn maintain(&mut self, engine: Engine, table: &LakeTable, task: &str) {
        self.ask(json!({"engine": engine.name(), "op": "maintain", "path": table.path, "task": task})).await;
    }

    /// What each commit in the table's log calls itself.
    pub async fn operations(&mut self, engine: Engine, table: &LakeTable) -> Vec<String> {
        let answer = self.ask_lake(engine, "versions", table).await;
        let versions = answer["versions"].as_array().unwrap();
        versions.iter().map(|version| as_text(&version["operation"])).collect()
    }

    /// The rows of a Postgres table in the same texts and order as [`Reader::rows`].
    pub async fn source_rows(&mut self, dsn: &str, schema: &str, table: &str) -> Vec<Vec<Option<String>>> {
        let request = json!({"op": "source_rows", "dsn": dsn, "schema": schema, "table": table});
        rows_of(&self.ask(request).await)
    }

    /// The figures of [`Reader::checksum`] for a Postgres table.
    pub async fn source_checksum(&mut self, dsn: &str, schema: &str, table: &str) -> (u64, String) {
        let request = json!({"op": "source_checksum", "dsn": dsn, "schema": schema, "table": table});
        checksum_of(&self.ask(request).await)
    }

    async fn ask_lake(&mut self, engine: Engine, operation: &str, table: &LakeTable) -> Value {
        self.ask(json!({
            "engine": engine.name(),
            "op": operation,
            "path": table.path,
            "version": table.version,
            "storage_options": table.storage_options,
        }))
        .await
    }

    /// One question, one answer; an error of the reader fails the test with its text.
    pub async fn ask(&mut self, request: Value) -> Value {
        let asked = request.to_string();
        self.try_ask(request).await.unwrap_or_else(|error| panic!("{asked}\n{error}"))
    }

    /// One question, and its answer or the reader's error.
    pub async fn try_ask(&mut self, mut request: Value) -> Result<Value, String> {
        let id = self.next_id;
        self.next_id += 1;
        request["id"] = json!(id);
        self.requests.write_all(format!("{request}\n").as_bytes()).await.unwrap();
        self.requests.flush().await.unwrap();
        let line = tokio::time::timeout(ANSWER_LIMIT, self.answers.next_line())
            .await
            .unwrap_or_else(|_| panic!("no answer to {request}"))
            .unwrap()
            .unwrap_or_else(|| panic!("the reader process ended at {request}"));
        let answer: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(answer["id"], json!(id), "{answer}");
        match answer.get("error") {
            Some(error) => Err(error.to_string()),
            None => Ok(answer),
        }
    }
}

/// The root of the checkout these tests were built from.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn rows_of(answer: &Value) -> Vec<Vec<Option<String>>> {
    let rows = answer["rows"].as_array().unwrap();
    rows.iter()
        .map(|row| row.as_array().unwrap().iter().map(|cell| cell.as_str().map(str::to_owned)).collect())
        .collect()
}

fn checksum_of(answer: &Value) -> (u64, String) {
    (answer["count"].as_u64().unwrap(), as_text(&answer["checksum"]))
}

fn as_text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
