//! Speculative decoding gives the tokens of plain greedy decoding. On real weights.
//!
//! `BREAKERS_LOSSLESS_TOKENS` sets how many tokens are compared (2,000 without it).

use std::ops::ControlFlow;

use breakers_backend::harness::model_path;
use breakers_core::{Sampler, SamplingConfig, TokenId};
use breakers_cpu::pool;
use breakers_model::{LoadOptions, Model};
use breakers_spec_decode::{
    BatchSpeculator, Config, Draft, DraftLength, DraftRequest, Drafter, ModelDraftConfig, ModelDrafter,
    NgramConfig, NgramDrafter, NoDrafter, Result, Speculator, TokenizerFingerprint,
};

const TEXTS: [&str; 4] = [
    "Repeat this list: alpha, beta, gamma, delta, epsilon, zeta. Repeat this list: alpha, beta,",
    "fn add(a: i32, b: i32) -> i32 {\n    a + b\n}\n\nfn sub(a: i32, b: i32) -> i32 {\n",
    "The lighthouse keeper wrote in his diary every night. On the first night he wrote:",
    "Q: What is 2 + 2?\nA: 4\nQ: What is 3 + 3?\nA: 6\nQ: What is 4 + 4?\nA:",
];

fn model() -> Option<Model> {
    model_path("smollm2-135m").map(|path| Model::load(path, &LoadOptions::default()).unwrap())
}

type MakeDrafter = fn(&Model) -> Box<dyn Drafter>;

fn ngram(_: &Model) -> Box<dyn Drafter> {
    Box::new(NgramDrafter::new(NgramConfig::default()))
}

/// The model drafts for itself, so that every draft is accepted, to any length.
fn itself(model: &Model) -> Box<dyn Drafter> {
    let tokens = |id: u32| model.tokenizer().token_bytes(id).unwrap_or_default().to_vec();
    let fingerprint = TokenizerFingerprint::from_tokens((0..model.info().vocab_size as u32).map(tokens));
    Box::new(
        ModelDrafter::new(model.runner(), fingerprint, fingerprint, ModelDraftConfig::default()).unwrap(),
    )
}

/// Proposes tokens at random, so that nearly every draft is rejected, at once or in the middle.
struct Noise(Sampler);

impl Drafter for Noise {
    fn name(&self) -> &str {
        "noise"
    }

    fn start(&mut self, _: &[TokenId]) -> Result<()> {
        Ok(())
    }

    fn propose(&mut self, request: &mut DraftRequest<'_>) -> Result<Draft> {
        let draw = |_| (self.0.uniform() * 1000.0) as TokenId;
        Ok(Draft::chain((0..request.max_tokens).map(draw).collect()))
    }
}

fn noise(_: &Model) -> Box<dyn Drafter> {
    Box::new(Noise(Sampler::new(SamplingConfig::greedy(), 7)))
}

#[test]
fn every_drafter_gives_the_tokens_of_plain_decoding() {
    let Some(model) = model() else { return };
    let wanted: usize = std::env::var("BREAKERS_LOSSLESS_TOKENS").map_or(2_000, |n| n.parse().unwrap());
    let drafters: [MakeDrafter; 3] = [ngram, itself, noise];
    let lengths: Vec<DraftLength> =
        (1..=16).map(DraftLength::Fixed).chain([DraftLength::Adaptive { max: 16 }]).collect();
    let threads = pool::threads();
    let (mut compared, mut round) = (0, 0);
    while compared < wanted {
        // Every round takes the next combination of text, threads, drafter and length.
        let text = TEXTS[round % TEXTS.len()];
        pool::set_threads(1 + round / TEXTS.len() % 2).unwrap();
        let length = lengths[round * 7 % lengths.len()];
        let prompt = model.tokenizer().encode(text, Default::default()).unwrap();
        // A different prefix in each cycle, so that long runs do not repeat themselves.
        let mut prompt = prompt;
        prompt.extend(model.tokenizer().encode(&format!(" {}", round / 34), Default::default()).unwrap());
        let config =
            Config { max_tokens: 48, draft_length: length, end_tokens: Some(vec![]), ..Config::default() };
        let mut runner = model.runner();
        let mut decode = |drafter: Box<dyn Drafter>| {
            let mut speculator = Speculator::new(drafter);
            speculator.generate(&mut runner, &prompt, &config, |_| ControlFlow::Continue(())).unwrap().tokens
        };
        let plain = decode(Box::new(NoDrafter));
        assert_eq!(plain.len(), 48);
        for (i, drafter) in drafters.iter().enumerate() {
            let tokens = decode(drafter(&model));
            assert_eq!(tokens, plain, "drafter {i}, {length:?}, {} threads, {text:?}", pool::threads());
            compared += tokens.len();
        }
        round += 1;
    }
    pool::set_threads(threads).unwrap();
    eprintln!("{compared} tokens compared in {round} rounds, 0 mismatches");
}

#[test]
fn texts_that_share_passes_are_those_of_plain_decoding() {
    let Some(model) = model() else { return };
    let prompts = TEXTS.map(|text| model.tokenizer().encode(text, Default::default()).unwrap());
    let config = Config { max_tokens: 40, end_tokens: Some(vec![]), ..Config::default() };
    let mut runner = model.runner();
    let plain = prompts.each_ref().map(|prompt| {
        let mut speculator = Speculator::new(NoDrafter);
        speculator.generate(&mut runner, prompt, &config, |_| ControlFlow::Continue(())).unwrap().tokens
    });
    let drafters: [MakeDrafter; 4] = [|_| Box::new(NoDrafter), ngram, itself, noise];
    for make in drafters {
        for (batch, draft_length) in [(3, DraftLength::Fixed(3)), (4, DraftLength::Adaptive { max: 16 })] {
            let shared = model.clone();
            let mut speculator = BatchSpeculator::new(move || Ok(make(&shared)));
            let config = Config { draft_length, ..config.clone() };
            let ids: Vec<&[TokenId]> = prompts[..batch].iter().map(Vec::as_slice).collect();
            let texts = speculator.generate(&mut runner, &ids, &config, |_, _| ControlFlow::Continue(()));
            for (i, (text, plain)) in texts.unwrap().iter().zip(&plain).enumerate() {
                assert_eq!(text.tokens, *plain, "text {i} of {batch}, {draft_length:?}");
            }
        }
    }
}
