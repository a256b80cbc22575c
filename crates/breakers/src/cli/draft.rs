//! Drafters by name.

use breakers_spec_decode::{
    DraftLength, Drafter, ModelDraftConfig, ModelDrafter, NgramDrafter, NoDrafter, TokenizerFingerprint,
};

use super::{LoadedModel, ModelArgs, Result};

/// Draft tokens at most, where costs decide how many.
pub const MAX_DRAFT: usize = 16;

/// Flags that choose who drafts.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct DraftArgs {
    /// Draft tokens that the model verifies in one pass, without changing the text: `ngram` (what stood in the text
    /// before), or a smaller model with the same tokenizer, by name or path.
    #[arg(long, value_name = "ngram|NAME|PATH")]
    pub draft: Option<String>,
    /// Tokens drafted in a step; default: as many as pay off, 16 at most.
    #[arg(long, value_name = "N", requires = "draft", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub draft_length: Option<u16>,
}

impl DraftArgs {
    /// The drafter for a model; one that proposes nothing without `--draft`.
    ///
    /// # Errors
    /// Those of loading the other model; [`TokenizerMismatch`](breakers_spec_decode::Error::TokenizerMismatch).
    pub fn drafter(&self, models: &ModelArgs, target: &LoadedModel) -> Result<Box<dyn Drafter + Send>> {
        Ok(match self.draft.as_deref() {
            None => Box::new(NoDrafter),
            Some("ngram") => Box::<NgramDrafter>::default(),
            Some(name) => Box::new(model_drafter(&models.load_other(name)?, target)?),
        })
    }

    /// How many tokens are drafted.
    pub fn length(&self) -> DraftLength {
        match self.draft_length {
            Some(n) => DraftLength::Fixed(n.into()),
            None => DraftLength::Adaptive { max: MAX_DRAFT },
        }
    }
}

/// A model that drafts for another.
///
/// # Errors
/// [`TokenizerMismatch`](breakers_spec_decode::Error::TokenizerMismatch).
pub fn model_drafter(
    draft: &LoadedModel,
    target: &LoadedModel,
) -> breakers_spec_decode::Result<ModelDrafter<breakers_model::Runner>> {
    let [ours, theirs] = [draft, target].map(|loaded| TokenizerFingerprint::of(loaded.model.tokenizer()));
    ModelDrafter::new(draft.model.runner(), ours, theirs, ModelDraftConfig::default())
}
