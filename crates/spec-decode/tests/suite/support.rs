//! A decoder that is independent of the crate, and drafters made for tests.

use std::ops::ControlFlow;

use breakers_core::{FinishReason, Sampler, SamplingConfig, TokenId};
use breakers_spec_decode::{
    Config, Draft, DraftRequest, Drafter, ModelDraftConfig, ModelDrafter, Result, Speculated, Speculator,
    TokenizerFingerprint,
};

use crate::toy::{LogitsFn, Rules, Toy};

/// Straightforward plain decoding, one token after the other, without the crate under test.
pub(crate) fn plain(
    logits: &LogitsFn,
    prompt: &[TokenId],
    config: &Config,
    max_context: usize,
) -> (Vec<TokenId>, FinishReason) {
    let mut text = prompt.to_vec();
    let mut sampler = Sampler::new(config.sampling.clone(), config.seed);
    let ends = config.end_tokens.clone().unwrap_or_default();
    loop {
        let n_output = text.len() - prompt.len();
        let finish = if n_output > 0 && ends.contains(&text[text.len() - 1]) {
            FinishReason::EndOfText
        } else if n_output == config.max_tokens {
            FinishReason::Length
        } else if text.len() > max_context {
            FinishReason::ContextFull
        } else {
            let next = sampler.sample(&logits(&text), &text).unwrap();
            text.push(next);
            continue;
        };
        return (text.split_off(prompt.len()), finish);
    }
}

/// Runs a drafter on a fresh sequence of a model with the strictest rules that the sampling allows, and
/// checks everything that holds for every run.
pub(crate) fn run<D: Drafter>(
    logits: &LogitsFn,
    vocab_size: usize,
    max_context: usize,
    drafter: D,
    prompt: &[TokenId],
    config: &Config,
) -> Speculated {
    let mut model = Toy::new(vocab_size, logits.clone());
    model.info.max_context = max_context;
    model.rules = if config.sampling.is_plain_argmax() { Rules::GreedyText } else { Rules::Tidy };
    run_with(&mut model, drafter, prompt, config)
}

pub(crate) fn run_with<D: Drafter>(
    model: &mut Toy,
    drafter: D,
    prompt: &[TokenId],
    config: &Config,
) -> Speculated {
    use breakers_core::LanguageModel as _;
    let sequence = model.open().unwrap();
    let mut pieces: Vec<TokenId> = Vec::new();
    let result = Speculator::new(drafter)
        .continue_sequence(model, sequence, prompt, config, |tokens| {
            assert!(!tokens.is_empty(), "an empty piece");
            pieces.extend_from_slice(tokens);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(pieces, result.tokens, "the pieces are not the text");
    if let Some((_, before_last)) = result.tokens.split_last() {
        let held = [prompt, before_last].concat();
        assert_eq!(model.tokens(sequence), held, "the sequence is not the text without its last token");
        assert_eq!(model.committed(sequence).unwrap(), held.len());
    }
    let stats = &result.stats;
    assert_eq!(stats.emitted, result.tokens.len());
    assert_eq!(stats.steps, stats.rows.iter().map(|r| r.steps).sum::<usize>());
    assert_eq!(stats.speculative_steps, stats.accepted_histogram.iter().sum::<usize>());
    assert_eq!(stats.drafted + stats.steps, stats.rows.iter().map(|r| r.rows * r.steps).sum::<usize>());
    model.close(sequence);
    result
}

pub(crate) fn fingerprint() -> TokenizerFingerprint {
    TokenizerFingerprint::from_tokens(["toy"])
}

/// A draft model with its own rules: what it is fed is checked by the toy itself.
pub(crate) fn model_drafter(
    logits: LogitsFn,
    vocab_size: usize,
    config: ModelDraftConfig,
) -> ModelDrafter<Toy> {
    let mut model = Toy::new(vocab_size, logits);
    model.rules = Rules::Trait;
    ModelDrafter::new(model, fingerprint(), fingerprint(), config).unwrap()
}

/// Proposes a tree: at each depth the most likely tokens of a model under every node, breadth first.
pub(crate) struct TreeDrafter {
    pub(crate) logits: LogitsFn,
    pub(crate) width: usize,
}

impl Drafter for TreeDrafter {
    fn name(&self) -> &str {
        "tree"
    }

    fn start(&mut self, _prompt: &[TokenId]) -> Result<()> {
        Ok(())
    }

    fn propose(&mut self, request: &mut DraftRequest<'_>) -> Result<Draft> {
        let mut tokens: Vec<TokenId> = Vec::new();
        let mut parents: Vec<Option<usize>> = Vec::new();
        let mut texts = vec![request.context.to_vec()];
        let mut node = 0;
        while tokens.len() < request.max_tokens {
            let text = texts[node].clone();
            let parent = node.checked_sub(1);
            for best in breakers_core::top_k(&(self.logits)(&text), self.width)? {
                if tokens.len() < request.max_tokens {
                    tokens.push(best.token);
                    parents.push(parent);
                    texts.push([&text[..], &[best.token]].concat());
                }
            }
            node += 1;
        }
        Ok(Draft::tree(tokens, parents))
    }
}

/// Proposes tokens at random, drawn or chosen, right or wrong: whatever a drafter may do.
pub(crate) struct RandomDrafter {
    pub(crate) vocab_size: usize,
    pub(crate) sampler: Sampler,
}

impl RandomDrafter {
    pub(crate) fn new(vocab_size: usize, seed: u64) -> Self {
        Self { vocab_size, sampler: Sampler::new(SamplingConfig::temperature(1.0), seed) }
    }
}

impl Drafter for RandomDrafter {
    fn name(&self) -> &str {
        "random"
    }

    fn start(&mut self, _prompt: &[TokenId]) -> Result<()> {
        Ok(())
    }

    fn propose(&mut self, request: &mut DraftRequest<'_>) -> Result<Draft> {
        let n = (self.sampler.uniform() * (request.max_tokens + 1) as f64) as usize;
        let token = |sampler: &mut Sampler| (sampler.uniform() * self.vocab_size as f64) as TokenId;
        let tokens = (0..n).map(|_| token(&mut self.sampler)).collect();
        Ok(Draft::chain(tokens))
    }
}
