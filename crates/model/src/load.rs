//! Loading a model from a file.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use breakers_backend::device;
use breakers_core::{ModelInfo, TokenId};
use breakers_gguf as gguf;
use breakers_gguf::MatrixFile;
use breakers_kv_cache::{CacheShape, Element};
use burn::tensor::Device;

use crate::arch::{
    self,
    decoder::{Decoder, ProductCost},
};
use crate::{Error, Runner, stages};
use breakers_tokenizer::Tokenizer;
use breakers_tokenizer::{ChatTemplate, TemplateError};

/// Enough rows that reading the weights is a small part of a pass. With more rows the intermediate results
/// would no longer fit into the caches, and would be so large that the allocator requests fresh pages from
/// the system each time.
const CPU_ROWS: usize = 128;
/// GPUs need more rows to be fully used.
const GPU_ROWS: usize = 512;

/// How a model is loaded.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Where it runs.
    pub device: Device,
    /// How the plain cache stores keys and values.
    pub cache_element: Element,
    /// A file of matrices ([`breakers_gguf::matrix_file`]) that replace the model's tensors of the same
    /// names: matrices, embeddings, head, and vectors as matrices with one row.
    pub matrices: Option<PathBuf>,
    /// The most tokens that a sequence may hold, up to what the model was trained for; `None`: that many.
    pub max_context: Option<usize>,
    /// Rows computed at a time; longer prompts are fed in several passes. This affects memory and speed, but
    /// not results.
    pub rows_per_pass: usize,
    /// The layers to load; `None`: all of them. A part that begins with layer 0 runs with the others as
    /// [stages](crate::stages); another part is such a stage.
    pub layers: Option<Range<usize>>,
}

impl LoadOptions {
    /// The usual settings on a device: an f16 cache, passes of 128 rows on the CPU and of 512 on GPUs.
    pub fn on(device: Device) -> Self {
        let rows_per_pass = if device::is_cpu(&device) { CPU_ROWS } else { GPU_ROWS };
        Self {
            device,
            cache_element: Element::F16,
            matrices: None,
            max_context: None,
            rows_per_pass,
            layers: None,
        }
    }
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self::on(Device::flex())
    }
}

/// A causal language model: weights, tokenizer and chat template. Cheap to clone.
///
/// # Example
/// ```no_run
/// use breakers_model::{LoadOptions, Model};
///
/// # fn main() -> Result<(), breakers_model::Error> {
/// let options = LoadOptions { max_context: Some(4096), ..LoadOptions::default() };
/// let model = Model::load("model.gguf", &options)?;
/// println!("{}: {} bytes of weights", model.architecture(), model.weight_bytes());
/// // Runners share the weights; each has its own sequences.
/// let runners = [model.runner(), model.runner()];
/// assert_eq!(runners[0].model().path(), runners[1].model().path());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Model {
    inner: Arc<Inner>,
}

struct Inner {
    decoder: Decoder,
    info: ModelInfo,
    tokenizer: Tokenizer,
    /// A template that does not parse is an error only when it is requested: the model can be used without
    /// it.
    chat: Result<Option<ChatTemplate>, TemplateError>,
    path: PathBuf,
    options: LoadOptions,
    fingerprint: u64,
}

impl Model {
    /// Loads a GGUF file.
    ///
    /// # Errors
    /// [`Error::Gguf`] for a damaged file or a missing tensor, [`Error::NotCausal`] for a model that only
    /// embeds texts, [`Error::UnknownArchitecture`], [`Error::Hyperparameter`], [`Error::TensorShape`], and
    /// the tokenizer's own.
    ///
    /// # Example
    /// ```no_run
    /// use breakers_core::LanguageModel;
    /// use breakers_model::{LoadOptions, Model};
    /// let model = Model::load("model.gguf", &LoadOptions::default())?;
    /// println!("{} tokens", model.runner().info().vocab_size);
    /// # Ok::<(), breakers_model::Error>(())
    /// ```
    pub fn load(path: impl AsRef<Path>, options: &LoadOptions) -> Result<Self, Error> {
        let path = path.as_ref();
        refuse_encoder(path)?;
        let file = gguf::File::open(path)?;
        let spec = arch::decoder_spec(&file)?;
        let tokenizer = Tokenizer::from_gguf(&file)?;
        let chat = chat_template(&file, &tokenizer);
        let name = file.metadata().str("general.name")?.unwrap_or("unnamed").to_owned();
        let store = options.matrices.as_ref().map(MatrixFile::open).transpose()?;
        let mut decoder =
            Decoder::load(&file, store.as_ref(), spec, options.layers.clone(), &options.device)?;
        if tokenizer.vocab_size() > decoder.vocab_size {
            return Err(Error::Vocabulary { tokens: tokenizer.vocab_size(), rows: decoder.vocab_size });
        }
        if tokenizer.vocab_size() < decoder.vocab_size {
            let (tokens, rows) = (tokenizer.vocab_size(), decoder.vocab_size);
            tracing::warn!(
                "the embeddings have {rows} rows for {tokens} tokens; the rows beyond are never chosen"
            );
            decoder.vocab_size = tokens;
        }
        let trained = decoder.spec.max_context;
        if let Some(asked) = options.max_context.filter(|asked| *asked == 0 || *asked > trained) {
            return Err(Error::ContextLength { limit: trained, found: asked });
        }
        let mut info = ModelInfo::new(name, decoder.vocab_size, options.max_context.unwrap_or(trained));
        info.n_layers = decoder.spec.layers.len();
        info.hidden_size = decoder.spec.width;
        info.end_tokens = tokenizer.end_tokens().to_vec();
        info.masked_argmax = true;
        let (path, options, fingerprint) = (path.to_owned(), options.clone(), stages::fingerprint(&file));
        let inner = Inner { decoder, info, tokenizer, chat, path, options, fingerprint };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// A runner with no sequences yet.
    pub fn runner(&self) -> Runner {
        Runner::new(self.clone())
    }

    /// The layers and the limit of a sequence's cache.
    pub fn cache_shape(&self) -> CacheShape {
        self.inner.decoder.cache_shape()
    }

    /// Facts about the model.
    pub fn info(&self) -> &ModelInfo {
        &self.inner.info
    }

    /// The name in `general.architecture`.
    pub fn architecture(&self) -> &'static str {
        self.inner.decoder.spec.architecture
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.inner.tokenizer
    }

