//! Metadata that contradicts itself, and round trips through random vocabularies.

use breakers_gguf::{Metadata, Value};
use breakers_tokenizer::{DecodeOptions, EncodeOptions, Error, Tokenizer};
use proptest::prelude::*;

/// A small, valid vocabulary.
fn metadata(model: &str) -> Metadata {
    let mut metadata = Metadata::new();
    for (key, value) in [
        ("model", Value::from(model)),
        ("pre", "qwen2".into()),
        ("tokens", vec!["a", "b", "ab", "<|end|>", "<0x41>"].into()),
        ("token_type", vec![1, 1, 1, 3, 6].into()),
        ("scores", vec![0f32, 0.0, -1.0, 0.0, 0.0].into()),
        ("merges", vec!["a b"].into()),
        ("bos_token_id", 3u32.into()),
        ("eos_token_id", 3u32.into()),
        ("unknown_token_id", 0u32.into()),
    ] {
        metadata.insert(&format!("tokenizer.ggml.{key}"), value).unwrap();
    }
    metadata
}

/// Changes one key and checks the name of the resulting error.
fn check(model: &str, key: &str, value: impl Into<Value>, expected: &str) {
    let mut metadata = metadata(model);
    assert!(Tokenizer::from_metadata(&metadata).is_ok());
    metadata.insert(&format!("tokenizer.ggml.{key}"), value).unwrap();
    let error = Tokenizer::from_metadata(&metadata).unwrap_err();
    assert!(format!("{error:?}").starts_with(expected), "{model}, {key}: {error:?}, expected {expected}");
}

#[test]
fn contradictions_are_typed_errors() {
    for model in ["gpt2", "llama"] {
        check(model, "model", "rwkv", "UnknownTokenizer");
        check(model, "model", 1u32, "Gguf(ValueType");
        check(model, "tokens", vec!["a", "b", "ab", "a", "<0x41>"], "DuplicateToken");
        check(model, "tokens", 7u32, "Gguf(ValueType");
        check(model, "token_type", vec![1, 1], "VocabularyLength");
        check(model, "token_type", vec![1; 6], "VocabularyLength");
        check(model, "token_type", vec![6, 1, 1, 3, 6], "InvalidByteToken");
        check(model, "eot_token_id", "end", "Gguf(ValueType");
        check(model, "add_bos_token", 1u32, "Gguf(ValueType");
    }
    check("gpt2", "pre", "no-such-rule", "UnknownPreTokenizer { found: \"no-such-rule\"");
    for rule in ["", "a", "ab", " ", "a ", " a", "a c", "c a", "b a", "a  b", "é"] {
        check("gpt2", "merges", vec![rule], "InvalidMerge");
    }
    check("gpt2", "merges", vec![1u32], "Gguf(ValueType");
    check("llama", "scores", vec![0f32; 4], "VocabularyLength");
    check("llama", "scores", vec![0f32, f32::NAN, 0.0, 0.0, 0.0], "InvalidScore { token: 1 }");
    check("llama", "scores", "high", "Gguf(ValueType");
}

/// Real files write "no such token" as an id that no vocabulary has.
#[test]
fn roles_outside_of_the_vocabulary_are_left_out() {
    for model in ["gpt2", "llama"] {
        let plain = Tokenizer::from_metadata(&metadata(model)).unwrap();
        for role in ["bos", "eos", "eot", "eom", "unknown", "padding", "prefix", "fim_pre"] {
            for id in [Value::from(5u32), u32::MAX.into(), u64::MAX.into(), (-1i32).into(), (-1i64).into()] {
                let mut odd = metadata(model);
                let key = format!("tokenizer.ggml.{role}_token_id");
                odd.remove(&key);
                let without = Tokenizer::from_metadata(&odd).unwrap();
                odd.insert(&key, id).unwrap();
                let found = Tokenizer::from_metadata(&odd).unwrap();
                assert_eq!((found.bos(), found.eos()), (without.bos(), without.eos()), "{model} {key}");
                assert_eq!(found.end_tokens(), without.end_tokens(), "{model} {key}");
                assert_eq!((found.padding(), found.unknown()), (without.padding(), without.unknown()));
                assert_eq!(found.vocab_size(), plain.vocab_size());
            }
        }
    }
}

