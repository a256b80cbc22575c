use super::*;
use crate::statistics::StatisticsConfig;
use breakers_cpu::random::SplitMix64;
use breakers_gguf::Levels;

fn random(n: usize, seed: u64) -> Vec<f32> {
    let mut random = SplitMix64::new(seed);
    (0..n).map(|_| random.next_symmetric()).collect()
}

fn statistics(n: usize, n_rows: usize, seed: u64) -> Statistics {
    let mut statistics = Statistics::new(n, StatisticsConfig { hessian: true, ..Default::default() });
    let mut rows = random(n * n_rows, seed);
    // Neighbors depend on each other, and columns differ in size.
    for row in rows.chunks_exact_mut(n) {
        for i in 1..n {
            row[i] = (0.7 * row[i - 1] + row[i]) * (1.0 + (i % 5) as f32 * 0.3);
        }
    }
    statistics.observe(&rows).unwrap();
    statistics
}

fn steps(n_rows: usize, n_cols: usize, scale: f32) -> Grid {
    Grid::new(Levels::Steps { least: -4, n: 8 }, n_cols, n_rows, n_cols, |_, put| put(0, scale, 0.0))
}

/// GPTQ as the paper has it, column by column with an explicit inverse in `f64`: after each column the
/// remaining weights move by `-(w_q − q) / [H⁻¹]_qq · [H⁻¹]_q,:`, and the column is eliminated from the
/// inverse.
fn brute_force(hessian: &[f64], weights: &[f32], order: &[usize], scale: f64) -> Vec<f64> {
    let n = order.len();
    let mut inverse = invert(hessian, n);
    let mut out = vec![0.0; weights.len()];
    let mut rows: Vec<f64> = weights.iter().map(|&w| f64::from(w)).collect();
    for &q in order {
        let pivot = inverse[q * n + q];
        for (row, out) in rows.chunks_exact_mut(n).zip(out.chunks_exact_mut(n)) {
            out[q] = scale * (row[q] / scale).round_ties_even().clamp(-4.0, 3.0);
            let step = (row[q] - out[q]) / pivot;
            for j in 0..n {
                row[j] -= step * inverse[q * n + j];
            }
        }
        let line: Vec<f64> = inverse[q * n..(q + 1) * n].to_vec();
        for i in 0..n {
            let factor = inverse[i * n + q] / pivot;
            for j in 0..n {
                inverse[i * n + j] -= factor * line[j];
            }
        }
    }
    out
}

/// Gauss and Jordan's way.
fn invert(matrix: &[f64], n: usize) -> Vec<f64> {
    let mut a = matrix.to_vec();
    let mut inverse: Vec<f64> = (0..n * n).map(|i| f64::from(u8::from(i / n == i % n))).collect();
    for i in 0..n {
        let pivot = a[i * n + i];
        for j in 0..n {
            a[i * n + j] /= pivot;
            inverse[i * n + j] /= pivot;
        }
        for k in 0..n {
            if k != i {
                let factor = a[k * n + i];
                for j in 0..n {
                    a[k * n + j] -= factor * a[i * n + j];
                    inverse[k * n + j] -= factor * inverse[i * n + j];
                }
            }
        }
    }
    inverse
}

