//! The kernel's requests, answered.
//!
//! The mount is the only way to the files, so the kernel may believe for ever what it once learned:
//! names, missing names, attributes and pages. It is told to open files without asking (`ENOSYS` to the
//! first `open` means that), to keep pages over an open, and not to hold writes back: what a `write` call
//! returned from has been here.
//!
//! A request that can be answered from memory and the local disk is answered on the thread that took it.
//! One that needs the store, or room in a cache full of dirty pages, goes on as a task; the thread is
//! free for the next.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::data_directory::{Attributes, DataDirectory, NAME_LIMIT, NodeKind};
use super::fetch::Fetcher;
use super::file::{File, Stop};
use super::page_cache::PAGE;
use super::tree::Ino;

/// Nobody else changes anything: what the kernel knows stays true.
const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// Postgres reads and writes up to 1 MiB at once (`io_combine_limit`).
const LARGEST_REQUEST: u32 = 1 << 20;

/// Readahead requests of the kernel that may be under way: enough for several scans that wait for the
/// store.
const REQUESTS_AHEAD: u16 = 64;

/// What Linux's `linux/falloc.h` calls these.
const FALLOC_KEEP_SIZE: i32 = 0x01;
const FALLOC_PUNCH_HOLE: i32 = 0x02;
const FALLOC_ZERO_RANGE: i32 = 0x10;

/// Everything that answering requests takes.
#[derive(Debug)]
pub(super) struct Answering {
    pub(super) directory: Arc<DataDirectory>,
    pub(super) fetcher: Arc<Fetcher>,
    pub(super) runtime: Handle,
    /// Where the cache lies: `statfs` speaks of that disk.
    pub(super) cache_directory: std::path::PathBuf,
    pub(super) owner: (u32, u32),
}

type Listing = Arc<Vec<(Ino, NodeKind, Box<str>)>>;

/// The filesystem as `fuser` wants it.
#[derive(Debug)]
pub(super) struct PageFilesystem {
    answering: Arc<Answering>,
    /// A directory is listed as it was when it was opened.
    listings: Mutex<HashMap<u64, Listing>>,
    next_listing: AtomicU64,
}

fn errno(errno: rustix::io::Errno) -> Errno {
    Errno::from_i32(errno.raw_os_error())
}

fn utf8(name: &OsStr) -> Result<&str, Errno> {
    name.to_str().ok_or(Errno::EILSEQ)
}

fn file_type(kind: NodeKind) -> FileType {
    match kind {
        NodeKind::Directory => FileType::Directory,
        NodeKind::File => FileType::RegularFile,
        NodeKind::Symlink => FileType::Symlink,
    }
}

impl PageFilesystem {
    pub(super) fn new(answering: Arc<Answering>) -> PageFilesystem {
        PageFilesystem { answering, listings: Mutex::default(), next_listing: AtomicU64::new(1) }
    }

    fn directory(&self) -> &DataDirectory {
        &self.answering.directory
    }

