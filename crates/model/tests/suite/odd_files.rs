//! Files with something odd in their hyperparameters, tensors or vocabulary. Either their contents are
//! obeyed, which a forward pass in f64 checks, or they are refused with an error that names what is not
//! supported. `data/odd_files.json`, written by `data/make_odd_files.py`, has llama.cpp's results for the
//! same files; [`DIFFERENCES`] gives the reason where the two differ.

use std::collections::BTreeMap;
use std::path::Path;

use breakers_core::{LanguageModel as _, Output, Step, Want, log_softmax};
use breakers_gguf::Value;
use breakers_kv_cache::Element;
use breakers_model::walk::BlockWalk;
use breakers_model::{LoadOptions, Model};

use self::draft::{Draft, N_TOKENS, WIDTH, plain_meaning};
use crate::reference::Meaning;

mod contents;
mod draft;
mod hyperparameters;

/// Between f32 and f64 on logits of about 1.
const TOLERANCE: f64 = 2e-3;

/// The expected result for a file.
enum Verdict {
    /// It has this meaning; `false` if that differs from the meaning of the plain file.
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

fn cases() -> Vec<Case> {
    [hyperparameters::cases(), contents::cases()].into_iter().flatten().collect()
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
                // The meaning of an odd file must differ from that of the plain one, or the case shows
                // nothing.
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

/// llama.cpp computes in f32, too, in another order.
const LLAMA_CPP_TOLERANCE: f64 = 5e-3;

/// How two engines can differ on a file.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Differ {
    /// We load it, llama.cpp refuses it.
    WeLoad,
    /// We refuse it, llama.cpp loads it.
    WeRefuse,
    /// Both load it, the numbers differ.
    Numbers,
}

/// Reasons that several files share.
const UNREAD: &str =
    "llama.cpp does not read the key for this architecture, so its numbers are not what the file says";
const ABSENT: &str = "not implemented here, and refused by name";
const TYPE: &str = "the number has another type than llama.cpp wants, and the same meaning";
const HALF: &str = "half of each head is rotated, as the file says; llama.cpp rotates all or nothing here";
const ROWS: &str =
    "rows without a token are never chosen; real files have them, though not of this architecture";

/// The files on which we differ from llama.cpp, with the reason. On all others both refuse, or the
/// log-probabilities of all tokens agree.
const DIFFERENCES: &[(&str, Differ, &str)] = &[
    ("llama-factor_as_integer", Differ::WeLoad, TYPE),
    ("llama-type_yarn", Differ::WeRefuse, ABSENT),
    ("llama-type_longrope", Differ::WeRefuse, ABSENT),
    (
        "llama-factor_negative",
        Differ::WeRefuse,
        "positions that run backwards are no scaling; llama.cpp does not look",
    ),
    ("llama-attn_factor", Differ::WeRefuse, ABSENT),
    ("llama-base_as_integer", Differ::WeLoad, TYPE),
    ("llama-half_rotated", Differ::WeLoad, HALF),
    ("qwen2-half_rotated", Differ::WeLoad, HALF),
    ("llama-dimension_sections", Differ::WeRefuse, UNREAD),
    ("llama-base_of_windows", Differ::WeRefuse, UNREAD),
    (
        "gemma3-pattern_1",
        Differ::WeLoad,
        "every block sees everything; llama.cpp wants a block with a window and aborts",
    ),
    (
        "gemma3-pattern_too_short",
        Differ::WeRefuse,
        "two flags for seven blocks; llama.cpp takes the missing ones for false",
    ),
    ("llama-window", Differ::Numbers, UNREAD),
    ("llama-pattern", Differ::WeRefuse, UNREAD),
    ("llama-final_softcap", Differ::Numbers, UNREAD),
    ("gemma3-attention_softcap", Differ::WeRefuse, UNREAD),
    ("llama-attention_scale", Differ::Numbers, UNREAD),
    ("gemma3-attention_scale", Differ::Numbers, UNREAD),
    ("llama-attention_scale_negative", Differ::WeRefuse, UNREAD),
    ("llama-logit_scale", Differ::WeRefuse, UNREAD),
    ("llama-embedding_scale", Differ::WeRefuse, UNREAD),
    ("llama-residual_scale", Differ::WeRefuse, UNREAD),
    ("llama-clamp_kqv", Differ::WeRefuse, UNREAD),
    ("llama-alibi", Differ::WeRefuse, UNREAD),
    ("llama-not_causal", Differ::WeRefuse, ABSENT),
    ("llama-two_unknown_keys", Differ::WeRefuse, UNREAD),
    (
        "llama-unequal_feed_forward",
        Differ::WeRefuse,
        "block 2 has not the width that the file gives it; llama.cpp takes the first width for all",
    ),
    (
        "qwen2-bias_missing",
        Differ::WeRefuse,
        "the architecture has biases in all blocks; for llama.cpp each is optional",
    ),
    ("llama-scale_of_a_matrix", Differ::WeRefuse, ABSENT),
    (
        "llama-old_angles",
        Differ::WeLoad,
        "the angles that the base gives anyway; llama.cpp counts a tensor too many",
    ),
    ("llama-rows_beyond_the_vocabulary", Differ::WeLoad, ROWS),
    ("gemma3-rows_beyond_the_vocabulary", Differ::WeLoad, ROWS),
    (
        "llama-roles_out_of_range",
        Differ::WeLoad,
        "left out with a warning; llama.cpp refuses the type of one of them",
    ),
    (
        "llama-template_that_does_not_parse",
        Differ::WeLoad,
        "an error when it is asked for; llama.cpp's server does not start",
    ),
    ("llama-other_pairs", Differ::WeLoad, TYPE),
];

#[test]
fn differences_from_llama_cpp_are_known() {
    /// Log-probabilities of all tokens, or the reason of a refusal.
    #[derive(PartialEq, Debug, serde::Deserialize)]
    #[serde(untagged)]
    enum Recorded {
        Loads(Vec<Option<f64>>),
        Refuses(String),
    }
    let recorded: BTreeMap<String, Recorded> =
        serde_json::from_str(include_str!("../data/odd_files.json")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("odd.gguf");
    let mut found = Vec::new();
    for Case { name, architecture, change, .. } in cases() {
        let name = format!("{architecture}-{name}");
        let mut draft = Draft::new(architecture);
        change(&mut draft);
        draft.write(&path);
        let theirs = recorded.get(&name).unwrap_or_else(|| panic!("llama.cpp has not seen {name}"));
        let differ = match (load(&path), theirs) {
            (Err(_), Recorded::Refuses(reason)) => {
                assert!(!reason.is_empty());
                continue;
            }
            (Ok(_), Recorded::Refuses(_)) => Differ::WeLoad,
            (Err(_), Recorded::Loads(_)) => Differ::WeRefuse,
            (Ok(model), Recorded::Loads(theirs)) => {
                let theirs: Vec<f64> = theirs.iter().map(|logprob| logprob.unwrap()).collect();
                let ours: Vec<f64> = log_softmax(&logits(&model)).into_iter().map(f64::from).collect();
                assert_eq!((ours.len(), theirs.len()), (N_TOKENS, N_TOKENS));
                if distance(&ours, &theirs) <= LLAMA_CPP_TOLERANCE {
                    continue;
                }
                Differ::Numbers
            }
        };
        found.push((name, differ));
    }
    assert_eq!(recorded.len(), cases().len(), "a verdict on a file that no case makes");
    let known: Vec<_> = DIFFERENCES.iter().map(|&(name, differ, _)| (name.to_owned(), differ)).collect();
    assert_eq!(found, known);
    for (name, ..) in DIFFERENCES.iter().filter(|(_, _, reason)| *reason == UNREAD) {
        let plain = format!("{}-plain", name.split('-').next().unwrap());
        assert_eq!(recorded[*name], recorded[&plain], "{name}: llama.cpp does read it");
    }
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

#[test]
fn a_walk_ends_in_the_models_logits() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("odd.gguf");
    for (architecture, n_rows, cap) in [
        ("llama", N_TOKENS, None),
        ("llama", N_TOKENS + 8, None),
        ("gemma3", N_TOKENS, Some(0.5f32)),
        ("gemma3", N_TOKENS + 8, Some(0.5)),
    ] {
        let mut draft = Draft::new(architecture);
        for table in ["token_embd.weight", "output.weight"] {
            if draft.tensors.contains_key(table) {
                draft.tensor(table, &[n_rows, WIDTH]);
            }
        }
        if let Some(cap) = cap {
            draft.set("final_logit_softcapping", cap);
        }
        draft.write(&path);
        let expected: Vec<f64> = logits(&load(&path).unwrap()).into_iter().map(f64::from).collect();
        let file = breakers_gguf::File::open(&path).unwrap();
        let mut walk = BlockWalk::new(&file, vec![PROMPT.to_vec()]).unwrap();
        for block in 0..walk.n_blocks() {
            walk.run(&file, block, None, None, true, &mut |_| ()).unwrap();
        }
        let found = walk.logits(&file, PROMPT.len()).unwrap();
        let found: Vec<f64> = found.concat().into_iter().map(f64::from).collect();
        assert_eq!(found.len(), N_TOKENS, "{architecture}, {n_rows} rows");
        let off = distance(&expected, &found);
        assert!(off < TOLERANCE, "{architecture}, {n_rows} rows, {cap:?}: {off}");
    }
}

/// What loading refuses by name, the walk that `quantize` reads files with refuses too.
#[test]
fn walks_refuse_what_loading_refuses() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("odd.gguf");
    let names = [
        "fewer_blocks_than_tensors",
        "scale_of_a_matrix",
        "unknown_tensor",
        "norms_of_heads",
        "norms_behind_layers",
        "long_factors",
        "logit_scale",
        "two_unknown_keys",
        "type_yarn",
    ];
    let mut n = 0;
    for Case { name, architecture, change, verdict } in cases() {
        let Refused(words) = verdict else { continue };
        if architecture != "llama" || !names.contains(&name) {
            continue;
        }
        let mut draft = Draft::new(architecture);
        change(&mut draft);
        draft.write(&path);
        let file = breakers_gguf::File::open(&path).unwrap();
        let error = BlockWalk::new(&file, vec![PROMPT.to_vec()]).map(|_| ()).unwrap_err();
        assert!(text(&error).contains(words), "{name}: {}", text(&error));
        n += 1;
    }
    assert_eq!(n, names.len());
}

#[test]
fn numbers_that_are_not_finite_are_an_error_of_every_output() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("odd.gguf");
    for (architecture, tensor, at, value) in [
        ("llama", "output_norm.weight", 0, f32::INFINITY),
        ("llama", "output_norm.weight", 5, f32::NAN),
        ("llama", "output.weight", 7 * WIDTH, f32::NAN),
        // Token 8 is in the prompt.
        ("llama", "token_embd.weight", 8 * WIDTH, f32::NAN),
        ("llama", "blk.0.attn_k.weight", 3, f32::INFINITY),
        ("llama", "blk.2.ffn_down.weight", 9, f32::NAN),
        ("gemma3", "output_norm.weight", 0, f32::INFINITY),
    ] {
        for is_capped in [false, true] {
            let mut draft = Draft::new(architecture);
            if is_capped {
                if architecture != "gemma3" {
                    continue;
                }
                draft.set("final_logit_softcapping", 30.0f32);
            }
            draft.tensors.get_mut(tensor).unwrap().1[at] = value;
            draft.write(&path);
            let model = load(&path).unwrap();
            for want in [Want::Logits, Want::ArgMax, Want::TopK(3)] {
                let mut runner = model.runner();
                let sequence = runner.open().unwrap();
                let result = runner.forward(&mut [Step::last(sequence, PROMPT.to_vec(), want)]);
                assert!(result.is_err(), "{architecture} {is_capped} {tensor}[{at}] = {value}, {want:?}");
                assert_eq!(runner.len(sequence).unwrap(), 0, "{tensor}");
            }
        }
    }
}