#[test]
fn missing_keys_are_typed_errors() {
    for (model, key) in [("gpt2", "model"), ("gpt2", "tokens"), ("gpt2", "merges"), ("llama", "tokens")] {
        let mut metadata = metadata(model);
        metadata.remove(&format!("tokenizer.ggml.{key}"));
        let error = Tokenizer::from_metadata(&metadata).unwrap_err();
        assert!(matches!(error, Error::Gguf(_)), "{key}: {error:?}");
    }
    let mut metadata = metadata("gpt2");
    metadata.remove("tokenizer.ggml.bos_token_id");
    metadata.insert("tokenizer.ggml.add_bos_token", true).unwrap();
    let error = Tokenizer::from_metadata(&metadata).unwrap_err();
    assert!(matches!(error, Error::MissingSpecialToken { .. }), "{error:?}");
}

#[test]
fn ids_outside_of_the_vocabulary_are_refused() {
    let tokenizer = Tokenizer::from_metadata(&metadata("gpt2")).unwrap();
    for token in [5, u32::MAX] {
        let refused = |error| matches!(error, Error::TokenOutOfRange { vocab_size: 5, .. });
        assert!(refused(tokenizer.decode(&[0, token], DecodeOptions::default()).unwrap_err()));
        assert!(refused(tokenizer.stream(DecodeOptions::default()).push(token).unwrap_err()));
        assert_eq!(tokenizer.token_bytes(token), None);
        assert!(!tokenizer.is_control(token));
    }
}

/// Any vocabulary that loads can be used, whatever the text.
fn use_tokenizer(tokenizer: &Tokenizer, text: &str) {
    for (add_special, parse_special) in [(false, false), (true, true)] {
        if let Ok(ids) = tokenizer.encode(text, EncodeOptions { add_special, parse_special }) {
            assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
            let options = DecodeOptions { skip_special: false, continues: false };
            let whole = tokenizer.decode(&ids, options).unwrap();
            let mut stream = tokenizer.stream(options);
            let mut pieces: String = ids.iter().map(|&id| stream.push(id).unwrap().to_owned()).collect();
            pieces.push_str(&stream.finish());
            assert_eq!(pieces, whole);
        }
    }
}

proptest! {
    #[test]
    fn made_up_vocabularies_never_panic(
        model in prop_oneof![Just("gpt2"), Just("llama")],
        tokens in prop::collection::vec("(<0x[0-9A-F]{2}>|[abĠ▁é]{0,3}|<\\|end\\|>)", 0..12),
        types in prop::collection::vec(0i32..8, 0..12),
        scores in prop::collection::vec(prop_oneof![any::<f32>(), -2f32..2.0], 0..12),
        merges in prop::collection::vec("[abĠ ]{0,5}", 0..3),
        bos in 0u32..14,
        add_bos in any::<bool>(),
        text in "[ab é\\n▁]{0,40}(<\\|end\\|>)?",
    ) {
        let mut metadata = metadata(model);
        for (key, value) in [
            ("tokens", Value::from(tokens)),
            ("token_type", types.into()),
            ("scores", scores.into()),
            ("merges", merges.into()),
            ("bos_token_id", bos.into()),
            ("add_bos_token", add_bos.into()),
        ] {
            metadata.insert(&format!("tokenizer.ggml.{key}"), value).unwrap();
        }
        if let Ok(tokenizer) = Tokenizer::from_metadata(&metadata) {
            use_tokenizer(&tokenizer, &text);
        }
    }

    #[test]
    fn bytes_survive_the_round_trip(text in any::<String>()) {
        let tokenizer = Tokenizer::bytes();
        let ids = tokenizer.encode(&text, EncodeOptions::default()).unwrap();
        prop_assert_eq!(tokenizer.decode(&ids, DecodeOptions::default()).unwrap(), text);
    }
}