    fn entry(&self, reply: ReplyEntry, found: Result<Attributes, rustix::io::Errno>) {
        match found {
            Ok(attributes) => {
                self.directory().remember(attributes.ino);
                reply.entry(&FOR_EVER, &self.answering.attributes(&attributes), Generation(0));
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    /// Answers with what `operation` gives, now or as soon as what it lacks is here.
    fn answer<T: Send + 'static, R: Send + 'static>(
        &self,
        ino: INodeNo,
        reply: R,
        mut operation: impl FnMut(&DataDirectory, &Arc<File>) -> Result<T, Stop> + Send + 'static,
        send: impl FnOnce(R, Result<T, Errno>) + Send + 'static,
    ) {
        let file = match self.directory().file(Ino(ino.0)) {
            Ok(file) => file,
            Err(error) => return send(reply, Err(errno(error))),
        };
        match operation(self.directory(), &file) {
            Ok(done) => send(reply, Ok(done)),
            Err(Stop::Failed(error)) => send(reply, Err(errno(error))),
            Err(Stop::Missing(_) | Stop::NoRoom) => {
                let answering = Arc::clone(&self.answering);
                self.answering.runtime.spawn(async move {
                    let directory = Arc::clone(&answering.directory);
                    let done =
                        answering.fetcher.complete(&directory, &file, || operation(&directory, &file)).await;
                    send(reply, done.map_err(errno));
                });
            }
        }
    }
}

impl Answering {
    fn attributes(&self, of: &Attributes) -> FileAttr {
        let (uid, gid) = self.owner;
        FileAttr {
            ino: INodeNo(of.ino.0),
            size: of.size,
            blocks: of.size.div_ceil(512),
            atime: of.modified,
            mtime: of.modified,
            ctime: of.modified,
            crtime: of.modified,
            kind: file_type(of.kind),
            perm: (of.mode & 0o7777) as u16,
            nlink: if of.kind == NodeKind::Directory { 2 } else { 1 },
            uid,
            gid,
            rdev: 0,
            blksize: PAGE as u32,
            flags: 0,
        }
    }
}

fn send_empty(reply: ReplyEmpty, done: Result<(), Errno>) {
    match done {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

impl Filesystem for PageFilesystem {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Without these the kernel drops a file's pages whenever its size changes, and asks before every
        // open.
        for wish in [
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
            InitFlags::FUSE_NO_OPEN_SUPPORT,
            InitFlags::FUSE_PARALLEL_DIROPS,
        ] {
            if let Err(lacking) = config.add_capabilities(wish) {
                tracing::debug!(?lacking, "this kernel's FUSE is older; the page filesystem works without");
            }
        }
        if let Err(least) = config.set_max_background(REQUESTS_AHEAD) {
            tracing::debug!(least, "the number of requests ahead was not taken");
        }
        if let Err(largest) = config.set_max_write(LARGEST_REQUEST) {
            tracing::debug!(largest, "this kernel's FUSE takes smaller requests");
        }
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = utf8(name).map(|name| self.directory().lookup(Ino(parent.0), name));
        match found {
            Ok(Err(rustix::io::Errno::NOENT)) => {
                // Node 0 stands for "not there", which the kernel may believe for as long.
                let nothing = Attributes {
                    ino: Ino(0),
                    kind: NodeKind::File,
                    mode: 0,
                    size: 0,
                    modified: SystemTime::UNIX_EPOCH,
                };
                reply.entry(&FOR_EVER, &self.answering.attributes(&nothing), Generation(0));
            }
            Ok(found) => self.entry(reply, found),
            Err(error) => reply.error(error),
        }
    }

    fn forget(&self, _: &Request, ino: INodeNo, lookups: u64) {
        self.directory().forget(Ino(ino.0), lookups);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.directory().attributes(Ino(ino.0)) {
            Ok(attributes) => reply.attr(&FOR_EVER, &self.answering.attributes(&attributes)),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let node = Ino(ino.0);
        let (owner, group) = self.answering.owner;
        if uid.is_some_and(|uid| uid != owner) || gid.is_some_and(|gid| gid != group) {
            return reply.error(Errno::EPERM); // everything belongs to the server's user
        }
        if let Some(mode) = mode
            && let Err(error) = self.directory().set_mode(node, mode)
        {
            return reply.error(errno(error));
        }
        let answering = Arc::clone(&self.answering);
        let send = move |reply: ReplyAttr, done: Result<(), Errno>| {
            let attributes = done.and_then(|()| answering.directory.attributes(node).map_err(errno));
            match attributes {
                Ok(attributes) => reply.attr(&FOR_EVER, &answering.attributes(&attributes)),
                Err(error) => reply.error(error),
            }
        };
        match size {
            Some(size) => {
                self.answer(ino, reply, move |directory, file| directory.truncate(file, size), send);
            }
            None => send(reply, Ok(())),
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        match self.directory().symlink_target(Ino(ino.0)) {
            Ok(target) => reply.data(target.as_bytes()),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        match utf8(name) {
            Ok(name) => {
                let made = self.directory().create_directory(Ino(parent.0), name, mode & !umask);
                self.entry(reply, made);
            }
            Err(error) => reply.error(error),
        }
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let removed =
            utf8(name).and_then(|name| self.directory().remove(Ino(parent.0), name, false).map_err(errno));
        send_empty(reply, removed);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let removed =
            utf8(name).and_then(|name| self.directory().remove(Ino(parent.0), name, true).map_err(errno));
        send_empty(reply, removed);
    }

    fn symlink(&self, _: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        match (utf8(name), target.to_str()) {
            (Ok(name), Some(target)) => {
                let made = self.directory().create_symlink(Ino(parent.0), name, target);
                self.entry(reply, made);
            }
            _ => reply.error(Errno::EILSEQ),
        }
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let replace = !flags.contains(RenameFlags::RENAME_NOREPLACE);
        if flags.intersects(RenameFlags::RENAME_EXCHANGE | RenameFlags::RENAME_WHITEOUT) {
            return reply.error(Errno::EINVAL);
        }
        let done = utf8(name).and_then(|name| {
            let new_name = utf8(new_name)?;
            self.directory().rename(Ino(parent.0), name, Ino(new_parent.0), new_name, replace).map_err(errno)
        });
        send_empty(reply, done);
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::EPERM); // as on any filesystem without hard links; Postgres has not needed any since 16
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS); // means: opening needs no leave, now or ever
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        let made = utf8(name)
            .and_then(|name| self.directory().create_file(Ino(parent.0), name, mode & !umask).map_err(errno));
        match made.and_then(|file| self.directory().attributes(file.ino).map_err(errno)) {
            Ok(attributes) => {
                self.directory().remember(attributes.ino);
                let attributes = self.answering.attributes(&attributes);
                reply.created(
                    &FOR_EVER,
                    &attributes,
                    Generation(0),
                    FileHandle(0),
                    FopenFlags::FOPEN_KEEP_CACHE,
                );
            }
            Err(error) => reply.error(error),
        }
    }

    fn mknod(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _: u32,
        reply: ReplyEntry,
    ) {
        const FORMAT: u32 = 0o170_000;
        const REGULAR: u32 = 0o100_000;
        if mode & FORMAT != REGULAR {
            return reply.error(Errno::EPERM); // no sockets, pipes or devices in a data directory
        }
        let made = utf8(name)
            .and_then(|name| self.directory().create_file(Ino(parent.0), name, mode & !umask).map_err(errno));
        match made {
            Ok(file) => self.entry(reply, self.directory().attributes(file.ino)),
            Err(error) => reply.error(error),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.answer(
            ino,
            reply,
            move |directory, file| directory.read(file, offset, size as usize),
            |reply, done| match done {
                Ok(bytes) => reply.data(&bytes),
                Err(error) => reply.error(error),
            },
        );
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let written = data.len() as u32;
        let send = move |reply: ReplyWrite, done: Result<(), Errno>| match done {
            Ok(()) => reply.written(written),
            Err(error) => reply.error(error),
        };
        let file = match self.directory().file(Ino(ino.0)) {
            Ok(file) => file,
            Err(error) => return reply.error(errno(error)),
        };
        match self.directory().write(&file, offset, data) {
            Ok(()) => reply.written(written),
            Err(Stop::Failed(error)) => reply.error(errno(error)),
            // The bytes are the thread's; a write that has to wait takes a copy along.
            Err(Stop::Missing(_) | Stop::NoRoom) => {
                let data = data.to_vec();
                let operation =
                    move |directory: &DataDirectory, file: &Arc<File>| directory.write(file, offset, &data);
                self.answer(ino, reply, operation, send);
            }
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS); // nothing is held back that a close would have to bring
    }

    /// Durability comes from the keepers and the store, so there is nothing to flush; but a cache that
    /// failed says so.
    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let sound = if self.directory().has_failed() { Err(Errno::EIO) } else { Ok(()) };
        send_empty(reply, sound);
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let sound = if self.directory().has_failed() { Err(Errno::EIO) } else { Ok(()) };
        send_empty(reply, sound);
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.directory().list(Ino(ino.0)) {
            Ok(entries) => {
                let handle = self.next_listing.fetch_add(1, Ordering::Relaxed);
                self.listings.lock().insert(handle, Arc::new(entries));
                reply.opened(FileHandle(handle), FopenFlags::empty());
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readdir(&self, _: &Request, ino: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let listing = self.listings.lock().get(&handle.0).cloned();
        // rewinddir() asks for what is there by then.
        let listing = match (listing, offset) {
            (Some(_), 0) => match self.directory().list(Ino(ino.0)) {
                Ok(entries) => {
                    let entries = Arc::new(entries);
                    self.listings.lock().insert(handle.0, Arc::clone(&entries));
                    entries
                }
                Err(error) => return reply.error(errno(error)),
            },
            (Some(listing), _) => listing,
            (None, _) => return reply.error(Errno::EBADF),
        };
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        for (index, (node, kind, name)) in listing.iter().enumerate().skip(start) {
            if reply.add(INodeNo(node.0), index as u64 + 1, file_type(*kind), OsStr::new(&**name)) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.listings.lock().remove(&handle.0);
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        match rustix::fs::statvfs(&self.answering.cache_directory) {
            Ok(disk) => reply.statfs(
                disk.f_blocks,
                disk.f_bfree,
                disk.f_bavail,
                disk.f_files,
                disk.f_ffree,
                disk.f_bsize as u32,
                NAME_LIMIT as u32,
                disk.f_frsize as u32,
            ),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let end = offset.saturating_add(length);
        let zeros = mode & (FALLOC_PUNCH_HOLE | FALLOC_ZERO_RANGE) != 0;
        if mode & !(FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE | FALLOC_ZERO_RANGE) != 0 {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let operation = move |directory: &DataDirectory, file: &Arc<File>| {
            if zeros {
                directory.zero_range(file, offset, end)?;
            }
            if mode & FALLOC_KEEP_SIZE == 0 { directory.extend(file, end) } else { Ok(()) }
        };
        self.answer(ino, reply, operation, send_empty);
    }

    // The rest is answered as "no such function", which the kernel takes as leave to do without and not
    // to ask again.

    fn setxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: &[u8], _: i32, _: u32, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn lseek(&self, _: &Request, _: INodeNo, _: FileHandle, _: i64, _: i32, reply: ReplyLseek) {
        reply.error(Errno::ENOSYS);
    }

    fn copy_file_range(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: fuser::CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::ENOSYS);
    }
}
