//! The Python values that templates see.

use std::{
    cell::{Cell, RefCell},
    cmp::Ordering,
    collections::HashMap,
    rc::Rc,
    sync::Arc,
};

use super::ast::{self, Name};
use super::error::{Result, fail};

/// A value. Lists and dicts never change: the sandbox allows only namespaces to change.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// With a description of what is missing.
    Undefined(Rc<str>),
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(Rc<str>),
    /// Text that is escaped for HTML.
    Markup(Rc<str>),
    List(Rc<Items>),
    Tuple(Rc<Items>),
    Dict(Rc<Dict>),
    Range(Range),
    /// `dict.keys()` and the like.
    View(&'static str, Rc<Items>),
    /// A generator, which gives its items once.
    Generator(Rc<Generator>),
    Namespace(Rc<RefCell<Dict>>),
    Function(Function),
    Method(Rc<(Value, &'static str)>),
    Macro(Rc<MacroValue>),
    Loop(Rc<LoopState>),
    Cycler(Rc<Cycler>),
    Joiner(Rc<Joiner>),
}

/// Items of a list or a tuple.
#[derive(Debug, Default)]
pub(super) struct Items {
    pub(super) items: Vec<Value>,
    /// Names of a named tuple's items.
    pub(super) names: &'static [&'static str],
    depth: usize,
}

impl Items {
    fn new(items: Vec<Value>) -> Self {
        let depth = 1 + items.iter().map(Value::depth).max().unwrap_or(0);
        Self { items, names: &[], depth }
    }
}

/// `range(start, stop, step)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: i128,
    pub(super) stop: i128,
    pub(super) step: i128,
    pub(super) len: usize,
}

impl Range {
    pub(super) fn get(&self, index: usize) -> Value {
        Value::Int(self.start.saturating_add(self.step.saturating_mul(index as i128)))
    }
}

/// The result of a filter like `map`.
#[derive(Debug)]
pub(super) struct Generator {
    pub(super) rest: RefCell<std::vec::IntoIter<Value>>,
}

/// Functions that templates may call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Function {
    Range,
    Dict,
    Namespace,
    Cycler,
    Joiner,
    Lipsum,
    RaiseException,
    StrftimeNow,
    /// The template itself, which has no attributes.
    Itself,
}

impl Function {
    pub(super) const ALL: [(&'static str, Self); 9] = [
        ("range", Self::Range),
        ("dict", Self::Dict),
        ("namespace", Self::Namespace),
        ("cycler", Self::Cycler),
        ("joiner", Self::Joiner),
        ("lipsum", Self::Lipsum),
        ("raise_exception", Self::RaiseException),
        ("strftime_now", Self::StrftimeNow),
        ("self", Self::Itself),
    ];
}

/// A macro with the variables around it.
#[derive(Debug)]
pub(super) struct MacroValue {
    pub(super) definition: Arc<ast::Macro>,
    pub(super) scope: Rc<Scope>,
}

/// Variables; those of outer scopes come after the inner ones.
#[derive(Debug, Default)]
pub(super) struct Scope {
    pub(super) variables: RefCell<HashMap<Name, Value>>,
    pub(super) parent: Option<Rc<Scope>>,
}

/// `loop`.
#[derive(Debug)]
pub(super) struct LoopState {
    pub(super) items: Vec<Value>,
    pub(super) index: Cell<usize>,
    pub(super) depth: usize,
    pub(super) changed: RefCell<Option<Vec<Value>>>,
    pub(super) node: Arc<ast::For>,
    /// The variables around the loop.
    pub(super) scope: Rc<Scope>,
}

#[derive(Debug)]
pub(super) struct Cycler {
    pub(super) items: Vec<Value>,
    pub(super) at: Cell<usize>,
}

#[derive(Debug)]
pub(super) struct Joiner {
    pub(super) separator: Value,
    pub(super) used: Cell<bool>,
}

/// A dict's key in a form that can be compared.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Key {
    None,
    Int(i128),
    Float(u64),
    Text(Rc<str>),
    Tuple(Vec<Key>),
    Other(usize),
}

