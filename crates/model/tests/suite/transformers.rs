//! Tiny random models compared with the results of transformers, in f32: `data/transformers/NAME` holds a
//! model as a Hugging Face folder, and the results. A converter for these few architectures writes the GGUF
//! file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use breakers_core::{LanguageModel as _, LayerTap, Output, Step, Want};
use breakers_gguf as gguf;
use breakers_gguf::Value;
use breakers_kv_cache::Element;
use breakers_model::walk::BlockWalk;
use breakers_model::{LoadOptions, Model};
use safetensors::{Dtype, SafeTensors};

use crate::support::write_gguf;

/// Between two orders of the same sums, on logits of about 10.
const TOLERANCE: f32 = 1e-4;
/// A best token that leads by less may be another one.
const MARGIN: f32 = 1e-3;

/// Shape and numbers.
type Array = (Vec<usize>, Vec<f32>);

/// A GGUF file before it is written.
pub(crate) struct Draft {
    architecture: &'static str,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, Array>,
}

/// The results of transformers.
struct Answers {
    prompt: Vec<u32>,
    /// For each token of the prompt.
    logits: Vec<Vec<f32>>,
    /// After each block, for each token; the last ones after the final norm.
    hidden: Vec<Vec<Vec<f32>>>,
    greedy: Vec<(u32, f32)>,
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/transformers").join(name)
}

fn arrays(path: &Path) -> BTreeMap<String, Array> {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let array = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
        let data = view.data();
        let values = match view.dtype() {
            Dtype::BF16 => {
                data.as_chunks().0.iter().map(|x| half::bf16::from_le_bytes(*x).to_f32()).collect()
            }
            Dtype::F32 => data.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect(),
            Dtype::I32 => data.as_chunks().0.iter().map(|x| i32::from_le_bytes(*x) as f32).collect(),
            other => panic!("{name}: {other:?}"),
        };
        (name, (view.shape().to_vec(), values))
    };
    file.tensors().into_iter().map(array).collect()
}

impl Answers {
    fn read(name: &str, n_blocks: usize) -> Self {
        let arrays = arrays(&folder(name).join("expected.safetensors"));
        let rows = |name: &str| -> Vec<Vec<f32>> {
            let (shape, values) = &arrays[name];
            values.chunks_exact(shape[1]).map(<[f32]>::to_vec).collect()
        };
        let ids = |name: &str| arrays[name].1.iter().map(|id| *id as u32).collect::<Vec<_>>();
        Self {
            prompt: ids("prompt"),
            logits: rows("logits"),
            hidden: (1..=n_blocks).map(|i| rows(&format!("hidden.{i}"))).collect(),
            greedy: ids("greedy").into_iter().zip(arrays["greedy_margins"].1.clone()).collect(),
        }
    }
}

/// The GGUF name of a tensor of the Hugging Face folder, and the expert that it is one of.
fn renamed(name: &str) -> (String, Option<usize>) {
    let Some(rest) = name.strip_prefix("model.layers.") else {
        let name = match name {
            "model.embed_tokens.weight" => "token_embd.weight",
            "model.norm.weight" => "output_norm.weight",
            "lm_head.weight" => "output.weight",
            other => panic!("{other}"),
        };
        return (name.to_owned(), None);
    };
    let (block, part) = rest.split_once('.').unwrap();
    let part = part.replace("block_sparse_moe", "mlp");
    if let Some((expert, part)) = part.strip_prefix("mlp.experts.").and_then(|part| part.split_once('.')) {
        let part = match part {
            "gate_proj.weight" | "w1.weight" => "ffn_gate_exps",
            "down_proj.weight" | "w2.weight" => "ffn_down_exps",
            "up_proj.weight" | "w3.weight" => "ffn_up_exps",
            other => panic!("{other}"),
        };
        return (format!("blk.{block}.{part}.weight"), Some(expert.parse().unwrap()));
    }
    let part = match &*part {
        "input_layernorm.weight" => "attn_norm",
        "post_attention_layernorm.weight" => "ffn_norm",
        "self_attn.q_proj.weight" => "attn_q",
        "self_attn.k_proj.weight" => "attn_k",
        "self_attn.v_proj.weight" => "attn_v",
        "self_attn.o_proj.weight" => "attn_output",
        "self_attn.q_norm.weight" => "attn_q_norm",
        "self_attn.k_norm.weight" => "attn_k_norm",
        "mlp.gate.weight" => "ffn_gate_inp",
        "mlp.gate_proj.weight" => "ffn_gate",
        "mlp.up_proj.weight" => "ffn_up",
        "mlp.down_proj.weight" => "ffn_down",
        other => panic!("{other}"),
    };
    (format!("blk.{block}.{part}.weight"), None)
}

