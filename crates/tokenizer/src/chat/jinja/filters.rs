//! Jinja2's filters. Those on lists are in [`lists`](super::lists).

use super::arguments::Args;
use super::error::{Result, fail};
use super::eval::Interpreter;
use super::markup::{escaped, striptags, url_encode};
use super::operators::{LARGEST, check_size, escape};
use super::strings::{capitalize, center, lines, replace};
use super::text::{JsonStyle, str};
use super::value::Value;
use super::{lists, wrap};

/// Whether there is a filter of this name.
pub(super) fn exists(name: &str) -> bool {
    const NAMES: &[&str] = &[
        "abs",
        "attr",
        "batch",
        "capitalize",
        "center",
        "count",
        "d",
        "default",
        "dictsort",
        "e",
        "escape",
        "filesizeformat",
        "first",
        "float",
        "forceescape",
        "format",
        "groupby",
        "indent",
        "int",
        "items",
        "join",
        "last",
        "length",
        "list",
        "lower",
        "map",
        "max",
        "min",
        "pprint",
        "random",
        "reject",
        "rejectattr",
        "replace",
        "reverse",
        "round",
        "safe",
        "select",
        "selectattr",
        "slice",
        "sort",
        "string",
        "striptags",
        "sum",
        "title",
        "tojson",
        "trim",
        "truncate",
        "unique",
        "upper",
        "urlencode",
        "urlize",
        "wordcount",
        "wordwrap",
        "xmlattr",
    ];
    NAMES.contains(&name)
}

/// The value of a filter.
pub(super) fn filter(interpreter: &mut Interpreter<'_>, name: &str, value: &Value, mut args: Args) -> Result {
    interpreter.charge(1 + value.weight())?;
    let result = match lists::filter(interpreter, name, value, &mut args)? {
        Some(result) => result,
        None => other(interpreter, name, value, &mut args)?,
    };
    args.finish()?;
    interpreter.charge(result.weight())?;
    Ok(result)
}

/// Text that is escaped if `value` was.
fn like(value: &Value, text: String) -> Value {
    if matches!(value, Value::Markup(_)) { Value::Markup(text.into()) } else { Value::text(text) }
}

