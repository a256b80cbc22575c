//! Jobs as words.

use std::fmt::{self, Display};
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use breakers_core::TokenId;
use breakers_gguf as gguf;
use breakers_gguf::{Encoding, Format};

use super::{Plan, Progress, QuantizeOptions, QuantizeReport, Rotate, Sensitivities, Stage, quantize};
use crate::quantizer::Quantizer;
use crate::{Error, Result, methods};

/// A method and formats, as text or as values.
///
/// `METHOD[+rotation|+online][+tie]:FORMATS[,NAME=FORMAT]…`
///
/// | words | meaning |
/// |---|---|
/// | `rtn`, `gptq`, … | a method of [`METHODS`](methods::METHODS) |
/// | `+rotation` | the hidden states are rotated, folded into the weights ([`Rotate::Folded`]); `+rotation-7` with seed 7 |
/// | `+online` | each matrix's inputs are rotated as the model runs ([`Rotate::Online`]); `+online-7` with seed 7 |
/// | `+tie` | embeddings and head become one table, if they are the same numbers |
/// | `Q4_0`, `int4-g128`, … | that format for all matrices of the blocks |
/// | `like=other.gguf` | the formats of another file of the same model |
/// | `budget=400` | the k-quants that lose least within 400 million bytes for the blocks |
/// | `budget=400:int3-g64+nf4` | the same among other formats |
/// | `,ffn_up=IQ4_NL` | another format for matrices with this in their names; the last of several that fit counts |
///
/// # Example
/// ```
/// use breakers_quant::job::JobSpec;
///
/// # fn main() -> Result<(), breakers_quant::Error> {
/// let job: JobSpec = "gptq+online:int4-g128".parse()?;
/// assert_eq!(job.quantizer.name(), "gptq");
/// assert_eq!(job.extension(), "safetensors");
/// assert_eq!(job.to_string(), "gptq+online:int4-g128");
/// let wrong = "gptq+sideways:int4-g128".parse::<JobSpec>().unwrap_err();
/// let expected = "unknown addition to a method \"sideways\"; expected rotation, online, tie";
/// assert_eq!(wrong.to_string(), expected);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct JobSpec {
    /// How weights are chosen. Your own quantizer also has a name, which [`Display`] shows, but it cannot be
    /// parsed.
    pub quantizer: Arc<dyn Quantizer>,
    /// A rotation to apply before the method.
    pub rotation: Option<Rotate>,
    /// Whether embeddings and head become one table, if they are the same numbers.
    pub tie: bool,
    /// Which formats the matrices get.
    pub formats: Formats,
    /// Other formats for matrices whose names contain a text. If several match, the last one counts.
    pub exceptions: Vec<(String, Encoding)>,
}

/// Which formats matrices get.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Formats {
    /// One format for all matrices except embeddings and head, which keep theirs.
    Uniform(Encoding),
    /// Those of another file of the same model.
    Like(String),
    /// The formats that lose least within a number of bytes for the blocks; embeddings and head keep theirs.
    Budget {
        /// Millions of bytes.
        megabytes: u64,
        /// The formats to choose from.
        among: Vec<Encoding>,
    },
}

/// Seed of a rotation if none is given: any will do, but equal jobs must give equal files.
const SEED: u64 = 1;
/// Tokens that sensitivities are measured on.
const SENSITIVITY_WINDOW: usize = 256;
/// The formats that a budget is divided among, if none are given.
const BUDGET_FORMATS: [Format; 4] = [Format::Q2_K, Format::Q3_K, Format::Q4_K, Format::Q6_K];

impl JobSpec {
    /// The job of a method, with its `+rotation` and `+tie`, and a number of bits: k-quants, or integers with
    /// offsets in groups of 64 where the output is `own` (a file that may hold formats of our own) or the
    /// method needs them. Instead of a number, `bits` may be the name of a format.
    ///
    /// # Errors
    /// [`Error::Words`] for words that are not a method or a format.
    pub fn of_bits(method: &str, bits: &str, own: bool) -> Result<Self> {
        let method = Method::parse(method)?;
        let own = own || method.quantizer.check(Format::Q4_K.into()).is_err();
        let format = match bits.parse::<u8>() {
            Ok(n @ 2..=8) if own => format!("int{n}-g64"),
            Ok(n @ 2..=6) => format!("Q{n}_K"),
            Ok(8) => "Q8_0".to_owned(),
            Ok(_) => {
                let expected = if own { "2 to 8" } else { "2 to 6 or 8, which GGUF has formats of" };
                let (what, found) = ("number of bits", bits.to_owned());
                return Err(Error::Words { what, expected: expected.to_owned(), found });
            }
            Err(_) => bits.to_owned(),
        };
        Ok(method.with(Formats::Uniform(encoding(&format)?), Vec::new()))
    }

