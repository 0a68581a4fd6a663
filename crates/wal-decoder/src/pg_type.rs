//! What a Postgres column holds, reduced to what decoding needs.
//!
//! [`PgType`] is the left-hand side of the contract's type map; [`PgType::arrow_type`] is the right-hand
//! side, and the Delta type follows from the Arrow type alone. Domains are resolved to their base type
//! before they get here; every type without a row of its own in the map is [`PgType::Text`].

use crate::ValueError;
use crate::column::Column;
use arrow::array::ArrayRef;
use arrow::datatypes::{DataType, Field, FieldRef, TimeUnit};
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
    /// an array of T, held as a list. Its element is an array itself only for domains over arrays:
    /// the dimensions of one Postgres array are not in its type.
    Array(Box<PgType>),
    /// an array whose type separates elements by something other than a comma (`box`: `;`), held as a list of text
    DelimitedArray {
        /// `pg_type.typdelim`
        delimiter: u8,
    },
    /// an array (one of the two before) of a table with `arrays: json`: JSON text
    JsonArray(Box<PgType>),
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
            PgType::Vector => DataType::List(PgType::Float4.element_field()),
            PgType::Array(element) => DataType::List(element.element_field()),
            PgType::DelimitedArray { .. } => DataType::List(PgType::Text.element_field()),
            PgType::JsonArray(_) | PgType::Text => DataType::Utf8,
        }
    }

    /// One value, given as text, as an array of one. What Delta cannot hold is an error.
    pub fn single_value(&self, text: &str) -> Result<ArrayRef, ValueError> {
        let mut column = Column::new(self);
        column.append_text(text.as_bytes())?;
        Ok(column.take())
    }

    /// The item of a list of this type. Delta's arrays call it `element`, as Parquet's three-level lists do.
    pub(crate) fn element_field(&self) -> FieldRef {
        Arc::new(Field::new("element", self.arrow_type(), true))
    }

    /// Whether the first load copies values of this type in binary. The others are sent as text: their
    /// binary form is either an internal one (`uuid`, `jsonb`, `inet`, composites) or, for arrays, one
    /// in which a value that Delta cannot hold would lose the text that its dead letter shows.
    pub fn copy_as_binary(&self) -> bool {
        match self {
            PgType::Bool
            | PgType::Int2
            | PgType::Int4
            | PgType::Int8
            | PgType::Oid
            | PgType::Float4
            | PgType::Float8
            | PgType::Decimal { .. }
            | PgType::Date
            | PgType::Timestamp
            | PgType::Timestamptz
            | PgType::Bytea
            | PgType::Vector => true,
            PgType::Array(_) | PgType::DelimitedArray { .. } | PgType::JsonArray(_) | PgType::Text => false,
        }
    }

    /// What a COPY's SELECT has to say for a column of this type, given its quoted name.
    ///
    /// Text must be what the type's *output function* writes, because the stream sends that. A cast is
    /// something else for some types: `::text` strips the blanks of `char(n)`, adds `/32` to an `inet`,
    /// and any type may have a cast of its own. `concat` calls the output function; its empty string for
    /// null is undone by `num_nulls`, since `IS NULL` is also true for a composite of nulls.
    pub fn copy_expression(&self, quoted_column: &str) -> String {
        if self.copy_as_binary() {
            return quoted_column.to_owned();
        }
        format!(
            "CASE WHEN pg_catalog.num_nulls({quoted_column}) = 0 THEN pg_catalog.concat({quoted_column}) END"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_value_is_an_array_of_one() {
        let value = PgType::Decimal { precision: 10, scale: 2 }.single_value("1.5").unwrap();
        assert_eq!(value.len(), 1);
        assert_eq!(arrow::util::display::array_value_to_string(&value, 0).unwrap(), "1.50");
        assert!(PgType::Date.single_value("infinity").is_err());
    }

    #[test]
    fn arrays_are_lists_of_nullable_elements() {
        let list = PgType::Array(Box::new(PgType::Decimal { precision: 10, scale: 2 })).arrow_type();
        let DataType::List(field) = list else { panic!("{list:?}") };
        assert_eq!((field.name().as_str(), field.is_nullable()), ("element", true));
        assert_eq!(field.data_type(), &DataType::Decimal128(10, 2));
        assert_eq!(
            PgType::JsonArray(Box::new(PgType::Array(Box::new(PgType::Int4)))).arrow_type(),
            DataType::Utf8
        );
    }

    #[test]
    fn text_is_copied_through_the_output_function() {
        assert_eq!(PgType::Int4.copy_expression("\"a\""), "\"a\"");
        assert_eq!(
            PgType::Text.copy_expression("\"a\""),
            "CASE WHEN pg_catalog.num_nulls(\"a\") = 0 THEN pg_catalog.concat(\"a\") END"
        );
    }
}