#[test]
fn it_equals_the_papers_recursion_column_by_column() {
    for (n, n_rows) in [(1, 1), (5, 3), (48, 33), (49, 2), (100, 40), (130, 7)] {
        let statistics = statistics(n, 4 * n + 10, 1);
        let weights = random(n * n_rows, 2);
        for order in [ColumnOrder::Natural, ColumnOrder::DescendingSquares] {
            let damping = 0.01;
            let feedback = Feedback::new(&statistics, order, damping, 0.0).unwrap();
            let grid = steps(n_rows, n, 0.25);
            let (codes, loss) = feedback.round(&weights, &grid);
            let mut hessian: Vec<f64> =
                statistics.hessian().unwrap().unwrap().iter().map(|&x| f64::from(x)).collect();
            let mean = (0..n).map(|i| hessian[i * n + i]).sum::<f64>() / n as f64;
            (0..n).for_each(|i| hessian[i * n + i] += f64::from(damping) * mean);
            let expected = brute_force(&hessian, &weights, &feedback.order, 0.25);
            let values = grid.values(&codes);
            let same =
                values.iter().zip(&expected).filter(|(a, b)| (f64::from(**a) - **b).abs() < 1e-6).count();
            // A target halfway between two values may fall to either side, and what follows in its row then
            // differs.
            assert!(same as f64 >= 0.98 * values.len() as f64, "{n} {order:?}: {same} of {}", values.len());
            // The loss is the quadratic form.
            let mut form = 0.0;
            for row in 0..n_rows {
                let e: Vec<f64> =
                    (0..n).map(|i| f64::from(weights[row * n + i] - values[row * n + i])).collect();
                for i in 0..n {
                    form += (0..n).map(|j| e[i] * hessian[i * n + j] * e[j]).sum::<f64>();
                }
            }
            assert!((loss - form).abs() < 1e-3 * form + 1e-9, "{n}: {loss} {form}");
        }
    }
}

#[test]
fn feedback_beats_rounding_to_the_nearest() {
    let (n, n_rows) = (200, 64);
    let statistics = statistics(n, 1000, 3);
    let weights = random(n * n_rows, 4);
    let hessian = statistics.hessian().unwrap().unwrap();
    let grid = steps(n_rows, n, 0.3);
    let loss = |codes: &[u8]| -> f64 {
        let values = grid.values(codes);
        let mut sum = 0.0;
        for row in 0..n_rows {
            let e: Vec<f32> = (0..n).map(|i| weights[row * n + i] - values[row * n + i]).collect();
            for i in 0..n {
                sum += (0..n).map(|j| f64::from(e[i] * hessian[i * n + j] * e[j])).sum::<f64>();
            }
        }
        sum
    };
    let nearest = loss(&grid.nearest(&weights));
    let natural =
        loss(&Feedback::new(&statistics, ColumnOrder::Natural, 0.01, 0.0).unwrap().round(&weights, &grid).0);
    assert!(natural < 0.6 * nearest, "{natural} {nearest}");
}

#[test]
fn codes_do_not_depend_on_paths() {
    let (n, n_rows) = (150, 50);
    let statistics = statistics(n, 400, 5);
    let weights = random(n * n_rows, 6);
    let grid = steps(n_rows, n, 0.3);
    let codes = |isa| {
        let round = || {
            Feedback::new(&statistics, ColumnOrder::DescendingSquares, 0.01, 0.0)
                .unwrap()
                .round(&weights, &grid)
        };
        cpu::with_isa(isa, round).unwrap()
    };
    let reference = codes(Isa::Scalar);
    for isa in cpu::available() {
        assert_eq!(codes(isa), reference, "{isa}");
    }
}

#[test]
fn a_hessian_that_is_no_good_is_damped_or_refused() {
    // Fewer rows than columns, two equal columns, a column that is never fed.
    let n = 40;
    let mut rows = random(n * 10, 7);
    for row in rows.chunks_exact_mut(n) {
        row[3] = row[4];
        row[7] = 0.0;
    }
    let mut statistics = Statistics::new(n, StatisticsConfig { hessian: true, ..Default::default() });
    assert!(matches!(
        Feedback::new(&statistics, ColumnOrder::Natural, 0.01, 0.0),
        Err(Error::TooFewRows { expected: 1, found: 0 })
    ));
    statistics.observe(&rows).unwrap();
    let feedback = Feedback::new(&statistics, ColumnOrder::Natural, 0.0, 0.0).unwrap();
    assert!(feedback.damping > 0.0);
    let weights = random(n * 8, 8);
    let (codes, loss) = feedback.round(&weights, &steps(8, n, 0.3));
    assert!(loss.is_finite() && codes.iter().all(|&code| code < 8));
    let nothing = Statistics::new(n, StatisticsConfig::default());
    assert!(matches!(
        Feedback::new(&nothing, ColumnOrder::Natural, 0.01, 0.0),
        Err(Error::NoStatistics { .. })
    ));
}
