//! What is to be served, and under which names.

use super::column::ServedColumn;
use crate::error::{Result, ReverseSyncError};
use arrow::datatypes::Schema;
use postgres_connector::{quote_identifier, quote_literal, quote_qualified};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The schema of everything that Tidewater keeps in a target for itself.
pub(super) const OWN_SCHEMA: &str = "tidewater";

/// Hex digits in the names of what belongs to one served table: two tables of one database share them by chance once
/// in 10^14.
const NAME_DIGITS: usize = 12;

/// What a key's values are cut to in messages.
pub(super) const SHOWN_CHARACTERS: usize = 80;

/// One entry of `to_postgres`, without where its rows come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServedDefinition {
    /// The installation's name.
    pub instance: String,
    /// The served table's schema.
    pub schema: String,
    /// The served table's name.
    pub table: String,
    /// The columns that name a row.
    pub primary_key: Vec<String>,
    /// Keep only the latest row of each key, by this column.
    pub timeseries_key: Option<String>,
    /// Serve only these columns; all if empty.
    pub columns: Vec<String>,
    /// Serve only rows for which this condition holds.
    pub condition: Option<String>,
    /// Postgres types of columns that should not follow the type map.
    pub type_overrides: BTreeMap<String, String>,
    /// Indexes, as in `create index on … (here)`.
    pub indexes: Vec<String>,
    /// Further columns that Postgres fills in: name to type and default.
    pub extra_columns: BTreeMap<String, String>,
    /// Privilege to roles.
    pub grants: BTreeMap<String, Vec<String>>,
}

impl ServedDefinition {
    /// `schema.table`, for people.
    pub fn name(&self) -> String {
        format!("{}.{}", self.schema, self.table)
    }

    /// What decides which rows there are: when it changes, the table is loaded anew.
    pub(super) fn selection(&self) -> String {
        serde_json::json!({
            "primary_key": self.primary_key,
            "timeseries_key": self.timeseries_key,
            "where": self.condition,
        })
        .to_string()
    }

    /// The served table, quoted.
    pub(super) fn target(&self) -> String {
        quote_qualified(&self.schema, &self.table)
    }

    /// Where rows are staged, quoted.
    pub(super) fn stage(&self) -> String {
        quote_qualified(OWN_SCHEMA, &format!("stage_{}", self.digest("")))
    }

    /// The name under which the first load grows.
    pub(super) fn load_name(&self) -> String {
        format!("load_{}", self.digest(""))
    }

    /// The first load's table, quoted.
    pub(super) fn load(&self) -> String {
        quote_qualified(OWN_SCHEMA, &self.load_name())
    }

    /// The primary key's constraint.
    pub(super) fn key_constraint(&self) -> String {
        format!("tidewater_{}_key", self.digest(""))
    }

    /// The name of a configured index.
    pub(super) fn index_name(&self, text: &str) -> String {
        format!("tidewater_{}", self.digest(text))
    }

    /// What whoever serves this table holds a lock on.
    pub(super) fn lock_key(&self) -> i64 {
        let digest = Sha256::digest(format!("tidewater\0{}\0{}", self.schema, self.table));
        digest.iter().take(size_of::<i64>()).fold(0, |key, byte| key << 8 | i64::from(*byte))
    }

    /// Names this table, and something of it, among all of its database.
    fn digest(&self, of: &str) -> String {
        // No name in Postgres has a zero byte: the parts cannot run into each other.
        let digest = Sha256::digest(format!("{}\0{}\0{of}", self.schema, self.table));
        digest.iter().take(NAME_DIGITS / 2).map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The columns of a served table as one version of the Delta table has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Every served column, in order.
    pub columns: Arc<[ServedColumn]>,
    /// Places of the primary key's columns.
    pub key: Arc<[usize]>,
    /// The place of the column by which the latest row of a key is known.
    pub timeseries: Option<usize>,
}

impl Layout {
    /// Plans the columns of a table whose rows come with this schema.
    pub fn plan(definition: &ServedDefinition, schema: &Schema) -> Result<Layout> {
        let missing = |column: &String| ReverseSyncError::MissingColumn { column: column.clone() };
        let find = |column: &String| {
            schema.fields().iter().find(|field| field.name() == column).ok_or_else(|| missing(column))
        };
        let fields = match definition.columns.as_slice() {
            [] => schema.fields().iter().collect(),
            named => named.iter().map(find).collect::<Result<Vec<_>, _>>()?,
        };
        let override_of = |name: &String| definition.type_overrides.get(name).map(String::as_str);
        let columns = fields.iter().map(|field| ServedColumn::plan(field, override_of(field.name())));
        let columns = columns.collect::<Result<Arc<[_]>, _>>()?;
        let place = |name: &String| {
            columns.iter().position(|column: &ServedColumn| column.name == *name).ok_or_else(|| missing(name))
        };
        if let Some(unknown) = definition.type_overrides.keys().find(|name| place(name).is_err()) {
            return Err(missing(unknown));
        }
        let key = definition.primary_key.iter().map(place).collect::<Result<Arc<[_]>, _>>()?;
        let timeseries = definition.timeseries_key.as_ref().map(place).transpose()?;
        Ok(Layout { columns, key, timeseries })
    }

    /// Whether rows can be copied straight into the served table: nothing of them is cast or chosen by the server.
    pub(super) fn is_direct(&self) -> bool {
        self.timeseries.is_none() && !self.columns.iter().any(ServedColumn::is_cast)
    }

