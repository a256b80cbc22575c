//! JSON Schema as the engine takes it. What it does not know is rewritten into what it knows, so that the
//! same instances are accepted; what cannot be is refused by the keyword's name and place.
//!
//! | keyword | becomes |
//! |---|---|
//! | `format` that nobody knows | an annotation, as the specification has it |
//! | `oneOf` | `anyOf`, where no instance suits two options, or where it can be said of each what it leaves out |
//! | `not`, `if`, `then`, `else` | what the negated schema leaves over |
//! | `dependencies`, `dependentRequired`, `dependentSchemas` | `anyOf`: without the property, or with what it demands |
//! | `propertyNames` of names or a pattern | `properties`, `patternProperties` and nothing else |
//! | `minProperties`, `maxProperties` of 1 | `anyOf` over the properties |
//! | `$ref` into the middle of a schema | a definition of its own |

mod formats;
mod logic;

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use self::formats::{Meaning, meaning};
use self::logic::{ASSERTIONS, TYPES};
use crate::{Error, Result};

/// Options of `oneOf` and members of objects that are told apart one by one.
const MANY: usize = 24;

/// A schema with all that its references can reach.
struct Schemas<'a> {
    root: &'a Value,
}

/// The rewritten schema.
pub(crate) fn rewrite(root: &Value) -> Result<Value> {
    let schemas = Schemas { root };
    let mut rewriter = Rewriter { schemas, definitions: Vec::new(), names: HashMap::new() };
    let mut out = rewriter.rewrite(root, "")?;
    let mut definitions = Map::new();
    // Definitions name further ones while they are rewritten.
    let mut next = 0;
    while let Some(reference) = rewriter.definitions.get(next).cloned() {
        let target = rewriter.schemas.target(&reference).cloned().unwrap_or(Value::Bool(true));
        definitions.insert(format!("d{next}"), rewriter.rewrite(&target, reference.trim_start_matches('#'))?);
        next += 1;
    }
    if !definitions.is_empty() {
        // A schema `true` or `false` has no references.
        if let Value::Object(out) = &mut out {
            out.insert("$defs".to_owned(), Value::Object(definitions));
        }
    }
    Ok(out)
}

impl<'a> Schemas<'a> {
    /// What a reference within the document names.
    fn target(&self, reference: &str) -> Option<&'a Value> {
        let pointer = reference.strip_prefix('#')?;
        let pointer = pointer.strip_suffix('/').unwrap_or(pointer);
        self.root.pointer(&percent_decoded(pointer)?)
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

struct Rewriter<'a> {
    schemas: Schemas<'a>,
    /// References in the order of their numbers.
    definitions: Vec<String>,
    names: HashMap<String, usize>,
}

fn refused<T>(keyword: &str, pointer: &str, reason: &str) -> Result<T> {
    Err(Error::Keyword {
        keyword: keyword.to_owned(),
        pointer: pointer.to_owned(),
        reason: reason.to_owned(),
    })
}

