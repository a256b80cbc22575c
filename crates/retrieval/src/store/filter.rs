//! Conditions on payloads.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::{cmp::Ordering, ops::RangeInclusive};

/// The greatest depth of nested conditions.
const MAX_DEPTH: usize = 64;

/// A point's payload: a JSON object.
pub type Payload = Map<String, Value>;

pub(super) use super::number::{Number, Scalar};

/// A condition on a point's payload.
///
/// Fields of nested objects are named by their path with dots (`author.name`). A field that is an array
/// satisfies a condition if one of its elements does. As JSON, a key that no condition has is an error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Filter {
    /// The field has this value.
    Eq {
        /// Path of the field.
        field: String,
        /// The value.
        value: Scalar,
    },
    /// The field has one of these values.
    In {
        /// Path of the field.
        field: String,
        /// The values.
        values: Vec<Scalar>,
    },
    /// The field is a number within bounds.
    Range {
        /// Path of the field.
        field: String,
        /// Not smaller than.
        #[serde(default)]
        at_least: Option<Number>,
        /// Larger than.
        #[serde(default)]
        above: Option<Number>,
        /// Not larger than.
        #[serde(default)]
        at_most: Option<Number>,
        /// Smaller than.
        #[serde(default)]
        below: Option<Number>,
    },
    /// The field is a truth value, a number or a text, or an array that contains one; not null, and not an
    /// object, whose fields have paths of their own.
    Exists {
        /// Path of the field.
        field: String,
    },
    /// All of these hold; true for no conditions.
    And(Vec<Self>),
    /// At least one of these holds; false for no conditions.
    Or(Vec<Self>),
    /// This does not hold.
    Not(Box<Self>),
}

impl Filter {
    /// The field has this value.
    pub fn eq(field: impl Into<String>, value: impl Into<Scalar>) -> Self {
        Self::Eq { field: field.into(), value: value.into() }
    }

    /// The field has one of these values.
    pub fn is_in(field: impl Into<String>, values: impl IntoIterator<Item = impl Into<Scalar>>) -> Self {
        Self::In { field: field.into(), values: values.into_iter().map(Into::into).collect() }
    }

    /// The field is a number from the range's start to its end, both included.
    ///
    /// Integers are compared as integers, whatever their size; a bound may be infinite.
    ///
    /// ```
    /// use breakers_retrieval::store::Filter;
    /// use serde_json::json;
    ///
    /// let ids = Filter::within("id", u64::MAX - 1..=u64::MAX);
    /// let holds = |id: u64| ids.matches(json!({"id": id}).as_object().unwrap());
    /// assert!(holds(u64::MAX) && !holds(u64::MAX - 2));
    /// ```
    pub fn within(field: impl Into<String>, range: RangeInclusive<impl Into<Number>>) -> Self {
        let (start, end) = range.into_inner();
        let (at_least, at_most) = (Some(start.into()), Some(end.into()));
        Self::Range { field: field.into(), at_least, above: None, at_most, below: None }
    }

    /// The field is there.
    pub fn exists(field: impl Into<String>) -> Self {
        Self::Exists { field: field.into() }
    }

    /// This does not hold.
    #[allow(clippy::should_implement_trait)] // Reads as the other constructors do.
    pub fn not(filter: Self) -> Self {
        Self::Not(Box::new(filter))
    }

    /// # Errors
    /// [`Error::Filter`].
    pub(crate) fn check(&self) -> Result<()> {
        self.check_at(0)
    }

    fn check_at(&self, depth: usize) -> Result<()> {
        let bad = |problem: String| Err(Error::Filter { problem });
        if depth > MAX_DEPTH {
            return bad(format!("conditions are nested more than {MAX_DEPTH} deep"));
        }
        let nan = |scalar: &Scalar| matches!(scalar, Scalar::Float(x) if x.is_nan());
        match self {
            Self::Eq { field, value } if nan(value) => bad(format!("{field} is compared with NaN")),
            Self::In { field, values } if values.iter().any(nan) => {
                bad(format!("{field} is compared with NaN"))
            }
            Self::Range { field, at_least, above, at_most, below } => {
                if [at_least, above, at_most, below].into_iter().flatten().any(Number::is_nan) {
                    return bad(format!("a bound of {field} is NaN"));
                }
                Ok(())
            }
            Self::And(all) | Self::Or(all) => all.iter().try_for_each(|filter| filter.check_at(depth + 1)),
            Self::Not(filter) => filter.check_at(depth + 1),
            _ => Ok(()),
        }
    }

