//! A query's rows as text or Arrow, written as they come.
//!
//! CSV, JSON and Arrow hold one batch at a time. A table needs widths before its first line, so it is laid
//! out per [`ROWS_PER_TABLE`] rows: a larger result prints as several tables, each with its header.

use crate::error::LakeSqlError;
use crate::session::QueryResult;
use arrow::array::RecordBatch;
use arrow::csv::WriterBuilder as CsvWriterBuilder;
use arrow::error::ArrowError;
use arrow::ipc::writer::StreamWriter;
use arrow::json::writer::{JsonArray, WriterBuilder as JsonWriterBuilder};
use arrow::util::display::FormatOptions;
use arrow::util::pretty::pretty_format_batches_with_options;
use futures::TryStreamExt;
use std::fmt;
use std::io::Write;
use std::str::FromStr;

/// Rows whose widths are found together: a few screens full, and little memory.
const ROWS_PER_TABLE: usize = 10_000;

/// How rows are written: the values of `--format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputFormat {
    /// A drawn table, for people.
    Table,
    /// RFC 4180 with a header; null is the empty field.
    Csv,
    /// One array of objects; null values are written.
    Json,
    /// An Arrow IPC stream.
    Arrow,
}

impl fmt::Display for OutputFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl OutputFormat {
    fn name(self) -> &'static str {
        match self {
            OutputFormat::Table => "table",
            OutputFormat::Csv => "csv",
            OutputFormat::Json => "json",
            OutputFormat::Arrow => "arrow",
        }
    }

    fn failed(self, source: ArrowError) -> LakeSqlError {
        match source {
            ArrowError::IoError(_, source) => LakeSqlError::Output(source),
            source => LakeSqlError::Format { format: self.name(), source },
        }
    }
}

/// The text is none of the formats' names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no output format; write table, csv, json or arrow")]
pub struct ParseOutputFormatError {
    text: String,
}

impl FromStr for OutputFormat {
    type Err = ParseOutputFormatError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [OutputFormat::Table, OutputFormat::Csv, OutputFormat::Json, OutputFormat::Arrow]
            .into_iter()
            .find(|format| format.name() == text)
            .ok_or_else(|| ParseOutputFormatError { text: text.chars().take(40).collect() })
    }
}

/// Writes all rows of a result and returns how many there were.
pub async fn format<W: Write>(
    result: QueryResult,
    format: OutputFormat,
    mut writer: W,
) -> Result<u64, LakeSqlError> {
    let rows = match format {
        OutputFormat::Table => table(result, &mut writer).await?,
        OutputFormat::Csv => csv(result, &mut writer).await?,
        OutputFormat::Json => json(result, &mut writer).await?,
        OutputFormat::Arrow => arrow(result, &mut writer).await?,
    };
    writer.flush().map_err(LakeSqlError::Output)?;
    Ok(rows)
}

async fn table(mut result: QueryResult, writer: &mut impl Write) -> Result<u64, LakeSqlError> {
    let (mut rows, mut held, mut held_rows) = (0, Vec::new(), 0);
    while let Some(batch) = result.stream.try_next().await? {
        rows += batch.num_rows() as u64;
        held_rows += batch.num_rows();
        held.push(batch);
        if held_rows >= ROWS_PER_TABLE {
            draw(&held, writer)?;
            held.clear();
            held_rows = 0;
        }
    }
    if held_rows > 0 || rows == 0 {
        held.push(RecordBatch::new_empty(result.schema));
        draw(&held, writer)?;
    }
    Ok(rows)
}

fn draw(batches: &[RecordBatch], writer: &mut impl Write) -> Result<(), LakeSqlError> {
    let options = FormatOptions::default().with_null("NULL").with_display_error(true);
    let drawn = pretty_format_batches_with_options(batches, &options)
        .map_err(|source| OutputFormat::Table.failed(source))?;
    writeln!(writer, "{drawn}").map_err(LakeSqlError::Output)
}

async fn csv(mut result: QueryResult, writer: &mut impl Write) -> Result<u64, LakeSqlError> {
    let mut rows = 0;
    let mut writer = CsvWriterBuilder::new().with_header(true).build(writer);
    // The header comes with the first batch, so an empty result gets an empty one.
    let header = RecordBatch::new_empty(result.schema);
    writer.write(&header).map_err(|source| OutputFormat::Csv.failed(source))?;
    while let Some(batch) = result.stream.try_next().await? {
        rows += batch.num_rows() as u64;
        writer.write(&batch).map_err(|source| OutputFormat::Csv.failed(source))?;
    }
    Ok(rows)
}

async fn json(mut result: QueryResult, writer: &mut impl Write) -> Result<u64, LakeSqlError> {
    let mut rows = 0;
    {
        let mut writer =
            JsonWriterBuilder::new().with_explicit_nulls(true).build::<_, JsonArray>(&mut *writer);
        while let Some(batch) = result.stream.try_next().await? {
            rows += batch.num_rows() as u64;
            writer.write(&batch).map_err(|source| OutputFormat::Json.failed(source))?;
        }
        writer.finish().map_err(|source| OutputFormat::Json.failed(source))?;
    }
    writeln!(writer).map_err(LakeSqlError::Output)?;
    Ok(rows)
}

async fn arrow(mut result: QueryResult, writer: &mut impl Write) -> Result<u64, LakeSqlError> {
    let mut rows = 0;
    let failed = |source| OutputFormat::Arrow.failed(source);
    let mut writer = StreamWriter::try_new(writer, &result.schema).map_err(failed)?;
    while let Some(batch) = result.stream.try_next().await? {
        rows += batch.num_rows() as u64;
        writer.write(&batch).map_err(failed)?;
    }
    writer.finish().map_err(failed)?;
    Ok(rows)
}
