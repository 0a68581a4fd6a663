//! Removing every trace of an installation from a source.

use crate::client::connect;
use crate::error::{Error, Result};
use crate::event_trigger;
use crate::object_name::quote_identifier;
use crate::publication::publication_names;
use crate::slot::{drop_slot, list_slots};
use crate::source_config::SourceConfig;

/// Something that was removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RemovedObject {
    /// A replication slot.
    Slot(String),
    /// A publication.
    Publication(String),
    /// The event trigger, with the schema of its function.
    EventTrigger(String),
}

/// Removes the slots, the event trigger and the publications of one database of an installation, and puts what was there
/// into `removed`, also when something could not be removed: a publication may belong to another role. Slots first: they
/// are what holds WAL. If one is in use, nothing is removed.
pub async fn cleanup(
    config: &SourceConfig,
    instance: &str,
    database: &str,
    removed: &mut Vec<RemovedObject>,
) -> Result<()> {
    let doing = "removing publications";
    let client = connect(config).await?;
    let slots = list_slots(&client, instance, database).await?;
    if let Some((slot, pid)) = slots.iter().find_map(|slot| Some((slot, slot.active_pid?))) {
        return Err(Error::InvalidRequest {
            subject: format!("replication slot {}", slot.name),
            problem: format!("server process {pid} reads from it: stop the daemon first, then clean up"),
        });
    }
    for slot in slots {
        drop_slot(&client, &slot.name).await?;
        removed.push(RemovedObject::Slot(slot.name));
    }
    removed
        .extend(event_trigger::remove(&client, instance, database).await?.map(RemovedObject::EventTrigger));
    let names = publication_names(instance, database);
    let mut outcome = Ok(());
    for name in [names.keyed, names.inserts] {
        let there = client
            .query_opt("SELECT 1 FROM pg_publication WHERE pubname = $1::text::name", &[&name])
            .await
            .map_err(|source| client.error(doing, source))?;
        if there.is_some() {
            let sql = format!("DROP PUBLICATION {}", quote_identifier(&name));
            match client.batch_execute(&sql).await {
                Ok(()) => removed.push(RemovedObject::Publication(name)),
                Err(source) => outcome = outcome.and(Err(client.error(doing, source))),
            }
        }
    }
    outcome
}
