//! Conversations that go on from what the engine has kept of them, on real weights: the same answers, bit by
//! bit, with every kind of cache.

use std::ops::ControlFlow;
use std::sync::Arc;

use breakers_backend::harness::model_path;
use breakers_core::{ChatModel as _, ChatReply, ChatRequest, Message, SamplingConfig};
use breakers_kv_cache::CacheSpec;
use breakers_model::{LoadOptions, Model};
use breakers_spec_decode::{Engine, EngineConfig, NgramDrafter};

#[test]
fn what_was_kept_changes_no_answer() {
    let Some(path) = model_path("smollm2-135m") else { return };
    let model = Model::load(path, &LoadOptions::default()).unwrap();
    let format = Arc::new(model.chat_template().unwrap().unwrap().clone());
    // Whether the next turn begins with what is kept: a cache that has evicted tokens is not shared.
    for (cache, is_kept) in [("f16", true), ("turbo-4", true), ("snapkv-25", false)] {
        let engine = |cache_bytes| {
            let (spec, device) = (cache.parse::<CacheSpec>().unwrap(), model.device().clone());
            let runner = model.runner().with_cache(move |shape| spec.make(shape, &device));
            let mut config = EngineConfig::default();
            config.cache_bytes = cache_bytes;
            Engine::new(runner, Arc::new(model.tokenizer().clone()))
                .with_format(format.clone())
                .with_drafter(|| Ok(NgramDrafter::default()))
                .with_config(config)
        };
        let (with, without) = (engine(1 << 30), engine(0));
        let mut messages = vec![Message::system("You tell stories about the sea. ".repeat(12))];
        let mut cached = Vec::new();
        for (turn, question) in ["A lighthouse.", "And then?", "Who lived there?"].into_iter().enumerate() {
            messages.push(Message::user(question));
            let request = ChatRequest::new(messages.clone())
                .with_max_tokens(40)
                .with_sampling(SamplingConfig::temperature(0.8))
                .with_seed(turn as u64)
                .with_logprobs(1);
            let ask = |engine: &Engine<_, _>| -> ChatReply {
                engine.chat(&request, &mut |_| ControlFlow::Continue(())).unwrap()
            };
            let (kept, alone) = (ask(&with), ask(&without));
            assert_eq!(
                (&kept.token_ids, &kept.tokens),
                (&alone.token_ids, &alone.tokens),
                "{cache}, turn {turn}"
            );
            assert_eq!(alone.usage.cached_prompt, 0);
            cached.push(kept.usage.cached_prompt);
            messages.push(kept.message());
        }
        assert_eq!(cached[1] > 60 && cached[2] > cached[1], is_kept, "{cache}: {cached:?}");
        assert_eq!(cached[0], 0);
    }
}
