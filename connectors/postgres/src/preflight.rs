//! Whether a source can be synced, asked before it is tried.
//!
//! Every check looks at the live server with the role that will do the work, and what a check cannot know from settings
//! it tries: the replication session is really opened. A finding names the problem and, where there is one, the
//! statement that mends it.

mod server;
mod tables;

use crate::client::connect;
use crate::error::{Error, Result};
use crate::source_config::SourceConfig;
use globset::GlobSet;
use std::collections::HashMap;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// As it should be.
    Ok,
    /// It works, but not as one may expect.
    Warning,
    /// It will not work.
    Error,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// A stable name of the check, such as `wal-level`.
    pub code: &'static str,
    /// The server, role or table that it is about.
    pub subject: String,
    /// What was found.
    pub problem: String,
    /// What to do, in words.
    pub remedy: Option<String>,
    /// The exact statement that mends it.
    pub remedy_sql: Option<String>,
}

impl Finding {
    fn new(severity: Severity, code: &'static str, subject: &str, problem: impl Into<String>) -> Finding {
        Finding {
            severity,
            code,
            subject: subject.to_owned(),
            problem: problem.into(),
            remedy: None,
            remedy_sql: None,
        }
    }

    fn remedy(mut self, text: impl Into<String>) -> Finding {
        self.remedy = Some(text.into());
        self
    }

    fn sql(mut self, statement: impl Into<String>) -> Finding {
        self.remedy_sql = Some(statement.into());
        self
    }

    /// An error that kept a check from being made. Its message already says what to do.
    fn from_error(code: &'static str, subject: &str, error: &Error) -> Finding {
        let mut problem = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            problem.push_str(": ");
            problem.push_str(&cause.to_string());
            source = cause.source();
        }
        Finding::new(Severity::Error, code, subject, problem)
    }
}

/// What is to be synced from one database.
#[derive(Debug, Clone, Default)]
pub struct RequestedTables {
    /// Globs over `schema.table`.
    pub include: GlobSet,
    /// What to leave out of them.
    pub exclude: GlobSet,
    /// Columns to leave out, by `schema.table`.
    pub excluded_columns: HashMap<String, Vec<String>>,
}

/// Looks at a source with the eyes of `doctor`. A server that cannot be reached is a finding; an error here is a check that
/// failed for no reason it knows.
pub async fn preflight(
    config: &SourceConfig,
    instance: &str,
    database: &str,
    tables: &RequestedTables,
) -> Result<Vec<Finding>> {
    let place = config.place();
    let client = match connect(config).await {
        Ok(client) => client,
        Err(error) => return Ok(vec![Finding::from_error("connect", &place, &error)]),
    };
    let mut findings = vec![Finding::new(Severity::Ok, "connect", &place, "reachable")];
    let facts = server::ServerFacts::read(&client).await?;
    findings.extend(facts.version_and_wal(&place));
    if facts.version < server::OLDEST_VERSION {
        return Ok(findings);
    }
    findings.push(server::replication_session(config).await);
    findings.extend(server::slots(&client, &facts, instance, database).await?);
    findings.extend(facts.settings(&place));
    findings.extend(tables::findings(&client, &facts, instance, database, tables).await?);
    Ok(findings)
}
