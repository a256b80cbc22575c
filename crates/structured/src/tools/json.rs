//! JSON, character by character: where a value ends, and how a text is written in one.

/// What a character does to a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scan {
    /// It belongs to the value, which goes on.
    More,
    /// It is the last one of the value.
    End,
    /// The value ended before it: numbers are over when something else comes.
    EndBefore,
    /// It cannot stand here.
    Fault,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A value, or white space before it.
    Value,
    /// A value, or the end of an empty list.
    FirstItem,
    /// A name, or the end of an empty object.
    FirstName,
    /// A name, after a comma.
    Name,
    Colon,
    /// A comma or the end of a list or object.
    After,
    String {
        is_name: bool,
    },
    Escape {
        is_name: bool,
    },
    Hex {
        is_name: bool,
        left: u8,
    },
    /// The rest of `true`, `false` or `null`.
    Word(&'static str),
    Number(Number),
    Over,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Number {
    Minus,
    Zero,
    Integer,
    Point,
    Fraction,
    E,
    Sign,
    Exponent,
}

/// Follows one JSON value to its end. Takes as much memory as the value is deep.
#[derive(Clone, Debug)]
pub(super) struct Scanner {
    state: State,
    /// Whether each open bracket is that of an object.
    open: Vec<bool>,
}

pub(super) fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r')
}

impl Scanner {
    pub(super) fn new() -> Self {
        Self { state: State::Value, open: Vec::new() }
    }

    /// Whether the value may end where it is.
    pub(super) fn may_end(&self) -> bool {
        match self.state {
            State::Over => true,
            State::Number(number) => self.open.is_empty() && number.may_end(),
            _ => false,
        }
    }

    pub(super) fn take(&mut self, c: char) -> Scan {
        let next = match self.state {
            State::Value
            | State::FirstItem
            | State::After
            | State::Colon
            | State::Name
            | State::FirstName
                if is_space(c) =>
            {
                return Scan::More;
            }
            State::FirstItem if c == ']' => return self.close(),
            State::FirstName if c == '}' => return self.close(),
            State::Value | State::FirstItem => match c {
                '{' => self.opened(true),
                '[' => self.opened(false),
                '"' => State::String { is_name: false },
                't' => State::Word("rue"),
                'f' => State::Word("alse"),
                'n' => State::Word("ull"),
                '-' => State::Number(Number::Minus),
                '0' => State::Number(Number::Zero),
                '1'..='9' => State::Number(Number::Integer),
                _ => return Scan::Fault,
            },
            State::Name | State::FirstName if c == '"' => State::String { is_name: true },
            State::Colon if c == ':' => State::Value,
            State::After => match (c, self.open.last()) {
                (',', Some(true)) => State::Name,
                (',', Some(false)) => State::Value,
                ('}', Some(true)) | (']', Some(false)) => return self.close(),
                _ => return Scan::Fault,
            },
            State::String { is_name } => match c {
                '"' if is_name => State::Colon,
                '"' => return self.ended(),
                '\\' => State::Escape { is_name },
                c if c < ' ' => return Scan::Fault,
                _ => return Scan::More,
            },
            State::Escape { is_name } => match c {
                '"' | '\\' | '/' | 'b' | 'f' | 'n' | 'r' | 't' => State::String { is_name },
                'u' => State::Hex { is_name, left: 4 },
                _ => return Scan::Fault,
            },
            State::Hex { is_name, left } if c.is_ascii_hexdigit() => match left {
                1 => State::String { is_name },
                _ => State::Hex { is_name, left: left - 1 },
            },
            State::Word(rest) => match rest.strip_prefix(c) {
                Some("") => return self.ended(),
                Some(rest) => State::Word(rest),
                None => return Scan::Fault,
            },
            State::Number(number) => match number.take(c) {
                Some(number) => State::Number(number),
                None if !number.may_end() => return Scan::Fault,
                None => {
                    // The character comes after the value.
                    if self.ended() == Scan::End {
                        return Scan::EndBefore;
                    }
                    return self.take(c);
                }
            },
            _ => return Scan::Fault,
        };
        self.state = next;
        Scan::More
    }

