//! Arrow row changes to Delta Lake versions: key index, deletion vectors, commits.
//!
//! The crate knows Delta and object stores and no Postgres. A [`Lake`] holds tables; a [`TableLoad`] makes or
//! replaces one from many parallel writers; a [`MirrorTable`] keeps it equal to its source:
//!
//! ```text
//!   RowChanges ──apply──> flush ──write──> WrittenFlush ──commit──> Committed (may be acknowledged)
//!                  reshape  │
//!                       key index: key -> (data file, row)
//! ```
//!
//! An [`AppendTable`] beside them takes rows that never change.
//!
//! A flush that is only written cannot be taken for one that is committed:
//!
//! ```compile_fail
//! # fn acknowledge(_: delta_writer::Committed) {}
//! # fn example(flush: delta_writer::WrittenFlush) {
//! acknowledge(flush);
//! # }
//! ```

mod action;
mod append_table;
mod change_row;
mod checkpoint;
mod commit;
mod compaction;
mod copy_on_write;
mod crash_point;
mod data_file;
pub mod deletion_vector;
mod delta_schema;
mod error;
mod expiry;
mod file_stats;
mod flush;
mod history_difference;
mod history_table;
mod index_recovery;
pub mod key_index;
mod lake;
mod log;
mod mirror_table;
mod multiset;
mod newest_image;
mod parquet_source;
mod partition_value;
mod pending_budget;
mod pending_rows;
mod read_back;
mod rebase;
mod reshape;
mod row_reader;
mod segment;
mod table_definition;
mod table_load;
mod table_state;
mod unchanged;
mod vector_cache;
mod writer_options;

pub use append_table::AppendTable;
pub use change_row::{HISTORY_COLUMNS, history_schema, loaded_rows};
pub use checkpoint::Checkpoint;
pub use commit::{CommitFailure, CommitSpec, Committed, WrittenFlush};
pub use compaction::{Compacted, CompactedFiles, Compaction};
pub use error::{DeltaError, Result};
pub use expiry::{Expiry, OldestVersion};
pub use history_difference::{DifferenceWorker, HistoryDifference};
pub use lake::{Lake, TableLocation, open_lake, probe_put_if_absent};
pub use mirror_table::MirrorTable;
pub use pending_budget::PendingBudget;
pub use reshape::{ColumnOrigin, Reshape};
pub use table_definition::{TableDefinition, TableKind};
pub use table_load::{FinishedWorker, LoadWorker, TableLoad};
pub use table_state::TableStats;
pub use writer_options::WriterOptions;
