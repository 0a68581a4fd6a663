//! The application's sessions: they run their part of the script and forgive what any application must.

use crate::work::Transaction;
use std::time::{Duration, Instant};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

/// From a killed server back to an answering one.
const RECONNECT_LIMIT: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_millis(20);

/// Lock waits of an application that shares tables with others end by themselves.
const SETTINGS: &str = "SET lock_timeout = '10s'; SET deadlock_timeout = '100ms'";

/// What sessions of one application do to each other: deadlock, lock timeout, serialisation, duplicate key; and
/// names and types that another session has changed meanwhile, or that the server's death left as they were: column, table.
const FORGIVEN: [&str; 7] = ["40P01", "55P03", "40001", "23505", "42703", "42P01", "42804"];

/// Runs transactions one after the other, with a pause after each. Gives how many were committed.
///
/// # Panics
/// When a statement fails in a way that no other session can be blamed for: the sync must never do that.
pub async fn run(url: String, transactions: Vec<Transaction>, pause: Duration) -> u64 {
    let mut client: Option<Client> = None;
    let mut committed = 0;
    for transaction in transactions {
        let session = match client.take() {
            Some(session) if !session.is_closed() => session,
            _ => connect(&url).await,
        };
        // A transaction that the server's death interrupted may have committed or not: either is fine.
        committed += u64::from(execute(&session, &transaction).await);
        client = Some(session);
        tokio::time::sleep(pause).await;
    }
    committed
}

/// Runs statements that nothing disturbs.
pub async fn set_up(client: &Client, statements: &[String]) {
    for statement in statements {
        client.batch_execute(statement).await.unwrap_or_else(|error| panic!("{error:?}\n{statement}"));
    }
}

/// Whether it was committed for certain.
async fn execute(client: &Client, transaction: &Transaction) -> bool {
    let mut last = None;
    for statement in &transaction.statements {
        match client.simple_query(statement).await {
            Ok(messages) => last = messages.into_iter().next_back(),
            Err(error) => {
                let code = error.code().map(|code| code.code().to_owned());
                let lost = client.is_closed()
                    || code.as_deref().is_none_or(|code| code.starts_with("08") || code.starts_with("57P"));
                let forgiven = code.as_deref().is_some_and(|code| FORGIVEN.contains(&code));
                assert!(lost || forgiven, "the application's statement failed: {error:?}\n{statement}");
                // After a lost connection there is nothing to roll back, and no one to ask.
                let _ = client.simple_query("ROLLBACK").await;
                return false;
            }
        }
    }
    matches!(last, Some(SimpleQueryMessage::CommandComplete(_)))
        && transaction.statements.last().is_some_and(|statement| statement.starts_with("COMMIT"))
}

/// Commits what a killed server left prepared; it would hold its locks for ever.
pub async fn decide_prepared(client: &Client) {
    let left = "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()";
    for row in client.query(left, &[]).await.unwrap() {
        let name: String = row.get(0);
        client.batch_execute(&format!("COMMIT PREPARED '{name}'")).await.unwrap();
    }
}

/// A session, as soon as the server takes one.
pub async fn connect(url: &str) -> Client {
    let deadline = Instant::now() + RECONNECT_LIMIT;
    loop {
        match tokio_postgres::connect(url, NoTls).await {
            Ok((client, connection)) => {
                tokio::spawn(connection);
                if client.batch_execute(SETTINGS).await.is_ok() {
                    return client;
                }
            }
            Err(error) => assert!(Instant::now() < deadline, "Postgres takes no session: {error:?}"),
        }
        tokio::time::sleep(RETRY).await;
    }
}
