//! Extensions that a database's owner may add although their packages keep them for superusers.
//!
//! Postgres lets an owner add an extension whose control file says `trusted`. Nearly all of contrib says so;
//! pgvector and pg_stat_statements do not, although what they bring stays inside the database, and every
//! service that runs Postgres for others offers them. The installation is not ours to change, so the
//! server is given a second folder of control files, which it looks into first (`extension_control_path`, since
//! PostgreSQL 18): the installation's own text, with that one word added and pointing to the scripts where they are.
//!
//! The folder lies in the data directory, because the setting takes absolute paths only and there may be none that
//! Postgres's user can walk; but `/proc/self/cwd` is the data directory for each of its processes.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use tokio_postgres::Client;

use super::ComputeDirectory;
use super::rewinding::on_mount;
use crate::service_user::ServiceUser;
use crate::{CoreError, Result, private_file};

/// What reaches nothing outside of its database and gives nobody another's rights.
const OFFERED: &[&str] = &["pg_stat_statements", "vector"];

/// In the data directory.
const FOLDER: &str = "tidewater_extensions";

/// For `extension_control_path`: [`FOLDER`], then the installation's.
pub(super) const CONTROL_PATH: &str = "/proc/self/cwd/tidewater_extensions:$system";

/// The first version that has that setting.
pub(super) const SINCE: u32 = 18;

/// A control file has some five lines.
const CONTROL_LIMIT: u64 = 64 << 10;

/// Writes the control files for the installation that runs here, where they are not there already.
pub(super) async fn offer(client: &Client, directory: &ComputeDirectory, project: &str) -> Result<()> {
    let failed = || CoreError::statement(project, "tell where its extensions are");
    let row = client
        .query_one("SELECT setting FROM pg_catalog.pg_config() WHERE name = 'SHAREDIR'", &[])
        .await
        .map_err(failed())?;
    let shared: String = row.try_get(0).map_err(failed())?;
    let user = directory.user().clone();
    on_mount(&directory.data(), move |data| {
        let installed = PathBuf::from(shared).join("extension");
        OFFERED.iter().try_for_each(|name| offer_one(&installed, &data.join(FOLDER), name, &user))
    })
    .await
}

fn offer_one(installed: &Path, folder: &Path, name: &str, user: &ServiceUser) -> Result<()> {
    let file = format!("{name}.control");
    let ours = folder.join("extension").join(&file);
    let Some(theirs) = read(&installed.join(&file))? else {
        // Not on this machine: what another one left would promise scripts that are not here.
        return match std::fs::remove_file(&ours) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(CoreError::io("remove", ours)(error)),
            _ => Ok(()),
        };
    };
    let wanted = trusted(&theirs, installed);
    if read(&ours)?.is_some_and(|present| present == wanted) {
        return Ok(());
    }
    for made in [folder, &folder.join("extension")] {
        private_file::create_directory(made, 0o700)?;
        user.own(made)?;
    }
    std::fs::write(&ours, wanted).map_err(CoreError::io("write", &ours))?;
    user.own(&ours)
}

fn read(path: &Path) -> Result<Option<String>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(CoreError::io("open", path)(error)),
    };
    let mut text = String::new();
    file.take(CONTROL_LIMIT).read_to_string(&mut text).map_err(CoreError::io("read", path))?;
    Ok(Some(text))
}

/// The later of two lines with one name counts, as in every configuration file of Postgres's.
fn trusted(control: &str, scripts: &Path) -> String {
    let scripts = scripts.to_string_lossy().replace('\'', "''");
    let elsewhere = control.lines().any(|line| line.trim_start().starts_with("directory"));
    let directory = if elsewhere { String::new() } else { format!("directory = '{scripts}'\n") };
    format!("{}\ntrusted = true\n{directory}", control.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offered_extension_is_the_installed_one_with_leave_to_add_it() {
        let folder = tempfile::tempdir().unwrap();
        let (installed, ours) = (folder.path().join("it's here"), folder.path().join("ours"));
        std::fs::create_dir(&installed).unwrap();
        std::fs::write(installed.join("vector.control"), "default_version = '0.8'\n").unwrap();
        let user = ServiceUser::for_new_cluster();
        offer_one(&installed, &ours, "vector", &user).unwrap();
        let written = std::fs::read_to_string(ours.join("extension/vector.control")).unwrap();
        let scripts = installed.to_string_lossy().replace('\'', "''");
        assert_eq!(written, format!("default_version = '0.8'\ntrusted = true\ndirectory = '{scripts}'\n"));

        std::fs::remove_file(installed.join("vector.control")).unwrap();
        offer_one(&installed, &ours, "vector", &user).unwrap();
        assert!(!ours.join("extension/vector.control").exists());
        offer_one(&installed, &ours, "vector", &user).unwrap();
    }
}
