//! Speculative decoding gives the tokens of plain greedy decoding. On real weights.
//!
//! `BREAKERS_LOSSLESS_TOKENS` sets how many tokens are compared (2,000 without it).

use std::ops::ControlFlow;

use breakers_backend::harness::model_path;
use breakers_core::{
    ChatModel as _, ChatRequest, Constraint, ConstraintError, Delta, LanguageModel as _, Output, Sampler,
    SamplingConfig, Step, TokenId, TokenMask, Want,
};
use breakers_cpu::pool;
use breakers_model::{LoadOptions, Model};
use breakers_spec_decode::{
    Batch, BatchSpeculator, Config, Decoding, Draft, DraftLength, DraftRequest, Drafter, Engine,
    ModelDraftConfig, ModelDrafter, NgramConfig, NgramDrafter, NoDrafter, Result, Speculator,
    TokenizerFingerprint,
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

/// Words of small letters, with a word that is prescribed in every tenth place.
struct Words {
    allowed: TokenMask,
    prescribed: TokenId,
    n_tokens: usize,
}

impl Words {
    fn new(model: &Model) -> Self {
        let tokenizer = model.tokenizer();
        let fits = |token: &TokenId| {
            let bytes = tokenizer.token_bytes(*token).unwrap_or_default();
            !bytes.is_empty() && bytes.iter().all(|byte| byte.is_ascii_lowercase() || *byte == b' ')
        };
        let n_tokens = model.info().vocab_size;
        let allowed = TokenMask::of(n_tokens, (0..n_tokens as TokenId).filter(fits));
        let prescribed = tokenizer.encode(" river", Default::default()).unwrap()[0];
        Self { allowed, prescribed, n_tokens: 0 }
    }
}

impl Constraint for Words {
    fn allowed(&mut self, mask: &mut TokenMask) -> std::result::Result<(), ConstraintError> {
        mask.forbid_all();
        match self.n_tokens % 10 {
            9 => mask.allow(self.prescribed),
            _ => *mask |= &self.allowed,
        }
        Ok(())
    }

    fn advance(&mut self, token: TokenId) -> std::result::Result<(), ConstraintError> {
        let fits = match self.n_tokens % 10 {
            9 => token == self.prescribed,
            _ => self.allowed.is_allowed(token),
        };
        self.n_tokens += usize::from(fits);
        if fits { Ok(()) } else { Err(ConstraintError::NotAllowed { token }) }
    }

    fn rollback(&mut self, n_tokens: usize) -> std::result::Result<(), ConstraintError> {
        self.n_tokens -= n_tokens;
        Ok(())
    }

    fn forced(&mut self) -> std::result::Result<Vec<TokenId>, ConstraintError> {
        Ok(if self.n_tokens % 10 == 9 { vec![self.prescribed] } else { Vec::new() })
    }
}

#[test]
fn constrained_texts_are_those_of_plain_masked_decoding() {
    let Some(model) = model() else { return };
    let mut runner = model.runner();
    for sampling in [SamplingConfig::greedy(), SamplingConfig::temperature(0.8)] {
        let configs: Vec<Config> = (0..TEXTS.len())
            .map(|i| Config {
                max_tokens: 30 + i,
                sampling: sampling.clone(),
                seed: i as u64,
                end_tokens: Some(vec![]),
                draft_length: DraftLength::Fixed(4),
                ..Config::default()
            })
            .collect();
        let prompts = TEXTS.map(|text| model.tokenizer().encode(text, Default::default()).unwrap());
        // By the book: logits, mask, draw, one token after the other.
        let plain: Vec<Vec<TokenId>> = prompts
            .iter()
            .zip(&configs)
            .map(|(prompt, config)| {
                let (mut words, mut mask) = (Words::new(&model), TokenMask::none(model.info().vocab_size));
                let mut sampler = Sampler::new(config.sampling.clone(), config.seed);
                let sequence = runner.open().unwrap();
                let (mut text, mut fed) = (prompt.clone(), 0);
                while text.len() < prompt.len() + config.max_tokens {
                    let mut steps = [Step::last(sequence, text[fed..].to_vec(), Want::Logits)];
                    runner.forward(&mut steps).unwrap();
                    runner.commit(sequence, text.len() - fed).unwrap();
                    fed = text.len();
                    let Output::Logits(logits) = &mut steps[0].outputs.last_mut().unwrap().output else {
                        panic!()
                    };
                    words.allowed(&mut mask).unwrap();
                    mask.apply(logits);
                    text.push(sampler.sample(logits, &text).unwrap());
                    words.advance(text[fed]).unwrap();
                }
                runner.close(sequence);
                text.split_off(prompt.len())
            })
            .collect();
        // A draft model that samples keeps the distribution, not the tokens.
        let drafters: &[MakeDrafter] = match sampling.is_greedy() {
            true => &[|_| Box::new(NoDrafter), ngram, itself, noise],
            false => &[|_| Box::new(NoDrafter), ngram, noise],
        };
        for (d, make) in drafters.iter().enumerate() {
            for max_rows in [9, usize::MAX] {
                let mut batch = Batch::new(max_rows);
                let ids: Vec<_> = prompts
                    .iter()
                    .zip(&configs)
                    .map(|(prompt, config)| {
                        let sequence = runner.open().unwrap();
                        let text = Decoding::new(&runner, sequence, prompt, config).unwrap();
                        batch.join(text.with_constraint(Box::new(Words::new(&model))), make(&model))
                    })
                    .collect();
                loop {
                    let done = batch.pass(&mut runner).unwrap();
                    if done.is_empty() {
                        break;
                    }
                    done.into_iter().for_each(|progress| _ = progress.n_tokens.unwrap());
                }
                for (i, id) in ids.into_iter().enumerate() {
                    let (text, _) = batch.leave(id).unwrap();
                    assert_eq!(text.output(), plain[i], "drafter {d}, text {i}, {max_rows} rows");
                    assert!(text.stats().drafted > 0);
                    runner.close(text.sequence());
                }
            }
        }
    }
}

#[test]
fn concurrent_requests_have_the_answers_of_plain_decoding() {
    let Some(model) = model() else { return };
    let tokenizer = std::sync::Arc::new(model.tokenizer().clone());
    let plain = Engine::new(model.runner(), tokenizer.clone());
    let fast = Engine::new(model.runner(), tokenizer).with_drafter(|| Ok(NgramDrafter::default()));
    let requests: Vec<ChatRequest> = TEXTS
        .iter()
        .enumerate()
        .map(|(i, text)| {
            let sampling =
                if i % 2 == 0 { SamplingConfig::greedy() } else { SamplingConfig::temperature(0.7) };
            ChatRequest::new(*text).with_max_tokens(24).with_sampling(sampling).with_seed(i as u64)
        })
        .collect();
    let keep = |_| ControlFlow::Continue(());
    let expected: Vec<_> =
        requests.iter().map(|request| plain.chat(request, &mut { keep }).unwrap()).collect();
    std::thread::scope(|scope| {
        for (request, expected) in requests.iter().zip(&expected) {
            let fast = &fast;
            scope.spawn(move || {
                let mut text = String::new();
                let reply = fast.chat(request, &mut |delta| {
                    if let Delta::Text(piece) = delta {
                        text += &piece;
                    }
                    ControlFlow::Continue(())
                });
                let reply = reply.unwrap();
                assert_eq!((&reply.token_ids, &reply.text), (&expected.token_ids, &expected.text));
                assert_eq!(text, reply.text);
            });
        }
    });
}
