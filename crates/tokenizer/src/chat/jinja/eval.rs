//! The value of an expression.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use super::arguments::Args;
use super::ast::{Arguments, Comparison, Expr, Name};
use super::error::{Result, TemplateError, fail};
use super::operators;
use super::text::str;
use super::time::{DateTime, strftime};
use super::value::{Cycler, Dict, Function, Joiner, LoopState, Range, Scope, Value, compare, equal};
use super::{filters, methods, predicates};

/// The most steps that a template may take: far more than a long conversation needs, but it stops endless
/// loops.
const FUEL: u64 = 10_000_000;
/// How deep expressions, statements and calls may be nested.
const MAX_DEPTH: usize = 250;
/// How deep lists may be nested.
const MAX_NESTED: usize = 200;
/// Items of a range, as in Jinja2's sandbox.
const MAX_RANGE: usize = 100_000;

/// A template that is running.
pub(super) struct Interpreter<'a> {
    pub(super) scope: Rc<Scope>,
    pub(super) root: Rc<Scope>,
    /// `None`: the current time.
    now: Option<DateTime>,
    fuel: u64,
    depth: usize,
    /// Namespaces may contain themselves, so they are emptied at the end.
    namespaces: Vec<Rc<RefCell<Dict>>>,
    pub(super) scopes: Vec<Rc<Scope>>,
    functions: &'a HashMap<&'static str, Function>,
}

impl Drop for Interpreter<'_> {
    fn drop(&mut self) {
        for namespace in &self.namespaces {
            if let Ok(mut attributes) = namespace.try_borrow_mut() {
                attributes.clear();
            }
        }
        for scope in &self.scopes {
            scope.variables.borrow_mut().clear();
        }
    }
}

impl<'a> Interpreter<'a> {
    pub(super) fn new(
        variables: HashMap<Name, Value>,
        now: Option<DateTime>,
        functions: &'a HashMap<&'static str, Function>,
    ) -> Self {
        let root = Rc::new(Scope { variables: RefCell::new(variables), parent: None });
        Self {
            scope: root.clone(),
            root: root.clone(),
            now,
            fuel: FUEL,
            depth: 0,
            namespaces: Vec::new(),
            scopes: vec![root],
            functions,
        }
    }

    /// Counts steps.
    pub(super) fn charge(&mut self, steps: u64) -> Result<()> {
        match self.fuel.checked_sub(steps) {
            Some(fuel) => {
                self.fuel = fuel;
                Ok(())
            }
            None => fail("the template runs too long"),
        }
    }

    /// Runs a part one level deeper.
    pub(super) fn deeper<T>(&mut self, part: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.charge(1)?;
        if self.depth == MAX_DEPTH {
            return fail("the template calls itself too often");
        }
        self.depth += 1;
        let result = part(self);
        self.depth -= 1;
        result
    }

    pub(super) fn lookup(&self, name: &str) -> Value {
        let mut scope = Some(&self.scope);
        while let Some(found) = scope {
            if let Some(value) = found.variables.borrow().get(name) {
                return value.clone();
            }
            scope = found.parent.as_ref();
        }
        match self.functions.get(name) {
            Some(function) => Value::Function(*function),
            None => Value::undefined(name),
        }
    }

    pub(super) fn eval(&mut self, expr: &Expr) -> Result {
        let value = self.deeper(|interpreter| interpreter.value(expr))?;
        if !matches!(expr, Expr::Name(_) | Expr::Text(_) | Expr::Attribute(..) | Expr::Item(_)) {
            self.charge(value.weight())?;
            if value.depth() > MAX_NESTED {
                return fail("lists are nested too deeply");
            }
        }
        Ok(value)
    }

    fn all(&mut self, exprs: &[Expr]) -> Result<Vec<Value>> {
        exprs.iter().map(|expr| self.eval(expr)).collect()
    }

