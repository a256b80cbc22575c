//! The methods of Python's strings.

use super::arguments::Args;
use super::error::{Result, fail};
use super::eval::Interpreter;
use super::format::str_format;
use super::operators::check_size;
use super::text::str;
use super::value::Value;

/// `str.capitalize`.
pub(super) fn capitalize(text: &str) -> String {
    let mut chars = text.chars();
    let first: String = chars.next().map(|c| c.to_uppercase().collect()).unwrap_or_default();
    first + &chars.as_str().to_lowercase()
}

/// `str.splitlines`.
pub(super) fn lines(text: &str, keep_ends: bool) -> Vec<String> {
    let is_end = |c: char| {
        matches!(
            c,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut out = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let Some(at) = rest.find(is_end) else {
            out.push(rest.to_owned());
            break;
        };
        let width = match rest[at..].starts_with("\r\n") {
            true => 2,
            false => rest[at..].chars().next().map_or(1, char::len_utf8),
        };
        out.push(rest[..if keep_ends { at + width } else { at }].to_owned());
        rest = &rest[at + width..];
    }
    out
}

/// The part of a text between Python's optional `start` and `end`, which count characters.
struct Window {
    /// In bytes.
    start: usize,
    end: usize,
    /// Whether `start` is beyond the text.
    is_beyond: bool,
}

fn window(text: &str, args: &mut Args) -> Result<Window> {
    let (start, end) = (args.int("start")?, args.int("end")?);
    let len = text.chars().count() as i128;
    let at = |position: i128| text.char_indices().nth(position as usize).map_or(text.len(), |(at, _)| at);
    let bound = |bound: i128| if bound < 0 { (bound + len).max(0) } else { bound };
    let (start, end) = (bound(start.unwrap_or(0)), bound(end.unwrap_or(len)).min(len));
    let is_beyond = start > end;
    let (start, end) = (at(start.min(len)), at(end));
    Ok(Window { start: start.min(end), end, is_beyond })
}

fn pad(text: &str, args: &mut Args, place: fn(usize) -> (usize, usize)) -> Result {
    let width = args.int("width")?;
    let Some(width) = width else { return fail("the argument \"width\" is missing") };
    let fill = args.text("fillchar")?.unwrap_or_else(|| " ".to_owned());
    if fill.chars().count() != 1 {
        return fail("the fill is not one character");
    }
    let len = text.chars().count();
    let width = check_size(usize::try_from(width.max(0)).unwrap_or(usize::MAX))?;
    let (left, right) = place(width.saturating_sub(len));
    Ok(Value::text(format!("{}{text}{}", fill.repeat(left), fill.repeat(right))))
}

/// How `str.center` places the padding for a text of this length in this width.
pub(super) fn center(text: &str, width: usize, fill: char) -> String {
    let len = text.chars().count();
    let all = width.saturating_sub(len);
    let left = all / 2 + (all & width & 1);
    let fill = |n: usize| fill.to_string().repeat(n);
    format!("{}{text}{}", fill(left), fill(all - left))
}

fn strip<'a>(text: &'a str, chars: Option<&str>, left: bool, right: bool) -> &'a str {
    let strips = |c: char| match chars {
        Some(chars) => chars.contains(c),
        None => is_space(c),
    };
    let text = if left { text.trim_start_matches(strips) } else { text };
    if right { text.trim_end_matches(strips) } else { text }
}

fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

