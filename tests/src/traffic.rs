//! An application at work: sessions that change every kind of table in transactions of random shape.
//!
//! Each session has its own ids (those with its remainder), so that sessions do not wait for each other,
//! and draws everything from its seed. A transaction moves money between two accounts and does up to
//! eight other things; now and then a part of it, or all of it, is rolled back.
//!
//! The rule that makes it a test: **no statement of the application may ever fail**, on any kind of table
//! and at whatever stage the sync is. Only a lost connection is forgiven, when the test kills Postgres.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls};

use crate::shop::Shop;

/// Ids that a session uses in a mirrored table: few enough that rows meet several changes.
const IDS: i32 = 500;
const RECONNECT: Duration = Duration::from_millis(50);

/// Running sessions.
#[derive(Debug)]
pub struct Traffic {
    stop: Arc<AtomicBool>,
    committed: Arc<AtomicU64>,
    sessions: Vec<JoinHandle<()>>,
}

/// What the sessions did.
#[derive(Debug, Clone, Copy)]
pub struct TrafficReport {
    /// Transactions whose commit was answered.
    pub committed: u64,
}

impl Traffic {
    /// Starts `sessions` sessions. `big` names one more table to change, whose ids lie in `1..=rows`. `pause` lies
    /// between two transactions of a session.
    pub fn start(
        url: &str,
        seed: u64,
        sessions: i32,
        big: Option<(&'static str, i32)>,
        pause: Duration,
    ) -> Traffic {
        let (stop, committed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let sessions = (0..sessions)
            .map(|number| {
                let session = Session {
                    random: StdRng::seed_from_u64(seed.wrapping_add(number.unsigned_abs().into())),
                    number,
                    sessions,
                    next_id: 0,
                    big,
                };
                tokio::spawn(session.run(url.to_owned(), stop.clone(), committed.clone(), pause))
            })
            .collect();
        Traffic { stop, committed, sessions }
    }

    /// Transactions committed so far.
    pub fn committed(&self) -> u64 {
        self.committed.load(Ordering::Relaxed)
    }

    /// Waits until `more` further transactions are committed.
    pub async fn wait_for(&self, more: u64) {
        let target = self.committed() + more;
        while self.committed() < target {
            assert!(self.sessions.iter().all(|session| !session.is_finished()), "a session has ended early");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Ends the sessions after their present transactions; fails if a statement of theirs has failed.
    pub async fn stop(self) -> TrafficReport {
        self.stop.store(true, Ordering::Relaxed);
        for session in self.sessions {
            session.await.unwrap();
        }
        TrafficReport { committed: self.committed.load(Ordering::Relaxed) }
    }
}

struct Session {
    random: StdRng,
    number: i32,
    sessions: i32,
    /// For tables whose ids are never used twice.
    next_id: i32,
    big: Option<(&'static str, i32)>,
}

impl Session {
    async fn run(mut self, url: String, stop: Arc<AtomicBool>, committed: Arc<AtomicU64>, pause: Duration) {
        let mut client = None;
        while !stop.load(Ordering::Relaxed) {
            let Some(open) = &client else {
                client = connect(&url).await;
                if client.is_none() {
                    tokio::time::sleep(RECONNECT).await;
                }
                continue;
            };
            let (transaction, commits) = self.transaction();
            match open.batch_execute(&transaction).await {
                Ok(()) => committed.fetch_add(u64::from(commits), Ordering::Relaxed),
                Err(error) if is_lost(open, &error) => {
                    client = None;
                    continue;
                }
                Err(error) => panic!("the application's statement failed: {error:?}\n{transaction}"),
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// One transaction, and whether it commits.
    fn transaction(&mut self) -> (String, bool) {
        let mut sql = String::from("BEGIN;\n");
        self.transfer(&mut sql);
        for _ in 0..self.random.random_range(0..8) {
            match self.random.random_range(0..10) {
                0 => {
                    sql.push_str("SAVEPOINT s;\n");
                    self.change(&mut sql);
                    sql.push_str("ROLLBACK TO s;\n");
                }
                1 => {
                    sql.push_str("SAVEPOINT s;\n");
                    self.change(&mut sql);
                    sql.push_str("RELEASE s;\n");
                }
                _ => self.change(&mut sql),
            }
        }
        let commits = self.random.random_range(0..20) > 0;
        sql.push_str(if commits { "COMMIT" } else { "ROLLBACK" });
        (sql, commits)
    }

    /// Moves money between two accounts, always locked in the same order.
    fn transfer(&mut self, sql: &mut String) {
        let (one, other) =
            (self.random.random_range(1..=Shop::accounts()), self.random.random_range(1..=Shop::accounts()));
        let amount = self.random.random_range(-50..=50);
        for (id, change) in [(one.min(other), amount), (one.max(other), -amount)] {
            writeln!(sql, "UPDATE accounts SET balance = balance + {change} WHERE id = {id};").unwrap();
        }
    }

    fn change(&mut self, sql: &mut String) {
        match self.random.random_range(0..10) {
            0..=5 => self.change_mirrored(sql),
            6 | 7 => self.change_big(sql),
            _ => self.change_inserts_only(sql),
        }
    }

    fn id(&mut self) -> i32 {
        self.random.random_range(0..IDS) * self.sessions + self.number
    }

    fn text(&mut self) -> String {
        match self.random.random_range(0..8) {
            0 => "NULL".to_owned(),
            1 => "''".to_owned(),
            // Past the page: stored out of line, so that later updates send it as unchanged.
            2 => format!(
                "(SELECT string_agg(md5(x::text || '{}'), '') FROM generate_series(1, 120) x)",
                self.random.random::<u16>()
            ),
            _ => format!("'v{} ü'", self.random.random::<u32>()),
        }
    }

    fn change_mirrored(&mut self, sql: &mut String) {
        let table = Shop::MIRRORED[self.random.random_range(0..Shop::MIRRORED.len())];
        let (id, other, text) = (self.id(), self.id(), self.text());
        match self.random.random_range(0..12) {
            0..=3 => writeln!(
                sql,
                "INSERT INTO {table} (id, v, n) SELECT {id}, {text}, 0 WHERE NOT EXISTS (SELECT 1 FROM {table} WHERE id = {id});"
            ),
            4 | 5 => writeln!(sql, "UPDATE {table} SET v = {text} WHERE id = {id};"),
            // Leaves a large `v` untouched.
            6 | 7 => writeln!(sql, "UPDATE {table} SET n = n + 1 WHERE id = {id};"),
            8 => writeln!(
                sql,
                "UPDATE {table} SET id = {other} WHERE id = {id} AND NOT EXISTS (SELECT 1 FROM {table} WHERE id = {other});"
            ),
            9 if table == "composite" => {
                writeln!(sql, "UPDATE composite SET region = CASE region WHEN 'eu' THEN 'us' ELSE 'eu' END WHERE id = {id};")
            }
            // Equal rows come, and go one by one.
            9 if table == "keyless_full" => {
                writeln!(sql, "INSERT INTO keyless_full SELECT * FROM keyless_full WHERE id = {id} LIMIT 2;")
            }
            10 if table == "keyless_full" => writeln!(
                sql,
                "DELETE FROM keyless_full WHERE ctid = (SELECT max(ctid) FROM keyless_full WHERE id = {id});"
            ),
            9 => writeln!(sql, "DELETE FROM {table} WHERE id = {id};\nINSERT INTO {table} (id, v, n) VALUES ({id}, {text}, 7);"),
            10 => writeln!(sql, "DELETE FROM {table} WHERE id = {id};"),
            // Many rows with much text: past `logical_decoding_work_mem`, so that they are sent while in progress.
            _ => writeln!(
                sql,
                "UPDATE {table} SET n = n + 1, v = repeat(md5(id::text), 1 + n % 30) WHERE id % {} = {};",
                self.sessions, self.number
            ),
        }
        .unwrap();
    }

    /// Of a table that is large from the start, rows all over its pages.
    fn change_big(&mut self, sql: &mut String) {
        let Some((table, rows)) = self.big else { return self.change_mirrored(sql) };
        let id = self.random.random_range(0..rows / self.sessions) * self.sessions + self.number;
        match self.random.random_range(0..6) {
            0 => writeln!(sql, "DELETE FROM {table} WHERE id = {id};"),
            1 => writeln!(sql, "UPDATE {table} SET id = -id WHERE id = {id} AND NOT EXISTS (SELECT 1 FROM {table} WHERE id = -{id});"),
            2 => writeln!(sql, "INSERT INTO {table} VALUES ({id}, 'again', 0) ON CONFLICT (id) DO UPDATE SET v = 'met';"),
            _ => writeln!(sql, "UPDATE {table} SET n = n + 1 WHERE id IN ({id}, {});", id + self.sessions),
        }
        .unwrap();
    }

    /// Of tables whose updates and deletes do not reach the lake: they must succeed all the same.
    fn change_inserts_only(&mut self, sql: &mut String) {
        let table = Shop::INSERTS_ONLY[self.random.random_range(0..Shop::INSERTS_ONLY.len())];
        let new = self.next_id * self.sessions + self.number;
        let old = self.random.random_range(0..=self.next_id) * self.sessions + self.number;
        match self.random.random_range(0..4) {
            0 => writeln!(sql, "UPDATE {table} SET n = n + 1 WHERE id = {old};"),
            1 if self.next_id > 20 => writeln!(sql, "DELETE FROM {table} WHERE id = {old};"),
            _ => {
                self.next_id += 1;
                writeln!(sql, "INSERT INTO {table} (id, v, n) VALUES ({new}, 'i', 0);")
            }
        }
        .unwrap();
    }
}

async fn connect(url: &str) -> Option<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.ok()?;
    tokio::spawn(connection);
    Some(client)
}

/// The server went away, or is about to: SQLSTATE classes 08 and 57P, or a closed socket.
fn is_lost(client: &Client, error: &tokio_postgres::Error) -> bool {
    client.is_closed()
        || error.code().is_none_or(|code| code.code().starts_with("08") || code.code().starts_with("57P"))
}
