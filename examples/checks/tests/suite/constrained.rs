//! Real grammars over toy models: whatever drafts, alone or eight at a time, the tokens of plain masked
//! decoding, and an end in time.

use std::sync::Arc;

use breakers_core::{
    Constraint as _, FinishReason, Json, LanguageModel as _, Sampler, SamplingConfig, TokenId, TokenMask,
    Tokenizer, Vocabulary as _,
};
use breakers_spec_decode::{
    Batch, Config, Decoding, Draft, DraftLength, DraftRequest, Drafter, ModelDraftConfig, ModelDrafter,
    NgramDrafter, NoDrafter, Proposal, Result, Stats, TokenizerFingerprint,
};
use breakers_structured::{Compiler, Grammar};

use crate::bytes::{Bytes, END};
use crate::toy::{LogitsFn, Rules, Toy, markov, perturbed, repetitive};

fn grammars() -> Vec<Grammar> {
    let schema = |text: &str| Grammar::JsonSchema(Json::parse(text).unwrap());
    vec![
        schema(
            r#"{"type": "object", "properties": {"name": {"type": "string", "maxLength": 12},
                "kind": {"enum": ["river", "coast", "mountain"]}, "height": {"type": "integer", "minimum": 0},
                "is_known": {"type": "boolean"}},
                "required": ["name", "kind", "height", "is_known"], "additionalProperties": false}"#,
        ),
        schema(
            r##"{"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "properties": {
                "value": {"type": "number"}, "children": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
                "required": ["value"], "additionalProperties": false}}}"##,
        ),
        Grammar::AnyJson,
        Grammar::Regex("(19|20)[0-9]{2}-[01][0-9]-[0-3][0-9]T[0-9]{2}:[0-9]{2}Z".to_owned()),
        Grammar::Lark(
            "start: \"SELECT \" list \" FROM \" NAME\nlist: NAME (\", \" NAME)*\nNAME: /[a-z]+/".to_owned(),
        ),
        Grammar::Choice(vec!["certainly".to_owned(), "certainly not".to_owned(), "perhaps".to_owned()]),
    ]
}

#[derive(Clone)]
struct Job {
    grammar: Grammar,
    prompt: Vec<TokenId>,
    config: Config,
}

/// Plain masked decoding by the book. A token behind which no end fits into the limit gives way to the first
/// one of a known way to the end.
fn plain(logits: &LogitsFn, compiler: &Compiler, job: &Job) -> (Vec<TokenId>, FinishReason) {
    let mut constraint = compiler.constraint(&job.grammar).unwrap();
    let mut sampler = Sampler::new(job.config.sampling.clone(), job.config.seed);
    let mut text = job.prompt.clone();
    let mut way = constraint.completion(4096).unwrap().expect("every grammar here has a way to its end");
    let mut mask = TokenMask::none(Bytes.n_tokens());
    for left in (1..=job.config.max_tokens).rev() {
        constraint.allowed(&mut mask).unwrap();
        let mut row = logits(&text);
        mask.apply(&mut row);
        let drawn = sampler.sample(&row, &text).unwrap();
        let first = way.first().copied().unwrap_or(END);
        let mut next = if way.len() + 1 == left { first } else { drawn };
        if next != END && next != first {
            constraint.advance(next).unwrap();
            match left.checked_sub(2).and_then(|within| constraint.completion(within).unwrap()) {
                Some(found) => way = found,
                None => {
                    constraint.rollback(1).unwrap();
                    next = first;
                }
            }
        }
        if next == first && next != END {
            constraint.advance(next).unwrap();
            way.remove(0);
        }
        text.push(next);
        if next == END {
            return (text.split_off(job.prompt.len()), FinishReason::EndOfText);
        }
    }
    (text.split_off(job.prompt.len()), FinishReason::Length)
}

/// Under every node the most likely tokens of a model, breadth first.
struct TreeDrafter(LogitsFn);

