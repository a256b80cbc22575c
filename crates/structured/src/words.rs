//! Texts that a schema or an expression asks for, as hints for whoever looks for a way to an end: a mask does
//! not tell that a text must hold a certain word somewhere, or a list a certain item.

use regex_syntax::hir::{Class, Hir, HirKind};
use serde_json::{Map, Value, json};

use crate::check::of_ecmascript;
use crate::schema::{Schemas, expression_of_format, subschemas};

/// Expressions of a schema that are looked at.
const EXPRESSIONS: usize = 64;
/// Different texts of one expression: names of an object must differ.
const VARIANTS: usize = 4;
/// Bytes of a text.
const LONGEST: usize = 256;
/// Levels of an item.
const DEPTH: usize = 8;
/// Characters that are written before others.
const PLAIN: &str = "abcdefxyz0123456789ABC_-./ :@";

/// What a text may have to hold.
#[derive(Debug, Default)]
pub(crate) struct Words {
    /// The rest of a text, from any of its characters on, with the quote at its end.
    pub(crate) texts: Vec<Vec<u8>>,
    /// Whole items of lists.
    pub(crate) items: Vec<Vec<u8>>,
    /// Whether all ends with a text, as nothing else tells.
    pub(crate) are_whole: bool,
}

impl Words {
    /// Of a text that an expression matches.
    pub(crate) fn of_expression(expression: &str) -> Self {
        let texts = texts(expression, VARIANTS).into_iter().map(String::into_bytes).collect();
        Self { texts, items: Vec::new(), are_whole: true }
    }

    /// Of an instance of a schema.
    pub(crate) fn of_schema(schemas: &Schemas<'_>) -> Self {
        let mut expressions: Vec<&str> = Vec::new();
        let mut items = Vec::new();
        let mut rest = vec![schemas.root];
        while let Some(schema) = rest.pop() {
            let Value::Object(members) = schema else { continue };
            for (keyword, value) in members {
                match (keyword.as_str(), value) {
                    ("pattern", Value::String(pattern)) => expressions.push(pattern),
                    ("format", Value::String(format)) => {
                        expressions.extend(expression_of_format(format).ok().flatten());
                    }
                    ("patternProperties", Value::Object(patterns)) => {
                        expressions.extend(patterns.keys().map(String::as_str));
                    }
                    ("contains", item) => items.extend(instance(schemas, item, 0)),
                    _ => {}
                }
            }
            rest.extend(subschemas(schema).into_iter().map(|(_, inner)| inner));
        }
        expressions.sort_unstable_by_key(|expression| (expression.len(), *expression));
        expressions.dedup();
        expressions.truncate(EXPRESSIONS);
        let quoted = |text: String| json!(text).to_string().into_bytes()[1..].to_vec();
        let texts = expressions.iter().flat_map(|expression| texts(&of_ecmascript(expression), VARIANTS));
        let texts = texts.map(quoted).collect();
        Self {
            texts,
            items: items.iter().map(|item| item.to_string().into_bytes()).collect(),
            are_whole: false,
        }
    }
}

/// Short texts that hold what an expression looks for.
fn texts(expression: &str, n: usize) -> Vec<String> {
    let Ok(parsed) = regex_syntax::parse(expression) else { return Vec::new() };
    let mut found = Vec::new();
    for variant in 0..n {
        let mut text = String::new();
        write(&parsed, variant, &mut text);
        if text.len() <= LONGEST && !found.contains(&text) {
            found.push(text);
        }
    }
    found
}

fn write(hir: &Hir, variant: usize, out: &mut String) {
    if out.len() > LONGEST {
        return;
    }
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => {}
        HirKind::Literal(literal) => out.push_str(&String::from_utf8_lossy(&literal.0)),
        HirKind::Class(class) => out.extend(character(class, variant)),
        HirKind::Repetition(repetition) => {
            let least = repetition.min as usize;
            let most = repetition.max.map_or(usize::MAX, |most| most as usize);
            // One more than must be, where a text has to differ from another.
            let count = if variant > 2 { (least + 1).min(most) } else { least };
            (0..count.min(LONGEST + 1)).for_each(|_| write(&repetition.sub, variant, out));
        }
        HirKind::Capture(capture) => write(&capture.sub, variant, out),
        HirKind::Concat(parts) => parts.iter().for_each(|part| write(part, variant, out)),
        HirKind::Alternation(parts) => {
            let texts = parts.iter().map(|part| {
                let mut text = String::new();
                write(part, variant, &mut text);
                text
            });
            let mut texts: Vec<String> = texts.collect();
            texts.sort_by_key(String::len);
            out.push_str(&texts[variant % texts.len()]);
        }
    }
}

