use std::{marker::PhantomData, ops::Range};

/// A mutable slice shared by tasks that write disjoint ranges of it.
///
/// # Example
/// ```
/// use breakers_cpu::pool::{self, DisjointMut};
///
/// // A matrix of 3 rows and 4 columns, written by columns.
/// let mut matrix = [0; 12];
/// let shared = DisjointMut::new(&mut matrix);
/// pool::parallel_for(4, |column| {
///     for row in 0..3 {
///         // SAFETY: each element belongs to one column, and each column to one task.
///         unsafe { shared.slice_mut(row * 4 + column..row * 4 + column + 1)[0] = column };
///     }
/// });
/// assert_eq!(matrix, [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3]);
/// ```
#[derive(Debug)]
pub struct DisjointMut<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: it stands for a `&mut [T]`, which may be sent if `T` may.
unsafe impl<T: Send> Send for DisjointMut<'_, T> {}
// SAFETY: through a shared reference only disjoint `&mut` pieces can be had (the contract of `slice_mut`),
// and a piece may be sent to another thread if `T` may.
unsafe impl<T: Send> Sync for DisjointMut<'_, T> {}

impl<'a, T> DisjointMut<'a, T> {
    /// Shares the slice for as long as the value lives.
    pub fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// Number of elements of the whole slice.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the slice holds no element.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements of `range`.
    ///
    /// # Safety
    /// - While the result lives, no other result of this method may overlap `range`.
    ///
    /// # Panics
    /// If `range` is reversed or reaches beyond the slice.
    #[inline]
    #[allow(clippy::mut_from_ref)] // The contract above keeps the pieces disjoint.
    pub unsafe fn slice_mut(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} is not within 0..{}", self.len);
        // SAFETY: the range lies within the slice borrowed in `new`, and the caller keeps the pieces apart.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.end - range.start) }
    }

    /// Writes one element.
    ///
    /// # Safety
    /// - No other thread may read or write the element at the same time, and no result of
    ///   [`slice_mut`](Self::slice_mut) that holds it may be alive.
    ///
    /// # Panics
    /// If `index` is beyond the slice.
    #[inline]
    pub unsafe fn write(&self, index: usize, value: T) {
        // SAFETY: the caller grants this one element.
        unsafe { self.slice_mut(index..index + 1)[0] = value };
    }
}
