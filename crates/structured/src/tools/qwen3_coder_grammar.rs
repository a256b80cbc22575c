//! Parameters in the form of Qwen3-Coder, by a JSON Schema.

use std::collections::BTreeSet;

use breakers_core::Tool;
use serde_json::{Map, Value, json};

use super::format::plain_name;
use super::kinds::{self, Kinds};
use super::lark::{self, ANY_TEXT};
use super::qwen3_coder::{FUNCTION, FUNCTION_END, MOST_SPACE, PARAMETER, PARAMETER_END};
use super::{Lark, ToolError};

/// The expression for a function's tag, its parameters, and its end.
///
/// # Errors
/// [`ToolError::Parameters`], [`ToolError::Name`].
pub(super) fn call(tool: &Tool, lark: &mut Lark<'_>) -> Result<String, ToolError> {
    let name = plain_name(&tool.name, "qwen3-coder")?;
    let parameters = Value::Object(lark::parameters(tool)?);
    let schema = kinds::resolve(&parameters, &parameters);
    let empty = Map::new();
    let members = schema.get("properties").and_then(Value::as_object).unwrap_or(&empty);
    let required: Vec<&str> = schema
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    for keyword in kinds::assertions(schema) {
        if !["type", "properties", "required", "additionalProperties"].contains(&keyword) {
            lark.leave_out(tool, keyword, "")?;
        }
    }
    let mut out = lark.literal(&format!("{FUNCTION}{name}>\n"));
    for (key, property) in members {
        let is_required = required.contains(&key.as_str());
        if property == false {
            continue;
        }
        if key.is_empty() || key.contains(['<', '>', '\n']) {
            let reason = "expected a text without '<', '>' and line breaks";
            return Err(ToolError::Name { name: key.clone(), format: "qwen3-coder", reason });
        }
        let tag = lark.literal(&format!("{PARAMETER}{key}>\n"));
        let value = value(tool, key, property, &parameters, lark)?;
        let parameter = lark.rule(&format!("{tag} ({value})"));
        out += &format!(" {parameter}{}", if is_required { "" } else { "?" });
    }
    let others = schema.get("additionalProperties").unwrap_or(&Value::Bool(true));
    for key in required.into_iter().filter(|key| !members.contains_key(*key)) {
        let tag = lark.literal(&format!("{PARAMETER}{key}>\n"));
        let value = value(tool, key, others, &parameters, lark)?;
        out += &format!(" {tag} ({value})");
    }
    if *others != Value::Bool(false) {
        let declared: BTreeSet<&str> = members.keys().map(String::as_str).collect();
        let key = lark.terminal(&format!("/[^<>\\n]+/ & {}", lark::none_of(&declared)));
        let value = value(tool, "", others, &parameters, lark)?;
        let parameter = lark.rule(&format!("{} {key} \">\\n\" ({value})", lark.literal(PARAMETER)));
        out += &format!(" {parameter}*");
    }
    Ok(format!("{out} {}", lark.literal(FUNCTION_END)))
}

