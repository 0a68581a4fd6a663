//! The stream of WAL messages, and the positions that go back.
//!
//! One task owns the socket. It cuts what it reads into chunks of whole messages, hands them over through a channel of
//! bounded length, and keeps the server informed of the confirmed position *whatever the reader does*: a reader that
//! spends a minute in one commit neither loses the session to `wal_sender_timeout` nor lets memory grow.
//!
//! ```text
//!   server ──bytes──> task ──chunks (≤ CHUNKS, each one read or one large message)──> LogicalStream ──> Event
//!      ^               │ ^
//!      └──status───────┘ └──confirm(lsn), close── LogicalStream, Confirmer
//! ```
//!
//! Messages are slices of the chunk they came in: no copy and, with [`LogicalStream::try_next`], no await per message.
//!
//! The one rule: a position is confirmed only because the caller said so. Keepalives report how far the server has come;
//! a caller with nothing left to write should confirm that position, or an idle database holds its WAL for ever and a
//! server that shuts down waits for us.

use crate::error::{Error, Place, Result};
use crate::standby_status::standby_status;
use crate::transport::Transport;
use crate::wire::{HEADER_BYTES, MAX_MESSAGE_BYTES, Wire, broken, message_length, server_error};
use bytes::{Buf, Bytes, BytesMut};
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};
use wal_decoder::Lsn;

/// One read fills at most this; large enough that the hand-over costs nothing beside the decoding.
const READ_BYTES: usize = 256 << 10;
/// Below this the rest of a buffer is not worth another read.
const MIN_READ_BYTES: usize = 16 << 10;
/// Chunks under way: 4 MiB, or so many large messages.
const CHUNKS: usize = 16;
/// A server that takes none of our few bytes for so long is gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// The server may first finish sending a transaction; it is not worth waiting longer than this for a good end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

const DOING: &str = "streaming WAL";

/// What the stream brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// One pgoutput message.
    Wal {
        /// Where its record begins (zero for messages that stand for no record).
        start: Lsn,
        /// How far the server had read when it sent this.
        end: Lsn,
        /// The message, for `wal_decoder`.
        data: Bytes,
    },
    /// Everything relevant below `wal_end` has been sent. A requested reply was already given.
    Keepalive {
        /// How far the server has read.
        wal_end: Lsn,
        /// Whether the server asked for a reply, as it does when it wants to shut down or fears that we are gone.
        reply_requested: bool,
    },
}

/// A running stream. Dropping it closes the connection.
pub struct LogicalStream {
    chunks: mpsc::Receiver<Result<Bytes>>,
    current: Bytes,
    confirmer: Confirmer,
}

/// Confirms positions from another task than the one that reads.
#[derive(Clone)]
pub struct Confirmer {
    commands: mpsc::Sender<Command>,
    place: Place,
}

enum Command {
    Confirm(Lsn, oneshot::Sender<()>),
    Close(oneshot::Sender<Result<()>>),
}

impl Confirmer {
    /// Tells the server that everything that ends at or below `flushed` is safe, so that its WAL may go. Positions never
    /// go back: a lower one than before changes nothing. Returns once the server has been told.
    pub async fn confirm(&self, flushed: Lsn) -> Result<()> {
        let (told, when_told) = oneshot::channel();
        let ended = || Error::StreamEnded { place: self.place.name.clone() };
        self.commands.send(Command::Confirm(flushed, told)).await.map_err(|_| ended())?;
        when_told.await.map_err(|_| ended())
    }
}

impl LogicalStream {
    pub(crate) fn spawn(
        wire: Wire,
        place: Place,
        slot: String,
        from: Lsn,
        status_interval: Duration,
    ) -> LogicalStream {
        let (chunk_sender, chunks) = mpsc::channel(CHUNKS);
        let (commands, command_receiver) = mpsc::channel(CHUNKS);
        let task = StreamTask {
            transport: wire.transport,
            inbox: wire.inbox,
            place: place.clone(),
            slot,
            received: from,
            confirmed: from,
        };
        tokio::spawn(task.run(status_interval, chunk_sender, command_receiver));
        LogicalStream { chunks, current: Bytes::new(), confirmer: Confirmer { commands, place } }
    }

    /// The next event. An error is the last thing a stream says, except that it then goes on saying it has ended.
    /// Dropping the future loses nothing.
    pub async fn next(&mut self) -> Result<Event> {
        loop {
            if let Some(event) = self.try_next()? {
                return Ok(event);
            }
            match self.chunks.recv().await {
                Some(chunk) => self.current = chunk?,
                None => return Err(Error::StreamEnded { place: self.confirmer.place.name.clone() }),
            }
        }
    }

    /// The next event if one has arrived already.
    pub fn try_next(&mut self) -> Result<Option<Event>> {
        loop {
            while !self.current.is_empty() {
                let parsed = next_event(&mut self.current).map_err(|p| broken(&self.confirmer.place, p))?;
                if parsed.is_some() {
                    return Ok(parsed);
                }
            }
            match self.chunks.try_recv() {
                Ok(chunk) => self.current = chunk?,
                // An ended stream is told apart by `next`; here nothing has arrived either way.
                Err(_) => return Ok(None),
            }
        }
    }

