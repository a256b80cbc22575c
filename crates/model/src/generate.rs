//! Continuing a text, token by token.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use breakers_core::{
    Error, FinishReason, GenerateRequest, Generated, LanguageModel, Output, Result, Sampler, SequenceId,
    Step, StepError, TextGenerator, TokenId, TokenLogprob, Want, top_k,
};

use crate::tokenizer::{DecodeOptions, TextStream, Tokenizer};
use crate::{Model, Runner};

/// One more token of a text that is being generated.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// The token.
    pub token: TokenId,
    /// The text that became certain with it: whole characters, and nothing that may yet turn out to be the
    /// beginning of a stop string. Often empty.
    pub text: String,
    /// The most likely tokens of this place, if the generation was asked to list them.
    pub top: Vec<TokenLogprob>,
}

/// Where the time of a generation went.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timing {
    /// Reading the prompt, up to its last token's logits.
    pub prefill: Duration,
    /// All later forward passes, sampling included.
    pub decode: Duration,
    /// Number of those passes.
    pub decode_steps: usize,
}

/// An iterator over the pieces of a text. It ends after the last one; [`finish`](Self::finish) says why.
///
/// The sequence stays open in the model, with all tokens but the last one fed; dropping the iterator early
/// leaves it in a consistent state.
pub struct Generation<'m, M: LanguageModel> {
    model: &'m mut M,
    sequence: SequenceId,
    sampler: Sampler,
    /// All tokens so far, prompt included.
    history: Vec<TokenId>,
    /// Of these, how many the model has been fed.
    fed: usize,
    n_top: usize,
    remaining: usize,
    /// `None` once the text has ended.
    stream: Option<TextStream>,
    stop: StopStrings,
    finish: Option<FinishReason>,
    timing: Timing,
}

impl<'m, M: LanguageModel> Generation<'m, M> {
    /// Begins to continue `request.prompt` in a sequence, which may hold text already (a chat's earlier turns).
    ///
    /// With `n_top` > 0 each piece lists the most likely tokens of its place.
    ///
    /// # Errors
    /// [`Error::Sampling`] for parameters out of range, [`StepError::Empty`] for an empty prompt.
    pub fn new(
        model: &'m mut M,
        tokenizer: &Tokenizer,
        sequence: SequenceId,
        request: &GenerateRequest,
        n_top: usize,
    ) -> Result<Self> {
        request.sampling.validate()?;
        if request.prompt.is_empty() {
            return Err(StepError::Empty.into());
        }
        Ok(Self {
            sampler: Sampler::new(request.sampling.clone(), request.seed),
            history: request.prompt.clone(),
            fed: 0,
            n_top,
            remaining: request.max_tokens,
            stream: Some(tokenizer.stream(DecodeOptions { skip_special: true, continues: true })),
            stop: StopStrings::new(&request.stop),
            finish: (request.max_tokens == 0).then_some(FinishReason::Length),
            timing: Timing::default(),
            sequence,
            model,
        })
    }

    /// Why the text ended; `None` while it has not.
    pub fn finish(&self) -> Option<FinishReason> {
        self.finish
    }

    /// Where the time went so far.
    pub fn timing(&self) -> Timing {
        self.timing
    }

    /// Text still held back: the rest of an unfinished character, or a beginning of a stop string.
    fn rest(&mut self) -> String {
        let tail = self.stream.take().map(TextStream::finish).unwrap_or_default();
        let (mut text, stopped) = self.stop.push(&tail);
        if !stopped {
            text.push_str(&self.stop.take());
        }
        text
    }

    fn step(&mut self) -> Result<Option<Piece>> {
        if self.finish.is_some() {
            return Ok(None);
        }
        let pending = self.history[self.fed..].to_vec();
        let n_pending = pending.len();
        let len = self.model.len(self.sequence)?;
        let limit = self.model.info().max_context;
        if len + n_pending > limit {
            if self.fed == 0 {
                return Err(StepError::ContextFull { needed: len + n_pending, limit }.into());
            }
            self.finish = Some(FinishReason::ContextFull);
            return Ok(None);
        }
        let start = Instant::now();
        let want = match (self.sampler.config().is_plain_argmax(), self.n_top) {
            (true, 0) => Want::ArgMax,
            (true, n) => Want::TopK(n),
            (false, _) => Want::Logits,
        };
        let mut steps = [Step::last(self.sequence, pending, want)];
        self.model.forward(&mut steps)?;
        self.model.commit(self.sequence, n_pending)?;
        let [step] = steps;
        let output = step.outputs.into_iter().next_back().map(|row| row.output).unwrap_or_default();
        let (token, top) = match output {
            Output::Logits(logits) => {
                let top = if self.n_top > 0 { top_k(&logits, self.n_top)? } else { Vec::new() };
                (self.sampler.sample(&logits, &self.history)?, top)
            }
            output => match (output.best(), output) {
                (Some(best), Output::TopK(top)) => (best, top),
                (Some(best), _) => (best, Vec::new()),
                (None, _) => {
                    return Err(Error::Unsupported {
                        model: self.model.info().name.clone(),
                        feature: "this output",
                    });
                }
            },
        };
        if self.fed == 0 {
            self.timing.prefill += start.elapsed();
        } else {
            self.timing.decode += start.elapsed();
            self.timing.decode_steps += 1;
        }
        self.fed = self.history.len();
        self.history.push(token);
        self.remaining -= 1;
        let mut piece = Piece { token, text: String::new(), top };
        if self.model.info().end_tokens.contains(&token) {
            self.finish = Some(FinishReason::EndOfText);
        } else {
            let text = match &mut self.stream {
                Some(stream) => stream.push(token).map_err(Error::from)?,
                None => "",
            };
            let (text, stopped) = self.stop.push(text);
            piece.text = text;
            if stopped {
                self.finish = Some(FinishReason::Stop);
            } else if self.remaining == 0 {
                self.finish = Some(FinishReason::Length);
            }
        }
        if self.finish.is_some_and(|f| f != FinishReason::Stop) {
            let rest = self.rest();
            piece.text.push_str(&rest);
        }
        Ok(Some(piece))
    }
}