fn other(interpreter: &mut Interpreter<'_>, name: &str, value: &Value, args: &mut Args) -> Result {
    Ok(match name {
        "abs" => match (value.as_int(), value) {
            (Some(number), _) => Value::Int(number.abs()),
            (None, Value::Float(number)) => Value::Float(number.abs()),
            _ => return fail(format!("{} has no absolute value", value.described())),
        },
        "attr" => {
            let name = args.require("name")?;
            match name.as_text() {
                Some(name) => interpreter.attribute_only(value, name)?,
                None => return fail("the name of an attribute is a text"),
            }
        }
        "capitalize" => like(value, capitalize(&str(value)?)),
        "lower" => like(value, str(value)?.to_lowercase()),
        "upper" => like(value, str(value)?.to_uppercase()),
        "title" => Value::text(title(&str(value)?)),
        "string" => match value {
            Value::Markup(_) => value.clone(),
            _ => Value::text(str(value)?),
        },
        "center" => {
            let width = check_size(args.count("width")?.unwrap_or(80))?;
            like(value, center(&str(value)?, width, ' '))
        }
        "d" | "default" => {
            let default = args.take("default_value")?.unwrap_or_else(|| Value::text(""));
            let also_false = args.flag("boolean", false)?;
            let missing = matches!(value, Value::Undefined(_)) || also_false && !value.is_true();
            if missing { default } else { value.clone() }
        }
        "e" | "escape" => escaped(value)?,
        "forceescape" => Value::Markup(escape(&str(value)?).into()),
        "safe" => Value::Markup(str(value)?.into()),
        "filesizeformat" => Value::text(file_size(value, args.flag("binary", false)?)?),
        "float" => {
            let default = args.take("default")?.unwrap_or(Value::Float(0.0));
            match parse_float(value) {
                Some(number) => Value::Float(number),
                None => {
                    value.defined()?;
                    default
                }
            }
        }
        "int" => {
            let default = args.take("default")?.unwrap_or(Value::Int(0));
            let base = args.int("base")?.unwrap_or(10);
            match parse_int(value, base)? {
                Some(number) => Value::Int(number),
                None => {
                    value.defined()?;
                    default
                }
            }
        }
        "format" => {
            let format = str(value)?;
            let arguments = match (args.positional.is_empty(), args.named.is_empty()) {
                (false, false) => return fail("a format takes arguments by place or by name"),
                (_, true) => Value::tuple(std::mem::take(&mut args.positional).into()),
                _ => {
                    let named = std::mem::take(&mut args.named);
                    Value::dict(named.into_iter().map(|(name, value)| (Value::text(&*name), value)))?
                }
            };
            Value::text(super::format::percent(&format, &arguments)?)
        }
        "indent" => {
            value.defined()?;
            let width = args.take("width")?.unwrap_or(Value::Int(4));
            let first = args.flag("first", false)?;
            let blank = args.flag("blank", false)?;
            let indent = match (width.as_int(), width.as_text()) {
                (Some(width), _) => {
                    " ".repeat(check_size(usize::try_from(width.max(0)).unwrap_or(usize::MAX))?)
                }
                (None, Some(text)) => text.to_owned(),
                _ => return fail("the width of an indent is a number or a text"),
            };
            like(value, indented(&str(value)?, &indent, first, blank)?)
        }
        "pprint" => Value::text(wrap::pretty(value)?),
        "replace" => {
            let text = str(value)?;
            let (old, new) = (args.printed("old")?, args.printed("new")?);
            let (Some(old), Some(new)) = (old, new) else { return fail("replace takes two texts") };
            let count = args.int("count")?.and_then(|count| usize::try_from(count).ok());
            like(value, replace(&text, &old, &new, count)?)
        }
        "round" => {
            let precision = args.int("precision")?.unwrap_or(0);
            let method = args.text("method")?.unwrap_or_else(|| "common".to_owned());
            round(value, precision, &method)?
        }
        "striptags" => match value {
            Value::Undefined(_) => Value::text(""),
            _ => Value::text(striptags(&str(value)?)),
        },
        "trim" => {
            let chars = args.text("chars")?;
            let text = str(value)?;
            let text = match chars {
                Some(chars) => text.trim_matches(|c| chars.contains(c)),
                None => text.trim_matches(|c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)),
            };
            like(value, text.to_owned())
        }
        "tojson" => to_json(value, args)?,
        "truncate" => {
            let text = str(value)?;
            let length = args.count("length")?.unwrap_or(255);
            let kill_words = args.flag("killwords", false)?;
            let end = args.printed("end")?.unwrap_or_else(|| "...".to_owned());
            let leeway = args.count("leeway")?.unwrap_or(5);
            let (len, end_len) = (text.chars().count(), end.chars().count());
            if length < end_len {
                return fail("a length below that of the end");
            }
            if len <= length.saturating_add(leeway) {
                value.defined().map_or_else(|_| Value::text(""), |_| like(value, text))
            } else {
                let kept: String = text.chars().take(length - end_len).collect();
                let kept = match kept.rsplit_once(' ') {
                    Some((words, _)) if !kill_words => words,
                    _ => &kept,
                };
                Value::text(format!("{kept}{end}"))
            }
        }
        "urlencode" => Value::text(url_encode(value)?),
        "urlize" => {
            let limit = args.int("trim_url_limit")?.and_then(|limit| usize::try_from(limit).ok());
            let no_follow = args.flag("nofollow", false)?;
            let target = args.text("target")?;
            let rel = args.text("rel")?;
            args.take("extra_schemes")?;
            Value::text(wrap::urlize(&str(value)?, limit, no_follow, target.as_deref(), rel.as_deref()))
        }
        "wordcount" => {
            let text = str(value)?;
            let words =
                text.split(|c: char| c != '_' && !c.is_alphanumeric()).filter(|word| !word.is_empty());
            Value::Int(words.count() as i128)
        }
        "wordwrap" => {
            let text = str(value)?;
            let width = args.int("width")?.unwrap_or(79);
            let break_long = args.flag("break_long_words", true)?;
            let newline = args.text("wrapstring")?.unwrap_or_else(|| "\n".to_owned());
            let hyphens = args.flag("break_on_hyphens", true)?;
            let Some(width) = usize::try_from(width).ok().filter(|width| *width > 0) else {
                return fail("a width below 1");
            };
            let wrapped: Vec<String> = lines(&text, false)
                .iter()
                .map(|line| wrap::wrap(line, width, break_long, hyphens).join(&newline))
                .collect();
            Value::text(wrapped.join(&newline))
        }
        "xmlattr" => {
            let Value::Dict(dict) = value else { return fail(format!("{} is no dict", value.described())) };
            let autospace = args.flag("autospace", true)?;
            let mut parts = Vec::new();
            for (key, value) in dict.entries() {
                if matches!(value, Value::None | Value::Undefined(_)) {
                    continue;
                }
                let key = str(key)?;
                if key.contains(|c: char| c.is_whitespace() || matches!(c, '/' | '>' | '=')) {
                    return fail(format!("{key:?} is no name of an attribute"));
                }
                parts.push(format!("{}=\"{}\"", escape(&key), str(&escaped(value)?)?));
            }
            let text = parts.join(" ");
            Value::text(if autospace && !text.is_empty() { format!(" {text}") } else { text })
        }
        _ => return fail(format!("there is no filter {name:?}")),
    })
}

