//! Values in the form of Gemma 4, by a JSON Schema.

use std::collections::{BTreeSet, HashMap};

use breakers_core::Tool;
use serde_json::{Map, Value, json};

use super::gemma4::STRING;
use super::kinds::{self, Kinds};
use super::lark::{self, ANY_TEXT};
use super::{Lark, ToolError};

/// Items and properties beyond which a count is left out.
const MOST_COUNTED: u64 = 1024;

/// Writes the expressions for the values that one function's parameters allow.
pub(super) struct Values<'a, 'b, 'c> {
    tool: &'a Tool,
    root: &'a Value,
    lark: &'b mut Lark<'c>,
    /// Rules for references.
    references: HashMap<String, String>,
}

impl<'a> Values<'a, '_, '_> {
    /// The arguments of a function, in braces.
    ///
    /// # Errors
    /// [`ToolError::Parameters`], [`ToolError::Name`].
    pub(super) fn arguments(tool: &Tool, lark: &mut Lark<'_>) -> Result<String, ToolError> {
        let root = Value::Object(lark::parameters(tool)?);
        Values { tool, root: &root, lark, references: HashMap::new() }.value(&root, "")
    }

    fn leave_out(&mut self, keyword: &str, at: &str) -> Result<(), ToolError> {
        self.lark.leave_out(self.tool, keyword, at)
    }