/// The expression for a parameter's value and the tag that ends it.
fn value(
    tool: &Tool,
    key: &str,
    schema: &Value,
    root: &Value,
    lark: &mut Lark<'_>,
) -> Result<String, ToolError> {
    let pointer = format!("/properties/{}", key.replace('~', "~0").replace('/', "~1"));
    let end = format!("\n{PARAMETER_END}\n");
    let kinds = Kinds::of(schema, root);
    let others = kinds.names_but_string();
    let mut options = Vec::new();
    if !kinds.string || kinds.container() {
        // Where strings are possible, words and numbers have to be told from them up to the end tag.
        let names: Vec<&str> = match kinds.string {
            true => others.iter().copied().filter(|name| ["array", "object"].contains(name)).collect(),
            false => others,
        };
        let value = lark.json(
            tool,
            &with_definitions(schema, root, kinds.string.then_some(&names)),
            || json!({ "type": names }),
        )?;
        options.push(format!("{value} {}", lark.literal(&end)));
    }
    if kinds.string {
        let mut bodies = Vec::new();
        for part in kinds::alternatives(kinds::resolve(schema, root), root) {
            let part = kinds::resolve(part, root);
            let kinds = Kinds::of(part, root);
            if kinds.string {
                bodies.push(strings(tool, &pointer, part, kinds, lark)?);
            } else if kinds.literal() {
                for keyword in kinds::assertions(part).filter(|keyword| *keyword != "type") {
                    lark.leave_out(tool, keyword, &pointer)?;
                }
            }
        }
        let end_tag = format!("{}[ \\t\\r\\n]{{0,{MOST_SPACE}}}", lark::pattern(PARAMETER_END));
        let next_tag = format!("({}|{})", lark::pattern(PARAMETER), lark::pattern(FUNCTION_END));
        let tagless = lark.terminal(&format!("{ANY_TEXT} & ~/(?s:.*){end_tag}{next_tag}(?s:.*)/"));
        let mut body = format!("({}) & {tagless}", bodies.join(" | "));
        if kinds.container() {
            // With a bracket begins JSON.
            body = format!("(/[ \\t\\r\\n]*[^ \\t\\r\\n\\[{{](?s:.*)/ | /[ \\t\\r\\n]*/) & {body}");
        }
        let space = "[ \\t\\r\\n]*";
        let mut word = |expression: &str| {
            body = format!("~/{space}({expression}){space}/ & {body}");
            let word = lark.terminal(&format!("/{expression}/"));
            options.push(lark.until(&word, &end));
        };
        if kinds.boolean {
            word("true|false");
        }
        if kinds.null {
            word("null");
        }
        if kinds.number {
            word("-?(0|[1-9][0-9]*)(\\.[0-9]+)?([eE][+\\-]?[0-9]+)?");
        } else if kinds.integer {
            word("-?(0|[1-9][0-9]*)");
        }
        let body = lark.terminal(&body);
        options.push(lark.until(&body, &end));
    }
    if options.is_empty() {
        lark.leave_out(tool, "false", &pointer)?;
        let body = lark.terminal(ANY_TEXT);
        options.push(lark.until(&body, &end));
    }
    Ok(options.join(" | "))
}

/// The expression of a terminal for the strings that a schema accepts.
fn strings(
    tool: &Tool,
    pointer: &str,
    schema: &Value,
    kinds: Kinds,
    lark: &mut Lark<'_>,
) -> Result<String, ToolError> {
    let mut body = ANY_TEXT.to_owned();
    for keyword in kinds::assertions(schema) {
        match (keyword, schema[keyword].as_u64()) {
            ("type", _) => {}
            ("minLength", Some(n)) => body = format!("/(?s:.{{{n},}})/ & {body}"),
            ("maxLength", Some(n)) => body = format!("/(?s:.{{0,{n}}})/ & {body}"),
            ("enum" | "const", _) => {
                let one = std::slice::from_ref(&schema[keyword]);
                let values = schema[keyword].as_array().filter(|_| keyword == "enum");
                let texts: BTreeSet<&str> =
                    values.map_or(one, |list| list).iter().filter_map(Value::as_str).collect();
                body = format!("~({}) & {body}", lark::none_of(&texts));
                if kinds.boolean || kinds.integer || kinds.number {
                    lark.leave_out(tool, keyword, pointer)?;
                }
            }
            // Lists and objects are held to theirs by a grammar of their own.
            ("items" | "minItems" | "maxItems" | "properties" | "required" | "additionalProperties", _) => {}
            _ => lark.leave_out(tool, keyword, pointer)?,
        }
    }
    Ok(body)
}

/// A schema that is taken out of a document, with the definitions that it may name; of these types alone.
fn with_definitions(schema: &Value, root: &Value, names: Option<&Vec<&str>>) -> Value {
    let mut out = match schema {
        Value::Object(members) => members.clone(),
        _ => Map::new(),
    };
    for keyword in ["$defs", "definitions"] {
        if let Some(definitions) = root.get(keyword) {
            out.insert(keyword.to_owned(), definitions.clone());
        }
    }
    if let Some(names) = names {
        out.insert("type".to_owned(), json!(names));
    }
    Value::Object(out)
}
