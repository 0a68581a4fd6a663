//! Histories that are replayed row for row, and have to end at what their source holds.

use tidewater_e2e::{LakeTable, Reader, Site, free_port, recorded, replay};

/// A site that syncs every table of schema `public` of the database `shop`.
pub fn configuration(url: &str, mode: &str) -> String {
    format!(
        "version: 1\nlake: {{uri: ./lake}}\nlisten: {{http: \"127.0.0.1:{}\"}}\n\
         databases:\n  shop: {{url: \"{url}\", tls: disable}}\n\
         to_lake:\n  - {{database: shop, tables: [\"public.*\"], flush: 200ms, mode: {mode}}}\n",
        free_port()
    )
}

pub fn history_of(site: &Site, table: &str) -> LakeTable {
    LakeTable::at(&site.table(&format!("shop/public/{table}_history")))
}

/// Fails unless the history beside a table replays to what the source holds; gives the number of its rows.
pub async fn assert_replays(reader: &mut Reader, url: &str, site: &Site, table: &str) -> usize {
    let history = recorded(reader, &history_of(site, table)).await;
    let rows = history.len();
    let replayed = replay(table, history);
    let mut source = reader.source_rows(url, "public", table).await;
    source.sort();
    assert!(replayed == source, "{table} replays to {} rows, Postgres has {}", replayed.len(), source.len());
    rows
}
