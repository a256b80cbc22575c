use std::fmt;
use std::sync::Arc;

use breakers_core::{Tool, Utf8Stream};

use super::json::is_space;
use super::{CallFault, Event, MalformedCall, ToolFormat};

/// Reads what follows the marker of a call, character by character. Made by [`ToolFormat::reader`] for each
/// marker.
pub trait Reader: Send {
    /// Looks at the next character.
    fn take(&mut self, c: char, calls: &mut Calls) -> Step;

    /// The answer has ended: whether it may end here.
    ///
    /// # Errors
    /// [`CallFault::Unfinished`] if not.
    fn end(&mut self, calls: &mut Calls) -> Result<(), CallFault>;
}

/// What a character does to a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// It belongs to it, and more must come.
    More,
    /// It is the last one. Text may follow, or another marker.
    Done,
    /// It cannot stand here. It is looked at again, as text.
    Fault(CallFault),
}

/// Where a [`Reader`] says what it has read.
#[derive(Debug, Default)]
pub struct Calls {
    events: Vec<Event>,
    /// Calls that have begun.
    n_calls: usize,
    is_open: bool,
    /// Whether a call has ended since the parser last looked.
    has_ended: bool,
    ids: Ids,
}

/// How ids of calls look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdForm {
    /// What they begin with.
    pub prefix: &'static str,
    /// Letters and digits after that.
    pub length: usize,
}

impl Default for IdForm {
    /// As OpenAI's: `call_` and 24 letters or digits.
    fn default() -> Self {
        Self { prefix: "call_", length: 24 }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Ids {
    form: IdForm,
    seed: u64,
}

impl Ids {
    /// The id of a call: the same for the same seed.
    fn id(self, index: usize) -> String {
        const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
        // SplitMix64 (Steele, Lea and Flood 2014).
        let mut state = self.seed ^ (index as u64).wrapping_mul(0xd134_2543_de82_ef95);
        let mut draw = || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut x = state;
            x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            x ^ (x >> 31)
        };
        let digits = (0..self.form.length).map(|_| char::from(DIGITS[(draw() % 62) as usize]));
        self.form.prefix.chars().chain(digits).collect()
    }
}

impl Calls {
    /// A call begins; without an id of the model's own it gets one.
    pub fn begin(&mut self, name: String, id: Option<String>) {
        let index = self.n_calls;
        let id = id.filter(|id| !id.is_empty()).unwrap_or_else(|| self.ids.id(index));
        self.events.push(Event::Begin { index, id, name });
        self.n_calls += 1;
        self.is_open = true;
    }

    /// More of its arguments.
    pub fn arguments(&mut self, text: &str) {
        let Some(index) = self.n_calls.checked_sub(1) else { return };
        match self.events.last_mut() {
            _ if text.is_empty() => {}
            Some(Event::Arguments { index: last, delta }) if *last == index => delta.push_str(text),
            _ => self.events.push(Event::Arguments { index, delta: text.to_owned() }),
        }
    }

    /// The call is complete.
    pub fn end(&mut self) {
        if let Some(index) = self.n_calls.checked_sub(1) {
            self.events.push(Event::End { index });
        }
        self.is_open = false;
        self.has_ended = true;
    }

    /// Whether a call has begun and not ended.
    pub fn is_open(&self) -> bool {
        self.is_open
    }

    fn text(&mut self, text: &str) {
        match self.events.last_mut() {
            _ if text.is_empty() => {}
            Some(Event::Text(last)) => last.push_str(text),
            _ => self.events.push(Event::Text(text.to_owned())),
        }
    }
}

/// Finds the calls in an answer while it grows.
///
/// The pieces may be cut anywhere: all [`Event::Text`] together, and all arguments of a call together, are
/// the same. A marker within a string does not end a call, and what turns out not to be a marker is text.
/// White space between two calls and after the last one belongs to the format; all other text is kept.
///
/// Markers that are control tokens must be spelled out in what is pushed.
///
/// # Example
/// ```
/// use breakers_structured::tools::{Event, ToolFormatSpec};
///
/// let format: ToolFormatSpec = "hermes".parse()?;
/// let mut parser = format.parser(&[], 0);
/// let mut events = parser.push("Let me see.\n<tool_");
/// assert_eq!(events, [Event::Text("Let me see.\n".to_owned())]);
/// events = parser.push("call>\n{\"name\": \"weather\", \"arguments\": {\"city\"");
/// assert!(matches!(&events[..], [Event::Begin { index: 0, .. }, Event::Arguments { delta, .. }]
///     if delta == "{\"city\""));
/// events = parser.push(": \"Oslo\"}}\n</tool_call>");
/// assert!(matches!(events.last(), Some(Event::End { index: 0 })));
/// assert!(parser.finish().is_empty());
/// # Ok::<(), breakers_structured::tools::ToolError>(())
/// ```
pub struct Parser {
    format: Arc<dyn ToolFormat>,
    tools: Arc<[Tool]>,
    state: State,
    calls: Calls,
    bytes: Utf8Stream,
}

enum State {
    /// At the beginning, where a call may stand without a marker: white space so far.
    Start(String),
    Text {
        /// White space since a call, if nothing else came since. It is text if text follows.
        space: Option<String>,
        /// What may be the beginning of a marker.
        held: String,
    },
    Call {
        reader: Box<dyn Reader>,
        raw: String,
        /// Whether it began without a marker: then it is text as long as nothing was said of it.
        is_bare: bool,
    },
}

impl State {
    fn text() -> Self {
        State::Text { space: None, held: String::new() }
    }
}

impl Parser {
    pub(super) fn new(format: Arc<dyn ToolFormat>, tools: &[Tool], seed: u64) -> Self {
        let layout = format.layout();
        let state = if layout.is_bare { State::Start(String::new()) } else { State::text() };
        let calls = Calls { ids: Ids { form: layout.ids, seed }, ..Calls::default() };
        Self { format, tools: tools.into(), state, calls, bytes: Utf8Stream::default() }
    }

