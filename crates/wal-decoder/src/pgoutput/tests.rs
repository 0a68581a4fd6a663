use super::*;
use proptest::prelude::*;

/// A tuple's bytes: its count, then each value.
fn tuple(values: &[Value<'_>]) -> Vec<u8> {
    let mut bytes = (values.len() as u16).to_be_bytes().to_vec();
    for value in values {
        match value {
            Value::Null => bytes.push(b'n'),
            Value::Unchanged => bytes.push(b'u'),
            Value::Text(text) | Value::Binary(text) => {
                bytes.push(if matches!(value, Value::Text(_)) { b't' } else { b'b' });
                bytes.extend((text.len() as u32).to_be_bytes());
                bytes.extend_from_slice(text);
            }
        }
    }
    bytes
}

fn insert_of(values: &[Value<'_>]) -> Vec<u8> {
    [&[b'I'][..], &7_u32.to_be_bytes(), b"N", &tuple(values)].concat()
}

#[test]
fn a_tuple_gives_its_values_in_order() {
    let values =
        [Value::Text(b"a"), Value::Null, Value::Unchanged, Value::Binary(b"\0\x01"), Value::Text(b"")];
    let bytes = insert_of(&values);
    let Ok(Message::Insert { xid: None, relation_id: 7, new }) = parse(&bytes, false) else { panic!() };
    assert_eq!(new.len(), 5);
    assert_eq!(new.columns().collect::<Vec<_>>(), values);
}

#[test]
fn a_change_carries_a_transaction_id_only_inside_a_stream() {
    let outside = insert_of(&[Value::Null]);
    let inside = [&[b'I'][..], &42_u32.to_be_bytes(), &outside[1..]].concat();
    assert!(matches!(parse(&inside, true), Ok(Message::Insert { xid: Some(42), relation_id: 7, .. })));
    assert!(parse(&inside, false).is_err());
    assert!(parse(&outside, true).is_err());
}

#[test]
fn an_update_says_what_it_knows_of_the_old_row() {
    let (old, new) = (tuple(&[Value::Text(b"1")]), tuple(&[Value::Text(b"2")]));
    let update = |kind: &[u8], old: &[u8]| [b"U\0\0\0\x07", kind, old, b"N", &new].concat();
    assert!(matches!(parse(&update(b"", b""), false), Ok(Message::Update { old: OldRow::Absent, .. })));
    assert!(matches!(parse(&update(b"K", &old), false), Ok(Message::Update { old: OldRow::Key(_), .. })));
    assert!(matches!(parse(&update(b"O", &old), false), Ok(Message::Update { old: OldRow::Full(_), .. })));
    let unknown = update(b"X", &old);
    let error = parse(&unknown, false);
    assert!(matches!(error, Err(ProtocolError::BadTag { value: b'X', .. })));
}

#[test]
fn an_abort_has_its_position_only_in_parallel_streaming() {
    let short = [&b"A"[..], &1_u32.to_be_bytes(), &2_u32.to_be_bytes()].concat();
    let long = [&short[..], &3_u64.to_be_bytes(), &4_u64.to_be_bytes()].concat();
    assert_eq!(
        parse(&short, false),
        Ok(Message::StreamAbort { xid: 1, subxid: 2, abort_lsn: None, abort_time: None })
    );
    assert_eq!(
        parse(&long, false),
        Ok(Message::StreamAbort {
            xid: 1,
            subxid: 2,
            abort_lsn: Some(Lsn(3)),
            abort_time: Some(PgTimestamp(4))
        })
    );
}

#[test]
fn damage_is_named() {
    assert_eq!(parse(b"", false), Err(ProtocolError::Truncated { what: "message type" }));
    assert_eq!(parse(b"?", false), Err(ProtocolError::UnknownMessage(b'?')));
    assert_eq!(parse(b"Ex", false), Err(ProtocolError::TrailingBytes { message: "Stream Stop", count: 1 }));
    let huge = [b"T".as_slice(), &i32::MAX.to_be_bytes(), &[0]].concat();
    assert!(matches!(parse(&huge, false), Err(ProtocolError::BadLength { .. })));
    let negative = [b"I\0\0\0\x07N\0\x01t".as_slice(), &(-1_i32).to_be_bytes()].concat();
    assert!(matches!(parse(&negative, false), Err(ProtocolError::BadLength { value: -1, .. })));
}

#[test]
fn every_cut_of_a_good_message_is_refused() {
    for line in include_str!("../../fixtures/wide.pgoutput").lines() {
        let bytes: Vec<u8> =
            (0..line.len()).step_by(2).map(|at| u8::from_str_radix(&line[at..at + 2], 16).unwrap()).collect();
        assert!(parse(&bytes, false).is_ok());
        let step = (bytes.len() / 200).max(1);
        for end in (0..bytes.len()).step_by(step) {
            assert!(parse(&bytes[..end], false).is_err(), "{end} bytes of {line}");
        }
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes: Vec<u8>, in_stream: bool) {
        let _ = parse(&bytes, in_stream);
    }

    #[test]
    fn no_bytes_after_a_known_tag_make_it_panic(
        tag in prop::sample::select(b"IUDBCORYTMSEcAbPKrp".to_vec()),
        rest in prop::collection::vec(prop_oneof![Just(0_u8), Just(b'N'), Just(b't'), Just(1), any::<u8>()], 0..80),
        in_stream: bool,
    ) {
        let bytes = [&[tag][..], &rest].concat();
        if let Ok(Message::Insert { new, .. }) = parse(&bytes, in_stream) {
            prop_assert_eq!(new.columns().count(), new.len());
        }
    }
}