    /// The key's columns.
    pub(super) fn key_columns(&self) -> impl Iterator<Item = &ServedColumn> {
        self.key.iter().filter_map(|at| self.columns.get(*at))
    }

    /// Every column's name, quoted: `"a", "b"`.
    pub(super) fn names(&self) -> String {
        self.each(|column| quote_identifier(&column.name))
    }

    /// Every column of a relation: `t."a", t."b"`.
    pub(super) fn of(&self, alias: &str) -> String {
        self.each(|column| format!("{alias}.{}", quote_identifier(&column.name)))
    }

    /// The key's columns of a relation.
    pub(super) fn key_of(&self, alias: &str) -> String {
        let columns = self.key_columns().map(|column| format!("{alias}.{}", quote_identifier(&column.name)));
        columns.collect::<Vec<_>>().join(", ")
    }

    /// Whether two relations' rows have one key: `t."a" = s."a" AND …`.
    pub(super) fn same_key(&self, one: &str, other: &str) -> String {
        let columns = self.key_columns().map(|column| {
            let name = quote_identifier(&column.name);
            format!("{one}.{name} = {other}.{name}")
        });
        columns.collect::<Vec<_>>().join(" AND ")
    }

    /// A key's values for people, `id=7, region=eu`, as SQL; `value` gives the expression of a quoted column.
    pub(super) fn shown_key(&self, value: impl Fn(&str) -> String) -> String {
        let parts = self.key_columns().map(|column| {
            let label = quote_literal(&format!("{}=", column.name));
            format!("{label} || left(({})::text, {SHOWN_CHARACTERS})", value(&quote_identifier(&column.name)))
        });
        format!("concat_ws(', ', {})", parts.collect::<Vec<_>>().join(", "))
    }

    /// Staged columns in the served table's types, under their names.
    pub(super) fn cast_of(&self, alias: &str) -> String {
        self.each(|column| {
            let name = quote_identifier(&column.name);
            match column.is_cast() {
                true => format!("CAST({alias}.{name} AS {}) AS {name}", column.base),
                false => format!("{alias}.{name}"),
            }
        })
    }

    /// `"a" type, …` of a staging table.
    pub(super) fn staged_columns(&self) -> String {
        self.each(|column| format!("{} {}", quote_identifier(&column.name), column.staged))
    }

    /// `"a" type, …` of rows that were cast.
    pub(super) fn base_columns(&self) -> String {
        self.each(|column| format!("{} {}", quote_identifier(&column.name), column.base))
    }

    /// `"a" type, …` of the served table. The key's columns are NOT NULL from the beginning: adding the key to loaded rows
    /// would read them all for it.
    pub(super) fn declared_columns(&self) -> String {
        self.each(|column| {
            let is_key = self.key_columns().any(|key| key.name == column.name);
            let not_null = if is_key { " NOT NULL" } else { "" };
            format!("{} {}{not_null}", quote_identifier(&column.name), column.declared)
        })
    }

    /// The order in which the latest row of a key comes first. Of rows with equal times the greatest by its text counts,
    /// so that every load chooses the same.
    pub(super) fn latest_first(&self, alias: &str) -> Option<String> {
        let column = self.columns.get(self.timeseries?)?;
        let name = quote_identifier(&column.name);
        Some(format!("{alias}.{name} DESC NULLS LAST, ({alias}.*)::text DESC"))
    }

    fn each(&self, text: impl Fn(&ServedColumn) -> String) -> String {
        self.columns.iter().map(text).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::datatypes::{DataType, Field};

    fn definition() -> ServedDefinition {
        ServedDefinition {
            instance: "main".into(),
            schema: "serving".into(),
            table: "t".into(),
            primary_key: vec!["id".into()],
            timeseries_key: None,
            columns: vec![],
            condition: None,
            type_overrides: BTreeMap::new(),
            indexes: vec![],
            extra_columns: BTreeMap::new(),
            grants: BTreeMap::new(),
        }
    }

    fn schema() -> Schema {
        Schema::new(vec![
            Field::new("a\"b", DataType::Utf8, true),
            Field::new("id", DataType::Int64, true),
            Field::new("at", DataType::Date32, true),
        ])
    }

    #[test]
    fn columns_are_chosen_in_the_order_asked_for_and_quoted() {
        let chosen = ServedDefinition { columns: vec!["id".into(), "a\"b".into()], ..definition() };
        let layout = Layout::plan(&chosen, &schema()).unwrap();
        assert_eq!(layout.names(), "\"id\", \"a\"\"b\"");
        assert_eq!((layout.key.as_ref(), layout.is_direct()), ([0].as_slice(), true));
    }

    #[test]
    fn a_column_that_is_not_there_is_named() {
        for wrong in [
            ServedDefinition { columns: vec!["nope".into()], ..definition() },
            ServedDefinition { primary_key: vec!["nope".into()], ..definition() },
            ServedDefinition { timeseries_key: Some("nope".into()), ..definition() },
            ServedDefinition { type_overrides: [("nope".into(), "text".into())].into(), ..definition() },
        ] {
            let error = Layout::plan(&wrong, &schema()).unwrap_err().to_string();
            assert!(error.contains("no column nope"), "{error}");
        }
    }

    #[test]
    fn names_of_different_tables_never_meet() {
        let one = ServedDefinition { schema: "a".into(), table: "b_c".into(), ..definition() };
        let other = ServedDefinition { schema: "a_b".into(), table: "c".into(), ..definition() };
        assert_ne!(one.stage(), other.stage());
    }
}
