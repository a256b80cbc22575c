//! What can be said about schemas without an instance: that two have none in common, and what the instances
//! are that one does not accept.
//!
//! Both are one-sided. "Not known" is an answer, and whoever asks refuses the schema then.

use serde_json::{Map, Value, json};

use super::Schemas;

/// References that are followed, and schemas within schemas.
const DEPTH: usize = 12;

pub(super) const TYPES: [&str; 6] = ["null", "boolean", "number", "string", "array", "object"];

/// Keywords that can refuse an instance.
pub(super) const ASSERTIONS: [&str; 43] = [
    "$ref",
    "$dynamicRef",
    "$recursiveRef",
    "type",
    "const",
    "enum",
    "allOf",
    "anyOf",
    "oneOf",
    "not",
    "if",
    "then",
    "else",
    "properties",
    "patternProperties",
    "additionalProperties",
    "required",
    "propertyNames",
    "minProperties",
    "maxProperties",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "unevaluatedProperties",
    "items",
    "prefixItems",
    "additionalItems",
    "contains",
    "minContains",
    "maxContains",
    "minItems",
    "maxItems",
    "uniqueItems",
    "unevaluatedItems",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "minLength",
    "maxLength",
    "pattern",
    "format",
];

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// The values that a schema lists.
fn listed(schema: &Map<String, Value>) -> Option<&[Value]> {
    match (schema.get("const"), schema.get("enum")) {
        (Some(value), _) => Some(std::slice::from_ref(value)),
        (None, Some(Value::Array(values))) => Some(values),
        _ => None,
    }
}

/// Types of the instances, integers among numbers.
fn types<'a>(schema: &'a Map<String, Value>) -> Vec<&'a str> {
    let number = |name: &'a str| if name == "integer" { "number" } else { name };
    let mut found: Vec<&str> = match schema.get("type") {
        Some(Value::String(name)) => vec![number(name)],
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).map(number).collect(),
        _ => TYPES.to_vec(),
    };
    if let Some(values) = listed(schema) {
        found.retain(|name| values.iter().any(|value| type_of(value) == *name));
    }
    found
}

fn number(schema: &Map<String, Value>, keyword: &str) -> Option<f64> {
    schema.get(keyword).and_then(Value::as_f64)
}

/// Keywords that concern objects alone.
const OF_OBJECTS: [&str; 9] = [
    "properties",
    "patternProperties",
    "additionalProperties",
    "required",
    "propertyNames",
    "minProperties",
    "maxProperties",
    "dependencies",
    "dependentRequired",
];

