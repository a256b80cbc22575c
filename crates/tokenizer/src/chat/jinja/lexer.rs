//! Splits a template's text into tokens, with the whitespace rules `trim_blocks` and `lstrip_blocks`.

use super::error::{Result, TemplateError};
use super::operators::LARGEST;

/// A piece of a template.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind {
    /// Text outside of tags.
    Data(String),
    /// `{{`.
    PrintBegin,
    /// `}}`.
    PrintEnd,
    /// `{%`.
    TagBegin,
    /// `%}`.
    TagEnd,
    /// A name or keyword.
    Name(String),
    /// A whole number.
    Int(i128),
    /// A number with a point or an exponent.
    Float(f64),
    /// A string with its escapes resolved.
    Text(String),
    /// An operator or bracket.
    Sign(&'static str),
}

/// A piece with its line, counted from 1.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) line: usize,
}

/// Operators and brackets, longer ones first.
const SIGNS: [&str; 25] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<",
    "=", ".", ":", "|", ",",
];

/// Splits a template into tokens.
pub(super) fn tokens(source: &str) -> Result<Vec<Token>> {
    // Jinja2 converts all line endings to "\n" and removes one at the end.
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let source = source.strip_suffix('\n').unwrap_or(&source);
    let mut lexer = Lexer { rest: source, line: 1, line_starts: true, tokens: Vec::new() };
    while !lexer.rest.is_empty() {
        lexer.data()?;
    }
    Ok(lexer.tokens)
}

struct Lexer<'a> {
    rest: &'a str,
    line: usize,
    /// Whether what is left begins a line.
    line_starts: bool,
    tokens: Vec<Token>,
}

/// What comes before text.
#[derive(Clone, Copy, PartialEq)]
enum Opening {
    Print,
    Tag,
    Comment,
}

impl<'a> Lexer<'a> {
    fn fail<T>(&self, message: impl Into<String>) -> Result<T> {
        Err(TemplateError::new(message).at(self.line))
    }

    fn push(&mut self, kind: Kind) {
        self.tokens.push(Token { kind, line: self.line });
    }

    fn advance(&mut self, len: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(len);
        self.line += taken.matches('\n').count();
        if let Some(last) = taken.chars().next_back() {
            self.line_starts = last == '\n';
        }
        self.rest = rest;
        taken
    }

    /// Text up to the next tag, and that tag.
    fn data(&mut self) -> Result<()> {
        let next = self.rest.match_indices('{').find_map(|(at, _)| {
            let opening = match self.rest.as_bytes().get(at + 1)? {
                b'{' => Opening::Print,
                b'%' => Opening::Tag,
                b'#' => Opening::Comment,
                _ => return None,
            };
            Some((at, opening))
        });
        let Some((at, opening)) = next else {
            let text = self.advance(self.rest.len()).to_owned();
            self.push(Kind::Data(text));
            return Ok(());
        };
        self.text_before(at, opening);
        self.advance(2);
        if self.rest.starts_with(['-', '+']) && (opening != Opening::Print || self.rest.starts_with('-')) {
            self.advance(1);
        }
        match opening {
            Opening::Comment => self.comment(),
            Opening::Print => {
                self.push(Kind::PrintBegin);
                self.expression(Opening::Print)
            }
            Opening::Tag if self.is_raw() => self.raw(),
            Opening::Tag => {
                self.push(Kind::TagBegin);
                self.expression(Opening::Tag)
            }
        }
    }

    /// The text in front of a tag, without the whitespace that the tag takes away.
    fn text_before(&mut self, at: usize, opening: Opening) {
        let starts = self.line_starts;
        let control = self.rest[at + 2..].chars().next();
        let text = self.advance(at);
        let kept = match control {
            Some('-') => text.trim_end(),
            Some('+') if opening != Opening::Print => text,
            _ if opening == Opening::Print => text,
            _ => {
                let line = text.rfind('\n').map_or(0, |newline| newline + 1);
                let may_strip = line > 0 || starts;
                if may_strip && text[line..].chars().all(char::is_whitespace) { &text[..line] } else { text }
            }
        };
        if !kept.is_empty() {
            let kept = kept.to_owned();
            self.push(Kind::Data(kept));
        }
    }

