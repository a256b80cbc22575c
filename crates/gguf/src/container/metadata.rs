//! The key-value pairs of a file, with typed access.

use std::{borrow::Cow, collections::HashMap};

use super::{Array, StringArray, Value, parse, parse::Cursor};
use crate::{Error, Result};

/// The key-value pairs of a file, in file order.
///
/// For every type there are two methods: if the key is absent, `u32(key)` returns `None` and
/// `require_u32(key)` an error. Both return an error when the value has another type. Integers may be stored
/// in any width, because writers differ in the width they choose; the number must fit.
///
/// ```
/// use breakers_gguf::{Error, Metadata};
///
/// # fn main() -> Result<(), Error> {
/// let mut metadata = Metadata::new();
/// metadata.insert("llama.block_count", 30u32)?;
/// metadata.insert("tokenizer.ggml.tokens", vec!["a", "b"])?;
///
/// assert_eq!(metadata.require_u64("llama.block_count")?, 30);
/// assert_eq!(metadata.u32("llama.expert_count")?, None);
/// assert!(matches!(metadata.str("llama.block_count"), Err(Error::ValueType { .. })));
/// assert_eq!(metadata.require_strings("tokenizer.ggml.tokens")?.get(1), Some("b"));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
pub struct Metadata {
    entries: Vec<(Box<str>, Value)>,
    index: HashMap<Box<str>, usize>,
}

impl std::fmt::Debug for Metadata {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl PartialEq for Metadata {
    /// Equal if the keys and values are equal and in the same order.
    fn eq(&self, other: &Self) -> bool {
        self.entries == other.entries
    }
}

macro_rules! integers {
    ($($type:ident, $many:ident, $require:ident;)*) => {$(
        #[doc = concat!("The integer at `key` as `", stringify!($type), "`, or nothing when the key is absent.")]
        ///
        /// # Errors
        /// [`Error::ValueType`] when the value is not an integer, [`Error::ValueRange`] when it does not fit.
        pub fn $type(&self, key: &str) -> Result<Option<$type>> {
            self.get(key).map(|value| {
                let found = value.as_integer().ok_or_else(|| mismatch(key, "an integer", value))?;
                $type::try_from(found).map_err(|_| out_of_range(key, stringify!($type), found))
            }).transpose()
        }

        #[doc = concat!("The integer at `key` as `", stringify!($type), "`.")]
        ///
        /// # Errors
        /// [`Error::MissingKey`] when the key is absent, [`Error::ValueType`] when the value is not an
        /// integer, [`Error::ValueRange`] when it does not fit.
        pub fn $require(&self, key: &str) -> Result<$type> {
            self.$type(key)?.ok_or_else(|| missing(key))
        }

        #[doc = concat!("The array of integers at `key` as `", stringify!($type), "`, or nothing when the key is absent.")]
        ///
        /// # Errors
        /// [`Error::ValueType`] when the value is not an array of integers, [`Error::ValueRange`] when one
        /// does not fit.
        pub fn $many(&self, key: &str) -> Result<Option<Cow<'_, [$type]>>> {
            self.get(key).map(|value| match value {
                Value::Array(array) => array.$many(key),
                other => Err(mismatch(key, "an array of integers", other)),
            }).transpose()
        }
    )*};
}

macro_rules! integer_arrays {
    ($($type:ident, $many:ident, $variant:ident;)*) => {$(
        fn $many(&self, key: &str) -> Result<Cow<'_, [$type]>> {
            if let Array::$variant(values) = self {
                return Ok(Cow::Borrowed(values));
            }
            let integers = self.to_integers().ok_or_else(|| Error::ValueType {
                key: key.to_owned(), expected: "an array of integers", found: self.type_name(),
            })?;
            let converted = integers.into_iter().map(|found| {
                $type::try_from(found).map_err(|_| out_of_range(key, stringify!($type), found))
            });
            Ok(Cow::Owned(converted.collect::<Result<_>>()?))
        }
    )*};
}

impl Array {
    integer_arrays! {
        u32, u32s, U32;
        u64, u64s, U64;
        i32, i32s, I32;
        i64, i64s, I64;
    }
}