    fn value(&mut self, expr: &Expr) -> Result {
        Ok(match expr {
            Expr::None => Value::None,
            Expr::Bool(value) => Value::Bool(*value),
            Expr::Int(value) => Value::Int(*value),
            Expr::Float(value) => Value::Float(*value),
            Expr::Text(text) => Value::text(&**text),
            Expr::Name(name) => self.lookup(name),
            Expr::Tuple(items) => Value::tuple(self.all(items)?),
            Expr::List(items) => Value::list(self.all(items)?),
            Expr::Dict(items) => {
                let mut entries = Vec::with_capacity(items.len());
                for (key, value) in items {
                    entries.push((self.eval(key)?, self.eval(value)?));
                }
                Value::dict(entries)?
            }
            Expr::Negative(value) => operators::sign(&self.eval(value)?, true)?,
            Expr::Positive(value) => operators::sign(&self.eval(value)?, false)?,
            Expr::Not(value) => Value::Bool(!self.eval(value)?.is_true()),
            Expr::And(pair) => {
                let left = self.eval(&pair.0)?;
                if left.is_true() { self.eval(&pair.1)? } else { left }
            }
            Expr::Or(pair) => {
                let left = self.eval(&pair.0)?;
                if left.is_true() { left } else { self.eval(&pair.1)? }
            }
            Expr::Binary(operator, pair) => {
                let (left, right) = (self.eval(&pair.0)?, self.eval(&pair.1)?);
                operators::binary(*operator, &left, &right)?
            }
            Expr::Concat(parts) => operators::concat(&self.all(parts)?)?,
            Expr::Compare(first, rest) => self.comparisons(first, rest)?,
            Expr::If { test, yes, no } => match (self.eval(test)?.is_true(), no) {
                (true, _) => self.eval(yes)?,
                (false, Some(no)) => self.eval(no)?,
                (false, None) => Value::undefined("the value of an `if` without `else`"),
            },
            Expr::Attribute(value, name) => {
                let value = self.eval(value)?;
                self.attribute(&value, name)?
            }
            Expr::Item(pair) => {
                let (value, index) = (self.eval(&pair.0)?, self.eval(&pair.1)?);
                self.item(&value, &index)?
            }
            Expr::Slice(value, parts) => self.slice(value, parts)?,
            Expr::Call(called, arguments) => self.call_expr(called, arguments, None)?,
            Expr::Filter(value, name, arguments) => {
                let Some(value) = value else { return fail("a filter without a value") };
                let value = self.eval(value)?;
                self.filter(name, &value, arguments)?
            }
            Expr::Test(value, name, arguments) => {
                let value = self.eval(value)?;
                let args = self.arguments(arguments)?;
                Value::Bool(predicates::test(self, name, &value, args)?)
            }
        })
    }

    #[inline(never)]
    fn comparisons(&mut self, first: &Expr, rest: &[(Comparison, Expr)]) -> Result {
        use std::cmp::Ordering::{Equal, Greater, Less};
        let mut left = self.eval(first)?;
        for (comparison, right) in rest {
            let right = self.eval(right)?;
            let ordered = |orders: &[std::cmp::Ordering]| -> Result<bool> {
                Ok(compare(&left, &right)?.is_some_and(|order| orders.contains(&order)))
            };
            let holds = match comparison {
                Comparison::Equal => equal(&left, &right),
                Comparison::NotEqual => !equal(&left, &right),
                Comparison::Less => ordered(&[Less])?,
                Comparison::LessOrEqual => ordered(&[Less, Equal])?,
                Comparison::Greater => ordered(&[Greater])?,
                Comparison::GreaterOrEqual => ordered(&[Greater, Equal])?,
                Comparison::In => operators::contains(&right, &left)?,
                Comparison::NotIn => !operators::contains(&right, &left)?,
            };
            if !holds {
                return Ok(Value::Bool(false));
            }
            left = right;
        }
        Ok(Value::Bool(true))
    }

    #[inline(never)]
    fn slice(&mut self, value: &Expr, parts: &[Option<Expr>; 3]) -> Result {
        let value = self.eval(value)?;
        let mut bounds = [None, None, None];
        for (bound, part) in bounds.iter_mut().zip(parts) {
            *bound = part.as_ref().map(|part| self.eval(part)).transpose()?;
        }
        value.defined()?;
        Ok(operators::slice(&value, bounds)?.unwrap_or_else(|| Value::undefined("a slice of what has none")))
    }

    #[inline(never)]
    pub(super) fn filter(&mut self, name: &str, value: &Value, arguments: &Arguments) -> Result {
        let args = self.arguments(arguments)?;
        filters::filter(self, name, value, args)
    }

