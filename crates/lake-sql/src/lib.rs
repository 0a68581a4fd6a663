//! SQL over the lake: DataFusion on Delta tables, in Postgres's dialect, with time travel.
//!
//! ```text
//! FROM t                          the newest version at the query's start
//! FROM t VERSION AS OF 12         FROM t AT (VERSION => 12)
//! FROM t TIMESTAMP AS OF now()    FROM t AT (TIMESTAMP => '2026-11-20 10:00')
//!                                 FROM t AT (LSN => '0/16B3748')
//! FROM history('t')               every change, of a table synced with a history
//! FROM changes('t', 3, 5)         what versions 3 to 5 did to the rows of any table
//! ```
//!
//! The invariant of the crate: rows come from the version that was asked for, or there is an error. A
//! version clause that lost its meaning on the way would answer with the current rows, and nobody would
//! notice; so [`time_travel`](self) accounts for every table reference before DataFusion sees the query.
//!
//! It only reads. Names are the source's: `database.schema.table`, folded as Postgres folds.

mod changes;
mod commit_log;
mod consistent_points;
mod dialect;
mod error;
mod folders;
mod result_format;
mod session;
mod show_tables;
mod snapshot_cache;
mod source_names;
mod store;
mod table_name;
mod time_travel;
mod timestamp;

pub use error::LakeSqlError;
pub use result_format::{OutputFormat, ParseOutputFormatError, format};
pub use session::{LakeSession, LakeTable, QueryResult};
pub use table_name::TableName;
