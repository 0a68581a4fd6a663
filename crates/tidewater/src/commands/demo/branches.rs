//! The chapter on branches: a copy to spoil, a mistake taken back, a sleep.

use super::DemoError;
use super::comparison;
use super::narrator::{Narrator, grouped};
use super::stage::{DATABASE, Stage, line};
use super::tour::{FINGERPRINTS, seconds};
use crate::built_in::{BuiltIn, BuiltInError};
use crate::commands::CommandError;
use crate::status::StatusReport;
use lake_sql::LakeSession;
use oltp_core::branches::Point;
use oltp_core::gateway::MAIN_BRANCH;
use oltp_core::ids::{BranchName, ProjectName};
use postgres_connector::Client;
use std::time::Duration;
use tokio::time::Instant;
use wal_decoder::Lsn;

/// For the lake to be what the restored database is.
const MENDED_LIMIT: Duration = Duration::from_secs(120);

const ITEMS: &str = "SELECT count(*) FROM public.order_items";

/// Branch, restore, sleep and wake.
pub(super) async fn show(
    stage: &Stage,
    narrator: &Narrator,
    core: &BuiltIn,
    client: Client,
    lake: &LakeSession,
) -> Result<(), CommandError> {
    narrator.chapter("A branch to spoil, a mistake taken back, a sleep")?;
    let failed = CommandError::core;
    let (project, main) =
        (ProjectName::new(DATABASE).map_err(failed)?, BranchName::new(MAIN_BRANCH).map_err(failed)?);
    spoil_a_branch(narrator, core, (&project, &main), &client).await?;

    let sold = number(&client, ITEMS).await?;
    let position: Lsn = {
        let row = client.query_one("SELECT pg_catalog.pg_current_wal_flush_lsn()::text", &[]).await;
        let text: String = row.and_then(|row| row.try_get(0)).map_err(DemoError::Statement)?;
        text.parse().map_err(DemoError::Position)?
    };
    client.batch_execute("DELETE FROM public.order_items").await.map_err(DemoError::Statement)?;
    narrator.entry("a mistake", "DELETE FROM order_items, and no WHERE")?;
    let emptied = |report: &StatusReport| items_are(report, 0);
    stage.until("mistake in the lake", MENDED_LIMIT, emptied).await?;
    narrator.entry("the lake", "has followed: 0 rows")?;
    drop(client);

    let began = Instant::now();
    core.branches().restore(&project, &main, Point::Lsn(position)).await.map_err(failed)?;
    let client = connect(stage).await?;
    let back = number(&client, ITEMS).await?;
    narrator
        .entry("restored", &format!("{} rows are back after {}", grouped(back), seconds(began.elapsed())))?;
    let mended = |report: &StatusReport| items_are(report, sold);
    stage.until("restored rows in the lake", MENDED_LIMIT, mended).await?;
    for (_, query) in FINGERPRINTS {
        comparison::in_both(lake, &client, query).await?;
    }
    narrator.entry("the lake", &format!("is equal again after {}", seconds(began.elapsed())))?;
    drop(client);

    let head = core.pages().find_branch(&project, &main).await.map_err(failed)?;
    if let Some(head) = head {
        core.computes().suspend(&project, head.branch).await.map_err(failed)?;
    }
    let began = Instant::now();
    let client = connect(stage).await?;
    number(&client, ITEMS).await?;
    narrator.entry(
        "asleep",
        &format!("the next connection wakes it: first answer after {}", seconds(began.elapsed())),
    )?;
    Ok(())
}

async fn spoil_a_branch(
    narrator: &Narrator,
    core: &BuiltIn,
    (project, main): (&ProjectName, &BranchName),
    client: &Client,
) -> Result<(), CommandError> {
    let failed = CommandError::core;
    let experiment = BranchName::new("experiment").map_err(failed)?;
    let began = Instant::now();
    core.branches().create(project, main, experiment.clone(), Point::Now, None).await.map_err(failed)?;
    narrator.entry("a branch", &format!("shop@experiment, made in {}", seconds(began.elapsed())))?;
    let status = {
        let head = core.pages().find_branch(project, &experiment).await.map_err(failed)?;
        match head {
            Some(head) => core.computes().ensure_running(project, head.branch).await.map_err(failed)?,
            None => return Err(BuiltInError::Core(oltp_core::CoreError::ComputeEnding).into()),
        }
    };
    let source = crate::built_in::superuser(core.pages(), &status).await?;
    let branch = postgres_connector::connect(&source).await.map_err(DemoError::from)?;
    branch.batch_execute("DELETE FROM public.order_items").await.map_err(DemoError::Statement)?;
    let (there, here) = (number(&branch, ITEMS).await?, number(client, ITEMS).await?);
    narrator
        .entry("order_items", &format!("{there} rows there after a DELETE, {} in shop", grouped(here)))?;
    drop(branch);
    core.branches().delete(project, &experiment).await.map_err(failed)?;
    Ok(())
}

async fn connect(stage: &Stage) -> Result<Client, CommandError> {
    let source = stage.address().await?.source()?;
    Ok(postgres_connector::connect(&source).await.map_err(DemoError::from)?)
}

async fn number(client: &Client, query: &str) -> Result<u64, CommandError> {
    let row = client.query_one(query, &[]).await;
    let number: i64 = row.and_then(|row| row.try_get(0)).map_err(DemoError::Statement)?;
    Ok(number.unsigned_abs())
}

fn items_are(report: &StatusReport, rows: u64) -> Option<()> {
    let line = line(report, "order_items")?;
    (line.state == "streaming" && line.rows == Some(rows)).then_some(())
}
