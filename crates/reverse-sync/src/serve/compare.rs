//! Comparing a served table with the rows of the version that it holds.

use super::copy_in::RowStream;
use super::definition::Layout;
use super::load::Progress;
use super::record::Record;
use super::target::Target;
use crate::error::{Result, ReverseSyncError};
use postgres_connector::quote_identifier;

/// Differing keys named: enough to see what is wrong.
const NAMED: u32 = 10;

/// What a comparison found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Rows served.
    pub served_rows: i64,
    /// Rows of the Delta table that are to be served.
    pub lake_rows: i64,
    /// Keys whose rows differ.
    pub differing_keys: i64,
    /// The first of them, each with how it differs.
    pub first: Vec<(String, Difference)>,
}

/// How the rows of a key differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Difference {
    /// The served table has none.
    OnlyInLake,
    /// The Delta table has none.
    OnlyServed,
    /// Both have one, with other values.
    OtherValues,
}

impl Target {
    /// Compares the served table with all rows of the version in `record`.
    pub async fn compare(
        &mut self,
        layout: &Layout,
        record: &Record,
        rows: RowStream,
        progress: Progress<'_>,
    ) -> Result<Comparison> {
        let compared = self.compare_all(layout, record, rows, progress).await;
        if compared.is_err() {
            self.clear_away().await;
        }
        compared
    }

    async fn compare_all(
        &mut self,
        layout: &Layout,
        record: &Record,
        rows: RowStream,
        progress: Progress<'_>,
    ) -> Result<Comparison> {
        self.stage(layout, rows, progress).await?;
        self.run("beginning a comparison", "BEGIN ISOLATION LEVEL REPEATABLE READ").await?;
        let compared = async {
            self.lock_record(record).await?;
            self.compare_staged(layout).await
        };
        let compared = match compared.await {
            Ok(compared) => compared,
            Err(error) => return Err(self.give_up(error).await),
        };
        self.roll_back().await?;
        self.drop_stage().await?;
        Ok(compared)
    }

    async fn compare_staged(&self, layout: &Layout) -> Result<Comparison> {
        let (target, stage) = (self.definition.target(), self.definition.stage());
        // As declared, so that a length or precision that rounds is no difference.
        let staged = layout.columns.iter().map(|column| {
            let name = quote_identifier(&column.name);
            format!("CAST(s.{name} AS {}) AS {name}", column.declared)
        });
        let staged = format!("(SELECT {} FROM {stage} s)", staged.collect::<Vec<_>>().join(", "));
        let first_key =
            layout.key_columns().next().map(|column| quote_identifier(&column.name)).unwrap_or_default();
        let differing = format!(
            "FROM {target} t FULL JOIN {staged} s ON {} WHERE t.{first_key} IS NULL OR s.{first_key} IS NULL
             OR ROW({})::record *<> ROW({})::record",
            layout.same_key("t", "s"),
            layout.of("t"),
            layout.of("s")
        );
        let key = layout.shown_key(|name| format!("coalesce(t.{name}, s.{name})"));
        let first =
            format!("SELECT {key}, t.{first_key} IS NULL, s.{first_key} IS NULL {differing} LIMIT {NAMED}");
        let counting = "counting rows";
        let failed = |source| self.client.error("comparing rows", source);
        let rows = self.client.query(&first, &[]).await.map_err(failed)?;
        let first = rows.iter().map(|row| {
            let (not_served, not_in_lake) =
                (row.try_get(1).map_err(failed)?, row.try_get(2).map_err(failed)?);
            let difference = match (not_served, not_in_lake) {
                (true, _) => Difference::OnlyInLake,
                (_, true) => Difference::OnlyServed,
                _ => Difference::OtherValues,
            };
            Ok::<_, ReverseSyncError>((row.try_get(0).map_err(failed)?, difference))
        });
        let first = first.collect::<Result<Vec<_>, _>>()?;
        Ok(Comparison {
            served_rows: self.count(counting, &format!("SELECT count(*) FROM {target}")).await?,
            lake_rows: self.count(counting, &format!("SELECT count(*) FROM {stage}")).await?,
            differing_keys: match first.is_empty() {
                true => 0,
                false => self.count(counting, &format!("SELECT count(*) {differing}")).await?,
            },
            first,
        })
    }
}
