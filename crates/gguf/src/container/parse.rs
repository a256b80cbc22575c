//! Bounded reading of little-endian values.

use std::borrow::Cow;

use crate::{Error, Result};

/// Keys may have at most 2^16 - 1 bytes by the specification.
pub(super) const MAX_KEY_BYTES: u64 = u16::MAX as u64;

/// A position within the bytes of a file. Everything is checked against the bytes that are left, so a count
/// found in a file never determines an allocation by itself.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
}

macro_rules! scalars {
    ($($name:ident),*) => {$(
        pub(super) fn $name(&mut self, what: &'static str) -> Result<$name> {
            let bytes = self.take(size_of::<$name>() as u64, what)?;
            // `take` returned just as many bytes.
            Ok($name::from_le_bytes(bytes.try_into().unwrap_or_default()))
        }
    )*};
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0 }
    }

    pub(super) fn position(&self) -> usize {
        self.position
    }

    pub(super) fn remaining(&self) -> usize {
        self.bytes.len() - self.position
    }

    /// The next `n` bytes.
    pub(super) fn take(&mut self, n: u64, what: &'static str) -> Result<&'a [u8]> {
        let available = self.remaining();
        match usize::try_from(n) {
            Ok(n) if n <= available => {
                let start = self.position;
                self.position += n;
                Ok(&self.bytes[start..self.position])
            }
            _ => Err(Error::Truncated { what, position: self.position, needed: n, available }),
        }
    }

    scalars!(u8, i8, u16, i16, u32, i32, u64, i64, f32, f64);

    /// A count of things that take at least `min_bytes` each.
    pub(super) fn count(&mut self, min_bytes: usize, what: &'static str) -> Result<usize> {
        let position = self.position;
        let found = self.u64(what)?;
        let limit = self.remaining() / min_bytes;
        match usize::try_from(found) {
            Ok(count) if count <= limit => Ok(count),
            _ => Err(Error::CountTooLarge { what, position, found, limit: limit as u64 }),
        }
    }

    /// A string: its length, then that many bytes of UTF-8.
    pub(super) fn string(&mut self, what: &'static str) -> Result<&'a str> {
        self.string_within(u64::MAX, what)
    }

    /// The string at a key. Real files have strings that are not UTF-8 under keys that nobody uses. They do
    /// not make a file invalid; a reader sees U+FFFD in them.
    pub(super) fn metadata_string(&mut self, key: &str) -> Result<Cow<'a, str>> {
        const WHAT: &str = "a metadata string";
        let length = self.u64(WHAT)?;
        let text = String::from_utf8_lossy(self.take(length, WHAT)?);
        if let Cow::Owned(_) = text {
            tracing::warn!("{key} is not UTF-8; bytes that are no character are read as U+FFFD");
        }
        Ok(text)
    }

    /// A string of at most `limit` bytes.
    pub(super) fn string_within(&mut self, limit: u64, what: &'static str) -> Result<&'a str> {
        let length_at = self.position;
        let length = self.u64(what)?;
        if length > limit {
            return Err(Error::CountTooLarge { what, position: length_at, found: length, limit });
        }
        let position = self.position;
        std::str::from_utf8(self.take(length, what)?).map_err(|_| Error::InvalidUtf8 { what, position })
    }
}