impl Schemas<'_> {
    /// The schemas that an instance must all satisfy, references followed; `None` if one leads nowhere.
    fn conjuncts<'s>(&'s self, schema: &'s Value, depth: usize) -> Option<Vec<&'s Map<String, Value>>> {
        let Value::Object(schema) = schema else { return (schema == &Value::Bool(true)).then(Vec::new) };
        if depth > DEPTH {
            return None;
        }
        let mut found = vec![schema];
        if let Some(reference) = schema.get("$ref") {
            found.extend(self.conjuncts(self.target(reference.as_str()?)?, depth + 1)?);
        }
        for part in schema.get("allOf").and_then(Value::as_array).into_iter().flatten() {
            found.extend(self.conjuncts(part, depth + 1)?);
        }
        Some(found)
    }

    /// The types under which an instance may be accepted by both; empty if no instance is.
    pub(super) fn overlap(&self, a: &Value, b: &Value, depth: usize) -> Vec<&'static str> {
        if a == &Value::Bool(false) || b == &Value::Bool(false) {
            return Vec::new();
        }
        let (Some(a), Some(b)) = (self.conjuncts(a, depth), self.conjuncts(b, depth)) else {
            return TYPES.to_vec();
        };
        let both = || a.iter().chain(&b);
        let is_open = |name: &&str| both().all(|part| types(part).contains(name));
        let open = TYPES.into_iter().filter(is_open);
        let mut open: Vec<&str> = open.filter(|name| !self.are_disjoint(&a, &b, name, depth)).collect();
        for (one, other) in [(&a, &b), (&b, &a)] {
            for part in one {
                // Whichever value is listed, or whichever option is taken: the other refuses it.
                let refuses = |value: &Value| {
                    other.iter().any(|part| self.part_accepts(part, value, depth + 1) == Some(false))
                };
                if let Some(values) = listed(part) {
                    open.retain(|name| values.iter().any(|value| type_of(value) == *name && !refuses(value)));
                }
                for keyword in ["anyOf", "oneOf"] {
                    let Some(Value::Array(options)) = part.get(keyword).filter(|_| depth < DEPTH) else {
                        continue;
                    };
                    let other = Value::Object(Map::from_iter([(
                        "allOf".to_owned(),
                        other.iter().map(|part| Value::Object((*part).clone())).collect(),
                    )]));
                    let reached: Vec<&str> =
                        options.iter().flat_map(|option| self.overlap(option, &other, depth + 4)).collect();
                    open.retain(|name| reached.contains(name));
                }
            }
        }
        open
    }

    /// Whether no instance of this type satisfies all parts.
    fn are_disjoint(
        &self,
        a: &[&Map<String, Value>],
        b: &[&Map<String, Value>],
        name: &str,
        depth: usize,
    ) -> bool {
        let both: Vec<&Map<String, Value>> = a.iter().chain(b).copied().collect();
        let is_empty = |least: &str, most: &str| {
            let least = both.iter().filter_map(|part| number(part, least)).fold(f64::NEG_INFINITY, f64::max);
            let most = both.iter().filter_map(|part| number(part, most)).fold(f64::INFINITY, f64::min);
            least > most
        };
        match name {
            "number" => is_empty("minimum", "maximum"),
            "string" => is_empty("minLength", "maxLength"),
            "array" => is_empty("minItems", "maxItems"),
            // A property that must be there, and that cannot suit both.
            "object" if depth < DEPTH => {
                let required = both.iter().filter_map(|part| part.get("required")?.as_array()).flatten();
                required.filter_map(Value::as_str).any(|name| {
                    a.iter().filter_map(|part| property(part, name)).any(|one| {
                        let others = b.iter().filter_map(|part| property(part, name));
                        one == &Value::Bool(false)
                            || others.into_iter().any(|other| self.overlap(one, other, depth + 2).is_empty())
                    }) || b.iter().any(|part| property(part, name) == Some(&Value::Bool(false)))
                })
            }
            _ => false,
        }
    }

    /// Whether a schema accepts all instances of a type that is not that of objects.
    pub(super) fn is_free(&self, schema: &Value, name: &str) -> bool {
        let parts = self.conjuncts(schema, 0);
        name != "object"
            && parts.is_some_and(|parts| {
                let is_free = |keyword: &str| {
                    OF_OBJECTS.contains(&keyword)
                        || !ASSERTIONS.contains(&keyword)
                        || ["allOf", "$ref"].contains(&keyword)
                };
                parts.iter().all(|part| part.keys().all(|keyword| is_free(keyword)))
            })
    }

    /// A schema for what this one does not accept; `None` if there is none without regular expressions that
    /// say no.
    pub(super) fn negate(&self, schema: &Value, depth: usize) -> Option<Value> {
        let schema = match self.resolve(schema)? {
            Value::Bool(accepts) => return Some(Value::Bool(!accepts)),
            Value::Object(schema) if depth <= DEPTH => schema,
            _ => return None,
        };
        let mut cases = Vec::new();
        for (keyword, value) in schema {
            if !ASSERTIONS.contains(&keyword.as_str()) || is_unknown_format(keyword, value) {
                continue;
            }
            cases.push(self.negate_keyword(keyword, value, depth)?);
        }
        Some(match cases.len() {
            0 => Value::Bool(false),
            1 => cases.remove(0),
            _ => json!({ "anyOf": cases }),
        })
    }

    fn negate_keyword(&self, keyword: &str, value: &Value, depth: usize) -> Option<Value> {
        let each = |values: &Value| -> Option<Vec<Value>> {
            values.as_array()?.iter().map(|value| self.negate(value, depth + 1)).collect()
        };
        let count = || value.as_u64();
        Some(match keyword {
            "type" => {
                let found = types_named(value)?;
                let others: Vec<&str> = TYPES.into_iter().filter(|name| !found.contains(name)).collect();
                if others.is_empty() { Value::Bool(false) } else { json!({ "type": others }) }
            }
            "const" => negate_values(std::slice::from_ref(value))?,
            "enum" => negate_values(value.as_array()?)?,
            "required" => {
                let names = value.as_array()?.iter().map(Value::as_str).collect::<Option<Vec<_>>>()?;
                let without = |name: &&str| json!({ "type": "object", "properties": { *name: false } });
                json!({ "anyOf": names.iter().map(without).collect::<Vec<_>>() })
            }
            "properties" => {
                let mut cases = Vec::new();
                for (name, schema) in value.as_object()? {
                    let not = self.negate(schema, depth + 1)?;
                    if not != Value::Bool(false) {
                        cases.push(
                            json!({ "type": "object", "required": [name], "properties": { name: not } }),
                        );
                    }
                }
                if cases.is_empty() { Value::Bool(false) } else { json!({ "anyOf": cases }) }
            }
            "minimum" if value.is_number() => json!({ "type": "number", "exclusiveMaximum": value }),
            "maximum" if value.is_number() => json!({ "type": "number", "exclusiveMinimum": value }),
            "exclusiveMinimum" if value.is_number() => json!({ "type": "number", "maximum": value }),
            "exclusiveMaximum" if value.is_number() => json!({ "type": "number", "minimum": value }),
            "minLength" | "minItems" if count()? == 0 => Value::Bool(false),
            "minLength" => json!({ "type": "string", "maxLength": count()? - 1 }),
            "maxLength" => json!({ "type": "string", "minLength": count()? + 1 }),
            "minItems" => json!({ "type": "array", "maxItems": count()? - 1 }),
            "maxItems" => json!({ "type": "array", "minItems": count()? + 1 }),
            "not" => value.clone(),
            "anyOf" => json!({ "allOf": each(value)? }),
            "allOf" => json!({ "anyOf": each(value)? }),
            "items" | "additionalItems" | "additionalProperties" if value == true || value == &json!({}) => {
                Value::Bool(false)
            }
            "$ref" => self.negate(&json!({ "$ref": value }), depth + 1)?,
            _ => return None,
        })
    }

    /// Whether a schema accepts a value; `None` if that is not known.
    pub(super) fn accepts(&self, schema: &Value, value: &Value, depth: usize) -> Option<bool> {
        let schema = match self.resolve(schema)? {
            Value::Bool(accepts) => return Some(*accepts),
            Value::Object(schema) if depth <= DEPTH => schema,
            _ => return None,
        };
        self.part_accepts(schema, value, depth)
    }

    fn part_accepts(&self, schema: &Map<String, Value>, value: &Value, depth: usize) -> Option<bool> {
        let mut known = true;
        for (keyword, argument) in schema {
            match self.keyword_accepts(schema, keyword, argument, value, depth) {
                Some(true) => {}
                Some(false) => return Some(false),
                None => known = false,
            }
        }
        known.then_some(true)
    }

    fn keyword_accepts(
        &self,
        schema: &Map<String, Value>,
        keyword: &str,
        argument: &Value,
        value: &Value,
        depth: usize,
    ) -> Option<bool> {
        let all = |results: Vec<Option<bool>>| match results.contains(&Some(false)) {
            true => Some(false),
            false => results.into_iter().collect::<Option<Vec<_>>>().map(|_| true),
        };
        match keyword {
            "type" => {
                let is = |name: &str| match name {
                    "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
                    name => type_of(value) == name,
                };
                match argument {
                    Value::String(name) => Some(is(name)),
                    Value::Array(names) => Some(names.iter().filter_map(Value::as_str).any(is)),
                    _ => None,
                }
            }
            "const" => Some(is_equal(argument, value)),
            "enum" => Some(argument.as_array()?.iter().any(|other| is_equal(other, value))),
            "minimum" => value.as_f64().map_or(Some(true), |n| Some(n >= argument.as_f64()?)),
            "maximum" => value.as_f64().map_or(Some(true), |n| Some(n <= argument.as_f64()?)),
            "minLength" => {
                value.as_str().map_or(Some(true), |s| Some(s.chars().count() as u64 >= argument.as_u64()?))
            }
            "maxLength" => {
                value.as_str().map_or(Some(true), |s| Some(s.chars().count() as u64 <= argument.as_u64()?))
            }
            "minItems" => value.as_array().map_or(Some(true), |a| Some(a.len() as u64 >= argument.as_u64()?)),
            "maxItems" => value.as_array().map_or(Some(true), |a| Some(a.len() as u64 <= argument.as_u64()?)),
            "required" => {
                let Some(object) = value.as_object() else { return Some(true) };
                Some(
                    argument
                        .as_array()?
                        .iter()
                        .filter_map(Value::as_str)
                        .all(|name| object.contains_key(name)),
                )
            }
            "properties" => {
                let Some(object) = value.as_object() else { return Some(true) };
                let found = argument
                    .as_object()?
                    .iter()
                    .filter_map(|(name, schema)| Some(self.accepts(schema, object.get(name)?, depth + 1)));
                all(found.collect())
            }
            "additionalProperties" => {
                let Some(object) = value.as_object() else { return Some(true) };
                let named = schema.get("properties").and_then(Value::as_object);
                let extra: Vec<_> = object
                    .iter()
                    .filter(|(name, _)| !named.is_some_and(|named| named.contains_key(*name)))
                    .collect();
                if !extra.is_empty() && schema.contains_key("patternProperties") {
                    return None;
                }
                all(extra.into_iter().map(|(_, value)| self.accepts(argument, value, depth + 1)).collect())
            }
            "allOf" => {
                all(argument.as_array()?.iter().map(|part| self.accepts(part, value, depth + 1)).collect())
            }
            "anyOf" => {
                let found: Vec<_> =
                    argument.as_array()?.iter().map(|part| self.accepts(part, value, depth + 1)).collect();
                match found.contains(&Some(true)) {
                    true => Some(true),
                    false => found.into_iter().collect::<Option<Vec<_>>>().map(|_| false),
                }
            }
            "pattern" | "format" if !value.is_string() => Some(true),
            "items" | "uniqueItems" | "contains" if !value.is_array() => Some(true),
            "patternProperties" | "propertyNames" | "dependencies" if !value.is_object() => Some(true),
            _ if !ASSERTIONS.contains(&keyword) || is_unknown_format(keyword, argument) => Some(true),
            _ => None,
        }
    }
}

