use std::fmt;

/// In which order the properties of an object come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Order {
    /// In the order in which the schema declares them, those it does not name at the end. Models are used to
    /// it, and most of the text is determined.
    #[default]
    Declared,
    /// In any order. Objects of more than 64 declared properties keep to the declared one.
    Any,
}

/// How a JSON Schema is enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct SchemaOptions {
    /// Whether a part that cannot be enforced is an error. Otherwise the rest is enforced, and a
    /// [`Warning`] tells what is not.
    pub strict: bool,
    /// The order of properties.
    pub order: Order,
}

impl Default for SchemaOptions {
    fn default() -> Self {
        Self { strict: true, order: Order::Declared }
    }
}

impl SchemaOptions {
    /// The same options with another answer to what cannot be enforced.
    pub fn with_strict(mut self, strict: bool) -> Self {
        self.strict = strict;
        self
    }

    /// The same options with another order of properties.
    pub fn with_order(mut self, order: Order) -> Self {
        self.order = order;
        self
    }
}

/// A part of a schema that is not enforced.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Warning {
    /// The keyword.
    pub keyword: String,
    /// JSON pointer to the schema that holds it; empty for the whole.
    pub pointer: String,
    /// Why.
    pub reason: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { keyword, pointer, reason } = self;
        write!(f, "{keyword:?} at {pointer:?} of the schema is not enforced: {reason}")
    }
}
