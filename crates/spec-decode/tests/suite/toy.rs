// A deterministic language model that checks how it is used. Included by the tests and by the example in the
// crate's documentation.

use std::collections::HashMap;
use std::sync::Arc;

use breakers_core::{
    Error, LanguageModel, ModelInfo, Output, Result, RowOutput, SequenceId, Snapshot, SnapshotBytes, Step,
    StepError, TokenId, Want, argmax, argmax_within, top_k,
};

/// Logits of the next token as a function of all tokens before it.
pub(crate) type LogitsFn = Arc<dyn Fn(&[TokenId]) -> Vec<f32> + Send + Sync>;

/// What a [`Toy`] insists on; a violation panics.
#[derive(Clone, Copy, PartialEq)]
#[allow(dead_code)]
pub(crate) enum Rules {
    /// Only what the trait says.
    Trait,
    /// Also: every forward pass begins with nothing provisional.
    Tidy,
    /// Also: nothing is committed after the first commit but the model's own greedy choices.
    GreedyText,
}

#[derive(Clone, Default)]
struct Sequence {
    tokens: Vec<TokenId>,
    committed: usize,
    first_commit: Option<usize>,
    /// A tree was fed and no path of it has been chosen yet.
    branches: bool,
}

pub(crate) struct Toy {
    pub(crate) info: ModelInfo,
    pub(crate) rules: Rules,
    pub(crate) logits: LogitsFn,
    /// Number of the forward pass (from 0) that fails.
    pub(crate) fail_at: Option<usize>,
    /// The sequence whose steps fail.
    pub(crate) fail_sequence: Option<SequenceId>,
    /// Whether final tokens can no longer be truncated.
    pub(crate) evicts: bool,
    /// Whether logits outside of a row's mask are not computed.
    pub(crate) is_sparse: bool,
    pub(crate) n_forwards: usize,
    pub(crate) n_rows: usize,
    /// Rows of which something was wanted.
    pub(crate) n_answers: usize,
    sequences: HashMap<SequenceId, Sequence>,
    n_opened: u64,
}

#[allow(dead_code)]
impl Toy {
    pub(crate) fn new(vocab_size: usize, logits: LogitsFn) -> Self {
        Self {
            info: ModelInfo::new("toy", vocab_size, 1 << 20),
            rules: Rules::Tidy,
            logits,
            fail_at: None,
            fail_sequence: None,
            evicts: false,
            is_sparse: false,
            n_forwards: 0,
            n_rows: 0,
            n_answers: 0,
            sequences: HashMap::new(),
            n_opened: 0,
        }
    }

    /// The next token depends on the `order` tokens before it.
    pub(crate) fn markov(vocab_size: usize, order: usize, sharpness: f32, seed: u64) -> Self {
        Self::new(vocab_size, markov(vocab_size, order, sharpness, seed))
    }

    /// Writes a passage of 20 tokens over and over, with a change now and then.
    pub(crate) fn repetitive(vocab_size: usize, seed: u64) -> Self {
        Self::new(vocab_size, repetitive(vocab_size, seed))
    }

    pub(crate) fn n_open(&self) -> usize {
        self.sequences.len()
    }

    /// What happens to sequences when a program ends.
    pub(crate) fn close_all(&mut self) {
        self.sequences.clear();
    }

    pub(crate) fn tokens(&self, sequence: SequenceId) -> &[TokenId] {
        &self.sequences[&sequence].tokens
    }

    fn get(&self, sequence: SequenceId) -> Result<&Sequence> {
        self.sequences.get(&sequence).ok_or(Error::UnknownSequence { sequence })
    }

    fn get_mut(&mut self, sequence: SequenceId) -> Result<&mut Sequence> {
        self.sequences.get_mut(&sequence).ok_or(Error::UnknownSequence { sequence })
    }

    fn check_step(&self, step: &Step) -> Result<()> {
        step.validate(self.info.vocab_size)?;
        let held = self.get(step.sequence)?;
        assert!(!held.branches, "a tree was fed and none of its paths chosen");
        if self.rules != Rules::Trait {
            assert_eq!(held.committed, held.tokens.len(), "provisional tokens are left from an earlier step");
        }
        let needed = held.tokens.len() + step.tokens.len();
        match needed > self.info.max_context {
            true => Err(StepError::ContextFull { needed, limit: self.info.max_context }.into()),
            false => Ok(()),
        }
    }
}

