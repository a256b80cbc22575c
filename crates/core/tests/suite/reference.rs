//! The plain reference of sampling: every exponential in `f64` by the system's library, and a sort of the
//! whole vocabulary. The benchmark measures against it, too.

use breakers_core::{SamplingConfig, TokenId};

/// Ids in ascending order with their probabilities.
pub(crate) type Entries = Vec<(TokenId, f64)>;

/// Applies bias and penalties, each straight from its formula.
fn changed(config: &SamplingConfig, logits: &[f32], history: &[TokenId]) -> Vec<f32> {
    let recent = &history[history.len().saturating_sub(config.repetition_window)..];
    let change = |(token, &logit): (usize, &f32)| {
        let token = token as TokenId;
        let mut logit = logit + config.logit_bias.get(&token).copied().unwrap_or(0.0);
        let n_seen = recent.iter().filter(|seen| **seen == token).count();
        if n_seen > 0 {
            let penalty = config.repetition_penalty;
            logit = if logit > 0.0 { logit / penalty } else { logit * penalty };
            logit -= n_seen as f32 * config.frequency_penalty + config.presence_penalty;
        }
        logit
    };
    logits.iter().enumerate().map(change).collect()
}

/// The distribution that a token is drawn from; settings and logits are taken to be valid and not greedy.
pub(crate) fn distribution(config: &SamplingConfig, logits: &[f32], history: &[TokenId]) -> Entries {
    let penalized;
    let logits = if config.changes_logits() {
        penalized = changed(config, logits, history);
        &penalized
    } else {
        logits
    };
    let inverse = 1.0 / config.temperature as f64;
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
    let mut entries: Entries = logits
        .iter()
        .enumerate()
        .map(|(i, &l)| (i as TokenId, ((l as f64 - max) * inverse).exp()))
        .filter(|e| e.1 > 0.0)
        .collect();
    if config.top_k > 0 || config.top_p < 1.0 || config.min_p > 0.0 {
        let by_weight = |a: &(TokenId, f64), b: &(TokenId, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if config.top_k > 0 && config.top_k < entries.len() {
            entries.select_nth_unstable_by(config.top_k - 1, by_weight);
            entries.truncate(config.top_k);
        }
        entries.sort_unstable_by(by_weight);
        let total: f64 = entries.iter().map(|e| e.1).sum();
        if config.top_p < 1.0 {
            let (mut sum, mut keep) = (0.0, 0);
            while keep < entries.len() && (keep == 0 || sum < config.top_p as f64 * total) {
                sum += entries[keep].1;
                keep += 1;
            }
            entries.truncate(keep);
        }
        let least = entries[0].1 * config.min_p as f64;
        entries.retain(|e| e.1 >= least);
        entries.sort_unstable_by_key(|e| e.0);
    }
    let total: f64 = entries.iter().map(|e| e.1).sum();
    entries.iter_mut().for_each(|e| e.1 /= total);
    entries
}

/// The token at cumulative probability `u`.
pub(crate) fn at(entries: &Entries, u: f64) -> TokenId {
    let mut sum = 0.0;
    for &(token, p) in entries {
        sum += p;
        if u < sum {
            return token;
        }
    }
    entries[entries.len() - 1].0
}

/// A small generator of random numbers, for logits.
pub(crate) struct Noise(pub(crate) u64);

impl Noise {
    /// A uniform number in `[0, 1)` (SplitMix64).
    pub(crate) fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ z >> 31) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A number of the standard normal distribution (Box and Muller).
    pub(crate) fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

/// How the logits of a row are spread.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Shape {
    /// As of a language model: nearly all far below, a few tokens above them.
    Text,
    /// A wide bell: thousands of tokens count.
    Bell,
    /// Nearly equal: all tokens count.
    Flat,
}

/// Logits of one row.
pub(crate) fn row(shape: Shape, vocab: usize, seed: u64) -> Vec<f32> {
    let mut noise = Noise(seed);
    let deviation = match shape {
        Shape::Text => 2.0,
        Shape::Bell => 3.0,
        Shape::Flat => 0.1,
    };
    let mut row: Vec<f32> = (0..vocab).map(|_| (deviation * noise.normal()) as f32).collect();
    if let Shape::Text = shape {
        for rank in 0..200.min(vocab) {
            let place = (noise.uniform() * vocab as f64) as usize;
            row[place] = (18.0 - 1.6 * (rank as f64 + 1.0).ln() + 0.5 * noise.normal()) as f32;
        }
    }
    row
}