    fn value(&mut self, schema: &'a Value, at: &str) -> Result<String, ToolError> {
        if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
            return self.reference(schema, reference, at);
        }
        let mut options = Vec::new();
        for part in kinds::alternatives(schema, self.root) {
            match part.get("$ref") {
                Some(_) => options.push(self.value(part, at)?),
                None => self.options(part, at, &mut options)?,
            }
        }
        if options.is_empty() {
            self.leave_out("false", at)?;
            options.push(self.any());
        }
        Ok(self.lark.rule(&options.join(" | ")))
    }

    fn reference(&mut self, schema: &'a Value, reference: &str, at: &str) -> Result<String, ToolError> {
        for keyword in kinds::assertions(schema).filter(|keyword| *keyword != "$ref") {
            if keyword != "type" {
                self.leave_out(keyword, at)?;
            }
        }
        if let Some(name) = self.references.get(reference) {
            return Ok(name.clone());
        }
        let Some(target) = kinds::target(self.root, reference) else {
            self.leave_out("$ref", at)?;
            return Ok(self.any());
        };
        let name = self.lark.reserve();
        self.references.insert(reference.to_owned(), name.clone());
        let value = self.value(target, reference.trim_start_matches('#'))?;
        self.lark.define(&name, &value);
        Ok(name)
    }

    /// One expression for each type.
    fn options(&mut self, schema: &'a Value, at: &str, out: &mut Vec<String>) -> Result<(), ToolError> {
        let kinds = Kinds::of(schema, self.root);
        let listed = match (schema.get("enum"), schema.get("const")) {
            (Some(Value::Array(values)), _) => Some(&values[..]),
            (_, Some(value)) => Some(std::slice::from_ref(value)),
            _ => None,
        };
        let known: &[&str] = match listed {
            Some(_) => &["enum", "const", "type"],
            None => &[
                "type",
                "minLength",
                "maxLength",
                "minimum",
                "maximum",
                "exclusiveMinimum",
                "exclusiveMaximum",
                "multipleOf",
                "items",
                "minItems",
                "maxItems",
                "properties",
                "required",
                "additionalProperties",
            ],
        };
        for keyword in kinds::assertions(schema).filter(|keyword| !known.contains(keyword)) {
            self.leave_out(keyword, at)?;
        }
        if let Some(values) = listed {
            for value in values {
                out.extend(self.constant(value));
            }
            return Ok(());
        }
        if kinds == Kinds::ANY && kinds::assertions(schema).all(|keyword| !known.contains(&keyword)) {
            out.push(self.any());
            return Ok(());
        }
        if kinds.string {
            let n = |keyword: &str| schema.get(keyword).and_then(Value::as_u64);
            let (least, most) = (n("minLength").unwrap_or(0), n("maxLength"));
            let most = most.map_or_else(String::new, |most| most.to_string());
            out.push(self.string(&format!("/(?s:.{{{least},{most}}})/")));
        }
        if kinds.integer || kinds.number {
            let bounds = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"];
            let mut number = Map::new();
            number.insert("type".to_owned(), json!(if kinds.number { "number" } else { "integer" }));
            let bounds =
                bounds.into_iter().filter_map(|key| Some((key.to_owned(), schema.get(key)?.clone())));
            number.extend(bounds);
            let wider = number["type"].clone();
            out.push(self.lark.json(self.tool, &Value::Object(number), || json!({ "type": wider }))?);
        }
        if kinds.boolean {
            out.push("\"true\" | \"false\"".to_owned());
        }
        if kinds.null {
            out.push("\"null\"".to_owned());
        }
        if kinds.array {
            out.push(self.array(schema, at)?);
        }
        if kinds.object {
            out.push(self.object(schema, at)?);
        }
        Ok(())
    }

    fn string(&mut self, body: &str) -> String {
        let body = self.lark.terminal(body);
        let mark = self.lark.marker(STRING);
        format!("{mark} {}", self.lark.until(&body, STRING))
    }

    /// A value as it is; `None` if the format cannot write it.
    fn constant(&mut self, value: &Value) -> Option<String> {
        Some(match value {
            Value::String(text) if text.contains(STRING) => return None,
            Value::String(text) => {
                let mark = self.lark.marker(STRING);
                format!("{mark} {} {mark}", self.lark.literal(text))
            }
            Value::Array(items) => {
                let items = items.iter().map(|item| self.constant(item)).collect::<Option<Vec<_>>>()?;
                format!("\"[\" {} \"]\"", items.join(" \",\" "))
            }
            Value::Object(members) => {
                let mut members: Vec<_> = members.iter().collect();
                members.sort_by_key(|(key, _)| key.to_lowercase());
                let members = members
                    .into_iter()
                    .map(|(key, value)| Some(format!("{} \":\" {}", self.key(key)?, self.constant(value)?)));
                let members = members.collect::<Option<Vec<_>>>()?;
                format!("\"{{\" {} \"}}\"", members.join(" \",\" "))
            }
            value => self.lark.literal(&value.to_string()),
        })
    }

    fn key(&mut self, key: &str) -> Option<String> {
        let is_plain = |c: char| !c.is_whitespace() && !"{}[]:,\"<>".contains(c);
        if !key.is_empty() && key.chars().all(is_plain) {
            return Some(self.lark.literal(key));
        }
        let mark = self.lark.marker(STRING);
        (!key.contains(STRING)).then(|| format!("{mark} {} {mark}", self.lark.literal(key)))
    }

    fn any_key(&mut self, declared: &BTreeSet<&str>) -> String {
        let but = lark::none_of(declared);
        self.lark.terminal(&format!("/[A-Za-z_][A-Za-z0-9_.\\-]*/ & {but}"))
    }

    /// Any value.
    fn any(&mut self) -> String {
        if let Some(name) = self.references.get("") {
            return name.clone();
        }
        let name = self.lark.reserve();
        self.references.insert(String::new(), name.clone());
        let string = self.string(ANY_TEXT);
        let number = self.lark.rule("%json {\"type\":\"number\"}");
        let key = self.any_key(&BTreeSet::new());
        let list = format!("\"[\" ({name} (\",\" {name})*)? \"]\"");
        let object = format!("\"{{\" ({key} \":\" {name} (\",\" {key} \":\" {name})*)? \"}}\"");
        self.lark.define(
            &name,
            &format!("{string} | {number} | \"true\" | \"false\" | \"null\" | {list} | {object}"),
        );
        name
    }

    fn array(&mut self, schema: &'a Value, at: &str) -> Result<String, ToolError> {
        let item = match schema.get("items") {
            Some(items) if items.is_object() => self.value(items, &format!("{at}/items"))?,
            Some(Value::Bool(false)) => return Ok("\"[\" \"]\"".to_owned()),
            _ => self.any(),
        };
        let mut count = |keyword: &str| -> Result<Option<u64>, ToolError> {
            let n = schema.get(keyword).and_then(Value::as_u64);
            if n.is_some_and(|n| n > MOST_COUNTED) {
                self.leave_out(keyword, at)?;
                return Ok(None);
            }
            Ok(n)
        };
        let (mut least, most) = (count("minItems")?.unwrap_or(0), count("maxItems")?);
        if most.is_some_and(|most| most < least) {
            self.leave_out("minItems", at)?;
            least = 0;
        }
        if most == Some(0) {
            return Ok("\"[\" \"]\"".to_owned());
        }
        let further = self.lark.rule(&format!("\",\" {item}"));
        let needed = least.saturating_sub(1);
        let more = match most {
            Some(most) => format!("{further}~{needed}..{}", most - 1),
            None if needed == 0 => format!("{further}*"),
            None => format!("{further}~{needed}..{needed} {further}*"),
        };
        Ok(match least {
            0 => format!("\"[\" ({item} {more})? \"]\""),
            _ => format!("\"[\" {item} {more} \"]\""),
        })
    }

    fn object(&mut self, schema: &'a Value, at: &str) -> Result<String, ToolError> {
        let empty = Map::new();
        let members = schema.get("properties").and_then(Value::as_object).unwrap_or(&empty);
        let required = schema.get("required").and_then(Value::as_array).into_iter().flatten();
        let required: Vec<&str> = required.filter_map(Value::as_str).collect();
        let others = schema.get("additionalProperties");
        let mut keys: Vec<(&str, Option<&'a Value>)> = schema
            .get("properties")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .filter(|(_, property)| **property != Value::Bool(false))
            .map(|(key, property)| (key.as_str(), Some(property)))
            .collect();
        keys.extend(required.iter().filter(|key| !members.contains_key(**key)).map(|key| (*key, others)));
        // As the template sorts them.
        keys.sort_by_key(|(key, _)| key.to_lowercase());
        let mut pairs = Vec::new();
        for (key, property) in keys {
            let place = format!("{at}/properties/{}", key.replace('~', "~0").replace('/', "~1"));
            let value = match property.filter(|property| !property.is_boolean()) {
                Some(property) => self.value(property, &place)?,
                None => self.any(),
            };
            let name = self.key(key).ok_or_else(|| ToolError::Name {
                name: key.to_owned(),
                format: "gemma4",
                reason: "expected a text without <|\"|>",
            })?;
            pairs.push((self.lark.rule(&format!("{name} \":\" {value}")), required.contains(&key)));
        }
        let extra = match others {
            Some(Value::Bool(false)) => None,
            Some(others) if others.is_object() => {
                Some(self.value(others, &format!("{at}/additionalProperties"))?)
            }
            _ => Some(self.any()),
        };
        let declared: BTreeSet<&str> = members.keys().map(String::as_str).collect();
        let extra = extra.map(|value| {
            let key = self.any_key(&declared);
            self.lark.rule(&format!("{key} \":\" {value}"))
        });
        // What may follow if nothing came yet, and if something did.
        let (mut first, mut further) = match extra {
            Some(extra) => {
                (format!("({extra} (\",\" {extra})*)?"), self.lark.rule(&format!("(\",\" {extra})*")))
            }
            None => (String::new(), String::new()),
        };
        for (pair, is_required) in pairs.into_iter().rev() {
            let begun = format!("{pair} {further}");
            first = match is_required {
                true => begun,
                false if first.is_empty() => format!("({begun})?"),
                false => format!("({begun} | {first})"),
            };
            first = self.lark.rule(&first);
            further = match is_required {
                true => format!("\",\" {pair} {further}"),
                false => format!("(\",\" {pair})? {further}"),
            };
            further = self.lark.rule(&further);
        }
        Ok(format!("\"{{\" {first} \"}}\""))
    }
}
