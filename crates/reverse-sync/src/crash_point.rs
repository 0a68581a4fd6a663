//! Crash points: named places before and after each commit in a target, where a test makes the process die. The variable
//! `FAILPOINTS` arms them, and only in a build with `fail/failpoints`, which no release has.

/// Ends the process at once, as by `kill -9`, when a test has armed the point.
macro_rules! death_point {
    ($name:literal) => {
        fail::fail_point!($name, |_| std::process::abort())
    };
}
pub(crate) use death_point;
