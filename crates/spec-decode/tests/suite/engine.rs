//! A language model as a `ChatModel`: concurrent callers, each of which gets the same answer as alone.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use breakers_core::{
    BoxError, CallError, ChatFormat, ChatModel, ChatRequest, Constraint, ConstraintError, Delta,
    FinishReason, Json, Message, ResponseFormat, SamplingConfig, TokenId, TokenMask, Tool, ToolChoice,
};
use breakers_spec_decode::{Config, DraftLength, Engine, EngineConfig, NgramDrafter};

use crate::bytes::Bytes;
use crate::support::{TreeDrafter, plain};
use crate::toy::{LogitsFn, Rules, Toy, markov, repetitive};

const VOCAB: usize = 256;

fn keep(_: Delta) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn config(max_texts: usize, max_rows: usize, draft: usize) -> EngineConfig {
    let mut config = EngineConfig::default();
    (config.max_texts, config.max_rows, config.draft_length) =
        (max_texts, max_rows, DraftLength::Fixed(draft));
    config
}

/// The result of plain decoding for a request.
fn expected(target: &LogitsFn, prompt: &str, request: &ChatRequest) -> Vec<TokenId> {
    let prompt: Vec<TokenId> = prompt.bytes().map(TokenId::from).collect();
    let config = Config {
        max_tokens: request.max_tokens.unwrap(),
        sampling: request.sampling.clone(),
        seed: request.seed.unwrap(),
        ..Config::default()
    };
    plain(target, &prompt, &config, 1 << 20).0
}

fn requests(n: usize) -> Vec<(String, ChatRequest)> {
    let request = |i: usize| {
        let prompt = format!("Request number {i}: {}", "la ".repeat(3 * i));
        let sampling = match i % 3 {
            0 => SamplingConfig::greedy(),
            _ => SamplingConfig { top_p: 0.9, ..SamplingConfig::temperature(0.9) },
        };
        let request = ChatRequest::new(prompt.as_str()).with_max_tokens(20 + 9 * i).with_sampling(sampling);
        (prompt, request.with_seed(i as u64))
    };
    (0..n).map(request).collect()
}

/// Turns of a conversation, a line each.
struct Lines;

impl ChatFormat for Lines {
    fn render(&self, messages: &[Message], _tools: &[Tool]) -> Result<String, BoxError> {
        if messages.is_empty() {
            return Err("no messages".into());
        }
        Ok(messages
            .iter()
            .map(|m| format!("{}: {}\n", m.role, m.text()))
            .chain(["assistant: ".to_owned()])
            .collect())
    }
}

#[test]
fn concurrent_answers_are_those_of_plain_decoding() {
    let target = repetitive(VOCAB, 5);
    let jobs = requests(9);
    for (max_texts, max_rows, draft) in [(8, 128, 4), (2, 5, 4), (1, 1, 0)] {
        let model = Toy::new(VOCAB, target.clone());
        let engine = Engine::new(model, Arc::new(Bytes))
            .with_drafter(|| Ok(NgramDrafter::default()))
            .with_config(config(max_texts, max_rows, draft));
        std::thread::scope(|scope| {
            for (prompt, request) in &jobs {
                let (engine, target) = (&engine, &target);
                scope.spawn(move || {
                    for _ in 0..2 {
                        let mut text = String::new();
                        let reply = engine.chat(request, &mut |delta| {
                            if let Delta::Text(piece) = delta {
                                assert!(!piece.is_empty());
                                text += &piece;
                            }
                            ControlFlow::Continue(())
                        });
                        let reply = reply.unwrap();
                        assert_eq!(reply.token_ids, expected(target, prompt, request), "{prompt}");
                        assert_eq!((&reply.text, reply.finish), (&text, FinishReason::Length));
                        let bytes: Vec<u8> = reply.token_ids.iter().map(|&t| t as u8).collect();
                        assert_eq!(text, String::from_utf8_lossy(&bytes));
                        assert_eq!(reply.usage.prompt, prompt.len() as u64);
                        assert_eq!(reply.usage.completion, reply.token_ids.len() as u64);
                        assert_eq!(reply.seed, request.seed);
                        let timings = reply.timings;
                        assert!(timings.first_token.unwrap() <= timings.total);
                    }
                });
            }
        });
        // And in one call.
        let together: Vec<ChatRequest> = jobs.iter().map(|job| job.1.clone()).collect();
        for ((prompt, request), reply) in jobs.iter().zip(engine.chat_batch(&together)) {
            assert_eq!(reply.unwrap().token_ids, expected(&target, prompt, request), "{prompt} in a batch");
        }
    }
}

