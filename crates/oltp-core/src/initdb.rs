//! Making a cluster, whole or not at all.
//!
//! `initdb` works in a scratch directory beside the final place, and one rename puts the finished
//! cluster there. A crash at any point leaves either no cluster (and scratch that the next attempt
//! sweeps away) or a complete one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rand::Rng;
use rand::distr::Alphanumeric;

use crate::installation::Installation;
use crate::project::SUPERUSER;
use crate::reachable_directory::ReachableDirectory;
use crate::server_command::{run_bounded, server_command};
use crate::service_user::ServiceUser;
use crate::{CoreError, Result, private_file, settings};

/// `initdb` writes and flushes 40 MB; only a very sick disk needs this long.
const LIMIT: Duration = Duration::from_secs(300);

const SCRATCH_PREFIX: &str = "initdb.";

/// The file with the access rules.
pub(crate) const ACCESS_RULES: &str = "pg_hba.conf";

/// For a server that listens: everybody proves a password, and the superuser only over the private socket.
pub(crate) fn server_access_rules() -> String {
    format!(
        "# Written by Tidewater when the cluster was made.\n\
         local all         all          scram-sha-256\n\
         local replication all          scram-sha-256\n\
         host  all         {SUPERUSER} all reject\n\
         host  replication {SUPERUSER} all reject\n\
         host  all         all      all scram-sha-256\n\
         host  replication all      all scram-sha-256\n"
    )
}

/// For a branch, which has its socket only: a physical stream carries WAL that the keepers may not have, and could
/// answer in their place. It is the core's own role's. Logical ones are of a database, and `replication` is not their rule.
pub(crate) fn branch_access_rules() -> String {
    format!(
        "# Written by Tidewater at each start.\n\
         local all         all         scram-sha-256\n\
         local replication {SUPERUSER} scram-sha-256\n"
    )
}

/// Makes the cluster `data` inside `directory`: UTF-8 with code point order, so that sorting never
/// changes with the machine's libraries, data checksums, passwords as SCRAM.
pub(crate) async fn make_cluster(
    directory: &Path,
    data: &Path,
    installation: &Installation,
    user: &ServiceUser,
    password: &str,
    access_rules: &str,
) -> Result<()> {
    sweep_scratch(directory)?;
    let suffix: String = rand::rng().sample_iter(Alphanumeric).take(8).map(char::from).collect();
    let scratch = directory.join(format!("{SCRATCH_PREFIX}{suffix}"));
    private_file::create_directory(&scratch, 0o700)?;
    let password_file = scratch.join("password");
    private_file::write(&password_file, password)?;
    user.own(&password_file)?;
    user.own(&scratch)?;

    let reachable = ReachableDirectory::open(&scratch, user)?;
    let mut command = server_command(&installation.program("initdb"), user);
    command
        .arg("--pgdata")
        .arg(reachable.path().join("data"))
        .arg("--pwfile")
        .arg(reachable.path().join("password"))
        .args(["--username", SUPERUSER, "--encoding=UTF8", "--data-checksums"])
        .args(["--auth=scram-sha-256", "--no-instructions"]);
    if installation.major() >= 17 {
        // The builtin provider came with 17.
        command.args(["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]);
    } else {
        command.arg("--locale=C.UTF-8");
    }
    run_bounded(command, LIMIT).await?;

    let made = scratch.join("data");
    let conf = made.join("postgresql.conf");
    let mut text = std::fs::read_to_string(&conf).map_err(CoreError::io("read", &conf))?;
    text.push_str(&format!("\ninclude_if_exists = '{}'\n", settings::FILE));
    for (name, contents) in [("postgresql.conf", text.as_str()), (ACCESS_RULES, access_rules)] {
        let path = made.join(name);
        private_file::write(&path, contents)?;
        user.own(&path)?;
    }
    std::fs::rename(&made, data).map_err(CoreError::io("put the new cluster in place at", data))?;
    private_file::sync_directory_of(data)?;
    sweep_scratch(directory)
}

/// Removes what interrupted attempts left. Called under the project's lock only.
fn sweep_scratch(directory: &Path) -> Result<()> {
    for left in scratch_directories(directory)? {
        std::fs::remove_dir_all(&left).map_err(CoreError::io("remove", &left))?;
    }
    Ok(())
}

fn scratch_directories(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(directory).map_err(CoreError::io("list", directory))?;
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(CoreError::io("list", directory))?;
        if entry.file_name().to_string_lossy().starts_with(SCRATCH_PREFIX) {
            found.push(entry.path());
        }
    }
    Ok(found)
}
