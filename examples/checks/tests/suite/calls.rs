//! Calls of functions through the engine: every format, choice and drafter over toy models, and the contract
//! of chat models over a real one.

use std::ops::ControlFlow;
use std::sync::Arc;

use breakers_backend::harness::model_path;
use breakers_core::testing::{Probe, check_chat_model};
use breakers_core::{
    BoxError, CallError, ChatFormat, ChatModel, ChatReply, ChatRequest, FinishReason, Json, Message,
    ResponseFormat, SamplingConfig, Tool, ToolChoice, Vocabulary as _,
};
use breakers_model::{LoadOptions, Model};
use breakers_spec_decode::{AtLimit, Engine, EngineConfig, NgramDrafter};
use breakers_structured::{Forms, tools::FORMATS};

use crate::bytes::{Bytes, END};
use crate::toy::{Toy, markov};

/// A format that tells the model of its functions, or does not.
struct Plain {
    shows_tools: bool,
}

impl ChatFormat for Plain {
    fn render(&self, messages: &[Message], tools: &[Tool]) -> Result<String, BoxError> {
        let tools = tools.iter().filter(|_| self.shows_tools).map(|tool| tool.to_json().as_str().to_owned());
        let messages = messages.iter().map(|message| format!("{}: {}\n", message.role, message.text()));
        Ok(tools.chain(messages).collect())
    }
}

fn tools() -> Vec<Tool> {
    let parse = |text: &str| Json::parse(text).unwrap();
    let weather = r#"{"type": "object", "properties": {"city": {"type": "string", "maxLength": 8},
        "days": {"type": "integer", "minimum": 1, "maximum": 7}}, "required": ["city"], "additionalProperties": false}"#;
    let kind = r#"{"type": "object", "properties": {"kind": {"enum": ["sun", "moon"]}}, "required": ["kind"],
        "additionalProperties": false}"#;
    vec![Tool::new("weather", parse(weather)).with_strict(), Tool::new("rises", parse(kind)).with_strict()]
}

/// Whether a call is one of a function above.
fn check_call(name: &str, arguments: &Json) {
    let value: serde_json::Value = arguments.to().unwrap();
    let object = value.as_object().unwrap();
    match name {
        "weather" => {
            assert!(value["city"].as_str().unwrap().chars().count() <= 8, "{value}");
            assert!(
                value.get("days").is_none_or(|days| (1..=7).contains(&days.as_i64().unwrap())),
                "{value}"
            );
            assert!(object.keys().all(|key| ["city", "days"].contains(&key.as_str())), "{value}");
        }
        "rises" => {
            assert!(object.len() == 1 && (value["kind"] == "sun" || value["kind"] == "moon"), "{value}")
        }
        other => panic!("{other}"),
    }
}

fn engine(format: &str, seed: u64, config: EngineConfig) -> Engine<Toy> {
    let mut toy = Toy::new(Bytes.n_tokens(), markov(Bytes.n_tokens(), 2, 4.0, seed));
    toy.info.end_tokens = vec![END];
    let forms = Forms::new(Arc::new(Bytes)).unwrap().with_calls(format.parse().unwrap());
    let engine = Engine::new(toy, Arc::new(Bytes)).with_format(Arc::new(Plain { shows_tools: true }));
    engine.with_forms(Arc::new(forms)).with_config(config)
}

/// An answer, whose pieces make it up.
fn answer(model: &dyn ChatModel, request: &ChatRequest) -> Result<ChatReply, CallError> {
    let mut joined = ChatReply::new("", FinishReason::Cancelled);
    let reply = model.chat(request, &mut |delta| {
        joined.absorb(delta);
        ControlFlow::Continue(())
    })?;
    assert_eq!((&joined.text, &joined.tool_calls), (&reply.text, &reply.tool_calls));
    Ok(reply)
}

/// All that can be asked of a model with functions.
fn requests() -> Vec<ChatRequest> {
    let choices =
        [ToolChoice::Auto, ToolChoice::None, ToolChoice::Required, ToolChoice::Function("rises".to_owned())];
    let mut requests = Vec::new();
    for (i, choice) in choices.into_iter().enumerate() {
        for parallel in [None, Some(false)] {
            for sampling in [SamplingConfig::greedy(), SamplingConfig::temperature(1.0)] {
                let mut request = ChatRequest::new(Message::user("Oslo?"))
                    .with_tools(tools(), choice.clone())
                    .with_sampling(sampling)
                    .with_seed(i as u64)
                    .with_max_tokens(150);
                request.parallel_tool_calls = parallel;
                requests.push(request);
            }
        }
    }
    requests
}

#[test]
fn every_format_keeps_to_the_choice_whatever_drafts() {
    let mut n_calls = 0;
    for (seed, format) in (0..).zip(FORMATS) {
        let requests = requests();
        let plain = engine(format.name, seed, EngineConfig::default());
        let drafted = engine(format.name, seed, EngineConfig::default());
        let together = drafted.with_drafter(|| Ok(NgramDrafter::default())).chat_batch(&requests);
        for (request, together) in requests.iter().zip(together) {
            let reply = answer(&plain, request).unwrap();
            let told = format!("{}: {:?}, {reply:?}", format.name, request.tool_choice);
            assert_eq!(together.unwrap().token_ids, reply.token_ids, "{told}");
            let calls = &reply.tool_calls;
            // Where strings stand without quotes, no way to the end is known within them.
            if reply.finish == FinishReason::Length && ["qwen3-coder", "gemma4"].contains(&format.name) {
                continue;
            }
            for call in calls {
                check_call(&call.name, &call.arguments_json().expect(&told));
            }
            let expected = if calls.is_empty() { FinishReason::EndOfText } else { FinishReason::ToolCalls };
            assert_eq!(reply.finish, expected, "{told}");
            match &request.tool_choice {
                ToolChoice::None => assert!(calls.is_empty(), "{told}"),
                ToolChoice::Auto => {}
                ToolChoice::Function(name) => {
                    assert!(!calls.is_empty() && calls.iter().all(|call| call.name == *name), "{told}");
                }
                _ => assert!(!calls.is_empty(), "{told}"),
            }
            assert!(request.parallel_tool_calls != Some(false) || calls.len() <= 1, "{told}");
            n_calls += calls.len();
        }
    }
    assert!(n_calls > 60, "{n_calls} calls");
}

