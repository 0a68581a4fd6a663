//! The command line: what can be asked for, and where it is done.
//!
//! Results go to standard output, everything else to standard error. A command ends in an [`Outcome`] or
//! in a [`CommandError`], and both know their exit code, which scripts rely on.

mod branch;
mod clean_up;
mod compute;
mod configuration;
mod core_processes;
mod demo;
mod doctor;
mod error;
mod init;
mod run;
mod sql;
mod state_lock;
mod statement;
mod status;
mod tables;

pub use error::{CommandError, Outcome};

use crate::config::Config;
use crate::telemetry::{self, LogFormat};
use clap::{Parser, Subcommand};
use std::path::{Path, PathBuf};

/// The open lakebase: Postgres rows as Delta tables, exactly once.
#[derive(Debug, Parser)]
#[command(name = "tidewater", version, about, max_term_width = 100)]
pub struct CommandLine {
    /// The configuration.
    #[arg(short, long, global = true, default_value = "tidewater.yaml", value_name = "FILE")]
    config: PathBuf,
    /// What to log, such as `debug` or `tidewater=debug,info`.
    #[arg(long, global = true, env = "TIDEWATER_LOG", value_name = "FILTER")]
    log: Option<String>,
    /// How log lines look.
    #[arg(long, global = true, value_enum, default_value = "text")]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write a commented configuration to begin with.
    Init {
        /// Look at this database and propose its tables.
        #[arg(long, value_name = "URL")]
        from: Option<String>,
    },
    /// Check, show or describe the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Look at sources and lake, and say how to mend what is wrong.
    Doctor {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Keep everything in step.
    Run {
        /// Bring everything up to the sources' present position, then stop.
        #[arg(long)]
        until_caught_up: bool,
    },
    /// What the daemon does, table by table.
    Status {
        /// Again every two seconds.
        #[arg(long)]
        watch: bool,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Compare tables with their source, row for row at one position: all, or those named.
    Verify {
        /// `schema.table`, or `database.schema.table` where several databases have it.
        #[arg(value_name = "TABLE")]
        tables: Vec<String>,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Leave a table at its version while the others go on.
    Pause {
        /// `schema.table`, or `database.schema.table` where several databases have it.
        table: String,
        /// Have the slot keep what the table misses, and with it all WAL of its database.
        #[arg(long)]
        hold: bool,
    },
    /// Go on with a paused table.
    Resume {
        /// `schema.table`, or `database.schema.table` where several databases have it.
        table: String,
    },
    /// Make a table equal to its source in one commit, while readers and the other tables go on.
    Resync {
        /// `schema.table`, or `database.schema.table` where several databases have it.
        table: String,
    },
    /// Query the lake: one query, or a prompt.
    Sql {
        /// The query; a prompt without one.
        query: Option<String>,
        /// How rows are printed: table, csv, json or arrow.
        #[arg(long, default_value = "table")]
        format: lake_sql::OutputFormat,
        /// Short for `--format json`.
        #[arg(long, conflicts_with = "format")]
        json: bool,
    },
    /// Remove slots and publications from a source.
    Cleanup {
        /// A database of the configuration.
        database: String,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Make, list, compare and delete branches of built-in databases.
    #[command(subcommand)]
    Branch(BranchCommand),
    /// Rewind a built-in database to a moment; the state before stays as a branch.
    Restore {
        /// DATABASE or DATABASE@BRANCH
        branch: String,
        /// A time (UTC without an offset) or an LSN.
        #[arg(long, value_name = "TIME|LSN")]
        to: String,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// The running Postgres processes of built-in databases.
    #[command(subcommand)]
    Compute(ComputeCommand),
    /// The storage of built-in databases.
    #[command(subcommand)]
    Core(CoreCommand),
    /// Keep the WAL of built-in databases: one process, or three for a quorum.
    Keeper {
        /// Its hard state.
        #[arg(long)]
        dir: PathBuf,
        /// `host:port` or `unix:PATH`.
        #[arg(long, default_value = "127.0.0.1:6400")]
        listen: String,
        /// Where the daemon that started it looks for its lock.
        #[arg(long, hide = true)]
        found_in: Option<PathBuf>,
    },
    /// Take the connections of built-in databases; the daemon starts it.
    #[command(hide = true)]
    Gateway,
    /// A tour on a temporary shop: load, sync, query, travel in time, branch, restore.
    Demo {
        /// Leave it running until Ctrl-C, and on disk after that.
        #[arg(long)]
        keep: bool,
    },
}

#[derive(Debug, Subcommand)]
enum BranchCommand {
    /// Begin a branch from a moment of another one.
    Create(branch::NewBranch),
    /// All branches, of one database or of all.
    List {
        /// A built-in database.
        database: Option<String>,
        /// As JSON, with each branch's address and password.
        #[arg(long)]
        json: bool,
    },
    /// Delete a branch; those that began from it stay.
    Delete {
        /// DATABASE@BRANCH
        branch: String,
    },
    /// Begin a branch anew from where its parent is now.
    Reset {
        /// DATABASE@BRANCH
        branch: String,
    },
    /// Compare the tables of a branch with its parent's: columns and numbers of rows.
    Diff {
        /// DATABASE@BRANCH
        branch: String,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Subcommand)]
enum ComputeCommand {
    /// Those that run.
    List {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Put a database to sleep; the next connection wakes it.
    Suspend {
        /// DATABASE or DATABASE@BRANCH
        branch: String,
    },
    /// Wake a database.
    Wake {
        /// DATABASE or DATABASE@BRANCH
        branch: String,
    },
    /// Run one branch: what the others start.
    #[command(hide = true)]
    Run {
        /// The project.
        project: String,
        /// The branch's id.
        branch: oltp_core::ids::BranchId,
    },
}

#[derive(Debug, Subcommand)]
enum CoreCommand {
    /// List and check manifests, layers and WAL in the storage.
    Inspect {
        /// A built-in database; all of the storage when left out.
        database: Option<String>,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Say whether the configuration is right.
    Check {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print the configuration with every default filled in and every secret hidden.
    Show {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print the JSON schema, for editors.
    Schema,
}

impl CommandLine {
    /// Does what was asked for.
    pub async fn execute(self) -> Result<Outcome, CommandError> {
        // The daemon tells what it does; of a command one wants its result.
        let default = match self.command {
            // The kernel tells of every snapshot that it builds.
            Command::Run { .. }
            | Command::Keeper { .. }
            | Command::Gateway
            | Command::Compute(ComputeCommand::Run { .. }) => "info,buoyant_kernel=warn,delta_kernel=warn",
            // Its daemon waits for the shop at first, which is nothing to be warned of.
            Command::Demo { .. } => "error",
            // The kernel logs as an error what it also returns, and what our own message says better.
            _ => "warn,buoyant_kernel=off,delta_kernel=off",
        };
        telemetry::init_log(self.log.as_deref().unwrap_or(default), self.log_format)?;
        let load = || Config::load(&self.config);
        match self.command {
            Command::Init { from } => init::init(&self.config, from.as_deref()).await,
            Command::Config(ConfigCommand::Check { json }) => {
                configuration::check(&self.config, &load()?, json)
            }
            Command::Config(ConfigCommand::Show { json }) => configuration::show(&load()?, json),
            Command::Config(ConfigCommand::Schema) => configuration::schema(),
            Command::Doctor { json } => doctor::doctor(&load()?, json).await,
            Command::Run { until_caught_up } => run::run(&self.config, load()?, until_caught_up).await,
            Command::Status { watch, json } => status::status(&load()?, watch, json).await,
            Command::Verify { tables, json } => tables::verify(&load()?, &tables, json).await,
            Command::Pause { table, hold } => tables::pause(&load()?, &table, hold).await,
            Command::Resume { table } => tables::resume(&load()?, &table).await,
            Command::Resync { table } => tables::resync(&load()?, &table).await,
            Command::Sql { query, format, json } => {
                let format = if json { lake_sql::OutputFormat::Json } else { format };
                sql::sql(&load()?, query.as_deref(), format).await
            }
            Command::Cleanup { database, json } => clean_up::clean_up(&load()?, &database, json).await,
            Command::Branch(command) => on_branches(&load()?, &self.config, command).await,
            Command::Restore { branch, to, json } => {
                branch::restore(&load()?, &self.config, &branch, &to, json).await
            }
            Command::Compute(command) => on_computes(&load()?, &self.config, command).await,
            Command::Core(CoreCommand::Inspect { database, json }) => {
                compute::inspect(&load()?, &self.config, database.as_deref(), json).await
            }
            Command::Keeper { dir, listen, found_in } => {
                core_processes::keeper(dir, &listen, found_in.as_deref()).await
            }
            Command::Gateway => core_processes::gateway(&load()?, &self.config).await,
            Command::Demo { keep } => demo::demo(keep).await,
        }
    }
}

async fn on_branches(config: &Config, file: &Path, command: BranchCommand) -> Result<Outcome, CommandError> {
    match command {
        BranchCommand::Create(wanted) => branch::create(config, file, &wanted).await,
        BranchCommand::List { database, json } => branch::list(config, file, database.as_deref(), json).await,
        BranchCommand::Delete { branch } => branch::delete(config, file, &branch).await,
        BranchCommand::Reset { branch } => branch::reset(config, file, &branch).await,
        BranchCommand::Diff { branch, json } => branch::diff(config, file, &branch, json).await,
    }
}

async fn on_computes(config: &Config, file: &Path, command: ComputeCommand) -> Result<Outcome, CommandError> {
    match command {
        ComputeCommand::List { json } => compute::list(config, file, json).await,
        ComputeCommand::Suspend { branch } => compute::suspend(config, file, &branch).await,
        ComputeCommand::Wake { branch } => compute::wake(config, file, &branch).await,
        ComputeCommand::Run { project, branch } => {
            core_processes::compute(config, file, &project, branch).await
        }
    }
}
