//! A sequence that is kept from turn to turn, so that only new tokens are computed.

use std::ops::ControlFlow;
use std::sync::Arc;

use breakers_core::{
    ChatReply, Error as StepFailed, FinishReason, LanguageModel as _, Message, SequenceId, StepError, TokenId,
};
use breakers_model::Runner;
use breakers_spec_decode::{Config, Decoding, Drafter, Speculator};
use breakers_tokenizer::{ChatTemplate, EncodeOptions};

use super::interrupt::Interrupt;
use super::{Form, encode, hold, print_calls};
use crate::{LoadedModel, Result, print};

pub(super) struct Session<'a> {
    loaded: &'a LoadedModel,
    runner: Runner,
    sequence: SequenceId,
    /// Tokens that the sequence holds.
    held: Vec<TokenId>,
    speculator: Speculator<Box<dyn Drafter + Send>>,
    config: Config,
    stop: Vec<String>,
    form: Option<Form>,
    interrupt: Interrupt,
}

impl<'a> Session<'a> {
    /// A new session. From now on Ctrl-C ends its answers.
    pub(super) fn new(
        loaded: &'a LoadedModel,
        mut runner: Runner,
        speculator: Speculator<Box<dyn Drafter + Send>>,
        config: Config,
        stop: Vec<String>,
        form: Option<Form>,
    ) -> Result<Self> {
        let sequence = runner.open()?;
        let interrupt = Interrupt::new()?;
        Ok(Self { loaded, runner, sequence, held: Vec::new(), speculator, config, stop, form, interrupt })
    }

    /// Generates the next message of a conversation and prints it as it comes; `None` if there is no room for
    /// it.
    pub(super) fn answer(
        &mut self,
        template: &ChatTemplate,
        messages: &[Message],
    ) -> Result<Option<ChatReply>> {
        let prompt = encode(template, messages, self.loaded, self.form.as_ref())?;
        if prompt.len() >= self.loaded.model.info().max_context {
            return Ok(None);
        }
        self.generate(&prompt).map(Some)
    }

    /// Continues a text, and prints the continuation as it comes.
    pub(super) fn continue_text(&mut self, text: &str) -> Result {
        let prompt = self.loaded.model.tokenizer().encode(text, EncodeOptions::default())?;
        if prompt.len() >= self.loaded.model.info().max_context {
            eprintln!("[too long]");
            return Ok(());
        }
        print(text)?;
        self.generate(&prompt).map(|_| ())
    }

    /// Shortens the sequence to `len` tokens, or to fewer if its cache cannot stop there.
    fn truncate(&mut self, len: usize) -> Result<usize> {
        let mut keep = len;
        while let Err(error) = self.runner.truncate(self.sequence, keep) {
            keep = match error {
                StepFailed::Step(StepError::TruncateEvicted { evicted_from, .. }) if evicted_from < keep => {
                    evicted_from
                }
                StepFailed::Step(StepError::TruncateEvicted { .. }) if keep > 0 => 0,
                error => return Err(error.into()),
            };
        }
        Ok(keep)
    }

    fn generate(&mut self, prompt: &[TokenId]) -> Result<ChatReply> {
        let equal = self.held.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let keep = self.truncate(equal.min(prompt.len().saturating_sub(1)))?;
        self.held.truncate(keep);
        let vocabulary = Arc::new(self.loaded.model.tokenizer().clone());
        // The whole conversation is the prompt, because penalties look at all of it. The sequence already
        // holds its beginning.
        let decoding = Decoding::new(&self.runner, self.sequence, prompt, &self.config)?;
        let (mut decoding, mut answer) =
            hold(decoding.with_text(vocabulary, &self.stop), self.form.as_ref())?;
        let mut written = Ok(());
        self.interrupt.begin();
        let result = self.speculator.drive(&mut self.runner, &mut decoding, |decoding, _| {
            written = answer.push(&decoding.take_text()).and_then(|text| print(&text));
            let goes_on = written.is_ok() && !self.interrupt.is_pressed();
            if goes_on { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        let is_interrupted = self.interrupt.end();
        // The last token was produced but not fed.
        let mut tokens = [prompt, decoding.output()].concat();
        tokens.truncate(self.runner.len(self.sequence)?);
        self.held = tokens;
        result?;
        written?;
        let finish = decoding.finish().unwrap_or(FinishReason::Cancelled);
        answer.finish(finish).and_then(|text| print(&text))?;
        print_calls(&answer.reply)?;
        if is_interrupted {
            eprintln!("[interrupted; Ctrl-C again ends the chat]");
        }
        Ok(answer.reply)
    }
}