    /// Whether a payload satisfies the condition. This is the definition of what filters mean.
    ///
    /// # Example
    /// ```
    /// use breakers_retrieval::store::Filter;
    /// use serde_json::json;
    ///
    /// let filter = Filter::not(Filter::is_in("color", ["red", "blue"]));
    /// let payload = json!({"color": "green"});
    /// assert!(filter.matches(payload.as_object().unwrap()));
    /// ```
    pub fn matches(&self, payload: &Payload) -> bool {
        match self {
            Self::And(all) => all.iter().all(|filter| filter.matches(payload)),
            Self::Or(any) => any.iter().any(|filter| filter.matches(payload)),
            Self::Not(filter) => !filter.matches(payload),
            Self::Eq { field, .. }
            | Self::In { field, .. }
            | Self::Range { field, .. }
            | Self::Exists { field } => {
                let mut found = false;
                visit_field(payload, field, &mut |scalar| found |= self.holds(&scalar));
                found
            }
        }
    }

    /// Whether one value of the field satisfies a condition on a field.
    fn holds(&self, scalar: &Scalar) -> bool {
        let equal = |value: &Scalar| scalar.compare(value) == Some(Ordering::Equal);
        match self {
            Self::Eq { value, .. } => equal(value),
            Self::In { values, .. } => values.iter().any(equal),
            Self::Range { at_least, above, at_most, below, .. } => {
                let Some(number) = scalar.number() else { return false };
                let against = |bound: Number| number.compare(bound);
                at_least.is_none_or(|b| against(b).is_some_and(Ordering::is_ge))
                    && above.is_none_or(|b| against(b).is_some_and(Ordering::is_gt))
                    && at_most.is_none_or(|b| against(b).is_some_and(Ordering::is_le))
                    && below.is_none_or(|b| against(b).is_some_and(Ordering::is_lt))
            }
            Self::Exists { .. } => true,
            _ => false,
        }
    }
}

/// Calls `visit` with every scalar under a path.
fn visit_field(payload: &Payload, path: &str, visit: &mut dyn FnMut(Scalar)) {
    visit_fields(payload, &mut |found, scalar| {
        if found == path {
            visit(scalar);
        }
    });
}

/// Calls `visit` with every scalar of a payload and its path.
pub(crate) fn visit_fields(payload: &Payload, visit: &mut dyn FnMut(&str, Scalar)) {
    fn walk(path: &str, value: &Value, visit: &mut dyn FnMut(&str, Scalar)) {
        match value {
            Value::Array(elements) => elements.iter().for_each(|element| walk(path, element, visit)),
            Value::Object(fields) => {
                for (key, value) in fields {
                    walk(&format!("{path}.{key}"), value, visit);
                }
            }
            value => {
                if let Some(scalar) = Scalar::of(value) {
                    visit(path, scalar);
                }
            }
        }
    }
    for (key, value) in payload {
        walk(key, value, visit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn conditions_mean_what_they_say() {
        let Value::Object(payload) = json!({
            "year": 1999, "price": 2.5, "big": 9_007_199_254_740_993i64, "ok": true, "none": null,
            "tags": ["a", "b", 3], "author": {"name": "Ada", "born": [1815]}, "empty": [], "one": 1.0,
        }) else {
            unreachable!()
        };
        let check =
            |filter: Filter, expected: bool| assert_eq!(filter.matches(&payload), expected, "{filter:?}");
        check(Filter::eq("year", 1999), true);
        check(Filter::eq("year", 1999.0), true);
        check(Filter::eq("year", "1999"), false);
        check(Filter::eq("one", 1), true);
        check(Filter::eq("ok", 1), false);
        check(Filter::eq("ok", true), true);
        // One more than the largest integer that all smaller ones of are 64-bit floats.
        check(Filter::eq("big", 9_007_199_254_740_992.0), false);
        check(Filter::within("big", 0.0..=9_007_199_254_740_992.0), false);
        check(Filter::within("price", 2.5..=3.0), true);
        check(
            Filter::Range {
                field: "price".into(),
                at_least: None,
                above: Some(2.5.into()),
                at_most: None,
                below: None,
            },
            false,
        );
        check(Filter::is_in("tags", ["x", "b"]), true);
        check(Filter::eq("tags", 3), true);
        check(Filter::eq("author.name", "Ada"), true);
        check(Filter::within("author.born", 1800.0..=1900.0), true);
        check(Filter::exists("none"), false);
        check(Filter::exists("empty"), false);
        check(Filter::exists("author.name"), true);
        check(Filter::exists("author"), false);
        check(Filter::not(Filter::exists("none")), true);
        check(Filter::And(vec![]), true);
        check(Filter::Or(vec![]), false);
        check(Filter::Or(vec![Filter::eq("year", 1), Filter::not(Filter::eq("year", 2))]), true);
    }

    #[test]
    fn filters_that_mean_nothing_are_refused() {
        let mut deep = Filter::exists("a");
        for _ in 0..100 {
            deep = Filter::not(deep);
        }
        for filter in [deep, Filter::eq("a", f64::NAN), Filter::within("a", f64::NAN..=1.0)] {
            assert!(matches!(filter.check(), Err(Error::Filter { .. })), "{filter:?}");
        }
    }
}
