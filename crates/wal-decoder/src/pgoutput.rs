//! The messages of `pgoutput`, Postgres's built-in logical decoding plugin (protocols 1 to 4).
//!
//! [`parse`] turns one message (the payload of one `XLogData`) into a [`Message`] that borrows from it.
//! The invariant: a tuple is checked to its last byte here, once, so that walking it later needs no
//! error path. Formats follow `src/backend/replication/logical/proto.c` and the chapter "Logical
//! Replication Message Formats" of the manual.
//!
//! ```text
//!   B … R I U D T M … C                        a transaction, complete
//!   S  R I U D T M (each with an xid)  E       a segment of one that is still running
//!   S … E   A(sub)   S … E   c                 ... of which a savepoint was rolled back, then committed
//! ```
//!
//! Whether a change carries a transaction id depends on its place between `StreamStart` and
//! `StreamStop`, not on its bytes: the caller keeps that state and passes it as `in_stream`.

mod reader;
mod relation;
mod tuple;

pub use relation::{Relation, RelationColumn, ReplicaIdentity};
pub use tuple::{OldRow, TupleColumns, TupleData, Value};

use crate::{Lsn, PgTimestamp};
use reader::Reader;

/// The bytes are not a `pgoutput` message of a protocol we asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// The message ends before `what` is complete.
    #[error("the replication message ends inside its {what}: the connection delivered a damaged message")]
    Truncated {
        /// the field that was being read
        what: &'static str,
    },
    /// Bytes are left over.
    #[error("{count} bytes follow a complete {message} message: the server speaks another protocol version")]
    TrailingBytes {
        /// the kind of message
        message: &'static str,
        /// how many
        count: usize,
    },
    /// The first byte names no message of protocols 1 to 4.
    #[error("byte {0:#04x} starts no pgoutput message of protocols 1 to 4: is the slot's plugin pgoutput?")]
    UnknownMessage(u8),
    /// A byte that selects a variant has a value outside the protocol.
    #[error("byte {value:#04x} is no valid {what}: the server speaks another protocol version")]
    BadTag {
        /// what the byte selects
        what: &'static str,
        /// the byte
        value: u8,
    },
    /// A count or length is negative or larger than the protocol allows.
    #[error("{value} is no valid {what}: the connection delivered a damaged message")]
    BadLength {
        /// what is counted
        what: &'static str,
        /// the number
        value: i64,
    },
    /// A name or prefix is not UTF-8.
    #[error("{what} is not UTF-8: set client_encoding to UTF8 in the replication session")]
    NotUtf8 {
        /// the field
        what: &'static str,
        /// where it stops being UTF-8
        #[source]
        source: std::str::Utf8Error,
    },
}

