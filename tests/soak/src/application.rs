//! The application: writers that count, a reader that looks on, an administrator, and pgbench.
//!
//! Every writer's transaction adds a numbered row and moves its own total, so half of one shows. Sessions that break
//! are opened again; what their last statement did is unknown then. All go through the gateway.

use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tidewater_e2e::pgbench;
use tokio::process::Child;
use tokio::task::JoinSet;
use tokio_postgres::{Client, NoTls};

use crate::ledger::Ledger;

/// Sessions that write, each with numbers of its own.
pub const WRITERS: usize = 3;

/// From a strike to every session's next commit: elections, recovery, and a busy machine.
const BACK_LIMIT: Duration = Duration::from_secs(180);
/// A statement under way when the round ends; a rebuilt index at most.
const LAST_ANSWER_LIMIT: Duration = Duration::from_secs(120);
/// A connection waits for its database to wake.
const CONNECT_LIMIT: Duration = Duration::from_secs(120);
const RETRY: Duration = Duration::from_millis(20);
/// Between two looks of the reader.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Between two statements of the administrator, at most.
const STATEMENT_EVERY: Duration = Duration::from_millis(300);

/// A row of the writers has about so many bytes, some of them several times as many.
const FILLER: i32 = 300;

/// What the writers were told, over all rounds.
#[derive(Debug, Clone)]
pub struct Ledgers(Arc<Vec<Mutex<Ledger>>>);

impl Ledgers {
    pub fn new() -> Ledgers {
        Ledgers(Arc::new((0..WRITERS).map(|_| Mutex::default()).collect()))
    }

    pub fn of(&self, writer: usize) -> MutexGuard<'_, Ledger> {
        self.0[writer].lock().unwrap()
    }

    fn acknowledged(&self) -> Vec<u64> {
        (0..WRITERS).map(|writer| self.of(writer).acknowledged()).collect()
    }

    /// Commits that were answered so far.
    pub fn total(&self) -> u64 {
        self.acknowledged().iter().sum()
    }
}

/// The tables, once.
pub async fn open_shop(url: &str) {
    let client = connect(url).await.unwrap();
    client
        .batch_execute(&format!(
            "CREATE TABLE steps (writer int, step bigint, filler text, PRIMARY KEY (writer, step)); \
             CREATE TABLE totals (writer int PRIMARY KEY, steps bigint); \
             INSERT INTO totals SELECT w, 0 FROM generate_series(0, {WRITERS} - 1) w; \
             CREATE TABLE passing (n int); CREATE UNLOGGED TABLE unlogged (n int)"
        ))
        .await
        .unwrap();
    let ended = pgbench().args(["-i", "-q", url]).output().await.unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
}

async fn connect(url: &str) -> Result<Client, String> {
    let connecting = async {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
        // What ends a session shows in its next statement.
        tokio::spawn(connection);
        Ok::<_, tokio_postgres::Error>(client)
    };
    match tokio::time::timeout(CONNECT_LIMIT, connecting).await {
        Ok(connected) => connected.map_err(|error| format!("{error:?}")),
        Err(_) => panic!("a connection was neither taken nor refused within {CONNECT_LIMIT:?}"),
    }
}

/// Everybody at work for a round.
#[derive(Debug)]
pub struct Application {
    ledgers: Ledgers,
    shared: Arc<Shared>,
    sessions: JoinSet<()>,
    pgbench: Child,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    /// Statements of the writers that failed, connections included.
    failures: AtomicU64,
    last_failure: Mutex<String>,
}

impl Shared {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn failed(&self, error: String) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        *self.last_failure.lock().unwrap() = error;
    }
}

impl Application {
    /// Has everybody begin.
    pub fn start(url: &str, ledgers: &Ledgers, seed: u64) -> Application {
        let (mut sessions, shared) = (JoinSet::new(), Arc::new(Shared::default()));
        for writer in 0..WRITERS {
            sessions.spawn(write(url.to_owned(), writer, ledgers.clone(), Arc::clone(&shared)));
        }
        sessions.spawn(look_on(url.to_owned(), ledgers.clone(), Arc::clone(&shared)));
        sessions.spawn(administer(url.to_owned(), StdRng::seed_from_u64(seed), Arc::clone(&shared)));
        let mut command = pgbench();
        command.args(["-n", "-c", "2", "-T", "3600", url]).stdout(Stdio::null()).stderr(Stdio::null());
        let pgbench = command.spawn().unwrap();
        Application { ledgers: ledgers.clone(), shared, sessions, pgbench }
    }

