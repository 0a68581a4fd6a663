//! The real `tidewater` binary, in a folder of its own.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use crate::postgres::{build_folder, signal};
use crate::s3_server::S3Server;

/// From start to `/readyz`, with a debug build on a busy machine.
const READY_LIMIT: Duration = Duration::from_secs(120);
const STOP_LIMIT: Duration = Duration::from_secs(60);
const COMMAND_LIMIT: Duration = Duration::from_secs(180);
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(25);

/// An answer of the control socket is a status report, not a stream.
const ANSWER_LIMIT: u64 = 16 << 20;

/// The binary under test: `TIDEWATER_BIN`, else the one built together with these tests.
pub fn binary() -> PathBuf {
    let path =
        std::env::var_os("TIDEWATER_BIN").map_or_else(|| build_folder().join("tidewater"), PathBuf::from);
    assert!(path.exists(), "{} is missing: run `cargo build -p tidewater`", path.display());
    path
}

/// A port that nobody has, and that nobody gets by chance while its server is down: it lies below those that the kernel
/// gives to outgoing connections, and no test of this process gets it twice.
pub fn free_port() -> u16 {
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 20_000;
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    // Programs that test side by side begin far apart.
    let begin = std::process::id().wrapping_mul(137);
    (0..COUNT)
        .map(|_| FIRST + begin.wrapping_add(TAKEN.fetch_add(1, Ordering::Relaxed)) % COUNT)
        .filter_map(|port| u16::try_from(port).ok())
        .find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("no port is free between 10,000 and 30,000")
}

/// A folder with a `tidewater.yaml`, its lake and its state. Gone when dropped.
#[derive(Debug)]
pub struct Site {
    folder: TempDir,
}

/// What a built-in database consists of, beside the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CoreProcess {
    /// The process of a running branch.
    Compute,
    /// Its postmaster.
    Postgres,
    /// Where commits are durable.
    Keeper,
    /// Where connections arrive.
    Gateway,
}

impl CoreProcess {
    fn program(self) -> &'static str {
        match self {
            CoreProcess::Postgres => "postgres",
            _ => "tidewater",
        }
    }
}

/// How a command ended.
#[derive(Debug)]
pub struct Finished {
    /// The exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Site {
    /// A site with this configuration. Relative paths in it are inside the site.
    pub fn new(yaml: &str) -> Site {
        let folder = TempDir::with_prefix("tidewater-site-").unwrap();
        let site = Site { folder };
        site.configure(yaml);
        site
    }

