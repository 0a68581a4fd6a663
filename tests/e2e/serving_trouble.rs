//! What goes wrong with a served table has a stated outcome, and the other tables go on.

use std::time::Duration;

use crate::serving::{Served, configuration, rows, status_of, wait_state};
use serde_json::Value;
use tidewater_e2e::Daemon;

const SOON: Duration = Duration::from_secs(90);

pub const OTHER: &str = "table: shop.public.other, into: serving.other, mode: continuous, primary_key: [id]";

pub fn with_other(sql: &str) -> String {
    format!("CREATE TABLE other (id int PRIMARY KEY, v text); INSERT INTO other VALUES (1, 'one'); {sql}")
}

pub async fn wait_error(daemon: &mut Daemon, table: &str, words: &[&str]) -> Value {
    let has = |status: &Value| {
        let error = status_of(status, table).and_then(|found| found["error"].as_str()).unwrap_or_default();
        !error.is_empty() && words.iter().all(|word| error.contains(word))
    };
    let status = daemon.wait_status(SOON, has).await;
    status_of(&status, table).unwrap().clone()
}

/// Waits until the served table gives this answer.
pub async fn wait_rows(served: &Served, sql: &str, expected: &[&str]) {
    let deadline = std::time::Instant::now() + SOON;
    loop {
        let found: Vec<String> = match served.target.simple_query(sql).await {
            Ok(_) => {
                served.rows(sql).await.into_iter().map(|row| row[0].clone().unwrap_or_default()).collect()
            }
            Err(_) => Vec::new(),
        };
        if found == expected {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "{sql} gives {found:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The others go on: what happens to one of them arrives.
pub async fn assert_others_go_on(served: &Served, value: &str) {
    served.source.batch_execute(&format!("UPDATE other SET v = '{value}'")).await.unwrap();
    wait_rows(served, "SELECT v FROM serving.other", &[value]).await;
}

#[tokio::test]
async fn null_keys_and_shared_keys_are_kept_out_named_and_come_back_when_mended() {
    let sql = with_other(
        "CREATE TABLE loose (id int, v text); ALTER TABLE loose REPLICA IDENTITY FULL;
         INSERT INTO loose VALUES (1, 'a'), (2, 'b'), (2, 'c'), (NULL, 'd'), (3, 'e')",
    );
    let entry = "table: shop.public.loose, into: serving.loose, mode: continuous, primary_key: [id]";
    let served = Served::new(&sql, &[entry, OTHER]).await;
    let mut daemon = served.site.start().await;
    let found = wait_state(&mut daemon, "serving.loose", "serving").await;
    let note = found["note"].as_str().unwrap();
    assert!(note.contains("1 with a null key") && note.contains("2 that share their key"), "{note}");
    assert!(note.contains("id=2: several rows have this key"), "{note}");
    let all = "SELECT v FROM serving.loose ORDER BY v";
    wait_rows(&served, all, &["a", "e"]).await;
    // The changes alone do not say what is right now: the table is compared as a whole, and is right again.
    served
        .source
        .batch_execute("DELETE FROM loose WHERE v = 'c'; UPDATE loose SET id = 4 WHERE v = 'd'")
        .await
        .unwrap();
    wait_rows(&served, all, &["a", "b", "d", "e"]).await;
    served.source.batch_execute("INSERT INTO loose VALUES (1, 'f')").await.unwrap();
    wait_rows(&served, all, &["b", "d", "e"]).await;
    served.source.batch_execute("INSERT INTO loose VALUES (9, 'z')").await.unwrap();
    wait_rows(&served, all, &["b", "d", "e", "z"]).await;
    served.source.batch_execute("DELETE FROM loose WHERE v = 'a'").await.unwrap();
    wait_rows(&served, all, &["b", "d", "e", "f", "z"]).await;
    assert_others_go_on(&served, "on").await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_value_that_does_not_fit_is_named_and_the_others_go_on() {
    let sql = with_other(
        "CREATE TABLE short (id int PRIMARY KEY, v text, u text); INSERT INTO short VALUES (1, 'abc', gen_random_uuid()), (2, 'abcd', gen_random_uuid()), (3, 'ab', 'no');
         CREATE TABLE odd (id int PRIMARY KEY, v text); INSERT INTO odd VALUES (1, '10.0.0.1'), (7, 'nowhere')",
    );
    let short = "table: shop.public.short, into: serving.short, mode: continuous, primary_key: [id], type_overrides: {v: varchar(3), u: uuid}";
    let odd = "table: shop.public.odd, into: serving.odd, mode: continuous, primary_key: [id], type_overrides: {v: inet}";
    let served = Served::new(&sql, &[short, odd, OTHER]).await;
    let mut daemon = served.site.start().await;
    let found = wait_state(&mut daemon, "serving.short", "serving").await;
    let note = found["note"].as_str().unwrap();
    assert!(note.contains("2 with a value that does not fit"), "{note}");
    assert!(note.contains("id=2: column v holds a text of 4 characters where 3 fit"), "{note}");
    assert!(note.contains("id=3: column u holds a text that is no UUID"), "{note}");
    wait_rows(&served, "SELECT id FROM serving.short", &["1"]).await;
    // Mended one by one, by their changes.
    served.source.batch_execute("UPDATE short SET v = 'x' WHERE id = 2").await.unwrap();
    wait_rows(&served, "SELECT id FROM serving.short ORDER BY id", &["1", "2"]).await;
    let counted = "SELECT misfits FROM tidewater.served_tables WHERE table_name = 'short'";
    assert_eq!(served.rows(counted).await, [[Some("1".to_owned())]]);
    let mend = "UPDATE short SET u = gen_random_uuid() WHERE id = 3";
    served.source.batch_execute(mend).await.unwrap();
    wait_rows(&served, "SELECT id FROM serving.short ORDER BY id", &["1", "2", "3"]).await;
    // A served row that comes not to fit is served no more, and returns when it is mended.
    served.source.batch_execute("UPDATE short SET v = 'abcd' WHERE id = 1").await.unwrap();
    wait_rows(&served, "SELECT id FROM serving.short ORDER BY id", &["2", "3"]).await;
    assert_eq!(served.rows(counted).await, [[Some("1".to_owned())]]);
    served.source.batch_execute("UPDATE short SET v = 'abc' WHERE id = 1").await.unwrap();
    wait_rows(&served, "SELECT id FROM serving.short ORDER BY id", &["1", "2", "3"]).await;
    assert_eq!(served.rows(counted).await, [[Some("0".to_owned())]]);

    let found = wait_error(&mut daemon, "serving.odd", &["id=7", "column v", "inet", "nowhere"]).await;
    assert_eq!(found["state"], "failed");
    assert_others_go_on(&served, "on").await;
    served.source.batch_execute("UPDATE odd SET v = '::1' WHERE id = 7").await.unwrap();
    wait_rows(&served, "SELECT host(v) FROM serving.odd ORDER BY id", &["10.0.0.1", "::1"]).await;
    daemon.stop().await;
}

#[tokio::test]
async fn what_somebody_took_away_at_the_target_is_put_back() {
    let sql = with_other(
        "CREATE TABLE t (id int PRIMARY KEY, v text, n int); INSERT INTO t VALUES (1, 'a', 1), (2, 'b', 2)",
    );
    let entry = "table: shop.public.t, into: serving.t, mode: continuous, primary_key: [id]";
    let served = Served::new(&sql, &[entry, OTHER]).await;
    let mut daemon = served.site.start().await;
    wait_state(&mut daemon, "serving.t", "serving").await;
    served.target.batch_execute("ALTER TABLE serving.t DROP COLUMN v").await.unwrap();
    served.source.batch_execute("UPDATE t SET n = 3 WHERE id = 2").await.unwrap();
    wait_rows(&served, "SELECT v || n FROM serving.t ORDER BY id", &["a1", "b3"]).await;
    served.target.batch_execute("DROP TABLE serving.t").await.unwrap();
    served.source.batch_execute("UPDATE t SET n = 4 WHERE id = 2").await.unwrap();
    wait_rows(&served, "SELECT v || n FROM serving.t ORDER BY id", &["a1", "b4"]).await;
    assert_others_go_on(&served, "on").await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_table_that_is_not_there_is_waited_for_and_a_foreign_one_is_left_alone() {
    let missing = "table: shop.public.late, into: serving.late, mode: continuous, primary_key: [id]";
    let foreign = "table: shop.public.other, into: serving.taken, mode: continuous, primary_key: [id]";
    let served = Served::new(&with_other(""), &[missing, foreign, OTHER]).await;
    served.target.batch_execute("CREATE SCHEMA serving; CREATE TABLE serving.taken (mine int); INSERT INTO serving.taken VALUES (1)").await.unwrap();
    let mut daemon = served.site.start().await;
    wait_error(&mut daemon, "serving.late", &["cannot be found"]).await;
    wait_error(&mut daemon, "serving.taken", &["not made by Tidewater", "move it away"]).await;
    assert_others_go_on(&served, "on").await;
    assert_eq!(served.rows("SELECT mine FROM serving.taken").await, [[Some("1".to_owned())]]);
    served
        .source
        .batch_execute("CREATE TABLE late (id int PRIMARY KEY); INSERT INTO late VALUES (1)")
        .await
        .unwrap();
    wait_rows(&served, "SELECT id FROM serving.late", &["1"]).await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_role_without_privileges_is_told_so_and_serving_goes_on_once_it_has_them() {
    let entry =
        "table: shop.public.other, into: serving.other, mode: triggered, every: 1s, primary_key: [id]";
    let served = Served::new(&with_other(""), &[entry]).await;
    served.target.batch_execute("CREATE ROLE server LOGIN").await.unwrap();
    let as_server = configuration(&served.postgres, &[entry])
        .replace(&served.postgres.url("app"), &served.postgres.url("app").replace("postgres@", "server@"));
    assert!(as_server.contains("server@"), "{as_server}");
    served.site.configure(&as_server);
    let finished = served.site.command(&["run", "--until-caught-up"]).await;
    assert_eq!(finished.code, Some(1), "{}", finished.stderr);
    assert!(finished.stderr.contains("needs CREATE on the database"), "{}", finished.stderr);
    served.target.batch_execute("GRANT CREATE ON DATABASE app TO server").await.unwrap();
    served.site.run_until_caught_up().await;
    assert_eq!(served.rows("SELECT v FROM serving.other").await, [[Some("one".to_owned())]]);
}

#[tokio::test]
async fn nobody_writes_to_a_served_table_and_readers_get_what_they_were_granted() {
    let entry = "table: shop.public.other, into: serving.other, mode: triggered, primary_key: [id], grants: {select: [app_reader]}";
    let served = Served::new(&with_other(""), &[entry]).await;
    served
        .target
        .batch_execute(
            "CREATE ROLE app_reader LOGIN; CREATE ROLE stranger LOGIN; GRANT pg_write_all_data TO app_reader",
        )
        .await
        .unwrap();
    served.site.run_until_caught_up().await;
    let refused = async |sql: &str| {
        let error = served.target.batch_execute(sql).await.unwrap_err();
        error.as_db_error().map(|error| (error.code().code().to_owned(), error.message().to_owned())).unwrap()
    };
    for sql in [
        "UPDATE serving.other SET v = 'x'",
        "DELETE FROM serving.other",
        "INSERT INTO serving.other VALUES (2, 'x')",
        "TRUNCATE serving.other",
    ] {
        let (code, message) = refused(sql).await;
        assert_eq!(code, "25006", "{sql}: {message}");
        let as_reader = format!("SET ROLE app_reader; SET tidewater.applying = 'off'; {sql}");
        assert!(!refused(&as_reader).await.0.is_empty());
        served.target.batch_execute("RESET ROLE").await.unwrap();
    }
    let reader = served.postgres.url("app").replace("postgres@", "app_reader@");
    let (client, connection) = tokio_postgres::connect(&reader, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    assert_eq!(rows(&client, "SELECT v FROM serving.other").await, [[Some("one".to_owned())]]);
    // Saying what only the owner may say changes nothing.
    let error = client
        .batch_execute("SET tidewater.applying = 'on'; UPDATE serving.other SET v = 'x'")
        .await
        .unwrap_err();
    assert_eq!(error.as_db_error().unwrap().code().code(), "25006");
    let stranger = served.target.batch_execute("SET ROLE stranger; SELECT * FROM serving.other").await;
    assert!(stranger.is_err());
}

#[tokio::test]
async fn a_served_table_can_be_paused_resumed_verified_and_mended() {
    let served = Served::new(&with_other(""), &[OTHER]).await;
    let mut daemon = served.site.start().await;
    wait_state(&mut daemon, "serving.other", "serving").await;
    let verify = || served.site.command(&["verify", "serving.other"]);
    let equal = verify().await;
    assert_eq!(equal.code, Some(0), "{}{}", equal.stdout, equal.stderr);
    assert!(equal.stdout.contains("app.serving.other: equal, 1 rows"), "{}", equal.stdout);
    // A superuser who says that it is meant.
    served.target.batch_execute("SET tidewater.applying = 'on'; UPDATE serving.other SET v = 'x'; INSERT INTO serving.other VALUES (5, 'y'); RESET tidewater.applying").await.unwrap();
    let different = verify().await;
    assert_eq!(different.code, Some(3), "{}{}", different.stdout, different.stderr);
    assert!(
        different.stdout.contains("id=1: other values")
            && different.stdout.contains("id=5: only in Postgres"),
        "{}",
        different.stdout
    );
    assert_eq!(served.site.command(&["resync", "serving.other"]).await.code, Some(0));
    wait_rows(&served, "SELECT v FROM serving.other", &["one"]).await;

    assert_eq!(served.site.command(&["pause", "serving.other"]).await.code, Some(0));
    wait_state(&mut daemon, "serving.other", "paused").await;
    let version = served.version("other").await;
    served.source.batch_execute("UPDATE other SET v = 'two'").await.unwrap();
    daemon.kill9().await;
    let mut daemon = served.site.start().await;
    wait_state(&mut daemon, "serving.other", "paused").await;
    assert_eq!(served.version("other").await, version);
    assert_eq!(served.site.command(&["resume", "serving.other"]).await.code, Some(0));
    wait_rows(&served, "SELECT v FROM serving.other", &["two"]).await;
    daemon.stop().await;
}
