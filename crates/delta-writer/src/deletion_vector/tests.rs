use super::*;
use proptest::prelude::*;

mod kernel;

/// The examples of the Delta protocol, word for word.
fn protocol_example(json: &str) -> DvDescriptor {
    serde_json::from_str(json).unwrap()
}

fn inline_example() -> DvDescriptor {
    let bytes = DeletionVector::from_iter([3, 4, 7, 11, 18, 29]).serialize().unwrap();
    DvDescriptor {
        storage_type: DvStorage::Inline,
        path_or_inline_dv: z85::encode(&bytes),
        offset: None,
        size_in_bytes: bytes.len() as i32,
        cardinality: 6,
    }
}

#[test]
fn an_inline_vector_deletes_its_rows() {
    let vector = inline_example().parse_inline().unwrap().unwrap();
    assert_eq!(vector.iter().collect::<Vec<_>>(), [3, 4, 7, 11, 18, 29]);
}

#[test]
fn the_bytes_of_a_small_vector_are_those_of_the_portable_format() {
    let mut expected = vec![0xD1, 0xD3, 0x39, 0x64]; // the magic number
    expected.extend([1, 0, 0, 0, 0, 0, 0, 0]); // one bitmap
    expected.extend([0, 0, 0, 0]); // for the rows below 2^32
    expected.extend([0x3A, 0x30, 0, 0, 1, 0, 0, 0]); // without runs, one container
    expected.extend([0, 0, 1, 0, 16, 0, 0, 0]); // of key 0, two rows, at byte 16
    expected.extend([3, 0, 9, 0]);
    assert_eq!(DeletionVector::from_iter([3, 9]).serialize().unwrap(), expected);
}

#[test]
fn the_protocols_inline_example_is_in_the_native_format_and_refused() {
    let descriptor = protocol_example(
        r#"{"storageType":"i","pathOrInlineDv":"wi5b=000010000siXQKl0rr91000f55c8Xg0@@D72lkbi5=-{L",
            "sizeInBytes":40,"cardinality":6}"#,
    );
    let error = descriptor.parse_inline().unwrap_err();
    assert!(error.to_string().contains("not in the portable format"), "{error}");
}

#[test]
fn the_protocols_relative_example_names_its_file() {
    let descriptor = protocol_example(
        r#"{"storageType":"u","pathOrInlineDv":"ab^-aqEH.-t@S}K{vb[*k^","offset":4,"sizeInBytes":40,"cardinality":6}"#,
    );
    let file = "ab/deletion_vector_d2c639aa-8816-431a-aaf6-d3fe2512ff61.bin";
    assert_eq!(descriptor.location().unwrap(), DvLocation::Relative(file.into()));
    assert_eq!(descriptor.unique_id(), "uab^-aqEH.-t@S}K{vb[*k^@4");
}

#[test]
fn the_protocols_absolute_example_names_its_url() {
    let url = "s3://mytable/deletion_vector_d2c639aa-8816-431a-aaf6-d3fe2512ff61.bin";
    let descriptor = protocol_example(&format!(
        r#"{{"storageType":"p","pathOrInlineDv":"{url}","offset":4,"sizeInBytes":40,"cardinality":6}}"#
    ));
    assert_eq!(descriptor.location().unwrap(), DvLocation::Absolute(url.into()));
}

#[test]
fn a_descriptor_in_the_log_looks_as_the_protocol_has_it() {
    let mut file = DvFileWriter::new();
    let json = serde_json::to_value(file.add(&DeletionVector::from_iter([7])).unwrap()).unwrap();
    let keys = json.as_object().unwrap().keys().map(String::as_str).collect::<Vec<_>>();
    let mut expected = ["storageType", "pathOrInlineDv", "offset", "sizeInBytes", "cardinality"];
    expected.sort_unstable();
    assert_eq!(
        keys.iter().copied().collect::<std::collections::BTreeSet<_>>().into_iter().collect::<Vec<_>>(),
        expected
    );
    assert_eq!((&json["storageType"], &json["offset"]), (&"u".into(), &1.into()));
    let inline = serde_json::to_value(inline_example()).unwrap();
    assert!(inline.get("offset").is_none());
}

