use std::ops::Range;
use std::sync::Arc;

use crate::tree;
use crate::{Error, Result};

/// Which keys each row of a call sees.
///
/// Keys are counted from 0 in the order in which the call gets them. The result of a row that sees no key is
/// zero.
///
/// # Example
/// ```
/// use breakers_kv_cache::Visible;
///
/// // Two rows after five keys; each sees the keys before it and its own, but no further back than 3.
/// let visible = Visible::causal(5, 2, Some(3));
/// assert_eq!(visible.keys(0).collect::<Vec<_>>(), [3, 4, 5]);
/// assert_eq!(visible.keys(1).collect::<Vec<_>>(), [4, 5, 6]);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Visible {
    n_keys: usize,
    /// For each row the keys that it sees; in a tree, as if its path were a chain.
    pub(crate) spans: Vec<Range<usize>>,
    pub(crate) tree: Option<TreeRows>,
}

/// The paths of a token tree's rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TreeRows {
    /// Keys before the step; row i of the step has key `prefix + i`.
    pub(crate) prefix: usize,
    /// For each row its ancestors, oldest first, and itself.
    pub(crate) paths: Arc<Vec<Vec<usize>>>,
}

impl Visible {
    /// Every row sees all keys, as in an encoder.
    pub fn all(n_rows: usize, n_keys: usize) -> Self {
        Self { n_keys, spans: vec![0..n_keys; n_rows], tree: None }
    }

    /// The rows come after `n_before` keys and add one key each. A row sees the keys before it and its own;
    /// with a window, only that many keys, including its own.
    pub fn causal(n_before: usize, n_rows: usize, window: Option<usize>) -> Self {
        let spans = (0..n_rows).map(|row| span(n_before + row + 1, window)).collect();
        Self { n_keys: n_before.saturating_add(n_rows), spans, tree: None }
    }

    /// The rows come after `n_before` keys and form a tree. A row sees the keys before the tree, its
    /// ancestors and itself; with a window, only the last of these.
    ///
    /// `parents` has the parent of each row, `None` for rows that follow the keys before the tree.
    ///
    /// # Errors
    /// [`StepError::InvalidParent`](breakers_core::StepError::InvalidParent) if a parent does not come before
    /// its child.
    pub fn tree(n_before: usize, parents: &[Option<usize>], window: Option<usize>) -> Result<Self> {
        let depths = tree::depths(parents.len(), Some(parents))?;
        let paths = (!tree::is_chain(parents)).then(|| Arc::new(tree::paths(parents)));
        Ok(Self::step(n_before, &depths, paths.as_ref(), window))
    }

    /// As [`Visible::causal`], or, with paths, as [`Visible::tree`].
    pub(crate) fn step(
        n_before: usize,
        depths: &[usize],
        paths: Option<&Arc<Vec<Vec<usize>>>>,
        window: Option<usize>,
    ) -> Self {
        let spans = depths.iter().map(|depth| span(n_before + depth + 1, window)).collect();
        let tree = paths.map(|paths| TreeRows { prefix: n_before, paths: Arc::clone(paths) });
        Self { n_keys: n_before + depths.len(), spans, tree }
    }

    /// Number of rows.
    pub fn n_rows(&self) -> usize {
        self.spans.len()
    }

    /// Number of keys.
    pub fn n_keys(&self) -> usize {
        self.n_keys
    }

    /// The keys that a row sees, in the order of its path; none for a row that does not exist.
    pub fn keys(&self, row: usize) -> impl Iterator<Item = usize> + '_ {
        let span = self.spans.get(row).cloned().unwrap_or_default();
        span.map(move |slot| match &self.tree {
            Some(tree) if slot >= tree.prefix => tree.prefix + tree.paths[row][slot - tree.prefix],
            _ => slot,
        })
    }

    /// 1 where a row sees a key, 0 elsewhere: `[n_rows, n_keys]`.
    pub fn mask(&self) -> Vec<f32> {
        let mut mask = vec![0.0; self.n_rows() * self.n_keys];
        for row in 0..self.n_rows() {
            for key in self.keys(row) {
                mask[row * self.n_keys + key] = 1.0;
            }
        }
        mask
    }

    /// Fails unless there are as many rows and keys.
    pub(crate) fn check(&self, n_rows: usize, n_keys: usize) -> Result<()> {
        if (self.n_rows(), self.n_keys) == (n_rows, n_keys) {
            return Ok(());
        }
        Err(Error::VisibleShape { expected: [n_rows, n_keys], found: [self.n_rows(), self.n_keys] })
    }
}

fn span(end: usize, window: Option<usize>) -> Range<usize> {
    window.map_or(0, |window| end.saturating_sub(window))..end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_say_who_sees_whom() {
        let check = |visible: Visible, want: &[&str]| {
            let mask: Vec<String> = visible
                .mask()
                .chunks(visible.n_keys())
                .map(|row| row.iter().map(|x| if *x == 1.0 { '1' } else { '0' }).collect())
                .collect();
            assert_eq!(mask, want);
        };
        check(Visible::all(2, 3), &["111", "111"]);
        check(Visible::causal(2, 3, None), &["11100", "11110", "11111"]);
        check(Visible::causal(2, 3, Some(2)), &["01100", "00110", "00011"]);
        let parents = [None, Some(0), Some(0), Some(2)];
        check(Visible::tree(1, &parents, None).unwrap(), &["11000", "11100", "11010", "11011"]);
        check(Visible::tree(1, &parents, Some(2)).unwrap(), &["11000", "01100", "01010", "00011"]);
        let chain = Visible::tree(1, &[None, Some(0)], None).unwrap();
        assert_eq!(chain, Visible::causal(1, 2, None));
        assert_eq!(
            Visible::tree(1, &[Some(0)], None),
            Err(breakers_core::StepError::InvalidParent { row: 0, parent: 0 }.into())
        );
    }
}
