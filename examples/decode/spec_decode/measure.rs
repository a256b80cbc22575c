//! The runs: every contestant on every prompt, in turn.

use std::ops::ControlFlow;
use std::sync::Arc;

use breakers_cli::{Bar, Result, print};
use breakers_core::{TokenId, Vocabulary};
use breakers_model::Runner;
use breakers_spec_decode::{BatchSpeculator, Config, DraftLength, Drafter, Stats, TextOutput};

/// A text to continue.
pub(crate) struct Prompt {
    pub(crate) name: String,
    pub(crate) ids: Vec<TokenId>,
}

/// A way of decoding.
pub(crate) struct Contestant {
    pub(crate) name: String,
    /// Texts that are generated at a time.
    pub(crate) batch: usize,
    pub(crate) speculator: BatchSpeculator<Box<dyn Drafter>>,
    /// Whether its tokens must be those of plain decoding; otherwise only their distribution is.
    pub(crate) promises_same_tokens: bool,
}

/// One text by one contestant.
#[derive(Clone)]
pub(crate) struct Run {
    pub(crate) tokens: Vec<TokenId>,
    pub(crate) stats: Stats,
}

/// All runs. The first contestant is plain decoding.
pub(crate) struct Measurement {
    pub(crate) prompts: Vec<Prompt>,
    pub(crate) contestants: Vec<Contestant>,
    pub(crate) config: Config,
    /// `[contestant][prompt][round]`.
    pub(crate) runs: Vec<Vec<Vec<Run>>>,
}

/// Runs everything `repeat` times; the contestant that comes first changes from round to round.
pub(crate) fn run(
    runner: &mut Runner,
    prompts: Vec<Prompt>,
    mut contestants: Vec<Contestant>,
    config: &Config,
    repeat: usize,
) -> Result<Measurement> {
    let n_contestants = contestants.len();
    let bar = Bar::new(repeat * prompts.len() * n_contestants, "texts");
    bar.doing("warming up");
    warm_up(runner, &prompts, &mut contestants, config)?;
    let mut runs = vec![vec![Vec::with_capacity(repeat); prompts.len()]; n_contestants];
    let largest = contestants.iter().map(|c| c.batch).max().unwrap_or(1);
    for round in 0..repeat {
        for first in (0..prompts.len()).step_by(largest) {
            for turn in 0..n_contestants {
                let c = (round + turn) % n_contestants;
                let Contestant { name, batch, speculator, .. } = &mut contestants[c];
                let end = prompts.len().min(first + largest);
                for start in (first..end).step_by(*batch) {
                    let batch = start..end.min(start + *batch);
                    bar.doing(&format!("{}, {name}", prompts[start].name));
                    let ids: Vec<&[TokenId]> = prompts[batch.clone()].iter().map(|p| &p.ids[..]).collect();
                    let texts =
                        speculator.generate(runner, &ids, config, |_, _| ControlFlow::Continue(()))?;
                    for (p, text) in batch.zip(texts) {
                        runs[c][p].push(Run { tokens: text.tokens, stats: text.stats });
                        bar.step();
                    }
                }
            }
        }
    }
    Ok(Measurement { prompts, contestants, config: config.clone(), runs })
}

