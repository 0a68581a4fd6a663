//! A COPY in two chunks gives what it gives in one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::Arc;
use wal_decoder::{BuilderOptions, ColumnSpec, CopyDecoder, PgType, TableSchema};

fn schema() -> Arc<TableSchema> {
    let types = [
        PgType::Int8,
        PgType::Decimal { precision: 20, scale: 4 },
        PgType::Timestamptz,
        PgType::Text,
        PgType::Array(Box::new(PgType::Int4)),
        PgType::Vector,
    ];
    let column = |(at, pg_type): (usize, PgType)| ColumnSpec {
        source_name: format!("c{at}"),
        lake_name: format!("c{at}"),
        attnum: at as i16 + 1,
        pg_type,
    };
    Arc::new(TableSchema {
        source: ("public".to_owned(), "t".to_owned()),
        columns: types.into_iter().enumerate().map(column).collect(),
        key: vec![0],
    })
}

fuzz_target!(|input: (usize, &[u8])| {
    let (cut, rest) = input;
    let bytes = [&b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0"[..], rest].concat();
    let mut whole = CopyDecoder::new(schema(), BuilderOptions::default());
    let mut halves = CopyDecoder::new(schema(), BuilderOptions::default());
    let (first, second) = bytes.split_at(cut % (bytes.len() + 1));
    let one = whole.push(&bytes);
    let two = halves.push(first).and_then(|()| halves.push(second));
    assert_eq!(one, two);
    // Compared as text, because NaN differs from itself.
    assert_eq!(format!("{:?}", whole.take_batch()), format!("{:?}", halves.take_batch()));
});
