//! Dying before or after every durable step: nothing is lost, nothing comes twice.
//!
//! A point that fires ends the flush where a crash would; the table is dropped and opened again as a new process
//! would, and the source sends the flush again unless the table's `txn` says that it is in.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "test support: a panic is a failed test, with the place it failed at"
)]

#[path = "../delta/support/mod.rs"]
#[allow(dead_code, reason = "the crash points need only a part of it")]
mod support;

use crate::support::Change::{Delete, Insert, Update, UpdateKeepingNote};
use crate::support::{Bench, definition, flush, hundred_rows, row};
use fail::FailScenario;

const POINTS: [&str; 6] = [
    "data-file-before-put",
    "data-file-after-put",
    "vectors-before-put",
    "vectors-after-put",
    "commit-before-put",
    "commit-after-put",
];

#[tokio::test]
async fn a_crash_at_any_step_neither_loses_nor_repeats_a_flush() {
    let scenario = FailScenario::setup();
    for lose_index in [false, true] {
        for point in POINTS {
            let bench = Bench::new();
            let mut table = bench
                .load(
                    definition(),
                    &[row(1, "DE", "x"), row(2, "DE", "x"), row(3, "DE", "x"), row(9, "DE", "x")],
                )
                .await;
            let list =
                [Update(row(1, "DE", "y")), Delete(2), Insert(row(4, "DE", "y")), UpdateKeepingNote(3, None)];
            fail::cfg(point, "return").unwrap();
            flush(&mut table, &list, 2).await.unwrap_err();
            fail::remove(point);
            drop(table);
            if lose_index {
                std::fs::remove_dir_all(&bench.options.index_dir).unwrap();
            }
            let mut table = bench.open().await;
            let arrived = table.txn(support::APP) == Some(2);
            assert_eq!(arrived, point == "commit-after-put", "{point}");
            if !arrived {
                flush(&mut table, &list, 2).await.unwrap().unwrap();
            }
            flush(&mut table, &[Delete(4), Update(row(1, "DE", "z"))], 3).await.unwrap().unwrap();
            assert_eq!(
                bench.read().await,
                [row(1, "DE", "z"), (3, None, Some("x".into())), row(9, "DE", "x")],
                "{point}"
            );
        }
    }
    scenario.teardown();
}

#[tokio::test]
async fn a_crash_at_any_step_of_a_compaction_neither_loses_a_row_nor_brings_one_back() {
    let scenario = FailScenario::setup();
    for lose_index in [false, true] {
        for point in POINTS {
            let bench = Bench::new();
            let mut table = bench.load_many_files(definition()).await;
            let compaction = table.begin_compaction().unwrap();
            let list = [Delete(1), Delete(2), Update(row(3, "DE", "second")), Insert(row(100, "DE", "new"))];
            flush(&mut table, &list, 2).await.unwrap().unwrap();
            fail::cfg(point, "return").unwrap();
            let died = match compaction.run().await {
                Ok(done) => table.adopt_compaction(done).await.map(|_| ()),
                Err(error) => Err(error),
            };
            fail::remove(point);
            died.unwrap_err();
            drop(table);
            if lose_index {
                std::fs::remove_dir_all(&bench.options.index_dir).unwrap();
            }
            let mut table = bench.open().await;
            assert_eq!(table.stats().files == 2, point == "commit-after-put", "{point}");
            let list = [Insert(row(2, "DE", "back")), Update(row(3, "DE", "third")), Delete(4), Delete(100)];
            flush(&mut table, &list, 3).await.unwrap().unwrap();
            let mut expected = hundred_rows();
            expected[2] = row(2, "DE", "back");
            expected[3] = row(3, "DE", "third");
            expected.retain(|row| ![1, 4].contains(&row.0));
            assert_eq!(bench.read().await, expected, "{point}");
        }
    }
    scenario.teardown();
}