/// The filter `title`, for which words also begin after hyphens and brackets.
fn title(text: &str) -> String {
    let is_edge = |c: char| c.is_whitespace() || matches!(c, '-' | '(' | '{' | '[' | '<');
    let mut out = String::new();
    let mut inside = false;
    for c in text.chars() {
        match (is_edge(c), inside) {
            (true, _) => out.push(c),
            (false, true) => out.extend(c.to_lowercase()),
            (false, false) => out.extend(c.to_uppercase()),
        }
        inside = !is_edge(c);
    }
    out
}

fn parse_float(value: &Value) -> Option<f64> {
    match value.as_text() {
        None => value.as_float(),
        Some(text) => {
            let text = text.trim().replace('_', "");
            let is_number =
                text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'+' | b'-'));
            text.parse().ok().filter(|_| is_number)
        }
    }
}

fn parse_int(value: &Value, base: i128) -> Result<Option<i128>> {
    let Some(text) = value.as_text() else {
        return match value {
            Value::Float(number) if !number.is_finite() => fail("a number that is not finite"),
            Value::Float(number) if number.abs() < 1e36 => Ok(Some(*number as i128)),
            _ => Ok(value.as_int()),
        };
    };
    let Some(base) = u32::try_from(base).ok().filter(|base| matches!(base, 0 | 2..=36)) else {
        return Ok(None);
    };
    let lower = text.trim().to_lowercase().replace('_', "");
    let (sign, digits) = match lower.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", lower.strip_prefix('+').unwrap_or(&lower)),
    };
    let prefixes = [("0x", 16), ("0o", 8), ("0b", 2)];
    let with_prefix = prefixes
        .iter()
        .find(|(prefix, of)| digits.starts_with(prefix) && (base == *of || base == 0))
        .map(|(prefix, of)| (&digits[prefix.len()..], *of));
    let (digits, base) = with_prefix.unwrap_or((digits, if base == 0 { 10 } else { base }));
    let whole = i128::from_str_radix(&format!("{sign}{digits}"), base)
        .ok()
        .filter(|number| !digits.starts_with(['+', '-']) && number.unsigned_abs() <= LARGEST);
    // "3.7" is 3.
    Ok(whole.or_else(|| parse_float(value).filter(|number| number.abs() < 1e36).map(|number| number as i128)))
}

