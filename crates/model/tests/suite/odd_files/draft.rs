//! Small valid files, before something odd is put into them.

use std::collections::BTreeMap;
use std::path::Path;

use breakers_gguf::Value;

use crate::reference::{Layer, Meaning, Tensors};
use crate::support::write_gguf;

pub(super) const WIDTH: usize = 32;
pub(super) const N_HEADS: usize = 4;
pub(super) const N_KV_HEADS: usize = 2;
pub(super) const HEAD_DIM: usize = 8;
pub(super) const FEED_FORWARD: usize = 48;
pub(super) const N_TOKENS: usize = 32;
pub(super) const CONTEXT: u32 = 64;
/// A file before it is written.
pub(super) struct Draft {
    pub(super) architecture: &'static str,
    metadata: Vec<(String, Value)>,
    pub(super) tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    seed: u64,
}

impl Draft {
    pub(super) fn new(architecture: &'static str) -> Self {
        let mut draft = Self { architecture, metadata: Vec::new(), tensors: BTreeMap::new(), seed: 1 };
        draft.plain_set("general.architecture", architecture);
        draft.plain_set("general.name", "odd");
        let n_blocks = n_blocks(architecture);
        for (key, value) in [
            ("block_count", n_blocks as u32),
            ("context_length", CONTEXT),
            ("embedding_length", WIDTH as u32),
            ("feed_forward_length", FEED_FORWARD as u32),
            ("attention.head_count", N_HEADS as u32),
            ("attention.head_count_kv", N_KV_HEADS as u32),
            ("attention.key_length", HEAD_DIM as u32),
            ("attention.value_length", HEAD_DIM as u32),
            ("rope.dimension_count", HEAD_DIM as u32),
        ] {
            draft.set(key, value);
        }
        draft.set("attention.layer_norm_rms_epsilon", 1e-5f32);
        draft.set("rope.freq_base", 100.0f32);
        if architecture == "gemma3" {
            draft.set("attention.sliding_window", 4u32);
        }
        let letters = ('a'..='z').map(|letter| letter.to_string());
        let mut tokens: Vec<String> = letters.collect();
        tokens.extend(["Ġ", "Ċ", "ab", "<|im_end|>", ".", ","].map(str::to_owned));
        assert_eq!(tokens.len(), N_TOKENS);
        let mut types = vec![1i32; N_TOKENS];
        types[29] = 3;
        draft.plain_set("tokenizer.ggml.model", "gpt2");
        draft.plain_set("tokenizer.ggml.pre", "gpt-2");
        draft.plain_set("tokenizer.ggml.tokens", tokens);
        draft.plain_set("tokenizer.ggml.token_type", types);
        draft.plain_set("tokenizer.ggml.merges", vec!["a b".to_owned()]);
        draft.plain_set("tokenizer.ggml.eos_token_id", 29u32);
        draft.tensor("token_embd.weight", &[N_TOKENS, WIDTH]);
        draft.tensor("output_norm.weight", &[WIDTH]);
        if architecture != "gemma3" {
            draft.tensor("output.weight", &[N_TOKENS, WIDTH]);
        }
        (0..n_blocks).for_each(|block| draft.block(block));
        draft
    }

    pub(super) fn block(&mut self, block: usize) {
        let (q, kv) = (N_HEADS * HEAD_DIM, N_KV_HEADS * HEAD_DIM);
        let mut parts: Vec<(&str, Vec<usize>)> = vec![
            ("attn_norm.weight", vec![WIDTH]),
            ("attn_q.weight", vec![q, WIDTH]),
            ("attn_k.weight", vec![kv, WIDTH]),
            ("attn_v.weight", vec![kv, WIDTH]),
            ("attn_output.weight", vec![WIDTH, q]),
            ("ffn_norm.weight", vec![WIDTH]),
            ("ffn_gate.weight", vec![FEED_FORWARD, WIDTH]),
            ("ffn_up.weight", vec![FEED_FORWARD, WIDTH]),
            ("ffn_down.weight", vec![WIDTH, FEED_FORWARD]),
        ];
        match self.architecture {
            "qwen2" => {
                parts.extend([("attn_q.bias", vec![q]), ("attn_k.bias", vec![kv]), ("attn_v.bias", vec![kv])])
            }
            "gemma3" => parts.extend([
                ("attn_q_norm.weight", vec![HEAD_DIM]),
                ("attn_k_norm.weight", vec![HEAD_DIM]),
                ("post_attention_norm.weight", vec![WIDTH]),
                ("post_ffw_norm.weight", vec![WIDTH]),
            ]),
            _ => {}
        }
        for (part, shape) in parts {
            self.tensor(&format!("blk.{block}.{part}"), &shape);
        }
    }

