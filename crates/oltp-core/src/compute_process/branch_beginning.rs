//! A branch's own beginning: what [`rewinding`](super::rewinding) left is made the branch's first state.
//!
//! Three things make it one: the WAL that the branch has written itself goes into its archive, a manifest of a
//! clean stop names it as the continuation of the parent's, and the mount is taken away. An ordinary start
//! finds these three, as after any suspend.

use std::path::Path;
use std::sync::Arc;

use wal_decoder::Lsn;

use super::cutting::{Moment, Publisher};
use super::local_wal;
use super::rewinding::{Rewound, rewind};
use super::starting::{empty, open_data, write_configuration};
use super::{ComputeDirectory, ComputeSpec};
use crate::ids::{Term, Timeline};
use crate::page_fs::CaptureKind;
use crate::page_store::{Manifest, WalChunkName};
use crate::wal_keeper::{WalArchive, WalChunk, WalPlacement};
use crate::{CoreError, Result};

/// Brings a branched manifest to the branch's point and publishes what comes of it.
///
/// # Errors
/// The parent's WAL is incomplete, Postgres does not reach the point, or the store refuses.
pub(super) async fn begin_branch(
    spec: &ComputeSpec,
    directory: &ComputeDirectory,
    archive: &WalArchive,
    term: Term,
    manifest: Arc<Manifest>,
) -> Result<()> {
    let head = manifest.head.clone();
    let mut publisher = Publisher::new(spec.pages.clone(), Arc::clone(&manifest), term);
    let wal = directory.wal();
    empty(&wal)?;
    let placement = WalPlacement {
        archive,
        keepers: &[],
        spans: &manifest.body.wal,
        from: head.redo_lsn,
        to: manifest.body.wal.last().and_then(|span| span.to),
    };
    placement.place(&wal, directory.user()).await?;
    let files = open_data(spec, directory, manifest, term).await?;
    // Replaying needs the settings of today: room for prepared transactions, say.
    write_configuration(spec, directory).await?;
    let rewound = rewind(directory, &spec.installation, &spec.superuser_password, &head).await?;

    let from = if rewound.timeline == head.timeline {
        head.end_lsn.unwrap_or(head.min_recovery_lsn)
    } else {
        switch_point(&wal, rewound.timeline)?
    };
    let Rewound { checkpoint, timeline } = rewound;
    let written = archive_shut_down_wal(archive, &wal, timeline, checkpoint, Some(from), term).await?;
    publisher.continue_wal(timeline, from);
    let captured = files.capture_stopped().await?;
    let moment = Moment {
        kind: CaptureKind::CleanShutdown,
        timeline,
        wal_floor: checkpoint,
        min_recovery: written.end,
    };
    publisher.publish(captured, moment).await?;
    files.leave(publisher.latest()).await
}

/// A piece of WAL that was put into an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) start: Lsn,
    pub(crate) end: Lsn,
}

/// Archives the WAL of a server that was shut down: from `from`, or else from the beginning of the segment with the
/// last checkpoint, to the end of that checkpoint's record.
///
/// # Errors
/// The WAL cannot be read, or the store refuses.
pub(crate) async fn archive_shut_down_wal(
    archive: &WalArchive,
    wal: &Path,
    timeline: Timeline,
    checkpoint: Lsn,
    from: Option<Lsn>,
    term: Term,
) -> Result<Written> {
    let end = local_wal::end_after(wal, timeline, checkpoint)?;
    let first = from.unwrap_or(local_wal::segment_start(checkpoint));
    let mut start = first;
    while start < end {
        let stop = end.min(local_wal::segment_end(start));
        let name = WalChunkName { timeline, start, end: stop, term };
        let bytes = local_wal::read(wal, timeline, start, stop)?;
        archive.put(&WalChunk { name, ends_at_record: stop == end, wal: bytes.into() }).await?;
        start = stop;
    }
    Ok(Written { start: first, end })
}

/// Where Postgres left the timeline before this one: the last line of the history file that it wrote
/// (`timeline.c`: timeline, position, reason).
fn switch_point(wal: &Path, timeline: Timeline) -> Result<Lsn> {
    let path = wal.join(format!("{:08X}.history", timeline.0));
    let text = std::fs::read_to_string(&path).map_err(CoreError::io("read", &path))?;
    last_switch(&text)
        .ok_or_else(|| CoreError::io("understand", path)(std::io::ErrorKind::InvalidData.into()))
}

fn last_switch(history: &str) -> Option<Lsn> {
    let line = history.lines().rfind(|line| !line.trim().is_empty())?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_of_a_history_says_where_the_newest_timeline_begins() {
        let history = "1\t0/1700768\tno recovery target specified\n\n2\t0/1800000\tbefore 2026-01-01\n";
        assert_eq!(last_switch(history), Some(Lsn(0x180_0000)));
        assert_eq!(last_switch(""), None);
        assert_eq!(last_switch("nonsense"), None);
    }
}
