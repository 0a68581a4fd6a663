//! The tables: each a list of statements for Spark, most of which make a version.

/// One table.
pub struct Case {
    /// What it shows.
    pub name: &'static str,
    pub statements: Vec<String>,
    /// What its rows are told apart by.
    pub key: Vec<&'static str>,
    /// Whether its change data feed is on.
    pub has_feed: bool,
    /// Columns that were renamed, before and after.
    pub renamed: Vec<(&'static str, &'static str)>,
    /// Whether its columns are others in later versions.
    pub columns_change: bool,
}

impl Case {
    fn new(name: &'static str, statements: &[&str]) -> Case {
        Case {
            name,
            statements: statements.iter().map(|statement| (*statement).to_owned()).collect(),
            key: vec!["id"],
            has_feed: false,
            renamed: Vec::new(),
            columns_change: false,
        }
    }

    fn with_feed(self) -> Case {
        Case { has_feed: true, ..self }
    }

    fn with_other_columns(self) -> Case {
        Case { columns_change: true, ..self }
    }

    fn renamed(self, before: &'static str, after: &'static str) -> Case {
        Case { renamed: vec![(before, after)], ..self }
    }
}

/// A table's life as applications lead it: everything that changes rows, and everything that only moves them.
const LIFE: &[&str] = &[
    "INSERT INTO {t} SELECT id, concat('n', id), id / 4 FROM range(0, 60)",
    "UPDATE {t} SET name = 'changed' WHERE id = 7",
    "DELETE FROM {t} WHERE id % 10 = 3",
    "OPTIMIZE {t}",
    "MERGE INTO {t} USING (SELECT id, concat('m', id) AS name, 1.5D AS score FROM range(55, 65)) s ON {t}.id = s.id \
     WHEN MATCHED AND s.id = 58 THEN DELETE WHEN MATCHED THEN UPDATE SET name = s.name \
     WHEN NOT MATCHED THEN INSERT (id, name, score) VALUES (s.id, s.name, s.score)",
    "OPTIMIZE {t} ZORDER BY (name)",
    "UPDATE {t} SET score = score + 1 WHERE id < 5",
    "RESTORE TABLE {t} TO VERSION AS OF 2",
    "DELETE FROM {t} WHERE id >= 50",
    "INSERT OVERWRITE {t} SELECT id, name, score FROM {t} WHERE id < 20",
];

fn life(name: &'static str, properties: &str) -> Case {
    let create = format!(
        "CREATE TABLE {{t}} (id BIGINT, name STRING, score DOUBLE) USING delta TBLPROPERTIES ({properties})"
    );
    let mut case = Case::new(name, LIFE);
    case.statements.insert(0, create);
    case
}

pub fn cases() -> Vec<Case> {
    vec![
        life("a life of copied files", "'delta.enableDeletionVectors' = 'false'"),
        life(
            "a life of deletion vectors",
            "'delta.enableDeletionVectors' = 'true', 'delta.columnMapping.mode' = 'name', \
             'delta.enableRowTracking' = 'true', 'delta.enableInCommitTimestamps' = 'true', \
             'delta.checkpointPolicy' = 'v2', 'delta.checkpointInterval' = '3'",
        ),
        life(
            "a life with a feed",
            "'delta.enableChangeDataFeed' = 'true', 'delta.enableDeletionVectors' = 'false'",
        )
        .with_feed(),
        life(
            "a life with a feed and deletion vectors",
            "'delta.enableChangeDataFeed' = 'true', 'delta.enableDeletionVectors' = 'true', \
             'delta.columnMapping.mode' = 'id'",
        )
        .with_feed(),
        partitions(),
        columns_that_come_and_go(),
        columns_that_come_and_go_under_mapping(),
        types(),
        rows_without_a_key(),
    ]
}

fn partitions() -> Case {
    Case::new(
        "partitions",
        &[
            "CREATE TABLE {t} (id BIGINT, day DATE, place STRING, at TIMESTAMP, v STRING) USING delta \
             PARTITIONED BY (day, place, at) TBLPROPERTIES ('delta.enableDeletionVectors' = 'true')",
            "INSERT INTO {t} VALUES (1, DATE'2026-01-01', 'a b/c%d=é', TIMESTAMP'2026-01-01 10:00:00.123456', 'x'), \
             (2, NULL, NULL, NULL, 'y'), (3, DATE'1600-02-29', '', TIMESTAMP'1969-12-31 23:59:59', 'z')",
            "INSERT INTO {t} SELECT id, DATE'2026-01-02', 'bulk', TIMESTAMP'2026-01-02 00:00:00', 'b' FROM range(10, 20)",
            "UPDATE {t} SET v = 'changed' WHERE id IN (2, 11)",
            "UPDATE {t} SET place = 'moved' WHERE id = 12",
            "DELETE FROM {t} WHERE day = DATE'2026-01-01'",
            "INSERT INTO {t} REPLACE WHERE day = DATE'2026-01-02' \
             SELECT id, DATE'2026-01-02', 'bulk', TIMESTAMP'2026-01-02 00:00:00', 'b' FROM range(12, 22)",
            "OPTIMIZE {t}",
        ],
    )
}

