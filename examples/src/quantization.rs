//! Quantization jobs as words on a command line.

use std::path::Path;

use breakers_core::TokenId;
use breakers_model::quantize::{
    Doing, Method, Plan, Progress, QuantizeOptions, QuantizeReport, Sensitivities, quantize,
};
use breakers_quant::quantizers::{AwqConfig, GptqConfig};
use breakers_quant::{Format, gguf};

use crate::{Bar, Error, Result};

/// A method and formats, such as `gptq:Q3_K`, `gptq+rotation:Q3_K` or `imatrix:like=other.gguf`.
#[derive(Clone, Debug, PartialEq)]
pub struct JobSpec {
    /// The words.
    pub name: String,
    /// How weights are chosen.
    pub method: Method,
    /// Whether hidden states are rotated.
    pub rotation: bool,
    /// Which formats they get.
    pub formats: Formats,
}

/// Which formats matrices get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Formats {
    /// One for all but embeddings and head, which keep theirs.
    Uniform(Format),
    /// Those of another file of the same model.
    Like(String),
    /// Those that fit the blocks into so many megabytes, by what each matrix loses; embeddings and head keep theirs.
    Budget(u64),
}

/// Seed of the rotation: any will do, but equal jobs are to give equal files.
const SEED: u64 = 1;

/// Tokens that sensitivities are measured on.
const SENSITIVITY_WINDOW: usize = 256;
/// The formats that a budget is divided among.
const BUDGET_FORMATS: [Format; 4] = [Format::Q2_K, Format::Q3_K, Format::Q4_K, Format::Q6_K];

impl std::str::FromStr for JobSpec {
    type Err = String;

    fn from_str(words: &str) -> std::result::Result<Self, String> {
        let (method, formats) = words.split_once(':').ok_or("expected METHOD:FORMAT, such as gptq:Q3_K")?;
        let (method, rotation) = match method.split_once('+') {
            Some((method, "rotation")) => (method, true),
            Some((_, other)) => return Err(format!("{other:?} is not `rotation`")),
            None => (method, false),
        };
        let method = match method {
            "rtn" => Method::RoundToNearest { weighted: false },
            "imatrix" => Method::RoundToNearest { weighted: true },
            "awq" => Method::Awq(AwqConfig::default()),
            "gptq" => Method::Gptq(GptqConfig::default()),
            other => return Err(format!("unknown method {other:?}: rtn, imatrix, awq, gptq")),
        };
        let megabytes = formats
            .strip_prefix("budget=")
            .map(|number| number.parse().map_err(|_| format!("{number:?} is no number of megabytes")));
        let formats = match (formats.strip_prefix("like="), megabytes.transpose()?) {
            (Some(path), _) => Formats::Like(path.to_owned()),
            (_, Some(megabytes)) => Formats::Budget(megabytes),
            (None, None) => {
                let found = Format::ALL.into_iter().find(|f| f.name().eq_ignore_ascii_case(formats));
                let known = || Format::ALL.map(Format::name).join(", ");
                Formats::Uniform(found.ok_or_else(|| format!("unknown format {formats:?}: {}", known()))?)
            }
        };
        Ok(Self { name: words.to_owned(), method, rotation, formats })
    }
}

impl JobSpec {
    /// The formats of a model's matrices.
    ///
    /// # Errors
    /// If the other file cannot be read or is of another model; [`Error::Usage`] for a budget that nothing fits; those of
    /// [`Sensitivities::measure`].
    pub fn plan(&self, file: &gguf::File, tokens: &[TokenId]) -> Result<Plan> {
        Ok(match &self.formats {
            Formats::Uniform(format) => {
                Plan::by(file, |name, from| if name.starts_with("blk.") { *format } else { from })
            }
            Formats::Like(path) => Plan::like(file, &gguf::File::open(path)?)?,
            Formats::Budget(megabytes) => {
                let windows: Vec<Vec<TokenId>> =
                    tokens.chunks_exact(SENSITIVITY_WINDOW).take(1).map(<[TokenId]>::to_vec).collect();
                let mut bar: Option<Bar> = None;
                let found = Sensitivities::measure(file, windows, &BUDGET_FORMATS, &mut |done, all| {
                    bar.get_or_insert_with(|| Bar::new(all, "matrices")).done(done);
                })?;
                let plan = found.allocate(file, megabytes.saturating_mul(1_000_000));
                plan.ok_or_else(|| {
                    Error::Usage(format!("{megabytes} MB hold not even the smallest formats"))
                })?
            }
        })
    }

    /// Runs the job, with a bar on standard error.
    ///
    /// # Errors
    /// Those of [`quantize`].
    pub fn run(
        &self,
        source: &Path,
        out: &Path,
        tokens: Vec<TokenId>,
        window: usize,
    ) -> Result<QuantizeReport> {
        let file = gguf::File::open(source)?;
        let plan = self.plan(&file, &tokens)?;
        let mut options = QuantizeOptions::new(self.method, tokens);
        options.window = window;
        options.rotation = self.rotation.then_some(SEED);
        if let Some(folder) = out.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder)
                .map_err(|error| Error::Usage(format!("{}: {error}", folder.display())))?;
        }
        let mut bar: Option<Bar> = None;
        let mut progress = |progress: Progress| {
            let bar = bar.get_or_insert_with(|| Bar::new(progress.steps, "steps"));
            if !matches!(progress.doing, Doing::Reading { .. }) {
                bar.done(progress.done);
            }
        };
        Ok(quantize(source, out, &plan, &options, &mut progress)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_become_jobs() {
        let job: JobSpec = "gptq+rotation:q3_k".parse().unwrap();
        assert!(job.rotation && job.formats == Formats::Uniform(Format::Q3_K) && job.method.name() == "gptq");
        let job: JobSpec = "imatrix:like=a:b.gguf".parse().unwrap();
        assert_eq!(job.formats, Formats::Like("a:b.gguf".to_owned()));
        let job: JobSpec = "gptq:budget=400".parse().unwrap();
        assert_eq!(job.formats, Formats::Budget(400));
        for wrong in ["", "gptq", "gptq:Q9", "magic:Q4_0", "gptq+magic:Q4_0", "gptq:budget=x"] {
            assert!(wrong.parse::<JobSpec>().is_err(), "{wrong}");
        }
    }
}
