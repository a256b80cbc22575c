//! Odd tensors, vocabularies and sizes.

use breakers_gguf::{Array, Value};

use super::draft::{N_TOKENS, WIDTH};
use super::{Case, PLAIN, Refused, case, means};

pub(super) fn cases() -> Vec<Case> {
    vec![
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