#[test]
fn conversations_stop_strings_and_log_probabilities() {
    let target = markov(VOCAB, 2, 4.0, 11);
    let engine = Engine::new(Toy::new(VOCAB, target.clone()), Arc::new(Bytes)).with_format(Arc::new(Lines));
    let prompt = "system: Be brief.\nuser: Hi\nassistant: ";
    let request = ChatRequest::new(vec![Message::system("Be brief."), Message::user("Hi")]);
    let request = request.with_max_tokens(80).with_seed(1).with_logprobs(2);
    let tokens = expected(&target, prompt, &request);
    let mut scored = Vec::new();
    let reply = engine.chat(&request, &mut |delta| {
        if let Delta::Tokens(tokens) = delta {
            scored.extend(tokens);
        }
        ControlFlow::Continue(())
    });
    let reply = reply.unwrap();
    assert_eq!(reply.token_ids, tokens);
    assert_eq!(reply.tokens, scored);
    assert!(reply.tokens.iter().zip(&tokens).all(|(scored, &token)| {
        scored.token == Some(token)
            && scored.bytes == [token as u8]
            && scored.top.len() == 2
            && scored.top[0].logprob == scored.logprob
    }));
    let sum: f64 = reply.tokens.iter().map(|token| f64::from(token.logprob)).sum();
    assert_eq!(reply.logprob(), Some(sum));
    // The same text, up to one of its characters.
    let stop: String = reply.text.chars().skip(10).take(1).collect();
    let stopped = engine.chat(&request.clone().with_stop([&stop]), &mut keep).unwrap();
    assert_eq!(stopped.finish, FinishReason::Stop);
    assert_eq!(stopped.text, reply.text[..reply.text.find(&stop).unwrap()]);
    // Ended by the receiver.
    let cancelled = engine.chat(&request, &mut |_| ControlFlow::Break(())).unwrap();
    assert_eq!((cancelled.finish, cancelled.token_ids.len()), (FinishReason::Cancelled, 1));
    assert_eq!(engine.chat(&request.with_max_tokens(0), &mut keep).unwrap().finish, FinishReason::Length);
}

/// Digits only.
struct Digits(usize);

impl Constraint for Digits {
    fn allowed(&mut self, mask: &mut TokenMask) -> Result<(), ConstraintError> {
        mask.forbid_all();
        (b'0'..=b'9').for_each(|digit| mask.allow(digit.into()));
        Ok(())
    }
    fn advance(&mut self, token: TokenId) -> Result<(), ConstraintError> {
        if !(48..58).contains(&token) {
            return Err(ConstraintError::NotAllowed { token });
        }
        self.0 += 1;
        Ok(())
    }
    fn rollback(&mut self, n_tokens: usize) -> Result<(), ConstraintError> {
        self.0 -= n_tokens;
        Ok(())
    }
}

#[test]
fn requests_are_honored_or_refused() {
    let target = markov(VOCAB, 2, 4.0, 11);
    let engine = || Engine::new(Toy::new(VOCAB, target.clone()), Arc::new(Bytes));
    let check = |error: Result<_, CallError>, expected: &str| {
        let error = error.map(|reply: breakers_core::ChatReply| reply.text).unwrap_err();
        assert!(format!("{error:?}").starts_with(expected), "{error:?}, expected {expected}");
    };
    let plain = engine();
    let ask = ChatRequest::new("x").with_max_tokens(9);
    let tool = Tool::new("f", Json::parse("{}").unwrap());
    check(plain.chat(&ask.clone().with_tools([tool], ToolChoice::Auto), &mut keep), "Unsupported");
    check(plain.chat(&ask.clone().with_tools([], ToolChoice::Required), &mut keep), "BadRequest");
    check(plain.chat(&ChatRequest::new(Message::user("x")), &mut keep), "Unsupported");
    check(plain.chat(&ChatRequest::new(""), &mut keep), "BadRequest { param: Some(\"prompt\")");
    check(plain.chat(&ChatRequest::new(vec![1u32, 999]), &mut keep), "BadRequest { param: Some(\"prompt\")");
    let hot = SamplingConfig { top_p: 7.0, ..SamplingConfig::greedy() };
    check(plain.chat(&ask.clone().with_sampling(hot), &mut keep), "BadRequest { param: Some(\"top_p\")");
    check(plain.chat(&ask.clone().with_response(ResponseFormat::JsonObject), &mut keep), "Unsupported");
    check(
        engine().with_format(Arc::new(Lines)).chat(&ChatRequest::new(vec![] as Vec<Message>), &mut keep),
        "BadRequest",
    );
    let mut small = Toy::new(VOCAB, target.clone());
    small.info.max_context = 4;
    let small = Engine::new(small, Arc::new(Bytes));
    check(
        small.chat(&ChatRequest::new("12345"), &mut keep),
        "ContextTooLong { needed: Some(5), limit: Some(4) }",
    );
    assert_eq!(small.chat(&ChatRequest::new("12"), &mut keep).unwrap().finish, FinishReason::ContextFull);
    // An engine that can constrain an answer honors its form.
    let constrained = engine().with_constraints(|request| {
        let is_text = request.response == ResponseFormat::Text;
        Ok((!is_text).then(|| Box::new(Digits(0)) as Box<dyn Constraint>))
    });
    let tree = TreeDrafter { logits: target.clone(), width: 2 };
    let constrained =
        constrained.with_drafter(move || Ok(TreeDrafter { logits: tree.logits.clone(), width: 2 }));
    let digits = ask.with_response(ResponseFormat::JsonObject).with_max_tokens(50);
    let reply = constrained.chat(&digits, &mut keep).unwrap();
    assert!(reply.text.len() == 50 && reply.text.bytes().all(|byte| byte.is_ascii_digit()), "{}", reply.text);
    // Without a seed, texts differ; with the seed of a reply, they are the same.
    let warm = ChatRequest::new("x").with_max_tokens(40).with_sampling(SamplingConfig::temperature(1.0));
    let replies: Vec<_> = (0..2).map(|_| plain.chat(&warm, &mut keep).unwrap()).collect();
    assert_ne!(replies[0].text, replies[1].text);
    let again = plain.chat(&warm.with_seed(replies[0].seed.unwrap()), &mut keep).unwrap();
    assert_eq!(again.text, replies[0].text);
}