#[test]
fn many_vectors_of_one_file_are_each_found_again() {
    let vectors = [
        DeletionVector::from_iter([0]),
        DeletionVector::from_iter(0..100_000),
        DeletionVector::new(),
        DeletionVector::from_iter((0..9_000_000).step_by(977)),
        DeletionVector::from_iter([1, u64::from(u32::MAX), u64::from(u32::MAX) + 1, 1 << 40]),
    ];
    let mut file = DvFileWriter::new();
    let descriptors = vectors.iter().map(|vector| file.add(vector).unwrap()).collect::<Vec<_>>();
    let (path, bytes) = file.finish();
    assert_eq!(bytes[0], 1);
    for (vector, descriptor) in vectors.iter().zip(&descriptors) {
        assert_eq!(descriptor.location().unwrap(), DvLocation::Relative(path.clone()));
        assert_eq!(&descriptor.parse_file(&bytes).unwrap(), vector);
        let range = descriptor.byte_range().unwrap();
        let part = &bytes[range.start as usize..range.end as usize];
        assert_eq!(&descriptor.parse_stored(part).unwrap(), vector);
        assert_eq!(descriptor.cardinality, vector.len() as i64);
    }
    assert_eq!(descriptors.last().unwrap().byte_range().unwrap().end, bytes.len() as u64);
}

#[test]
fn a_range_of_deleted_rows_takes_few_bytes() {
    assert!(DeletionVector::from_iter(0..1_000_000).serialize().unwrap().len() < 300);
}

#[test]
fn a_union_deletes_what_either_deletes() {
    let mut vector = DeletionVector::from_iter([1, 2]);
    vector.union(&DeletionVector::from_iter([2, 3]));
    assert_eq!(vector.iter().collect::<Vec<_>>(), [1, 2, 3]);
    assert!(!vector.insert(3) && vector.insert(4) && vector.contains(4));
}

#[test]
fn a_path_that_leads_out_of_the_table_is_refused() {
    let mut descriptor = inline_example();
    descriptor.storage_type = DvStorage::Relative;
    for path in
        ["../..^-aqEH.-t@S}K{vb[*k^", "short", "", "é^-aqEH.-t@S}K{vb[*k^", "ab\u{1F30A}aqEH.-t@S}K{vb[*k"]
    {
        descriptor.path_or_inline_dv = path.into();
        assert!(descriptor.location().is_err(), "{path}");
    }
}

#[test]
fn every_changed_or_missing_byte_of_a_stored_vector_is_noticed() {
    let mut file = DvFileWriter::new();
    let descriptor = file.add(&DeletionVector::from_iter([3, 70_000, 70_001])).unwrap();
    let (_, bytes) = file.finish();
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 0x04;
        assert!(descriptor.parse_file(&changed).is_err(), "byte {at}");
        assert!(descriptor.parse_file(&bytes[..at]).is_err(), "{at} bytes");
    }
}

#[test]
fn numbers_that_do_not_fit_the_vector_are_refused() {
    for (offset, size, cardinality) in [(None, 40, 5), (None, -1, 6), (None, i32::MAX, 6), (None, 3, 6)] {
        let changed = DvDescriptor { offset, size_in_bytes: size, cardinality, ..inline_example() };
        assert!(changed.parse_inline().is_err(), "{size} {cardinality}");
    }
    let mut file = DvFileWriter::new();
    let descriptor = file.add(&DeletionVector::from_iter([3])).unwrap();
    let (_, bytes) = file.finish();
    for offset in [i32::MIN, -1, 0, 2, i32::MAX] {
        let changed = DvDescriptor { offset: Some(offset), ..descriptor.clone() };
        assert!(changed.parse_file(&bytes).is_err(), "{offset}");
    }
}

proptest! {
    #[test]
    fn whatever_rows_are_deleted_come_back(rows in proptest::collection::btree_set(0u64..300_000, 0..3000)) {
        let vector = DeletionVector::from_iter(rows.iter().copied());
        let mut file = DvFileWriter::new();
        let descriptor = file.add(&vector).unwrap();
        let (_, bytes) = file.finish();
        let read = descriptor.parse_file(&bytes).unwrap();
        prop_assert!(read.iter().eq(rows));
    }

    #[test]
    fn no_bytes_make_the_parser_panic(
        rows in proptest::collection::vec(0u64..300_000, 0..60),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = DeletionVector::from_iter(rows).serialize().unwrap();
        for (at, byte) in changes {
            let at = at.index(bytes.len() - 4) + 4;
            bytes[at] = byte;
        }
        let _either = DeletionVector::parse(&bytes, || "changed".into());
    }
}
