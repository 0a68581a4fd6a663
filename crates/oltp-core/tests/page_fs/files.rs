//! What the kernel makes of the filesystem: the same operations on a mount and on an ordinary directory.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use oltp_core::ids::FileId;
use oltp_core::page_store::{DirectoryEntry, FileEntry, Manifest};
use rustix::fs::FallocateFlags;

use crate::cluster::Cluster;

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path).unwrap()
}

/// Everything that Postgres does to files, and what it then sees of them.
fn exercise(root: &Path) -> Vec<String> {
    let mut seen = Vec::new();
    let mut note = |what: &str, value: String| seen.push(format!("{what}: {value}"));
    let checksum = |path: &Path| {
        let bytes = fs::read(path).unwrap();
        format!("{} bytes, crc {:08x}", bytes.len(), crc32fast::hash(&bytes))
    };

    // Sizes: sparse writes, truncation on a handle, extension, O_TRUNC, append.
    let path = root.join("sizes");
    let mut file = open(&path);
    file.write_all_at(&[1; 100], 50_000).unwrap();
    note("sparse", checksum(&path));
    file.set_len(50_050).unwrap();
    note("cut", checksum(&path));
    file.set_len(70_000).unwrap();
    note("extended", format!("{} {}", checksum(&path), file.seek(SeekFrom::End(0)).unwrap()));
    file.write_all_at(&[2; 8192], 8192).unwrap();
    file.write_all_at(&[3; 3], 8190).unwrap();
    note("across pages", checksum(&path));
    let mut appending = OpenOptions::new().append(true).open(&path).unwrap();
    appending.write_all(&[4; 10_000]).unwrap();
    note("appended", checksum(&path));
    drop(OpenOptions::new().write(true).truncate(true).open(&path).unwrap());
    note("emptied", format!("{} {}", checksum(&path), file.metadata().unwrap().len()));
    file.write_all_at(&[5; 200_000], 4000).unwrap();
    note("again", checksum(&path));

    // fallocate: extend, keep the size, punch a hole at an offset.
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 200_000, 100_000).unwrap();
    note("allocated", checksum(&path));
    rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 1 << 20).unwrap();
    rustix::fs::fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 5000, 20_000)
        .unwrap();
    note("punched", checksum(&path));
    file.sync_all().unwrap();

    // A file without a name goes on for who has it open.
    let path = root.join("unnamed");
    let mut file = open(&path);
    file.write_all(b"still here").unwrap();
    fs::remove_file(&path).unwrap();
    file.set_len(6).unwrap();
    file.write_all_at(b"!", 20_000).unwrap();
    let mut text = Vec::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut text).unwrap();
    note("unnamed", format!("{} {:?} {}", text.len(), &text[..8], path.exists()));
    fs::write(&path, b"another").unwrap();
    note("same name", checksum(&path));
    note("first one", file.metadata().unwrap().len().to_string());

    // Directories carry what is below them; renames replace.
    fs::create_dir(root.join("slot.tmp")).unwrap();
    fs::write(root.join("slot.tmp/state"), b"one").unwrap();
    let state = open(&root.join("slot.tmp/state"));
    fs::rename(root.join("slot.tmp"), root.join("slot")).unwrap();
    state.write_all_at(b"two", 0).unwrap();
    note("renamed", fs::read_to_string(root.join("slot/state")).unwrap());
    note("old name", root.join("slot.tmp").exists().to_string());
    fs::write(root.join("slot/state.tmp"), b"three").unwrap();
    fs::rename(root.join("slot/state.tmp"), root.join("slot/state")).unwrap();
    note("replaced", fs::read_to_string(root.join("slot/state")).unwrap());
    note("not empty", format!("{:?}", fs::remove_dir(root.join("slot")).unwrap_err().raw_os_error()));
    note(
        "no directory",
        format!("{:?}", fs::read_dir(root.join("sizes")).err().and_then(|e| e.raw_os_error())),
    );
    note("there already", format!("{:?}", fs::create_dir(root.join("slot")).unwrap_err().raw_os_error()));

    // Links, modes, listings.
    std::os::unix::fs::symlink("slot/state", root.join("link")).unwrap();
    note("link", fs::read_to_string(root.join("link")).unwrap());
    fs::set_permissions(root.join("slot/state"), fs::Permissions::from_mode(0o640)).unwrap();
    note("mode", format!("{:o}", root.join("slot/state").metadata().unwrap().mode()));
    for number in 0..300 {
        fs::write(root.join(format!("slot/{number}")), [7]).unwrap();
    }
    let mut names: Vec<_> =
        fs::read_dir(root.join("slot")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    note("names", format!("{} {:?}", names.len(), &names[..3]));
    for entry in fs::read_dir(root.join("slot")).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    fs::remove_dir(root.join("slot")).unwrap();
    note("gone", root.join("slot").exists().to_string());
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn files_behave_as_in_an_ordinary_directory() {
    let cluster = Cluster::new().await;
    let (first, wal) = cluster.imported().await;
    let mounted = cluster.mount("one", &first, &wal).await;
    let plain = cluster.own_directory("ordinary");
    let point = mounted.mount_point().to_owned();
    let (there, here) =
        tokio::task::spawn_blocking(move || (exercise(&plain), exercise(&point))).await.unwrap();
    assert_eq!(here, there);

    // And after a capture the same bytes are read back from the store by another mount.
    let big: Vec<u8> = (0..3_000_000_u32).flat_map(|n| n.to_le_bytes()).collect();
    fs::write(mounted.mount_point().join("pg_stat/big"), &big).unwrap();
    let captured = mounted.capture(mounted.cut().unwrap()).await.unwrap();
    let manifest = Arc::new(Manifest { head: first.head.clone(), body: captured.body });
    let other = cluster.mount("two", &manifest, &wal).await;
    assert!(fs::read(other.mount_point().join("pg_stat/big")).unwrap() == big);
    let fetches = other.cache_use().fetches;
    assert!(fetches < 40, "{fetches} range reads for 12 MB: readahead does not work");
    let mut file = File::open(other.mount_point().join("base/5/1259")).unwrap();
    let mut page = [0; 8192];
    file.read_exact(&mut page).unwrap();
    assert_eq!(other.cache_use().fetches, fetches + 1, "one range read for one miss");
    for mounted in [mounted, other] {
        mounted.unmount().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_relations_are_listed_from_the_manifest_alone() {
    let cluster = Cluster::new().await;
    let (first, wal) = cluster.imported().await;
    let mut body = first.body.clone();
    let start = body.next_file_id.0;
    for number in 0..100_000 {
        let path = format!("base/5/{}", 1_000_000 + number);
        body.files.push(FileEntry {
            path,
            id: FileId(start + number),
            size: 8192,
            mode: 0o600,
            truncations: Vec::new(),
        });
    }
    body.next_file_id = FileId(start + 100_000);
    body.directories.push(DirectoryEntry { path: "extra".to_owned(), mode: 0o700 });
    let manifest = Arc::new(Manifest { head: first.head.clone(), body });
    let begun = std::time::Instant::now();
    let mounted = cluster.mount("one", &manifest, &wal).await;
    println!("mounted after {:?}", begun.elapsed());
    let base = mounted.mount_point().join("base/5");
    let names = fs::read_dir(&base).unwrap().count();
    println!("listed after {:?}", begun.elapsed());
    assert!(names > 100_000);
    let total: u64 = fs::read_dir(&base).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    println!("every size after {:?}", begun.elapsed());
    assert!(total >= 100_000 * 8192);
    assert_eq!(mounted.cache_use().fetches, 0);

    // A cut with all these files costs what changed.
    fs::write(base.join("1000007"), [0; 8192]).unwrap();
    let cut = mounted.cut().unwrap();
    println!("cut held {:?}", cut.held());
    let captured = mounted.capture(cut).await.unwrap();
    println!("captured after {:?}", begun.elapsed());
    assert_eq!(captured.pages, 1);
    assert_eq!(captured.body.files.len(), manifest.body.files.len());
    mounted.unmount().await.unwrap();
}
