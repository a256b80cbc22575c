//! Python's two ways to fill values into a text: `%` and `str.format`.

use super::error::{Result, fail};
use super::operators::check_size;
use super::text::{exponent, repr, str};
use super::value::Value;

/// How a value is laid out: the parts of `[[fill]align][sign][#][0][width][,][.precision][type]`.
#[derive(Clone, Debug)]
struct Spec {
    fill: char,
    align: Option<char>,
    sign: char,
    alternate: bool,
    zero: bool,
    width: usize,
    grouping: Option<char>,
    precision: Option<usize>,
    kind: Option<char>,
}

impl Spec {
    fn parse(text: &str) -> Result<Self> {
        let mut chars = text.chars().peekable();
        let mut spec = Self {
            fill: ' ',
            align: None,
            sign: '-',
            alternate: false,
            zero: false,
            width: 0,
            grouping: None,
            precision: None,
            kind: None,
        };
        let is_align = |c: &char| matches!(c, '<' | '>' | '=' | '^');
        let mut ahead = text.chars();
        let (first, second) = (ahead.next(), ahead.next());
        if second.as_ref().is_some_and(is_align) {
            spec.fill = first.unwrap_or(' ');
            spec.align = second;
            chars.next();
            chars.next();
        } else if first.as_ref().is_some_and(is_align) {
            spec.align = first;
            chars.next();
        }
        if let Some(sign) = chars.next_if(|c| matches!(c, '+' | '-' | ' ')) {
            spec.sign = sign;
        }
        chars.next_if_eq(&'z');
        spec.alternate = chars.next_if_eq(&'#').is_some();
        if chars.next_if_eq(&'0').is_some() {
            spec.zero = true;
            if spec.align.is_none() {
                (spec.fill, spec.align) = ('0', Some('='));
            }
        }
        let number = |chars: &mut std::iter::Peekable<std::str::Chars<'_>>| -> Result<Option<usize>> {
            let mut found = None;
            while let Some(digit) = chars.peek().and_then(|c| c.to_digit(10)) {
                chars.next();
                found = Some(check_size(found.unwrap_or(0) * 10 + digit as usize)?);
            }
            Ok(found)
        };
        spec.width = number(&mut chars)?.unwrap_or(0);
        spec.grouping = chars.next_if(|c| matches!(c, ',' | '_'));
        if chars.next_if_eq(&'.').is_some() {
            spec.precision = match number(&mut chars)? {
                Some(precision) => Some(precision.min(4096)),
                None => return fail("a format without digits behind the point"),
            };
        }
        spec.kind = chars.next();
        match chars.next() {
            None => Ok(spec),
            Some(_) => fail(format!("{text:?} is no format")),
        }
    }

    /// Adds sign and padding to digits.
    fn number(&self, negative: bool, prefix: &str, digits: &str, default_align: char) -> String {
        let sign = match (negative, self.sign) {
            (true, _) => "-",
            (false, '+') => "+",
            (false, ' ') => " ",
            _ => "",
        };
        let len = sign.len() + prefix.len() + digits.chars().count();
        let fill = self.width.saturating_sub(len);
        let filled = |n: usize| self.fill.to_string().repeat(n);
        match self.align.unwrap_or(default_align) {
            '=' => format!("{sign}{prefix}{}{digits}", filled(fill)),
            '<' => format!("{sign}{prefix}{digits}{}", filled(fill)),
            '^' => format!("{}{sign}{prefix}{digits}{}", filled(fill / 2), filled(fill - fill / 2)),
            _ => format!("{}{sign}{prefix}{digits}", filled(fill)),
        }
    }

    fn text(&self, text: &str) -> Result<String> {
        if !matches!(self.kind, None | Some('s')) || self.align == Some('=') && !self.zero {
            return fail("a format that texts do not have");
        }
        let text: String = text.chars().take(self.precision.unwrap_or(usize::MAX)).collect();
        let align = if self.zero { Some('<') } else { self.align };
        let spec = Self { align, sign: '-', ..self.clone() };
        Ok(spec.number(false, "", &text, '<'))
    }
}

/// Puts separators between groups of digits in front of the point.
fn grouped(digits: &str, separator: char, size: usize) -> String {
    let end = digits.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(digits.len());
    let mut out = String::new();
    for (i, c) in digits[..end].chars().enumerate() {
        if i > 0 && (end - i).is_multiple_of(size) {
            out.push(separator);
        }
        out.push(c);
    }
    out + &digits[end..]
}

