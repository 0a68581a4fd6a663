//! One query, two answers: the lake's and Postgres's.
//!
//! Lake SQL names a table `shop.public.orders`, and so may Postgres in database `shop`: the same text goes
//! to both, and the answers are compared as text, cell by cell.

use super::DemoError;
use crate::commands::CommandError;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use futures::TryStreamExt;
use lake_sql::LakeSession;
use postgres_connector::Client;
use tokio_postgres::SimpleQueryMessage;

/// Rows of cells in their text form.
pub(super) type Rows = Vec<Vec<String>>;

/// How an absent value reads in either answer.
const NULL: &str = "NULL";

/// As much of an answer as a message about a difference shows.
const SHOWN_CHARACTERS: usize = 200;

/// The lake's answer.
pub(super) async fn in_lake(lake: &LakeSession, query: &str) -> Result<Rows, CommandError> {
    let mut result = lake.sql(query).await?;
    let options = FormatOptions::default().with_null(NULL);
    let mut rows = Rows::new();
    while let Some(batch) = result.stream.try_next().await.map_err(lake_sql::LakeSqlError::from)? {
        let formatters: Result<Vec<_>, _> =
            batch.columns().iter().map(|column| ArrayFormatter::try_new(column, &options)).collect();
        let formatters = formatters.map_err(DemoError::from)?;
        for row in 0..batch.num_rows() {
            let cells: Result<Vec<_>, _> =
                formatters.iter().map(|formatter| formatter.value(row).try_to_string()).collect();
            rows.push(cells.map_err(DemoError::from)?);
        }
    }
    Ok(rows)
}

/// Postgres's answer.
pub(super) async fn in_postgres(postgres: &Client, query: &str) -> Result<Rows, DemoError> {
    let answer = postgres.simple_query(query).await;
    let messages = answer.map_err(|error| postgres.error("answering a query of the demo", error))?;
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    Ok(rows.map(|row| (0..row.len()).map(|at| row.get(at).unwrap_or(NULL).to_owned()).collect()).collect())
}

/// The answer of both, which has to be the same.
pub(super) async fn in_both(
    lake: &LakeSession,
    postgres: &Client,
    query: &str,
) -> Result<Rows, CommandError> {
    let there = in_lake(lake, query).await?;
    let here = in_postgres(postgres, query).await?;
    same(query, there, &here).map_err(CommandError::from)
}

/// `lake`, unless it differs from what Postgres says.
pub(super) fn same(query: &str, lake: Rows, postgres: &Rows) -> Result<Rows, DemoError> {
    if lake == *postgres {
        return Ok(lake);
    }
    Err(DemoError::Difference { query: query.to_owned(), lake: shown(&lake), postgres: shown(postgres) })
}

fn shown(rows: &Rows) -> String {
    let lines: Vec<_> = rows.iter().map(|row| format!("({})", row.join(", "))).collect();
    let text = if lines.is_empty() { "no row".to_owned() } else { lines.join(" ") };
    text.chars().take(SHOWN_CHARACTERS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_cell_that_differs_is_a_difference_and_both_answers_are_named() {
        let rows = |total: &str| vec![vec!["paid".to_owned(), total.to_owned()]];
        assert_eq!(same("q", rows("1.50"), &rows("1.50")).unwrap(), rows("1.50"));
        let error = same("q", rows("1.50"), &rows("1.51")).unwrap_err().to_string();
        assert!(error.contains("(paid, 1.50)") && error.contains("(paid, 1.51)"), "{error}");
        let error = same("q", Rows::new(), &rows("1.51")).unwrap_err().to_string();
        assert!(error.contains("no row"), "{error}");
    }
}