struct Tokens(Vec<TokenId>);

impl Snapshot for Tokens {
    fn pieces(&self, put: &mut dyn FnMut(&[u8])) {
        self.0.iter().for_each(|token| put(&token.to_le_bytes()));
    }
}

impl LanguageModel for Toy {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn open(&mut self) -> Result<SequenceId> {
        self.n_opened += 1;
        let id = SequenceId(self.n_opened);
        self.sequences.insert(id, Sequence::default());
        Ok(id)
    }

    fn fork(&mut self, sequence: SequenceId) -> Result<SequenceId> {
        let copy = self.get(sequence)?.clone();
        let id = self.open()?;
        self.sequences.insert(id, copy);
        Ok(id)
    }

    fn close(&mut self, sequence: SequenceId) {
        self.sequences.remove(&sequence);
    }

    fn len(&self, sequence: SequenceId) -> Result<usize> {
        Ok(self.get(sequence)?.tokens.len())
    }

    fn committed(&self, sequence: SequenceId) -> Result<usize> {
        Ok(self.get(sequence)?.committed)
    }

    fn forward(&mut self, steps: &mut [Step]) -> Result<()> {
        for step in steps.iter() {
            self.check_step(step)?;
        }
        if let Some(at) = steps.iter().position(|step| Some(step.sequence) == self.fail_sequence) {
            return Err(Error::Engine("told to fail".into()).at_step(at, steps[at].sequence));
        }
        self.n_forwards += 1;
        if self.fail_at == Some(self.n_forwards - 1) {
            return Err(Error::Engine("told to fail".into()));
        }
        for step in steps {
            let held = &self.sequences[&step.sequence].tokens;
            let mut outputs = Vec::new();
            for row in 0..step.tokens.len() {
                // The row itself and its ancestors, youngest first.
                let mut path = vec![row];
                while let Some(parent) = match &step.parents {
                    Some(parents) => parents[path[path.len() - 1]],
                    None => path[path.len() - 1].checked_sub(1),
                } {
                    path.push(parent);
                }
                let mut context = held.clone();
                context.extend(path.iter().rev().map(|&row| step.tokens[row]));
                self.n_answers += usize::from(step.want(row) != Want::Nothing);
                let output = match (step.want(row), step.mask(row)) {
                    (Want::Nothing, _) => Output::Nothing,
                    (Want::ArgMax, None) => Output::ArgMax(argmax(&(self.logits)(&context))?),
                    (Want::ArgMax, Some(mask)) => {
                        assert!(self.info.masked_argmax, "a mask that the model says it does not look at");
                        Output::ArgMax(argmax_within(&(self.logits)(&context), mask)?)
                    }
                    (Want::TopK(k), _) => Output::TopK(top_k(&(self.logits)(&context), k)?),
                    (_, mask) => {
                        let mut logits = (self.logits)(&context);
                        mask.filter(|_| self.is_sparse).iter().for_each(|mask| mask.apply(&mut logits));
                        Output::Logits(logits)
                    }
                };
                outputs.push(RowOutput { output, ..RowOutput::default() });
            }
            step.outputs = outputs;
            self.n_rows += step.tokens.len();
            let held = self.get_mut(step.sequence)?;
            held.tokens.extend_from_slice(&step.tokens);
            held.branches = step.parents.is_some();
        }
        Ok(())
    }

    fn retain(&mut self, sequence: SequenceId, rows: &[usize]) -> Result<()> {
        let held = self.get_mut(sequence)?;
        let provisional = held.tokens.split_off(held.committed);
        assert!(rows.is_sorted_by(|a, b| a < b), "rows must ascend: {rows:?}");
        for &row in rows {
            let &token = provisional.get(row).ok_or(StepError::OutOfRange {
                what: "retain",
                requested: row,
                available: provisional.len(),
            })?;
            held.tokens.push(token);
        }
        held.branches = false;
        Ok(())
    }

    fn commit(&mut self, sequence: SequenceId, n_tokens: usize) -> Result<()> {
        let (rules, logits) = (self.rules, self.logits.clone());
        let held = self.get_mut(sequence)?;
        assert!(!held.branches, "a tree cannot be committed");
        let end = held.committed + n_tokens;
        if end > held.tokens.len() {
            let available = held.tokens.len() - held.committed;
            return Err(StepError::OutOfRange { what: "commit", requested: n_tokens, available }.into());
        }
        let first = *held.first_commit.get_or_insert(end);
        if rules == Rules::GreedyText {
            for i in held.committed.max(first)..end {
                let expected = argmax(&logits(&held.tokens[..i]))?;
                assert_eq!(held.tokens[i], expected, "a token was committed that the model did not choose");
            }
        }
        held.committed = end;
        Ok(())
    }

