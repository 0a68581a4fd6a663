//! Deleting rows without deletion vectors: the files that hold them are written anew, without them.
//!
//! For readers that know no vectors. Rows stream from the old file to the new one, so memory does not
//! grow with the file; the rows that stay get new places, which the index learns with the same commit.

use crate::action::Add;
use crate::commit::{FileChanges, WrittenFlush};
use crate::data_file::{FileSink, SealedFile};
use crate::deletion_vector::DeletionVector;
use crate::error::{DeltaError, Result};
use crate::mirror_table::MirrorTable;
use crate::row_reader::RowReader;
use std::sync::Arc;

/// Makes the file actions of a flush by rewriting every file that lost rows.
pub(crate) async fn rewrite(
    table: &mut MirrorTable,
    sealed: Vec<(SealedFile, DeletionVector)>,
    flush: &mut WrittenFlush,
) -> Result<()> {
    let now = chrono::Utc::now().timestamp_millis();
    let mut changes = FileChanges::default();
    let mut sink =
        FileSink::new(table.location.clone(), Arc::clone(&table.definition), table.options.clone());
    let mut moved = 0;
    for (file, dead) in sealed {
        changes.rows_added += file.rows - dead.len();
        if dead.is_empty() {
            flush.sealed.push(file);
        } else {
            copy_without(table, &mut sink, &file.add, &dead).await?;
        }
    }
    if flush.truncated {
        table.remove_all(&mut changes, now);
    } else {
        for (path, bits) in &flush.deleted {
            let Some(file) = table.state.files.get(path).cloned() else { continue };
            let mut dead = DeletionVector::clone(&*table.vector_of(path).await?);
            dead.union(bits);
            changes.rows_deleted += bits.len();
            changes.removes.push(file.add.removal(now, true));
            changes.gone.push(path.clone());
            if Some(dead.len()) != file.rows {
                moved += copy_without(table, &mut sink, &file.add, &dead).await?;
            }
        }
    }
    tracing::debug!(table = table.location.uri(), moved, "rows copied to files without the deleted ones");
    flush.sealed.extend(sink.finish().await?);
    changes.adds = flush.sealed.iter().map(|file| file.add.clone()).collect();
    flush.changes = changes;
    Ok(())
}

/// Copies a file's other rows and stages their new places. Returns their number.
async fn copy_without(
    table: &mut MirrorTable,
    sink: &mut FileSink,
    add: &Add,
    dead: &DeletionVector,
) -> Result<u64> {
    let columns: Vec<usize> = (0..table.definition.schema.fields().len()).collect();
    let schema = Arc::clone(&table.definition.schema);
    let mut reader = RowReader::open(&table.location, &schema, add, &columns, None).await?;
    let mut copied = 0;
    while let Some(batch) = reader.next_live(dead).await? {
        copied += batch.num_rows() as u64;
        table.append_and_stage(sink, batch).await?;
    }
    Ok(copied)
}

impl MirrorTable {
    /// Writes rows of this table through `sink` and tells the index where they are.
    async fn append_and_stage(
        &mut self,
        sink: &mut FileSink,
        batch: arrow::array::RecordBatch,
    ) -> Result<()> {
        // Without a key nothing is ever deleted, so there is nothing to copy either.
        let Some(index) = &mut self.index else {
            return Err(self.unexpected("rows of a table without a key index cannot be moved"));
        };
        let key: Vec<_> =
            self.definition.key.iter().filter_map(|&at| batch.columns().get(at)).cloned().collect();
        let keys = index.hasher().hash(&key).map_err(DeltaError::index(self.location.uri()))?;
        let mut number = |path: &str| Ok(index.file_id(path));
        let addresses = sink.append(&[batch], &mut number).await?;
        let entries = keys.into_iter().zip(addresses.into_iter().flatten()).collect();
        match index.stage(entries) {
            Ok(()) => Ok(()),
            Err(source) => Err(self.index_failed(source)),
        }
    }
}