fn columns_that_come_and_go() -> Case {
    Case::new(
        "columns that come",
        &[
            "CREATE TABLE {t} (id BIGINT, s STRUCT<a: INT>) USING delta",
            "INSERT INTO {t} SELECT id, named_struct('a', CAST(id AS INT)) FROM range(0, 10)",
            "ALTER TABLE {t} ADD COLUMNS (extra STRING)",
            "INSERT INTO {t} SELECT id, named_struct('a', CAST(id AS INT)), 'new' FROM range(10, 12)",
            "UPDATE {t} SET extra = 'set' WHERE id = 3",
            "DELETE FROM {t} WHERE id = 4",
        ],
    )
    .with_other_columns()
}

fn columns_that_come_and_go_under_mapping() -> Case {
    Case::new(
        "columns that go and change their names",
        &[
            "CREATE TABLE {t} (id BIGINT, name STRING, gone STRING, n INT) USING delta \
             TBLPROPERTIES ('delta.columnMapping.mode' = 'name', 'delta.enableTypeWidening' = 'true')",
            "INSERT INTO {t} SELECT id, concat('n', id), 'g', CAST(id AS INT) FROM range(0, 10)",
            "ALTER TABLE {t} RENAME COLUMN name TO title",
            "UPDATE {t} SET title = 'changed' WHERE id = 1",
            "ALTER TABLE {t} DROP COLUMN gone",
            "DELETE FROM {t} WHERE id = 2",
            "ALTER TABLE {t} ALTER COLUMN n TYPE BIGINT",
            "INSERT INTO {t} VALUES (100, 'wide', 5000000000)",
            "UPDATE {t} SET n = n + 1 WHERE id = 3",
        ],
    )
    .with_other_columns()
    .renamed("name", "title")
}

fn types() -> Case {
    Case::new(
        "types",
        &[
            "CREATE TABLE {t} (id BIGINT, b BOOLEAN, i8 TINYINT, i16 SMALLINT, i32 INT, f FLOAT, d DOUBLE, \
             dec DECIMAL(38, 10), small DECIMAL(4, 2), day DATE, ts TIMESTAMP, ntz TIMESTAMP_NTZ, text STRING, \
             bytes BINARY, list ARRAY<STRUCT<x: INT, y: STRING>>, map MAP<STRING, DECIMAL(10, 2)>, \
             deep STRUCT<a: ARRAY<INT>, m: MAP<STRING, STRUCT<z: TIMESTAMP>>>) USING delta",
            "INSERT INTO {t} VALUES \
             (1, true, 127, -32768, 2147483647, 1.5, -0.0, 1234567890123456789012345678.0123456789, 99.99, \
              DATE'9999-12-31', TIMESTAMP'9999-12-31 23:59:59.999999', TIMESTAMP_NTZ'0001-01-01 00:00:00', 'é\\n', \
              X'00ff', array(named_struct('x', 1, 'y', 'a'), NULL), map('k', 1.25), \
              named_struct('a', array(1, NULL), 'm', map('q', named_struct('z', TIMESTAMP'2026-01-01 00:00:00')))), \
             (2, NULL, NULL, NULL, NULL, CAST('NaN' AS FLOAT), CAST('Infinity' AS DOUBLE), NULL, NULL, \
              DATE'0001-01-01', TIMESTAMP'1000-01-01 00:00:00', NULL, '', X'', array(), map(), NULL)",
            "INSERT INTO {t} (id) VALUES (3)",
            "UPDATE {t} SET deep = named_struct('a', NULL, 'm', NULL), list = NULL WHERE id = 1",
        ],
    )
}

fn rows_without_a_key() -> Case {
    Case::new(
        "rows without a key",
        &[
            "CREATE TABLE {t} (id BIGINT, v STRING) USING delta TBLPROPERTIES ('delta.enableDeletionVectors' = 'false')",
            "INSERT INTO {t} SELECT /*+ COALESCE(1) */ CASE WHEN id < 4 THEN NULL ELSE id % 3 END, concat('v', id % 2) FROM range(0, 20)",
            "UPDATE {t} SET v = 'w' WHERE id = 1 AND v = 'v0'",
            "DELETE FROM {t} WHERE id IS NULL",
        ],
    )
}
