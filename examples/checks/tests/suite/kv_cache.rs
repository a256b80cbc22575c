//! Compressed caches combined with everything else: on real weights, the logits over a cache do not depend on
//! how its tokens were fed.

use std::ops::ControlFlow;

use breakers_backend::{device, harness::model_path};
use breakers_cli::{cache_named, runner_over};
use breakers_core::{LanguageModel, Output, SequenceId, Step, TokenId, TokenLogprob, Want};
use breakers_kv_cache::CacheKind;
use breakers_model::{LoadOptions, Model, Runner};
use breakers_spec_decode::{
    Config, Draft, DraftLength, DraftRequest, Drafter, NoDrafter, Result, Speculator,
};

/// One of each quantizer and estimator, widths that are not powers of two, and a cache with a press.
const CACHES: [&str; 11] = [
    "f16",
    "q8_0",
    "q4_0",
    "q4_0-rotated",
    "kivi-4",
    "turbo-mse-3",
    "turbo-prod-4",
    "turbo-3.5",
    "kvarn-4",
    "water-4",
    "snapkv-50+water-4",
];

/// An old page about caches: a text that nobody edits, because differences between devices hang on it.
const TEXT: &str = include_str!("../data/text.txt");

fn model(name: &str) -> Option<Model> {
    model_path(name).map(|path| Model::load(path, &LoadOptions::default()).unwrap())
}

fn text(model: &Model) -> Vec<TokenId> {
    model.tokenizer().encode(TEXT, Default::default()).unwrap()
}

/// Feeds one step for each of the sequences; the bits of each one's last logits.
fn feed(runner: &mut Runner, parts: &[(SequenceId, &[TokenId])]) -> Vec<Vec<u32>> {
    let step = |part: &(SequenceId, &[TokenId])| Step::last(part.0, part.1.to_vec(), Want::Logits);
    let mut steps: Vec<Step> = parts.iter().map(step).collect();
    runner.forward(&mut steps).unwrap();
    let bits = |step: &Step| match &step.outputs.last().unwrap().output {
        Output::Logits(logits) => logits.iter().map(|logit| logit.to_bits()).collect(),
        other => panic!("{other:?}"),
    };
    steps.iter().map(bits).collect()
}

/// Feeds pieces of a text one after the other, and makes all of it final.
fn feed_pieces(runner: &mut Runner, sequence: SequenceId, text: &[TokenId], pieces: &[usize]) -> Vec<u32> {
    let (mut from, mut logits) = (0, Vec::new());
    for n in pieces.iter().cycle() {
        let to = text.len().min(from + n);
        logits = feed(runner, &[(sequence, &text[from..to])]).remove(0);
        runner.commit(sequence, to - from).unwrap();
        from = to;
        if from == text.len() {
            break;
        }
    }
    logits
}

/// Proposes the coming text, with every fifth token wrong.
struct Parrot(Vec<TokenId>);

impl Drafter for Parrot {
    fn name(&self) -> &str {
        "parrot"
    }

    fn start(&mut self, _: &[TokenId]) -> Result<()> {
        Ok(())
    }

    fn propose(&mut self, request: &mut DraftRequest<'_>) -> Result<Draft> {
        let from = request.context.len();
        let tokens = self.0.iter().enumerate().skip(from).take(request.max_tokens);
        Ok(Draft::chain(tokens.map(|(at, token)| if at % 5 == 0 { token ^ 1 } else { *token }).collect()))
    }
}

/// A model's text of `n_prompt` tokens over a cache: pieces, batches, forks and speculation against one pass.
fn check(model: &Model, cache: &str, n_prompt: usize) {
    let kind = cache_named(cache).unwrap();
    // A press sees only final tokens: its prompts come in one piece.
    let is_pressed = matches!(kind, CacheKind::Evicting(_));
    let what = format!("{cache}, {n_prompt} tokens of {}", model.info().name);
    let text = text(model);
    let (prompt, next) = (&text[..n_prompt], &text[n_prompt..n_prompt + 4]);
    let mut runner = runner_over(&kind, model).unwrap();
    let plain = runner.open().unwrap();
    let want_prompt = feed_pieces(&mut runner, plain, prompt, &[n_prompt]);
    let fork = runner.fork(plain).unwrap();
    let want: Vec<_> = next.chunks(1).map(|token| feed_pieces(&mut runner, plain, token, &[1])).collect();

    // Roll back a wrong continuation, across the end of a page if the prompt is near one.
    let wrong: Vec<TokenId> = text[..20].to_vec();
    feed(&mut runner, &[(fork, &wrong)]);
    runner.truncate(fork, n_prompt).unwrap();
    assert!(feed(&mut runner, &[(fork, &next[..1])])[0] == want[0], "{what}: behind a fork");
    runner.commit(fork, 1).unwrap();

    if !is_pressed {
        let pieces = runner.open().unwrap();
        let got = feed_pieces(&mut runner, pieces, &prompt[..n_prompt - 3], &[50, 77, 1]);
        assert!(got != want_prompt, "{what}: logits of different tokens");
        // Four texts share the passes: a fork that is one token ahead, one in pieces, and two new ones.
        let [short, shorter] = [(); 2].map(|()| runner.open().unwrap());
        let alone = [70, 9].map(|n| {
            let sequence = runner.open().unwrap();
            let logits = feed_pieces(&mut runner, sequence, &text[..n], &[n]);
            runner.close(sequence);
            logits
        });
        let parts = [
            (fork, &next[1..2]),
            (pieces, &prompt[n_prompt - 3..]),
            (short, &text[..70]),
            (shorter, &text[..9]),
        ];
        let got = feed(&mut runner, &parts);
        assert!(got[0] == want[1], "{what}: a fork in a batch");
        assert!(got[1] == want_prompt, "{what}: pieces in a batch");
        assert!(got[2..] == alone, "{what}: prompts in a batch");
    }

    drafts_change_nothing(&mut runner, prompt, 12, &format!("{what}: speculation"));
}

