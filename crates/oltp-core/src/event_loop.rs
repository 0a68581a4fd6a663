//! Threads with an event loop of their own, for small work that many wait for.
//!
//! On the shared runtime a socket that becomes readable is seen by one thread, and its task may run on another, which
//! has to be woken for it. For a commit's few hundred bytes, or a session's, that hand-over costs more than the work, and
//! on a busy machine every woken thread queues for a processor. A task here is run by the thread that sees its socket.
//!
//! What takes long, or waits for a disk, belongs on the shared runtime, unless the thread has nothing else to serve.

use std::io;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio_util::sync::{CancellationToken, DropGuard};

/// A thread that runs tasks. Dropping this ends them, wherever they wait.
#[derive(Debug)]
pub(crate) struct EventLoop {
    handle: Handle,
    _end: DropGuard,
}

impl EventLoop {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system gives no further thread, or no file handle for it.
    pub(crate) fn start(name: &'static str) -> io::Result<EventLoop> {
        let runtime = runtime()?;
        let handle = runtime.handle().clone();
        let end = CancellationToken::new();
        let ended = end.clone().cancelled_owned();
        std::thread::Builder::new().name(name.to_owned()).spawn(move || runtime.block_on(ended))?;
        Ok(EventLoop { handle, _end: end.drop_guard() })
    }

    /// Where to spawn.
    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }
}

/// The event loop of the thread that runs it.
pub(crate) fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn the_tasks_of_a_loop_run_on_one_thread_and_end_with_it() {
        let events = EventLoop::start("test").unwrap();
        let thread = || async { std::thread::current().id() };
        let first = events.handle().spawn(thread()).await.unwrap();
        assert_eq!(first, events.handle().spawn(thread()).await.unwrap());
        assert_ne!(first, std::thread::current().id());

        let waiting = events.handle().spawn(std::future::pending::<()>());
        drop(events);
        let ended = tokio::time::timeout(Duration::from_secs(60), waiting).await;
        assert!(ended.expect("a task ends with its loop").unwrap_err().is_cancelled());
    }
}