    /// As [`Confirmer::confirm`].
    pub async fn confirm(&mut self, flushed: Lsn) -> Result<()> {
        self.confirmer.confirm(flushed).await
    }

    /// A handle that confirms from another task.
    pub fn confirmer(&self) -> Confirmer {
        self.confirmer.clone()
    }

    /// Ends the stream and the session in order, after the last confirmed position has been sent. What was not read is lost
    /// and comes again with the next stream.
    pub async fn close(self) -> Result<()> {
        let (done, when_done) = oneshot::channel();
        // A task that has already ended has nothing to close.
        if self.confirmer.commands.send(Command::Close(done)).await.is_err() {
            return Ok(());
        }
        when_done.await.unwrap_or(Ok(()))
    }
}

/// Takes the message at the front of a chunk. `None`: it was one that means nothing here (a notice, a changed setting).
fn next_event(chunk: &mut Bytes) -> std::result::Result<Option<Event>, String> {
    let total = message_length(chunk, MAX_MESSAGE_BYTES)?.filter(|&total| total <= chunk.len());
    let total = total.ok_or_else(|| "a chunk ends inside a message".to_owned())?;
    let mut message = chunk.split_to(total);
    if message.get_u8() != b'd' {
        return Ok(None);
    }
    message.advance(HEADER_BYTES - 1);
    match message.first() {
        Some(b'w') if message.len() >= 25 => {
            message.advance(1);
            let (start, end) = (Lsn(message.get_u64()), Lsn(message.get_u64()));
            message.advance(8);
            Ok(Some(Event::Wal { start, end, data: message }))
        }
        Some(b'k') if message.len() == 18 => {
            message.advance(1);
            let wal_end = Lsn(message.get_u64());
            message.advance(8);
            Ok(Some(Event::Keepalive { wal_end, reply_requested: message.get_u8() != 0 }))
        }
        kind => Err(format!("copy data of kind {kind:?} and {} bytes in a logical stream", message.len())),
    }
}

/// What the messages at the front of the inbox are.
struct Scan {
    /// Bytes of whole messages that can be handed on.
    whole: usize,
    /// A keepalive wants an answer.
    reply_requested: bool,
    /// After those bytes stands the stream's last message.
    ending: bool,
}

struct StreamTask {
    transport: Transport,
    inbox: BytesMut,
    place: Place,
    slot: String,
    /// How far the server says it has come; shown in `pg_stat_replication.write_lsn`.
    received: Lsn,
    confirmed: Lsn,
}

