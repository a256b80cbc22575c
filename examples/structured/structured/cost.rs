//! A model's answers with and without a schema.

use std::ops::ControlFlow;
use std::sync::Arc;

use breakers_cli::{Bar, LoadedModel, Result, read_text};
use breakers_core::{Constraint as _, EncodeOptions, Json};
use breakers_core::{
    LanguageModel as _, Message, Output, Sampler, SamplingConfig, Step, TokenId, TokenMask, Want,
};
use breakers_eval::{BarChart, Cell, Column, Report, Table, stats};
use breakers_spec_decode::{Config, Decoding, NoDrafter, Speculator};
use breakers_structured::{Compiler, Grammar};
use serde::Deserialize;

use crate::Arguments;

/// The tasks that are measured if none are given.
const TASKS: &str = include_str!("tasks.json");

#[derive(Deserialize)]
struct Task {
    name: String,
    prompt: String,
    schema: serde_json::Value,
}

/// What a task's schema costs, and what it brings.
pub(crate) struct Cost {
    name: String,
    /// The answer under the schema.
    text: String,
    /// Whether that is valid.
    pub(crate) is_valid: bool,
    /// Whether the answer without the schema is.
    is_valid_without: bool,
    /// Whether its tokens are those of plain masked decoding; true also where that has not ended at the limit
    /// of tokens, by which an answer under a schema must come to an end.
    pub(crate) is_exact: bool,
    n_tokens: usize,
    n_certain: usize,
    /// Tokens a second with and without the schema.
    rates: [f64; 2],
}

/// What is generated.
struct Answer {
    tokens: Vec<TokenId>,
    text: String,
    rate: f64,
    n_certain: usize,
}

/// Measures all tasks, with and without their schemas by turns.
pub(crate) fn measure(arguments: &Arguments, loaded: &LoadedModel) -> Result<Vec<Cost>> {
    let tasks = match &arguments.tasks {
        Some(file) => read_text(file)?,
        None => TASKS.to_owned(),
    };
    let tasks: Vec<Task> = serde_json::from_str(&tasks)?;
    let compiler = Compiler::new(Arc::new(loaded.model.tokenizer().clone()))?;
    let options = arguments.options();
    let bar = Bar::new(tasks.len(), "tasks");
    let mut costs = Vec::new();
    for task in tasks {
        bar.doing(&task.name);
        let grammar = Grammar::JsonSchemaWith(Json::parse(&task.schema.to_string())?, options);
        let prompt = prompt(loaded, &task.prompt)?;
        let mut answers = [Vec::new(), Vec::new()];
        for _ in 0..arguments.rounds {
            for (grammar, answers) in [Some(&grammar), None].into_iter().zip(&mut answers) {
                answers.push(answer(arguments, loaded, &prompt, &compiler, grammar)?);
            }
        }
        let plain = plain(arguments, loaded, &prompt, &compiler, &grammar)?;
        let [with, without] = &answers;
        let validator = jsonschema::validator_for(&task.schema)
            .map_err(|error| breakers_cli::Error::Usage(format!("{}: {error}", task.name)))?;
        let is_valid = |text: &str| serde_json::from_str(text.trim()).is_ok_and(|v| validator.is_valid(&v));
        let rate = |answers: &[Answer]| stats::median(&answers.iter().map(|a| a.rate).collect::<Vec<_>>());
        costs.push(Cost {
            is_valid: is_valid(&with[0].text),
            is_valid_without: is_valid(&without[0].text),
            is_exact: plain.is_none_or(|plain| with.iter().all(|answer| answer.tokens == plain)),
            n_tokens: with[0].tokens.len(),
            n_certain: with[0].n_certain,
            rates: [rate(with)?, rate(without)?],
            text: with[0].text.clone(),
            name: task.name,
        });
        bar.step();
    }
    Ok(costs)
}

/// The tokens of a prompt, in the model's chat template if it has one.
fn prompt(loaded: &LoadedModel, text: &str) -> Result<Vec<TokenId>> {
    let tokenizer = loaded.model.tokenizer();
    Ok(match loaded.model.chat_template()? {
        Some(template) => tokenizer.encode_chat(template, &[Message::new("user", text)], &[])?,
        None => tokenizer.encode(text, EncodeOptions::default())?,
    })
}

