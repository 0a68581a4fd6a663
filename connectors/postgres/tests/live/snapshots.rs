//! Snapshots exported by a slot and read piece by piece.

use crate::server::database;
use postgres_connector::{
    Client, CopyColumn, CtidRange, Error, LeafTable, ReplicationSession, SlotOptions, SnapshotSession,
    ctid_ranges, import_snapshot,
};

const EXPORTING: SlotOptions = SlotOptions { temporary: true, export_snapshot: true, failover: false };
/// Signature, flags and extension length before the rows; the trailer after them.
const HEADER_BYTES: usize = 19;

async fn copy(
    session: &mut SnapshotSession,
    table: &LeafTable,
    columns: &[CopyColumn],
    range: CtidRange,
) -> Vec<Vec<Option<String>>> {
    let (mut copy, mut data) = (session.copy(table, columns, range).await.unwrap(), Vec::new());
    while let Some(chunk) = copy.next().await.unwrap() {
        chunk.pieces().for_each(|piece| data.extend_from_slice(piece));
    }
    let (mut at, mut rows) = (HEADER_BYTES, Vec::new());
    let mut take = |count: usize| {
        at += count;
        data[at - count..at].to_vec()
    };
    loop {
        let fields = i16::from_be_bytes(take(2).try_into().unwrap());
        if fields < 0 {
            return rows;
        }
        let mut row = Vec::new();
        for _ in 0..fields {
            let length = i32::from_be_bytes(take(4).try_into().unwrap());
            row.push(usize::try_from(length).ok().map(|length| String::from_utf8(take(length)).unwrap()));
        }
        rows.push(row);
    }
}

async fn columns(client: &Client, table: &str) -> Vec<CopyColumn> {
    let sql = "SELECT attname::text, atttypid FROM pg_attribute WHERE attrelid = $1::text::regclass AND attnum > 0 ORDER BY attnum";
    let rows = client.query(sql, &[&table]).await.unwrap();
    rows.iter().map(|row| CopyColumn { name: row.get(0), type_oid: row.get(1), binary: false }).collect()
}

async fn oid(client: &Client, table: &str) -> u32 {
    client.query_one("SELECT $1::text::regclass::oid", &[&table]).await.unwrap().get(0)
}

