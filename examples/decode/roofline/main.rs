//! Where the time of a forward pass goes, and how close that is to the limits of the machine.
//!
//! ```sh
//! cargo run --release --example roofline
//! cargo run --release --example roofline -- --model qwen2.5-coder-1.5b --threads 1 --depth 2048
//! ```
//! The machine's bandwidth for reading and its peaks for products of bytes and of `f32` are measured first,
//! with the same threads and instructions as the model's kernels. Then passes over `--rows` rows after
//! `--depth` tokens are timed. An operation's roof is the larger of (bytes of weights or cache ÷ bandwidth)
//! and (operations ÷ peak); operations without a roof should take little time. On GPUs work is queued, so
//! only whole passes can be timed.
//!
//! JSON: the report, whose tables are `machine`, `passes` and `operations`.

mod machine;
mod spans;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use breakers_backend::device;
use breakers_cli::{Bar, LoadedModel, ModelArgs, Result, finish, run};
use breakers_core::{LanguageModel, SequenceId, Step, TokenId, Want};
use breakers_cpu::pool;
use breakers_eval::{BarChart, Cell, Column, Report, Table, stats};
use breakers_model::Runner;
use clap::Parser;

use crate::machine::Machine;
use crate::spans::Spans;

/// Where the time of a forward pass goes.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    model: ModelArgs,
    /// Rows of the passes: 1 as in decoding, some as in verifying drafts, many as for prompts.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 4, 8, 16, 512], value_name = "N",
        value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    rows: Vec<usize>,
    /// Tokens before the rows.
    #[arg(long, default_value_t = 64, value_name = "N")]
    depth: usize,
    /// Passes of each number of rows; medians count.
    #[arg(long, default_value_t = 15, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    repeat: u16,
    /// Folder of the report.
    #[arg(long, default_value = "target/reports/roofline", value_name = "FOLDER")]
    out: PathBuf,
    /// Answer with one JSON object: the report.
    #[arg(long)]
    json: bool,
}

/// The passes over one number of rows.
struct Passes {
    rows: usize,
    seconds: f64,
    /// Seconds by operation, in the order of `names`.
    operations: Vec<(String, f64)>,
}

fn main() -> ExitCode {
    run(|| {
        let arguments = Arguments::parse();
        let loaded = arguments.model.load()?;
        let bar = Bar::new(arguments.rows.len() + 1, "measurements");
        bar.doing("the machine");
        let machine = Machine::measure();
        bar.step();
        let mut all = Vec::new();
        for &rows in &arguments.rows {
            bar.doing(&format!("{rows} rows"));
            all.push(measure(&loaded, rows, &arguments)?);
            bar.step();
        }
        drop(bar);
        let report = report(&arguments, &loaded, machine, &all)?;
        let json = if arguments.json { Some(report.to_json()?) } else { None };
        finish(&report, &arguments.out, json)?;
        Ok(ExitCode::SUCCESS)
    })
}

/// Times passes over some rows, each from the same state.
fn measure(loaded: &LoadedModel, rows: usize, arguments: &Arguments) -> Result<Passes> {
    let mut runner = loaded.model.runner();
    let sequence = runner.open()?;
    let vocab_size = loaded.model.info().vocab_size;
    let tokens = |n: usize| (0..n).map(|i| ((i * 7919 + 13) % vocab_size) as TokenId).collect::<Vec<_>>();
    feed(&mut runner, sequence, tokens(arguments.depth))?;
    let spans = Arc::new(Spans::default());
    let mut seconds = Vec::new();
    let mut operations: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    // One more pass, which is not counted.
    for pass in 0..=arguments.repeat {
        let started = Instant::now();
        tracing::subscriber::with_default(Arc::clone(&spans), || feed(&mut runner, sequence, tokens(rows)))?;
        let elapsed = started.elapsed();
        runner.truncate(sequence, arguments.depth)?;
        let sums = spans.take();
        if pass > 0 {
            seconds.push(elapsed.as_secs_f64());
            let rest = elapsed.saturating_sub(sums.values().sum::<Duration>());
            for (name, time) in sums.into_iter().chain([("rest", rest)]) {
                operations.entry(name).or_default().push(time.as_secs_f64());
            }
        }
    }
    let mut medians = Vec::new();
    if device::is_cpu(loaded.model.device()) {
        for (name, times) in operations {
            medians.push((name.to_owned(), stats::median(&times)?));
        }
        medians.sort_by(|a, b| b.1.total_cmp(&a.1));
    }
    Ok(Passes { rows, seconds: stats::median(&seconds)?, operations: medians })
}

/// One forward pass that returns the best token of the last row, as decoding does.
fn feed(runner: &mut Runner, sequence: SequenceId, tokens: Vec<TokenId>) -> Result {
    let n_tokens = tokens.len();
    if n_tokens > 0 {
        runner.forward(&mut [Step::last(sequence, tokens, Want::ArgMax)])?;
        runner.commit(sequence, n_tokens)?;
    }
    Ok(())
}

/// The least that an operation costs.
struct Roof {
    bytes: usize,
    operations: usize,
    seconds: f64,
}

