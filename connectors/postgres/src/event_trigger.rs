//! The event trigger that puts each change of a table's columns into the stream, at its place between the rows.
//!
//! ```text
//!   BEGIN; INSERT …; ALTER TABLE t …; INSERT …; COMMIT;        the application
//!             │            │             │
//!             row     logical message    row                   the stream
//! ```
//!
//! Without it the stream still describes a table before its next row, but by names alone; the message has the attribute
//! numbers and frozen defaults too, as of just then. It is a refinement: where no role of ours may install it, or where
//! it keeps silent, everything is followed by looking at the catalog, at worst by loading a table anew.
//!
//! **The application's statement never fails because of it.** The function swallows every error of its own, runs with its
//! owner's rights and a fixed `search_path`, reads the catalog and writes nothing but the message.

use crate::client::Client;
use crate::error::{Error, Result};
use crate::heartbeat::HEARTBEAT_PREFIX;
use crate::object_name::{object_stem, quote_identifier, quote_literal};
use crate::publication::publication_names;
use serde::Deserialize;

const SUFFIX: &str = "_ddl";
/// A description of 1,600 columns, each with a long name and a default, is smaller. Anything larger is not ours.
const LONGEST_MESSAGE: usize = 16 << 20;

/// A table's columns as they are from here on in the stream.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct AnnouncedColumns {
    /// The table, by its root if it is a partition.
    pub relation: u32,
    /// The file of its rows: another one after a statement that rewrote them. 0 for a partitioned table.
    pub file: u32,
    /// Attribute numbers given so far.
    pub attributes: i16,
    /// The columns that are there, in order.
    pub columns: Vec<AnnouncedColumn>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct AnnouncedColumn {
    /// Its name.
    pub name: String,
    /// Its attribute number.
    pub attnum: i16,
    /// Its type.
    pub type_oid: u32,
    /// Its type modifier.
    pub typmod: i32,
    /// `pg_attribute.attgenerated`, empty for an ordinary column.
    pub generated: String,
    /// The frozen default of rows older than the column.
    pub missing_value: Option<String>,
}

impl AnnouncedColumns {
    /// Reads a logical message; `None` if it is not one of the trigger's.
    pub fn parse(prefix: &str, content: &[u8]) -> Option<AnnouncedColumns> {
        if prefix != HEARTBEAT_PREFIX || content.is_empty() || content.len() > LONGEST_MESSAGE {
            return None;
        }
        serde_json::from_slice(content).ok()
    }
}

/// The schema of the function, and the name of the trigger.
pub(crate) fn trigger_name(instance: &str, database: &str) -> String {
    format!("{}{SUFFIX}", object_stem(instance, database, SUFFIX.len()))
}

/// Installs the event trigger, or brings it up to date. `false`: the role may not, and the sync goes on without.
pub async fn ensure_event_trigger(client: &Client, instance: &str, database: &str) -> Result<bool> {
    let doing = "looking for the event trigger";
    let name = trigger_name(instance, database);
    let body = function_body(instance, database);
    let sql = "SELECT p.prosrc = $2 AND e.evtenabled IN ('O', 'A'), current_setting('is_superuser') = 'on' \
               FROM (SELECT 1) one LEFT JOIN pg_event_trigger e ON e.evtname = $1::text::name \
               LEFT JOIN pg_proc p ON p.oid = e.evtfoid";
    let row = client.query_one(sql, &[&name, &body]).await.map_err(|source| client.error(doing, source))?;
    let present: Option<bool> = row.try_get(0).map_err(|source| client.error(doing, source))?;
    if present == Some(true) {
        return Ok(true);
    }
    let superuser: bool = row.try_get(1).map_err(|source| client.error(doing, source))?;
    if !superuser {
        return Ok(false);
    }
    let doing = "installing the event trigger";
    match client.batch_execute(&install_statement(&name, &body)).await {
        Ok(()) => Ok(true),
        Err(source) => match client.error(doing, source) {
            Error::InsufficientPrivilege { .. } => Ok(false),
            error => Err(error),
        },
    }
}

/// One message of several statements is one transaction.
fn install_statement(name: &str, body: &str) -> String {
    let quoted = quote_identifier(name);
    let body = quote_literal(body);
    format!(
        "CREATE SCHEMA IF NOT EXISTS {quoted}; \
         CREATE OR REPLACE FUNCTION {quoted}.announce() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER \
           SET search_path = pg_catalog, pg_temp SET datestyle = 'ISO, MDY' SET intervalstyle = 'iso_8601' \
           SET timezone = 'UTC' SET extra_float_digits = 1 SET bytea_output = 'hex' SET lc_monetary = 'C' AS {body}; \
         DROP EVENT TRIGGER IF EXISTS {quoted}; \
         CREATE EVENT TRIGGER {quoted} ON ddl_command_end WHEN TAG IN ('ALTER TABLE') \
           EXECUTE FUNCTION {quoted}.announce()"
    )
}

