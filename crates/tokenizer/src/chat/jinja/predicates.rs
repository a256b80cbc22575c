//! Jinja2's tests, the words after `is`.

use super::arguments::Args;
use super::error::{Result, fail};
use super::eval::Interpreter;
use super::operators::contains;
use super::text::str;
use super::value::{Value, compare, equal, same};

/// Whether there is a test of this name.
pub(super) fn exists(name: &str) -> bool {
    const NAMES: &[&str] = &[
        "odd",
        "even",
        "divisibleby",
        "defined",
        "undefined",
        "filter",
        "test",
        "none",
        "boolean",
        "false",
        "true",
        "integer",
        "float",
        "lower",
        "upper",
        "string",
        "mapping",
        "number",
        "sequence",
        "iterable",
        "callable",
        "sameas",
        "escaped",
        "in",
        "==",
        "eq",
        "equalto",
        "!=",
        "ne",
        ">",
        "gt",
        "greaterthan",
        "ge",
        ">=",
        "<",
        "lt",
        "lessthan",
        "<=",
        "le",
    ];
    NAMES.contains(&name)
}

/// Whether a value passes a test.
pub(super) fn test(
    interpreter: &mut Interpreter<'_>,
    name: &str,
    value: &Value,
    mut args: Args,
) -> Result<bool> {
    use std::cmp::Ordering::{Equal, Greater, Less};
    interpreter.charge(1)?;
    let remainder = |by: &Value| super::operators::binary(super::ast::Operator::Remainder, value, by);
    let mut ordered = |orders: &[std::cmp::Ordering]| -> Result<bool> {
        let order = compare(value, &args.require("other")?)?;
        Ok(order.is_some_and(|order| orders.contains(&order)))
    };
    let passes = match name {
        "odd" => equal(&remainder(&Value::Int(2))?, &Value::Int(1)),
        "even" => equal(&remainder(&Value::Int(2))?, &Value::Int(0)),
        "divisibleby" => equal(&remainder(&args.require("num")?)?, &Value::Int(0)),
        "defined" => !matches!(value, Value::Undefined(_)),
        "undefined" => matches!(value, Value::Undefined(_)),
        "filter" => value.as_text().is_some_and(super::filters::exists),
        "test" => value.as_text().is_some_and(exists),
        "none" => matches!(value, Value::None),
        "boolean" => matches!(value, Value::Bool(_)),
        "true" => matches!(value, Value::Bool(true)),
        "false" => matches!(value, Value::Bool(false)),
        "integer" => matches!(value, Value::Int(_)),
        "float" => matches!(value, Value::Float(_)),
        "number" => matches!(value, Value::Int(_) | Value::Float(_) | Value::Bool(_)),
        "lower" | "upper" => {
            let text = str(value)?;
            let other = if name == "lower" { char::is_uppercase } else { char::is_lowercase };
            let own = if name == "lower" { char::is_lowercase } else { char::is_uppercase };
            text.chars().any(own) && !text.chars().any(other)
        }
        "string" => value.as_text().is_some(),
        "mapping" => matches!(value, Value::Dict(_)),
        // Whatever has a length and items.
        "sequence" => matches!(
            value,
            Value::Undefined(_)
                | Value::Text(_)
                | Value::Markup(_)
                | Value::List(_)
                | Value::Tuple(_)
                | Value::Dict(_)
                | Value::Range(_)
        ),
        "iterable" => value.is_iterable(),
        "callable" => matches!(
            value,
            Value::Undefined(_)
                | Value::Function(_)
                | Value::Method(_)
                | Value::Macro(_)
                | Value::Joiner(_)
                | Value::Loop(_)
        ),
        "sameas" => same(value, &args.require("other")?),
        "escaped" => matches!(value, Value::Markup(_)),
        "in" => contains(&args.require("seq")?, value)?,
        "==" | "eq" | "equalto" => equal(value, &args.require("other")?),
        "!=" | "ne" => !equal(value, &args.require("other")?),
        ">" | "gt" | "greaterthan" => ordered(&[Greater])?,
        ">=" | "ge" => ordered(&[Greater, Equal])?,
        "<" | "lt" | "lessthan" => ordered(&[Less])?,
        "<=" | "le" => ordered(&[Less, Equal])?,
        _ => return fail(format!("there is no test {name:?}")),
    };
    args.finish()?;
    Ok(passes)
}
