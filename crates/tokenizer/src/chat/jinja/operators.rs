//! Python's operators and subscripts.

use super::ast::Operator;
use super::error::{Result, fail};
use super::format::percent;
use super::text::str;
use super::value::{Key, Range, Value, equal};

/// The largest text in bytes, or list in items, that a template may create at once.
pub(super) const MOST: usize = 1 << 24;

/// Whole numbers are at most this far from 0, so that sums and differences of two fit into 128 bits.
pub(super) const LARGEST: u128 = 1 << 120;

/// Fails for results that would not fit into memory.
pub(super) fn check_size(len: usize) -> Result<usize> {
    if len > MOST { fail(format!("a result of more than {MOST} bytes or items")) } else { Ok(len) }
}

/// Escapes text for HTML.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&#34;"),
            c => out.push(c),
        }
    }
    out
}

/// `a + b` and its like.
pub(super) fn binary(operator: Operator, a: &Value, b: &Value) -> Result {
    a.defined()?;
    // `%` prints its arguments, and prints nothing for undefined ones.
    if !(operator == Operator::Remainder && a.as_text().is_some()) {
        b.defined()?;
    }
    match (operator, a, b) {
        (Operator::Add, Value::Text(a), Value::Text(b)) => {
            check_size(a.len() + b.len())?;
            return Ok(Value::text(format!("{a}{b}")));
        }
        (Operator::Add, Value::Text(_) | Value::Markup(_), Value::Text(_) | Value::Markup(_)) => {
            let part = |value: &Value| match value {
                Value::Markup(text) => text.to_string(),
                _ => escape(value.as_text().unwrap_or_default()),
            };
            return Ok(Value::Markup(format!("{}{}", part(a), part(b)).into()));
        }
        (Operator::Add, Value::List(a), Value::List(b)) => {
            check_size(a.items.len() + b.items.len())?;
            return Ok(Value::list([&*a.items, &b.items].concat()));
        }
        (Operator::Add, Value::Tuple(a), Value::Tuple(b)) => {
            check_size(a.items.len() + b.items.len())?;
            return Ok(Value::tuple([&*a.items, &b.items].concat()));
        }
        (Operator::Multiply, a, times) | (Operator::Multiply, times, a)
            if matches!(a, Value::Text(_) | Value::Markup(_) | Value::List(_) | Value::Tuple(_)) =>
        {
            let Some(times) = times.as_int() else {
                return fail(format!("a {} cannot be repeated by a {}", a.kind(), times.kind()));
            };
            let times = usize::try_from(times.max(0)).unwrap_or(usize::MAX);
            let len = |len: usize| check_size(len.saturating_mul(times));
            return Ok(match a {
                Value::Text(text) => {
                    len(text.len())?;
                    Value::text(text.repeat(times))
                }
                Value::Markup(text) => {
                    len(text.len())?;
                    Value::Markup(text.repeat(times).into())
                }
                Value::List(items) => {
                    len(items.items.len())?;
                    Value::list(repeat(&items.items, times))
                }
                Value::Tuple(items) => {
                    len(items.items.len())?;
                    Value::tuple(repeat(&items.items, times))
                }
                _ => return fail("only texts, lists and tuples can be repeated"),
            });
        }
        (Operator::Remainder, Value::Text(format), arguments) => {
            return Ok(Value::text(percent(format, arguments)?));
        }
        (Operator::Remainder, Value::Markup(format), arguments) => {
            return Ok(Value::Markup(percent(format, arguments)?.into()));
        }
        _ => {}
    }
    arithmetic(operator, a, b)
}

fn repeat(items: &[Value], times: usize) -> Vec<Value> {
    std::iter::repeat_n(items, times).flatten().cloned().collect()
}

fn arithmetic(operator: Operator, a: &Value, b: &Value) -> Result {
    if let (Some(x), Some(y)) = (a.as_int(), b.as_int()) {
        if y == 0 && matches!(operator, Operator::Divide | Operator::FloorDivide | Operator::Remainder) {
            return fail("division by zero");
        }
        let whole = match operator {
            Operator::Add => x.checked_add(y),
            Operator::Subtract => x.checked_sub(y),
            Operator::Multiply => x.checked_mul(y),
            Operator::Divide => return Ok(Value::Float(x as f64 / y as f64)),
            Operator::FloorDivide => {
                x.checked_div(y).map(|q| if x % y != 0 && (x < 0) != (y < 0) { q - 1 } else { q })
            }
            Operator::Remainder => {
                x.checked_rem(y).map(|r| if r != 0 && (r < 0) != (y < 0) { r + y } else { r })
            }
            Operator::Power if y < 0 => return power(x as f64, y as f64),
            Operator::Power => u32::try_from(y).ok().and_then(|y| x.checked_pow(y)),
        };
        return match whole.filter(|whole| whole.unsigned_abs() <= LARGEST) {
            Some(whole) => Ok(Value::Int(whole)),
            None => fail("a whole number beyond 120 bits"),
        };
    }
    let (Some(x), Some(y)) = (a.as_float(), b.as_float()) else {
        return fail(format!("{operator:?} of a {} and a {}", a.kind(), b.kind()));
    };
    if y == 0.0 && matches!(operator, Operator::Divide | Operator::FloorDivide | Operator::Remainder) {
        return fail("division by zero");
    }
    Ok(Value::Float(match operator {
        Operator::Add => x + y,
        Operator::Subtract => x - y,
        Operator::Multiply => x * y,
        Operator::Divide => x / y,
        Operator::FloorDivide => (x / y).floor(),
        Operator::Remainder => {
            let rest = x % y;
            if rest != 0.0 && (rest < 0.0) != (y < 0.0) { rest + y } else { rest }
        }
        Operator::Power => return power(x, y),
    }))
}

