//! The grammar of expressions, with the precedences of Jinja2.

use super::ast::{Arguments, Comparison, Expr, Operator};
use super::error::Result;
use super::lexer::Kind;
use super::parser::Parser;

impl Parser {
    /// An expression without commas.
    pub(super) fn expression(&mut self) -> Result<Expr> {
        self.deeper(Self::conditional)
    }

    fn conditional(&mut self) -> Result<Expr> {
        let mut value = self.or()?;
        let mut len = 0;
        while self.take_name("if") {
            len += 1;
            self.check_chain(len)?;
            let test = Box::new(self.or()?);
            let no = if self.take_name("else") { Some(Box::new(self.expression()?)) } else { None };
            value = Expr::If { test, yes: Box::new(value), no };
        }
        Ok(value)
    }

    fn or(&mut self) -> Result<Expr> {
        let mut left = self.and()?;
        let mut len = 0;
        while self.take_name("or") {
            len += 1;
            self.check_chain(len)?;
            left = Expr::Or(Box::new((left, self.and()?)));
        }
        Ok(left)
    }

    fn and(&mut self) -> Result<Expr> {
        let mut left = self.not()?;
        let mut len = 0;
        while self.take_name("and") {
            len += 1;
            self.check_chain(len)?;
            left = Expr::And(Box::new((left, self.not()?)));
        }
        Ok(left)
    }

    fn not(&mut self) -> Result<Expr> {
        match self.is_name("not") && !self.second_is_name("in") {
            true => {
                self.take_name("not");
                Ok(Expr::Not(Box::new(self.deeper(Self::not)?)))
            }
            false => self.compare(),
        }
    }

    fn compare(&mut self) -> Result<Expr> {
        let first = self.sum()?;
        let mut rest = Vec::new();
        loop {
            let sign = match self.peek() {
                Some(Kind::Sign("==")) => Comparison::Equal,
                Some(Kind::Sign("!=")) => Comparison::NotEqual,
                Some(Kind::Sign("<")) => Comparison::Less,
                Some(Kind::Sign("<=")) => Comparison::LessOrEqual,
                Some(Kind::Sign(">")) => Comparison::Greater,
                Some(Kind::Sign(">=")) => Comparison::GreaterOrEqual,
                Some(Kind::Name(name)) if name == "in" => Comparison::In,
                Some(Kind::Name(name)) if name == "not" && self.second_is_name("in") => {
                    self.next();
                    Comparison::NotIn
                }
                _ => break,
            };
            self.next();
            rest.push((sign, self.sum()?));
        }
        Ok(if rest.is_empty() { first } else { Expr::Compare(Box::new(first), rest) })
    }

    /// Operators of one precedence, from the left.
    fn chain(&mut self, signs: &[(&str, Operator)], part: fn(&mut Self) -> Result<Expr>) -> Result<Expr> {
        let mut left = part(self)?;
        let mut len = 0;
        while let Some(&(_, operator)) = signs.iter().find(|(sign, _)| self.is_sign(sign)) {
            self.next();
            len += 1;
            self.check_chain(len)?;
            left = Expr::Binary(operator, Box::new((left, part(self)?)));
        }
        Ok(left)
    }

    fn sum(&mut self) -> Result<Expr> {
        self.chain(&[("+", Operator::Add), ("-", Operator::Subtract)], Self::concat)
    }

    fn concat(&mut self) -> Result<Expr> {
        let mut parts = vec![self.product()?];
        while self.take_sign("~") {
            parts.push(self.product()?);
        }
        match parts.pop() {
            Some(part) if parts.is_empty() => Ok(part),
            last => {
                parts.extend(last);
                Ok(Expr::Concat(parts))
            }
        }
    }

    fn product(&mut self) -> Result<Expr> {
        let signs = [
            ("*", Operator::Multiply),
            ("/", Operator::Divide),
            ("//", Operator::FloorDivide),
            ("%", Operator::Remainder),
        ];
        self.chain(&signs, Self::power)
    }

    fn power(&mut self) -> Result<Expr> {
        // From the left, unlike Python's.
        self.chain(&[("**", Operator::Power)], |parser| parser.unary(true))
    }

    fn unary(&mut self, with_filters: bool) -> Result<Expr> {
        self.deeper(|parser| {
            let value = if parser.take_sign("-") {
                Expr::Negative(Box::new(parser.unary(false)?))
            } else if parser.take_sign("+") {
                Expr::Positive(Box::new(parser.unary(false)?))
            } else {
                parser.primary()?
            };
            let value = parser.postfix(value)?;
            if with_filters { parser.filters_and_tests(value) } else { Ok(value) }
        })
    }

