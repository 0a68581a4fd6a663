//! A project's life with a real Postgres: made, started, adopted, killed, started again.
//!
//! A test that fails leaves its server behind; within a minute Postgres finds its directory gone and ends.

#![allow(
    clippy::unwrap_used,
    reason = "the whole file is tests; clippy excuses only the functions marked so"
)]

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use oltp_core::{CoreError, EnsureRunning, Listen, Project, ProjectOptions, find_installation};
use secrecy::{ExposeSecret, SecretString};
use tokio_postgres::{Client, NoTls};

async fn options(directory: &Path) -> ProjectOptions {
    ProjectOptions {
        name: "shop".to_owned(),
        directory: directory.join("core/shop"),
        installation: find_installation(None, 18).await.unwrap(),
        owner: "shop_owner".to_owned(),
        password: None,
        settings: BTreeMap::from([("work_mem".to_owned(), "17MB".to_owned())]),
        listen: Listen::Loopback,
    }
}

async fn connect(url: &SecretString) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url.expose_secret(), NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

async fn text(client: &Client, query: &str) -> String {
    client.query_one(query, &[]).await.unwrap().get::<_, String>(0)
}

fn kill9(pid: u32) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

#[tokio::test]
async fn a_new_project_serves_its_owner_who_is_no_superuser() {
    let folder = tempfile::tempdir().unwrap();
    let project = Project::open(options(folder.path()).await).await.unwrap();
    let compute = project.start().await.unwrap();
    let owner = connect(&compute.url_with_password()).await.unwrap();

    assert_eq!(text(&owner, "SELECT current_user::text").await, "shop_owner");
    assert_eq!(text(&owner, "SELECT current_database()::text").await, "shop");
    assert_eq!(text(&owner, "SELECT current_setting('wal_level')").await, "logical");
    assert_eq!(text(&owner, "SELECT current_setting('work_mem')").await, "17MB");
    assert_eq!(text(&owner, "SELECT current_setting('data_checksums')").await, "on");
    assert_eq!(text(&owner, "SELECT current_setting('server_encoding')").await, "UTF8");
    let role = "SELECT concat(rolsuper, rolcreatedb, rolcreaterole, rolreplication) FROM pg_roles \
                WHERE rolname = current_user";
    assert_eq!(text(&owner, role).await, "fttt");
    owner.batch_execute("CREATE TABLE t (a int); CREATE EXTENSION hstore").await.unwrap();
    owner.batch_execute("CREATE DATABASE other").await.unwrap();
    owner.batch_execute("COPY t TO PROGRAM 'true'").await.unwrap_err();
    owner.batch_execute("ALTER SYSTEM SET fsync = off").await.unwrap_err();

    let superuser = connect(&compute.superuser_url_with_password()).await.unwrap();
    assert_eq!(text(&superuser, "SELECT current_setting('is_superuser')").await, "on");
    compute.stop().await.unwrap();
    assert!(!compute.is_running());
}

#[tokio::test]
async fn nobody_gets_in_without_a_password_and_the_superuser_never_over_tcp() {
    let folder = tempfile::tempdir().unwrap();
    let project = Project::open(options(folder.path()).await).await.unwrap();
    let compute = project.start().await.unwrap();

    connect(&compute.url().into()).await.unwrap_err();
    connect(&compute.superuser_url().into()).await.unwrap_err();
    let password = compute.superuser_password().expose_secret();
    let over_tcp = format!("postgres://tidewater:{password}@127.0.0.1:{}/shop", compute.port());
    let error = connect(&over_tcp.into()).await.unwrap_err();
    assert!(error.to_string().contains("db error"), "{error}");
    for secret in ["owner.password", "superuser.password"] {
        let mode = project.directory().join(secret).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{secret}");
    }
    let socket = compute.socket_directory().metadata().unwrap();
    assert_eq!(socket.permissions().mode() & 0o777, 0o700);
    compute.stop().await.unwrap();
}

#[tokio::test]
async fn the_next_daemon_adopts_the_server_that_a_killed_one_left_running() {
    let folder = tempfile::tempdir().unwrap();
    let first = Project::open(options(folder.path()).await).await.unwrap().start().await.unwrap();
    let (pid, port) = (first.pid(), first.port());
    let refused = Project::open(options(folder.path()).await).await.unwrap_err();
    assert!(matches!(refused, CoreError::AlreadyOpen { .. }), "{refused}");
    // All that is left of a killed daemon is what the operating system does: the lock goes.
    drop(first);

    let mut changed = options(folder.path()).await;
    changed.settings.insert("work_mem".to_owned(), "19MB".to_owned());
    let second = Project::open(changed).await.unwrap().start().await.unwrap();
    assert!(second.was_adopted());
    assert_eq!((second.pid(), second.port()), (pid, port));
    let owner = connect(&second.url_with_password()).await.unwrap();
    assert_eq!(text(&owner, "SELECT current_setting('work_mem')").await, "19MB");
    second.stop().await.unwrap();
    assert!(!second.is_running());
}

