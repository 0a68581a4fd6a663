//! What a Postgres column holds, reduced to what decoding needs.
//!
//! [`PgType`] is the left-hand side of the contract's type map; [`PgType::arrow_type`] is the right-hand
//! side, and the Delta type follows from the Arrow type alone. Domains are resolved to their base type
//! before they get here; every type without a row of its own in the map is [`PgType::Text`].

use arrow::datatypes::{DataType, Field, TimeUnit};
use std::sync::Arc;

/// Digits that a Delta decimal holds at most.
pub const MAX_DECIMAL_PRECISION: u16 = 38;

/// A column's type, as far as its values decode differently.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PgType {
    /// `boolean`
    Bool,
    /// `int2`
    Int2,
    /// `int4`
    Int4,
    /// `int8`
    Int8,
    /// `oid`, `xid`: unsigned 32 bits, widened to a long
    Oid,
    /// `float4`
    Float4,
    /// `float8`
    Float8,
    /// `numeric(p,s)` that fits a Delta decimal, with the *Delta* precision and scale (both ≤ 38, 0 ≤ scale ≤ precision)
    Decimal {
        /// total digits
        precision: u8,
        /// digits after the point
        scale: i8,
    },
    /// `date`
    Date,
    /// `timestamp`
    Timestamp,
    /// `timestamptz`
    Timestamptz,
    /// `bytea`
    Bytea,
    /// pgvector's `vector`
    Vector,
    /// an array of T, held as a list (never an array of arrays: Postgres has none)
    Array(Box<PgType>),
    /// everything else: Postgres's own text form
    Text,
}

impl PgType {
    /// The Arrow type its values are built in.
    pub fn arrow_type(&self) -> DataType {
        match self {
            PgType::Bool => DataType::Boolean,
            PgType::Int2 => DataType::Int16,
            PgType::Int4 => DataType::Int32,
            PgType::Int8 | PgType::Oid => DataType::Int64,
            PgType::Float4 => DataType::Float32,
            PgType::Float8 => DataType::Float64,
            PgType::Decimal { precision, scale } => DataType::Decimal128(*precision, *scale),
            PgType::Date => DataType::Date32,
            PgType::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
            PgType::Timestamptz => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            PgType::Bytea => DataType::Binary,
            PgType::Vector => list_of(DataType::Float32),
            PgType::Array(element) => list_of(element.arrow_type()),
            PgType::Text => DataType::Utf8,
        }
    }
}

/// Delta's arrays name their item `element`, as Parquet's three-level lists do.
fn list_of(element: DataType) -> DataType {
    DataType::List(Arc::new(Field::new("element", element, true)))
}
