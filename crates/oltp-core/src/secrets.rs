//! The passwords of a project, kept in the storage beside its pages.
//!
//! Whoever can read the storage can read every row of it, so a password there gives nothing away that was
//! not. Kept with the project it goes where the project goes: another machine that starts a branch gets in.
//! Each is written once; of two writers the first one's counts for both.

use bytes::Bytes;
use object_store::path::Path;
use rand::Rng;
use rand::distr::Alphanumeric;
use secrecy::SecretString;

use crate::ids::ProjectName;
use crate::storage::{Put, Storage};
use crate::{CoreError, Result};

/// 32 letters and digits are 190 bits, and survive every URL and shell unquoted.
const LENGTH: usize = 32;

/// A generated password; anything longer is not ours.
const LIMIT: u64 = 1024;

/// Whose password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Secret {
    /// The core's own role.
    Superuser,
    /// The role that owns the project's database.
    Owner,
}

impl Secret {
    fn path(self, project: &ProjectName) -> Path {
        let name = match self {
            Secret::Superuser => "superuser.password",
            Secret::Owner => "owner.password",
        };
        Path::from("projects").join(project.as_str()).join(name)
    }
}

/// A new password.
pub(crate) fn generate() -> SecretString {
    rand::rng().sample_iter(Alphanumeric).take(LENGTH).map(char::from).collect::<String>().into()
}

/// The project's password, generated when there is none yet.
///
/// # Errors
/// The store failed.
pub async fn kept_secret(storage: &Storage, project: &ProjectName, secret: Secret) -> Result<SecretString> {
    if let Some(kept) = read(storage, project, secret).await? {
        return Ok(kept);
    }
    keep(storage, project, secret, &generate()).await
}

/// Keeps `password` unless the project has one already; returns the one that counts.
///
/// # Errors
/// The store failed.
pub(crate) async fn keep(
    storage: &Storage,
    project: &ProjectName,
    secret: Secret,
    password: &SecretString,
) -> Result<SecretString> {
    use secrecy::ExposeSecret;
    let path = secret.path(project);
    match storage.put_if_absent(&path, Bytes::from(password.expose_secret().to_owned())).await? {
        Put::Created => Ok(password.clone()),
        Put::NameTaken => read(storage, project, secret)
            .await?
            .ok_or_else(|| CoreError::ObjectMissing { object: storage.name_of(&path) }),
    }
}

async fn read(storage: &Storage, project: &ProjectName, secret: Secret) -> Result<Option<SecretString>> {
    let path = secret.path(project);
    let Some(bytes) = storage.get(&path, LIMIT).await? else { return Ok(None) };
    match String::from_utf8(bytes.to_vec()) {
        Ok(text) if !text.is_empty() => Ok(Some(text.into())),
        _ => Err(CoreError::ObjectDamaged {
            object: storage.name_of(&path),
            reason: "it is no password".to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use secrecy::ExposeSecret;

    use super::*;

    #[tokio::test]
    async fn of_two_writers_the_first_ones_password_counts_for_both() {
        let storage =
            Storage::over(Arc::new(object_store::memory::InMemory::new()), Path::default(), "memory");
        let shop = ProjectName::new("shop").unwrap();
        let first = kept_secret(&storage, &shop, Secret::Owner).await.unwrap();
        let second = keep(&storage, &shop, Secret::Owner, &generate()).await.unwrap();
        assert_eq!(first.expose_secret(), second.expose_secret());
        assert_eq!(first.expose_secret().len(), LENGTH);
        let other = kept_secret(&storage, &shop, Secret::Superuser).await.unwrap();
        assert_ne!(first.expose_secret(), other.expose_secret());
    }
}
