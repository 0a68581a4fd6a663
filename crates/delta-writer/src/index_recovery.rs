//! Bringing a key index to the version of its table.
//!
//! The index is soft state. What is found on disk is at the table's version, behind it (a crash came
//! between the commit and the index's own commit), or of no use. Behind, only the files that came
//! since are read, and only their key columns; rows that are deleted by now are left out, so that every
//! key has one entry and the order of files does not matter. Of a history, whose rows all stay, the newest
//! of each key counts: see [`crate::newest_image`].

use crate::action::Add;
use crate::deletion_vector::DeletionVector;
use crate::error::{DeltaError, Result};
use crate::key_index::{FileId, KeyHash, KeyIndex, RowAddress};
use crate::lake::TableLocation;
use crate::log::LoadedLog;
use crate::newest_image;
use crate::row_reader::RowReader;
use crate::table_definition::{TableDefinition, TableKind};
use crate::vector_cache::VectorCache;
use crate::writer_options::WriterOptions;
use std::path::PathBuf;
use std::sync::Arc;

/// A table's index lies under its Delta id: a table made anew at the same place never meets an old index.
pub(crate) fn index_dir(options: &WriterOptions, table_id: &str) -> PathBuf {
    // The id comes from the log, where somebody may have written something else than a UUID.
    let name: String = table_id
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' })
        .take(100)
        .collect();
    options.index_dir.join(name)
}

/// Opens the index of a table, at the table's version.
pub(crate) async fn open(
    location: &TableLocation,
    options: &WriterOptions,
    definition: &TableDefinition,
    loaded: &LoadedLog,
    vectors: &mut VectorCache,
) -> Result<KeyIndex> {
    let state = &loaded.state;
    let dir = index_dir(options, &state.metadata.id);
    let failed = |source| DeltaError::index(location.uri())(source);
    let places = definition.kind.places();
    let is_history = definition.kind == TableKind::History;
    let found = KeyIndex::open(&dir).map_err(failed)?.map(|index| index.with_places(places));
    let behind = found.and_then(|index| Some((index.version()?, index)));
    let (since, mut index) = match behind {
        Some((version, index)) if version == state.version => return Ok(index),
        // Files of a checkpoint carry its version at best, so an older index cannot tell which are new to it.
        Some((version, index))
            if version < state.version
                && Some(version) >= loaded.checkpoint
                && (!is_history || newest_image::only_younger_rows_came(loaded, version)) =>
        {
            (Some(version), index)
        }
        unusable => {
            // The directory is owned by the index found there until it is let go.
            drop(unusable);
            (None, KeyIndex::create(&dir).map_err(failed)?.with_places(places))
        }
    };
    let files: Vec<Arc<Add>> = state
        .files
        .values()
        .filter(|file| since.is_none_or(|since| file.since > since))
        .map(|file| Arc::clone(&file.add))
        .collect();
    tracing::info!(
        table = location.uri(), version = state.version, from = ?since, files = files.len(),
        "bringing the key index to the table's version"
    );
    if is_history {
        newest_image::stage(location, options, definition, &files, &mut index).await?;
        index.commit(state.version).map_err(failed)?;
        return Ok(index);
    }
    let mut run = index.run_builder();
    for add in files {
        let file = index.file_id(&add.path);
        let vector = vectors.get(&add).await?;
        let mut keys = KeyReader::open(location, definition, &index, &add, file, None).await?;
        while let Some(entries) = keys.next(&vector).await? {
            for (key, address) in entries {
                run.push(key, address).map_err(failed)?;
            }
        }
    }
    index.stage_run(run.finish().map_err(failed)?).map_err(failed)?;
    index.commit(state.version).map_err(failed)?;
    Ok(index)
}

/// Reads the keys of a data file's rows.
pub(crate) struct KeyReader {
    table: String,
    reader: RowReader,
    hasher: crate::key_index::KeyHasher,
    file: FileId,
    /// The rows asked for; all of them if absent.
    rows: Option<std::vec::IntoIter<u32>>,
    next_row: u32,
}

impl KeyReader {
    pub async fn open(
        location: &TableLocation,
        definition: &TableDefinition,
        index: &KeyIndex,
        add: &Add,
        file: FileId,
        rows: Option<Vec<u32>>,
    ) -> Result<KeyReader> {
        let reader =
            RowReader::open(location, &definition.schema, add, &definition.key, rows.as_deref()).await?;
        Ok(KeyReader {
            table: location.uri().to_owned(),
            reader,
            hasher: index.hasher(),
            file,
            rows: rows.map(Vec::into_iter),
            next_row: 0,
        })
    }

    /// The next rows' keys and places, without those that `hidden` marks; `None` at the end.
    pub async fn next(&mut self, hidden: &DeletionVector) -> Result<Option<Vec<(KeyHash, RowAddress)>>> {
        let Some(batch) = self.reader.next().await? else { return Ok(None) };
        let keys = self.hasher.hash(batch.columns()).map_err(DeltaError::index(&self.table))?;
        let mut entries = Vec::with_capacity(keys.len());
        for key in keys {
            let row = match &mut self.rows {
                Some(rows) => rows.next().unwrap_or(u32::MAX),
                None => {
                    self.next_row += 1;
                    self.next_row - 1
                }
            };
            if !hidden.contains(u64::from(row)) {
                entries.push((key, RowAddress { file: self.file, row }));
            }
        }
        Ok(Some(entries))
    }
}