/// Rows of heads whose halves are rotated together, put in the order in which neighbors are.
fn interleaved((shape, values): &Array, n_heads: usize) -> Array {
    let (dim, n_cols) = (shape[0] / n_heads, shape[1]);
    let row = |out: usize| {
        let (head, at) = (out / dim, out % dim);
        let from = head * dim + at % 2 * (dim / 2) + at / 2;
        values[from * n_cols..][..n_cols].iter().copied()
    };
    (shape.clone(), (0..shape[0]).flat_map(row).collect())
}

impl Draft {
    pub(crate) fn of(architecture: &'static str, name: &str) -> Self {
        let config = std::fs::read(folder(name).join("config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
        let number = |key: &str| config[key].as_u64().map(|n| n as u32);
        let required = |key: &str| number(key).unwrap_or_else(|| panic!("{key}"));
        let mut draft = Self { architecture, metadata: BTreeMap::new(), tensors: BTreeMap::new() };
        let (n_heads, n_kv_heads) = (required("num_attention_heads"), required("num_key_value_heads"));
        let head_dim = number("head_dim").unwrap_or(required("hidden_size") / n_heads);
        for (key, value) in [
            ("block_count", required("num_hidden_layers")),
            ("context_length", required("max_position_embeddings")),
            ("embedding_length", required("hidden_size")),
            ("feed_forward_length", required("intermediate_size")),
            ("attention.head_count", n_heads),
            ("attention.head_count_kv", n_kv_heads),
            ("attention.key_length", head_dim),
            ("attention.value_length", head_dim),
            ("rope.dimension_count", head_dim),
        ] {
            draft.set(key, value);
        }
        let float = |value: &serde_json::Value| value.as_f64().unwrap() as f32;
        draft.set("attention.layer_norm_rms_epsilon", float(&config["rms_norm_eps"]));
        draft.set("rope.freq_base", float(&config["rope_parameters"]["rope_theta"]));
        if let Some(n_experts) = number("num_local_experts") {
            draft.set("expert_count", n_experts);
            draft.set("expert_used_count", required("num_experts_per_tok"));
            if let Some(width) = number("moe_intermediate_size") {
                draft.set("expert_feed_forward_length", width);
            }
        }
        let n_tokens = required("vocab_size");
        let mut tokens: Vec<String> = (0..n_tokens).map(|id| format!("t{id}")).collect();
        // The result of the single merge, and its parts.
        (tokens[0], tokens[1], tokens[2]) = ("t".to_owned(), "1".to_owned(), "t1".to_owned());
        for (key, value) in [
            ("general.architecture", Value::from(architecture)),
            ("tokenizer.ggml.model", "gpt2".into()),
            ("tokenizer.ggml.pre", "gpt-2".into()),
            ("tokenizer.ggml.tokens", tokens.into()),
            ("tokenizer.ggml.token_type", vec![1i32; n_tokens as usize].into()),
            ("tokenizer.ggml.merges", vec!["t 1".to_owned()].into()),
        ] {
            draft.metadata.insert(key.to_owned(), value);
        }
        // Experts come in any order of their names.
        let mut experts: BTreeMap<String, BTreeMap<usize, Array>> = BTreeMap::new();
        for (name, array) in arrays(&folder(name).join("model.safetensors")) {
            let (name, expert) = renamed(&name);
            let array = match (architecture, name.split('.').nth(2)) {
                ("llama", Some("attn_q")) => interleaved(&array, n_heads as usize),
                ("llama", Some("attn_k")) => interleaved(&array, n_kv_heads as usize),
                _ => array,
            };
            match expert {
                Some(expert) => {
                    experts.entry(name).or_default().insert(expert, array);
                }
                None => {
                    draft.tensors.insert(name, array);
                }
            }
        }
        for (name, experts) in experts {
            let shape = [&[experts.len()], &*experts[&0].0].concat();
            draft.tensors.insert(name, (shape, experts.into_values().flat_map(|array| array.1).collect()));
        }
        draft
    }

    fn n_blocks(&self) -> usize {
        let norms = self.tensors.keys().filter(|name| name.ends_with("attn_norm.weight"));
        norms.count()
    }

    fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.metadata.insert(format!("{}.{key}", self.architecture), value.into());
    }

    pub(crate) fn write(&self, path: &Path) {
        write_gguf(path, &self.metadata, &self.tensors);
    }

    fn load(&self) -> Result<Model, breakers_model::Error> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiny.gguf");
        self.write(&path);
        Model::load(&path, &LoadOptions { cache_element: Element::F32, ..LoadOptions::default() })
    }