#[test]
fn an_answer_that_is_cut_says_so() {
    let mut config = EngineConfig::default();
    config.at_limit = AtLimit::Cut;
    let model = engine("hermes", 1, config);
    let request = ChatRequest::new(Message::user("Oslo?")).with_tools(tools(), ToolChoice::Required);
    let whole = answer(&model, &request.clone().with_max_tokens(400)).unwrap();
    assert_eq!(whole.finish, FinishReason::ToolCalls);
    for n in 1..whole.token_ids.len() {
        let cut = answer(&model, &request.clone().with_max_tokens(n)).unwrap();
        assert_eq!((cut.finish, cut.token_ids.len()), (FinishReason::Length, n));
        // What came of a call is there, a beginning of it.
        for (part, call) in cut.tool_calls.iter().zip(&whole.tool_calls) {
            assert!(part.name == call.name && call.arguments.starts_with(&part.arguments), "{cut:?}");
        }
        // What may have become a marker or a call is text by then.
        let bytes = cut.token_ids.iter().flat_map(|&token| Bytes.token_bytes(token).unwrap());
        let spelled = String::from_utf8(bytes.copied().collect()).unwrap();
        assert!(cut.tool_calls.len() <= whole.tool_calls.len() && spelled.ends_with(&cut.text), "{cut:?}");
    }
}

#[test]
fn a_model_is_told_of_its_functions() {
    let model = |shows_tools| {
        let config = EngineConfig::default();
        engine("hermes", 2, config).with_format(Arc::new(Plain { shows_tools }))
    };
    let ask = |shows_tools, tools: Vec<Tool>, choice| {
        let request = ChatRequest::new(vec![Message::system("Be brief."), Message::user("Oslo?")]);
        let request = request.with_tools(tools, choice).with_max_tokens(80);
        answer(&model(shows_tools), &request).map(|reply| reply.usage.prompt)
    };
    let without = ask(true, Vec::new(), ToolChoice::Auto).unwrap();
    let shown = ask(true, tools(), ToolChoice::Auto).unwrap();
    // The template shows them, or instructions do, which also say how to call.
    let instructed = ask(false, tools(), ToolChoice::Auto).unwrap();
    assert!(without + 200 < shown && shown < instructed, "{without} {shown} {instructed}");
    // Also where they may not be called, since results of earlier calls may be asked about.
    assert_eq!(ask(true, tools(), ToolChoice::None).unwrap(), shown);

    let refused = |request: ChatRequest| answer(&model(true), &request).unwrap_err().to_string();
    let chat = || ChatRequest::new(Message::user("Oslo?"));
    for (request, words) in [
        (ChatRequest::new("Oslo").with_tools(tools(), ToolChoice::Auto), "conversations"),
        (chat().with_tools([], ToolChoice::Required), "none is given"),
        (chat().with_tools(tools(), ToolChoice::Function("fly".to_owned())), "\"fly\""),
        (chat().with_tools(tools().into_iter().chain(tools()), ToolChoice::Auto), "weather"),
    ] {
        assert!(refused(request.clone()).contains(words), "{}: {words}", refused(request));
    }
    // An engine that knows no format of calls.
    let mut toy = Toy::repetitive(Bytes.n_tokens(), 1);
    toy.info.end_tokens = vec![END];
    let plain = Engine::new(toy, Arc::new(Bytes))
        .with_format(Arc::new(Plain { shows_tools: true }))
        .with_forms(Arc::new(Forms::new(Arc::new(Bytes)).unwrap()));
    let request = chat().with_tools(tools(), ToolChoice::Auto);
    assert!(matches!(answer(&plain, &request), Err(CallError::Unsupported { .. })));
    let json = chat().with_response(ResponseFormat::JsonObject).with_max_tokens(60);
    assert!(Json::parse(&answer(&plain, &json).unwrap().text).is_ok());
}

#[test]
fn a_local_model_with_functions_keeps_the_contract() {
    let Some(path) = model_path("smollm2-135m") else { return };
    let options = LoadOptions { max_context: Some(512), ..LoadOptions::default() };
    let model = Model::load(path, &options).unwrap();
    let tokenizer = Arc::new(model.tokenizer().clone());
    let forms = Forms::new(tokenizer.clone()).unwrap().with_calls("hermes".parse().unwrap());
    let engine = Engine::new(model.runner(), tokenizer)
        .with_format(Arc::new(model.chat_template().unwrap().unwrap().clone()))
        .with_forms(Arc::new(forms))
        .with_drafter(|| Ok(NgramDrafter::default()));
    assert!(engine.card().capabilities.tools && engine.card().capabilities.json);
    let mut probe = Probe::new(Message::user("Tell me a long story about a lighthouse."));
    probe.tokens = Some(vec![1, 2, 3].into());
    check_chat_model(&engine, &probe);
}
