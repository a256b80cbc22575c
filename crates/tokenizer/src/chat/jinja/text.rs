//! How Python prints values.

use std::fmt::Write as _;

use super::error::{Result, fail};
use super::value::Value;

/// How deep values may be nested in order to be printed.
const MAX_DEPTH: usize = 200;

/// Python's `str`.
pub(super) fn str(value: &Value) -> Result<String> {
    let mut out = String::new();
    write_str(value, &mut out)?;
    Ok(out)
}

/// Appends Python's `str`.
pub(super) fn write_str(value: &Value, out: &mut String) -> Result<()> {
    match value {
        Value::Undefined(_) => Ok(()),
        Value::Text(text) | Value::Markup(text) => {
            out.push_str(text);
            Ok(())
        }
        Value::Joiner(_) | Value::Cycler(_) | Value::Generator(_) => {
            fail(format!("a {} has no text that is always the same", value.kind()))
        }
        _ => write_repr(value, 0, out),
    }
}

/// Python's `repr`.
pub(super) fn repr(value: &Value) -> Result<String> {
    let mut out = String::new();
    write_repr(value, 0, &mut out)?;
    Ok(out)
}

fn write_list(items: &[Value], depth: usize, out: &mut String) -> Result<()> {
    for (i, item) in items.iter().enumerate() {
        out.push_str(if i > 0 { ", " } else { "" });
        write_repr(item, depth + 1, out)?;
    }
    Ok(())
}

fn write_dict(entries: &[(Value, Value)], depth: usize, out: &mut String) -> Result<()> {
    out.push('{');
    for (i, (key, value)) in entries.iter().enumerate() {
        out.push_str(if i > 0 { ", " } else { "" });
        write_repr(key, depth + 1, out)?;
        out.push_str(": ");
        write_repr(value, depth + 1, out)?;
    }
    out.push('}');
    Ok(())
}

fn write_repr(value: &Value, depth: usize, out: &mut String) -> Result<()> {
    if depth > MAX_DEPTH {
        return fail("a value is nested too deeply to be printed");
    }
    match value {
        Value::Undefined(_) => out.push_str("Undefined"),
        Value::None => out.push_str("None"),
        Value::Bool(true) => out.push_str("True"),
        Value::Bool(false) => out.push_str("False"),
        Value::Int(value) => _ = write!(out, "{value}"),
        Value::Float(value) => out.push_str(&float(*value)),
        Value::Text(text) => quoted(text, out),
        Value::Markup(text) => {
            out.push_str("Markup(");
            quoted(text, out);
            out.push(')');
        }
        Value::List(items) => {
            out.push('[');
            write_list(&items.items, depth, out)?;
            out.push(']');
        }
        Value::Tuple(items) => {
            out.push('(');
            write_list(&items.items, depth, out)?;
            out.push_str(if items.items.len() == 1 { ",)" } else { ")" });
        }
        Value::View(kind, items) => {
            _ = write!(out, "{kind}([");
            write_list(&items.items, depth, out)?;
            out.push_str("])");
        }
        Value::Dict(dict) => write_dict(dict.entries(), depth, out)?,
        Value::Range(range) => {
            _ = write!(out, "range({}, {}", range.start, range.stop);
            if range.step != 1 {
                _ = write!(out, ", {}", range.step);
            }
            out.push(')');
        }
        Value::Namespace(attributes) => {
            let Ok(attributes) = attributes.try_borrow() else {
                return fail("a namespace holds itself");
            };
            out.push_str("<Namespace ");
            write_dict(attributes.entries(), depth, out)?;
            out.push('>');
        }
        Value::Macro(value) if value.definition.name.is_empty() => out.push_str("<Macro anonymous>"),
        Value::Macro(value) => {
            out.push_str("<Macro ");
            quoted(&value.definition.name, out);
            out.push('>');
        }
        Value::Loop(state) => {
            _ = write!(out, "<LoopContext {}/{}>", state.index.get() + 1, state.items.len())
        }
        Value::Generator(_) | Value::Cycler(_) | Value::Joiner(_) | Value::Function(_) | Value::Method(_) => {
            return fail(format!("a {} has no text that is always the same", value.kind()));
        }
    }
    Ok(())
}