/// The digits of a float without its sign, in one of the forms `e`, `f`, `g` or `%`.
pub(super) fn float_digits(value: f64, kind: char, precision: usize, alternate: bool) -> String {
    let value = value.abs();
    if !value.is_finite() {
        let word = if value.is_nan() { "nan" } else { "inf" };
        return if kind.is_ascii_uppercase() { word.to_uppercase() } else { word.to_owned() };
    }
    let text = match kind.to_ascii_lowercase() {
        'e' => exponent(&format!("{value:.precision$e}")),
        'g' => {
            let precision = precision.max(1);
            let scientific = format!("{value:.*e}", precision - 1);
            let power: i32 = scientific.split_once('e').and_then(|(_, e)| e.parse().ok()).unwrap_or(0);
            let (digits, tail) = if (-4..precision as i32).contains(&power) {
                (format!("{value:.*}", (precision as i32 - 1 - power) as usize), String::new())
            } else {
                let text = exponent(&scientific);
                let at = text.find('e').unwrap_or(text.len());
                (text[..at].to_owned(), text[at..].to_owned())
            };
            let digits = match digits.contains('.') && !alternate {
                true => digits.trim_end_matches('0').trim_end_matches('.'),
                false => &digits,
            };
            format!("{digits}{tail}")
        }
        '%' => format!("{:.precision$}%", value * 100.0),
        _ => format!("{value:.precision$}"),
    };
    let text = if alternate && !text.contains('.') && kind != 'g' { format!("{text}.") } else { text };
    if kind.is_ascii_uppercase() { text.to_uppercase() } else { text }
}

fn int_digits(value: u128, kind: char) -> String {
    match kind {
        'x' => format!("{value:x}"),
        'X' => format!("{value:X}"),
        'o' => format!("{value:o}"),
        'b' => format!("{value:b}"),
        _ => value.to_string(),
    }
}

/// `format(value, spec)`.
pub(super) fn format_value(value: &Value, spec: &str) -> Result<String> {
    if spec.is_empty() {
        return str(value);
    }
    let parsed = Spec::parse(spec)?;
    match value {
        Value::Text(text) | Value::Markup(text) => parsed.text(text),
        Value::Bool(flag) if parsed.kind.is_none() && spec.starts_with(['<', '>', '^', 's']) => {
            let _ = flag;
            Ok(parsed.number(false, "", &i128::from(*flag).to_string(), '>'))
        }
        Value::Int(_) | Value::Bool(_)
            if !matches!(parsed.kind, Some('e' | 'E' | 'f' | 'F' | 'g' | 'G' | '%')) =>
        {
            let number = value.as_int().unwrap_or(0);
            let kind = parsed.kind.unwrap_or('d');
            if parsed.precision.is_some() {
                return fail("a precision for a whole number");
            }
            let digits = match kind {
                'd' | 'n' | 'x' | 'X' | 'o' | 'b' => int_digits(number.unsigned_abs(), kind),
                'c' => match u32::try_from(number).ok().and_then(char::from_u32) {
                    Some(c) => return Ok(parsed.number(false, "", &c.to_string(), '<')),
                    None => return fail("a number that is no character"),
                },
                _ => return fail(format!("whole numbers have no format {kind:?}")),
            };
            let digits = match parsed.grouping {
                Some(separator) => grouped(&digits, separator, if kind == 'd' { 3 } else { 4 }),
                None => digits,
            };
            let prefix = match kind {
                'x' | 'X' | 'o' | 'b' if parsed.alternate => format!("0{kind}"),
                _ => String::new(),
            };
            Ok(parsed.number(number < 0, &prefix, &digits, '>'))
        }
        Value::Int(_) | Value::Bool(_) | Value::Float(_) => {
            let number = value.as_float().unwrap_or(0.0);
            let digits = match parsed.kind {
                Some(kind @ ('e' | 'E' | 'f' | 'F' | 'g' | 'G' | '%')) => {
                    float_digits(number, kind, parsed.precision.unwrap_or(6), parsed.alternate)
                }
                Some('n') => float_digits(number, 'g', parsed.precision.unwrap_or(6), parsed.alternate),
                None => match parsed.precision {
                    // As `g`, but with at least one digit after the point.
                    Some(precision) => {
                        let digits = float_digits(number, 'g', precision, false);
                        let whole = digits.bytes().all(|b| b.is_ascii_digit());
                        if whole && digits.len() < precision { format!("{digits}.0") } else { digits }
                    }
                    None => super::text::float(number.abs()),
                },
                Some(kind) => return fail(format!("numbers have no format {kind:?}")),
            };
            let digits = parsed.grouping.map_or(digits.clone(), |separator| grouped(&digits, separator, 3));
            Ok(parsed.number(number.is_sign_negative() && !number.is_nan(), "", &digits, '>'))
        }
        _ => fail(format!("{} has no format", value.described())),
    }
}

