//! Live traffic: a few sessions that do what a shop's customers and clerks do.

use super::DemoError;
use super::shop;
use postgres_connector::{Client, SourceConfig};
use rand::Rng;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

/// Sessions at once.
const SESSIONS: usize = 4;

/// Between two transactions of a session: 500 a second together, which leaves a laptop room for the sync.
const PACE: Duration = Duration::from_millis(8);

const ORDER: &str = "
WITH basket AS (
    SELECT row_number() OVER () AS line, id, price, 1 + id % 3 AS quantity
    FROM public.products WHERE id = ANY ($2)),
placed AS (
    INSERT INTO public.orders (customer_id, total) SELECT $1, sum(quantity * price) FROM basket RETURNING id)
INSERT INTO public.order_items (order_id, line, product_id, quantity, price)
SELECT placed.id, line, basket.id, quantity, price FROM placed, basket";

const NEXT_STATUS: &str = "
UPDATE public.orders SET status = CASE status WHEN 'placed' THEN 'paid' WHEN 'paid' THEN 'shipped' ELSE 'delivered' END
WHERE id = $1";

const NEW_PRICE: &str = "UPDATE public.products SET price = price + 0.10 WHERE id = $1";

const CANCEL: &str = "DELETE FROM public.orders WHERE id = $1";

const NEW_CUSTOMER: &str =
    "INSERT INTO public.customers (name, city) VALUES ('Newcomer ' || $1::bigint, 'Reykjavík')";

/// Sessions at work.
pub(super) struct Traffic {
    sessions: JoinSet<Result<(), DemoError>>,
    transactions: Arc<AtomicU64>,
}

impl Traffic {
    /// Opens the sessions, which then work until `until`.
    pub(super) async fn start(shop: &SourceConfig, until: Instant) -> Result<Traffic, DemoError> {
        let mut traffic = Traffic { sessions: JoinSet::new(), transactions: Arc::default() };
        for _ in 0..SESSIONS {
            let client = postgres_connector::connect(shop).await?;
            traffic.sessions.spawn(work(client, until, traffic.transactions.clone()));
        }
        Ok(traffic)
    }

    /// Transactions committed so far.
    pub(super) fn transactions(&self) -> u64 {
        self.transactions.load(Ordering::Relaxed)
    }

    /// Waits for the last transaction.
    pub(super) async fn finish(&mut self) -> Result<(), DemoError> {
        while let Some(ended) = self.sessions.join_next().await {
            ended.map_err(|_| DemoError::TrafficGone)??;
        }
        Ok(())
    }
}

async fn work(client: Client, until: Instant, transactions: Arc<AtomicU64>) -> Result<(), DemoError> {
    let mut pace = tokio::time::interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Skip);
    while Instant::now() < until {
        pace.tick().await;
        transact(&client).await.map_err(|error| client.error("serving the demo's customers", error))?;
        transactions.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// One transaction of any kind; each is a single statement.
async fn transact(client: &Client) -> Result<u64, tokio_postgres::Error> {
    let (kind, order, product, customer, basket) = {
        let mut random = rand::rng();
        let basket: Vec<i64> =
            (0..random.random_range(1..=3)).map(|_| random.random_range(1..=shop::PRODUCTS)).collect();
        let order = random.random_range(1..=shop::ORDERS);
        let product = random.random_range(1..=shop::PRODUCTS);
        (random.random_range(0..100), order, product, random.random_range(1..=shop::CUSTOMERS), basket)
    };
    match kind {
        0..60 => client.execute(ORDER, &[&customer, &basket]).await,
        60..85 => client.execute(NEXT_STATUS, &[&order]).await,
        85..92 => client.execute(NEW_PRICE, &[&product]).await,
        92..97 => client.execute(CANCEL, &[&order]).await,
        _ => client.execute(NEW_CUSTOMER, &[&customer]).await,
    }
}
