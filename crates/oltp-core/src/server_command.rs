//! Running the programs of a Postgres installation: as the right user, in a clean environment, bounded in time.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::Command;

use crate::service_user::ServiceUser;
use crate::{CoreError, Result};

/// As much of a program's output as is kept for an error message or an answer.
const OUTPUT_LIMIT: u64 = 1 << 20;

/// Lines of output that an error shows.
const LAST_LINES: usize = 20;

/// How a program ended, with what it printed on stdout.
#[derive(Debug)]
pub struct CommandEnd {
    /// Standard output, up to 1 MiB.
    pub stdout: String,
}

/// A command for `program` as `user`, with none of the caller's `PG…` variables and C messages.
///
/// The working directory is `/`: the caller's own may be closed to `user`, and Postgres's programs
/// stop when they cannot find out where they are.
pub fn server_command(program: &Path, user: &ServiceUser) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PG") {
            command.env_remove(&name);
        }
    }
    command.env("LC_ALL", "C").current_dir("/").stdin(Stdio::null());
    if let Some((uid, gid)) = user.switch_to() {
        // With both set, the standard library also drops the supplementary groups.
        command.gid(gid).uid(uid);
    }
    command
}

/// Runs `command` to its end and returns what it printed.
///
/// # Errors
/// It cannot be started, ends with anything but 0, or takes longer than `limit` (then it is killed).
pub async fn run_bounded(mut command: Command, limit: Duration) -> Result<CommandEnd> {
    let program = Path::new(command.as_std().get_program()).to_owned();
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(CoreError::io("run", &program))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let run = async {
        let (out, err, status) = tokio::join!(drain(stdout), drain(stderr), child.wait());
        (out, err, status)
    };
    let Ok((stdout, stderr, status)) = tokio::time::timeout(limit, run).await else {
        return Err(CoreError::ProgramTimedOut { program, limit });
    };
    let status = status.map_err(CoreError::io("wait for", &program))?;
    if !status.success() {
        let output = last_lines(&format!("{stdout}{stderr}"), LAST_LINES);
        return Err(CoreError::ProgramFailed { program, end: status.to_string(), output });
    }
    Ok(CommandEnd { stdout })
}

/// Reads a pipe to its end and keeps the first part: a program that prints without end must not
/// block on a full pipe, nor fill our memory.
async fn drain(pipe: Option<impl tokio::io::AsyncRead + Unpin>) -> String {
    let mut kept = Vec::new();
    if let Some(mut pipe) = pipe {
        // A pipe that breaks has nothing more to say: the exit status tells the rest.
        if (&mut pipe).take(OUTPUT_LIMIT).read_to_end(&mut kept).await.is_ok() {
            let _ = tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await;
        }
    }
    String::from_utf8_lossy(&kept).into_owned()
}

/// The last `count` lines of `text`, indented for an error message.
pub(crate) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let tail = lines.get(lines.len().saturating_sub(count)..).unwrap_or_default();
    tail.iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

/// `name=value` as one argument of `postgres -c`.
pub(crate) fn assignment(name: &str, value: impl AsRef<OsStr>) -> std::ffi::OsString {
    let mut text = std::ffi::OsString::from(name);
    text.push("=");
    text.push(value);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_that_hangs_is_ended() {
        let mut command = server_command(Path::new("/bin/sh"), &ServiceUser::for_new_cluster());
        command.args(["-c", "read line < /dev/zero; sleep 600"]);
        let error = run_bounded(command, Duration::from_millis(50)).await.unwrap_err();
        assert!(matches!(error, CoreError::ProgramTimedOut { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_failure_shows_the_last_lines() {
        let mut command = server_command(Path::new("/bin/sh"), &ServiceUser::for_new_cluster());
        command.args(["-c", "for i in 1 2 3; do echo line $i >&2; done; exit 7"]);
        let error = run_bounded(command, Duration::from_secs(10)).await.unwrap_err().to_string();
        assert!(error.contains("line 3") && error.contains('7'), "{error}");
    }

    #[test]
    fn the_last_lines_of_a_short_text_are_all_of_it() {
        assert_eq!(last_lines("a\n\nb\n", 5), "  a\n  b");
        assert_eq!(last_lines("a\nb\nc", 1), "  c");
    }
}
