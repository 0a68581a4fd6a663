//! A reader of the storage that was written from `docs/core-format.md` and knows nothing of ours.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "the whole file is tests; clippy excuses only the functions marked so"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oltp_core::Timestamp;
use oltp_core::ids::*;
use oltp_core::page_store::*;
use oltp_core::storage::Storage;
use serde_json::Value;
use wal_decoder::Lsn;

/// The other program: everything that it knows is in the document.
struct Reader {
    storage: PathBuf,
    body: Value,
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

impl Reader {
    /// The newest manifest of the branch that has the name.
    fn open(storage: &Path, project: &str, branch_name: &str) -> (Value, Reader) {
        let project = storage.join("projects").join(project);
        let last = |folder: PathBuf| {
            let mut names: Vec<PathBuf> =
                folder.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
            names.sort();
            names.pop().unwrap()
        };
        let claim = std::fs::read(last(project.join("names").join(branch_name))).unwrap();
        let claim: Value = serde_json::from_slice(&claim).unwrap();
        let bytes =
            std::fs::read(last(project.join("branches").join(claim["branch"].as_str().unwrap()))).unwrap();

        assert_eq!(&bytes[..8], b"TWMANIF1");
        assert_eq!(number(&bytes[8..12]), 1);
        assert_eq!(number(&bytes[40..44]), u64::from(crc32fast::hash(&bytes[..40])));
        let (head_end, body_length) = (44 + number(&bytes[12..16]) as usize, number(&bytes[16..24]) as usize);
        let (head, body) = (&bytes[44..head_end], &bytes[head_end..]);
        assert_eq!(body.len(), body_length);
        assert_eq!(number(&bytes[32..36]), u64::from(crc32fast::hash(head)));
        assert_eq!(number(&bytes[36..40]), u64::from(crc32fast::hash(body)));
        let body = zstd::decode_all(body).unwrap();
        assert_eq!(body.len() as u64, number(&bytes[24..32]));
        let body = serde_json::from_slice(&body).unwrap();
        (serde_json::from_slice(head).unwrap(), Reader { storage: storage.to_owned(), body })
    }

    /// The content of a file.
    fn file(&self, path: &str) -> Vec<u8> {
        let file = self.body["files"].as_array().unwrap().iter().find(|file| file["path"] == path).unwrap();
        let size = file["size"].as_u64().unwrap();
        let pages = (0..size.div_ceil(8192)).flat_map(|block| self.page(file, block));
        pages.take(size as usize).collect()
    }

