use super::*;
use crate::{ColumnSpec, PgType};
use proptest::prelude::*;

fn schema() -> Arc<TableSchema> {
    let column = |name: &str, pg_type| ColumnSpec {
        source_name: name.to_owned(),
        lake_name: name.to_owned(),
        attnum: 1,
        pg_type,
    };
    Arc::new(TableSchema {
        source: ("public".to_owned(), "t".to_owned()),
        columns: vec![column("id", PgType::Int4), column("note", PgType::Text)],
        key: vec![0],
    })
}

fn decoder() -> CopyDecoder {
    CopyDecoder::new(schema(), BuilderOptions::default())
}

fn header(extension: &[u8]) -> Vec<u8> {
    [&SIGNATURE[..], &[0; 4], &(extension.len() as u32).to_be_bytes(), extension].concat()
}

fn row(id: i32, note: &[u8]) -> Vec<u8> {
    [&[0, 2, 0, 0, 0, 4][..], &id.to_be_bytes(), &(note.len() as u32).to_be_bytes(), note].concat()
}

const END: [u8; 2] = [0xFF, 0xFF];

#[test]
fn a_header_extension_is_skipped() {
    let mut decoder = decoder();
    decoder.push(&[header(b"later"), row(1, b"a"), END.to_vec()].concat()).unwrap();
    assert_eq!(decoder.rows(), 1);
    decoder.finish().unwrap();
}

#[test]
fn a_copy_that_was_cut_off_is_not_a_whole_one() {
    let mut decoder = decoder();
    decoder.push(&[header(b""), row(1, b"a"), row(2, b"b")].concat()).unwrap();
    assert_eq!(decoder.rows(), 2);
    assert_eq!(decoder.finish(), Err(CopyError::Unfinished { rows: 2 }));
}

#[test]
fn a_broken_row_leaves_the_rows_before_it() {
    let mut decoder = decoder();
    let error = decoder.push(&[header(b""), row(1, b"a"), row(2, b"\xff")].concat()).unwrap_err();
    assert!(matches!(error, CopyError::Row { row: 2, source: RowError::Value { .. } }), "{error:?}");
    assert_eq!(decoder.take_batch().num_rows(), 1);
    assert_eq!(decoder.push(&END), Err(CopyError::Failed));
}

#[test]
fn damage_is_named() {
    assert_eq!(decoder().push(b"PGCOPY\r"), Err(CopyError::BadSignature));
    let mut flags = header(b"");
    flags[11] = 1;
    assert_eq!(decoder().push(&flags), Err(CopyError::UnknownFlags(0x0100_0000)));
    let short = decoder().push(&[header(b""), vec![0, 1]].concat()).unwrap_err();
    assert!(matches!(short, CopyError::Row { source: RowError::ColumnCount { expected: 2, found: 1 }, .. }));
    let negative = [header(b""), vec![0, 2, 0xFF, 0xFF, 0xFF, 0xFE]].concat();
    assert!(matches!(decoder().push(&negative), Err(CopyError::BadLength { value: -2, .. })));
    let after = [header(b""), END.to_vec(), vec![0]].concat();
    assert_eq!(decoder().push(&after), Err(CopyError::AfterTrailer));
}

#[test]
fn batches_can_be_taken_between_chunks() {
    let mut decoder = decoder();
    decoder.push(&[header(b""), row(1, b"a"), row(2, b"b")[..5].to_vec()].concat()).unwrap();
    assert_eq!(decoder.take_batch().num_rows(), 1);
    decoder.push(&[row(2, b"b")[5..].to_vec(), END.to_vec()].concat()).unwrap();
    assert_eq!(decoder.take_batch().num_rows(), 1);
    decoder.finish().unwrap();
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(rest: Vec<u8>, with_header: bool) {
        let mut decoder = decoder();
        let start = if with_header { header(b"") } else { Vec::new() };
        let _ = decoder.push(&[start, rest].concat());
        let _ = decoder.take_batch();
    }
}
