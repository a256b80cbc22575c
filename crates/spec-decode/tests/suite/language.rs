//! A made-up language as a constraint, and texts in it by the book.

use std::collections::{BTreeSet, VecDeque};

use breakers_core::{
    Constraint, ConstraintError, FinishReason, LanguageModel as _, Sampler, SamplingConfig, TokenId,
    TokenMask,
};
use breakers_spec_decode::{AtLimit, Config, Decoding, DraftLength, Drafter, Error, Speculated, Speculator};

use crate::toy::{LogitsFn, Toy, mix};

pub(crate) const VOCAB: usize = 24;
pub(crate) const END: TokenId = 0;

/// A language in which what may come next depends on the last token and on how many there are:
/// half of the tokens in most places, one in three of seven places, and an end only in every
/// fourth place after the tenth.
#[derive(Clone, Default)]
pub(crate) struct Language {
    pub(crate) text: Vec<TokenId>,
    /// Whether it tells what is likely: what is determined and, where three may follow, the least of them.
    pub(crate) tells: bool,
    /// Whether it knows ways to its end.
    pub(crate) knows_ends: bool,
    /// The place from which on nothing is allowed.
    pub(crate) dead_end: Option<usize>,
}

impl Language {
    pub(crate) fn tokens(&self, text: &[TokenId]) -> Vec<TokenId> {
        let (n, last) = (text.len() as u64, text.last().copied().unwrap_or(1));
        if self.dead_end.is_some_and(|at| text.len() >= at) {
            return Vec::new();
        }
        if (3..6).contains(&(n % 7)) {
            return vec![1 + (mix(n) % (VOCAB as u64 - 1)) as TokenId];
        }
        let fits = |token: &TokenId| mix(u64::from(last * 31 + token)).is_multiple_of(2) || *token == 5;
        let end = (n >= 10 && n.is_multiple_of(4)).then_some(END);
        (1..VOCAB as TokenId).filter(fits).chain(end).collect()
    }
}

impl Constraint for Language {
    fn allowed(&mut self, mask: &mut TokenMask) -> Result<(), ConstraintError> {
        mask.forbid_all();
        self.tokens(&self.text).into_iter().for_each(|token| mask.allow(token));
        Ok(())
    }

    fn advance(&mut self, token: TokenId) -> Result<(), ConstraintError> {
        assert_ne!(token, END, "an end token was advanced");
        if !self.tokens(&self.text).contains(&token) {
            return Err(ConstraintError::NotAllowed { token });
        }
        self.text.push(token);
        Ok(())
    }

    fn rollback(&mut self, n_tokens: usize) -> Result<(), ConstraintError> {
        let available = self.text.len();
        let keep = available.checked_sub(n_tokens);
        self.text.truncate(keep.ok_or(ConstraintError::Rollback { requested: n_tokens, available })?);
        Ok(())
    }

    fn forced(&mut self) -> Result<Vec<TokenId>, ConstraintError> {
        let mut text = self.text.clone();
        while self.tells && text.len() < self.text.len() + 4 {
            match &*self.tokens(&text) {
                [END, ..] | [] => break,
                [only] => text.push(*only),
                [least, ..] if text.len().is_multiple_of(3) => text.push(*least),
                _ => break,
            }
        }
        Ok(text.split_off(self.text.len()))
    }

    fn completion(&mut self, within: usize) -> Result<Option<Vec<TokenId>>, ConstraintError> {
        Ok(if self.knows_ends { self.shortest(within) } else { None })
    }
}

impl Language {
    /// The shortest way to an end, by trying all.
    pub(crate) fn shortest(&self, within: usize) -> Option<Vec<TokenId>> {
        let mut seen = BTreeSet::new();
        let mut open = VecDeque::from([Vec::new()]);
        while let Some(way) = open.pop_front() {
            let text = [&self.text[..], &way].concat();
            let next = self.tokens(&text);
            if next.contains(&END) {
                return Some(way);
            }
            // A prime and a few: no way to an end is longer than that, or there is none.
            for token in next.into_iter().filter(|_| way.len() < within.min(40)) {
                if seen.insert((way.len(), token)) {
                    open.push_back([&way[..], &[token]].concat());
                }
            }
        }
        None
    }
}

