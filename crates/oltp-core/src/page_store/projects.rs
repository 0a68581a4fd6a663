//! The record of a project: put once, when the project is made.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{PageStore, object_names};
use crate::ids::{ProjectName, ProjectUid};
use crate::storage::Put;
use crate::{CoreError, Result, Timestamp};

/// A record is some 300 bytes.
const RECORD_LIMIT: u64 = 64 * 1024;

/// What stays true of a project for all its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProjectRecord {
    /// Its name.
    pub name: ProjectName,
    /// Its id: a project made anew under the same name is another one.
    pub uid: ProjectUid,
    /// Major version of its Postgres when it was made.
    pub postgres_major: u32,
    /// Its cluster's system identifier.
    pub system_identifier: u64,
    /// When it was made.
    pub created_at: Timestamp,
    /// The role that owns the database.
    pub owner: String,
    /// The database.
    pub database: String,
    /// The project that it was made from, whose layers it shares.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<ProjectName>,
}

impl PageStore {
    /// Makes a project. Its first branch follows: [`create_branch`](PageStore::create_branch). The record
    /// comes first, because from then on collection looks for what the project shares with its template.
    ///
    /// # Errors
    /// [`CoreError::ProjectExists`], or the store failed.
    pub async fn create_project(&self, record: &ProjectRecord) -> Result<()> {
        let path = object_names::project_record(&record.name);
        let json =
            serde_json::to_vec_pretty(record).map_err(|error| self.damaged(&path, error.to_string()))?;
        if self.storage.put_if_absent(&path, Bytes::from(json)).await? == Put::Created {
            return Ok(());
        }
        match self.project(&record.name).await? {
            Some(there) if there.uid == record.uid => Ok(()),
            _ => Err(CoreError::ProjectExists { project: record.name.to_string() }),
        }
    }

    /// A project's record; `None` when there is no such project.
    ///
    /// # Errors
    /// The record is damaged, or the store failed.
    pub async fn project(&self, name: &ProjectName) -> Result<Option<ProjectRecord>> {
        let path = object_names::project_record(name);
        let Some(json) = self.storage.get(&path, RECORD_LIMIT).await? else { return Ok(None) };
        let record: ProjectRecord =
            serde_json::from_slice(&json).map_err(|error| self.damaged(&path, error.to_string()))?;
        if record.name != *name {
            return Err(self.damaged(&path, format!("it is the record of project `{}`", record.name)));
        }
        Ok(Some(record))
    }

    /// The names of all projects.
    ///
    /// # Errors
    /// The store failed.
    pub async fn projects(&self) -> Result<Vec<ProjectName>> {
        let mut names: Vec<ProjectName> = self
            .storage
            .folders(&object_names::projects())
            .await?
            .into_iter()
            .filter_map(|name| ProjectName::new(name).ok())
            .collect();
        names.sort();
        Ok(names)
    }

    /// The projects that were made from this one, or from one that was, and so on.
    pub(super) async fn projects_born_from(&self, template: &ProjectName) -> Result<Vec<ProjectName>> {
        let mut records = Vec::new();
        for name in self.projects().await? {
            records.extend(self.project(&name).await?);
        }
        let mut family = vec![template.clone()];
        // Each round finds the next generation; there are no more of them than projects.
        for _ in 0..records.len() {
            let born = records.iter().filter(|record| {
                record.template.as_ref().is_some_and(|parent| family.contains(parent))
                    && !family.contains(&record.name)
            });
            let born: Vec<ProjectName> = born.map(|record| record.name.clone()).collect();
            if born.is_empty() {
                break;
            }
            family.extend(born);
        }
        family.retain(|name| name != template);
        Ok(family)
    }
}
