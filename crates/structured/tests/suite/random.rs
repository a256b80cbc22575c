//! Random small schemas and random instances: what is accepted is valid for the crate `jsonschema`, and what
//! is valid is accepted where properties may come in any order. `BREAKERS_RANDOM_SCHEMAS` is their number.

use std::cell::Cell;

use breakers_core::Json;
use breakers_structured::{Compiler, Grammar, Order, SchemaOptions};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Map, Value, json};

use crate::{accepts, compiler};

fn name() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["a", "b", "ab", "c"])
}

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(Value::from),
        (-3..6i64).prop_map(Value::from),
        prop::sample::select(vec![0.5, 1.5, -2.5]).prop_map(Value::from),
        prop::sample::select(vec!["", "a", "b", "ab", "ba", "aab", "é", "a\n"]).prop_map(Value::from),
    ]
}

fn members<T>(pairs: Vec<(&'static str, T)>) -> Map<String, Value>
where
    Value: From<T>,
{
    pairs.into_iter().map(|(name, value)| (name.to_owned(), Value::from(value))).collect()
}

fn instance() -> impl Strategy<Value = Value> {
    scalar().prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((name(), inner), 0..4).prop_map(|pairs| Value::Object(members(pairs))),
        ]
    })
}

/// Several keywords together.
fn merged(parts: Vec<Value>) -> Value {
    let mut all = Map::new();
    parts.into_iter().for_each(|part| all.extend(part.as_object().cloned().unwrap_or_default()));
    Value::Object(all)
}

fn names() -> impl Strategy<Value = Vec<&'static str>> {
    prop::collection::vec(name(), 0..3).prop_map(|mut names| {
        names.sort_unstable();
        names.dedup();
        names
    })
}

fn keyword(schema: BoxedStrategy<Value>) -> impl Strategy<Value = Value> {
    const TYPES: [&str; 7] = ["null", "boolean", "integer", "number", "string", "array", "object"];
    let properties = prop::collection::vec((name(), schema.clone()), 1..4).prop_map(members).boxed();
    let list = || prop::collection::vec(schema.clone(), 1..3);
    let pattern = || prop::sample::select(vec!["a", "^a", "b$", "^[ab]+$", "^.$"]);
    let one = || schema.clone();
    let of_objects = prop_oneof![
        properties.clone().prop_map(|all| json!({ "properties": all })),
        (properties, one())
            .prop_map(|(all, other)| json!({ "properties": all, "additionalProperties": other })),
        one().prop_map(|schema| json!({ "additionalProperties": schema })),
        (pattern(), one()).prop_map(|(pattern, schema)| json!({ "patternProperties": { pattern: schema } })),
        names().prop_map(|names| json!({ "required": names })),
        (0..4u32).prop_map(|n| json!({ "minProperties": n })),
        (0..4u32).prop_map(|n| json!({ "maxProperties": n })),
        one().prop_map(|schema| json!({ "propertyNames": schema })),
        (name(), names()).prop_map(|(name, names)| json!({ "dependentRequired": { name: names } })),
        (name(), one()).prop_map(|(name, schema)| json!({ "dependentSchemas": { name: schema } })),
        one().prop_map(|schema| json!({ "unevaluatedProperties": schema })),
    ];
    let of_lists = prop_oneof![
        one().prop_map(|schema| json!({ "items": schema })),
        list().prop_map(|list| json!({ "prefixItems": list })),
        (one(), 0..3u32).prop_map(|(schema, n)| json!({ "contains": schema, "minContains": n })),
        (one(), 1..3u32).prop_map(|(schema, n)| json!({ "contains": schema, "maxContains": n })),
        (0..4u32).prop_map(|n| json!({ "minItems": n })),
        (0..4u32).prop_map(|n| json!({ "maxItems": n })),
        Just(json!({ "uniqueItems": true })),
        one().prop_map(|schema| json!({ "unevaluatedItems": schema })),
    ];
    let of_scalars = prop_oneof![
        (-2..4i64).prop_map(|n| json!({ "minimum": n })),
        (-2..4i64).prop_map(|n| json!({ "exclusiveMaximum": n })),
        (1..4i64).prop_map(|n| json!({ "multipleOf": n })),
        (0..3u32).prop_map(|n| json!({ "minLength": n })),
        (0..3u32).prop_map(|n| json!({ "maxLength": n })),
        pattern().prop_map(|pattern| json!({ "pattern": pattern })),
    ];
    let of_any = prop_oneof![
        3 => prop::sample::select(&TYPES[..]).prop_map(|name| json!({ "type": name })),
        1 => prop::sample::subsequence(&TYPES[..], 2..4).prop_map(|names| json!({ "type": names })),
        1 => instance().prop_map(|value| json!({ "const": value })),
        1 => prop::collection::vec(scalar(), 1..4).prop_map(|values| json!({ "enum": values })),
        1 => list().prop_map(|list| json!({ "allOf": list })),
        1 => list().prop_map(|list| json!({ "anyOf": list })),
        1 => list().prop_map(|list| json!({ "oneOf": list })),
        1 => one().prop_map(|schema| json!({ "not": schema })),
        1 => (one(), one(), one()).prop_map(|(one, two, three)| json!({ "if": one, "then": two, "else": three })),
    ];
    prop_oneof![3 => of_objects, 2 => of_lists, 2 => of_scalars, 4 => of_any]
}

fn schema() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![4 => keyword(Just(json!(true)).boxed()), 1 => any::<bool>().prop_map(Value::from)];
    leaf.prop_recursive(3, 16, 3, |inner| {
        prop::collection::vec(keyword(inner.boxed()), 1..4).prop_map(merged)
    })
}

fn is_accepted(compiler: &Compiler, schema: &Value, order: Order, instance: &Value) -> Option<bool> {
    let schema = Json::parse(&schema.to_string()).unwrap();
    let grammar = Grammar::JsonSchemaWith(schema, SchemaOptions::default().with_order(order));
    let constraint = compiler.constraint(&grammar).ok()?;
    Some(accepts(constraint, &instance.to_string()).unwrap())
}

#[test]
fn random_schemas_accept_what_a_validator_accepts() {
    let cases = std::env::var("BREAKERS_RANDOM_SCHEMAS").ok().and_then(|n| n.parse().ok()).unwrap_or(200);
    let compiler = compiler();
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let (n_seen, n_accepted, n_refused) = (Cell::new(0), Cell::new(0), Cell::new(0));
    let more = |count: &Cell<u32>| count.set(count.get() + 1);
    let outcome = runner.run(&(schema(), prop::collection::vec(instance(), 12)), |(schema, instances)| {
        let validator = jsonschema::draft202012::new(&schema).unwrap();
        for instance in &instances {
            let is_valid = validator.is_valid(instance);
            if let Some(found) = is_accepted(&compiler, &schema, Order::Declared, instance) {
                more(&n_seen);
                prop_assert!(!found || is_valid, "{instance} is accepted under {schema}");
            }
            if let Some(found) = is_accepted(&compiler, &schema, Order::Any, instance) {
                more(if found { &n_accepted } else { &n_refused });
                prop_assert!(!found || is_valid, "{instance} is accepted in any order under {schema}");
                prop_assert!(found || !is_valid, "{instance} is refused in any order under {schema}");
            }
        }
        Ok(())
    });
    eprintln!("{} looked at, {} accepted, {} refused", n_seen.get(), n_accepted.get(), n_refused.get());
    outcome.unwrap();
    assert!(n_accepted.get() > cases && n_refused.get() > cases);
}
