//! What Python does when a template prints a value, writes JSON or formats a time.

use std::{borrow::Cow, fmt::Write as _, time::SystemTime};

use minijinja::{Error, ErrorKind, Output, State, Value, value::ValueKind};

/// Values may be nested this deep.
const MAX_DEPTH: usize = 128;

fn failed(what: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

fn never_fails(result: std::fmt::Result) -> Result<(), Error> {
    result.map_err(|_| failed("writing to a string failed"))
}

/// Prints a value as Python's `str` does.
pub(super) fn format(out: &mut Output<'_>, _: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    let mut text = String::new();
    match value.kind() {
        ValueKind::Undefined => {}
        ValueKind::String => text.push_str(value.as_str().unwrap_or_default()),
        _ => repr(value, 0, &mut text)?,
    }
    never_fails(out.write_str(&text))
}

/// Python's `repr`.
fn repr(value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(failed("a value is nested too deeply to be printed"));
    }
    match value.kind() {
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => number(value, out)?,
        ValueKind::String => quoted(value.as_str().unwrap_or_default(), out),
        ValueKind::Seq => {
            out.push('[');
            for (i, item) in value.try_iter()?.enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                repr(&item, depth + 1, out)?;
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            for (i, key) in value.try_iter()?.enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                repr(&key, depth + 1, out)?;
                out.push_str(": ");
                repr(&value.get_item(&key)?, depth + 1, out)?;
            }
            out.push('}');
        }
        _ => never_fails(write!(out, "{value}"))?,
    }
    Ok(())
}

/// Python's quotes: single ones, unless only they occur in the text.
fn quoted(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            c if c.is_ascii_control() => _ = write!(out, "\\x{:02x}", c as u32),
            c => out.push(c),
        }
    }
    out.push(quote);
}

/// A number as both `repr` and `json.dumps` write it.
fn number(value: &Value, out: &mut String) -> Result<(), Error> {
    if value.is_integer() {
        return never_fails(write!(out, "{value}"));
    }
    let float = f64::try_from(value.clone())?;
    if float.is_nan() {
        out.push_str("nan");
    } else if float.is_infinite() {
        out.push_str(if float > 0.0 { "inf" } else { "-inf" });
    } else if float != 0.0 && !(1e-4..1e16).contains(&float.abs()) {
        // Rust writes 1e-5 where Python writes 1e-05.
        let text = format!("{float:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |rest| ('-', rest));
        never_fails(write!(out, "{digits}e{sign}{exponent:0>2}"))?;
    } else {
        never_fails(write!(out, "{float:?}"))?;
    }
    Ok(())
}

/// The arguments of `json.dumps`.
pub(super) struct JsonStyle<'a> {
    pub(super) ensure_ascii: bool,
    pub(super) sort_keys: bool,
    pub(super) indent: Option<&'a str>,
    pub(super) item: &'a str,
    pub(super) key: &'a str,
}