impl Roof {
    /// `peak`: operations a second.
    fn new(machine: &Machine, bytes: usize, operations: usize, peak: f64) -> Self {
        let seconds = (bytes as f64 / machine.read_bandwidth).max(operations as f64 / peak);
        Self { bytes, operations, seconds }
    }
}

/// The roofs of a pass by operation.
fn roofs(
    loaded: &LoadedModel,
    machine: &Machine,
    depth: usize,
    passes: &Passes,
) -> BTreeMap<&'static str, Roof> {
    let mut roofs: BTreeMap<_, _> = loaded
        .model
        .products()
        .into_iter()
        .map(|cost| {
            // Only the last row of a prompt goes through the head.
            let rows = if cost.name == "head" { 1 } else { passes.rows };
            let operations = 2 * rows * cost.multiplications;
            (cost.name, Roof::new(machine, cost.bytes, operations, machine.int8_ops))
        })
        .collect();
    let operations = 2 * loaded.model.attention_multiplications(depth, passes.rows);
    let bytes = loaded.model.attention_bytes(depth, passes.rows);
    roofs.insert("attention", Roof::new(machine, bytes, operations, machine.f32_ops));
    roofs
}

fn report(arguments: &Arguments, loaded: &LoadedModel, machine: Machine, all: &[Passes]) -> Result<Report> {
    let mut provenance = arguments.model.provenance(&[loaded])?;
    for (name, value) in [("depth", arguments.depth), ("passes", arguments.repeat.into())] {
        provenance.settings.insert(name.to_owned(), value.to_string());
    }
    let mut peaks = Table::new("machine", "What the machine does at most");
    peaks.column(Column::new("what")).column(Column::new("peak").decimals(1)).column(Column::new("unit"));
    for (what, value, unit) in [
        ("reading memory", machine.read_bandwidth, "GB/s"),
        ("products of bytes", machine.int8_ops, "Gop/s"),
        ("products of f32", machine.f32_ops, "Gop/s"),
    ] {
        peaks.row(vec![what.into(), (value / 1e9).into(), unit.into()])?;
    }

    let mut totals = Table::new("passes", format!("Passes behind {} tokens", arguments.depth));
    totals
        .column(Column::new("rows"))
        .column(Column::new("time").unit("ms").decimals(3))
        .column(Column::new("per 1 row"))
        .column(Column::new("speed").unit("row/s").decimals(1))
        .column(Column::new("roof").unit("ms").decimals(3))
        .column(Column::new("of the roof").unit("%").decimals(0));
    let mut table = Table::new("operations", "Operations of a pass");
    table
        .column(Column::new("rows"))
        .column(Column::new("operation"))
        .column(Column::new("read").unit("MB").decimals(2))
        .column(Column::new("operations").unit("Gop").decimals(3))
        .column(Column::new("time").unit("ms").decimals(3))
        .column(Column::new("of the pass").unit("%").decimals(1))
        .column(Column::new("roof").unit("ms").decimals(3))
        .column(Column::new("of the roof").unit("%").decimals(0));
    let single = all.iter().find(|passes| passes.rows == 1).map(|passes| passes.seconds);
    let mut charts = Vec::new();
    for passes in all {
        let roofs = roofs(loaded, &machine, arguments.depth, passes);
        let least: f64 = roofs.values().map(|roof| roof.seconds).sum();
        totals.row(vec![
            passes.rows.into(),
            (1e3 * passes.seconds).into(),
            single.map(|single| passes.seconds / single).into(),
            (passes.rows as f64 / passes.seconds).into(),
            (1e3 * least).into(),
            (100.0 * least / passes.seconds).into(),
        ])?;
        let mut chart = BarChart::new(
            format!("{}, {} rows: time and roof", loaded.name, passes.rows),
            "ms",
            passes.operations.iter().map(|operation| operation.0.clone()),
        )
        .decimals(2);
        let mut bars = (Vec::new(), Vec::new());
        for (name, seconds) in &passes.operations {
            let roof = roofs.get(name.as_str());
            bars.0.push(Some(1e3 * seconds));
            bars.1.push(roof.map(|roof| 1e3 * roof.seconds));
            table.row(vec![
                passes.rows.into(),
                Cell::from(name.as_str()),
                roof.map(|roof| roof.bytes as f64 / 1e6).into(),
                roof.map(|roof| roof.operations as f64 / 1e9).into(),
                (1e3 * seconds).into(),
                (100.0 * seconds / passes.seconds).into(),
                roof.map(|roof| 1e3 * roof.seconds).into(),
                roof.map(|roof| 100.0 * roof.seconds / seconds).into(),
            ])?;
        }
        if !passes.operations.is_empty() {
            chart.series("measured", bars.0)?;
            chart.series("roof", bars.1)?;
            charts.push((format!("rows_{}", passes.rows), chart));
        }
    }
    let mut report = Report::new(format!("Roofline of {}", loaded.name), provenance);
    report
        .paragraph(format!(
            "{} threads. An operation's roof is the larger of its bytes (weights, or the cache) over the bandwidth for \
             reading and its operations over the peak: that for bytes of products with weights, that for f32 of \
             attention.",
            pool::threads()
        ))
        .table(peaks)
        .table(totals)
        .table(table);
    for (name, chart) in charts {
        report.chart(&name, chart.into());
    }
    Ok(report)
}