impl Drafter for TreeDrafter {
    fn name(&self) -> &str {
        "tree"
    }
    fn start(&mut self, _prompt: &[TokenId]) -> Result<()> {
        Ok(())
    }
    fn propose(&mut self, request: &mut DraftRequest<'_>) -> Result<Draft> {
        let (mut tokens, mut parents) = (Vec::new(), Vec::new());
        let mut texts = vec![request.context.to_vec()];
        for node in 0.. {
            let text = texts[node].clone();
            for best in breakers_core::top_k(&(self.0)(&text), 2)? {
                if tokens.len() == request.max_tokens {
                    return Ok(Draft::tree(tokens, parents));
                }
                tokens.push(best.token);
                parents.push(node.checked_sub(1));
                texts.push([&text[..], &[best.token]].concat());
            }
        }
        Ok(Draft::tree(tokens, parents))
    }
}

fn draft_model(logits: LogitsFn) -> ModelDrafter<Toy> {
    let mut model = Toy::new(Bytes.n_tokens(), logits);
    model.rules = Rules::Trait;
    let tokens = || TokenizerFingerprint::from_tokens(["bytes"]);
    let config = ModelDraftConfig { proposal: Proposal::MostLikely, ..ModelDraftConfig::default() };
    ModelDrafter::new(model, tokens(), tokens(), config).unwrap()
}

/// Runs the jobs in one batch and checks each; gives what it took.
fn check(
    logits: &LogitsFn,
    compiler: &Compiler,
    make: &dyn Fn() -> Box<dyn Drafter>,
    jobs: &[Job],
    is_sparse: bool,
    name: &str,
) -> Stats {
    let mut model = Toy::new(Bytes.n_tokens(), logits.clone());
    model.info.end_tokens = Bytes.end_tokens().to_vec();
    (model.is_sparse, model.info.masked_argmax) = (is_sparse, is_sparse);
    let mut batch = Batch::new(64);
    let mut ids = Vec::new();
    for job in jobs {
        let sequence = model.open().unwrap();
        let text = Decoding::new(&model, sequence, &job.prompt, &job.config).unwrap();
        let text = text.with_text::<&str>(Arc::new(Bytes), &[]);
        let constraint = compiler.constraint(&job.grammar).unwrap();
        ids.push(batch.join(text.with_constraint(Box::new(constraint)), make()));
    }
    loop {
        let done = batch.pass(&mut model).unwrap();
        if done.is_empty() {
            break;
        }
        done.into_iter().for_each(|progress| assert!(progress.n_tokens.is_ok(), "{name}: {progress:?}"));
    }
    let mut stats = Stats::default();
    for (id, job) in ids.into_iter().zip(jobs) {
        let result = batch.leave(id).unwrap().0.into_result();
        let expected = plain(logits, compiler, job);
        assert_eq!(expected.1, FinishReason::EndOfText, "{name}: {:?}", job.grammar);
        assert_eq!((result.tokens, result.finish), expected, "{name}: {:?}, {:?}", job.grammar, job.config);
        stats.merge(&result.stats);
    }
    stats
}