impl JsonStyle<'_> {
    /// Appends a value as JSON.
    pub(super) fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(failed("a value is nested too deeply for JSON"));
        }
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => {
                let start = out.len();
                number(value, out)?;
                let name = match &out[start..] {
                    "nan" => "NaN",
                    "inf" => "Infinity",
                    "-inf" => "-Infinity",
                    _ => return Ok(()),
                };
                out.truncate(start);
                out.push_str(name);
            }
            ValueKind::String => self.string(value.as_str().unwrap_or_default(), out),
            ValueKind::Seq | ValueKind::Iterable => {
                let mut items = value.try_iter()?.peekable();
                if items.peek().is_none() {
                    out.push_str("[]");
                    return Ok(());
                }
                out.push('[');
                for (i, item) in items.enumerate() {
                    self.between(i, depth + 1, out);
                    self.write(&item, depth + 1, out)?;
                }
                self.newline(depth, out);
                out.push(']');
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if keys.is_empty() {
                    out.push_str("{}");
                    return Ok(());
                }
                if self.sort_keys {
                    keys.sort();
                }
                out.push('{');
                for (i, key) in keys.iter().enumerate() {
                    self.between(i, depth + 1, out);
                    self.object_key(key, out)?;
                    out.push_str(self.key);
                    self.write(&value.get_item(key)?, depth + 1, out)?;
                }
                self.newline(depth, out);
                out.push('}');
            }
            _ => return Err(failed("a value is not JSON")),
        }
        Ok(())
    }

    fn object_key(&self, key: &Value, out: &mut String) -> Result<(), Error> {
        match key.kind() {
            ValueKind::String => self.string(key.as_str().unwrap_or_default(), out),
            ValueKind::None | ValueKind::Bool | ValueKind::Number => {
                out.push('"');
                self.write(key, 0, out)?;
                out.push('"');
            }
            _ => return Err(failed("a key is not a string")),
        }
        Ok(())
    }

    fn between(&self, index: usize, depth: usize, out: &mut String) {
        out.push_str(if index > 0 { self.item } else { "" });
        self.newline(depth, out);
    }

    fn newline(&self, depth: usize, out: &mut String) {
        if let Some(indent) = self.indent {
            out.push('\n');
            (0..depth).for_each(|_| out.push_str(indent));
        }
    }

    fn string(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if c < ' ' || (self.ensure_ascii && c > '~') => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        _ = write!(out, "\\u{unit:04x}");
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

/// `{% generation %}` marks the text that training counts; for a prompt it means nothing, and it is no
/// tag of Jinja's own. It becomes a condition that always holds.
pub(super) fn without_generation_tags(source: &str) -> Cow<'_, str> {
    let mut out = String::new();
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        // From behind the opening on: the two share a percent sign in `{%}`.
        let Some(inner) = rest[at + 2..].find("%}").map(|len| &rest[at + 2..at + 2 + len]) else { break };
        let len = 2 + inner.len();
        let left = if inner.starts_with(['-', '+']) { &inner[..1] } else { "" };
        let right =
            if inner.len() > 1 && inner.ends_with(['-', '+']) { &inner[inner.len() - 1..] } else { "" };
        let statement = match inner[left.len()..inner.len() - right.len()].trim() {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => {
                out.push_str(&rest[..at + len + 2]);
                rest = &rest[at + len + 2..];
                continue;
            }
        };
        _ = write!(out, "{}{{%{left} {statement} {right}%}}", &rest[..at]);
        rest = &rest[at + len + 2..];
    }
    if out.is_empty() {
        return Cow::Borrowed(source);
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// Formats a time, in UTC, as C's `strftime` does in the C locale.
pub(super) fn strftime(format: &str, now: SystemTime) -> Result<String, Error> {
    const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, second_of_day) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days).ok_or_else(|| failed("the time is out of range"))?;
    let (hour, minute, second) = (second_of_day / 3600, second_of_day / 60 % 60, second_of_day % 60);
    let weekday = (days + 4) % 7;
    let first = days_before(year)?;
    let (hour_12, half) = ((hour + 11) % 12 + 1, if hour < 12 { "AM" } else { "PM" });
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = chars.next();
        // `%-d` and the like: without padding.
        let bare = directive == Some('-');
        if bare {
            directive = chars.next();
        }
        let padded = |n: u64, width: usize| if bare { n.to_string() } else { format!("{n:0width$}") };
        let text = match directive {
            Some('Y') => year.to_string(),
            Some('y') => padded(year % 100, 2),
            Some('m') => padded(month, 2),
            Some('d') => padded(day, 2),
            Some('e') => format!("{day:2}"),
            Some('j') => padded(days - first + 1, 3),
            Some('H') => padded(hour, 2),
            Some('I') => padded(hour_12, 2),
            Some('M') => padded(minute, 2),
            Some('S') => padded(second, 2),
            Some('p') => half.to_owned(),
            Some('A') => DAYS[weekday as usize].to_owned(),
            Some('a') => DAYS[weekday as usize][..3].to_owned(),
            Some('B') => MONTHS[month as usize - 1].to_owned(),
            Some('b' | 'h') => MONTHS[month as usize - 1][..3].to_owned(),
            Some('w') => weekday.to_string(),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('D') => format!("{month:02}/{day:02}/{:02}", year % 100),
            Some('R') => format!("{hour:02}:{minute:02}"),
            Some('Z') => "UTC".to_owned(),
            Some('z') => "+0000".to_owned(),
            Some('%') => "%".to_owned(),
            _ => return Err(failed("a directive of strftime_now is not supported")),
        };
        out.push_str(&text);
    }
    Ok(out)
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

/// Days from 1970 to the start of a year.
fn days_before(year: u64) -> Result<u64, Error> {
    let past =
        year.checked_sub(1).filter(|&past| past >= 1969).ok_or_else(|| failed("a year before 1970"))?;
    let leaps = |year: u64| year / 4 - year / 100 + year / 400;
    Ok((year - 1970) * 365 + leaps(past) - leaps(1969))
}

/// Year, month and day of a day counted from 1970.
fn civil(days: u64) -> Option<(u64, u64, u64)> {
    // A year has 365.2425 days on average; the estimate is at most one too high.
    let mut year = 1970 + days.checked_mul(400)? / 146_097;
    while days_before(year).ok()? > days {
        year -= 1;
    }
    while days_before(year + 1).ok()? <= days {
        year += 1;
    }
    let mut day = days - days_before(year).ok()?;
    let lengths = [31, if is_leap(year) { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    for (month, length) in (1..).zip(lengths) {
        if day < length {
            return Some((year, month, day + 1));
        }
        day -= length;
    }
    None
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times() {
        for (seconds, expected) in [
            (0, "1970-01-01 Thu 001 00:00:00 12 AM"),
            (951_782_399, "2000-02-28 Mon 059 23:59:59 11 PM"),
            (951_782_400, "2000-02-29 Tue 060 00:00:00 12 AM"),
            (1_735_689_599, "2024-12-31 Tue 366 23:59:59 11 PM"),
            (4_107_542_400, "2100-03-01 Mon 060 00:00:00 12 AM"),
        ] {
            let now = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(strftime("%F %a %j %T %I %p", now).unwrap(), expected);
        }
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_736_000_000);
        assert_eq!(strftime("%d %b %Y, %-m/%-d %%", now).unwrap(), "04 Jan 2025, 1/4 %");
        assert!(strftime("%Q", now).is_err());
        assert!(strftime("%", now).is_err());
    }

    #[test]
    fn printed_values() {
        for (value, expected) in [
            (Value::from(1e16), "1e+16"),
            (Value::from(1e-5), "1e-05"),
            (Value::from(123456.0), "123456.0"),
            (Value::from(-0.5), "-0.5"),
            (
                Value::from(vec![Value::from("it's"), Value::from(true), Value::from(())]),
                "[\"it's\", True, None]",
            ),
        ] {
            let mut out = String::new();
            repr(&value, 0, &mut out).unwrap();
            assert_eq!(out, expected);
        }
    }

    #[test]
    fn generation_tags() {
        let source = "a{%- generation %}b{% endgeneration -%} {% if x %}{% endif %}{% generation";
        let expected = "a{%- if true %}b{% endif -%} {% if x %}{% endif %}{% generation";
        assert_eq!(without_generation_tags(source), expected);
        assert_eq!(without_generation_tags("plain"), "plain");
    }
}
