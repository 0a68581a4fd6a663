//! What people ask of running syncs: pause, resume, resync, verify.
//!
//! The API puts a request down; the sync of its database takes it up between two messages of its stream, or the serving of
//! its table between two versions; `status` (or the verification's report) shows what comes of it. A request made while the sync is interrupted
//! waits; one that the daemon did not live to take up was only ever promised, not done.

use crate::verification::Verification;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Requests that may wait for one recipient: more than anyone asks by hand.
const MOST_WAITING: usize = 256;

/// What is asked of one table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableRequest {
    /// Stay at the present version.
    Pause {
        /// The slot keeps the WAL meanwhile; otherwise the table is mended by comparing when it resumes.
        hold: bool,
    },
    /// Go on after a pause.
    Resume,
    /// Become equal to the source again.
    Resync,
}

/// Whom a request is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Recipient {
    /// The sync of a database into the lake.
    Source {
        /// The database's name in the configuration.
        database: String,
    },
    /// The serving of one table.
    Served {
        /// The database's name in the configuration.
        database: String,
        /// `schema.table`.
        table: String,
    },
}

/// What is asked of a recipient.
#[derive(Debug)]
pub enum Request {
    /// Something for one table.
    Table {
        /// `schema.table`.
        table: String,
        /// What.
        request: TableRequest,
    },
    /// Compare tables with their source.
    Verify(Verification),
}

impl Request {
    fn of_table(&self) -> Option<(&str, TableRequest)> {
        match self {
            Request::Table { table, request } => Some((table, *request)),
            Request::Verify(_) => None,
        }
    }
}

/// Too much is asked at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{MOST_WAITING} requests are waiting there already: try again once its sync goes on")]
pub struct TooMany;

/// Where requests are put down and taken up. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub struct Requests {
    waiting: Arc<Mutex<BTreeMap<Recipient, Queue>>>,
}

#[derive(Debug, Default)]
struct Queue {
    requests: VecDeque<Request>,
    /// The one that was taken up last, until its recipient asks for the next.
    taken: Option<(String, TableRequest)>,
    arrived: Arc<Notify>,
}

impl Requests {
    /// Asks something of a recipient.
    pub fn put(&self, recipient: &Recipient, request: Request) -> Result<(), TooMany> {
        let mut waiting = self.waiting();
        let queue = waiting.entry(recipient.clone()).or_default();
        if queue.requests.len() >= MOST_WAITING {
            return Err(TooMany);
        }
        queue.requests.push_back(request);
        queue.arrived.notify_one();
        Ok(())
    }

    /// What was asked last of a table, if it waits or is being done: the status shows nothing of it yet.
    pub fn last_asked(&self, recipient: &Recipient, table: &str) -> Option<TableRequest> {
        let waiting = self.waiting();
        let queue = waiting.get(recipient)?;
        let taken = queue.taken.iter().map(|(of, request)| (of.as_str(), *request));
        let mut all = taken.chain(queue.requests.iter().filter_map(Request::of_table));
        all.rfind(|(of, _)| *of == table).map(|(_, request)| request)
    }

    /// The next request for a recipient, who is done with the one before. Dropping the future loses none.
    pub async fn next(&self, recipient: &Recipient) -> Request {
        loop {
            let arrived = {
                let mut waiting = self.waiting();
                let queue = waiting.entry(recipient.clone()).or_default();
                queue.taken = None;
                if let Some(request) = queue.requests.pop_front() {
                    queue.taken = request.of_table().map(|(table, request)| (table.to_owned(), request));
                    return request;
                }
                queue.arrived.clone()
            };
            arrived.notified().await;
        }
    }

    fn waiting(&self) -> MutexGuard<'_, BTreeMap<Recipient, Queue>> {
        // Whoever panicked with the lock held has moved whole requests.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resync(table: &str) -> Request {
        Request::Table { table: table.to_owned(), request: TableRequest::Resync }
    }

    fn source(database: &str) -> Recipient {
        Recipient::Source { database: database.to_owned() }
    }

    fn table(request: Request) -> String {
        match request {
            Request::Table { table, .. } => table,
            Request::Verify(_) => String::new(),
        }
    }

    #[tokio::test]
    async fn requests_arrive_in_order_at_their_recipient_and_wait_for_it() {
        let requests = Requests::default();
        let (shop, crm) = (&source("shop"), &source("crm"));
        requests.put(shop, resync("a")).unwrap();
        requests.put(crm, resync("b")).unwrap();
        requests.put(shop, resync("c")).unwrap();
        assert_eq!(table(requests.next(shop).await), "a");
        assert_eq!(table(requests.next(shop).await), "c");
        let (later, waiting) = (requests.clone(), requests.next(shop));
        let put = async { later.put(shop, resync("d")) };
        let (request, put) = tokio::join!(waiting, put);
        assert_eq!((table(request), put), ("d".to_owned(), Ok(())));
        assert_eq!(table(requests.next(crm).await), "b");
    }

    #[tokio::test]
    async fn what_was_asked_last_is_known_until_it_is_done() {
        let (requests, shop) = (Requests::default(), &source("shop"));
        let pause = TableRequest::Pause { hold: true };
        let asked = |table: &str| requests.last_asked(shop, table);
        requests.put(shop, resync("a")).unwrap();
        requests.put(shop, Request::Table { table: "a".to_owned(), request: pause }).unwrap();
        requests.put(shop, resync("b")).unwrap();
        assert_eq!((asked("a"), asked("b"), asked("c")), (Some(pause), Some(TableRequest::Resync), None));
        requests.next(shop).await;
        requests.next(shop).await;
        assert_eq!(asked("a"), Some(pause), "it is being done");
        requests.next(shop).await;
        assert_eq!((asked("a"), asked("b")), (None, Some(TableRequest::Resync)));
    }

    #[test]
    fn more_than_anyone_asks_is_refused() {
        let requests = Requests::default();
        for _ in 0..MOST_WAITING {
            requests.put(&source("shop"), resync("a")).unwrap();
        }
        assert_eq!(requests.put(&source("shop"), resync("a")), Err(TooMany));
        assert_eq!(requests.put(&source("crm"), resync("a")), Ok(()));
        let served = Recipient::Served { database: "shop".into(), table: "a".into() };
        assert_eq!(requests.put(&served, resync("a")), Ok(()));
    }
}
