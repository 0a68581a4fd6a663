//! A database with every kind of table that the mirror treats differently.
//!
//! All of them have the columns `id`, `v` and `n`, so that one application can work on any. What differs
//! is how Postgres names a changed row, and so whether updates and deletes can follow into the lake.
//! Beside them stands `accounts`: money only ever moves between its rows, so a version that shows half a
//! transaction shows another sum.

use std::path::Path;

use tokio_postgres::Client;

use crate::comparison::{Source, assert_equal};
use crate::reader::{Engine, LakeTable, Reader};

/// Rows of `accounts`, and what each holds at first.
const ACCOUNTS: i64 = 200;
const FIRST_BALANCE: i64 = 1000;

const TABLES: &str = "
    CREATE TABLE keyed (id int PRIMARY KEY, v text, n int);

    CREATE TABLE composite (region text NOT NULL DEFAULT 'eu', id int, v text, n int, PRIMARY KEY (region, id));

    CREATE TABLE identity_full (id int PRIMARY KEY, v text, n int);
    ALTER TABLE identity_full REPLICA IDENTITY FULL;

    CREATE TABLE index_identity (v text, id int NOT NULL, n int);
    CREATE UNIQUE INDEX index_identity_id ON index_identity (id);
    ALTER TABLE index_identity REPLICA IDENTITY USING INDEX index_identity_id;

    CREATE TABLE partitioned (id int PRIMARY KEY, v text, n int) PARTITION BY RANGE (id);
    CREATE TABLE partitioned_low PARTITION OF partitioned FOR VALUES FROM (MINVALUE) TO (1000);
    CREATE TABLE partitioned_high PARTITION OF partitioned FOR VALUES FROM (1000) TO (MAXVALUE);

    CREATE TABLE keyless (id int, v text, n int);

    CREATE TABLE keyless_full (id int, v text, n int);
    ALTER TABLE keyless_full REPLICA IDENTITY FULL;

    CREATE TABLE identity_nothing (id int PRIMARY KEY, v text, n int);
    ALTER TABLE identity_nothing REPLICA IDENTITY NOTHING;

    CREATE TABLE deferrable_key (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, v text, n int);

    CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL);";

/// The tables of this module, in a database of their own.
#[derive(Debug)]
pub struct Shop;

impl Shop {
    /// Tables whose updates and deletes reach the lake, but for `accounts`.
    pub const MIRRORED: [&str; 6] =
        ["keyed", "composite", "identity_full", "index_identity", "partitioned", "keyless_full"];

    /// Tables of which the lake gets the inserts only.
    pub const INSERTS_ONLY: [&str; 3] = ["keyless", "identity_nothing", "deferrable_key"];

    /// Makes the tables.
    pub async fn create(client: &Client) {
        let accounts =
            format!("INSERT INTO accounts SELECT n, {FIRST_BALANCE} FROM generate_series(1, {ACCOUNTS}) n");
        client.batch_execute(TABLES).await.unwrap();
        client.batch_execute(&accounts).await.unwrap();
    }

    /// A table with `rows` rows that takes a while to load.
    pub async fn create_big(client: &Client, rows: u32) {
        let sql = format!(
            "CREATE TABLE big (id int PRIMARY KEY, v text, n int);
             INSERT INTO big SELECT n, md5(n::text), n % 1000 FROM generate_series(1, {rows}) n;
             ANALYZE big"
        );
        client.batch_execute(&sql).await.unwrap();
    }

    /// Fails unless the lake holds what Postgres holds: mirrored tables row for row, and of the others every row
    /// that there is, none of them twice.
    pub async fn assert_mirrored(reader: &mut Reader, engine: Engine, dsn: &str, lake: &Path, more: &[&str]) {
        for table in Self::MIRRORED.iter().chain(&["accounts"]).chain(more) {
            let source = Source { dsn, schema: "public", table };
            let mirror = LakeTable::at(&lake.join(format!("shop/public/{table}")));
            assert_equal(reader, engine, &source, &mirror).await;
        }
        for table in Self::INSERTS_ONLY {
            let mirror = LakeTable::at(&lake.join(format!("shop/public/{table}")));
            let mut in_lake = ids(reader.columns(engine, &mirror, &["id"]).await);
            let rows = in_lake.len();
            in_lake.sort();
            in_lake.dedup();
            assert_eq!(in_lake.len(), rows, "{table} has rows twice");
            let in_source = reader.source_rows(dsn, "public", table).await;
            assert!(!in_source.is_empty(), "the traffic has left {table} alone");
            for row in in_source {
                assert!(in_lake.binary_search(&row[0]).is_ok(), "{table} lacks the row {row:?}");
            }
        }
    }

    /// Fails unless every version of `accounts` holds the same money, so whole transactions only. At most
    /// `most` versions are looked at, spread over all.
    pub async fn assert_whole_transactions(reader: &mut Reader, engine: Engine, lake: &Path, most: usize) {
        let mirror = LakeTable::at(&lake.join("shop/public/accounts"));
        let mut versions = reader.versions(Engine::DeltaRs, &mirror).await;
        versions.sort_unstable();
        assert!(versions.len() > 1, "nothing was streamed: {versions:?}");
        let every = versions.len().div_ceil(most);
        for version in versions.into_iter().step_by(every) {
            let rows = reader.columns(engine, &mirror.clone().version(version), &["balance"]).await;
            let balances = rows.iter().map(|row| row[0].as_deref().unwrap().parse::<i64>().unwrap());
            assert_eq!(
                balances.sum::<i64>(),
                ACCOUNTS * FIRST_BALANCE,
                "version {version} shows part of a transfer"
            );
        }
    }

    /// How many accounts there are.
    pub(crate) fn accounts() -> i64 {
        ACCOUNTS
    }
}

fn ids(rows: Vec<Vec<Option<String>>>) -> Vec<Option<String>> {
    rows.into_iter().map(|mut row| row.remove(0)).collect()
}