impl Metadata {
    /// Empty metadata.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of pairs.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether the metadata is empty.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The pairs in file order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> + DoubleEndedIterator {
        self.entries.iter().map(|(key, value)| (&**key, value))
    }

    /// The value at `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.index.get(key).map(|&position| &self.entries[position].1)
    }

    /// Sets the value at `key`. An existing key keeps its place and gets the new value.
    ///
    /// # Errors
    /// [`Error::CountTooLarge`] when the key is longer than the format allows (65,535 bytes).
    pub fn insert(&mut self, key: &str, value: impl Into<Value>) -> Result<()> {
        if key.len() as u64 > parse::MAX_KEY_BYTES {
            return Err(Error::CountTooLarge {
                what: "the length of a metadata key",
                position: 0,
                found: key.len() as u64,
                limit: parse::MAX_KEY_BYTES,
            });
        }
        match self.index.get(key) {
            Some(&position) => self.entries[position].1 = value.into(),
            None => {
                self.index.insert(key.into(), self.entries.len());
                self.entries.push((key.into(), value.into()));
            }
        }
        Ok(())
    }

    /// Removes the pair at `key`, and returns its value.
    pub fn remove(&mut self, key: &str) -> Option<Value> {
        let position = self.index.remove(key)?;
        for later in self.index.values_mut() {
            *later -= usize::from(*later > position);
        }
        Some(self.entries.remove(position).1)
    }

    integers! {
        u32, u32s, require_u32;
        u64, u64s, require_u64;
        i32, i32s, require_i32;
        i64, i64s, require_i64;
    }

    /// The string at `key`, or `None` when the key is absent.
    ///
    /// # Errors
    /// [`Error::ValueType`] when the value is not a string.
    pub fn str(&self, key: &str) -> Result<Option<&str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(value)) => Ok(Some(value)),
            Some(other) => Err(mismatch(key, "a string", other)),
        }
    }

    /// The string at `key`.
    ///
    /// # Errors
    /// [`Error::MissingKey`] when the key is absent, [`Error::ValueType`] when the value is not a string.
    pub fn require_str(&self, key: &str) -> Result<&str> {
        self.str(key)?.ok_or_else(|| missing(key))
    }

    /// The boolean at `key`, or `None` when the key is absent.
    ///
    /// # Errors
    /// [`Error::ValueType`] when the value is not a boolean.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(other) => Err(mismatch(key, "a boolean", other)),
        }
    }

    /// The boolean at `key`.
    ///
    /// # Errors
    /// [`Error::MissingKey`] when the key is absent, [`Error::ValueType`] when the value is not a boolean.
    pub fn require_bool(&self, key: &str) -> Result<bool> {
        self.bool(key)?.ok_or_else(|| missing(key))
    }

    /// The floating-point number at `key`, or `None` when the key is absent. Stored doubles are rounded.
    ///
    /// # Errors
    /// [`Error::ValueType`] when the value is not a floating-point number.
    pub fn f32(&self, key: &str) -> Result<Option<f32>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::F32(value)) => Ok(Some(*value)),
            Some(Value::F64(value)) => Ok(Some(*value as f32)),
            Some(other) => Err(mismatch(key, "a floating-point number", other)),
        }
    }

    /// The floating-point number at `key`. Stored doubles are rounded.
    ///
    /// # Errors
    /// [`Error::MissingKey`] when the key is absent, [`Error::ValueType`] when the value is not a
    /// floating-point number.
    pub fn require_f32(&self, key: &str) -> Result<f32> {
        self.f32(key)?.ok_or_else(|| missing(key))
    }

    /// The array of floating-point numbers at `key`, or `None` when the key is absent.
    ///
    /// # Errors
    /// [`Error::ValueType`] when the value is not an array of floating-point numbers.
    pub fn f32s(&self, key: &str) -> Result<Option<Cow<'_, [f32]>>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(Array::F32(values))) => Ok(Some(Cow::Borrowed(values))),
            Some(Value::Array(Array::F64(values))) => {
                Ok(Some(values.iter().map(|&value| value as f32).collect()))
            }
            Some(other) => Err(mismatch(key, "an array of floating-point numbers", other)),
        }
    }

    /// The array of strings at `key`, or `None` when the key is absent.
    ///
    /// # Errors
    /// [`Error::ValueType`] when the value is not an array of strings.
    pub fn strings(&self, key: &str) -> Result<Option<&StringArray>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(Array::String(strings))) => Ok(Some(strings)),
            Some(other) => Err(mismatch(key, "an array of strings", other)),
        }
    }

    /// The array of strings at `key`.
    ///
    /// # Errors
    /// [`Error::MissingKey`] when the key is absent, [`Error::ValueType`] when the value is not an array
    /// of strings.
    pub fn require_strings(&self, key: &str) -> Result<&StringArray> {
        self.strings(key)?.ok_or_else(|| missing(key))
    }

    /// Reads `count` pairs.
    pub(super) fn read(cursor: &mut Cursor<'_>, count: usize) -> Result<Self> {
        let mut metadata = Self::new();
        for _ in 0..count {
            let key = cursor.string_within(parse::MAX_KEY_BYTES, "a metadata key")?;
            if metadata.index.contains_key(key) {
                return Err(Error::DuplicateKey { key: key.to_owned() });
            }
            let value = Value::read(cursor, key)?;
            metadata.insert(key, value)?;
        }
        Ok(metadata)
    }

    /// Power of two that tensors are aligned to: `general.alignment`, by default 32.
    pub(super) fn alignment(&self) -> Result<u64> {
        let alignment = self.u32("general.alignment")?.unwrap_or(super::DEFAULT_ALIGNMENT).into();
        if u64::is_power_of_two(alignment) {
            Ok(alignment)
        } else {
            Err(Error::InvalidAlignment { found: alignment })
        }
    }
}

fn missing(key: &str) -> Error {
    Error::MissingKey { key: key.to_owned() }
}

fn mismatch(key: &str, expected: &'static str, found: &Value) -> Error {
    Error::ValueType { key: key.to_owned(), expected, found: found.type_name() }
}

fn out_of_range(key: &str, expected: &'static str, found: i128) -> Error {
    Error::ValueRange { key: key.to_owned(), expected, found }
}