fn is_unknown_format(keyword: &str, value: &Value) -> bool {
    keyword == "format" && !value.as_str().is_some_and(super::formats::is_defined)
}

/// Numbers are equal by value.
fn is_equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(one), Value::Number(other)) => one == other || one.as_f64() == other.as_f64(),
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(a, b)| is_equal(a, b))
        }
        (Value::Object(one), Value::Object(other)) => {
            let is_there = |(name, a): (&String, &Value)| other.get(name).is_some_and(|b| is_equal(a, b));
            one.len() == other.len() && one.iter().all(is_there)
        }
        _ => a == b,
    }
}

/// The schema of a property; `None` if patterns decide.
fn property<'a>(schema: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    let named = schema.get("properties").and_then(|properties| properties.get(name));
    named.or_else(|| match schema.contains_key("patternProperties") {
        true => None,
        false => schema.get("additionalProperties"),
    })
}

/// The types of a keyword, unless they hold integers without the other numbers.
fn types_named(value: &Value) -> Option<Vec<&str>> {
    let names: Vec<&str> = match value {
        Value::String(name) => vec![name],
        Value::Array(names) => names.iter().map(Value::as_str).collect::<Option<_>>()?,
        _ => return None,
    };
    (names.contains(&"number") || !names.contains(&"integer")).then_some(names)
}

