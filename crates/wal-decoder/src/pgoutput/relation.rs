//! A table's shape as the stream announces it.

use super::ProtocolError;
use super::reader::Reader;

/// What old rows the table's WAL holds (`pg_class.relreplident`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReplicaIdentity {
    /// The primary key, if there is one.
    Default,
    /// The columns of one unique index.
    Index,
    /// The whole row.
    Full,
    /// Nothing: updates and deletes cannot be published.
    Nothing,
}

/// A Relation message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    /// `pg_class.oid`
    pub id: u32,
    /// the schema's name (`pg_catalog` comes as an empty string)
    pub schema: String,
    /// the table's name
    pub name: String,
    /// what old rows hold
    pub replica_identity: ReplicaIdentity,
    /// the published columns, in the order tuples have them
    pub columns: Vec<RelationColumn>,
}

/// A published column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelationColumn {
    /// part of the replica identity (with [`ReplicaIdentity::Full`] every column is)
    pub is_key: bool,
    /// its name
    pub name: String,
    /// `pg_attribute.atttypid`
    pub type_oid: u32,
    /// `pg_attribute.atttypmod`
    pub typmod: i32,
}

/// Bytes that a column takes at least: flags, an empty name, type and modifier.
const SMALLEST_COLUMN: usize = 10;

impl Relation {
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, ProtocolError> {
        let id = reader.u32("relation id")?;
        let schema = reader.string("relation's schema")?.to_owned();
        let name = reader.string("relation's name")?.to_owned();
        let replica_identity = match reader.u8("replica identity")? {
            b'd' => ReplicaIdentity::Default,
            b'i' => ReplicaIdentity::Index,
            b'f' => ReplicaIdentity::Full,
            b'n' => ReplicaIdentity::Nothing,
            value => return Err(ProtocolError::BadTag { what: "replica identity", value }),
        };
        let count = usize::from(reader.u16("number of columns")?);
        let mut columns = Vec::with_capacity(count.min(reader.rest().len() / SMALLEST_COLUMN));
        for _ in 0..count {
            columns.push(RelationColumn {
                is_key: reader.u8("column flags")? & 1 != 0,
                name: reader.string("column's name")?.to_owned(),
                type_oid: reader.u32("column's type")?,
                typmod: reader.i32("column's type modifier")?,
            });
        }
        Ok(Relation { id, schema, name, replica_identity, columns })
    }
}
