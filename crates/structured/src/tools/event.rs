use breakers_core::{Delta, ToolCall, ToolCallDelta};

/// Something new of an answer that may hold calls of functions.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// Text of the answer. Not empty.
    Text(String),
    /// A call begins.
    Begin {
        /// Which call of the answer, from 0 on.
        index: usize,
        /// Its id.
        id: String,
        /// Its function's name.
        name: String,
    },
    /// More of the arguments of the call that began last. Not empty.
    Arguments {
        /// Which call.
        index: usize,
        /// A piece of JSON: all pieces together are one object.
        delta: String,
    },
    /// The call that began last is complete.
    End {
        /// Which call.
        index: usize,
    },
    /// What began like a call and is none.
    Malformed(MalformedCall),
}

impl Event {
    /// The event in the words of [`ChatModel`](breakers_core::ChatModel). `None` for the end of a call, and
    /// for a malformed one, which a caller must look at.
    pub fn delta(&self) -> Option<Delta> {
        Some(match self {
            Event::Text(text) => Delta::Text(text.clone()),
            Event::Begin { index, id, name } => Delta::ToolCall(ToolCallDelta::start(*index, id, name)),
            Event::Arguments { index, delta } => Delta::ToolCall(ToolCallDelta::arguments(*index, delta)),
            Event::End { .. } | Event::Malformed(_) => return None,
        })
    }
}

/// What began like a call and is none. Nothing of it is lost: text goes on right behind `raw`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the model wrote a malformed call{}: {fault}", of(.index))]
#[non_exhaustive]
pub struct MalformedCall {
    /// The call, if it had begun: it never ends. `None` if nothing was said of it yet.
    pub index: Option<usize>,
    /// What the model wrote, from the marker (or the call before) on.
    pub raw: String,
    /// What is wrong with it.
    #[source]
    pub fault: CallFault,
}

fn of(index: &Option<usize>) -> String {
    index.map_or_else(String::new, |index| format!(" ({index})"))
}

/// What is wrong with a call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CallFault {
    /// The answer ended within it.
    #[error("the answer ended within it, expected {expected}")]
    Unfinished {
        /// What should have come.
        expected: &'static str,
    },
    /// A character that cannot stand where it does.
    #[error("expected {expected}, found {found:?}")]
    Unexpected {
        /// What should have come.
        expected: &'static str,
        /// What came.
        found: char,
    },
    /// No name of a function, or an empty one.
    #[error("no function is named")]
    NoName,
    /// A key that stands twice.
    #[error("the key {key:?} stands twice, expected once")]
    RepeatedKey {
        /// The key.
        key: String,
    },
    /// A JSON string that is no text, such as half a surrogate pair.
    #[error("a string that is no text: {literal}")]
    NoText {
        /// The string as it is written.
        literal: String,
    },
}

/// All of an answer: the events of a [`Parser`](super::Parser), put together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Answer {
    /// Its text, without calls.
    pub text: String,
    /// Its calls, in order.
    pub calls: Vec<ToolCall>,
    /// What began like a call and is none.
    pub malformed: Vec<MalformedCall>,
    /// The call that has begun and not ended, with its index.
    open: Option<(usize, ToolCall)>,
}

impl Answer {
    /// Adds an event.
    pub fn absorb(&mut self, event: Event) {
        match event {
            Event::Text(text) => self.text += &text,
            Event::Begin { index, id, name } => self.open = Some((index, ToolCall::new(id, name, ""))),
            Event::Arguments { index, delta } => {
                if let Some((_, call)) = self.open.as_mut().filter(|(open, _)| *open == index) {
                    call.arguments += &delta;
                }
            }
            Event::End { index } => {
                self.calls.extend(self.open.take_if(|(open, _)| *open == index).map(|(_, call)| call));
            }
            Event::Malformed(call) => {
                self.open = None;
                self.malformed.push(call);
            }
        }
    }
}

impl Extend<Event> for Answer {
    fn extend<I: IntoIterator<Item = Event>>(&mut self, events: I) {
        events.into_iter().for_each(|event| self.absorb(event));
    }
}

impl FromIterator<Event> for Answer {
    fn from_iter<I: IntoIterator<Item = Event>>(events: I) -> Self {
        let mut answer = Self::default();
        answer.extend(events);
        answer
    }
}
