//! How commands end.

use super::demo::DemoError;
use crate::built_in::BuiltInError;
use crate::config::ConfigError;
use crate::daemon::DaemonError;
use crate::http::{ControlError, ServeError};
use crate::telemetry::TelemetryError;
use lake_sql::LakeSqlError;
use miette::Diagnostic;
use std::io;
use std::path::{Path, PathBuf};

/// What a shell reports for a process that SIGINT ended.
pub(super) const INTERRUPTED: u8 = 130;

/// A command that did its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Everything is as it should be: exit code 0.
    Done,
    /// It looked for differences and found some: exit code 3.
    FoundDifference,
}

impl Outcome {
    /// What the process exits with.
    pub fn exit_code(self) -> u8 {
        match self {
            Outcome::Done => 0,
            Outcome::FoundDifference => 3,
        }
    }
}

/// A command that did not do its work. Large causes are boxed.
#[derive(Debug, thiserror::Error, Diagnostic)]
pub enum CommandError {
    /// The configuration cannot be used.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Config(#[from] ConfigError),
    /// The log or the metrics cannot be set up.
    #[error("telemetry cannot be set up")]
    #[diagnostic(code(tidewater::telemetry), help("see `--log`"))]
    Telemetry(#[from] TelemetryError),
    /// The daemon cannot be asked.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Control(#[from] ControlError),
    /// A listener cannot be had.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Serve(#[from] ServeError),
    /// The daemon stopped.
    #[error("the daemon has stopped")]
    #[diagnostic(
        code(tidewater::run),
        help("`tidewater doctor` looks at sources and lake and says how to mend what it finds")
    )]
    Daemon(#[source] Box<DaemonError>),
    /// A query failed.
    #[error("the query cannot be answered")]
    #[diagnostic(code(tidewater::sql))]
    Sql(#[source] Box<LakeSqlError>),
    /// A source cannot be worked on.
    #[error("database `{database}` cannot be worked on")]
    #[diagnostic(code(tidewater::source), help("`tidewater doctor` says what is wrong with it"))]
    Source {
        /// its name in the configuration, or its place
        database: String,
        /// what the connector said
        source: Box<postgres_connector::Error>,
    },
    /// A table that was asked for could not be compared.
    #[error("not every table that was asked for could be compared")]
    #[diagnostic(code(tidewater::verify), help("the lines above say why"))]
    NotCompared,
    /// The database that `init` is to look at cannot be looked at.
    #[error("the database at {place} cannot be looked at")]
    #[diagnostic(code(tidewater::init::source), help("{remedy}; nothing was written"))]
    InitSource {
        /// where
        place: String,
        /// what helps
        remedy: &'static str,
        /// what the connector said
        source: Box<postgres_connector::Error>,
    },
    /// The name is not in the configuration.
    #[error("there is no database `{database}` at an address in the configuration")]
    #[diagnostic(code(tidewater::usage), help("databases at an address: {known}"))]
    UnknownDatabase {
        /// as given
        database: String,
        /// what there is
        known: String,
    },
    /// `init` would lose what is there.
    #[error("{} is there already", path.display())]
    #[diagnostic(code(tidewater::init::exists), help("`-c FILE` writes elsewhere"))]
    Exists {
        /// the file
        path: PathBuf,
    },
    /// A second daemon.
    #[error("another daemon has {}{}", path.display(), pid.as_ref().map_or_else(String::new, |pid| format!(" (process {pid})")))]
    #[diagnostic(
        code(tidewater::run::second_daemon),
        help("stop that one, or give this one its own `state_dir` and `instance`")
    )]
    SecondDaemon {
        /// the lock
        path: PathBuf,
        /// who holds it, as far as it says
        pid: Option<String>,
    },
    /// A file or folder cannot be used.
    #[error("{} cannot be used", path.display())]
    #[diagnostic(code(tidewater::file), help("check that this user may read and write it"))]
    File {
        /// what
        path: PathBuf,
        /// what the system said
        source: io::Error,
    },
    /// The built-in Postgres refuses, or cannot be reached.
    #[error("the built-in Postgres cannot do that")]
    #[diagnostic(code(tidewater::core))]
    BuiltIn(#[source] Box<BuiltInError>),
    /// Nothing to compare with.
    #[error("branch `{branch}` has no parent to compare it with")]
    #[diagnostic(code(tidewater::usage))]
    NoParent {
        /// its name
        branch: String,
    },
    /// The name is not that of a built-in database.
    #[error("`{database}` is no built-in database of the configuration")]
    #[diagnostic(
        code(tidewater::usage),
        help("a built-in one is `{database}: {{core: {{}}}}` under `databases`")
    )]
    NotBuiltIn {
        /// as given
        database: String,
    },
    /// Standard input or output broke.
    #[error("input or output failed")]
    #[diagnostic(code(tidewater::output))]
    Terminal(#[from] io::Error),
    /// A result has no JSON form.
    #[error("the result cannot be written as JSON")]
    #[diagnostic(code(tidewater::output))]
    Json(#[from] serde_json::Error),
    /// The configuration has no YAML form.
    #[error("the configuration cannot be written as YAML")]
    #[diagnostic(code(tidewater::output))]
    Yaml(#[source] serde_saphyr::ser::Error),
    /// The demo did not come to its end.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Demo(#[from] DemoError),
    /// The prompt broke.
    #[error("the prompt cannot go on")]
    #[diagnostic(code(tidewater::sql))]
    Prompt(#[from] rustyline::error::ReadlineError),
}

impl From<DaemonError> for CommandError {
    fn from(error: DaemonError) -> Self {
        CommandError::Daemon(Box::new(error))
    }
}

impl From<BuiltInError> for CommandError {
    fn from(error: BuiltInError) -> Self {
        CommandError::BuiltIn(Box::new(error))
    }
}

impl From<LakeSqlError> for CommandError {
    fn from(error: LakeSqlError) -> Self {
        CommandError::Sql(Box::new(error))
    }
}

impl CommandError {
    /// For what the core says.
    pub(super) fn core(error: oltp_core::CoreError) -> CommandError {
        BuiltInError::from(error).into()
    }

    /// For what is done with the file or folder at `path`.
    pub(super) fn file(path: &Path) -> impl FnOnce(io::Error) -> CommandError + use<> {
        let path = path.to_owned();
        move |source| CommandError::File { path, source }
    }

    /// What the process exits with: 2 where the command or the configuration is wrong, 1 where the work failed.
    pub fn exit_code(&self) -> u8 {
        match self {
            CommandError::Config(_)
            | CommandError::Telemetry(TelemetryError::Filter { .. })
            | CommandError::UnknownDatabase { .. }
            | CommandError::NoParent { .. }
            | CommandError::NotBuiltIn { .. }
            | CommandError::Exists { .. } => 2,
            CommandError::Daemon(error) if matches!(**error, DaemonError::Configuration(_)) => 2,
            CommandError::BuiltIn(error)
                if matches!(**error, BuiltInError::Moment { .. } | BuiltInError::MainBranch) =>
            {
                2
            }
            CommandError::Demo(DemoError::Interrupted) => INTERRUPTED,
            _ => 1,
        }
    }

    /// Whether the reader of our output has left, as `| head` does: nothing to complain about.
    pub fn is_closed_output(&self) -> bool {
        let broken = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
        match self {
            CommandError::Terminal(error) => broken(error),
            CommandError::Sql(error) => matches!(&**error, LakeSqlError::Output(error) if broken(error)),
            _ => false,
        }
    }
}
