//! Checks of the server as a whole: version, WAL, slots, the role's rights.

use super::{Finding, Severity};
use crate::client::{Client, server_version};
use crate::error::{Error, Result};
use crate::object_name::quote_identifier;
use crate::replication_session::ReplicationSession;
use crate::slot::list_slots;
use crate::source_config::SourceConfig;

/// Streaming of transactions in progress and the array subscripting handler came with it.
pub(super) const OLDEST_VERSION: u32 = 140_000;
/// Decoding on a standby came with it.
const STANDBY_DECODING: u32 = 160_000;
/// A transaction that has been open longer is likely to stay; making a slot would wait for it.
const LONG_TRANSACTION: &str = "1 minute";

/// What one query tells about a server.
pub(super) struct ServerFacts {
    pub version: u32,
    pub user: String,
    pub in_recovery: bool,
    pub may_create: bool,
    wal_level: String,
    free_slots: i64,
    free_senders: i64,
    keep_size_mb: i64,
    idle_slot_timeout: Option<String>,
    encoding: String,
    may_emit: bool,
}

impl ServerFacts {
    pub(super) async fn read(client: &Client) -> Result<ServerFacts> {
        let doing = "reading the server's settings";
        let failed = |source| client.error(doing, source);
        let sql = "SELECT current_setting('server_version_num')::int8, current_user::text, pg_is_in_recovery(), \
                     has_database_privilege(current_database(), 'CREATE'), current_setting('wal_level'), \
                     current_setting('max_replication_slots')::int8 - (SELECT count(*) FROM pg_replication_slots), \
                     current_setting('max_wal_senders')::int8 \
                       - (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender'), \
                     (SELECT setting::int8 FROM pg_settings WHERE name = 'max_slot_wal_keep_size'), \
                     nullif(current_setting('idle_replication_slot_timeout', true), '0'), \
                     current_setting('server_encoding'), \
                     has_function_privilege($1::text, 'EXECUTE')";
        let emit = emit_function(server_version(client).await?);
        let row = client.query_one(sql, &[&emit]).await.map_err(failed)?;
        Ok(ServerFacts {
            version: u32::try_from(row.try_get::<_, i64>(0).map_err(failed)?).unwrap_or(0),
            user: row.try_get(1).map_err(failed)?,
            in_recovery: row.try_get(2).map_err(failed)?,
            may_create: row.try_get(3).map_err(failed)?,
            wal_level: row.try_get(4).map_err(failed)?,
            free_slots: row.try_get(5).map_err(failed)?,
            free_senders: row.try_get(6).map_err(failed)?,
            keep_size_mb: row.try_get(7).map_err(failed)?,
            idle_slot_timeout: row.try_get(8).map_err(failed)?,
            encoding: row.try_get(9).map_err(failed)?,
            may_emit: row.try_get(10).map_err(failed)?,
        })
    }

    pub(super) fn version_and_wal(&self, place: &str) -> Vec<Finding> {
        let (major, minor) = (self.version / 10_000, self.version % 10_000);
        let version = if self.version < OLDEST_VERSION {
            Finding::new(
                Severity::Error,
                "version",
                place,
                format!("it is PostgreSQL {major}.{minor}; 14 is the oldest supported"),
            )
            .remedy("upgrade the server")
        } else {
            Finding::new(Severity::Ok, "version", place, format!("PostgreSQL {major}.{minor}"))
        };
        let wal = if self.wal_level == "logical" {
            Finding::new(Severity::Ok, "wal-level", place, "wal_level is logical")
        } else {
            Finding::new(Severity::Error, "wal-level", place, format!("wal_level is {}", self.wal_level))
                .remedy("set wal_level and restart the server (hosted services have a switch for logical replication)")
                .sql("ALTER SYSTEM SET wal_level = 'logical'")
        };
        let mut findings = vec![version, wal];
        if self.in_recovery {
            let finding = if self.version < STANDBY_DECODING {
                Finding::new(
                    Severity::Error,
                    "standby",
                    place,
                    "it is a standby, and before PostgreSQL 16 those cannot decode",
                )
            } else {
                Finding::new(
                    Severity::Warning,
                    "standby",
                    place,
                    "it is a standby: publications must be made at the primary",
                )
            };
            findings.push(finding.remedy("name the primary in the URL"));
        }
        findings
    }

    pub(super) fn settings(&self, place: &str) -> Vec<Finding> {
        let mut findings = Vec::new();
        if self.keep_size_mb < 0 {
            let problem = "max_slot_wal_keep_size has no limit: while Tidewater is stopped, WAL may fill the server's disk";
            findings.push(
                Finding::new(Severity::Warning, "wal-keep-size", place, problem)
                    .remedy("set a limit that the disk can hold; beyond it the slot is lost and its tables are loaded anew")
                    .sql("ALTER SYSTEM SET max_slot_wal_keep_size = '50GB'"),
            );
        }
        if let Some(timeout) = &self.idle_slot_timeout {
            let problem = format!(
                "idle_replication_slot_timeout is {timeout}: a stop that lasts longer loses the slot"
            );
            findings.push(
                Finding::new(Severity::Warning, "idle-slot-timeout", place, problem)
                    .sql("ALTER SYSTEM SET idle_replication_slot_timeout = 0"),
            );
        }
        if self.encoding == "SQL_ASCII" {
            let problem = "the database's encoding is SQL_ASCII: text that is not UTF-8 cannot be synced";
            findings.push(Finding::new(Severity::Warning, "encoding", place, problem));
        }
        if !self.may_emit && !self.in_recovery {
            let problem =
                "the role may not write heartbeats: an idle database beside busy ones would hold WAL";
            findings.push(Finding::new(Severity::Warning, "heartbeat", place, problem).sql(format!(
                "GRANT EXECUTE ON FUNCTION {} TO {}",
                emit_function(self.version),
                quote_identifier(&self.user)
            )));
        }
        findings
    }
}

