//! The owner's role and database, made at the first start and checked at every later one.
//!
//! The owner is no superuser: it may make databases, roles and replication slots and has the
//! predefined roles that stay inside the database. Those that reach the machine
//! (`pg_execute_server_program`, `pg_read_server_files`, `pg_write_server_files`) stay out, because
//! each amounts to a superuser.

use secrecy::{ExposeSecret, SecretString};
use tokio_postgres::Client;

use crate::compute_process::Server;
use crate::{CoreError, Result};

/// Granted with ADMIN OPTION, so that the owner can pass them on; a version that lacks one skips it.
const OWNER_ROLES: &[&str] = &[
    "pg_checkpoint",
    "pg_create_subscription",
    "pg_maintain",
    "pg_monitor",
    "pg_read_all_data",
    "pg_signal_autovacuum_worker",
    "pg_signal_backend",
    "pg_write_all_data",
];

/// An empty database that a project's template has ready, for the first start to rename.
pub(crate) const UNCLAIMED_DATABASE: &str = "tidewater_unclaimed";

/// Makes `owner` and the database `name`, or leaves them as they are.
pub(crate) async fn provision(
    client: &Client,
    name: &str,
    owner: &str,
    password: &SecretString,
) -> Result<()> {
    let failed = |action| CoreError::statement(name, action);
    let quoted_owner = quote_identifier(owner);
    let known = client
        .query_opt("SELECT FROM pg_catalog.pg_roles WHERE rolname = $1", &[&owner])
        .await
        .map_err(failed("look for the owner's role"))?;
    if known.is_none() {
        let verifier = verifier_of(password);
        client
            .batch_execute(&format!(
                "CREATE ROLE {quoted_owner} LOGIN NOSUPERUSER CREATEDB CREATEROLE REPLICATION PASSWORD '{verifier}'"
            ))
            .await
            .map_err(failed("make the owner's role"))?;
    }
    let roles = client
        .query(
            "SELECT r.rolname::text FROM pg_catalog.pg_roles r WHERE r.rolname = ANY ($1::text[]) AND NOT EXISTS \
             (SELECT FROM pg_catalog.pg_auth_members m JOIN pg_catalog.pg_roles o ON o.oid = m.member \
              WHERE m.roleid = r.oid AND o.rolname = $2 AND m.admin_option)",
            &[&OWNER_ROLES, &owner],
        )
        .await
        .map_err(failed("look for the owner's privileges"))?;
    for role in roles {
        let role: String = role.try_get(0).map_err(failed("read the owner's privileges"))?;
        client
            .batch_execute(&format!("GRANT {} TO {quoted_owner} WITH ADMIN OPTION", quote_identifier(&role)))
            .await
            .map_err(failed("grant a predefined role to the owner"))?;
    }
    let database = client
        .query_opt("SELECT FROM pg_catalog.pg_database WHERE datname = $1", &[&name])
        .await
        .map_err(failed("look for the project's database"))?;
    if database.is_none() {
        let database = quote_identifier(name);
        let unclaimed = client
            .query_opt("SELECT FROM pg_catalog.pg_database WHERE datname = $1", &[&UNCLAIMED_DATABASE])
            .await
            .map_err(failed("look for the template's database"))?;
        // Renaming the template's empty database costs two rows; making one copies 7 MB of catalogs.
        let statements = if unclaimed.is_some() {
            let given = quote_identifier(UNCLAIMED_DATABASE);
            format!(
                "ALTER DATABASE {given} RENAME TO {database}; ALTER DATABASE {database} OWNER TO {quoted_owner}"
            )
        } else {
            format!("CREATE DATABASE {database} OWNER {quoted_owner}")
        };
        client.batch_execute(&statements).await.map_err(failed("make the project's database"))?;
    }
    Ok(())
}

/// The owner's password in the server follows the configured one.
pub(crate) async fn settle_password(
    server: &Server,
    superuser: &Client,
    name: &str,
    owner: &str,
    password: &SecretString,
) -> Result<()> {
    if server.takes_password(name, owner, password).await {
        return Ok(());
    }
    set_password(superuser, name, owner, password).await
}

/// Gives `owner` the configured password, when it changed since the last start.
pub(crate) async fn set_password(
    client: &Client,
    name: &str,
    owner: &str,
    password: &SecretString,
) -> Result<()> {
    let statement = format!("ALTER ROLE {} PASSWORD '{}'", quote_identifier(owner), verifier_of(password));
    client.batch_execute(&statement).await.map_err(CoreError::statement(name, "change the owner's password"))
}

/// What the server keeps of a password. Sending this, not the password, keeps it out of the
/// server's log whatever `log_statement` says.
fn verifier_of(password: &SecretString) -> String {
    postgres_protocol::password::scram_sha_256(password.expose_secret().as_bytes())
}

pub(crate) fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

pub(crate) fn quote_literal(text: &str) -> String {
    // With a backslash in it, an escape string means the same whatever standard_conforming_strings says.
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') { format!("E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}