    /// Takes the end of a tag if it is here, with the whitespace that belongs to it.
    fn end(&mut self, sign: &str, trims: bool) -> bool {
        let rest = self.rest;
        if let Some(after) = rest.strip_prefix('-').and_then(|rest| rest.strip_prefix(sign)) {
            self.advance(rest.len() - after.trim_start().len());
            return true;
        }
        if let Some(after) = rest.strip_prefix('+').and_then(|rest| rest.strip_prefix(sign)).filter(|_| trims)
        {
            self.advance(rest.len() - after.len());
            return true;
        }
        let Some(after) = rest.strip_prefix(sign) else { return false };
        let after = if trims { after.strip_prefix('\n').unwrap_or(after) } else { after };
        self.advance(rest.len() - after.len());
        true
    }

    fn comment(&mut self) -> Result<()> {
        let Some(at) = self.rest.find("#}") else { return self.fail("a comment does not end") };
        let at = if self.rest[..at].ends_with(['-', '+']) { at - 1 } else { at };
        self.advance(at);
        self.end("#}", true);
        Ok(())
    }

    /// The length of `raw %}` and the like, if that is what follows.
    fn tag_length(rest: &str, word: &str) -> Option<usize> {
        let after = rest.trim_start().strip_prefix(word)?.trim_start();
        let after = after.strip_prefix("-%}").map(str::trim_start).or_else(|| after.strip_prefix("%}"))?;
        Some(rest.len() - after.len())
    }

    fn is_raw(&self) -> bool {
        Self::tag_length(self.rest, "raw").is_some()
    }

    fn raw(&mut self) -> Result<()> {
        let len = Self::tag_length(self.rest, "raw").unwrap_or(0);
        self.advance(len);
        let mut from = 0;
        while let Some(found) = self.rest[from..].find("{%") {
            let at = from + found;
            let inner = &self.rest[at + 2..];
            let inner = inner.strip_prefix(['-', '+']).unwrap_or(inner);
            if let Some(after) = inner.trim_start().strip_prefix("endraw") {
                let end = after.trim_start();
                if ["%}", "-%}", "+%}"].iter().any(|sign| end.starts_with(sign)) {
                    let behind = end.len();
                    self.text_before(at, Opening::Tag);
                    self.advance(self.rest.len() - behind);
                    self.end("%}", true);
                    return Ok(());
                }
            }
            from = at + 2;
        }
        self.fail("{% raw %} does not end")
    }

    /// The tokens of an expression or statement up to its end.
    fn expression(&mut self, opening: Opening) -> Result<()> {
        let (sign, trims, end) = match opening {
            Opening::Print => ("}}", false, Kind::PrintEnd),
            _ => ("%}", true, Kind::TagEnd),
        };
        let mut brackets: Vec<&'static str> = Vec::new();
        loop {
            if brackets.is_empty() {
                let line = self.line;
                if self.end(sign, trims) {
                    self.tokens.push(Token { kind: end, line });
                    return Ok(());
                }
            }
            let Some(c) = self.rest.chars().next() else {
                return self.fail(format!("a tag does not end: {sign} is missing"));
            };
            if c.is_whitespace() {
                self.advance(c.len_utf8());
            } else if c.is_ascii_digit() {
                self.number()?;
            } else if c == '_' || c.is_alphanumeric() {
                let len =
                    self.rest.find(|c: char| c != '_' && !c.is_alphanumeric()).unwrap_or(self.rest.len());
                let name = self.advance(len).to_owned();
                self.push(Kind::Name(name));
            } else if c == '\'' || c == '"' {
                self.string(c)?;
            } else {
                let Some(sign) = SIGNS.into_iter().find(|sign| self.rest.starts_with(sign)) else {
                    return self.fail(format!("unexpected character {c:?}"));
                };
                match sign {
                    "(" => brackets.push(")"),
                    "[" => brackets.push("]"),
                    "{" => brackets.push("}"),
                    ")" | "]" | "}" => match brackets.pop() {
                        Some(expected) if expected == sign => {}
                        Some(expected) => {
                            return self.fail(format!("found {sign:?}, expected {expected:?}"));
                        }
                        None => return self.fail(format!("{sign:?} closes nothing")),
                    },
                    _ => {}
                }
                self.push(Kind::Sign(sign));
                self.advance(sign.len());
            }
        }
    }

