//! Values that fields are compared with. Numbers are compared exactly, without rounding integers to floats.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use serde_json::Value;
use std::cmp::Ordering;

/// A number of a payload or a bound.
///
/// Two numbers compare by their values, whatever their types: `2⁵³ + 1` is not `2⁵³`, though
/// both are the same float.
///
/// In JSON an infinite float is the text `"inf"` or `"-inf"`, since JSON has no other way to write it.
#[derive(Debug, Clone, Copy)]
pub enum Number {
    /// An integer.
    Integer(i64),
    /// An integer; those that fit an `i64` are equal to it.
    Unsigned(u64),
    /// Another number.
    Float(f64),
}

/// 2⁶³ and 2⁶⁴.
const TWO_63: f64 = 9_223_372_036_854_775_808.0;
const TWO_64: f64 = 2.0 * TWO_63;

impl Number {
    /// The order of two numbers; `None` if one of them is NaN.
    pub fn compare(self, other: Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Float(a), Self::Float(b)) => a.partial_cmp(&b),
            (Self::Float(a), b) => compare_mixed(b.whole()?, a).map(Ordering::reverse),
            (a, Self::Float(b)) => compare_mixed(a.whole()?, b),
            (a, b) => Some(a.whole()?.cmp(&b.whole()?)),
        }
    }

    fn whole(self) -> Option<i128> {
        match self {
            Self::Integer(i) => Some(i.into()),
            Self::Unsigned(u) => Some(u.into()),
            Self::Float(_) => None,
        }
    }

    pub(crate) fn is_nan(&self) -> bool {
        matches!(self, Self::Float(x) if x.is_nan())
    }

    /// The same number as a float, if there is one.
    pub(crate) fn exact_float(self) -> Option<f64> {
        let float = match self {
            Self::Integer(i) => i as f64,
            Self::Unsigned(u) => u as f64,
            Self::Float(x) => return Some(x),
        };
        (self.compare(Self::Float(float)) == Some(Ordering::Equal)).then_some(float)
    }

    /// The smallest unsigned integer that is not below the number; `None` if 64 bits do not hold one.
    pub(crate) fn unsigned_ceiling(self) -> Option<u64> {
        match self {
            Self::Integer(i) => Some(i.max(0) as u64),
            Self::Unsigned(u) => Some(u),
            Self::Float(x) if x.is_nan() || x.ceil() >= TWO_64 => None,
            Self::Float(x) => Some(x.ceil().max(0.0) as u64),
        }
    }

    /// The largest unsigned integer that is not above the number; `None` for negative ones.
    pub(crate) fn unsigned_floor(self) -> Option<u64> {
        match self {
            Self::Integer(i) => u64::try_from(i).ok(),
            Self::Unsigned(u) => Some(u),
            Self::Float(x) if x.is_nan() || x < 0.0 => None,
            Self::Float(x) if x >= TWO_64 => Some(u64::MAX),
            Self::Float(x) => Some(x.floor() as u64),
        }
    }
}

/// Compares without rounding the integer, which has at most 64 bits and a sign, to a float.
fn compare_mixed(a: i128, b: f64) -> Option<Ordering> {
    if b.is_nan() {
        None
    } else if b >= TWO_64 {
        Some(Ordering::Less)
    } else if b < -TWO_63 {
        Some(Ordering::Greater)
    } else {
        let whole = b.trunc();
        Some(a.cmp(&(whole as i128)).then_with(|| 0.0.partial_cmp(&(b - whole)).unwrap_or(Ordering::Equal)))
    }
}

impl PartialEq for Number {
    fn eq(&self, other: &Self) -> bool {
        self.compare(*other) == Some(Ordering::Equal)
    }
}

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match *self {
            Self::Integer(i) => serializer.serialize_i64(i),
            Self::Unsigned(u) => serializer.serialize_u64(u),
            Self::Float(f64::INFINITY) => serializer.serialize_str("inf"),
            Self::Float(f64::NEG_INFINITY) => serializer.serialize_str("-inf"),
            Self::Float(x) if x.is_nan() => Err(serde::ser::Error::custom("NaN is not a number")),
            Self::Float(x) => serializer.serialize_f64(x),
        }
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::Number(number) => Ok(Self::of(&number)),
            Value::String(text) if text == "inf" => Ok(Self::Float(f64::INFINITY)),
            Value::String(text) if text == "-inf" => Ok(Self::Float(f64::NEG_INFINITY)),
            other => Err(D::Error::custom(format!("expected a number, \"inf\" or \"-inf\", found {other}"))),
        }
    }
}

