//! Matrices in row-major slices.

use crate::pool;

/// The transpose, `[n_cols, n_rows]`. Values after the last whole row are ignored.
///
/// # Shapes
/// - `values`: `[n_rows, n_cols]`
///
/// # Example
/// ```
/// use breakers_cpu::matrix::transposed;
///
/// assert_eq!(transposed(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 3), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
/// assert!(transposed(&[], 0).is_empty());
/// ```
pub fn transposed(values: &[f32], n_cols: usize) -> Vec<f32> {
    let n_rows = values.len().checked_div(n_cols).unwrap_or(0);
    let mut out = vec![0.0; n_rows * n_cols];
    // Blocks of 32 columns: their cache lines stay in the cache while the loop goes through the rows.
    pool::parallel_chunks_mut(&mut out, 32 * n_rows.max(1), |start, lines| {
        let first = start / n_rows.max(1);
        for row in 0..n_rows {
            for (col, line) in lines.chunks_exact_mut(n_rows).enumerate() {
                line[row] = values[row * n_cols + first + col];
            }
        }
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_become_columns() {
        for (n_rows, n_cols) in [(1, 1), (3, 70), (65, 2), (40, 100)] {
            let values: Vec<f32> = (0..n_rows * n_cols).map(|i| i as f32).collect();
            let found = transposed(&values, n_cols);
            for (i, x) in found.iter().enumerate() {
                assert_eq!(*x, values[i % n_rows * n_cols + i / n_rows]);
            }
        }
        assert!(transposed(&[1.0], 2).is_empty());
    }
}
