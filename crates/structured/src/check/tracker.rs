//! Where a text stands in the JSON that it is: which brackets are open, and what has just ended.
//!
//! The grammar sees to it that the text is JSON; here it is only followed.

use std::sync::Arc;

use super::data::{Child, Data, Frame};
use super::verdict::Pending;

/// Brackets within brackets. Whatever follows values goes as deep as they do.
const DEPTH: usize = 256;

/// A place in a text.
#[derive(Clone, Debug, Default)]
pub(super) struct Place {
    pub(super) frame: Option<Arc<Frame>>,
    pub(super) lexeme: Lexeme,
    /// The whole value, once it is there.
    pub(super) root: Option<Arc<Data>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) enum Lexeme {
    /// Between two of them. `is_announced`: a comma wants another child.
    #[default]
    None,
    Announced,
    /// A text from its first byte on, the quote left out.
    Text {
        start: usize,
        is_name: bool,
        is_escaped: bool,
    },
    /// A number or a word.
    Scalar {
        start: usize,
    },
}

/// What a byte did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Event {
    Nothing,
    /// A value or a name ended, or a comma came: what has been written may be wrong now.
    Boundary,
    /// More than can be followed.
    Lost,
}

impl Place {
    /// Takes note of the last byte of a text.
    pub(super) fn push(&mut self, text: &[u8]) -> Event {
        let Some((&byte, before)) = text.split_last() else { return Event::Nothing };
        match self.lexeme {
            Lexeme::Text { start, is_name, is_escaped } => {
                if is_escaped || byte != b'"' {
                    let is_escaped = !is_escaped && byte == b'\\';
                    self.lexeme = Lexeme::Text { start, is_name, is_escaped };
                    return Event::Nothing;
                }
                let Some(text) = unescaped(&before[start..]) else { return Event::Lost };
                self.lexeme = Lexeme::None;
                if is_name {
                    self.name(text)
                } else {
                    self.value(Data::Text(text));
                    Event::Boundary
                }
            }
            Lexeme::Scalar { start } => match byte {
                b',' | b']' | b'}' | b' ' | b'\t' | b'\n' | b'\r' => {
                    if self.end(before, start) == Event::Lost || self.between(byte, text.len()) == Event::Lost
                    {
                        return Event::Lost;
                    }
                    Event::Boundary
                }
                _ => Event::Nothing,
            },
            Lexeme::None | Lexeme::Announced => self.between(byte, text.len()),
        }
    }

    /// Ends a number that only the end of the text ends.
    pub(super) fn finish(&mut self, text: &[u8]) -> Event {
        match self.lexeme {
            Lexeme::Scalar { start } => self.end(text, start),
            _ => Event::Nothing,
        }
    }

    fn end(&mut self, text: &[u8], start: usize) -> Event {
        let data = std::str::from_utf8(&text[start..]).ok().and_then(Data::scalar);
        let Some(data) = data else { return Event::Lost };
        self.lexeme = Lexeme::None;
        self.value(data);
        Event::Boundary
    }

    fn between(&mut self, byte: u8, length: usize) -> Event {
        match byte {
            b' ' | b'\t' | b'\n' | b'\r' | b':' => Event::Nothing,
            b'{' | b'[' => {
                let depth = self.frame.as_ref().map_or(0, |frame| frame.depth + 1);
                if depth >= DEPTH {
                    return Event::Lost;
                }
                self.lexeme = Lexeme::None;
                self.frame = Some(Arc::new(Frame {
                    parent: self.frame.take(),
                    is_object: byte == b'{',
                    key: None,
                    latest: None,
                    n_children: 0,
                    depth,
                }));
                Event::Boundary
            }
            b'}' | b']' => {
                let Some(frame) = self.frame.take() else { return Event::Lost };
                let data = frame.close();
                self.frame.clone_from(&frame.parent);
                self.lexeme = Lexeme::None;
                self.value(data);
                Event::Boundary
            }
            b',' => {
                self.lexeme = Lexeme::Announced;
                Event::Boundary
            }
            b'"' => {
                let is_name = self.frame.as_ref().is_some_and(|frame| frame.is_object && frame.key.is_none());
                self.lexeme = Lexeme::Text { start: length, is_name, is_escaped: false };
                Event::Nothing
            }
            _ => {
                self.lexeme = Lexeme::Scalar { start: length - 1 };
                Event::Nothing
            }
        }
    }

    fn name(&mut self, name: Arc<str>) -> Event {
        let Some(frame) = &mut self.frame else { return Event::Lost };
        // Whoever reads the text keeps one of two members of a name.
        if frame.has(&name) {
            return Event::Lost;
        }
        Arc::make_mut(frame).key = Some(name);
        Event::Boundary
    }

    fn value(&mut self, data: Data) {
        let value = Arc::new(data);
        let Some(frame) = &mut self.frame else {
            self.root = Some(value);
            return;
        };
        let frame = Arc::make_mut(frame);
        let (before, key) = (frame.latest.take(), frame.key.take());
        frame.latest = Some(Arc::new(Child { before, key, value }));
        frame.n_children += 1;
    }

    /// What stands at the end of the text.
    pub(super) fn pending<'t>(&self, text: &'t [u8]) -> Pending<'t> {
        match self.lexeme {
            Lexeme::None => Pending::Nothing,
            Lexeme::Announced | Lexeme::Scalar { .. } => Pending::Announced,
            Lexeme::Text { start, is_name, .. } => {
                // A text with escapes is not taken apart before its end.
                let text = std::str::from_utf8(&text[start..]).ok().filter(|text| !text.contains('\\'));
                if is_name { Pending::Name(text) } else { Pending::Text(text) }
            }
        }
    }
}

/// A text of JSON without its quotes.
fn unescaped(bytes: &[u8]) -> Option<Arc<str>> {
    if !bytes.contains(&b'\\') {
        return std::str::from_utf8(bytes).ok().map(Arc::from);
    }
    let quoted = [b"\"", bytes, b"\""].concat();
    serde_json::from_slice::<String>(&quoted).ok().map(Arc::from)
}
