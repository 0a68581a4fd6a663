//! A random table, as the script's author sees it.
//!
//! Every table has a column `n`, the row's number: the key's values are made of it, and statements find rows by
//! it, whatever the key looks like. All else is drawn.

use crate::column_kind::ColumnKind;
use crate::dice::Dice;
use std::fmt::Write as _;

/// How rows are told apart at the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// One integer.
    Integer,
    /// One text, empty and unicode ones among them.
    Text,
    /// One uuid.
    Uuid,
    /// One timestamp with time zone.
    Moment,
    /// Text and integer.
    Compound,
    /// Date, numeric and text, not the first columns of the table.
    Wide,
    /// None: the lake takes inserts and truncates only, unless whole rows are the replica identity.
    Keyless,
}

impl Key {
    const ALL: &[(u32, Key)] = &[
        (4, Key::Integer),
        (3, Key::Text),
        (1, Key::Uuid),
        (1, Key::Moment),
        (3, Key::Compound),
        (2, Key::Wide),
        (2, Key::Keyless),
    ];

    /// Its columns: name, type, value made of the row's number.
    fn columns(self) -> &'static [(&'static str, &'static str, &'static str)] {
        match self {
            Key::Integer => &[("id", "integer", "({n}) - 50")],
            Key::Text => &[(
                "id",
                "text",
                "CASE WHEN ({n}) % 97 = 0 THEN repeat('ü', ({n}) % 300) ELSE 'ключ ' || ({n}) END",
            )],
            Key::Uuid => &[("id", "uuid", "md5(({n})::text)::uuid")],
            Key::Moment => {
                &[("id", "timestamptz", "timestamptz '1999-12-31 23:59+00' + ({n}) * interval '1 min'")]
            }
            Key::Compound => {
                &[("region", "text", "(ARRAY['eu', 'us', ''])[1 + ({n}) % 3]"), ("id", "integer", "({n})")]
            }
            Key::Wide => &[
                ("day", "date", "date '2020-02-28' + ({n}) % 5"),
                ("amount", "numeric(12,4)", "({n}) / 8.0"),
                ("tag", "varchar(30)", "'t' || ({n}) / 5"),
            ],
            Key::Keyless => &[],
        }
    }
}

/// What the table tells the stream about changed rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity {
    /// The primary key.
    PrimaryKey,
    /// A unique index instead of a primary key.
    Index,
    /// Whole rows.
    Full,
}

/// One column beside key and number.
#[derive(Debug, Clone)]
pub struct Column {
    /// Its name, unquoted.
    pub name: String,
    /// Its type.
    pub kind: ColumnKind,
}

/// A table.
#[derive(Debug, Clone)]
pub struct TablePlan {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// Its key.
    pub key: Key,
    /// Its replica identity.
    pub identity: Identity,
    /// Whether it is partitioned at the source.
    pub partitioned: bool,
    /// Whether the lake's table is partitioned by its column `bucket`.
    pub lake_partitioned: bool,
    /// What changes.
    pub columns: Vec<Column>,
    /// Columns drawn so far, for names that are never used twice.
    columns_drawn: u32,
}

/// Names as people write them, and as only tests do.
const SCHEMAS: &[(u32, &str)] = &[(6, "public"), (2, "sales"), (1, "Größe Drei"), (1, "a-b")];
const STEMS: &[(u32, &str)] =
    &[(6, "orders"), (2, "Order Lines"), (1, "tablé \"x\""), (1, "select"), (1, "日本")];
const COLUMN_STEMS: &[(u32, &str)] = &[(8, "c"), (1, "Mixed Case "), (1, "prix €"), (1, "a,b;{}()=")];

/// Values of the column that partitions a lake table: characters that have to be escaped in folder names.
const BUCKETS: &str = "(ARRAY['a', 'b/ %', 'ü', NULL])[1 + ({n}) % 4]";

/// A name as an SQL identifier.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

impl TablePlan {
    /// A random table, the `number`th of its database.
    pub fn draw(dice: &mut Dice, number: u32) -> TablePlan {
        let key = dice.weighted(Key::ALL);
        let partitioned = key != Key::Keyless && dice.chance(15);
        let identity = match dice.between(0, 9) {
            0..=5 if key == Key::Keyless => Identity::Full,
            0 | 1 if !partitioned => Identity::Full,
            2 if key != Key::Keyless && !partitioned => Identity::Index,
            _ => Identity::PrimaryKey,
        };
        let mut table = TablePlan {
            schema: dice.weighted(SCHEMAS).to_owned(),
            name: format!("{} {number}", dice.weighted(STEMS))
                .replace(if dice.chance(50) { " " } else { "\0" }, "_"),
            key,
            identity,
            partitioned,
            lake_partitioned: dice.chance(12),
            columns: Vec::new(),
            columns_drawn: 0,
        };
        for _ in 0..dice.between(1, 7) {
            table.add_column(dice);
        }
        table
    }

    /// Draws one more column.
    pub fn add_column(&mut self, dice: &mut Dice) -> Column {
        self.columns_drawn += 1;
        let name = format!("{}{}", dice.weighted(COLUMN_STEMS), self.columns_drawn);
        // Where the whole row is the key, a value that the lake cannot hold stops the table, as it says.
        let kind =
            if self.is_named_by_whole_rows() { ColumnKind::any_exact(dice) } else { ColumnKind::any(dice) };
        let column = Column { name, kind };
        self.columns.push(column.clone());
        column
    }

