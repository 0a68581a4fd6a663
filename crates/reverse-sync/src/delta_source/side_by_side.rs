//! Files read side by side: a few tasks take them from one queue and pass on what they read, in no order.

use crate::error::{Result, ReverseSyncError};
use futures::stream::{self, BoxStream, Stream, StreamExt};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Files read at a time: enough to keep a store and a few cores busy, each with a batch or two in memory.
const READERS: usize = 4;

/// Batches that wait for their taker.
const WAITING: usize = 4;

/// What `read` makes of each file, in no order, until all are read or one is an error. `table` is for the message when a
/// task comes down.
pub(crate) fn side_by_side<F, T, S>(
    table: String,
    files: impl IntoIterator<Item = F>,
    read: impl Fn(F) -> S + Clone + Send + 'static,
) -> BoxStream<'static, Result<T>>
where
    F: Send + 'static,
    T: Send + 'static,
    S: Stream<Item = Result<T>> + Send + 'static,
{
    let queue = Arc::new(Mutex::new(files.into_iter().collect::<VecDeque<F>>()));
    let (sender, receiver) = mpsc::channel(WAITING);
    let mut readers = JoinSet::new();
    for _ in 0..READERS {
        let (queue, read, sender) = (Arc::clone(&queue), read.clone(), sender.clone());
        readers.spawn(async move {
            let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            while let Some(file) = next() {
                let mut batches = std::pin::pin!(read(file));
                while let Some(batch) = batches.next().await {
                    let is_end = batch.is_err();
                    if sender.send(batch).await.is_err() || is_end {
                        return;
                    }
                }
            }
        });
    }
    drop(sender);
    received(table, readers, receiver)
}

/// What tasks send, until all are done. Dropping the stream ends them; one that came down is an error at the end.
pub(crate) fn received<T: Send + 'static>(
    table: String,
    tasks: JoinSet<()>,
    receiver: mpsc::Receiver<Result<T>>,
) -> BoxStream<'static, Result<T>> {
    stream::unfold(Some((tasks, receiver)), move |state| next_received(table.clone(), state)).boxed()
}

type Receiving<T> = Option<(JoinSet<()>, mpsc::Receiver<Result<T>>)>;

async fn next_received<T: Send + 'static>(
    table: String,
    state: Receiving<T>,
) -> Option<(Result<T>, Receiving<T>)> {
    let (mut tasks, mut receiver) = state?;
    if let Some(item) = receiver.recv().await {
        let rest = item.is_ok().then_some((tasks, receiver));
        return Some((item, rest));
    }
    while let Some(ended) = tasks.join_next().await {
        if let Err(source) = ended {
            return Some((Err(ReverseSyncError::Reader { table, source }), None));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::TryStreamExt;

    #[tokio::test]
    async fn everything_of_every_file_comes_and_an_error_ends_it() {
        let twice = |file: u32| stream::iter([Ok(file), Ok(file)]);
        let read: Vec<u32> = side_by_side("t".to_owned(), 0..100, twice).try_collect().await.unwrap();
        assert_eq!((read.len(), read.iter().sum::<u32>()), (200, 9900));
        let failing = |file: u32| {
            let missing = ReverseSyncError::NoTable { table: file.to_string() };
            stream::iter([if file == 50 { Err(missing) } else { Ok(file) }])
        };
        let error = side_by_side("t".to_owned(), 0..100, failing).try_collect::<Vec<_>>().await.unwrap_err();
        assert!(matches!(&error, ReverseSyncError::NoTable { table } if table == "50"), "{error}");
    }
}