    fn primary(&mut self) -> Result<Expr> {
        match self.peek() {
            Some(Kind::Name(_)) => {
                let name = self.name()?;
                self.names(&name);
                Ok(match &*name {
                    "true" | "True" => Expr::Bool(true),
                    "false" | "False" => Expr::Bool(false),
                    "none" | "None" => Expr::None,
                    _ => Expr::Name(name),
                })
            }
            Some(Kind::Text(_)) => {
                let mut text = String::new();
                while matches!(self.peek(), Some(Kind::Text(_))) {
                    if let Some(Kind::Text(more)) = self.next() {
                        text.push_str(&more);
                    }
                }
                Ok(Expr::Text(text.into()))
            }
            Some(&Kind::Int(number)) => {
                self.next();
                Ok(Expr::Int(number))
            }
            Some(&Kind::Float(number)) => {
                self.next();
                Ok(Expr::Float(number))
            }
            Some(Kind::Sign("(")) => {
                self.next();
                let value = self.parenthesized()?;
                self.expect_sign(")")?;
                Ok(value)
            }
            Some(Kind::Sign("[")) => {
                self.next();
                let mut items = Vec::new();
                while !self.is_sign("]") {
                    if !items.is_empty() {
                        self.expect_sign(",")?;
                    }
                    if self.is_sign("]") {
                        break;
                    }
                    items.push(self.expression()?);
                }
                self.expect_sign("]")?;
                Ok(Expr::List(items))
            }
            Some(Kind::Sign("{")) => {
                self.next();
                let mut items = Vec::new();
                while !self.is_sign("}") {
                    if !items.is_empty() {
                        self.expect_sign(",")?;
                    }
                    if self.is_sign("}") {
                        break;
                    }
                    let key = self.expression()?;
                    self.expect_sign(":")?;
                    items.push((key, self.expression()?));
                }
                self.expect_sign("}")?;
                Ok(Expr::Dict(items))
            }
            _ => self.unexpected("a value"),
        }
    }

    /// What is in parentheses: a value, or a tuple, which may be empty.
    fn parenthesized(&mut self) -> Result<Expr> {
        if self.is_sign(")") {
            return Ok(Expr::Tuple(Vec::new()));
        }
        self.tuple(true, &[])
    }

    /// A value, or several with commas. `ends` are names that end it.
    pub(super) fn tuple(&mut self, with_conditional: bool, ends: &[&str]) -> Result<Expr> {
        let mut items = Vec::new();
        let mut is_tuple = false;
        loop {
            let ended = match self.peek() {
                None | Some(Kind::TagEnd | Kind::PrintEnd | Kind::Sign(")")) => true,
                Some(Kind::Name(name)) => ends.contains(&&**name),
                _ => false,
            };
            if ended && !items.is_empty() {
                break;
            }
            items.push(if with_conditional { self.expression()? } else { self.deeper(Self::or)? });
            if !self.take_sign(",") {
                break;
            }
            is_tuple = true;
        }
        match items.pop() {
            Some(item) if items.is_empty() && !is_tuple => Ok(item),
            last => {
                items.extend(last);
                Ok(Expr::Tuple(items))
            }
        }
    }

    fn postfix(&mut self, mut value: Expr) -> Result<Expr> {
        let mut len = 0;
        loop {
            len += 1;
            self.check_chain(len)?;
            if self.take_sign(".") {
                value = match self.peek() {
                    Some(&Kind::Int(index)) => {
                        self.next();
                        Expr::Item(Box::new((value, Expr::Int(index))))
                    }
                    _ => Expr::Attribute(Box::new(value), self.name()?),
                };
            } else if self.take_sign("[") {
                value = self.subscript(value)?;
                self.expect_sign("]")?;
            } else if self.is_sign("(") {
                value = Expr::Call(Box::new(value), self.arguments()?);
            } else {
                return Ok(value);
            }
        }
    }