fn power(x: f64, y: f64) -> Result {
    if x == 0.0 && y < 0.0 {
        return fail("zero to a negative power");
    }
    let result = x.powf(y);
    if result.is_infinite() && x.is_finite() && y.is_finite() {
        return fail("a power is too large");
    }
    if result.is_nan() && !x.is_nan() && !y.is_nan() {
        return fail("a power that is no real number");
    }
    Ok(Value::Float(result))
}

/// `-value` and `+value`.
pub(super) fn sign(value: &Value, negative: bool) -> Result {
    match (value.as_int(), value) {
        (Some(number), _) => Ok(Value::Int(if negative { -number } else { number })),
        (None, Value::Float(number)) => Ok(Value::Float(if negative { -number } else { *number })),
        _ => fail(format!("{} has no sign", value.described())),
    }
}

/// `item in container`.
pub(super) fn contains(container: &Value, item: &Value) -> Result<bool> {
    Ok(match container {
        Value::Text(text) | Value::Markup(text) => match item.as_text() {
            Some(part) => text.contains(part),
            None => return fail(format!("a {} cannot be in a text", item.kind())),
        },
        Value::Dict(dict) => dict.get(item)?.is_some(),
        Value::Range(range) => match item.as_int() {
            Some(number) => {
                let distance = number - range.start;
                distance % range.step == 0 && (0..range.len as i128).contains(&(distance / range.step))
            }
            None => container.iterate()?.iter().any(|other| equal(other, item)),
        },
        _ => container.iterate()?.iter().any(|other| equal(other, item)),
    })
}

/// `value[index]`; `None` if there is no such item.
pub(super) fn item(value: &Value, index: &Value) -> Result<Option<Value>> {
    let at = |len: usize| {
        let index = index.as_int()?;
        let index = if index < 0 { index + len as i128 } else { index };
        usize::try_from(index).ok().filter(|index| *index < len)
    };
    Ok(match value {
        Value::Text(text) | Value::Markup(text) => at(text.chars().count())
            .and_then(|index| text.chars().nth(index))
            .map(|c| Value::text(c.to_string())),
        Value::List(items) | Value::Tuple(items) => {
            at(items.items.len()).map(|index| items.items[index].clone())
        }
        Value::Range(range) => at(range.len).map(|index| range.get(index)),
        Value::Dict(dict) => match Key::of(index) {
            Ok(_) => dict.get(index)?.cloned(),
            Err(_) => None,
        },
        _ => None,
    })
}

/// `value[start:stop:step]`; `None` where Python raises an error.
pub(super) fn slice(value: &Value, parts: [Option<Value>; 3]) -> Result<Option<Value>> {
    let mut bounds = [None; 3];
    for (bound, part) in bounds.iter_mut().zip(&parts) {
        *bound = match part {
            None | Some(Value::None) => None,
            Some(part) => match part.as_int() {
                Some(number) => Some(number.clamp(-(1 << 62), 1 << 62)),
                None => return Ok(None),
            },
        };
    }
    let step = bounds[2].unwrap_or(1);
    if step == 0 {
        return fail("the step of a slice is 0");
    }
    let indices = |len: usize| -> Range {
        let len = len as i128;
        let (low, high) = if step > 0 { (0, len) } else { (-1, len - 1) };
        let bound = |bound: Option<i128>, default: i128| match bound {
            None => default,
            Some(bound) if bound < 0 => (bound + len).max(low),
            Some(bound) => bound.min(high),
        };
        let (start, stop) = match step > 0 {
            true => (bound(bounds[0], 0), bound(bounds[1], len)),
            false => (bound(bounds[0], len - 1), bound(bounds[1], -1)),
        };
        let distance = if step > 0 { stop - start } else { start - stop };
        let len = if distance > 0 { (distance - 1) / step.abs() + 1 } else { 0 };
        Range { start, stop, step, len: len as usize }
    };
    let picked = |items: &[Value]| {
        let range = indices(items.len());
        (0..range.len).map(|i| items[(range.start + range.step * i as i128) as usize].clone()).collect()
    };
    Ok(Some(match value {
        Value::Text(text) | Value::Markup(text) => {
            let chars: Vec<char> = text.chars().collect();
            let range = indices(chars.len());
            let part: String =
                (0..range.len).map(|i| chars[(range.start + range.step * i as i128) as usize]).collect();
            if matches!(value, Value::Markup(_)) { Value::Markup(part.into()) } else { Value::text(part) }
        }
        Value::List(items) => Value::list(picked(&items.items)),
        Value::Tuple(items) => Value::tuple(picked(&items.items)),
        Value::Range(range) => {
            let part = indices(range.len);
            Value::Range(Range {
                start: range.start.saturating_add(range.step.saturating_mul(part.start)),
                stop: range.start.saturating_add(range.step.saturating_mul(part.stop)),
                step: range.step.saturating_mul(part.step),
                len: part.len,
            })
        }
        _ => return Ok(None),
    }))
}

/// `a ~ b`.
pub(super) fn concat(parts: &[Value]) -> Result {
    let mut out = String::new();
    for part in parts {
        out.push_str(&str(part)?);
        check_size(out.len())?;
    }
    Ok(Value::text(out))
}
