//! Crash points: named places before and after every durable step, where a test makes the process die
//! or the step fail. Unless the tests switch on `fail/failpoints`, nothing of this is compiled.
//!
//! | armed with | does |
//! |---|---|
//! | `return` | the step fails with [`DeltaError::CrashPoint`](crate::DeltaError::CrashPoint), and the process goes on |
//! | `return(die)` | the process ends at once, as by `kill -9` |

/// Leaves the enclosing function with an error, or ends the process, when a test has armed the point.
macro_rules! crash_point {
    ($name:literal) => {
        fail::fail_point!($name, |how: Option<String>| {
            if how.as_deref() == Some("die") {
                std::process::abort();
            }
            Err($crate::error::DeltaError::CrashPoint { name: $name }.into())
        })
    };
}
pub(crate) use crash_point;

/// A crash point between steps that cannot fail on their own: it only ever ends the process.
macro_rules! death_point {
    ($name:literal) => {
        fail::fail_point!($name, |_| std::process::abort())
    };
}
pub(crate) use death_point;
