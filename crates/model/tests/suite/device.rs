//! Whole models on the devices of this build, compared with the CPU.

#![cfg(feature = "cube")]

use breakers_backend::{device, harness::model_path};
use breakers_core::{LanguageModel, Output, Step, TokenId, TokenLogprob, Want};
use breakers_gguf as gguf;
use breakers_gguf::Format;
use breakers_model::{LoadOptions, Model, Runner};
use std::path::{Path, PathBuf};

/// If two tokens are closer than this, in nats, either may be the most likely one.
const MARGIN: f32 = 0.5;
/// The allowed difference of the most likely token's log-probability, in nats, at the 95th percentile. On the
/// CPU activations are rounded to eight bits, on GPUs they are not.
const EIGHT_BITS: f32 = 0.2;
/// Compared with the CPU's product with decoded weights, which does not round activations either.
const OTHER_ORDER: f32 = 0.005;
const TEXT: &str = "The capital of France is Paris. The capital of Italy is Rome, and that of Spain is Madrid.\n\n\
    fn add(a: i32, b: i32) -> i32 {\n    a + b\n}\n";

/// A model on the GPU that `BREAKERS_REQUIRE_DEVICES` names, or else on the first one.
fn on_gpu(name: &str) -> Option<Model> {
    let path = model_path(name)?;
    let required = std::env::var("BREAKERS_REQUIRE_DEVICES").unwrap_or_default();
    let device = match required.split(',').map(str::trim).find(|name| !matches!(*name, "" | "flex")) {
        Some(name) => device::open(name).unwrap_or_else(|error| panic!("{error}")),
        None => {
            let Some(gpu) = device::available().into_iter().find(|found| found.kind != device::Kind::Flex)
            else {
                eprintln!("skipped: no GPU");
                return None;
            };
            device::open(&gpu.name).unwrap_or_else(|error| panic!("{error}"))
        }
    };
    Some(Model::load(path, &LoadOptions::on(device)).expect(name))
}

fn tokens(model: &Model, n: usize) -> Vec<TokenId> {
    let mut tokens = model.tokenizer().encode(TEXT, Default::default()).unwrap();
    assert!(tokens.len() >= n, "{} tokens", tokens.len());
    tokens.truncate(n);
    tokens
}

/// What is wanted of each token, fed in chunks of the given sizes (the last one repeats).
fn feed(runner: &mut Runner, tokens: &[TokenId], chunks: &[usize], want: Want) -> Vec<Output> {
    let sequence = runner.open().unwrap();
    let (mut outputs, mut from, mut at) = (Vec::new(), 0, 0);
    while from < tokens.len() {
        let to = tokens.len().min(from + chunks[at.min(chunks.len() - 1)]);
        let mut steps = [Step::each(sequence, tokens[from..to].to_vec(), want)];
        runner.forward(&mut steps).unwrap();
        outputs.extend(steps[0].outputs.drain(..).map(|row| row.output));
        runner.commit(sequence, to - from).unwrap();
        (from, at) = (to, at + 1);
    }
    runner.close(sequence);
    outputs
}

fn top(outputs: &[Output]) -> Vec<&[TokenLogprob]> {
    let top = outputs.iter().map(|output| match output {
        Output::TopK(top) => &top[..],
        other => panic!("the most likely tokens were wanted, got {other:?}"),
    });
    top.collect()
}

/// A copy of a model's file with all weights decoded.
fn decoded(name: &str, folder: &Path) -> PathBuf {
    let file = gguf::File::open(model_path(name).expect("it was found before")).unwrap();
    let mut plan = gguf::Writer::with_metadata(file.metadata().clone());
    for tensor in file.tensors() {
        plan.declare(tensor.name(), Format::F32, tensor.shape()).unwrap();
    }
    let path = folder.join("decoded.gguf");
    let mut data = plan.create(&path).unwrap();
    for tensor in file.tensors() {
        let bytes: Vec<u8> = tensor.to_f32().iter().flat_map(|value| value.to_le_bytes()).collect();
        data.write(tensor.name(), &bytes).unwrap();
    }
    data.finish().unwrap();
    path
}

