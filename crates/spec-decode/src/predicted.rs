use breakers_core::TokenId;

use crate::{Draft, DraftRequest, Drafter, Outcome, Result};

/// Tokens of an answer by which its place in the prediction is found again.
const AGAIN: usize = 3;
/// How many tokens a beginning that nothing contradicts counts as.
const TRUST: usize = 8;

/// A drafter that may be told what an answer will probably be, in front of another one.
///
/// As long as the answer is as predicted, the prediction is proposed. Where it departs from it, the other
/// drafter goes on, until the last three tokens of the answer occur in the prediction again: there, at the
/// place nearest to where it was left, the prediction is taken up.
///
/// # Source
/// The field `prediction` of OpenAI's API; copying from a text that is known: prompt lookup decoding.
///
/// # Example
/// ```
/// use breakers_core::{Sampler, SamplingConfig};
/// use breakers_spec_decode::{DraftRequest, Drafter as _, NoDrafter, PredictedDrafter};
///
/// let mut drafter = PredictedDrafter::new(NoDrafter);
/// drafter.predict(Some(vec![1, 2, 3, 4, 5, 6, 7, 8]));
/// drafter.start(&[50, 51])?;
/// let sampling = SamplingConfig::greedy();
/// let mut sampler = Sampler::new(sampling.clone(), 0);
/// let mut after = |context: &[u32]| -> breakers_spec_decode::Result<Vec<u32>> {
///     let mut request = DraftRequest::new(context, 3, &sampling, &mut sampler);
///     Ok(drafter.propose(&mut request)?.tokens().to_vec())
/// };
/// assert_eq!(after(&[50, 51])?, [1, 2, 3]);
/// // Another token, then the prediction's again.
/// assert!(after(&[50, 51, 1, 9])?.is_empty());
/// assert_eq!(after(&[50, 51, 1, 9, 3, 4, 5])?, [6, 7, 8]);
/// # Ok::<(), breakers_spec_decode::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct PredictedDrafter<D> {
    own: D,
    prediction: Vec<TokenId>,
    /// Tokens of the prompt; of the context, what follows them is the answer.
    n_prompt: usize,
    /// Tokens of the answer that have been looked at.
    n_seen: usize,
    /// The token of the prediction that comes next, or would if the answer had not departed from it.
    at: usize,
    /// How many tokens before it are the answer's last ones; `None`: the answer has departed.
    matched: Option<usize>,
    /// Whether the last proposal was the prediction's.
    is_mine: bool,
    counts: Predicted,
}

/// What came of a prediction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Predicted {
    /// Tokens that became output.
    pub(crate) n_accepted: u64,
    /// Tokens that were verified and did not.
    pub(crate) n_rejected: u64,
}

impl<D: Drafter> PredictedDrafter<D> {
    /// The other drafter, until something is predicted.
    pub fn new(own: D) -> Self {
        let (prediction, counts) = (Vec::new(), Predicted::default());
        Self { own, prediction, n_prompt: 0, n_seen: 0, at: 0, matched: None, is_mine: false, counts }
    }

    /// Predicts the answer of the next text; `None`: nothing is known of it.
    pub fn predict(&mut self, answer: Option<Vec<TokenId>>) {
        self.prediction = answer.unwrap_or_default();
        self.counts = Predicted::default();
        (self.at, self.matched) = (0, Some(TRUST));
    }

    /// What came of the prediction so far.
    pub(crate) fn counts(&self) -> Predicted {
        self.counts
    }

    /// Follows the answer through the prediction.
    fn follow(&mut self, answer: &[TokenId]) {
        for n in self.n_seen..answer.len() {
            let is_next = self.prediction.get(self.at) == Some(&answer[n]);
            self.at += 1;
            match &mut self.matched {
                Some(matched) if is_next => *matched += 1,
                _ => self.matched = None,
            }
        }
        self.n_seen = answer.len();
        if self.matched.is_none() {
            self.find(answer);
        }
    }

    /// Looks for the answer's end in the prediction.
    fn find(&mut self, answer: &[TokenId]) {
        let Some(end) = answer.len().checked_sub(AGAIN).map(|from| &answer[from..]) else { return };
        let places = self.prediction.windows(AGAIN).enumerate().filter(|(_, window)| *window == end);
        let after = places.map(|(place, _)| place + AGAIN);
        if let Some(at) = after.min_by_key(|place| place.abs_diff(self.at)) {
            (self.at, self.matched) = (at, Some(AGAIN));
        }
    }

    fn predicted(&mut self, request: &DraftRequest<'_>) -> Draft {
        self.follow(request.context.get(self.n_prompt..).unwrap_or_default());
        let Some(matched) = self.matched else { return Draft::none() };
        let ahead = self.prediction.get(self.at..).unwrap_or_default();
        let (mut tokens, mut confidences) = (Vec::new(), Vec::new());
        for (i, &token) in ahead.iter().take(request.max_tokens).enumerate() {
            if token as usize >= request.vocab_size
                || (self.own.stops_itself() && !request.pays(&confidences))
            {
                break;
            }
            tokens.push(token);
            confidences.push((matched + i) as f32 / (matched + i + 1) as f32);
            if request.end_tokens.contains(&token) {
                break;
            }
        }
        Draft::chain(tokens).with_confidences(confidences)
    }
}

impl<D: Drafter> Drafter for PredictedDrafter<D> {
    fn name(&self) -> &str {
        self.own.name()
    }

    fn start(&mut self, prompt: &[TokenId]) -> Result<()> {
        (self.n_prompt, self.n_seen) = (prompt.len(), 0);
        self.own.start(prompt)
    }

    fn propose(&mut self, request: &mut DraftRequest<'_>) -> Result<Draft> {
        self.is_mine = false;
        if !self.prediction.is_empty() {
            let draft = self.predicted(request);
            if !draft.is_empty() {
                self.is_mine = true;
                return Ok(draft);
            }
        }
        self.own.propose(request)
    }

    fn observe(&mut self, outcome: &Outcome<'_>) {
        if !self.is_mine {
            return self.own.observe(outcome);
        }
        self.counts.n_accepted += outcome.n_accepted as u64;
        self.counts.n_rejected += outcome.n_drafted.saturating_sub(outcome.n_accepted) as u64;
    }

    fn stops_itself(&self) -> bool {
        self.own.stops_itself()
    }
}
