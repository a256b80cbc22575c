//! Measurements of each file.

use std::path::{Path, PathBuf};
use std::time::Instant;

use breakers_cli::{
    Error, LoadedModel, ModelArgs, Result, peak_memory, quantize_with_bar, reset_peak_memory,
};
use breakers_core::{LanguageModel, Output, Step, TokenId, Want};
use breakers_eval::divergence::{Divergence, divergence};
use breakers_gguf as gguf;
use breakers_gguf::{Encoding, Format, MatrixFile, matrix_file};
use breakers_quant::job::{JobSpec, parts_folder};

/// Tokens of the prompt, and tokens decoded, of a measurement of speed.
const PROMPT_TOKENS: usize = 256;
const DECODED_TOKENS: usize = 32;
/// How often speed is measured; the best counts.
const ROUNDS: usize = 3;

/// Sums over the matrices of a file.
#[derive(Default)]
struct Weights {
    /// Bytes and weights: of all matrices, and of those of the blocks.
    sums: [(usize, usize); 2],
    /// Weights of the blocks in the source's format.
    kept: usize,
}

impl Weights {
    /// A tensor in some format, and in that of the source.
    fn add(&mut self, view: &gguf::TensorView<'_>, encoding: Encoding, from: Option<Format>) -> Result<()> {
        if view.shape().len() != 2 {
            return Ok(());
        }
        let in_blocks = view.name().starts_with("blk.");
        let bytes = encoding.matrix_bytes(view.n_rows(), view.n_cols())?;
        for sum in &mut self.sums[..if in_blocks { 2 } else { 1 }] {
            *sum = (sum.0 + bytes, sum.1 + view.n_values());
        }
        if in_blocks && from.map(Encoding::from) == Some(encoding) {
            self.kept += view.n_values();
        }
        Ok(())
    }

    fn bits(&self, part: usize) -> f64 {
        let (bytes, values) = self.sums[part];
        8.0 * bytes as f64 / values.max(1) as f64
    }
}

/// A file, and how it was made.
pub(crate) struct Contestant {
    pub(crate) name: String,
    path: PathBuf,
    pub(crate) bytes: u64,
    /// Bits a weight, over all matrices.
    pub(crate) bits: f64,
    /// Bits a weight, without embeddings and head.
    pub(crate) block_bits: f64,
    /// The share of the blocks' weights that keep the source's format.
    pub(crate) kept: f64,
    /// How long it took to make, if it was made now.
    pub(crate) seconds: Option<f64>,
    pub(crate) peak_bytes: Option<u64>,
}

impl Contestant {
    /// The reference itself.
    pub(crate) fn reference(reference: &LoadedModel) -> Result<Self> {
        Self::file("reference", reference.model.path(), reference)
    }

    /// A file that exists.
    pub(crate) fn file(name: &str, path: &Path, reference: &LoadedModel) -> Result<Self> {
        let source = gguf::File::open(reference.model.path())?;
        let mut weights = Weights::default();
        let bytes = if matrix_file::is_named(path) {
            let store = MatrixFile::open(path)?;
            let mut bytes = store.len_bytes();
            for view in source.tensors() {
                let found = store.encoding(view.name());
                if found.is_none() {
                    bytes += view.bytes().len();
                }
                weights.add(&view, found.unwrap_or(view.format().into()), Some(view.format()))?;
            }
            bytes
        } else {
            let file = gguf::File::open(path)?;
            for view in file.tensors() {
                let from = source.tensor(view.name()).map(|other| other.format());
                weights.add(&view, view.format().into(), from)?;
            }
            file.len_bytes()
        };
        Ok(Self {
            name: name.to_owned(),
            path: path.to_owned(),
            bytes: bytes as u64,
            bits: weights.bits(0),
            block_bits: weights.bits(1),
            kept: weights.kept as f64 / weights.sums[1].1.max(1) as f64,
            seconds: None,
            peak_bytes: None,
        })
    }