/// Partitions are announced under their root, whose description the stream sends.
///
/// The exception block is a subtransaction, and logical decoding sorts a message into its parent by where the message
/// *ends*, rows by where they begin: a row right behind it would come first (measured on PostgreSQL 18). So a second,
/// empty message keeps them apart.
fn function_body(instance: &str, database: &str) -> String {
    let names = publication_names(instance, database);
    let (keyed, inserts) = (quote_literal(&names.keyed), quote_literal(&names.inserts));
    let prefix = quote_literal(HEARTBEAT_PREFIX);
    format!(
        "
DECLARE
  altered oid;
BEGIN
  FOR altered IN
    SELECT DISTINCT c.objid FROM pg_event_trigger_ddl_commands() c
      JOIN pg_publication_rel r ON r.prrelid = c.objid JOIN pg_publication p ON p.oid = r.prpubid
      WHERE c.classid = 'pg_class'::regclass AND p.pubname IN ({keyed}, {inserts})
  LOOP
    PERFORM pg_logical_emit_message(true, {prefix}, (
      SELECT jsonb_build_object(
        'relation', altered::int8,
        'file', (SELECT c.relfilenode::int8 FROM pg_class c WHERE c.oid = altered),
        'attributes', max(a.attnum),
        'columns', coalesce(jsonb_agg(jsonb_build_object(
          'name', a.attname, 'attnum', a.attnum, 'type_oid', a.atttypid::int8, 'typmod', a.atttypmod,
          'generated', a.attgenerated,
          'missing_value', CASE WHEN a.atthasmissing THEN (a.attmissingval::text::text[])[1] END
        ) ORDER BY a.attnum) FILTER (WHERE NOT a.attisdropped), '[]')
      )::text FROM pg_attribute a WHERE a.attrelid = altered AND a.attnum > 0));
    PERFORM pg_logical_emit_message(false, {prefix}, '');
  END LOOP;
EXCEPTION WHEN OTHERS THEN
  NULL;
END "
    )
}

/// Removes the trigger and its schema; whether there was anything.
pub(crate) async fn remove(client: &Client, instance: &str, database: &str) -> Result<Option<String>> {
    let doing = "removing the event trigger";
    let name = trigger_name(instance, database);
    let sql = "SELECT EXISTS (SELECT 1 FROM pg_event_trigger WHERE evtname = $1::text::name) \
                 OR EXISTS (SELECT 1 FROM pg_namespace WHERE nspname = $1::text::name)";
    let failed = |source| client.error(doing, source);
    let there: bool = client.query_one(sql, &[&name]).await.and_then(|row| row.try_get(0)).map_err(failed)?;
    if !there {
        return Ok(None);
    }
    let quoted = quote_identifier(&name);
    let drop = format!("DROP EVENT TRIGGER IF EXISTS {quoted}; DROP SCHEMA IF EXISTS {quoted} CASCADE");
    client.batch_execute(&drop).await.map_err(failed)?;
    Ok(Some(name))
}

/// Whether the trigger is there and enabled.
pub(crate) async fn is_installed(client: &Client, instance: &str, database: &str) -> Result<bool> {
    let doing = "looking for the event trigger";
    let sql = "SELECT EXISTS (SELECT 1 FROM pg_event_trigger \
                              WHERE evtname = $1::text::name AND evtenabled IN ('O', 'A'))";
    let name = trigger_name(instance, database);
    let row = client.query_one(sql, &[&name]).await.and_then(|row| row.try_get(0));
    row.map_err(|source| client.error(doing, source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_triggers_own_messages_are_read() {
        let text =
            br#"{"relation":7,"file":9,"attributes":3,"columns":[{"name":"id","attnum":1,"type_oid":23,
            "typmod":-1,"generated":"","missing_value":null}]}"#;
        let read = AnnouncedColumns::parse("tidewater", text).unwrap();
        assert_eq!((read.relation, read.attributes, read.columns[0].attnum), (7, 3, 1));
        assert_eq!(AnnouncedColumns::parse("another", text), None);
        for damaged in
            [&b""[..], b"{}", b"\xff\xfe", br#"{"relation":-1,"file":9,"attributes":3,"columns":[]}"#]
        {
            assert_eq!(AnnouncedColumns::parse("tidewater", damaged), None);
        }
    }

    #[test]
    fn the_triggers_name_is_one_that_postgres_takes() {
        assert_eq!(trigger_name("main", "shop"), "tidewater_main_shop_ddl");
        assert!(trigger_name(&"i".repeat(80), "ä b").len() <= 63);
    }
}