    /// The extension of the job's file: GGUF supports neither formats of our own nor rotated inputs.
    pub fn extension(&self) -> &'static str {
        let is_own = |encoding: &Encoding| matches!(encoding, Encoding::Groups(_));
        let has_own = match &self.formats {
            Formats::Uniform(encoding) => is_own(encoding),
            Formats::Budget { among, .. } => among.iter().any(is_own),
            Formats::Like(_) => false,
        };
        let has_own = has_own || matches!(self.rotation, Some(Rotate::Online { .. }));
        let has_own = has_own || self.exceptions.iter().any(|(_, encoding)| is_own(encoding));
        if has_own { "safetensors" } else { "gguf" }
    }

    /// Whether the job needs a text: for its method, or to measure what formats lose.
    pub fn needs_text(&self) -> bool {
        self.quantizer.needs().is_some() || matches!(self.formats, Formats::Budget { .. })
    }

    /// The formats of a model's matrices. A budget is divided by what the first 256 `tokens` show; `progress`
    /// reports on that.
    ///
    /// # Errors
    /// [`Error::Gguf`] if the other file cannot be read, [`Error::MissingTensor`] if it is of another model;
    /// [`Error::Budget`] if it is too small; [`Error::Words`] for exceptions that match no matrix; those of
    /// [`Sensitivities::measure`].
    pub fn plan(
        &self,
        file: &gguf::File,
        tokens: &[TokenId],
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Plan> {
        let mut plan = match &self.formats {
            Formats::Uniform(format) => {
                Plan::by(file, |name, from| if name.starts_with("blk.") { *format } else { from.into() })
            }
            Formats::Like(path) => Plan::like(file, &gguf::File::open(path)?)?,
            Formats::Budget { megabytes, among } => {
                let windows: Vec<Vec<TokenId>> =
                    tokens.chunks_exact(SENSITIVITY_WINDOW).take(1).map(<[TokenId]>::to_vec).collect();
                if windows.is_empty() {
                    return Err(Error::TooLittleText { expected: SENSITIVITY_WINDOW, found: tokens.len() });
                }
                let mut tell = |done, steps| progress(Progress { done, steps, stage: Stage::Measuring });
                let found = Sensitivities::measure(file, windows, among, &mut tell)?;
                found.allocate(file, megabytes.saturating_mul(1_000_000))?
            }
        };
        for (words, format) in &self.exceptions {
            let names: Vec<String> =
                plan.iter().map(|(name, _)| name.to_owned()).filter(|name| name.contains(words)).collect();
            if names.is_empty() {
                let expected = "a part of a matrix's name, such as ffn_up or blk.3.".to_owned();
                return Err(Error::Words { what: "matrix", expected, found: words.clone() });
            }
            for name in names {
                let n_cols = file.tensor(&name).map_or(0, |view| view.n_cols());
                plan.set(&name, *format, n_cols);
            }
        }
        Ok(plan)
    }

    /// The job's options for [`quantize`], apart from the plan.
    pub fn options(&self, tokens: Vec<TokenId>) -> QuantizeOptions {
        let options = QuantizeOptions::new(self.quantizer.clone(), tokens);
        QuantizeOptions { rotation: self.rotation, tie: self.tie, ..options }
    }

    /// Plans the job and runs it, with windows of `window` tokens. The folder of `out` is created if it does
    /// not exist.
    ///
    /// # Errors
    /// Those of [`plan`](Self::plan) and [`quantize`].
    pub fn run(
        &self,
        source: &Path,
        out: &Path,
        tokens: Vec<TokenId>,
        window: usize,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<QuantizeReport> {
        let options = QuantizeOptions { window, ..self.options(tokens) };
        if let Some(folder) = out.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder)
                .map_err(|source| Error::Io { path: folder.to_owned(), source })?;
        }
        let plan = self.plan(&gguf::File::open(source)?, &options.tokens, progress)?;
        quantize(source, out, &plan, &options, progress)
    }
}

impl FromStr for JobSpec {
    type Err = Error;

