//! A model that calls functions: its own chat template tells it of them, a grammar holds its calls to their
//! form, the functions run, their results come back, and it answers.
//!
//! ```sh
//! cargo run --release --example tool_calls                                  # fetches Qwen2.5-Coder-0.5B
//! cargo run --release --example tool_calls -- "What is 12% of 3450?"
//! cargo run --release --example tool_calls -- --folder docs "Which page is about KIVI?"
//! ```
//! Without a question, the built-in ones are asked three times each: without functions, with functions and
//! without a grammar, with functions under the grammar, which can demand a call. The table says how many
//! answers hold what they should, how many calls were made, and how many of them could not be read or made.
//!
//! JSON: the report, whose table `questions` has a line for each way.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use breakers_cli::{Bar, Error, LoadedModel, ModelArgs, Result, print, print_json, run};
use breakers_core::{
    AnswerForms, AnswerPlan, CallError, ChatModel, ChatRequest, Message, Prompt, Tool, ToolChoice, chain,
};
use breakers_eval::{Cell, Column, Report, Table};
use breakers_spec_decode::{Engine, NgramDrafter};
use breakers_structured::Forms;
use breakers_structured::tools::{
    Calculator, CallRecord, Conversation, ConversationError, FileSearch, Function, ToolFormatSpec,
};
use clap::Parser;
use serde::Deserialize;

/// What the built-in questions ask for in files.
const FILES: [(&str, &str); 3] = [
    ("kitchen.txt", "Recipe for soup: two carrots, one onion, one litre of water.\n"),
    ("house.txt", "The code of the garden gate is 7319.\nThe heating is serviced in March.\n"),
    ("travel.txt", "The train to Leeds leaves at 06:42.\nAda: birthday on 10 December.\n"),
];

/// The instructions of each conversation.
const SYSTEM: &str = "You are a helpful assistant. Call a function where it helps. When you have its result, say the answer in \
    one sentence.";

/// A model that calls functions.
#[derive(Parser)]
#[command(mut_arg("model", |model| model.default_value("qwen2.5-coder-0.5b")))]
struct Arguments {
    /// The model.
    #[command(flatten)]
    model: ModelArgs,
    /// A question of your own in place of the built-in ones.
    #[arg(value_name = "QUESTION")]
    question: Option<String>,
    /// The folder that the model may search; without one, a folder with three small files.
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
    /// The form in which the model writes calls, if its template does not tell.
    #[arg(long, value_name = "NAME")]
    tool_format: Option<ToolFormatSpec>,
    /// Rounds of calls at most.
    #[arg(long, default_value_t = 4, value_name = "N")]
    rounds: usize,
    /// New tokens of an answer at most.
    #[arg(short = 'n', long, default_value_t = 200, value_name = "N")]
    max_tokens: usize,
    /// The folder for the report.
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Answer with one JSON object.
    #[arg(long)]
    json: bool,
}

/// A built-in question.
#[derive(Deserialize)]
struct Task {
    question: String,
    /// The answer is right if it holds one of these.
    answer: Vec<String>,
    /// Whether a function has to be called for it.
    call: bool,
}

/// How a question is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    WithoutFunctions,
    WithoutGrammar,
    WithGrammar,
}

impl Way {
    const ALL: [Self; 3] = [Self::WithoutFunctions, Self::WithoutGrammar, Self::WithGrammar];

    fn name(self) -> &'static str {
        match self {
            Self::WithoutFunctions => "without functions",
            Self::WithoutGrammar => "functions, no grammar",
            Self::WithGrammar => "functions and grammar",
        }
    }
}

/// Forms of which only the readers are used.
struct Unheld(Forms);

impl AnswerForms for Unheld {
    fn plan(&self, request: &ChatRequest, seed: u64) -> std::result::Result<AnswerPlan, CallError> {
        let mut plan = self.0.plan(request, seed)?;
        plan.constraint = None;
        Ok(plan)
    }

    fn has_calls(&self) -> bool {
        self.0.has_calls()
    }

    fn instructions(&self, tools: &[Tool]) -> Option<String> {
        self.0.instructions(tools)
    }
}

/// What came of a question.
#[derive(Default)]
struct Outcome {
    text: String,
    calls: Vec<CallRecord>,
    /// Why there is no answer.
    failure: Option<String>,
    n_tokens: u64,
}

impl Outcome {
    /// Whether the answer holds one of these.
    fn holds(&self, wanted: &[String]) -> bool {
        self.failure.is_none() && wanted.iter().any(|text| self.text.contains(text))
    }
}

