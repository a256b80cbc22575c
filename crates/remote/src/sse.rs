//! Server-sent events, as they arrive.
//!
//! # Source
//! WHATWG HTML, section 9.2.6, "Interpreting an event stream". Deviations: bytes that are not UTF-8 and
//! events beyond a limit are errors, and [`SseParser::finish`] returns an event without its final empty line,
//! which some servers leave out.

/// An event of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SseEvent {
    /// Its type; empty for an ordinary message.
    pub event: String,
    /// Its data; several lines are joined by line feeds.
    pub data: String,
}

/// Why a stream is not a valid stream of server-sent events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SseError {
    /// It has bytes that are not UTF-8.
    #[error("an event holds bytes that are not UTF-8")]
    NotUtf8,
    /// An event has more bytes than are allowed.
    #[error("an event has more than {limit} bytes")]
    TooLong {
        /// The limit.
        limit: usize,
    },
}

/// Splits a stream into events. The events are the same however the bytes are split.
///
/// ```
/// use breakers_remote::sse::SseParser;
///
/// let mut parser = SseParser::new(1024);
/// parser.feed(b": a comment\nda");
/// assert_eq!(parser.next_event()?, None);
/// parser.feed(b"ta: one\r\ndata: two\r\n\r\n");
/// assert_eq!(parser.next_event()?.unwrap().data, "one\ntwo");
/// assert_eq!(parser.next_event()?, None);
/// # Ok::<(), breakers_remote::sse::SseError>(())
/// ```
#[derive(Debug)]
pub struct SseParser {
    limit: usize,
    /// Bytes that were fed; those from `at` on have not been processed.
    bytes: Vec<u8>,
    at: usize,
    /// The start of a line whose end has not arrived.
    line: Vec<u8>,
    event: SseEvent,
    /// Whether the event has a line of data.
    has_data: bool,
    /// The last byte was a carriage return, to which a line feed would belong.
    after_return: bool,
    is_first_line: bool,
    failed: Option<SseError>,
}

const MARK: &[u8] = "\u{feff}".as_bytes();

impl SseParser {
    /// A parser that refuses events of more than `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            bytes: Vec::new(),
            at: 0,
            line: Vec::new(),
            event: SseEvent::default(),
            has_data: false,
            after_return: false,
            is_first_line: true,
            failed: None,
        }
    }

    /// Adds bytes. Call [`next_event`](Self::next_event) afterwards until it has no more events.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.at);
        self.at = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next event, if it is complete.
    ///
    /// # Errors
    /// [`SseError`]; from then on, every call returns the same error.
    pub fn next_event(&mut self) -> Result<Option<SseEvent>, SseError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let result = self.scan();
        self.failed = result.as_ref().err().copied();
        result
    }

    /// The event at the end of the stream that lacks its final empty line or line end, if there is one.
    ///
    /// # Errors
    /// As [`next_event`](Self::next_event).
    pub fn finish(mut self) -> Result<Option<SseEvent>, SseError> {
        if let Some(event) = self.next_event()? {
            return Ok(Some(event));
        }
        // A truncated character is due to the end of the stream; the line that it is in is incomplete.
        let is_cut = std::str::from_utf8(&self.line).is_err_and(|error| error.error_len().is_none());
        if !self.line.is_empty() && !is_cut {
            self.end_line()?;
        }
        Ok(self.dispatch())
    }

    fn scan(&mut self) -> Result<Option<SseEvent>, SseError> {
        while let Some(&byte) = self.bytes.get(self.at) {
            if std::mem::take(&mut self.after_return) && byte == b'\n' {
                self.at += 1;
                continue;
            }
            let rest = &self.bytes[self.at..];
            let end = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
            let n = end.unwrap_or(rest.len());
            if self.line.len() + n + self.event.data.len() + self.event.event.len() > self.limit {
                return Err(SseError::TooLong { limit: self.limit });
            }
            self.line.extend_from_slice(&rest[..n]);
            self.at += n;
            if end.is_none() {
                break;
            }
            self.after_return = self.bytes[self.at] == b'\r';
            self.at += 1;
            if let Some(event) = self.end_line()? {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    /// Processes a complete line, and returns an event if it was the empty line that ends one.
    fn end_line(&mut self) -> Result<Option<SseEvent>, SseError> {
        let line = std::mem::take(&mut self.line);
        let line = match line.strip_prefix(MARK) {
            Some(rest) if self.is_first_line => rest,
            _ => &line[..],
        };
        self.is_first_line = false;
        if line.is_empty() {
            return Ok(self.dispatch());
        }
        let line = std::str::from_utf8(line).map_err(|_| SseError::NotUtf8)?;
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => {
                if self.has_data {
                    self.event.data.push('\n');
                }
                self.has_data = true;
                self.event.data.push_str(value);
            }
            "event" => value.clone_into(&mut self.event.event),
            // Comments (an empty field), `id` and `retry` (which are for reconnecting), and unknown fields.
            _ => {}
        }
        Ok(None)
    }

    /// The event so far, unless it has no data.
    fn dispatch(&mut self) -> Option<SseEvent> {
        let event = std::mem::take(&mut self.event);
        std::mem::take(&mut self.has_data).then_some(event)
    }
}