    /// Repeats the rows of each key and value head of a block, so that it has twice as many.
    fn double_key_heads(&mut self, block: usize, head_dim: usize) {
        for part in ["attn_k", "attn_v"] {
            let (shape, values) = self.tensors.get_mut(&format!("blk.{block}.{part}.weight")).unwrap();
            let heads = values.chunks_exact(head_dim * shape[1]);
            *values = heads.flat_map(|head| [head, head].concat()).collect();
            shape[0] *= 2;
        }
    }

    /// Widens a block's feed-forward layer by zeros, which change nothing.
    fn widen_feed_forward(&mut self, block: usize, by: usize) {
        for part in ["ffn_gate", "ffn_up"] {
            let (shape, values) = self.tensors.get_mut(&format!("blk.{block}.{part}.weight")).unwrap();
            values.extend(vec![0.0; by * shape[1]]);
            shape[0] += by;
        }
        let (shape, values) = self.tensors.get_mut(&format!("blk.{block}.ffn_down.weight")).unwrap();
        let rows = values.chunks_exact(shape[1]);
        *values = rows.flat_map(|row| [row, &vec![0.0; by]].concat()).collect();
        shape[1] += by;
    }
}

fn logits(output: &Output) -> &[f32] {
    match output {
        Output::Logits(logits) => logits,
        other => panic!("logits were wanted, got {other:?}"),
    }
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    // A NaN is far.
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, |most, x| if x <= most { most } else { x })
}

/// The largest differences of logits and of hidden states over the whole prompt.
fn distances(model: &Model, answers: &Answers) -> (f32, f32) {
    let mut runner = model.runner();
    let sequence = runner.open().unwrap();
    let n_blocks = answers.hidden.len();
    let mut steps = [Step::each(sequence, answers.prompt.clone(), Want::Logits)];
    steps[0].taps = (0..n_blocks - 1).map(LayerTap::AfterBlock).collect();
    steps[0].taps.push(LayerTap::Final);
    runner.forward(&mut steps).unwrap();
    let (mut of_logits, mut of_hidden) = (0.0f32, 0.0f32);
    for (row, output) in steps[0].outputs.iter().enumerate() {
        of_logits = of_logits.max(distance(logits(&output.output), &answers.logits[row]));
        assert_eq!(output.hidden.len(), n_blocks);
        for (found, expected) in output.hidden.iter().zip(&answers.hidden) {
            of_hidden = of_hidden.max(distance(found, &expected[row]));
        }
    }
    (of_logits, of_hidden)
}