/// One message.
#[derive(Debug, Clone, PartialEq)]
pub enum Message<'a> {
    /// A complete transaction begins.
    Begin {
        /// LSN of its commit record
        final_lsn: Lsn,
        /// when it committed
        commit_time: PgTimestamp,
        /// its id
        xid: u32,
    },
    /// ... and ends.
    Commit {
        /// LSN of its commit record
        commit_lsn: Lsn,
        /// end of its commit record: the position everything in Tidewater counts by
        end_lsn: Lsn,
        /// when it committed
        commit_time: PgTimestamp,
    },
    /// The transaction was replayed from another server.
    Origin {
        /// commit LSN there
        commit_lsn: Lsn,
        /// the origin's name here
        name: &'a str,
    },
    /// A table's shape, sent before its first change and after each change of shape.
    Relation {
        /// the (sub)transaction, inside a stream
        xid: Option<u32>,
        /// the shape
        relation: Relation,
    },
    /// The name of a type that is not built in, sent before the relation that uses it.
    Type {
        /// the (sub)transaction, inside a stream
        xid: Option<u32>,
        /// `pg_type.oid`
        oid: u32,
        /// its schema (`pg_catalog` comes as an empty string)
        schema: &'a str,
        /// its name
        name: &'a str,
    },
    /// A new row.
    Insert {
        /// the (sub)transaction, inside a stream
        xid: Option<u32>,
        /// which table
        relation_id: u32,
        /// the row
        new: TupleData<'a>,
    },
    /// A changed row.
    Update {
        /// the (sub)transaction, inside a stream
        xid: Option<u32>,
        /// which table
        relation_id: u32,
        /// what is known of the row before
        old: OldRow<'a>,
        /// the row after
        new: TupleData<'a>,
    },
    /// A row that went.
    Delete {
        /// the (sub)transaction, inside a stream
        xid: Option<u32>,
        /// which table
        relation_id: u32,
        /// what is known of it
        old: OldRow<'a>,
    },
    /// Tables that were emptied by one command.
    Truncate {
        /// the (sub)transaction, inside a stream
        xid: Option<u32>,
        /// which tables
        relation_ids: Vec<u32>,
        /// `TRUNCATE … CASCADE`
        cascade: bool,
        /// `TRUNCATE … RESTART IDENTITY`
        restart_identity: bool,
    },
    /// `pg_logical_emit_message`.
    Logical {
        /// the (sub)transaction, inside a stream
        xid: Option<u32>,
        /// whether it belongs to the transaction, or was sent at once
        transactional: bool,
        /// where it stands in the WAL
        lsn: Lsn,
        /// whose message it is
        prefix: &'a str,
        /// its content
        content: &'a [u8],
    },
    /// Changes of a running transaction follow, up to `StreamStop`.
    StreamStart {
        /// the top transaction
        xid: u32,
        /// whether nothing of it came before
        first_segment: bool,
    },
    /// The segment ends.
    StreamStop,
    /// A streamed transaction committed.
    StreamCommit {
        /// the top transaction
        xid: u32,
        /// LSN of its commit record
        commit_lsn: Lsn,
        /// end of its commit record
        end_lsn: Lsn,
        /// when it committed
        commit_time: PgTimestamp,
    },
    /// A streamed transaction, or (`subxid` differs from `xid`) one of its subtransactions, was rolled back.
    StreamAbort {
        /// the top transaction
        xid: u32,
        /// what was rolled back
        subxid: u32,
        /// LSN of the abort, with `streaming 'parallel'`
        abort_lsn: Option<Lsn>,
        /// when it was aborted, with `streaming 'parallel'`
        abort_time: Option<PgTimestamp>,
    },
    /// A transaction that will end in PREPARE TRANSACTION begins.
    BeginPrepare(Prepared<'a>),
    /// ... and is prepared.
    Prepare(Prepared<'a>),
    /// A prepared transaction committed. Here the LSNs are those of the COMMIT PREPARED.
    CommitPrepared(Prepared<'a>),
    /// A prepared transaction was rolled back.
    RollbackPrepared {
        /// end of the prepare record
        prepare_end_lsn: Lsn,
        /// end of the ROLLBACK PREPARED record
        rollback_end_lsn: Lsn,
        /// when it was prepared
        prepare_time: PgTimestamp,
        /// when it was rolled back
        rollback_time: PgTimestamp,
        /// its id
        xid: u32,
        /// the name the application gave it
        gid: &'a str,
    },
    /// A streamed transaction was prepared.
    StreamPrepare(Prepared<'a>),
}

/// What the two-phase messages have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prepared<'a> {
    /// LSN of the record
    pub lsn: Lsn,
    /// its end
    pub end_lsn: Lsn,
    /// when it was written
    pub time: PgTimestamp,
    /// the transaction
    pub xid: u32,
    /// the name the application gave it
    pub gid: &'a str,
}

const CASCADE: u8 = 1;
const RESTART_IDENTITY: u8 = 2;
const TRANSACTIONAL: u8 = 1;

/// Reads one message. `in_stream`: it stands between a `StreamStart` and its `StreamStop`.
pub fn parse<'a>(bytes: &'a [u8], in_stream: bool) -> Result<Message<'a>, ProtocolError> {
    let mut reader = Reader::new(bytes);
    let tag = reader.u8("message type")?;
    let (name, message) = match tag {
        b'I' => ("Insert", insert(&mut reader, in_stream)?),
        b'U' => ("Update", update(&mut reader, in_stream)?),
        b'D' => ("Delete", delete(&mut reader, in_stream)?),
        b'B' => {
            let (final_lsn, commit_time) = (reader.lsn("final LSN")?, reader.timestamp("commit time")?);
            ("Begin", Message::Begin { final_lsn, commit_time, xid: reader.u32("transaction id")? })
        }
        b'C' => {
            let (commit_lsn, end_lsn, commit_time) = commit(&mut reader)?;
            ("Commit", Message::Commit { commit_lsn, end_lsn, commit_time })
        }
        b'O' => {
            let commit_lsn = reader.lsn("origin LSN")?;
            ("Origin", Message::Origin { commit_lsn, name: reader.string("origin name")? })
        }
        b'R' => {
            let xid = stream_xid(&mut reader, in_stream)?;
            ("Relation", Message::Relation { xid, relation: Relation::read(&mut reader)? })
        }
        b'Y' => ("Type", type_name(&mut reader, in_stream)?),
        b'T' => ("Truncate", truncate(&mut reader, in_stream)?),
        b'M' => ("Message", logical(&mut reader, in_stream)?),
        b'S' => {
            let xid = reader.u32("transaction id")?;
            ("Stream Start", Message::StreamStart { xid, first_segment: reader.u8("segment flag")? != 0 })
        }
        b'E' => ("Stream Stop", Message::StreamStop),
        b'c' => {
            let xid = reader.u32("transaction id")?;
            let (commit_lsn, end_lsn, commit_time) = commit(&mut reader)?;
            ("Stream Commit", Message::StreamCommit { xid, commit_lsn, end_lsn, commit_time })
        }
        b'A' => ("Stream Abort", stream_abort(&mut reader)?),
        b'b' => ("Begin Prepare", Message::BeginPrepare(prepared(&mut reader)?)),
        b'P' => ("Prepare", Message::Prepare(flagged_prepared(&mut reader)?)),
        b'K' => ("Commit Prepared", Message::CommitPrepared(flagged_prepared(&mut reader)?)),
        b'r' => ("Rollback Prepared", rollback_prepared(&mut reader)?),
        b'p' => ("Stream Prepare", Message::StreamPrepare(flagged_prepared(&mut reader)?)),
        other => return Err(ProtocolError::UnknownMessage(other)),
    };
    reader.end(name)?;
    Ok(message)
}

