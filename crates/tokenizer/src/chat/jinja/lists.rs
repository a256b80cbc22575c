//! Jinja2's filters on lists and dicts.

use std::cmp::Ordering;
use std::collections::HashSet;

use super::arguments::Args;
use super::ast::Operator;
use super::error::{Result, TemplateError, fail};
use super::eval::Interpreter;
use super::operators::{self, check_size};
use super::predicates;
use super::text::str;
use super::value::{Key, Value, compare, equal};

/// Sorts by a key, stably, and fails where Python cannot compare.
pub(super) fn sort_by<T>(items: &mut [T], key: impl Fn(&T) -> &Value) -> Result<()> {
    let mut failure: Option<TemplateError> = None;
    items.sort_by(|a, b| match compare(key(a), key(b)) {
        Ok(order) => order.unwrap_or(Ordering::Equal),
        Err(error) => {
            failure.get_or_insert(error);
            Ordering::Equal
        }
    });
    failure.map_or(Ok(()), Err)
}

/// An attribute by a dotted path whose numbers are indices; the value itself without a path.
fn attribute(
    interpreter: &Interpreter<'_>,
    value: &Value,
    path: Option<&Value>,
    default: Option<&Value>,
) -> Result {
    let Some(path) = path else { return Ok(value.clone()) };
    let mut value = value.clone();
    let parts = match path {
        Value::Int(_) => vec![path.clone()],
        _ => match path.as_text() {
            Some(text) => text
                .split('.')
                .map(|part| part.parse().map_or_else(|_| Value::text(part), Value::Int))
                .collect(),
            None => return fail("an attribute is a name or a number"),
        },
    };
    for part in parts {
        value = interpreter.item(&value, &part)?;
        if let (Value::Undefined(_), Some(default)) = (&value, default) {
            value = default.clone();
        }
    }
    Ok(value)
}

/// Converts texts to lower case if case does not matter.
fn folded(value: Value, case_sensitive: bool) -> Value {
    match (value.as_text(), case_sensitive) {
        (Some(text), false) => Value::text(text.to_lowercase()),
        _ => value,
    }
}

fn optional(args: &mut Args, name: &str) -> Result<Option<Value>> {
    Ok(args.take(name)?.filter(|value| !matches!(value, Value::None)))
}

/// Items with the keys that they are ordered by.
fn keyed(
    interpreter: &Interpreter<'_>,
    items: Vec<Value>,
    path: Option<&Value>,
    default: Option<&Value>,
    case_sensitive: bool,
) -> Result<Vec<(Value, Value)>> {
    let key = |item: Value| {
        let key = attribute(interpreter, &item, path, default)?;
        Ok((folded(key, case_sensitive), item))
    };
    items.into_iter().map(key).collect()
}

fn dict_items(value: &Value) -> Result<Vec<Value>> {
    match value {
        Value::Undefined(_) => Ok(Vec::new()),
        Value::Dict(dict) => {
            Ok(dict.entries().iter().map(|(k, v)| Value::tuple(vec![k.clone(), v.clone()])).collect())
        }
        _ => fail(format!("{} is no dict", value.described())),
    }
}

/// `select`, `reject` and their `attr` forms.
fn choose(
    interpreter: &mut Interpreter<'_>,
    value: &Value,
    args: &mut Args,
    by_attribute: bool,
    keep: bool,
) -> Result {
    let path = if by_attribute { Some(args.require("attribute")?) } else { None };
    let test = match args.positional.pop_front() {
        Some(name) => match name.as_text() {
            Some(name) => Some(name.to_owned()),
            None => return fail("the name of a test is a text"),
        },
        None => None,
    };
    let args = std::mem::take(args);
    let mut out = Vec::new();
    for item in value.iterate()? {
        let subject = attribute(interpreter, &item, path.as_ref(), None)?;
        let passes = match &test {
            Some(name) => predicates::test(interpreter, name, &subject, args.clone())?,
            None => subject.is_true(),
        };
        if passes == keep {
            out.push(item);
        }
    }
    Ok(Value::generator(out))
}

