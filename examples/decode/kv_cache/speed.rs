//! Decoding speed over caches at several depths.

use std::time::Instant;

use breakers_cli::{Bar, Result, runner_over};
use breakers_core::{LanguageModel, SequenceId, Step, TokenId, Want};
use breakers_eval::stats;
use breakers_kv_cache::CacheKind;
use breakers_model::{Model, Runner};

/// One cache at one depth.
#[derive(Clone, Debug)]
pub(crate) struct Speed {
    /// Seconds for one token, for each round.
    pub(crate) decode: Vec<f64>,
    pub(crate) bytes: usize,
    /// Seconds to read the tokens since the depth before.
    pub(crate) prefill: f64,
}

impl Speed {
    pub(crate) fn tokens_per_second(&self) -> Result<f64> {
        Ok(1.0 / stats::median(&self.decode)?)
    }
}

struct Contestant {
    runner: Runner,
    sequence: SequenceId,
    next: TokenId,
}

impl Contestant {
    fn feed(&mut self, tokens: &[TokenId]) -> Result {
        let mut steps = [Step::last(self.sequence, tokens.to_vec(), Want::ArgMax)];
        self.runner.forward(&mut steps)?;
        self.runner.commit(self.sequence, tokens.len())?;
        self.next = steps[0].outputs.last().and_then(|row| row.output.best()).unwrap_or(self.next);
        Ok(())
    }
}

/// Decodes `n_tokens` in each of `n_rounds` at every depth, all caches in turn; `[cache][depth]`.
pub(crate) fn measure(
    model: &Model,
    caches: &[CacheKind],
    text: &[TokenId],
    depths: &[usize],
    n_tokens: usize,
    n_rounds: usize,
) -> Result<Vec<Vec<Speed>>> {
    let mut contestants = Vec::new();
    for cache in caches {
        let mut runner = runner_over(cache, model)?;
        let sequence = runner.open()?;
        contestants.push(Contestant { runner, sequence, next: 0 });
    }
    let mut found: Vec<Vec<Speed>> = vec![Vec::new(); caches.len()];
    let bar = Bar::new(depths.len() * (n_rounds + 1), "rounds");
    let mut held = 0;
    for &depth in depths {
        bar.doing(&format!("depth {depth}"));
        for (contestant, found) in contestants.iter_mut().zip(&mut found) {
            // Tokens decoded at the depth before stay in the cache; all caches hold the same number.
            let tokens: Vec<TokenId> = text.iter().cycle().skip(held).take(depth - held).copied().collect();
            let start = Instant::now();
            contestant.feed(&tokens)?;
            let prefill = start.elapsed().as_secs_f64();
            found.push(Speed { decode: Vec::new(), bytes: contestant.runner.cache_bytes(), prefill });
        }
        bar.step();
        for round in 0..n_rounds {
            for turn in 0..caches.len() {
                let at = (round + turn) % caches.len();
                let contestant = &mut contestants[at];
                let start = Instant::now();
                for _ in 0..n_tokens {
                    contestant.feed(&[contestant.next])?;
                }
                let time = start.elapsed().as_secs_f64() / n_tokens as f64;
                if let Some(speed) = found[at].last_mut() {
                    speed.decode.push(time);
                }
            }
            bar.step();
        }
        held = depth + n_tokens * n_rounds;
    }
    Ok(found)
}
