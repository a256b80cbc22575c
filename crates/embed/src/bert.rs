//! BERT as sentence-transformers uses it: texts in, vectors out.
//!
//! # Memory
//! As much as the file in 32-bit floats. The matrices are repacked; the embedding tables stay in host memory,
//! where rows are looked up.
//!
//! # Source
//! Devlin et al. 2018, arXiv 1810.04805, section 3, with the post-norm block of arXiv 1706.03762 and the
//! exact GELU of arXiv 1606.08415; the mean over all tokens: Reimers and Gurevych 2019, arXiv 1908.10084,
//! section 3.

use std::fmt;
use std::path::Path;

use breakers_backend::norm::layer_norm;
use breakers_core::{BoxError, CallError, Embedder, TokenId};
use breakers_kv_cache::{Visible, attention};
use breakers_linear::QuantizedLinear;
use breakers_model::InputSite;
use breakers_tokenizer::Tokenizer;
use burn::tensor::{Device, Tensor, TensorData, activation::gelu};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::Error;
use crate::weights::{WeightFile, Weights, vector};

/// Tokens in one forward pass; more texts take several passes.
const TOKENS_PER_PASS: usize = 2048;

/// A sentence encoder of the BERT family, such as all-MiniLM-L6-v2.
///
/// A text's vector is the mean over its tokens. Unless the model says otherwise, it is normalized to length
/// 1, so the dot product of two vectors is the cosine of the angle between them. The vector depends only on
/// the text: other texts in the call and the number of threads do not change a single bit.
///
/// The spelling of a special token in a text (`[SEP]`) counts as the token, as in sentence-transformers.
///
/// # Example
/// ```no_run
/// use breakers_core::Embedder;
/// use breakers_embed::Bert;
/// use burn::tensor::Device;
///
/// let bert = Bert::load("all-MiniLM-L6-v2", &Device::flex())?;
/// let texts = ["How do I sort a list?", "Ordering the items of an array", "A recipe for soup"];
/// let vectors = bert.embed(&texts)?;
/// let cosine = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
/// assert!(cosine(&vectors[0], &vectors[1]) > cosine(&vectors[0], &vectors[2]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Bert {
    config: Config,
    tokenizer: Tokenizer,
    max_tokens: usize,
    normalizes: bool,
    words: Vec<f32>,
    positions: Vec<f32>,
    token_type: Vec<f32>,
    embedding_norm: Norm,
    blocks: Vec<Block>,
    device: Device,
}

#[derive(Debug, Deserialize)]
struct Config {
    hidden_size: usize,
    intermediate_size: usize,
    num_attention_heads: usize,
    num_hidden_layers: usize,
    max_position_embeddings: usize,
    vocab_size: usize,
    type_vocab_size: usize,
    layer_norm_eps: f32,
    hidden_act: String,
    model_type: String,
    position_embedding_type: Option<String>,
}

/// The settings around the transformer.
struct Pipeline {
    max_tokens: Option<usize>,
    normalizes: bool,
}

struct Norm {
    weight: Tensor<1>,
    bias: Tensor<1>,
    eps: f32,
}

struct Linear {
    weight: QuantizedLinear,
    bias: Tensor<2>,
}

struct Block {
    qkv: Linear,
    attention_out: Linear,
    attention_norm: Norm,
    up: Linear,
    down: Linear,
    out_norm: Norm,
}

/// Called with a block, a place in it, rows of inputs and the number of columns; see [`Bert::observe`].
pub type SeeInputs<'a> = dyn FnMut(usize, InputSite, &[f32], usize) -> Result<(), BoxError> + 'a;

