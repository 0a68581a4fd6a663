//! Tables that only grow, read by delta-rs.

use super::support::{APP, Bench, row, rows_batch, schema, spec};
use delta_writer::{AppendTable, CommitSpec};
use url::Url;

async fn open(bench: &Bench) -> AppendTable {
    AppendTable::open(bench.location(), schema(), bench.options.clone()).await.unwrap()
}

fn numbered(id: i64) -> CommitSpec {
    CommitSpec { app_id: APP.into(), ..spec(id) }
}

#[tokio::test]
async fn rows_appended_by_two_at_once_are_all_there_once() {
    let bench = Bench::new();
    let (mut one, mut other) = (open(&bench).await, open(&bench).await);
    for id in 0..20 {
        let (ours, theirs) = (rows_batch(&[row(id, "DE", "one")]), rows_batch(&[row(id, "FR", "other")]));
        let (first, second) = (numbered(id), numbered(id));
        let (first, second) = tokio::join!(one.append(&ours, &first), other.append(&theirs, &second));
        assert_ne!(first.unwrap(), second.unwrap());
    }
    let expected: Vec<_> = (0..20).flat_map(|id| [row(id, "DE", "one"), row(id, "FR", "other")]).collect();
    assert_eq!(bench.read().await, expected);
}

#[tokio::test]
async fn a_thousand_appends_leave_few_files_and_every_row() {
    let mut bench = Bench::new();
    bench.options.checkpoint_every = 50;
    let mut table = open(&bench).await;
    for id in 0..1000 {
        table.append(&rows_batch(&[row(id, "DE", "n")]), &numbered(id)).await.unwrap();
    }
    let read = bench.read().await;
    assert_eq!(read, (0..1000).map(|id| row(id, "DE", "n")).collect::<Vec<_>>());
    let url = Url::from_directory_path(bench.folder.path().join("lake/shop/public/orders")).unwrap();
    let files = deltalake::open_table(url).await.unwrap().get_file_uris().unwrap().count();
    assert!(files < 70, "{files} data files");
    // Opened anew from the checkpoint, it goes on where it was.
    let version = table.version();
    let mut again = open(&bench).await;
    assert_eq!(again.version(), version);
    again.append(&rows_batch(&[row(1000, "DE", "n")]), &numbered(1000)).await.unwrap();
    assert_eq!(bench.read().await.len(), 1001);
}

#[tokio::test]
async fn a_table_of_other_columns_is_not_appended_to() {
    let bench = Bench::new();
    drop(open(&bench).await);
    let other = std::sync::Arc::new(schema().project(&[0, 1]).unwrap());
    let refused = AppendTable::open(bench.location(), other, bench.options.clone()).await.unwrap_err();
    assert!(refused.to_string().contains("other columns"), "{refused}");
}
