//! The loop: calls, results, answer, and all that can go wrong.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use breakers_core::{
    CallError, ChatReply, ChatRequest, Delta, FinishReason, Message, Role, Scripted, ScriptedModel, ToolCall,
    ToolChoice, Usage,
};
use breakers_structured::tools::{
    Calculator, Conversation, ConversationError, FileSearch, Finished, Function, ToolFormatSpec,
};

fn functions() -> Vec<Box<dyn Function>> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/tools");
    vec![Box::new(Calculator), Box::new(FileSearch::new(folder).unwrap())]
}

fn question(text: &str) -> ChatRequest {
    ChatRequest::new(vec![Message::system("Be brief."), Message::user(text)])
}

fn run(model: &ScriptedModel, request: ChatRequest) -> Result<Finished, ConversationError> {
    Conversation::new(model, functions()).with_most_rounds(3).run(request, &mut |_| ControlFlow::Continue(()))
}

fn calls(calls: &[(&str, &str, &str)]) -> Scripted {
    let mut reply = ChatReply::new("", FinishReason::ToolCalls);
    reply.tool_calls =
        calls.iter().map(|(id, name, arguments)| ToolCall::new(*id, *name, *arguments)).collect();
    reply.usage = Usage::new(10, 5);
    reply.into()
}

