//! A conversation in the terminal.

use std::io::{BufRead as _, IsTerminal as _};
use std::ops::ControlFlow;
use std::sync::Arc;

use breakers::cli::{LoadedModel, Result, print};
use breakers_core::{Error, LanguageModel as _, Message, SequenceId, StepError, TokenId};
use breakers_model::Runner;
use breakers_spec_decode::{Config, Decoding, Drafter, Speculator};
use breakers_tokenizer::ChatTemplate;
use breakers_tokenizer::EncodeOptions;

const HELP: &str = "/reset begins anew, /exit (or end of input) ends";

/// The first messages of a conversation.
pub(crate) fn opening(system: Option<&str>, prompt: &str) -> Vec<Message> {
    let system = system.map(|text| Message::new("system", text));
    system.into_iter().chain([Message::new("user", prompt)]).collect()
}

/// Reads lines and answers them until the input ends. A model without chat template continues each line.
pub(crate) fn run(loaded: &LoadedModel, mut session: Session<'_>, system: Option<&str>, raw: bool) -> Result {
    let template = loaded.model.chat_template().filter(|_| !raw);
    let kind = if template.is_some() { "chat" } else { "continues each line, without memory" };
    eprintln!("{} ({kind}); {HELP}", loaded.name);
    let mut messages: Vec<Message> = Vec::new();
    let interactive = std::io::stdin().is_terminal();
    let mut line = String::new();
    loop {
        if interactive {
            eprint!("> ");
        }
        line.clear();
        if std::io::stdin().lock().read_line(&mut line)? == 0 {
            return Ok(());
        }
        match line.trim() {
            "" => continue,
            "/exit" => return Ok(()),
            "/help" => {
                eprintln!("{HELP}");
                continue;
            }
            "/reset" => {
                messages.clear();
                continue;
            }
            _ => {}
        }
        let text = line.trim_end_matches(['\r', '\n']);
        let Some(template) = template else {
            session.continue_text(text)?;
            continue;
        };
        if messages.is_empty() {
            messages = opening(system, text);
        } else {
            messages.push(Message::new("user", text));
        }
        match session.answer(template, &messages)? {
            Some(answer) => messages.push(Message::new("assistant", answer)),
            None => {
                eprintln!("[the conversation no longer fits into the context; beginning anew]");
                messages.clear();
            }
        }
    }
}

/// A sequence that is kept from turn to turn, so that only what is new is computed.
pub(crate) struct Session<'a> {
    loaded: &'a LoadedModel,
    runner: Runner,
    sequence: SequenceId,
    /// Tokens that the sequence holds.
    held: Vec<TokenId>,
    speculator: Speculator<Box<dyn Drafter + Send>>,
    config: Config,
    stop: Vec<String>,
}

impl<'a> Session<'a> {
    pub(crate) fn new(
        loaded: &'a LoadedModel,
        mut runner: Runner,
        speculator: Speculator<Box<dyn Drafter + Send>>,
        config: Config,
        stop: Vec<String>,
    ) -> Result<Self> {
        let sequence = runner.open()?;
        Ok(Self { loaded, runner, sequence, held: Vec::new(), speculator, config, stop })
    }

    /// The next message of a conversation, printed as it comes; `None` if there is no room for it.
    fn answer(&mut self, template: &ChatTemplate, messages: &[Message]) -> Result<Option<String>> {
        let prompt = template.render(messages, None, true)?;
        let options = EncodeOptions { add_special: false, parse_special: true };
        let prompt = self.loaded.model.tokenizer().encode(&prompt, options)?;
        if prompt.len() >= self.loaded.model.info().max_context {
            return Ok(None);
        }
        self.generate(&prompt).map(Some)
    }

    fn continue_text(&mut self, text: &str) -> Result {
        let prompt = self.loaded.model.tokenizer().encode(text, EncodeOptions::default())?;
        if prompt.len() >= self.loaded.model.info().max_context {
            eprintln!("[too long]");
            return Ok(());
        }
        print(text)?;
        self.generate(&prompt).map(|_| ())
    }

    /// Shortens the sequence to `len` tokens, or to as many fewer as its cache can go back to.
    fn truncate(&mut self, len: usize) -> Result<usize> {
        let mut keep = len;
        while let Err(error) = self.runner.truncate(self.sequence, keep) {
            keep = match error {
                Error::Step(StepError::TruncateEvicted { evicted_from, .. }) if evicted_from < keep => {
                    evicted_from
                }
                Error::Step(StepError::TruncateEvicted { .. }) if keep > 0 => 0,
                error => return Err(error.into()),
            };
        }
        Ok(keep)
    }

    fn generate(&mut self, prompt: &[TokenId]) -> Result<String> {
        let equal = self.held.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let keep = self.truncate(equal.min(prompt.len().saturating_sub(1)))?;
        self.held.truncate(keep);
        let vocabulary = Arc::new(self.loaded.model.tokenizer().clone());
        // The whole conversation is the prompt, of which the sequence holds a beginning: penalties look at all of it.
        let decoding = Decoding::new(&self.runner, self.sequence, prompt, &self.config)?;
        let mut decoding = decoding.with_text(vocabulary, &self.stop);
        let (mut text, mut written) = (String::new(), Ok(()));
        let result = self.speculator.drive(&mut self.runner, &mut decoding, |decoding, _| {
            let piece = decoding.take_text();
            text += &piece;
            written = print(&piece);
            if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        // The last token was produced, but not fed.
        let mut tokens = [prompt, decoding.output()].concat();
        tokens.truncate(self.runner.len(self.sequence)?);
        self.held = tokens;
        result?;
        written?;
        print("\n")?;
        Ok(text)
    }
}