fn file_size(value: &Value, binary: bool) -> Result<String> {
    let Some(bytes) = parse_float(value) else { return fail(format!("{} is no size", value.described())) };
    let base = if binary { 1024.0 } else { 1000.0 };
    let units = match binary {
        true => ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"],
        false => ["kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"],
    };
    if bytes == 1.0 {
        return Ok("1 Byte".to_owned());
    }
    if bytes < base {
        return Ok(format!("{} Bytes", bytes as i64));
    }
    let mut unit = base;
    for (i, name) in units.iter().enumerate() {
        unit *= base;
        if bytes < unit || i == units.len() - 1 {
            return Ok(format!("{:.1} {name}", base * bytes / unit));
        }
    }
    Ok(String::new())
}

fn indented(text: &str, indent: &str, first: bool, blank: bool) -> Result<String> {
    let text = format!("{text}\n");
    let parts = lines(&text, false);
    check_size(text.len() + parts.len().saturating_mul(indent.len()))?;
    let mut out = String::new();
    for (i, line) in parts.iter().enumerate() {
        if i > 0 {
            out.push('\n');
        }
        if i > 0 && (blank || !line.is_empty()) || i == 0 && first {
            out.push_str(indent);
        }
        out.push_str(line);
    }
    Ok(out)
}

fn round(value: &Value, precision: i128, method: &str) -> Result {
    let Some(number) = value.as_float() else {
        return fail(format!("{} cannot be rounded", value.described()));
    };
    let precision = precision.clamp(-320, 320);
    let scale = 10f64.powi(precision as i32);
    Ok(match method {
        "ceil" => Value::Float((number * scale).ceil() / scale),
        "floor" => Value::Float((number * scale).floor() / scale),
        "common" => match value.as_int() {
            Some(whole) if precision >= 0 => Value::Int(whole),
            Some(whole) => {
                let unit = 10i128.checked_pow(precision.unsigned_abs() as u32);
                let Some(unit) = unit else { return Ok(Value::Int(0)) };
                let (down, rest) = (whole.div_euclid(unit), whole.rem_euclid(unit));
                let up = rest * 2 > unit || rest * 2 == unit && down % 2 != 0;
                Value::Int((down + i128::from(up)) * unit)
            }
            None if !number.is_finite() => value.clone(),
            None if precision >= 0 => {
                Value::Float(format!("{number:.*}", precision as usize).parse().unwrap_or(number))
            }
            None => {
                let unit = 10f64.powi(-precision as i32);
                Value::Float((number / unit).round_ties_even() * unit)
            }
        },
        _ => return fail("numbers are rounded by \"common\", \"ceil\" or \"floor\""),
    })
}

/// `tojson`, with the arguments that `transformers` gives it.
fn to_json(value: &Value, args: &mut Args) -> Result {
    let ensure_ascii = args.flag("ensure_ascii", false)?;
    let indent = args.take("indent")?;
    let separators = args.take("separators")?;
    let sort_keys = args.flag("sort_keys", false)?;
    let indent = match indent {
        None | Some(Value::None) => None,
        Some(value) => match (value.as_text(), value.as_int()) {
            (Some(text), _) => Some(text.to_owned()),
            (None, Some(width)) if width <= 64 => Some(" ".repeat(usize::try_from(width).unwrap_or(0))),
            _ => return fail("an indent is a text or a number up to 64"),
        },
    };
    let separators = match separators {
        None | Some(Value::None) => None,
        Some(value) => {
            let parts = value.iterate()?;
            match (parts.len(), parts.first().and_then(Value::as_text), parts.last().and_then(Value::as_text))
            {
                (2, Some(item), Some(key)) => Some((item.to_owned(), key.to_owned())),
                _ => return fail("separators are two texts"),
            }
        }
    };
    let (item, key) = match &separators {
        Some((item, key)) => (item.as_str(), key.as_str()),
        None => (if indent.is_some() { "," } else { ", " }, ": "),
    };
    let style = JsonStyle { ensure_ascii, sort_keys, indent: indent.as_deref(), item, key };
    let mut out = String::new();
    style.write(value, 0, &mut out)?;
    check_size(out.len())?;
    Ok(Value::text(out))
}
