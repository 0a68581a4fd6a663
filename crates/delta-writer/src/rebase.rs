//! Following a commit that moved rows without changing any, such as OPTIMIZE in Spark.
//!
//! The flush being committed set bits in files that the other commit took away. Each bit stands for a
//! row, each row has a key, and the key finds the row's new place:
//!
//! ```text
//!   bit in old file -> key (read from the old file, which stays until VACUUM)
//!                   -> index, after the new files' keys went in -> bit in new file
//! ```
//!
//! Of equal rows of a table without a key, any that is not hidden yet takes the bit.
//!
//! Only then are the flush's own entries staged again, on top. Files rewritten by copy-on-write are made
//! from the old ones and cannot be followed; that flush is started over.

use crate::action::{Action, Add};
use crate::commit::WrittenFlush;
use crate::deletion_vector::DeletionVector;
use crate::error::{DeltaError, Result};
use crate::index_recovery::KeyReader;
use crate::key_index::{FileId, KeyHash, KeyIndex, RowAddress};
use crate::mirror_table::MirrorTable;
use crate::multiset::{Liveness, Search};
use crate::table_definition::TableKind;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Takes over `theirs` as the table's next version and adapts the flush to it.
pub(crate) async fn follow(
    table: &mut MirrorTable,
    flush: &mut WrittenFlush,
    theirs: Vec<Action>,
) -> Result<()> {
    let removed: BTreeSet<String> = theirs
        .iter()
        .filter_map(|action| match action {
            Action::Remove(remove) => Some(remove.path.clone()),
            _ => None,
        })
        .collect();
    let touched = flush.deleted.keys().any(|path| removed.contains(path));
    if (touched || flush.truncated) && !table.definition.deletion_vectors {
        return Err(unexpected(table, "the files rewritten by this flush were rewritten by somebody else"));
    }
    if table.definition.kind == TableKind::History && table.index.is_some() {
        // Which of a key's rows is the newest shows only when all are looked at again, as opening does.
        return Err(unexpected(table, "rows of the history were moved; its key index is made anew"));
    }
    let Some(mut index) = table.index.take() else {
        table.state.advance(theirs)?;
        return table.assemble(flush, &[]).await;
    };
    // On an error the index stays away: the table is closed by then, and opening it again finds the index on disk.
    let lost = lost_bits(table, &index, flush, &removed).await?;
    let came: Vec<Add> = theirs
        .iter()
        .filter_map(|action| match action {
            Action::Add(add) => Some(add.clone()),
            _ => None,
        })
        .collect();
    table.state.advance(theirs)?;
    move_index(table, &mut index, &removed, &came).await?;
    flush.deleted.retain(|path, _| !removed.contains(path));
    find_again(table, &index, flush, &lost).await?;
    stage_again(table, &mut index, flush).await?;
    table.index = Some(index);
    if table.definition.deletion_vectors { table.assemble(flush, &[]).await } else { Ok(()) }
}

/// The keys of rows that the flush deletes in files that are gone now.
async fn lost_bits(
    table: &MirrorTable,
    index: &KeyIndex,
    flush: &WrittenFlush,
    removed: &BTreeSet<String>,
) -> Result<Vec<KeyHash>> {
    let mut lost = Vec::new();
    for (path, bits) in flush.deleted.iter().filter(|(path, _)| removed.contains(*path)) {
        let Some(file) = table.state.files.get(path) else { continue };
        let rows: Vec<u32> = bits.iter().filter_map(|row| u32::try_from(row).ok()).collect();
        let mut keys =
            KeyReader::open(&table.location, &table.definition, index, &file.add, FileId(0), Some(rows))
                .await?;
        while let Some(entries) = keys.next(&DeletionVector::default()).await? {
            lost.extend(entries.into_iter().map(|(key, _)| key));
        }
    }
    Ok(lost)
}

/// Commits the moved rows' new places to the index, without the flush's own.
async fn move_index(
    table: &mut MirrorTable,
    index: &mut KeyIndex,
    removed: &BTreeSet<String>,
    came: &[Add],
) -> Result<()> {
    index.discard_staged();
    let gone: Vec<FileId> = removed.iter().map(|path| index.file_id(path)).collect();
    index.forget_files(gone);
    for add in came {
        let file = index.file_id(&add.path);
        let hidden = table.vectors.get(add).await?;
        stage_keys(table, index, add, file, &hidden).await?;
    }
    index.commit(table.state.version).map_err(DeltaError::index(table.location.uri()))
}