#[tokio::test]
async fn every_worker_sees_exactly_what_was_there_when_the_slot_was_made() {
    let (config, client) = database("snapshot_rows").await;
    client
        .batch_execute(
            "CREATE TABLE plain (id int PRIMARY KEY, pad text);
             INSERT INTO plain SELECT i, repeat('x', 500) FROM generate_series(1, 2000) i; DELETE FROM plain WHERE id % 10 = 0;
             CREATE TABLE parts (id int, region text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
             CREATE TABLE parts_eu (region text, id int, PRIMARY KEY (id, region));
             ALTER TABLE parts ATTACH PARTITION parts_eu FOR VALUES IN ('eu');
             CREATE TABLE parts_rest PARTITION OF parts DEFAULT;
             INSERT INTO parts SELECT i, CASE WHEN i % 2 = 0 THEN 'eu' ELSE 'us' END FROM generate_series(1, 100) i",
        )
        .await
        .unwrap();
    let mut exporter = ReplicationSession::connect(&config).await.unwrap();
    let slot = exporter.create_logical_slot("snapshot_rows_1", EXPORTING).await.unwrap();
    let snapshot = slot.snapshot.unwrap();
    client
        .batch_execute(
            "UPDATE plain SET pad = 'late'; DELETE FROM plain WHERE id < 100; DELETE FROM parts;
             INSERT INTO plain SELECT i, 'late' FROM generate_series(5001, 6000) i",
        )
        .await
        .unwrap();
    let mut workers = import_snapshot(&config, &snapshot, 2).await.unwrap();
    // The next command on the exporting session ends the snapshot for newcomers, not for those who have it.
    exporter.identify_system().await.unwrap();
    assert!(matches!(import_snapshot(&config, &snapshot, 1).await, Err(Error::Server { .. })));

    let plain = workers[0].leaf_tables(oid(&client, "public.plain").await).await.unwrap();
    assert_eq!(plain.len(), 1);
    let ranges = ctid_ranges(plain[0].pages, 30);
    assert!(ranges.len() > 3, "{ranges:?}");
    let mut ids = Vec::new();
    for (piece, range) in ranges.into_iter().enumerate() {
        let worker = &mut workers[piece % 2];
        for row in copy(worker, &plain[0], &columns(&client, "public.plain").await, range).await {
            assert_eq!(row[1].as_ref().unwrap().len(), 500);
            ids.push(row[0].as_ref().unwrap().parse::<i32>().unwrap());
        }
    }
    ids.sort_unstable();
    assert_eq!(ids, (1..=2000).filter(|id| id % 10 != 0).collect::<Vec<_>>());

    let leaves = workers[1].leaf_tables(oid(&client, "public.parts").await).await.unwrap();
    assert_eq!(leaves.len(), 2);
    let list = columns(&client, "public.parts").await;
    let mut rows = 0;
    for leaf in &leaves {
        for row in copy(&mut workers[1], leaf, &list, CtidRange::WHOLE).await {
            let id: i32 = row[0].as_ref().unwrap().parse().unwrap();
            assert_eq!(row[1].as_deref(), Some(if id % 2 == 0 { "eu" } else { "us" }));
            rows += 1;
        }
    }
    assert_eq!(rows, 100);
}

/// What each statement changes makes the COPY read no rows, other rows or other columns than the snapshot has.
#[tokio::test]
async fn a_table_that_the_snapshot_does_not_show_any_more_is_not_read() {
    let (config, client) = database("snapshot_changed").await;
    let statements = [
        ("rewritten", "ALTER TABLE rewritten ALTER COLUMN n TYPE int USING n * 2"),
        ("emptied", "TRUNCATE emptied"),
        ("retyped", "ALTER TABLE retyped ALTER COLUMN net TYPE inet"),
        (
            "swapped",
            "ALTER TABLE swapped RENAME n TO t; ALTER TABLE swapped RENAME id TO n; ALTER TABLE swapped RENAME t TO id",
        ),
        (
            "replaced",
            "ALTER TABLE replaced RENAME TO other; CREATE TABLE replaced (id int, n int, net cidr); INSERT INTO replaced VALUES (1, 1)",
        ),
        ("moved", "VACUUM FULL moved"),
        ("grown", "ALTER TABLE grown ADD COLUMN more int DEFAULT 7"),
        ("untouched", "UPDATE untouched SET n = -n"),
    ];
    for (table, _) in statements {
        let sql = format!(
            "CREATE TABLE {table} (id int, n int, net cidr); INSERT INTO {table} VALUES (1, 2, '::1')"
        );
        client.batch_execute(&sql).await.unwrap();
    }
    let list = columns(&client, "public.untouched").await;
    let mut exporter = ReplicationSession::connect(&config).await.unwrap();
    let slot = exporter.create_logical_slot("snapshot_changed_1", EXPORTING).await.unwrap();
    let mut session = import_snapshot(&config, &slot.snapshot.unwrap(), 1).await.unwrap().remove(0);
    let mut tables = Vec::new();
    for (table, _) in statements {
        let oid = oid(&client, &format!("public.{table}")).await;
        tables.push(session.leaf_tables(oid).await.unwrap().remove(0));
    }
    for (_, sql) in statements {
        client.batch_execute(sql).await.unwrap();
    }
    let mut read = Vec::new();
    for table in &tables {
        match session.copy(table, &list, CtidRange::WHOLE).await {
            Ok(mut copy) => {
                while copy.next().await.unwrap().is_some() {}
                read.push(table.name.as_str());
            }
            Err(error) => assert!(error.asks_for_another_snapshot(), "{}: {error}", table.name),
        }
    }
    assert_eq!(read, ["grown", "untouched"]);
}

#[tokio::test]
async fn a_table_is_locked_only_while_a_piece_of_it_is_read() {
    let (config, client) = database("snapshot_locks").await;
    client
        .batch_execute("CREATE TABLE one (id int); CREATE TABLE two (id int); INSERT INTO one VALUES (1)")
        .await
        .unwrap();
    let mut exporter = ReplicationSession::connect(&config).await.unwrap();
    let slot = exporter.create_logical_slot("snapshot_locks_1", EXPORTING).await.unwrap();
    let mut session = import_snapshot(&config, &slot.snapshot.unwrap(), 1).await.unwrap().remove(0);
    let one = session.leaf_tables(oid(&client, "public.one").await).await.unwrap().remove(0);
    let two = session.leaf_tables(oid(&client, "public.two").await).await.unwrap().remove(0);
    let list = columns(&client, "public.one").await;
    let locks = "SELECT count(*) FROM pg_locks WHERE relation IN ('one'::regclass, 'two'::regclass)";
    let locks = async || client.query_one(locks, &[]).await.unwrap().get::<_, i64>(0);
    let mut reading = session.copy(&one, &list, CtidRange::WHOLE).await.unwrap();
    assert_eq!(locks().await, 1);
    while reading.next().await.unwrap().is_some() {}
    assert_eq!(locks().await, 0);

    // Whoever keeps a table locked holds up that table only.
    client.batch_execute("BEGIN; LOCK TABLE one").await.unwrap();
    let error = session.copy(&one, &list, CtidRange::WHOLE).await.err().unwrap();
    assert!(error.asks_for_another_snapshot(), "{error}");
    assert_eq!(copy(&mut session, &two, &list, CtidRange::WHOLE).await.len(), 0);
    client.batch_execute("COMMIT").await.unwrap();
    assert_eq!(copy(&mut session, &one, &list, CtidRange::WHOLE).await.len(), 1);
}

#[tokio::test]
async fn text_is_what_the_type_prints_and_not_what_a_cast_makes_of_it() {
    let (config, client) = database("snapshot_text").await;
    client
        .batch_execute(
            "CREATE TYPE mood AS ENUM ('calm', 'cross'); CREATE TYPE pair AS (a int, b text); CREATE DOMAIN code AS char(6);
             CREATE FUNCTION shout(mood) RETURNS text LANGUAGE sql IMMUTABLE RETURN 'CAST';
             CREATE CAST (mood AS text) WITH FUNCTION shout(mood);
             CREATE TABLE odd (padded char(5), address inet, net cidr, truth bool, letter \"char\", feeling mood, both_ pair,
                               nothing pair, short code, spans interval, at time, tags int[], gone text);
             INSERT INTO odd VALUES ('ab', '192.168.1.1', '10.0.0.0/8', true, 'x', 'calm', (1, 'z'), (NULL, NULL), 'q', 
                                     '1 day 2 hours', '04:05:06', '{1,NULL}', NULL)",
        )
        .await
        .unwrap();
    let mut exporter = ReplicationSession::connect(&config).await.unwrap();
    let slot = exporter.create_logical_slot("snapshot_text_1", EXPORTING).await.unwrap();
    let mut session = import_snapshot(&config, &slot.snapshot.unwrap(), 1).await.unwrap().remove(0);
    let table = session.leaf_tables(oid(&client, "public.odd").await).await.unwrap().remove(0);
    let rows = copy(&mut session, &table, &columns(&client, "public.odd").await, CtidRange::WHOLE).await;
    let row: Vec<Option<&str>> = rows[0].iter().map(Option::as_deref).collect();
    let expected = [
        "ab   ",
        "192.168.1.1",
        "10.0.0.0/8",
        "t",
        "x",
        "calm",
        "(1,z)",
        "(,)",
        "q     ",
        "P1DT2H",
        "04:05:06",
        "{1,NULL}",
    ];
    let mut expected: Vec<Option<&str>> = expected.into_iter().map(Some).collect();
    expected.push(None);
    assert_eq!(row, expected);
}
