//! Files that nothing names: of a flush, a load or a compaction that died before its commit.
//!
//! Only names that this writer gives are looked at, and only files that are old: whatever is being
//! written now, or was written for a load that is still under way, is younger. A file counts as left
//! behind when neither the present state nor any commit or checkpoint in the log names it.

use super::log_folder::LogFolder;
use super::{PARALLEL_READS, delete, files_of, live_files, orphan_age};
use crate::action::Action;
use crate::checkpoint;
use crate::error::{DeltaError, Result};
use crate::lake::TableLocation;
use crate::log::read_commit;
use crate::table_state::TableState;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore};
use std::collections::BTreeSet;
use std::time::Duration;

/// No file younger than this is removed, however short the retention: a first load may take long.
pub(super) const SAFE_AGE: Duration = Duration::from_secs(24 * 3600);

/// Removes what was left behind. Gives the number of files.
pub(super) async fn sweep(
    location: &TableLocation,
    state: &TableState,
    retention: Duration,
) -> Result<usize> {
    let before = chrono::Utc::now() - orphan_age(retention);
    let live = live_files(location, state)?;
    let mut left = BTreeSet::new();
    let mut objects = location.store().list(Some(location.root()));
    let failed = |source| DeltaError::store("list", location.uri())(source);
    while let Some(object) = objects.try_next().await.map_err(failed)? {
        if object.last_modified < before && is_ours(location, &object) && !live.contains(&object.location) {
            left.insert(object.location);
        }
    }
    if left.is_empty() {
        return Ok(0);
    }
    spare_what_the_log_names(location, &mut left).await?;
    let swept = left.len();
    delete(location, left.into_iter().collect()).await?;
    Ok(swept)
}

/// `part-….zstd.parquet` or `deletion_vector_….bin`, outside the folders that Delta keeps for itself.
fn is_ours(location: &TableLocation, object: &ObjectMeta) -> bool {
    let Some(mut parts) = object.location.prefix_match(location.root()) else { return false };
    let name = object.location.filename().unwrap_or_default();
    let is_data = name.starts_with("part-") && name.ends_with(".zstd.parquet");
    let is_vector = name.starts_with("deletion_vector_") && name.ends_with(".bin");
    (is_data || is_vector) && !parts.any(|part| part.as_ref() == "_delta_log")
}

/// Old versions need files that the present one does not have.
async fn spare_what_the_log_names(location: &TableLocation, left: &mut BTreeSet<Path>) -> Result<()> {
    let log = LogFolder::list(location).await?;
    let mut spare = |actions: Vec<Action>| {
        for action in actions {
            let named = match action {
                Action::Add(add) => files_of(location, &add.path, add.deletion_vector.as_ref())?,
                Action::Remove(remove) => files_of(location, &remove.path, remove.deletion_vector.as_ref())?,
                _ => Vec::new(),
            };
            named.iter().for_each(|path| _ = left.remove(path));
        }
        Ok::<(), DeltaError>(())
    };
    if let Some((oldest, _)) = log.complete_checkpoints().first() {
        spare(checkpoint::read(location, log.checkpoint(*oldest)).await?)?;
    }
    let mut reads = stream::iter(log.commits_up_to(i64::MAX))
        .map(|version| read_commit(location, version))
        .buffered(PARALLEL_READS);
    while let Some(actions) = reads.try_next().await? {
        spare(actions.unwrap_or_default())?;
    }
    Ok(())
}
