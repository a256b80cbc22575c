//! A JSON value while it is being written: what is finished, and the brackets that are open around the rest.
//!
//! All parts are shared and never changed, so that a state can be kept for each token and gone back to.

use std::sync::Arc;

use serde_json::Value;

use super::number::Number;

/// A finished value.
#[derive(Debug, PartialEq)]
pub(super) enum Data {
    Null,
    Bool(bool),
    Number(Number),
    Text(Arc<str>),
    List(Vec<Arc<Data>>),
    /// Names are distinct.
    Object(Vec<(Arc<str>, Arc<Data>)>),
}

impl Data {
    pub(super) fn of(value: &Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(value) => Self::Bool(*value),
            Value::Number(number) => number_of(&number.to_string()),
            Value::String(text) => Self::Text(text.as_str().into()),
            Value::Array(items) => Self::List(items.iter().map(|item| Arc::new(Self::of(item))).collect()),
            Value::Object(members) => {
                let members = members.iter();
                Self::Object(
                    members.map(|(key, item)| (key.as_str().into(), Arc::new(Self::of(item)))).collect(),
                )
            }
        }
    }

    /// A number or a word.
    pub(super) fn scalar(text: &str) -> Option<Self> {
        Some(match text {
            "null" => Self::Null,
            "true" => Self::Bool(true),
            "false" => Self::Bool(false),
            _ => Self::Number(Number::parse(text)?),
        })
    }

    /// Equal by value, members in any order.
    pub(super) fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::List(one), Self::List(other)) => {
                one.len() == other.len() && one.iter().zip(other).all(|(a, b)| a.is(b))
            }
            (Self::Object(one), Self::Object(other)) => {
                let is_there = |key: &Arc<str>, item: &Arc<Data>| {
                    other.iter().any(|(name, value)| name == key && value.is(item))
                };
                one.len() == other.len() && one.iter().all(|(key, item)| is_there(key, item))
            }
            _ => self == other,
        }
    }
}

fn number_of(text: &str) -> Data {
    Number::parse(text).map_or(Data::Null, Data::Number)
}

/// A member of an object or an item of a list that is open, with those before it.
#[derive(Debug)]
pub(super) struct Child {
    pub(super) before: Option<Arc<Child>>,
    /// Its name, in an object.
    pub(super) key: Option<Arc<str>>,
    pub(super) value: Arc<Data>,
}

impl Drop for Child {
    /// One by one: a long list must not need a deep stack.
    fn drop(&mut self) {
        let mut before = self.before.take();
        while let Some(mut child) = before.and_then(Arc::into_inner) {
            before = child.before.take();
        }
    }
}

/// An object or a list that is open.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    pub(super) parent: Option<Arc<Frame>>,
    pub(super) is_object: bool,
    /// The name whose value comes next or is open.
    pub(super) key: Option<Arc<str>>,
    /// The latest child that is finished.
    pub(super) latest: Option<Arc<Child>>,
    pub(super) n_children: usize,
    pub(super) depth: usize,
}

impl Frame {
    /// The finished children, the latest first.
    pub(super) fn children(&self) -> impl Iterator<Item = &Child> {
        std::iter::successors(self.latest.as_deref(), |child| child.before.as_deref())
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.children().any(|child| child.key.as_deref() == Some(name))
    }

    /// What it is once it is closed.
    pub(super) fn close(&self) -> Data {
        if self.is_object {
            let members = self.children().filter_map(|child| Some((child.key.clone()?, child.value.clone())));
            let mut members: Vec<_> = members.collect();
            members.reverse();
            Data::Object(members)
        } else {
            let mut items: Vec<_> = self.children().map(|child| child.value.clone()).collect();
            items.reverse();
            Data::List(items)
        }
    }
}