fn check(what: &str, draft: &Draft, name: &str) {
    let answers = Answers::read(name, draft.n_blocks());
    let model = draft.load().unwrap_or_else(|error| panic!("{what}: {error}"));
    let (of_logits, of_hidden) = distances(&model, &answers);
    eprintln!("{what}: logits {of_logits:.1e} off, hidden states {of_hidden:.1e}");
    assert!(of_logits <= TOLERANCE && of_hidden <= TOLERANCE, "{what}: {of_logits} and {of_hidden} off");
    // Token by token, as a text is written.
    let mut runner = model.runner();
    let sequence = runner.open().unwrap();
    let mut next = answers.prompt.clone();
    for (i, &(expected, margin)) in answers.greedy.iter().enumerate() {
        let mut steps = [Step::last(sequence, next, Want::ArgMax)];
        runner.forward(&mut steps).unwrap();
        let found = steps[0].outputs.last().and_then(|row| row.output.best());
        assert!(margin < MARGIN || found == Some(expected), "{what}, token {i}: {found:?}, not {expected}");
        next = vec![expected];
    }
}

#[test]
fn models_compute_what_transformers_computes() {
    for (architecture, name) in [("qwen3", "qwen3"), ("qwen3moe", "qwen3-moe"), ("llama", "mixtral")] {
        check(name, &Draft::of(architecture, name), name);
    }
}

#[test]
fn layers_may_differ_in_heads_and_widths() {
    let mut draft = Draft::of("qwen3", "qwen3");
    draft.double_key_heads(1, 32);
    draft.set("attention.head_count_kv", vec![2u32, 4, 2, 2]);
    draft.widen_feed_forward(2, 40);
    draft.set("feed_forward_length", vec![128u32, 128, 168, 128]);
    check("layers that differ", &draft, "qwen3");
    let model = draft.load().unwrap();
    let heads: Vec<usize> = model.cache_shape().layers.iter().map(|layer| layer.n_kv_heads).collect();
    assert_eq!(heads, [2, 4, 2, 2]);
    // One row behind nine: ten keys, keys and values, of ten key heads and sixteen query heads in all.
    assert_eq!(model.attention_bytes(9, 1), 10 * 2 * 32 * 10 * 4);
    assert_eq!(model.attention_multiplications(9, 1), 10 * 2 * 32 * 16);
}

#[test]
fn an_expert_layer_has_the_same_bits_in_every_batch() {
    let draft = Draft::of("qwen3moe", "qwen3-moe");
    let answers = Answers::read("qwen3-moe", draft.n_blocks());
    let model = draft.load().unwrap();
    let run = |chunks: &[usize], beside: &[u32]| -> Vec<u32> {
        let mut runner = model.runner();
        let (sequence, other) = (runner.open().unwrap(), runner.open().unwrap());
        let (mut bits, mut from, mut sizes) = (Vec::new(), 0, chunks.iter().cycle());
        while from < answers.prompt.len() {
            let to = answers.prompt.len().min(from + sizes.next().unwrap());
            let mut steps = vec![Step::each(sequence, answers.prompt[from..to].to_vec(), Want::Logits)];
            if !beside.is_empty() {
                steps.push(Step::last(other, beside.to_vec(), Want::ArgMax));
            }
            runner.forward(&mut steps).unwrap();
            let rows = steps[0].outputs.iter();
            bits.extend(rows.flat_map(|row| logits(&row.output).iter().map(|x| x.to_bits())));
            runner.commit(sequence, to - from).unwrap();
            from = to;
        }
        bits
    };
    let expected = run(&[40], &[]);
    for (chunks, beside) in [(&[1][..], &[][..]), (&[3, 1], &[7, 8]), (&[17], &[5])] {
        assert!(run(chunks, beside) == expected, "chunks of {chunks:?} beside {beside:?}");
    }
}