impl StreamTask {
    async fn run(
        mut self,
        status_interval: Duration,
        chunks: mpsc::Sender<Result<Bytes>>,
        mut commands: mpsc::Receiver<Command>,
    ) {
        let mut ticks = interval(status_interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        match self.pump(&chunks, &mut commands, &mut ticks).await {
            // The reader is gone: nobody is left to tell.
            Ok(None) => {}
            Ok(Some(done)) => {
                let result = match timeout(CLOSE_TIMEOUT, self.say_goodbye()).await {
                    Ok(result) => result,
                    Err(_) => Err(Error::Timeout {
                        place: self.place.name.clone(),
                        doing: "ending the stream",
                        after: CLOSE_TIMEOUT,
                    }),
                };
                // Whoever asked may have stopped waiting.
                let _ = done.send(result);
            }
            Err(error) => {
                // Whoever confirms or closes must not wait while the reader makes room for the error.
                drop(commands);
                // Fails only when the reader is gone, and then nobody is left to tell.
                let _ = chunks.send(Err(error)).await;
            }
        }
    }

    /// Moves bytes until the stream fails, the reader goes (`None`) or asks for a good end (`Some`).
    async fn pump(
        &mut self,
        chunks: &mpsc::Sender<Result<Bytes>>,
        commands: &mut mpsc::Receiver<Command>,
        ticks: &mut Interval,
    ) -> Result<Option<oneshot::Sender<Result<()>>>> {
        let mut waiting: Option<Bytes> = None;
        let mut ending = false;
        loop {
            if waiting.is_none() {
                let scan = self.scan()?;
                if scan.reply_requested {
                    self.send_status().await?;
                }
                if scan.whole > 0 {
                    waiting = Some(self.inbox.split_to(scan.whole).freeze());
                } else if scan.ending {
                    return Err(self.last_words());
                } else {
                    self.make_room()?;
                }
                ending = scan.ending;
            }
            tokio::select! {
                biased;
                command = commands.recv() => match command {
                    None => return Ok(None),
                    Some(Command::Close(done)) => return Ok(Some(done)),
                    Some(Command::Confirm(lsn, told)) => {
                        self.confirmed = self.confirmed.max(lsn);
                        self.send_status().await?;
                        // Whoever confirmed may have stopped waiting; the position counts all the same.
                        let _ = told.send(());
                    }
                },
                _ = ticks.tick() => self.send_status().await?,
                permit = chunks.reserve(), if waiting.is_some() => match (permit, waiting.take()) {
                    (Ok(permit), Some(chunk)) => permit.send(Ok(chunk)),
                    _ => return Ok(None),
                },
                read = self.transport.read_buf(&mut self.inbox), if waiting.is_none() && !ending => match read {
                    Ok(0) => return Err(self.lost(io::ErrorKind::UnexpectedEof.into())),
                    Ok(_) => {}
                    Err(source) => return Err(self.lost(source)),
                },
                () = chunks.closed() => return Ok(None),
            }
        }
    }

    /// Walks over the headers of what has arrived.
    fn scan(&mut self) -> Result<Scan> {
        let mut scan = Scan { whole: 0, reply_requested: false, ending: false };
        loop {
            let rest = self.inbox.get(scan.whole..).unwrap_or_default();
            let total =
                message_length(rest, MAX_MESSAGE_BYTES).map_err(|problem| broken(&self.place, problem))?;
            let Some(message) = total.and_then(|total| rest.get(..total)) else { return Ok(scan) };
            match message {
                [b'd', _, _, _, _, b'k', position @ .., reply] => {
                    scan.reply_requested |= *reply != 0;
                    self.received = self.received.max(leading_lsn(position));
                }
                [b'd', _, _, _, _, b'w', _, _, _, _, _, _, _, _, position @ ..] => {
                    self.received = self.received.max(leading_lsn(position));
                }
                // Everything before CopyDone, CommandComplete or an error is handed on first.
                [b'c' | b'C' | b'E', ..] => {
                    scan.ending = true;
                    return Ok(scan);
                }
                _ => {}
            }
            scan.whole += message.len();
        }
    }

    /// Room for the next read. A large message grows its buffer as it arrives, not on its header's word.
    fn make_room(&mut self) -> Result<()> {
        if self.inbox.capacity() - self.inbox.len() < MIN_READ_BYTES {
            let total = message_length(&self.inbox, MAX_MESSAGE_BYTES).map_err(|p| broken(&self.place, p))?;
            let missing = total.unwrap_or(0).saturating_sub(self.inbox.len());
            self.inbox.reserve(missing.clamp(READ_BYTES, self.inbox.len().max(READ_BYTES)));
        }
        Ok(())
    }

    /// What the message at the front, the last one, means.
    fn last_words(&mut self) -> Error {
        match Message::parse(&mut self.inbox) {
            Ok(Some(Message::ErrorResponse(body))) => {
                let source = server_error(body.fields());
                match source.code.as_str() {
                    // undefined_object: of what the stream looks up by name, only publications can go while it runs.
                    "42704" => {
                        Error::PublicationMissing { place: self.place.name.clone(), source: Box::new(source) }
                    }
                    _ => Error::from_slot_command(&self.place, DOING, &self.slot, source),
                }
            }
            _ => Error::StreamEnded { place: self.place.name.clone() },
        }
    }

    async fn send_status(&mut self) -> Result<()> {
        let status = standby_status(self.received.max(self.confirmed), self.confirmed);
        self.write(&status.map_err(|source| self.lost(source))?).await
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let transport = &mut self.transport;
        let write = async {
            transport.write_all(bytes).await?;
            transport.flush().await
        };
        match timeout(WRITE_TIMEOUT, write).await {
            Ok(written) => written.map_err(|source| self.lost(source)),
            Err(_) => {
                Err(Error::Timeout { place: self.place.name.clone(), doing: DOING, after: WRITE_TIMEOUT })
            }
        }
    }

    /// CopyDone, then whatever was still on its way, until the server is ready for a command it will not get.
    async fn say_goodbye(&mut self) -> Result<()> {
        self.send_status().await?;
        let mut message = BytesMut::new();
        frontend::copy_done(&mut message);
        self.write(&message).await?;
        loop {
            match message_length(&self.inbox, MAX_MESSAGE_BYTES).map_err(|p| broken(&self.place, p))? {
                Some(total) if self.inbox.len() >= total => match self.inbox.first() {
                    Some(b'Z') => break,
                    Some(b'E') => return Err(self.last_words()),
                    _ => self.inbox.advance(total),
                },
                _ => {
                    self.make_room()?;
                    if self.transport.read_buf(&mut self.inbox).await.map_err(|source| self.lost(source))?
                        == 0
                    {
                        return Err(self.lost(io::ErrorKind::UnexpectedEof.into()));
                    }
                }
            }
        }
        message.clear();
        frontend::terminate(&mut message);
        self.write(&message).await?;
        self.transport.shutdown().await.map_err(|source| self.lost(source))
    }

    fn lost(&self, source: io::Error) -> Error {
        Error::ConnectionLost { place: self.place.name.clone(), doing: DOING, source }
    }
}

fn leading_lsn(bytes: &[u8]) -> Lsn {
    bytes.first_chunk().map_or(Lsn::ZERO, |bytes| Lsn(u64::from_be_bytes(*bytes)))
}
