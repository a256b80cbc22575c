//! Arithmetic.

use crate::tools::{Function, FunctionError};
use breakers_core::{Json, Tool};

/// Levels of brackets and signs.
const MOST_LEVELS: usize = 100;

/// Computes expressions of numbers, `+ - * / % ^`, brackets, `pi`, `e`, and functions of one number.
///
/// # Example
/// ```
/// use breakers_core::Json;
/// use breakers_structured::tools::{Calculator, Function};
///
/// let arguments = Json::parse(r#"{"expression": "2 * (3 + 4)^2"}"#)?;
/// assert_eq!(Calculator.call(&arguments).unwrap(), "98");
/// # Ok::<(), breakers_core::JsonError>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Calculator;

impl Function for Calculator {
    fn tool(&self) -> Tool {
        let parameters = r#"{"type": "object", "properties": {"expression": {"type": "string",
            "description": "such as 2 * (3 + 4)^2 or sqrt(2)"}}, "required": ["expression"], "additionalProperties": false}"#;
        let parameters = Json::parse(parameters).expect("the constant is JSON");
        Tool::new("calculator", parameters).with_description("Computes an arithmetic expression")
    }

    fn call(&self, arguments: &Json) -> Result<String, FunctionError> {
        let arguments: serde_json::Value = arguments.to()?;
        let expression = arguments["expression"].as_str().ok_or("expected a text \"expression\"")?;
        let value = evaluate(expression)?;
        Ok(value.to_string())
    }
}

/// The value of an expression.
fn evaluate(expression: &str) -> Result<f64, String> {
    let mut parser = Parser { rest: expression, levels: 0 };
    let value = parser.sum()?;
    parser.skip();
    match parser.rest.chars().next() {
        Some(c) => Err(format!("expected an operator or the end of the expression, found {c:?}")),
        None if value.is_finite() => Ok(value),
        None => Err("the value is no finite number".to_owned()),
    }
}

struct Parser<'a> {
    rest: &'a str,
    levels: usize,
}

impl Parser<'_> {
    fn skip(&mut self) {
        self.rest = self.rest.trim_start();
    }

    /// Takes one of these characters if it comes next.
    fn take(&mut self, any: &str) -> Option<char> {
        self.skip();
        let c = self.rest.chars().next().filter(|c| any.contains(*c))?;
        self.rest = &self.rest[c.len_utf8()..];
        Some(c)
    }

    fn sum(&mut self) -> Result<f64, String> {
        let mut value = self.product()?;
        while let Some(c) = self.take("+-") {
            let other = self.product()?;
            value = if c == '+' { value + other } else { value - other };
        }
        Ok(value)
    }

    fn product(&mut self) -> Result<f64, String> {
        let mut value = self.signed()?;
        while let Some(c) = self.take("*/%") {
            let other = self.signed()?;
            if c != '*' && other == 0.0 {
                return Err("division by zero".to_owned());
            }
            value = match c {
                '*' => value * other,
                '/' => value / other,
                _ => value % other,
            };
        }
        Ok(value)
    }

    fn signed(&mut self) -> Result<f64, String> {
        self.levels += 1;
        if self.levels > MOST_LEVELS {
            return Err(format!("the expression has more than {MOST_LEVELS} levels"));
        }
        let value = match self.take("+-") {
            Some('-') => -self.signed()?,
            Some(_) => self.signed()?,
            None => self.power()?,
        };
        self.levels -= 1;
        Ok(value)
    }

    fn power(&mut self) -> Result<f64, String> {
        let value = self.atom()?;
        match self.take("^") {
            Some(_) => Ok(value.powf(self.signed()?)),
            None => Ok(value),
        }
    }

    fn atom(&mut self) -> Result<f64, String> {
        if self.take("(").is_some() {
            return self.closed();
        }
        self.skip();
        let expected = "expected a number, a name or '('";
        let first = self.rest.chars().next().ok_or(format!("{expected} at the end of the expression"))?;
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '_';
        let mut end = self.rest.find(|c: char| !is_part(c)).unwrap_or(self.rest.len());
        if first.is_ascii_digit() || first == '.' {
            // The sign of an exponent.
            if self.rest[..end].ends_with(['e', 'E']) && self.rest[end..].starts_with(['+', '-']) {
                let digits = self.rest[end + 1..].find(|c: char| !c.is_ascii_digit());
                end = digits.map_or(self.rest.len(), |n| end + 1 + n);
            }
            let (number, rest) = self.rest.split_at(end);
            self.rest = rest;
            return number.parse().map_err(|_| format!("{number:?} is no number"));
        }
        let (name, rest) = self.rest.split_at(end);
        if name.is_empty() {
            return Err(format!("{expected}, found {first:?}"));
        }
        self.rest = rest;
        let function: fn(f64) -> f64 = match name {
            "pi" => return Ok(std::f64::consts::PI),
            "e" => return Ok(std::f64::consts::E),
            "sqrt" => f64::sqrt,
            "abs" => f64::abs,
            "ln" => f64::ln,
            "log10" => f64::log10,
            "exp" => f64::exp,
            "sin" => f64::sin,
            "cos" => f64::cos,
            "tan" => f64::tan,
            "floor" => f64::floor,
            "ceil" => f64::ceil,
            "round" => f64::round,
            _ => return Err(format!("{name:?} is neither a function nor a constant")),
        };
        self.take("(").ok_or_else(|| format!("expected '(' after {name}"))?;
        Ok(function(self.closed()?))
    }

    fn closed(&mut self) -> Result<f64, String> {
        let value = self.sum()?;
        self.take(")").ok_or("expected ')'")?;
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::evaluate;

    #[test]
    fn expressions() {
        let check =
            |expression: &str, expected: f64| assert_eq!(evaluate(expression), Ok(expected), "{expression}");
        check("1 + 2 * 3", 7.0);
        check("(1 + 2) * 3 - 4 / 8", 8.5);
        check("2^3^2", 512.0);
        check("-2^2", -4.0);
        check("2^-1", 0.5);
        check("7 % 4 % 2", 1.0);
        check("--1", 1.0);
        check(" 1.5e+2 + .5 ", 150.5);
        check("sqrt(16) + abs(-2) + floor(2.9)", 8.0);
        check("2 * pi", std::f64::consts::TAU);
        check("10 - 3 - 2", 5.0);
        let check = |expression: &str, expected: &str| {
            let error = evaluate(expression).unwrap_err();
            assert!(error.contains(expected), "{expression}: {error}");
        };
        check("", "end of the expression");
        check("1 2", "an operator");
        check("1 / 0", "division by zero");
        check("1 / (2 - 2)", "division by zero");
        check("5 % 0", "division by zero");
        check("(1", "expected ')'");
        check("f(1)", "neither a function");
        check("sqrt 2", "expected '('");
        check("sqrt(-1)", "finite");
        check("10^1000", "finite");
        check("1.2.3", "is no number");
        check("1e", "is no number");
        check("é", "found 'é'");
        check(&"(".repeat(100_000), "levels");
        check(&"-".repeat(100_000), "levels");
        check(&format!("2{}", "^2".repeat(100_000)), "levels");
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_value_or_an_error(text in "[-+*/%^() 0-9.esqrtpié]{0,30}") {
            let _ = evaluate(&text);
        }
    }
}
