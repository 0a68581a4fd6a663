//! Which tables can be synced, how, and that the application never notices.

use crate::server::{database, globs};
use globset::GlobSet;
use postgres_connector::{
    Client, Error, Generated, PublishedTable, ReplicaIdentity, SkipReason, SourceTable, TableKind,
    TableListing, Unusable, connect, ensure_publications, list_tables, publication_names, read_types,
    server_version,
};

/// One of every kind, each with a row that the application will change.
const EVERY_KIND: &str = "
    CREATE TABLE with_key (b int, a int, v text, PRIMARY KEY (a, b)); INSERT INTO with_key VALUES (1, 1, 'v');
    CREATE TABLE with_index (id int NOT NULL, v text); CREATE UNIQUE INDEX with_index_id ON with_index (id) INCLUDE (v);
      ALTER TABLE with_index REPLICA IDENTITY USING INDEX with_index_id; INSERT INTO with_index VALUES (1, 'v');
    CREATE TABLE index_gone (id int NOT NULL, v text); CREATE UNIQUE INDEX index_gone_id ON index_gone (id);
      ALTER TABLE index_gone REPLICA IDENTITY USING INDEX index_gone_id; DROP INDEX index_gone_id; INSERT INTO index_gone VALUES (1, 'v');
    CREATE TABLE deferrable_key (id int PRIMARY KEY DEFERRABLE, v text); INSERT INTO deferrable_key VALUES (1, 'v');
    CREATE TABLE no_key (id int, v text); INSERT INTO no_key VALUES (1, 'v');
    CREATE TABLE nothing (id int PRIMARY KEY, v text); ALTER TABLE nothing REPLICA IDENTITY NOTHING; INSERT INTO nothing VALUES (1, 'v');
    CREATE TABLE whole (id int, v text); ALTER TABLE whole REPLICA IDENTITY FULL; INSERT INTO whole VALUES (1, 'v');
    CREATE TABLE parted (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
      CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (10); INSERT INTO parted VALUES (1, 'v');
    CREATE TABLE parted_odd (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
      CREATE TABLE parted_odd_1 PARTITION OF parted_odd FOR VALUES FROM (0) TO (10);
      ALTER TABLE parted_odd_1 REPLICA IDENTITY NOTHING; INSERT INTO parted_odd VALUES (1, 'v');
    CREATE TABLE parted_full (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
      ALTER TABLE parted_full REPLICA IDENTITY FULL;
      CREATE TABLE parted_full_1 PARTITION OF parted_full FOR VALUES FROM (0) TO (10); INSERT INTO parted_full VALUES (1, 'v');
    CREATE TABLE computed (id int PRIMARY KEY, v text, s int GENERATED ALWAYS AS (id + 1) STORED, w int GENERATED ALWAYS AS (id + 2));
      INSERT INTO computed VALUES (1, 'v');
    CREATE TABLE computed_key (id int, v text, k int GENERATED ALWAYS AS (id + 1) STORED PRIMARY KEY); INSERT INTO computed_key VALUES (1, 'v');
    CREATE TABLE parent (id int PRIMARY KEY, v text); CREATE TABLE child (PRIMARY KEY (id)) INHERITS (parent);
      INSERT INTO parent VALUES (1, 'v'); INSERT INTO child VALUES (2, 'v');
    CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY, v text);
    CREATE VIEW a_view AS SELECT 1 AS id; CREATE MATERIALIZED VIEW kept AS SELECT 1 AS id;
    CREATE TABLE parted_unlogged (id int PRIMARY KEY) PARTITION BY RANGE (id);
      CREATE UNLOGGED TABLE parted_unlogged_1 PARTITION OF parted_unlogged FOR VALUES FROM (0) TO (10);
    CREATE SCHEMA \"Other one\"; CREATE TABLE \"Other one\".\"odd \"\"name\" (id int PRIMARY KEY, v text);
      INSERT INTO \"Other one\".\"odd \"\"name\" VALUES (1, 'v')";

const VIRTUAL_COLUMN: &str = ", w int GENERATED ALWAYS AS (id + 2)";

/// Virtual columns, and generated ones in publications, came with Postgres 18.
async fn is_modern(client: &Client) -> bool {
    server_version(client).await.unwrap() >= 180_000
}

async fn make_every_kind(client: &Client) {
    let modern = is_modern(client).await;
    let sql = if modern { EVERY_KIND.to_owned() } else { EVERY_KIND.replace(VIRTUAL_COLUMN, "") };
    client.batch_execute(&sql).await.unwrap();
}

async fn list(client: &Client) -> TableListing {
    list_tables(client, &globs(&["*"]), &GlobSet::empty()).await.unwrap()
}

fn table<'a>(listing: &'a TableListing, name: &str) -> &'a SourceTable {
    listing.tables.iter().find(|table| table.name == name).unwrap_or_else(|| panic!("{name} is not listed"))
}

