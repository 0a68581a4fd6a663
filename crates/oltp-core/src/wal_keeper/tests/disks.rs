//! A keeper's disk: crashes at every step, no room, damage; and who may come in.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use secrecy::SecretString;
use tokio::time::timeout;

use super::cluster::{Branch, Keeper, PATIENCE, ids, until};
use crate::CoreError;
use crate::wal_keeper::*;

const MOMENT: Duration = Duration::from_millis(300);

/// Every named step of the keeper, and when it comes by: `1*off` lets it pass once first.
const STEPS: [&str; 8] = [
    "keeper-state-staged=1*off->return(die)",
    "keeper-state-saved=return(die)",
    "keeper-segment-making=return(die)",
    "keeper-writing=3*off->return(die)",
    "keeper-written=3*off->return(die)",
    "keeper-synced=3*off->return(die)",
    "keeper-cutting=return(die)",
    "keeper-restarting=return(die)",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_keeper_may_die_at_any_step() {
    let mut keepers = vec![Keeper::start().await];
    let branch = Branch::new(&keepers).await;
    let mut compute = branch.start(Durability::Keeper).await;
    let client = compute.postgres.connect().await;
    client.batch_execute("CREATE TABLE t (id bigint PRIMARY KEY, v text)").await.unwrap();
    drop(client);
    let mut expected = Vec::new();
    for (round, step) in STEPS.iter().enumerate() {
        keepers[0].kill().await;
        keepers[0].restart(step).await;
        let client = compute.postgres.connect().await;
        let inserting = tokio::spawn(async move {
            // 40 MB: several segments are made, written, synced and given up.
            let id = round as i64;
            client.execute("INSERT INTO t VALUES ($1, 'small')", &[&id]).await?;
            client
                .execute("SELECT pg_logical_emit_message(true, 'test', repeat('x', 20000000))", &[])
                .await?;
            client.execute("INSERT INTO t VALUES ($1, 'after it')", &[&(id + 100)]).await
        });
        let process = keepers[0].child.as_mut().unwrap();
        let died = timeout(MOMENT * 10, process.wait()).await.is_ok();
        if !died {
            keepers[0].kill().await;
        }
        keepers[0].restart("").await;
        timeout(PATIENCE, inserting).await.unwrap().unwrap().unwrap();
        expected.extend([round as i64, round as i64 + 100]);
        if round % 3 == 0 {
            compute.kill().await;
            compute = branch.start(Durability::Keeper).await;
        }
        assert_eq!(ids(&compute.postgres.connect().await).await.len(), expected.len(), "{step}");
    }
    compute.kill().await;
    let compute = branch.start(Durability::Keeper).await;
    expected.sort_unstable();
    assert_eq!(ids(&compute.postgres.connect().await).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_makes_commits_wait_and_say_why_and_room_lets_them_go_on() {
    let mut keepers = vec![Keeper::start().await];
    let branch = Branch::new(&keepers).await;
    let compute = branch.start(Durability::Keeper).await;
    let client = compute.postgres.connect().await;
    client.batch_execute("CREATE TABLE t (id bigint PRIMARY KEY, v text)").await.unwrap();
    keepers[0].kill().await;
    keepers[0].restart("keeper-writing=return").await;
    let mut waiting = tokio::spawn(async move { client.execute("INSERT INTO t VALUES (1)", &[]).await });
    let streaming = &compute.streaming;
    until("the status says why", async || {
        streaming.status().waiting_for(MOMENT).is_some_and(|said| said.contains("no storage space"))
    })
    .await;
    assert!(timeout(MOMENT, &mut waiting).await.is_err());
    keepers[0].kill().await;
    keepers[0].restart("").await;
    timeout(PATIENCE, waiting).await.unwrap().unwrap().unwrap();
    assert_eq!(ids(&compute.postgres.connect().await).await, [1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_state_file_is_an_error_with_a_remedy_and_never_a_new_beginning() {
    let mut keepers = vec![Keeper::start().await];
    let branch = Branch::new(&keepers).await;
    let compute = branch.start(Durability::Keeper).await;
    compute.postgres.connect().await.batch_execute("CREATE TABLE t (id bigint)").await.unwrap();
    compute.kill().await;
    keepers[0].kill().await;
    let state = branch.election.log.directory(&keepers[0].directory()).join("state");
    let good = std::fs::read(&state).unwrap();
    for bad in [None, Some(vec![]), Some(good[..good.len() / 2].to_vec())] {
        match bad {
            Some(bytes) => std::fs::write(&state, bytes).unwrap(),
            None => std::fs::remove_file(&state).unwrap(),
        }
        keepers[0].restart("").await;
        let error = elect(&branch.election).await.map(|_| ()).unwrap_err();
        assert!(matches!(error, CoreError::NoMajority { .. }), "{error}");
        let said = error.to_string();
        assert!(said.contains("put it back from a copy"), "{said}");
        keepers[0].kill().await;
    }
    std::fs::write(&state, good).unwrap();
    keepers[0].restart("").await;
    elect(&branch.election).await.map(|_| ()).unwrap();
}

fn make_certificate(folder: &Path) {
    let script = "set -e
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout ca.key -out ca.pem -subj /CN=ca -days 2
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout key.pem -out s.csr -subj /CN=localhost
        echo 'subjectAltName=DNS:localhost' > san
        openssl x509 -req -in s.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out cert.pem -days 2 -extfile san";
    let output = Command::new("sh").current_dir(folder).args(["-c", script]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn who_does_not_know_the_token_or_the_certificate_stays_outside() {
    let folder = tempfile::tempdir().unwrap();
    make_certificate(folder.path());
    let file = |name: &str| folder.path().join(name);
    let options = |listen: &str, tls: bool, token: bool| KeeperOptions {
        directory: file("keeper"),
        listen: listen.parse().unwrap(),
        tls: tls.then(|| (file("cert.pem"), file("key.pem"))),
        token: token.then(|| SecretString::from("open sesame")),
    };
    for (tls, token) in [(false, false), (true, false), (false, true)] {
        let error = KeeperServer::bind(options("0.0.0.0:0", tls, token)).await.map(|_| ()).unwrap_err();
        assert!(matches!(error, CoreError::KeeperUnprotected { .. }), "{error}");
    }
    let server = KeeperServer::bind(options("127.0.0.1:0", true, true)).await.unwrap();
    let error = KeeperServer::bind(options("127.0.0.1:0", true, true)).await.map(|_| ()).unwrap_err();
    assert!(matches!(error, CoreError::AlreadyOpen { .. }), "{error}");
    let (keeper, port) = (server.identity(), server.tcp_address().unwrap().port());
    tokio::spawn(server.run(std::future::pending()));
    let address = |host: &str, token: Option<&str>, ca: Option<&str>| KeeperAddress {
        endpoint: KeeperEndpoint::Tcp(host.to_owned(), port),
        token: token.map(SecretString::from),
        ca_file: ca.map(file),
    };
    let with = |token| address("localhost", token, Some("ca.pem"));
    assert_eq!(hello(&with(Some("open sesame"))).await.unwrap(), keeper);
    for token in [None, Some(""), Some("open sesam"), Some("open sesame!")] {
        let error = hello(&with(token)).await.unwrap_err();
        assert!(matches!(error, CoreError::KeeperRefused { .. }), "{error}");
    }
    // The certificate is of another name, of an authority nobody named, or not asked for.
    hello(&address("127.0.0.1", Some("open sesame"), Some("ca.pem"))).await.unwrap_err();
    make_certificate(folder.path());
    hello(&address("localhost", Some("open sesame"), Some("ca.pem"))).await.unwrap_err();
    hello(&address("localhost", Some("open sesame"), None)).await.unwrap_err();
}
