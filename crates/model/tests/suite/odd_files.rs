//! Files with something odd in their hyperparameters, tensors or vocabulary: what they say is obeyed, as a forward pass
//! in f64 shows, or they are refused by the name of what is not understood. What llama.cpp makes of the same files stands
//! beside in `data/odd_files.json`, which `data/make_odd_files.py` has written.

use std::collections::BTreeMap;
use std::path::Path;

use breakers_core::{LanguageModel as _, Output, Step, Want};
use breakers_gguf as gguf;
use breakers_gguf::{Array, Format, Value};
use breakers_kv_cache::Element;
use breakers_model::{LoadOptions, Model};

use crate::reference::{Layer, Meaning, Tensors};

const WIDTH: usize = 32;
const N_HEADS: usize = 4;
const N_KV_HEADS: usize = 2;
const HEAD_DIM: usize = 8;
const FEED_FORWARD: usize = 48;
const N_TOKENS: usize = 32;
const CONTEXT: u32 = 64;
/// Between f32 and f64 on logits of about 1.
const TOLERANCE: f64 = 2e-3;

/// A file before it is written.
struct Draft {
    architecture: &'static str,
    metadata: Vec<(String, Value)>,
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    seed: u64,
}

/// What becomes of a file.
enum Verdict {
    /// It means this; `false` if that is not what the plain file means.
    Means(fn(&mut Meaning), bool),
    /// The error's text holds this.
    Refused(&'static str),
}
use Verdict::{Means, Refused};

const PLAIN: Verdict = Means(|_| {}, true);

struct Case {
    name: &'static str,
    architecture: &'static str,
    change: fn(&mut Draft),
    verdict: Verdict,
}

fn case(architecture: &'static str, name: &'static str, change: fn(&mut Draft), verdict: Verdict) -> Case {
    Case { name, architecture, change, verdict }
}

fn means(meaning: fn(&mut Meaning)) -> Verdict {
    Means(meaning, false)
}

impl Draft {
    fn new(architecture: &'static str) -> Self {
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

    fn block(&mut self, block: usize) {
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

    /// A tensor of random numbers: matrices that keep lengths, norms about 1, biases that bite.
    fn tensor(&mut self, name: &str, shape: &[usize]) {
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
    fn in_blocks(&mut self, part: &str, shape: &[usize]) {
        for block in 0..n_blocks(self.architecture) {
            self.tensor(&format!("blk.{block}.{part}"), shape);
        }
    }

    fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.plain_set(&format!("{}.{key}", self.architecture), value);
    }

    fn plain_set(&mut self, key: &str, value: impl Into<Value>) {
        self.plain_remove(key);
        self.metadata.push((key.to_owned(), value.into()));
    }

    fn remove(&mut self, key: &str) {
        self.plain_remove(&format!("{}.{key}", self.architecture));
    }

    fn plain_remove(&mut self, key: &str) {
        self.metadata.retain(|(found, _)| found != key);
    }

    fn write(&self, path: &Path) {
        let mut writer = gguf::Writer::new();
        for (key, value) in &self.metadata {
            writer.insert(key, value.clone()).unwrap();
        }
        for (name, (shape, _)) in &self.tensors {
            writer.declare(name, Format::F32, shape).unwrap();
        }
        let mut file = writer.create(path).unwrap();
        for (name, (_, values)) in &self.tensors {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            file.write(name, &bytes).unwrap();
        }
        file.finish().unwrap();
    }

    fn exact(&self) -> Tensors {
        let exact = |(name, (_, values)): (&String, &(Vec<usize>, Vec<f32>))| {
            (name.clone(), values.iter().map(|&value| f64::from(value)).collect())
        };
        self.tensors.iter().map(exact).collect()
    }
}

fn n_blocks(architecture: &str) -> usize {
    if architecture == "gemma3" { 7 } else { 3 }
}

fn plain_meaning(architecture: &str) -> Meaning {
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

/// Every layer without a window.
fn each_global(meaning: &mut Meaning, change: impl Fn(&mut Layer)) {
    meaning.layers.iter_mut().filter(|layer| layer.window.is_none()).for_each(change);
}

fn cases() -> Vec<Case> {
    vec![
        case("llama", "plain", |_| {}, PLAIN),
        case("qwen2", "plain", |_| {}, PLAIN),
        case("gemma3", "plain", |_| {}, PLAIN),
        // Scaling of positions.
        case(
            "llama",
            "scale_linear",
            |d| d.set("rope.scale_linear", 4.0f32),
            means(|m| each_global(m, |l| l.scale = 0.25)),
        ),
        case(
            "qwen2",
            "scale_linear",
            |d| d.set("rope.scale_linear", 2.0f32),
            means(|m| each_global(m, |l| l.scale = 0.5)),
        ),
        case(
            "gemma3",
            "scale_linear",
            |d| d.set("rope.scale_linear", 8.0f32),
            means(|m| each_global(m, |l| l.scale = 0.125)),
        ),
        case("llama", "scale_linear_zero", |d| d.set("rope.scale_linear", 0.0f32), PLAIN),
        case(
            "llama",
            "factor_without_type",
            |d| d.set("rope.scaling.factor", 4.0f32),
            means(|m| each_global(m, |l| l.scale = 0.25)),
        ),
        case(
            "qwen2",
            "factor_without_type",
            |d| d.set("rope.scaling.factor", 3.0f32),
            means(|m| each_global(m, |l| l.scale = 1.0 / 3.0)),
        ),
        case(
            "gemma3",
            "factor_without_type",
            |d| d.set("rope.scaling.factor", 8.0f32),
            means(|m| each_global(m, |l| l.scale = 0.125)),
        ),
        case(
            "llama",
            "factor_as_integer",
            |d| d.set("rope.scaling.factor", 4u32),
            means(|m| each_global(m, |l| l.scale = 0.25)),
        ),
        case(
            "llama",
            "factor_over_scale_linear",
            |d| {
                d.set("rope.scaling.factor", 4.0f32);
                d.set("rope.scale_linear", 2.0f32);
            },
            means(|m| each_global(m, |l| l.scale = 0.25)),
        ),
        case("llama", "type_linear_without_factor", |d| d.set("rope.scaling.type", "linear"), PLAIN),
        case(
            "llama",
            "type_linear",
            |d| {
                d.set("rope.scaling.type", "linear");
                d.set("rope.scaling.factor", 2.0f32);
            },
            means(|m| each_global(m, |l| l.scale = 0.5)),
        ),
        case(
            "llama",
            "type_none_with_factor",
            |d| {
                d.set("rope.scaling.type", "none");
                d.set("rope.scaling.factor", 4.0f32);
            },
            PLAIN,
        ),
        case(
            "llama",
            "type_yarn",
            |d| {
                d.set("rope.scaling.type", "yarn");
                d.set("rope.scaling.factor", 4.0f32);
            },
            Refused("rope.scaling.type"),
        ),
        case(
            "llama",
            "type_longrope",
            |d| d.set("rope.scaling.type", "longrope"),
            Refused("rope.scaling.type"),
        ),
        case(
            "llama",
            "factor_negative",
            |d| d.set("rope.scaling.factor", -4.0f32),
            Refused("rope.scaling.factor"),
        ),
        case(
            "llama",
            "factor_nan",
            |d| d.set("rope.scaling.factor", f32::NAN),
            Refused("rope.scaling.factor"),
        ),
        case(
            "llama",
            "attn_factor",
            |d| d.set("rope.scaling.attn_factor", 1.5f32),
            Refused("rope.scaling.attn_factor"),
        ),
        case("llama", "attn_factor_one", |d| d.set("rope.scaling.attn_factor", 1.0f32), PLAIN),
        case("llama", "original_context", |d| d.set("rope.scaling.original_context_length", 32u32), PLAIN),
        // Bases.
        case(
            "llama",
            "no_base",
            |d| d.remove("rope.freq_base"),
            means(|m| each_global(m, |l| l.base = 10_000.0)),
        ),
        case("llama", "base_as_integer", |d| d.set("rope.freq_base", 100u32), PLAIN),
        case("llama", "half_rotated", |d| d.set("rope.dimension_count", 4u32), means(|m| m.n_rotated = 4)),
        case("qwen2", "half_rotated", |d| d.set("rope.dimension_count", 4u32), means(|m| m.n_rotated = 4)),
        case("llama", "no_dimension_count", |d| d.remove("rope.dimension_count"), PLAIN),
        case(
            "llama",
            "dimension_sections",
            |d| d.set("rope.dimension_sections", vec![2i32, 1, 1, 0]),
            Refused("rope.dimension_sections"),
        ),
        case(
            "gemma3",
            "base_of_windows",
            |d| d.set("rope.freq_base_swa", 50.0f32),
            means(|m| {
                m.layers.iter_mut().filter(|l| l.window.is_some()).for_each(|l| l.base = 50.0);
            }),
        ),
        case(
            "llama",
            "base_of_windows",
            |d| d.set("rope.freq_base_swa", 50.0f32),
            Refused("rope.freq_base_swa"),
        ),
        // Windows.
        case(
            "gemma3",
            "pattern_2",
            |d| d.set("attention.sliding_window_pattern", 2u32),
            means(|m| {
                for (i, layer) in m.layers.iter_mut().enumerate() {
                    *layer = match i % 2 {
                        0 => Layer { base: 10_000.0, scale: 1.0, window: Some(4) },
                        _ => Layer { base: 100.0, scale: 1.0, window: None },
                    };
                }
            }),
        ),
        case("gemma3", "pattern_6", |d| d.set("attention.sliding_window_pattern", 6u32), PLAIN),
        case(
            "gemma3",
            "pattern_1",
            |d| d.set("attention.sliding_window_pattern", 1u32),
            means(|m| {
                m.layers.iter_mut().for_each(|l| *l = Layer { base: 100.0, scale: 1.0, window: None });
            }),
        ),
        case(
            "gemma3",
            "pattern_0",
            |d| d.set("attention.sliding_window_pattern", 0u32),
            means(|m| {
                m.layers.iter_mut().for_each(|l| *l = Layer { base: 10_000.0, scale: 1.0, window: Some(4) });
            }),
        ),
        case(
            "gemma3",
            "pattern_flags",
            |d| {
                d.set("attention.sliding_window_pattern", vec![false, true, true, true, true, true, true]);
            },
            means(|m| {
                m.layers.iter_mut().for_each(|l| *l = Layer { base: 10_000.0, scale: 1.0, window: Some(4) });
                m.layers[0] = Layer { base: 100.0, scale: 1.0, window: None };
            }),
        ),
        case(
            "gemma3",
            "pattern_too_short",
            |d| {
                d.set("attention.sliding_window_pattern", vec![false, true]);
            },
            Refused("sliding_window_pattern"),
        ),
        case(
            "gemma3",
            "no_window",
            |d| d.remove("attention.sliding_window"),
            means(|m| {
                m.layers.iter_mut().for_each(|l| *l = Layer { base: 100.0, scale: 1.0, window: None });
            }),
        ),
        case(
            "gemma3",
            "window_0",
            |d| d.set("attention.sliding_window", 0u32),
            means(|m| {
                m.layers.iter_mut().for_each(|l| *l = Layer { base: 100.0, scale: 1.0, window: None });
            }),
        ),
        case(
            "gemma3",
            "window_2",
            |d| d.set("attention.sliding_window", 2u32),
            means(|m| {
                m.layers.iter_mut().filter(|l| l.window.is_some()).for_each(|l| l.window = Some(2));
            }),
        ),
        case(
            "llama",
            "window",
            |d| d.set("attention.sliding_window", 5u32),
            means(|m| {
                m.layers.iter_mut().for_each(|l| l.window = Some(5));
            }),
        ),
        case("llama", "window_of_the_context", |d| d.set("attention.sliding_window", CONTEXT), PLAIN),
        case(
            "llama",
            "pattern",
            |d| d.set("attention.sliding_window_pattern", 4u32),
            Refused("sliding_window_pattern"),
        ),
        // Logits and scores.
        case(
            "gemma3",
            "final_softcap",
            |d| d.set("final_logit_softcapping", 3.0f32),
            means(|m| m.logit_cap = Some(3.0)),
        ),
        case(
            "llama",
            "final_softcap",
            |d| d.set("final_logit_softcapping", 1.0f32),
            means(|m| m.logit_cap = Some(1.0)),
        ),
        case("qwen2", "final_softcap_0", |d| d.set("final_logit_softcapping", 0.0f32), PLAIN),
        case(
            "gemma3",
            "attention_softcap",
            |d| d.set("attn_logit_softcapping", 50.0f32),
            Refused("attn_logit_softcapping"),
        ),
        case(
            "llama",
            "attention_scale",
            |d| d.set("attention.scale", 0.5f32),
            means(|m| m.attention_scale = 0.5),
        ),
        case(
            "gemma3",
            "attention_scale",
            |d| d.set("attention.scale", 0.2f32),
            means(|m| m.attention_scale = f64::from(0.2f32)),
        ),
        case("llama", "attention_scale_0", |d| d.set("attention.scale", 0.0f32), PLAIN),
        case(
            "llama",
            "attention_scale_negative",
            |d| d.set("attention.scale", -1.0f32),
            Refused("attention.scale"),
        ),
        case("llama", "logit_scale", |d| d.set("logit_scale", 0.5f32), Refused("logit_scale")),
        case("llama", "embedding_scale", |d| d.set("embedding_scale", 12.0f32), Refused("embedding_scale")),
        case("llama", "residual_scale", |d| d.set("residual_scale", 0.2f32), Refused("residual_scale")),
        case("llama", "clamp_kqv", |d| d.set("attention.clamp_kqv", 8.0f32), Refused("clamp_kqv")),
        case("llama", "alibi", |d| d.set("attention.max_alibi_bias", 8.0f32), Refused("max_alibi_bias")),
        case("llama", "not_causal", |d| d.set("attention.causal", false), Refused("attention.causal")),
        case("llama", "causal", |d| d.set("attention.causal", true), PLAIN),
        case("llama", "experts", |d| d.set("expert_count", 8u32), Refused("expert_count")),
        case(
            "llama",
            "no_experts",
            |d| {
                d.set("expert_count", 0u32);
                d.set("expert_used_count", 0u32);
            },
            PLAIN,
        ),
        case(
            "llama",
            "two_unknown_keys",
            |d| {
                d.set("ssm.state_size", 16u32);
                d.set("wkv.head_size", 64u32);
            },
            Refused("ssm.state_size, llama.wkv.head_size"),
        ),
        case("llama", "keys_of_another_architecture", |d| d.plain_set("mamba.ssm.state_size", 16u32), PLAIN),
        case("gemma3", "keys_of_images", |d| d.set("mm.tokens_per_image", 256u32), PLAIN),
        case("llama", "vocab_size", |d| d.set("vocab_size", 32u32), PLAIN),
        // Arrays of equal numbers.
        case("llama", "equal_heads", |d| d.set("attention.head_count", vec![4u32; 3]), PLAIN),
        case("llama", "equal_kv_heads", |d| d.set("attention.head_count_kv", vec![2i32; 3]), PLAIN),
        case("gemma3", "equal_feed_forward", |d| d.set("feed_forward_length", vec![48u32; 7]), PLAIN),
        case(
            "llama",
            "unequal_feed_forward",
            |d| d.set("feed_forward_length", vec![48u32, 48, 32]),
            Refused("feed_forward_length"),
        ),
        case(
            "llama",
            "too_few_kv_heads",
            |d| d.set("attention.head_count_kv", vec![2u32; 2]),
            Refused("head_count_kv"),
        ),
        case(
            "llama",
            "no_kv_heads",
            |d| {
                d.remove("attention.head_count_kv");
            },
            Refused("attn_k.weight"),
        ),
        // Tensors.
        case(
            "llama",
            "biases_of_heads",
            |d| {
                d.in_blocks("attn_q.bias", &[32]);
                d.in_blocks("attn_k.bias", &[16]);
                d.in_blocks("attn_v.bias", &[16]);
            },
            means(|_| {}),
        ),
        case("llama", "bias_of_values_alone", |d| d.in_blocks("attn_v.bias", &[16]), means(|_| {})),
        case("llama", "bias_of_attention_out", |d| d.in_blocks("attn_output.bias", &[32]), means(|_| {})),
        case(
            "llama",
            "biases_of_feed_forward",
            |d| {
                d.in_blocks("ffn_gate.bias", &[48]);
                d.in_blocks("ffn_up.bias", &[48]);
                d.in_blocks("ffn_down.bias", &[32]);
            },
            means(|_| {}),
        ),
        case("llama", "bias_of_gate_alone", |d| d.in_blocks("ffn_gate.bias", &[48]), means(|_| {})),
        case("llama", "bias_in_one_block", |d| d.tensor("blk.1.attn_k.bias", &[16]), means(|_| {})),
        case(
            "llama",
            "bias_of_wrong_length",
            |d| d.tensor("blk.1.attn_k.bias", &[32]),
            Refused("blk.1.attn_k.bias"),
        ),
        case(
            "qwen2",
            "bias_missing",
            |d| {
                d.tensors.remove("blk.2.attn_k.bias");
            },
            Refused("blk.2.attn_k.bias"),
        ),
        case(
            "llama",
            "tied_head",
            |d| {
                d.tensors.remove("output.weight");
            },
            means(|_| {}),
        ),
        case("llama", "fewer_blocks_than_tensors", |d| d.set("block_count", 2u32), Refused("blk.2.")),
        case("llama", "more_blocks_than_tensors", |d| d.set("block_count", 4u32), Refused("blk.3.")),
        case(
            "llama",
            "scale_of_a_matrix",
            |d| d.tensor("blk.0.attn_q.scale", &[1]),
            Refused("blk.0.attn_q.scale"),
        ),
        case(
            "llama",
            "unknown_tensor",
            |d| d.tensor("token_types.weight", &[2, 32]),
            Refused("token_types.weight"),
        ),
        case("llama", "norms_of_heads", |d| d.in_blocks("attn_q_norm.weight", &[8]), Refused("attn_q_norm")),
        case(
            "llama",
            "norms_behind_layers",
            |d| d.in_blocks("post_ffw_norm.weight", &[32]),
            Refused("post_ffw_norm"),
        ),
        case("llama", "old_angles", |d| d.in_blocks("attn_rot_embd.inv_freq", &[4]), PLAIN),
        case(
            "llama",
            "long_factors",
            |d| d.tensor("rope_factors_long.weight", &[4]),
            Refused("rope_factors_long"),
        ),
        // Vocabularies.
        case(
            "llama",
            "rows_beyond_the_vocabulary",
            |d| {
                d.tensor("token_embd.weight", &[N_TOKENS + 8, WIDTH]);
                d.tensor("output.weight", &[N_TOKENS + 8, WIDTH]);
            },
            PLAIN,
        ),
        case(
            "gemma3",
            "rows_beyond_the_vocabulary",
            |d| d.tensor("token_embd.weight", &[N_TOKENS + 40, WIDTH]),
            PLAIN,
        ),
        case(
            "llama",
            "tokens_beyond_the_rows",
            |d| {
                d.tensor("token_embd.weight", &[N_TOKENS - 8, WIDTH]);
                d.tensor("output.weight", &[N_TOKENS - 8, WIDTH]);
            },
            Refused("32 tokens"),
        ),
        case(
            "llama",
            "padding_of_minus_one",
            |d| d.plain_set("tokenizer.ggml.padding_token_id", u32::MAX),
            PLAIN,
        ),
        case(
            "llama",
            "roles_out_of_range",
            |d| {
                d.plain_set("tokenizer.ggml.bos_token_id", 1000u32);
                d.plain_set("tokenizer.ggml.unknown_token_id", 1000u32);
                d.plain_set("tokenizer.ggml.eot_token_id", -1i32);
                d.plain_set("tokenizer.ggml.fim_pre_token_id", 5000u64);
            },
            PLAIN,
        ),
        case("llama", "no_pre", |d| d.plain_remove("tokenizer.ggml.pre"), PLAIN),
        case(
            "llama",
            "unknown_pre",
            |d| d.plain_set("tokenizer.ggml.pre", "no-such-rule"),
            Refused("no-such-rule"),
        ),
        case(
            "llama",
            "template_that_does_not_parse",
            |d| d.plain_set("tokenizer.chat_template", "{% if %}"),
            PLAIN,
        ),
        case("llama", "template_that_is_a_number", |d| d.plain_set("tokenizer.chat_template", 1u32), PLAIN),
        case("llama", "empty_template", |d| d.plain_set("tokenizer.chat_template", ""), PLAIN),
        case(
            "llama",
            "other_pairs",
            |d| {
                d.plain_set("split.count", 0u32);
                d.plain_set("made.up", Value::Array(Array::F64(vec![1.0])));
            },
            PLAIN,
        ),
        // Sizes.
        case("llama", "no_context", |d| d.remove("context_length"), Refused("context_length")),
        case("llama", "no_heads", |d| d.set("attention.head_count", 0u32), Refused("head_count")),
        case("llama", "no_blocks", |d| d.set("block_count", 0u32), Refused("block_count")),
        case(
            "llama",
            "heads_do_not_divide",
            |d| d.set("attention.head_count_kv", 3u32),
            Refused("head_count_kv"),
        ),
        case(
            "llama",
            "values_of_another_size",
            |d| d.set("attention.value_length", 16u32),
            Refused("value_length"),
        ),
        case(
            "llama",
            "no_epsilon",
            |d| d.remove("attention.layer_norm_rms_epsilon"),
            Refused("layer_norm_rms_epsilon"),
        ),
        case(
            "llama",
            "unknown_architecture",
            |d| d.plain_set("general.architecture", "llama99"),
            Refused("llama99"),
        ),
    ]
}

fn load(path: &Path) -> Result<Model, breakers_model::Error> {
    Model::load(path, &LoadOptions { cache_element: Element::F32, ..LoadOptions::default() })
}

const PROMPT: [u32; 12] = [3, 17, 4, 9, 30, 26, 8, 8, 21, 0, 14, 5];

fn logits(model: &Model) -> Vec<f32> {
    let mut runner = model.runner();
    let sequence = runner.open().unwrap();
    let mut steps = [Step::last(sequence, PROMPT.to_vec(), Want::Logits)];
    runner.forward(&mut steps).unwrap();
    match steps[0].outputs.pop().map(|row| row.output) {
        Some(Output::Logits(logits)) => logits,
        other => panic!("{other:?}"),
    }
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// The chain of an error's causes.
fn text(error: &dyn std::error::Error) -> String {
    let cause = error.source().map(|cause| format!(": {}", text(cause)));
    format!("{error}{}", cause.unwrap_or_default())
}

#[test]
fn odd_files_are_obeyed_or_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let cases = cases();
    assert!(cases.len() >= 60);
    let mut wrong = Vec::new();
    for Case { name, architecture, change, verdict } in cases {
        let mut draft = Draft::new(architecture);
        change(&mut draft);
        let path = folder.path().join("odd.gguf");
        draft.write(&path);
        let name = format!("{architecture} {name}");
        match (load(&path), verdict) {
            (Ok(model), Means(meaning, is_plain)) => {
                let mut expected = plain_meaning(architecture);
                meaning(&mut expected);
                let exact = expected.logits(&draft.exact(), &PROMPT);
                let found: Vec<f64> = logits(&model).into_iter().map(f64::from).collect();
                let exact = &exact[..found.len().min(exact.len())];
                let far = distance(&found, exact);
                if found.len() != N_TOKENS || far.is_nan() || far > TOLERANCE {
                    wrong.push(format!("{name}: {} logits, {far} off", found.len()));
                }
                // What an odd file means must differ from what the plain one means, or the case shows nothing.
                let plain = plain_meaning(architecture).logits(&Draft::new(architecture).exact(), &PROMPT);
                let bites = distance(exact, &plain) > 10.0 * TOLERANCE;
                if bites == is_plain {
                    wrong.push(format!("{name}: the case does not bite, or should not"));
                }
            }
            (Err(error), Refused(words)) if text(&error).contains(words) => {}
            (Ok(_), Refused(words)) => wrong.push(format!("{name}: loads, expected an error with {words:?}")),
            (Err(error), Refused(words)) => {
                wrong.push(format!("{name}: {}, expected {words:?}", text(&error)))
            }
            (Err(error), Means(..)) => wrong.push(format!("{name}: {}", text(&error))),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Writes the files for `data/make_odd_files.py`, into the folder that `BREAKERS_ODD_FILES` names.
#[test]
#[ignore = "makes files for a script"]
fn write_odd_files() {
    let folder = std::env::var_os("BREAKERS_ODD_FILES").expect("BREAKERS_ODD_FILES names a folder");
    for Case { name, architecture, change, .. } in cases() {
        let mut draft = Draft::new(architecture);
        change(&mut draft);
        draft.write(&Path::new(&folder).join(format!("{architecture}-{name}.gguf")));
    }
}

#[test]
fn a_template_that_fails_is_an_error_when_it_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("odd.gguf");
    for (template, fails) in [
        (Value::from("{% if %}"), true),
        (Value::from("{{ messages"), true),
        (Value::from("{% nothing %}"), true),
        (Value::from(1u32), true),
        (Value::from(""), false),
        (Value::from("{{ bos_token }}{{ eos_token }}"), false),
    ] {
        let mut draft = Draft::new("llama");
        draft.plain_set("tokenizer.chat_template", template.clone());
        draft.write(&path);
        let model = load(&path).unwrap();
        assert_eq!(model.chat_template().is_err(), fails, "{template:?}");
        assert_eq!(logits(&model).len(), N_TOKENS);
        if let Ok(Some(template)) = model.chat_template() {
            assert!(template.ignores_messages());
            assert_eq!(template.render(&[], None, true).unwrap(), "<|im_end|>");
        }
    }
}

#[test]
fn a_context_longer_than_the_models_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("odd.gguf");
    Draft::new("llama").write(&path);
    let open = |max_context| {
        Model::load(&path, &LoadOptions { max_context, ..LoadOptions::default() })
            .map(|m| m.info().max_context)
    };
    assert_eq!(open(None).unwrap(), 64);
    assert_eq!(open(Some(64)).unwrap(), 64);
    assert_eq!(open(Some(5)).unwrap(), 5);
    for wrong in [0, 65, usize::MAX] {
        let refused = open(Some(wrong));
        assert!(
            matches!(refused, Err(breakers_model::Error::ContextLength { limit: 64, .. })),
            "{refused:?}"
        );
    }
}
