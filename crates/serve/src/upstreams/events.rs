//! Streams of events on their way through: what has come is passed on in whole events, and how it ends is
//! seen.

use bytes::Bytes;

/// Reads server-sent events without changing them.
#[derive(Debug, Default)]
pub(super) struct Events {
    /// The event that has not come wholly yet.
    pending: Vec<u8>,
    /// Where the line begins that has not come wholly yet.
    line: usize,
    /// Whether the stream has said that it ends.
    pub(super) is_done: bool,
    /// Events with data.
    pub(super) n_data: u64,
    /// The tokens that the stream says the request used.
    pub(super) tokens: Option<u64>,
    /// The highest number of an event, where they are numbered.
    pub(super) number: Option<u64>,
}

impl Events {
    /// Takes bytes and returns all events that are whole now.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Bytes {
        let mut at = self.pending.len();
        self.pending.extend_from_slice(bytes);
        let mut end = 0;
        while let Some(n) = self.pending[at..].iter().position(|byte| *byte == b'\n') {
            at += n + 1;
            let line = self.pending[self.line..at - 1].to_vec();
            let line = line.strip_suffix(b"\r").unwrap_or(&line);
            self.line = at;
            match line.is_empty() {
                true => end = at,
                false => self.read(line),
            }
        }
        let rest = self.pending.split_off(end);
        self.line -= end;
        std::mem::replace(&mut self.pending, rest).into()
    }

    /// Bytes of the event that has not come wholly.
    pub(super) fn n_pending(&self) -> usize {
        self.pending.len()
    }

    fn read(&mut self, line: &[u8]) {
        let field = |name: &[u8]| {
            let value = line.strip_prefix(name)?;
            Some(value.strip_prefix(b" ").unwrap_or(value))
        };
        const ENDS: [&[u8]; 4] =
            [b"response.completed", b"response.incomplete", b"response.failed", b"error"];
        if let Some(data) = field(b"data:") {
            self.n_data += 1;
            self.is_done |= data.starts_with(b"[DONE]") || data.starts_with(b"{\"error\"");
            self.tokens = number(data, b"\"total_tokens\":").or(self.tokens);
            self.number = number(data, b"\"sequence_number\":").max(self.number);
        } else if let Some(name) = field(b"event:") {
            self.is_done |= ENDS.contains(&name);
        }
    }
}

/// The number behind the last place of `name`.
pub(super) fn number(data: &[u8], name: &[u8]) -> Option<u64> {
    let at = data.windows(name.len()).rposition(|window| window == name)?;
    let digits = data[at + name.len()..].iter().skip_while(|byte| **byte == b' ');
    let digits: String =
        digits.take_while(|byte| byte.is_ascii_digit()).map(|byte| char::from(*byte)).collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STREAM: &str = ": ping\n\ndata: {\"a\":1}\n\nevent: x\r\ndata: {\"usage\":{\"total_tokens\": 12}}\r\n\r\ndata: [DONE]\n\n";

    #[test]
    fn a_torn_event_is_held_back() {
        let mut events = Events::default();
        assert_eq!(events.push(b"data: {\"a\""), "");
        assert_eq!(events.push(b":1}\n\nda"), "data: {\"a\":1}\n\n");
        assert_eq!((events.n_data, events.is_done, events.n_pending()), (1, false, 2));
        events.push(b"ta: {\"error\": {}}\n\n");
        assert!(events.is_done);
        for name in ["response.completed", "response.failed"] {
            let mut events = Events::default();
            events.push(format!("event: {name}\ndata: {{\"sequence_number\":7}}\n\n").as_bytes());
            assert_eq!((events.is_done, events.number), (true, Some(7)));
        }
    }

    proptest! {
        /// However a stream is cut into pieces, the same bytes come out, in whole events.
        #[test]
        fn any_pieces_give_the_same(cuts in prop::collection::vec(0usize..STREAM.len(), 0..12)) {
            let mut cuts = cuts;
            cuts.extend([0, STREAM.len()]);
            cuts.sort_unstable();
            let mut events = Events::default();
            let mut out = Vec::new();
            for pair in cuts.windows(2) {
                let whole = events.push(&STREAM.as_bytes()[pair[0]..pair[1]]);
                prop_assert!(whole.is_empty() || whole.ends_with(b"\n\n") || whole.ends_with(b"\r\n\r\n"));
                out.extend_from_slice(&whole);
            }
            prop_assert_eq!(&out, STREAM.as_bytes());
            prop_assert_eq!((events.is_done, events.n_data, events.tokens), (true, 3, Some(12)));
        }
    }
}