fn stream_xid(reader: &mut Reader<'_>, in_stream: bool) -> Result<Option<u32>, ProtocolError> {
    if in_stream { reader.u32("transaction id").map(Some) } else { Ok(None) }
}

fn insert<'a>(reader: &mut Reader<'a>, in_stream: bool) -> Result<Message<'a>, ProtocolError> {
    let xid = stream_xid(reader, in_stream)?;
    let relation_id = reader.u32("relation id")?;
    match reader.u8("tuple kind")? {
        b'N' => Ok(Message::Insert { xid, relation_id, new: TupleData::read(reader)? }),
        value => Err(ProtocolError::BadTag { what: "tuple kind of an insert", value }),
    }
}

fn update<'a>(reader: &mut Reader<'a>, in_stream: bool) -> Result<Message<'a>, ProtocolError> {
    let xid = stream_xid(reader, in_stream)?;
    let relation_id = reader.u32("relation id")?;
    let mut kind = reader.u8("tuple kind")?;
    let old = match kind {
        b'K' => OldRow::Key(TupleData::read(reader)?),
        b'O' => OldRow::Full(TupleData::read(reader)?),
        _ => OldRow::Absent,
    };
    if old != OldRow::Absent {
        kind = reader.u8("tuple kind")?;
    }
    match kind {
        b'N' => Ok(Message::Update { xid, relation_id, old, new: TupleData::read(reader)? }),
        value => Err(ProtocolError::BadTag { what: "tuple kind of an update", value }),
    }
}

