//! Messages of the Postgres protocol in a stream of bytes, however they are cut.
//!
//! ```text
//!   tag (1 byte) │ length (4 bytes, itself included) │ body
//! ```
//!
//! Of a body only the beginning is kept, and only where it is asked for: what is followed costs no more memory than that.

/// What the server's scanners skip; one byte more than Rust's ASCII whitespace.
pub(crate) fn is_space(byte: &u8) -> bool {
    byte.is_ascii_whitespace() || *byte == b'\x0b'
}

/// Follows one direction of a session after its startup message.
#[derive(Debug, Default)]
pub(crate) struct MessageFrames {
    /// The header of the message that begins, as far as it has come.
    header: Vec<u8>,
    tag: u8,
    /// Bytes of the present message that are still to come.
    remaining: usize,
    /// How much of it is kept, from its first byte that is no space.
    room: usize,
    kept: Vec<u8>,
}

impl MessageFrames {
    /// Takes bytes off the front until a message is complete: its tag, and the beginning of its body. `None` once all
    /// bytes are taken. `room` is how much of the body of a tag is wanted.
    pub(crate) fn next(&mut self, bytes: &mut &[u8], room: fn(u8) -> usize) -> Option<(u8, Vec<u8>)> {
        loop {
            if self.remaining == 0 {
                let (&first, rest) = bytes.split_first()?;
                *bytes = rest;
                self.header.push(first);
                let Some(&[tag, a, b, c, d]) = self.header.first_chunk() else { continue };
                self.header.clear();
                let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
                // A length below its own four bytes: the other side ends such a session, and gets the chance to say so.
                self.remaining = length.saturating_sub(4);
                (self.tag, self.room) = (tag, room(tag));
            } else {
                let (part, rest) = bytes.split_at_checked(self.remaining).unwrap_or((bytes, &[]));
                if part.is_empty() {
                    return None;
                }
                *bytes = rest;
                self.remaining -= part.len();
                self.keep(part);
            }
            if self.remaining == 0 {
                return Some((self.tag, std::mem::take(&mut self.kept)));
            }
        }
    }

    fn keep(&mut self, part: &[u8]) {
        let begun = !self.kept.is_empty();
        let room = self.room.saturating_sub(self.kept.len());
        self.kept.extend(part.iter().skip_while(|byte| !begun && is_space(byte)).take(room));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ROOM: usize = 8;

    fn room(tag: u8) -> usize {
        if tag == b'Q' { ROOM } else { 0 }
    }

    fn frames(bytes: &[u8], piece: usize) -> Vec<(u8, Vec<u8>)> {
        let (mut frames, mut found) = (MessageFrames::default(), Vec::new());
        for mut piece in bytes.chunks(piece) {
            found.extend(std::iter::from_fn(|| frames.next(&mut piece, room)));
        }
        found
    }

    #[test]
    fn messages_are_told_apart_wherever_the_bytes_are_cut() {
        let bytes = b"Z\0\0\0\x05IQ\0\0\0\x0f  SELECT 12X\0\0\0\x04Q\0\0\0\x04Q\0\0";
        let wanted =
            vec![(b'Z', Vec::new()), (b'Q', b"SELECT 1".to_vec()), (b'X', Vec::new()), (b'Q', Vec::new())];
        for piece in 1..bytes.len() {
            assert_eq!(frames(bytes, piece), wanted, "{piece}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_followed_within_bounds(bytes in prop::collection::vec(any::<u8>(), 1..400)) {
            let mut frames = MessageFrames::default();
            let mut rest = bytes.as_slice();
            while let Some((_, kept)) = frames.next(&mut rest, room) {
                prop_assert!(kept.len() <= ROOM);
            }
            prop_assert!(rest.is_empty() && frames.header.len() < 5 && frames.kept.len() <= ROOM);
        }
    }
}