impl Key {
    pub(super) fn of(value: &Value) -> Result<Self> {
        Ok(match value {
            Value::None => Self::None,
            Value::Bool(value) => Self::Int(i128::from(*value)),
            Value::Int(value) => Self::Int(*value),
            Value::Float(value) if value.fract() == 0.0 && value.abs() < 1e36 => Self::Int(*value as i128),
            Value::Float(value) => Self::Float(value.to_bits()),
            Value::Text(text) | Value::Markup(text) => Self::Text(text.clone()),
            Value::Tuple(items) => Self::Tuple(items.items.iter().map(Self::of).collect::<Result<_>>()?),
            Value::Range(range) => Self::Other(range.len),
            Value::Undefined(_) => Self::Other(usize::MAX),
            Value::Function(function) => Self::Other(*function as usize),
            Value::Macro(value) => Self::Other(Rc::as_ptr(value) as usize),
            Value::Cycler(value) => Self::Other(Rc::as_ptr(value) as usize),
            Value::Joiner(value) => Self::Other(Rc::as_ptr(value) as usize),
            Value::Namespace(value) => Self::Other(Rc::as_ptr(value) as usize),
            _ => return fail(format!("a {} cannot be a key", value.kind())),
        })
    }
}

/// A dict, whose keys are in the order of their insertion.
#[derive(Clone, Debug, Default)]
pub(super) struct Dict {
    entries: Vec<(Value, Value)>,
    places: HashMap<Key, usize>,
}