fn character(class: &Class, variant: usize) -> Option<char> {
    let Class::Unicode(class) = class else { return None };
    let has = |c: char| class.ranges().iter().any(|range| range.start() <= c && c <= range.end());
    let plain: Vec<char> = PLAIN.chars().filter(|c| has(*c)).collect();
    let other =
        || class.ranges().iter().find(|range| range.end() > '\u{1f}').map(|range| range.start().max(' '));
    if plain.is_empty() { other() } else { Some(plain[variant % plain.len()]) }
}

/// An instance that a schema may accept: whoever uses it asks whether it does.
fn instance(schemas: &Schemas<'_>, schema: &Value, depth: usize) -> Option<Value> {
    let Value::Object(members) = schema else { return (schema == true).then_some(Value::Null) };
    if depth > DEPTH {
        return None;
    }
    if let Some(value) = members.get("const") {
        return Some(value.clone());
    }
    if let Some(values) = members.get("enum").and_then(Value::as_array) {
        return values.first().cloned();
    }
    if let Some(reference) = members.get("$ref").and_then(Value::as_str) {
        return instance(schemas, schemas.target(reference)?, depth + 1);
    }
    let name = match members.get("type") {
        Some(Value::String(name)) => Some(name.as_str()),
        Some(Value::Array(names)) => names.first().and_then(Value::as_str),
        _ => None,
    };
    let is_about = |keywords: &[&str]| keywords.iter().any(|keyword| members.contains_key(*keyword));
    let number = |keyword: &str| members.get(keyword).and_then(Value::as_i64);
    match name {
        Some("object") => object(schemas, members, depth),
        None if is_about(&["properties", "required"]) => object(schemas, members, depth),
        Some("array") => Some(json!([])),
        Some("boolean") => Some(json!(true)),
        Some("integer" | "number") => Some(least(members, number)),
        None if is_about(&["minimum", "maximum", "multipleOf"]) => Some(least(members, number)),
        Some("string") => Some(text(members)),
        None if is_about(&["pattern", "minLength"]) => Some(text(members)),
        Some(_) => Some(Value::Null),
        None => {
            let options =
                ["anyOf", "oneOf", "allOf"].into_iter().find_map(|keyword| members.get(keyword)?.get(0));
            options.map_or(Some(Value::Null), |option| instance(schemas, option, depth + 1))
        }
    }
}

fn least(members: &Map<String, Value>, number: impl Fn(&str) -> Option<i64>) -> Value {
    match (members.get("minimum"), number("exclusiveMinimum"), members.get("maximum")) {
        (Some(least), ..) => least.clone(),
        (None, Some(bound), _) => json!(bound.saturating_add(1)),
        (None, None, Some(most)) => most.clone(),
        _ => json!(0),
    }
}

fn text(members: &Map<String, Value>) -> Value {
    let pattern = members.get("pattern").and_then(Value::as_str);
    let found = pattern.and_then(|pattern| texts(&of_ecmascript(pattern), 1).pop()).unwrap_or_default();
    let least = members
        .get("minLength")
        .and_then(Value::as_u64)
        .map_or(0, |least| least.min(LONGEST as u64) as usize);
    let missing = least.saturating_sub(found.chars().count());
    json!(found + &"x".repeat(missing))
}

fn object(schemas: &Schemas<'_>, members: &Map<String, Value>, depth: usize) -> Option<Value> {
    let required = members.get("required").and_then(Value::as_array).into_iter().flatten();
    let mut found = Map::new();
    for name in required.filter_map(Value::as_str) {
        let schema = members.get("properties").and_then(|properties| properties.get(name));
        found.insert(name.to_owned(), instance(schemas, schema.unwrap_or(&Value::Bool(true)), depth + 1)?);
    }
    Some(Value::Object(found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_hold_what_an_expression_looks_for() {
        assert_eq!(texts("wifi", 4), ["wifi"]);
        assert_eq!(texts("^(.*?)\\.alfred3?workflow$", 1), [".alfredworkflow"]);
        assert_eq!(texts("^[a-c]{2}[0-9]+$", 2), ["aa0", "bb1"]);
        assert!(texts("(?=a)", 1).is_empty());
    }

    #[test]
    fn items_of_lists() {
        let schema = json!({ "contains": { "type": "object", "properties": { "a": { "pattern": "^x+$" } }, "required": ["a"] } });
        let words = Words::of_schema(&Schemas::new(&schema));
        assert_eq!(words.items, [br#"{"a":"x"}"#.to_vec()]);
        assert_eq!(words.texts[0], b"x\"");
    }
}
