//! A model whose logits are a function of the tokens so far.

use std::collections::BTreeMap;

use breakers_core::{
    Error, LanguageModel, ModelInfo, Output, Result, RowOutput, SequenceId, Step, StepError, TokenId, Want,
    argmax, top_k,
};

type Logits = dyn Fn(&[TokenId]) -> Vec<f32>;

pub(crate) struct Toy {
    info: ModelInfo,
    logits: Box<Logits>,
    sequences: BTreeMap<SequenceId, Vec<TokenId>>,
    next: u64,
}

impl Toy {
    pub(crate) fn new(vocab_size: usize, logits: impl Fn(&[TokenId]) -> Vec<f32> + 'static) -> Self {
        let info = ModelInfo::new("toy", vocab_size, 100_000);
        Self { info, logits: Box::new(logits), sequences: BTreeMap::new(), next: 0 }
    }

    /// A model that gives the same logits everywhere.
    pub(crate) fn constant(logits: Vec<f32>) -> Self {
        Self::new(logits.len(), move |_| logits.clone())
    }

    pub(crate) fn n_open(&self) -> usize {
        self.sequences.len()
    }

    fn held(&self, sequence: SequenceId) -> Result<&Vec<TokenId>> {
        self.sequences.get(&sequence).ok_or(Error::UnknownSequence { sequence })
    }
}

impl LanguageModel for Toy {
    fn info(&self) -> &ModelInfo {
        &self.info
    }
    fn open(&mut self) -> Result<SequenceId> {
        self.next += 1;
        self.sequences.insert(SequenceId(self.next), Vec::new());
        Ok(SequenceId(self.next))
    }
    fn fork(&mut self, sequence: SequenceId) -> Result<SequenceId> {
        let copy = self.held(sequence)?.clone();
        let id = self.open()?;
        self.sequences.insert(id, copy);
        Ok(id)
    }
    fn close(&mut self, sequence: SequenceId) {
        self.sequences.remove(&sequence);
    }
    fn len(&self, sequence: SequenceId) -> Result<usize> {
        Ok(self.held(sequence)?.len())
    }
    fn committed(&self, sequence: SequenceId) -> Result<usize> {
        self.len(sequence)
    }
    fn forward(&mut self, steps: &mut [Step]) -> Result<()> {
        for step in steps {
            step.validate(self.info.vocab_size)?;
            let mut held = self.held(step.sequence)?.clone();
            for row in 0..step.tokens.len() {
                held.push(step.tokens[row]);
                let output = match step.want(row) {
                    Want::Nothing => Output::Nothing,
                    Want::ArgMax => Output::ArgMax(argmax(&(self.logits)(&held))?),
                    Want::TopK(k) => Output::TopK(top_k(&(self.logits)(&held), k)?),
                    Want::Logits => Output::Logits((self.logits)(&held)),
                    _ => return Err(Error::Unsupported { model: "toy".into(), feature: "this" }),
                };
                step.outputs.push(RowOutput { output, hidden: Vec::new() });
            }
            self.sequences.insert(step.sequence, held);
        }
        Ok(())
    }
    fn retain(&mut self, _sequence: SequenceId, _rows: &[usize]) -> Result<()> {
        Err(Error::Unsupported { model: "toy".into(), feature: "retain" })
    }
    fn commit(&mut self, sequence: SequenceId, n_tokens: usize) -> Result<()> {
        let available = self.len(sequence)?;
        if n_tokens > available {
            return Err(StepError::OutOfRange { what: "commit", requested: n_tokens, available }.into());
        }
        Ok(())
    }
    fn truncate(&mut self, sequence: SequenceId, len: usize) -> Result<()> {
        self.held(sequence)?;
        self.sequences.entry(sequence).and_modify(|held| held.truncate(len));
        Ok(())
    }
}
