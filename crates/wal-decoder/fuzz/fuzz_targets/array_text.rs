//! Array text in every kind of element becomes a list, a dead letter or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::Arc;
use wal_decoder::pgoutput::parse;
use wal_decoder::{
    BuilderOptions, ChangeBuilder, ColumnSpec, Message, PgType, Relation, RelationColumn, ReplicaIdentity,
    TableSchema, TypeCatalog, TypeEntry,
};

/// `int4[]`, `text[]`, `box[]` by their OIDs.
const ARRAYS: [(u32, u32, char); 3] = [(1007, 23, ','), (1009, 25, ','), (1020, 603, ';')];

fn builder() -> ChangeBuilder {
    let entry = |&(oid, element, delimiter): &(u32, u32, char)| TypeEntry {
        oid,
        name: "_t".to_owned(),
        kind: 'b',
        category: 'A',
        element,
        base: 0,
        base_typmod: -1,
        delimiter,
    };
    let catalog = Arc::new(TypeCatalog::new(ARRAYS.iter().map(entry)));
    let columns: Vec<_> = ARRAYS
        .iter()
        .map(|&(type_oid, ..)| RelationColumn { is_key: false, name: type_oid.to_string(), type_oid, typmod: -1 })
        .collect();
    let spec = |column: &RelationColumn| ColumnSpec {
        source_name: column.name.clone(),
        lake_name: column.name.clone(),
        attnum: 1,
        pg_type: catalog.resolve(column.type_oid, -1, &Default::default()),
    };
    let schema = TableSchema {
        source: ("public".to_owned(), "t".to_owned()),
        columns: columns.iter().map(spec).collect(),
        key: vec![],
    };
    let options = BuilderOptions { catalog: Arc::clone(&catalog), ..BuilderOptions::default() };
    let mut builder = ChangeBuilder::new(Arc::new(schema), options);
    let relation = Relation {
        id: 1,
        schema: "public".to_owned(),
        name: "t".to_owned(),
        replica_identity: ReplicaIdentity::Default,
        columns,
    };
    assert!(builder.bind(&relation).is_ok());
    builder
}

fuzz_target!(|text: &[u8]| {
    let mut builder = builder();
    let mut accepted = 0;
    for filled in 0..ARRAYS.len() {
        let mut message = b"I\0\0\0\x01N\0\x03".to_vec();
        for at in 0..ARRAYS.len() {
            if at == filled {
                message.push(b't');
                message.extend((text.len() as u32).to_be_bytes());
                message.extend_from_slice(text);
            } else {
                message.push(b'n');
            }
        }
        let Ok(Message::Insert { new, .. }) = parse(&message, false) else { panic!("the message is well formed") };
        accepted += usize::from(builder.insert(&new).is_ok());
    }
    assert_eq!(builder.finish().rows.num_rows(), accepted);
});
