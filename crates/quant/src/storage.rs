//! Memory for packed weights.
//!
//! A product sweeps through weights faster than the processor walks page tables, so that they should lie in huge pages; but a
//! huge page is as large as several matrices of a small model, and mappings of their own leave the ends of the larger ones in
//! small pages. So matrices share mappings, one behind the other.
//!
//! # Memory
//! At most a huge page (2 MiB) for each [`CHUNK`] beside the weights. What a matrix leaves is given back as it is dropped.

use memmap2::{MmapMut, MmapRaw};
use std::{
    io,
    ops::{Deref, DerefMut, Range},
    sync::{Arc, Mutex, PoisonError, Weak},
};

/// Bytes of a mapping, if no matrix needs more.
const CHUNK: usize = 64 << 20;
/// Alignment of matrices within a mapping: small pages of most processors.
const PAGE: usize = 4096;
/// The largest small pages of any processor: what is given back begins and ends on one.
const LARGEST_PAGE: usize = 64 << 10;
/// Bytes of a huge page on the processors at hand; elsewhere it aligns mappings more than they need.
const HUGE_PAGE: usize = 2 << 20;

/// A mapping, of which matrices take parts that nobody else ever gets.
struct Chunk {
    map: MmapRaw,
}

/// The mapping that new matrices go to, and how much of it is taken.
static CURRENT: Mutex<(Weak<Chunk>, usize)> = Mutex::new((Weak::new(), 0));

/// Bytes that are zero at first, aligned to a page.
pub(crate) struct Storage {
    chunk: Arc<Chunk>,
    range: Range<usize>,
}

impl Storage {
    /// # Errors
    /// When the system has no memory for so many bytes.
    pub(crate) fn zeroed(n_bytes: usize) -> io::Result<Self> {
        let taken = n_bytes.max(1).checked_next_multiple_of(PAGE).ok_or(io::ErrorKind::OutOfMemory)?;
        let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(chunk) = current.0.upgrade()
            && chunk.map.len() - current.1 >= taken
        {
            let start = current.1;
            current.1 += taken;
            return Ok(Self { chunk, range: start..start + n_bytes });
        }
        let (chunk, start) = Chunk::new(taken.max(CHUNK))?;
        let rest = |chunk: Option<Arc<Chunk>>, used: usize| chunk.map_or(0, |chunk| chunk.map.len() - used);
        // The mapping with more room goes on being filled.
        if rest(Some(chunk.clone()), start + taken) >= rest(current.0.upgrade(), current.1) {
            *current = (Arc::downgrade(&chunk), start + taken);
        }
        Ok(Self { chunk, range: start..start + n_bytes })
    }
}

impl Chunk {
    /// A mapping of at least so many bytes from its first huge page on, and where that begins.
    fn new(n_bytes: usize) -> io::Result<(Arc<Self>, usize)> {
        let mapped = n_bytes.checked_add(HUGE_PAGE).ok_or(io::ErrorKind::OutOfMemory)?;
        let map = MmapRaw::from(MmapMut::map_anon(mapped)?);
        #[cfg(target_os = "linux")]
        if let Err(error) = map.advise(memmap2::Advice::HugePage) {
            tracing::debug!(%error, "weights do without huge pages");
        }
        let start = (map.as_ptr() as usize).next_multiple_of(HUGE_PAGE) - map.as_ptr() as usize;
        Ok((Arc::new(Self { map }), start))
    }
}

impl Deref for Storage {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the range lies within the mapping, which lives as long as this, and belongs to nobody else.
        unsafe { std::slice::from_raw_parts(self.chunk.map.as_ptr().add(self.range.start), self.range.len()) }
    }
}

impl DerefMut for Storage {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and nobody else borrows this.
        unsafe {
            std::slice::from_raw_parts_mut(
                self.chunk.map.as_mut_ptr().add(self.range.start),
                self.range.len(),
            )
        }
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        // The last one unmaps the whole.
        #[cfg(target_os = "linux")]
        if Arc::strong_count(&self.chunk) > 1 {
            let start = self.range.start.next_multiple_of(LARGEST_PAGE);
            let n_bytes = self.range.end.saturating_sub(start) / LARGEST_PAGE * LARGEST_PAGE;
            let advice = memmap2::UncheckedAdvice::DontNeed;
            // SAFETY: these bytes are this matrix's alone, which nobody reads any more.
            let given = unsafe { self.chunk.map.unchecked_advise_range(advice, start, n_bytes) };
            if let Err(error) = given {
                tracing::debug!(%error, "memory of weights stays until its neighbors go");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_zero_apart_and_outlive_their_neighbors() {
        let mut state = 1usize;
        let mut kept: Vec<(Storage, u8)> = Vec::new();
        for round in 0..100u32 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let n_bytes = match round % 50 {
                7 => CHUNK + 12_345,
                8 => 0,
                _ => (state >> 33) % 1_500_000,
            };
            let mut storage = Storage::zeroed(n_bytes).unwrap();
            assert_eq!(storage.len(), n_bytes);
            assert_eq!(storage.as_ptr() as usize % PAGE, 0);
            assert!(storage.iter().all(|byte| *byte == 0), "round {round}");
            storage.fill(round as u8 | 1);
            kept.push((storage, round as u8 | 1));
            if state.is_multiple_of(3) {
                kept.swap_remove((state >> 40) % kept.len());
            }
        }
        for (storage, value) in &kept {
            assert!(storage.iter().all(|byte| byte == value));
        }
        assert!(Storage::zeroed(usize::MAX).is_err() && Storage::zeroed(usize::MAX - (4 << 20)).is_err());
    }
}
