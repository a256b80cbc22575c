//! Where a text stands in the JSON that it is: which brackets are open, and what has just ended.
//!
//! The grammar sees to it that the text is JSON. Here it is followed, and refused where readers of JSON
//! would see something else than what was checked: a name that comes twice in an object, or that is spelled
//! with escapes that it does not need and so passes for another; a number that readers round each in their
//! way, or do not take; brackets within brackets, deeper than readers go.

use std::sync::Arc;

use super::data::{Child, Data, Frame};
use super::verdict::Pending;

/// Brackets within brackets: readers of JSON stop at 128, and whatever follows values goes as deep as they
/// do.
pub(super) const DEPTH: usize = 120;
/// Bytes of a number that any reader takes as it is, if it has no exponent.
pub(super) const PLAIN_NUMBER: usize = 18;
/// Digits of a number, zeros before the others left out: those of an integer of 64 bits, and more than an
/// `f64` needs to be told apart.
const DIGITS: usize = 19;

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
                    let is_sound = !is_name || is_plain_escape(&text[start..]);
                    return if is_sound { Event::Nothing } else { Event::Lost };
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
                _ if is_held(&text[start..]) => Event::Nothing,
                _ => Event::Lost,
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
        // An integer to some readers, and none to others.
        if &text[start..] == b"-0" {
            return Event::Lost;
        }
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

/// The last digits of an escape by number, and how far the text is in it.
pub(super) fn open_escape(name: &[u8]) -> Option<&[u8]> {
    let at = name.iter().rposition(|byte| *byte == b'\\').filter(|at| name.len() - at <= 6)?;
    // Behind an odd number of others, a backslash is a character of its own.
    let n_before = name[..at].iter().rev().take_while(|byte| **byte == b'\\').count();
    let digits = name[at + 1..].strip_prefix(b"u")?;
    (n_before % 2 == 0).then_some(digits)
}

/// Whether an escape at the end of a name, if one is there, is or may become that of a character that cannot
/// be spelled otherwise.
fn is_plain_escape(name: &[u8]) -> bool {
    let Some(digits) = open_escape(name) else { return true };
    match digits {
        [] | [b'0'] | [b'0', b'0'] | [b'0', b'0', b'0' | b'1'] => true,
        [b'0', b'0', b'0', last] => matches!(last, b'0'..=b'7' | b'b' | b'e' | b'f'),
        [b'0', b'0', b'1', last] => matches!(last, b'0'..=b'9' | b'a'..=b'f'),
        _ => false,
    }
}

/// Whether a number, as far as it is written, is one that readers take as it is: of few digits, neither
/// infinite nor zero for want of smaller numbers. A word is no number.
fn is_held(number: &[u8]) -> bool {
    let has_exponent = number.iter().any(|byte| matches!(byte, b'e' | b'E'));
    if !has_exponent && number.len() <= PLAIN_NUMBER {
        return true;
    }
    // Without a sign or a letter that the rest is still to come for.
    let end = number.iter().rposition(u8::is_ascii_digit).map_or(0, |last| last + 1);
    let Some(text) = std::str::from_utf8(&number[..end]).ok().filter(|text| !text.is_empty()) else {
        return true;
    };
    let digits = text.split(['e', 'E']).next().unwrap_or_default();
    let significant = digits.trim_start_matches(['-', '0', '.']).bytes().filter(u8::is_ascii_digit).count();
    if significant > DIGITS && text.parse::<u64>().is_err() {
        return false;
    }
    match text.parse::<f64>() {
        Ok(value) => value.is_finite() && (value != 0.0 || significant == 0),
        Err(_) => true,
    }
}
