//! Whatever index a layer has, it is read or refused, and its pages come in order.
//!
//! The checksums are made right, or nothing would ever get past them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use oltp_core::page_store::LayerObject;

/// File, window, present blocks, compressed, offset, length, content.
type Run = (u64, u32, u16, u8, Option<u64>, Option<u32>, Vec<u8>);

fn layer(runs: &[Run], pages: Option<u32>) -> Vec<u8> {
    let mut object = b"TWLAYER1".to_vec();
    let mut index = Vec::new();
    let mut counted = 0;
    for (file, window, present, compressed, offset, length, content) in runs {
        let stored =
            if *compressed == 1 { zstd::bulk::compress(content, 1).unwrap() } else { content.clone() };
        index.extend(file.to_le_bytes());
        index.extend(window.to_le_bytes());
        index.extend(present.to_le_bytes());
        index.extend([*compressed, 0]);
        index.extend(offset.unwrap_or(object.len() as u64).to_le_bytes());
        index.extend(length.unwrap_or(stored.len() as u32).to_le_bytes());
        index.extend(crc32fast::hash(&stored).to_le_bytes());
        object.extend(stored);
        counted += present.count_ones();
    }
    let mut footer = (object.len() as u64).to_le_bytes().to_vec();
    footer.extend((runs.len() as u32).to_le_bytes());
    footer.extend(pages.unwrap_or(counted).to_le_bytes());
    footer.extend(8192_u32.to_le_bytes());
    footer.extend(crc32fast::hash(&index).to_le_bytes());
    footer.extend(1_u32.to_le_bytes());
    footer.extend(crc32fast::hash(&footer).to_le_bytes());
    footer.extend(b"TWLAYEND");
    object.extend(index);
    object.extend(footer);
    object
}

fuzz_target!(|input: (Vec<Run>, Option<u32>, Option<Vec<u8>>)| {
    let (runs, pages, raw) = input;
    let object = raw.unwrap_or_else(|| layer(&runs, pages));
    let Ok(layer) = LayerObject::parse(&object) else { return };
    let mut last = None;
    for (key, _) in layer.runs().flatten().flatten() {
        assert!(last < Some(key));
        last = Some(key);
    }
});
