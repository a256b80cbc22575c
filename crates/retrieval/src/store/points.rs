//! What goes into a collection, and what is asked of it.

use super::filter::{Filter, Payload};
use crate::Result;

/// Ids are at most this: SQLite's integers have a sign.
pub const MAX_ID: u64 = i64::MAX as u64;

/// A vector with an id and a payload.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Point {
    /// At most [`MAX_ID`].
    pub id: u64,
    /// `[dimension]`
    pub vector: Vec<f32>,
    /// Fields that filters can ask for, and whatever else belongs to the point.
    pub payload: Option<Payload>,
}

impl Point {
    /// A point without payload.
    pub fn new(id: u64, vector: impl Into<Vec<f32>>) -> Self {
        Self { id, vector: vector.into(), payload: None }
    }

    /// With this payload, a JSON object.
    ///
    /// # Errors
    /// [`Error::Json`](crate::Error::Json) if it is something else.
    pub fn with_payload(self, payload: serde_json::Value) -> Result<Self> {
        Ok(Self { payload: Some(serde_json::from_value(payload)?), ..self })
    }
}

/// A point that was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Hit {
    /// The point.
    pub id: u64,
    /// Its distance in the collection's metric, of the vector as it is stored.
    pub distance: f32,
    /// Its payload, if it was asked for and there is one.
    pub payload: Option<Payload>,
}

/// What is looked for in a collection.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Query {
    /// `[dimension]`
    pub vector: Vec<f32>,
    /// How many points.
    pub k: usize,
    /// The condition that they satisfy.
    pub filter: Option<Filter>,
    /// How wide the graph is searched; otherwise what the collection was tuned to.
    pub effort: Option<usize>,
    /// Whether to scan instead of walking the graph, whatever it costs.
    pub exact: bool,
    /// Whether to return payloads.
    pub with_payload: bool,
}

impl Query {
    /// The nearest `k`.
    pub fn new(vector: impl Into<Vec<f32>>, k: usize) -> Self {
        Self { vector: vector.into(), k, ..Self::default() }
    }

    /// Among the points that satisfy the condition.
    pub fn filter(self, filter: Filter) -> Self {
        Self { filter: Some(filter), ..self }
    }

    /// With this effort.
    pub fn effort(self, effort: usize) -> Self {
        Self { effort: Some(effort), ..self }
    }

    /// Exactly.
    pub fn exact(self) -> Self {
        Self { exact: true, ..self }
    }

    /// With payloads.
    pub fn with_payload(self) -> Self {
        Self { with_payload: true, ..self }
    }
}
