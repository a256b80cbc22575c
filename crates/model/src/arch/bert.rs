//! BERT (arXiv 1810.04805) as sentence-transformers uses it: texts in, normalized mean vectors out.

use std::path::Path;
use std::sync::Arc;

use breakers_backend::norm::layer_norm;
use breakers_kv_cache::{Visible, attention};
use breakers_core::{Embedder, Error as CoreError, Result as CoreResult, TokenId};
use breakers_quant::PackedMatrix;
use breakers_quant::linear::QuantizedLinear;
use burn::tensor::{Device, Tensor, TensorData, activation::gelu};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use crate::Error;
use crate::tokenizer::{EncodeOptions, Tokenizer};

/// A sentence encoder of the BERT family, all-MiniLM-L6-v2 for one.
///
/// # Source
/// Sentence-BERT, arXiv 1908.10084, section 3: mean pooling; the vectors have length 1.
pub struct Bert {
    config: Config,
    tokenizer: Tokenizer,
    max_tokens: usize,
    /// Of the embedding tables: kept on the host, where rows are looked up.
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
}

#[derive(Deserialize)]
struct SentenceConfig {
    max_seq_length: usize,
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

impl Norm {
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        layer_norm(x, self.weight.clone(), self.bias.clone(), self.eps)
    }
}

impl Linear {
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        self.weight.forward(x) + self.bias.clone()
    }
}

