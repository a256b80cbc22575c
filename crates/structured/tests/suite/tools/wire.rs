//! What models write: each format once more, as its chat template has it, without any code of the crate.

use serde_json::{Map, Value};

use super::generate::{Call, Chance};

/// How JSON is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// As Python's `json.dumps` does: a blank after each comma and colon.
    Spaced,
    Compact,
    /// Characters that could stand as they are, escaped. The grammar does not write it.
    Escaped,
}

fn string(text: &str, style: Style) -> String {
    if style != Style::Escaped {
        return Value::from(text).to_string();
    }
    let mut out = "\"".to_owned();
    for c in text.chars() {
        match c {
            '/' => out += "\\/",
            c if c.is_ascii_alphanumeric() || c == ' ' => out.push(c),
            c => c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out += &format!("\\u{unit:04X}")),
        }
    }
    out + "\""
}

pub(super) fn json(value: &Value, style: Style) -> String {
    let (comma, colon) = if style == Style::Compact { (",", ":") } else { (", ", ": ") };
    match value {
        Value::String(text) => string(text, style),
        Value::Array(items) => {
            format!("[{}]", items.iter().map(|item| json(item, style)).collect::<Vec<_>>().join(comma))
        }
        Value::Object(members) => object(members, style, comma, colon),
        value => value.to_string(),
    }
}

fn object(members: &Map<String, Value>, style: Style, comma: &str, colon: &str) -> String {
    let members =
        members.iter().map(|(key, value)| format!("{}{colon}{}", string(key, style), json(value, style)));
    format!("{{{}}}", members.collect::<Vec<_>>().join(comma))
}

fn gemma(value: &Value) -> String {
    match value {
        Value::String(text) => format!("<|\"|>{text}<|\"|>"),
        Value::Array(items) => format!("[{}]", items.iter().map(gemma).collect::<Vec<_>>().join(",")),
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_by_key(|(key, _)| key.to_lowercase());
            let members = members.into_iter().map(|(key, value)| format!("{key}:{}", gemma(value)));
            format!("{{{}}}", members.collect::<Vec<_>>().join(","))
        }
        value => value.to_string(),
    }
}

/// A call between its format's markers.
fn one(format: &str, call: &Call, style: Style) -> String {
    let arguments = json(&Value::Object(call.arguments.clone()), style);
    let name = Value::from(call.name.as_str());
    match format {
        "hermes" | "hermes-bare" => {
            format!("<tool_call>\n{{\"name\": {name}, \"arguments\": {arguments}}}\n</tool_call>")
        }
        "llama3" | "gemma3" => format!("{{\"name\": {name}, \"parameters\": {arguments}}}"),
        "mistral-list" => format!("{{\"name\": {name}, \"arguments\": {arguments}}}"),
        "mistral" => format!("[TOOL_CALLS]{}[ARGS]{arguments}", call.name),
        "gemma4" => {
            format!(
                "<|tool_call>call:{}{}<tool_call|>",
                call.name,
                gemma(&Value::Object(call.arguments.clone()))
            )
        }
        "qwen3-coder" => {
            let parameters = call.arguments.iter().map(|(key, value)| {
                let value = match value {
                    Value::String(text) => text.clone(),
                    value => json(value, style),
                };
                format!("<parameter={key}>\n{value}\n</parameter>\n")
            });
            let parameters: String = parameters.collect();
            format!("<tool_call>\n<function={}>\n{parameters}</function>\n</tool_call>", call.name)
        }
        other => panic!("a new format needs a writer here: {other}"),
    }
}

