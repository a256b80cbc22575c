//! Numbers in a mapped file or, once they grow, in memory; always aligned to a cache line.

use bytemuck::{Pod, Zeroable};
use memmap2::MmapMut;
use std::{fmt, ops::Deref};

/// A cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

// SAFETY: an array of bytes, for which every pattern is valid, without padding.
unsafe impl Zeroable for Line {}
// SAFETY: as above.
unsafe impl Pod for Line {}

/// A growable array of plain numbers, aligned to 64 bytes.
///
/// Multi-byte numbers have the byte order of the machine; files of sections are for machines
/// with the same one.
///
/// ```
/// use breakers_files::Buffer;
///
/// let mut numbers = Buffer::<u32>::new();
/// numbers.extend(&[1, 2, 3]);
/// numbers.make_mut()[0] = 7;
/// assert_eq!(&*numbers, &[7, 2, 3]);
/// assert!(numbers.as_ptr().addr().is_multiple_of(64));
/// ```
pub struct Buffer<T> {
    place: Place,
    len: usize,
    element: std::marker::PhantomData<T>,
}

enum Place {
    /// A private mapping: writes stay in memory and do not reach the file.
    Mapped {
        map: MmapMut,
        start: usize,
    },
    Owned(Vec<Line>),
}

impl<T: Pod> Buffer<T> {
    /// An empty array.
    pub const fn new() -> Self {
        Self { place: Place::Owned(Vec::new()), len: 0, element: std::marker::PhantomData }
    }

    /// The elements in a private mapping from byte `start` on; `None` if the mapping is too
    /// short or misaligned.
    pub fn mapped(map: MmapMut, start: usize, len: usize) -> Option<Self> {
        let end = len.checked_mul(size_of::<T>()).and_then(|bytes| bytes.checked_add(start))?;
        let aligned = (map.as_ptr() as usize + start).is_multiple_of(align_of::<T>());
        (end <= map.len() && aligned).then(|| Self {
            place: Place::Mapped { map, start },
            len,
            element: std::marker::PhantomData,
        })
    }

    /// Reserves room for `n` elements in total, so that they need not be moved later, if there is that much
    /// memory. Memory that is never written to is only reserved, not used.
    pub fn reserve(&mut self, n: usize) {
        let n_lines = n.saturating_mul(size_of::<T>()).div_ceil(64);
        if let Place::Owned(lines) = &mut self.place {
            // If this fails, they are moved as they grow.
            let _ = lines.try_reserve_exact(n_lines.saturating_sub(lines.len()));
        }
    }

    /// Appends zeros.
    pub fn extend_zeroed(&mut self, n: usize) {
        if let Place::Mapped { .. } = self.place {
            let mut lines = vec![Line::zeroed(); (size_of_val(&**self)).div_ceil(64)];
            let bytes: &[u8] = bytemuck::cast_slice(self);
            bytemuck::cast_slice_mut::<Line, u8>(&mut lines)[..bytes.len()].copy_from_slice(bytes);
            self.place = Place::Owned(lines);
        }
        self.len += n;
        let n_lines = (self.len * size_of::<T>()).div_ceil(64);
        if let Place::Owned(lines) = &mut self.place {
            lines.resize(n_lines, Line::zeroed());
        }
    }

    /// Appends copies of `values`.
    pub fn extend(&mut self, values: &[T]) {
        let start = self.len;
        self.extend_zeroed(values.len());
        self.make_mut()[start..].copy_from_slice(values);
    }

    /// The elements, mutably. A mapped file does not change.
    pub fn make_mut(&mut self) -> &mut [T] {
        let bytes = match &mut self.place {
            Place::Mapped { map, start } => &mut map[*start..],
            Place::Owned(lines) => bytemuck::cast_slice_mut(lines),
        };
        bytemuck::cast_slice_mut(&mut bytes[..self.len * size_of::<T>()])
    }
}

impl<T: Pod> Default for Buffer<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Pod> Deref for Buffer<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        let bytes = match &self.place {
            Place::Mapped { map, start } => &map[*start..],
            Place::Owned(lines) => bytemuck::cast_slice(lines),
        };
        bytemuck::cast_slice(&bytes[..self.len * size_of::<T>()])
    }
}

impl<T: Pod> Clone for Buffer<T> {
    fn clone(&self) -> Self {
        let mut copy = Self::new();
        copy.extend(self);
        copy
    }
}

impl<T: Pod> fmt::Debug for Buffer<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Buffer of {} × {} bytes", self.len, size_of::<T>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_with_room_is_not_moved() {
        let mut buffer = Buffer::<u32>::new();
        buffer.reserve(1000);
        buffer.extend(&[1, 2]);
        let start = buffer.as_ptr();
        buffer.extend_zeroed(998);
        assert_eq!((buffer.as_ptr(), buffer.len(), buffer[1]), (start, 1000, 2));
        buffer.reserve(10);
        buffer.reserve(usize::MAX);
        assert_eq!(buffer.as_ptr(), start);
    }

    #[test]
    fn a_buffer_grows_out_of_its_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [7u8; 256]).unwrap();
        let open = || {
            let file = std::fs::File::open(file.path()).unwrap();
            // SAFETY: nobody changes the file.
            unsafe { memmap2::MmapOptions::new().map_copy(&file) }.unwrap()
        };
        assert!(Buffer::<u32>::mapped(open(), 64, 49).is_none());
        assert!(Buffer::<u32>::mapped(open(), 2, 4).is_none());
        assert!(Buffer::<u32>::mapped(open(), 64, usize::MAX).is_none());
        let mut buffer = Buffer::<u32>::mapped(open(), 64, 48).unwrap();
        buffer.make_mut()[3] = 5;
        assert_eq!((buffer[2], buffer[3], buffer.len()), (0x0707_0707, 5, 48));
        buffer.extend(&[1, 2]);
        assert_eq!((buffer[3], buffer[47], buffer[48], buffer[49]), (5, 0x0707_0707, 1, 2));
        assert_eq!(buffer.as_ptr() as usize % 64, 0);
        assert_eq!(std::fs::read(file.path()).unwrap(), [7u8; 256]);
    }
}