fn split(listing: &TableListing) -> (Vec<PublishedTable>, Vec<PublishedTable>) {
    let (mut keyed, mut inserts) = (Vec::new(), Vec::new());
    for table in &listing.tables {
        let published = PublishedTable::new(table, &[]).unwrap();
        if matches!(table.identity, ReplicaIdentity::None(_)) {
            inserts.push(published)
        } else {
            keyed.push(published)
        }
    }
    (keyed, inserts)
}

/// What the application does all day.
async fn application_writes(client: &Client, listing: &TableListing) {
    for table in &listing.tables {
        let name = format!("\"{}\".\"{}\"", table.schema, table.name.replace('"', "\"\""));
        let sql = format!(
            "BEGIN; UPDATE {name} SET v = v || '!'; DELETE FROM {name}; ROLLBACK; UPDATE {name} SET v = v || '!'"
        );
        client.batch_execute(&sql).await.unwrap_or_else(|err| panic!("{name}: {err:?}"));
    }
}

#[tokio::test]
async fn every_kind_of_table_is_listed_with_what_its_rows_are_named_by() {
    let (config, client) = database("kinds").await;
    make_every_kind(&client).await;
    let listing = list(&connect(&config).await.unwrap()).await;
    let identity = |name: &str| table(&listing, name).identity.clone();
    assert_eq!(identity("with_key"), ReplicaIdentity::Key(vec![2, 1]));
    assert_eq!(table(&listing, "with_key").key_names(), ["a", "b"]);
    assert_eq!(identity("with_index"), ReplicaIdentity::Key(vec![1]));
    assert_eq!(identity("index_gone"), ReplicaIdentity::None(Unusable::IndexGone));
    assert_eq!(identity("deferrable_key"), ReplicaIdentity::None(Unusable::DeferrableKey));
    assert_eq!(table(&listing, "deferrable_key").primary_key, [1]);
    assert_eq!(identity("no_key"), ReplicaIdentity::None(Unusable::NoKey));
    assert_eq!(identity("nothing"), ReplicaIdentity::None(Unusable::Nothing));
    assert_eq!(identity("whole"), ReplicaIdentity::Full);
    assert_eq!(identity("parted"), ReplicaIdentity::Key(vec![1]));
    assert_eq!(table(&listing, "parted").kind, TableKind::Partitioned);
    assert!(matches!(identity("parted_odd"), ReplicaIdentity::None(Unusable::Partition { .. })));
    assert!(matches!(identity("parted_full"), ReplicaIdentity::None(Unusable::Partition { .. })));
    let modern = is_modern(&client).await;
    let key = match modern {
        true => ReplicaIdentity::Key(vec![3]),
        false => ReplicaIdentity::None(Unusable::UnpublishedColumn { column: "k".into() }),
    };
    assert_eq!(identity("computed_key"), key);
    let computed = table(&listing, "computed");
    let columns: Vec<_> = computed.columns.iter().map(|c| (c.generated, c.published)).collect();
    let expected = [(Generated::None, true), (Generated::Stored, modern), (Generated::Virtual, false)];
    assert_eq!(columns[1..], expected[..if modern { 3 } else { 2 }]);
    let skipped: Vec<_> = listing.skipped.iter().map(|table| (table.name.as_str(), &table.reason)).collect();
    let reason = |name: &str| skipped.iter().find(|(skipped, _)| *skipped == name).unwrap().1.clone();
    assert_eq!(reason("unlogged"), SkipReason::Unlogged);
    assert_eq!(reason("a_view"), SkipReason::View);
    assert_eq!(reason("kept"), SkipReason::MaterializedView);
    assert_eq!(reason("parted_1"), SkipReason::Partition { root: "public.parted".into() });
    assert_eq!(
        reason("parted_unlogged"),
        SkipReason::UnloggedPartition { partition: "public.parted_unlogged_1".into() }
    );
}

#[tokio::test]
async fn the_applications_updates_and_deletes_work_before_and_after_for_every_kind_of_table() {
    let (config, client) = database("application").await;
    make_every_kind(&client).await;
    let listing = list(&client).await;
    application_writes(&client, &listing).await;
    let (keyed, inserts) = split(&listing);
    let names = publication_names("t", "application");
    let mut publisher = connect(&config).await.unwrap();
    ensure_publications(&mut publisher, &names, &keyed, &inserts).await.unwrap();
    application_writes(&client, &listing).await;
    let sql = "SELECT pubname::text, count(*) FROM pg_publication_tables GROUP BY 1 ORDER BY 1";
    let counts: Vec<(String, i64)> =
        client.query(sql, &[]).await.unwrap().iter().map(|r| (r.get(0), r.get(1))).collect();
    assert_eq!(counts, [(names.keyed, keyed.len() as i64), (names.inserts, inserts.len() as i64)]);
}