#[test]
fn results_come_back_to_the_model() {
    let model = ScriptedModel::new(
        "m",
        [
            calls(&[
                ("1", "calculator", r#"{"expression": "6 * (3 + 4)"}"#),
                ("2", "search_files", r#"{"words": "Qwen3Coder struct"}"#),
            ]),
            "42, and in qwen3_coder.rs.".into(),
        ],
    );
    let mut request = question("What is 6 * (3 + 4), and where is Qwen3Coder?");
    request.tool_choice = ToolChoice::Required;
    let finished = run(&model, request).unwrap();
    assert_eq!(finished.reply.text, "42, and in qwen3_coder.rs.");
    assert_eq!(finished.usage, Usage::new(10, 5));
    assert_eq!(finished.calls[0].result.as_deref(), Ok("42"));
    assert!(
        finished.calls[1].result.as_ref().unwrap().contains("qwen3_coder.rs:"),
        "{:?}",
        finished.calls[1]
    );
    let [first, second] = &model.requests()[..] else { panic!() };
    assert_eq!((first.tools.len(), &first.tool_choice), (2, &ToolChoice::Required));
    // A call that must be made is made once.
    assert_eq!(second.tool_choice, ToolChoice::Auto);
    let messages = second.prompt.messages().unwrap();
    assert_eq!(messages, finished.messages);
    assert_eq!(messages[2].tool_calls.len(), 2);
    let results: Vec<_> = messages[3..].iter().map(|m| (m.role.clone(), m.tool_call_id.as_deref())).collect();
    assert_eq!(results, [(Role::Tool, Some("1")), (Role::Tool, Some("2"))]);
    assert_eq!(messages[3].text(), "42");
}

#[test]
fn what_goes_wrong_in_a_function_is_told_to_the_model() {
    let model = ScriptedModel::new(
        "m",
        [
            calls(&[
                ("1", "calculator", r#"{"expression": "1 +"}"#),
                ("2", "fly", "{}"),
                ("3", "calculator", "{\"expression\""),
                ("4", "calculator", "{}"),
            ]),
            "No.".into(),
        ],
    );
    let finished = run(&model, question("x")).unwrap();
    let errors: Vec<&str> =
        finished.calls.iter().map(|call| call.result.as_ref().unwrap_err().as_str()).collect();
    assert_eq!(errors[0], "expected a number, a name or '(' at the end of the expression");
    assert_eq!(errors[1], "there is no function \"fly\", only: calculator, search_files");
    assert!(errors[2].starts_with("invalid JSON"), "{}", errors[2]);
    assert!(errors[3].contains("expression"), "{}", errors[3]);
    let told: Vec<_> = finished.messages[3..].iter().map(|message| message.text().into_owned()).collect();
    assert!(told.iter().all(|text| text.starts_with("error: ")), "{told:?}");
}

#[test]
fn conversations_end() {
    // A model that goes on is asked for an answer, without functions that it could call.
    let expression = |n: usize| format!("{{\"expression\": \"{n}\"}}");
    let choices = |model: &ScriptedModel| -> Vec<ToolChoice> {
        model.requests().iter().map(|request| request.tool_choice.clone()).collect()
    };
    let n_calls = AtomicUsize::new(0);
    let tireless = ScriptedModel::from_fn("m", move |request| match request.tool_choice {
        ToolChoice::None => "Enough.".into(),
        _ => calls(&[("1", "calculator", &expression(n_calls.fetch_add(1, Relaxed)))]),
    });
    let finished = run(&tireless, question("x")).unwrap();
    assert_eq!((finished.reply.text.as_str(), finished.calls.len()), ("Enough.", 3));
    assert!(finished.calls.iter().map(|record| record.round).eq(1..=3));
    assert_eq!(choices(&tireless)[2..], [ToolChoice::Auto, ToolChoice::None]);

    // So is one that repeats itself. One that even then calls gets no further.
    let endless = ScriptedModel::from_fn("m", |_| calls(&[("1", "calculator", r#"{"expression": "1"}"#)]));
    match run(&endless, question("x")) {
        Err(ConversationError::Rounds { limit: 2, calls }) => assert_eq!(calls.len(), 2),
        other => panic!("{other:?}"),
    }
    assert_eq!(choices(&endless)[1..], [ToolChoice::Auto, ToolChoice::None]);

    let busy = ScriptedModel::new(
        "m",
        [
            calls(&[("1", "calculator", r#"{"expression": "1"}"#)]),
            CallError::Overloaded { retry_after: None }.into(),
        ],
    );
    let failed = run(&busy, question("x"));
    let overloaded = |error: &CallError| matches!(error, CallError::Overloaded { .. });
    assert!(
        matches!(&failed, Err(ConversationError::Model { round: 2, source }) if overloaded(source)),
        "{failed:?}"
    );

    let mut cut = ChatReply::new("", FinishReason::Length);
    cut.tool_calls.push(ToolCall::new("1", "calculator", "{\"expr"));
    let failed = run(&ScriptedModel::new("m", [cut.into()]), question("x"));
    assert!(
        matches!(failed, Err(ConversationError::Unfinished { round: 1, finish: FinishReason::Length })),
        "{failed:?}"
    );

    let two = calls(&[("1", "calculator", "{}"), ("2", "calculator", "{}")]);
    let mut request = question("x");
    request.parallel_tool_calls = Some(false);
    let failed = run(&ScriptedModel::new("m", [two]), request);
    assert!(matches!(failed, Err(ConversationError::ParallelCalls { round: 1, found: 2 })), "{failed:?}");

    let silent = ScriptedModel::new("m", []);
    assert!(matches!(run(&silent, ChatRequest::new("text")), Err(ConversationError::NoMessages)));
    let twice: Vec<Box<dyn Function>> = vec![Box::new(Calculator), Box::new(Calculator)];
    let failed = Conversation::new(&silent, twice).run(question("x"), &mut |_| ControlFlow::Continue(()));
    assert!(matches!(failed, Err(ConversationError::RepeatedFunction { name }) if name == "calculator"));
    assert!(silent.requests().is_empty());

    // Whoever listens can end it: nothing is called any more.
    let model = ScriptedModel::new("m", [calls(&[("1", "calculator", "{}")])]);
    let finished = Conversation::new(&model, functions()).run(question("x"), &mut |_| ControlFlow::Break(()));
    let finished = finished.unwrap();
    assert!(finished.calls.is_empty() && finished.reply.finish == FinishReason::Cancelled);
}

/// From the text that a model writes to its answer, in each format: parser and loop together.
#[test]
fn every_format_goes_through_the_loop() {
    for format in super::formats() {
        let name = format.to_string();
        let call = super::generate::Call {
            name: "calculator".to_owned(),
            arguments: serde_json::json!({ "expression": "2^10" }).as_object().unwrap().clone(),
        };
        let written = super::wire::answer(&name, "", &[call], super::wire::Style::Spaced);
        let model = ScriptedModel::from_fn("m", move |request| {
            let messages = request.prompt.messages().unwrap();
            match messages.last().filter(|message| message.role == Role::Tool) {
                Some(result) => Scripted::from(&*format!("It is {}.", result.text())),
                None => {
                    let format: ToolFormatSpec = name.parse().unwrap();
                    let answer = format.parse(&written, &request.tools, 3);
                    let mut reply = ChatReply::new(answer.text, FinishReason::ToolCalls);
                    reply.tool_calls = answer.calls;
                    reply.into()
                }
            }
        });
        let mut deltas = Vec::new();
        let finished = Conversation::new(&model, functions()).run(question("2^10?"), &mut |delta| {
            deltas.push(delta);
            ControlFlow::Continue(())
        });
        assert_eq!(finished.unwrap().reply.text, "It is 1024.", "{format}");
        assert!(
            matches!(&deltas[0], Delta::ToolCall(part) if part.name.as_deref() == Some("calculator")),
            "{format}"
        );
    }
}