impl Bert {
    /// Loads a folder as sentence-transformers lays it out: `config.json`, `model.safetensors` (F32, F16 or
    /// BF16) and `tokenizer.json`; `sentence_bert_config.json`, `modules.json` and `1_Pooling/config.json`
    /// are read if present.
    ///
    /// # Errors
    /// [`Error::Io`] for a missing file; [`Error::Json`] and [`Error::Safetensors`] for damaged ones;
    /// [`Error::Hyperparameter`] for settings that are impossible or not implemented;
    /// [`Error::MissingTensor`], [`Error::TensorShape`], [`Error::TensorType`] and [`Error::Vocabulary`]
    /// for weights that do not fit; the tokenizer's own; [`Error::Linear`] for a device without kernels or
    /// too little memory.
    pub fn load(folder: impl AsRef<Path>, device: &Device) -> Result<Self, Error> {
        let folder = folder.as_ref();
        let config: Config = require_json(folder, "config.json")?;
        config.check()?;
        let Pipeline { max_tokens, normalizes } = Pipeline::read(folder)?;
        let tokenizer = breakers_tokenizer_json::from_file(folder.join("tokenizer.json"))?;
        if tokenizer.vocab_size() > config.vocab_size {
            return Err(Error::Vocabulary { tokens: tokenizer.vocab_size(), rows: config.vocab_size });
        }
        let most = config.max_position_embeddings;
        let max_tokens = max_tokens.unwrap_or(most).min(most);
        let least = tokenizer.encode("", Default::default())?.len() + 1;
        if max_tokens < least {
            return wrong("max_seq_length", &format!("at least {least}"), max_tokens.to_string());
        }

        let file = WeightFile::open(&folder.join("model.safetensors"))?;
        let weights = file.tensors()?;
        let (width, eps) = (config.hidden_size, config.layer_norm_eps);
        let table =
            |name: &str, n_rows: usize| floats(&weights, &format!("embeddings.{name}"), &[n_rows, width]);
        let mut token_type = table("token_type_embeddings.weight", config.type_vocab_size)?;
        token_type.truncate(width);
        let load = |i| Block::load(&weights, &config, i, device);
        Ok(Self {
            words: table("word_embeddings.weight", config.vocab_size)?,
            positions: table("position_embeddings.weight", most)?,
            token_type,
            embedding_norm: Norm::load(&weights, "embeddings.LayerNorm", width, eps, device)?,
            blocks: (0..config.num_hidden_layers).map(load).collect::<Result<_, _>>()?,
            tokenizer,
            max_tokens,
            normalizes,
            device: device.clone(),
            config,
        })
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// How many tokens of a text are used, including the special tokens around it; the rest is cut off.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Calls `see` with the inputs of each block's matrices while texts pass through: the block, the place,
    /// rows of inputs `[tokens, columns]` and the number of columns. The feed-forward part has no gate.
    ///
    /// # Errors
    /// The tokenizer's, and [`Error::Observer`] with the error of `see`, which ends the pass.
    pub fn observe(&self, texts: &[&str], see: &mut SeeInputs<'_>) -> Result<(), Error> {
        for text in texts {
            let ids = self.tokenizer.encode_at_most(self.max_tokens, text, true)?;
            if ids.is_empty() {
                continue;
            }
            self.forward(&[ids], &mut |block, site, rows| {
                let n_cols = rows.dims()[1];
                let rows = rows.clone().into_data().try_into_vec::<f32>().map_err(Error::tensor_data)?;
                see(block, site, &rows, n_cols).map_err(Error::Observer)
            })?;
        }
        Ok(())
    }

    /// Hidden states `[rows, width]` of the texts' tokens, one text after the other.
    fn forward(
        &self,
        texts: &[Vec<TokenId>],
        observe: &mut dyn FnMut(usize, InputSite, &Tensor<2>) -> Result<(), Error>,
    ) -> Result<Tensor<2>, Error> {
        let width = self.config.hidden_size;
        let lengths: Vec<usize> = texts.iter().map(Vec::len).collect();
        let n_rows: usize = lengths.iter().sum();
        let mut x = Vec::with_capacity(n_rows * width);
        for text in texts {
            for (position, &id) in text.iter().enumerate() {
                let word = &self.words[id as usize * width..][..width];
                let place = &self.positions[position * width..][..width];
                x.extend(word.iter().zip(place).zip(&self.token_type).map(|((w, p), t)| w + p + t));
            }
        }
        let x = Tensor::from_data(TensorData::new(x, [n_rows, width]), &self.device);
        let mut x = self.embedding_norm.forward(x);
        for (i, block) in self.blocks.iter().enumerate() {
            observe(i, InputSite::Attention, &x)?;
            let attended = self.attend(block.qkv.forward(x.clone()), &lengths)?;
            observe(i, InputSite::AttentionOut, &attended)?;
            x = block.attention_norm.forward(x + block.attention_out.forward(attended));
            observe(i, InputSite::FeedForward, &x)?;
            let inner = gelu(block.up.forward(x.clone()));
            observe(i, InputSite::FeedForwardOut, &inner)?;
            x = block.out_norm.forward(x + block.down.forward(inner));
        }
        Ok(x)
    }

    /// Attention within each text; `qkv`: `[rows, 3·width]`, the result `[rows, width]`.
    fn attend(&self, qkv: Tensor<2>, lengths: &[usize]) -> Result<Tensor<2>, Error> {
        let n_heads = self.config.num_attention_heads;
        let width = self.config.hidden_size;
        let head_dim = width / n_heads;
        let scale = 1.0 / (head_dim as f32).sqrt();
        let mut from = 0;
        let mut texts = Vec::with_capacity(lengths.len());
        for &n in lengths {
            let part = |i: usize| {
                let columns = qkv.clone().slice([from..from + n, i * width..(i + 1) * width]);
                columns.reshape([n, n_heads, head_dim])
            };
            texts.push(attention(part(0), part(1), part(2), &Visible::all(n, n), scale)?);
            from += n;
        }
        Ok(if texts.len() == 1 { texts.remove(0) } else { Tensor::cat(texts, 0) })
    }

    /// The vectors of texts, in as many passes as they need.
    fn vectors(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, Error> {
        let mut vectors = Vec::with_capacity(texts.len());
        let mut pass = Vec::new();
        let mut n_rows = 0;
        for text in texts {
            let mut ids = self.tokenizer.encode_at_most(self.max_tokens, text, true)?;
            if ids.is_empty() {
                // Without special tokens an empty text has no tokens at all, so it becomes the padding token.
                ids.push(self.tokenizer.padding().unwrap_or(0));
            }
            if n_rows + ids.len() > TOKENS_PER_PASS && !pass.is_empty() {
                vectors.extend(self.embed_ids(&pass)?);
                (pass, n_rows) = (Vec::new(), 0);
            }
            n_rows += ids.len();
            pass.push(ids);
        }
        if !pass.is_empty() {
            vectors.extend(self.embed_ids(&pass)?);
        }
        Ok(vectors)
    }

    /// The vectors of texts that have at least one token each.
    fn embed_ids(&self, texts: &[Vec<TokenId>]) -> Result<Vec<Vec<f32>>, Error> {
        let width = self.config.hidden_size;
        let hidden = self
            .forward(texts, &mut |_, _, _| Ok(()))?
            .into_data()
            .try_into_vec::<f32>()
            .map_err(Error::tensor_data)?;
        let mut rows = hidden.chunks_exact(width);
        let mean = |text: &Vec<TokenId>| {
            let mut mean = vec![0.0f32; width];
            for row in rows.by_ref().take(text.len()) {
                mean.iter_mut().zip(row).for_each(|(m, x)| *m += x);
            }
            let mut scale = 1.0 / text.len() as f32;
            if self.normalizes {
                let norm = mean.iter().map(|m| m * m).sum::<f32>().sqrt();
                scale = if norm > 0.0 { 1.0 / norm } else { 0.0 };
            }
            mean.iter_mut().for_each(|m| *m *= scale);
            mean
        };
        Ok(texts.iter().map(mean).collect())
    }
}

impl Embedder for Bert {
    fn dimension(&self) -> usize {
        self.config.hidden_size
    }

    fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, CallError> {
        self.vectors(texts).map_err(|error| breakers_core::Error::from(error).into())
    }
}

impl fmt::Debug for Bert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bert").field("config", &self.config).field("max_tokens", &self.max_tokens).finish()
    }
}

