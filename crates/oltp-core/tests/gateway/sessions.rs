//! Names, authentication, programs, replication.

use crate::house::{House, complaint, connect, printed, text, until};

#[tokio::test]
async fn psql_and_its_kin_work_as_with_any_postgres() {
    let house = House::new().await;
    assert_eq!(printed(house.psql("shop", "SELECT current_user, current_database()").await), "ann|shop");
    printed(house.psql("shop@main", "CREATE DATABASE reports").await);
    printed(house.psql("shop", "CREATE DATABASE \"a.b@c\"").await);
    let named = [
        ("shop.reports", "reports"),
        ("shop.reports@main", "reports"),
        ("postgresql:///shop.reports%40main", "reports"),
        ("\"shop\".\"a.b@c\"@main", "a.b@c"),
        ("dbname=shop.reports options='-c work_mem=17MB' application_name=x", "reports"),
    ];
    for (connection, database) in named {
        assert_eq!(
            printed(house.psql(connection, "SELECT current_database()").await),
            database,
            "{connection}"
        );
    }

    let mut pgbench = house.program("pgbench");
    printed(pgbench.args(["--initialize", "--quiet", "--scale=1", "shop"]).output().await.unwrap());
    for mode in ["simple", "extended", "prepared"] {
        let mut pgbench = house.program("pgbench");
        pgbench.args(["--client=4", "--transactions=25", "--protocol", mode, "shop"]);
        assert!(printed(pgbench.output().await.unwrap()).contains("100/100"));
    }
    let mut dump = house.program("pg_dump");
    let dump = printed(dump.args(["--table=pgbench_accounts", "shop@main"]).output().await.unwrap());
    assert_eq!(dump.lines().filter(|line| line.split('\t').count() == 4).count(), 100_000);
    house.close().await;
}

#[tokio::test]
async fn passwords_are_checked_and_the_cores_own_role_is_not_let_in() {
    let house = House::new().await;
    house.connect("shop").await.unwrap();
    let error = connect(house.config("shop").password("wrong")).await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "28P01");
    let superuser = house.superuser_config().await;
    let mut through = house.config("shop");
    through.user("tidewater").password(superuser.get_password().unwrap());
    let error = connect(&through).await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "28000");
    house.close().await;
}

#[tokio::test]
async fn names_that_lead_nowhere_are_refused_with_a_remedy() {
    let house = House::new().await;
    for (database, code, expected) in [
        ("nothing", "3D000", "project \"nothing\" does not exist"),
        ("shop@nothing", "3D000", "project \"shop\" has no branch \"nothing\""),
        ("shop.nothing", "3D000", "database \"nothing\" does not exist"),
        ("shop@a@b", "3D000", "two branches"),
        ("full", "53300", "too many databases are running"),
        ("shop@broken", "57P03", "cannot be started now"),
    ] {
        let error = house.connect(database).await.unwrap_err();
        let error = error.as_db_error().unwrap();
        assert_eq!(error.code().code(), code, "{error:?}");
        assert!(error.message().contains(expected), "{error:?}");
        assert!(!format!("{error:?}").contains("/secret"), "{error:?}");
    }
    let complaint = complaint(&house.psql("nothing", "SELECT 1").await);
    assert!(complaint.contains("tidewater branch list"), "{complaint}");
    house.close().await;
}

#[tokio::test]
async fn a_session_passes_large_values_and_its_end_both_ways() {
    let house = House::new().await;
    let client = house.connect("shop").await.unwrap();
    let value = "x".repeat(5 << 20);
    let row = client.query_one("SELECT $1::text || 'y'", &[&value]).await.unwrap();
    assert_eq!(row.get::<_, String>(0).len(), value.len() + 1);
    house.until(|counters| counters.sessions_now == 1).await;

    let superuser = house.superuser().await;
    let backend = text(&client, "SELECT pg_backend_pid()::text").await;
    superuser.execute(&format!("SELECT pg_terminate_backend({backend})"), &[]).await.unwrap();
    let error = client.query_one("SELECT 1", &[]).await.unwrap_err();
    // What the server said last arrives, when the client had not begun to speak before it.
    assert!(error.code().is_none_or(|code| code.code() == "57P01"), "{error}");
    house.until(|counters| counters.sessions_now == 0).await;

    let client = house.connect("shop").await.unwrap();
    drop(client);
    house.until(|counters| counters.sessions_now == 0).await;
    let others = "SELECT count(*)::text FROM pg_stat_activity WHERE usename = 'ann'";
    until("its backend ends with it", async || text(&superuser, others).await == "0").await;
    house.close().await;
}

#[tokio::test]
async fn logical_replication_passes_and_physical_does_not() {
    let house = House::new().await;
    let slot = "SELECT pg_create_logical_replication_slot('s', 'test_decoding')";
    printed(house.psql("shop", slot).await);
    printed(house.psql("shop", "CREATE TABLE t (a int); INSERT INTO t VALUES (7)").await);
    let end = printed(house.psql("shop", "SELECT pg_current_wal_insert_lsn()").await);
    let mut receive = house.program("pg_recvlogical");
    receive.args(["--dbname=shop@main", "--slot=s", "--start", "--no-loop", "--file=-", "--endpos", &end]);
    let changes = printed(receive.output().await.unwrap());
    assert!(changes.contains("INSERT: a[integer]:7"), "{changes}");

    let mut backup = house.program("pg_basebackup");
    backup.args(["--dbname", "dbname=shop", "--pgdata"]).arg(house.file("backup"));
    let complaint_of_backup = complaint(&backup.output().await.unwrap());
    assert!(complaint_of_backup.contains("physical replication"), "{complaint_of_backup}");
    for (connection, command) in [
        ("dbname=shop replication=database", "START_REPLICATION 0/0"),
        ("dbname=shop replication=database", "BASE_BACKUP"),
        ("dbname=shop replication=database application_name=Tidewater_keeper", "IDENTIFY_SYSTEM"),
    ] {
        let complaint = complaint(&house.psql(connection, command).await);
        assert!(complaint.contains("FATAL") && complaint.contains("not"), "{complaint}");
    }
    let named = "ALTER ROLE ann SET application_name = 'tidewater_keeper'";
    printed(house.psql("shop", named).await);
    let shown = house.psql("dbname=shop replication=database", "SHOW application_name").await;
    assert_eq!(printed(shown), "psql");
    let mut renamed = house.program("psql");
    renamed.arg("dbname=shop replication=database");
    renamed.args(["-c", "SELECT set_config('application_name', 'tide' || 'water_keeper', false)"]);
    renamed.args(["-c", "START_REPLICATION SLOT s LOGICAL 0/0"]);
    let complaint = complaint(&renamed.output().await.unwrap());
    assert!(complaint.contains("application_name"), "{complaint}");
    house.close().await;
}
