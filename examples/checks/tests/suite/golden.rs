//! Results that no refactoring may change: texts, log-probabilities over every kind of cache, files of the
//! quantizer and exact search, compared bit for bit with `examples/checks/tests/golden.json`.
//!
//! The kernels give the same bits on every instruction set, so one file serves all machines. A change that is
//! meant to alter a result says so and writes the file anew: `BREAKERS_GOLDEN=write cargo test --workspace
//! golden`.

use std::collections::BTreeMap;
use std::path::Path;

use breakers_retrieval::Metric;
use breakers_retrieval::index::{Exact, Index as _, Search};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::command_line::{answer, on};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden.json");

/// Long enough for packed pages and for presses that drop tokens.
fn prompt() -> String {
    let mut text = "The lighthouse keeper wrote in his book every night.".to_owned();
    for (night, seen) in [
        ("first", "the sea is calm"),
        ("second", "the sea is calm, and a ship with three masts passed from the north"),
        ("third", "rain, and no ship; the lamp burned 14 liters of oil"),
        ("fourth", "a storm. The windows of the tower are wet on the inside, and the dog will not sleep"),
        ("fifth", "the storm is over. I found a barrel of apples on the beach, and a letter in it"),
        ("sixth", "I read the letter twice. It is from a woman in Lisbon, and it is 11 years old"),
        ("seventh", "the sea is calm, and the ship with three masts passed from the south"),
        ("eighth", "fog. I rang the bell every 2 minutes until the morning, as the rules demand"),
        ("ninth", "I wrote an answer to the woman in Lisbon. The boat with the oil will take it along"),
    ] {
        text += &format!(" On the {night} night he wrote: {seen}.");
    }
    text + " On the tenth night he wrote:"
}

/// One for each coder and each kind of press.
const CACHES: [&str; 16] = [
    "f16",
    "f32",
    "q8_0",
    "q4_0",
    "q4_0-rotated",
    "kivi-4",
    "turbo-mse-3",
    "turbo-prod-4",
    "turbo-4",
    "kvarn-4",
    "water-4",
    "snapkv-50",
    "adakv-50",
    "tova-50",
    "expected-50",
    "h2o-50",
];

/// JSON with sorted keys, whether or not a feature somewhere in the build keeps their order.
fn canonical(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            let sorted: BTreeMap<&String, String> = fields.iter().map(|(k, v)| (k, canonical(v))).collect();
            let parts: Vec<String> = sorted.iter().map(|(k, v)| format!("{}:{v}", json!(k))).collect();
            format!("{{{}}}", parts.join(","))
        }
        Value::Array(values) => format!("[{}]", values.iter().map(canonical).collect::<Vec<_>>().join(",")),
        other => other.to_string(),
    }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Greedy texts, with the log-probabilities of the five best tokens of each place; the same
/// text scored over all caches.
fn text_results(model: &str, caches: &[&str], results: &mut BTreeMap<String, Value>) -> Option<()> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ids.json");
    let prompt = prompt();
    let generate = ["--json", "--raw", "--prompt", &prompt, "--max-tokens", "32"];
    let generated = answer(&on(model, "generate", &generate)?);
    std::fs::write(&file, generated.to_string()).unwrap();
    results.insert(format!("{model}: greedy ids"), generated["output_ids"].clone());
    results
        .insert(format!("{model}: greedy steps"), json!(sha256(canonical(&generated["steps"]).as_bytes())));
    for cache in caches {
        let score = ["--json", "--cache", cache, "--chunk", "48", "--ids-file", file.to_str().unwrap()];
        let scored = answer(&on(model, "score", &score)?);
        let steps = scored["steps"].as_array().unwrap();
        let total: f64 = steps.iter().map(|step| step["logprob"].as_f64().unwrap()).sum();
        let digest = sha256(canonical(&scored["steps"]).as_bytes());
        results.insert(format!("{model}: scores over {cache}"), json!({"total": total, "steps": digest}));
    }
    Some(())
}

/// Files that the quantizer writes.
fn quantizer_results(results: &mut BTreeMap<String, Value>) -> Option<()> {
    let folder = tempfile::tempdir().unwrap();
    for (job, name) in
        [("rtn:Q4_0", "a.gguf"), ("hqq:int4-g64", "b.safetensors"), ("rtn:nf4", "c.safetensors")]
    {
        let out = folder.path().join(name);
        let arguments = ["--job", job, "--out", out.to_str().unwrap(), "--json"];
        answer(&on("smollm2-135m", "quantize", &arguments)?);
        results.insert(format!("quantize {job}"), json!(sha256(&std::fs::read(&out).unwrap())));
    }
    Some(())
}

/// The nearest vectors by exact search, with the bits of their distances.
fn search_results(results: &mut BTreeMap<String, Value>) {
    const DIMENSION: usize = 96;
    for metric in [Metric::L2, Metric::Cosine, Metric::Dot] {
        let mut rng = StdRng::seed_from_u64(13);
        let mut vector = || (0..DIMENSION).map(|_| rng.random::<f32>() - 0.4).collect::<Vec<f32>>();
        let mut index = Exact::new(metric, DIMENSION).unwrap();
        for _ in 0..3_000 {
            index.insert(&vector()).unwrap();
        }
        let found: Vec<Value> = (0..20)
            .flat_map(|_| index.search(&vector(), &Search::new(5)).unwrap())
            .map(|hit| json!([hit.slot, hit.distance.to_bits()]))
            .collect();
        results
            .insert(format!("exact search, {metric:?}"), json!(sha256(json!(found).to_string().as_bytes())));
    }
}

#[test]
fn results_are_those_of_the_golden_file() {
    let mut results = BTreeMap::new();
    search_results(&mut results);
    let all = text_results("smollm2-135m", &CACHES, &mut results)
        .and_then(|()| text_results("gemma3-270m", &["f16", "water-4", "snapkv-50"], &mut results))
        .and_then(|()| quantizer_results(&mut results));
    if std::env::var("BREAKERS_GOLDEN").is_ok_and(|value| value == "write") {
        assert!(all.is_some(), "a golden file needs all models");
        return std::fs::write(FILE, format!("{:#}\n", json!(results))).unwrap();
    }
    let text = std::fs::read_to_string(Path::new(FILE)).unwrap();
    let golden: BTreeMap<String, Value> = serde_json::from_str(&text).unwrap();
    assert!(all.is_none() || golden.len() == results.len(), "golden file and test name other results");
    let moved: Vec<&String> =
        results.iter().filter(|(name, value)| golden.get(*name) != Some(value)).map(|r| r.0).collect();
    assert!(moved.is_empty(), "{moved:#?} are no longer what {FILE} says");
}
