//! Which types of JSON a schema leaves open: formats that write strings without quotes read values by them.

use serde_json::{Map, Value};

/// References that are followed, one after the other.
const MOST_REFERENCES: usize = 16;
/// Schemas that are looked at for one answer; beyond, any type is possible.
const MOST_SCHEMAS: usize = 1000;

/// Types that a value may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kinds {
    pub(super) string: bool,
    pub(super) integer: bool,
    /// Numbers that are no integers, too.
    pub(super) number: bool,
    pub(super) boolean: bool,
    pub(super) null: bool,
    pub(super) array: bool,
    pub(super) object: bool,
}

impl Kinds {
    pub(super) const ANY: Self = Self::all(true);
    const NONE: Self = Self::all(false);

    const fn all(is: bool) -> Self {
        Self { string: is, integer: is, number: is, boolean: is, null: is, array: is, object: is }
    }

    /// Whether it may be a list or an object.
    pub(super) fn container(self) -> bool {
        self.array || self.object
    }

    /// Whether it may be a number or a word.
    pub(super) fn literal(self) -> bool {
        self.integer || self.number || self.boolean || self.null
    }

    /// The names of all types but strings.
    pub(super) fn names_but_string(self) -> Vec<&'static str> {
        let number = if self.number { "number" } else { "integer" };
        let all = [
            (self.integer || self.number, number),
            (self.boolean, "boolean"),
            (self.null, "null"),
            (self.array, "array"),
            (self.object, "object"),
        ];
        all.into_iter().filter(|(is, _)| *is).map(|(_, name)| name).collect()
    }

    fn or(self, other: Self) -> Self {
        Self {
            string: self.string || other.string,
            integer: self.integer || other.integer,
            number: self.number || other.number,
            boolean: self.boolean || other.boolean,
            null: self.null || other.null,
            array: self.array || other.array,
            object: self.object || other.object,
        }
    }

    fn and(self, other: Self) -> Self {
        Self {
            string: self.string && other.string,
            integer: self.integer && other.integer,
            number: self.number && other.number,
            boolean: self.boolean && other.boolean,
            null: self.null && other.null,
            array: self.array && other.array,
            object: self.object && other.object,
        }
    }

    fn named(name: &str) -> Self {
        let mut kinds = Self::NONE;
        match name {
            "string" => kinds.string = true,
            "integer" => kinds.integer = true,
            "number" => (kinds.integer, kinds.number) = (true, true),
            "boolean" => kinds.boolean = true,
            "null" => kinds.null = true,
            "array" => kinds.array = true,
            "object" => kinds.object = true,
            _ => return Self::ANY,
        }
        kinds
    }

    fn of_value(value: &Value) -> Self {
        match value {
            Value::Null => Self::named("null"),
            Value::Bool(_) => Self::named("boolean"),
            // An integer may be written as 1.0.
            Value::Number(_) => Self::named("number"),
            Value::String(_) => Self::named("string"),
            Value::Array(_) => Self::named("array"),
            Value::Object(_) => Self::named("object"),
        }
    }

    /// The types that a schema within a document leaves open, at most.
    pub(super) fn of(schema: &Value, root: &Value) -> Self {
        Self::within(schema, root, MOST_REFERENCES, &mut 0)
    }

    fn within(schema: &Value, root: &Value, left: usize, n_seen: &mut usize) -> Self {
        *n_seen += 1;
        let schema = match schema {
            Value::Bool(false) => return Self::NONE,
            Value::Object(schema) if left > 0 && *n_seen <= MOST_SCHEMAS => schema,
            _ => return Self::ANY,
        };
        let mut kinds = Self::ANY;
        for (keyword, value) in schema {
            let mut each = |list: &[Value]| -> Vec<Self> {
                list.iter().map(|part| Self::within(part, root, left - 1, n_seen)).collect()
            };
            let found = match (keyword.as_str(), value) {
                ("type", Value::String(name)) => Self::named(name),
                ("type", Value::Array(names)) => {
                    names.iter().filter_map(Value::as_str).map(Self::named).fold(Self::NONE, Self::or)
                }
                ("const", value) => Self::of_value(value),
                ("enum", Value::Array(values)) => {
                    values.iter().map(Self::of_value).fold(Self::NONE, Self::or)
                }
                ("anyOf" | "oneOf", Value::Array(list)) => each(list).into_iter().fold(Self::NONE, Self::or),
                ("allOf", Value::Array(list)) => each(list).into_iter().fold(Self::ANY, Self::and),
                ("$ref", Value::String(reference)) => match target(root, reference) {
                    Some(target) => Self::within(target, root, left - 1, n_seen),
                    None => Self::ANY,
                },
                _ => Self::ANY,
            };
            kinds = kinds.and(found);
        }
        kinds
    }
}

/// What a reference within a document names.
pub(super) fn target<'a>(root: &'a Value, reference: &str) -> Option<&'a Value> {
    root.pointer(reference.strip_prefix('#')?)
}

/// A schema behind references that stand alone.
pub(super) fn resolve<'a>(schema: &'a Value, root: &'a Value) -> &'a Value {
    let mut schema = schema;
    for _ in 0..MOST_REFERENCES {
        let next = schema.get("$ref").and_then(Value::as_str).and_then(|reference| target(root, reference));
        match next {
            Some(next) if assertions(schema).count() == 1 => schema = next,
            _ => break,
        }
    }
    schema
}