fn delete<'a>(reader: &mut Reader<'a>, in_stream: bool) -> Result<Message<'a>, ProtocolError> {
    let xid = stream_xid(reader, in_stream)?;
    let relation_id = reader.u32("relation id")?;
    let old = match reader.u8("tuple kind")? {
        b'K' => OldRow::Key(TupleData::read(reader)?),
        b'O' => OldRow::Full(TupleData::read(reader)?),
        value => return Err(ProtocolError::BadTag { what: "tuple kind of a delete", value }),
    };
    Ok(Message::Delete { xid, relation_id, old })
}

fn truncate<'a>(reader: &mut Reader<'a>, in_stream: bool) -> Result<Message<'a>, ProtocolError> {
    let xid = stream_xid(reader, in_stream)?;
    let count = reader.count_u32("number of truncated relations", size_of::<u32>())?;
    let options = reader.u8("truncate options")?;
    let mut relation_ids = Vec::with_capacity(count);
    for _ in 0..count {
        relation_ids.push(reader.u32("relation id")?);
    }
    Ok(Message::Truncate {
        xid,
        relation_ids,
        cascade: options & CASCADE != 0,
        restart_identity: options & RESTART_IDENTITY != 0,
    })
}

fn type_name<'a>(reader: &mut Reader<'a>, in_stream: bool) -> Result<Message<'a>, ProtocolError> {
    let xid = stream_xid(reader, in_stream)?;
    let oid = reader.u32("type id")?;
    let schema = reader.string("type's schema")?;
    Ok(Message::Type { xid, oid, schema, name: reader.string("type's name")? })
}

fn logical<'a>(reader: &mut Reader<'a>, in_stream: bool) -> Result<Message<'a>, ProtocolError> {
    let xid = stream_xid(reader, in_stream)?;
    let transactional = reader.u8("message flags")? & TRANSACTIONAL != 0;
    let lsn = reader.lsn("message LSN")?;
    let prefix = reader.string("message prefix")?;
    let length = reader.count_u32("message length", 1)?;
    let content = reader.bytes(length, "message content")?;
    Ok(Message::Logical { xid, transactional, lsn, prefix, content })
}

/// The flags byte of a commit is unused in every protocol so far.
fn commit(reader: &mut Reader<'_>) -> Result<(Lsn, Lsn, PgTimestamp), ProtocolError> {
    reader.u8("commit flags")?;
    Ok((reader.lsn("commit LSN")?, reader.lsn("end LSN")?, reader.timestamp("commit time")?))
}

/// Only `streaming 'parallel'` (protocol 4) sends the abort's own position; the length tells.
fn stream_abort<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, ProtocolError> {
    let xid = reader.u32("transaction id")?;
    let subxid = reader.u32("subtransaction id")?;
    let (abort_lsn, abort_time) = if reader.is_empty() {
        (None, None)
    } else {
        (Some(reader.lsn("abort LSN")?), Some(reader.timestamp("abort time")?))
    };
    Ok(Message::StreamAbort { xid, subxid, abort_lsn, abort_time })
}

fn flagged_prepared<'a>(reader: &mut Reader<'a>) -> Result<Prepared<'a>, ProtocolError> {
    reader.u8("prepare flags")?;
    prepared(reader)
}

fn prepared<'a>(reader: &mut Reader<'a>) -> Result<Prepared<'a>, ProtocolError> {
    Ok(Prepared {
        lsn: reader.lsn("prepare LSN")?,
        end_lsn: reader.lsn("end LSN")?,
        time: reader.timestamp("prepare time")?,
        xid: reader.u32("transaction id")?,
        gid: reader.string("prepared transaction's name")?,
    })
}

fn rollback_prepared<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, ProtocolError> {
    reader.u8("rollback flags")?;
    Ok(Message::RollbackPrepared {
        prepare_end_lsn: reader.lsn("prepare's end LSN")?,
        rollback_end_lsn: reader.lsn("rollback's end LSN")?,
        prepare_time: reader.timestamp("prepare time")?,
        rollback_time: reader.timestamp("rollback time")?,
        xid: reader.u32("transaction id")?,
        gid: reader.string("prepared transaction's name")?,
    })
}

#[cfg(test)]
mod tests;
