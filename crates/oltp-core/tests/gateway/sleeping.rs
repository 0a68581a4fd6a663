//! When a database may sleep.

use std::time::{Duration, Instant};

use oltp_core::gateway::idle::{Busy, IdleWatch, Verdict};
use tokio_postgres::{Client, Config};

use crate::house::{House, PATIENCE, printed, text, until};

const SUSPEND_AFTER: Duration = Duration::from_millis(400);

struct Watched {
    house: House,
    client: Client,
    config: Config,
    watch: IdleWatch,
}

impl Watched {
    async fn new() -> Watched {
        let house = House::new().await;
        house.connect("shop").await.unwrap();
        let (client, config) = (house.superuser().await, house.superuser_config().await);
        Watched { house, client, config, watch: IdleWatch::new(SUSPEND_AFTER) }
    }

    async fn look(&mut self) -> Verdict {
        self.watch.look(&self.client, &self.config).await.unwrap()
    }

    /// Looks until it may sleep or is busy.
    async fn settled(&mut self) -> Verdict {
        let started = Instant::now();
        loop {
            match self.look().await {
                Verdict::Quiet { remaining } => {
                    assert!(remaining <= SUSPEND_AFTER && started.elapsed() < PATIENCE);
                    tokio::time::sleep(remaining).await;
                }
                settled => return settled,
            }
        }
    }

    async fn is_streamed(&mut self) -> bool {
        matches!(self.look().await, Verdict::Busy(Busy::Walsender { .. }))
    }

    async fn backend(client: &Client) -> i32 {
        text(client, "SELECT pg_backend_pid()::text").await.parse().unwrap()
    }
}

#[tokio::test]
async fn idle_sessions_of_pools_do_not_keep_a_database_awake() {
    let mut watched = Watched::new().await;
    let pool = [watched.house.connect("shop").await.unwrap(), watched.house.connect("shop").await.unwrap()];
    pool[0].batch_execute("CREATE TABLE t (a int); INSERT INTO t VALUES (1)").await.unwrap();
    assert!(matches!(watched.look().await, Verdict::Quiet { .. }));
    assert_eq!(watched.settled().await, Verdict::MaySuspend);
    watched.house.close().await;
}

#[tokio::test]
async fn a_statement_or_an_open_transaction_keeps_a_database_awake() {
    let mut watched = Watched::new().await;
    let client = watched.house.connect("shop").await.unwrap();
    let process_id = Watched::backend(&client).await;
    client.batch_execute("BEGIN").await.unwrap();
    assert_eq!(watched.settled().await, Verdict::Busy(Busy::Transaction { process_id }));
    client.batch_execute("SELECT 1").await.unwrap();
    client.batch_execute("SELECT * FROM nothing").await.unwrap_err();
    assert_eq!(watched.settled().await, Verdict::Busy(Busy::Transaction { process_id }));
    client.batch_execute("ROLLBACK").await.unwrap();
    let running = tokio::spawn(async move { client.batch_execute("SELECT pg_sleep(600)").await });
    until("the statement keeps it awake", async || {
        watched.look().await == Verdict::Busy(Busy::Statement { process_id })
    })
    .await;
    running.abort();
    watched.client.execute("SELECT pg_terminate_backend($1)", &[&process_id]).await.unwrap();
    until("the statement has ended", async || !matches!(watched.look().await, Verdict::Busy(_))).await;
    assert_eq!(watched.settled().await, Verdict::MaySuspend);
    watched.house.close().await;
}

#[tokio::test]
async fn a_listening_session_keeps_a_database_awake_wherever_it_learned_to() {
    let mut watched = Watched::new().await;
    printed(watched.house.psql("shop", "CREATE DATABASE reports").await);
    let hidden =
        "CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $$ BEGIN EXECUTE 'LIS' || 'TEN news'; END $$";
    printed(watched.house.psql("shop.reports", hidden).await);
    let _idle = watched.house.connect("shop").await.unwrap();
    let listener = watched.house.connect("shop.reports").await.unwrap();
    listener.batch_execute("SELECT f()").await.unwrap();
    text(&listener, "SELECT 'its last statement says nothing'").await;
    let process_id = Watched::backend(&listener).await;
    assert_eq!(watched.settled().await, Verdict::Busy(Busy::Listens { process_id }));
    // Not asked again at once: it has to be quiet for as long once more.
    assert!(matches!(watched.look().await, Verdict::Quiet { .. }));
    assert_eq!(watched.settled().await, Verdict::Busy(Busy::Listens { process_id }));
    listener.batch_execute("UNLISTEN *").await.unwrap();
    assert_eq!(watched.settled().await, Verdict::MaySuspend);
    watched.house.close().await;
}

#[tokio::test]
async fn a_session_that_came_and_went_between_two_looks_was_activity() {
    let mut watched = Watched::new().await;
    assert_eq!(watched.settled().await, Verdict::MaySuspend);
    printed(watched.house.psql("shop", "SELECT 1").await);
    // Its count arrives when its process has ended.
    until("the session is noticed", async || watched.look().await != Verdict::MaySuspend).await;
    assert_eq!(watched.settled().await, Verdict::MaySuspend);
    // A session of ours is none.
    let own = watched.house.superuser().await;
    own.batch_execute("SELECT 1").await.unwrap();
    for _ in 0..20 {
        assert_eq!(watched.look().await, Verdict::MaySuspend);
    }
    watched.house.close().await;
}

#[tokio::test]
async fn prepared_transactions_and_other_tools_streams_keep_a_database_awake() {
    let mut watched = Watched::new().await;
    watched.client.batch_execute("ALTER SYSTEM SET max_prepared_transactions = 2").await.unwrap();
    watched.house.suspend().await;
    watched.house.connect("shop").await.unwrap();
    watched.client = watched.house.superuser().await;
    let client = watched.house.connect("shop").await.unwrap();
    let prepare = "BEGIN; CREATE TABLE t (a int); PREPARE TRANSACTION 'later'";
    client.batch_execute(prepare).await.unwrap();
    assert_eq!(watched.settled().await, Verdict::Busy(Busy::Prepared { gid: "later".to_owned() }));
    client.batch_execute("COMMIT PREPARED 'later'").await.unwrap();
    let slot = "SELECT pg_create_logical_replication_slot('s', 'test_decoding')";
    printed(watched.house.psql("shop", slot).await);
    let mut receive = watched.house.program("pg_recvlogical");
    let receive = receive.args(["--dbname=shop", "--slot=s", "--start", "--file=/dev/null"]).spawn().unwrap();
    until("the stream keeps it awake", async || watched.is_streamed().await).await;
    drop(receive);
    // Its walsender notices when it next writes.
    until("the stream has ended", async || !watched.is_streamed().await).await;
    assert_eq!(watched.settled().await, Verdict::MaySuspend);
    watched.house.close().await;
}
