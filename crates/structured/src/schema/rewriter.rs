//! The rewriting of one schema after another.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::formats::{HOST_NAME, Meaning, meaning};
use super::logic::ASSERTIONS;
use super::{Schemas, Wider, count, has_address, has_reference, shape, step};
use crate::check::{expression, of_ecmascript, of_either};
use crate::cost;
use crate::{Error, Order, Result, SchemaOptions, Warning};

/// How much is left to the checks.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub(crate) enum Looseness {
    /// What cannot be said.
    Least,
    /// And what the engine refuses here and there: patterns of names that overlap, keywords beside
    /// references.
    Combinations,
    /// And all that must hold beside other keywords.
    Conditions,
}

/// Names of one object that may come in any order.
const ANY_ORDER: usize = 64;

pub(super) struct Rewriter<'a> {
    pub(super) schemas: &'a Schemas<'a>,
    options: SchemaOptions,
    looseness: Looseness,
    /// References in the order of their numbers.
    definitions: Vec<String>,
    names: HashMap<String, usize>,
    pub(super) wider: Wider,
    pub(super) warnings: Vec<Warning>,
    /// What is rewritten must accept the same instances.
    is_exact: bool,
    pub(super) has_exact_reference: bool,
    pub(super) refuses_exact_references: bool,
}

pub(super) fn refused<T>(keyword: &str, pointer: &str, reason: &str) -> Result<T> {
    Err(Error::Keyword {
        keyword: keyword.to_owned(),
        pointer: pointer.to_owned(),
        reason: reason.to_owned(),
    })
}

impl<'a> Rewriter<'a> {
    pub(super) fn new(schemas: &'a Schemas<'a>, options: SchemaOptions, looseness: Looseness) -> Self {
        Self {
            schemas,
            options,
            looseness,
            definitions: Vec::new(),
            names: HashMap::new(),
            wider: Wider::new(),
            warnings: Vec::new(),
            is_exact: false,
            has_exact_reference: false,
            refuses_exact_references: false,
        }
    }

    /// The whole document, or a part of it as a document of its own.
    pub(super) fn document(&mut self, schema: &Value, at: &str) -> Result<Value> {
        let mut out = self.rewrite(schema, at)?;
        let mut definitions = Map::new();
        // Definitions name further ones while they are rewritten.
        let mut next = 0;
        while let Some(reference) = self.definitions.get(next).cloned() {
            let target = self.schemas.target(&reference).unwrap_or(&Value::Bool(true));
            let place = reference.split_once('#').map(|(_, place)| place).unwrap_or_default();
            definitions.insert(format!("d{next}"), self.rewrite(target, place)?);
            next += 1;
        }
        if !definitions.is_empty()
            && let Value::Object(out) = &mut out
        {
            // A schema `true` or `false` has no references.
            out.insert("$defs".to_owned(), Value::Object(definitions));
        }
        Ok(out)
    }

    /// Rewrites something that must accept the same instances.
    pub(super) fn exactly<T>(&mut self, rewrite: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let was = std::mem::replace(&mut self.is_exact, true);
        let result = rewrite(self);
        self.is_exact = was;
        result
    }

    /// Leaves a keyword of a schema to the checks.
    pub(super) fn widen(&mut self, schema: &Value, keyword: &str, at: &str, reason: &str) -> Result<()> {
        if self.is_exact {
            return refused(keyword, at, reason);
        }
        let is_untold = ["$ref", "allOf", "patternProperties", "additionalProperties"].contains(&keyword);
        *self.wider.entry(std::ptr::from_ref(schema)).or_default() |= is_untold;
        Ok(())
    }

