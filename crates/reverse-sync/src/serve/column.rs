//! What each column of a Delta table becomes in Postgres.
//!
//! ```text
//!   Arrow type ──┬─ by the type map ────────────▶ form written by COPY = type of the served column
//!   override ────┴─ form we know (varchar(n), uuid, vector(n)) ▶ the same
//!                └─ any other type ─▶ form by the type map, staged, then CAST by the server
//! ```
//!
//! The invariant: a column's form is decided once, from types alone; rows never change it. A column whose rows the
//! server has to cast can only travel by way of a staging table.

use crate::error::{Result, ReverseSyncError};
use arrow::datatypes::{DataType, Field, TimeUnit};

/// Deeper types are not written by anyone and would let a table's schema exhaust the stack.
const DEEPEST_NESTING: usize = 64;

/// The most digits that an Arrow 128-bit decimal holds.
const DECIMAL_DIGITS: i8 = 38;

/// How values are written in a binary COPY.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Form {
    /// boolean
    Bool,
    /// smallint
    Int2,
    /// integer
    Int4,
    /// bigint
    Int8,
    /// real
    Float4,
    /// double precision
    Float8,
    /// numeric, from a decimal of this scale
    Numeric {
        /// digits after the point
        scale: u8,
    },
    /// text, or varchar of at most so many characters
    Text {
        /// the most characters
        limit: Option<u32>,
    },
    /// uuid, from its text
    Uuid,
    /// bytea
    Bytea,
    /// date
    Date,
    /// timestamp without or with time zone: microseconds either way
    Timestamp,
    /// jsonb, from anything nested
    Jsonb,
    /// a one-dimensional array
    Array(Box<Form>),
    /// pgvector's vector of exactly so many dimensions, or of any number
    Vector {
        /// the number of dimensions
        dimensions: Option<u16>,
    },
}

impl Form {
    /// The oid of its type, for array elements; `zoned` tells the two timestamps apart. Only forms that stand in
    /// arrays have one.
    pub(super) fn element_oid(&self, zoned: bool) -> Option<u32> {
        Some(match self {
            Form::Timestamp if zoned => 1184,
            Form::Timestamp => 1114,
            Form::Bool => 16,
            Form::Bytea => 17,
            Form::Int8 => 20,
            Form::Int2 => 21,
            Form::Int4 => 23,
            Form::Text { limit: None } => 25,
            Form::Float4 => 700,
            Form::Float8 => 701,
            Form::Date => 1082,
            Form::Numeric { .. } => 1700,
            _ => return None,
        })
    }
}

/// A column of a served table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServedColumn {
    /// Its name, in the Delta table and in Postgres.
    pub name: String,
    /// Its type in Postgres, as declared.
    pub declared: String,
    /// That type without length or precision; differs from `staged` where the server casts.
    pub base: String,
    /// The type under which it travels.
    pub staged: String,
    /// How its values are written.
    pub form: Form,
    /// Whether arrays of timestamps carry a zone: the form alone does not say.
    pub zoned: bool,
}

impl ServedColumn {
    /// Plans a column by the type map, or by what the configuration says of it.
    pub fn plan(field: &Field, declared: Option<&str>) -> Result<ServedColumn> {
        let natural =
            Natural::of(field.data_type(), 0).ok_or_else(|| unsupported(field.name(), field.data_type()))?;
        let column = match declared {
            None => ServedColumn {
                name: field.name().clone(),
                base: natural.base.clone(),
                staged: natural.base,
                declared: natural.declared,
                form: natural.form,
                zoned: natural.zoned,
            },
            Some(declared) => overridden(field, natural, declared.trim()),
        };
        Ok(column)
    }

    /// Whether the server has to cast its staged values.
    pub fn is_cast(&self) -> bool {
        self.base != self.staged
    }
}

fn unsupported(column: &str, data_type: &DataType) -> ReverseSyncError {
    // Printing a type follows it down, as everything else would.
    let data_type = match is_too_deep(data_type, 0) {
        true => format!("nested more than {DEEPEST_NESTING} levels deep"),
        false => data_type.to_string(),
    };
    ReverseSyncError::UnsupportedColumn { column: column.to_owned(), data_type }
}