    fn subscript(&mut self, value: Expr) -> Result<Expr> {
        let mut parts = [None, None, None];
        let mut colons = 0;
        loop {
            if self.is_sign("]") && colons > 0 {
                break;
            }
            if self.take_sign(":") {
                colons += 1;
                if colons > 2 {
                    return self.unexpected("\"]\"");
                }
                continue;
            }
            if parts[colons].is_some() {
                break;
            }
            parts[colons] = Some(self.expression()?);
            if colons == 0 && !self.is_sign(":") {
                break;
            }
        }
        if colons > 0 {
            return Ok(Expr::Slice(Box::new(value), Box::new(parts)));
        }
        let [Some(first), ..] = parts else { return self.unexpected("a subscript") };
        let mut items = vec![first];
        let is_tuple = self.is_sign(",");
        while self.take_sign(",") {
            if self.is_sign("]") {
                break;
            }
            items.push(self.expression()?);
        }
        let index = match items.pop() {
            Some(item) if !is_tuple => item,
            last => {
                items.extend(last);
                Expr::Tuple(items)
            }
        };
        Ok(Expr::Item(Box::new((value, index))))
    }

    /// Filters, tests and calls of their results.
    fn filters_and_tests(&mut self, mut value: Expr) -> Result<Expr> {
        let mut len = 0;
        loop {
            len += 1;
            self.check_chain(len)?;
            if self.is_sign("|") {
                value = self.filters(Some(value), false)?;
            } else if self.take_name("is") {
                value = self.test(value)?;
            } else if self.is_sign("(") {
                value = Expr::Call(Box::new(value), self.arguments()?);
            } else {
                return Ok(value);
            }
        }
    }

    /// `|name(arguments)|name`; `inline` if the first has no bar, as in a filter block.
    pub(super) fn filters(&mut self, mut value: Option<Expr>, mut inline: bool) -> Result<Expr> {
        let mut len = 0;
        while inline || self.take_sign("|") {
            inline = false;
            len += 1;
            self.check_chain(len)?;
            let name = self.dotted_name()?;
            let arguments = if self.is_sign("(") { self.arguments()? } else { Arguments::default() };
            value = Some(Expr::Filter(value.map(Box::new), name, arguments));
        }
        match value {
            Some(value) => Ok(value),
            None => self.unexpected("a filter"),
        }
    }

    fn dotted_name(&mut self) -> Result<super::ast::Name> {
        let mut name = self.name()?;
        while self.take_sign(".") {
            name = format!("{name}.{}", self.name()?).into();
        }
        Ok(name)
    }

    fn test(&mut self, value: Expr) -> Result<Expr> {
        let negated = self.take_name("not");
        let name = self.dotted_name()?;
        let arguments = match self.peek() {
            Some(Kind::Sign("(")) => self.arguments()?,
            Some(Kind::Name(word)) if word == "is" => return self.fail("tests cannot be chained with `is`"),
            Some(Kind::Name(word)) if matches!(&**word, "else" | "or" | "and") => Arguments::default(),
            Some(Kind::Name(_) | Kind::Text(_) | Kind::Int(_) | Kind::Float(_) | Kind::Sign("[" | "{")) => {
                let argument = self.deeper(|parser| {
                    let value = parser.primary()?;
                    parser.postfix(value)
                })?;
                Arguments { positional: vec![argument], ..Arguments::default() }
            }
            _ => Arguments::default(),
        };
        let test = Expr::Test(Box::new(value), name, arguments);
        Ok(if negated { Expr::Not(Box::new(test)) } else { test })
    }

    fn arguments(&mut self) -> Result<Arguments> {
        self.expect_sign("(")?;
        let mut out = Arguments::default();
        let mut first = true;
        while !self.is_sign(")") {
            if !first {
                self.expect_sign(",")?;
                if self.is_sign(")") {
                    break;
                }
            }
            first = false;
            let behind_names = !out.named.is_empty() || out.double_star.is_some();
            if self.take_sign("**") {
                if out.double_star.is_some() {
                    return self.fail("two arguments with **");
                }
                out.double_star = Some(Box::new(self.expression()?));
            } else if self.take_sign("*") {
                if out.star.is_some() || out.double_star.is_some() {
                    return self.fail("an argument with * in the wrong place");
                }
                out.star = Some(Box::new(self.expression()?));
            } else if self.named_argument() {
                if out.double_star.is_some() {
                    return self.fail("a named argument behind **");
                }
                let name = self.name()?;
                self.expect_sign("=")?;
                out.named.push((name, self.expression()?));
            } else if behind_names || out.star.is_some() {
                return self.fail("an argument without a name behind one with a name");
            } else {
                out.positional.push(self.expression()?);
            }
        }
        self.expect_sign(")")?;
        Ok(out)
    }
}