    fn is_shareable(&self, _sequence: SequenceId) -> bool {
        !self.evicts
    }

    fn snapshot_kind(&self) -> Option<String> {
        (!self.evicts).then(|| "toy".to_owned())
    }

    fn snapshot(&self, sequence: SequenceId) -> Result<Box<dyn Snapshot>> {
        let held = self.get(sequence)?;
        Ok(Box::new(Tokens(held.tokens[..held.committed].to_vec())))
    }

    /// Believes what the bytes say: whoever takes others for them reads another text.
    fn restore(&mut self, bytes: SnapshotBytes, n_tokens: usize, len: usize) -> Result<SequenceId> {
        let ids = (*bytes).as_ref().chunks_exact(4).map(|id| TokenId::from_le_bytes(id.try_into().unwrap()));
        let tokens: Vec<TokenId> = ids.take(len).collect();
        assert!(tokens.len() == len && n_tokens * 4 == (*bytes).as_ref().len());
        let sequence = self.open()?;
        let held = self.get_mut(sequence)?;
        (held.tokens, held.committed) = (tokens, len);
        Ok(sequence)
    }

    /// A byte a token.
    fn held_bytes(&self) -> usize {
        self.sequences.values().map(|sequence| sequence.tokens.len()).sum()
    }

    fn truncate(&mut self, sequence: SequenceId, len: usize) -> Result<()> {
        let evicts = self.evicts;
        let held = self.get_mut(sequence)?;
        if len > held.tokens.len() {
            return Err(StepError::OutOfRange {
                what: "truncate",
                requested: len,
                available: held.tokens.len(),
            }
            .into());
        }
        if evicts && len < held.committed {
            return Err(StepError::TruncateEvicted { requested: len, evicted_from: held.committed }.into());
        }
        assert!(!held.branches || len <= held.committed, "a tree cannot be cut like a chain");
        held.branches = false;
        held.tokens.truncate(len);
        held.committed = held.committed.min(len);
        Ok(())
    }
}

/// 64 well-mixed bits (the finalizer of SplitMix64).
pub(crate) fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e3779b97f4a7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58476d1ce4e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d049bb133111eb);
    x ^ (x >> 31)
}

/// A number from −1 to 1.
pub(crate) fn noise(seed: u64, values: &[u32]) -> f32 {
    let hash = values.iter().fold(mix(seed), |h, &v| mix(h ^ v as u64));
    (hash >> 40) as f32 / (1u64 << 23) as f32 - 1.0
}

pub(crate) fn markov(vocab_size: usize, order: usize, sharpness: f32, seed: u64) -> LogitsFn {
    Arc::new(move |context| {
        let mut key = context[context.len().saturating_sub(order)..].to_vec();
        key.push(0);
        let logit = |token: u32| {
            *key.last_mut().unwrap() = token;
            sharpness * noise(seed, &key)
        };
        (0..vocab_size as u32).map(logit).collect()
    })
}

pub(crate) fn repetitive(vocab_size: usize, seed: u64) -> LogitsFn {
    Arc::new(move |context| {
        let n = context.len() as u32;
        let mut key = context[context.len().saturating_sub(2)..].to_vec();
        key.push(n);
        let changed = noise(seed, &key) > 0.9;
        let pick = if changed { mix(seed ^ n as u64) } else { mix(seed + 1 + n as u64 % 20) };
        let favorite = (pick % vocab_size as u64) as u32;
        (0..vocab_size as u32)
            .map(|token| if token == favorite { 5.0 } else { noise(seed, &[n % 20, token]) })
            .collect()
    })
}

/// A model that agrees with another one mostly: its logits plus noise.
#[allow(dead_code)]
pub(crate) fn perturbed(logits: LogitsFn, amount: f32, seed: u64) -> LogitsFn {
    Arc::new(move |context| {
        let mut key = context[context.len().saturating_sub(4)..].to_vec();
        key.push(0);
        let mut out = logits(context);
        for (token, logit) in out.iter_mut().enumerate() {
            *key.last_mut().unwrap() = token as u32;
            *logit += amount * noise(seed, &key);
        }
        out
    })
}
