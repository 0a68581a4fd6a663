//! What would keep a table from being served, seen before anything is made.

use super::definition::{OWN_SCHEMA, ServedDefinition};
use super::target::session;
use crate::error::Result;
use postgres_connector::{Client, SourceConfig, quote_identifier, quote_literal};

/// Something that is missing at the target, and the statement that mends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortcoming {
    /// What is missing.
    pub problem: String,
    /// The statement, where one mends it.
    pub remedy: Option<String>,
}

/// Looks at a target with the eyes of `doctor`; changes nothing.
pub async fn preflight(config: &SourceConfig, definition: &ServedDefinition) -> Result<Vec<Shortcoming>> {
    let client = session(config, definition).await?;
    let role = quote_identifier(&config.user);
    let mut found = Vec::new();
    for schema in [OWN_SCHEMA, &definition.schema] {
        found.extend(schema_shortcoming(&client, schema, &role, &config.dbname).await?);
    }
    // Without privileges on the schemas it cannot be looked into them.
    if found.is_empty() {
        found.extend(name_shortcoming(&client, definition).await?);
    }
    for granted in definition.grants.values().flatten() {
        if !exists(&client, &format!("SELECT FROM pg_roles WHERE rolname = {}", quote_literal(granted)))
            .await?
        {
            found.push(Shortcoming {
                problem: format!("the role {granted} of `grants` is not there"),
                remedy: Some(format!("CREATE ROLE {}", quote_identifier(granted))),
            });
        }
    }
    Ok(found)
}

async fn schema_shortcoming(
    client: &Client,
    schema: &str,
    role: &str,
    database: &str,
) -> Result<Option<Shortcoming>> {
    let there = format!("SELECT FROM pg_namespace WHERE nspname = {}", quote_literal(schema));
    let (may, problem, remedy) = match exists(client, &there).await? {
        true => (
            format!(
                "SELECT WHERE has_schema_privilege({0}, 'CREATE') AND has_schema_privilege({0}, 'USAGE')",
                quote_literal(schema)
            ),
            format!("the role {role} may not create tables in the schema {schema}"),
            format!("GRANT CREATE, USAGE ON SCHEMA {} TO {role}", quote_identifier(schema)),
        ),
        false => (
            "SELECT WHERE has_database_privilege(current_database(), 'CREATE')".to_owned(),
            format!("the schema {schema} is not there, and the role {role} may not make it"),
            format!("GRANT CREATE ON DATABASE {} TO {role}", quote_identifier(database)),
        ),
    };
    let may = exists(client, &may).await?;
    Ok((!may).then_some(Shortcoming { problem, remedy: Some(remedy) }))
}

/// A table of this name that Tidewater did not make is nobody's to overwrite.
async fn name_shortcoming(client: &Client, definition: &ServedDefinition) -> Result<Option<Shortcoming>> {
    let target = quote_literal(&definition.target());
    if !exists(client, &format!("SELECT WHERE to_regclass({target}) IS NOT NULL")).await? {
        return Ok(None);
    }
    let known = exists(client, "SELECT WHERE to_regclass('tidewater.served_tables') IS NOT NULL").await?
        && exists(
            client,
            &format!(
                "SELECT FROM tidewater.served_tables WHERE schema_name = {} AND table_name = {}",
                quote_literal(&definition.schema),
                quote_literal(&definition.table)
            ),
        )
        .await?;
    Ok((!known).then(|| Shortcoming {
        problem: format!("{} is there already and was not made by Tidewater", definition.name()),
        remedy: Some(format!(
            "ALTER TABLE {} RENAME TO {}",
            definition.target(),
            quote_identifier(&format!("{}_before", definition.table))
        )),
    }))
}

async fn exists(client: &Client, sql: &str) -> Result<bool> {
    let found = client.query_opt(sql, &[]).await;
    Ok(found.map_err(|source| client.error("looking at the target", source))?.is_some())
}
