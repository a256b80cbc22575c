//! Tokenizers from tokenizer.json: ids compared with Hugging Face's on small files of each kind, written by
//! `data/make_tokenizer_json_cases.py`, and malicious files.

use std::collections::BTreeMap;

use breakers_tokenizer::{DecodeOptions, EncodeOptions, Error as TokenizerError, Tokenizer};
use breakers_tokenizer_json::{Error, from_file, from_slice};
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Cases {
    more_texts: Vec<String>,
    tokenizers: BTreeMap<String, TokenizerCases>,
}

#[derive(Deserialize)]
struct TokenizerCases {
    file: Value,
    cases: Vec<Case>,
}

/// Hugging Face's results for one text.
#[derive(Deserialize)]
struct Case {
    /// Special tokens parsed, nothing added.
    ids: Vec<u32>,
    /// With the special tokens around a text, if that differs.
    added: Option<Vec<u32>>,
    /// With special tokens as text, if that differs.
    plain: Option<Vec<u32>>,
    /// The text of the ids, if it is not the text itself.
    text: Option<String>,
}

fn cases() -> Cases {
    serde_json::from_str(include_str!("data/tokenizer_json_cases.json")).unwrap()
}

fn texts(cases: &Cases) -> Vec<String> {
    #[derive(Deserialize)]
    struct Texts {
        texts: Vec<String>,
    }
    let texts: Texts =
        serde_json::from_str(include_str!("../../tokenizer/tests/data/tokenizer_cases.json")).unwrap();
    texts.texts.into_iter().chain(cases.more_texts.clone()).collect()
}

fn load(file: &Value) -> Result<Tokenizer, Error> {
    from_slice(file.to_string().as_bytes())
}

/// Compares all texts. `decodes`: whether the decoded text must be the same too.
fn check(name: &str, decodes: bool) {
    let mut all = cases();
    let texts = texts(&all);
    let TokenizerCases { file, cases } = all.tokenizers.remove(name).unwrap();
    let tokenizer = load(&file).unwrap();
    assert_eq!(texts.len(), cases.len());
    for (text, case) in texts.iter().zip(cases) {
        let encode = |add_special, parse_special| {
            tokenizer.encode(text, EncodeOptions { add_special, parse_special }).unwrap()
        };
        assert_eq!(encode(false, true), case.ids, "{name}: {text:?}");
        let added = case.added.as_ref().unwrap_or(&case.ids);
        assert_eq!(&encode(true, true), added, "{name}: {text:?}, added");
        let plain = case.plain.as_ref().unwrap_or(&case.ids);
        assert_eq!(&encode(false, false), plain, "{name}: {text:?}, special tokens as text");
        let options = DecodeOptions { skip_special: false, ..DecodeOptions::default() };
        let decoded = tokenizer.decode(&case.ids, options).unwrap();
        if decodes {
            assert_eq!(&decoded, case.text.as_ref().unwrap_or(text), "{name}: {text:?}, decoded");
        }
        let mut stream = tokenizer.stream(options);
        let mut streamed: String = case.ids.iter().map(|&id| stream.push(id).unwrap().to_owned()).collect();
        streamed.push_str(&stream.finish());
        assert_eq!(streamed, decoded, "{name}: {text:?}, streamed");
    }
}

#[test]
fn byte_level_ids_are_hugging_faces() {
    check("byte_level", true);
    check("gpt2", true);
}

#[test]
fn sentence_piece_ids_are_hugging_faces() {
    check("llama", true);
    check("gemma", true);
}

#[test]
fn unigram_ids_are_hugging_faces() {
    check("unigram", true);
}

#[test]
fn word_ids_are_hugging_faces() {
    check("word_piece", true);
    // Its added token is normalized, which Hugging Face shows in the text too.
    check("word_level", false);
}

