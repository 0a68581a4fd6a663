//! Expiry: what is promised stays readable, what is not goes. Judged by delta-rs with DataFusion.

use crate::support::Change::{Delete, Insert, Update};
use crate::support::{Bench, Row, definition, flush, row};
use delta_writer::MirrorTable;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn table_folder(bench: &Bench) -> PathBuf {
    bench.folder.path().join("lake/shop/public/orders")
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn commits(bench: &Bench) -> Vec<i64> {
    let names = names(&table_folder(bench).join("_delta_log"));
    names.iter().filter_map(|name| name.strip_suffix(".json")?.parse().ok()).collect()
}

/// Makes a file look as if it was written so long ago.
fn age(path: &Path, by: Duration) {
    File::options().write(true).open(path).unwrap().set_modified(SystemTime::now() - by).unwrap();
}

/// Each version updates one row, deletes one and inserts one; checkpoints at every multiple of ten. Gives what
/// each version holds.
async fn forty_versions(bench: &Bench) -> (MirrorTable, Vec<Vec<Row>>) {
    let mut rows: Vec<Row> = (0..10).map(|id| row(id, "DE", "first")).collect();
    let mut table = bench.load(definition(), &rows).await;
    let mut versions = vec![rows.clone()];
    for version in 1..=40 {
        let (changed, last) = (rows[1].0, rows[rows.len() - 1].0 + 1);
        let list = [
            Update(row(changed, "DE", &version.to_string())),
            Delete(rows[0].0),
            Insert(row(last, "DE", "new")),
        ];
        flush(&mut table, &list, version + 1).await.unwrap().unwrap();
        rows[1].2 = Some(version.to_string());
        rows.remove(0);
        rows.push(row(last, "DE", "new"));
        versions.push(rows.clone());
        if version % 10 == 0 {
            table.checkpoint().write().await.unwrap();
        }
    }
    (table, versions)
}

async fn assert_readable_from(bench: &Bench, oldest: usize, versions: &[Vec<Row>]) {
    for (version, expected) in versions.iter().enumerate().skip(oldest) {
        assert_eq!(&bench.read_version(Some(version as u64)).await, expected, "version {version}");
    }
}

#[tokio::test]
async fn a_log_over_its_limit_is_cut_at_a_checkpoint_and_every_later_version_stays_readable() {
    let mut bench = Bench::new();
    bench.options.max_versions = 25;
    let (mut table, versions) = forty_versions(&bench).await;
    let files = names(&table_folder(&bench)).len();
    let oldest = table.expiry().run().await.unwrap();
    assert_eq!(oldest.version, 20, "21 versions are left, 11 would be too few");
    let age = chrono::Utc::now().timestamp_millis() - oldest.committed_at;
    assert!((0..600_000).contains(&age), "{age}");
    assert_eq!(commits(&bench), (20..=40).collect::<Vec<_>>());
    let left = names(&table_folder(&bench)).len();
    assert!(left < files - 15, "{files} files before, {left} after: those of expired versions go");
    assert_readable_from(&bench, 20, &versions).await;
    let log = names(&table_folder(&bench).join("_delta_log"));
    assert!(!log.iter().any(|name| name.starts_with("00000000000000000010.")), "{log:?}");

    // Nothing more has expired; and the table goes on.
    assert_eq!(table.expiry().run().await.unwrap(), oldest);
    flush(&mut table, &[Delete(49)], 50).await.unwrap().unwrap();
    drop(table);
    assert_eq!(bench.open().await.stats().rows, 9);
}

#[tokio::test]
async fn versions_older_than_the_retention_expire_and_younger_ones_never_do() {
    let mut bench = Bench::new();
    bench.options.retention = 2 * DAY;
    let (table, versions) = forty_versions(&bench).await;
    assert_eq!(table.expiry().run().await.unwrap().version, 0);
    assert_eq!(commits(&bench).len(), 41);
    let log = table_folder(&bench).join("_delta_log");
    for name in names(&log).iter().filter(|name| name.as_str() < "00000000000000000035") {
        age(&log.join(name), 3 * DAY);
    }
    assert_eq!(table.expiry().run().await.unwrap().version, 30);
    assert_readable_from(&bench, 30, &versions).await;
}

#[tokio::test]
async fn an_expiry_that_died_half_way_is_finished_by_the_next() {
    let mut bench = Bench::new();
    bench.options.max_versions = 25;
    let (table, versions) = forty_versions(&bench).await;
    let before = table_folder(&bench);
    // As far as it came: checkpoints below the cut are gone, and the first commits.
    let log = before.join("_delta_log");
    std::fs::remove_file(log.join("00000000000000000010.checkpoint.parquet")).unwrap();
    for version in 0..5 {
        std::fs::remove_file(log.join(format!("{version:020}.json"))).unwrap();
    }
    assert_eq!(table.expiry().run().await.unwrap().version, 20);
    assert_eq!(commits(&bench), (20..=40).collect::<Vec<_>>());
    assert_readable_from(&bench, 20, &versions).await;
}

#[tokio::test]
async fn the_checkpoint_that_readers_are_sent_to_is_never_cut_off() {
    let mut bench = Bench::new();
    bench.options.max_versions = 25;
    let (table, versions) = forty_versions(&bench).await;
    // A process that died after its checkpoint and before the hint leaves an older one.
    let hint = table_folder(&bench).join("_delta_log/_last_checkpoint");
    std::fs::write(&hint, r#"{"version":10,"size":1}"#).unwrap();
    assert_eq!(table.expiry().run().await.unwrap().version, 0);
    assert_readable_from(&bench, 0, &versions).await;
}

#[tokio::test]
async fn files_that_nothing_names_are_swept_once_they_are_old() {
    let mut bench = Bench::new();
    bench.options.retention = Duration::from_secs(1);
    let (mut table, versions) = forty_versions(&bench).await;
    let folder = table_folder(&bench);
    let before = names(&folder);
    // Two flushes die before their commit; only one of them long ago.
    for _ in 0..2 {
        table.apply(crate::support::changes(&[Delete(49), Insert(row(900, "DE", "x"))])).await.unwrap();
        let _died = table.write().await.unwrap().unwrap();
        table.abandon();
    }
    let left: Vec<String> = names(&folder).into_iter().filter(|name| !before.contains(name)).collect();
    assert_eq!(left.len(), 4, "two data files and two files of vectors: {left:?}");
    for name in before.iter().filter(|name| !name.starts_with('_')).chain(&left[..1]).chain(&left[3..]) {
        age(&folder.join(name), 2 * DAY);
    }
    std::fs::write(folder.join("notes.txt"), "not ours").unwrap();
    age(&folder.join("notes.txt"), 2 * DAY);
    assert_eq!(table.expiry().sweep_orphans().await.unwrap(), 2);
    let after = names(&folder);
    assert!(!after.contains(&left[0]) && !after.contains(&left[3]));
    assert!(after.contains(&left[1]) && after.contains(&left[2]) && after.contains(&"notes.txt".to_owned()));
    assert_readable_from(&bench, 0, &versions).await;
}

#[tokio::test]
async fn other_engines_are_told_how_long_to_keep_versions_and_files() {
    let mut bench = Bench::new();
    bench.options.retention = 3 * DAY;
    let table = bench.load(definition(), &[row(1, "DE", "x")]).await;
    let properties = &table.definition().configuration;
    assert_eq!(properties["delta.logRetentionDuration"], "interval 259200 seconds");
    assert_eq!(properties["delta.deletedFileRetentionDuration"], "interval 262800 seconds");
}