    /// A site that mirrors every table of schema `public` of the database `shop`.
    pub fn of_shop(source_url: &str) -> Site {
        Site::mirroring(source_url, r#"["public.*"]"#)
    }

    /// As [`Site::of_shop`], into the folder `main` of a bucket.
    pub fn in_s3(source_url: &str, store: &S3Server) -> Site {
        let lake = format!("{{uri: \"s3://lake/main\", options: {}}}", store.lake_options());
        Site::with_lake(source_url, r#"["public.*"]"#, &lake)
    }

    /// A site that mirrors `tables` (YAML, such as `["public.*"]`) of one database, called `shop`.
    pub fn mirroring(source_url: &str, tables: &str) -> Site {
        Site::with_lake(source_url, tables, "{uri: ./lake}")
    }

    fn with_lake(source_url: &str, tables: &str, lake: &str) -> Site {
        Site::new(&format!(
            "version: 1\nlake: {lake}\nlisten: {{http: \"127.0.0.1:{}\"}}\n\
             databases:\n  shop: {{url: \"{source_url}\", tls: disable}}\n\
             to_lake:\n  - {{database: shop, tables: {tables}, flush: 200ms}}\n",
            free_port()
        ))
    }

    /// Replaces the configuration.
    pub fn configure(&self, yaml: &str) {
        std::fs::write(self.path().join("tidewater.yaml"), yaml).unwrap();
    }

    /// The site's folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Leaves the folder behind, for whoever looks into what went wrong.
    pub fn keep(mut self) -> PathBuf {
        self.folder.disable_cleanup(true);
        self.folder.path().to_owned()
    }

    /// A site that mirrors every table of schema `public` of a built-in database `shop`.
    pub fn with_core(core: &str) -> Site {
        Site::new(&format!(
            "version: 1\nlake: {{uri: ./lake}}\nlisten: {{http: \"127.0.0.1:{}\"}}\n\
             core: {{storage: ./core, listen: \"127.0.0.1:{}\"{core}}}\n\
             databases:\n  shop: {{core: {{}}}}\n\
             to_lake:\n  - {{database: shop, tables: [\"public.*\"], flush: 200ms}}\n",
            free_port(),
            free_port()
        ))
    }

    /// A site with a built-in database `shop`, made of `database` (YAML), that nobody syncs.
    pub fn with_unsynced_core(database: &str) -> Site {
        Site::with_unsynced_core_of(database, "")
    }

    /// The same, with more keys of the core, such as `, cache: 1GiB`.
    pub fn with_unsynced_core_of(database: &str, core: &str) -> Site {
        Site::new(&format!(
            "version: 1\nlake: {{uri: ./lake}}\nlisten: {{http: \"127.0.0.1:{}\"}}\n\
             core: {{storage: ./core, listen: \"127.0.0.1:{}\"{core}}}\ndatabases:\n  shop: {{core: {database}}}\n",
            free_port(),
            free_port()
        ))
    }

    /// Where the built-in databases are reached.
    pub async fn gateway_port(&self) -> u16 {
        let url = self.branch_url("main").await;
        let (_, place) = url.rsplit_once('@').unwrap();
        place.split(['/', ':']).nth(1).unwrap().parse().unwrap()
    }

    /// The address of a branch of the built-in database, for its owner.
    pub async fn branch_url(&self, branch: &str) -> String {
        let listed = self.succeeds(&["branch", "list", "--json"]).await;
        let branches: Value = serde_json::from_str(&listed).unwrap();
        let found = branches.as_array().unwrap().iter().find(|found| found["branch"] == branch);
        found.unwrap_or_else(|| panic!("no {branch} in {branches}"))["url"].as_str().unwrap().to_owned()
    }

    /// A command that has to succeed; gives what it printed.
    pub async fn succeeds(&self, arguments: &[&str]) -> String {
        let finished = self.command(arguments).await;
        assert_eq!(finished.code, Some(0), "{arguments:?}: {}\n{}", finished.stdout, finished.stderr);
        finished.stdout
    }

    /// The soft state of this machine.
    pub fn state(&self) -> PathBuf {
        self.path().join(".tidewater")
    }

    /// The living processes of the built-in databases, of one kind.
    pub fn core_processes(&self, kind: CoreProcess) -> Vec<u32> {
        let state = self.state();
        let of_computes = |file: &str| {
            let projects = folders(&state.join("computes")).into_iter();
            projects
                .flat_map(|project| folders(&project))
                .filter_map(|branch| pid_in(&branch.join(file)))
                .collect()
        };
        let mut found: Vec<u32> = match kind {
            CoreProcess::Compute => of_computes("lock"),
            CoreProcess::Postgres => of_computes("postmaster"),
            CoreProcess::Keeper => pid_in(&state.join("keeper.lock")).into_iter().collect(),
            CoreProcess::Gateway => pid_in(&state.join("gateway.lock")).into_iter().collect(),
        };
        found.retain(|pid| lives(*pid, kind.program()));
        found
    }

    /// Ends what outlives a killed daemon: first the computes, which still need the keeper.
    fn end_core(&self) {
        let of = |kinds: &[CoreProcess]| -> Vec<u32> {
            kinds.iter().flat_map(|kind| self.core_processes(*kind)).collect()
        };
        for pids in [of(&[CoreProcess::Compute]), of(&[CoreProcess::Gateway, CoreProcess::Keeper])] {
            pids.iter().for_each(|pid| signal(*pid, Signal::TERM));
            let deadline = Instant::now() + STOP_LIMIT;
            while pids.iter().any(|pid| lives(*pid, "tidewater")) && Instant::now() < deadline {
                std::thread::sleep(RETRY);
            }
        }
    }

    /// The lake's folder.
    pub fn lake(&self) -> PathBuf {
        self.path().join("lake")
    }

    /// The folder of a lake table, such as `shop/public/orders`.
    pub fn table(&self, name: &str) -> PathBuf {
        self.lake().join(name)
    }

    /// Runs one command to its end.
    pub async fn command(&self, arguments: &[&str]) -> Finished {
        let mut command = Command::new(binary());
        command.args(arguments).current_dir(self.path()).stdin(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(COMMAND_LIMIT, command.output())
            .await
            .unwrap_or_else(|_| panic!("tidewater {arguments:?} did not end"))
            .unwrap();
        Finished {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// `tidewater run --until-caught-up`, which has to succeed.
    pub async fn run_until_caught_up(&self) {
        let finished = self.command(&["run", "--until-caught-up"]).await;
        assert_eq!(finished.code, Some(0), "{}\n{}", finished.stdout, finished.stderr);
    }

    /// Starts the daemon, without waiting.
    pub fn spawn(&self) -> Daemon {
        self.spawn_with(&[])
    }

    /// Starts the daemon with crash points armed: `name=action`, several separated by `;`.
    pub fn spawn_armed(&self, crash_points: &str) -> Daemon {
        self.spawn_with(&[("FAILPOINTS", crash_points)])
    }

    /// Starts the daemon with these variables beside the test's own.
    pub fn spawn_with(&self, environment: &[(&str, &str)]) -> Daemon {
        let log_file = self.path().join("daemon.log");
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&log_file).unwrap();
        let process = Command::new(binary())
            .arg("run")
            .envs(environment.iter().copied())
            .current_dir(self.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Daemon { process, log_file, control: self.path().join(".tidewater/control.sock") }
    }

    /// Starts the daemon and waits until it says that it is ready.
    pub async fn start(&self) -> Daemon {
        let mut daemon = self.spawn();
        daemon.wait_ready().await;
        daemon
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.end_core();
    }
}

fn folders(path: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

/// The process id that a lock begins with.
fn pid_in(lock: &Path) -> Option<u32> {
    std::fs::read_to_string(lock).ok()?.split_whitespace().next()?.parse().ok()
}

/// Whether this is a process of the program; a zombie is none.
fn lives(pid: u32, program: &str) -> bool {
    std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe.ends_with(program))
}

/// A running daemon; killed when dropped. A test that fails prints its log.
#[derive(Debug)]
pub struct Daemon {
    process: Child,
    log_file: PathBuf,
    control: PathBuf,
}

impl Daemon {
    /// Waits until `/readyz` answers 200.
    pub async fn wait_ready(&mut self) {
        let deadline = Instant::now() + READY_LIMIT;
        loop {
            if self.get("/readyz").await.is_some_and(|(code, _)| code == 200) {
                return;
            }
            self.check(deadline, "became ready");
            tokio::time::sleep(RETRY).await;
        }
    }

    /// What `tidewater status --json` prints; nothing while nobody answers.
    pub async fn status(&self) -> Option<Value> {
        let (code, body) = self.get("/api/v1/status").await?;
        (code == 200).then(|| serde_json::from_str(&body).unwrap())
    }

    /// What `tidewater status --json` prints, once it fulfils `condition`.
    pub async fn wait_status(&mut self, limit: Duration, condition: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + limit;
        let mut last = Value::Null;
        loop {
            if let Some(status) = self.status().await {
                last = status;
                if condition(&last) {
                    return last;
                }
            }
            self.check(deadline, &format!("reached the awaited status; last: {last}"));
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Waits until every table is loaded and follows the stream.
    pub async fn wait_streaming(&mut self, limit: Duration) -> Value {
        self.wait_status(limit, |status| {
            let tables = status["tables"].as_array().unwrap();
            let follows = |table: &Value| {
                table["state"]
                    .as_str()
                    .is_some_and(|state| state == "streaming" || state.starts_with("inserts"))
            };
            !tables.is_empty() && tables.iter().all(follows)
        })
        .await
    }

    /// Waits for it to end by itself, and gives its exit code.
    pub async fn ended(mut self, limit: Duration) -> Option<i32> {
        let status = tokio::time::timeout(limit, self.process.wait()).await;
        status.unwrap_or_else(|_| panic!("the daemon goes on:\n{}", self.log())).unwrap().code()
    }

    /// Its resident memory now, in bytes.
    pub fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id().unwrap())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// How it ended, if it has.
    pub fn end(&mut self) -> Option<std::process::ExitStatus> {
        self.process.try_wait().unwrap()
    }

    /// Ends it the hard way, at once.
    pub async fn kill9(mut self) {
        signal(self.process.id().unwrap(), Signal::KILL);
        self.process.wait().await.unwrap();
    }

    /// Ends it by SIGTERM, which has to give exit code 0 in time.
    pub async fn stop(mut self) {
        signal(self.process.id().unwrap(), Signal::TERM);
        let status = tokio::time::timeout(STOP_LIMIT, self.process.wait())
            .await
            .unwrap_or_else(|_| panic!("the daemon did not stop:\n{}", self.log()))
            .unwrap();
        assert!(status.success(), "the daemon stopped with {status}:\n{}", self.log());
    }

    /// Has it read its configuration anew.
    pub fn reload(&self) {
        signal(self.process.id().unwrap(), Signal::HUP);
    }

    /// Waits until its log has each of `words`.
    pub async fn wait_log(&mut self, limit: Duration, words: &[&str]) {
        let deadline = Instant::now() + limit;
        while !words.iter().all(|word| self.log().contains(word)) {
            self.check(deadline, &format!("logged {words:?}"));
            tokio::time::sleep(RETRY).await;
        }
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log_file).unwrap_or_default()
    }

    fn check(&mut self, deadline: Instant, what: &str) {
        if let Some(status) = self.process.try_wait().unwrap() {
            panic!("the daemon ended with {status} before it {what}");
        }
        assert!(Instant::now() < deadline, "the daemon has not {what}");
    }

    /// Status code and body, or nothing while nobody listens.
    pub async fn get(&self, path: &str) -> Option<(u16, String)> {
        let exchange = async {
            let mut stream = UnixStream::connect(&self.control).await.ok()?;
            let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.ok()?;
            let mut answer = String::new();
            stream.take(ANSWER_LIMIT).read_to_string(&mut answer).await.ok()?;
            let (head, body) = answer.split_once("\r\n\r\n")?;
            let code = head.split_whitespace().nth(1)?.parse().ok()?;
            Some((code, body.to_owned()))
        };
        tokio::time::timeout(REQUEST_LIMIT, exchange).await.ok().flatten()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the daemon's log\n{}", self.log());
        }
    }
}
