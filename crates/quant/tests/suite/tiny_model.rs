// A tiny model with random weights. Without imports, so that documentation can include it too.

pub(crate) const WIDTH: usize = 256;
pub(crate) const FEED_FORWARD: usize = 512;
pub(crate) const HEAD_DIM: usize = 64;
pub(crate) const VOCABULARY: usize = 96;
pub(crate) const BLOCKS: usize = 2;

/// Numbers that are the same everywhere.
pub(crate) struct Random(breakers_cpu::random::SplitMix64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(breakers_cpu::random::SplitMix64::new(seed))
    }

    pub(crate) fn next(&mut self) -> f32 {
        self.0.next_symmetric()
    }

    pub(crate) fn normal(&mut self) -> f32 {
        self.next() + self.next() + self.next()
    }
}

/// What tests change in the tiny model.
#[derive(Clone, Copy)]
pub(crate) struct Tiny {
    pub(crate) architecture: &'static str,
    pub(crate) kv_heads: usize,
    /// The name of a tensor with an invalid weight.
    pub(crate) spoiled: Option<&'static str>,
}

pub(crate) const TINY: Tiny = Tiny { architecture: "qwen2", kv_heads: 2, spoiled: None };

/// Writes the model; some input channels are outliers, as in real models.
pub(crate) fn write_model(path: &std::path::Path, tiny: Tiny) {
    let mut random = Random::new(3);
    let mut writer = breakers_gguf::Writer::new();
    let architecture = tiny.architecture;
    let key = |name: &str| format!("{architecture}.{name}");
    writer.insert("general.architecture", architecture).unwrap();
    for (name, value) in [
        ("embedding_length", WIDTH),
        ("attention.head_count", WIDTH / HEAD_DIM),
        ("attention.head_count_kv", tiny.kv_heads),
        ("block_count", BLOCKS),
        ("feed_forward_length", FEED_FORWARD),
        ("context_length", 512),
        ("attention.sliding_window", 64),
    ] {
        writer.insert(&key(name), value as u32).unwrap();
    }
    writer.insert(&key("attention.layer_norm_rms_epsilon"), 1e-6f32).unwrap();
    let kv = tiny.kv_heads * HEAD_DIM;
    let mut tensors: Vec<(String, Vec<usize>)> = vec![
        ("token_embd.weight".into(), vec![VOCABULARY, WIDTH]),
        ("output_norm.weight".into(), vec![WIDTH]),
        ("output.weight".into(), vec![VOCABULARY, WIDTH]),
    ];
    for block in 0..BLOCKS {
        let mut add =
            |name: &str, shape: &[usize]| tensors.push((format!("blk.{block}.{name}"), shape.to_vec()));
        add("attn_norm.weight", &[WIDTH]);
        add("attn_q.weight", &[WIDTH, WIDTH]);
        add("attn_k.weight", &[kv, WIDTH]);
        add("attn_v.weight", &[kv, WIDTH]);
        if architecture == "qwen2" {
            add("attn_q.bias", &[WIDTH]);
            add("attn_k.bias", &[kv]);
            add("attn_v.bias", &[kv]);
        }
        add("attn_output.weight", &[WIDTH, WIDTH]);
        add("ffn_norm.weight", &[WIDTH]);
        add("ffn_gate.weight", &[FEED_FORWARD, WIDTH]);
        add("ffn_up.weight", &[FEED_FORWARD, WIDTH]);
        add("ffn_down.weight", &[WIDTH, FEED_FORWARD]);
        if architecture == "gemma3" {
            add("attn_q_norm.weight", &[HEAD_DIM]);
            add("attn_k_norm.weight", &[HEAD_DIM]);
            add("post_attention_norm.weight", &[WIDTH]);
            add("post_ffw_norm.weight", &[WIDTH]);
        }
    }
    for (name, shape) in &tensors {
        writer.declare(name, breakers_gguf::Format::F32, shape).unwrap();
    }
    let mut sink = writer.create(path).unwrap();
    for (name, shape) in &tensors {
        let n: usize = shape.iter().product();
        let mut values: Vec<f32> = match shape.len() {
            1 if name.ends_with("bias") => (0..n).map(|_| 0.1 * random.next()).collect(),
            1 => (0..n).map(|i| (1.0 + 0.3 * random.next()) * if i % 41 == 7 { 6.0 } else { 1.0 }).collect(),
            _ => (0..n).map(|_| random.normal() / (shape[1] as f32).sqrt()).collect(),
        };
        if tiny.spoiled == Some(&**name) {
            values[5] = f32::NAN;
        }
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        sink.write(name, &bytes).unwrap();
    }
    sink.finish().unwrap();
}