    fn opened(&mut self, is_object: bool) -> State {
        self.open.push(is_object);
        if is_object { State::FirstName } else { State::FirstItem }
    }

    fn close(&mut self) -> Scan {
        self.open.pop();
        self.ended()
    }

    /// A value has ended.
    fn ended(&mut self) -> Scan {
        let is_over = self.open.is_empty();
        self.state = if is_over { State::Over } else { State::After };
        if is_over { Scan::End } else { Scan::More }
    }
}

impl Number {
    fn may_end(self) -> bool {
        matches!(self, Number::Zero | Number::Integer | Number::Fraction | Number::Exponent)
    }

    fn take(self, c: char) -> Option<Self> {
        Some(match (self, c) {
            (Number::Minus, '0') => Number::Zero,
            (Number::Minus, '1'..='9') | (Number::Integer, '0'..='9') => Number::Integer,
            (Number::Zero | Number::Integer, '.') => Number::Point,
            (Number::Point | Number::Fraction, '0'..='9') => Number::Fraction,
            (Number::Zero | Number::Integer | Number::Fraction, 'e' | 'E') => Number::E,
            (Number::E, '+' | '-') => Number::Sign,
            (Number::E | Number::Sign | Number::Exponent, '0'..='9') => Number::Exponent,
            _ => return None,
        })
    }
}

/// Whether a text is one JSON value, white space around it left out of account.
pub(super) fn is_value(text: &str) -> bool {
    let mut scanner = Scanner::new();
    let mut chars = text.trim_matches(is_space).chars();
    for c in chars.by_ref() {
        match scanner.take(c) {
            Scan::More => {}
            Scan::End => break,
            Scan::EndBefore | Scan::Fault => return false,
        }
    }
    chars.next().is_none() && scanner.may_end()
}

/// Appends a character as it stands in a JSON string.
pub(super) fn escape(c: char, out: &mut String) {
    match c {
        '"' => out.push_str("\\\""),
        '\\' => out.push_str("\\\\"),
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        '\u{8}' => out.push_str("\\b"),
        '\u{c}' => out.push_str("\\f"),
        c if c < ' ' => out.push_str(&format!("\\u{:04x}", u32::from(c))),
        c => out.push(c),
    }
}

/// A text as a JSON string.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    text.chars().for_each(|c| escape(c, &mut out));
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn values_end_where_they_end() {
        let check = |text: &str, expected: Option<usize>| {
            let mut scanner = Scanner::new();
            let mut found = None;
            for (at, c) in text.char_indices() {
                match scanner.take(c) {
                    Scan::More => {}
                    Scan::End => found = Some(at + c.len_utf8()),
                    Scan::EndBefore => found = Some(at),
                    Scan::Fault => break,
                }
                if found.is_some() {
                    break;
                }
            }
            assert_eq!(found, expected, "{text:?}");
        };
        check(r#"{"a": [1, {"b}": "]\"}"}]} rest"#, Some(26));
        check("12,", Some(2));
        check("[-0.5e+3, 1]x", Some(12));
        check("null}", Some(4));
        check("01", Some(1));
        for text in
            ["{,}", "[1,]", "{\"a\" 1}", "-x", "1.x", "tru ", "\"\n\"", r#""\x""#, r#""\u12g4""#, "}", "[}"]
        {
            check(text, None);
        }
    }

    proptest! {
        #[test]
        fn what_is_json_is_json_for_the_crate_of_json(text in "[\\[\\]{}\",:truefalsn0-9eE+. \\\\u-]{0,12}") {
            let expected = breakers_core::Json::parse(&text).is_ok();
            prop_assert_eq!(is_value(&text), expected);
        }

        #[test]
        fn strings_are_those_of_the_crate_of_json(text in any::<String>()) {
            prop_assert_eq!(quoted(&text), serde_json::to_string(&text).unwrap());
        }
    }
}
