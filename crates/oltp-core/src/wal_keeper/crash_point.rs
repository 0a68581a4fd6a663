//! Crash points: named places before and after every durable step, where a test makes the keeper die or the
//! step fail. Unless the tests switch on `fail/failpoints`, nothing of this is compiled.
//!
//! | armed with | does |
//! |---|---|
//! | `return` | the step fails as a full disk would make it fail, and the process goes on |
//! | `return(die)` | the process ends at once, as by `kill -9` |

/// Leaves the enclosing function with an error, or ends the process, when a test has armed the point.
macro_rules! crash_point {
    ($name:literal) => {
        fail::fail_point!($name, |how: Option<String>| {
            if how.as_deref() == Some("die") {
                std::process::abort();
            }
            Err($crate::CoreError::Io {
                action: "pass the crash point",
                path: $name.into(),
                source: std::io::ErrorKind::StorageFull.into(),
            })
        })
    };
}
pub(crate) use crash_point;