impl Rewriter<'_> {
    fn rewrite(&mut self, schema: &Value, at: &str) -> Result<Value> {
        let Value::Object(schema) = schema else { return Ok(schema.clone()) };
        let has_address = ["$id", "id"].iter().any(|keyword| {
            schema.get(*keyword).and_then(Value::as_str).is_some_and(|address| !address.starts_with('#'))
        });
        if has_address && !at.is_empty() && schema.values().any(has_reference) {
            return refused("$id", at, "references below an address of its own are not followed");
        }
        let mut out = Map::new();
        // Conditions beside the keywords of the schema itself.
        let mut parts: Vec<Value> = Vec::new();
        for (keyword, value) in schema {
            let here = format!("{at}/{keyword}");
            match keyword.as_str() {
                "$ref" => {
                    let reference = self.reference(value, at)?;
                    out.insert("$ref".to_owned(), reference);
                }
                "properties" | "patternProperties" => {
                    let Value::Object(members) = value else {
                        return refused(keyword, at, "it is no object");
                    };
                    let members = members.iter().map(|(name, schema)| {
                        let here = format!("{here}/{}", name.replace('~', "~0").replace('/', "~1"));
                        Ok((name.clone(), self.rewrite(schema, &here)?))
                    });
                    let members = members.collect::<Result<Map<_, _>>>()?;
                    out.insert(keyword.clone(), Value::Object(members));
                }
                "allOf" | "anyOf" | "prefixItems" => {
                    let parts = self.list(keyword, value, at)?;
                    out.insert(keyword.clone(), parts);
                }
                "items" if value.is_array() => {
                    let parts = self.list(keyword, value, at)?;
                    out.insert(keyword.clone(), parts);
                }
                "items" | "additionalItems" | "additionalProperties" => {
                    let schema = self.rewrite(value, &here)?;
                    out.insert(keyword.clone(), schema);
                }
                "format" => match value.as_str().map(meaning) {
                    Some(Meaning::Engine) => {
                        out.insert(keyword.clone(), value.clone());
                    }
                    Some(Meaning::Expression(pattern)) => parts.push(json!({ "pattern": pattern })),
                    Some(Meaning::Missing) => return refused(keyword, at, "the format is not enforced"),
                    _ => {}
                },
                "uniqueItems" if value == false => {}
                "oneOf" => parts.push(self.one_of(schema, value, at)?),
                "not" => {
                    let Some(not) = self.schemas.negate(value, 0) else {
                        return refused(keyword, at, "what it leaves over cannot be said");
                    };
                    parts.push(self.rewrite(&not, &here)?);
                }
                "if" => parts.push(self.condition(schema, value, at)?),
                "then" | "else" => {}
                "dependencies" | "dependentRequired" | "dependentSchemas" => {
                    self.dependencies(value, at, keyword, &mut parts)?
                }
                "propertyNames" => self.property_names(value, at, &mut parts)?,
                "minProperties" | "maxProperties" => {
                    self.n_properties(schema, keyword, value, at, &mut out, &mut parts)?
                }
                "contains"
                | "uniqueItems"
                | "unevaluatedProperties"
                | "unevaluatedItems"
                | "$dynamicRef"
                | "$recursiveRef" => return refused(keyword, at, "it is not enforced"),
                "x-guidance" | "$defs" | "definitions" => {}
                _ => {
                    out.insert(keyword.clone(), value.clone());
                }
            }
        }
        if !parts.is_empty() {
            if let Some(Value::Array(own)) = out.remove("allOf") {
                parts.extend(own);
            }
            out.insert("allOf".to_owned(), Value::Array(parts));
        }
        Ok(Value::Object(out))
    }

    fn list(&mut self, keyword: &str, value: &Value, at: &str) -> Result<Value> {
        let Value::Array(list) = value else { return refused(keyword, at, "it is no list") };
        let list = list.iter().enumerate();
        let list = list.map(|(i, schema)| self.rewrite(schema, &format!("{at}/{keyword}/{i}")));
        Ok(Value::Array(list.collect::<Result<_>>()?))
    }

    /// A reference as one to a definition of our own.
    fn reference(&mut self, value: &Value, at: &str) -> Result<Value> {
        let Some(reference) = value.as_str() else { return refused("$ref", at, "it is no text") };
        if self.schemas.target(reference).is_none() {
            return refused("$ref", at, "it names nothing within the schema");
        }
        let n = self.definitions.len();
        let number = *self.names.entry(reference.to_owned()).or_insert(n);
        if number == n {
            self.definitions.push(reference.to_owned());
        }
        Ok(Value::String(format!("#/$defs/d{number}")))
    }

    fn one_of(&mut self, schema: &Map<String, Value>, value: &Value, at: &str) -> Result<Value> {
        let Value::Array(options) = value else { return refused("oneOf", at, "it is no list") };
        let n = options.len();
        // Types of which any instance suits several options, so that none is valid.
        let mut twice: Vec<&str> = Vec::new();
        let own = Value::Object(
            schema.iter().filter(|(key, _)| *key == "type").map(|(k, v)| (k.clone(), v.clone())).collect(),
        );
        let mut overlapping = vec![Vec::new(); n];
        for i in 0..n {
            for j in 0..i {
                let mut open = self.schemas.overlap(&options[i], &options[j], 0);
                let here = self.schemas.overlap(&own, &Value::Bool(true), 0);
                open.retain(|name| here.contains(name));
                open.retain(|name| {
                    let is_free = [i, j].iter().all(|&k| self.schemas.is_free(&options[k], name));
                    if is_free && !twice.contains(name) {
                        twice.push(name);
                    }
                    !is_free
                });
                if !open.is_empty() {
                    overlapping[i].push(j);
                    overlapping[j].push(i);
                }
            }
        }
        let mut exclusive = Vec::with_capacity(n);
        for (i, option) in options.iter().enumerate() {
            let here = format!("{at}/oneOf/{i}");
            let option = self.rewrite(option, &here)?;
            if overlapping[i].is_empty() {
                exclusive.push(option);
                continue;
            }
            if n > MANY {
                return refused("oneOf", at, "too many options overlap, or may");
            }
            let mut parts = vec![option];
            for &other in &overlapping[i] {
                let Some(not) = self.schemas.negate(&options[other], 0) else {
                    return refused(
                        "oneOf",
                        at,
                        "an instance may suit two options, and nothing says that it does not",
                    );
                };
                parts.push(self.rewrite(&not, &here)?);
            }
            exclusive.push(json!({ "allOf": parts }));
        }
        let once: Vec<&str> = TYPES.into_iter().filter(|name| !twice.contains(name)).collect();
        Ok(match twice.is_empty() {
            true => json!({ "anyOf": exclusive }),
            false => json!({ "type": once, "anyOf": exclusive }),
        })
    }

    fn condition(&mut self, schema: &Map<String, Value>, condition: &Value, at: &str) -> Result<Value> {
        let (then, otherwise) = (schema.get("then"), schema.get("else"));
        if then.is_none() && otherwise.is_none() {
            return Ok(Value::Bool(true));
        }
        let Some(not) = self.schemas.negate(condition, 0) else {
            return refused("if", at, "what it leaves over cannot be said");
        };
        let mut branch = |condition: &Value, schema: Option<&Value>, name: &str| -> Result<Value> {
            let condition = self.rewrite(condition, &format!("{at}/if"))?;
            let schema = self.rewrite(schema.unwrap_or(&Value::Bool(true)), &format!("{at}/{name}"))?;
            Ok(json!({ "allOf": [condition, schema] }))
        };
        let branches = [branch(condition, then, "then")?, branch(&not, otherwise, "else")?];
        Ok(json!({ "anyOf": branches }))
    }

    fn dependencies(&mut self, value: &Value, at: &str, keyword: &str, parts: &mut Vec<Value>) -> Result<()> {
        let Value::Object(members) = value else { return refused(keyword, at, "it is no object") };
        for (name, demand) in members {
            let demand = match demand {
                Value::Array(names) => json!({ "required": names }),
                schema => self.rewrite(schema, &format!("{at}/{keyword}/{name}"))?,
            };
            // An instance that is no object has no properties.
            let others = ["null", "boolean", "number", "string", "array"];
            parts.push(json!({ "anyOf": [
                { "type": "object", "properties": { name: false } },
                { "allOf": [{ "type": "object", "required": [name] }, demand] },
                { "type": others },
            ] }));
        }
        Ok(())
    }

    fn property_names(&self, names: &Value, at: &str, parts: &mut Vec<Value>) -> Result<()> {
        let reason = "only names that are listed, match a pattern or have a length are enforced";
        let names = match self.schemas.resolve(names) {
            Some(Value::Object(names)) => names,
            Some(Value::Bool(true)) => return Ok(()),
            _ => return refused("propertyNames", at, reason),
        };
        let part =
            |pattern: &str| json!({ "patternProperties": { pattern: true }, "additionalProperties": false });
        for (keyword, value) in names {
            match (keyword.as_str(), value) {
                ("type", Value::String(name)) if name == "string" => {}
                ("enum", Value::Array(listed)) => {
                    let listed = listed.iter().filter_map(Value::as_str);
                    let listed: Map<String, Value> =
                        listed.map(|name| (name.to_owned(), Value::Bool(true))).collect();
                    parts.push(json!({ "properties": listed, "additionalProperties": false }));
                }
                ("pattern", Value::String(pattern)) => parts.push(part(pattern)),
                ("minLength", Value::Number(n)) if n.is_u64() => {
                    parts.push(part(&format!("^(?s:.){{{n},}}$")))
                }
                ("maxLength", Value::Number(n)) if n.is_u64() => {
                    parts.push(part(&format!("^(?s:.){{0,{n}}}$")))
                }
                _ if !ASSERTIONS.contains(&keyword.as_str()) => {}
                _ => return refused("propertyNames", at, reason),
            }
        }
        Ok(())
    }

    fn n_properties(
        &mut self,
        schema: &Map<String, Value>,
        keyword: &str,
        value: &Value,
        at: &str,
        out: &mut Map<String, Value>,
        parts: &mut Vec<Value>,
    ) -> Result<()> {
        let names: Vec<&String> = schema
            .get("properties")
            .and_then(Value::as_object)
            .map(|own| own.keys().collect())
            .unwrap_or_default();
        let required = schema
            .get("required")
            .and_then(Value::as_array)
            .map(|names| names.as_slice())
            .unwrap_or_default();
        let is_required =
            |name: &&&String| required.iter().any(|other| other.as_str() == Some(name.as_str()));
        let optional: Vec<&&String> = names.iter().filter(|name| !is_required(name)).collect();
        let count = value.as_u64();
        if optional.is_empty() {
            out.insert(keyword.to_owned(), value.clone());
            return Ok(());
        }
        let nothing_else = schema.get("additionalProperties") == Some(&Value::Bool(false))
            && !schema.contains_key("patternProperties");
        match (keyword, count) {
            ("minProperties", Some(count)) if count as usize <= required.len() => Ok(()),
            ("maxProperties", Some(count)) if nothing_else && count as usize >= names.len() => Ok(()),
            ("minProperties", Some(1)) if names.len() <= MANY => {
                let with = |name: &&String| json!({ "required": [name] });
                let mut options: Vec<Value> = names.iter().map(with).collect();
                if !nothing_else {
                    let none: Map<String, Value> =
                        names.iter().map(|name| ((*name).clone(), Value::Bool(false))).collect();
                    options.push(json!({ "properties": none, "minProperties": 1 }));
                }
                parts.push(json!({ "anyOf": options }));
                Ok(())
            }
            ("maxProperties", Some(1)) if required.is_empty() && names.len() <= MANY => {
                let only = |name: &&String| json!({ "properties": { *name: true }, "required": [name], "additionalProperties": false });
                let mut options: Vec<Value> = names.iter().map(only).collect();
                let none: Map<String, Value> =
                    names.iter().map(|name| ((*name).clone(), Value::Bool(false))).collect();
                let most = if nothing_else { 0 } else { 1 };
                options.push(json!({ "properties": none, "maxProperties": most }));
                parts.push(json!({ "anyOf": options }));
                Ok(())
            }
            _ => refused(keyword, at, "it is enforced where all properties are required, or if it is 1"),
        }
    }
}
