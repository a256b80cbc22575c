//! Quantization methods compared: bytes, closeness to the reference, speed, and the time that quantizing
//! takes.
//!
//! ```sh
//! cargo run --release --example quant -- --model qwen2.5-coder-0.5b --text book.txt --calibration code.txt \
//!     --method rtn,awq,gptq --bits 4,3,nf4
//! cargo run --release --example quant -- --model qwen2.5-coder-0.5b --text book.txt --calibration code.txt \
//!     --job rtn:Q4_0 --job imatrix:Q4_0 --job gptq:Q4_0 --file llama.cpp=peer-Q3_K_M.gguf
//! ```
//! The reference is the model's own file: its decoded weights, run by the same kernels. Matrices that keep
//! the source's format lose nothing, which says nothing about the method; the column "kept" gives their
//! share, and files in which all are kept are left out of the chart. Formats of our own (`gptq:int4-g128`,
//! `hqq:int3-g64`, `awq:nf4`) make files that are laid over the source's; their bytes are those of the
//! tensors in them and of the remaining ones in the source. The report (`--out`) holds a table, `report.json`
//! and a chart.

mod embedding;
mod measure;

use std::path::PathBuf;
use std::process::ExitCode;

use breakers_cli::{Bar, Error, ModelArgs, Result, print, print_json, read_text, run};
use breakers_eval::{Cell, Column, LineChart, Report, Table};
use breakers_quant::job::JobSpec;
use breakers_tokenizer::EncodeOptions;
use clap::Parser;

use measure::{Contestant, Measurement};

/// Compares quantization methods.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    model: ModelArgs,
    /// METHOD:FORMAT, such as gptq:Q3_K, awq:int4-g128 or imatrix:like=other.gguf; may be repeated.
    #[arg(long)]
    job: Vec<JobSpec>,
    /// Methods, each with all of --bits: rtn,imatrix,awq,gptq,hqq with +rotation, +online or +tie appended.
    #[arg(long, value_delimiter = ',', requires = "bits")]
    method: Vec<String>,
    /// Bits a weight or formats for --method: 4 is Q4_K, for hqq int4-g64.
    #[arg(long, value_delimiter = ',', requires = "method", value_name = "BITS|FORMAT")]
    bits: Vec<String>,
    /// NAME=FILE: another file of the same model, such as one of llama.cpp's, or a .safetensors of
    /// `quantize`; may be repeated.
    #[arg(long)]
    file: Vec<String>,
    /// The text that predictions are compared on.
    #[arg(long, value_name = "FILE")]
    text: String,
    /// The text to calibrate with; it should not be the other one.
    #[arg(long, value_name = "FILE")]
    calibration: Option<String>,
    /// The most tokens of the calibration text that are used.
    #[arg(long, default_value_t = 32_768, value_name = "N")]
    tokens: usize,
    /// Tokens of a window, of the comparison and of the calibration.
    #[arg(long, default_value_t = 512, value_name = "N")]
    context: usize,
    /// The most windows that are compared.
    #[arg(long, default_value_t = 16, value_name = "N")]
    windows: usize,
    /// Name or folder of a sentence encoder (all-minilm-l6-v2): every method and format is also compared on
    /// it.
    #[arg(long, value_name = "NAME|FOLDER")]
    embedder: Option<String>,
    /// The folder for the quantized files; files that exist are not made again.
    #[arg(long, default_value = "target/quant", value_name = "FOLDER")]
    work: PathBuf,
    /// The folder for the report.
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Leave speeds out.
    #[arg(long)]
    no_speed: bool,
    /// Answer with one JSON object.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    run(|| {
        let arguments = Arguments::parse();
        let reference = arguments.model.load()?;
        let tokenizer = reference.model.tokenizer();
        let options = EncodeOptions { add_special: true, parse_special: false };
        let encode = |file: &str, most: usize| -> Result<Vec<u32>> {
            let mut ids = tokenizer.encode(&read_text(file)?, options)?;
            ids.truncate(most);
            Ok(ids)
        };
        let text = encode(&arguments.text, arguments.windows.saturating_mul(arguments.context))?;
        if text.len() < arguments.context {
            let n = text.len();
            return Err(Error::Usage(format!("the text has {n} tokens, fewer than a window")));
        }
        let calibration = match &arguments.calibration {
            Some(file) => encode(file, arguments.tokens)?,
            None => Vec::new(),
        };
        let mut contestants = vec![Contestant::reference(&reference)?];
        for words in &arguments.file {
            let Some((name, path)) = words.split_once('=') else {
                return Err(Error::Usage(format!("--file {words}: expected NAME=FILE")));
            };
            contestants.push(Contestant::file(name, path.as_ref(), &reference)?);
        }
        let mut jobs = arguments.job.clone();
        for method in &arguments.method {
            for bits in &arguments.bits {
                let job = JobSpec::of_bits(method, bits, false);
                jobs.push(job.map_err(|error| Error::Usage(error.to_string()))?);
            }
        }
        for job in &jobs {
            if job.needs_text() && calibration.is_empty() {
                return Err(Error::Usage(format!("--job {job} needs a --calibration text")));
            }
            contestants.push(Contestant::make(
                job,
                &reference,
                &arguments.work,
                &calibration,
                arguments.context,
            )?);
        }
        let bar = Bar::new(contestants.len(), "files");
        let mut measurements = Vec::new();
        for contestant in contestants {
            bar.doing(&contestant.name);
            let found = measure::measure(
                &arguments.model,
                &reference,
                contestant,
                &text,
                arguments.context,
                !arguments.no_speed,
            )?;
            bar.step();
            measurements.push(found);
        }
        drop(bar);
        let mut report = report(&arguments, &reference, &measurements, calibration.len())?;
        if let Some(name) = &arguments.embedder {
            let folder = ModelArgs { model: name.clone(), ..arguments.model.clone() }.file()?;
            let calibration = arguments.calibration.as_deref().unwrap_or(&arguments.text);
            let table = embedding::compare(&folder, &read_text(&arguments.text)?, &read_text(calibration)?)?;
            report.table(table);
        }
        if let Some(folder) = &arguments.out {
            report.write(folder)?;
        }
        if arguments.json {
            print_json(&report.to_json()?)?
        } else {
            print(&report.to_markdown())?
        }
        Ok(ExitCode::SUCCESS)
    })
}