#[tokio::test]
async fn a_killed_postmaster_is_started_again_at_its_address_with_its_rows() {
    let folder = tempfile::tempdir().unwrap();
    let mut compute = Project::open(options(folder.path()).await).await.unwrap().start().await.unwrap();
    let (pid, port) = (compute.pid(), compute.port());
    let owner = connect(&compute.url_with_password()).await.unwrap();
    owner.batch_execute("CREATE TABLE t (a int); INSERT INTO t VALUES (7)").await.unwrap();
    assert_eq!(compute.ensure_running().await.unwrap(), EnsureRunning::WasRunning);

    kill9(pid);
    assert!(compute.wait_exit().await.contains("signal: 9"));
    assert_eq!(compute.ensure_running().await.unwrap(), EnsureRunning::Restarted);

    assert_ne!(compute.pid(), pid);
    assert_eq!(compute.port(), port);
    let owner = connect(&compute.url_with_password()).await.unwrap();
    assert_eq!(text(&owner, "SELECT a::text FROM t").await, "7");
    compute.stop().await.unwrap();
}

#[tokio::test]
async fn a_pid_file_that_names_a_strangers_process_does_not_stop_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let project = Project::open(options(folder.path()).await).await.unwrap();
    let compute = project.start().await.unwrap();
    let pid_file = project.directory().join("pgdata/postmaster.pid");
    let written = std::fs::read_to_string(&pid_file).unwrap();
    kill9(compute.pid());
    compute.wait_exit().await;

    let owner = pid_file.parent().unwrap().metadata().unwrap();
    let mut stranger = std::process::Command::new("sleep");
    stranger.arg("600");
    if owner.uid() != rustix::process::geteuid().as_raw() {
        // Postgres minds only processes it could signal.
        std::os::unix::process::CommandExt::uid(&mut stranger, owner.uid());
    }
    let mut stranger = stranger.spawn().unwrap();
    std::fs::write(&pid_file, written.replacen(&compute.pid().to_string(), &stranger.id().to_string(), 1))
        .unwrap();

    let started = project.start().await;
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    let compute = started.unwrap();
    assert!(!compute.was_adopted());
    compute.stop().await.unwrap();
}

#[tokio::test]
async fn an_interrupted_initdb_leaves_nothing_that_disturbs_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(folder.path()).await;
    let half_made = options.directory.join("initdb.Ab12Cd34/data");
    std::fs::create_dir_all(&half_made).unwrap();
    std::fs::write(half_made.join("PG_VERSION"), "18\n").unwrap();

    let project = Project::open(options).await.unwrap();
    let compute = project.start().await.unwrap();
    assert!(compute.is_running());
    assert!(!half_made.exists());
    compute.stop().await.unwrap();
}

#[tokio::test]
async fn a_configured_password_replaces_the_one_before() {
    let folder = tempfile::tempdir().unwrap();
    let mut with_password = options(folder.path()).await;
    let generated = {
        let compute = Project::open(with_password.clone()).await.unwrap().start().await.unwrap();
        compute.url_with_password()
    };
    with_password.password = Some("it's ünusual/@:".into());
    let compute = Project::open(with_password).await.unwrap().start().await.unwrap();
    connect(&compute.url_with_password()).await.unwrap();
    connect(&generated).await.unwrap_err();
    let log = std::fs::read_to_string(compute.log_file()).unwrap();
    assert!(!log.contains("ünusual"), "the password reached the server's log");
    compute.stop().await.unwrap();
}

#[tokio::test]
async fn a_setting_that_postgres_refuses_is_shown_in_its_own_words() {
    let folder = tempfile::tempdir().unwrap();
    let mut wrong = options(folder.path()).await;
    wrong.settings.insert("shared_buffers".to_owned(), "much".to_owned());
    let error = Project::open(wrong).await.unwrap().start().await.unwrap_err();
    assert!(matches!(error, CoreError::StartFailed { .. }), "{error}");
    assert!(error.to_string().contains("shared_buffers"), "{error}");
}

#[tokio::test]
async fn a_taken_address_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut fixed = options(folder.path()).await;
    fixed.listen = Listen::At(taken.local_addr().unwrap());
    let error = Project::open(fixed).await.unwrap().start().await.unwrap_err().to_string();
    assert!(error.contains(&taken.local_addr().unwrap().to_string()), "{error}");
}

#[tokio::test]
async fn a_project_starts_where_only_its_daemon_can_go_and_under_a_long_path() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    let deep = folder.path().join("x".repeat(60)).join("y".repeat(60));
    std::fs::create_dir_all(&deep).unwrap();

    let compute = Project::open(options(&deep).await).await.unwrap().start().await.unwrap();
    let owner = connect(&compute.url_with_password()).await.unwrap();
    owner.batch_execute("CREATE TABLE t (a int); INSERT INTO t VALUES (1); CHECKPOINT").await.unwrap();
    let again = Project::start(compute.project()).await.unwrap();
    assert!(again.was_adopted());
    compute.stop().await.unwrap();
    std::fs::remove_dir(compute.socket_directory()).unwrap();
}