    fn page(&self, file: &Value, block: u64) -> Vec<u8> {
        let id = file["id"].as_u64().unwrap();
        let place = |key: &Value| (key["file"].as_u64().unwrap(), key["block"].as_u64().unwrap());
        let mut layers: Vec<&Value> = self.body["layers"].as_array().unwrap().iter().collect();
        layers.sort_by_key(|layer| std::cmp::Reverse(layer["sequence"].as_u64()));
        for layer in layers {
            let in_range = place(&layer["first"]) <= (id, block) && (id, block) <= place(&layer["last"]);
            let cut_off = file["truncations"].as_array().into_iter().flatten().any(|cut| {
                layer["sequence"].as_u64() < cut["sequence"].as_u64()
                    && block >= cut["from_block"].as_u64().unwrap()
            });
            if !in_range || cut_off {
                continue;
            }
            let name = format!("{}-{}.layer", layer["term"], layer["id"].as_str().unwrap());
            let folder = self.storage.join("projects").join(layer["project"].as_str().unwrap());
            let object =
                std::fs::read(folder.join("layers").join(layer["branch"].as_str().unwrap()).join(name))
                    .unwrap();
            assert_eq!(layer["bytes"], object.len());
            if let Some(page) = page_of_layer(&object, id, block) {
                return page;
            }
        }
        vec![0; 8192]
    }
}

fn page_of_layer(object: &[u8], id: u64, block: u64) -> Option<Vec<u8>> {
    assert_eq!(&object[..8], b"TWLAYER1");
    let footer = &object[object.len() - 40..];
    assert_eq!(&footer[32..], b"TWLAYEND");
    assert_eq!(number(&footer[28..32]), u64::from(crc32fast::hash(&footer[..28])));
    assert_eq!((number(&footer[16..20]), number(&footer[24..28])), (8192, 1));
    let index = &object[number(&footer[..8]) as usize..object.len() - 40];
    assert_eq!(number(&footer[20..24]), u64::from(crc32fast::hash(index)));
    assert_eq!(number(&footer[8..12]) as usize, index.len() / 32);
    let run = index.chunks(32).find(|run| (number(&run[..8]), number(&run[8..12])) == (id, block / 16))?;
    let present = number(&run[12..14]);
    let bit = block % 16;
    if present >> bit & 1 == 0 {
        return None;
    }
    let (offset, length) = (number(&run[16..24]) as usize, number(&run[24..28]) as usize);
    let stored = &object[offset..offset + length];
    assert_eq!(number(&run[28..32]), u64::from(crc32fast::hash(stored)));
    let pages = if run[14] == 1 { zstd::decode_all(stored).unwrap() } else { stored.to_vec() };
    let before = (present & ((1 << bit) - 1)).count_ones() as usize;
    Some(pages[before * 8192..][..8192].to_vec())
}

fn page(key: PageKey, version: u64) -> Page {
    let mut bytes = vec![0; PAGE_BYTES];
    // Every other page does not compress, so that runs of both kinds are read.
    let mut state = key.file.0 << 40 | u64::from(key.block) << 8 | version | 1;
    let noisy = if key.block.is_multiple_of(2) { PAGE_BYTES } else { 100 };
    for byte in &mut bytes[..noisy] {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *byte = (state >> 56) as u8;
    }
    Page::padded(&bytes)
}

#[tokio::test]
async fn a_program_written_from_the_document_reads_every_file() {
    let folder = tempfile::tempdir().unwrap();
    let store = PageStore::new(Storage::open(folder.path().to_str().unwrap(), &BTreeMap::new()).unwrap());
    let (project, now) = (ProjectName::new("shop").unwrap(), Timestamp::now());
    let sizes = [3 * 8192 + 77, 40 * 8192, 0];
    let mut files: Vec<FileEntry> = (1..=3)
        .map(|id| FileEntry {
            path: format!("pg_xact/{id:04}"),
            id: FileId(id),
            size: sizes[id as usize - 1],
            mode: 0o600,
            truncations: Vec::new(),
        })
        .collect();
    files[1].truncations = vec![Truncation { sequence: LayerSequence(2), from_block: 30 }];

    let branch = BranchId::random();
    let mut layers = Vec::new();
    let mut expected: BTreeMap<PageKey, Page> = BTreeMap::new();
    let versions =
        [(1, (0..3).collect::<Vec<u32>>(), (0..36).collect::<Vec<u32>>()), (2, vec![3], vec![2, 17, 33])];
    for (version, first_file, second_file) in versions {
        if version == 2 {
            expected.retain(|key, _| key.file != FileId(2) || key.block < 30);
        }
        let mut writer = store.write_layers(&project, branch, Term(9), LayerSequence(version)).unwrap();
        let keys = first_file
            .into_iter()
            .map(|block| (1, block))
            .chain(second_file.into_iter().map(|block| (2, block)));
        for (id, block) in keys {
            let key = PageKey { file: FileId(id), block };
            writer.add(key, &page(key, version)).await.unwrap();
            expected.insert(key, page(key, version));
        }
        layers.extend(writer.finish().await.unwrap());
    }
    let head = ManifestHead {
        project: project.clone(),
        branch,
        number: ManifestNumber(1),
        uid: ManifestUid::random(),
        name: BranchName::new("main").unwrap(),
        state: BranchState::Live,
        parent: None,
        created_at: now,
        published_at: now,
        expires_at: None,
        term: Term(9),
        timeline: Timeline(1),
        kind: ManifestKind::Branched { target: RecoveryTarget::Lsn(Lsn(0x1_0000_0028)) },
        redo_lsn: Lsn(0x1_0000_0028),
        min_recovery_lsn: Lsn(0x1_0000_0100),
        end_lsn: None,
    };
    let body = ManifestBody {
        postgres_major: 18,
        system_identifier: 7,
        wal: vec![WalSpan { project, branch, timeline: Timeline(1), from: Lsn(0x1_0000_0000), to: None }],
        next_file_id: FileId(4),
        next_layer_sequence: LayerSequence(3),
        directories: vec![DirectoryEntry { path: "pg_xact".to_owned(), mode: 0o700 }],
        files,
        symlinks: vec![],
        layers,
    };
    store.create_branch(&Arc::new(Manifest { head, body }), None).await.unwrap();

    let (head, reader) = Reader::open(folder.path(), "shop", "main");
    assert_eq!(head["kind"]["branched"]["target"]["lsn"], "1/28");
    assert_eq!(head["redo_lsn"], "1/28");
    assert_eq!(reader.body["wal"][0]["from"], "1/0");
    for id in 1..=3_u64 {
        let size = sizes[id as usize - 1] as usize;
        let blocks = u32::try_from(size.div_ceil(8192)).unwrap();
        let pages = (0..blocks).flat_map(|block| {
            let page = expected.get(&PageKey { file: FileId(id), block }).cloned();
            page.unwrap_or_else(Page::zeroed).bytes().to_vec()
        });
        let content: Vec<u8> = pages.take(size).collect();
        assert!(reader.file(&format!("pg_xact/{id:04}")) == content, "file {id}");
    }
}