impl Bert {
    /// Loads a folder as sentence-transformers lays it out: `config.json`, `model.safetensors`,
    /// `tokenizer.json` and, if there, `sentence_bert_config.json`.
    ///
    /// # Errors
    /// [`Error::Io`] for a missing file, [`Error::Json`], [`Error::Safetensors`] for damaged ones,
    /// [`Error::MissingTensor`], [`Error::TensorShape`], [`Error::Hyperparameter`].
    ///
    /// # Example
    /// ```no_run
    /// use breakers_core::Embedder;
    /// use breakers_model::Bert;
    /// use burn::tensor::Device;
    /// let mut bert = Bert::load("all-MiniLM-L6-v2", &Device::flex())?;
    /// let vectors = bert.embed(&["a text", "another one"])?;
    /// assert_eq!(vectors[0].len(), 384);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn load(folder: impl AsRef<Path>, device: &Device) -> Result<Self, Error> {
        let folder = folder.as_ref();
        let config: Config = read_json(folder, "config.json")?;
        config.check()?;
        let sentence = "sentence_bert_config.json";
        let max_tokens = if folder.join(sentence).exists() {
            read_json::<SentenceConfig>(folder, sentence)?.max_seq_length.min(config.max_position_embeddings)
        } else {
            config.max_position_embeddings
        };
        let tokenizer = Tokenizer::from_tokenizer_json(folder.join("tokenizer.json"))?;
        if tokenizer.vocab_size() > config.vocab_size {
            return Err(Error::Vocabulary { tokens: tokenizer.vocab_size(), rows: config.vocab_size });
        }
        let path = folder.join("model.safetensors");
        let read = |source| Error::Io { path: path.clone(), source };
        let file = std::fs::File::open(&path).map_err(read)?;
        // SAFETY: the map is read only while loading; like every mapped file it must not be changed meanwhile.
        let map = unsafe { Mmap::map(&file) }.map_err(read)?;
        let tensors =
            SafeTensors::deserialize(&map).map_err(|source| Error::Safetensors { path: path.clone(), source })?;
        let weights = Weights { tensors, device };
        let width = config.hidden_size;
        let eps = config.layer_norm_eps;
        let blocks = (0..config.num_hidden_layers)
            .map(|i| Block::load(&weights, &config, i))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            words: weights.floats("embeddings.word_embeddings.weight", &[config.vocab_size, width])?,
            positions: weights
                .floats("embeddings.position_embeddings.weight", &[config.max_position_embeddings, width])?,
            token_type: weights
                .floats("embeddings.token_type_embeddings.weight", &[config.type_vocab_size, width])?[..width]
                .to_vec(),
            embedding_norm: weights.norm("embeddings.LayerNorm", width, eps)?,
            blocks,
            tokenizer,
            max_tokens,
            device: device.clone(),
            config,
        })
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Tokens of a text that count; the rest is cut off.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Ids of a text, cut to [`max_tokens`](Self::max_tokens) with the closing token kept.
    fn encode(&self, text: &str) -> Result<Vec<TokenId>, Error> {
        let options = EncodeOptions { add_special: true, parse_special: false };
        let mut ids = self.tokenizer.encode(text, options)?;
        if ids.len() > self.max_tokens {
            let last = ids[ids.len() - 1];
            ids.truncate(self.max_tokens);
            ids[self.max_tokens - 1] = last;
        }
        Ok(ids)
    }

    /// Hidden states `[rows, width]` of the texts' tokens, one text behind the other.
    fn forward(&self, texts: &[Vec<TokenId>]) -> Result<Tensor<2>, Error> {
        let width = self.config.hidden_size;
        let lengths: Vec<usize> = texts.iter().map(Vec::len).collect();
        let rows: usize = lengths.iter().sum();
        let mut x = Vec::with_capacity(rows * width);
        for text in texts {
            for (position, &id) in text.iter().enumerate() {
                let word = &self.words[id as usize * width..][..width];
                let place = &self.positions[position * width..][..width];
                x.extend(word.iter().zip(place).zip(&self.token_type).map(|((w, p), t)| w + p + t));
            }
        }
        let x = Tensor::from_data(TensorData::new(x, [rows, width]), &self.device);
        let mut x = self.embedding_norm.forward(x);
        for block in &self.blocks {
            let attended = self.attend(block.qkv.forward(x.clone()), &lengths)?;
            x = block.attention_norm.forward(x + block.attention_out.forward(attended));
            let inner = gelu(block.up.forward(x.clone()));
            x = block.out_norm.forward(x + block.down.forward(inner));
        }
        Ok(x)
    }

    /// Attention within each text; `qkv`: `[rows, 3·width]`.
    fn attend(&self, qkv: Tensor<2>, lengths: &[usize]) -> Result<Tensor<2>, Error> {
        let n_heads = self.config.num_attention_heads;
        let (width, d) = (self.config.hidden_size, self.config.hidden_size / n_heads);
        let mut from = 0;
        let mut texts = Vec::with_capacity(lengths.len());
        for &n in lengths {
            let part = |i: usize| {
                let columns = qkv.clone().slice([from..from + n, i * width..(i + 1) * width]);
                columns.reshape([n, n_heads, d])
            };
            let scale = 1.0 / (d as f32).sqrt();
            texts.push(attention(part(0), part(1), part(2), Visible::all(n, n), scale)?);
            from += n;
        }
        Ok(Tensor::cat(texts, 0))
    }

    fn embed_ids(&self, texts: &[Vec<TokenId>]) -> Result<Vec<Vec<f32>>, Error> {
        let width = self.config.hidden_size;
        let hidden = self.forward(texts)?.into_data().try_into_vec::<f32>().map_err(Error::tensor_data)?;
        let mut rows = hidden.chunks_exact(width);
        Ok(texts
            .iter()
            .map(|text| {
                let mut mean = vec![0.0f32; width];
                for row in rows.by_ref().take(text.len()) {
                    mean.iter_mut().zip(row).for_each(|(m, x)| *m += x);
                }
                // The division by the token count cancels in the normalization.
                let norm = mean.iter().map(|m| m * m).sum::<f32>().sqrt();
                let scale = if norm > 0.0 { 1.0 / norm } else { 0.0 };
                mean.iter_mut().for_each(|m| *m *= scale);
                mean
            })
            .collect())
    }
}

/// Tokens in one forward pass.
const TOKENS_PER_PASS: usize = 2048;

impl Embedder for Bert {
    fn dimension(&self) -> usize {
        self.config.hidden_size
    }

    fn embed(&mut self, texts: &[&str]) -> CoreResult<Vec<Vec<f32>>> {
        let ids = texts.iter().map(|t| self.encode(t)).collect::<Result<Vec<_>, _>>();
        let ids = ids.map_err(CoreError::from)?;
        let mut vectors = Vec::with_capacity(texts.len());
        let mut from = 0;
        while from < ids.len() {
            let mut to = from + 1;
            let mut rows = ids[from].len();
            while to < ids.len() && rows + ids[to].len() <= TOKENS_PER_PASS {
                rows += ids[to].len();
                to += 1;
            }
            vectors.extend(self.embed_ids(&ids[from..to])?);
            from = to;
        }
        Ok(vectors)
    }
}