/// A filter on lists or dicts; `None` if there is none of this name.
pub(super) fn filter(
    interpreter: &mut Interpreter<'_>,
    name: &str,
    value: &Value,
    args: &mut Args,
) -> Result<Option<Value>> {
    Ok(Some(match name {
        "list" => Value::list(value.iterate()?),
        "length" | "count" => Value::Int(value.length()? as i128),
        "first" => match value.iterate()?.into_iter().next() {
            Some(item) => item,
            None => Value::undefined("the first item of nothing"),
        },
        "last" => {
            if matches!(value, Value::Generator(_)) {
                return fail("a generator has no last item");
            }
            match value.iterate()?.pop() {
                Some(item) => item,
                None => Value::undefined("the last item of nothing"),
            }
        }
        "random" => {
            let items = match value {
                Value::Dict(_) | Value::Generator(_) => {
                    return fail("only items by number can be chosen from");
                }
                _ => value.iterate()?,
            };
            let time = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH);
            let number = time.map_or(0, |since| since.as_nanos() as usize);
            match items.len() {
                0 => Value::undefined("a random item of nothing"),
                len => items[(number / 64) % len].clone(),
            }
        }
        "reverse" => match value {
            Value::Text(text) => Value::text(text.chars().rev().collect::<String>()),
            Value::Markup(text) => Value::text(text.chars().rev().collect::<String>()),
            _ => {
                let mut items = value.iterate()?;
                items.reverse();
                match value {
                    Value::Generator(_) => Value::list(items),
                    _ => Value::generator(items),
                }
            }
        },
        "items" => Value::generator(dict_items(value)?),
        "dictsort" => {
            let case_sensitive = args.flag("case_sensitive", false)?;
            let by = args.text("by")?.unwrap_or_else(|| "key".to_owned());
            let reverse = args.flag("reverse", false)?;
            let at = match &*by {
                "key" => 0,
                "value" => 1,
                _ => return fail("dictsort goes by \"key\" or \"value\""),
            };
            let Value::Dict(_) = value else { return fail(format!("{} is no dict", value.described())) };
            let path = Value::Int(at);
            let mut items = keyed(interpreter, dict_items(value)?, Some(&path), None, case_sensitive)?;
            sort(&mut items, reverse)?;
            Value::list(items.into_iter().map(|(_, item)| item).collect())
        }
        "sort" => {
            let reverse = args.flag("reverse", false)?;
            let case_sensitive = args.flag("case_sensitive", false)?;
            let path = optional(args, "attribute")?;
            let paths: Vec<Option<Value>> = match path.as_ref().and_then(Value::as_text) {
                Some(text) => text.split(',').map(|part| Some(Value::text(part))).collect(),
                None => vec![path],
            };
            let mut items = value.iterate()?;
            // Sorting is stable, so the keys that come last are sorted by first.
            for path in paths.iter().rev() {
                let mut keys = keyed(interpreter, items, path.as_ref(), None, case_sensitive)?;
                sort(&mut keys, reverse)?;
                items = keys.into_iter().map(|(_, item)| item).collect();
            }
            Value::list(items)
        }
        "unique" => {
            let case_sensitive = args.flag("case_sensitive", false)?;
            let path = optional(args, "attribute")?;
            let mut seen = HashSet::new();
            let mut out = Vec::new();
            for (key, item) in keyed(interpreter, value.iterate()?, path.as_ref(), None, case_sensitive)? {
                if seen.insert(Key::of(&key)?) {
                    out.push(item);
                }
            }
            Value::generator(out)
        }
        "min" | "max" => {
            let case_sensitive = args.flag("case_sensitive", false)?;
            let path = optional(args, "attribute")?;
            let wanted = if name == "min" { Ordering::Less } else { Ordering::Greater };
            let mut best: Option<(Value, Value)> = None;
            for (key, item) in keyed(interpreter, value.iterate()?, path.as_ref(), None, case_sensitive)? {
                let better = match &best {
                    Some((other, _)) => compare(&key, other)? == Some(wanted),
                    None => true,
                };
                if better {
                    best = Some((key, item));
                }
            }
            best.map_or_else(|| Value::undefined("an item of nothing"), |(_, item)| item)
        }
        "groupby" => {
            let path = args.require("attribute")?;
            let default = optional(args, "default")?;
            let case_sensitive = args.flag("case_sensitive", false)?;
            let mut items =
                keyed(interpreter, value.iterate()?, Some(&path), default.as_ref(), case_sensitive)?;
            sort_by(&mut items, |item| &item.0)?;
            let mut groups: Vec<(Value, Vec<Value>)> = Vec::new();
            for (key, item) in items {
                match groups.last_mut() {
                    Some((last, group)) if equal(last, &key) => group.push(item),
                    _ => groups.push((key, vec![item])),
                }
            }
            let mut out = Vec::new();
            for (_, group) in groups {
                let key = attribute(interpreter, &group[0], Some(&path), default.as_ref())?;
                out.push(Value::named_tuple(&["grouper", "list"], vec![key, Value::list(group)]));
            }
            Value::list(out)
        }
        "sum" => {
            let path = optional(args, "attribute")?;
            let mut sum = args.take("start")?.unwrap_or(Value::Int(0));
            if sum.as_text().is_some() {
                return fail("texts are joined, not summed");
            }
            for item in value.iterate()? {
                let item = attribute(interpreter, &item, path.as_ref(), None)?;
                sum = operators::binary(Operator::Add, &sum, &item)?;
                interpreter.charge(1 + sum.weight())?;
            }
            sum
        }
        "join" => {
            let separator = args.printed("d")?.unwrap_or_default();
            let path = optional(args, "attribute")?;
            let mut out = String::new();
            for (i, item) in value.iterate()?.iter().enumerate() {
                if i > 0 {
                    out.push_str(&separator);
                }
                out.push_str(&str(&attribute(interpreter, item, path.as_ref(), None)?)?);
                check_size(out.len())?;
            }
            Value::text(out)
        }
        "batch" => {
            let size = args.int("linecount")?;
            let fill = optional(args, "fill_with")?;
            let Some(size) = size else { return fail("the argument \"linecount\" is missing") };
            let size = usize::try_from(size.max(0)).unwrap_or(usize::MAX);
            // As in Jinja2, a size of 0 gives an empty batch and then one with everything.
            let mut out: Vec<Vec<Value>> = Vec::new();
            let items = value.iterate()?;
            if size == 0 && !items.is_empty() {
                out.extend([Vec::new(), Vec::new()]);
            }
            for item in items {
                match out.last_mut().filter(|last| size == 0 || last.len() != size) {
                    Some(last) => last.push(item),
                    None => out.push(vec![item]),
                }
            }
            if let (Some(last), Some(fill)) = (out.last_mut(), fill) {
                check_size(size)?;
                while last.len() < size {
                    last.push(fill.clone());
                }
            }
            Value::generator(out.into_iter().map(Value::list).collect())
        }
        "slice" => {
            let Some(slices) = args.int("slices")? else { return fail("the argument \"slices\" is missing") };
            let fill = optional(args, "fill_with")?;
            let items = value.iterate()?;
            if slices == 0 {
                return fail("division by zero");
            }
            let slices = check_size(usize::try_from(slices.max(0)).unwrap_or(usize::MAX))?;
            let each = items.len().checked_div(slices).unwrap_or(0);
            let more = items.len() - each * slices;
            let mut rest = items.into_iter();
            let mut out = Vec::new();
            for i in 0..slices {
                let mut part: Vec<Value> = rest.by_ref().take(each + usize::from(i < more)).collect();
                if let Some(fill) = fill.as_ref().filter(|_| i >= more) {
                    part.push(fill.clone());
                }
                out.push(Value::list(part));
            }
            Value::generator(out)
        }
        "map" => {
            let mut out = Vec::new();
            if let Some(path) = args.named.iter().position(|(name, _)| &**name == "attribute") {
                if !args.positional.is_empty() {
                    return fail("map takes the name of a filter or an attribute");
                }
                let path = args.named.remove(path).1;
                let default = optional(args, "default")?;
                for item in value.iterate()? {
                    out.push(attribute(interpreter, &item, Some(&path), default.as_ref())?);
                }
            } else {
                let filter = args.require("filter")?;
                let Some(filter) = filter.as_text() else { return fail("the name of a filter is a text") };
                let args = std::mem::take(args);
                for item in value.iterate()? {
                    out.push(super::filters::filter(interpreter, filter, &item, args.clone())?);
                }
            }
            Value::generator(out)
        }
        "select" => choose(interpreter, value, args, false, true)?,
        "reject" => choose(interpreter, value, args, false, false)?,
        "selectattr" => choose(interpreter, value, args, true, true)?,
        "rejectattr" => choose(interpreter, value, args, true, false)?,
        _ => return Ok(None),
    }))
}

/// Sorts. In reverse, equal items keep their order, as in Python.
fn sort(items: &mut [(Value, Value)], reverse: bool) -> Result<()> {
    if reverse {
        items.reverse();
    }
    sort_by(items, |item| &item.0)?;
    if reverse {
        items.reverse();
    }
    Ok(())
}