/// A schema for everything but some values.
fn negate_values(values: &[Value]) -> Option<Value> {
    let mut cases = Vec::new();
    for name in TYPES {
        let of_type: Vec<&Value> = values.iter().filter(|value| type_of(value) == name).collect();
        match (name, &*of_type) {
            (_, []) => cases.push(json!({ "type": name })),
            ("null", _) => {}
            ("boolean", [one, rest @ ..]) => {
                if rest.iter().all(|other| other == one) {
                    cases.push(json!({ "const": !one.as_bool()? }));
                }
            }
            ("string", _) => {
                let texts: Vec<&str> = of_type.iter().filter_map(|value| value.as_str()).collect();
                cases.push(json!({ "type": "string", "pattern": other_texts(&texts) }));
            }
            ("number", _) => {
                let mut numbers: Vec<&Value> = of_type;
                numbers.sort_by(|a, b| a.as_f64().unwrap_or(0.0).total_cmp(&b.as_f64().unwrap_or(0.0)));
                cases.push(json!({ "type": "number", "exclusiveMaximum": numbers[0] }));
                let pairs = numbers.windows(2).filter(|pair| !is_equal(pair[0], pair[1]));
                cases.extend(pairs.map(|pair| {
                    json!({ "type": "number", "exclusiveMinimum": pair[0], "exclusiveMaximum": pair[1] })
                }));
                cases.push(json!({ "type": "number", "exclusiveMinimum": numbers[numbers.len() - 1] }));
            }
            _ => return None,
        }
    }
    Some(json!({ "anyOf": cases }))
}

/// Any character, the ends of lines among them.
const ANY: &str = r"[\x{0}-\x{10ffff}]";

/// An expression for all texts but some: where a text leaves the tree of these, anything may follow.
fn other_texts(texts: &[&str]) -> String {
    fn node(texts: &[&str]) -> String {
        let mut heads: Vec<char> = texts.iter().filter_map(|text| text.chars().next()).collect();
        heads.sort_unstable();
        heads.dedup();
        // The end of the text, if no text of the list ends here.
        let mut options: Vec<String> = if texts.contains(&"") { Vec::new() } else { vec![String::new()] };
        let class: String = heads.iter().map(|head| format!("\\x{{{:x}}}", u32::from(*head))).collect();
        options.push(if heads.is_empty() { format!("{ANY}+") } else { format!("[^{class}]{ANY}*") });
        for head in heads {
            let rest: Vec<&str> = texts.iter().filter_map(|text| text.strip_prefix(head)).collect();
            options.push(format!("\\x{{{:x}}}{}", u32::from(head), node(&rest)));
        }
        format!("(?:{})", options.join("|"))
    }
    format!("^{}$", node(texts))
}