    /// Waits until every writer has had `more` commits answered from now on.
    pub async fn wait_for(&self, more: u64) {
        let wanted: Vec<u64> =
            self.ledgers.acknowledged().into_iter().map(|acknowledged| acknowledged + more).collect();
        let deadline = Instant::now() + BACK_LIMIT;
        loop {
            let now = self.ledgers.acknowledged();
            if now.iter().zip(&wanted).all(|(now, wanted)| now >= wanted) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "a writer does not go on: {now:?} of {wanted:?} commits, last failure: {}",
                self.shared.last_failure.lock().unwrap()
            );
            tokio::time::sleep(RETRY).await;
        }
    }

    /// What went wrong for any session since the start; nothing when none noticed anything.
    pub fn noticed(&mut self) -> Option<String> {
        if self.shared.failures.load(Ordering::Relaxed) > 0 {
            return Some(self.shared.last_failure.lock().unwrap().clone());
        }
        self.pgbench.try_wait().unwrap().map(|end| format!("pgbench ended with {end}"))
    }

    /// Lets everybody finish what is under way.
    pub async fn stop(mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.pgbench.kill().await.unwrap();
        let finished = async {
            while let Some(session) = self.sessions.join_next().await {
                session.unwrap();
            }
        };
        let finished = tokio::time::timeout(LAST_ANSWER_LIMIT, finished).await;
        assert!(finished.is_ok(), "a session's last statement was not answered within {LAST_ANSWER_LIMIT:?}");
    }
}

/// Opens a session as often as it takes.
async fn session(url: &str, shared: &Shared) -> Option<Client> {
    while shared.goes_on() {
        match connect(url).await {
            Ok(client) => return Some(client),
            Err(error) => {
                shared.failed(error);
                tokio::time::sleep(RETRY).await;
            }
        }
    }
    None
}

async fn write(url: String, writer: usize, ledgers: Ledgers, shared: Arc<Shared>) {
    while let Some(client) = session(&url, &shared).await {
        while shared.goes_on() {
            let number = ledgers.of(writer).begin();
            let size = if number % 50 == 0 { FILLER * 40 } else { FILLER };
            let transaction = format!(
                "BEGIN; INSERT INTO steps VALUES ({writer}, {number}, repeat(md5('{number}'), {size} / 32)); \
                 UPDATE totals SET steps = steps + 1 WHERE writer = {writer}; COMMIT"
            );
            match client.batch_execute(&transaction).await {
                Ok(()) => ledgers.of(writer).acknowledge(number),
                Err(error) => {
                    shared.failed(format!("{error:?}"));
                    break;
                }
            }
        }
    }
}

/// Reads what others have committed.
async fn look_on(url: String, ledgers: Ledgers, shared: Arc<Shared>) {
    while let Some(client) = session(&url, &shared).await {
        while shared.goes_on() {
            let Ok(rows) = client.query("SELECT writer, max(step) FROM steps GROUP BY writer", &[]).await
            else {
                break;
            };
            for row in rows {
                let writer = usize::try_from(row.get::<_, i32>(0)).unwrap();
                ledgers.of(writer).see(row.get(1));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// What changes files rather than rows, and moves the redo position.
const STATEMENTS: &[&str] = &[
    "CHECKPOINT",
    "CHECKPOINT",
    "VACUUM steps",
    "VACUUM FULL totals",
    "REINDEX TABLE totals",
    "TRUNCATE passing",
    "INSERT INTO passing SELECT generate_series(1, 5000)",
    "INSERT INTO unlogged SELECT generate_series(1, 500)",
    "CREATE INDEX passing_n ON passing (n); DROP INDEX passing_n",
    "CREATE TABLE brief AS SELECT * FROM totals; DROP TABLE brief",
    "ALTER TABLE passing ALTER n TYPE bigint; ALTER TABLE passing ALTER n TYPE int",
];

async fn administer(url: String, mut random: StdRng, shared: Arc<Shared>) {
    while let Some(client) = session(&url, &shared).await {
        while shared.goes_on() {
            let statement = STATEMENTS[random.random_range(0..STATEMENTS.len())];
            if client.batch_execute(statement).await.is_err() && client.is_closed() {
                break;
            }
            tokio::time::sleep(STATEMENT_EVERY.mul_f64(random.random())).await;
        }
    }
}