    /// The chat template in the file, if there is one. Base models have none.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if it does not parse. The model is usable without it.
    pub fn chat_template(&self) -> Result<Option<&ChatTemplate>, Error> {
        match &self.inner.chat {
            Ok(template) => Ok(template.as_ref()),
            Err(source) => Err(breakers_tokenizer::Error::ChatTemplate { source: source.clone() }.into()),
        }
    }

    /// The file that the model was loaded from.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Where the model runs.
    pub fn device(&self) -> &Device {
        &self.inner.options.device
    }

    /// Bytes of the packed weights.
    pub fn weight_bytes(&self) -> usize {
        self.inner.decoder.bytes()
    }

    /// The cost of a forward pass's products, by kind. `tracing` spans of the same names give their times;
    /// there are also spans `embedding`, `norm`, `heads` (split, norm and rotation), `attention`,
    /// `activation`, `residual` and `choice` (arg-max or top-k). For experts, only the products that one row
    /// needs are counted.
    pub fn products(&self) -> Vec<ProductCost> {
        self.inner.decoder.products()
    }

    /// Multiplications of attention in a forward pass (scores and weighted sums) for rows after `n_past`
    /// tokens; rows beyond the context do not count.
    pub fn attention_multiplications(&self, n_past: usize, n_rows: usize) -> usize {
        self.inner.decoder.attention_multiplications(n_past, n_rows)
    }

    /// Bytes of a plain cache that attention of `n_rows` rows after `n_past` tokens reads, each counted once,
    /// without the tokens that windows hide.
    ///
    /// # Units
    /// Bytes of keys and values, in the element type of [`LoadOptions::cache_element`].
    pub fn attention_bytes(&self, n_past: usize, n_rows: usize) -> usize {
        self.inner.decoder.attention_reads(n_past, n_rows) * self.inner.options.cache_element.bytes()
    }

    /// The layers that are loaded.
    pub fn layers(&self) -> Range<usize> {
        self.inner.decoder.layers()
    }

    /// Token ids that end a text.
    pub fn end_tokens(&self) -> &[TokenId] {
        &self.inner.info.end_tokens
    }

    /// Tells the file from others.
    pub(crate) fn fingerprint(&self) -> u64 {
        self.inner.fingerprint
    }

    pub(crate) fn options(&self) -> &LoadOptions {
        &self.inner.options
    }

    pub(crate) fn decoder(&self) -> &Decoder {
        &self.inner.decoder
    }
}

/// The template of a file, with the tokenizer's begin and end tokens.
fn chat_template(file: &gguf::File, tokenizer: &Tokenizer) -> Result<Option<ChatTemplate>, TemplateError> {
    let template = match ChatTemplate::from_gguf(file) {
        Ok(template) => template,
        Err(breakers_tokenizer::Error::ChatTemplate { source }) => return Err(source),
        Err(other) => return Err(TemplateError::new(other.to_string())),
    };
    let spelled = |token: Option<TokenId>| {
        let bytes = tokenizer.token_bytes(token?)?;
        Some(String::from_utf8_lossy(bytes).into_owned())
    };
    Ok(template.map(|template| {
        if template.ignores_messages() {
            tracing::warn!(
                "the chat template does not look at the conversation: its prompt is always the same"
            );
        }
        template.with_tokens(spelled(tokenizer.bos()), spelled(tokenizer.eos()))
    }))
}

/// Fails for a folder that holds a sentence encoder.
fn refuse_encoder(path: &Path) -> Result<(), Error> {
    let config = std::fs::read(path.join("config.json")).ok();
    let config: Option<serde_json::Value> = config.and_then(|json| serde_json::from_slice(&json).ok());
    match config.as_ref().and_then(|config| config["model_type"].as_str()) {
        Some(found @ "bert") => Err(Error::NotCausal { path: path.to_owned(), found: found.to_owned() }),
        _ => Ok(()),
    }
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model").field("info", &self.inner.info).field("path", &self.inner.path).finish()
    }
}
