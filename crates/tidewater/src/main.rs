//! The open lakebase.
fn main() {}