/// Shows the texts of one contestant as they are generated, one after the other.
pub(crate) fn stream(
    runner: &mut Runner,
    prompts: &[Prompt],
    contestant: &mut Contestant,
    config: &Config,
    vocabulary: Arc<dyn Vocabulary>,
) -> Result {
    for prompt in prompts {
        print(&format!("[{}, {}]\n", prompt.name, contestant.name))?;
        let mut text = TextOutput::new::<&str>(vocabulary.clone(), &[]);
        let mut closed = Ok(());
        contestant.speculator.generate(runner, &[&prompt.ids], config, |_, tokens| {
            for &token in tokens {
                text.push(token);
            }
            closed = print(&text.take());
            if closed.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        closed?;
        text.finish();
        print(&format!("{}\n\n", text.take()))?;
    }
    Ok(())
}

/// Warms up: a few untimed tokens from each contestant, and the calibration of costs if the length depends on
/// them.
fn warm_up(
    runner: &mut Runner,
    prompts: &[Prompt],
    contestants: &mut [Contestant],
    config: &Config,
) -> Result {
    let Some(prompt) = prompts.iter().max_by_key(|p| p.ids.len()) else { return Ok(()) };
    let brief = Config { max_tokens: config.max_tokens.min(8), ..config.clone() };
    for (c, contestant) in contestants.iter_mut().enumerate() {
        if let DraftLength::Adaptive { max } = config.draft_length
            && c > 0
        {
            contestant.speculator.calibrate(runner, &prompt.ids, max + contestant.batch)?;
        }
        let ids = vec![&prompt.ids[..]; contestant.batch];
        contestant.speculator.generate(runner, &ids, &brief, |_, _| ControlFlow::Continue(()))?;
    }
    Ok(())
}

impl Measurement {
    /// Whether a contestant's tokens are those of plain decoding on a prompt, in all rounds; `None` if it
    /// does not promise that.
    pub(crate) fn same_tokens(&self, contestant: usize, prompt: usize) -> Option<bool> {
        if !self.contestants[contestant].promises_same_tokens {
            return None;
        }
        let plain = &self.runs[0][prompt][0].tokens;
        Some(self.runs[contestant][prompt].iter().all(|run| run.tokens == *plain))
    }

    /// Whether no promise was broken.
    pub(crate) fn all_same(&self) -> bool {
        self.differences().is_empty()
    }

    /// A line for each broken promise.
    pub(crate) fn differences(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (c, contestant) in self.contestants.iter().enumerate() {
            for (p, prompt) in self.prompts.iter().enumerate() {
                if self.same_tokens(c, p) == Some(false) {
                    lines.push(format!(
                        "{} on {}: other tokens than plain decoding",
                        contestant.name, prompt.name
                    ));
                }
            }
        }
        lines
    }

    /// A contestant's statistics for each round, of some prompts together.
    pub(crate) fn stats(&self, contestant: usize, prompts: &[usize]) -> Vec<Stats> {
        let runs = &self.runs[contestant];
        let n_rounds = runs.first().map_or(0, Vec::len);
        (0..n_rounds)
            .map(|round| {
                let mut sum = Stats::default();
                prompts.iter().for_each(|&p| sum.merge(&runs[p][round].stats));
                sum
            })
            .collect()
    }

    /// The prompts of each name, in the order in which the names first appear.
    pub(crate) fn groups(&self) -> Vec<(&str, Vec<usize>)> {
        let mut groups: Vec<(&str, Vec<usize>)> = Vec::new();
        for (p, prompt) in self.prompts.iter().enumerate() {
            match groups.iter_mut().find(|group| group.0 == prompt.name) {
                Some(group) => group.1.push(p),
                None => groups.push((&prompt.name, vec![p])),
            }
        }
        groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use breakers_spec_decode::NoDrafter;

    fn measurement(tokens: [[TokenId; 2]; 3], promises: bool) -> Measurement {
        let contestant = |name: &str, promises_same_tokens| Contestant {
            name: name.to_owned(),
            batch: 1,
            speculator: BatchSpeculator::new(|| Ok(Box::new(NoDrafter) as Box<dyn Drafter>)),
            promises_same_tokens,
        };
        let run = |tokens: [TokenId; 2]| {
            let mut stats = Stats::default();
            stats.emitted = 2;
            Run { tokens: tokens.to_vec(), stats }
        };
        Measurement {
            prompts: vec![Prompt { name: "p".to_owned(), ids: vec![1] }],
            contestants: vec![contestant("plain", true), contestant("other", promises)],
            config: Config::default(),
            runs: vec![
                vec![vec![run(tokens[0]), run(tokens[0])]],
                vec![vec![run(tokens[1]), run(tokens[2])]],
            ],
        }
    }

    #[test]
    fn a_difference_in_any_round_is_found() {
        let cases = [
            ([[1, 2], [1, 2], [1, 2]], true, Some(true)),
            ([[1, 2], [1, 2], [1, 3]], true, Some(false)),
            ([[1, 2], [3, 2], [1, 2]], true, Some(false)),
            ([[1, 2], [3, 2], [1, 2]], false, None),
        ];
        for (tokens, promises, expected) in cases {
            let measurement = measurement(tokens, promises);
            assert_eq!(measurement.same_tokens(1, 0), expected, "{tokens:?}");
            assert_eq!(measurement.all_same(), expected != Some(false), "{tokens:?}");
        }
    }

    #[test]
    fn statistics_are_summed_over_prompts_not_rounds() {
        let mut measurement = measurement([[1, 2]; 3], true);
        measurement.prompts.push(Prompt { name: "q".to_owned(), ids: vec![1] });
        for runs in &mut measurement.runs {
            let again = runs[0].clone();
            runs.push(again);
        }
        let emitted = |stats: Vec<Stats>| stats.iter().map(|s| s.emitted).collect::<Vec<_>>();
        assert_eq!(emitted(measurement.stats(1, &[0])), [2, 2]);
        assert_eq!(emitted(measurement.stats(1, &[0, 1])), [4, 4]);
        measurement.prompts.push(Prompt { name: "p".to_owned(), ids: vec![1] });
        assert_eq!(measurement.groups(), [("p", vec![0, 2]), ("q", vec![1])]);
    }
}
