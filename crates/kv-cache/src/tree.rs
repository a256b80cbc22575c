//! Token trees: rows of one step that continue the same prefix in several ways.

use crate::Result;
use breakers_core::StepError;

/// Checks the parents of a step, and returns the number of each row's ancestors in the step.
pub(crate) fn depths(n_rows: usize, parents: Option<&[Option<usize>]>) -> Result<Vec<usize>> {
    let Some(parents) = parents else { return Ok((0..n_rows).collect()) };
    if parents.len() != n_rows {
        return Err(StepError::RowCount { what: "parents", expected: n_rows, found: parents.len() }.into());
    }
    let mut depths = Vec::with_capacity(n_rows);
    for (row, &parent) in parents.iter().enumerate() {
        depths.push(match parent {
            None => 0,
            Some(parent) if parent < row => depths[parent] + 1,
            Some(parent) => return Err(StepError::InvalidParent { row, parent }.into()),
        });
    }
    Ok(depths)
}

/// The parent of row `row` in a chain.
pub(crate) fn chain_parent(row: usize) -> Option<usize> {
    row.checked_sub(1)
}

/// Whether each row follows the one before it.
pub(crate) fn is_chain(parents: &[Option<usize>]) -> bool {
    parents.iter().enumerate().all(|(row, &parent)| parent == chain_parent(row))
}

/// The ancestors of each row, oldest first, and the row itself.
pub(crate) fn paths(parents: &[Option<usize>]) -> Vec<Vec<usize>> {
    let mut paths: Vec<Vec<usize>> = Vec::with_capacity(parents.len());
    for (row, &parent) in parents.iter().enumerate() {
        let mut path = parent.map_or_else(Vec::new, |parent| paths[parent].clone());
        path.push(row);
        paths.push(path);
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_counts_ancestors() {
        let tree = [None, Some(0), Some(0), Some(1), None];
        assert_eq!(depths(5, Some(&tree)).unwrap(), [0, 1, 1, 2, 0]);
        assert_eq!(depths(3, None).unwrap(), [0, 1, 2]);
        assert_eq!(paths(&tree), [vec![0], vec![0, 1], vec![0, 2], vec![0, 1, 3], vec![4]]);
        assert!(!is_chain(&tree));
        assert!(is_chain(&[None, Some(0), Some(1)]));
    }

    #[test]
    fn impossible_parents_are_refused() {
        assert_eq!(
            depths(2, Some(&[None])),
            Err(StepError::RowCount { what: "parents", expected: 2, found: 1 }.into())
        );
        for parent in [1, 2, usize::MAX] {
            let found = depths(2, Some(&[None, Some(parent)]));
            assert_eq!(found, Err(StepError::InvalidParent { row: 1, parent }.into()));
        }
    }
}