/// The most likely next tokens of each token, of which the first go in as a prompt, eight as a draft to be
/// verified, and the last ones one by one.
fn on_device(gpu: &Model, tokens: &[TokenId]) -> Vec<Output> {
    feed(&mut gpu.runner(), tokens, &[tokens.len() - 10, 8, 1], Want::TopK(20))
}

fn compare(what: &str, found: &[Output], cpu: &Model, tokens: &[TokenId], tolerance: f32) {
    let expected = feed(&mut cpu.runner(), tokens, &[tokens.len()], Want::TopK(20));
    let mut differences = Vec::new();
    for (row, (found, expected)) in top(found).into_iter().zip(top(&expected)).enumerate() {
        let (best, second) = (expected[0], expected[1]);
        if best.logprob - second.logprob > MARGIN {
            assert_eq!(found[0].token, best.token, "{what}, row {row}: {found:?}, expected {expected:?}");
        }
        let same = found.iter().find(|found| found.token == best.token);
        let same = same.unwrap_or_else(|| panic!("{what}, row {row}: no {} in {found:?}", best.token));
        differences.push((same.logprob - best.logprob).abs());
    }
    differences.sort_by(f32::total_cmp);
    let (median, p95) = (differences[differences.len() / 2], differences[differences.len() * 95 / 100]);
    eprintln!(
        "{what}: |Δ log-prob| median {median}, 95th percentile {p95}, largest {:?}",
        differences.last()
    );
    assert!(p95 <= tolerance, "{what}: 95th percentile of |Δ log-prob| {p95}, at most {tolerance} expected");
}

#[test]
fn smollm2_agrees_with_the_cpu() {
    let name = "smollm2-135m";
    let Some(gpu) = on_gpu(name) else { return };
    let tokens = tokens(&gpu, 48);
    let found = on_device(&gpu, &tokens);
    let packed = crate::support::load(name).expect("it was found for the GPU");
    compare(name, &found, &packed, &tokens, EIGHT_BITS);
    let folder = tempfile::tempdir().unwrap();
    let plain = Model::load(decoded(name, folder.path()), &LoadOptions::default()).unwrap();
    compare(&format!("{name}, decoded weights"), &found, &plain, &tokens, OTHER_ORDER);
}

/// Norms of heads, sliding windows, and a head that is larger than the largest buffer of software Vulkan.
#[test]
fn gemma3_agrees_with_the_cpu() {
    let name = "gemma3-270m";
    let Some(gpu) = on_gpu(name) else { return };
    let tokens = tokens(&gpu, 20);
    let packed = crate::support::load(name).expect("it was found for the GPU");
    compare(name, &on_device(&gpu, &tokens), &packed, &tokens, EIGHT_BITS);
}

#[test]
fn a_row_has_the_same_bits_in_calls_of_1_to_17() {
    let Some(gpu) = on_gpu("smollm2-135m") else { return };
    let mut runner = gpu.runner();
    let tokens = tokens(&gpu, 17);
    let expected = feed(&mut runner, &tokens, &[17], Want::Logits);
    for (n, chunks) in [(6, &[1][..]), (17, &[4, 5, 8])] {
        let found = feed(&mut runner, &tokens[..n], chunks, Want::Logits);
        for (row, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let (Output::Logits(found), Output::Logits(expected)) = (found, expected) else {
                panic!("logits were wanted")
            };
            let differ = found.iter().zip(expected).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
            assert_eq!(differ, 0, "chunks of {chunks:?}, row {row}: {differ} logits differ");
            assert!(found.iter().all(|logit| logit.is_finite()), "row {row}");
        }
    }
    // What is chosen on the device is what the host would choose.
    let best = feed(&mut runner, &tokens, &[17], Want::ArgMax);
    for (row, (best, logits)) in best.iter().zip(&expected).enumerate() {
        assert_eq!(best.best(), logits.best(), "row {row}");
    }
}