#[test]
fn a_row_of_experts_costs_its_own_experts() {
    let model = Draft::of("qwen3moe", "qwen3-moe").load().unwrap();
    let products: BTreeMap<&str, (usize, usize)> =
        model.products().iter().map(|cost| (cost.name, (cost.multiplications, cost.bytes))).collect();
    // Four layers of width 64; two of eight experts of width 48.
    assert_eq!(products["router"].0, 4 * 64 * 8);
    assert_eq!(products["gate_up"].0, 4 * 2 * 2 * 64 * 48);
    assert_eq!(products["down"].0, 4 * 2 * 64 * 48);
    let all = 8 / 2 * (products["gate_up"].1 + products["down"].1);
    let rest = ["qkv", "attention_out", "router", "head"].iter().map(|name| products[name].1);
    assert_eq!(model.weight_bytes(), all + rest.sum::<usize>());
}

#[test]
fn pages_that_sequences_share_are_counted_once() {
    let model = Draft::of("qwen3", "qwen3").load().unwrap();
    let mut runner = model.runner();
    let sequence = runner.open().unwrap();
    runner.forward(&mut [Step::last(sequence, vec![7; 100], Want::ArgMax)]).unwrap();
    runner.commit(sequence, 100).unwrap();
    let (pages, caches) = (runner.page_bytes(), runner.cache_bytes());
    // Two pages of 64 tokens in each of four layers, keys and values of two heads of 32.
    assert_eq!(pages, 4 * 2 * 64 * 2 * 2 * 32 * 4);
    let fork = runner.fork(sequence).unwrap();
    assert_eq!(runner.page_bytes(), pages);
    assert!(runner.cache_bytes() >= 2 * caches - caches / 10, "{caches}, then {}", runner.cache_bytes());
    // The page that is not full becomes the fork's own.
    runner.forward(&mut [Step::last(fork, vec![8], Want::ArgMax)]).unwrap();
    assert_eq!(runner.page_bytes(), pages / 2 * 3);
    // Another prompt shares nothing.
    let other = runner.open().unwrap();
    runner.forward(&mut [Step::last(other, vec![9; 64], Want::ArgMax)]).unwrap();
    assert_eq!(runner.page_bytes(), pages * 2);
    runner.close(sequence);
    runner.close(fork);
    assert_eq!(runner.page_bytes(), pages / 2);
}

#[test]
fn a_sequence_goes_on_from_what_was_written_of_it() {
    for (architecture, folder) in [("qwen3", "qwen3"), ("llama", "mixtral")] {
        let model = Draft::of(architecture, folder).load().unwrap();
        let (mut first, mut second) = (model.runner(), model.runner());
        assert_eq!(first.snapshot_kind(), second.snapshot_kind());
        assert!(first.snapshot_kind().unwrap().contains("F32"));
        let text: Vec<u32> = (0..90).map(|i| (i * 7 + i / 3) % 60).collect();
        let sequence = first.open().unwrap();
        first.forward(&mut [Step::last(sequence, text[..80].to_vec(), Want::Nothing)]).unwrap();
        first.commit(sequence, 80).unwrap();
        let mut bytes = Vec::new();
        first.snapshot(sequence).unwrap().pieces(&mut |piece| bytes.extend_from_slice(piece));
        // As aligned as a mapped file.
        let restored = second.restore(std::sync::Arc::new(Lines::of(&bytes)), 80, 70).unwrap();
        assert_eq!((second.len(restored).unwrap(), second.committed(restored).unwrap()), (70, 70));
        first.truncate(sequence, 70).unwrap();
        let mut steps = [sequence, restored].map(|id| Step::each(id, text[70..].to_vec(), Want::Logits));
        let [one, other] = &mut steps;
        first.forward(std::slice::from_mut(one)).unwrap();
        second.forward(std::slice::from_mut(other)).unwrap();
        assert_eq!(one.outputs, other.outputs, "{architecture}");
        let n_open = second.page_bytes();
        let short = std::sync::Arc::new(Lines::of(&bytes[64..]));
        assert!(second.restore(short, 80, 70).unwrap_err().to_string().contains("bytes"));
        assert_eq!(second.page_bytes(), n_open);
    }
}

