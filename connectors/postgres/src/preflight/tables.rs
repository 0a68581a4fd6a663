//! Checks of the tables: what is selected, by what their rows are named, who may read and publish them.

use super::server::ServerFacts;
use super::{Finding, RequestedTables, Severity};
use crate::catalog::{ReplicaIdentity, SkipReason, SourceTable, list_tables};
use crate::client::Client;
use crate::error::Result;
use crate::event_trigger;
use crate::object_name::{quote_identifier, quote_qualified};
use crate::publication::{PublicationNames, PublishedTable, create_statement, publication_names};
use std::collections::{HashMap, HashSet};

/// What the role may do with a table.
struct Rights {
    schema: bool,
    read: bool,
    /// Quoted names. A partition is read by its own name, so the right to the root alone is not enough.
    unreadable_partitions: Vec<String>,
    hidden_rows: bool,
    owner: bool,
}

pub(super) async fn findings(
    client: &Client,
    facts: &ServerFacts,
    instance: &str,
    database: &str,
    requested: &RequestedTables,
) -> Result<Vec<Finding>> {
    let listing = list_tables(client, &requested.include, &requested.exclude).await?;
    let mut findings = Vec::new();
    for table in &listing.skipped {
        // Partitions come with their root; views are in the way of every `public.*`.
        let expected = matches!(table.reason, SkipReason::Partition { .. } | SkipReason::View);
        let severity = if expected { Severity::Ok } else { Severity::Warning };
        let subject = format!("{}.{}", table.schema, table.name);
        findings.push(Finding::new(
            severity,
            "left-out",
            &subject,
            format!("it is left out: {}", table.reason),
        ));
    }
    if listing.tables.is_empty() {
        findings.push(
            Finding::new(
                Severity::Error,
                "no-tables",
                client.place(),
                "the globs select no table that can be synced",
            )
            .remedy("write globs over schema.table, such as public.*"),
        );
    }
    let rights = read_rights(client, &listing.tables, requested).await?;
    let (mut keyed, mut inserts) = (Vec::new(), Vec::new());
    for table in &listing.tables {
        let name = table.qualified_name();
        findings.extend(shape(table, &name));
        if let Some(rights) = rights.get(&table.oid) {
            findings.extend(reading(facts, table, &name, rights));
        }
        let excluded = requested.excluded_columns.get(&name).map(Vec::as_slice).unwrap_or_default();
        match PublishedTable::new(table, excluded) {
            Err(error) => findings.push(Finding::from_error("excluded-columns", &name, &error)),
            Ok(published) => match table.identity {
                ReplicaIdentity::None(_) => inserts.push((table.oid, published)),
                _ => keyed.push((table.oid, published)),
            },
        }
    }
    findings.push(column_changes(client, instance, database).await?);
    let names = publication_names(instance, database);
    findings.extend(publishing(client, facts, &names, [&keyed, &inserts], &rights).await?);
    Ok(findings)
}

/// Whether changes of columns stand in the stream at their place.
async fn column_changes(client: &Client, instance: &str, database: &str) -> Result<Finding> {
    let installed = event_trigger::is_installed(client, instance, database).await?;
    let found = match installed {
        true => "its event trigger is there: changes of columns are followed at their place between the rows",
        false => {
            "there is no event trigger (only a superuser may install it): changes of columns are followed by \
             looking at the catalog, and a table whose columns change several times at once is loaded anew"
        }
    };
    Ok(Finding::new(Severity::Ok, "event-trigger", client.place(), found))
}

/// What the table's own definition means for syncing it.
fn shape(table: &SourceTable, name: &str) -> Vec<Finding> {
    let quoted = quote_qualified(&table.schema, &table.name);
    let mut findings = Vec::new();
    match &table.identity {
        ReplicaIdentity::None(reason) => findings.push(
            Finding::new(
                Severity::Warning,
                "inserts-only",
                name,
                format!("only its inserts and truncates can be synced: {reason}"),
            )
            .remedy("give it a primary key (the better way), or let Postgres log whole old rows")
            .sql(format!("ALTER TABLE {quoted} REPLICA IDENTITY FULL")),
        ),
        ReplicaIdentity::Key(_) => {
            findings.push(Finding::new(Severity::Ok, "identity", name, "its rows are named by a key"))
        }
        ReplicaIdentity::Full => findings.push(Finding::new(
            Severity::Ok,
            "identity",
            name,
            "its rows are named by all their columns",
        )),
    }
    let hidden: Vec<&str> = table.columns.iter().filter(|c| !c.published).map(|c| c.name.as_str()).collect();
    if !hidden.is_empty() {
        let problem = format!(
            "generated columns are left out because this server does not publish them: {}",
            hidden.join(", ")
        );
        findings.push(Finding::new(Severity::Warning, "generated-columns", name, problem));
    }
    findings
}

