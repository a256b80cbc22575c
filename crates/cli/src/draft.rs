//! Drafters by name.

use breakers_spec_decode::{DraftLength, DraftModel, DrafterSpec, NamedDrafter, TokenizerFingerprint};

use super::{LoadedModel, ModelArgs, Result};

/// The most draft tokens, where their number is decided by cost.
pub const MAX_DRAFT: usize = 16;

/// Flags that choose the drafter.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct DraftArgs {
    /// Draft tokens that the model verifies in one pass; the text stays the same. `ngram` repeats what
    /// followed earlier in the text, `model:NAME` or just NAME is a smaller model with the same tokenizer, by
    /// name or path. An unknown drafter lists all of them.
    #[arg(long, value_name = "ngram|NAME|PATH", value_parser = parse_drafter)]
    pub draft: Option<DrafterSpec>,
    /// Tokens drafted per step [default: as many as pay off, at most 16].
    #[arg(long, value_name = "N", requires = "draft", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub draft_length: Option<u16>,
}

/// A drafter's name. A name that no drafter has, and that has no colon, is a model's.
fn parse_drafter(text: &str) -> breakers_spec_decode::Result<DrafterSpec> {
    text.parse().or_else(|error| match text.contains(':') || text.is_empty() {
        true => Err(error),
        false => text.to_ascii_lowercase().parse().or_else(|_| format!("model:{text}").parse()),
    })
}

impl DraftArgs {
    /// The drafter for a model. Without `--draft` it proposes nothing.
    ///
    /// # Errors
    /// Those of loading the other model;
    /// [`TokenizerMismatch`](breakers_spec_decode::Error::TokenizerMismatch).
    pub fn drafter(&self, models: &ModelArgs, target: &LoadedModel) -> Result<NamedDrafter> {
        let spec = self.draft.clone().unwrap_or_default();
        spec.make(|name| Ok(draft_model(&models.load_other(name)?, target)))
    }

    /// How many tokens to draft.
    pub fn length(&self) -> DraftLength {
        match self.draft_length {
            Some(n) => DraftLength::Fixed(n.into()),
            None => DraftLength::Adaptive { max: MAX_DRAFT },
        }
    }
}

/// What a drafter needs from a model that drafts for another.
pub fn draft_model(draft: &LoadedModel, target: &LoadedModel) -> DraftModel {
    let [tokenizer, target_tokenizer] =
        [draft, target].map(|loaded| TokenizerFingerprint::of(loaded.model.tokenizer()));
    DraftModel { model: Box::new(draft.model.runner()), tokenizer, target_tokenizer }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_name_is_a_models() {
        for (text, full) in [
            ("ngram", "ngram"),
            ("NGRAM", "ngram"),
            ("none", "none"),
            ("model-likely:a", "model-likely:a"),
            ("smollm2-135m", "model:smollm2-135m"),
            ("models/a.gguf", "model:models/a.gguf"),
        ] {
            assert_eq!(parse_drafter(text).unwrap().to_string(), full);
        }
        for text in ["", "tree:a", "ngram:a"] {
            let error = parse_drafter(text).unwrap_err().to_string();
            assert!(error.contains("ngram-frequent"), "{error}");
        }
    }
}
