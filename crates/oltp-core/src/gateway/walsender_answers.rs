//! What a walsender has answered: whether it has answered everything, and what it calls itself.
//!
//! Any statement can change the `application_name` of its session, in ways that no look at its text finds out. The
//! server reports the change (`GUC_REPORT`), at the latest before its next ReadyForQuery. So once every query has had its
//! ReadyForQuery, the name that was reported last is the name.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::message_frames::MessageFrames;
use super::replication_guard::is_reserved;

const READY_FOR_QUERY: u8 = b'Z';
const PARAMETER_STATUS: u8 = b'S';

/// Room for `application_name`, its zero, and enough of a value to know whether it is reserved.
const PARAMETER_LIMIT: usize = 64;
const NAME: &[u8] = b"application_name\0";

/// What the guard of the other direction looks at.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    queries: AtomicU64,
    reserved: AtomicBool,
}

impl Answers {
    /// How many queries have been answered to their end since the session was ready.
    pub(crate) fn queries(&self) -> u64 {
        self.queries.load(Ordering::Acquire)
    }

    /// Whether the session has taken a name that is ours.
    pub(crate) fn has_reserved_name(&self) -> bool {
        self.reserved.load(Ordering::Acquire)
    }
}

/// Follows what the server says, from the moment the session is ready.
#[derive(Debug)]
pub(crate) struct AnswerWatch {
    frames: MessageFrames,
    answers: Arc<Answers>,
}

impl AnswerWatch {
    pub(crate) fn new(answers: Arc<Answers>) -> AnswerWatch {
        AnswerWatch { frames: MessageFrames::default(), answers }
    }

    /// Looks at the next bytes, before the client gets them: what it does upon them comes later.
    pub(crate) fn watch(&mut self, mut bytes: &[u8]) {
        let room = |tag| if tag == PARAMETER_STATUS { PARAMETER_LIMIT } else { 0 };
        while let Some((tag, body)) = self.frames.next(&mut bytes, room) {
            match tag {
                READY_FOR_QUERY => {
                    self.answers.queries.fetch_add(1, Ordering::Release);
                }
                PARAMETER_STATUS => {
                    if let Some(name) = body.strip_prefix(NAME) {
                        self.answers.reserved.store(is_reserved(name), Ordering::Release);
                    }
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
        [&[tag], length.as_slice(), body].concat()
    }

    #[test]
    fn the_name_reported_last_counts_and_so_does_every_ready_for_query() {
        let answers = Arc::new(Answers::default());
        let mut watch = AnswerWatch::new(Arc::clone(&answers));
        watch.watch(&message(PARAMETER_STATUS, b"TimeZone\0tidewater\0"));
        assert!(!answers.has_reserved_name());
        let taken = message(PARAMETER_STATUS, b"application_name\0Tidewater_keeper\0");
        for piece in taken.chunks(3) {
            watch.watch(piece);
        }
        assert!(answers.has_reserved_name());
        assert_eq!(answers.queries(), 0);
        watch.watch(&message(READY_FOR_QUERY, b"I"));
        watch.watch(&message(PARAMETER_STATUS, b"application_name\0psql\0"));
        assert!(!answers.has_reserved_name());
        assert_eq!(answers.queries(), 1);
    }
}
