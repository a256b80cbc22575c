//! Parses tokens into statements. Expressions are in [`expressions`](super::expressions).

use std::sync::Arc;

use super::ast::{Expr, For, Macro, Name, Statement, StatementKind, Takes, Target};
use super::error::{Result, TemplateError};
use super::lexer::{Kind, Token, tokens};

/// Parentheses, brackets and blocks may be nested this deep, and chains of operators this long.
const MAX_DEPTH: usize = 120;

/// Words that cannot be names of variables.
const CONSTANTS: [&str; 6] = ["true", "false", "none", "True", "False", "None"];

/// Parses a template, and returns whether it uses the name `messages`.
pub(super) fn parse(source: &str) -> Result<(Vec<Statement>, bool)> {
    let tokens = tokens(source)?;
    let mut parser = Parser { tokens, at: 0, depth: 0, takes: Vec::new(), loops: 0, names_messages: false };
    let body = parser.body(&[])?;
    Ok((body, parser.names_messages))
}

pub(super) struct Parser {
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
    /// What the bodies of the enclosing macros use.
    takes: Vec<Takes>,
    /// The number of enclosing loops within the current macro.
    loops: usize,
    names_messages: bool,
}

impl Parser {
    pub(super) fn peek(&self) -> Option<&Kind> {
        self.tokens.get(self.at).map(|token| &token.kind)
    }

    pub(super) fn line(&self) -> usize {
        let last = self.at.min(self.tokens.len().saturating_sub(1));
        self.tokens.get(last).map_or(1, |token| token.line)
    }

    pub(super) fn next(&mut self) -> Option<Kind> {
        let token = self.tokens.get_mut(self.at)?;
        self.at += 1;
        // No token is ever read twice, so its name can be moved out.
        Some(std::mem::replace(&mut token.kind, Kind::Sign("")))
    }

    pub(super) fn fail<T>(&self, message: impl Into<String>) -> Result<T> {
        Err(TemplateError::new(message).at(self.line()))
    }

    pub(super) fn unexpected<T>(&self, expected: &str) -> Result<T> {
        let found = match self.peek() {
            None => "the end of the template".to_owned(),
            Some(Kind::Data(_) | Kind::TagEnd | Kind::PrintEnd) => "the end of the tag".to_owned(),
            Some(Kind::TagBegin | Kind::PrintBegin) => "a tag".to_owned(),
            Some(Kind::Name(name)) => format!("{name:?}"),
            Some(Kind::Int(number)) => number.to_string(),
            Some(Kind::Float(number)) => number.to_string(),
            Some(Kind::Text(text)) => format!("the string {text:?}"),
            Some(Kind::Sign(sign)) => format!("{sign:?}"),
        };
        self.fail(format!("found {found}, expected {expected}"))
    }

    pub(super) fn is_sign(&self, sign: &str) -> bool {
        matches!(self.peek(), Some(Kind::Sign(found)) if *found == sign)
    }

    pub(super) fn is_name(&self, name: &str) -> bool {
        matches!(self.peek(), Some(Kind::Name(found)) if found == name)
    }

    /// Whether the token after the next is this name.
    pub(super) fn second_is_name(&self, name: &str) -> bool {
        matches!(self.tokens.get(self.at + 1), Some(Token { kind: Kind::Name(found), .. }) if found == name)
    }

    /// Whether a name and an equals sign follow.
    pub(super) fn named_argument(&self) -> bool {
        let second = self.tokens.get(self.at + 1).map(|token| &token.kind);
        matches!(self.peek(), Some(Kind::Name(_))) && second == Some(&Kind::Sign("="))
    }

    pub(super) fn take_sign(&mut self, sign: &str) -> bool {
        let found = self.is_sign(sign);
        self.at += usize::from(found);
        found
    }

    pub(super) fn take_name(&mut self, name: &str) -> bool {
        let found = self.is_name(name);
        self.at += usize::from(found);
        found
    }

    pub(super) fn expect_sign(&mut self, sign: &str) -> Result<()> {
        if self.take_sign(sign) { Ok(()) } else { self.unexpected(&format!("{sign:?}")) }
    }

    fn expect_name(&mut self, name: &str) -> Result<()> {
        if self.take_name(name) { Ok(()) } else { self.unexpected(&format!("{name:?}")) }
    }

    pub(super) fn name(&mut self) -> Result<Name> {
        match self.peek() {
            Some(Kind::Name(_)) => match self.next() {
                Some(Kind::Name(name)) => Ok(name.into()),
                _ => self.unexpected("a name"),
            },
            _ => self.unexpected("a name"),
        }
    }

    /// Notes that an expression uses a name that a macro defines only if it is used.
    pub(super) fn names(&mut self, name: &str) {
        self.names_messages |= name == "messages";
        if let Some(takes) = self.takes.last_mut() {
            match name {
                "varargs" => takes.varargs = true,
                "kwargs" => takes.kwargs = true,
                "caller" => takes.caller = true,
                _ => {}
            }
        }
    }

