//! Versions that are asked in secret: they get an alias's requests after these were answered, and what they
//! say is compared and thrown away.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use breakers_core::{ChatReply, ChatRequest, FinishReason};

use super::usage::{ShadowCounts, ShadowKey};
use crate::state::{Hosted, Phase, State};

/// How many texts a shadow writes at a time; further ones are skipped, so that clients lose little to it.
const MAX_TEXTS: usize = 1;

/// A version that is asked in secret.
pub(crate) struct Shadow {
    key: ShadowKey,
    hosted: Arc<Hosted>,
    n_running: AtomicUsize,
}

/// A place among the texts of a shadow.
struct Place(Arc<Shadow>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.n_running.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Shadow {
    /// `hosted` in the shadow of a version.
    pub(super) fn new(alias: &str, version: &str, hosted: Arc<Hosted>) -> Self {
        let shadow = hosted.version.as_deref().unwrap_or_default().to_owned();
        let key = ShadowKey { alias: alias.to_owned(), version: version.to_owned(), shadow };
        Self { key, hosted, n_running: AtomicUsize::new(0) }
    }

    /// Asks it what `answer` is the answer to, on a thread of its own.
    pub(crate) fn ask(
        self: &Arc<Self>,
        state: &Arc<State>,
        tenant: &str,
        mut request: ChatRequest,
        answer: &ChatReply,
    ) {
        if answer.finish == FinishReason::Cancelled {
            return;
        }
        let count = |counts| state.count_shadow(self.key.clone(), counts);
        let is_free = self
            .n_running
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| (n < MAX_TEXTS).then_some(n + 1));
        if is_free.is_err() {
            return count(ShadowCounts { skipped: 1, ..ShadowCounts::default() });
        }
        let place = Place(Arc::clone(self));
        request.seed = request.seed.or(answer.seed);
        let is_comparable = request.seed.is_some() || request.sampling.is_greedy();
        let expected = Answer::of(answer);
        let (tenant, inside) = (tenant.to_owned(), Arc::clone(state));
        let ask = move || {
            let shadow = &place.0;
            let asked = catch_unwind(AssertUnwindSafe(|| {
                shadow.hosted.model.chat_as(&tenant, &request, &mut |_| match inside.phase() {
                    Phase::Serving => ControlFlow::Continue(()),
                    _ => ControlFlow::Break(()),
                })
            }));
            let mut counts = ShadowCounts::default();
            match asked {
                Ok(Ok(reply)) if reply.finish == FinishReason::Cancelled => counts.skipped = 1,
                Ok(Ok(_)) if !is_comparable => counts.uncompared = 1,
                Ok(Ok(reply)) if Answer::of(&reply) == expected => counts.same = 1,
                Ok(Ok(_)) => counts.different = 1,
                Ok(Err(_)) | Err(_) => counts.failed = 1,
            }
            inside.count_shadow(shadow.key.clone(), counts);
        };
        if std::thread::Builder::new().name("breakers-shadow".to_owned()).spawn(ask).is_err() {
            count(ShadowCounts { failed: 1, ..ShadowCounts::default() });
        }
    }
}

/// What has to be the same.
#[derive(PartialEq)]
struct Answer {
    text: String,
    calls: Vec<(String, String)>,
    tokens: Vec<u32>,
    finish: FinishReason,
}

impl Answer {
    fn of(reply: &ChatReply) -> Self {
        let calls = reply.tool_calls.iter().map(|call| (call.name.clone(), call.arguments.clone()));
        Self {
            text: reply.text.clone(),
            calls: calls.collect(),
            tokens: reply.token_ids.clone(),
            finish: reply.finish,
        }
    }
}
