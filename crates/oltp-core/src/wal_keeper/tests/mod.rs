//! The keeper with real Postgres servers and keepers that are processes of their own, so that `kill -9` is one.

mod cluster;
mod commits;
mod disks;
mod logs;
mod quorum;
mod store;

/// Not a test: what the tests run as a keeper's process. `FAILPOINTS` arms its crash points.
#[tokio::test]
#[ignore = "the tests start it as a process of its own"]
async fn keeper_process() {
    let _armed = fail::FailScenario::setup();
    let (Some(directory), Some(listen)) =
        (std::env::var_os("TEST_KEEPER_DIRECTORY"), std::env::var("TEST_KEEPER_LISTEN").ok())
    else {
        return;
    };
    let options = super::KeeperOptions {
        directory: directory.into(),
        listen: listen.parse().unwrap(),
        tls: None,
        token: None,
    };
    super::serve(options, std::future::pending()).await.unwrap();
}