    /// Makes a file, unless it is there from an earlier run.
    pub(crate) fn make(
        job: &JobSpec,
        reference: &LoadedModel,
        work: &Path,
        calibration: &[TokenId],
        window: usize,
    ) -> Result<Self> {
        let stem = |name: &str| -> String {
            let last = Path::new(name).file_stem().unwrap_or_default().to_string_lossy();
            last.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect()
        };
        let job_name = job.to_string();
        let words: String =
            job_name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        // The last characters of a path say more than the first.
        let words = &words[words.len().saturating_sub(100)..];
        let name = format!("{}-{words}-{}.{}", stem(&reference.name), calibration.len(), job.extension());
        let path = work.join(name);
        let mut made = None;
        if !path.exists() || parts_folder(&path).exists() {
            reset_peak_memory();
            let report = quantize_with_bar(job, reference.model.path(), &path, calibration.to_vec(), window)?;
            made = Some((report.total.as_secs_f64(), peak_memory()));
        }
        let contestant = Self::file(&short(&job_name), &path, reference)?;
        Ok(match made {
            Some((seconds, peak_bytes)) => Self { seconds: Some(seconds), peak_bytes, ..contestant },
            None => contestant,
        })
    }
}

/// The job's words, without the folders of a file.
fn short(words: &str) -> String {
    match words.split_once("like=") {
        Some((method, path)) => {
            format!("{method}like {}", Path::new(path).file_name().unwrap_or_default().to_string_lossy())
        }
        None => words.to_owned(),
    }
}

pub(crate) struct Measurement {
    pub(crate) contestant: Contestant,
    pub(crate) divergence: Divergence,
    pub(crate) prompt_rate: Option<f64>,
    pub(crate) decode_rate: Option<f64>,
}

/// Compares a file with the reference on a text, and times it.
pub(crate) fn measure(
    arguments: &ModelArgs,
    reference: &LoadedModel,
    contestant: Contestant,
    text: &[TokenId],
    context: usize,
    speed: bool,
) -> Result<Measurement> {
    let candidate = match matrix_file::is_named(&contestant.path) {
        true => arguments.load_under(&contestant.path)?,
        false => arguments.load_other(&contestant.path.to_string_lossy())?,
    };
    let tokenizer = reference.model.tokenizer();
    let bos = if tokenizer.adds_bos() { tokenizer.bos() } else { None };
    let (mut a, mut b) = (reference.model.runner(), candidate.model.runner());
    let divergence = divergence(&mut a, &mut b, text, context, bos, |_, _| ())?;
    let (mut prompt_rate, mut decode_rate) = (None, None);
    if speed {
        for _ in 0..ROUNDS {
            let (prompt, decode) = rates(&mut candidate.model.runner(), text)?;
            prompt_rate = Some(prompt_rate.map_or(prompt, |best: f64| best.max(prompt)));
            decode_rate = Some(decode_rate.map_or(decode, |best: f64| best.max(decode)));
        }
    }
    Ok(Measurement { contestant, divergence, prompt_rate, decode_rate })
}

/// Tokens a second of a prompt, and of decoding behind it.
fn rates(model: &mut impl LanguageModel, text: &[TokenId]) -> Result<(f64, f64)> {
    let sequence = model.open()?;
    let prompt = &text[..text.len().min(PROMPT_TOKENS)];
    let start = Instant::now();
    let mut next = feed(model, sequence, prompt.to_vec())?;
    let prompt_rate = prompt.len() as f64 / start.elapsed().as_secs_f64();
    let start = Instant::now();
    for _ in 0..DECODED_TOKENS {
        next = feed(model, sequence, vec![next])?;
    }
    let decode_rate = DECODED_TOKENS as f64 / start.elapsed().as_secs_f64();
    model.close(sequence);
    Ok((prompt_rate, decode_rate))
}

fn feed(
    model: &mut impl LanguageModel,
    sequence: breakers_core::SequenceId,
    tokens: Vec<TokenId>,
) -> Result<TokenId> {
    let n = tokens.len();
    let mut steps = [Step::last(sequence, tokens, Want::ArgMax)];
    model.forward(&mut steps)?;
    model.commit(sequence, n)?;
    match steps[0].outputs.last().map(|row| &row.output) {
        Some(Output::ArgMax(token)) => Ok(*token),
        _ => Err(Error::Usage("the model answered with no token".to_owned())),
    }
}