impl Dict {
    pub(super) fn insert(&mut self, key: Value, value: Value) -> Result<()> {
        match self.places.entry(Key::of(&key)?) {
            std::collections::hash_map::Entry::Occupied(place) => self.entries[*place.get()].1 = value,
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(self.entries.len());
                self.entries.push((key, value));
            }
        }
        Ok(())
    }

    pub(super) fn get(&self, key: &Value) -> Result<Option<&Value>> {
        Ok(self.places.get(&Key::of(key)?).map(|&place| &self.entries[place].1))
    }

    pub(super) fn get_text(&self, key: &str) -> Option<&Value> {
        self.places.get(&Key::Text(key.into())).map(|&place| &self.entries[place].1)
    }

    pub(super) fn entries(&self) -> &[(Value, Value)] {
        &self.entries
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

impl Value {
    pub(super) fn text(text: impl Into<Rc<str>>) -> Self {
        Self::Text(text.into())
    }

    pub(super) fn list(items: Vec<Value>) -> Self {
        Self::List(Rc::new(Items::new(items)))
    }

    pub(super) fn tuple(items: Vec<Value>) -> Self {
        Self::Tuple(Rc::new(Items::new(items)))
    }

    pub(super) fn named_tuple(names: &'static [&'static str], items: Vec<Value>) -> Self {
        Self::Tuple(Rc::new(Items { names, ..Items::new(items) }))
    }

    pub(super) fn view(kind: &'static str, items: Vec<Value>) -> Self {
        Self::View(kind, Rc::new(Items::new(items)))
    }

    pub(super) fn generator(items: Vec<Value>) -> Self {
        Self::Generator(Rc::new(Generator { rest: RefCell::new(items.into_iter()) }))
    }

    pub(super) fn undefined(what: &str) -> Self {
        Self::Undefined(what.into())
    }

    pub(super) fn dict(entries: impl IntoIterator<Item = (Value, Value)>) -> Result {
        let mut dict = Dict::default();
        for (key, value) in entries {
            dict.insert(key, value)?;
        }
        Ok(Self::Dict(Rc::new(dict)))
    }

    /// The text, if it is one.
    pub(super) fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) | Self::Markup(text) => Some(text),
            _ => None,
        }
    }

    /// A whole number; Python counts `True` as 1.
    pub(super) fn as_int(&self) -> Option<i128> {
        match self {
            Self::Int(value) => Some(*value),
            Self::Bool(value) => Some(i128::from(*value)),
            _ => None,
        }
    }

    pub(super) fn as_float(&self) -> Option<f64> {
        match self {
            Self::Float(value) => Some(*value),
            _ => self.as_int().map(|value| value as f64),
        }
    }

    /// How deep lists are nested in the value.
    pub(super) fn depth(&self) -> usize {
        match self {
            Self::List(items) | Self::Tuple(items) | Self::View(_, items) => items.depth,
            Self::Dict(dict) => 1 + dict.entries.iter().map(|(_, value)| value.depth()).max().unwrap_or(0),
            Self::Generator(generator) => {
                1 + generator.rest.borrow().as_slice().iter().map(Value::depth).max().unwrap_or(0)
            }
            Self::Method(bound) => 1 + bound.0.depth(),
            Self::Cycler(cycler) => 1 + cycler.items.iter().map(Value::depth).max().unwrap_or(0),
            Self::Joiner(joiner) => 1 + joiner.separator.depth(),
            _ => 0,
        }
    }

    /// Roughly how much memory the value itself takes, in units of 16 bytes.
    pub(super) fn weight(&self) -> u64 {
        let units = match self {
            Self::Text(text) | Self::Markup(text) => text.len() / 16,
            Self::List(items) | Self::Tuple(items) | Self::View(_, items) => items.items.len(),
            Self::Dict(dict) => dict.entries.len() * 4,
            Self::Generator(generator) => generator.rest.borrow().len(),
            _ => 0,
        };
        units as u64
    }

    /// Python's name of its type.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Undefined(_) => "Undefined",
            Self::None => "NoneType",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Float(_) => "float",
            Self::Text(_) => "str",
            Self::Markup(_) => "Markup",
            Self::List(_) => "list",
            Self::Tuple(_) => "tuple",
            Self::Dict(_) => "dict",
            Self::Range(_) => "range",
            Self::View(kind, _) => kind,
            Self::Generator(_) => "generator",
            Self::Namespace(_) => "Namespace",
            Self::Function(_) => "function",
            Self::Method(_) => "method",
            Self::Macro(_) => "Macro",
            Self::Loop(_) => "LoopContext",
            Self::Cycler(_) => "Cycler",
            Self::Joiner(_) => "Joiner",
        }
    }

    pub(super) fn is_true(&self) -> bool {
        match self {
            Self::Undefined(_) | Self::None => false,
            Self::Bool(value) => *value,
            Self::Int(value) => *value != 0,
            Self::Float(value) => *value != 0.0,
            Self::Text(text) | Self::Markup(text) => !text.is_empty(),
            Self::List(items) | Self::Tuple(items) | Self::View(_, items) => !items.items.is_empty(),
            Self::Dict(dict) => !dict.entries.is_empty(),
            Self::Range(range) => range.len > 0,
            _ => true,
        }
    }

    /// The items of anything that a loop can go over.
    pub(super) fn iterate(&self) -> Result<Vec<Value>> {
        Ok(match self {
            Self::Undefined(_) => Vec::new(),
            Self::Text(text) | Self::Markup(text) => {
                text.chars().map(|c| Self::text(&*c.encode_utf8(&mut [0; 4]))).collect()
            }
            Self::List(items) | Self::Tuple(items) | Self::View(_, items) => items.items.clone(),
            Self::Dict(dict) => dict.entries.iter().map(|(key, _)| key.clone()).collect(),
            Self::Range(range) => (0..range.len).map(|index| range.get(index)).collect(),
            Self::Generator(generator) => generator.rest.take().collect(),
            Self::Loop(state) => {
                let from = state.index.get() + 1;
                let rest = state.items.get(from..).unwrap_or_default();
                rest.iter().map(|item| Self::tuple(vec![item.clone(), self.clone()])).collect()
            }
            _ => return fail(format!("{} is not iterable", self.described())),
        })
    }

    pub(super) fn is_iterable(&self) -> bool {
        matches!(
            self,
            Self::Undefined(_)
                | Self::Text(_)
                | Self::Markup(_)
                | Self::List(_)
                | Self::Tuple(_)
                | Self::View(..)
                | Self::Dict(_)
                | Self::Range(_)
                | Self::Generator(_)
                | Self::Loop(_)
        )
    }

    pub(super) fn length(&self) -> Result<usize> {
        Ok(match self {
            Self::Undefined(_) => 0,
            Self::Text(text) | Self::Markup(text) => text.chars().count(),
            Self::List(items) | Self::Tuple(items) | Self::View(_, items) => items.items.len(),
            Self::Dict(dict) => dict.entries.len(),
            Self::Range(range) => range.len,
            Self::Loop(state) => state.items.len(),
            _ => return fail(format!("{} has no length", self.described())),
        })
    }

    /// The value in an error's text.
    pub(super) fn described(&self) -> String {
        match self {
            Self::Undefined(what) => format!("{what} is undefined, which"),
            _ => format!("a {}", self.kind()),
        }
    }

    /// Fails if the value is undefined.
    pub(super) fn defined(&self) -> Result<&Self> {
        match self {
            Self::Undefined(what) => fail(format!("{what} is undefined")),
            _ => Ok(self),
        }
    }
}

