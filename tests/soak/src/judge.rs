//! Whether the database is right: what the application was told, and what Postgres's own checks say.

use std::collections::BTreeSet;

use tokio_postgres::Client;

use crate::application::{Ledgers, WRITERS};

/// Every B-tree holds every row of its table, and no table's rows contradict themselves.
const AMCHECK: &str = "\
    CREATE EXTENSION IF NOT EXISTS amcheck; \
    SELECT bt_index_check(c.oid, true) FROM pg_class c JOIN pg_index i ON i.indexrelid = c.oid \
      JOIN pg_am a ON a.oid = c.relam WHERE a.amname = 'btree' AND c.relpersistence = 'p' AND i.indisvalid";
const HEAPS: &str = "\
    SELECT c.relname::text, v.msg FROM pg_class c, LATERAL verify_heapam(c.oid) v \
    WHERE c.relkind IN ('r', 't', 'm') AND c.relpersistence = 'p'";

/// pgbench moves amounts between accounts, tellers and branches, and writes each down.
const BALANCES: &str = "\
    SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers), \
           (SELECT sum(bbalance) FROM pgbench_branches), (SELECT coalesce(sum(delta), 0) FROM pgbench_history)";

/// Judges a database that nobody writes to; returns how many commits had been left unanswered.
///
/// # Panics
/// It is wrong; the message says what is.
pub async fn judge(client: &Client, ledgers: &Ledgers) -> u64 {
    let mut unknown = 0;
    for writer in 0..WRITERS {
        let judged = ledgers.of(writer).judged();
        let writer_id = i32::try_from(writer).unwrap();
        let counted = "SELECT count(*) FROM steps WHERE writer = $1 AND step <= $2";
        let old: i64 = client.query_one(counted, &[&writer_id, &judged]).await.unwrap().get(0);
        let newer = "SELECT step FROM steps WHERE writer = $1 AND step > $2";
        let rows = client.query(newer, &[&writer_id, &judged]).await.unwrap();
        let present: BTreeSet<i64> = rows.iter().map(|row| row.get(0)).collect();
        let total: i64 = client
            .query_one("SELECT steps FROM totals WHERE writer = $1", &[&writer_id])
            .await
            .unwrap()
            .get(0);
        assert_eq!(
            old + i64::try_from(present.len()).unwrap(),
            total,
            "half of a transaction of writer {writer}"
        );
        let outcome = ledgers.of(writer).judge(old, &present);
        unknown += outcome.unwrap_or_else(|wrong| panic!("writer {writer}: {wrong}"));
    }
    let row = client.query_one(BALANCES, &[]).await.unwrap();
    let balances: Vec<i64> = (0..4).map(|column| row.get(column)).collect();
    assert!(balances.iter().all(|sum| *sum == balances[0]), "pgbench's sums differ: {balances:?}");
    client.batch_execute(AMCHECK).await.unwrap_or_else(|error| panic!("amcheck: {error:?}"));
    let damaged = client.query(HEAPS, &[]).await.unwrap();
    let damaged: Vec<(String, String)> = damaged.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert!(damaged.is_empty(), "{damaged:?}");
    unknown
}
