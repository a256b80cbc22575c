//! Metadata values.

use super::parse::Cursor;
use crate::{Error, Result};

/// A metadata value, in its stored type.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
#[allow(missing_docs)] // the variants are the types they hold
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// A metadata array, with elements of their stored type. Arrays of arrays are refused.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
#[allow(missing_docs)] // the variants are the types of the elements
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(StringArray),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

/// Many strings in one buffer: a vocabulary of 262,144 tokens takes two allocations.
///
/// # Memory
/// The bytes of the strings, and 4 bytes per string.
///
/// ```
/// use breakers_gguf::StringArray;
///
/// let tokens: StringArray = ["the", " quick", ""].into_iter().collect();
/// assert_eq!(tokens.len(), 3);
/// assert_eq!(tokens.get(1), Some(" quick"));
/// assert_eq!(tokens.get(3), None);
/// assert_eq!(tokens.iter().map(str::len).sum::<usize>(), 9);
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
pub struct StringArray {
    text: String,
    /// `ends[i]` is where string `i` ends within `text`.
    ends: Vec<u32>,
}

impl StringArray {
    /// Number of strings.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether the list is empty.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The string at `index`, or `None` beyond the end.
    pub fn get(&self, index: usize) -> Option<&str> {
        let end = *self.ends.get(index)? as usize;
        let start = if index == 0 { 0 } else { self.ends[index - 1] as usize };
        self.text.get(start..end)
    }

    /// The strings in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> + DoubleEndedIterator {
        (0..self.len()).map(|index| self.get(index).unwrap_or_default())
    }

    /// Appends a string. Returns false, and changes nothing, if the buffer would exceed 4 GiB.
    fn push(&mut self, string: &str) -> bool {
        let Ok(end) = u32::try_from(self.text.len() + string.len()) else { return false };
        self.text.push_str(string);
        self.ends.push(end);
        true
    }

    fn read(cursor: &mut Cursor<'_>, count: usize) -> Result<Self> {
        const WHAT: &str = "a string in a metadata array";
        let mut array = Self { text: String::new(), ends: Vec::with_capacity(count) };
        for _ in 0..count {
            let position = cursor.position();
            let string = cursor.string(WHAT)?;
            if !array.push(string) {
                let found = (array.text.len() + string.len()) as u64;
                return Err(Error::CountTooLarge { what: WHAT, position, found, limit: u32::MAX.into() });
            }
        }
        array.text.shrink_to_fit();
        Ok(array)
    }
}

impl std::fmt::Debug for StringArray {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<S: AsRef<str>> FromIterator<S> for StringArray {
    /// Collects strings; those beyond 4 GiB of text are dropped.
    fn from_iter<I: IntoIterator<Item = S>>(strings: I) -> Self {
        let mut array = Self::default();
        for string in strings {
            if !array.push(string.as_ref()) {
                break;
            }
        }
        array
    }
}

/// GGUF's numbers for the value types.
pub(super) mod type_id {
    pub(crate) const U8: u32 = 0;
    pub(crate) const I8: u32 = 1;
    pub(crate) const U16: u32 = 2;
    pub(crate) const I16: u32 = 3;
    pub(crate) const U32: u32 = 4;
    pub(crate) const I32: u32 = 5;
    pub(crate) const F32: u32 = 6;
    pub(crate) const BOOL: u32 = 7;
    pub(crate) const STRING: u32 = 8;
    pub(crate) const ARRAY: u32 = 9;
    pub(crate) const U64: u32 = 10;
    pub(crate) const I64: u32 = 11;
    pub(crate) const F64: u32 = 12;
}

impl Value {
    /// Name of the type for error messages.
    pub fn type_name(&self) -> &'static str {
        match self {
            Value::U8(_) => "u8",
            Value::I8(_) => "i8",
            Value::U16(_) => "u16",
            Value::I16(_) => "i16",
            Value::U32(_) => "u32",
            Value::I32(_) => "i32",
            Value::F32(_) => "f32",
            Value::Bool(_) => "bool",
            Value::String(_) => "a string",
            Value::Array(array) => array.type_name(),
            Value::U64(_) => "u64",
            Value::I64(_) => "i64",
            Value::F64(_) => "f64",
        }
    }

    /// The value if it is an integer of any width.
    pub fn as_integer(&self) -> Option<i128> {
        Some(match *self {
            Value::U8(v) => v.into(),
            Value::I8(v) => v.into(),
            Value::U16(v) => v.into(),
            Value::I16(v) => v.into(),
            Value::U32(v) => v.into(),
            Value::I32(v) => v.into(),
            Value::U64(v) => v.into(),
            Value::I64(v) => v.into(),
            _ => return None,
        })
    }

