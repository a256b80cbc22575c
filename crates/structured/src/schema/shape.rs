//! Keywords whose value is none that the specification allows, or with which no instance is valid: named
//! before the engine meets them, which does not say where they stand.

use serde_json::Value;

use super::count;
use super::logic::ASSERTIONS;
use super::rewriter::refused;
use crate::Result;

/// Items, members or characters that an instance may have to have: more than any answer holds.
const LEAST: usize = 1 << 16;

/// Names of types, `integer` among them.
const TYPES: [&str; 7] = ["null", "boolean", "integer", "number", "string", "array", "object"];

/// Refuses a keyword that cannot be meant.
///
/// # Errors
/// [`Error::Keyword`](crate::Error::Keyword).
pub(super) fn check(keyword: &str, value: &Value, at: &str) -> Result<()> {
    let is_type = |name: &Value| name.as_str().is_some_and(|name| TYPES.contains(&name));
    match keyword {
        "type" => match value {
            Value::Array(names) if names.is_empty() => refused(keyword, at, "it names no type"),
            Value::Array(names) => match names.iter().find(|name| !is_type(name)) {
                Some(name) => refused(keyword, at, &format!("{} is no type", short(name))),
                None => Ok(()),
            },
            name if is_type(name) => Ok(()),
            name => refused(keyword, at, &format!("{} is no type", short(name))),
        },
        "enum" => match value {
            Value::Array(values) if values.is_empty() => {
                refused(keyword, at, "it lists nothing, so that nothing is valid")
            }
            Value::Array(_) => Ok(()),
            _ => refused(keyword, at, "it is no list"),
        },
        "multipleOf" => match value.as_f64() {
            Some(unit) if unit > 0.0 => Ok(()),
            Some(_) => refused(keyword, at, "it has to be more than 0"),
            None => refused(keyword, at, "it is no number"),
        },
        "minimum" | "maximum" if !value.is_number() => refused(keyword, at, "it is no number"),
        "exclusiveMinimum" | "exclusiveMaximum" if !value.is_number() && !value.is_boolean() => {
            refused(keyword, at, "it is no number")
        }
        "minLength" | "minItems" | "minProperties" | "minContains" => {
            let Some(least) = count(value) else { return refused(keyword, at, "it is no number of things") };
            if least > LEAST {
                return refused(keyword, at, &format!("more than {LEAST} are asked for"));
            }
            Ok(())
        }
        "maxLength" | "maxItems" | "maxProperties" | "maxContains" if count(value).is_none() => {
            refused(keyword, at, "it is no number of things")
        }
        "required" => match value {
            Value::Bool(_) => Ok(()),
            Value::Array(names) if names.iter().all(Value::is_string) => Ok(()),
            _ => refused(keyword, at, "it is no list of names"),
        },
        _ => Ok(()),
    }
}

/// What stands where a schema should.
///
/// # Errors
/// [`Error::Keyword`](crate::Error::Keyword), with the keyword that it stands under.
pub(super) fn no_schema<T>(value: &Value, at: &str) -> Result<T> {
    let steps: Vec<&str> = at.split('/').collect();
    let last = steps.iter().rposition(|step| ASSERTIONS.contains(step));
    let (keyword, pointer) = match last {
        Some(last) => (steps[last], steps[..last].join("/")),
        None => ("$ref", String::new()),
    };
    refused(keyword, &pointer, &format!("{} at {at:?} is no schema", short(value)))
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