    /// Parses a part one level deeper.
    pub(super) fn deeper<T>(&mut self, part: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return self.fail(format!("expressions and blocks are nested more than {MAX_DEPTH} deep"));
        }
        let result = part(self);
        self.depth -= 1;
        result
    }

    /// Checks the length of a chain of operators, since the tree is as deep as the chain is long.
    pub(super) fn check_chain(&self, len: usize) -> Result<()> {
        match self.depth + len > MAX_DEPTH {
            true => self.fail(format!("a chain of more than {MAX_DEPTH} operators")),
            false => Ok(()),
        }
    }

    /// Statements up to a tag of one of these names, which is left unread; up to the end if there are none.
    fn body(&mut self, ends: &[&str]) -> Result<Vec<Statement>> {
        self.deeper(|parser| {
            let mut out = Vec::new();
            loop {
                let line = parser.line();
                match parser.next() {
                    None if ends.is_empty() => return Ok(out),
                    None => return parser.fail(format!("{{% {} %}} is missing", ends[ends.len() - 1])),
                    Some(Kind::Data(text)) => out.push(Statement { line, kind: StatementKind::Text(text) }),
                    Some(Kind::PrintBegin) => {
                        let value = parser.tuple(true, &[])?;
                        parser.print_end()?;
                        out.push(Statement { line, kind: StatementKind::Print(value) });
                    }
                    Some(Kind::TagBegin) => {
                        if matches!(parser.peek(), Some(Kind::Name(name)) if ends.contains(&&**name)) {
                            return Ok(out);
                        }
                        parser.statement(line, &mut out)?;
                    }
                    Some(_) => return parser.unexpected("text or a tag"),
                }
            }
        })
    }

    fn print_end(&mut self) -> Result<()> {
        match self.peek() {
            Some(Kind::PrintEnd) => {
                self.at += 1;
                Ok(())
            }
            _ => self.unexpected("\"}}\""),
        }
    }

    fn tag_end(&mut self) -> Result<()> {
        match self.peek() {
            Some(Kind::TagEnd) => {
                self.at += 1;
                Ok(())
            }
            _ => self.unexpected("\"%}\""),
        }
    }

    fn at_tag_end(&self) -> bool {
        matches!(self.peek(), Some(Kind::TagEnd))
    }

    /// Reads the rest of a block's tag, its body, and the tag that ends it.
    fn block(&mut self, end: &str) -> Result<Vec<Statement>> {
        self.tag_end()?;
        let body = self.body(&[end])?;
        self.expect_name(end)?;
        Ok(body)
    }

    fn statement(&mut self, line: usize, out: &mut Vec<Statement>) -> Result<()> {
        let tag = self.name()?;
        let kind = match &*tag {
            "for" => self.for_loop()?,
            "if" => self.if_block()?,
            "set" => self.set()?,
            "with" => self.with()?,
            "macro" => {
                let name = self.target_name()?;
                let parameters = self.parameters()?;
                StatementKind::Macro(Arc::new(self.macro_body(name, parameters, "endmacro")?))
            }
            "call" => {
                let parameters = if self.is_sign("(") { self.parameters()? } else { Vec::new() };
                let called = self.expression()?;
                if !matches!(called, Expr::Call(..)) {
                    return self.unexpected("a call");
                }
                StatementKind::CallBlock(Arc::new(self.macro_body("".into(), parameters, "endcall")?), called)
            }
            "filter" => {
                let filter = self.filters(None, true)?;
                StatementKind::FilterBlock(filter, self.block("endfilter")?)
            }
            "print" => {
                while !self.at_tag_end() {
                    let value = self.expression()?;
                    out.push(Statement { line, kind: StatementKind::Print(value) });
                    if !self.at_tag_end() {
                        self.expect_sign(",")?;
                    }
                }
                return self.tag_end();
            }
            "break" | "continue" => {
                if self.loops == 0 {
                    return self.fail(format!("{{% {tag} %}} outside of a loop"));
                }
                if &*tag == "break" { StatementKind::Break } else { StatementKind::Continue }
            }
            // Used in training; it has no effect on a prompt.
            "generation" => {
                let takes = self.takes.len();
                let body = self.caller_block("endgeneration")?;
                self.takes.truncate(takes);
                StatementKind::Scope(body)
            }
            "autoescape" => {
                self.expression()?;
                StatementKind::Scope(self.block("endautoescape")?)
            }
            "block" => {
                let name = self.name()?;
                let scoped = self.take_name("scoped");
                self.take_name("required");
                let loops = std::mem::take(&mut self.loops);
                self.tag_end()?;
                let body = self.body(&["endblock"])?;
                self.expect_name("endblock")?;
                self.loops = loops;
                self.take_name(&name);
                StatementKind::Block { body, scoped }
            }
            "include" | "import" | "from" | "extends" => {
                while !self.at_tag_end() {
                    if self.next().is_none() {
                        return self.unexpected("\"%}\"");
                    }
                }
                let tag = ["include", "import", "from", "extends"].into_iter().find(|word| *word == &*tag);
                StatementKind::OtherTemplate(tag.unwrap_or("include"))
            }
            _ => return self.fail(format!("there is no tag {{% {tag} %}} here")),
        };
        self.tag_end()?;
        out.push(Statement { line, kind });
        Ok(())
    }

    /// A block that is a function of its own, so it cannot break out of enclosing loops.
    fn caller_block(&mut self, end: &str) -> Result<Vec<Statement>> {
        let loops = std::mem::take(&mut self.loops);
        let body = self.block(end);
        self.loops = loops;
        body
    }

    fn for_loop(&mut self) -> Result<StatementKind> {
        let target = self.target(&["in"])?;
        self.expect_name("in")?;
        let items = self.tuple(false, &["recursive"])?;
        let condition = if self.take_name("if") { Some(self.expression()?) } else { None };
        let recursive = self.take_name("recursive");
        self.tag_end()?;
        self.loops += 1;
        let body = self.body(&["endfor", "else"]);
        self.loops -= 1;
        let body = body?;
        let mut otherwise = Vec::new();
        if self.take_name("else") {
            self.tag_end()?;
            otherwise = self.body(&["endfor"])?;
        }
        self.expect_name("endfor")?;
        Ok(StatementKind::For(Arc::new(For { target, items, condition, recursive, body, otherwise })))
    }

    fn if_block(&mut self) -> Result<StatementKind> {
        let mut branches = Vec::new();
        let mut otherwise = Vec::new();
        loop {
            let test = self.tuple(false, &[])?;
            self.tag_end()?;
            let body = self.body(&["elif", "else", "endif"])?;
            branches.push((test, body));
            if self.take_name("elif") {
                continue;
            }
            if self.take_name("else") {
                self.tag_end()?;
                otherwise = self.body(&["endif"])?;
            }
            self.expect_name("endif")?;
            return Ok(StatementKind::If(branches, otherwise));
        }
    }

    fn set(&mut self) -> Result<StatementKind> {
        let target = self.target(&["in"])?;
        if self.take_sign("=") {
            return Ok(StatementKind::Set(target, self.tuple(true, &[])?));
        }
        let filter = if self.is_sign("|") { Some(self.filters(None, false)?) } else { None };
        let body = self.block("endset")?;
        Ok(StatementKind::SetBlock(target, filter, body))
    }

    fn with(&mut self) -> Result<StatementKind> {
        let mut values = Vec::new();
        while !self.at_tag_end() {
            if !values.is_empty() {
                self.expect_sign(",")?;
            }
            let target = Target::Name(self.target_name()?);
            self.expect_sign("=")?;
            values.push((target, self.expression()?));
        }
        Ok(StatementKind::With(values, self.block("endwith")?))
    }

    fn target_name(&mut self) -> Result<Name> {
        let name = self.name()?;
        match CONSTANTS.contains(&&*name) {
            true => self.fail(format!("{name} cannot be assigned to")),
            false => Ok(name),
        }
    }

    /// One target or several with commas.
    fn target(&mut self, ends: &[&str]) -> Result<Target> {
        let mut targets = Vec::new();
        let mut is_tuple = false;
        loop {
            let at_end = matches!(self.peek(), Some(Kind::Name(name)) if ends.contains(&&**name));
            if !targets.is_empty() && (at_end || self.is_sign("=") || self.is_sign(")") || self.at_tag_end())
            {
                break;
            }
            targets.push(if self.take_sign("(") {
                let inner = self.deeper(|parser| parser.target(&[]))?;
                self.expect_sign(")")?;
                inner
            } else {
                let name = self.target_name()?;
                if self.take_sign(".") { Target::Attribute(name, self.name()?) } else { Target::Name(name) }
            });
            if !self.take_sign(",") {
                break;
            }
            is_tuple = true;
        }
        match targets.pop() {
            Some(target) if targets.is_empty() && !is_tuple => Ok(target),
            Some(target) => {
                targets.push(target);
                Ok(Target::Tuple(targets))
            }
            None => self.unexpected("a name"),
        }
    }

    fn parameters(&mut self) -> Result<Vec<(Name, Option<Expr>)>> {
        self.expect_sign("(")?;
        let mut out: Vec<(Name, Option<Expr>)> = Vec::new();
        while !self.is_sign(")") {
            if !out.is_empty() {
                self.expect_sign(",")?;
            }
            let name = self.target_name()?;
            if self.take_sign("=") {
                out.push((name, Some(self.expression()?)));
            } else if out.iter().any(|(_, default)| default.is_some()) {
                return self.fail("a parameter without a default behind one with a default");
            } else {
                out.push((name, None));
            }
        }
        self.expect_sign(")")?;
        Ok(out)
    }

    fn macro_body(&mut self, name: Name, parameters: Vec<(Name, Option<Expr>)>, end: &str) -> Result<Macro> {
        self.takes.push(Takes::default());
        let body = self.caller_block(end)?;
        let takes = self.takes.pop().unwrap_or_default();
        Ok(Macro { name, parameters, body, takes })
    }
}
