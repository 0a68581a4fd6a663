//! Why one value did not become an Arrow value.

/// The reason, without the place: [`crate::RowError`] and [`crate::CopyError`] add column and excerpt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// The bytes are not what Postgres writes for this type under our session settings.
    #[error(
        "this is not how Postgres writes {expected} with DateStyle ISO, TimeZone UTC and bytea_output hex: \
         the session's settings were changed, or the column's type was"
    )]
    Malformed {
        /// the form that was expected
        expected: &'static str,
    },
    /// A good Postgres value that Delta has no place for: falls under the policy `unrepresentable`.
    #[error("{reason}")]
    Unrepresentable {
        /// what is in the way
        reason: &'static str,
    },
    /// Text that is not UTF-8.
    #[error(
        "the text is not UTF-8: the source database's encoding is SQL_ASCII and holds other bytes; \
         convert the value or exclude the column"
    )]
    NotUtf8,
    /// The column's values would pass the 2 GiB that a 32-bit offset reaches.
    #[error("the batch is full: take it out and offer the row again")]
    BatchFull,
}

pub(crate) const fn malformed(expected: &'static str) -> ValueError {
    ValueError::Malformed { expected }
}

pub(crate) const fn unrepresentable(reason: &'static str) -> ValueError {
    ValueError::Unrepresentable { reason }
}

pub(crate) const INFINITE_DATE: ValueError = unrepresentable("Delta has no infinite date or timestamp");
pub(crate) const FAR_TIMESTAMP: ValueError =
    unrepresentable("the timestamp is past 294247-01-10, where 64-bit microseconds from 1970 end");
pub(crate) const NOT_FINITE_DECIMAL: ValueError =
    unrepresentable("a Delta decimal holds neither NaN nor infinity");
pub(crate) const MULTI_DIMENSIONAL: ValueError =
    unrepresentable("a Delta array has one dimension, this one has several");
pub(crate) const OTHER_LOWER_BOUND: ValueError =
    unrepresentable("a Delta array starts at its first element, this one has another lower bound");
