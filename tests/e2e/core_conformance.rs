//! The same programs against a stock cluster and against a core branch, through the gateway, print the same.

use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tidewater_e2e::{Postgres, Site, postgres_program, repository};
use tokio::process::Command;

/// The whole of it takes half a minute; every program in it has a shorter limit of its own.
const LIMIT: Duration = Duration::from_secs(600);

/// The owner of a core database, made in a cluster that knows no Tidewater.
const OWNER: [&str; 3] = [
    "CREATE ROLE shop LOGIN CREATEDB CREATEROLE REPLICATION PASSWORD 'secret'",
    "GRANT pg_checkpoint, pg_create_subscription, pg_maintain, pg_monitor, pg_read_all_data, \
     pg_signal_autovacuum_worker, pg_signal_backend, pg_write_all_data TO shop WITH ADMIN OPTION",
    "CREATE DATABASE shop OWNER shop",
];

#[tokio::test]
async fn the_same_programs_print_the_same_on_a_stock_cluster_and_on_a_core_branch() {
    // Without a sync: its slot and its trigger are no part of the comparison.
    let site = Site::with_unsynced_core("{password: secret, settings: {max_prepared_transactions: \"10\"}}");
    let daemon = site.start().await;
    // As the core has them: how far a table is extended at a time depends on both.
    let stock = Postgres::start_with(&[("shared_buffers", "128MB"), ("max_connections", "100")]).await;
    let (admin, template) = (stock.connect("postgres").await, stock.connect("template1").await);
    // What a core's owner may add himself, a superuser has to give to a stock cluster's.
    template.batch_execute("CREATE EXTENSION vector; CREATE EXTENSION pg_stat_statements").await.unwrap();
    drop(template);
    for statement in OWNER {
        admin.batch_execute(statement).await.unwrap();
    }

    let owner = |port: u16| format!("host=127.0.0.1 port={port} user=shop password=secret dbname=shop");
    let mut compare = Command::new(repository().join(".venv/bin/python"));
    compare
        .arg(repository().join("tests/conformance/run.py"))
        .args(["--core", &owner(site.gateway_port().await), "--stock", &owner(stock.port())])
        .args([
            "--subscriber",
            &format!("host=127.0.0.1 port={} user=postgres dbname=postgres", stock.port()),
        ])
        .args(["--programs".as_ref(), postgres_program("").as_os_str()])
        .args(["--jdbc".as_ref(), repository().join(".tools/jdbc/postgresql-42.7.8.jar").as_os_str()])
        .args(["--keep".as_ref(), site.path().join("conformance").as_os_str()]);
    println!("{}", told(&finished(&mut compare).await));
    check_structure(&site).await;
    daemon.stop().await;
}

/// What the only compute of a site has on this machine.
pub async fn compute_directory(site: &Site) -> PathBuf {
    site.path().join(".tidewater/computes/shop").join(only_compute(site).await["branch"].as_str().unwrap())
}

async fn only_compute(site: &Site) -> Value {
    let listed = site.succeeds(&["compute", "list", "--json"]).await;
    let computes: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(computes.as_array().unwrap().len(), 1, "{listed}");
    computes[0].clone()
}

/// Every page of every database is read, and every index compared with its table.
pub async fn check_structure(site: &Site) {
    let compute = only_compute(site).await;
    let socket = compute["socket_directory"].as_str().unwrap();
    let password = site.path().join("core/projects/shop/superuser.password");
    let mut check = Command::new(postgres_program("pg_amcheck"));
    check
        .env("PGPASSWORD", std::fs::read_to_string(password).unwrap())
        .args(["--host", socket, "--username=tidewater", "--all", "--install-missing"])
        .args(["--heapallindexed", "--parent-check", "--checkunique", "--jobs=2"]);
    finished(&mut check).await;
}

async fn finished(command: &mut Command) -> Output {
    let run = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(LIMIT, run).await;
    let output = output.unwrap_or_else(|_| panic!("it does not end within {LIMIT:?}")).unwrap();
    assert!(output.status.success(), "{}", told(&output));
    output
}

fn told(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
