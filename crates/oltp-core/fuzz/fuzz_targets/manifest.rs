//! Whatever a manifest says, it is read or refused, and in one that is read things can be looked up.
//!
//! The checksums are made right, or nothing would ever get past them.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use oltp_core::page_store::{Manifest, ManifestView};

fn manifest(head: &[u8], body: &[u8], length: Option<u64>) -> Vec<u8> {
    let stored = zstd::bulk::compress(body, 1).unwrap();
    let mut object = b"TWMANIF1".to_vec();
    object.extend(1_u32.to_le_bytes());
    object.extend((head.len() as u32).to_le_bytes());
    object.extend((stored.len() as u64).to_le_bytes());
    object.extend(length.unwrap_or(body.len() as u64).to_le_bytes());
    object.extend(crc32fast::hash(head).to_le_bytes());
    object.extend(crc32fast::hash(&stored).to_le_bytes());
    object.extend(crc32fast::hash(&object).to_le_bytes());
    object.extend(head);
    object.extend(stored);
    object
}

fuzz_target!(|input: (Vec<u8>, Vec<u8>, Option<u64>, Option<Vec<u8>>)| {
    let (head, body, length, raw) = input;
    let object = raw.unwrap_or_else(|| manifest(&head, &body, length));
    let Ok(manifest) = Manifest::parse(&object) else { return };
    let view = ManifestView::new(Arc::new(manifest));
    for file in &view.manifest().body.files {
        assert_eq!(view.file(file.id), Some(file));
    }
});