#[test]
fn tokens_have_their_roles() {
    let all = cases();
    for (name, bos, eos, unknown, padding) in [
        ("byte_level", Some("<|begin|>"), Some("<|end|>"), None, None),
        ("gpt2", Some("<s>"), Some("</s>"), None, Some("<pad>")),
        ("llama", Some("<s>"), Some("</s>"), Some("<unk>"), Some("<pad>")),
        ("unigram", Some("<s>"), Some("</s>"), Some("<unk>"), Some("<pad>")),
        ("word_piece", Some("[CLS]"), Some("[SEP]"), Some("[UNK]"), Some("[PAD]")),
    ] {
        let tokenizer = load(&all.tokenizers[name].file).unwrap();
        let text = |id: Option<u32>| {
            id.map(|id| {
                String::from_utf8(tokenizer.token_bytes(id).unwrap().to_vec()).unwrap().trim().to_owned()
            })
        };
        let expected = [bos, eos, unknown, padding].map(|token| token.map(str::to_owned));
        let roles = [tokenizer.bos(), tokenizer.eos(), tokenizer.unknown(), tokenizer.padding()];
        assert_eq!(roles.map(text), expected, "{name}");
        // One of the tokens of `byte_level` absorbs spaces.
        assert!(!tokenizer.is_lossless(), "{name}");
        assert!(roles.into_iter().flatten().all(|id| tokenizer.is_control(id)), "{name}");
        assert_eq!(tokenizer.adds_bos(), name != "unigram", "{name}");
        let n = tokenizer.vocab_size() as u32;
        assert!(tokenizer.token_bytes(n).is_none() && !tokenizer.is_control(n));
        let error = tokenizer.decode(&[n], DecodeOptions::default()).unwrap_err();
        assert!(
            matches!(error, TokenizerError::TokenOutOfRange { token, .. } if token == n),
            "{name}: {error:?}"
        );
    }
}

/// Puts `value` at a JSON pointer of a file and checks the name of the resulting error.
fn refuse(name: &str, pointer: &str, value: Value, expected: &str) {
    let mut file = cases().tokenizers.remove(name).unwrap().file;
    let at = file.pointer_mut(pointer).unwrap_or_else(|| panic!("{name} has no {pointer}"));
    *at = value;
    let error = load(&file).unwrap_err();
    assert!(format!("{error:?}").starts_with(expected), "{name}, {pointer}: {error:?}, expected {expected}");
}