fn split(text: &str, separator: Option<&str>, most: Option<usize>, from_right: bool) -> Result<Vec<String>> {
    let most = most.unwrap_or(usize::MAX);
    let parts: Vec<String> = match separator {
        Some("") => return fail("an empty separator"),
        Some(separator) if from_right => {
            let mut parts: Vec<String> =
                text.rsplitn(most.saturating_add(1), separator).map(str::to_owned).collect();
            parts.reverse();
            parts
        }
        Some(separator) => text.splitn(most.saturating_add(1), separator).map(str::to_owned).collect(),
        None => {
            let mut parts = Vec::new();
            let mut rest =
                if from_right { text.trim_end_matches(is_space) } else { text.trim_start_matches(is_space) };
            while !rest.is_empty() {
                if parts.len() == most {
                    let last = if from_right { rest.trim_end_matches(is_space) } else { rest };
                    let last = if from_right { last } else { last.trim_start_matches(is_space) };
                    parts.push(last.to_owned());
                    break;
                }
                if from_right {
                    let at = rest
                        .char_indices()
                        .rev()
                        .find(|&(_, c)| is_space(c))
                        .map_or(0, |(at, c)| at + c.len_utf8());
                    parts.push(rest[at..].to_owned());
                    rest = rest[..at].trim_end_matches(is_space);
                } else {
                    let at = rest.find(is_space).unwrap_or(rest.len());
                    parts.push(rest[..at].to_owned());
                    rest = rest[at..].trim_start_matches(is_space);
                }
            }
            if from_right {
                parts.reverse();
            }
            parts
        }
    };
    Ok(parts)
}

fn texts(parts: Vec<String>) -> Value {
    Value::list(parts.into_iter().map(Value::text).collect())
}

/// The argument of `startswith` and similar methods: a text or a tuple of texts.
fn affixes(value: &Value) -> Result<Vec<String>> {
    let one = |value: &Value| match value.as_text() {
        Some(text) => Ok(text.to_owned()),
        None => fail(format!("expected a text or a tuple of texts, not {}", value.described())),
    };
    match value {
        Value::Tuple(items) => items.items.iter().map(one).collect(),
        _ => Ok(vec![one(value)?]),
    }
}

fn swapcase(text: &str) -> String {
    let swap = |c: char| -> String {
        if c.is_uppercase() { c.to_lowercase().collect() } else { c.to_uppercase().collect() }
    };
    text.chars().map(swap).collect()
}

/// `str.title`.
fn title(text: &str) -> String {
    let mut out = String::new();
    let mut inside = false;
    for c in text.chars() {
        match inside {
            true => out.extend(c.to_lowercase()),
            false => out.extend(c.to_uppercase()),
        }
        inside = c.is_alphabetic();
    }
    out
}

fn is_title(text: &str) -> bool {
    let (mut inside, mut any) = (false, false);
    for c in text.chars() {
        if c.is_uppercase() && inside || c.is_lowercase() && !inside {
            return false;
        }
        inside = c.is_uppercase() || c.is_lowercase();
        any |= inside;
    }
    any
}

fn expand_tabs(text: &str, width: usize) -> Result<String> {
    let mut out = String::new();
    let mut column = 0;
    for c in text.chars() {
        match c {
            '\t' => {
                let spaces = if width == 0 { 0 } else { width - column % width };
                check_size(out.len() + spaces)?;
                out.push_str(&" ".repeat(spaces));
                column += spaces;
            }
            '\n' | '\r' => {
                out.push(c);
                column = 0;
            }
            c => {
                out.push(c);
                column += 1;
            }
        }
    }
    Ok(out)
}

/// `str.replace`; `None`: all of them.
pub(super) fn replace(text: &str, old: &str, new: &str, count: Option<usize>) -> Result<String> {
    let found = if old.is_empty() { text.chars().count() + 1 } else { text.matches(old).count() };
    let found = found.min(count.unwrap_or(usize::MAX));
    check_size(text.len().saturating_add(new.len().saturating_mul(found)))?;
    Ok(match count {
        None => text.replace(old, new),
        Some(count) => text.replacen(old, new, count),
    })
}

