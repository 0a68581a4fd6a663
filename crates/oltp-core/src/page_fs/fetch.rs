//! Pages that are not here: from the store into the cache, one range read a miss.
//!
//! A FUSE thread never waits for the store. A request that needs a page from there becomes a task. A page
//! that is on its way already is waited for, not fetched again; a file that is read forwards has more and
//! more brought along.
//!
//! What is fetched may be old by the time it arrives, when a capture has replaced the page in between: the
//! generation of the view tells, and the page is fetched again.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use rustix::io::Errno;
use tokio::sync::watch;

use super::data_directory::DataDirectory;
use super::file::{File, Stop};
use super::page_cache::PAGE;
use crate::Result;
use crate::ids::{FileId, PageKey};
use crate::page_store::{ManifestView, PageStore, WINDOW_BLOCKS};

/// Readahead stops growing here (2 MiB): beyond, the page that was asked for waits for the others.
const READAHEAD_PAGES: u32 = 256;

/// A request of 1 MiB has 128 pages, each of which may have to be brought on its own, and again when it
/// was evicted or replaced before it was used. More attempts than this mean that the cache cannot hold
/// what one request needs.
const ATTEMPTS: usize = 1000;

/// How long a writer waits for a capture to make room before it is told that the disk is full.
const ROOM_LIMIT: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Fetcher {
    store: PageStore,
    view: RwLock<Arc<ManifestView>>,
    generation: AtomicU64,
    /// What is on its way, by file.
    flights: Mutex<HashMap<FileId, Vec<Flight>>>,
    /// Counts the captures that came through: each may have made room.
    settled: watch::Sender<u64>,
    /// Range reads so far.
    fetches: AtomicU64,
}

/// Pages of a file that are on their way.
#[derive(Debug)]
struct Flight {
    /// The page that was missed.
    block: u32,
    /// The pages that are asked for.
    pages: Range<u32>,
    /// Goes away with the flight.
    landed: watch::Sender<()>,
}

/// Takes the flight off the list, whatever became of it.
struct Arrival<'a> {
    fetcher: &'a Fetcher,
    file: FileId,
    block: u32,
}

impl Drop for Arrival<'_> {
    fn drop(&mut self) {
        let mut flights = self.fetcher.flights.lock();
        if let Some(of_file) = flights.get_mut(&self.file) {
            of_file.retain(|flight| flight.block != self.block);
            if of_file.is_empty() {
                flights.remove(&self.file);
            }
        }
    }
}

impl Fetcher {
    pub(super) fn new(store: PageStore, view: Arc<ManifestView>) -> Fetcher {
        Fetcher {
            store,
            view: RwLock::new(view),
            generation: AtomicU64::new(0),
            flights: Mutex::default(),
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
                Err(Stop::NoRoom) if directory.evict_thoroughly(READAHEAD_PAGES as usize) > 0 => {}
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

    /// Notes that `block` and those after it are on their way, and says how many; or gives what to wait
    /// for when it is under way already.
    fn depart(&self, file: &File, block: u32) -> Result<u32, watch::Receiver<()>> {
        let mut flights = self.flights.lock();
        let of_file = flights.entry(file.id).or_default();
        if let Some(flight) = of_file.iter().find(|flight| flight.pages.contains(&block)) {
            return Err(flight.landed.subscribe());
        }
        let ahead = file.readahead(block, READAHEAD_PAGES);
        let first = block / WINDOW_BLOCKS * WINDOW_BLOCKS;
        let end = block.saturating_add(ahead);
        of_file.push(Flight { block, pages: first..end, landed: watch::Sender::new(()) });
        Ok(ahead)
    }

    /// Brings one page and its neighbours into the cache.
    async fn bring(&self, directory: &DataDirectory, file: &Arc<File>, block: u32) -> Result<(), Stop> {
        let ahead = match self.depart(file, block) {
            Ok(ahead) => ahead,
            Err(mut landed) => {
                // An error means that it has landed: the other end is gone.
                let _ = landed.changed().await;
                return Ok(());
            }
        };
        let _arrival = Arrival { fetcher: self, file: file.id, block };
        if file.is_here(block) {
            return Ok(()); // it landed while we were on our way here
        }
        let (view, generation) = {
            let view = self.view.read();
            (Arc::clone(&view), self.generation.load(Ordering::Acquire))
        };
        let key = PageKey { file: file.id, block };
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
