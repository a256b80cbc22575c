//! HTML and addresses: tags, entities, percent signs.

use super::error::{Result, fail};
use super::operators::escape;
use super::text::str;
use super::value::Value;

/// Text without tags and comments, its whitespace collapsed.
pub(super) fn striptags(text: &str) -> String {
    let mut rest = text.to_owned();
    while let Some(start) = rest.find("<!--") {
        let Some(len) = rest[start..].find("-->") else { break };
        rest.replace_range(start..start + len + 3, "");
    }
    while let Some(start) = rest.find('<') {
        let Some(len) = rest[start..].find('>') else { break };
        rest.replace_range(start..=start + len, "");
    }
    let words: Vec<&str> = rest.split_whitespace().collect();
    unescape(&words.join(" "))
}

/// Characters in place of the entities of HTML.
pub(super) fn unescape(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let end = rest.find(';').filter(|end| *end <= 12);
        let named = end.and_then(|end| match &rest[1..end] {
            "amp" => Some('&'),
            "lt" => Some('<'),
            "gt" => Some('>'),
            "quot" => Some('"'),
            "apos" => Some('\''),
            "nbsp" => Some('\u{a0}'),
            "copy" => Some('©'),
            "hellip" => Some('…'),
            "mdash" => Some('—'),
            "ndash" => Some('–'),
            "euro" => Some('€'),
            number => {
                let number = number.strip_prefix('#')?;
                let code = match number.strip_prefix(['x', 'X']) {
                    Some(hex) => u32::from_str_radix(hex, 16).ok()?,
                    None => number.parse().ok()?,
                };
                char::from_u32(code)
            }
        });
        match (named, end) {
            (Some(c), Some(end)) => {
                out.push(c);
                rest = &rest[end + 1..];
            }
            _ => {
                out.push('&');
                rest = &rest[1..];
            }
        }
    }
    out + rest
}

fn quote(text: &str, is_safe: fn(u8) -> bool) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-' | b'~') || is_safe(byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// Encodes a text, or pairs, as part of a URL.
pub(super) fn url_encode(value: &Value) -> Result<String> {
    let pairs = match value {
        Value::Dict(dict) => dict.entries().to_vec(),
        _ if value.as_text().is_some() || !value.is_iterable() => {
            return Ok(quote(&str(value)?, |b| b == b'/'));
        }
        _ => {
            let mut pairs = Vec::new();
            for item in value.iterate()? {
                match <[Value; 2]>::try_from(item.iterate()?) {
                    Ok([key, value]) => pairs.push((key, value)),
                    Err(_) => return fail("a query is made of pairs"),
                }
            }
            pairs
        }
    };
    let encode = |value: &Value| Ok(quote(&str(value)?, |_| false).replace("%20", "+"));
    let parts: Vec<String> = pairs
        .iter()
        .map(|(key, value)| Ok(format!("{}={}", encode(key)?, encode(value)?)))
        .collect::<Result<_>>()?;
    Ok(parts.join("&"))
}

/// Escapes the printed form of a value.
pub(super) fn escaped(value: &Value) -> Result {
    Ok(match value {
        Value::Markup(_) => value.clone(),
        _ => Value::Markup(escape(&str(value)?).into()),
    })
}