/// Calls a method of a text.
pub(super) fn of_text(interpreter: &mut Interpreter<'_>, text: &str, name: &str, args: &mut Args) -> Result {
    let position = |at: Option<usize>| match at {
        Some(at) => Value::Int(text[..at].chars().count() as i128),
        None => Value::Int(-1),
    };
    let every = |test: fn(char) -> bool| Value::Bool(!text.is_empty() && text.chars().all(test));
    Ok(match name {
        "capitalize" => Value::text(capitalize(text)),
        "casefold" => Value::text(text.to_lowercase().replace('ß', "ss")),
        "lower" => Value::text(text.to_lowercase()),
        "upper" => Value::text(text.to_uppercase()),
        "swapcase" => Value::text(swapcase(text)),
        "title" => Value::text(title(text)),
        "center" => {
            let width = check_size(args.count("width")?.unwrap_or(0))?;
            let fill = args.text("fillchar")?.unwrap_or_else(|| " ".to_owned());
            let mut chars = fill.chars();
            match (chars.next(), chars.next()) {
                (Some(fill), None) => Value::text(center(text, width, fill)),
                _ => return fail("the fill is not one character"),
            }
        }
        "ljust" => pad(text, args, |n| (0, n))?,
        "rjust" => pad(text, args, |n| (n, 0))?,
        "zfill" => {
            let width = check_size(args.count("width")?.unwrap_or(0))?;
            let zeros = "0".repeat(width.saturating_sub(text.chars().count()));
            let sign = if text.starts_with(['+', '-']) { 1 } else { 0 };
            Value::text(format!("{}{zeros}{}", &text[..sign], &text[sign..]))
        }
        "expandtabs" => Value::text(expand_tabs(text, args.count("tabsize")?.unwrap_or(8))?),
        "count" => {
            let part = args.require_text("sub")?;
            let window = window(text, args)?;
            let inside = &text[window.start..window.end];
            let n = match (window.is_beyond, part.is_empty()) {
                (true, _) => 0,
                (false, true) => inside.chars().count() + 1,
                (false, false) => inside.matches(&part).count(),
            };
            Value::Int(n as i128)
        }
        "find" | "index" | "rfind" | "rindex" => {
            let part = args.require_text("sub")?;
            let window = window(text, args)?;
            let inside = &text[window.start..window.end];
            let at = if name.starts_with('r') { inside.rfind(&part) } else { inside.find(&part) };
            let at = at.filter(|_| !window.is_beyond).map(|at| at + window.start);
            if at.is_none() && name.ends_with("index") {
                return fail("the text has no such part");
            }
            position(at)
        }
        "startswith" | "endswith" => {
            let wanted = affixes(&args.require("prefix")?)?;
            let window = window(text, args)?;
            let inside = &text[window.start..window.end];
            let fits = |affix: &String| match name {
                "startswith" => inside.starts_with(affix.as_str()),
                _ => inside.ends_with(affix.as_str()),
            };
            Value::Bool(!window.is_beyond && wanted.iter().any(fits))
        }
        "removeprefix" => {
            let prefix = args.require_text("prefix")?;
            Value::text(text.strip_prefix(&*prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let suffix = args.require_text("suffix")?;
            Value::text(text.strip_suffix(&*suffix).unwrap_or(text))
        }
        "strip" | "lstrip" | "rstrip" => {
            let chars = args.text("chars")?;
            Value::text(strip(text, chars.as_deref(), name != "rstrip", name != "lstrip"))
        }
        "split" | "rsplit" => {
            let separator = args.text("sep")?;
            let most = args.int("maxsplit")?.and_then(|most| usize::try_from(most).ok());
            texts(split(text, separator.as_deref(), most, name == "rsplit")?)
        }
        "splitlines" => texts(lines(text, args.flag("keepends", false)?)),
        "partition" | "rpartition" => {
            let separator = args.require_text("sep")?;
            if separator.is_empty() {
                return fail("an empty separator");
            }
            let found = if name == "partition" {
                text.split_once(&*separator)
            } else {
                text.rsplit_once(&*separator)
            };
            let parts = match (found, name) {
                (Some((before, after)), _) => [before, &separator, after],
                (None, "partition") => [text, "", ""],
                (None, _) => ["", "", text],
            };
            Value::tuple(parts.into_iter().map(Value::text).collect())
        }
        "join" => {
            let mut out = String::new();
            for (i, item) in args.require("iterable")?.iterate()?.iter().enumerate() {
                let Some(part) = item.as_text() else {
                    return fail(format!("item {i} of a join is {}, expected a text", item.described()));
                };
                if i > 0 {
                    out.push_str(text);
                }
                out.push_str(part);
                check_size(out.len())?;
            }
            Value::text(out)
        }
        "replace" => {
            let (old, new) = (args.require_text("old")?, args.require_text("new")?);
            let count = args.int("count")?.and_then(|count| usize::try_from(count).ok());
            Value::text(replace(text, &old, &new, count)?)
        }
        "format" | "format_map" => {
            let positional: Vec<Value> = std::mem::take(&mut args.positional).into();
            let (positional, named) = match name {
                "format" => (positional, std::mem::take(&mut args.named)),
                _ => {
                    let Some(Value::Dict(dict)) = positional.first() else {
                        return fail("format_map needs a dict");
                    };
                    let named =
                        dict.entries().iter().filter_map(|(k, v)| Some((k.as_text()?.into(), v.clone())));
                    (Vec::new(), named.collect())
                }
            };
            let named = |name: &str| named.iter().find(|(found, _)| &**found == name).map(|(_, v)| v.clone());
            let interpreter = &*interpreter;
            Value::text(str_format(text, &positional, &named, &|value, name| {
                interpreter.attribute(value, name)
            })?)
        }
        "isalnum" => every(char::is_alphanumeric),
        "isalpha" => every(char::is_alphabetic),
        "isascii" => Value::Bool(text.is_ascii()),
        "isdecimal" | "isdigit" => {
            every(|c| c.is_numeric() && (!c.is_ascii() || c.is_ascii_digit()) && !is_fraction(c))
        }
        "isnumeric" => every(char::is_numeric),
        "isspace" => every(is_space),
        "isprintable" => Value::Bool(
            str(&Value::list(vec![Value::text(text)]))?.len() >= text.len()
                && !text.chars().any(|c| c.is_control()),
        ),
        "isidentifier" => {
            let mut chars = text.chars();
            let first = chars.next().is_some_and(|c| c == '_' || c.is_alphabetic());
            Value::Bool(first && chars.all(|c| c == '_' || c.is_alphanumeric()))
        }
        "islower" => {
            Value::Bool(text.chars().any(char::is_lowercase) && !text.chars().any(char::is_uppercase))
        }
        "isupper" => {
            Value::Bool(text.chars().any(char::is_uppercase) && !text.chars().any(char::is_lowercase))
        }
        "istitle" => Value::Bool(is_title(text)),
        "translate" => {
            let table = args.require("table")?;
            let Value::Dict(table) = table else { return fail("a table for translate is a dict") };
            let mut out = String::new();
            for c in text.chars() {
                match table.get(&Value::Int(i128::from(c as u32)))? {
                    None => out.push(c),
                    Some(Value::None) => {}
                    Some(value) => match (value.as_text(), value.as_int()) {
                        (Some(text), _) => out.push_str(text),
                        (None, Some(code)) => out.extend(u32::try_from(code).ok().and_then(char::from_u32)),
                        _ => return fail("a table for translate holds texts and numbers"),
                    },
                }
            }
            Value::text(out)
        }
        "maketrans" => {
            let first = args.require("x")?;
            let code = |c: char| Value::Int(i128::from(c as u32));
            if let Value::Dict(dict) = &first {
                let entry =
                    |(key, value): &(Value, Value)| match key.as_text().map(|text| text.chars().next()) {
                        Some(Some(c)) => (code(c), value.clone()),
                        _ => (key.clone(), value.clone()),
                    };
                return Value::dict(dict.entries().iter().map(entry));
            }
            let from = first.as_text().unwrap_or_default().to_owned();
            let to = args.require_text("y")?;
            if from.chars().count() != to.chars().count() {
                return fail("maketrans needs texts of one length");
            }
            let gone = args.text("z")?.unwrap_or_default();
            let pairs = from.chars().zip(to.chars()).map(|(from, to)| (code(from), code(to)));
            return Value::dict(
                pairs.chain(gone.chars().map(|c| (code(c), Value::None))).collect::<Vec<_>>(),
            );
        }
        _ => return fail(format!("a text has no method {name}")),
    })
}

/// Numbers that are not digits, such as ½.
fn is_fraction(c: char) -> bool {
    matches!(c as u32, 0xbc..=0xbe | 0x2150..=0x218b | 0x3007 | 0x3021..=0x3029 | 0x4e00..=0x9fff)
}