type Change = fn(&mut Draft);

/// Warnings that a program would print.
#[derive(Clone, Default)]
struct Heard(std::sync::Arc<std::sync::Mutex<String>>);

impl tracing::field::Visit for Heard {
    fn record_debug(&mut self, _: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        *self.0.lock().unwrap() += &format!("{value:?}\n");
    }
}

impl tracing::Subscriber for Heard {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= tracing::Level::WARN
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        event.record(&mut self.clone());
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn what_is_left_out_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("odd.gguf");
    let hear = |change: Change| -> String {
        let (mut draft, heard) = (Draft::new("llama"), Heard::default());
        change(&mut draft);
        draft.write(&path);
        tracing::subscriber::with_default(heard.clone(), || load(&path).unwrap());
        heard.0.lock().unwrap().clone()
    };
    let plain = hear(|_| {});
    let cases: [(Change, &str); 6] = [
        (|d| d.plain_set("tokenizer.ggml.padding_token_id", u32::MAX), "padding_token_id is 4294967295"),
        (|d| d.plain_set("tokenizer.ggml.bos_token_id", 1000u32), "bos_token_id is 1000"),
        (|d| d.plain_set("tokenizer.ggml.eot_token_id", -1i32), "eot_token_id is -1"),
        (|d| d.plain_remove("tokenizer.ggml.pre"), "tokenizer.ggml.pre"),
        (|d| d.plain_set("tokenizer.chat_template", "Hello"), "does not look at the conversation"),
        (
            |d| {
                d.tensor("token_embd.weight", &[N_TOKENS + 8, WIDTH]);
                d.tensor("output.weight", &[N_TOKENS + 8, WIDTH]);
            },
            "40 rows for 32 tokens",
        ),
    ];
    for (change, words) in cases {
        let told = hear(change);
        assert!(told.contains(words) && !plain.contains(words), "{words:?}: {told}");
    }
}
