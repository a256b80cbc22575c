//! A call as a JSON object, `{"name": "f", "arguments": {…}}`, which several formats share.

use super::json::{Scan, Scanner, is_space};
use super::{CallFault, Calls, Step};

/// Keys that hold the arguments.
const ARGUMENTS: [&str; 2] = ["arguments", "parameters"];

#[derive(Debug)]
enum State {
    /// Before `{`.
    Before,
    /// A key, or the end if none is needed.
    Key {
        may_end: bool,
    },
    InKey {
        literal: String,
        scanner: Scanner,
    },
    Colon {
        key: Key,
    },
    /// A value: text of it, where it is kept.
    Value {
        key: Key,
        literal: String,
        scanner: Scanner,
        has_begun: bool,
    },
    /// A comma or the end.
    After,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Name,
    Arguments,
    Id,
    Other,
}

/// Reads one object.
#[derive(Debug)]
pub(super) struct Envelope {
    state: State,
    /// Whether only the keys of a call may stand in it, because it may as well be an answer in JSON.
    is_strict: bool,
    keys: Vec<String>,
    name: Option<String>,
    id: Option<String>,
    /// Arguments that stand before the name.
    early: Option<String>,
    has_begun: bool,
}

fn unexpected(expected: &'static str, found: char) -> Step {
    Step::Fault(CallFault::Unexpected { expected, found })
}

/// A JSON string as text.
fn decoded(literal: &str) -> Result<String, CallFault> {
    serde_json::from_str(literal).map_err(|_| CallFault::NoText { literal: literal.to_owned() })
}

impl Envelope {
    pub(super) fn new(is_strict: bool) -> Self {
        let keys = Vec::new();
        let state = State::Before;
        Self { state, is_strict, keys, name: None, id: None, early: None, has_begun: false }
    }

    /// What must come.
    pub(super) fn expected(&self) -> &'static str {
        match self.state {
            State::Before => "the object of a call",
            State::Key { .. } | State::InKey { .. } => "a key of the call",
            State::Colon { .. } => "a colon",
            State::Value { .. } => "the rest of a value",
            State::After => "the end of the call's object",
        }
    }

    /// Looks at a character. [`Step::Done`] at the brace that closes the object: then the call has begun, has
    /// its arguments, and has not ended.
    pub(super) fn take(&mut self, c: char, calls: &mut Calls) -> Step {
        match self.step(c, calls) {
            Ok(step) => step,
            Err(fault) => Step::Fault(fault),
        }
    }

    fn step(&mut self, c: char, calls: &mut Calls) -> Result<Step, CallFault> {
        match &mut self.state {
            State::Before | State::Key { .. } | State::Colon { .. } | State::After if is_space(c) => {}
            State::Before if c == '{' => self.state = State::Key { may_end: true },
            State::Before => return Ok(unexpected("the object of a call", c)),
            State::Key { .. } if c == '"' => {
                let mut scanner = Scanner::new();
                scanner.take(c);
                self.state = State::InKey { literal: c.to_string(), scanner };
            }
            State::Key { may_end: true } | State::After if c == '}' => return self.closed(c, calls),
            State::Key { .. } => return Ok(unexpected("a key of the call", c)),
            State::After if c == ',' => self.state = State::Key { may_end: false },
            State::After => return Ok(unexpected("a comma or the end of the call's object", c)),
            State::InKey { literal, scanner } => {
                literal.push(c);
                match scanner.take(c) {
                    Scan::More => {}
                    Scan::End => {
                        let key = decoded(literal)?;
                        self.state = State::Colon { key: self.key(key, c)? };
                    }
                    _ => return Ok(unexpected("a key of the call", c)),
                }
            }
            State::Colon { key } if c == ':' => {
                let (key, literal) = (*key, String::new());
                self.state = State::Value { key, literal, scanner: Scanner::new(), has_begun: false };
            }
            State::Colon { .. } => return Ok(unexpected("a colon", c)),
            State::Value { .. } => return self.value(c, calls),
        }
        Ok(Step::More)
    }

    /// What a key is for.
    fn key(&mut self, key: String, found: char) -> Result<Key, CallFault> {
        let kind = match key.as_str() {
            "name" => Key::Name,
            "id" => Key::Id,
            key if ARGUMENTS.contains(&key) => Key::Arguments,
            "type" => Key::Other,
            _ if self.is_strict => return Err(CallFault::Unexpected { expected: "a key of a call", found }),
            _ => Key::Other,
        };
        let is_same =
            |other: &String| *other == key || (kind == Key::Arguments && ARGUMENTS.contains(&other.as_str()));
        if self.keys.iter().any(is_same) {
            return Err(CallFault::RepeatedKey { key });
        }
        self.keys.push(key);
        Ok(kind)
    }

    fn value(&mut self, c: char, calls: &mut Calls) -> Result<Step, CallFault> {
        let State::Value { key, literal, scanner, has_begun } = &mut self.state else {
            return Ok(Step::More);
        };
        if !*has_begun {
            if is_space(c) {
                return Ok(Step::More);
            }
            *has_begun = true;
            match key {
                Key::Name if c != '"' => return Ok(unexpected("a function's name", c)),
                Key::Arguments if c != '{' => return Ok(unexpected("an object of arguments", c)),
                _ => {}
            }
            if let (Key::Arguments, Some(name)) = (&key, &self.name) {
                calls.begin(name.clone(), self.id.take());
                self.has_begun = true;
            }
        }
        let step = scanner.take(c);
        if matches!(step, Scan::More | Scan::End) {
            match key {
                Key::Arguments if self.has_begun => calls.arguments(c.encode_utf8(&mut [0; 4])),
                Key::Other => {}
                _ => literal.push(c),
            }
        }
        match step {
            Scan::More => return Ok(Step::More),
            Scan::Fault => return Ok(unexpected("the rest of a value", c)),
            Scan::End | Scan::EndBefore => {}
        }
        match key {
            Key::Name => {
                let name = decoded(literal)?;
                if name.is_empty() {
                    return Err(CallFault::NoName);
                }
                self.name = Some(name);
            }
            Key::Arguments if !self.has_begun => self.early = Some(std::mem::take(literal)),
            Key::Id if literal.starts_with('"') => self.id = Some(decoded(literal)?),
            _ => {}
        }
        self.state = State::After;
        match step {
            Scan::EndBefore => self.step(c, calls),
            _ => Ok(Step::More),
        }
    }

    fn closed(&mut self, c: char, calls: &mut Calls) -> Result<Step, CallFault> {
        if self.has_begun {
            return Ok(Step::Done);
        }
        let name = self.name.take().ok_or(CallFault::NoName)?;
        let arguments = match self.early.take() {
            Some(arguments) => arguments,
            // An object with a name alone is a call only where a marker says so.
            None if self.is_strict => {
                return Err(CallFault::Unexpected { expected: "the key \"parameters\"", found: c });
            }
            None => "{}".to_owned(),
        };
        calls.begin(name, self.id.take());
        calls.arguments(&arguments);
        Ok(Step::Done)
    }
}