/// Whether Python's `repr` shows a character unescaped.
fn is_printable(c: char) -> bool {
    !(c.is_control()
        || c.is_whitespace() && c != ' '
        || matches!(c as u32, 0xad | 0x600..=0x605 | 0x61c | 0x6dd | 0x70f | 0x180e | 0x200b..=0x200f
            | 0x202a..=0x202e | 0x2060..=0x206f | 0xe000..=0xf8ff | 0xfeff | 0xfff0..=0xfffb
            | 0xfffe..=0xffff | 0xe0000..=0xe0fff | 0xf0000..))
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
            c if is_printable(c) => out.push(c),
            c => {
                _ = match c as u32 {
                    code @ 0..=0xff => write!(out, "\\x{code:02x}"),
                    code @ 0..=0xffff => write!(out, "\\u{code:04x}"),
                    code => write!(out, "\\U{code:08x}"),
                }
            }
        }
    }
    out.push(quote);
}

/// A finite float as both `repr` and `json.dumps` write it.
pub(super) fn float(value: f64) -> String {
    if value.is_nan() {
        "nan".to_owned()
    } else if value.is_infinite() {
        if value > 0.0 { "inf".to_owned() } else { "-inf".to_owned() }
    } else if value != 0.0 && !(1e-4..1e16).contains(&value.abs()) {
        exponent(&format!("{value:e}"))
    } else {
        format!("{value:?}")
    }
}

/// Rust writes 1e-5 where Python writes 1e-05.
pub(super) fn exponent(text: &str) -> String {
    let (digits, exponent) = text.split_once('e').unwrap_or((text, "0"));
    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |rest| ('-', rest));
    format!("{digits}e{sign}{exponent:0>2}")
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
    pub(super) fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<()> {
        if depth > MAX_DEPTH {
            return fail("a value is nested too deeply for JSON");
        }
        match value {
            Value::None => out.push_str("null"),
            Value::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Value::Int(value) => _ = write!(out, "{value}"),
            Value::Float(value) if value.is_nan() => out.push_str("NaN"),
            Value::Float(value) if value.is_infinite() => {
                out.push_str(if *value > 0.0 { "Infinity" } else { "-Infinity" });
            }
            Value::Float(value) => out.push_str(&float(*value)),
            Value::Text(text) | Value::Markup(text) => self.string(text, out),
            Value::List(items) | Value::Tuple(items) => {
                if items.items.is_empty() {
                    out.push_str("[]");
                    return Ok(());
                }
                out.push('[');
                for (i, item) in items.items.iter().enumerate() {
                    self.between(i, depth + 1, out);
                    self.write(item, depth + 1, out)?;
                }
                self.newline(depth, out);
                out.push(']');
            }
            Value::Dict(dict) => {
                let mut entries: Vec<_> = dict.entries().iter().collect();
                if entries.is_empty() {
                    out.push_str("{}");
                    return Ok(());
                }
                if self.sort_keys {
                    super::lists::sort_by(&mut entries, |entry| &entry.0)?;
                }
                out.push('{');
                for (i, (key, value)) in entries.into_iter().enumerate() {
                    self.between(i, depth + 1, out);
                    self.object_key(key, out)?;
                    out.push_str(self.key);
                    self.write(value, depth + 1, out)?;
                }
                self.newline(depth, out);
                out.push('}');
            }
            _ => return fail(format!("{} is not JSON", value.described())),
        }
        Ok(())
    }

    fn object_key(&self, key: &Value, out: &mut String) -> Result<()> {
        match key {
            Value::Text(text) | Value::Markup(text) => self.string(text, out),
            Value::None | Value::Bool(_) | Value::Int(_) | Value::Float(_) => {
                out.push('"');
                self.write(key, 0, out)?;
                out.push('"');
            }
            _ => return fail("a key is not a string"),
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
