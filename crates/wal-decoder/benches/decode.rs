//! What one inserted row of ten ordinary columns costs, from its message to Arrow's buffers.

#![allow(clippy::expect_used)] // a benchmark that cannot go on has nothing better to do

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use std::sync::Arc;
use wal_decoder::pgoutput::parse;
use wal_decoder::{
    BuilderOptions, ChangeBuilder, ColumnSpec, Message, PgType, Relation, RelationColumn, ReplicaIdentity,
    TableSchema,
};

const ROWS: usize = 10_000;

const COLUMNS: [(&str, u32, i32, PgType, &str); 10] = [
    ("id", 20, -1, PgType::Int8, "1234567"),
    ("customer", 23, -1, PgType::Int4, "98765"),
    ("status", 21, -1, PgType::Int2, "3"),
    ("amount", 1700, (12 << 16 | 2) + 4, PgType::Decimal { precision: 12, scale: 2 }, "12345.67"),
    ("weight", 701, -1, PgType::Float8, "12.75"),
    ("paid", 16, -1, PgType::Bool, "t"),
    ("day", 1082, -1, PgType::Date, "2026-11-20"),
    ("created", 1184, -1, PgType::Timestamptz, "2026-11-20 10:00:00.123456+00"),
    ("email", 25, -1, PgType::Text, "someone@example.org"),
    ("note", 25, -1, PgType::Text, "leave it at the door, the bell is broken"),
];

fn relation() -> Relation {
    Relation {
        id: 1,
        schema: "public".to_owned(),
        name: "orders".to_owned(),
        replica_identity: ReplicaIdentity::Default,
        columns: COLUMNS
            .iter()
            .map(|(name, type_oid, typmod, ..)| RelationColumn {
                is_key: *name == "id",
                name: (*name).to_owned(),
                type_oid: *type_oid,
                typmod: *typmod,
            })
            .collect(),
    }
}

fn schema() -> Arc<TableSchema> {
    let column = |(at, (name, .., pg_type, _)): (usize, &(&str, u32, i32, PgType, &str))| ColumnSpec {
        source_name: (*name).to_owned(),
        lake_name: (*name).to_owned(),
        attnum: at as i16 + 1,
        pg_type: pg_type.clone(),
    };
    Arc::new(TableSchema {
        source: ("public".to_owned(), "orders".to_owned()),
        columns: COLUMNS.iter().enumerate().map(column).collect(),
        key: vec![0],
    })
}

fn message() -> Vec<u8> {
    let mut bytes = [&b"I\0\0\0\x01N"[..], &(COLUMNS.len() as u16).to_be_bytes()].concat();
    for (.., text) in &COLUMNS {
        bytes.push(b't');
        bytes.extend((text.len() as u32).to_be_bytes());
        bytes.extend_from_slice(text.as_bytes());
    }
    bytes
}

fn inserts(criterion: &mut Criterion) {
    let (relation, message) = (relation(), message());
    let mut group = criterion.benchmark_group("decode");
    group.throughput(Throughput::Elements(ROWS as u64));
    group.bench_function("insert_of_ten_columns", |bencher| {
        let new = || {
            let mut builder = ChangeBuilder::new(schema(), BuilderOptions::default());
            builder.bind(&relation).expect("the schema was made for this relation");
            builder
        };
        bencher.iter_batched_ref(
            new,
            |builder| {
                for _ in 0..ROWS {
                    if let Ok(Message::Insert { new, .. }) = parse(&message, false) {
                        builder.insert(&new).expect("the row is good");
                    }
                }
                builder.finish()
            },
            BatchSize::LargeInput,
        );
    });
    group.finish();
}

criterion_group!(benches, inserts);
criterion_main!(benches);