fn main() -> ExitCode {
    run(|| {
        let arguments = Arguments::parse();
        let loaded = arguments.model.load()?;
        let own = tempfile::tempdir()?;
        for (name, text) in FILES {
            std::fs::write(own.path().join(name), text)?;
        }
        let folder = arguments.folder.clone().unwrap_or_else(|| own.path().to_owned());
        let functions = || -> Result<Vec<Box<dyn Function>>> {
            Ok(vec![Box::new(Calculator), Box::new(FileSearch::new(&folder)?)])
        };
        if let Some(question) = &arguments.question {
            let model = engine(&arguments, &loaded, Way::WithGrammar)?;
            let outcome = ask(&*model, functions()?, question, false, &arguments);
            show(&outcome)?;
            return Ok(if outcome.failure.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        let tasks: Vec<Task> = serde_json::from_str(include_str!("tasks.json"))?;
        let provenance = arguments.model.provenance(&[&loaded])?;
        let mut report = Report::new(format!("Functions called by {}", loaded.name), provenance);
        let bar = Bar::new(tasks.len() * Way::ALL.len(), "questions");
        let mut asked = Vec::new();
        for way in Way::ALL {
            let model = engine(&arguments, &loaded, way)?;
            for task in &tasks {
                bar.doing(&task.question);
                let functions = if way == Way::WithoutFunctions { Vec::new() } else { functions()? };
                let must_call = task.call && way == Way::WithGrammar;
                let outcome = ask(&*model, functions, &task.question, must_call, &arguments);
                asked.push((way, task, outcome));
                bar.step();
            }
        }
        drop(bar);
        add_to(&mut report, &asked)?;
        if let Some(folder) = &arguments.out {
            report.write(folder)?;
        }
        if arguments.json {
            print_json(&report.to_json()?)?;
        } else {
            print(&report.to_markdown())?;
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// The model, with its own chat template, an n-gram drafter, and the forms of its answers.
fn engine(arguments: &Arguments, loaded: &LoadedModel, way: Way) -> Result<Box<dyn ChatModel>> {
    let tokenizer = Arc::new(loaded.model.tokenizer().clone());
    let Some(template) = loaded.model.chat_template()? else {
        return Err(Error::Usage(format!("{} has no chat template", loaded.name)));
    };
    let format = arguments
        .tool_format
        .or_else(|| ToolFormatSpec::of_model(&loaded.model.info().name, template.source()));
    let Some(format) = format else {
        let name = &loaded.name;
        return Err(Error::Usage(format!(
            "the template of {name} does not tell how it calls functions: --tool-format"
        )));
    };
    let forms = Forms::new(tokenizer.clone())?.with_calls(format);
    let forms: Arc<dyn AnswerForms> = match way {
        Way::WithoutGrammar => Arc::new(Unheld(forms)),
        _ => Arc::new(forms),
    };
    let engine = Engine::new(loaded.model.runner(), tokenizer)
        .with_format(Arc::new(template.clone()))
        .with_forms(forms)
        .with_drafter(|| Ok(NgramDrafter::default()));
    Ok(Box::new(engine))
}

/// Asks a question; if a function must be called, in the first round.
fn ask(
    model: &dyn ChatModel,
    functions: Vec<Box<dyn Function>>,
    question: &str,
    must_call: bool,
    arguments: &Arguments,
) -> Outcome {
    let messages = vec![Message::system(SYSTEM), Message::user(question)];
    let mut request = ChatRequest::new(Prompt::Chat(messages)).with_max_tokens(arguments.max_tokens);
    request.tool_choice = if must_call { ToolChoice::Required } else { ToolChoice::Auto };
    let conversation = Conversation::new(model, functions).with_most_rounds(arguments.rounds);
    match conversation.run(request, &mut |_| ControlFlow::Continue(())) {
        Ok(finished) => Outcome {
            text: finished.reply.text,
            calls: finished.calls,
            failure: None,
            n_tokens: finished.usage.completion,
        },
        Err(error) => {
            let mut outcome = Outcome { failure: Some(chain(&error, ": ")), ..Outcome::default() };
            if let ConversationError::Rounds { calls, .. } = error {
                outcome.calls = calls;
            }
            outcome
        }
    }
}

/// Prints a conversation.
fn show(outcome: &Outcome) -> Result {
    for record in &outcome.calls {
        let (Ok(result) | Err(result)) = &record.result;
        print(&format!(
            "{}({})\n  {}\n",
            record.call.name,
            record.call.arguments,
            result.trim_end().replace('\n', "\n  ")
        ))?;
    }
    match &outcome.failure {
        Some(failure) => eprintln!("error: {failure}"),
        None => print(&format!("{}\n", outcome.text.trim()))?,
    }
    Ok(())
}

/// Puts all that was asked into the report.
fn add_to(report: &mut Report, asked: &[(Way, &Task, Outcome)]) -> Result {
    let mut table = Table::new("questions", "Questions by what the model was given");
    for name in ["given", "right", "questions", "calls", "failed calls", "no answer", "tokens"] {
        table.column(Column::new(name).decimals(0));
    }
    for way in Way::ALL {
        let of_way = || asked.iter().filter(|(asked, ..)| *asked == way);
        let calls = || of_way().flat_map(|(.., outcome)| &outcome.calls);
        let counts = [
            of_way().filter(|(_, task, outcome)| outcome.holds(&task.answer)).count(),
            of_way().count(),
            calls().count(),
            calls().filter(|record| record.result.is_err()).count(),
            of_way().filter(|(.., outcome)| outcome.failure.is_some()).count(),
        ];
        let mut row = vec![Cell::from(way.name())];
        row.extend(counts.map(|count| Cell::Number(count as f64)));
        row.push(Cell::Number(of_way().map(|(.., outcome)| outcome.n_tokens).sum::<u64>() as f64));
        table.row(row)?;
    }
    report.table(table);
    for (way, task, outcome) in asked {
        let calls = outcome.calls.iter().map(|record| {
            let (Ok(result) | Err(result)) = &record.result;
            format!(
                "`{}({})` → `{}`; ",
                record.call.name,
                record.call.arguments,
                result.trim().replace('\n', " / ")
            )
        });
        let end = outcome.failure.as_deref().unwrap_or(outcome.text.trim());
        let calls: String = calls.collect();
        report.paragraph(format!("{}, {} {calls}{end}", way.name(), task.question));
    }
    Ok(())
}
