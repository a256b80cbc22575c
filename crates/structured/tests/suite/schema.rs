//! Keywords that are rewritten: what each schema accepts, what it refuses, and what is refused itself.

use breakers_core::Json;
use breakers_structured::{Error, Grammar};

use crate::{check, compiler};

/// A schema, instances that it accepts, and instances that it refuses.
type Case = (&'static str, &'static [&'static str], &'static [&'static str]);

const CASES: &[Case] = &[
    // Formats that nobody defines say nothing, those of the specification are enforced.
    (r#"{"type": "string", "format": "topic"}"#, &[r#""x""#], &["1"]),
    (r#"{"type": "string", "format": "ipv4"}"#, &[r#""1.2.3.4""#], &[r#""1.2.3.456""#]),
    (r#"{"type": "string", "format": "json-pointer"}"#, &[r#""""#, r#""/a~1b/0""#], &[r#""a""#, r#""/~2""#]),
    (r#"{"type": "string", "format": "uri-template"}"#, &[r#""http://a/{b}""#], &[r#""http://a/{""#]),
    (
        r#"{"type": "string", "format": "uri-reference"}"#,
        &[r#""/a?b#c""#, r#""""#],
        &[r#""a b""#, r#""1:2""#],
    ),
    // One of several.
    (r#"{"oneOf": [{"type": "string"}, {"type": "integer"}]}"#, &[r#""a""#, "1"], &["null", "true"]),
    (
        r#"{"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "additionalProperties": false, "oneOf": [{"required": ["a"]}, {"required": ["b"]}]}"#,
        &[r#"{"a":1}"#, r#"{"b":2}"#],
        &["{}", r#"{"a":1,"b":2}"#],
    ),
    (
        r##"{"oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}], "$defs": {
            "cat": {"type": "object", "properties": {"kind": {"const": "cat"}}, "required": ["kind"]},
            "dog": {"type": "object", "properties": {"kind": {"const": "dog"}}, "required": ["kind"]}}}"##,
        &[r#"{"kind":"cat"}"#, r#"{"kind":"dog"}"#],
        &[r#"{"kind":"cow"}"#, "{}"],
    ),
    (r#"{"oneOf": [{"minimum": 3}, {"maximum": 5}], "type": "integer"}"#, &["2", "6"], &["3", "4", "5"]),
    (r#"{"oneOf": [{"enum": [1, 2]}, {"enum": [2, 3]}]}"#, &["1", "3"], &["2", "4"]),
    // Whatever is no object suits both, so that it is refused.
    (
        r#"{"oneOf": [
            {"properties": {"eq": {"type": "integer"}}, "required": ["eq"], "additionalProperties": false},
            {"properties": {"lt": {"type": "integer"}}, "required": ["lt"], "additionalProperties": false}]}"#,
        &[r#"{"eq":1}"#, r#"{"lt":1}"#],
        &["1", "null", "{}", r#"{"eq":1,"lt":1}"#],
    ),
    // What is left over.
    (r#"{"not": {"type": ["string", "number"]}}"#, &["null", "[]", "{}"], &["1", r#""a""#]),
    (
        r#"{"type": "string", "not": {"enum": ["a", "ab"]}}"#,
        &[r#""""#, r#""b""#, r#""abc""#],
        &[r#""a""#, r#""ab""#],
    ),
    (r#"{"type": "object", "not": {"required": ["x"]}}"#, &["{}", r#"{"y":1}"#], &[r#"{"x":1}"#]),
    (r#"{"type": "integer", "not": {"minimum": 3, "maximum": 5}}"#, &["2", "6"], &["3", "5"]),
    (r#"{"type": "integer", "not": {"const": 7}}"#, &["6", "8"], &["7"]),
    (
        r#"{"type": "object", "properties": {"kind": {"enum": ["a", "b"]}, "size": {"type": "integer"}},
            "required": ["kind"], "additionalProperties": false,
            "if": {"properties": {"kind": {"const": "a"}}}, "then": {"required": ["size"]},
            "else": {"properties": {"size": false}}}"#,
        &[r#"{"kind":"a","size":1}"#, r#"{"kind":"b"}"#],
        &[r#"{"kind":"a"}"#, r#"{"kind":"b","size":1}"#],
    ),
    // Properties that want others.
    (
        r#"{"type": "object", "properties": {"a": {}, "b": {}}, "additionalProperties": false,
            "dependentRequired": {"a": ["b"]}}"#,
        &["{}", r#"{"b":1}"#, r#"{"a":1,"b":1}"#],
        &[r#"{"a":1}"#],
    ),
    (
        r#"{"type": "object", "properties": {"a": {}, "b": {}}, "additionalProperties": false,
            "dependencies": {"a": {"properties": {"b": {"const": 2}}, "required": ["b"]}}}"#,
        &["{}", r#"{"b":1}"#, r#"{"a":1,"b":2}"#],
        &[r#"{"a":1}"#, r#"{"a":1,"b":1}"#],
    ),
    // Names of properties and how many there are.
    (
        r#"{"type": "object", "propertyNames": {"enum": ["a", "b"]}}"#,
        &["{}", r#"{"a":1,"b":2}"#],
        &[r#"{"c":1}"#],
    ),
    (r#"{"type": "object", "propertyNames": {"pattern": "^x"}}"#, &["{}", r#"{"xy":1}"#], &[r#"{"y":1}"#]),
    (r#"{"type": "object", "propertyNames": {"maxLength": 2}}"#, &[r#"{"ab":1}"#], &[r#"{"abc":1}"#]),
    (
        r#"{"type": "object", "properties": {"a": {}, "b": {}}, "additionalProperties": false, "minProperties": 1}"#,
        &[r#"{"a":1}"#, r#"{"b":1}"#, r#"{"a":1,"b":1}"#],
        &["{}"],
    ),
    (
        r#"{"type": "object", "properties": {"a": {}, "b": {}}, "additionalProperties": false, "maxProperties": 1}"#,
        &["{}", r#"{"a":1}"#, r#"{"b":1}"#],
        &[r#"{"a":1,"b":1}"#],
    ),
    // References into the middle of a schema, with escapes, and recursion.
    (
        r##"{"type": "object", "properties": {"a/b": {"type": "integer"}, "c": {"$ref": "#/properties/a~1b"}},
            "required": ["c"], "additionalProperties": false}"##,
        &[r#"{"c":1}"#],
        &[r#"{"c":null}"#],
    ),
    (
        r##"{"type": "object", "properties": {"next": {"$ref": "#"}}, "additionalProperties": false}"##,
        &["{}", r#"{"next":{"next":{}}}"#],
        &[r#"{"next":1}"#, r#"{"next":{"x":{}}}"#],
    ),
    (r#"{"type": "array", "items": {"type": "null"}, "uniqueItems": false}"#, &["[null,null]"], &["[1]"]),
    // Whoever writes a schema does not set the engine's options.
    (
        r#"{"type": "integer", "x-guidance": {"lenient": true}, "not": {"type": "string"}}"#,
        &["1"],
        &[r#""a""#],
    ),
];

#[test]
fn rewritten_keywords_accept_what_they_mean() {
    let compiler = compiler();
    for (schema, accepted, refused) in CASES {
        check(&compiler, &Grammar::JsonSchema(Json::parse(schema).unwrap()), accepted, refused);
    }
}

#[test]
fn what_is_not_enforced_is_refused_by_name_and_place() {
    let compiler = compiler();
    for (schema, keyword, pointer) in [
        (r#"{"type": "array", "uniqueItems": true}"#, "uniqueItems", ""),
        (r#"{"properties": {"a/b": {"contains": {"const": 1}}}}"#, "contains", "/properties/a~1b"),
        (r#"{"items": {"type": "string", "not": {"pattern": "a"}}}"#, "not", "/items"),
        (r#"{"anyOf": [{}, {"oneOf": [{"pattern": "a"}, {"pattern": "b"}]}]}"#, "oneOf", "/anyOf/1"),
        (r#"{"if": {"pattern": "a"}, "then": {"maxLength": 3}}"#, "if", ""),
        (r#"{"type": "string", "format": "regex"}"#, "format", ""),
        (r#"{"$ref": "http://example.com/other.json"}"#, "$ref", ""),
        (r##"{"$ref": "#/nowhere"}"##, "$ref", ""),
        (
            r#"{"properties": {"a": {}, "b": {}}, "maxProperties": 7, "minProperties": 2}"#,
            "maxProperties",
            "",
        ),
        (r#"{"unevaluatedProperties": false}"#, "unevaluatedProperties", ""),
        (r#"{"propertyNames": {"format": "ipv4"}}"#, "propertyNames", ""),
        (r##"{"$ref": "#/$defs/x", "$defs": {"x": {"uniqueItems": true}}}"##, "uniqueItems", "/$defs/x"),
    ] {
        let refused = compiler.constraint(&Grammar::JsonSchema(Json::parse(schema).unwrap())).map(|_| ());
        match refused {
            Err(Error::Keyword { keyword: found, pointer: place, reason }) => {
                assert_eq!((&*found, &*place), (keyword, pointer), "{schema}");
                assert!(!reason.is_empty());
            }
            other => panic!("{schema}: {other:?}"),
        }
    }
}
