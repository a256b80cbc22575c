//! Learned probabilities that a draft token is accepted, given that its predecessors were.

/// The factor by which each new observation reduces the weight of earlier ones, so that about 50 count.
const DECAY: f64 = 0.98;
/// The weight of the prior, in observations.
const PRIOR_WEIGHT: f64 = 2.0;
/// The assumed acceptance at the first position.
const PRIOR: f64 = 0.7;
/// Lower ends of the bins that confidences fall into; the first starts at 0.
const BINS: [f32; 7] = [0.2, 0.4, 0.6, 0.75, 0.88, 0.95, 0.985];
/// The assumed acceptance in each bin.
const BIN_PRIORS: [f64; 8] = [0.1, 0.3, 0.5, 0.67, 0.8, 0.9, 0.95, 0.97];
/// First positions of the groups that a bin is divided into.
const GROUPS: [usize; 3] = [1, 3, 8];
/// Positions that are counted individually.
const POSITIONS: usize = 64;

/// A mean over the latest observations.
#[derive(Clone, Copy, Debug, Default)]
struct Cell {
    weight: f64,
    hits: f64,
}

impl Cell {
    fn record(&mut self, hit: bool) {
        self.weight = self.weight * DECAY + 1.0;
        self.hits = self.hits * DECAY + if hit { 1.0 } else { 0.0 };
    }

    fn estimate(&self, prior: f64) -> f64 {
        (self.hits + PRIOR_WEIGHT * prior) / (self.weight + PRIOR_WEIGHT)
    }
}

/// Estimates by position, and by the drafter's confidence (with a correction by position).
#[derive(Clone, Debug, Default)]
pub(crate) struct Acceptance {
    by_position: Vec<Cell>,
    by_bin: [Cell; BINS.len() + 1],
    by_bin_and_group: [[Cell; GROUPS.len() + 1]; BINS.len() + 1],
}

impl Acceptance {
    pub(crate) fn record(&mut self, position: usize, confidence: Option<f32>, accepted: bool) {
        let position = position.min(POSITIONS - 1);
        if self.by_position.len() <= position {
            self.by_position.resize(position + 1, Cell::default());
        }
        self.by_position[position].record(accepted);
        if let Some(confidence) = confidence {
            self.by_bin[bin(confidence)].record(accepted);
            self.by_bin_and_group[bin(confidence)][group(position)].record(accepted);
        }
    }

    /// For a token of known confidence.
    pub(crate) fn of_token(&self, position: usize, confidence: f32) -> f64 {
        let bin = bin(confidence);
        self.by_bin_and_group[bin][group(position)].estimate(self.by_bin[bin].estimate(BIN_PRIORS[bin]))
    }

    /// For positions 0 to n − 1, for tokens of unknown confidence. A position that was never reached is
    /// assumed to be like the one before it.
    pub(crate) fn of_positions(&self, n: usize) -> Vec<f64> {
        let mut prior = PRIOR;
        (0..n)
            .map(|position| {
                let cell = self.by_position.get(position.min(POSITIONS - 1)).copied().unwrap_or_default();
                prior = cell.estimate(prior);
                prior
            })
            .collect()
    }
}

fn bin(confidence: f32) -> usize {
    BINS.iter().take_while(|&&low| confidence >= low).count()
}

fn group(position: usize) -> usize {
    GROUPS.iter().take_while(|&&first| position >= first).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use breakers_core::{Sampler, SamplingConfig};

    #[test]
    fn priors_follow_confidence_and_nan_is_the_lowest() {
        let acceptance = Acceptance::default();
        let found: Vec<f64> =
            [f32::NAN, -1.0, 0.1, 0.5, 0.9, 1.0].iter().map(|&c| acceptance.of_token(0, c)).collect();
        assert!(found.is_sorted(), "{found:?}");
        assert_eq!(acceptance.of_positions(3), [PRIOR; 3]);
    }

    #[test]
    fn estimates_approach_the_truth() {
        let mut sampler = Sampler::new(SamplingConfig::temperature(1.0), 11);
        let mut acceptance = Acceptance::default();
        let truth = |position: usize, confidence: f32| match (position, confidence > 0.5) {
            (0, true) => 0.9,
            (0, false) => 0.1,
            (_, true) => 0.6,
            (_, false) => 0.3,
        };
        for i in 0..4000 {
            let (position, confidence) = (i % 2, if i % 4 < 2 { 0.9 } else { 0.3 });
            let hit = sampler.uniform() < truth(position, confidence);
            acceptance.record(position, Some(confidence), hit);
        }
        for (position, confidence) in [(0, 0.9), (0, 0.3), (1, 0.9), (1, 0.3)] {
            let (found, expected) = (acceptance.of_token(position, confidence), truth(position, confidence));
            // About 50 observations count, so the standard deviation is at most 0.07; the test is seeded.
            assert!((found - expected).abs() < 0.2, "{position}, {confidence}: {found} for {expected}");
        }
        let marginal = acceptance.of_positions(2);
        assert!((marginal[0] - 0.5).abs() < 0.2 && (marginal[1] - 0.45).abs() < 0.2, "{marginal:?}");
    }

    #[test]
    fn a_few_rejections_are_enough_to_doubt() {
        let mut acceptance = Acceptance::default();
        (0..3).for_each(|_| acceptance.record(0, None, false));
        assert!(acceptance.of_positions(1)[0] < 0.3);
    }
}