#[tokio::test]
async fn publishing_again_changes_nothing_and_a_new_identity_moves_the_table() {
    let (config, client) = database("moves").await;
    make_every_kind(&client).await;
    let names = publication_names("t", "moves");
    let mut publisher = connect(&config).await.unwrap();
    let rows = "SELECT string_agg(x, ',' ORDER BY x) FROM (SELECT oid || ':' || xmin AS x FROM pg_publication \
                UNION ALL SELECT oid || ':' || xmin FROM pg_publication_rel) r";
    let mut before = None;
    for _ in 0..2 {
        let listing = list(&client).await;
        let (mut keyed, inserts) = split(&listing);
        // A column list too must be recognised as it is.
        keyed.retain(|table| table.name != "with_key");
        keyed.push(PublishedTable::new(table(&listing, "with_key"), &["v".into()]).unwrap());
        ensure_publications(&mut publisher, &names, &keyed, &inserts).await.unwrap();
        let now: String = client.query_one(rows, &[]).await.unwrap().get(0);
        assert_eq!(*before.get_or_insert(now.clone()), now);
    }
    client
        .batch_execute(
            "ALTER TABLE no_key ADD PRIMARY KEY (id); ALTER TABLE with_index REPLICA IDENTITY NOTHING",
        )
        .await
        .unwrap();
    let (keyed, inserts) = split(&list(&client).await);
    ensure_publications(&mut publisher, &names, &keyed, &inserts).await.unwrap();
    let sql = "SELECT pubname::text FROM pg_publication_tables WHERE tablename = $1";
    let of = async |table: &str| -> Vec<String> {
        client.query(sql, &[&table]).await.unwrap().iter().map(|r| r.get(0)).collect()
    };
    assert_eq!(of("no_key").await, [names.keyed.as_str()]);
    assert_eq!(of("with_index").await, [names.inserts.as_str()]);
    application_writes(&client, &list(&client).await).await;
}

#[tokio::test]
async fn a_table_that_lost_its_key_meanwhile_is_not_published_with_updates() {
    let (config, client) = database("lost_key").await;
    client
        .batch_execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'v')")
        .await
        .unwrap();
    let listing = list(&client).await;
    let (keyed, inserts) = split(&listing);
    client.batch_execute("ALTER TABLE t DROP CONSTRAINT t_pkey").await.unwrap();
    let mut publisher = connect(&config).await.unwrap();
    let names = publication_names("t", "lost_key");
    let refused = ensure_publications(&mut publisher, &names, &keyed, &inserts).await;
    assert!(matches!(refused, Err(Error::InvalidRequest { .. })), "{refused:?}");
    application_writes(&client, &listing).await;
    let left: i64 = client.query_one("SELECT count(*) FROM pg_publication", &[]).await.unwrap().get(0);
    assert_eq!(left, 0);
}

#[tokio::test]
async fn a_key_column_cannot_be_excluded() {
    let (_, client) = database("excluded").await;
    make_every_kind(&client).await;
    let listing = list(&client).await;
    for (name, column) in [("with_key", "a"), ("whole", "v"), ("no_key", "nowhere")] {
        let refused = PublishedTable::new(table(&listing, name), &[column.to_owned()]);
        assert!(matches!(refused, Err(Error::InvalidRequest { .. })), "{name}: {refused:?}");
    }
    let published = PublishedTable::new(table(&listing, "computed"), &["v".into()]).unwrap();
    let expected = if is_modern(&client).await { vec!["id", "s"] } else { vec!["id"] };
    assert_eq!(published.columns.unwrap(), expected);
}

#[tokio::test]
async fn globs_select_and_frozen_defaults_are_read() {
    let (_, client) = database("globs").await;
    client
        .batch_execute(
            "CREATE TABLE kept (id int PRIMARY KEY); INSERT INTO kept VALUES (1); ALTER TABLE kept ADD w text DEFAULT 'it''s, \"so\"';
             ALTER TABLE kept ADD n int[] DEFAULT '{1,2}'; CREATE TABLE kept_tmp (id int); CREATE SCHEMA s; CREATE TABLE s.kept (id int)",
        )
        .await
        .unwrap();
    let listing = list_tables(&client, &globs(&["public.*"]), &globs(&["*_tmp"])).await.unwrap();
    assert_eq!(listing.tables.iter().map(SourceTable::qualified_name).collect::<Vec<_>>(), ["public.kept"]);
    let missing: Vec<_> =
        listing.tables[0].columns.iter().map(|column| column.missing_value.as_deref()).collect();
    assert_eq!(missing, [None, Some("it's, \"so\""), Some("{1,2}")]);
    let types = read_types(&client).await.unwrap();
    let of = |name: &str| types.iter().find(|entry| entry.name == name).unwrap();
    assert_eq!((of("_int4").element, of("_int4").delimiter, of("name").element), (23, ',', 0));
    assert_eq!((of("box").delimiter, of("int4").kind, of("int4").category), (';', 'b', 'N'));
}
