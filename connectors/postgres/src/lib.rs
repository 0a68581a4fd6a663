//! Everything that talks to a Postgres server.
//!
//! Two kinds of session leave this crate, and both open their socket through the same door
//! (`transport`), so that TLS, timeouts and keepalives mean one thing:
//!
//! ```text
//!                      SourceConfig
//!                           │
//!                       transport          TCP or unix socket, TLS
//!                 ┌─────────┴──────────┐
//!              Client             WireSession          our own, over postgres-protocol
//!        (tokio-postgres)         ┌────┴─────────────┬──────────────────┐
//!    catalog · publication  SnapshotSession  ReplicationSession  PhysicalSession
//!    heartbeat · cleanup      COPY out               │                  │
//!    event_trigger                             LogicalStream      PhysicalStream     WAL out, positions back
//! ```
//!
//! The invariant that matters: **nothing here makes an application's own statement fail or wait.** Tables
//! whose rows cannot be named by a replica identity never enter a publication that publishes updates,
//! locks are asked for with a short timeout, and whatever holds WAL back has a name and can be dropped.
//!
//! Bytes of `pgoutput` pass through undecoded; `wal-decoder` reads them.

mod catalog;
mod cleanup;
mod client;
mod copy_out;
mod error;
mod event_trigger;
mod heartbeat;
mod log_in_guard;
mod logical_stream;
mod object_name;
mod physical_stream;
mod preflight;
mod publication;
mod replication_session;
mod slot;
mod snapshot;
mod source_config;
mod standby_status;
mod tls;
mod transport;
mod wire;
mod wire_session;

pub use catalog::{
    Generated, ReplicaIdentity, SkipReason, SkippedTable, SourceColumn, SourceTable, Storage, TableKind,
    TableListing, Unusable, list_followed_tables, list_tables, read_tables_in_snapshot, read_types,
};
pub use cleanup::{RemovedObject, cleanup};
pub use client::{Client, connect, server_version};
pub use copy_out::CopyChunk;
pub use error::{Error, Result, ServerError};
pub use event_trigger::{AnnouncedColumn, AnnouncedColumns, ensure_event_trigger};
pub use heartbeat::{HEARTBEAT_PREFIX, heartbeat};
pub use logical_stream::{Confirmer, Event, LogicalStream};
pub use object_name::{quote_identifier, quote_literal, quote_qualified};
pub use physical_stream::{PhysicalEvent, PhysicalSession, PhysicalStream};
pub use preflight::{Finding, RequestedTables, Severity, preflight};
pub use publication::{PublicationNames, PublishedTable, ensure_publications, publication_names};
pub use replication_session::{CreatedSlot, ReplicationSession, SlotOptions, StreamOptions, SystemIdentity};
pub use slot::{
    BlockingTransaction, SlotStatus, WalStatus, current_wal_lsn, drop_slot, list_slots, slot_name,
    system_identifier, transactions_blocking,
};
pub use snapshot::{
    CopyColumn, CtidRange, LeafTable, SnapshotCopy, SnapshotSession, ctid_ranges, import_snapshot,
};
pub use source_config::{Host, SourceConfig};
pub use tls::{TlsMode, client_config as tls_client_config};
pub use wire_session::CancelHandle;
