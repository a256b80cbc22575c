//! How a budget is divided: among layers (PyramidKV) and among heads (AdaKV).
//!
//! # Source
//! PyramidKV: Cai et al. 2024, arXiv 2406.02069, section 3.3: budgets fall linearly from the first layer to
//! the last. AdaKV: Feng et al. 2024, arXiv 2407.11550, algorithm 1: the layer's tokens compete across heads,
//! after a guaranteed share for every head.

/// Budgets of layers.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum LayerBudgets {
    /// The same for all.
    #[default]
    Uniform,
    /// PyramidKV: the last layer gets 1/`steepness` of the mean; the paper's β is 20.
    Pyramid {
        /// Mean budget over that of the last layer.
        steepness: f64,
    },
}

/// Budgets of a layer's heads.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum HeadBudgets {
    /// The same for all.
    #[default]
    Uniform,
    /// AdaKV: the best tokens of all heads stay, and a guaranteed share of each head's.
    Adaptive {
        /// The part of an equal budget that every head is guaranteed; 0.2 in the paper.
        safeguard: f64,
    },
}

impl LayerBudgets {
    /// Budget of a layer where each has `mean` on average and none more than `most`.
    pub(crate) fn of(&self, layer: usize, n_layers: usize, mean: usize, most: usize) -> usize {
        let Self::Pyramid { steepness } = self else { return mean.min(most) };
        let mean_f = mean as f64;
        // The first layer cannot get more than there is, nor the last one less than nothing.
        let least = (mean_f / steepness.max(1.0)).max(2.0 * mean_f - most as f64);
        let first = 2.0 * mean_f - least;
        let share = if n_layers > 1 { layer as f64 / (n_layers - 1) as f64 } else { 0.5 };
        ((first + (least - first) * share).round() as usize).clamp(1, most)
    }
}

impl HeadBudgets {
    /// How many tokens each head keeps, of those with the given scores, where each has `mean` on average.
    pub(crate) fn of(&self, scores: &[Vec<f32>], mean: usize) -> Vec<usize> {
        let even = scores.iter().map(|s| mean.min(s.len())).collect::<Vec<_>>();
        let Self::Adaptive { safeguard } = self else { return even };
        let total: usize = even.iter().sum();
        let sure: Vec<usize> = even
            .iter()
            .zip(scores)
            .map(|(budget, scores)| {
                let infinite = scores.iter().filter(|s| **s == f32::INFINITY).count();
                ((*budget as f64 * safeguard.clamp(0.0, 1.0)) as usize).max(infinite.min(*budget))
            })
            .collect();
        let mut rest: Vec<(f32, usize)> = Vec::new();
        for (head, scores) in scores.iter().enumerate() {
            let mut sorted = scores.clone();
            sorted.sort_unstable_by(|a, b| b.total_cmp(a));
            // Scores of different heads have different sizes, so they are compared as shares of the head's
            // sum.
            let finite: f32 = sorted.iter().filter(|s| s.is_finite()).sum();
            let scale = if finite > 0.0 { 1.0 / finite } else { 1.0 };
            rest.extend(sorted[sure[head]..].iter().map(|s| (s * scale, head)));
        }
        rest.sort_by(|a, b| b.0.total_cmp(&a.0));
        let mut budgets = sure;
        for (_, head) in rest.iter().take(total - budgets.iter().sum::<usize>()) {
            budgets[*head] += 1;
        }
        budgets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_add_up() {
        for (n_layers, mean, most) in [(30, 100, 400), (28, 300, 400), (1, 50, 60), (2, 10, 1000)] {
            let pyramid = LayerBudgets::Pyramid { steepness: 20.0 };
            let budgets: Vec<usize> = (0..n_layers).map(|i| pyramid.of(i, n_layers, mean, most)).collect();
            assert!(budgets.windows(2).all(|pair| pair[0] >= pair[1]) && budgets[0] <= most, "{budgets:?}");
            let sum: usize = budgets.iter().sum();
            assert!(sum.abs_diff(mean * n_layers) <= n_layers, "{budgets:?}");
        }
        let scores = vec![vec![9.0, 8.0, 7.0, 1.0], vec![0.1, 0.1, 0.1, 0.1], vec![f32::INFINITY; 4]];
        let budgets = HeadBudgets::Adaptive { safeguard: 0.5 }.of(&scores, 2);
        assert_eq!(budgets.iter().sum::<usize>(), 6);
        assert!(budgets[0] >= 1 && budgets[1] >= 1 && budgets[2] >= 2, "{budgets:?}");
        assert_eq!(HeadBudgets::Uniform.of(&scores, 3), [3, 3, 3]);
        assert_eq!(HeadBudgets::Uniform.of(&scores, 9), [4, 4, 4]);
    }
}
