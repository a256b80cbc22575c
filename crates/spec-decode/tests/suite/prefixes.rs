//! Texts that go on from what earlier ones have read, and texts that pause for others: the same answers,
//! fewer tokens read, bounded memory.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use breakers_core::{
    ChatModel, ChatRequest, Delta, FinishReason, LanguageModel, ModelInfo, Priority, Prompt, Result,
    SamplingConfig, SequenceId, Snapshot, SnapshotBytes, Step, TokenId,
};
use breakers_spec_decode::{Config, DraftLength, Engine, EngineConfig, NgramDrafter, SavedPrefixes};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use crate::bytes::Bytes;
use crate::saved::card;
use crate::support::plain;
use crate::toy::{LogitsFn, Toy, repetitive};

const VOCAB: usize = 256;

fn go_on(_: Delta) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// A toy that can be looked at while an engine has it.
#[derive(Clone)]
struct Shared {
    info: ModelInfo,
    toy: Arc<Mutex<Toy>>,
    /// The most bytes that were held after a pass.
    peak: Arc<AtomicUsize>,
}

impl Shared {
    fn new(logits: LogitsFn) -> Self {
        let toy = Toy::new(VOCAB, logits);
        Self { info: toy.info.clone(), toy: Arc::new(Mutex::new(toy)), peak: Arc::default() }
    }

    fn with<T>(&self, look: impl FnOnce(&mut Toy) -> T) -> T {
        look(&mut self.toy.lock().unwrap())
    }
}

impl LanguageModel for Shared {
    fn info(&self) -> &ModelInfo {
        &self.info
    }
    fn open(&mut self) -> Result<SequenceId> {
        self.with(|toy| toy.open())
    }
    fn fork(&mut self, sequence: SequenceId) -> Result<SequenceId> {
        self.with(|toy| toy.fork(sequence))
    }
    fn close(&mut self, sequence: SequenceId) {
        self.with(|toy| toy.close(sequence));
    }
    fn len(&self, sequence: SequenceId) -> Result<usize> {
        self.with(|toy| toy.len(sequence))
    }
    fn committed(&self, sequence: SequenceId) -> Result<usize> {
        self.with(|toy| toy.committed(sequence))
    }
    fn forward(&mut self, steps: &mut [Step]) -> Result<()> {
        self.with(|toy| {
            toy.forward(steps)?;
            self.peak.fetch_max(toy.held_bytes(), Relaxed);
            Ok(())
        })
    }
    fn retain(&mut self, sequence: SequenceId, rows: &[usize]) -> Result<()> {
        self.with(|toy| toy.retain(sequence, rows))
    }
    fn commit(&mut self, sequence: SequenceId, n_tokens: usize) -> Result<()> {
        self.with(|toy| toy.commit(sequence, n_tokens))
    }
    fn truncate(&mut self, sequence: SequenceId, len: usize) -> Result<()> {
        self.with(|toy| toy.truncate(sequence, len))
    }
    fn is_shareable(&self, sequence: SequenceId) -> bool {
        self.with(|toy| toy.is_shareable(sequence))
    }
    fn held_bytes(&self) -> usize {
        self.with(|toy| toy.held_bytes())
    }
    fn snapshot_kind(&self) -> Option<String> {
        self.with(|toy| toy.snapshot_kind())
    }
    fn snapshot(&self, sequence: SequenceId) -> Result<Box<dyn Snapshot>> {
        self.with(|toy| toy.snapshot(sequence))
    }
    fn restore(&mut self, bytes: SnapshotBytes, n_tokens: usize, len: usize) -> Result<SequenceId> {
        self.with(|toy| toy.restore(bytes, n_tokens, len))
    }
}

fn config(max_texts: usize, max_rows: usize, cache_bytes: usize) -> EngineConfig {
    let mut config = EngineConfig::default();
    (config.max_texts, config.max_rows, config.cache_bytes) = (max_texts, max_rows, cache_bytes);
    config.draft_length = DraftLength::Fixed(4);
    config
}