    pub(super) fn type_id(&self) -> u32 {
        match self {
            Value::U8(_) => type_id::U8,
            Value::I8(_) => type_id::I8,
            Value::U16(_) => type_id::U16,
            Value::I16(_) => type_id::I16,
            Value::U32(_) => type_id::U32,
            Value::I32(_) => type_id::I32,
            Value::F32(_) => type_id::F32,
            Value::Bool(_) => type_id::BOOL,
            Value::String(_) => type_id::STRING,
            Value::Array(_) => type_id::ARRAY,
            Value::U64(_) => type_id::U64,
            Value::I64(_) => type_id::I64,
            Value::F64(_) => type_id::F64,
        }
    }

    /// Reads the value of `key`: its type, then its bytes.
    pub(super) fn read(cursor: &mut Cursor<'_>, key: &str) -> Result<Self> {
        const WHAT: &str = "a metadata value";
        let id = cursor.u32("the type of a metadata value")?;
        Ok(match id {
            type_id::U8 => Value::U8(cursor.u8(WHAT)?),
            type_id::I8 => Value::I8(cursor.i8(WHAT)?),
            type_id::U16 => Value::U16(cursor.u16(WHAT)?),
            type_id::I16 => Value::I16(cursor.i16(WHAT)?),
            type_id::U32 => Value::U32(cursor.u32(WHAT)?),
            type_id::I32 => Value::I32(cursor.i32(WHAT)?),
            type_id::F32 => Value::F32(cursor.f32(WHAT)?),
            type_id::BOOL => Value::Bool(to_bool(cursor.u8(WHAT)?, key)),
            type_id::STRING => Value::String(cursor.metadata_string(key)?.into_owned()),
            type_id::ARRAY => Value::Array(Array::read(cursor, key)?),
            type_id::U64 => Value::U64(cursor.u64(WHAT)?),
            type_id::I64 => Value::I64(cursor.i64(WHAT)?),
            type_id::F64 => Value::F64(cursor.f64(WHAT)?),
            found => return Err(Error::UnknownValueType { key: key.to_owned(), found }),
        })
    }

    /// Appends the type and the bytes of the value.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.extend(self.type_id().to_le_bytes());
        match self {
            Value::U8(v) => out.extend(v.to_le_bytes()),
            Value::I8(v) => out.extend(v.to_le_bytes()),
            Value::U16(v) => out.extend(v.to_le_bytes()),
            Value::I16(v) => out.extend(v.to_le_bytes()),
            Value::U32(v) => out.extend(v.to_le_bytes()),
            Value::I32(v) => out.extend(v.to_le_bytes()),
            Value::F32(v) => out.extend(v.to_le_bytes()),
            Value::Bool(v) => out.push(u8::from(*v)),
            Value::String(v) => write_string(out, v),
            Value::Array(v) => v.write(out),
            Value::U64(v) => out.extend(v.to_le_bytes()),
            Value::I64(v) => out.extend(v.to_le_bytes()),
            Value::F64(v) => out.extend(v.to_le_bytes()),
        }
    }
}

