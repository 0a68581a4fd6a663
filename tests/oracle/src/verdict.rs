//! Whether the lake is right, by readers that are not ours.
//!
//! At the end every table of the source must be in the lake row for row. Versions that were remembered at a
//! settled moment must still hold what the source held then. And every version of the ledgers that is looked at
//! must hold whole transactions.

use crate::consistent_point;
use crate::dice::Dice;
use crate::ledger::{LEDGERS, torn_transaction};
use std::path::{Path, PathBuf};
use tidewater_e2e::{Engine, LakeTable, Reader, Source, assert_equal, property, recorded, replay};
use tokio_postgres::Client;

/// Versions of a ledger that are looked at, spread over all.
const VERSIONS: usize = 8;

/// The readers that take turns. Spark and Polars judge the same shapes in the end-to-end tests.
const ENGINES: [Engine; 2] = [Engine::DuckDb, Engine::DeltaRs];

/// A table of the source.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct TableName {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub table: String,
}

impl TableName {
    /// As `status` shows it.
    pub fn qualified(&self) -> String {
        format!("{}.{}", self.schema, self.table)
    }

    /// Its folder below the database's.
    fn folder(&self) -> String {
        let safe = |c: char| if c.is_ascii_alphanumeric() || "_.-".contains(c) { c } else { '_' };
        let folder = |name: &str| name.chars().map(safe).collect::<String>();
        format!("{}/{}", folder(&self.schema), folder(&self.table))
    }
}

/// What a table held when the lake had caught up, and in which version the lake has it.
#[derive(Debug)]
pub struct Remembered {
    table: TableName,
    /// Its folder then; it keeps it when it is renamed.
    folder: PathBuf,
    version: u64,
    rows: (u64, String),
}

/// What was looked at.
#[derive(Debug, Default, Clone, Copy)]
pub struct Looked {
    /// Tables compared at the final position.
    pub tables: u64,
    /// Rows in them.
    pub rows: u64,
    /// Versions compared at earlier positions.
    pub settled_versions: u64,
    /// Versions of ledgers searched for torn transactions.
    pub ledger_versions: u64,
    /// Consistent points at which both ledgers were compared.
    pub points: u64,
    /// Histories replayed to what their tables hold.
    pub histories: u64,
}

/// Every table of the source, partitions left out.
pub async fn source_tables(client: &Client) -> Vec<TableName> {
    let sql = "SELECT n.nspname::text, c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
               WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence = 'p' \
               AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg_toast%' \
               AND n.nspname NOT LIKE 'tidewater%' ORDER BY 1, 2";
    let rows = client.query(sql, &[]).await.unwrap();
    rows.iter().map(|row| TableName { schema: row.get(0), table: row.get(1) }).collect()
}

/// The judge of one seed: `lake` is the database's folder in the lake.
#[derive(Debug)]
pub struct Judge<'a> {
    /// The readers.
    pub reader: &'a mut Reader,
    /// The source.
    pub dsn: &'a str,
    /// The database's folder.
    pub lake: &'a Path,
}

impl Judge<'_> {
    /// Where a table's mirror is. One that was renamed stayed where it was, and says itself whose it is.
    fn folder_of(&self, table: &TableName) -> PathBuf {
        let name = table.qualified();
        let is_its = |folder: &PathBuf| property(folder, "tidewater.source_name").as_deref() == Some(&name);
        let usual = self.lake.join(table.folder());
        let within = |folder: &Path| {
            let entries = std::fs::read_dir(folder).into_iter().flatten();
            entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect::<Vec<_>>()
        };
        let tables = within(self.lake).into_iter().flat_map(|schema| within(&schema));
        std::iter::once(usual.clone()).chain(tables).find(is_its).unwrap_or(usual)
    }

    fn mirror(&self, table: &TableName) -> LakeTable {
        LakeTable::at(&self.folder_of(table))
    }

    /// Remembers what the source holds now, for a version of the lake that has it all.
    pub async fn remember(&mut self, table: TableName, version: u64) -> Remembered {
        let rows = self.reader.source_checksum(self.dsn, &table.schema, &table.table).await;
        Remembered { folder: self.folder_of(&table), table, version, rows }
    }

    /// Fails unless the lake is what the source is, and was what the source was.
    pub async fn assert_right(
        mut self,
        dice: &mut Dice,
        tables: &[TableName],
        remembered: &[Remembered],
    ) -> Looked {
        let mut looked = Looked::default();
        for table in tables {
            let source = Source { dsn: self.dsn, schema: &table.schema, table: &table.table };
            let mirror = self.mirror(table);
            let engine = dice.one_of(&ENGINES);
            looked.rows += assert_equal(self.reader, engine, &source, &mirror).await;
            looked.tables += 1;
        }
        for Remembered { table, folder, version, rows } in remembered {
            let mirror = LakeTable::at(folder).version(*version);
            let found = self.reader.checksum(dice.one_of(&ENGINES), &mirror).await;
            assert_eq!(&found, rows, "version {version} of {table:?} is not what the source held then");
            looked.settled_versions += 1;
        }
        looked.points = consistent_point::assert_consistent(self.reader, dice, self.lake).await;
        for ledger in LEDGERS {
            looked.ledger_versions += self.assert_whole_transactions(ledger).await;
        }
        looked
    }

    /// Fails unless each table's history replays to what the table holds. Gives their number.
    pub async fn assert_histories(self, tables: &[TableName]) -> u64 {
        for table in tables {
            let name = table.qualified();
            let history =
                TableName { table: format!("{}_history", table.table), schema: table.schema.clone() };
            let rows = recorded(self.reader, &self.mirror(&history)).await;
            let replayed = replay(&name, rows);
            let mut source = self.reader.source_rows(self.dsn, &table.schema, &table.table).await;
            source.sort();
            let counts = (replayed.len(), source.len());
            assert!(replayed == source, "the history of {name} replays to other rows: {counts:?}");
        }
        tables.len() as u64
    }

    async fn assert_whole_transactions(&mut self, ledger: &str) -> u64 {
        let mirror = self.mirror(&TableName { schema: "public".to_owned(), table: ledger.to_owned() });
        let mut versions = self.reader.versions(Engine::DeltaRs, &mirror).await;
        versions.sort_unstable();
        let every = versions.len().div_ceil(VERSIONS).max(1);
        let mut looked = 0;
        for version in versions.into_iter().step_by(every) {
            let at = mirror.clone().version(version);
            let rows = self.reader.columns(Engine::DuckDb, &at, &["txn", "parts", "mark"]).await;
            if let Some(torn) = torn_transaction(&rows) {
                panic!("version {version} of {ledger} does not hold whole transactions: {torn}");
            }
            looked += 1;
        }
        looked
    }
}
