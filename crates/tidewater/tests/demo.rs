//! `tidewater demo` as a user runs it: with a real Postgres, to its end and to Ctrl-C.

#![allow(clippy::unwrap_used, clippy::panic, reason = "the whole binary is tests")]

use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Half a minute on an idle machine; the other tests leave it less.
const LIMIT: Duration = Duration::from_secs(300);

/// A demo in a temporary folder of its own, where nothing may be left.
struct Demo {
    process: Child,
    folder: TempDir,
}

/// How a demo ended.
struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
    folder: TempDir,
}

impl Demo {
    fn start(change: impl FnOnce(&mut Command)) -> Demo {
        let folder = TempDir::with_prefix("demo-").unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidewater"));
        command.arg("demo").env("TMPDIR", folder.path()).env_remove("TIDEWATER_LOG").stdin(Stdio::null());
        change(&mut command);
        let process = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        Demo { process, folder }
    }

    /// Reads on until a line has `text`; returns what was read.
    fn until(&mut self, text: &str, stdout: &mut BufReader<ChildStdout>) -> String {
        let mut read = String::new();
        while !read.contains(text) {
            assert_ne!(stdout.read_line(&mut read).unwrap(), 0, "it ended before `{text}`:\n{read}");
        }
        read
    }

    /// Waits for the end. One that hangs is killed and fails the test.
    fn end(mut self, mut stdout: BufReader<ChildStdout>, mut before: String) -> Ended {
        let pid = Pid::from_child(&self.process);
        let (ended, watching) = mpsc::channel::<()>();
        let watchdog = std::thread::spawn(move || {
            let late = watching.recv_timeout(LIMIT) == Err(mpsc::RecvTimeoutError::Timeout);
            if late {
                kill_process(pid, Signal::KILL).unwrap();
            }
            late
        });
        stdout.read_to_string(&mut before).unwrap();
        let mut stderr = String::new();
        self.process.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        let code = self.process.wait().unwrap().code();
        drop(ended);
        assert!(!watchdog.join().unwrap(), "the demo did not end:\n{before}\n{stderr}");
        Ended { code, stdout: before, stderr, folder: self.folder }
    }

    fn output(&mut self) -> BufReader<ChildStdout> {
        BufReader::new(self.process.stdout.take().unwrap())
    }
}

impl Ended {
    fn assert_nothing_is_left(&self) {
        let left: Vec<_> = std::fs::read_dir(self.folder.path()).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
        if let Some((_, rest)) = self.stdout.split_once("@127.0.0.1:") {
            let port = rest.split_once('/').unwrap().0.parse().unwrap();
            assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err(), "Postgres is still there");
        }
    }
}

#[test]
fn the_demo_goes_to_its_end_and_leaves_nothing_behind() {
    let mut demo = Demo::start(|_| {});
    let stdout = demo.output();
    let ended = demo.end(stdout, String::new());
    assert_eq!(ended.code, Some(0), "{}\n{}", ended.stdout, ended.stderr);
    for line in [
        "orders          100,000 rows",
        "transactions in all",
        "Both gave these rows.",
        "now           delivered",
        "still has its 100000 orders",
        "Everything has been stopped and removed.",
    ] {
        assert!(ended.stdout.contains(line), "no `{line}` in\n{}", ended.stdout);
    }
    let wide = ended.stdout.lines().find(|line| line.chars().count() > 80);
    assert_eq!(wide, None, "a line is too wide for a narrow terminal");
    assert!(!ended.stdout.contains('\u{1b}'), "no colours and no bars without a terminal");
    assert_eq!(ended.stderr, "", "a good run has nothing to complain of");
    ended.assert_nothing_is_left();
}

#[test]
fn a_demo_that_is_interrupted_cleans_up_as_well() {
    let mut demo = Demo::start(|_| {});
    let mut stdout = demo.output();
    let read = demo.until("2. A shop in it", &mut stdout);
    kill_process(Pid::from_child(&demo.process), Signal::INT).unwrap();
    let ended = demo.end(stdout, read);
    assert_eq!(ended.code, Some(130), "{}\n{}", ended.stdout, ended.stderr);
    assert!(ended.stderr.contains("stopped before its end"), "{}", ended.stderr);
    assert!(!ended.stdout.contains("Look further"), "{}", ended.stdout);
    ended.assert_nothing_is_left();
}

#[test]
fn without_a_postgres_the_demo_says_where_it_looked_and_leaves_nothing_behind() {
    let nowhere = TempDir::new().unwrap();
    let mut demo = Demo::start(|command| {
        command.env("TIDEWATER_POSTGRES_BIN", nowhere.path());
    });
    let stdout = demo.output();
    let ended = demo.end(stdout, String::new());
    assert_eq!(ended.code, Some(1), "{}\n{}", ended.stdout, ended.stderr);
    // The message may be wrapped: only what no line break splits is looked for.
    assert!(ended.stderr.contains("TIDEWATER_POSTGRES_BIN"), "{}", ended.stderr);
    ended.assert_nothing_is_left();
}
