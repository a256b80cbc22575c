//! Real weights under a schema: the answer is valid, and its tokens are those of plain masked decoding.

use std::ops::ControlFlow;
use std::sync::Arc;

use breakers_backend::harness::model_path;
use breakers_core::{
    CallError, ChatModel, ChatRequest, Constraint, FinishReason, Json, LanguageModel as _, Output,
    ResponseFormat, ResponseSchema, Sampler, SamplingConfig, Step, TokenId, TokenMask, Want,
};
use breakers_model::{LoadOptions, Model};
use breakers_spec_decode::{Engine, NgramDrafter};
use breakers_structured::{Compiler, Grammar};

const SCHEMA: &str = r#"{"type": "object", "properties": {
    "city": {"type": "string", "maxLength": 30},
    "population": {"type": "integer", "minimum": 1, "maximum": 99999999},
    "is_capital": {"type": "boolean"},
    "tags": {"type": "array", "items": {"enum": ["river", "coast", "mountain"]}, "maxItems": 3}},
    "required": ["city", "population", "is_capital", "tags"], "additionalProperties": false}"#;

const PROMPTS: [&str; 3] = ["Facts about Paris as JSON:\n", "A city in the Alps:\n", "JSON: "];

/// A constraint for what a request asks for.
fn constraint(compiler: &Compiler, request: &ChatRequest) -> Result<Option<Box<dyn Constraint>>, CallError> {
    let Some(grammar) = Grammar::of_response(&request.response) else { return Ok(None) };
    match compiler.constraint(&grammar) {
        Ok(constraint) => Ok(Some(Box::new(constraint))),
        Err(error) => Err(CallError::bad_request("response", error.to_string())),
    }
}

/// Plain masked decoding by the book: a pass, a mask, a draw.
fn plain(model: &Model, compiler: &Compiler, request: &ChatRequest, prompt: &str) -> Vec<TokenId> {
    let mut constraint = constraint(compiler, request).unwrap().unwrap();
    let mut runner = model.runner();
    let sequence = runner.open().unwrap();
    let mut sampler = Sampler::new(request.sampling.clone(), request.seed.unwrap());
    let mut text = breakers_core::Tokenizer::encode(model.tokenizer(), prompt, Default::default()).unwrap();
    let (mut next, mut out) = (text.clone(), Vec::new());
    let mut mask = TokenMask::none(model.info().vocab_size);
    while out.len() < request.max_tokens.unwrap() {
        let mut steps = [Step::last(sequence, next, Want::Logits)];
        runner.forward(&mut steps).unwrap();
        let Some(Output::Logits(mut logits)) = steps[0].outputs.pop().map(|row| row.output) else { panic!() };
        constraint.allowed(&mut mask).unwrap();
        mask.apply(&mut logits);
        let token = sampler.sample(&logits, &text).unwrap();
        out.push(token);
        text.push(token);
        if model.tokenizer().end_tokens().contains(&token) {
            break;
        }
        constraint.advance(token).unwrap();
        next = vec![token];
    }
    out
}

#[test]
fn answers_by_a_schema_are_valid_and_exact() {
    let Some(path) = model_path("smollm2-135m") else { return };
    let model = Model::load(path, &LoadOptions::default()).unwrap();
    let compiler = Arc::new(Compiler::new(Arc::new(model.tokenizer().clone())).unwrap());
    let engine = || {
        let compiler = compiler.clone();
        Engine::new(model.runner(), Arc::new(model.tokenizer().clone()))
            .with_constraints(move |request| constraint(&compiler, request))
    };
    let engines: [Box<dyn ChatModel>; 2] =
        [Box::new(engine()), Box::new(engine().with_drafter(|| Ok(NgramDrafter::default())))];
    let schema = ResponseSchema::new("city", Json::parse(SCHEMA).unwrap());
    for (i, prompt) in PROMPTS.into_iter().enumerate() {
        for sampling in [SamplingConfig::greedy(), SamplingConfig::temperature(1.0)] {
            let request = ChatRequest::new(prompt)
                .with_max_tokens(120)
                .with_sampling(sampling)
                .with_seed(i as u64)
                .with_response(ResponseFormat::JsonSchema(schema.clone()));
            let expected = plain(&model, &compiler, &request, prompt);
            for engine in &engines {
                let reply = engine.chat(&request, &mut |_| ControlFlow::Continue(())).unwrap();
                assert_eq!(reply.token_ids, expected, "{prompt:?}");
                assert_eq!(reply.finish, FinishReason::EndOfText, "{:?}", reply.text);
                let value: serde_json::Value = serde_json::from_str(&reply.text).unwrap();
                let object = value.as_object().unwrap();
                assert!(object.keys().eq(["city", "population", "is_capital", "tags"]), "{}", reply.text);
                assert!(value["city"].as_str().unwrap().chars().count() <= 30, "{}", reply.text);
                assert!((1..=99_999_999).contains(&value["population"].as_i64().unwrap()), "{}", reply.text);
                assert!(value["is_capital"].is_boolean(), "{}", reply.text);
                let tags = value["tags"].as_array().unwrap();
                assert!(
                    tags.len() <= 3
                        && tags
                            .iter()
                            .all(|tag| ["river", "coast", "mountain"].contains(&tag.as_str().unwrap()))
                );
            }
        }
    }
    // A schema that is not enforced is refused before a token is computed.
    let dynamic = Json::parse(r#"{"type": "array", "items": {"$dynamicRef": "x"}}"#).unwrap();
    let request =
        ChatRequest::new("x").with_response(ResponseFormat::JsonSchema(ResponseSchema::new("x", dynamic)));
    let refused = engines[0].chat(&request, &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert!(refused.to_string().contains("$dynamicRef"), "{refused}");
}