/// An answer with calls. Text before calls is only written where the format has room for it.
pub(super) fn answer(format: &str, text: &str, calls: &[Call], style: Style) -> String {
    let each: Vec<String> = calls.iter().map(|call| one(format, call, style)).collect();
    match format {
        _ if calls.is_empty() => text.to_owned(),
        "hermes-bare" if text.is_empty() && calls.len() == 1 => one("mistral-list", &calls[0], style),
        "hermes" | "hermes-bare" | "qwen3-coder" => format!("{text}{}", each.join("\n")),
        "mistral" | "gemma4" => format!("{text}{}", each.concat()),
        "llama3" if text.is_empty() => each.join("; "),
        "llama3" => format!("{text}<|python_tag|>{}", each.join("; ")),
        "mistral-list" => format!("{text}[TOOL_CALLS] [{}]", each.join(", ")),
        "gemma3" => format!("{text}```tool_code\n{}\n```", each.join("\n")),
        other => panic!("a new format needs a writer here: {other}"),
    }
}

/// The arguments as the parser gives them back, where that is plain byte for byte.
pub(super) fn verbatim(format: &str, call: &Call, style: Style) -> Option<String> {
    let is_json = !["qwen3-coder", "gemma4"].contains(&format);
    is_json.then(|| json(&Value::Object(call.arguments.clone()), style))
}

/// Whether a format can write a call at all: strings without quotes cannot hold what ends them.
pub(super) fn can_write(format: &str, call: &Call) -> bool {
    fn all_strings(value: &Value, test: &dyn Fn(&str) -> bool) -> bool {
        match value {
            Value::String(text) => test(text),
            Value::Array(items) => items.iter().all(|item| all_strings(item, test)),
            Value::Object(members) => members.values().all(|value| all_strings(value, test)),
            _ => true,
        }
    }
    match format {
        // A mark that begins in the string and ends behind it is one, too.
        "gemma4" => call.arguments.values().all(|value| {
            all_strings(value, &|text| {
                let mark = "<|\"|>";
                format!("{text}{mark}").find(mark) == Some(text.len())
            })
        }),
        "qwen3-coder" => call.arguments.iter().all(|(key, value)| {
            let Value::String(text) = value else { return true };
            // Untyped values that look like JSON are JSON.
            let is_mixed = call.name == "anything" || key == "value";
            let trimmed = text.trim_matches([' ', '\t', '\r', '\n']);
            let is_word = ["true", "false", "null"].contains(&trimmed)
                || (trimmed.starts_with(['-', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9'])
                    && serde_json::from_str::<serde_json::Number>(trimmed).is_ok());
            let is_json = trimmed.starts_with(['{', '[']) || is_word;
            let end = "\n</parameter>\n";
            let tags = text.match_indices("</parameter>").any(|(at, tag)| {
                let rest = text[at + tag.len()..].trim_start_matches([' ', '\t', '\r', '\n']);
                ["<parameter=", "</function>"].iter().any(|next| rest.starts_with(next))
            });
            format!("{text}{end}").find(end) == Some(text.len()) && !tags && !(is_mixed && is_json)
        }),
        _ => true,
    }
}

/// Text before calls, with what looks like markers and is none.
pub(super) fn text(format: &str, chance: &mut Chance) -> String {
    let marker = match format {
        "hermes" | "hermes-bare" | "qwen3-coder" => "<tool_call>",
        "llama3" => "<|python_tag|>",
        "mistral" | "mistral-list" => "[TOOL_CALLS]",
        "gemma3" => "```tool_code",
        "gemma4" => "<|tool_call>",
        other => panic!("a new format needs its marker here: {other}"),
    };
    let part = &marker[..chance.below(marker.len())];
    let text = match chance.below(4) {
        0 => String::new(),
        1 => format!("Let me see.\n{part}{part} "),
        2 => format!("{}{part}", super::generate::text(chance)),
        _ => super::generate::text(chance),
    };
    let is_brace = ["llama3", "hermes-bare"].contains(&format)
        && text.trim_start_matches([' ', '\t', '\r', '\n']).starts_with('{');
    // The end of the text and the marker must not make one earlier.
    let is_first = format!("{text}{marker}").find(marker) == Some(text.len());
    if is_brace || !is_first { "Yes. ".to_owned() } else { text }
}
