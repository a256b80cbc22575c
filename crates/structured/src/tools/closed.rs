//! Formats whose calls are JSON objects between two markers.

use super::envelope::Envelope;
use super::json::is_space;
use super::{CallFault, Calls, Reader, Step};

/// Reads objects up to a closing marker, with white space around them.
#[derive(Debug)]
pub(super) struct Enclosed {
    /// What closes the calls; nothing if an object is closed by itself.
    close: &'static str,
    /// What opens a list of calls.
    list: Option<char>,
    /// Whether further objects may follow before the marker, with a comma between them if they are a list.
    is_many: bool,
    is_strict: bool,
    state: State,
}

#[derive(Debug)]
enum State {
    List,
    Object(Envelope),
    /// After an object: the part of the closing marker that has come.
    Closing(String),
}

impl Enclosed {
    /// One object and a marker.
    pub(super) fn one(close: &'static str, is_strict: bool) -> Self {
        let state = State::Object(Envelope::new(is_strict));
        Self { close, list: None, is_many: false, is_strict, state }
    }

    /// Objects, one after the other, and a marker.
    pub(super) fn many(close: &'static str) -> Self {
        Self { is_many: true, ..Self::one(close, false) }
    }

    /// A JSON list of objects.
    pub(super) fn list() -> Self {
        Self { list: Some('['), state: State::List, ..Self::many("]") }
    }
}

impl Reader for Enclosed {
    fn take(&mut self, c: char, calls: &mut Calls) -> Step {
        match &mut self.state {
            State::List if is_space(c) => {}
            State::List if Some(c) == self.list => self.state = State::Object(Envelope::new(self.is_strict)),
            State::List => {
                return Step::Fault(CallFault::Unexpected { expected: "a list of calls", found: c });
            }
            State::Object(object) => match object.take(c, calls) {
                Step::Done => {
                    // One object has its marker yet to come, a list or block has not.
                    if self.is_many || self.close.is_empty() {
                        calls.end();
                    }
                    if self.close.is_empty() {
                        return Step::Done;
                    }
                    self.state = State::Closing(String::new());
                }
                step => return step,
            },
            State::Closing(part) if part.is_empty() && is_space(c) => {}
            State::Closing(part) if part.is_empty() && self.is_many && self.list.is_some() && c == ',' => {
                self.state = State::Object(Envelope::new(self.is_strict));
            }
            State::Closing(part) if part.is_empty() && self.is_many && self.list.is_none() && c == '{' => {
                let mut object = Envelope::new(self.is_strict);
                object.take(c, calls);
                self.state = State::Object(object);
            }
            State::Closing(part) => {
                part.push(c);
                if part == self.close {
                    if calls.is_open() {
                        calls.end();
                    }
                    return Step::Done;
                }
                if !self.close.starts_with(&*part) {
                    return Step::Fault(CallFault::Unexpected { expected: "the end of the call", found: c });
                }
            }
        }
        Step::More
    }

    fn end(&mut self, calls: &mut Calls) -> Result<(), CallFault> {
        match &self.state {
            // A model that stops before the marker has said all of the call.
            State::Closing(part) if part.is_empty() => {
                if calls.is_open() {
                    calls.end();
                }
                Ok(())
            }
            State::Closing(_) => Err(CallFault::Unfinished { expected: "the end of the call" }),
            State::List => Err(CallFault::Unfinished { expected: "a list of calls" }),
            State::Object(object) => Err(CallFault::Unfinished { expected: object.expected() }),
        }
    }
}
