//! A conversation in the terminal.

use std::io::{BufRead, IsTerminal as _};
use std::ops::ControlFlow;
use std::sync::Arc;

use breakers::cli::{Error as Failure, LoadedModel, Result, print};
use breakers_core::{Error, LanguageModel as _, Message, SequenceId, StepError, TokenId};
use breakers_model::Runner;
use breakers_spec_decode::{Config, Decoding, Drafter, Speculator};
use breakers_tokenizer::ChatTemplate;
use breakers_tokenizer::EncodeOptions;

const HELP: &str = "\"\"\" begins and ends several lines, /reset begins anew, /exit (or end of input) ends";

/// The first messages of a conversation.
pub(crate) fn opening(system: Option<&str>, prompt: &str) -> Vec<Message> {
    let system = system.map(|text| Message::new("system", text));
    system.into_iter().chain([Message::new("user", prompt)]).collect()
}

/// Reads messages and answers them until the input ends. Without a template each one is continued as a text. A message
/// that cannot be answered is told and dropped; the conversation before it goes on.
pub(crate) fn run(
    loaded: &LoadedModel,
    mut session: Session<'_>,
    system: Option<&str>,
    template: Option<&ChatTemplate>,
) -> Result {
    let kind = if template.is_some() { "chat" } else { "continues each line, without memory" };
    eprintln!("{} ({kind}); {HELP}", loaded.name);
    let mut messages: Vec<Message> = Vec::new();
    let interactive = std::io::stdin().is_terminal();
    loop {
        if interactive {
            eprint!("> ");
        }
        let text = match read_message(&mut std::io::stdin().lock(), interactive)? {
            Input::End => return Ok(()),
            Input::NotUtf8 => {
                eprintln!("[this is not UTF-8; left out]");
                continue;
            }
            Input::Message(text) => text,
        };
        match text.trim() {
            "" => continue,
            "/exit" | "/bye" => return Ok(()),
            "/help" => {
                eprintln!("{HELP}");
                continue;
            }
            "/reset" | "/clear" => {
                messages.clear();
                continue;
            }
            _ => {}
        }
        let result = match template {
            Some(template) => turn(&mut session, template, system, &mut messages, &text),
            None => session.continue_text(&text),
        };
        match result {
            Ok(()) => {}
            Err(Failure::Failed(error)) => {
                eprintln!("[{}; the message is left out]", causes(&*error));
            }
            // Nobody reads the answers any more.
            Err(other) => return Err(other),
        }
    }
}

/// Answers a message; on failure the conversation is what it was before.
fn turn(
    session: &mut Session<'_>,
    template: &ChatTemplate,
    system: Option<&str>,
    messages: &mut Vec<Message>,
    text: &str,
) -> Result {
    let mut longer = messages.clone();
    match longer.is_empty() {
        true => longer = opening(system, text),
        false => longer.push(Message::new("user", text)),
    }
    let mut answer = session.answer(template, &longer)?;
    if answer.is_none() && !messages.is_empty() {
        eprintln!("[the conversation no longer fits into the context; it begins anew with this message]");
        longer = opening(system, text);
        answer = session.answer(template, &longer)?;
    }
    match answer {
        Some(answer) => {
            longer.push(Message::new("assistant", answer));
            *messages = longer;
        }
        None => eprintln!("[the message alone is longer than the context; it is left out]"),
    }
    Ok(())
}

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
enum Input {
    Message(String),
    NotUtf8,
    End,
}

/// Reads a line, or several between two `"""`.
fn read_message(input: &mut impl BufRead, interactive: bool) -> std::io::Result<Input> {
    const QUOTES: &str = "\"\"\"";
    let mut text = match read_line(input)? {
        Input::Message(text) => text,
        other => return Ok(other),
    };
    let Some(opened) = text.strip_prefix(QUOTES) else { return Ok(Input::Message(text)) };
    text = opened.to_owned();
    let mut is_utf8 = true;
    loop {
        if let Some(closed) = text.strip_suffix(QUOTES) {
            text.truncate(closed.len());
            break;
        }
        if interactive {
            eprint!("... ");
        }
        match read_line(input)? {
            Input::Message(line) => {
                text.push('\n');
                text.push_str(&line);
            }
            Input::NotUtf8 => is_utf8 = false,
            Input::End => break,
        }
    }
    Ok(if is_utf8 { Input::Message(text.trim_matches('\n').to_owned()) } else { Input::NotUtf8 })
}

/// A line without its end.
fn read_line(input: &mut impl BufRead) -> std::io::Result<Input> {
    let mut line = Vec::new();
    if input.read_until(b'\n', &mut line)? == 0 {
        return Ok(Input::End);
    }
    while matches!(line.last(), Some(b'\n' | b'\r')) {
        line.pop();
    }
    Ok(String::from_utf8(line).map_or(Input::NotUtf8, Input::Message))
}

/// An error with its causes on one line.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let line = error.to_string();
        if !text.contains(&line) {
            text += &format!(": {line}");
        }
        cause = error.source();
    }
    text
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
        let prompt = self.loaded.model.tokenizer().encode_chat(template, messages, &[])?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_lines_or_stand_between_quotes() {
        let mut input: &[u8] =
            b"one\r\n\xff\xfe\n\"\"\"two\nthree\"\"\"\n\"\"\"\nfour\n\n five\n\"\"\"\n\"\"\"six\"\"\"\n\"\"\"a\n\xff\n\"\"\"\nlast";
        let mut found = Vec::new();
        loop {
            match read_message(&mut input, false).unwrap() {
                Input::End => break,
                Input::NotUtf8 => found.push("?".to_owned()),
                Input::Message(text) => found.push(text),
            }
        }
        assert_eq!(found, ["one", "?", "two\nthree", "four\n\n five", "six", "?", "last"]);
    }
}