#[test]
fn what_cannot_be_honored_is_a_typed_error() {
    refuse("byte_level", "/version", json!("2.0"), r#"TokenizerJson { what: "version""#);
    refuse("byte_level", "/model", json!(null), r#"TokenizerJson { what: "model""#);
    refuse("byte_level", "/model/type", json!("Mamba"), "UnknownTokenizer { found: \"Mamba\" }");
    refuse("byte_level", "/model/type", json!(1), "TokenizerJson { what: \"model.type\"");
    refuse("byte_level", "/model/vocab", json!([]), r#"TokenizerJson { what: "model.vocab""#);
    refuse("byte_level", "/model/vocab/a", json!(u32::MAX), r#"TokenizerJson { what: "model.vocab""#);
    refuse("byte_level", "/model/vocab/a", json!(-1), r#"TokenizerJson { what: "model.vocab""#);
    refuse("byte_level", "/model/vocab/a", json!(5), r#"TokenizerJson { what: "model.vocab""#);
    for merge in
        [json!("a"), json!("a b c"), json!(["a"]), json!(1), json!(["a", "no such token"]), json!(["a", "!"])]
    {
        refuse("byte_level", "/model/merges/0", merge, "InvalidMerge { index: 0");
    }
    refuse("byte_level", "/model/continuing_subword_prefix", json!("é"), "InvalidMerge");
    refuse("byte_level", "/model/end_of_word_suffix", json!("x".repeat(65)), "TokenizerJson");
    refuse("byte_level", "/pre_tokenizer", json!({"type": "FixedLength", "length": 0}), "TokenizerJson");
    refuse("byte_level", "/pre_tokenizer", json!({"type": "Split"}), "Json");
    refuse("byte_level", "/pre_tokenizer/pretokenizers/0/pattern", json!({"Regex": "("}), "Json");
    refuse("byte_level", "/added_tokens", json!(1), r#"TokenizerJson { what: "added_tokens""#);
    refuse("byte_level", "/added_tokens/0", json!({"id": 0}), "Json");
    refuse(
        "byte_level",
        "/decoder",
        json!({"type": "CTC"}),
        r#"TokenizerJson { what: "decoder", found: "CTC""#,
    );
    refuse(
        "byte_level",
        "/post_processor/special_tokens/<|begin|>/ids",
        json!([100_000]),
        "Tokenizer(SpecialTokenOutOfRange",
    );
    let a = json!({"Sequence": {"id": "A", "type_id": 0}});
    let begin = json!({"SpecialToken": {"id": "<|begin|>", "type_id": 0}});
    for single in [
        json!([]),
        json!([begin]),
        json!([a, a]),
        json!([a, {"SpecialToken": {"id": "no such token"}}]),
        json!(vec![begin; 2000]),
    ] {
        refuse(
            "byte_level",
            "/post_processor/single",
            single,
            r#"TokenizerJson { what: "post_processor.single""#,
        );
    }
    let bert = json!({"type": "BertProcessing", "sep": ["a", 1], "cls": ["b", 2]});
    for processor in [
        json!({"type": "Sequence", "processors": [bert, bert]}),
        json!({"type": "BertProcessing"}),
        json!({"type": "Other"}),
    ] {
        refuse("byte_level", "/post_processor", processor, r#"TokenizerJson { what: "post_processor""#);
    }
    refuse("word_piece", "/model/max_input_chars_per_word", json!(1_000_000), "TokenizerJson");
    let rules = "/normalizer/normalizers/0/precompiled_charsmap";
    for charsmap in ["", "?", "AAAA", "/////wAAAAA=", "BAAAAAAAAAA=", "AAQAAA=="] {
        refuse(
            "unigram",
            rules,
            json!(charsmap),
            r#"TokenizerJson { what: "normalizer.precompiled_charsmap""#,
        );
    }
    // Each of six rules would make a text a hundred times as long.
    let longer = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "a".repeat(100)});
    let normalizer = json!({"type": "Sequence", "normalizers": vec![longer; 6]});
    refuse("byte_level", "/normalizer", normalizer, r#"TokenizerJson { what: "normalizer""#);
    let nested = (0..200).fold("[]".to_owned(), |inner, _| format!("[{inner}]"));
    for json in ["", "{", "[]", "null", "{}", nested.as_str(), "{\"decoder\": {\"type\": 1e999}}"] {
        let error = from_slice(json.as_bytes()).unwrap_err();
        assert!(matches!(error, Error::Json { .. } | Error::TokenizerJson { .. }), "{json}: {error:?}");
    }
    let error = from_file("no/such/tokenizer.json").unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error:?}");
}

#[test]
fn rules_that_fail_on_a_text_are_a_typed_error() {
    // Without a token for unknown words, such words have no token.
    let mut file = cases().tokenizers.remove("word_piece").unwrap().file;
    file["model"]["unk_token"] = json!("no such token");
    let error = load(&file).unwrap().encode("\u{1f47e}", EncodeOptions::default()).unwrap_err();
    assert!(matches!(error, TokenizerError::Tokenize { .. }), "{error:?}");
    // Together these make Hugging Face's crate panic.
    let nothing = json!({"type": "Replace", "pattern": {"Regex": "(?=.)"}, "content": "xy"});
    let rules = json!({"type": "Sequence", "normalizers": [nothing, {"type": "StripAccents"}]});
    let mut file = cases().tokenizers.remove("byte_level").unwrap().file;
    file["normalizer"] = rules.clone();
    let error = load(&file).unwrap().encode("Hello", EncodeOptions::default()).unwrap_err();
    assert!(matches!(error, TokenizerError::Tokenize { .. }), "{error:?}");
    // Here a token of the file is normalized.
    refuse("word_level", "/normalizer", rules, r#"TokenizerJson { what: "one of the rules""#);
}

/// Settings that pick tokens at random have no effect.
#[test]
fn the_same_text_has_the_same_ids() {
    let mut file = cases().tokenizers.remove("byte_level").unwrap().file;
    let text = "the quick brown fox was not with them";
    let expected = load(&file).unwrap().encode(text, EncodeOptions::default()).unwrap();
    file["model"]["dropout"] = json!(0.5);
    let tokenizer = load(&file).unwrap();
    for _ in 0..20 {
        assert_eq!(tokenizer.encode(text, EncodeOptions::default()).unwrap(), expected);
    }
}

/// A byte-level vocabulary whose tokens do not absorb spaces.
fn lossless() -> Tokenizer {
    let mut file = cases().tokenizers.remove("byte_level").unwrap().file;
    for token in file["added_tokens"].as_array_mut().unwrap() {
        token["rstrip"] = json!(false);
    }
    load(&file).unwrap()
}

/// Pointers to all nodes of a file, but only to some of long lists.
fn pointers(value: &Value, at: String, out: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, inner) in fields.iter().step_by(1 + fields.len() / 20) {
                let name = name.replace('~', "~0").replace('/', "~1");
                pointers(inner, format!("{at}/{name}"), out);
            }
        }
        Value::Array(list) => {
            for (index, inner) in list.iter().enumerate().step_by(1 + list.len() / 20) {
                pointers(inner, format!("{at}/{index}"), out);
            }
        }
        _ => {}
    }
    out.push(at);
}

/// A rule of a normalizer, a pre-tokenizer or a decoder; some are of several.
fn small_rule() -> impl Strategy<Value = Value> {
    let replace =
        |pattern: Value, content: &str| json!({"type": "Replace", "pattern": pattern, "content": content});
    let split = |pattern: Value, behavior: &str, invert: bool| json!({"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert});
    prop::sample::select(vec![
        json!({"type": "Lowercase"}),
        json!({"type": "NFKD"}),
        json!({"type": "StripAccents"}),
        json!({"type": "Nmt"}),
        json!({"type": "Strip", "strip_left": true, "strip_right": true}),
        json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}),
        json!({"type": "Prepend", "prepend": "▁é"}),
        json!({"type": "Prepend", "prepend": ""}),
        json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": true, "lowercase": true}),
        replace(json!({"String": "a"}), ""),
        replace(json!({"String": ""}), "é"),
        replace(json!({"Regex": "(a*)*b?$"}), "▁"),
        replace(json!({"Regex": "(?=.)"}), "xy"),
        json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}),
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}),
        json!({"type": "Metaspace", "replacement": "é", "prepend_scheme": "always", "split": true}),
        json!({"type": "Metaspace", "replacement": " ", "prepend_scheme": "first", "split": false}),
        json!({"type": "WhitespaceSplit"}),
        json!({"type": "Whitespace"}),
        json!({"type": "UnicodeScripts"}),
        json!({"type": "Digits", "individual_digits": true}),
        json!({"type": "Punctuation", "behavior": "Contiguous"}),
        json!({"type": "CharDelimiterSplit", "delimiter": "a"}),
        json!({"type": "FixedLength", "length": 0}),
        json!({"type": "FixedLength", "length": 2}),
        split(json!({"Regex": ""}), "Isolated", false),
        split(json!({"Regex": "(?<=a)|b*"}), "MergedWithPrevious", true),
        split(json!({"String": "a"}), "MergedWithNext", false),
        json!({"type": "Fuse"}),
        json!({"type": "ByteFallback"}),
    ])
}