/// The schemas of which an instance must suit one: those of `anyOf`, or of a `oneOf` that no instance suits
/// twice, if there is nothing beside it; otherwise the schema itself. References are not followed.
pub(super) fn alternatives<'a>(schema: &'a Value, root: &'a Value) -> Vec<&'a Value> {
    let mut keywords = assertions(schema);
    if let (Some(keyword @ ("anyOf" | "oneOf")), None) = (keywords.next(), keywords.next())
        && let Some(list) = schema[keyword].as_array()
    {
        let kinds: Vec<Kinds> = list.iter().map(|part| Kinds::of(part, root)).collect();
        let is_apart = |i: usize| kinds[..i].iter().all(|other| other.and(kinds[i]) == Kinds::NONE);
        if keyword == "anyOf" || (0..kinds.len()).all(is_apart) {
            return list.iter().flat_map(|part| alternatives(part, root)).collect();
        }
    }
    vec![schema]
}

/// Keywords that say nothing of an instance.
const ANNOTATIONS: [&str; 13] = [
    "title",
    "description",
    "default",
    "examples",
    "example",
    "deprecated",
    "readOnly",
    "writeOnly",
    "$comment",
    "$schema",
    "$id",
    "$defs",
    "definitions",
];

/// Keywords that do.
pub(super) fn assertions(schema: &Value) -> impl Iterator<Item = &str> {
    let members = schema.as_object().into_iter().flat_map(Map::keys).map(String::as_str);
    members.filter(|keyword| !ANNOTATIONS.contains(keyword))
}

/// The spelling in JSON of a number, `true`, `false` or `null` of these types; also of Python's words, where
/// no string can be meant.
pub(super) fn literal(text: &str, kinds: Kinds) -> Option<&str> {
    let is_number = |text: &str| {
        super::json::is_value(text) && text.starts_with(|c: char| c == '-' || c.is_ascii_digit())
    };
    let is_integer = |text: &str| is_number(text) && !text.contains(['.', 'e', 'E']);
    Some(match text {
        "true" | "false" if kinds.boolean => text,
        "null" if kinds.null => text,
        "True" if kinds.boolean && !kinds.string => "true",
        "False" if kinds.boolean && !kinds.string => "false",
        "None" if kinds.null && !kinds.string => "null",
        // A number that is no integer is left to whoever checks the arguments, unless a string is meant.
        text if is_integer(text) && (kinds.integer || kinds.number) => text,
        text if is_number(text) && (kinds.number || (kinds.integer && !kinds.string)) => text,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn types_of_schemas() {
        let root = json!({ "$defs": { "a": { "type": "string" }, "b": { "$ref": "#/$defs/b" } } });
        let check = |schema: Value, string: bool, others: &[&str]| {
            let kinds = Kinds::of(&schema, &root);
            assert_eq!((kinds.string, &kinds.names_but_string()[..]), (string, others), "{schema}");
        };
        check(json!({ "type": "string" }), true, &[]);
        check(json!({ "type": ["string", "null"] }), true, &["null"]);
        check(json!({ "$ref": "#/$defs/a" }), true, &[]);
        check(json!({ "anyOf": [{ "$ref": "#/$defs/a" }, { "type": "integer" }] }), true, &["integer"]);
        check(json!({ "enum": [1, [], null] }), false, &["number", "null", "array"]);
        check(
            json!({ "allOf": [{ "type": ["object", "string"] }, { "type": "object" }] }),
            false,
            &["object"],
        );
        check(json!(false), false, &[]);
        let both = json!({ "oneOf": [{ "$ref": "#/$defs/a" }, { "anyOf": [{ "type": "null" }, true] }] });
        assert_eq!(alternatives(&both, &root), [&both]);
        let apart = json!({ "oneOf": [{ "$ref": "#/$defs/a" }, { "anyOf": [{ "type": "null" }] }] });
        assert_eq!(
            alternatives(&apart, &root),
            [&json!({ "$ref": "#/$defs/a" }), &json!({ "type": "null" })]
        );
        for any in [json!(true), json!({}), json!({ "$ref": "#/$defs/b" }), json!({ "type": "text" })] {
            check(any, true, &["number", "boolean", "null", "array", "object"]);
        }
    }

    #[test]
    fn schemas_that_multiply_are_looked_at_in_part() {
        let level = |n: usize| json!({ "anyOf": vec![json!({ "$ref": format!("#/$defs/{n}") }); 9] });
        let levels: Map<String, Value> = (0..8).map(|n| (n.to_string(), level(n + 1))).collect();
        let root = json!({ "$defs": levels });
        assert_eq!(Kinds::of(&level(0), &root), Kinds::ANY);
    }

    #[test]
    fn literals_of_types() {
        let kinds = |names: &[&str]| names.iter().map(|name| Kinds::named(name)).fold(Kinds::NONE, Kinds::or);
        let check = |text: &str, names: &[&str], expected: Option<&str>| {
            assert_eq!(literal(text, kinds(names)), expected, "{text} {names:?}");
        };
        check("true", &["boolean"], Some("true"));
        check("True", &["boolean"], Some("true"));
        check("True", &["boolean", "string"], None);
        check("None", &["null"], Some("null"));
        check("1.5", &["integer", "string"], None);
        check("1.5", &["number", "string"], Some("1.5"));
        check("12", &["integer", "string"], Some("12"));
        check("-0", &["integer"], Some("-0"));
        check("01", &["integer"], None);
        check("", &["null", "number", "boolean"], None);
    }
}
