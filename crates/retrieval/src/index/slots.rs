//! Which slots are in use. All indexes share this bookkeeping.

use super::MAX_SLOTS;
use crate::{Bitset, Error, Result};

/// The slots of an index.
#[derive(Debug)]
pub(crate) struct Slots {
    /// Those that searches return.
    pub(crate) live: Bitset,
    pub(crate) n_live: usize,
    /// Those to hand out again.
    pub(crate) free: Vec<u32>,
}

impl Default for Slots {
    fn default() -> Self {
        Self { live: Bitset::new(0), n_live: 0, free: Vec::new() }
    }
}

impl Slots {
    /// A slot for a new vector if there are `n` slots: a free one, or the one after the last.
    ///
    /// # Errors
    /// [`Error::Full`].
    pub(crate) fn take(&mut self, n: usize) -> Result<u32> {
        match self.free.pop() {
            Some(slot) => Ok(slot),
            None if n >= MAX_SLOTS => Err(Error::Full { max: MAX_SLOTS }),
            None => {
                self.live.grow(n + 1);
                Ok(n as u32)
            }
        }
    }

    /// Makes a slot visible to searches.
    pub(crate) fn show(&mut self, slot: u32) {
        self.live.insert(slot);
        self.n_live += 1;
    }

    /// Hides a slot without freeing it. Returns whether it was live.
    pub(crate) fn retire(&mut self, slot: u32) -> bool {
        let was = self.live.contains(slot);
        if was {
            self.live.remove(slot);
            self.n_live -= 1;
        }
        was
    }

    /// Hides a slot and frees it at once. Returns whether it was live.
    pub(crate) fn remove(&mut self, slot: u32) -> bool {
        let was = self.retire(slot);
        if was {
            self.free.push(slot);
        }
        was
    }
}
