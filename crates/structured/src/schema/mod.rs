//! JSON Schema as the engine takes it. What it does not know is rewritten into what it knows, so that the
//! same instances are accepted. Where that cannot be said, the keyword is left out of the grammar and looked
//! at when a value ends (see [`check`](crate::check)); what neither can do is refused by the keyword's name
//! and place.
//!
//! | keyword | becomes |
//! |---|---|
//! | `format` that nobody knows | an annotation, as the specification has it |
//! | `oneOf` | `anyOf`, where no instance suits two options, or where each says what it leaves out |
//! | `not`, `if`, `then`, `else` | what the negated schema leaves over |
//! | dependencies of all three kinds | `anyOf`: without the property, or with what it demands |
//! | `propertyNames` of names or a pattern | `properties`, `patternProperties` and nothing else |
//! | `minProperties`, `maxProperties` of 1 | `anyOf` over the properties |
//! | `$ref` into the middle of a schema | a definition of its own |

mod formats;
mod keywords;
mod logic;
mod rewriter;
mod shape;

use std::collections::HashMap;

use serde_json::{Map, Value};

pub(crate) use self::formats::{HOST_NAME, expression_of_format};
use self::logic::ASSERTIONS;
use self::rewriter::Rewriter;
pub(crate) use self::rewriter::{Looseness, PATTERN_BYTES, PATTERN_DEPTH};
use crate::{Result, SchemaOptions, Warning};

/// A schema with all that its references can reach.
pub(crate) struct Schemas<'a> {
    pub(crate) root: &'a Value,
    /// Schemas by the names that they give themselves.
    anchors: HashMap<String, &'a Value>,
}

/// Schemas of which the grammar accepts more, by where they are in memory, and whether it leaves out schemas
/// that they hold.
pub(crate) type Wider = HashMap<*const Value, bool>;

/// A schema for the engine.
pub(crate) struct Rewritten {
    /// Accepts at least what the schema accepts.
    pub(crate) schema: Value,
    pub(crate) wider: Wider,
    pub(crate) warnings: Vec<Warning>,
}

pub(crate) fn rewrite(
    schemas: &Schemas<'_>,
    options: SchemaOptions,
    looseness: Looseness,
) -> Result<Rewritten> {
    let mut rewriter = Rewriter::new(schemas, options, looseness);
    let schema = rewriter.document(schemas.root, "")?;
    // What is left over by a schema must be said exactly, and behind a reference it may not be.
    if rewriter.has_exact_reference && !rewriter.wider.is_empty() {
        rewriter = Rewriter::new(schemas, options, looseness);
        rewriter.refuses_exact_references = true;
        let schema = rewriter.document(schemas.root, "")?;
        return Ok(Rewritten { schema, wider: rewriter.wider, warnings: rewriter.warnings });
    }
    Ok(Rewritten { schema, wider: rewriter.wider, warnings: rewriter.warnings })
}

/// A schema within the document, or a changed copy of one, as a schema of its own.
///
/// # Errors
/// As [`rewrite`].
pub(crate) fn rewrite_part(
    schemas: &Schemas<'_>,
    part: &Value,
    at: &str,
    options: SchemaOptions,
    looseness: Looseness,
) -> Result<Rewritten> {
    let mut rewriter = Rewriter::new(schemas, options, looseness);
    let schema = rewriter.document(part, at)?;
    Ok(Rewritten { schema, wider: rewriter.wider, warnings: rewriter.warnings })
}

/// Whether a keyword can refuse an instance.
pub(crate) fn is_assertion(keyword: &str) -> bool {
    ASSERTIONS.contains(&keyword)
}

/// The schemas that a schema holds, with the steps of a JSON pointer to each.
pub(crate) fn subschemas(schema: &Value) -> Vec<(String, &Value)> {
    let mut found = Vec::new();
    for (keyword, value) in schema.as_object().into_iter().flatten() {
        match (keyword.as_str(), value) {
            (
                "properties" | "patternProperties" | "$defs" | "definitions" | "dependencies"
                | "dependentSchemas",
                Value::Object(members),
            ) => {
                found.extend(
                    members.iter().map(|(name, inner)| (format!("/{keyword}/{}", step(name)), inner)),
                );
            }
            ("allOf" | "anyOf" | "oneOf" | "prefixItems" | "items", Value::Array(list)) => {
                found.extend(list.iter().enumerate().map(|(i, inner)| (format!("/{keyword}/{i}"), inner)));
            }
            (
                "items"
                | "additionalItems"
                | "additionalProperties"
                | "not"
                | "if"
                | "then"
                | "else"
                | "contains"
                | "propertyNames"
                | "unevaluatedItems"
                | "unevaluatedProperties",
                inner,
            ) => found.push((format!("/{keyword}"), inner)),
            _ => {}
        }
    }
    found.retain(|(_, inner)| inner.is_object() || inner.is_boolean());
    found
}