/// `text.format(*positional, **named)`.
pub(super) fn str_format(
    text: &str,
    positional: &[Value],
    named: &dyn Fn(&str) -> Option<Value>,
    attribute: &dyn Fn(&Value, &str) -> Result,
) -> Result<String> {
    let mut next = 0;
    format_fields(text, positional, named, attribute, &mut next, 0)
}

fn format_fields(
    text: &str,
    positional: &[Value],
    named: &dyn Fn(&str) -> Option<Value>,
    attribute: &dyn Fn(&Value, &str) -> Result,
    next: &mut usize,
    depth: usize,
) -> Result<String> {
    if depth > 2 {
        return fail("formats are nested too deeply");
    }
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(['{', '}']) {
        out.push_str(&rest[..at]);
        let sign = &rest[at..=at];
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix(sign) {
            out.push_str(sign);
            rest = after;
            continue;
        }
        if sign == "}" {
            return fail("a single } in a format");
        }
        let mut open = 1;
        let end = rest.char_indices().find(|&(_, c)| {
            open += i32::from(c == '{') - i32::from(c == '}');
            open == 0
        });
        let Some((end, _)) = end else { return fail("a { in a format is not closed") };
        let field = &rest[..end];
        rest = &rest[end + 1..];
        let (field, spec) = field.split_once(':').unwrap_or((field, ""));
        let (field, conversion) = field.split_once('!').map_or((field, None), |(field, c)| (field, Some(c)));
        let split = field.find(['.', '[']).unwrap_or(field.len());
        let (first, mut path) = field.split_at(split);
        let index = if first.is_empty() {
            *next += 1;
            Some(*next - 1)
        } else {
            first.parse::<usize>().ok()
        };
        let found = match index {
            Some(index) => positional.get(index).cloned(),
            None => named(first),
        };
        let Some(mut value) = found else { return fail(format!("nothing to fill {{{field}}} with")) };
        while !path.is_empty() {
            if let Some(after) = path.strip_prefix('.') {
                let end = after.find(['.', '[']).unwrap_or(after.len());
                value = attribute(&value, &after[..end])?;
                path = &after[end..];
            } else if let Some((name, after)) = path.strip_prefix('[').and_then(|path| path.split_once(']')) {
                let index = name.parse().map_or_else(|_| Value::text(name), Value::Int);
                value = match super::operators::item(&value, &index)? {
                    Some(value) => value,
                    None => return fail(format!("there is no [{name}]")),
                };
                path = after;
            } else {
                return fail(format!("{field:?} is no field of a format"));
            }
        }
        let value = match conversion {
            None => value,
            Some("s") => Value::text(str(&value)?),
            Some("r" | "a") => Value::text(repr(&value)?),
            Some(_) => return fail("a conversion that is none of !s, !r and !a"),
        };
        let spec = format_fields(spec, positional, named, attribute, next, depth + 1)?;
        out.push_str(&format_value(&value, &spec)?);
        check_size(out.len())?;
    }
    out.push_str(rest);
    Ok(out)
}