/// Plain decoding without any cache.
fn expected(target: &LogitsFn, prompt: &[TokenId], request: &ChatRequest) -> Vec<TokenId> {
    let config = Config {
        max_tokens: request.max_tokens.unwrap(),
        sampling: request.sampling.clone(),
        seed: request.seed.unwrap(),
        ..Config::default()
    };
    plain(target, prompt, &config, 1 << 20).0
}

fn tokens(text: &str) -> Vec<TokenId> {
    text.bytes().map(TokenId::from).collect()
}

fn request(prompt: &str, n: usize, seed: u64) -> ChatRequest {
    let sampling =
        if seed.is_multiple_of(2) { SamplingConfig::greedy() } else { SamplingConfig::temperature(0.9) };
    ChatRequest::new(prompt).with_max_tokens(n).with_sampling(sampling).with_seed(seed)
}

#[test]
fn a_conversation_reads_only_what_is_new() {
    let target = repetitive(VOCAB, 5);
    let model = Shared::new(target.clone());
    let engine = Engine::new(model.clone(), Arc::new(Bytes)).with_config(config(8, 128, 1 << 20));
    let mut prompt = tokens(&"Instructions, long ones. ".repeat(20));
    for turn in 0..5 {
        let mut ask = request("", 30, turn);
        ask.prompt = Prompt::Tokens(prompt.clone());
        let before = model.with(|toy| toy.n_rows);
        let reply = engine.chat(&ask, &mut go_on).unwrap();
        assert_eq!(reply.token_ids, expected(&target, &prompt, &ask), "turn {turn}");
        let n_read = model.with(|toy| toy.n_rows) - before;
        // The last token of an answer was drawn and not fed.
        let n_known = if turn == 0 { 0 } else { prompt.len() - 11 };
        assert_eq!(reply.usage.cached_prompt, n_known as u64, "turn {turn}");
        assert_eq!(n_read, prompt.len() - n_known + 29, "turn {turn}");
        prompt.extend(&reply.token_ids);
        prompt.extend(b" And now?\n".map(TokenId::from));
        assert_eq!(model.with(|toy| toy.n_open()), 1, "one sequence for one conversation");
    }
}

#[test]
fn what_many_begin_with_is_read_once() {
    let target = repetitive(VOCAB, 5);
    let common = "The same instructions for all of them. ".repeat(30);
    for max_rows in [16, 128, 4096] {
        let model = Shared::new(target.clone());
        let engine = Engine::new(model.clone(), Arc::new(Bytes)).with_config(config(8, max_rows, 1 << 20));
        let prompts: Vec<String> = (0..12).map(|i| format!("{common}Question {i}?")).collect();
        let requests: Vec<ChatRequest> = prompts.iter().map(|prompt| request(prompt, 10, 3)).collect();
        for (prompt, (request, reply)) in
            prompts.iter().zip(requests.iter().zip(engine.chat_batch(&requests)))
        {
            assert_eq!(
                reply.unwrap().token_ids,
                expected(&target, &tokens(prompt), request),
                "{max_rows} rows"
            );
        }
        let n_rows = model.with(|toy| toy.n_rows);
        assert!(n_rows < common.len() + 12 * 64, "{n_rows} rows for a beginning of {} tokens", common.len());
    }
}

#[test]
fn tenants_share_nothing() {
    let target = repetitive(VOCAB, 5);
    let engine = Engine::new(Shared::new(target), Arc::new(Bytes)).with_config(config(8, 128, 1 << 20));
    let ask = request(&"A secret that nobody should guess. ".repeat(9), 5, 2);
    let cached = |tenant: &str| engine.chat_as(tenant, &ask, &mut go_on).unwrap().usage.cached_prompt;
    assert_eq!((cached("a"), cached("b")), (0, 0));
    assert!(cached("a") > 300 && cached("b") > 300);
    assert_eq!(engine.chat(&ask, &mut go_on).unwrap().usage.cached_prompt, 0);
}

#[test]
fn a_model_that_does_not_share_is_asked_for_nothing() {
    let target = repetitive(VOCAB, 5);
    let model = Shared::new(target.clone());
    model.with(|toy| toy.evicts = true);
    let engine = Engine::new(model.clone(), Arc::new(Bytes)).with_config(config(8, 128, 1 << 20));
    let ask = request("The same thing twice, the same thing twice.", 9, 2);
    for _ in 0..2 {
        let reply = engine.chat(&ask, &mut go_on).unwrap();
        assert_eq!((reply.usage.cached_prompt, model.with(|toy| toy.n_open())), (0, 0));
    }
}