impl Array {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Array::U8(v) => v.len(),
            Array::I8(v) => v.len(),
            Array::U16(v) => v.len(),
            Array::I16(v) => v.len(),
            Array::U32(v) => v.len(),
            Array::I32(v) => v.len(),
            Array::F32(v) => v.len(),
            Array::Bool(v) => v.len(),
            Array::String(v) => v.len(),
            Array::U64(v) => v.len(),
            Array::I64(v) => v.len(),
            Array::F64(v) => v.len(),
        }
    }

    /// Whether the array is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Name of the type for error messages.
    pub fn type_name(&self) -> &'static str {
        match self {
            Array::U8(_) => "an array of u8",
            Array::I8(_) => "an array of i8",
            Array::U16(_) => "an array of u16",
            Array::I16(_) => "an array of i16",
            Array::U32(_) => "an array of u32",
            Array::I32(_) => "an array of i32",
            Array::F32(_) => "an array of f32",
            Array::Bool(_) => "an array of bool",
            Array::String(_) => "an array of strings",
            Array::U64(_) => "an array of u64",
            Array::I64(_) => "an array of i64",
            Array::F64(_) => "an array of f64",
        }
    }

    /// The elements if they are integers of any width.
    pub fn to_integers(&self) -> Option<Vec<i128>> {
        fn widen<T: Copy + Into<i128>>(values: &[T]) -> Vec<i128> {
            values.iter().map(|&value| value.into()).collect()
        }
        Some(match self {
            Array::U8(v) => widen(v),
            Array::I8(v) => widen(v),
            Array::U16(v) => widen(v),
            Array::I16(v) => widen(v),
            Array::U32(v) => widen(v),
            Array::I32(v) => widen(v),
            Array::U64(v) => widen(v),
            Array::I64(v) => widen(v),
            _ => return None,
        })
    }

    fn read(cursor: &mut Cursor<'_>, key: &str) -> Result<Self> {
        const COUNT: &str = "the length of a metadata array";
        const WHAT: &str = "a metadata array";
        macro_rules! numbers {
            ($type:ty) => {{
                let count = cursor.count(size_of::<$type>(), COUNT)?;
                let bytes = cursor.take((count * size_of::<$type>()) as u64, WHAT)?;
                let chunks = bytes.as_chunks::<{ size_of::<$type>() }>().0;
                chunks.iter().map(|&chunk| <$type>::from_le_bytes(chunk)).collect()
            }};
        }
        Ok(match cursor.u32("the element type of a metadata array")? {
            type_id::U8 => Array::U8(numbers!(u8)),
            type_id::I8 => Array::I8(numbers!(i8)),
            type_id::U16 => Array::U16(numbers!(u16)),
            type_id::I16 => Array::I16(numbers!(i16)),
            type_id::U32 => Array::U32(numbers!(u32)),
            type_id::I32 => Array::I32(numbers!(i32)),
            type_id::F32 => Array::F32(numbers!(f32)),
            type_id::BOOL => {
                let count = cursor.count(1, COUNT)?;
                let bytes = cursor.take(count as u64, WHAT)?;
                Array::Bool(bytes.iter().map(|&byte| to_bool(byte, key)).collect())
            }
            type_id::STRING => {
                let count = cursor.count(size_of::<u64>(), COUNT)?;
                Array::String(StringArray::read(cursor, count)?)
            }
            type_id::ARRAY => return Err(Error::NestedArray { key: key.to_owned() }),
            type_id::U64 => Array::U64(numbers!(u64)),
            type_id::I64 => Array::I64(numbers!(i64)),
            type_id::F64 => Array::F64(numbers!(f64)),
            found => return Err(Error::UnknownValueType { key: key.to_owned(), found }),
        })
    }

    fn element_type_id(&self) -> u32 {
        match self {
            Array::U8(_) => type_id::U8,
            Array::I8(_) => type_id::I8,
            Array::U16(_) => type_id::U16,
            Array::I16(_) => type_id::I16,
            Array::U32(_) => type_id::U32,
            Array::I32(_) => type_id::I32,
            Array::F32(_) => type_id::F32,
            Array::Bool(_) => type_id::BOOL,
            Array::String(_) => type_id::STRING,
            Array::U64(_) => type_id::U64,
            Array::I64(_) => type_id::I64,
            Array::F64(_) => type_id::F64,
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend(self.element_type_id().to_le_bytes());
        out.extend((self.len() as u64).to_le_bytes());
        match self {
            Array::U8(v) => out.extend(v),
            Array::I8(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
            Array::U16(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
            Array::I16(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
            Array::U32(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
            Array::I32(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
            Array::F32(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
            Array::Bool(v) => out.extend(v.iter().map(|&x| u8::from(x))),
            Array::String(v) => v.iter().for_each(|x| write_string(out, x)),
            Array::U64(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
            Array::I64(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
            Array::F64(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        }
    }
}

/// Appends a string: its length, then its bytes.
pub(super) fn write_string(out: &mut Vec<u8>, string: &str) {
    out.extend((string.len() as u64).to_le_bytes());
    out.extend(string.as_bytes());
}

/// Every byte except 0 is true, as in C; real files contain 255.
fn to_bool(byte: u8, key: &str) -> bool {
    if byte > 1 {
        tracing::warn!("{key} is the boolean {byte}, which is neither 0 nor 1; it is read as true");
    }
    byte != 0
}

macro_rules! from {
    ($($type:ty => $variant:ident),* $(,)?) => {$(
        impl From<$type> for Value {
            fn from(value: $type) -> Self {
                Value::$variant(value.into())
            }
        }
        impl From<Vec<$type>> for Value {
            fn from(values: Vec<$type>) -> Self {
                Value::Array(from!(@array $variant values))
            }
        }
    )*};
    (@array String $values:ident) => { Array::String($values.into_iter().collect()) };
    (@array $variant:ident $values:ident) => { Array::$variant($values) };
}

from! {
    u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, u64 => U64, i64 => I64,
    f32 => F32, f64 => F64, bool => Bool, String => String, &str => String,
}

impl From<StringArray> for Value {
    fn from(strings: StringArray) -> Self {
        Value::Array(Array::String(strings))
    }
}

impl From<Array> for Value {
    fn from(array: Array) -> Self {
        Value::Array(array)
    }
}
