//! The way back: recommendations, computed in the lake, served from Postgres.
//!
//! The lake keeps every computation, a row a customer and time; Postgres serves the latest of each customer. Whoever
//! computes appends and never has to clean up.

use super::DemoError;
use super::comparison;
use super::narrator::{Narrator, grouped};
use super::shop;
use super::stage::{Stage, is_past};
use crate::commands::CommandError;
use crate::status::{Direction, StatusReport};
use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use delta_writer::{AppendTable, CommitSpec, WriterOptions};
use futures::TryStreamExt;
use lake_sql::LakeSession;
use postgres_connector::Client;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// The Delta table's name in the lake, and that of the table in Postgres.
pub(super) const DELTA: [&str; 2] = ["gold", "recommendations"];
pub(super) const SERVED: &str = "serving.recommendations";

/// For a version to be served: a second or two when all is well.
const SERVED_LIMIT: Duration = Duration::from_secs(60);

/// Lookups timed.
const LOOKUPS: u32 = 1000;

/// What sells best in the customer's city.
const COMPUTATION: &str = "\
SELECT customers.id AS customer_id, best.product_id, CAST(best.sold AS bigint) AS sold, now() AS computed_at
FROM shop.public.customers JOIN (
  SELECT city, product_id, sold, row_number() OVER (PARTITION BY city ORDER BY sold DESC, product_id) AS place
  FROM (SELECT c.city, i.product_id, sum(i.quantity) AS sold
        FROM shop.public.order_items i JOIN shop.public.orders o ON o.id = i.order_id
        JOIN shop.public.customers c ON c.id = o.customer_id
        GROUP BY c.city, i.product_id) sales) best
ON best.city = customers.city WHERE best.place = 1";

/// Computed, served, changed, looked up.
pub(super) async fn serve(
    stage: &Stage,
    narrator: &Narrator,
    client: &Client,
    lake: &LakeSession,
) -> Result<(), CommandError> {
    narrator.chapter("And back: recommendations from the lake, served from Postgres")?;
    narrator.query("SELECT … what sells best in each customer's city …\nFROM shop.public.customers JOIN … INTO gold.recommendations")?;
    let location = stage.lake()?.table(&DELTA);
    let options = WriterOptions::new(stage.folder().join("demo-index"));
    let mut table = AppendTable::open(location, schema(), options).await.map_err(DemoError::from)?;
    let (rows, version) = compute(lake, &mut table).await?;
    let computed = Instant::now();
    served(stage, version).await?;
    let took = format!(
        "{} rows served {} after their commit",
        grouped(rows),
        super::tour::seconds(computed.elapsed())
    );
    narrator.line(&took)?;

    let ada = shop::ada(client).await?;
    narrator.entry("for Ada", &looked_up(client, lake, ada).await?)?;
    let position = shop::buy_for_ada(client, ada).await?;
    let arrived = |report: &StatusReport| is_past(report, &["orders", "order_items"], position).then_some(());
    stage.until("Ada's new order in the lake", SERVED_LIMIT, arrived).await?;
    let (_, version) = compute(lake, &mut table).await?;
    let computed = Instant::now();
    served(stage, version).await?;
    let fresh = looked_up(client, lake, ada).await?;
    narrator
        .entry("a new order", &format!("{fresh}, {} after that", super::tour::seconds(computed.elapsed())))?;
    narrator.line(&time_lookups(client).await?)?;
    Ok(())
}

/// Appends a computation; its rows and the version that has them.
async fn compute(lake: &LakeSession, table: &mut AppendTable) -> Result<(u64, i64), CommandError> {
    let result = lake.sql(COMPUTATION).await?;
    let batches: Vec<RecordBatch> =
        result.stream.try_collect().await.map_err(lake_sql::LakeSqlError::from)?;
    let rows = arrow::compute::concat_batches(&result.schema, &batches).map_err(DemoError::from)?;
    let columns = rows
        .columns()
        .iter()
        .zip(schema().fields().clone().iter())
        .map(|(column, field)| arrow::compute::cast(column, field.data_type()))
        .collect::<Result<Vec<_>, _>>();
    let rows = RecordBatch::try_new(schema(), columns.map_err(DemoError::from)?).map_err(DemoError::from)?;
    let spec = CommitSpec {
        app_id: "tidewater-demo".to_owned(),
        version: table.version() + 1,
        info: serde_json::Map::new(),
    };
    let version = table.append(&rows, &spec).await.map_err(DemoError::from)?;
    Ok((rows.num_rows() as u64, version))
}

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("customer_id", DataType::Int64, true),
        Field::new("product_id", DataType::Int64, true),
        Field::new("sold", DataType::Int64, true),
        Field::new("computed_at", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true),
    ]))
}

async fn served(stage: &Stage, version: i64) -> Result<(), DemoError> {
    let holds = |report: &StatusReport| {
        let mut lines = report.tables.iter().filter(|line| line.direction == Direction::ToPostgres);
        lines.any(|line| line.table == SERVED && line.version >= Some(version)).then_some(())
    };
    stage.until("recommendations in Postgres", SERVED_LIMIT, holds).await
}

/// What Postgres recommends, which has to be the lake's newest.
async fn looked_up(client: &Client, lake: &LakeSession, customer: i64) -> Result<String, CommandError> {
    let newest = format!(
        "SELECT product_id, sold FROM gold.recommendations WHERE customer_id = {customer} ORDER BY computed_at DESC LIMIT 1"
    );
    let query = format!("SELECT product_id, sold FROM {SERVED} WHERE customer_id = {customer}");
    let here = comparison::in_postgres(client, &query).await?;
    let there = comparison::same(&query, comparison::in_lake(lake, &newest).await?, &here)?;
    let name = format!(
        "SELECT p.name FROM {SERVED} r JOIN public.products p ON p.id = r.product_id WHERE r.customer_id = {customer}"
    );
    let name = comparison::in_postgres(client, &name).await?.concat().concat();
    let sold = there.first().and_then(|row| row.get(1)).cloned().unwrap_or_default();
    Ok(format!("{name}, sold {sold} times in her city"))
}

async fn time_lookups(client: &Client) -> Result<String, CommandError> {
    let failed = |error| client.error("looking recommendations up", error);
    let statement = format!("SELECT product_id FROM {SERVED} WHERE customer_id = $1");
    let statement = client.prepare(&statement).await.map_err(failed).map_err(DemoError::from)?;
    let mut took = Vec::new();
    for turn in 0..LOOKUPS {
        let customer = i64::from(turn * 7919) % shop::CUSTOMERS + 1;
        let began = Instant::now();
        client.query(&statement, &[&customer]).await.map_err(failed).map_err(DemoError::from)?;
        took.push(began.elapsed());
    }
    took.sort();
    let at =
        |share: usize| took.get(took.len() * share / 100).copied().unwrap_or_default().as_secs_f64() * 1000.0;
    Ok(format!(
        "{} lookups by key: half of them within {:.2} ms, 99 of 100 within {:.2} ms",
        grouped(LOOKUPS.into()),
        at(50),
        at(99)
    ))
}
