//! What is different between two branches: tables by shape and by number of rows.
//!
//! Both are asked the same, table by table, through a session each; the answers are compared here. Rows are counted, not
//! compared: an update that changes no number of rows does not show.

use std::collections::BTreeMap;

use serde::Serialize;
use tokio_postgres::Client;

use crate::provision::quote_identifier;
use crate::{CoreError, Result};

/// Shape of every ordinary and partitioned table outside of Postgres's own schemas: columns in order, then keys, checks
/// and indexes by their definitions.
const SHAPES: &str = "\
    SELECT n.nspname::text, c.relname::text, concat_ws(E'\\n', \
        (SELECT string_agg(a.attname || ' ' || pg_catalog.format_type(a.atttypid, a.atttypmod) \
                || CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END \
                || coalesce(' DEFAULT ' || pg_catalog.pg_get_expr(d.adbin, d.adrelid), ''), E'\\n' ORDER BY a.attnum) \
         FROM pg_catalog.pg_attribute a LEFT JOIN pg_catalog.pg_attrdef d ON (d.adrelid, d.adnum) = (a.attrelid, a.attnum) \
         WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped), \
        (SELECT string_agg(k.conname || ' ' || pg_catalog.pg_get_constraintdef(k.oid), E'\\n' ORDER BY k.conname) \
         FROM pg_catalog.pg_constraint k WHERE k.conrelid = c.oid AND k.contype <> 'n'), \
        (SELECT string_agg(pg_catalog.pg_get_indexdef(i.indexrelid), E'\\n' ORDER BY i.indexrelid::pg_catalog.regclass::text) \
         FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid)) \
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
    WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' \
      AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema'";

/// A table that is not the same on both branches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TableDifference {
    /// `schema.table`.
    pub table: String,
    /// Its shape on the first branch, a line for each column, constraint and index; `None`: it is not there.
    pub shape: Option<String>,
    /// The same on the second.
    pub other_shape: Option<String>,
    /// Rows on the first branch.
    pub rows: Option<i64>,
    /// Rows on the second.
    pub other_rows: Option<i64>,
}

struct Table {
    shape: String,
    rows: i64,
}

/// Compares the databases that two sessions are in.
///
/// # Errors
/// A server refuses.
pub(super) async fn difference(project: &str, one: &Client, other: &Client) -> Result<Vec<TableDifference>> {
    let (mut one, mut other) = tokio::try_join!(tables(project, one), tables(project, other))?;
    let mut found = Vec::new();
    let names: Vec<String> = one.keys().chain(other.keys()).cloned().collect();
    for table in names {
        let (left, right) = (one.remove(&table), other.remove(&table));
        let same = match (&left, &right) {
            (Some(left), Some(right)) => left.shape == right.shape && left.rows == right.rows,
            // The second mention of a table that both have.
            (None, None) => true,
            _ => false,
        };
        if !same {
            found.push(TableDifference {
                table,
                rows: left.as_ref().map(|table| table.rows),
                other_rows: right.as_ref().map(|table| table.rows),
                shape: left.map(|table| table.shape),
                other_shape: right.map(|table| table.shape),
            });
        }
    }
    found.sort_by(|left, right| left.table.cmp(&right.table));
    Ok(found)
}

async fn tables(project: &str, client: &Client) -> Result<BTreeMap<String, Table>> {
    let failed = |action| CoreError::statement(project, action);
    let mut tables = BTreeMap::new();
    for row in client.query(SHAPES, &[]).await.map_err(failed("describe its tables"))? {
        let text = |column: usize| row.try_get::<_, String>(column).map_err(failed("describe its tables"));
        let (schema, name, shape) = (text(0)?, text(1)?, text(2)?);
        let counting =
            format!("SELECT count(*) FROM {}.{}", quote_identifier(&schema), quote_identifier(&name));
        let counted = client.query_one(&counting, &[]).await.map_err(failed("count rows"))?;
        let rows = counted.try_get(0).map_err(failed("count rows"))?;
        tables.insert(format!("{schema}.{name}"), Table { shape, rows });
    }
    Ok(tables)
}
