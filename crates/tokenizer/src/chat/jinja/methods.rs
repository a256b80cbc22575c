//! Methods of Python's lists, tuples, dicts and numbers; those of strings are in [`strings`](super::strings).

use super::arguments::Args;
use super::error::{Result, fail};
use super::eval::Interpreter;
use super::markup::{striptags, unescape};
use super::strings::of_text;
use super::value::{Value, equal};

const OF_TEXTS: [&str; 42] = [
    "capitalize",
    "casefold",
    "center",
    "count",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
];
const MORE_OF_TEXTS: [&str; 4] = ["upper", "zfill", "translate", "maketrans"];
const OF_MARKUP: [&str; 2] = ["striptags", "unescape"];
const OF_LISTS: [&str; 3] = ["index", "count", "copy"];
const OF_TUPLES: [&str; 2] = ["index", "count"];
const OF_DICTS: [&str; 6] = ["get", "items", "keys", "values", "copy", "fromkeys"];
const OF_INTS: [&str; 4] = ["bit_length", "bit_count", "conjugate", "as_integer_ratio"];
const OF_FLOATS: [&str; 2] = ["is_integer", "conjugate"];

/// The method of this name as a static name; `None` if values of this type have no such method.
pub(super) fn find(value: &Value, name: &str) -> Option<&'static str> {
    let lists: &[&[&'static str]] = match value {
        Value::Text(_) => &[&OF_TEXTS, &MORE_OF_TEXTS],
        Value::Markup(_) => &[&OF_TEXTS, &MORE_OF_TEXTS, &OF_MARKUP],
        Value::List(_) => &[&OF_LISTS],
        Value::Tuple(_) | Value::Range(_) => &[&OF_TUPLES],
        Value::Dict(_) => &[&OF_DICTS],
        Value::Int(_) | Value::Bool(_) => &[&OF_INTS],
        Value::Float(_) => &[&OF_FLOATS],
        Value::Cycler(_) => &[&["next", "reset"]],
        Value::Loop(_) => &[&["cycle", "changed"]],
        _ => &[],
    };
    lists.iter().flat_map(|list| list.iter()).copied().find(|method| *method == name)
}

/// Calls a method that [`find`] has found.
pub(super) fn call(interpreter: &mut Interpreter<'_>, value: &Value, name: &str, mut args: Args) -> Result {
    let result = match value {
        Value::Text(text) => of_text(interpreter, text, name, &mut args)?,
        Value::Markup(text) => {
            let result = match name {
                "striptags" => Value::text(striptags(text)),
                "unescape" => Value::text(unescape(text)),
                _ => of_text(interpreter, text, name, &mut args)?,
            };
            match (result, name) {
                (result, "striptags" | "unescape") => result,
                (Value::Text(text), _) => Value::Markup(text),
                (result, _) => result,
            }
        }
        Value::Dict(dict) => match name {
            "get" => {
                let key = args.require("key")?;
                let default = args.take("default")?.unwrap_or(Value::None);
                dict.get(&key)?.cloned().unwrap_or(default)
            }
            "keys" => Value::view("dict_keys", dict.entries().iter().map(|(key, _)| key.clone()).collect()),
            "values" => {
                Value::view("dict_values", dict.entries().iter().map(|(_, value)| value.clone()).collect())
            }
            "items" => {
                let pair = |(key, value): &(Value, Value)| Value::tuple(vec![key.clone(), value.clone()]);
                Value::view("dict_items", dict.entries().iter().map(pair).collect())
            }
            "fromkeys" => {
                let keys = args.require("iterable")?.iterate()?;
                let value = args.take("value")?.unwrap_or(Value::None);
                Value::dict(keys.into_iter().map(|key| (key, value.clone())))?
            }
            _ => value.clone(),
        },
        Value::List(_) | Value::Tuple(_) | Value::Range(_) => match name {
            "count" => {
                let item = args.require("value")?;
                Value::Int(value.iterate()?.iter().filter(|other| equal(other, &item)).count() as i128)
            }
            "index" => {
                let item = args.require("value")?;
                let items = value.iterate()?;
                let bound = |bound: Option<i128>, default: usize| match bound {
                    None => default,
                    Some(bound) if bound < 0 => (bound + items.len() as i128).max(0) as usize,
                    Some(bound) => bound.min(items.len() as i128) as usize,
                };
                let start = bound(args.int("start")?, 0);
                let end = bound(args.int("end")?, items.len());
                let found = (start..end).find(|&index| equal(&items[index], &item));
                match found {
                    Some(index) => Value::Int(index as i128),
                    None => return fail("the list has no such item"),
                }
            }
            _ => value.clone(),
        },
        Value::Int(_) | Value::Bool(_) => {
            let number = value.as_int().unwrap_or(0);
            match name {
                "bit_length" => Value::Int(i128::from(128 - number.unsigned_abs().leading_zeros())),
                "bit_count" => Value::Int(i128::from(number.unsigned_abs().count_ones())),
                "as_integer_ratio" => Value::tuple(vec![Value::Int(number), Value::Int(1)]),
                _ => Value::Int(number),
            }
        }
        Value::Float(number) => match name {
            "is_integer" => Value::Bool(number.fract() == 0.0),
            _ => value.clone(),
        },
        Value::Cycler(cycler) => match name {
            "reset" => {
                cycler.at.set(0);
                Value::None
            }
            _ => {
                let at = cycler.at.get();
                cycler.at.set((at + 1) % cycler.items.len());
                cycler.items[at].clone()
            }
        },
        Value::Loop(state) => {
            let values: Vec<Value> = std::mem::take(&mut args.positional).into();
            match name {
                "cycle" if values.is_empty() => return fail("nothing to cycle through"),
                "cycle" => values[state.index.get() % values.len()].clone(),
                _ => {
                    let last = state.changed.borrow().as_ref().map(|last| {
                        last.len() == values.len() && last.iter().zip(&values).all(|(a, b)| equal(a, b))
                    });
                    let changed = last != Some(true);
                    if changed {
                        *state.changed.borrow_mut() = Some(values);
                    }
                    Value::Bool(changed)
                }
            }
        }
        _ => return fail(format!("a {} has no method {name}", value.kind())),
    };
    args.finish()?;
    Ok(result)
}
