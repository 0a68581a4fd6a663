//! Statements in which the server casts values, and what they name when a value has no place in its column.

use super::definition::{Layout, SHOWN_CHARACTERS};
use super::target::Target;
use crate::error::{Result, ReverseSyncError};
use postgres_connector::{quote_identifier, quote_literal};

/// SQLSTATE class 22, data exceptions: a value is at fault, and no repetition mends it.
const DATA_EXCEPTION: &str = "22";

/// `pg_input_is_valid` came with version 16; older servers' own message has to do.
const VALIDATES_INPUT: u32 = 160_000;

impl Target {
    /// Runs a statement that reads the rows of `staged`. When a value cannot be cast, the error names its key and column;
    /// the transaction is rolled back then.
    pub(super) async fn cast_rows(
        &self,
        layout: &Layout,
        staged: &str,
        doing: &'static str,
        sql: &str,
    ) -> Result<i64> {
        let error = match self.client.execute(sql, &[]).await {
            Ok(rows) => return Ok(i64::try_from(rows).unwrap_or(i64::MAX)),
            Err(error) => error,
        };
        let at_fault = error.code().is_some_and(|code| code.code().starts_with(DATA_EXCEPTION));
        let error = ReverseSyncError::from(self.client.error(doing, error));
        if !at_fault
            || postgres_connector::server_version(&self.client).await.is_ok_and(|v| v < VALIDATES_INPUT)
        {
            return Err(error);
        }
        self.roll_back().await?;
        Err(self.find_uncastable(layout, staged).await?.unwrap_or(error))
    }

    async fn find_uncastable(&self, layout: &Layout, staged: &str) -> Result<Option<ReverseSyncError>> {
        let failed = |source| self.client.error("looking for the value that cannot be cast", source);
        let key = layout.shown_key(|name| format!("s.{name}"));
        for column in layout.columns.iter().filter(|column| column.is_cast()) {
            let name = quote_identifier(&column.name);
            let sql = format!(
                "SELECT {key}, left(s.{name}::text, {SHOWN_CHARACTERS}) FROM {staged} s
                 WHERE NOT pg_input_is_valid(s.{name}::text, {}) LIMIT 1",
                quote_literal(&column.declared)
            );
            if let Some(row) = self.client.query_opt(&sql, &[]).await.map_err(failed)? {
                return Ok(Some(ReverseSyncError::Uncastable {
                    key: row.try_get(0).map_err(failed)?,
                    column: column.name.clone(),
                    declared: column.declared.clone(),
                    shown: row.try_get(1).map_err(failed)?,
                }));
            }
        }
        Ok(None)
    }
}
