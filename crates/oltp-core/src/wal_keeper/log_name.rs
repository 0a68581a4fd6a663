//! Which log: each branch of each project has one.

use std::fmt;
use std::path::{Path, PathBuf};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};

use crate::ids::{BranchId, ProjectName};

/// What may stand in a folder's name as it is; a dot is not among them, so no name is `..`.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_');

/// A branch of a project, as keepers name its log.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LogName {
    /// The project.
    pub project: ProjectName,
    /// The branch.
    pub branch: BranchId,
}

impl LogName {
    /// Its folder below the keeper's.
    pub(crate) fn directory(&self, keeper: &Path) -> PathBuf {
        let project = utf8_percent_encode(self.project.as_str(), ESCAPED).to_string();
        keeper.join("logs").join(project).join(self.branch.to_string())
    }
}

impl fmt::Display for LogName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.project, self.branch)
    }
}
