//! Points of a collection, and queries.

use super::filter::{Filter, Payload};
use crate::{Error, Result};
use serde_json::Value;

/// Ids are at most this: SQLite's integers have a sign.
pub const MAX_ID: u64 = i64::MAX as u64;

/// The greatest depth of a payload, itself included: the depth up to which it can be read back.
pub const MAX_DEPTH: usize = 127;

/// # Errors
/// [`Error::PayloadDepth`].
pub(super) fn check_depth(payload: &Payload) -> Result<()> {
    // With a list of open values instead of recursion, because the depth is up to whoever wrote the payload.
    let mut open: Vec<(usize, &Value)> = payload.values().map(|value| (1, value)).collect();
    while let Some((depth, value)) = open.pop() {
        let depth = match value {
            Value::Array(_) | Value::Object(_) if depth == MAX_DEPTH => {
                return Err(Error::PayloadDepth { max: MAX_DEPTH });
            }
            _ => depth + 1,
        };
        match value {
            Value::Array(elements) => open.extend(elements.iter().map(|value| (depth, value))),
            Value::Object(fields) => open.extend(fields.values().map(|value| (depth, value))),
            _ => {}
        }
    }
    Ok(())
}

/// A vector with an id and a payload.
///
/// # Example
/// ```
/// use breakers_retrieval::store::Point;
/// use serde_json::json;
///
/// let point = Point::new(7, [0.5, 0.5]).with_payload(json!({"title": "Seven", "year": 1995}))?;
/// assert_eq!(point.id, 7);
/// assert!(Point::new(8, [0.0, 1.0]).with_payload(json!("not an object")).is_err());
/// # Ok::<(), breakers_retrieval::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Point {
    /// At most [`MAX_ID`].
    pub id: u64,
    /// `[dimension]`
    pub vector: Vec<f32>,
    /// Fields that filters can refer to, and other data of the point; nested at most [`MAX_DEPTH`] deep.
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
        let payload = match payload {
            serde_json::Value::Object(fields) => fields,
            // The error says what was found in place of an object.
            other => serde_json::from_value(other)?,
        };
        Ok(Self { payload: Some(payload), ..self })
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

/// A search in a collection.
///
/// # Example
/// ```
/// use breakers_retrieval::store::{Filter, Query};
///
/// // The five nearest of those with a year from 1990 on, with their payloads, compared with every vector.
/// let query = Query::new([0.5, 0.5], 5).filter(Filter::within("year", 1990..=2100)).with_payload().exact();
/// assert_eq!(query.k, 5);
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Query {
    /// `[dimension]`
    pub vector: Vec<f32>,
    /// How many points.
    pub k: usize,
    /// The condition that they satisfy.
    pub filter: Option<Filter>,
    /// The width of the beam; `None` takes the width that the collection was tuned to.
    pub effort: Option<usize>,
    /// Whether to scan instead of walking the graph, whatever the cost.
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

    /// Walks the graph with a beam of this width.
    pub fn effort(self, effort: usize) -> Self {
        Self { effort: Some(effort), ..self }
    }

    /// Scans all points that match, without the graph.
    pub fn exact(self) -> Self {
        Self { exact: true, ..self }
    }

    /// Returns payloads with the hits.
    pub fn with_payload(self) -> Self {
        Self { with_payload: true, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn payloads_are_as_deep_as_they_can_be_read() {
        for (depth, array) in
            [(1, false), (126, true), (127, true), (127, false), (128, true), (128, false), (600, true)]
        {
            let mut value = json!(1);
            for level in 1..depth {
                value = if array && level % 2 == 0 { json!([value]) } else { json!({"a": value}) };
            }
            let point = Point::new(1, [0.0]).with_payload(json!({"a": value})).unwrap();
            let payload = point.payload.unwrap();
            let text = serde_json::to_string(&payload).unwrap();
            let readable = serde_json::from_str::<Payload>(&text).is_ok();
            assert_eq!(check_depth(&payload).is_ok(), readable, "{depth} deep");
            assert_eq!(readable, depth <= MAX_DEPTH, "{depth} deep");
        }
        assert!(Point::new(1, [0.0]).with_payload(json!([1])).is_err());
    }
}