impl<M: LanguageModel> Iterator for Generation<'_, M> {
    type Item = Result<Piece>;

    fn next(&mut self) -> Option<Self::Item> {
        let piece = self.step().transpose();
        if let Some(Err(_)) = piece {
            self.finish = Some(FinishReason::Cancelled);
        }
        piece
    }
}

/// Finds stop strings in a text that arrives in pieces.
struct StopStrings {
    stops: Vec<String>,
    held: String,
}

impl StopStrings {
    fn new(stops: &[String]) -> Self {
        Self { stops: stops.iter().filter(|s| !s.is_empty()).cloned().collect(), held: String::new() }
    }

    /// Adds text; returns what is certain now, and whether a stop string was found behind it.
    fn push(&mut self, text: &str) -> (String, bool) {
        self.held.push_str(text);
        if let Some(at) = self.stops.iter().filter_map(|s| self.held.find(s.as_str())).min() {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        // The longest end of the held text that begins a stop string stays back.
        let keep = self.stops.iter().map(|stop| {
            let mut ends =
                stop.char_indices().map(|(i, _)| i).filter(|&i| i > 0 && self.held.ends_with(&stop[..i]));
            ends.next_back().unwrap_or(0)
        });
        let keep = keep.max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        (std::mem::replace(&mut self.held, rest), false)
    }

    fn take(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// A model as a [`TextGenerator`]: each request in a sequence of its own.
pub struct Generator {
    runner: Runner,
    model: Model,
}

impl Generator {
    /// A generator over a model's weights.
    pub fn new(model: &Model) -> Self {
        Self { runner: model.runner(), model: model.clone() }
    }
}

impl TextGenerator for Generator {
    fn generate(
        &mut self,
        request: &GenerateRequest,
        on_piece: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Generated> {
        let sequence = self.runner.open()?;
        let result = drive(&mut self.runner, self.model.tokenizer(), sequence, request, on_piece);
        self.runner.close(sequence);
        result
    }
}

fn drive(
    runner: &mut Runner,
    tokenizer: &Tokenizer,
    sequence: SequenceId,
    request: &GenerateRequest,
    on_piece: &mut dyn FnMut(&str) -> ControlFlow<()>,
) -> Result<Generated> {
    let mut generation = Generation::new(runner, tokenizer, sequence, request, 0)?;
    let (mut tokens, mut text) = (Vec::new(), String::new());
    for piece in generation.by_ref() {
        let piece = piece?;
        tokens.push(piece.token);
        text.push_str(&piece.text);
        if !piece.text.is_empty() && on_piece(&piece.text).is_break() {
            return Ok(Generated { tokens, text, finish: FinishReason::Cancelled });
        }
    }
    let finish = generation.finish().unwrap_or(FinishReason::Length);
    Ok(Generated { tokens, text, finish })
}

#[cfg(test)]
mod tests {
    use super::StopStrings;

    fn check(stops: &[&str], pieces: &[&str], text: &str, stopped: bool) {
        let stops: Vec<String> = stops.iter().map(|s| s.to_string()).collect();
        let mut finder = StopStrings::new(&stops);
        let mut out = String::new();
        let mut found = false;
        for piece in pieces {
            let (certain, stop) = finder.push(piece);
            out.push_str(&certain);
            found = stop;
            if found {
                break;
            }
        }
        if !found {
            out.push_str(&finder.take());
        }
        assert_eq!((out.as_str(), found), (text, stopped), "{stops:?} in {pieces:?}");
    }

    #[test]
    fn stop_strings_are_found_across_pieces_and_never_shown() {
        check(&[], &["a", "b"], "ab", false);
        check(&["END"], &["one E", "N", "D two"], "one ", true);
        check(&["END"], &["one E", "N", "E two"], "one ENE two", false);
        check(&["END"], &["one EN"], "one EN", false);
        check(&["aab"], &["aa", "a", "b"], "a", true);
        check(&["\n\n", "é!"], &["x\n", "y é", "!"], "x\ny ", true);
        check(&[""], &["a"], "a", false);
    }
}