/// Python's `==`.
pub(super) fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Undefined(_), Value::Undefined(_)) | (Value::None, Value::None) => true,
        (Value::Text(a) | Value::Markup(a), Value::Text(b) | Value::Markup(b)) => a == b,
        (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => {
            a.items.len() == b.items.len() && a.items.iter().zip(&b.items).all(|(a, b)| equal(a, b))
        }
        (Value::Dict(a), Value::Dict(b)) => {
            a.entries.len() == b.entries.len()
                && a.entries
                    .iter()
                    .all(|(key, value)| matches!(b.get(key), Ok(Some(other)) if equal(value, other)))
        }
        (Value::Range(a), Value::Range(b)) => {
            a.len == b.len && (a.len == 0 || a.start == b.start && (a.len == 1 || a.step == b.step))
        }
        (Value::View("dict_keys", a), Value::View("dict_keys", b)) => {
            a.items.len() == b.items.len() && a.items.iter().all(|a| b.items.iter().any(|b| equal(a, b)))
        }
        (Value::Function(a), Value::Function(b)) => a == b,
        (Value::Method(a), Value::Method(b)) => a.1 == b.1 && same(&a.0, &b.0),
        _ => match (a.as_int(), b.as_int()) {
            (Some(a), Some(b)) => a == b,
            _ => match (a.as_float(), b.as_float()) {
                (Some(a), Some(b)) => a == b,
                _ => same(a, b),
            },
        },
    }
}

/// Python's `is`, as far as it can be determined.
pub(super) fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::None, Value::None) => true,
        (Value::Bool(a), Value::Bool(b)) => a == b,
        (Value::Int(a), Value::Int(b)) => a == b,
        (Value::Text(a), Value::Text(b)) => a == b,
        (Value::List(a), Value::List(b)) => Rc::ptr_eq(a, b),
        (Value::Tuple(a), Value::Tuple(b)) => Rc::ptr_eq(a, b) || a.items.is_empty() && b.items.is_empty(),
        (Value::Dict(a), Value::Dict(b)) => Rc::ptr_eq(a, b),
        (Value::Namespace(a), Value::Namespace(b)) => Rc::ptr_eq(a, b),
        (Value::Generator(a), Value::Generator(b)) => Rc::ptr_eq(a, b),
        (Value::Macro(a), Value::Macro(b)) => Rc::ptr_eq(a, b),
        (Value::Loop(a), Value::Loop(b)) => Rc::ptr_eq(a, b),
        (Value::Cycler(a), Value::Cycler(b)) => Rc::ptr_eq(a, b),
        (Value::Joiner(a), Value::Joiner(b)) => Rc::ptr_eq(a, b),
        (Value::Function(a), Value::Function(b)) => a == b,
        _ => false,
    }
}

/// Python's `<` and its like: `None` for NaN.
pub(super) fn compare(a: &Value, b: &Value) -> Result<Option<Ordering>> {
    match (a, b) {
        (Value::Text(a) | Value::Markup(a), Value::Text(b) | Value::Markup(b)) => Ok(Some(a.cmp(b))),
        (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => {
            for (a, b) in a.items.iter().zip(&b.items) {
                if !equal(a, b) {
                    return compare(a, b);
                }
            }
            Ok(Some(a.items.len().cmp(&b.items.len())))
        }
        _ => {
            if let (Some(a), Some(b)) = (a.as_int(), b.as_int()) {
                return Ok(Some(a.cmp(&b)));
            }
            match (a.as_float(), b.as_float()) {
                (Some(a), Some(b)) => Ok(a.partial_cmp(&b)),
                _ => {
                    a.defined()?;
                    b.defined()?;
                    fail(format!("a {} and a {} have no order", a.kind(), b.kind()))
                }
            }
        }
    }
}