/// Sets the lost bits where their rows are now.
async fn find_again(
    table: &mut MirrorTable,
    index: &KeyIndex,
    flush: &mut WrittenFlush,
    lost: &[KeyHash],
) -> Result<()> {
    let places = match table.definition.kind {
        TableKind::Mirror | TableKind::History => {
            index.lookup(lost).map_err(DeltaError::index(table.location.uri()))?
        }
        TableKind::Multiset => choose_equal(table, index, flush, lost).await?,
    };
    let mut moved: BTreeMap<FileId, Vec<RowAddress>> = BTreeMap::new();
    for place in places {
        let place = place.ok_or_else(|| unexpected(table, "a moved row is in none of the new files"))?;
        moved.entry(place.file).or_default().push(place);
    }
    for (file, places) in moved {
        let path = index.path(file).map(str::to_owned).filter(|path| table.state.files.contains_key(path));
        let path = path.ok_or_else(|| unexpected(table, "a moved row is in a file that is not live"))?;
        let hidden = table.vector_of(&path).await?;
        let bits = flush.deleted.entry(path).or_default();
        for place in places {
            let row = u64::from(place.row);
            if hidden.contains(row) || !bits.insert(row) {
                return Err(unexpected(table, "a moved row is deleted already"));
            }
        }
    }
    Ok(())
}

/// For each lost row one of equal content that is neither hidden nor deleted by the flush.
async fn choose_equal(
    table: &mut MirrorTable,
    index: &KeyIndex,
    flush: &WrittenFlush,
    lost: &[KeyHash],
) -> Result<Vec<Option<RowAddress>>> {
    let mut search = Search::new(lost);
    let mut hidden: HashMap<FileId, Arc<DeletionVector>> = HashMap::new();
    loop {
        let live_path = |file| index.path(file).filter(|path| table.state.files.contains_key(*path));
        let liveness = |address: RowAddress| {
            let row = u64::from(address.row);
            let Some(path) = live_path(address.file) else { return Liveness::Gone };
            match hidden.get(&address.file) {
                None => Liveness::Unknown,
                Some(bits) if bits.contains(row) => Liveness::Gone,
                Some(_) if flush.deleted.get(path).is_some_and(|bits| bits.contains(row)) => Liveness::Gone,
                Some(_) => Liveness::Live,
            }
        };
        let unknown = search.pass(index, liveness).map_err(DeltaError::index(table.location.uri()))?;
        if unknown.is_empty() {
            let mut found = search.into_found();
            return Ok(lost.iter().map(|key| found.take(*key)).collect());
        }
        for file in unknown {
            let path = index.path(file).unwrap_or_default().to_owned();
            hidden.insert(file, table.vector_of(&path).await?);
        }
    }
}

/// Stages the flush's own rows again, oldest file first.
async fn stage_again(table: &mut MirrorTable, index: &mut KeyIndex, flush: &mut WrittenFlush) -> Result<()> {
    if flush.truncated {
        index.truncate_staged();
    }
    let born: BTreeMap<String, Arc<DeletionVector>> = flush.changes.vectors.iter().cloned().collect();
    for sealed in &mut flush.sealed {
        sealed.id = index.file_id(&sealed.add.path);
        let hidden = born.get(&sealed.add.path).cloned().unwrap_or_default();
        stage_keys(table, index, &sealed.add, sealed.id, &hidden).await?;
    }
    Ok(())
}

async fn stage_keys(
    table: &MirrorTable,
    index: &mut KeyIndex,
    add: &Add,
    file: FileId,
    hidden: &DeletionVector,
) -> Result<()> {
    let mut keys = KeyReader::open(&table.location, &table.definition, index, add, file, None).await?;
    while let Some(entries) = keys.next(hidden).await? {
        index.stage(entries).map_err(DeltaError::index(table.location.uri()))?;
    }
    Ok(())
}

fn unexpected(table: &MirrorTable, reason: &str) -> DeltaError {
    DeltaError::UnexpectedState { table: table.location.uri().to_owned(), reason: reason.to_owned() }
}
