//! Keywords that are rewritten: what each schema accepts, what it refuses, and what is refused itself.

use breakers_core::{Constraint as _, ConstraintError, Json, TokenId, TokenMask, Vocabulary as _};
use breakers_structured::{Error, Grammar, Order, SchemaOptions};

use crate::bytes::{Bytes, END};
use crate::{accepts, check, compiler};

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
    // What the grammar cannot say is looked at when a value ends.
    (
        r#"{"type": "array", "uniqueItems": true}"#,
        &["[]", r#"[1,2,"1",[1],[2],{"a":1},{"a":2}]"#, "[[[1],[1]]]"],
        &["[1,1]", "[1,2,1.0]", r#"[{"a":1,"b":2},{"b":2,"a":1}]"#, "[[],[]]", r#"["a","a"]"#],
    ),
    (
        r#"{"type": "array", "items": {"enum": ["red", "green"]}, "uniqueItems": true}"#,
        &["[]", r#"["red"]"#, r#"["green","red"]"#],
        &[r#"["red","red"]"#, r#"["red","green","red"]"#],
    ),
    (
        r#"{"type": "array", "contains": {"type": "integer", "minimum": 5}, "minContains": 2, "maxContains": 3}"#,
        &["[5,6]", "[1,5,2,6,7]"],
        &["[]", "[5]", "[5,6,7,8]", "[1,2,3]"],
    ),
    (r#"{"items": {"type": "string", "not": {"pattern": "a"}}}"#, &[r#"["b",""]"#], &[r#"["b","ca"]"#]),
    (
        r#"{"type": "string", "oneOf": [{"pattern": "a"}, {"pattern": "b"}]}"#,
        &[r#""xa""#, r#""b""#],
        &[r#""ab""#, r#""c""#],
    ),
    (
        r#"{"if": {"pattern": "a"}, "then": {"maxLength": 3}, "else": {"minLength": 3}, "type": "string"}"#,
        &[r#""abc""#, r#""bbb""#, r#""bbbbb""#],
        &[r#""abcd""#, r#""bb""#],
    ),
    (
        r#"{"type": "object", "properties": {"a": {}, "b": {}}, "maxProperties": 3, "minProperties": 2}"#,
        &[r#"{"a":1,"b":1}"#, r#"{"x":1,"y":1,"z":1}"#],
        &["{}", r#"{"a":1}"#, r#"{"a":1,"b":1,"c":1,"d":1}"#, r#"{"x":1,"x":1}"#],
    ),
    (
        r#"{"type": "object", "properties": {"a": {}}, "unevaluatedProperties": false,
            "allOf": [{"properties": {"b": {}}}], "if": {"properties": {"a": {"const": 1}}, "required": ["a"]},
            "then": {"properties": {"c": {}}}}"#,
        &["{}", r#"{"a":2,"b":1}"#, r#"{"a":1,"b":1,"c":1}"#],
        &[r#"{"a":2,"c":1}"#, r#"{"d":1}"#],
    ),
    (
        r#"{"prefixItems": [{"type": "string"}], "unevaluatedItems": {"type": "integer"}, "type": "array"}"#,
        &["[]", r#"["a",1,2]"#],
        &[r#"["a","b"]"#],
    ),
    (r#"{"propertyNames": {"format": "ipv4"}, "type": "object"}"#, &[r#"{"1.2.3.4":1}"#], &[r#"{"a":1}"#]),
    (
        r#"{"type": "object", "patternProperties": {"a": {"type": "integer"}, "b": {"minimum": 3}}}"#,
        &[r#"{"a":1}"#, r#"{"ab":3,"b":"x"}"#],
        &[r#"{"ab":1}"#, r#"{"ab":"x"}"#],
    ),
    (
        r#"{"type": "object", "properties": {"a": {}, "b": {}, "c": {}},
            "dependentSchemas": {"a": {"uniqueItems": true, "properties": {"b": {"uniqueItems": true}}}}}"#,
        &[r#"{"b":[1,1]}"#, r#"{"a":1,"b":[1,2]}"#],
        &[r#"{"a":1,"b":[1,1]}"#],
    ),
    // Checks within options, behind references, and in a circle.
    (
        r##"{"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "object", "properties": {
            "tags": {"type": "array", "items": {"type": "string"}, "uniqueItems": true},
            "left": {"$ref": "#/$defs/tree"}}, "additionalProperties": false}}}"##,
        &["{}", r#"{"tags":["a","b"],"left":{"tags":["a"],"left":{}}}"#],
        &[r#"{"left":{"left":{"tags":["a","a"]}}}"#],
    ),
    (
        r#"{"anyOf": [{"type": "array", "uniqueItems": true}, {"type": "array", "items": {"const": 1}}]}"#,
        &["[1,2]", "[1,1,1]", "[2]"],
        &["[2,2]", "[1,2,1]"],
    ),
    (
        r#"{"type": "array", "items": {"type": "string"}, "uniqueItems": true}"#,
        &[r#"["a","b","a\n","\u0000"]"#],
        &[r#"["a","b","a"]"#, r#"["\\","\\"]"#],
    ),
    // Readers of JSON all see the same: no name twice, or under another spelling, and numbers that they hold.
    (
        r#"{"type": "object", "properties": {"a": {"type": "integer"}}}"#,
        &[r#"{"a":1,"x":1,"y\n":[{"x":1}]}"#, r#"{"x":1,"\u0001":2,"z\\u0061":3}"#],
        &[
            r#"{"x":1,"x":2}"#,
            r#"{"a":1,"a":2}"#,
            r#"{"\u0061":"x"}"#,
            r#"{"x":1,"\u0078":2}"#,
            r#"{"a":1,"y":[{"x":1,"x":1}]}"#,
            r#"{"\u000a":1}"#,
            r#"{"\u001F":1}"#,
        ],
    ),
    (
        r#"{"type": "object", "patternProperties": {"^x": {"type": "integer"}}}"#,
        &[r#"{"x":1,"xy":2,"z":null}"#],
        &[r#"{"\u0078":null}"#, r#"{"xy":1,"xy":2}"#],
    ),
    (
        r#"{"type": ["number", "array", "boolean"]}"#,
        &["1e308", "-1E+02", "0e999", "0.000", "1e-300", "[1e2,2.5e-3]", "true", "false", "-0.5", "-0e1"],
        &["2.7e730130", "1e309", "-1e400", "1e-400", "[1e999]", "0.1e-350", "-0", "[-0]"],
    ),
    (
        r#"{"type": "array", "items": {"type": "integer"}}"#,
        &["[0,-1,18446744073709551615,-1234567890123456789]"],
        &["[-0]", "[100000000000000000000]", "[-18446744073709551616]"],
    ),
    // What one language holds for a blank and another does not is not written.
    (
        r#"{"type": "string", "pattern": "^\\s[^\\s]\\S$"}"#,
        &[r#"" xx""#, "\"\u{a0}xx\""],
        &["\"\u{feff}xx\"", "\" \u{feff}x\"", "\" x\u{85}\"", "\" \u{85}x\""],
    ),
    (r#"{"type": "string", "not": {"pattern": "\\s"}}"#, &[r#""x""#], &["\"\u{feff}\"", r#"" ""#]),
    // Drafts before 2019-09 ignore what stands beside a reference.
    (
        r##"{"$schema": "http://json-schema.org/draft-07/schema#", "definitions": {"a": {"type": "string"}},
            "properties": {"$ref": {"minLength": 2}, "x": {"$ref": "#/definitions/a", "maxLength": 1}}}"##,
        &[r#"{"x":"long"}"#, r#"{"$ref":"ab"}"#],
        &[r#"{"x":1}"#, r#"{"$ref":"a"}"#],
    ),
    (
        r##"{"$schema": "https://json-schema.org/draft/2020-12/schema", "$defs": {"a": {"type": "string"}},
            "properties": {"x": {"$ref": "#/$defs/a", "maxLength": 1}}}"##,
        &[r#"{"x":"l"}"#],
        &[r#"{"x":"long"}"#],
    ),
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
        (r#"{"type": "string", "format": "regex"}"#, "format", ""),
        (
            r#"{"properties": {"a/b": {"type": "string", "pattern": "(?=a)b"}}}"#,
            "pattern",
            "/properties/a~1b",
        ),
        (r#"{"contains": {"items": {"pattern": "(?=a)b"}}}"#, "pattern", "/contains/items"),
        (r#"{"patternProperties": {"(?!x)": {}}}"#, "patternProperties", ""),
        (r#"{"$ref": "http://example.com/other.json"}"#, "$ref", ""),
        (r##"{"$ref": "#/nowhere"}"##, "$ref", ""),
        (r##"{"items": {"$dynamicRef": "#x"}}"##, "$dynamicRef", "/items"),
        (r##"{"$ref": "#/$defs/x", "$defs": {"x": {"minLength": -1}}}"##, "minLength", "/$defs/x"),
        (r##"{"uniqueItems": true, "allOf": [{"$ref": "#"}]}"##, "$ref", ""),
        // What is no schema at all.
        (r#"{"properties": {"a": {"type": "strng"}}}"#, "type", "/properties/a"),
        (r#"{"items": {"type": ["string", "x"]}}"#, "type", "/items"),
        (r#"{"multipleOf": 0}"#, "multipleOf", ""),
        (r#"{"anyOf": [{}, {"multipleOf": "2"}]}"#, "multipleOf", "/anyOf/1"),
        (r#"{"properties": {"a": {"enum": []}}}"#, "enum", "/properties/a"),
        (r#"{"items": {"minimum": "3"}}"#, "minimum", "/items"),
        (r#"{"properties": {"a": 3}}"#, "properties", ""),
        (r#"{"items": {"allOf": [{}, null]}}"#, "allOf", "/items"),
        (r#"{"required": "a"}"#, "required", ""),
        // What no answer holds.
        (r#"{"items": {"minLength": 1000000000}}"#, "minLength", "/items"),
        (r#"{"minItems": 1e9}"#, "minItems", ""),
        (r#"{"properties": {"a": {"minProperties": 1000000000}}}"#, "minProperties", "/properties/a"),
        (r#"{"contains": {}, "minContains": 1000000}"#, "minContains", ""),
        (r#"{"items": {"pattern": "(a{1000}){1000}"}}"#, "pattern", "/items"),
        (r#"{"patternProperties": {"(a{1000}){1000}": {}}}"#, "patternProperties", ""),
        // What the engine refuses.
        (
            r#"{"type": "object", "properties": {"a": {"type": "string", "minLength": 3, "maxLength": 2}}, "required": ["a"]}"#,
            "minLength",
            "/properties/a",
        ),
        (
            r#"{"allOf": [{"type": "object"}], "anyOf": [{"type": "integer", "minimum": 3, "maximum": 2}]}"#,
            "minimum",
            "/anyOf/0",
        ),
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

#[test]
fn what_is_not_enforced_is_a_warning_where_it_may_be() {
    let compiler = compiler();
    let lenient = SchemaOptions::default().with_strict(false);
    for (schema, keyword, pointer, accepted, refused) in [
        (r#"{"type": "string", "format": "regex"}"#, "format", "", r#""(""#, "1"),
        (
            r#"{"type": "array", "items": {"type": "string", "pattern": "(?=a)b", "maxLength": 1}, "uniqueItems": true}"#,
            "pattern",
            "/items",
            r#"["x","y"]"#,
            r#"["x","x"]"#,
        ),
        (r##"{"not": {"$dynamicRef": "#x"}, "type": "integer"}"##, "$dynamicRef", "/not", "1", "null"),
    ] {
        let grammar = Grammar::JsonSchemaWith(Json::parse(schema).unwrap(), lenient);
        let constraint = compiler.constraint(&grammar).unwrap();
        let [warning] = constraint.warnings() else { panic!("{schema}: {:?}", constraint.warnings()) };
        assert_eq!((&*warning.keyword, &*warning.pointer), (keyword, pointer), "{schema}");
        assert!(warning.to_string().contains(keyword));
        check(&compiler, &grammar, &[accepted], &[refused]);
    }
    let all = Grammar::JsonSchemaWith(Json::parse(r#"{"uniqueItems": true}"#).unwrap(), lenient);
    assert!(compiler.constraint(&all).unwrap().warnings().is_empty());
}

#[test]
fn properties_come_in_any_order_on_request() {
    let compiler = compiler();
    let any = SchemaOptions::default().with_order(Order::Any);
    let of = |schema: &str| Grammar::JsonSchemaWith(Json::parse(schema).unwrap(), any);
    let closed = r#"{"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}, "c.d": {}},
        "required": ["a", "c.d"], "additionalProperties": false}"#;
    check(
        &compiler,
        &of(closed),
        &[r#"{"a":1,"c.d":2}"#, r#"{"c.d":1,"b":"","a":2}"#, r#"{"b":"","a":2,"c.d":1}"#],
        &["{}", r#"{"a":1}"#, r#"{"a":1,"a":2,"c.d":1}"#, r#"{"a":"","c.d":1}"#, r#"{"a":1,"cxd":1}"#],
    );
    let open = r#"{"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}},
        "required": ["a", "z"]}"#;
    check(
        &compiler,
        &of(open),
        &[r#"{"z":1,"a":1}"#, r#"{"x":null,"a":1,"b":"","z":1}"#],
        &[r#"{"a":1}"#, r#"{"z":1,"a":null}"#, r#"{"x":1,"x":1,"a":1,"z":1}"#],
    );
    let nested = r#"{"anyOf": [
        {"type": "object", "properties": {"kind": {"const": "a"}, "n": {"type": "integer"}}, "required": ["kind", "n"],
            "additionalProperties": false},
        {"type": "object", "properties": {"kind": {"const": "b"}, "s": {"type": "string"}}, "required": ["kind", "s"],
            "additionalProperties": false}]}"#;
    check(
        &compiler,
        &of(nested),
        &[r#"{"n":1,"kind":"a"}"#, r#"{"kind":"b","s":""}"#],
        &[r#"{"n":1,"kind":"b"}"#, r#"{"kind":"a"}"#, r#"{"s":"","n":1}"#],
    );
    // No place of a closed object is without a way on.
    let mut mask = TokenMask::none(Bytes.n_tokens());
    let mut constraint = compiler.constraint(&of(closed)).unwrap();
    for byte in br#"{"c.d":1,"b":"","#.iter().chain(br#""a":1"#) {
        constraint.allowed(&mut mask).unwrap();
        assert!(mask.is_allowed((*byte).into()), "{byte}");
        constraint.advance((*byte).into()).unwrap();
    }
    constraint.allowed(&mut mask).unwrap();
    assert!(!mask.is_allowed(b','.into()) && mask.is_allowed(b'}'.into()), "{mask:?}");
}

#[test]
fn dead_ends_are_typed_and_can_be_left() {
    let compiler = compiler();
    let schema = r#"{"type": "array", "items": {"type": "string", "maxLength": 1, "pattern": "^[ab]$"},
        "minItems": 2, "uniqueItems": true}"#;
    let mut constraint = compiler.constraint(&Grammar::JsonSchema(Json::parse(schema).unwrap())).unwrap();
    let mut mask = TokenMask::none(Bytes.n_tokens());
    for byte in br#"["a","a"# {
        constraint.allowed(&mut mask).unwrap();
        assert!(mask.is_allowed((*byte).into()));
        constraint.advance((*byte).into()).unwrap();
    }
    // A second "a" cannot end, and nothing else can follow.
    let dead = constraint.allowed(&mut mask);
    assert!(matches!(dead, Err(ConstraintError::DeadEnd { n_tokens: 7 })), "{dead:?}");
    constraint.rollback(1).unwrap();
    constraint.allowed(&mut mask).unwrap();
    assert!(!mask.is_allowed(b'a'.into()) && mask.is_allowed(b'b'.into()));
    assert!(matches!(constraint.advance(b'a'.into()), Err(ConstraintError::NotAllowed { .. })));
    for byte in br#"b"]"# {
        constraint.advance((*byte).into()).unwrap();
    }
    constraint.allowed(&mut mask).unwrap();
    assert_eq!(mask.only(), Some(END));
    // What was dead is forgotten with what led there.
    constraint.rollback(7).unwrap();
    constraint.allowed(&mut mask).unwrap();
    assert!(accepts(constraint, r#"b","a"]"#).unwrap());
}

/// Masks under checks: each token that is allowed can be advanced, and each text that ends is valid.
#[test]
fn masks_and_checks_agree() {
    let compiler = compiler();
    let any = SchemaOptions::default().with_order(Order::Any);
    let n_tokens = Bytes.n_tokens();
    let (mut mask, mut n_ended) = (TokenMask::none(n_tokens), 0);
    for (schema, _, _) in CASES {
        for (seed, options) in [(1u64, SchemaOptions::default()), (2, any)] {
            let grammar = Grammar::JsonSchemaWith(Json::parse(schema).unwrap(), options);
            let mut constraint = compiler.constraint(&grammar).unwrap();
            let (mut state, mut text, mut n_back) = (seed, Vec::new(), 0);
            while text.len() < 80 {
                match constraint.allowed(&mut mask) {
                    Ok(()) => {}
                    Err(ConstraintError::DeadEnd { .. }) if n_back < 200 => {
                        n_back += 1;
                        text.pop();
                        constraint.rollback(1).unwrap();
                        continue;
                    }
                    Err(ConstraintError::DeadEnd { .. }) => break,
                    Err(error) => panic!("{schema}: {error} after {text:?}"),
                }
                for token in (0..n_tokens as TokenId).filter(|&token| token != END) {
                    let found = constraint.advance(token).is_ok();
                    assert!(found || !mask.is_allowed(token), "{schema}: {token} after {text:?}");
                    if found {
                        constraint.rollback(1).unwrap();
                    }
                }
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let next: Vec<TokenId> = mask.iter().collect();
                let token = next[(state >> 33) as usize % next.len()];
                if token == END {
                    n_ended += 1;
                    break;
                }
                constraint.advance(token).unwrap();
                text.push(token);
            }
        }
    }
    assert!(n_ended > 10, "{n_ended}");
}

/// Where only the engine knows that a number is an integer, the mask knows it, too.
#[test]
fn no_integer_is_a_zero_below_zero() {
    let compiler = compiler();
    for (kind, expected) in [("integer", false), ("number", true)] {
        let schema = format!(r#"{{"type": "{kind}"}}"#);
        let mut constraint =
            compiler.constraint(&Grammar::JsonSchema(Json::parse(&schema).unwrap())).unwrap();
        constraint.advance(b'-'.into()).unwrap();
        let mut mask = TokenMask::none(Bytes.n_tokens());
        constraint.allowed(&mut mask).unwrap();
        assert_eq!(mask.is_allowed(b'0'.into()), expected, "{kind}");
        assert_eq!(constraint.advance(b'0'.into()).is_ok(), expected, "{kind}");
        if expected {
            constraint.allowed(&mut mask).unwrap();
            assert!(mask.is_allowed(b'.'.into()) && !mask.is_allowed(END), "{mask:?}");
        }
    }
}