/// Plain masked decoding by the book, without the crate under test. A token behind which no end fits into the
/// limit gives way to the first one of a known way to the end.
pub(crate) fn plain(logits: &LogitsFn, job: &Job) -> (Vec<TokenId>, FinishReason) {
    let mut text = job.prompt.clone();
    let mut sampler = Sampler::new(job.config.sampling.clone(), job.config.seed);
    let mut language = job.language.clone();
    let leads = job.config.at_limit == AtLimit::Complete;
    let mut way = language.as_mut().filter(|_| leads).and_then(|language| language.completion(1000).unwrap());
    loop {
        let output = &text[job.prompt.len()..];
        let finish = match output.last() {
            Some(&END) => FinishReason::EndOfText,
            _ if output.len() == job.config.max_tokens => FinishReason::Length,
            _ => {
                let mut row = logits(&text);
                if let Some(language) = &mut language {
                    let mut mask = TokenMask::none(VOCAB);
                    language.allowed(&mut mask).unwrap();
                    mask.apply(&mut row);
                }
                let mut next = sampler.sample(&row, &text).unwrap();
                if let (Some(way), Some(language)) = (&mut way, &mut language) {
                    let left = job.config.max_tokens - output.len();
                    let first = way.first().copied().unwrap_or(END);
                    if way.len() + 1 == left {
                        next = first;
                    }
                    if next != END {
                        let mut behind = language.clone();
                        behind.advance(next).unwrap();
                        if next == first {
                            way.remove(0);
                        } else if let Some(found) = (left >= 2).then(|| behind.shortest(left - 2)).flatten() {
                            *way = found;
                        } else {
                            next = first;
                            way.splice(..1.min(way.len()), []);
                        }
                    }
                }
                if let Some(language) = language.as_mut().filter(|_| next != END) {
                    language.advance(next).unwrap();
                }
                text.push(next);
                continue;
            }
        };
        return (text.split_off(job.prompt.len()), finish);
    }
}

pub(crate) struct Job {
    pub(crate) prompt: Vec<TokenId>,
    pub(crate) config: Config,
    pub(crate) language: Option<Language>,
}

/// Texts with settings of their own; every third one is free.
pub(crate) fn jobs(n: usize, sampling: &SamplingConfig, tells: bool) -> Vec<Job> {
    let job = |i: usize| {
        let free = i % 3 == 2;
        let sampling = if i % 4 == 3 { SamplingConfig::greedy() } else { sampling.clone() };
        let draft_length = match i % 2 {
            0 => DraftLength::Fixed(1 + i % 5),
            _ => DraftLength::Adaptive { max: 9 },
        };
        let config = Config {
            max_tokens: 24 + 7 * i,
            sampling,
            seed: 40 + i as u64,
            end_tokens: Some(vec![END]),
            draft_length,
            ..Config::default()
        };
        let prompt = (0..3 + 4 * i as TokenId).map(|t| 1 + t % 9).collect();
        let language = Language { tells, knows_ends: i.is_multiple_of(2), ..Language::default() };
        Job { prompt, config, language: (!free).then_some(language) }
    };
    (0..n).map(job).collect()
}

pub(crate) fn decoding(model: &mut Toy, job: &Job) -> Decoding {
    let sequence = model.open().unwrap();
    let decoding = Decoding::new(model, sequence, &job.prompt, &job.config).unwrap();
    match &job.language {
        Some(language) => decoding.with_constraint(Box::new(language.clone())),
        None => decoding,
    }
}

/// Runs a text alone.
pub(crate) fn run(model: &mut Toy, drafter: impl Drafter, job: &Job) -> Result<Speculated, Error> {
    let mut text = decoding(model, job);
    let sequence = text.sequence();
    let driven = Speculator::new(drafter).drive(model, &mut text, |_, _| std::ops::ControlFlow::Continue(()));
    model.close(sequence);
    driven.map(|()| text.into_result())
}

pub(crate) fn job(max_tokens: usize, draft_length: DraftLength, sampling: SamplingConfig) -> Job {
    let end_tokens = Some(vec![END]);
    let config = Config { max_tokens, draft_length, sampling, end_tokens, ..Config::default() };
    let language = Some(Language { knows_ends: true, ..Language::default() });
    Job { prompt: vec![1, 2, 3], config, language }
}