fn answer(
    arguments: &Arguments,
    loaded: &LoadedModel,
    prompt: &[TokenId],
    compiler: &Compiler,
    grammar: Option<&Grammar>,
) -> Result<Answer> {
    let mut runner = loaded.model.runner();
    let sequence = runner.open()?;
    let config = Config { max_tokens: arguments.max_tokens, ..Config::default() };
    let vocabulary = Arc::new(loaded.model.tokenizer().clone());
    let mut decoding = Decoding::new(&runner, sequence, prompt, &config)?.with_text(vocabulary, &[""; 0]);
    if let Some(grammar) = grammar {
        decoding = decoding.with_constraint(Box::new(compiler.constraint(grammar)?));
    }
    let mut text = String::new();
    Speculator::new(NoDrafter).drive(&mut runner, &mut decoding, |decoding, _| {
        text += &decoding.take_text();
        ControlFlow::Continue(())
    })?;
    let stats = decoding.stats();
    Ok(Answer {
        text,
        rate: stats.decode_tokens_per_second(),
        n_certain: stats.certain,
        tokens: decoding.output().to_vec(),
    })
}

/// Masked decoding by the book: a pass for each token, all logits, the mask, the most likely one. `None` if
/// the limit of tokens comes before the end.
fn plain(
    arguments: &Arguments,
    loaded: &LoadedModel,
    prompt: &[TokenId],
    compiler: &Compiler,
    grammar: &Grammar,
) -> Result<Option<Vec<TokenId>>> {
    let mut runner = loaded.model.runner();
    let sequence = runner.open()?;
    let mut constraint = compiler.constraint(grammar)?;
    let mut sampler = Sampler::new(SamplingConfig::greedy(), 0);
    let mut mask = TokenMask::none(loaded.model.info().vocab_size);
    let (mut next, mut out) = (prompt.to_vec(), Vec::new());
    while out.len() < arguments.max_tokens {
        let mut steps = [Step::last(sequence, next, Want::Logits)];
        runner.forward(&mut steps)?;
        let Some(Output::Logits(mut logits)) = steps[0].outputs.pop().map(|row| row.output) else { break };
        constraint.allowed(&mut mask)?;
        mask.apply(&mut logits);
        let token = sampler.sample(&logits, &[])?;
        out.push(token);
        if loaded.model.tokenizer().end_tokens().contains(&token) {
            return Ok(Some(out));
        }
        constraint.advance(token)?;
        next = vec![token];
    }
    Ok(None)
}

/// The table and the chart of the answers.
pub(crate) fn add_to(report: &mut Report, costs: &[Cost]) -> Result {
    let mut table = Table::new("answers", "Answers under a schema, beside the same model without it");
    for column in [
        Column::new("task"),
        Column::new("valid"),
        Column::new("valid without"),
        Column::new("same as plain masks"),
        Column::new("tokens"),
        Column::new("certain"),
        Column::new("with").unit("token/s").decimals(1),
        Column::new("without").unit("token/s").decimals(1),
        Column::new("ratio").decimals(2),
    ] {
        table.column(column);
    }
    let yes = |is: bool| Cell::from(if is { "yes" } else { "no" });
    for cost in costs {
        let [with, without] = cost.rates;
        table.row(vec![
            Cell::from(&*cost.name),
            yes(cost.is_valid),
            yes(cost.is_valid_without),
            yes(cost.is_exact),
            Cell::Number(cost.n_tokens as f64),
            Cell::Number(cost.n_certain as f64),
            Cell::Number(with),
            Cell::Number(without),
            Cell::Number(with / without),
        ])?;
    }
    report.table(table);
    report.paragraph(
        "\"Certain\" are the tokens that only one continuation of the grammar allows: the model reads them in one pass \
         with what follows.",
    );
    for cost in costs {
        report.paragraph(format!("{}: `{}`", cost.name, cost.text.trim()));
    }
    let names: Vec<String> = costs.iter().map(|cost| cost.name.clone()).collect();
    let mut chart = BarChart::new("Speed under a schema", "token/s", names);
    for (i, name) in ["with schema", "without"].into_iter().enumerate() {
        chart.series(name, costs.iter().map(|cost| Some(cost.rates[i])).collect())?;
    }
    report.chart("speed", chart.into());
    Ok(())
}
