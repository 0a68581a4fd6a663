//! The first start of a branch: from a copy of its parent's manifest to a clean state of its own.
//!
//! ```text
//!   manifest 1 (branched)  ─► mount ─► WAL of the parent up to the point ─► Postgres, for nobody
//!                                                                              │ replays, ends at the point,
//!                                                                              │ begins a new timeline
//!   manifest 2 (clean)     ◄─ capture ◄─ stopped ◄─ no slots, no subscriptions ◄┘
//! ```
//!
//! From manifest 2 on it is a branch like any other that sleeps, and an ordinary start follows. A crash in
//! between changes nothing: manifest 1 is still the newest, and what was done is done again.
//!
//! Where the replay ends is said by the WAL itself: it is laid out exactly to the branch's point, with
//! zeros behind it, and Postgres replays what is complete. So the point needs no record that begins there, and
//! a parent that has gone on cannot be seen. Only a time is Postgres's to find (`recovery_target_time`): it
//! stops before the first commit stamped later. If the WAL holds no such commit it has replayed all there is
//! and then complains that it saw no later one; that is no failure, and the same recovery is ended without the time.
//!
//! That the pages are not ahead of the point is checked by Postgres as well: their minimum recovery position is
//! written into `pg_control` (see [`crate::control_file`]).

use std::path::Path;

use secrecy::SecretString;
use wal_decoder::Lsn;

use super::directory::ComputeDirectory;
use super::server::{Purpose, Server};
use super::severing;
use super::wal_floor::{read_control_file, write_control_file};
use crate::ids::Timeline;
use crate::installation::Installation;
use crate::page_store::{ManifestHead, ManifestKind, RecoveryTarget};
use crate::{CoreError, Result};

/// What Postgres says when the WAL ends before a commit that is later than the target.
const NO_LATER_COMMIT: &str = "recovery ended before configured recovery target was reached";

/// Makes Postgres recover as an archive would, and on a new timeline.
const SIGNAL: &str = "recovery.signal";

/// Brings the mounted pages of a branched manifest to the branch's point and leaves them cleanly shut down.
///
/// # Errors
/// Postgres cannot reach the point, or a tie to the parent cannot be cut.
pub(crate) async fn rewind(
    directory: &ComputeDirectory,
    installation: &Installation,
    password: &SecretString,
    head: &ManifestHead,
) -> Result<Rewound> {
    let ManifestKind::Branched { target } = head.kind else {
        return Err(CoreError::ManifestUnsound {
            branch: head.branch,
            number: head.number,
            reason: "it is no branch's first manifest".to_owned(),
        });
    };
    let (data, user) = (directory.data(), directory.user().clone());
    let (replays, minimum) = (target != RecoveryTarget::None, head.min_recovery_lsn);
    on_mount(&data, move |data| {
        severing::remove_slots(data)?;
        if replays {
            let control = read_control_file(data)?.recovering_to_at_least(minimum);
            write_control_file(data, &control)?;
            let signal = data.join(SIGNAL);
            std::fs::write(&signal, b"").map_err(CoreError::io("write", &signal))?;
            user.own(&signal)?;
        }
        Ok(())
    })
    .await?;
    let project = head.project.as_str();
    let until = match target {
        // RFC 3339 with a numeric zone: `Z` is an abbreviation, and a postmaster that reads its command line has none yet.
        RecoveryTarget::Time(time) => Some(time.to_string().replace('T', " ").replace('Z', "+00")),
        RecoveryTarget::None | RecoveryTarget::Lsn(_) => None,
    };
    let launch =
        |until| Server::launch(directory, installation, project, password, &Purpose::Rewinding { until });
    let mut server = launch(until.clone())?;
    let first = server.wait_until_ready().await;
    let client = match first {
        Err(CoreError::StartFailed { tail, .. }) if until.is_some() && tail.contains(NO_LATER_COMMIT) => {
            server = launch(None)?;
            server.wait_until_ready().await?
        }
        other => other?,
    };
    severing::sever(&server, project, &client).await?;
    drop(client);
    server.stop().await?;
    let control = on_mount(&data, read_control_file).await?;
    if !control.is_shut_down() {
        return Err(CoreError::StartFailed {
            project: project.to_owned(),
            end: "it did not shut down in order".to_owned(),
            tail: server.last_words(),
            log: directory.log(),
        });
    }
    Ok(Rewound { checkpoint: control.checkpoint(), timeline: Timeline(control.timeline()) })
}

/// A branch's own beginning.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rewound {
    /// Where its shutdown checkpoint lies, the last record of the WAL so far.
    pub(crate) checkpoint: Lsn,
    /// The timeline that the branch writes.
    pub(crate) timeline: Timeline,
}

/// Works on the mount, which is served through this runtime: never on one of its own threads.
pub(crate) async fn on_mount<T: Send + 'static>(
    data: &Path,
    work: impl FnOnce(&Path) -> Result<T> + Send + 'static,
) -> Result<T> {
    let data = data.to_owned();
    let worked = tokio::task::spawn_blocking(move || work(&data)).await;
    worked.map_err(|ended| CoreError::io("work on", "the mount")(std::io::Error::other(ended)))?
}
