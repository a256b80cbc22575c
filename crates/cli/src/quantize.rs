//! Models in smaller formats: what `breakers quantize` and the example `quantize` share.

use std::path::PathBuf;
use std::process::ExitCode;

use breakers_gguf as gguf;
use breakers_gguf::matrix_file;
use breakers_quant::job::JobSpec;
use breakers_tokenizer::{EncodeOptions, Tokenizer};
use serde_json::json;

use super::input::at_home;
use super::{Error, ModelArgs, Result, peak_memory, print, print_json, quantize_with_bar, read_text};

/// Flags of `breakers quantize`.
#[derive(Clone, Debug, clap::Args)]
pub struct QuantizeArgs {
    /// The model, in place of --model.
    #[arg(value_name = "MODEL", conflicts_with = "model")]
    pub name: Option<String>,
    /// What to quantize.
    #[command(flatten)]
    pub model: ModelArgs,
    /// METHOD:FORMAT, such as gptq:Q3_K, awq:int4-g128, gptq+rotation:Q4_K or imatrix:like=other.gguf.
    #[arg(long, required_unless_present = "method", conflicts_with_all = ["method", "bits", "budget"])]
    pub job: Option<JobSpec>,
    /// Instead of --job: rtn, imatrix, awq, gptq or hqq, optionally followed by +rotation, +online or +tie.
    #[arg(long)]
    pub method: Option<String>,
    /// Bits per weight, or a format. 4 means Q4_K in a GGUF file and int4-g64 in a .safetensors file.
    #[arg(long, default_value = "4", value_name = "BITS|FORMAT")]
    pub bits: String,
    /// Megabytes for the matrices of all blocks, instead of --bits. Formats are chosen by what each matrix
    /// loses.
    #[arg(long, value_name = "MB", conflicts_with = "bits")]
    pub budget: Option<u64>,
    /// The text to calibrate with; - reads standard input.
    #[arg(long, value_name = "FILE")]
    pub text: Option<String>,
    /// The most tokens of the text to use.
    #[arg(long, default_value_t = 32_768, value_name = "N")]
    pub tokens: usize,
    /// Tokens per context.
    #[arg(long, default_value_t = 512, value_name = "N",
        value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    pub window: usize,
    /// The file to write: .gguf, or .safetensors for formats that GGUF does not have.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Answer with one JSON object.
    #[arg(long)]
    pub json: bool,
}

impl QuantizeArgs {
    fn job(&self) -> Result<JobSpec> {
        if let Some(job) = &self.job {
            return Ok(job.clone());
        }
        // The command line has one of the two, or clap would have refused it.
        let method = self.method.as_deref().unwrap_or_default();
        let job = match self.budget {
            Some(megabytes) => format!("{method}:budget={megabytes}").parse(),
            None => JobSpec::of_bits(method, &self.bits, matrix_file::is_named(&self.out)),
        };
        job.map_err(|error| Error::Usage(error.to_string()))
    }
}

/// Quantizes a model into a file, with bars on standard error.
///
/// # Errors
/// [`Error::Usage`] if there is no valid job, or if it needs a text and has none; the errors of the hub, of
/// the tokenizer and of the job.
pub fn quantize(arguments: &QuantizeArgs) -> Result<ExitCode> {
    let mut model = arguments.model.clone();
    if let Some(name) = &arguments.name {
        model.model.clone_from(name);
    }
    model.apply()?;
    let job = arguments.job()?;
    let source = model.file()?;
    let out = arguments.out.to_str().map_or_else(|| arguments.out.clone(), |path| at_home(path).into());
    let mut ids = Vec::new();
    if job.needs_text() {
        let Some(text) = &arguments.text else {
            return Err(Error::Usage(format!("--job {job} needs a --text to calibrate with")));
        };
        let tokenizer = Tokenizer::from_gguf(&gguf::File::open(&source)?)?;
        let options = EncodeOptions { add_special: true, parse_special: false };
        ids = tokenizer.encode(&read_text(text)?, options)?;
        ids.truncate(arguments.tokens);
    }
    let report = quantize_with_bar(&job, &source, &out, ids, arguments.window)?;
    let seconds = |time: std::time::Duration| time.as_secs_f64();
    let errors: Vec<f64> = report.tensors.iter().filter_map(|tensor| tensor.output_error).collect();
    let mean_error = (!errors.is_empty()).then(|| errors.iter().sum::<f64>() / errors.len() as f64);
    let memory = peak_memory();
    if arguments.json {
        let tensors: Vec<_> = report
            .tensors
            .iter()
            .map(|tensor| {
                json!({
                    "name": tensor.name,
                    "from": tensor.from.name(),
                    "to": tensor.to.name(),
                    "kept": tensor.kept,
                    "weight_error": tensor.weight_error,
                    "output_error": tensor.output_error,
                    "damping": tensor.damping,
                })
            })
            .collect();
        print_json(&json!({
            "job": job.to_string(),
            "bytes": report.bytes,
            "tokens": report.n_tokens,
            "seconds": seconds(report.total),
            "reading_s": seconds(report.reading),
            "observing_s": seconds(report.observing),
            "quantizing_s": seconds(report.quantizing),
            "peak_bytes": memory,
            "resumed": report.resumed,
            "mean_output_error": mean_error,
            "notes": report.notes,
            "tensors": tensors,
        }))?;
    } else {
        for note in &report.notes {
            print(&format!("note: {note}\n"))?;
        }
        print(&format!(
            "{} bytes in {:.1} s: {:.1} s reading {} tokens ({:.1} s of it statistics), {:.1} s choosing weights; peak \
             memory {} MB{}\n",
            report.bytes,
            seconds(report.total),
            seconds(report.reading),
            report.n_tokens,
            seconds(report.observing),
            seconds(report.quantizing),
            memory.map_or_else(|| "unknown".to_owned(), |bytes| (bytes / 1_000_000).to_string()),
            mean_error.map_or_else(String::new, |error| format!("; mean error of outputs {error:.5}")),
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}
