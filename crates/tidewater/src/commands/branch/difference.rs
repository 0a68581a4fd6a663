//! `tidewater branch diff`: what a branch and the one it came from have that the other has not.

use super::{CommandError, Outcome, opened, woken};
use crate::built_in::{self, BuiltIn, branch_place};
use crate::config::Config;
use oltp_core::CoreError;
use oltp_core::ids::{BranchName, ProjectName};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;

/// Ordinary and partitioned tables with their columns, as a definition would name them.
const TABLES: &str = "\
SELECT pg_catalog.format('%I.%I', n.nspname, c.relname), \
       pg_catalog.string_agg(pg_catalog.format('%I %s%s', a.attname, \
           pg_catalog.format_type(a.atttypid, a.atttypmod), CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END), \
           ', ' ORDER BY a.attnum) \
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' \
  AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' \
GROUP BY 1 ORDER BY 1";

/// A table as one branch has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Table {
    columns: String,
    rows: i64,
}

/// A table that is not the same on both.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct DifferentTable {
    table: String,
    branch: Option<Table>,
    parent: Option<Table>,
}

pub(in crate::commands) async fn diff(
    config: &Config,
    file: &Path,
    branch: &str,
    json: bool,
) -> Result<Outcome, CommandError> {
    let asked = branch_place(branch)?;
    let core = opened(config, file).await?;
    let parent = parent_of(&core, &asked.project, &asked.branch).await?;
    let of_branch = tables(&core, &asked.project, &asked.branch).await?;
    let of_parent = tables(&core, &asked.project, &parent).await?;
    let different = compare(&of_branch, &of_parent);
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

async fn tables(
    core: &BuiltIn,
    project: &ProjectName,
    branch: &BranchName,
) -> Result<BTreeMap<String, Table>, CommandError> {
    let status = woken(core, project, branch).await?;
    let source = built_in::superuser(core.pages(), &status).await?;
    let refused = |source: postgres_connector::Error| CommandError::Source {
        database: format!("{project}@{branch}"),
        source: Box::new(source),
    };
    let client = postgres_connector::connect(&source).await.map_err(refused)?;
    let failed = |error: tokio_postgres::Error| CommandError::Statement {
        database: format!("{project}@{branch}"),
        source: error,
    };
    let mut tables = BTreeMap::new();
    for row in client.query(TABLES, &[]).await.map_err(failed)? {
        let name: String = row.try_get(0).map_err(failed)?;
        let columns: Option<String> = row.try_get(1).map_err(failed)?;
        // The name was quoted by the server.
        let counted = client.query_one(&format!("SELECT count(*) FROM {name}"), &[]).await.map_err(failed)?;
        let rows = counted.try_get(0).map_err(failed)?;
        tables.insert(name, Table { columns: columns.unwrap_or_default(), rows });
    }
    Ok(tables)
}

fn compare(branch: &BTreeMap<String, Table>, parent: &BTreeMap<String, Table>) -> Vec<DifferentTable> {
    let names: BTreeSet<&String> = branch.keys().chain(parent.keys()).collect();
    let both = names.into_iter().map(|name| (name, branch.get(name), parent.get(name)));
    both.filter(|(_, own, theirs)| own != theirs)
        .map(|(name, own, theirs)| DifferentTable {
            table: name.clone(),
            branch: own.cloned(),
            parent: theirs.cloned(),
        })
        .collect()
}

fn line(table: &DifferentTable, parent: &str) -> String {
    let name = &table.table;
    match (&table.branch, &table.parent) {
        (Some(own), None) => format!("{name}: only here, {} rows", own.rows),
        (None, Some(theirs)) => format!("{name}: only on {parent}, {} rows", theirs.rows),
        (Some(own), Some(theirs)) if own.columns != theirs.columns => {
            format!("{name}: ({}) here, ({}) on {parent}", own.columns, theirs.columns)
        }
        (Some(own), Some(theirs)) => format!("{name}: {} rows here, {} on {parent}", own.rows, theirs.rows),
        (None, None) => name.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_told() {
        let table = |columns: &str, rows| Table { columns: columns.to_owned(), rows };
        let tables = |rows: &[(&str, Table)]| {
            rows.iter().map(|(name, table)| ((*name).to_owned(), table.clone())).collect::<BTreeMap<_, _>>()
        };
        let branch =
            tables(&[("a", table("id integer", 3)), ("b", table("id integer", 1)), ("c", table("", 0))]);
        let parent =
            tables(&[("a", table("id integer", 3)), ("b", table("id bigint", 1)), ("d", table("", 7))]);
        let told: Vec<String> =
            compare(&branch, &parent).iter().map(|different| line(different, "main")).collect();
        assert_eq!(
            told,
            ["b: (id integer) here, (id bigint) on main", "c: only here, 0 rows", "d: only on main, 7 rows"]
        );
    }
}