    /// The same for a keyword that may have been rewritten.
    pub(super) fn or_widen(
        &mut self,
        rewritten: Result<Value>,
        schema: &Value,
        parts: &mut Vec<Value>,
    ) -> Result<()> {
        match rewritten {
            Ok(part) => parts.push(part),
            Err(Error::Keyword { keyword, pointer, reason }) => {
                self.widen(schema, &keyword, &pointer, &reason)?
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Gives up on a keyword.
    fn unknown(&mut self, keyword: &str, at: &str, reason: &str) -> Result<()> {
        if self.is_exact || self.options.strict {
            return refused(keyword, at, reason);
        }
        let (keyword, pointer, reason) = (keyword.to_owned(), at.to_owned(), reason.to_owned());
        self.warnings.push(Warning { keyword, pointer, reason });
        Ok(())
    }

    pub(super) fn rewrite(&mut self, whole: &Value, at: &str) -> Result<Value> {
        let schema = match whole {
            Value::Object(schema) => schema,
            Value::Bool(_) => return Ok(whole.clone()),
            _ => return shape::no_schema(whole, at),
        };
        if has_address(schema) && !at.is_empty() && schema.values().any(has_reference) {
            self.unknown("$id", at, "references below an address of its own are not followed")?;
            return Ok(Value::Bool(true));
        }
        let mut out = Map::new();
        // Conditions beside the keywords of the schema itself.
        let mut parts: Vec<Value> = Vec::new();
        for (keyword, value) in schema {
            self.keyword(whole, schema, (keyword, value), at, &mut out, &mut parts)?;
        }
        if self.looseness >= Looseness::Combinations {
            self.loosen(whole, at, &mut out, &mut parts)?;
        }
        if self.options.order == Order::Any
            && out.contains_key("patternProperties")
            && (out.contains_key("properties") || out.contains_key("required"))
        {
            // A name in any order is a pattern, and patterns must not overlap.
            out.shift_remove("patternProperties");
            out.shift_remove("additionalProperties");
            self.widen(whole, "patternProperties", at, "their order is free")?;
        }
        if self.options.order == Order::Any && any_order(&mut out) {
            self.widen(whole, "properties", at, "their order is free")?;
        }
        group(&mut out);
        // Where the schema has them itself they keep their place: it decides the order of properties.
        match out.get_mut("allOf") {
            _ if parts.is_empty() => {}
            Some(Value::Array(own)) => own.extend(parts),
            _ => {
                out.insert("allOf".to_owned(), Value::Array(parts));
            }
        }
        Ok(Value::Object(out))
    }

    fn keyword(
        &mut self,
        whole: &Value,
        schema: &Map<String, Value>,
        (keyword, value): (&str, &Value),
        at: &str,
        out: &mut Map<String, Value>,
        parts: &mut Vec<Value>,
    ) -> Result<()> {
        let here = format!("{at}/{keyword}");
        shape::check(keyword, value, at)?;
        match keyword {
            "$ref" => {
                let Some(reference) = value.as_str() else { return refused("$ref", at, "it is no text") };
                if self.schemas.target(reference).is_none() {
                    return self.unknown("$ref", at, "it names nothing within the schema");
                }
                if self.is_exact {
                    self.has_exact_reference = true;
                    if self.refuses_exact_references {
                        return refused("$ref", at, "what it names is not enforced by the grammar alone");
                    }
                }
                out.insert("$ref".to_owned(), self.reference(reference));
            }
            "properties" | "patternProperties" => {
                let Value::Object(members) = value else { return refused(keyword, at, "it is no object") };
                let mut rewritten = Map::new();
                for (name, schema) in members {
                    if keyword == "patternProperties" && cost::steps(name, false) > cost::STEPS {
                        return self.unknown(keyword, at, "the repetitions of a pattern are too many");
                    }
                    if keyword == "patternProperties" && !is_searched_by_engine(name) {
                        if expression(name).is_none() {
                            return self.unknown(
                                keyword,
                                at,
                                "a pattern is not regular, or nested too deeply",
                            );
                        }
                        // Without the pattern, nothing is known of other names.
                        out.shift_remove("additionalProperties");
                        return self.widen(whole, keyword, at, "a pattern is more than the engine knows");
                    }
                    let is_pattern = keyword == "patternProperties";
                    let name_there = if is_pattern { of_ecmascript(name) } else { name.clone() };
                    rewritten.insert(name_there, self.rewrite(schema, &format!("{here}/{}", step(name)))?);
                }
                out.insert(keyword.to_owned(), Value::Object(rewritten));
            }
            "additionalProperties" => {
                let patterns = schema.get("patternProperties").and_then(Value::as_object);
                if patterns.is_some_and(|patterns| !patterns.keys().all(|name| is_searched_by_engine(name))) {
                    return self.widen(whole, keyword, at, "it stands beside a pattern that is not enforced");
                }
                let schema = self.rewrite(value, &here)?;
                out.insert(keyword.to_owned(), schema);
            }
            "allOf" | "anyOf" | "prefixItems" => {
                let parts = self.list(keyword, value, at)?;
                out.insert(keyword.to_owned(), parts);
            }
            "items" if value.is_array() => {
                let parts = self.list(keyword, value, at)?;
                out.insert(keyword.to_owned(), parts);
            }
            "items" | "additionalItems" => {
                let schema = self.rewrite(value, &here)?;
                out.insert(keyword.to_owned(), schema);
            }
            "format" => match value.as_str().map(meaning) {
                Some(Meaning::Expression(pattern)) => {
                    parts.push(json!({ "pattern": pattern }));
                    if value == "hostname" {
                        parts.push(json!({ "maxLength": HOST_NAME }));
                    }
                }
                Some(Meaning::Missing) => self.unknown(keyword, at, "the format is not enforced")?,
                _ => {}
            },
            "pattern" => match value.as_str() {
                Some(pattern) if cost::steps(pattern, false) > cost::STEPS => {
                    self.unknown(keyword, at, "its repetitions are too many")?;
                }
                Some(pattern) if is_searched_by_engine(pattern) => {
                    let pattern = if self.is_exact { of_ecmascript(pattern) } else { of_either(pattern) };
                    out.insert(keyword.to_owned(), pattern.into());
                }
                Some(pattern) if expression(pattern).is_some() => {
                    self.widen(whole, keyword, at, "it is more than the engine knows")?;
                }
                _ => self.unknown(keyword, at, "it is not regular, or nested too deeply")?,
            },
            "uniqueItems" if value == false => {}
            "uniqueItems" => self.widen(whole, keyword, at, "the grammar does not remember items")?,
            "contains" => self.widen(whole, keyword, at, "the grammar does not count items")?,
            "minContains" | "maxContains" => {}
            "oneOf" => {
                let rewritten = self.one_of(schema, value, at);
                match rewritten {
                    Err(Error::Keyword { reason, .. }) if !self.is_exact => {
                        self.widen(whole, keyword, at, &reason)?;
                        let options = self.list(keyword, value, at)?;
                        parts.push(json!({ "anyOf": options }));
                    }
                    rewritten => parts.push(rewritten?),
                }
            }
            "not" => {
                let rewritten = match self.schemas.negate(value, 0) {
                    Some(not) => self.exactly(|this| this.rewrite(&not, &here)),
                    None => refused(keyword, at, "what it leaves over cannot be said"),
                };
                self.or_widen(rewritten, whole, parts)?;
            }
            "if" => {
                let rewritten = self.condition(schema, value, at);
                match rewritten {
                    Err(Error::Keyword { reason, .. }) if !self.is_exact => {
                        self.widen(whole, keyword, at, &reason)?;
                        if let (Some(then), Some(otherwise)) = (schema.get("then"), schema.get("else")) {
                            let then = self.rewrite(then, &format!("{at}/then"))?;
                            let otherwise = self.rewrite(otherwise, &format!("{at}/else"))?;
                            parts.push(json!({ "anyOf": [then, otherwise] }));
                        }
                    }
                    rewritten => parts.push(rewritten?),
                }
            }
            "then" | "else" => {}
            "dependencies" | "dependentRequired" | "dependentSchemas" => {
                let rewritten = match self.options.order {
                    Order::Declared => self.exactly(|this| this.dependencies(value, at, keyword)),
                    Order::Any => refused(keyword, at, "the order of properties is free"),
                };
                match rewritten {
                    Ok(rewritten) => parts.extend(rewritten),
                    Err(Error::Keyword { reason, .. }) => self.widen(whole, keyword, at, &reason)?,
                    Err(error) => return Err(error),
                }
            }
            "propertyNames" => {
                let rewritten = self.property_names(value, at);
                match rewritten {
                    Ok(rewritten) => parts.extend(rewritten),
                    Err(Error::Keyword { reason, .. }) => self.widen(whole, keyword, at, &reason)?,
                    Err(error) => return Err(error),
                }
            }
            "minProperties" | "maxProperties" => {
                let rewritten = self.n_properties(schema, keyword, value, at, out, parts);
                match rewritten {
                    Err(Error::Keyword { reason, .. }) => self.widen(whole, keyword, at, &reason)?,
                    rewritten => rewritten?,
                }
            }
            "unevaluatedProperties" | "unevaluatedItems" => {
                if value != true {
                    self.widen(whole, keyword, at, "the grammar does not know what has been evaluated")?;
                }
            }
            "$dynamicRef" | "$recursiveRef" => self.unknown(keyword, at, "it is not followed")?,
            "minLength" | "maxLength" | "minItems" | "maxItems" => match count(value) {
                Some(count) => {
                    out.insert(keyword.to_owned(), json!(count));
                }
                None => return refused(keyword, at, "it is no number of things"),
            },
            "required" if value.is_boolean() => {}
            "x-guidance" | "$defs" | "definitions" | "$anchor" | "$dynamicAnchor" | "$recursiveAnchor" => {}
            "$id" | "id" | "$vocabulary" => {}
            _ => {
                out.insert(keyword.to_owned(), value.clone());
            }
        }
        Ok(())
    }

    pub(super) fn list(&mut self, keyword: &str, value: &Value, at: &str) -> Result<Value> {
        let Value::Array(list) = value else { return refused(keyword, at, "it is no list") };
        let list = list.iter().enumerate();
        let list = list.map(|(i, schema)| self.rewrite(schema, &format!("{at}/{keyword}/{i}")));
        Ok(Value::Array(list.collect::<Result<_>>()?))
    }

    /// A reference as one to a definition of our own.
    fn reference(&mut self, reference: &str) -> Value {
        let n = self.definitions.len();
        let number = *self.names.entry(reference.to_owned()).or_insert(n);
        if number == n {
            self.definitions.push(reference.to_owned());
        }
        Value::String(format!("#/$defs/d{number}"))
    }

    /// Leaves to the checks what the engine has refused somewhere.
    fn loosen(
        &mut self,
        whole: &Value,
        at: &str,
        out: &mut Map<String, Value>,
        parts: &mut Vec<Value>,
    ) -> Result<()> {
        let asserts = |key: &String| ASSERTIONS.contains(&key.as_str()) && key != "$ref";
        if out.contains_key("$ref") && (out.keys().any(asserts) || !parts.is_empty()) {
            out.retain(|key, _| !asserts(key));
            parts.clear();
            self.widen(whole, "$ref", at, "keywords stand beside it")?;
        }
        let patterns = out.get("patternProperties").and_then(Value::as_object).map_or(0, Map::len);
        if patterns > 1 || (patterns == 1 && out.contains_key("properties")) {
            out.shift_remove("patternProperties");
            out.shift_remove("additionalProperties");
            self.widen(whole, "patternProperties", at, "patterns overlap, or may")?;
        }
        if self.looseness >= Looseness::Conditions {
            for keyword in ["minProperties", "maxProperties"] {
                if out.shift_remove(keyword).is_some() {
                    self.widen(whole, keyword, at, "names are optional")?;
                }
            }
            let own = ["type", "properties", "items", "enum", "const", "$ref"];
            let others = ["allOf", "anyOf"];
            let has_own = own.iter().any(|key| out.contains_key(*key));
            if has_own && (!parts.is_empty() || others.iter().any(|key| out.contains_key(*key))) {
                parts.clear();
                out.retain(|key, _| !others.contains(&key.as_str()));
                self.widen(whole, "allOf", at, "it stands beside other keywords")?;
            }
        }
        Ok(())
    }
}

/// Puts what is about the names of members side by side: the engine takes in one piece what stands between
/// two conditions.
fn group(out: &mut Map<String, Value>) {
    const NAMES: [&str; 3] = ["properties", "patternProperties", "additionalProperties"];
    let Some(leader) = NAMES.into_iter().find(|key| out.contains_key(*key)) else { return };
    let mut members = NAMES.map(|key| (key, out.get_mut(key).map(Value::take)));
    let old = std::mem::take(out);
    for (key, value) in old {
        if key == leader {
            for (key, value) in &mut members {
                out.extend(value.take().map(|value| ((*key).to_owned(), value)));
            }
        } else if !NAMES.contains(&&*key) {
            out.insert(key, value);
        }
    }
}

/// Turns names into patterns of one name each, which the engine takes in any order; what must be there is
/// checked then. Whether there is anything to be turned.
fn any_order(out: &mut Map<String, Value>) -> bool {
    let n_names = out.get("properties").and_then(Value::as_object).map_or(0, Map::len);
    if n_names > ANY_ORDER || out.contains_key("patternProperties") {
        return false;
    }
    let has_required = out.shift_remove("required").is_some();
    let Some(Value::Object(members)) = out.shift_remove("properties") else { return has_required };
    let pattern = |name: &str| format!("^{}$", name.chars().map(escaped).collect::<String>());
    let patterns = members.into_iter().map(|(name, schema)| (pattern(&name), schema));
    out.insert("patternProperties".to_owned(), patterns.collect::<Map<_, _>>().into());
    out.shift_remove("minProperties");
    out.shift_remove("maxProperties");
    true
}

/// A character of an expression that stands for itself.
pub(super) fn escaped(c: char) -> String {
    if c.is_ascii_alphanumeric() || c == '_' { c.to_string() } else { format!("\\x{{{:x}}}", u32::from(c)) }
}

/// Levels of groups in an expression.
pub(crate) const PATTERN_DEPTH: usize = 64;
/// Bytes of an expression: longer ones take the engine seconds.
pub(crate) const PATTERN_BYTES: usize = 16 << 10;

/// Whether the engine knows all of an expression.
pub(super) fn is_searched_by_engine(pattern: &str) -> bool {
    if pattern.len() > PATTERN_BYTES || cost::steps(pattern, false) > cost::STEPS {
        return false;
    }
    let pattern = llguidance::regex_to_lark(&of_ecmascript(pattern), "dw");
    crate::grammar::depth(&pattern, false) <= PATTERN_DEPTH
        && llguidance::derivre::RegexBuilder::new().mk_regex_for_serach(&pattern).is_ok()
}
