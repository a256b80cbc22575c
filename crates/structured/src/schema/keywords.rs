//! Keywords that become several others.

use serde_json::{Map, Value, json};

use super::logic::{ASSERTIONS, TYPES};
use super::rewriter::{Rewriter, is_searched_by_engine, refused};
use crate::Result;
use crate::check::of_ecmascript;

/// Options of `oneOf` and members of objects that are told apart one by one.
const MANY: usize = 24;
/// Dependencies of one schema that the grammar spells out; each doubles what it has to know.
const DEPENDENCIES: usize = 5;

impl Rewriter<'_> {
    pub(super) fn one_of(&mut self, schema: &Map<String, Value>, value: &Value, at: &str) -> Result<Value> {
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
                parts.push(self.exactly(|this| this.rewrite(&not, &here))?);
            }
            exclusive.push(json!({ "allOf": parts }));
        }
        let once: Vec<&str> = TYPES.into_iter().filter(|name| !twice.contains(name)).collect();
        Ok(match twice.is_empty() {
            true => json!({ "anyOf": exclusive }),
            false => json!({ "type": once, "anyOf": exclusive }),
        })
    }

    pub(super) fn condition(
        &mut self,
        schema: &Map<String, Value>,
        condition: &Value,
        at: &str,
    ) -> Result<Value> {
        let (then, otherwise) = (schema.get("then"), schema.get("else"));
        if then.is_none() && otherwise.is_none() {
            return Ok(Value::Bool(true));
        }
        let Some(not) = self.schemas.negate(condition, 0) else {
            return refused("if", at, "what it leaves over cannot be said");
        };
        let mut branch = |condition: &Value, schema: Option<&Value>, name: &str| -> Result<Value> {
            let condition = self.exactly(|this| this.rewrite(condition, &format!("{at}/if")))?;
            let schema = match schema {
                Some(schema) => self.rewrite(schema, &format!("{at}/{name}"))?,
                None => Value::Bool(true),
            };
            Ok(json!({ "allOf": [condition, schema] }))
        };
        let branches = [branch(condition, then, "then")?, branch(&not, otherwise, "else")?];
        Ok(json!({ "anyOf": branches }))
    }

    pub(super) fn dependencies(&mut self, value: &Value, at: &str, keyword: &str) -> Result<Vec<Value>> {
        let Value::Object(members) = value else { return refused(keyword, at, "it is no object") };
        if members.len() > DEPENDENCIES {
            return refused(keyword, at, "there are too many");
        }
        let mut parts = Vec::new();
        for (name, demand) in members {
            let demand = match demand {
                Value::Array(names) => json!({ "required": names }),
                Value::String(name) => json!({ "required": [name] }),
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
        Ok(parts)
    }

    pub(super) fn property_names(&self, names: &Value, at: &str) -> Result<Vec<Value>> {
        let mut parts = Vec::new();
        let reason = "only names that are listed, match a pattern or have a length are enforced";
        let names = match self.schemas.resolve(names) {
            Some(Value::Object(names)) => names,
            Some(Value::Bool(true)) => return Ok(parts),
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
                ("pattern", Value::String(pattern)) if is_searched_by_engine(pattern) => {
                    parts.push(part(&of_ecmascript(pattern)));
                }
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
        Ok(parts)
    }

    pub(super) fn n_properties(
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
        let Some(count) = super::count(value) else {
            return refused(keyword, at, "it is no number of things");
        };
        let nothing_else = schema.get("additionalProperties") == Some(&Value::Bool(false))
            && !schema.contains_key("patternProperties");
        if optional.is_empty() {
            out.insert(keyword.to_owned(), json!(count));
            // Two other members could have one name.
            let is_sure = nothing_else || keyword == "maxProperties" || count <= required.len() + 1;
            return match is_sure {
                true => Ok(()),
                false => refused(keyword, at, "the grammar does not remember names"),
            };
        }
        match (keyword, count) {
            ("minProperties", count) if count <= required.len() => Ok(()),
            ("maxProperties", count) if nothing_else && count >= names.len() => Ok(()),
            ("minProperties", 1) if names.len() <= MANY => {
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
            ("maxProperties", 1) if required.is_empty() && names.len() <= MANY => {
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
