//! Pages that are not here: from the store into the cache, one range read a miss.
//!
//! A FUSE thread never waits for the store. A request that needs a page from there becomes a task; requests for
//! the same window of 16 pages pass one at a time, so the second finds what the first one brought. A file that
//! is read forwards has more and more brought along.
//!
//! What is fetched may be old by the time it arrives, when a capture has replaced the page in between: the
//! generation of the view tells, and the page is fetched again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::RwLock;
use rustix::io::Errno;
use tokio::sync::{Mutex, watch};

use super::data_directory::DataDirectory;
use super::file::{File, Stop};
use super::page_cache::PAGE;
use crate::Result;
use crate::ids::PageKey;
use crate::page_store::{ManifestView, PageStore, WINDOW_BLOCKS};

/// Windows that can be on their way at once; two that fall together merely wait for each other.
const LANES: usize = 64;

/// Readahead stops growing here (2 MiB): beyond, the page that was asked for waits for the others.
const READAHEAD_PAGES: u32 = 256;

/// A request is tried again when what it brought was evicted or replaced before it was used. More often than this
/// in a row means that the cache cannot hold what a single request needs.
const ATTEMPTS: usize = 100;

/// How long a writer waits for a capture to make room before it is told that the disk is full.
const ROOM_LIMIT: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Fetcher {
    store: PageStore,
    view: RwLock<Arc<ManifestView>>,
    generation: AtomicU64,
    lanes: [Mutex<()>; LANES],
    /// Counts the captures that came through: each may have made room.
    settled: watch::Sender<u64>,
    /// Range reads so far.
    fetches: AtomicU64,
}

impl Fetcher {
    pub(super) fn new(store: PageStore, view: Arc<ManifestView>) -> Fetcher {
        Fetcher {
            store,
            view: RwLock::new(view),
            generation: AtomicU64::new(0),
            lanes: [const { Mutex::const_new(()) }; LANES],
            settled: watch::Sender::new(0),
            fetches: AtomicU64::new(0),
        }
    }

    pub(super) fn store(&self) -> &PageStore {
        &self.store
    }

    pub(super) fn view(&self) -> Arc<ManifestView> {
        Arc::clone(&self.view.read())
    }

    /// Reads from another manifest from now on: before any page of a capture may be evicted.
    pub(super) fn replace_view(&self, view: Arc<ManifestView>) {
        let mut current = self.view.write();
        *current = view;
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// A capture is through, and its pages can be evicted.
    pub(super) fn settled(&self) {
        self.settled.send_modify(|count| *count += 1);
    }

    pub(super) fn fetches(&self) -> u64 {
        self.fetches.load(Ordering::Relaxed)
    }

    /// Does `operation` again and again, each time after bringing what it lacked.
    pub(super) async fn complete<T>(
        &self,
        directory: &DataDirectory,
        file: &Arc<File>,
        mut operation: impl FnMut() -> Result<T, Stop>,
    ) -> Result<T, Errno> {
        let mut settled = self.settled.subscribe();
        for _ in 0..ATTEMPTS {
            let stop = match operation() {
                Ok(done) => return Ok(done),
                Err(Stop::Failed(errno)) => return Err(errno),
                Err(Stop::Missing(block)) => self.bring(directory, file, block).await,
                Err(no_room @ Stop::NoRoom) => Err(no_room),
            };
            match stop {
                Err(Stop::Failed(errno)) => return Err(errno),
                Err(Stop::NoRoom) => {
                    let room = tokio::time::timeout(ROOM_LIMIT, settled.changed()).await;
                    if !matches!(room, Ok(Ok(()))) {
                        tracing::error!(
                            limit = ?ROOM_LIMIT,
                            "the page cache is full of pages that could not be captured; look at the store, or raise \
                             core.cache"
                        );
                        return Err(Errno::NOSPC);
                    }
                }
                _ => {}
            }
        }
        tracing::error!(file = %file.id, "the page cache is too small for this request; raise core.cache");
        Err(Errno::NOMEM)
    }

    /// Brings one page and its neighbours into the cache.
    async fn bring(&self, directory: &DataDirectory, file: &Arc<File>, block: u32) -> Result<(), Stop> {
        let window = u64::from(block / WINDOW_BLOCKS);
        let lane = file.id.0.wrapping_mul(31).wrapping_add(window) % LANES as u64;
        let _lane = match self.lanes.get(lane as usize) {
            Some(lane) => Some(lane.lock().await),
            None => None,
        };
        if file.is_here(block) {
            return Ok(());
        }
        let (view, generation) = {
            let view = self.view.read();
            (Arc::clone(&view), self.generation.load(Ordering::Acquire))
        };
        let key = PageKey { file: file.id, block };
        let ahead = file.readahead(block, READAHEAD_PAGES);
        self.fetches.fetch_add(1, Ordering::Relaxed);
        let pages = self.store.read_run(&view, key, ahead).await.map_err(|error| {
            let error: &(dyn std::error::Error + 'static) = &error;
            tracing::error!(error, %key, "a page could not be fetched");
            Stop::Failed(Errno::IO)
        })?;
        directory.make_room(pages.len() + 1);
        let current = || self.generation.load(Ordering::Acquire) == generation;
        for (block, page) in &pages {
            file.keep_copy(&directory.cache, *block, page.bytes(), current)?;
        }
        if !pages.iter().any(|(found, _)| *found == block) {
            file.keep_copy(&directory.cache, block, &[0; PAGE], current)?;
        }
        Ok(())
    }
}