    #[inline(never)]
    fn arguments(&mut self, arguments: &Arguments) -> Result<Args> {
        let mut args = Args::of(self.all(&arguments.positional)?);
        for (name, value) in &arguments.named {
            let value = self.eval(value)?;
            args.named.push((name.clone(), value));
        }
        if let Some(star) = &arguments.star {
            args.positional.extend(self.eval(star)?.iterate()?);
        }
        if let Some(double_star) = &arguments.double_star {
            let Value::Dict(dict) = self.eval(double_star)? else { return fail("** needs a dict") };
            for (key, value) in dict.entries() {
                let Some(key) = key.as_text() else { return fail("names of arguments are texts") };
                if args.named.iter().any(|(name, _)| &**name == key) {
                    return fail(format!("two values for the argument {key:?}"));
                }
                args.named.push((key.into(), value.clone()));
            }
        }
        Ok(args)
    }

    /// Evaluates a call; it has a caller if a call block makes it.
    #[inline(never)]
    pub(super) fn call_expr(
        &mut self,
        called: &Expr,
        arguments: &Arguments,
        caller: Option<Value>,
    ) -> Result {
        let called = self.eval(called)?;
        let mut args = self.arguments(arguments)?;
        if let Some(caller) = caller {
            args.named.push(("caller".into(), caller));
        }
        self.call(&called, args)
    }

    fn call(&mut self, called: &Value, mut args: Args) -> Result {
        match called {
            Value::Function(function) => self.function(*function, args),
            Value::Method(bound) => methods::call(self, &bound.0, bound.1, args),
            Value::Macro(value) => self.call_macro(&value.clone(), args),
            Value::Loop(state) => {
                let items = args.require("iterable")?;
                args.finish()?;
                self.call_loop(&state.clone(), &items)
            }
            Value::Joiner(joiner) => {
                args.finish()?;
                Ok(if joiner.used.replace(true) { joiner.separator.clone() } else { Value::text("") })
            }
            _ => fail(format!("{} cannot be called", called.described())),
        }
    }

    #[inline(never)]
    fn function(&mut self, function: Function, mut args: Args) -> Result {
        let result = match function {
            Function::Range => {
                let mut numbers = Vec::new();
                while let Some(number) = args.positional.pop_front() {
                    match number.as_int() {
                        Some(number) => numbers.push(number),
                        None => return fail(format!("a range of {}", number.described())),
                    }
                }
                let (start, stop, step) = match numbers[..] {
                    [stop] => (0, stop, 1),
                    [start, stop] => (start, stop, 1),
                    [_, _, 0] => return fail("a range of steps of 0"),
                    [start, stop, step] => (start, stop, step),
                    _ => return fail("a range takes one to three numbers"),
                };
                let distance = if step > 0 { stop.checked_sub(start) } else { start.checked_sub(stop) };
                let len = match distance {
                    Some(distance) if distance <= 0 => 0,
                    Some(distance) => (distance - 1) / step.saturating_abs() + 1,
                    None => i128::MAX,
                };
                if len > MAX_RANGE as i128 {
                    return fail(format!("a range of more than {MAX_RANGE} items"));
                }
                Value::Range(Range { start, stop, step, len: len as usize })
            }
            Function::Dict => Value::Dict(Rc::new(self.new_dict(&mut args)?)),
            Function::Namespace => {
                self.charge(20)?;
                let namespace = Rc::new(RefCell::new(self.new_dict(&mut args)?));
                self.namespaces.push(namespace.clone());
                Value::Namespace(namespace)
            }
            Function::Cycler => {
                let items: Vec<Value> = std::mem::take(&mut args.positional).into();
                if items.is_empty() {
                    return fail("a cycler without items");
                }
                Value::Cycler(Rc::new(Cycler { items, at: 0.into() }))
            }
            Function::Joiner => {
                let separator = args.take("sep")?.unwrap_or_else(|| Value::text(", "));
                Value::Joiner(Rc::new(Joiner { separator, used: false.into() }))
            }
            Function::Lipsum => return fail("lipsum() gives another text each time and is not offered"),
            Function::RaiseException => {
                let message = args.require("message")?;
                args.finish()?;
                return Err(TemplateError::refusal(str(&message)?));
            }
            Function::Itself => return fail("a template cannot be called"),
            Function::StrftimeNow => {
                let format = args.require_text("format")?;
                Value::text(strftime(&format, self.now.unwrap_or_else(DateTime::local)))
            }
        };
        args.finish()?;
        Ok(result)
    }

