//! The logs of a keeper that are open.
//!
//! Each is open once, however many connections ask for it, behind a lock that is held while the disk is waited for. It
//! stays open for a while when they have left: an election asks five times, on as many connections, and to open a log is
//! to read its last segment through.
//!
//! The invariant: **of one folder there is one [`KeeperLog`]**. Two would each believe their own end of it.

use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::watch;

use super::keeper_log::{KeeperLog, Refusal};
use super::log_name::LogName;
use crate::ids::Term;
use crate::{CoreError, Result};

/// Logs that stay open though nobody writes them: a file handle each.
const KEPT_OPEN: usize = 64;

/// The open logs below a keeper's directory.
pub(super) struct OpenLogs {
    directory: PathBuf,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    by_name: HashMap<LogName, Weak<OpenLog>>,
    lately: VecDeque<Arc<OpenLog>>,
}

/// A log, and what it has promised, for those who wait for that to change.
pub(super) struct OpenLog {
    log: Mutex<KeeperLog>,
    pub(super) promised: watch::Sender<Term>,
    /// Something failed half-way: what is on the disk is read again once nobody has it open.
    failed: AtomicBool,
}

impl OpenLogs {
    /// None is open yet.
    pub(super) fn below(directory: &Path) -> OpenLogs {
        OpenLogs { directory: directory.to_owned(), known: Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The log of that name, which is opened when it is not.
    ///
    /// # Errors
    /// As [`KeeperLog::open`].
    pub(super) fn open(&self, name: &LogName) -> Result<Arc<OpenLog>> {
        let mut known = self.known();
        known.lately.retain(|open| open.is_sound());
        if let Some(open) = known.by_name.get(name).and_then(Weak::upgrade) {
            return Ok(open);
        }
        let log = KeeperLog::open(&name.directory(&self.directory))?;
        let promised = watch::Sender::new(log.promised());
        let open = Arc::new(OpenLog { log: Mutex::new(log), promised, failed: AtomicBool::new(false) });
        if known.lately.len() == KEPT_OPEN {
            known.lately.pop_front();
        }
        known.lately.push_back(Arc::clone(&open));
        known.by_name.retain(|_, open| open.strong_count() > 0);
        known.by_name.insert(name.clone(), Arc::downgrade(&open));
        Ok(open)
    }

    /// Removes a log. A proposer that writes it still has it open, and loses what it writes from here on.
    ///
    /// # Errors
    /// The disk refuses.
    pub(super) fn delete(&self, name: &LogName) -> Result<()> {
        let mut known = self.known();
        if let Some(open) = known.by_name.remove(name).and_then(|open| open.upgrade()) {
            known.lately.retain(|other| !Arc::ptr_eq(other, &open));
        }
        let directory = name.directory(&self.directory);
        match std::fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(CoreError::io("remove the log", &directory)(error))
            }
            _ => Ok(()),
        }
    }
}

impl OpenLog {
    /// Works on the log, on this thread.
    ///
    /// # Errors
    /// Those of `work`.
    pub(super) fn on_disk<T>(
        &self,
        work: impl FnOnce(&mut KeeperLog) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        // A thread that died with the lock left the log as it was after its last answer, or not yet answered.
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let done = work(&mut log);
        let promised = log.promised();
        self.promised.send_if_modified(|known| std::mem::replace(known, promised) != promised);
        if matches!(done, Err(Refusal::Failed { .. })) {
            self.failed.store(true, Ordering::Relaxed);
        }
        done
    }

    fn is_sound(&self) -> bool {
        !self.failed.load(Ordering::Relaxed) && !self.log.is_poisoned()
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::ids::{BranchId, ProjectName};

    fn name() -> LogName {
        LogName { project: ProjectName::new("shop").unwrap(), branch: BranchId::random() }
    }

    #[test]
    fn a_log_stays_open_between_two_connections_and_is_read_again_after_a_failure() {
        let folder = tempfile::tempdir().unwrap();
        let (logs, name) = (OpenLogs::below(folder.path()), name());
        let first = Arc::downgrade(&logs.open(&name).unwrap());
        let open = logs.open(&name).unwrap();
        assert!(Weak::ptr_eq(&first, &Arc::downgrade(&open)));
        let (term, candidate) = (Term(3), Uuid::new_v4());
        open.on_disk(|log| log.promise(term, candidate)).unwrap();
        assert_eq!(*open.promised.borrow(), term);
        // A lower term is refused, which is nothing that failed.
        open.on_disk(|log| log.promise(Term(2), candidate)).unwrap_err();
        assert!(open.is_sound());

        let full = || Refusal::Failed { problem: "the disk is full".to_owned() };
        open.on_disk(|_| Err::<(), Refusal>(full())).unwrap_err();
        assert!(Arc::ptr_eq(&open, &logs.open(&name).unwrap()), "somebody still has it open");
        drop(open);
        let again = logs.open(&name).unwrap();
        assert!(first.upgrade().is_none());
        assert_eq!(again.on_disk(|log| Ok(log.promised())), Ok(term));
    }

    #[test]
    fn only_so_many_logs_stay_open_and_a_deleted_one_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let logs = OpenLogs::below(folder.path());
        let names: Vec<LogName> = (0..=KEPT_OPEN).map(|_| name()).collect();
        for name in &names {
            drop(logs.open(name).unwrap());
        }
        let is_open =
            |name: &LogName| logs.known().by_name.get(name).is_some_and(|open| open.strong_count() > 0);
        assert_eq!(names.iter().filter(|name| is_open(name)).count(), KEPT_OPEN);
        let last = names.last().unwrap();
        logs.open(last).unwrap().on_disk(|log| log.promise(Term(1), Uuid::new_v4())).unwrap();
        logs.delete(last).unwrap();
        assert!(!is_open(last));
        assert_eq!(logs.open(last).unwrap().on_disk(|log| Ok(log.promised())), Ok(Term(0)));
    }
}