fn is_too_deep(data_type: &DataType, depth: usize) -> bool {
    let below = |field: &Field| is_too_deep(field.data_type(), depth + 1);
    depth > DEEPEST_NESTING
        || match data_type {
            DataType::List(field)
            | DataType::LargeList(field)
            | DataType::ListView(field)
            | DataType::LargeListView(field)
            | DataType::FixedSizeList(field, _)
            | DataType::Map(field, _) => below(field),
            DataType::Struct(fields) => fields.iter().any(|field| below(field)),
            _ => false,
        }
}

/// A type of the type map.
struct Natural {
    declared: String,
    base: String,
    form: Form,
    zoned: bool,
}

impl Natural {
    fn plain(name: &str, form: Form) -> Option<Natural> {
        Some(Natural { declared: name.to_owned(), base: name.to_owned(), form, zoned: false })
    }

    fn of(data_type: &DataType, depth: usize) -> Option<Natural> {
        match data_type {
            DataType::Boolean => Natural::plain("boolean", Form::Bool),
            DataType::Int8 | DataType::Int16 => Natural::plain("smallint", Form::Int2),
            DataType::Int32 => Natural::plain("integer", Form::Int4),
            DataType::Int64 => Natural::plain("bigint", Form::Int8),
            DataType::Float32 => Natural::plain("real", Form::Float4),
            DataType::Float64 => Natural::plain("double precision", Form::Float8),
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => {
                Natural::plain("text", Form::Text { limit: None })
            }
            DataType::Binary
            | DataType::LargeBinary
            | DataType::BinaryView
            | DataType::FixedSizeBinary(_) => Natural::plain("bytea", Form::Bytea),
            DataType::Date32 => Natural::plain("date", Form::Date),
            DataType::Timestamp(TimeUnit::Microsecond | TimeUnit::Nanosecond, None) => {
                Natural::plain("timestamp without time zone", Form::Timestamp)
            }
            DataType::Timestamp(TimeUnit::Microsecond | TimeUnit::Nanosecond, Some(_)) => {
                let plain = Natural::plain("timestamp with time zone", Form::Timestamp)?;
                Some(Natural { zoned: true, ..plain })
            }
            DataType::Decimal128(precision, scale) if (0..=DECIMAL_DIGITS).contains(scale) => Some(Natural {
                declared: format!("numeric({precision},{scale})"),
                base: "numeric".to_owned(),
                form: Form::Numeric { scale: scale.unsigned_abs() },
                zoned: false,
            }),
            // Readers hand partition columns out so; nothing nested comes that way.
            DataType::Dictionary(_, values) if depth == 0 => Natural::of(values, depth),
            DataType::List(element) | DataType::LargeList(element) | DataType::ListView(element) => {
                Natural::of_list(element, depth)
            }
            DataType::Struct(fields) => {
                let all = fields.iter().all(|field| is_json(field.data_type(), depth + 1));
                if all { Natural::plain("jsonb", Form::Jsonb) } else { None }
            }
            DataType::Map(entries, _) if is_json(entries.data_type(), depth + 1) => {
                Natural::plain("jsonb", Form::Jsonb)
            }
            _ => None,
        }
    }

    /// A list of plain values is an array; a list of anything nested is jsonb.
    fn of_list(element: &Field, depth: usize) -> Option<Natural> {
        if depth >= DEEPEST_NESTING {
            return None;
        }
        let element = Natural::of(element.data_type(), depth + 1)?;
        match element.form {
            Form::Jsonb | Form::Array(_) => Natural::plain("jsonb", Form::Jsonb),
            form => Some(Natural {
                declared: format!("{}[]", element.declared),
                base: format!("{}[]", element.base),
                form: Form::Array(Box::new(form)),
                zoned: element.zoned,
            }),
        }
    }
}

fn is_json(data_type: &DataType, depth: usize) -> bool {
    depth < DEEPEST_NESTING && Natural::of(data_type, depth).is_some()
}

