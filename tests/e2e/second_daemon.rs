//! Two daemons on one configuration: the second stops, and nothing is doubled.

use std::time::Duration;

use tidewater_e2e::{Engine, Postgres, Reader, Shop, Site, Traffic, free_port};

#[tokio::test]
async fn a_second_daemon_with_its_own_state_dir_stops_with_an_error_and_doubles_nothing() {
    let postgres = Postgres::start().await;
    let client = postgres.create_database("shop").await;
    Shop::create(&client).await;
    let url = postgres.url("shop");
    let site = Site::of_shop(&url);
    let mut daemon = site.start().await;
    daemon.wait_streaming(Duration::from_secs(60)).await;
    let traffic = Traffic::start(&url, 5, 2, None, Duration::from_millis(2));

    // The same configuration on another machine: only what is local differs.
    let other = Site::new(&format!(
        "version: 1\nlake: {{uri: \"{}\"}}\nlisten: {{http: \"127.0.0.1:{}\"}}\n\
         databases:\n  shop: {{url: \"{url}\", tls: disable}}\n\
         to_lake:\n  - {{database: shop, tables: [\"public.*\"], flush: 200ms}}\n",
        site.path().join("lake").display(),
        free_port()
    ));
    let second = other.command(&["run"]).await;
    assert_eq!(second.code, Some(1), "{}\n{}", second.stdout, second.stderr);
    assert!(second.stderr.contains("another process is syncing"), "{}", second.stderr);

    traffic.wait_for(100).await;
    traffic.stop().await;
    daemon.stop().await;
    site.run_until_caught_up().await;
    let mut reader = Reader::start();
    Shop::assert_mirrored(&mut reader, Engine::DuckDb, &url, &site.lake(), &[]).await;
    Shop::assert_whole_transactions(&mut reader, Engine::DuckDb, &site.lake(), 30).await;
}

#[tokio::test]
async fn a_second_daemon_in_the_same_state_dir_is_refused_at_once() {
    let postgres = Postgres::start().await;
    let client = postgres.create_database("shop").await;
    client.batch_execute("CREATE TABLE orders (id int PRIMARY KEY)").await.unwrap();
    let site = Site::of_shop(&postgres.url("shop"));
    let mut daemon = site.start().await;
    let second = site.command(&["run"]).await;
    assert_eq!(second.code, Some(1), "{}\n{}", second.stdout, second.stderr);
    assert!(second.stderr.contains("state_dir"), "{}", second.stderr);
    daemon.wait_streaming(Duration::from_secs(60)).await;
    daemon.stop().await;
}