impl Number {
    fn of(number: &serde_json::Number) -> Self {
        match (number.as_i64(), number.as_u64()) {
            (Some(i), _) => Self::Integer(i),
            (None, Some(u)) => Self::Unsigned(u),
            (None, None) => Self::Float(number.as_f64().unwrap_or(f64::NAN)),
        }
    }
}

/// A value that a field is compared with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum Scalar {
    /// True or false; never equal to a number.
    Bool(bool),
    /// An integer.
    Integer(i64),
    /// An integer beyond those of `i64`; a smaller one is equal to the same [`Integer`](Self::Integer).
    Unsigned(u64),
    /// Another number. An integer and a float are equal if they are the same number.
    Float(f64),
    /// A text, compared byte by byte.
    Text(String),
}

macro_rules! from {
    ($target:ident: $($type:ty => $variant:ident),*) => {$(
        impl From<$type> for $target {
            fn from(value: $type) -> Self {
                Self::$variant(value.into())
            }
        }
    )*};
}
from!(Scalar: bool => Bool, i32 => Integer, u32 => Integer, i64 => Integer, f32 => Float, f64 => Float, &str => Text,
    String => Text);
from!(Number: i32 => Integer, u32 => Integer, i64 => Integer, u64 => Unsigned, f32 => Float, f64 => Float);

impl From<u64> for Scalar {
    fn from(value: u64) -> Self {
        i64::try_from(value).map_or(Self::Unsigned(value), Self::Integer)
    }
}

impl Scalar {
    /// A JSON value as a scalar; `None` for null, arrays and objects.
    pub(crate) fn of(value: &Value) -> Option<Self> {
        match value {
            Value::Bool(b) => Some(Self::Bool(*b)),
            Value::Number(number) => Some(match Number::of(number) {
                Number::Integer(i) => Self::Integer(i),
                Number::Unsigned(u) => Self::Unsigned(u),
                Number::Float(x) => Self::Float(x),
            }),
            Value::String(text) => Some(Self::Text(text.clone())),
            _ => None,
        }
    }

    /// The number, if it is one.
    pub(crate) fn number(&self) -> Option<Number> {
        match *self {
            Self::Integer(i) => Some(Number::Integer(i)),
            Self::Unsigned(u) => Some(Number::Unsigned(u)),
            Self::Float(x) => Some(Number::Float(x)),
            Self::Bool(_) | Self::Text(_) => None,
        }
    }

    /// The order of two scalars of one kind.
    pub(crate) fn compare(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Bool(a), Self::Bool(b)) => Some(a.cmp(b)),
            (Self::Text(a), Self::Text(b)) => Some(a.cmp(b)),
            (a, b) => a.number()?.compare(b.number()?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_compare_by_value() {
        use Number::{Float, Integer, Unsigned};
        let ascending = [
            Float(f64::NEG_INFINITY),
            Float(-1e300),
            Integer(i64::MIN),
            Integer(i64::MIN + 1),
            Float(-0.5),
            Integer(0),
            Float(0.5),
            Integer(9_007_199_254_740_992),
            Integer(9_007_199_254_740_993),
            Integer(i64::MAX),
            Float(TWO_63),
            Unsigned((1 << 63) + 1),
            Unsigned(u64::MAX - 1),
            Unsigned(u64::MAX),
            Float(TWO_64),
            Float(f64::INFINITY),
        ];
        for (i, &a) in ascending.iter().enumerate() {
            for (j, &b) in ascending.iter().enumerate() {
                assert_eq!(a.compare(b), Some(i.cmp(&j)), "{a:?} and {b:?}");
            }
            assert_eq!(a.compare(Float(f64::NAN)), None);
            let text = serde_json::to_string(&a).unwrap();
            assert_eq!(serde_json::from_str::<Number>(&text).unwrap(), a, "{text}");
        }
        for (a, b) in [
            (Integer(5), Unsigned(5)),
            (Unsigned(5), Float(5.0)),
            (Float(0.0), Float(-0.0)),
            (Unsigned(1 << 63), Float(TWO_63)),
        ] {
            assert_eq!(a.compare(b), Some(Ordering::Equal), "{a:?} and {b:?}");
        }
        assert!(serde_json::to_string(&Float(f64::NAN)).is_err());
        assert!(serde_json::from_str::<Number>("\"5\"").is_err());
    }
}