impl Config {
    fn check(&self) -> Result<(), Error> {
        if self.model_type != "bert" {
            return wrong("model_type", "bert", self.model_type.clone());
        }
        if self.hidden_act != "gelu" {
            return wrong("hidden_act", "gelu", self.hidden_act.clone());
        }
        if let Some(other) = self.position_embedding_type.as_ref().filter(|kind| *kind != "absolute") {
            return wrong("position_embedding_type", "absolute", other.clone());
        }
        const MOST: usize = 1 << 20;
        for (name, value) in [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_attention_heads", self.num_attention_heads),
            ("max_position_embeddings", self.max_position_embeddings),
            ("vocab_size", self.vocab_size),
            ("type_vocab_size", self.type_vocab_size),
        ] {
            if value == 0 || value > MOST {
                return wrong(name, "1 to 1048576", value.to_string());
            }
        }
        if self.num_hidden_layers > 4096 {
            return wrong("num_hidden_layers", "4096 at most", self.num_hidden_layers.to_string());
        }
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            let expected = format!("a divisor of the width, {}", self.hidden_size);
            return wrong("num_attention_heads", &expected, self.num_attention_heads.to_string());
        }
        if !(self.layer_norm_eps.is_finite() && self.layer_norm_eps >= 0.0) {
            return wrong("layer_norm_eps", "a positive number", self.layer_norm_eps.to_string());
        }
        Ok(())
    }
}

