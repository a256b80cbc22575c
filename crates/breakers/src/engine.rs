//! A model that answers requests, with the flags that shape it.

use std::path::Path;
use std::sync::Arc;

use breakers_cli::{CacheArgs, DraftArgs, Error, LoadedModel, ModelArgs, Result, draft_model};
use breakers_core::{ModelCard, Tokenizer};
use breakers_model::Runner;
use breakers_model::stages::Stage;
use breakers_spec_decode::{Drafter, DrafterSpec, Engine, EngineConfig};
use breakers_structured::Forms;
use breakers_structured::tools::ToolFormatSpec;

/// Flags of models that answer requests.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct EngineArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    cache: CacheArgs,
    #[command(flatten)]
    draft: DraftArgs,
    /// How many texts are generated at a time; further ones wait.
    #[arg(long, visible_alias = "parallel", default_value_t = 8, value_name = "N")]
    pub(crate) max_texts: usize,
    /// Megabytes of keys and values up to which what ended texts have read is kept, so that the next turn of
    /// a conversation, or another question behind the same instructions, reads only what is new; 0 keeps
    /// none.
    #[arg(long, default_value_t = 1024, value_name = "MB")]
    pub(crate) cache_mb: usize,
    /// Megabytes of keys and values that all texts may take, kept ones included: further texts wait until
    /// they fit in, and the latest pause where running ones grow [default: what there is].
    #[arg(long, value_name = "MB", value_parser = clap::value_parser!(u32).range(1..))]
    max_mb: Option<u32>,
    /// The form in which the model calls functions [default: what its chat template tells].
    #[arg(long, value_name = "NAME")]
    tool_format: Option<ToolFormatSpec>,
}

impl EngineArgs {
    /// What the flags say about texts.
    pub(crate) fn config(&self) -> EngineConfig {
        let mut config = EngineConfig::default();
        config.max_texts = self.max_texts;
        config.draft_length = self.draft.length();
        config.cache_bytes = self.cache_mb.saturating_mul(1_000_000);
        config.max_bytes = self.max_mb.map(|mb| (mb as usize).saturating_mul(1_000_000));
        config
    }

    /// The model's card under a name, or else its own. Its revision names all that determines the answers.
    pub(crate) fn card(&self, loaded: &LoadedModel, alias: Option<&str>) -> Result<ModelCard> {
        let file = Path::new(&loaded.name);
        // A name of the catalog may hold a dot, which begins no extension.
        let name = match (file.extension(), file.file_stem()) {
            (Some(extension), Some(stem)) if extension == "gguf" => stem.to_string_lossy().into_owned(),
            _ => loaded.name.clone(),
        };
        let mut card = ModelCard::new(alias.map_or(name, str::to_owned));
        // Matrices of another file are not part of the model's hash.
        if self.model.matrices.is_none() {
            let file = self.model.provenance(&[loaded])?.models.into_iter().next();
            card.revision = file.map(|file| self.revision(&file.sha256));
        }
        Ok(card)
    }

    /// What tells a model from all others: the hash of its file, its cache, and the version of this program.
    pub(crate) fn revision(&self, file: &str) -> String {
        format!("{file} {} {}", self.cache.cache, env!("CARGO_PKG_VERSION"))
    }

    /// The loaded model as one that answers. The layers that it lacks are those of `stages`.
    pub(crate) fn engine(
        &self,
        loaded: LoadedModel,
        card: ModelCard,
        stages: Vec<Stage>,
        config: EngineConfig,
    ) -> Result<Engine<Runner, impl Drafter + use<>>> {
        let mut runner = self.cache.runner(&loaded.model)?;
        if !stages.is_empty() {
            let cache = self.cache.cache.to_ascii_lowercase();
            let refused = |error: breakers_model::Error| Error::Usage(format!("--stage: {error}"));
            runner = runner.with_stages(stages, &cache).map_err(refused)?;
        }
        let tokenizer: Arc<dyn Tokenizer> = Arc::new(loaded.model.tokenizer().clone());
        let template = loaded.model.chat_template()?.cloned();
        let mut forms = Forms::new(Arc::clone(&tokenizer))?;
        let told = || ToolFormatSpec::of_model(&loaded.model.info().name, template.as_ref()?.source());
        match self.tool_format.or_else(told) {
            Some(format) => forms = forms.with_calls(format),
            None => eprintln!(
                "note: the template of {} does not tell how it calls functions: requests with `tools` are refused; \
                 --tool-format names a form",
                loaded.name
            ),
        }
        let spec = self.draft.draft.clone().unwrap_or_default();
        // Loaded once; each text drafts with sequences of its own.
        let draft = spec.model().map(|name| self.model.load_other(name)).transpose()?;
        let target = loaded;
        let make = move |spec: &DrafterSpec| -> breakers_spec_decode::Result<_> {
            spec.make(|_| Ok(draft_model(draft.as_ref().unwrap_or(&target), &target)))
        };
        // A drafter that does not fit the model is an error now, and not at the first request.
        drop(make(&spec)?);
        let engine = Engine::new(runner, tokenizer)
            .with_drafter(move || make(&spec))
            .with_forms(Arc::new(forms))
            .with_config(config)
            .with_card(card);
        Ok(match template {
            Some(template) => engine.with_format(Arc::new(template)),
            None => engine,
        })
    }
}