    /// A name for a column that is renamed.
    pub fn new_column_name(&mut self) -> String {
        self.columns_drawn += 1;
        format!("renamed {}", self.columns_drawn)
    }

    /// Its name in SQL.
    pub fn sql_name(&self) -> String {
        format!("{}.{}", quoted(&self.schema), quoted(&self.name))
    }

    /// Its name in `to_lake` and `status`.
    pub fn qualified(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    /// Whether updates and deletes follow into the lake.
    pub fn follows_updates(&self) -> bool {
        self.key != Key::Keyless || self.identity == Identity::Full
    }

    /// Whether its rows have no key, and may be equal.
    fn is_named_by_whole_rows(&self) -> bool {
        self.key == Key::Keyless && self.identity == Identity::Full
    }

    /// The statements that make it.
    pub fn create(&self) -> Vec<String> {
        let table = self.sql_name();
        let mut columns = vec!["n integer NOT NULL".to_owned()];
        columns.extend(self.key.columns().iter().map(|(name, kind, _)| format!("{name} {kind} NOT NULL")));
        columns.push("bucket text".to_owned());
        columns.extend(
            self.columns.iter().map(|column| format!("{} {}", quoted(&column.name), column.kind.sql)),
        );
        let key = self.key_names().join(", ");
        if self.key != Key::Keyless && self.identity != Identity::Index {
            columns.push(format!("PRIMARY KEY ({key})"));
        }
        let first = self.key.columns().first().map_or("n", |(name, _, _)| name);
        let partitions =
            if self.partitioned { format!(" PARTITION BY HASH ({first})") } else { String::new() };
        let mut all = vec![
            format!("CREATE SCHEMA IF NOT EXISTS {}", quoted(&self.schema)),
            format!("CREATE TABLE {table} ({}){partitions}", columns.join(", ")),
        ];
        if self.partitioned {
            all.extend((0..3).map(|remainder| {
                let partition = quoted(&format!("{} part {remainder}", self.name));
                let schema = quoted(&self.schema);
                format!("CREATE TABLE {schema}.{partition} PARTITION OF {table} FOR VALUES WITH (MODULUS 3, REMAINDER {remainder})")
            }));
        }
        match self.identity {
            Identity::PrimaryKey => {}
            Identity::Full => all.push(format!("ALTER TABLE {table} REPLICA IDENTITY FULL")),
            Identity::Index => {
                let index = quoted(&format!("{} key", self.name));
                all.push(format!("CREATE UNIQUE INDEX {index} ON {table} ({key})"));
                all.push(format!("ALTER TABLE {table} REPLICA IDENTITY USING INDEX {index}"));
            }
        }
        let large = self.columns.iter().filter(|column| column.kind == crate::column_kind::LARGE_TEXT);
        all.extend(large.map(|column| {
            format!("ALTER TABLE {table} ALTER {} SET STORAGE EXTERNAL", quoted(&column.name))
        }));
        all
    }

    /// Names of the key's columns.
    pub fn key_names(&self) -> Vec<&'static str> {
        self.key.columns().iter().map(|(name, _, _)| *name).collect()
    }

    /// `(columns)` and the values of a row whose number is the SQL expression `n`.
    pub fn row(&self, dice: &mut Dice, n: &str) -> (String, String) {
        let (mut names, mut values) = ("n".to_owned(), n.to_owned());
        for (name, _, value) in self.key.columns() {
            write!(names, ", {name}").expect("a string takes everything");
            write!(values, ", {}", value.replace("{n}", n)).expect("a string takes everything");
        }
        write!(values, ", {}", BUCKETS.replace("{n}", &format!("({n} + {})", dice.between(0, 3))))
            .expect("as above");
        names.push_str(", bucket");
        for column in &self.columns {
            write!(names, ", {}", quoted(&column.name)).expect("a string takes everything");
            write!(values, ", {}", column.kind.value(dice).replace("{n}", n))
                .expect("a string takes everything");
        }
        (names, values)
    }

    /// `SET` items that move a row to the number `to`, key and all.
    pub fn moved(&self, to: &str) -> String {
        let mut items = format!("n = {to}");
        for (name, _, value) in self.key.columns() {
            write!(items, ", {name} = {}", value.replace("{n}", to)).expect("a string takes everything");
        }
        items
    }

    /// `SET` items for some of the columns that are no key, of the row whose number is the SQL expression `n`.
    pub fn changed(&self, dice: &mut Dice, n: &str) -> String {
        let mut items: Vec<String> = Vec::new();
        for column in &self.columns {
            if dice.chance(40) {
                let value = column.kind.value(dice).replace("{n}", n);
                items.push(format!("{} = {value}", quoted(&column.name)));
            }
        }
        if items.is_empty() || dice.chance(15) {
            items.push(format!(
                "bucket = {}",
                BUCKETS.replace("{n}", &format!("({n} + {})", dice.between(1, 3)))
            ));
        }
        items.join(", ")
    }
}
