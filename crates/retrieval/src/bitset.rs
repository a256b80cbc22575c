//! Sets of slots.

/// A set of numbers below a bound, with one bit for each.
///
/// # Example
/// ```
/// use breakers_retrieval::Bitset;
///
/// let mut even = Bitset::new(10);
/// (0..10).step_by(2).for_each(|number| even.insert(number));
/// let mut small = Bitset::new(10);
/// (0..5).for_each(|number| small.insert(number));
///
/// even.intersect(&small);
/// assert_eq!(even.iter().collect::<Vec<_>>(), [0, 2, 4]);
/// assert!(even.contains(2) && !even.contains(8) && even.count() == 3);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bitset {
    words: Vec<u64>,
    len: usize,
}

impl Bitset {
    /// The empty set of numbers below `len`.
    pub fn new(len: usize) -> Self {
        Self { words: vec![0; len.div_ceil(64)], len }
    }

    /// All numbers below `len`.
    pub fn full(len: usize) -> Self {
        let mut set = Self { words: vec![u64::MAX; len.div_ceil(64)], len };
        set.trim();
        set
    }

    pub(crate) fn from_words(words: Vec<u64>, len: usize) -> Self {
        let mut set = Self { words, len };
        set.words.resize(len.div_ceil(64), 0);
        set.trim();
        set
    }

    fn trim(&mut self) {
        if !self.len.is_multiple_of(64)
            && let Some(last) = self.words.last_mut()
        {
            *last &= (1 << (self.len % 64)) - 1;
        }
    }

    /// The bound: every number in the set is below it.
    #[allow(clippy::len_without_is_empty)] // It is the bound and not the count.
    pub fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn words(&self) -> &[u64] {
        &self.words
    }

    /// Raises the bound.
    pub fn grow(&mut self, len: usize) {
        self.len = self.len.max(len);
        self.words.resize(self.len.div_ceil(64), 0);
    }

    /// Whether the number is in the set; numbers beyond the bound are not.
    #[inline]
    pub fn contains(&self, number: u32) -> bool {
        self.words.get(number as usize / 64).is_some_and(|word| word >> (number % 64) & 1 == 1)
    }

    /// Adds a number; the bound rises if it must.
    pub fn insert(&mut self, number: u32) {
        self.grow(number as usize + 1);
        self.words[number as usize / 64] |= 1 << (number % 64);
    }

    /// Removes a number.
    pub fn remove(&mut self, number: u32) {
        if let Some(word) = self.words.get_mut(number as usize / 64) {
            *word &= !(1 << (number % 64));
        }
    }

    /// How many numbers are in the set.
    pub fn count(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// The numbers, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.words.iter().enumerate().flat_map(|(i, &word)| {
            let mut left = word;
            std::iter::from_fn(move || {
                (left != 0).then(|| {
                    let bit = left.trailing_zeros();
                    left &= left - 1;
                    i as u32 * 64 + bit
                })
            })
        })
    }

    /// Keeps the numbers that are in the other set too.
    pub fn intersect(&mut self, other: &Self) {
        for (i, word) in self.words.iter_mut().enumerate() {
            *word &= other.words.get(i).copied().unwrap_or(0);
        }
    }

    /// Adds the numbers of the other set.
    pub fn unite(&mut self, other: &Self) {
        self.grow(other.len);
        self.words.iter_mut().zip(&other.words).for_each(|(word, other)| *word |= other);
    }

    /// Removes the numbers of the other set.
    pub fn subtract(&mut self, other: &Self) {
        self.words.iter_mut().zip(&other.words).for_each(|(word, other)| *word &= !other);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn it_is_a_set(a in prop::collection::btree_set(0u32..300, 0..80), b in prop::collection::btree_set(0u32..300, 0..80)) {
            let make = |numbers: &BTreeSet<u32>| {
                let mut set = Bitset::new(10);
                numbers.iter().for_each(|&n| set.insert(n));
                set
            };
            let list = |set: &Bitset| set.iter().collect::<Vec<_>>();
            let (x, y) = (make(&a), make(&b));
            prop_assert_eq!(x.count(), a.len());
            prop_assert!((0..400).all(|n| x.contains(n) == a.contains(&n)));
            let combined = |f: fn(&mut Bitset, &Bitset)| { let mut z = x.clone(); f(&mut z, &y); list(&z) };
            prop_assert_eq!(combined(Bitset::intersect), a.intersection(&b).copied().collect::<Vec<_>>());
            prop_assert_eq!(combined(Bitset::unite), a.union(&b).copied().collect::<Vec<_>>());
            prop_assert_eq!(combined(Bitset::subtract), a.difference(&b).copied().collect::<Vec<_>>());
            let mut fewer = x.clone();
            a.iter().take(3).for_each(|&n| fewer.remove(n));
            prop_assert_eq!(list(&fewer), a.iter().copied().skip(3).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_full_set_ends_at_its_bound() {
        for len in [0, 1, 63, 64, 65, 200] {
            assert_eq!(Bitset::full(len).count(), len);
            assert!(!Bitset::full(len).contains(len as u32));
        }
    }
}
