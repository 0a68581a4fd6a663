//! `tidewater branch diff`: what a branch and the one it came from have that the other has not.

use super::{CommandError, Outcome, opened};
use crate::built_in::{BuiltIn, branch_place};
use crate::config::Config;
use oltp_core::CoreError;
use oltp_core::branches::TableDifference;
use oltp_core::ids::{BranchName, ProjectName};
use std::io::Write;
use std::path::Path;

pub(in crate::commands) async fn diff(
    config: &Config,
    file: &Path,
    branch: &str,
    json: bool,
) -> Result<Outcome, CommandError> {
    let asked = branch_place(branch)?;
    let core = opened(config, file).await?;
    let parent = parent_of(&core, &asked.project, &asked.branch).await?;
    let different = core.branches().diff(&asked.project, &asked.branch, &parent).await;
    let different = different.map_err(CommandError::core)?;
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string_pretty(&different)?)?;
    } else {
        for table in &different {
            writeln!(out, "{}", line(table, parent.as_str()))?;
        }
    }
    Ok(if different.is_empty() { Outcome::Done } else { Outcome::FoundDifference })
}

async fn parent_of(
    core: &BuiltIn,
    project: &ProjectName,
    branch: &BranchName,
) -> Result<BranchName, CommandError> {
    let heads = core.branches().list(project).await.map_err(CommandError::core)?;
    let own = heads.iter().find(|head| head.name == *branch).ok_or_else(|| {
        CommandError::core(CoreError::NoSuchBranch {
            project: project.to_string(),
            branch: branch.to_string(),
        })
    })?;
    let parent =
        own.parent.as_ref().and_then(|parent| heads.iter().find(|head| head.branch == parent.branch));
    parent.map(|head| head.name.clone()).ok_or_else(|| CommandError::NoParent { branch: branch.to_string() })
}

fn line(table: &TableDifference, parent: &str) -> String {
    let name = &table.table;
    match (table.rows, table.other_rows) {
        (Some(rows), None) => format!("{name}: only here, {rows} rows"),
        (None, Some(rows)) => format!("{name}: only on {parent}, {rows} rows"),
        (Some(rows), Some(others)) => {
            let shape = if table.shape == table.other_shape { "" } else { "another shape, " };
            format!("{name}: {shape}{rows} rows here, {others} on {parent}")
        }
        (None, None) => name.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_on_one_side_only_is_told_apart_from_one_of_another_shape() {
        let table = |shape: Option<&str>, other: Option<&str>| TableDifference {
            table: "public.t".to_owned(),
            shape: shape.map(str::to_owned),
            other_shape: other.map(str::to_owned),
            rows: shape.map(|_| 3),
            other_rows: other.map(|_| 7),
        };
        let told = |shape, other| line(&table(shape, other), "main");
        assert_eq!(told(Some("id integer"), None), "public.t: only here, 3 rows");
        assert_eq!(told(None, Some("id integer")), "public.t: only on main, 7 rows");
        assert_eq!(told(Some("a"), Some("b")), "public.t: another shape, 3 rows here, 7 on main");
        assert_eq!(told(Some("a"), Some("a")), "public.t: 3 rows here, 7 on main");
    }
}
