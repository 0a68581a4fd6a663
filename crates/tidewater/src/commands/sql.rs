//! `tidewater sql`: one query, a prompt, or statements from standard input.

use super::statement::take_statement;
use super::{CommandError, Outcome};
use crate::config::Config;
use crate::daemon::error_chain;
use lake_sql::{LakeSession, LakeSqlError, OutputFormat};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use std::io::{BufRead, IsTerminal, Read};

/// A statement longer than this is a data file on the wrong end of a pipe.
const MAX_INPUT_BYTES: u64 = 64 << 20;

pub(super) async fn sql(
    config: &Config,
    query: Option<&str>,
    format: OutputFormat,
) -> Result<Outcome, CommandError> {
    let session = LakeSession::open(config.lake.uri.as_str(), &config.lake.options.expose()).await?;
    match query {
        Some(query) => answer(&session, query, format).await?,
        None if std::io::stdin().is_terminal() => prompt(&session, format).await?,
        None => from_input(&session, format).await?,
    }
    Ok(Outcome::Done)
}

async fn answer(session: &LakeSession, query: &str, format: OutputFormat) -> Result<(), LakeSqlError> {
    let result = session.sql(query).await?;
    lake_sql::format(result, format, std::io::stdout().lock()).await.map(|_| ())
}

/// A failed statement ends it: what follows may rely on it.
async fn from_input(session: &LakeSession, format: OutputFormat) -> Result<(), CommandError> {
    let mut input = std::io::stdin().lock().take(MAX_INPUT_BYTES);
    let mut text = String::new();
    while input.read_line(&mut text)? > 0 {
        while let Some(statement) = take_statement(&mut text) {
            if !statement.is_empty() {
                answer(session, &statement, format).await?;
            }
        }
    }
    if !text.trim().is_empty() {
        answer(session, text.trim(), format).await?;
    }
    Ok(())
}

/// A failed statement is said, and the next one awaited.
async fn prompt(session: &LakeSession, format: OutputFormat) -> Result<(), CommandError> {
    let mut editor = DefaultEditor::new()?;
    let mut text = String::new();
    eprintln!("lake SQL; end a statement with `;`, leave with Ctrl-D");
    loop {
        let ask = if text.trim().is_empty() { "tidewater> " } else { "      ...> " };
        match tokio::task::block_in_place(|| editor.readline(ask)) {
            Ok(line) => {
                text.push_str(&line);
                text.push('\n');
            }
            Err(ReadlineError::Interrupted) => text.clear(),
            Err(ReadlineError::Eof) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        while let Some(statement) = take_statement(&mut text) {
            if statement.is_empty() {
                continue;
            }
            editor.add_history_entry(format!("{statement};"))?;
            if let Err(error) = answer(session, &statement, format).await {
                eprintln!("error: {}", error_chain(&error));
            }
        }
    }
}