fn reading(facts: &ServerFacts, table: &SourceTable, name: &str, rights: &Rights) -> Vec<Finding> {
    let role = quote_identifier(&facts.user);
    let mut findings = Vec::new();
    if !rights.schema {
        findings.push(
            Finding::new(Severity::Error, "schema-usage", name, "the role may not use its schema")
                .sql(format!("GRANT USAGE ON SCHEMA {} TO {role}", quote_identifier(&table.schema))),
        );
    }
    if !rights.read || !rights.unreadable_partitions.is_empty() {
        let root = (!rights.read).then(|| quote_qualified(&table.schema, &table.name));
        let objects: Vec<String> =
            root.into_iter().chain(rights.unreadable_partitions.iter().cloned()).collect();
        let problem = format!("the role may not read {}", objects.join(", "));
        findings.push(
            Finding::new(Severity::Error, "select", name, problem)
                .sql(format!("GRANT SELECT ON {} TO {role}", objects.join(", "))),
        );
    }
    if rights.hidden_rows {
        findings.push(
            Finding::new(
                Severity::Error,
                "row-security",
                name,
                "row-level security would hide rows from the role",
            )
            .sql(format!("ALTER ROLE {role} BYPASSRLS")),
        );
    }
    findings
}

async fn read_rights(
    client: &Client,
    tables: &[SourceTable],
    requested: &RequestedTables,
) -> Result<HashMap<u32, Rights>> {
    let doing = "reading privileges";
    let failed = |source| client.error(doing, source);
    // One row a column that will be read: the right to a table is the right to all of these.
    let (mut oids, mut attnums) = (Vec::new(), Vec::new());
    for table in tables {
        let excluded = requested.excluded_columns.get(&table.qualified_name());
        for column in table.published_columns() {
            if !excluded.is_some_and(|names| names.contains(&column.name)) {
                oids.push(table.oid);
                attnums.push(column.attnum);
            }
        }
    }
    let sql = "SELECT w.oid, has_schema_privilege(c.relnamespace, 'USAGE'), \
                 bool_and(has_column_privilege(w.oid, w.attnum, 'SELECT')), \
                 ARRAY(SELECT p.relid::regclass::text FROM pg_partition_tree(w.oid) p \
                       WHERE p.isleaf AND NOT has_any_column_privilege(p.relid, 'SELECT')), \
                 row_security_active(w.oid), pg_has_role(c.relowner, 'USAGE') \
               FROM unnest($1::oid[], $2::int2[]) AS w(oid, attnum) JOIN pg_class c ON c.oid = w.oid \
               GROUP BY w.oid, c.relnamespace, c.relowner";
    let read = |row: &tokio_postgres::Row| {
        let rights = Rights {
            schema: row.try_get(1)?,
            read: row.try_get(2)?,
            unreadable_partitions: row.try_get(3)?,
            hidden_rows: row.try_get(4)?,
            owner: row.try_get(5)?,
        };
        Ok((row.try_get(0)?, rights))
    };
    let rows = client.query(sql, &[&oids, &attnums]).await.map_err(failed)?;
    rows.iter().map(read).collect::<std::result::Result<_, _>>().map_err(failed)
}

/// Whether both publications are as they must be, or the role can make them so.
async fn publishing(
    client: &Client,
    facts: &ServerFacts,
    names: &PublicationNames,
    tables: [&[(u32, PublishedTable)]; 2],
    rights: &HashMap<u32, Rights>,
) -> Result<Vec<Finding>> {
    let doing = "reading publications";
    let failed = |source| client.error(doing, source);
    let mut findings = Vec::new();
    for (name, wanted) in [&names.keyed, &names.inserts].into_iter().zip(tables) {
        let sql = "SELECT pg_has_role(p.pubowner, 'USAGE'), \
                     ARRAY(SELECT r.prrelid FROM pg_publication_rel r WHERE r.prpubid = p.oid) \
                   FROM pg_publication p WHERE p.pubname = $1::text::name";
        let there = client.query_opt(sql, &[name]).await.map_err(failed)?;
        let (may_alter, present, exists) = match &there {
            Some(row) => {
                let present: Vec<u32> = row.try_get(1).map_err(failed)?;
                (row.try_get(0).map_err(failed)?, present.into_iter().collect::<HashSet<_>>(), true)
            }
            None => (facts.may_create, HashSet::new(), false),
        };
        let missing: Vec<&(u32, PublishedTable)> =
            wanted.iter().filter(|(oid, _)| !present.contains(oid)).collect();
        let superfluous = present.len() > wanted.len() - missing.len();
        let owns_all = missing.iter().all(|(oid, _)| rights.get(oid).is_some_and(|rights| rights.owner));
        let unchanged = exists && missing.is_empty() && !superfluous;
        findings.push(if unchanged || (may_alter && owns_all) {
            Finding::new(Severity::Ok, "publication", name, "it is there or can be made")
        } else {
            let all: Vec<&PublishedTable> = wanted.iter().map(|(_, table)| table).collect();
            Finding::new(
                Severity::Error,
                "publication",
                name,
                format!("`{}` may neither make nor alter it as needed", facts.user),
            )
            .remedy("let the owner of the tables (or a superuser) make it; Tidewater then only uses it")
            .sql(create_statement(name, name == &names.keyed, &all, facts.version))
        });
    }
    Ok(findings)
}