impl Config {
    fn check(&self) -> Result<(), Error> {
        let wrong = |name: &str, expected: &str, found: String| {
            Err(Error::Hyperparameter { name: name.to_owned(), expected: expected.to_owned(), found })
        };
        if self.model_type != "bert" {
            return wrong("model_type", "bert", self.model_type.clone());
        }
        if self.hidden_act != "gelu" {
            return wrong("hidden_act", "gelu", self.hidden_act.clone());
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
            return wrong("num_attention_heads", "a divisor of hidden_size", self.num_attention_heads.to_string());
        }
        Ok(())
    }
}

impl Block {
    fn load(weights: &Weights<'_>, config: &Config, i: usize) -> Result<Self, Error> {
        let (width, inner, eps) = (config.hidden_size, config.intermediate_size, config.layer_norm_eps);
        let name = |part: &str| format!("encoder.layer.{i}.{part}");
        let qkv = ["query", "key", "value"].map(|part| name(&format!("attention.self.{part}")));
        Ok(Self {
            qkv: weights.linear(&[&qkv[0], &qkv[1], &qkv[2]], width, width)?,
            attention_out: weights.linear(&[&name("attention.output.dense")], width, width)?,
            attention_norm: weights.norm(&name("attention.output.LayerNorm"), width, eps)?,
            up: weights.linear(&[&name("intermediate.dense")], inner, width)?,
            down: weights.linear(&[&name("output.dense")], width, inner)?,
            out_norm: weights.norm(&name("output.LayerNorm"), width, eps)?,
        })
    }
}

struct Weights<'a> {
    tensors: SafeTensors<'a>,
    device: &'a Device,
}

impl Weights<'_> {
    fn floats(&self, name: &str, expected: &[usize]) -> Result<Vec<f32>, Error> {
        // Some exports put the whole model below `bert.`.
        let view = self.tensors.tensor(name).or_else(|_| self.tensors.tensor(&format!("bert.{name}")));
        let view = view.map_err(|_| Error::MissingTensor { name: name.to_owned() })?;
        if view.shape() != expected {
            return Err(Error::TensorShape {
                name: name.to_owned(),
                expected: expected.to_vec(),
                found: view.shape().to_vec(),
            });
        }
        let data = view.data();
        match view.dtype() {
            Dtype::F32 => Ok(data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()),
            Dtype::F16 => {
                Ok(data.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect())
            }
            Dtype::BF16 => {
                Ok(data.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect())
            }
            other => Err(Error::TensorType { name: name.to_owned(), found: format!("{other:?}") }),
        }
    }

    fn vector(&self, name: &str, len: usize) -> Result<Tensor<1>, Error> {
        Ok(Tensor::from_data(TensorData::new(self.floats(name, &[len])?, [len]), self.device))
    }

    fn norm(&self, name: &str, width: usize, eps: f32) -> Result<Norm, Error> {
        Ok(Norm {
            weight: self.vector(&format!("{name}.weight"), width)?,
            bias: self.vector(&format!("{name}.bias"), width)?,
            eps,
        })
    }

    /// Several layers that read the same input, as one product.
    fn linear(&self, names: &[&str], n_rows: usize, n_cols: usize) -> Result<Linear, Error> {
        let (mut weight, mut bias) = (Vec::new(), Vec::new());
        for name in names {
            weight.extend(self.floats(&format!("{name}.weight"), &[n_rows, n_cols])?);
            bias.extend(self.floats(&format!("{name}.bias"), &[n_rows])?);
        }
        let n = bias.len();
        Ok(Linear {
            weight: QuantizedLinear::from_packed(vec![Arc::new(PackedMatrix::from_f32(n, n_cols, &weight)?)])?,
            bias: Tensor::from_data(TensorData::new(bias, [1, n]), self.device),
        })
    }
}

fn read_json<T: for<'de> Deserialize<'de>>(folder: &Path, what: &'static str) -> Result<T, Error> {
    let path = folder.join(what);
    let text = std::fs::read(&path).map_err(|source| Error::Io { path, source })?;
    serde_json::from_slice(&text).map_err(|source| Error::Json { what, source })
}
