//! The `tidewater` command.

use clap::Parser;
use std::process::ExitCode;
use tidewater::commands::CommandLine;

#[tokio::main]
async fn main() -> ExitCode {
    // Tests arm crash points through the environment; no release is built with them.
    let _armed = fail::has_failpoints().then(fail::FailScenario::setup);
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