    /// # Errors
    /// [`Error::Words`], which says which words are wrong and what they may be.
    fn from_str(words: &str) -> Result<Self> {
        let (method, formats) = words.split_once(':').ok_or_else(|| Error::Words {
            what: "job",
            expected: "METHOD:FORMAT, such as gptq:Q3_K".to_owned(),
            found: words.to_owned(),
        })?;
        let method = Method::parse(method)?;
        let mut formats = formats.split(',');
        let base = formats.next().unwrap_or_default();
        let exceptions = formats.map(|words| {
            let (name, format) =
                words.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or_else(|| Error::Words {
                    what: "exception",
                    expected: "NAME=FORMAT, such as ffn_up=IQ4_NL".to_owned(),
                    found: words.to_owned(),
                })?;
            Ok((name.to_owned(), encoding(format)?))
        });
        let exceptions = exceptions.collect::<Result<_>>()?;
        Ok(method.with(base.parse()?, exceptions))
    }
}

/// The part before the colon.
struct Method {
    quantizer: Arc<dyn Quantizer>,
    rotation: Option<Rotate>,
    tie: bool,
}

impl Method {
    fn parse(words: &str) -> Result<Self> {
        let mut words = words.split('+');
        let quantizer = methods::named(words.next().unwrap_or_default())?;
        let mut method = Self { quantizer, rotation: None, tie: false };
        for word in words {
            let (name, seed) = match word.split_once('-') {
                Some((name, seed)) => (name, seed.parse().ok()),
                None => (word, Some(SEED)),
            };
            let is_second = match (name, seed) {
                ("rotation", Some(seed)) => method.rotation.replace(Rotate::Folded { seed }).is_some(),
                ("online", Some(seed)) => method.rotation.replace(Rotate::Online { seed }).is_some(),
                ("tie", _) if word == "tie" => std::mem::replace(&mut method.tie, true),
                _ => {
                    let (what, expected) = ("addition to a method", "rotation, online, tie".to_owned());
                    return Err(Error::Words { what, expected, found: word.to_owned() });
                }
            };
            if is_second {
                let (what, expected) = ("second addition", "one rotation, and tie once".to_owned());
                return Err(Error::Words { what, expected, found: word.to_owned() });
            }
        }
        Ok(method)
    }

    fn with(self, formats: Formats, exceptions: Vec<(String, Encoding)>) -> JobSpec {
        let Self { quantizer, rotation, tie } = self;
        JobSpec { quantizer, rotation, tie, formats, exceptions }
    }
}

/// The format with this name.
fn encoding(name: &str) -> Result<Encoding> {
    Encoding::parse(name).ok_or_else(|| {
        let known = Format::ALL.map(Format::name).join(", ");
        let expected = format!("{known}, intB-gN, symB-gN (B bits, groups of N), nf4, nvfp4");
        Error::Words { what: "format", expected, found: name.to_owned() }
    })
}

impl FromStr for Formats {
    type Err = Error;

    /// # Errors
    /// [`Error::Words`] for words that name no format and no budget.
    fn from_str(words: &str) -> Result<Self> {
        if let Some(path) = words.strip_prefix("like=") {
            return Ok(Self::Like(path.to_owned()));
        }
        let Some(budget) = words.strip_prefix("budget=") else { return Ok(Self::Uniform(encoding(words)?)) };
        let (number, among) = match budget.split_once(':') {
            Some((number, among)) => (number, among.split('+').map(encoding).collect::<Result<Vec<_>>>()?),
            None => (budget, BUDGET_FORMATS.map(Encoding::from).to_vec()),
        };
        let megabytes = number.parse().map_err(|_| Error::Words {
            what: "budget",
            expected: "a whole number of megabytes, such as 400".to_owned(),
            found: number.to_owned(),
        })?;
        Ok(Self::Budget { megabytes, among })
    }
}

impl Display for JobSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.quantizer.name())?;
        let (word, seed) = match self.rotation {
            None => ("", SEED),
            Some(Rotate::Folded { seed }) => ("+rotation", seed),
            Some(Rotate::Online { seed }) => ("+online", seed),
        };
        f.write_str(word)?;
        if seed != SEED {
            write!(f, "-{seed}")?;
        }
        f.write_str(if self.tie { "+tie" } else { "" })?;
        write!(f, ":{}", self.formats)?;
        self.exceptions.iter().try_for_each(|(name, encoding)| write!(f, ",{name}={encoding}"))
    }
}

impl Display for Formats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uniform(encoding) => write!(f, "{encoding}"),
            Self::Like(path) => write!(f, "like={path}"),
            Self::Budget { megabytes, among } => {
                write!(f, "budget={megabytes}")?;
                if *among == BUDGET_FORMATS.map(Encoding::from) {
                    return Ok(());
                }
                let names: Vec<String> = among.iter().map(|encoding| encoding.name()).collect();
                write!(f, ":{}", names.join("+"))
            }
        }
    }
}
