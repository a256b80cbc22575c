//! Drafters by name.

use std::fmt::{self, Display};
use std::str::FromStr;

use breakers_core::LanguageModel;

use crate::{
    Continuation, Drafter, Error, ModelDraftConfig, ModelDrafter, NgramConfig, NgramDrafter, NoDrafter,
    Proposal, Result, TokenizerFingerprint,
};

/// A drafter that was created by name.
pub type NamedDrafter = Box<dyn Drafter + Send>;

/// A method of drafting, by name.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Entry {
    /// The name, lower case, as in `--draft ngram`.
    pub name: &'static str,
    /// The paper, or a description if there is none.
    pub paper: &'static str,
    /// How to create it.
    pub build: Build,
}

/// How a drafter is created.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Build {
    /// From nothing but its settings.
    Alone(fn() -> NamedDrafter),
    /// From a smaller model, whose name follows a colon.
    WithModel(fn(DraftModel) -> Result<NamedDrafter>),
}

/// A model that drafts for another one.
pub struct DraftModel {
    /// The model.
    pub model: Box<dyn LanguageModel + Send>,
    /// Its tokenizer.
    pub tokenizer: TokenizerFingerprint,
    /// The tokenizer of the model whose text is generated.
    pub target_tokenizer: TokenizerFingerprint,
}

const fn entry(name: &'static str, paper: &'static str, build: Build) -> Entry {
    Entry { name, paper, build }
}

/// All drafters of this crate. A new one needs a file and a line here.
pub const DRAFTERS: &[Entry] = &[
    entry("none", "plain decoding: what every drafter has to beat", Build::Alone(|| Box::new(NoDrafter))),
    entry(
        "ngram",
        "Saxena 2023, prompt lookup; arXiv 2411.10666",
        Build::Alone(|| Box::<NgramDrafter>::default()),
    ),
    entry(
        "ngram-frequent",
        "the same, with what followed most often",
        Build::Alone(|| {
            let continuation = Continuation::MostFrequent;
            Box::new(NgramDrafter::new(NgramConfig { continuation, ..NgramConfig::default() }))
        }),
    ),
    entry(
        "model",
        "Leviathan et al. 2022, arXiv 2211.17192",
        Build::WithModel(|parts| model(parts, ModelDraftConfig::default())),
    ),
    entry(
        "model-likely",
        "the same, always with the most likely token",
        Build::WithModel(|parts| {
            model(parts, ModelDraftConfig { proposal: Proposal::MostLikely, ..Default::default() })
        }),
    ),
];

fn model(parts: DraftModel, config: ModelDraftConfig) -> Result<NamedDrafter> {
    let DraftModel { model, tokenizer, target_tokenizer } = parts;
    Ok(Box::new(ModelDrafter::new(model, tokenizer, target_tokenizer, config)?))
}

/// A drafter, chosen by name.
///
/// | name | drafter |
/// |---|---|
/// | `none` | [`NoDrafter`] |
/// | `ngram`, `ngram-frequent` | [`NgramDrafter`] |
/// | `model:NAME`, `model-likely:NAME` | [`ModelDrafter`] over the model NAME, which the caller loads |
///
/// # Example
/// ```
/// use breakers_spec_decode::{DrafterSpec, Error};
///
/// let spec: DrafterSpec = "ngram".parse()?;
/// // No model is asked for.
/// let drafter = spec.make(|name| -> Result<_, Error> { panic!("loads {name}") })?;
/// assert_eq!(drafter.name(), "n-gram");
///
/// let spec: DrafterSpec = "model:smollm2-135m".parse()?;
/// assert_eq!((spec.model(), spec.to_string()), (Some("smollm2-135m"), "model:smollm2-135m".to_owned()));
/// assert!("model".parse::<DrafterSpec>().is_err());
/// # Ok::<(), Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct DrafterSpec {
    entry: &'static Entry,
    model: Option<String>,
}

impl DrafterSpec {
    /// The name of the draft model, if there is one.
    pub fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    /// Creates the drafter. `load` is called with the name of the draft model, if there is one.
    ///
    /// # Errors
    /// Those of `load`; [`Error::TokenizerMismatch`].
    pub fn make<E: From<Error>>(
        &self,
        load: impl FnOnce(&str) -> Result<DraftModel, E>,
    ) -> Result<NamedDrafter, E> {
        match self.entry.build {
            Build::Alone(build) => Ok(build()),
            Build::WithModel(build) => Ok(build(load(self.model().unwrap_or_default())?)?),
        }
    }
}

impl Default for DrafterSpec {
    /// `none`.
    fn default() -> Self {
        Self { entry: &DRAFTERS[0], model: None }
    }
}

impl Display for DrafterSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.entry.name)?;
        self.model.iter().try_for_each(|model| write!(f, ":{model}"))
    }
}

impl FromStr for DrafterSpec {
    type Err = Error;

    /// # Errors
    /// [`Error::UnknownDrafter`], which lists all names.
    fn from_str(text: &str) -> Result<Self> {
        let (name, model) = match text.split_once(':') {
            Some((name, model)) => (name, Some(model.to_owned())),
            None => (text, None),
        };
        let fits = |entry: &&Entry| {
            let is_named = model.as_ref().is_some_and(|model| !model.is_empty());
            entry.name == name
                && match entry.build {
                    Build::Alone(_) => model.is_none(),
                    Build::WithModel(_) => is_named,
                }
        };
        let entry = DRAFTERS.iter().find(fits).ok_or_else(|| {
            let form = |entry: &Entry| match entry.build {
                Build::Alone(_) => entry.name.to_owned(),
                Build::WithModel(_) => format!("{}:NAME", entry.name),
            };
            let known = DRAFTERS.iter().map(form).collect::<Vec<_>>().join(", ");
            Error::UnknownDrafter { name: text.to_owned(), known }
        })?;
        Ok(Self { entry, model })
    }
}