/// A column whose type the configuration gives: written in that type where we know its binary form, cast otherwise.
fn overridden(field: &Field, natural: Natural, declared: &str) -> ServedColumn {
    let (word, length) = split_length(declared);
    let direct = match (word.as_str(), &natural.form) {
        ("varchar" | "character varying", Form::Text { .. }) => {
            Some(("character varying", Form::Text { limit: length }))
        }
        ("uuid", Form::Text { .. }) => Some(("uuid", Form::Uuid)),
        ("vector", Form::Array(element)) if matches!(**element, Form::Float4 | Form::Float8) => {
            let dimensions = length.and_then(|length| u16::try_from(length).ok());
            Some(("vector", Form::Vector { dimensions }))
        }
        _ => None,
    };
    match direct {
        Some((base, form)) => ServedColumn {
            name: field.name().clone(),
            declared: declared.to_owned(),
            base: base.to_owned(),
            staged: base.to_owned(),
            form,
            zoned: false,
        },
        None => ServedColumn {
            name: field.name().clone(),
            declared: declared.to_owned(),
            base: without_length(declared),
            staged: natural.base,
            form: natural.form,
            zoned: natural.zoned,
        },
    }
}

/// `varchar(20)` as `varchar` and 20.
fn split_length(declared: &str) -> (String, Option<u32>) {
    match declared.split_once('(') {
        Some((word, rest)) => {
            let length = rest.strip_suffix(')').and_then(|number| number.trim().parse().ok());
            (word.trim().to_ascii_lowercase(), length)
        }
        None => (declared.to_ascii_lowercase(), None),
    }
}

/// A cast to a length would cut values off without a word; the assignment to the column refuses them instead.
fn without_length(declared: &str) -> String {
    match (declared.split_once('('), declared.rsplit_once(')')) {
        (Some((before, _)), Some((_, after))) => format!("{}{after}", before.trim_end()),
        _ => declared.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::datatypes::Fields;
    use std::sync::Arc;

    fn plan(data_type: DataType, declared: Option<&str>) -> ServedColumn {
        ServedColumn::plan(&Field::new("c", data_type, true), declared).unwrap()
    }

    fn list(element: DataType) -> DataType {
        DataType::List(Arc::new(Field::new("element", element, true)))
    }

    #[test]
    fn plain_values_make_arrays_and_nested_ones_make_jsonb() {
        assert_eq!(plan(list(DataType::Int64), None).declared, "bigint[]");
        assert_eq!(plan(list(DataType::Decimal128(10, 2)), None).declared, "numeric(10,2)[]");
        assert_eq!(plan(list(list(DataType::Int64)), None).declared, "jsonb");
        let fields = Fields::from(vec![Field::new("a", DataType::Int32, true)]);
        assert_eq!(plan(DataType::Struct(fields), None).form, Form::Jsonb);
    }

    #[test]
    fn an_override_is_written_directly_where_its_form_is_known() {
        let vector = plan(list(DataType::Float32), Some("vector(384)"));
        assert_eq!((vector.form.clone(), vector.is_cast()), (Form::Vector { dimensions: Some(384) }, false));
        let name = plan(DataType::Utf8, Some("varchar(20)"));
        assert_eq!((name.form.clone(), name.is_cast()), (Form::Text { limit: Some(20) }, false));
        let amount = plan(DataType::Utf8, Some("numeric(10,2)"));
        assert_eq!((amount.staged.as_str(), amount.base.as_str()), ("text", "numeric"));
        let stamp = plan(DataType::Utf8, Some("timestamp(3) with time zone"));
        assert_eq!(stamp.base, "timestamp with time zone");
    }

    #[test]
    fn a_type_without_a_counterpart_is_an_error_that_names_the_column() {
        let field = Field::new("odd", DataType::Duration(TimeUnit::Second), true);
        let error = ServedColumn::plan(&field, None).unwrap_err().to_string();
        assert!(error.contains("odd"), "{error}");
    }

    #[test]
    fn a_type_nested_too_deeply_is_refused_and_not_followed() {
        let deep = (0..1000).fold(DataType::Int32, |inner, _| list(inner));
        assert!(ServedColumn::plan(&Field::new("c", deep, true), None).is_err());
    }
}