/// `format % arguments`.
pub(super) fn percent(format: &str, arguments: &Value) -> Result<String> {
    let (mut positional, is_tuple) = match arguments {
        Value::Tuple(items) => (items.items.clone().into_iter(), true),
        other => (vec![other.clone()].into_iter(), false),
    };
    let mut used_mapping = false;
    let mut out = String::new();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut value = None;
        if chars.next_if_eq(&'(').is_some() {
            let mut name = String::new();
            let mut open = 1;
            for c in chars.by_ref() {
                open += i32::from(c == '(') - i32::from(c == ')');
                if open == 0 {
                    break;
                }
                name.push(c);
            }
            let Value::Dict(dict) = arguments else { return fail("a format with names needs a dict") };
            let Some(found) = dict.get_text(&name) else { return fail(format!("there is no {name:?}")) };
            used_mapping = true;
            value = Some(found.clone());
        }
        let (mut left, mut sign, mut alternate, mut zero) = (false, '-', false, false);
        while let Some(flag) = chars.next_if(|c| matches!(c, '-' | '+' | ' ' | '#' | '0')) {
            match flag {
                '-' => left = true,
                '+' => sign = '+',
                ' ' if sign != '+' => sign = ' ',
                '#' => alternate = true,
                '0' => zero = true,
                _ => {}
            }
        }
        let missing = || fail::<Value>("not enough arguments for a format");
        let mut number = |chars: &mut std::iter::Peekable<std::str::Chars<'_>>| -> Result<Option<i128>> {
            if chars.next_if_eq(&'*').is_some() {
                let value = positional.next().map_or_else(missing, Ok)?;
                return match value.as_int() {
                    Some(number) => Ok(Some(number)),
                    None => fail("* in a format needs a whole number"),
                };
            }
            let mut found = None;
            while let Some(digit) = chars.peek().and_then(|c| c.to_digit(10)) {
                chars.next();
                found = Some(check_size(found.unwrap_or(0) as usize * 10 + digit as usize)? as i128);
            }
            Ok(found)
        };
        let width = number(&mut chars)?.unwrap_or(0);
        left |= width < 0;
        let width = check_size(usize::try_from(width.unsigned_abs()).unwrap_or(usize::MAX))?;
        let precision = match chars.next_if_eq(&'.') {
            Some(_) => Some(usize::try_from(number(&mut chars)?.unwrap_or(0)).unwrap_or(0).min(4096)),
            None => None,
        };
        while chars.next_if(|c| matches!(c, 'h' | 'l' | 'L')).is_some() {}
        let Some(kind) = chars.next() else { return fail("a format ends in the middle of a field") };
        if kind == '%' {
            out.push('%');
            continue;
        }
        let value = match value {
            Some(value) => value,
            None => positional.next().map_or_else(missing, Ok)?,
        };
        let spec = Spec {
            fill: ' ',
            align: left.then_some('<'),
            sign,
            alternate,
            zero,
            width,
            grouping: None,
            precision,
            kind: None,
        };
        let padded = match zero && !left {
            true => Spec { fill: '0', align: Some('='), ..spec.clone() },
            false => spec.clone(),
        };
        let text = match kind {
            's' | 'r' | 'a' => {
                let text = if kind == 's' { str(&value)? } else { repr(&value)? };
                let text = if kind == 'a' { ascii(&text) } else { text };
                let text: String = text.chars().take(precision.unwrap_or(usize::MAX)).collect();
                Spec { sign: '-', ..spec }.number(false, "", &text, '>')
            }
            'c' => {
                let text = match (value.as_text(), value.as_int()) {
                    (Some(text), _) if text.chars().count() == 1 => text.to_owned(),
                    (None, Some(code)) => match u32::try_from(code).ok().and_then(char::from_u32) {
                        Some(c) => c.to_string(),
                        None => return fail("%c needs a character"),
                    },
                    _ => return fail("%c needs a character"),
                };
                Spec { sign: '-', ..spec }.number(false, "", &text, '>')
            }
            'd' | 'i' | 'u' | 'x' | 'X' | 'o' => {
                let number = match (&value, kind) {
                    (Value::Float(number), 'd' | 'i' | 'u') if number.abs() < 1e36 => *number as i128,
                    _ => match value.as_int() {
                        Some(number) => number,
                        None => return fail(format!("%{kind} needs a number, not {}", value.described())),
                    },
                };
                let digits = int_digits(number.unsigned_abs(), kind);
                let missing = precision.unwrap_or(0).saturating_sub(digits.len());
                let digits = "0".repeat(missing) + &digits;
                let prefix = match kind {
                    'x' | 'X' | 'o' if alternate => format!("0{kind}"),
                    _ => String::new(),
                };
                padded.number(number < 0, &prefix, &digits, '>')
            }
            'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
                let Some(number) = value.as_float() else {
                    return fail(format!("%{kind} needs a number, not {}", value.described()));
                };
                let digits = float_digits(number, kind, precision.unwrap_or(6), alternate);
                padded.number(number.is_sign_negative() && !number.is_nan(), "", &digits, '>')
            }
            kind => return fail(format!("there is no format %{kind}")),
        };
        out.push_str(&text);
        check_size(out.len())?;
    }
    let left_over = positional.next().is_some();
    let may_be_left = used_mapping || !is_tuple && matches!(arguments, Value::Dict(_) | Value::List(_));
    if left_over && !may_be_left {
        return fail("not all arguments of a format are used");
    }
    Ok(out)
}

/// Escapes everything beyond ASCII.
fn ascii(text: &str) -> String {
    text.chars().fold(String::new(), |mut out, c| {
        match c as u32 {
            0..=0x7f => out.push(c),
            code @ 0..=0xff => out.push_str(&format!("\\x{code:02x}")),
            code @ 0..=0xffff => out.push_str(&format!("\\u{code:04x}")),
            code => out.push_str(&format!("\\U{code:08x}")),
        }
        out
    })
}
