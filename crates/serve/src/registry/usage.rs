//! Counting what was used: added up in memory while requests run, written in batches.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

/// How much was used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Counts {
    /// Requests that were accepted.
    pub requests: u64,
    /// Texts: a request may ask for several.
    pub texts: u64,
    /// Texts that the model failed to end.
    pub failures: u64,
    /// Tokens of prompts. A prompt counts once, however many texts it has.
    pub prompt_tokens: u64,
    /// How many of them did not have to be computed.
    pub cached_tokens: u64,
    /// Tokens produced.
    pub completion_tokens: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        let Self { requests, texts, failures, prompt_tokens, cached_tokens, completion_tokens } = other;
        self.requests += requests;
        self.texts += texts;
        self.failures += failures;
        self.prompt_tokens += prompt_tokens;
        self.cached_tokens += cached_tokens;
        self.completion_tokens += completion_tokens;
    }
}

/// How often a version asked in secret gave the same answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ShadowCounts {
    /// The same answer.
    pub same: u64,
    /// Another answer.
    pub different: u64,
    /// An answer that need not be the same, since it was drawn without a seed that is known.
    pub uncompared: u64,
    /// No answer.
    pub failed: u64,
    /// It was not asked, since it was busy.
    pub skipped: u64,
}

impl std::ops::AddAssign for ShadowCounts {
    fn add_assign(&mut self, other: Self) {
        let Self { same, different, uncompared, failed, skipped } = other;
        self.same += same;
        self.different += different;
        self.uncompared += uncompared;
        self.failed += failed;
        self.skipped += skipped;
    }
}

/// What counts are kept for. All parts come from the server's own lists, so that there are not many.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct UsageKey {
    pub(crate) day: u64,
    pub(crate) tenant: String,
    pub(crate) model: String,
    pub(crate) version: String,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ShadowKey {
    pub(crate) alias: String,
    pub(crate) version: String,
    pub(crate) shadow: String,
}

/// Counts that are not in the database yet.
#[derive(Default)]
pub(super) struct Unwritten(Mutex<Batch>);

#[derive(Default)]
pub(super) struct Batch {
    pub(super) usage: BTreeMap<UsageKey, Counts>,
    pub(super) shadows: BTreeMap<ShadowKey, ShadowCounts>,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.usage.is_empty() && self.shadows.is_empty()
    }
}

impl Unwritten {
    /// The sums are valid after every step.
    fn lock(&self) -> std::sync::MutexGuard<'_, Batch> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, key: UsageKey, counts: Counts) {
        *self.lock().usage.entry(key).or_default() += counts;
    }

    pub(super) fn add_shadow(&self, key: ShadowKey, counts: ShadowCounts) {
        *self.lock().shadows.entry(key).or_default() += counts;
    }

    /// Takes everything, to write it.
    pub(super) fn take(&self) -> Batch {
        std::mem::take(&mut *self.lock())
    }

    /// Puts back what could not be written.
    pub(super) fn put_back(&self, batch: Batch) {
        let mut now = self.lock();
        for (key, counts) in batch.usage {
            *now.usage.entry(key).or_default() += counts;
        }
        for (key, counts) in batch.shadows {
            *now.shadows.entry(key).or_default() += counts;
        }
    }
}