fn report(
    arguments: &Arguments,
    reference: &breakers_cli::LoadedModel,
    measurements: &[Measurement],
    n_calibration: usize,
) -> Result<Report> {
    let provenance = arguments.model.provenance(&[reference])?;
    let mut report = Report::new(format!("Quantization of {}", reference.name), provenance);
    report.paragraph(format!(
        "Reference: the decoded weights of the model's own file. KL divergences in nats a token over {} places; calibration \
         with {n_calibration} tokens of another text.",
        measurements.first().map_or(0, |m| m.divergence.kl.len()),
    ));
    let mut table = Table::new("methods", "Methods");
    for column in [
        Column::new("method"),
        Column::new("file").unit("MB").decimals(1),
        Column::new("bits a weight").decimals(3),
        Column::new("bits in blocks").decimals(3),
        Column::new("kept").unit("%").decimals(0),
        Column::new("perplexity").decimals(3),
        Column::new("mean KL").decimals(5),
        Column::new("99 % KL").decimals(4),
        Column::new("same top").unit("%").decimals(2),
        Column::new("made in").unit("s").decimals(1),
        Column::new("peak memory").unit("MB").decimals(0),
        Column::new("prompt").unit("token/s").decimals(1),
        Column::new("decoding").unit("token/s").decimals(1),
    ] {
        table.column(column);
    }
    let number = |x: Option<f64>| x.map_or(Cell::Missing, Cell::Number);
    for m in measurements {
        let c = &m.contestant;
        table.row(vec![
            Cell::from(&*c.name),
            Cell::Number(c.bytes as f64 / 1e6),
            Cell::Number(c.bits),
            Cell::Number(c.block_bits),
            Cell::Number(100.0 * c.kept),
            Cell::Number(m.divergence.perplexity()),
            Cell::Number(m.divergence.mean_kl()),
            Cell::Number(m.divergence.quantile(0.99)),
            Cell::Number(100.0 * m.divergence.top_agreement()),
            number(c.seconds),
            number(c.peak_bytes.map(|bytes| bytes as f64 / 1e6)),
            number(m.prompt_rate),
            number(m.decode_rate),
        ])?;
    }
    report.table(table);
    report.chart("pareto", pareto(measurements)?.into());
    Ok(report)
}

/// Each file as a point, and a line through those that no other one beats in both bytes and closeness.
fn pareto(measurements: &[Measurement]) -> Result<LineChart> {
    let mut chart =
        LineChart::new("Bytes and closeness", "file, MB", "mean KL to the reference, nats a token");
    let mut points: Vec<(&str, f64, f64)> = measurements
        .iter()
        .filter(|m| m.contestant.kept < 1.0)
        .map(|m| (&*m.contestant.name, m.contestant.bytes as f64 / 1e6, m.divergence.mean_kl()))
        .collect();
    points.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.2.total_cmp(&b.2)));
    let mut best = f64::INFINITY;
    let mut front = Vec::new();
    for &(_, bytes, kl) in &points {
        if kl < best {
            best = kl;
            front.push((bytes, kl));
        }
    }
    chart.series("front", front)?;
    for (name, bytes, kl) in points {
        chart.series(name, vec![(bytes, kl), (bytes, kl)])?;
    }
    Ok(chart)
}
