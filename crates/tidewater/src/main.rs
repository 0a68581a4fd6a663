//! The `tidewater` command.

use clap::Parser;
use std::process::ExitCode;
use tidewater::commands::CommandLine;

#[tokio::main]
async fn main() -> ExitCode {
    match CommandLine::parse().execute().await {
        Ok(outcome) => ExitCode::from(outcome.exit_code()),
        Err(error) if error.is_closed_output() => ExitCode::SUCCESS,
        Err(error) => {
            let code = error.exit_code();
            eprintln!("{:?}", miette::Report::new(error));
            ExitCode::from(code)
        }
    }
}