/// Decodes greedily without drafts, then with a parrot's: the tokens must be the same.
fn drafts_change_nothing(runner: &mut Runner, prompt: &[TokenId], max_tokens: usize, what: &str) {
    let config = Config {
        max_tokens,
        draft_length: DraftLength::Fixed(4),
        end_tokens: Some(vec![]),
        ..Config::default()
    };
    let mut decode = |drafter: Box<dyn Drafter>| {
        let mut speculator = Speculator::new(drafter);
        speculator.generate(runner, prompt, &config, |_| ControlFlow::Continue(())).unwrap().tokens
    };
    let plain = decode(Box::new(NoDrafter));
    let parrot = Parrot([prompt, plain.as_slice(), &[0; 8]].concat());
    assert_eq!(decode(Box::new(parrot)), plain, "{what}");
}

#[test]
fn every_cache_goes_with_everything() {
    let Some(model) = model("smollm2-135m") else { return };
    // 125 tokens: the third page begins among what is decoded.
    CACHES.iter().for_each(|cache| check(&model, cache, 125));
}

#[test]
fn every_cache_goes_with_sliding_windows() {
    let Some(model) = model("gemma3-270m") else { return };
    let window = model.cache_shape().layers.iter().filter_map(|layer| layer.window).min().unwrap();
    for (at, cache) in CACHES.iter().enumerate() {
        // Beyond the window once for keys and values of each kind; otherwise within it, which takes less
        // time.
        let is_long = ["turbo-3.5", "water-4"].contains(cache);
        check(&model, cache, if is_long { window + 70 + at } else { 126 });
    }
}

/// A model on the first GPU available.
fn on_gpu(name: &str) -> Option<Model> {
    let gpu = device::available().into_iter().find(|found| found.kind != device::Kind::Flex);
    let Some(gpu) = gpu else {
        eprintln!("skipped: no GPU");
        return None;
    };
    let options = LoadOptions::on(device::open(&gpu.name).unwrap());
    model_path(name).map(|path| Model::load(path, &options).unwrap())
}

/// The most likely token after each token of a text.
fn best(runner: &mut Runner, text: &[TokenId], pieces: &[usize]) -> Vec<Vec<TokenLogprob>> {
    let sequence = runner.open().unwrap();
    let (mut from, mut out) = (0, Vec::new());
    for n in pieces {
        let mut steps = [Step::each(sequence, text[from..from + n].to_vec(), Want::TopK(20))];
        runner.forward(&mut steps).unwrap();
        runner.commit(sequence, *n).unwrap();
        from += n;
        out.extend(steps[0].outputs.drain(..).map(|row| match row.output {
            Output::TopK(best) => best,
            other => panic!("{other:?}"),
        }));
    }
    assert_eq!(from, text.len());
    out
}

#[test]
fn compressed_caches_go_with_gpus() {
    let Some(gpu) = on_gpu("smollm2-135m") else { return };
    let Some(cpu) = model("smollm2-135m") else { return };
    let text = text(&cpu);
    // Speculation, where the second page begins among what is decoded.
    let prompt = &text[..62];
    let mut runner = runner_over(&cache_named("water-4").unwrap(), &gpu).unwrap();
    drafts_change_nothing(&mut runner, prompt, 5, "speculation");

    // The same cache on the CPU.
    let kind = cache_named("turbo-4").unwrap();
    let text = &text[..72];
    let found = best(&mut runner_over(&kind, &gpu).unwrap(), text, &[66, 5, 1]);
    let expected = best(&mut runner_over(&kind, &cpu).unwrap(), text, &[72]);
    for (row, (found, expected)) in found.iter().zip(&expected).enumerate().skip(60) {
        // The CPU rounds activations to eight bits, the GPU does not.
        let first = &expected[0];
        let same = found.iter().find(|token| token.token == first.token);
        let off = same.map(|same| (same.logprob - first.logprob).abs());
        assert!(off.is_some_and(|off| off < 0.3), "row {row}: {found:?}, expected {expected:?}");
    }
}
