//! Beginnings of texts that outlive the program: the same answers, fewer tokens read, and no trust in files.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use breakers_core::{ChatModel as _, ChatReply, ChatRequest, ModelCard, Prompt, SamplingConfig, TokenId};
use breakers_spec_decode::{Engine, EngineConfig, NoDrafter, SavedPrefixes, SavedPrefixesError};
use proptest::prelude::*;

use crate::bytes::Bytes;
use crate::support::plain;
use crate::toy::{LogitsFn, Toy, repetitive};

const VOCAB: usize = 256;

fn target() -> LogitsFn {
    repetitive(VOCAB, 5)
}

pub(crate) fn card(revision: &str) -> ModelCard {
    let mut card = ModelCard::new("toy");
    card.revision = Some(revision.to_owned());
    card
}

/// An engine as a program has it after its start.
fn start(config: &SavedPrefixes, revision: &str) -> Engine<Toy, NoDrafter> {
    let mut engine = EngineConfig::default();
    engine.cache_bytes = 1 << 20;
    let engine = Engine::new(Toy::new(VOCAB, target()), Arc::new(Bytes)).with_config(engine);
    engine.with_card(card(revision)).with_saved_prefixes(config.clone()).unwrap()
}

fn ask(engine: &Engine<Toy, NoDrafter>, tenant: &str, prompt: &[TokenId]) -> ChatReply {
    let mut request = ChatRequest::new("").with_max_tokens(8).with_sampling(SamplingConfig::greedy());
    request.prompt = Prompt::Tokens(prompt.to_vec());
    let reply = engine.chat_as(tenant, &request, &mut |_| ControlFlow::Continue(())).unwrap();
    let config = breakers_spec_decode::Config {
        max_tokens: 8,
        sampling: SamplingConfig::greedy(),
        ..breakers_spec_decode::Config::default()
    };
    assert_eq!(reply.token_ids, plain(&target(), prompt, &config, 1 << 20).0);
    reply
}

fn prompt(n: usize, seed: u32) -> Vec<TokenId> {
    (0..n as u32).map(|i| (i * (2 * seed + 7) + i / 5 + seed) % VOCAB as u32).collect()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn a_text_goes_on_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let config = SavedPrefixes::new(folder.path().join("prefixes"));
    let text = prompt(500, 1);
    let engine = start(&config, "weights");
    assert_eq!(ask(&engine, "a", &text).usage.cached_prompt, 0);
    // It is written before the engine is gone.
    drop(engine);
    assert_eq!(files(&config.folder).len(), 1);

    let engine = start(&config, "weights");
    let longer = [&text[..], &prompt(40, 2)].concat();
    assert_eq!(ask(&engine, "b", &longer).usage.cached_prompt, 0, "another tenant's");
    assert_eq!(ask(&engine, "a", &longer).usage.cached_prompt, 500);
    let load = engine.load().unwrap();
    assert_eq!((load.n_restored, load.n_saved), (1, load.n_saved));
    // It is in memory by now.
    assert_eq!(ask(&engine, "a", &longer).usage.cached_prompt, 539);
    assert_eq!(engine.load().unwrap().n_restored, 1);
    drop(engine);

    // Only a part of a file's text is what the prompt begins with.
    let engine = start(&config, "weights");
    let other = [&text[..300], &prompt(100, 3)].concat();
    assert_eq!(ask(&engine, "a", &other).usage.cached_prompt, 300);
    drop(engine);

    // Other weights have nothing of it, and leave it to those that have.
    let engine = start(&config, "other weights");
    assert_eq!(ask(&engine, "a", &text).usage.cached_prompt, 0);
    drop(engine);
    assert_eq!(ask(&start(&config, "weights"), "a", &text).usage.cached_prompt, 499);
}

#[test]
fn what_would_save_little_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let config = SavedPrefixes::new(folder.path());
    let engine = start(&config, "weights");
    ask(&engine, "a", &prompt(200, 1));
    drop(engine);
    assert!(files(folder.path()).is_empty());

    // Two texts behind the same instructions make one file, and a conversation that grows leaves one, too.
    let text = prompt(600, 1);
    for turn in [&text[..400], &[&text[..380], &prompt(60, 2)].concat(), &text] {
        let engine = start(&config, "weights");
        ask(&engine, "a", turn);
        drop(engine);
        assert_eq!(files(folder.path()).len(), 1);
    }
}

#[test]
fn files_stay_within_their_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = SavedPrefixes::new(folder.path());
    for seed in 0..3 {
        ask(&start(&config, "weights"), "a", &prompt(400, seed));
    }
    let bytes: Vec<u64> = files(folder.path()).iter().map(|file| file.metadata().unwrap().len()).collect();
    assert_eq!(bytes.len(), 3);
    // Room for two: of the three, the one goes that was not used for longest.
    assert_eq!(ask(&start(&config, "weights"), "a", &prompt(400, 0)).usage.cached_prompt, 399);
    config.max_bytes = bytes[0] * 5 / 2;
    ask(&start(&config, "weights"), "a", &prompt(400, 3));
    assert_eq!(files(folder.path()).len(), 2);
    assert_eq!(ask(&start(&config, "weights"), "a", &prompt(400, 0)).usage.cached_prompt, 399);
    assert_eq!(ask(&start(&config, "weights"), "a", &prompt(400, 1)).usage.cached_prompt, 0);
    config.max_bytes = bytes[0] / 2;
    ask(&start(&config, "weights"), "a", &prompt(400, 4));
    assert_eq!(ask(&start(&config, "weights"), "a", &prompt(400, 4)).usage.cached_prompt, 0);
}

#[test]
fn models_without_a_name_or_snapshots_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let engine = |evicts| {
        let mut toy = Toy::new(VOCAB, target());
        toy.evicts = evicts;
        Engine::new(toy, Arc::new(Bytes))
    };
    let config = SavedPrefixes::new(folder.path());
    let refused = engine(false).with_saved_prefixes(config.clone());
    assert!(matches!(refused, Err(SavedPrefixesError::NoRevision { .. })));
    let refused = engine(true).with_card(card("weights")).with_saved_prefixes(config);
    assert!(matches!(refused, Err(SavedPrefixesError::Model { .. })));
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let refused = engine(false).with_card(card("weights")).with_saved_prefixes(SavedPrefixes::new(&file));
    assert!(matches!(refused, Err(SavedPrefixesError::Folder { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// A file that is changed in any byte, cut, or filled up is a file less. Answers stay what they are.
    #[test]
    fn damaged_files_are_not_used(at in any::<prop::sample::Index>(), flip in 1u8.., how in 0..4) {
        let folder = tempfile::tempdir().unwrap();
        let config = SavedPrefixes::new(folder.path());
        let text = prompt(400, 1);
        ask(&start(&config, "weights"), "a", &text);
        let file = files(folder.path()).remove(0);
        let mut bytes = std::fs::read(&file).unwrap();
        let at = at.index(bytes.len());
        match how {
            0 | 1 => bytes[at] ^= flip,
            2 => bytes.truncate(at),
            _ => bytes.push(flip),
        }
        std::fs::write(&file, &bytes).unwrap();
        // `ask` compares the answer.
        let engine = start(&config, "weights");
        prop_assert_eq!(ask(&engine, "a", &text).usage.cached_prompt, 0);
        prop_assert_eq!(engine.load().unwrap().n_restored, 0);
        prop_assert!(!file.exists());
    }
}