/// The document as its draft means it: those before 2019-09 ignore what stands beside `$ref`.
pub(crate) fn as_meant(document: Value) -> Value {
    const OLD: [&str; 4] = ["draft-03", "draft-04", "draft-06", "draft-07"];
    let draft = document.get("$schema").and_then(Value::as_str).unwrap_or_default();
    if !OLD.iter().any(|old| draft.contains(old)) {
        return document;
    }
    let mut document = document;
    forget_siblings(&mut document);
    document
}

fn forget_siblings(schema: &mut Value) {
    let Value::Object(members) = schema else { return };
    if members.get("$ref").is_some_and(Value::is_string) {
        members.retain(|keyword, _| keyword == "$ref" || !is_assertion(keyword));
    }
    for (keyword, value) in members {
        match (keyword.as_str(), value) {
            ("properties" | "patternProperties" | "definitions" | "dependencies", Value::Object(members)) => {
                members.values_mut().for_each(forget_siblings)
            }
            ("allOf" | "anyOf" | "oneOf" | "items", Value::Array(list)) => {
                list.iter_mut().for_each(forget_siblings);
            }
            (
                "items"
                | "additionalItems"
                | "additionalProperties"
                | "not"
                | "if"
                | "then"
                | "else"
                | "contains"
                | "propertyNames",
                inner,
            ) => forget_siblings(inner),
            _ => {}
        }
    }
}

impl<'a> Schemas<'a> {
    pub(crate) fn new(root: &'a Value) -> Self {
        let mut anchors = HashMap::new();
        gather(root, true, &mut anchors);
        Self { root, anchors }
    }

    /// What a reference within the document names.
    pub(crate) fn target(&self, reference: &str) -> Option<&'a Value> {
        let own = ["$id", "id"].iter().find_map(|keyword| self.root.get(*keyword)?.as_str());
        let own = own.map(|own| own.trim_end_matches('#')).unwrap_or_default();
        let local = match reference.strip_prefix(own) {
            Some(rest) if !own.is_empty() && (rest.is_empty() || rest.starts_with('#')) => rest,
            _ => reference,
        };
        if local.is_empty() {
            return Some(self.root);
        }
        let place = percent_decoded(local.strip_prefix('#')?)?;
        if place.is_empty() || place.starts_with('/') {
            let without_end = || self.root.pointer(place.strip_suffix('/')?);
            self.root.pointer(&place).or_else(without_end)
        } else {
            self.anchors.get(&place).copied()
        }
    }

    /// A schema behind references that stand alone; `None` if one leads nowhere or in a circle.
    fn resolve<'s>(&'s self, mut schema: &'s Value) -> Option<&'s Value> {
        for _ in 0..16 {
            let Some(Value::String(reference)) = schema.get("$ref") else { return Some(schema) };
            let others = schema.as_object()?.keys().filter(|key| ASSERTIONS.contains(&key.as_str())).count();
            if others > 1 {
                return None;
            }
            schema = self.target(reference)?;
        }
        None
    }
}

/// The names that schemas give themselves, those below an address of their own left out.
fn gather<'a>(schema: &'a Value, is_root: bool, anchors: &mut HashMap<String, &'a Value>) {
    match schema {
        Value::Object(members) => {
            if !is_root && has_address(members) {
                return;
            }
            for keyword in ["$anchor", "$dynamicAnchor"] {
                if let Some(Value::String(name)) = members.get(keyword) {
                    anchors.insert(name.clone(), schema);
                }
            }
            if let Some(Value::String(name)) = members.get("$id")
                && let Some(name) = name.strip_prefix('#')
            {
                anchors.insert(name.to_owned(), schema);
            }
            let inner = members.iter().filter(|(keyword, _)| !["const", "enum"].contains(&keyword.as_str()));
            inner.for_each(|(_, value)| gather(value, false, anchors));
        }
        Value::Array(items) => items.iter().for_each(|item| gather(item, false, anchors)),
        _ => {}
    }
}

/// Whether references within a schema are meant from an address of its own.
fn has_address(schema: &Map<String, Value>) -> bool {
    ["$id", "id"].iter().any(|keyword| {
        schema.get(*keyword).and_then(Value::as_str).is_some_and(|address| !address.starts_with('#'))
    })
}

/// A number of things, `2.0` as well as `2`.
pub(crate) fn count(value: &Value) -> Option<usize> {
    let rounded = || value.as_f64().filter(|n| *n >= 0.0 && n.fract() == 0.0 && *n < 9e15).map(|n| n as u64);
    usize::try_from(value.as_u64().or_else(rounded)?).ok()
}

/// A step of a JSON pointer.
pub(crate) fn step(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

fn percent_decoded(text: &str) -> Option<String> {
    let (mut out, bytes, mut at) = (Vec::new(), text.as_bytes(), 0);
    while at < bytes.len() {
        if bytes[at] == b'%' {
            out.push(u8::from_str_radix(text.get(at + 1..at + 3)?, 16).ok()?);
            at += 3;
        } else {
            out.push(bytes[at]);
            at += 1;
        }
    }
    String::from_utf8(out).ok()
}

fn has_reference(value: &Value) -> bool {
    match value {
        Value::Object(members) => members.contains_key("$ref") || members.values().any(has_reference),
        Value::Array(items) => items.iter().any(has_reference),
        _ => false,
    }
}