fn small_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(Value::from),
        prop_oneof![Just(-1i64), 0..400i64, Just(i64::MAX)].prop_map(Value::from),
        Just(json!(1e300)),
        prop_oneof![
            Just(""),
            Just(" "),
            Just("a"),
            Just("é"),
            Just("▁"),
            Just("##"),
            Just("<unk>"),
            Just("Removed")
        ]
        .prop_map(Value::from),
        Just(json!([])),
        Just(json!({})),
        Just(json!(["a", "b"])),
        small_rule(),
        prop::collection::vec(small_rule(), 0..4).prop_map(|rules| {
            json!({"type": "Sequence", "normalizers": rules, "pretokenizers": rules, "decoders": rules})
        }),
        Just(json!({"Regex": "(a*)*$"})),
        Just(json!({"String": ""})),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.max(600)))]

    /// Files that differ in a few places load and work, or are refused.
    #[test]
    fn changed_files_never_panic(
        kind in 0usize..7,
        changes in prop::collection::vec((any::<prop::sample::Index>(), small_value()), 1..4),
        text in "[ab Aé▁\\n\u{301}😀Ａ½]{0,20}(<s>|\\[SEP\\]|<tool>|<\\|end\\|>)?[ a]{0,3}",
    ) {
        static CASES: std::sync::LazyLock<Cases> = std::sync::LazyLock::new(cases);
        let mut file = CASES.tokenizers.values().nth(kind).unwrap().file.clone();
        for (at, value) in changes {
            let mut all = Vec::new();
            pointers(&file, String::new(), &mut all);
            let at: &String = at.get(&all);
            *file.pointer_mut(at).unwrap() = value;
        }
        if let Ok(tokenizer) = load(&file) {
            for parse_special in [false, true] {
                let options = EncodeOptions { add_special: true, parse_special };
                let Ok(ids) = tokenizer.encode(&text, options) else { continue };
                prop_assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
                tokenizer.decode(&ids, DecodeOptions::default()).unwrap();
            }
        }
    }

    #[test]
    fn texts_survive_a_lossless_vocabulary(text in any::<String>(), parse_special in any::<bool>()) {
        static TOKENIZER: std::sync::LazyLock<Tokenizer> = std::sync::LazyLock::new(lossless);
        prop_assert!(TOKENIZER.is_lossless());
        let ids = TOKENIZER.encode(&text, EncodeOptions { add_special: true, parse_special }).unwrap();
        let options = DecodeOptions { skip_special: !parse_special, ..DecodeOptions::default() };
        let decoded = TOKENIZER.decode(&ids, options).unwrap();
        prop_assert_eq!(decoded.strip_prefix("<|begin|>").unwrap_or(&decoded), text);
    }

    /// SentencePiece's compiled rules with a few wrong digits stay within their table, or are refused.
    #[test]
    fn damaged_rules_never_panic(
        digits in prop::collection::vec((any::<prop::sample::Index>(), "[A-Za-z0-9+/]"), 1..5),
        text in "[ab Ａｂﬁ½\u{3000}é\u{301}…]{1,20}",
    ) {
        static FILE: std::sync::LazyLock<Value> =
            std::sync::LazyLock::new(|| cases().tokenizers.remove("unigram").unwrap().file);
        let mut file = FILE.clone();
        let rules = &mut file["normalizer"]["normalizers"][0]["precompiled_charsmap"];
        let mut charsmap = rules.as_str().unwrap().to_owned();
        for (at, digit) in digits {
            let at = at.index(charsmap.len());
            charsmap.replace_range(at..=at, &digit);
        }
        *rules = Value::from(charsmap);
        if let Ok(tokenizer) = load(&file) {
            _ = tokenizer.encode(&text, EncodeOptions::default());
        }
    }

    /// Truncated files, and files with a few wrong bytes.
    #[test]
    fn damaged_files_never_panic(
        kind in 0usize..7,
        keep in any::<prop::sample::Index>(),
        bytes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in any::<bool>(),
    ) {
        static FILES: std::sync::LazyLock<Vec<Vec<u8>>> = std::sync::LazyLock::new(|| {
            cases().tokenizers.values().map(|cases| cases.file.to_string().into_bytes()).collect()
        });
        let mut file = FILES[kind].clone();
        for (at, byte) in bytes {
            let at = at.index(file.len());
            file[at] = byte;
        }
        if cut {
            file.truncate(keep.index(file.len()));
        }
        if let Ok(tokenizer) = from_slice(&file) {
            _ = tokenizer.encode("the Ａ text é", EncodeOptions::default());
        }
    }
}