    /// `dict(mapping or pairs, **named)`.
    fn new_dict(&mut self, args: &mut Args) -> Result<Dict> {
        let mut out = Dict::default();
        match args.positional.pop_front() {
            None => {}
            Some(Value::Dict(dict)) => out = (*dict).clone(),
            Some(pairs) => {
                for pair in pairs.defined()?.iterate()? {
                    match <[Value; 2]>::try_from(pair.iterate()?) {
                        Ok([key, value]) => out.insert(key, value)?,
                        Err(_) => return fail("a dict is made of pairs"),
                    }
                }
            }
        }
        for (name, value) in std::mem::take(&mut args.named) {
            out.insert(Value::text(&*name), value)?;
        }
        Ok(out)
    }

    /// `value.name`: a method or an attribute, or else an item.
    pub(super) fn attribute(&self, value: &Value, name: &str) -> Result {
        let found = self.attribute_only(value, name)?;
        match found {
            Value::Undefined(_) => Ok(operators::item(value, &Value::text(name))?.unwrap_or(found)),
            _ => Ok(found),
        }
    }

    /// `value|attr(name)`.
    pub(super) fn attribute_only(&self, value: &Value, name: &str) -> Result {
        value.defined()?;
        if let Some(method) = methods::find(value, name) {
            return Ok(Value::Method(Rc::new((value.clone(), method))));
        }
        let found = match value {
            Value::Namespace(attributes) => attributes.borrow().get_text(name).cloned(),
            Value::Loop(state) => loop_attribute(state, name),
            Value::Tuple(items) => {
                let place = items.names.iter().position(|found| *found == name);
                place.map(|place| items.items[place].clone())
            }
            Value::Cycler(cycler) if name == "current" => Some(cycler.items[cycler.at.get()].clone()),
            Value::Int(_) | Value::Bool(_) => match name {
                "real" | "numerator" => value.as_int().map(Value::Int),
                "imag" => Some(Value::Int(0)),
                "denominator" => Some(Value::Int(1)),
                _ => None,
            },
            Value::Float(_) => match name {
                "real" => Some(value.clone()),
                "imag" => Some(Value::Float(0.0)),
                _ => None,
            },
            Value::Range(range) => match name {
                "start" => Some(Value::Int(range.start)),
                "stop" => Some(Value::Int(range.stop)),
                "step" => Some(Value::Int(range.step)),
                _ => None,
            },
            Value::Macro(value) => match name {
                "name" if value.definition.name.is_empty() => Some(Value::None),
                "name" => Some(Value::text(&*value.definition.name)),
                "arguments" => {
                    let names = value.definition.parameters.iter().map(|(name, _)| Value::text(&**name));
                    Some(Value::tuple(names.collect()))
                }
                "catch_kwargs" => Some(Value::Bool(value.definition.takes.kwargs)),
                "catch_varargs" => Some(Value::Bool(value.definition.takes.varargs)),
                "caller" => Some(Value::Bool(value.definition.takes.caller)),
                _ => None,
            },
            _ => None,
        };
        Ok(found.unwrap_or_else(|| Value::undefined(&format!("{name:?} of a {}", value.kind()))))
    }

    /// `value[index]`: an item, or else a method or an attribute.
    pub(super) fn item(&self, value: &Value, index: &Value) -> Result {
        value.defined()?;
        if let Some(item) = operators::item(value, index)? {
            return Ok(item);
        }
        match index.as_text() {
            Some(name) => self.attribute_only(value, name),
            None => Ok(Value::undefined(&format!("an item of a {}", value.kind()))),
        }
    }
}

/// The attributes of `loop`.
fn loop_attribute(state: &LoopState, name: &str) -> Option<Value> {
    let (index, len) = (state.index.get(), state.items.len());
    let number = |n: usize| Some(Value::Int(n as i128));
    let item = |at: Option<usize>, what: &str| {
        let item = at.and_then(|at| state.items.get(at)).cloned();
        Some(item.unwrap_or_else(|| Value::undefined(what)))
    };
    match name {
        "index" => number(index + 1),
        "index0" => number(index),
        "revindex" => number(len - index),
        "revindex0" => number(len - index - 1),
        "first" => Some(Value::Bool(index == 0)),
        "last" => Some(Value::Bool(index + 1 == len)),
        "length" => number(len),
        "depth" => number(state.depth + 1),
        "depth0" => number(state.depth),
        "previtem" => item(index.checked_sub(1), "there is no previous item"),
        "nextitem" => item(Some(index + 1), "there is no next item"),
        _ => None,
    }
}