impl Pipeline {
    /// Reads the sentence-transformers settings of a model, as far as they are present.
    fn read(folder: &Path) -> Result<Self, Error> {
        #[derive(Default, Deserialize)]
        struct Sentence {
            max_seq_length: Option<usize>,
            #[serde(default)]
            do_lower_case: bool,
        }
        #[derive(Deserialize)]
        struct Module {
            r#type: String,
        }
        let sentence: Sentence = read_json(folder, "sentence_bert_config.json")?.unwrap_or_default();
        if sentence.do_lower_case {
            return wrong("do_lower_case", "false, since the tokenizer does that", "true".to_owned());
        }
        let mut normalizes = true;
        if let Some(modules) = read_json::<Vec<Module>>(folder, "modules.json")? {
            let names = || modules.iter().map(|module| module.r#type.rsplit('.').next().unwrap_or_default());
            if let Some(other) =
                names().find(|name| !matches!(*name, "Transformer" | "Pooling" | "Normalize"))
            {
                return wrong("modules.json", "Transformer, Pooling, Normalize", other.to_owned());
            }
            normalizes = names().any(|name| name == "Normalize");
        }
        if let Some(pooling) = read_json::<Map<String, Value>>(folder, "1_Pooling/config.json")? {
            let is_mean = |(name, value): (&String, &Value)| match name.as_str() {
                "pooling_mode" => value == "mean",
                "pooling_mode_mean_tokens" => value == true,
                name if name.starts_with("pooling_mode_") => value == false,
                _ => true,
            };
            if let Some((name, value)) = pooling.iter().find(|&field| !is_mean(field)) {
                return wrong(name, "the mean over all tokens", value.to_string());
            }
        }
        Ok(Self { max_tokens: sentence.max_seq_length, normalizes })
    }
}

impl Norm {
    fn load(
        weights: &Weights<'_>,
        name: &str,
        width: usize,
        eps: f32,
        device: &Device,
    ) -> Result<Self, Error> {
        // The oldest files use TensorFlow's names.
        let read = |part: &str, old: &str| {
            let names = [part, old].map(|part| format!("{name}.{part}"));
            let [new, old] = [&names[0], &names[1]];
            weights.floats(&[new, old, &format!("bert.{new}"), &format!("bert.{old}")], &[width])
        };
        Ok(Self {
            weight: vector(read("weight", "gamma")?, device),
            bias: vector(read("bias", "beta")?, device),
            eps,
        })
    }

    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        layer_norm(x, self.weight.clone(), self.bias.clone(), self.eps)
    }
}

impl Linear {
    /// Several layers that read the same input, as one product.
    fn load(
        weights: &Weights<'_>,
        names: &[String],
        n_rows: usize,
        n_cols: usize,
        device: &Device,
    ) -> Result<Self, Error> {
        let (mut weight, mut bias) = (Vec::new(), Vec::new());
        for name in names {
            weight.extend(floats(weights, &format!("{name}.weight"), &[n_rows, n_cols])?);
            bias.extend(floats(weights, &format!("{name}.bias"), &[n_rows])?);
        }
        let n_outputs = bias.len();
        Ok(Self {
            weight: QuantizedLinear::from_f32(n_outputs, n_cols, &weight, device)?,
            bias: vector(bias, device).reshape([1, n_outputs]),
        })
    }

    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        self.weight.forward(x) + self.bias.clone()
    }
}

impl Block {
    fn load(weights: &Weights<'_>, config: &Config, i: usize, device: &Device) -> Result<Self, Error> {
        let (width, inner, eps) = (config.hidden_size, config.intermediate_size, config.layer_norm_eps);
        let name = |part: &str| format!("encoder.layer.{i}.{part}");
        let linear = |names: &[String], n_rows, n_cols| Linear::load(weights, names, n_rows, n_cols, device);
        let norm = |part: &str| Norm::load(weights, &name(part), width, eps, device);
        let qkv = ["query", "key", "value"].map(|part| name(&format!("attention.self.{part}")));
        Ok(Self {
            qkv: linear(&qkv, width, width)?,
            attention_out: linear(&[name("attention.output.dense")], width, width)?,
            attention_norm: norm("attention.output.LayerNorm")?,
            up: linear(&[name("intermediate.dense")], inner, width)?,
            down: linear(&[name("output.dense")], width, inner)?,
            out_norm: norm("output.LayerNorm")?,
        })
    }
}

/// A tensor by its name; some exports put the whole model below `bert.`.
fn floats(weights: &Weights<'_>, name: &str, expected: &[usize]) -> Result<Vec<f32>, Error> {
    weights.floats(&[name, &format!("bert.{name}")], expected)
}

fn wrong<T>(name: &str, expected: &str, found: String) -> Result<T, Error> {
    Err(Error::Hyperparameter { name: name.to_owned(), expected: expected.to_owned(), found })
}

fn require_json<T: DeserializeOwned>(folder: &Path, what: &'static str) -> Result<T, Error> {
    let missing = || Error::Io { path: folder.join(what), source: std::io::ErrorKind::NotFound.into() };
    read_json(folder, what)?.ok_or_else(missing)
}

/// Reads a file in the folder, if it exists.
fn read_json<T: DeserializeOwned>(folder: &Path, what: &'static str) -> Result<Option<T>, Error> {
    let path = folder.join(what);
    match std::fs::read(&path) {
        Ok(json) => serde_json::from_slice(&json).map(Some).map_err(|source| Error::Json { what, source }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Io { path, source }),
    }
}
