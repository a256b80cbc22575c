//! Odd hyperparameters.

use super::draft::CONTEXT;
use super::{Case, PLAIN, Refused, case, means};
use crate::reference::{Layer, Meaning};

/// Every layer without a window.
fn each_global(meaning: &mut Meaning, change: impl Fn(&mut Layer)) {
    meaning.layers.iter_mut().filter(|layer| layer.window.is_none()).for_each(change);
}

pub(super) fn cases() -> Vec<Case> {
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
            Refused("blk.2.ffn_gate.weight"),
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
    ]
}