/// Who has enough while a prompt is read is heard there, and leaves nothing behind.
#[test]
fn a_prompt_that_nobody_wants_is_not_read_to_its_end() {
    let target = repetitive(VOCAB, 5);
    let model = Shared::new(target);
    let engine = Engine::new(model.clone(), Arc::new(Bytes)).with_config(config(2, 16, 0));
    let ask = request(&"A long prompt. ".repeat(100), 10, 2);
    let mut seen = Vec::new();
    let reply = engine.chat(&ask, &mut |delta| {
        let Delta::Progress(progress) = delta else { panic!("{delta:?}") };
        seen.push((progress.read, progress.total));
        if seen.len() == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert_eq!(reply.unwrap().finish, FinishReason::Cancelled);
    assert_eq!(seen, [(16, 1500), (32, 1500), (48, 1500)]);
    assert_eq!(model.with(|toy| (toy.n_rows, toy.n_open(), toy.held_bytes())), (48, 0, 0));
}

/// Texts pause where they would take more than they may; each is what it is alone.
#[test]
fn texts_fit_into_their_bytes() {
    let target = repetitive(VOCAB, 5);
    for (cache_bytes, drafts) in [(0, 0), (1 << 20, 0), (300, 4)] {
        let model = Shared::new(target.clone());
        let mut config = config(8, 16, cache_bytes);
        (config.max_bytes, config.draft_length) = (Some(600), DraftLength::Fixed(drafts));
        let engine = Engine::new(model.clone(), Arc::new(Bytes));
        let engine = engine.with_drafter(|| Ok(NgramDrafter::default())).with_config(config);
        let prompts: Vec<String> = (0..10).map(|i| format!("{i}. {}", "word ".repeat(i))).collect();
        let requests: Vec<ChatRequest> =
            prompts.iter().enumerate().map(|(i, prompt)| request(prompt, 150, i as u64)).collect();
        for (prompt, (request, reply)) in
            prompts.iter().zip(requests.iter().zip(engine.chat_batch(&requests)))
        {
            assert_eq!(reply.unwrap().token_ids, expected(&target, &tokens(prompt), request));
        }
        assert!(engine.load().unwrap().n_pauses > 3, "{} pauses", engine.load().unwrap().n_pauses);
        let peak = model.peak.load(Relaxed);
        // A pass may go beyond it by its own rows, or one long text.
        assert!(peak <= 600 + 8 * 16, "{peak} bytes");
        assert!(model.with(|toy| toy.held_bytes()) <= cache_bytes);
    }
}

/// A request of a test: pieces of its prompt, new tokens, seed, tenant, and pieces after which its receiver
/// has enough.
type Job = (Vec<usize>, usize, u64, usize, usize);

/// Prompts from few pieces, so that they begin alike in many ways; little memory, few places; some leave,
/// some are predicted, and now and then the program starts anew.
#[test]
fn answers_are_those_of_no_cache() {
    const LONG: &str = "You are brief, and you answer in the words of a careful captain, at night. ";
    const PIECES: [&str; 5] = [LONG, "la la la la ", "x", "A question about nothing? ", "\n"];
    let job = (prop::collection::vec(0usize..5, 1..7), 0usize..24, 0u64..6, 0usize..3, 0usize..9);
    let cases = (
        prop::collection::vec(job, 1..24),
        1usize..6,
        1usize..40,
        prop_oneof![Just(0usize), Just(1), 50usize..900, Just(1usize << 20)],
        prop_oneof![Just(None), (20usize..300).prop_map(Some)],
        any::<(bool, bool)>(),
    );
    let [n_cached, n_paused, n_restored, n_predicted] = [0; 4].map(AtomicU64::new);
    let one =
        |jobs: Vec<Job>, max_texts, max_rows, cache_bytes, max_bytes, (drafts, restarts): (bool, bool)| {
            let target = repetitive(VOCAB, 9);
            let model = Shared::new(target.clone());
            let folder = restarts.then(|| tempfile::tempdir().unwrap());
            let mut config = config(max_texts, max_rows, cache_bytes);
            config.draft_length = DraftLength::Fixed(if drafts { 4 } else { 0 });
            config.max_bytes = max_bytes;
            let start = || {
                let engine = Engine::new(model.clone(), Arc::new(Bytes)).with_card(card("weights"));
                let engine = engine.with_drafter(|| Ok(NgramDrafter::default())).with_config(config.clone());
                let Some(folder) = &folder else { return engine };
                let mut saved = SavedPrefixes::new(folder.path());
                (saved.least_tokens, saved.max_bytes) = (20, 40_000);
                engine.with_saved_prefixes(saved).unwrap()
            };
            let count = |engine: &Engine<_, _>| {
                let load = engine.load().unwrap();
                n_paused.fetch_add(load.n_pauses, Relaxed);
                n_restored.fetch_add(load.n_restored, Relaxed);
            };
            let mut engine = start();
            let ask = |(pieces, n, seed, ..): &Job| {
                let prompt: String = pieces.iter().map(|piece| PIECES[*piece]).collect();
                let mut ask = request(&prompt, *n, *seed);
                if (n + pieces.len()).is_multiple_of(3) {
                    ask.priority = Priority::Background;
                }
                if n % 4 == 1 {
                    // Right where it is text, until it is not.
                    let whole = expected(&target, &tokens(&prompt), &ask);
                    let text = whole.iter().map(|&token| char::from((token % 128) as u8)).collect::<String>();
                    ask.prediction = Some(text);
                }
                (prompt, ask)
            };
            let run = |engine: &Engine<_, _>, job: &Job| {
                let ((prompt, ask), (_, _, _, tenant, most), mut heard) = (ask(job), job, 0);
                let listen = &mut |_| {
                    heard += 1;
                    if heard > most + 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                };
                let reply = engine.chat_as(["", "a", "b"][*tenant], &ask, listen).unwrap();
                let whole = expected(&target, &tokens(&prompt), &ask);
                assert!(whole.starts_with(&reply.token_ids), "{prompt:?}");
                assert!(reply.token_ids.len() == whole.len() || heard > most + 2);
                n_cached.fetch_add(reply.usage.cached_prompt, Relaxed);
                n_predicted.fetch_add(reply.usage.predicted, Relaxed);
            };
            for group in jobs.chunks(6) {
                let now = &engine;
                std::thread::scope(|scope| group.iter().for_each(|job| drop(scope.spawn(|| run(now, job)))));
                // With nothing running, what is kept fits: no further pass is needed for that.
                let held = model.with(|toy| toy.held_bytes());
                prop_assert!(held <= cache_bytes, "{held} of {cache_bytes}");
                if restarts {
                    count(&engine);
                    // What it has kept goes with it, once it has been written.
                    drop(engine);
                    model.with(|toy| toy.close_all());
                    engine = start();
                }
            }
            let (prompts, asks): (Vec<String>, Vec<ChatRequest>) = jobs.iter().map(ask).unzip();
            for (prompt, (ask, reply)) in prompts.iter().zip(asks.iter().zip(engine.chat_batch(&asks))) {
                let reply = reply.unwrap();
                prop_assert_eq!(&reply.token_ids, &expected(&target, &tokens(prompt), ask));
                n_cached.fetch_add(reply.usage.cached_prompt, Relaxed);
            }
            count(&engine);
            Ok(())
        };
    let mut runner = TestRunner::new(ProptestConfig::with_cases(120));
    runner
        .run(&cases, |(jobs, texts, rows, bytes, max, flags)| one(jobs, texts, rows, bytes, max, flags))
        .unwrap();
    let [n_cached, n_paused, n_restored, n_predicted] =
        [n_cached, n_paused, n_restored, n_predicted].map(AtomicU64::into_inner);
    assert!(n_cached > 1000, "only {n_cached} tokens came from sequences of earlier texts");
    assert!(n_paused > 100, "only {n_paused} pauses");
    assert!(n_restored > 20, "only {n_restored} texts began with what a file held");
    assert!(n_predicted > 20, "only {n_predicted} tokens were as predicted");
}
