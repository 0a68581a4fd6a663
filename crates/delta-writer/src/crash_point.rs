//! Crash points: named places before and after every durable step, where a test makes the process die
//! or the step fail. Without the `failpoints` feature nothing of this is compiled.

/// Returns [`DeltaError::CrashPoint`](crate::DeltaError::CrashPoint) from the enclosing function when a
/// test has armed the point with `return`.
macro_rules! crash_point {
    ($name:literal) => {
        fail::fail_point!($name, |_| Err($crate::error::DeltaError::CrashPoint { name: $name }.into()))
    };
}
pub(crate) use crash_point;