#[test]
fn drafts_batches_and_limits_change_no_token_under_a_grammar() {
    let n_tokens = Bytes.n_tokens();
    let compiler = Compiler::new(Arc::new(Bytes)).unwrap();
    let shortest = |grammar: &Grammar| {
        let mut constraint = compiler.constraint(grammar).unwrap();
        let way = constraint.completion(4096).unwrap();
        way.unwrap_or_else(|| panic!("no way to an end of {grammar:?}")).len() + 1
    };
    for (target_name, target) in
        [("markov", markov(n_tokens, 2, 3.0, 5)), ("repetitive", repetitive(n_tokens, 7))]
    {
        let similar = perturbed(target.clone(), 0.3, 1);
        type Make = Box<dyn Fn() -> Box<dyn Drafter>>;
        let (draft, tree) = (similar.clone(), similar);
        let drafters: [(&str, Make); 4] = [
            ("none", Box::new(|| Box::new(NoDrafter))),
            ("n-gram", Box::new(|| Box::<NgramDrafter>::default())),
            ("draft model", Box::new(move || Box::new(draft_model(draft.clone())))),
            ("tree", Box::new(move || Box::new(TreeDrafter(tree.clone())))),
        ];
        for sampling in [
            SamplingConfig::greedy(),
            SamplingConfig { top_k: 20, top_p: 0.9, ..SamplingConfig::temperature(0.9) },
            SamplingConfig { repetition_penalty: 1.2, ..SamplingConfig::temperature(1.1) },
        ] {
            let mut jobs = Vec::new();
            for (i, grammar) in grammars().into_iter().cycle().take(8).enumerate() {
                // From the shortest limit to a roomy one.
                let max_tokens = shortest(&grammar) + [0, 1, 2, 5, 11, 40, 90, 3][i];
                let draft_length = match i % 3 {
                    0 => DraftLength::Fixed(6),
                    1 => DraftLength::Adaptive { max: 12 },
                    _ => DraftLength::Fixed(2),
                };
                let (sampling, seed) = (sampling.clone(), 7 + i as u64);
                let config = Config { max_tokens, sampling, seed, draft_length, ..Config::default() };
                jobs.push(Job { grammar, prompt: (1..4 + i as TokenId).collect(), config });
            }
            for (drafter, make) in &drafters {
                for is_sparse in [false, true] {
                    let name = format!("{drafter} on {target_name}, {sampling:?}");
                    let together = check(&target, &compiler, make, &jobs, is_sparse, &name);
                    let mut alone = Stats::default();
                    for job in &jobs {
                        alone.merge(&check(
                            &target,
                            &compiler,
                            make,
                            std::slice::from_ref(job),
                            is_sparse,
                            &name,
                        ));
                    }
                    for stats in [together, alone] {
                        // The test would prove nothing if nothing was certain, or nothing else was drafted.
                        assert!(stats.certain > 20, "{name}: {stats:?}");
                        assert_eq!(stats.drafted > stats.certain, *drafter != "none", "{name}: {stats:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn where_characters_are_certain_and_tokens_are_not_the_usual_spelling_is_tried() {
    // A tokenizer that does not give back what it is given: the engine trusts its spelling nowhere.
    struct Spaced;
    impl breakers_core::Vocabulary for Spaced {
        fn n_tokens(&self) -> usize {
            Bytes.n_tokens()
        }
        fn token_bytes(&self, token: TokenId) -> Option<&[u8]> {
            Bytes.token_bytes(token)
        }
        fn is_control(&self, token: TokenId) -> bool {
            Bytes.is_control(token)
        }
        fn end_tokens(&self) -> &[TokenId] {
            Bytes.end_tokens()
        }
        fn begin_token(&self) -> Option<TokenId> {
            None
        }
    }
    impl Tokenizer for Spaced {
        fn encode(
            &self,
            text: &str,
            options: breakers_core::EncodeOptions,
        ) -> std::result::Result<Vec<TokenId>, breakers_core::BoxError> {
            Bytes.encode(&format!(" {text}"), options)
        }
        fn encode_chat(
            &self,
            format: &dyn breakers_core::ChatFormat,
            messages: &[breakers_core::Message],
            tools: &[breakers_core::Tool],
        ) -> std::result::Result<Vec<TokenId>, breakers_core::BoxError> {
            Bytes.encode_chat(format, messages, tools)
        }
    }
    let compiler = Compiler::new(Arc::new(Spaced)).unwrap();
    let target = markov(Bytes.n_tokens(), 2, 3.0, 5);
    let mut accepted = 0;
    for grammar in grammars() {
        let config = Config {
            max_tokens: 150,
            draft_length: DraftLength::Fixed(8),
            sampling: SamplingConfig::temperature(1.0),
            ..Config::default()
        };
        let job = Job { grammar, prompt: vec![1, 2], config };
        let stats = check(&target, &compiler, &|| Box::new(NoDrafter), &[job], true, "spaced");
        accepted += stats.accepted;
    }
    assert!(accepted > 40, "{accepted}");
}
