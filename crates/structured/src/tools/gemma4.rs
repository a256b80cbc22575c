use std::sync::Arc;

use breakers_core::Tool;

use super::format::plain_name;
use super::gemma4_grammar::Values;
use super::json::{escape, is_space, quoted};
use super::kinds::{Kinds, literal};
use super::{CallFault, Calls, IdForm, Lark, Layout, Reader, Step, ToolError, ToolFormat};

/// What stands around strings.
pub(super) const STRING: &str = "<|\"|>";
const CALL: &str = "call:";
const CLOSE: &str = "<tool_call|>";

/// A call with keys without quotes and strings between marks of their own:
///
/// ```text
/// <|tool_call>call:weather{city:<|"|>Oslo<|"|>,days:3}<tool_call|>
/// ```
///
/// # Source
/// Chat template of Gemma 4, which writes keys in alphabetical order; so does the grammar.
///
/// # Deviations
/// - A string cannot hold `<|"|>`.
/// - The grammar enforces types, `enum`, `const`, `anyOf`, properties, items, bounds of numbers and lengths;
///   further keywords are refused for strict functions and left out with a warning for others.
/// - Keys that could not stand without quotes are put between the marks of strings. Python's `True`, `False`
///   and `None` are read as JSON's.
#[derive(Clone, Copy, Debug)]
pub struct Gemma4;

impl ToolFormat for Gemma4 {
    fn layout(&self) -> Layout {
        Layout {
            open: "<|tool_call>",
            prefix: "",
            between: "",
            reopens: true,
            close: CLOSE,
            is_bare: false,
            is_parallel: true,
            ids: IdForm::default(),
        }
    }

    fn call(&self, tool: &Tool, lark: &mut Lark<'_>) -> Result<String, ToolError> {
        let head = lark.literal(&format!("{CALL}{}", plain_name(&tool.name, "gemma4")?));
        Ok(format!("{head} {}", Values::arguments(tool, lark)?))
    }

    fn reader(&self, _tools: &Arc<[Tool]>, _is_bare: bool) -> Box<dyn Reader> {
        Box::new(Marked { open: Vec::new(), part: String::new(), state: State::Call })
    }

    fn example(&self) -> &'static str {
        "<|tool_call>call:the function's name{a parameter's name:its value}<tool_call|>"
    }
}

/// Reads a call and writes its arguments as JSON.
#[derive(Debug)]
struct Marked {
    /// Whether each open bracket is that of an object.
    open: Vec<bool>,
    /// What has come of a tag, a name, a key or a word.
    part: String,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before the function's name.
    Call,
    Name,
    /// A key or the end; the latter not after a comma.
    Key {
        may_end: bool,
    },
    /// Within a key without marks.
    PlainKey,
    /// Within a key between marks.
    MarkedKey,
    Colon,
    /// A value; in a new list also its end.
    Value {
        may_end: bool,
    },
    /// A mark that begins a string.
    Mark {
        is_key: bool,
    },
    String,
    /// A number, `true`, `false` or `null`.
    Word,
    /// A comma or the end of a list or object.
    After,
    /// After all arguments.
    Close,
}

impl Marked {
    fn expected(&self) -> &'static str {
        match self.state {
            State::Call => CALL,
            State::Name => "a function's name and '{'",
            State::Key { .. } | State::PlainKey | State::MarkedKey => "a key",
            State::Colon => "a colon",
            State::Value { .. } => "a value",
            State::Mark { .. } => STRING,
            State::String => "the rest of a string",
            State::Word => "a number, true, false or null",
            State::After => "a comma or the end of a list or object",
            State::Close => CLOSE,
        }
    }

    fn unexpected(&self, found: char) -> Step {
        Step::Fault(CallFault::Unexpected { expected: self.expected(), found })
    }

    fn opened(&mut self, is_object: bool, calls: &mut Calls) {
        self.open.push(is_object);
        calls.arguments(if is_object { "{" } else { "[" });
        self.state = if is_object { State::Key { may_end: true } } else { State::Value { may_end: true } };
    }

    fn closed(&mut self, calls: &mut Calls) {
        calls.arguments(if self.open.pop() == Some(true) { "}" } else { "]" });
        self.state = if self.open.is_empty() { State::Close } else { State::After };
    }

    /// A key is complete.
    fn key(&mut self, key: &str, calls: &mut Calls) {
        calls.arguments(&quoted(key));
        calls.arguments(":");
        self.part.clear();
    }

    /// Adds a character to what should become a tag: whether it is complete.
    fn tag(&mut self, c: char, tag: &str) -> Option<bool> {
        self.part.push(c);
        if self.part == tag {
            self.part.clear();
            return Some(true);
        }
        tag.starts_with(&self.part).then_some(false)
    }

    /// The next character within a string or a key between marks; `write` takes what belongs to it. Whether
    /// the mark that ends it is complete.
    fn within_marks(&mut self, c: char, mut write: impl FnMut(char)) -> bool {
        self.part.push(c);
        if self.part == STRING {
            self.part.clear();
            return true;
        }
        while !STRING.starts_with(&self.part) {
            write(self.part.remove(0));
        }
        false
    }
}

