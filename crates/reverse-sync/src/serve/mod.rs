//! Serving Delta tables from Postgres.
//!
//! ```text
//!   Delta versions ──rows or net changes, as Arrow──▶ binary COPY ──▶ staging ──▶ one transaction:
//!                                                                        delete · update · insert
//!                                                                        tidewater.served_tables := version
//! ```
//!
//! The invariants:
//!
//! * **The applied version is stored in the transaction that changes the rows**, so after any crash they agree, and a
//!   version is applied exactly once.
//! * **Readers see whole versions only.** A served table is never empty, half loaded or of two versions: a first load
//!   grows under another name, everything after that is a difference applied to the same table.
//! * **What cannot be served is counted and named**, never dropped without a word: rows whose key is null, rows that
//!   share their key, values that Postgres cannot hold ([`KeptOut`]).
//! * **Names and values never meet as text.** Identifiers are quoted; rows travel as binary COPY. What the
//!   configuration gives as SQL (types, indexes, defaults) is its owner's own.

mod apply;
mod binary_copy;
mod casting;
mod cells;
mod column;
mod compare;
mod copy_in;
mod definition;
mod kept_out;
mod load;
mod preflight;
mod record;
mod target;
mod value;

pub use apply::{Change, ChangeStream, Outcome, RowChanges};
pub use column::{Form, ServedColumn};
pub use compare::{Comparison, Difference};
pub use copy_in::RowStream;
pub use definition::{Layout, ServedDefinition};
pub use kept_out::{KeptOut, KeptOutRow};
pub use load::{Applied, Progress};
pub use preflight::{Shortcoming, preflight};
pub use record::{Record, Version};
pub use target::Target;
