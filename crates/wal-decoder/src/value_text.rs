//! Postgres's text forms, read straight from bytes.
//!
//! The session settings fix one form per type (DateStyle ISO, TimeZone UTC, bytea_output hex,
//! extra_float_digits 1), so these readers accept that form and refuse everything else: a value that
//! looks different means a session that is not ours, and guessing would write wrong rows.
//!
//! None of them allocates, and none can panic: arithmetic on digits is either bounded by a digit count
//! checked before, or checked.

pub(crate) mod array;
pub(crate) mod bytea;
pub(crate) mod date_time;
pub(crate) mod decimal;
pub(crate) mod number;