    /// What the next piece of the answer brings.
    pub fn push(&mut self, text: &str) -> Vec<Event> {
        text.chars().for_each(|c| self.take(c));
        std::mem::take(&mut self.calls.events)
    }

    /// What the next bytes of the answer bring. They may end within a character; bytes that are no character
    /// appear as U+FFFD.
    pub fn push_bytes(&mut self, bytes: &[u8]) -> Vec<Event> {
        let mut stream = std::mem::take(&mut self.bytes);
        let events = self.push(stream.push(bytes));
        self.bytes = stream;
        events
    }

    /// Ends the answer.
    pub fn finish(mut self) -> Vec<Event> {
        let mut stream = std::mem::take(&mut self.bytes);
        stream.finish().chars().for_each(|c| self.take(c));
        match std::mem::replace(&mut self.state, State::text()) {
            State::Start(space) => self.calls.text(&space),
            State::Text { space, held } => {
                // White space alone belongs to the call before it.
                let space = space.filter(|space| !held.is_empty() || !space.chars().all(is_space));
                self.calls.text(&space.unwrap_or_default());
                self.calls.text(&held);
            }
            State::Call { mut reader, raw, is_bare } => {
                if let Err(fault) = reader.end(&mut self.calls) {
                    self.fault(raw, is_bare, fault);
                }
            }
        }
        self.calls.events
    }

    fn take(&mut self, c: char) {
        match std::mem::replace(&mut self.state, State::text()) {
            State::Start(mut space) => {
                if is_space(c) {
                    space.push(c);
                    self.state = State::Start(space);
                } else if c == '{' {
                    self.open(space, true, Some(c));
                } else {
                    self.calls.text(&space);
                    self.take(c);
                }
            }
            State::Text { mut space, mut held } => {
                let layout = self.format.layout();
                if let Some(space) = space.as_mut().filter(|_| held.is_empty()) {
                    if layout.is_bare && c == '{' {
                        return self.open(std::mem::take(space), true, Some(c));
                    }
                    if is_space(c) || (layout.is_bare && c == ';' && !space.contains(';')) {
                        space.push(c);
                        self.state = State::Text { space: Some(std::mem::take(space)), held };
                        return;
                    }
                }
                held.push(c);
                if held == layout.open {
                    // White space alone stood between two calls.
                    let space = space.filter(|space| !space.chars().all(is_space));
                    self.calls.text(&space.unwrap_or_default());
                    return self.open(held, false, None);
                }
                if !layout.open.starts_with(&held) {
                    self.calls.text(&space.take().unwrap_or_default());
                    // The longest end that may yet be a marker is kept.
                    let mut starts = held.char_indices().map(|(at, _)| at);
                    let keep = starts.find(|&at| layout.open.starts_with(&held[at..])).unwrap_or(held.len());
                    self.calls.text(&held[..keep]);
                    held.drain(..keep);
                }
                self.state = State::Text { space, held };
            }
            State::Call { reader, mut raw, is_bare } => {
                raw.push(c);
                self.read(reader, raw, is_bare, c);
            }
        }
    }

    fn open(&mut self, raw: String, is_bare: bool, first: Option<char>) {
        let reader = self.format.reader(&self.tools, is_bare);
        match first {
            Some(c) => self.read(reader, raw + c.encode_utf8(&mut [0; 4]), is_bare, c),
            None => self.state = State::Call { reader, raw, is_bare },
        }
    }

    fn read(&mut self, mut reader: Box<dyn Reader>, mut raw: String, is_bare: bool, c: char) {
        self.calls.has_ended = false;
        match reader.take(c, &mut self.calls) {
            Step::More => {
                if self.calls.has_ended {
                    raw.clear();
                }
                self.state = State::Call { reader, raw, is_bare };
            }
            Step::Done => self.state = State::Text { space: Some(String::new()), held: String::new() },
            Step::Fault(fault) => {
                raw.pop();
                self.fault(raw, is_bare, fault);
                self.take(c);
            }
        }
    }

    fn fault(&mut self, raw: String, is_bare: bool, fault: CallFault) {
        let index = self.calls.is_open.then(|| self.calls.n_calls - 1);
        self.calls.is_open = false;
        self.state = State::text();
        match index {
            None if is_bare => self.calls.text(&raw),
            _ => self.calls.events.push(Event::Malformed(MalformedCall { index, raw, fault })),
        }
    }
}

impl fmt::Debug for Parser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parser").field("format", &self.format).finish_non_exhaustive()
    }
}