/// Bytes that begin at a cache line.
struct Lines(Vec<u8>, std::ops::Range<usize>);

impl Lines {
    fn of(bytes: &[u8]) -> Self {
        let mut room = vec![0; bytes.len() + 64];
        let at = room.as_ptr().align_offset(64);
        room[at..][..bytes.len()].copy_from_slice(bytes);
        Self(room, at..at + bytes.len())
    }
}

impl AsRef<[u8]> for Lines {
    fn as_ref(&self) -> &[u8] {
        &self.0[self.1.clone()]
    }
}

/// The chain of an error's causes.
fn text(error: &dyn std::error::Error) -> String {
    let cause = error.source().map(|cause| format!(": {}", text(cause)));
    format!("{error}{}", cause.unwrap_or_default())
}

#[test]
fn what_no_kernel_computes_is_refused_by_its_name() {
    let refused = |architecture, name, change: &dyn Fn(&mut Draft), words: &str| {
        let mut draft = Draft::of(architecture, name);
        change(&mut draft);
        match draft.load() {
            Ok(_) => panic!("loads, expected an error with {words:?}"),
            Err(error) => assert!(text(&error).contains(words), "{}, expected {words:?}", text(&error)),
        }
    };
    let dense = |change: &dyn Fn(&mut Draft), words: &str| refused("qwen3", "qwen3", change, words);
    dense(&|d| d.set("attention.value_length", 16u32), "qwen3.attention.value_length is 16");
    dense(&|d| d.set("attn_logit_softcapping", 50.0f32), "qwen3.attn_logit_softcapping is 50");
    dense(&|d| d.set("attention.shared_kv_layers", 1u32), "layer 3 sees the keys of layer 2");
    dense(&|d| d.set("attention.head_count", vec![4u32; 3]), "qwen3.attention.head_count is [4, 4, 4]");
    dense(&|d| d.set("attention.head_count_kv", vec![2u32, 2, 3, 2]), "attention.head_count_kv is 3");
    dense(&|d| d.set("feed_forward_length", vec![128u32, 128, 64, 128]), "blk.2.ffn_gate.weight");
    dense(
        &|d| {
            d.tensors.insert("blk.1.attn_sinks.weight".to_owned(), (vec![4], vec![0.0; 4]));
        },
        "blk.1.attn_sinks.weight",
    );
    let experts = |change: &dyn Fn(&mut Draft), words: &str| refused("qwen3moe", "qwen3-moe", change, words);
    experts(&|d| d.set("expert_used_count", 9u32), "qwen3moe.expert_used_count is 9, expected 1 to the 8");
    experts(&|d| d.set("expert_count", 7u32), "blk.0.ffn_gate_exps.weight has shape [8, 48, 64]");
    experts(&|d| d.set("expert_gating_func", 2u32), "qwen3moe.expert_gating_func");
    experts(&|d| d.set("expert_shared_count", 1u32), "qwen3moe.expert_shared_count");
    experts(
        &|d| {
            d.tensors.remove("blk.3.ffn_down_exps.weight");
        },
        "blk.3.ffn_down_exps.weight",
    );
}

#[test]
fn weights_of_experts_are_divided_by_their_sum_where_the_file_says_so() {
    let mut draft = Draft::of("qwen3moe", "qwen3-moe");
    let answers = Answers::read("qwen3-moe", draft.n_blocks());
    draft.set("expert_weights_norm", true);
    assert!(distances(&draft.load().unwrap(), &answers).0 <= TOLERANCE);
    draft.set("expert_weights_norm", false);
    assert!(distances(&draft.load().unwrap(), &answers).0 > 100.0 * TOLERANCE);
}

#[test]
fn experts_are_not_calibrated() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    Draft::of("llama", "mixtral").write(&path);
    let file = gguf::File::open(&path).unwrap();
    let error = BlockWalk::new(&file, vec![vec![1, 2, 3]]).unwrap_err();
    assert!(error.to_string().contains("llama.expert_count is 8"), "{error}");
}
