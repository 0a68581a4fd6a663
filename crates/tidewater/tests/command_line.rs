//! What the commands print and how they exit, snapshot by snapshot.
//!
//! `TRYCMD=overwrite cargo test -p tidewater --test command_line` writes the snapshots anew.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "the whole binary is tests"
)]

#[test]
fn commands_and_mistakes_print_what_the_snapshots_say() {
    trycmd::TestCases::new()
        .env("NO_COLOR", "1")
        .env("COLUMNS", "100")
        .env("TIDEWATER_TEST_PASSWORD", "hunter2")
        .case("tests/mistakes/*.toml")
        .case("tests/commands/*.toml");
}
