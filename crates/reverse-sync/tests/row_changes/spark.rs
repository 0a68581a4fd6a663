//! The one Spark session, as writer and as judge. Rows are compared as the readers' canonical texts.

use crate::cases::Case;
use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::ipc::writer::FileWriter;
use futures::TryStreamExt;
use reverse_sync::{Detail, Part, Rows, TableSource};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use tidewater_e2e::{Engine, LakeTable, Reader};

pub type Texts = Vec<Vec<Option<String>>>;

pub struct Spark {
    reader: Reader,
    scratch: tempfile::TempDir,
}

impl Spark {
    pub fn start() -> Spark {
        Spark { reader: Reader::start(), scratch: tempfile::tempdir().unwrap() }
    }

    /// Runs statements in which the table in a folder is called `{t}`.
    pub async fn run(&mut self, folder: &Path, statements: &[String]) {
        let request = json!({"engine": "spark", "op": "run", "path": folder, "statements": statements});
        self.reader.ask(request).await;
    }

    /// What Spark reads at each version: with one question where the columns stay, for a question takes a second.
    pub async fn rows_of_versions(
        &mut self,
        folder: &Path,
        case: &Case,
        latest: u64,
    ) -> BTreeMap<u64, Texts> {
        let mut found: BTreeMap<u64, Texts> = (0..=latest).map(|version| (version, Texts::new())).collect();
        if case.columns_change {
            for (version, rows) in &mut found {
                *rows = self.reader.rows(Engine::Spark, &LakeTable::at(folder).version(*version)).await;
            }
            return found;
        }
        let select = |version| {
            format!(
                "SELECT {version} AS `at version`, * FROM delta.`{}` VERSION AS OF {version}",
                folder.display()
            )
        };
        let query = (0..=latest).map(select).collect::<Vec<_>>().join(" UNION ALL ");
        for mut row in self.reader.query(Engine::Spark, &LakeTable::at(folder), &query).await {
            let version = row.remove(0).unwrap().parse().unwrap();
            found.entry(version).or_default().push(row);
        }
        found
    }

    /// What Spark's feed tells of version 1 to version `to`.
    pub async fn table_changes(&mut self, folder: &Path, to: u64) -> Texts {
        let query = format!(
            "SELECT * EXCEPT (_commit_timestamp) FROM table_changes_by_path('{}', 1, {to})",
            folder.display(),
        );
        self.reader.query(Engine::Spark, &LakeTable::at(folder), &query).await
    }

    /// The rows of a question about a table.
    pub async fn query(&mut self, folder: &Path, query: &str) -> Texts {
        self.reader.query(Engine::Spark, &LakeTable::at(folder), query).await
    }

    /// What Spark reads in the newest version, or why it does not.
    pub async fn rows_of_newest(&mut self, folder: &Path) -> Result<Texts, String> {
        let answer = self.reader.try_ask(json!({"engine": "spark", "op": "rows", "path": folder})).await?;
        match answer.get("unreadable") {
            Some(columns) => Err(columns.to_string()),
            None => Ok(rows_in(&answer)),
        }
    }

    /// What we read, in the same texts and order.
    pub async fn texts_of(&mut self, rows: Rows) -> reverse_sync::Result<Texts> {
        let batches: Vec<RecordBatch> = rows.stream.try_collect().await?;
        Ok(self.texts(&rows.schema, &batches).await)
    }

    /// What we tell of version 1 to version `to`, in the same texts and order.
    pub async fn texts_of_changes(&mut self, table: &TableSource, to: u64) -> Texts {
        let changes = table.row_changes(Some(0), to, &Part::default(), Detail::AsRecorded).await.unwrap();
        let mut fields: Vec<_> = changes.schema.fields().iter().cloned().collect();
        fields.push(Arc::new(Field::new("_change_type", DataType::Utf8, true)));
        fields.push(Arc::new(Field::new("_commit_version", DataType::Int64, true)));
        let schema = Arc::new(Schema::new(fields));
        let mut stream = changes.stream;
        let mut batches = Vec::new();
        while let Some(batch) = stream.try_next().await.unwrap() {
            let rows = batch.rows.num_rows();
            let mut columns = batch.rows.columns().to_vec();
            let kind: ArrayRef = Arc::new(StringArray::from(vec![batch.kind.as_str(); rows]));
            let version: ArrayRef = Arc::new(Int64Array::from(vec![batch.version as i64; rows]));
            columns.extend([kind, version]);
            batches.push(RecordBatch::try_new(schema.clone(), columns).unwrap());
        }
        self.texts(&schema, &batches).await
    }

    async fn texts(&mut self, schema: &Schema, batches: &[RecordBatch]) -> Texts {
        let path = self.scratch.path().join("rows.arrow");
        let mut writer = FileWriter::try_new(std::fs::File::create(&path).unwrap(), schema).unwrap();
        for batch in batches {
            writer.write(batch).unwrap();
        }
        writer.finish().unwrap();
        let answer = self.reader.ask(json!({"op": "ipc_rows", "path": path})).await;
        rows_in(&answer)
    }
}

fn rows_in(answer: &Value) -> Texts {
    let cell = |cell: &Value| cell.as_str().map(str::to_owned);
    let row = |row: &Value| row.as_array().unwrap().iter().map(cell).collect();
    answer["rows"].as_array().unwrap().iter().map(row).collect()
}
