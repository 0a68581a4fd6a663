//! The harness itself: what the other tests stand on.

use tidewater_e2e::Postgres;

#[tokio::test]
async fn a_throwaway_cluster_is_ready_for_logical_replication() {
    let postgres = Postgres::start_with(&[("work_mem", "5MB")]).await;
    let client = postgres.create_database("shop").await;
    let row = client
        .query_one(
            "SELECT current_setting('wal_level'), current_setting('work_mem'), current_database()::text",
            &[],
        )
        .await
        .unwrap();
    assert_eq!([row.get::<_, &str>(0), row.get(1), row.get(2)], ["logical", "5MB", "shop"]);
}

#[tokio::test]
async fn a_killed_cluster_comes_back_at_its_address_with_its_rows() {
    let mut postgres = Postgres::start().await;
    let client = postgres.create_database("shop").await;
    client
        .batch_execute("CREATE TABLE t (a int); INSERT INTO t SELECT generate_series(1, 100)")
        .await
        .unwrap();
    let url = postgres.url("shop");
    postgres.kill9().await;
    postgres.restart().await;
    assert_eq!(postgres.url("shop"), url);
    let client = postgres.connect("shop").await;
    let count: i64 = client.query_one("SELECT count(*) FROM t", &[]).await.unwrap().get(0);
    assert_eq!(count, 100);
}

#[tokio::test]
async fn clusters_do_not_share_their_databases() {
    let (one, other) = tokio::join!(Postgres::start(), Postgres::start());
    one.create_database("shop").await;
    other.create_database("shop").await;
    assert_ne!(one.port(), other.port());
}
