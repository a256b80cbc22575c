//! Executing statements.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use super::arguments::Args;
use super::ast::{Expr, For, Macro, Name, Statement, StatementKind, Target};
use super::error::{Result, fail};
use super::eval::Interpreter;
use super::operators::check_size;
use super::text::write_str;
use super::value::{LoopState, MacroValue, Scope, Value};

/// How a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    On,
    Break,
    Continue,
}

impl Interpreter<'_> {
    /// Runs a body in the present scope.
    pub(super) fn body(&mut self, body: &[Statement], out: &mut String) -> Result<Flow> {
        for statement in body {
            let flow = self
                .deeper(|interpreter| interpreter.statement(&statement.kind, out))
                .map_err(|error| error.at(statement.line))?;
            if flow != Flow::On {
                return Ok(flow);
            }
        }
        Ok(Flow::On)
    }

    /// Runs a part in a scope of its own.
    fn scoped<T>(&mut self, parent: Rc<Scope>, part: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let scope = Rc::new(Scope { variables: RefCell::default(), parent: Some(parent) });
        let outer = std::mem::replace(&mut self.scope, scope);
        let result = part(self);
        self.scope = outer;
        result
    }

    fn inner<T>(&mut self, part: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.scoped(self.scope.clone(), part)
    }

    fn assign(&mut self, name: &Name, value: Value) {
        self.scope.variables.borrow_mut().insert(name.clone(), value);
    }

    fn set(&mut self, target: &Target, value: Value) -> Result<()> {
        match target {
            Target::Name(name) => self.assign(name, value),
            Target::Attribute(name, attribute) => match self.lookup(name) {
                Value::Namespace(attributes) => {
                    attributes.borrow_mut().insert(Value::text(&**attribute), value)?;
                }
                other => return fail(format!("{} is no namespace", other.described())),
            },
            Target::Tuple(targets) => {
                let values = value.defined()?.iterate()?;
                if values.len() != targets.len() {
                    return fail(format!("{} values for {} names", values.len(), targets.len()));
                }
                for (target, value) in targets.iter().zip(values) {
                    self.set(target, value)?;
                }
            }
        }
        Ok(())
    }

    fn statement(&mut self, statement: &StatementKind, out: &mut String) -> Result<Flow> {
        match statement {
            StatementKind::Text(text) => {
                self.charge(text.len() as u64 / 16)?;
                out.push_str(text);
            }
            StatementKind::Print(value) => {
                let value = self.eval(value)?;
                self.charge(value.weight())?;
                write_str(&value, out)?;
            }
            StatementKind::If(branches, otherwise) => {
                for (test, body) in branches {
                    if self.eval(test)?.is_true() {
                        return self.body(body, out);
                    }
                }
                return self.body(otherwise, out);
            }
            StatementKind::For(node) => {
                let items = self.eval(&node.items)?;
                let scope = self.scope.clone();
                self.run_loop(node, &items, &scope, 0, out)?;
            }
            StatementKind::Set(target, value) => {
                let value = self.eval(value)?;
                self.set(target, value)?;
            }
            StatementKind::Break => return Ok(Flow::Break),
            StatementKind::Continue => return Ok(Flow::Continue),
            other => return self.block(other, out),
        }
        check_size(out.len())?;
        Ok(Flow::On)
    }

    #[inline(never)]
    fn block(&mut self, statement: &StatementKind, out: &mut String) -> Result<Flow> {
        match statement {
            StatementKind::SetBlock(target, filter, body) => {
                let text = self.captured(body)?;
                let text = match filter {
                    Some(filter) => self.filter_block(filter, text)?,
                    None => text,
                };
                self.set(target, text)?;
            }
            StatementKind::With(values, body) => {
                let mut found = Vec::new();
                for (target, value) in values {
                    found.push((target, self.eval(value)?));
                }
                return self.inner(|interpreter| {
                    for (target, value) in found {
                        interpreter.set(target, value)?;
                    }
                    interpreter.body(body, out)
                });
            }
            StatementKind::Macro(definition) => {
                let value = MacroValue { definition: definition.clone(), scope: self.scope.clone() };
                // The scope holds the macro, and the macro holds its scope.
                self.scopes.push(self.scope.clone());
                self.assign(&definition.name, Value::Macro(Rc::new(value)));
            }
            StatementKind::CallBlock(definition, call) => {
                let caller = MacroValue { definition: definition.clone(), scope: self.scope.clone() };
                let Expr::Call(called, arguments) = call else { return fail("a call block calls nothing") };
                let text = self.call_expr(called, arguments, Some(Value::Macro(Rc::new(caller))))?;
                write_str(&text, out)?;
            }
            StatementKind::FilterBlock(filter, body) => {
                let text = self.captured(body)?;
                let text = self.filter_block(filter, text)?;
                write_str(&text, out)?;
            }
            StatementKind::Scope(body) => return self.inner(|interpreter| interpreter.body(body, out)),
            StatementKind::Block { body, scoped } => {
                let parent = if *scoped { self.scope.clone() } else { self.root.clone() };
                return self.scoped(parent, |interpreter| interpreter.body(body, out));
            }
            StatementKind::OtherTemplate(tag) => {
                return fail(format!("{{% {tag} %}}: there are no other templates"));
            }
            _ => {}
        }
        check_size(out.len())?;
        Ok(Flow::On)
    }

    /// The text of a body.
    fn captured(&mut self, body: &[Statement]) -> Result {
        let mut text = String::new();
        self.inner(|interpreter| interpreter.body(body, &mut text))?;
        Ok(Value::text(text))
    }

    /// Applies the filters of a filter block to a text.
    fn filter_block(&mut self, filter: &Expr, text: Value) -> Result {
        let Expr::Filter(before, name, arguments) = filter else {
            return fail("a filter block without filter");
        };
        let value = match before {
            Some(before) => self.deeper(|interpreter| interpreter.filter_block(before, text))?,
            None => text,
        };
        self.filter(name, &value, arguments)
    }

    #[inline(never)]
    fn run_loop(
        &mut self,
        node: &Arc<For>,
        items: &Value,
        scope: &Rc<Scope>,
        depth: usize,
        out: &mut String,
    ) -> Result<()> {
        let mut items = items.iterate()?;
        if let Some(condition) = &node.condition {
            let mut kept = Vec::new();
            for item in items {
                let passes = self.scoped(scope.clone(), |interpreter| {
                    interpreter.set(&node.target, item.clone())?;
                    interpreter.eval(condition)
                })?;
                if passes.is_true() {
                    kept.push(item);
                }
            }
            items = kept;
        }
        self.charge(items.len() as u64)?;
        let state = Rc::new(LoopState {
            items,
            index: Cell::new(0),
            depth,
            changed: RefCell::default(),
            node: node.clone(),
            scope: scope.clone(),
        });
        for (index, item) in state.items.iter().enumerate() {
            state.index.set(index);
            let flow = self.scoped(scope.clone(), |interpreter| {
                interpreter.assign(&"loop".into(), Value::Loop(state.clone()));
                interpreter.set(&node.target, item.clone())?;
                interpreter.body(&node.body, out)
            })?;
            if flow == Flow::Break {
                return Ok(());
            }
        }
        if state.items.is_empty() {
            self.scoped(scope.clone(), |interpreter| interpreter.body(&node.otherwise, out))?;
        }
        Ok(())
    }

    /// `loop(items)` in a recursive loop.
    pub(super) fn call_loop(&mut self, state: &Rc<LoopState>, items: &Value) -> Result {
        if !state.node.recursive {
            return fail("the loop is called, but it is not recursive");
        }
        let mut text = String::new();
        self.run_loop(&state.node, items, &state.scope, state.depth + 1, &mut text)?;
        Ok(Value::text(text))
    }

    #[inline(never)]
    pub(super) fn call_macro(&mut self, value: &Rc<MacroValue>, args: Args) -> Result {
        let mut text = String::new();
        self.scoped(value.scope.clone(), |interpreter| {
            interpreter.bind(&value.definition, args)?;
            interpreter.body(&value.definition.body, &mut text)
        })?;
        Ok(Value::text(text))
    }

    fn bind(&mut self, definition: &Macro, mut args: Args) -> Result<()> {
        let takes = definition.takes;
        for (name, default) in &definition.parameters {
            let value = match (args.take(name)?, default) {
                (Some(value), _) => value,
                (None, Some(default)) => self.eval(default)?,
                (None, None) => Value::undefined(&format!("the parameter {name:?}")),
            };
            self.assign(name, value);
        }
        if takes.caller && !definition.parameters.iter().any(|(name, _)| &**name == "caller") {
            let caller = args.named.iter().position(|(name, _)| &**name == "caller");
            let caller = caller.map(|at| args.named.remove(at).1);
            self.assign(&"caller".into(), caller.unwrap_or_else(|| Value::undefined("the caller")));
        }
        if takes.varargs {
            let rest = std::mem::take(&mut args.positional);
            self.assign(&"varargs".into(), Value::tuple(rest.into()));
        }
        if takes.kwargs {
            let rest = std::mem::take(&mut args.named);
            let rest = rest.into_iter().map(|(name, value)| (Value::text(&*name), value));
            self.assign(&"kwargs".into(), Value::dict(rest.collect::<Vec<_>>())?);
        }
        args.finish()
    }
}