impl Reader for Marked {
    fn take(&mut self, c: char, calls: &mut Calls) -> Step {
        match self.state {
            State::Call if self.part.is_empty() && is_space(c) => {}
            State::Call => match self.tag(c, CALL) {
                Some(true) => self.state = State::Name,
                Some(false) => {}
                None => return self.unexpected(c),
            },
            State::Name if c == '{' => {
                let name = std::mem::take(&mut self.part);
                let name = name.trim_matches(is_space);
                if name.is_empty() {
                    return Step::Fault(CallFault::NoName);
                }
                calls.begin(name.to_owned(), None);
                self.opened(true, calls);
            }
            State::Name if "}[]<>:,".contains(c) => return self.unexpected(c),
            State::Name => self.part.push(c),
            State::Key { .. } | State::Value { .. } | State::Colon | State::After if is_space(c) => {}
            State::Key { may_end: true } if c == '}' => self.closed(calls),
            State::Key { .. } if c == '<' => {
                self.part.push(c);
                self.state = State::Mark { is_key: true };
            }
            State::Key { .. } if "{}[]:,\"".contains(c) => return self.unexpected(c),
            State::Key { .. } => {
                self.part.push(c);
                self.state = State::PlainKey;
            }
            State::PlainKey => match c {
                ':' => {
                    let key = std::mem::take(&mut self.part);
                    self.key(key.trim_matches(is_space), calls);
                    self.state = State::Value { may_end: false };
                }
                '{' | '}' | '[' | ']' | ',' | '<' | '"' => return self.unexpected(c),
                c => self.part.push(c),
            },
            State::Mark { is_key } => match self.tag(c, STRING) {
                Some(true) if is_key => {
                    self.state = State::MarkedKey;
                    calls.arguments("\"");
                }
                Some(true) => {
                    self.state = State::String;
                    calls.arguments("\"");
                }
                Some(false) => {}
                None => return self.unexpected(c),
            },
            State::MarkedKey | State::String => {
                let mut out = String::new();
                if self.within_marks(c, |c| escape(c, &mut out)) {
                    out.push('"');
                    self.state = if self.state == State::String { State::After } else { State::Colon };
                }
                calls.arguments(&out);
            }
            State::Colon if c == ':' => {
                calls.arguments(":");
                self.state = State::Value { may_end: false };
            }
            State::Value { may_end } => match c {
                '{' => self.opened(true, calls),
                '[' => self.opened(false, calls),
                ']' if may_end => self.closed(calls),
                '<' => {
                    self.part.push(c);
                    self.state = State::Mark { is_key: false };
                }
                c if c == '-' || c.is_ascii_alphanumeric() => {
                    self.part.push(c);
                    self.state = State::Word;
                }
                c => return self.unexpected(c),
            },
            State::Word if c.is_ascii_alphanumeric() || "+-.".contains(c) => self.part.push(c),
            State::Word => {
                let kinds = Kinds { string: false, ..Kinds::ANY };
                let Some(word) = literal(&self.part, kinds) else { return self.unexpected(c) };
                calls.arguments(word);
                self.part.clear();
                self.state = State::After;
                return self.take(c, calls);
            }
            State::After => match (c, self.open.last()) {
                ('}', Some(true)) | (']', Some(false)) => self.closed(calls),
                (',', Some(&is_object)) => {
                    calls.arguments(",");
                    self.state = if is_object {
                        State::Key { may_end: false }
                    } else {
                        State::Value { may_end: false }
                    };
                }
                _ => return self.unexpected(c),
            },
            State::Colon => return self.unexpected(c),
            State::Close if self.part.is_empty() && is_space(c) => {}
            State::Close => match self.tag(c, CLOSE) {
                Some(true) => {
                    calls.end();
                    return Step::Done;
                }
                Some(false) => {}
                None => return self.unexpected(c),
            },
        }
        Step::More
    }

    fn end(&mut self, calls: &mut Calls) -> Result<(), CallFault> {
        // A model that stops before the marker has said all of the call.
        if self.state == State::Close && self.part.is_empty() {
            calls.end();
            return Ok(());
        }
        Err(CallFault::Unfinished { expected: self.expected() })
    }
}
