//! Single values as Postgres's binary formats have them: what each type's `recv` function reads.

mod json;
mod numeric;
mod variant;

pub(super) use json::write_json;
pub(super) use numeric::write_numeric;

/// Why a value has no place in its column.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// Postgres's texts end at one.
    #[error("a text with a zero byte")]
    ZeroByte,
    /// The column is shorter.
    #[error("a text of {length} characters where {limit} fit")]
    TooLong {
        /// its characters
        length: usize,
        /// the column's
        limit: u32,
    },
    /// Outside of what the type can hold.
    #[error("a {what} outside of Postgres's range")]
    OutOfRange {
        /// date or timestamp
        what: &'static str,
    },
    /// The text is no UUID.
    #[error("a text that is no UUID")]
    NoUuid,
    /// Another number of dimensions than the column has, or none at all.
    #[error("a vector of {found} dimensions where {} fit", .expected.map_or_else(|| "1 to 16000".to_owned(), |n| n.to_string()))]
    Dimensions {
        /// the value's
        found: usize,
        /// the column's
        expected: Option<u16>,
    },
    /// A vector holds finite numbers only.
    #[error("a vector with an element that is null, infinite or not a number")]
    NotFinite,
    /// Bytes that are no variant.
    #[error("a variant that cannot be decoded")]
    BadVariant,
    /// More than a gigabyte.
    #[error("a value larger than Postgres takes")]
    TooLarge,
}
