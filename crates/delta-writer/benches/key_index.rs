//! What the key index costs: loading, looking up, committing, and streaming with merges going on.
//!
//! Keys are random 64-bit integers hashed by the index itself, so their cost is part of it.

use arrow::array::{ArrayRef, Int64Array};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use delta_writer::key_index::{FileId, KeyHash, KeyIndex, KeyIndexError, RowAddress};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Entries of one flush.
const FLUSH: u64 = 10_000;

/// Numbers all over the range, different for different `n`.
fn scatter(n: u64) -> i64 {
    n.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(31) as i64
}

fn hash(index: &KeyIndex, numbers: impl Iterator<Item = u64>) -> Result<Vec<KeyHash>, KeyIndexError> {
    let column: ArrayRef = Arc::new(numbers.map(scatter).collect::<Int64Array>());
    index.hasher().hash(&[column])
}

fn addresses(file: FileId) -> impl Iterator<Item = RowAddress> {
    (0..).map(move |row| RowAddress { file, row })
}

/// An index of `rows` keys, loaded as a first load does it.
fn load(index: &mut KeyIndex, rows: u64) -> Result<(), KeyIndexError> {
    let file = index.file_id("part-0.parquet");
    let mut builder = index.run_builder();
    for start in (0..rows).step_by(65_536) {
        let keys = hash(index, start..rows.min(start + 65_536))?;
        for (key, row) in keys.into_iter().zip(start..) {
            builder.push(key, RowAddress { file, row: row as u32 })?;
        }
    }
    let run = builder.finish()?;
    index.stage_run(run)?;
    index.commit(index.version().map_or(0, |version| version + 1))
}

/// Stages and commits the flush number `n`, which changes rows all over the table.
fn flush(index: &mut KeyIndex, n: u64, rows: u64, size: u64) -> Result<(), KeyIndexError> {
    let file = index.file_id(&format!("part-{n}.parquet"));
    let keys = hash(index, (0..size).map(|at| (n * size + at).wrapping_mul(7_919) % rows))?;
    index.stage(keys.into_iter().zip(addresses(file)).collect())?;
    index.commit(index.version().map_or(0, |version| version + 1))
}

fn key_index(criterion: &mut Criterion) -> Result<(), Box<dyn std::error::Error>> {
    for rows in [1_000_000, 10_000_000] {
        let dir = tempfile::tempdir()?;
        let mut index = KeyIndex::create(dir.path())?;
        let begun = Instant::now();
        load(&mut index, rows)?;
        let spent = begun.elapsed();
        println!("load of {rows} rows: {spent:?}, {} ns a row", spent.as_nanos() / u128::from(rows));

        let mut group = criterion.benchmark_group(format!("{rows} rows"));
        group
            .sample_size(20)
            .measurement_time(Duration::from_secs(4))
            .throughput(Throughput::Elements(FLUSH));
        // Twenty flushes first, so that lookups pass through several runs.
        let mut n = 0;
        while n < 20 {
            flush(&mut index, n, rows, FLUSH)?;
            n += 1;
        }
        let mut round = 0;
        let mut question = |index: &KeyIndex, from: u64| {
            round += 1;
            hash(index, (0..FLUSH).map(|at| from + (round * FLUSH + at).wrapping_mul(104_729) % rows))
        };
        group.bench_function("look up 10,000 keys that are there", |bencher| {
            bencher.iter_batched(
                || question(&index, 0),
                |keys| keys.and_then(|keys| index.lookup(&keys)),
                BatchSize::PerIteration,
            );
        });
        group.bench_function("look up 10,000 keys that are not there", |bencher| {
            bencher.iter_batched(
                || question(&index, rows),
                |keys| keys.and_then(|keys| index.lookup(&keys)),
                BatchSize::PerIteration,
            );
        });
        let mut failed = Ok(());
        group.bench_function("stage and commit 10,000 entries", |bencher| {
            bencher.iter(|| {
                n += 1;
                if let Err(error) = flush(&mut index, n, rows, FLUSH) {
                    failed = Err(error);
                }
            });
        });
        group.finish();
        failed?;

        let begun = Instant::now();
        for _ in 0..50 {
            n += 1;
            flush(&mut index, n, rows, 200_000)?;
        }
        println!(
            "50 flushes of 200,000 entries into {rows} rows: {} ns an entry, {} entries and {} MB on disk",
            begun.elapsed().as_nanos() / (50 * 200_000),
            index.entries(),
            index.disk_bytes() >> 20
        );
    }
    Ok(())
}

fn benches_or_exit(criterion: &mut Criterion) {
    if let Err(error) = key_index(criterion) {
        eprintln!("the benchmark failed: {error}");
        std::process::exit(1);
    }
}

criterion_group!(benches, benches_or_exit);
criterion_main!(benches);