/// The function behind heartbeats; Postgres 17 gave it a fourth argument.
fn emit_function(version: u32) -> &'static str {
    if version >= 170_000 {
        "pg_logical_emit_message(boolean, text, text, boolean)"
    } else {
        "pg_logical_emit_message(boolean, text, text)"
    }
}

/// Really opens a replication session: only that tells what pg_hba.conf, the role's attributes and a hosted service's own
/// rules come to.
pub(super) async fn replication_session(config: &SourceConfig) -> Finding {
    let place = config.place();
    let attempt = async {
        let mut session = ReplicationSession::connect(config).await?;
        session.identify_system().await?;
        session.close().await
    };
    let role = quote_identifier(&config.user);
    match attempt.await {
        Ok(()) => Finding::new(Severity::Ok, "replication", &place, "a replication session can be opened"),
        Err(error) => {
            let finding = Finding::from_error("replication", &place, &error);
            match error {
                Error::InsufficientPrivilege { .. } => finding
                    .remedy("give the role the right to replicate (on Amazon RDS: GRANT rds_replication)")
                    .sql(format!("ALTER ROLE {role} REPLICATION")),
                Error::AuthFailed { .. } => finding.remedy(format!(
                    "allow it in pg_hba.conf, for this database and not for the word `replication`: \
                     hostssl {} {role} <address> scram-sha-256",
                    quote_identifier(&config.dbname)
                )),
                Error::NoneLeft { .. } => finding.sql("ALTER SYSTEM SET max_wal_senders = 20"),
                _ => finding,
            }
        }
    }
}

/// The slots that are there, and room for those that are needed: one for good, one for a moment when a table comes late.
pub(super) async fn slots(
    client: &Client,
    facts: &ServerFacts,
    instance: &str,
    database: &str,
) -> Result<Vec<Finding>> {
    let place = client.place();
    let own = list_slots(client, instance, database).await?;
    let mut findings = Vec::new();
    for slot in own.iter().filter(|slot| slot.is_lost()) {
        let reason = slot.invalidation_reason.as_deref().unwrap_or("its WAL was removed");
        findings.push(
            Finding::new(Severity::Error, "slot-lost", &slot.name, format!("the slot is lost: {reason}"))
                .remedy("start Tidewater: it makes a new slot and loads the tables anew"),
        );
    }
    let needed = if own.is_empty() { 2 } else { 1 };
    for (code, what, setting, free) in [
        ("slots", "replication slots", "max_replication_slots", facts.free_slots),
        ("wal-senders", "WAL senders", "max_wal_senders", facts.free_senders),
    ] {
        let problem = format!("{} {what} are free, {needed} are needed", free.max(0));
        let severity = match free {
            free if free >= needed => Severity::Ok,
            free if free > 0 || !own.is_empty() => Severity::Warning,
            _ => Severity::Error,
        };
        let finding = Finding::new(severity, code, place, problem);
        findings.push(match severity {
            Severity::Ok => finding,
            _ => finding
                .remedy("drop slots that nobody reads, or raise the limit and restart the server")
                .sql(format!("ALTER SYSTEM SET {setting} = 20")),
        });
    }
    if own.is_empty() {
        findings.extend(long_transactions(client).await?);
    }
    Ok(findings)
}

/// Making a slot waits until every transaction that is open now has ended.
async fn long_transactions(client: &Client) -> Result<Option<Finding>> {
    let doing = "looking for open transactions";
    let failed = |source| client.error(doing, source);
    // Only a transaction with an id is waited for. Of sessions one may not look into, neither id nor start is shown.
    let sql = format!(
        "SELECT 'server process ' || pid FROM pg_stat_activity \
           WHERE backend_xid IS NOT NULL AND xact_start < clock_timestamp() - interval '{LONG_TRANSACTION}' \
         UNION ALL SELECT 'prepared transaction ' || quote_literal(gid) FROM pg_prepared_xacts \
           WHERE prepared < clock_timestamp() - interval '{LONG_TRANSACTION}' LIMIT 10"
    );
    let rows = client.query(&sql, &[]).await.map_err(failed)?;
    let holders = rows
        .iter()
        .map(|row| row.try_get(0))
        .collect::<std::result::Result<Vec<String>, _>>()
        .map_err(failed)?;
    Ok((!holders.is_empty()).then(|| {
        let problem =
            format!("transactions are open for more than {LONG_TRANSACTION}: {}", holders.join(", "));
        Finding::new(Severity::Warning, "open-transactions", client.place(), problem)
            .remedy("end them: making the slot waits until they are over")
    }))
}