    fn number(&mut self) -> Result<()> {
        let bytes = self.rest.as_bytes();
        let radix = match bytes.get(1).map(u8::to_ascii_lowercase).filter(|_| bytes[0] == b'0') {
            Some(b'x') => 16,
            Some(b'o') => 8,
            Some(b'b') => 2,
            _ => 10,
        };
        if radix != 10 {
            let digits =
                self.rest[2..].find(|c: char| c != '_' && !c.is_digit(radix)).unwrap_or(self.rest.len() - 2);
            let text = self.advance(2 + digits)[2..].replace('_', "");
            let number =
                i128::from_str_radix(&text, radix).ok().filter(|number| number.unsigned_abs() <= LARGEST);
            let Some(number) = number else {
                return self.fail("a number is too large or has no digits");
            };
            self.push(Kind::Int(number));
            return Ok(());
        }
        let digits = |from: usize| {
            let run = bytes[from.min(bytes.len())..]
                .iter()
                .take_while(|&&b| b == b'_' || b.is_ascii_digit())
                .count();
            if bytes.get(from).is_some_and(u8::is_ascii_digit) { from + run } else { from }
        };
        let mut len = digits(0);
        let mut is_float = false;
        // `x.0.1` is two subscripts, not a number.
        let after_point = matches!(self.tokens.last(), Some(Token { kind: Kind::Sign("."), .. }));
        if !after_point {
            if bytes.get(len) == Some(&b'.') && digits(len + 1) > len + 1 {
                len = digits(len + 1);
                is_float = true;
            }
            if matches!(bytes.get(len), Some(b'e' | b'E')) {
                let sign = usize::from(matches!(bytes.get(len + 1), Some(b'+' | b'-')));
                if digits(len + 1 + sign) > len + 1 + sign {
                    len = digits(len + 1 + sign);
                    is_float = true;
                }
            }
        }
        let text = self.advance(len).replace('_', "");
        let kind = match is_float {
            true => text.parse().ok().map(Kind::Float),
            false => {
                text.parse::<i128>().ok().filter(|number| number.unsigned_abs() <= LARGEST).map(Kind::Int)
            }
        };
        match kind {
            Some(kind) => self.push(kind),
            None => return self.fail(format!("{text} is too large")),
        }
        Ok(())
    }

    fn string(&mut self, quote: char) -> Result<()> {
        let mut escaped = false;
        let end = self.rest.char_indices().skip(1).find(|&(_, c)| {
            let ends = c == quote && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        let Some((end, _)) = end else { return self.fail("a string does not end") };
        let line = self.line;
        let text = unescape(&self.advance(end + 1)[1..end]).map_err(|error| error.at(line))?;
        self.tokens.push(Token { kind: Kind::Text(text), line });
        Ok(())
    }
}

/// Python's escapes.
fn unescape(text: &str) -> Result<String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let mut chars = rest[at + 1..].chars();
        let Some(c) = chars.next() else { return Err(TemplateError::new("a string ends in a backslash")) };
        rest = chars.as_str();
        let digits = match c {
            'x' => 2,
            'u' => 4,
            'U' => 8,
            _ => 0,
        };
        match c {
            'n' => out.push('\n'),
            't' => out.push('\t'),
            'r' => out.push('\r'),
            'b' => out.push('\u{8}'),
            'f' => out.push('\u{c}'),
            'a' => out.push('\u{7}'),
            'v' => out.push('\u{b}'),
            '\\' | '\'' | '"' => out.push(c),
            '\n' => {}
            '0'..='7' => {
                let len = rest.bytes().take(2).take_while(|b| (b'0'..=b'7').contains(b)).count();
                let octal = format!("{c}{}", &rest[..len]);
                out.extend(u32::from_str_radix(&octal, 8).ok().and_then(char::from_u32));
                rest = &rest[len..];
            }
            'x' | 'u' | 'U' => {
                let code = rest.get(..digits).filter(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
                let c = code.and_then(|hex| u32::from_str_radix(hex, 16).ok()).and_then(char::from_u32);
                let Some(c) = c else {
                    return Err(TemplateError::new("an escape in a string is no character"));
                };
                out.push(c);
                rest = &rest[digits..];
            }
            'N' => return Err(TemplateError::new("\\N{...} in a string: names of characters are not known")),
            c => out.extend(['\\', c]),
        }
    }
    out.push_str(rest);
    Ok(out)
}