#[test]
fn failures_reach_everybody_and_end_nothing_else() {
    // A pass that fails without naming a step ends the texts in it; the next ones go on.
    let target = repetitive(VOCAB, 5);
    let mut model = Toy::new(VOCAB, target.clone());
    model.rules = Rules::Trait;
    model.fail_at = Some(10);
    let engine = Engine::new(model, Arc::new(Bytes)).with_config(config(8, 128, 0));
    let jobs = requests(3);
    let together: Vec<ChatRequest> = jobs.iter().map(|job| job.1.clone()).collect();
    let replies = engine.chat_batch(&together);
    assert!(replies.iter().all(|reply| matches!(reply, Err(CallError::Failed(_)))), "{replies:?}");
    let (prompt, request) = &jobs[1];
    assert_eq!(engine.chat(request, &mut keep).unwrap().token_ids, expected(&target, prompt, request));

    // If the model panics, all callers are told and none waits forever.
    let calls = Arc::new(AtomicUsize::new(0));
    let (inner, counter) = (target.clone(), calls.clone());
    let explosive: LogitsFn = Arc::new(move |context| {
        assert!(counter.fetch_add(1, Ordering::Relaxed) < 40, "told to panic");
        inner(context)
    });
    let engine = Engine::new(Toy::new(VOCAB, explosive), Arc::new(Bytes)).with_config(config(8, 128, 0));
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let spawn = |(_, request): &(String, ChatRequest)| {
            let (engine, request) = (&engine, request.clone().with_max_tokens(100));
            scope.spawn(move || engine.chat(&request, &mut keep))
        };
        let threads: Vec<_> = jobs.iter().map(spawn).collect();
        threads.into_iter().map(|thread| thread.join()).collect()
    });
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_err()).count(), 1, "one thread ran the pass");
    assert!(outcomes.iter().flatten().all(|reply| matches!(reply, Err(CallError::Failed(_)))));
    assert!(matches!(engine.chat(request, &mut keep), Err(CallError::Failed(_))));

    // A listener that panics leaves the batch; the others do not notice.
    let engine = Engine::new(Toy::new(VOCAB, target.clone()), Arc::new(Bytes)).with_config(config(8, 128, 0));
    std::thread::scope(|scope| {
        let bad = scope.spawn(|| engine.chat(&jobs[0].1, &mut |_| panic!("told to panic")));
        let (prompt, request) = &jobs[2];
        let good = scope.spawn(|| engine.chat(request, &mut keep));
        assert!(bad.join().is_err());
        assert_eq!(good.join().unwrap().unwrap().token_ids, expected(&target, prompt, request));
    });
}

#[test]
fn a_prediction_is_followed_where_it_is_right_and_never_changes_the_answer() {
    // Every token is a letter.
    let target = repetitive(128, 11);
    let engine = Engine::new(Toy::new(128, target.clone()), Arc::new(Bytes)).with_config(config(4, 64, 6));
    assert!(engine.card().capabilities.prediction);
    let text = |tokens: &[TokenId]| tokens.iter().map(|&token| char::from(token as u8)).collect::<String>();
    for (prompt, request) in requests(12) {
        let right = expected(&target, &prompt, &request);
        let mut edited = right.clone();
        let at = edited.len() / 3;
        edited.splice(at..at + 2, [65, 66, 67]);
        let mut used = Vec::new();
        for prediction in [&right[..], &edited, &[90; 40]] {
            let request = request.clone().with_prediction(text(prediction));
            let reply = engine.chat(&request, &mut keep).unwrap();
            assert_eq!(reply.token_ids, right, "{prompt}");
            let usage = reply.usage;
            assert_eq!(
                (usage.accepted, usage.drafted),
                (usage.predicted, usage.predicted + usage.mispredicted)
            );
            used.push(usage.predicted);
        }
        // One token of seven is the model's own.
        let [all, most, none] = used[..] else { unreachable!() };
        assert!(all as usize * 7 + 14 >= right.len() * 6, "{all} of {}", right.len());
        assert!(most <= all && most as usize * 2 > right.len(), "{most} of {}", right.len());
        assert!(none <= 2, "{none} of {}", right.len());
        // Nothing of it is left for the next text.
        let plain = engine.chat(&request, &mut keep).unwrap();
        assert_eq!((plain.token_ids, plain.usage.drafted), (right, 0));
    }
}