    /// A tensor of random numbers: matrices that preserve lengths, norms about 1, biases that matter.
    pub(super) fn tensor(&mut self, name: &str, shape: &[usize]) {
        let n: usize = shape.iter().product();
        let (center, spread) = match shape.len() {
            1 if name.ends_with("weight") => (1.0, 0.3),
            1 => (0.0, 1.0),
            _ => (0.0, 1.7 / (shape[1] as f32).sqrt()),
        };
        let mut hash = name.bytes().fold(self.seed, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3).rotate_left(17)
        });
        let values = (0..n).map(|_| {
            hash = hash.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            center + spread * ((hash >> 40) as f32 / (1u64 << 23) as f32 - 1.0)
        });
        self.tensors.insert(name.to_owned(), (shape.to_vec(), values.collect()));
    }

    /// Tensors of this name in all blocks.
    pub(super) fn in_blocks(&mut self, part: &str, shape: &[usize]) {
        for block in 0..n_blocks(self.architecture) {
            self.tensor(&format!("blk.{block}.{part}"), shape);
        }
    }

    pub(super) fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.plain_set(&format!("{}.{key}", self.architecture), value);
    }

    pub(super) fn plain_set(&mut self, key: &str, value: impl Into<Value>) {
        self.plain_remove(key);
        self.metadata.push((key.to_owned(), value.into()));
    }

    pub(super) fn remove(&mut self, key: &str) {
        self.plain_remove(&format!("{}.{key}", self.architecture));
    }

    pub(super) fn plain_remove(&mut self, key: &str) {
        self.metadata.retain(|(found, _)| found != key);
    }

    pub(super) fn write(&self, path: &Path) {
        write_gguf(path, self.metadata.iter().map(|(key, value)| (key, value)), &self.tensors);
    }

    pub(super) fn exact(&self) -> Tensors {
        let exact = |(name, (_, values)): (&String, &(Vec<usize>, Vec<f32>))| {
            (name.clone(), values.iter().map(|&value| f64::from(value)).collect())
        };
        self.tensors.iter().map(exact).collect()
    }
}

pub(super) fn n_blocks(architecture: &str) -> usize {
    if architecture == "gemma3" { 7 } else { 3 }
}

pub(super) fn plain_meaning(architecture: &str) -> Meaning {
    let global = Layer { base: 100.0, scale: 1.0, window: None };
    let is_gemma = architecture == "gemma3";
    let layer = |i: usize| match is_gemma && i % 6 < 5 {
        true => Layer { base: 10_000.0, scale: 1.0, window: Some(4) },
        false => global,
    };
    Meaning {
        n_heads: N_HEADS,
        n_kv_heads: N_KV_HEADS,
        head_dim: HEAD_DIM,
        width: WIDTH,
        eps: f64::from(1e-5f32),
        interleaved: architecture == "llama",
        n_rotated: HEAD_DIM,
        embedding_scale: if is_gemma { (WIDTH as f64).sqrt() } else { 1.0 },
        attention_scale: 1.0 / (HEAD_DIM as f64).sqrt(),
        gelu: is_gemma,
        logit_cap: None,
        layers: (0..n_blocks(architecture)).map(layer).collect(),
    }
}
