//! Quantization jobs as words on a command line.

use std::path::Path;

use breakers_core::TokenId;
use breakers_gguf as gguf;
use breakers_gguf::{Encoding, Format};
use breakers_model::quantize::{
    Doing, Method, Plan, Progress, QuantizeOptions, QuantizeReport, Rotate, Sensitivities, quantize,
};
use breakers_quant::quantizers::{AwqConfig, GptqConfig, HqqConfig};

use super::{Bar, Error, Result};

/// A method and formats, such as `gptq:Q3_K`, `gptq+rotation:Q3_K` or `imatrix+tie:like=other.gguf,ffn_up=IQ4_NL`.
#[derive(Clone, Debug, PartialEq)]
pub struct JobSpec {
    /// The words.
    pub name: String,
    /// How weights are chosen.
    pub method: Method,
    /// A rotation ahead of the method: `+rotation` of the hidden states, `+online` of each matrix's inputs.
    pub rotation: Option<Rotate>,
    /// Whether embeddings and head become one table, if they are the same numbers.
    pub tie: bool,
    /// Which formats they get.
    pub formats: Formats,
    /// Other formats for the matrices whose names contain some words, the last of several that fit.
    pub exceptions: Vec<(String, Encoding)>,
}

/// Which formats matrices get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Formats {
    /// One for all but embeddings and head, which keep theirs.
    Uniform(Encoding),
    /// Those of another file of the same model.
    Like(String),
    /// Those that fit the blocks into so many megabytes, by what each matrix loses; embeddings and head keep theirs.
    Budget {
        /// Millions of bytes.
        megabytes: u64,
        /// The formats to choose from.
        among: Vec<Encoding>,
    },
}

/// Seed of the rotation: any will do, but equal jobs are to give equal files.
const SEED: u64 = 1;

/// Tokens that sensitivities are measured on.
const SENSITIVITY_WINDOW: usize = 256;
/// The formats that a budget is divided among, if none are given.
const BUDGET_FORMATS: &str = "Q2_K+Q3_K+Q4_K+Q6_K";

impl std::str::FromStr for JobSpec {
    type Err = String;

    fn from_str(words: &str) -> std::result::Result<Self, String> {
        let (method, formats) = words.split_once(':').ok_or("expected METHOD:FORMAT, such as gptq:Q3_K")?;
        let mut words_of_method = method.split('+');
        let method = words_of_method.next().unwrap_or_default();
        let (mut rotation, mut tie) = (None, false);
        for word in words_of_method {
            match word {
                "rotation" => rotation = Some(Rotate::Folded { seed: SEED }),
                "online" => rotation = Some(Rotate::Online { seed: SEED }),
                "tie" => tie = true,
                other => return Err(format!("{other:?} is none of `rotation`, `online` and `tie`")),
            }
        }
        let method = match method {
            "rtn" => Method::RoundToNearest { weighted: false },
            "imatrix" => Method::RoundToNearest { weighted: true },
            "awq" => Method::Awq(AwqConfig::default()),
            "gptq" => Method::Gptq(GptqConfig::default()),
            "hqq" => Method::Hqq(HqqConfig::default()),
            other => return Err(format!("unknown method {other:?}: rtn, imatrix, awq, gptq, hqq")),
        };
        let mut formats = formats.split(',');
        let base = formats.next().unwrap_or_default();
        let format = |name: &str| {
            let known = || Format::ALL.map(Format::name).join(", ");
            let own = "intB-gN, symB-gN (B bits, groups of N), nf4, nvfp4";
            Encoding::parse(name).ok_or_else(|| format!("unknown format {name:?}: {}, {own}", known()))
        };
        let exceptions = formats.map(|words| {
            let (name, of) =
                words.split_once('=').ok_or_else(|| format!("{words:?}: expected NAME=FORMAT"))?;
            Ok((name.to_owned(), format(of)?))
        });
        let exceptions = exceptions.collect::<std::result::Result<_, String>>()?;
        let formats = if let Some(path) = base.strip_prefix("like=") {
            Formats::Like(path.to_owned())
        } else if let Some(budget) = base.strip_prefix("budget=") {
            let (number, among) = budget.split_once(':').unwrap_or((budget, BUDGET_FORMATS));
            let megabytes = number.parse().map_err(|_| format!("{number:?} is no number of megabytes"))?;
            let among = among.split('+').map(format).collect::<std::result::Result<_, _>>()?;
            Formats::Budget { megabytes, among }
        } else {
            Formats::Uniform(format(base)?)
        };
        Ok(Self { name: words.to_owned(), method, rotation, tie, formats, exceptions })
    }
}

impl JobSpec {
    /// The job of a method, with its `+rotation` and `+tie`, and a number of bits: k-quants, or integers with offsets in groups of
    /// 64 where the output is `own` or the method needs them. A format in place of the number is taken as it is.
    ///
    /// # Errors
    /// Words for a method or format that there is not.
    pub fn of_bits(method: &str, bits: &str, own: bool) -> std::result::Result<Self, String> {
        let format = match bits.parse::<u8>() {
            Ok(n @ 2..=8) if own || method.starts_with("hqq") => format!("int{n}-g64"),
            Ok(n @ 2..=6) => format!("Q{n}_K"),
            Ok(8) => "Q8_0".to_owned(),
            Ok(n) => return Err(format!("{n} bits: GGUF has formats of 2 to 6 and of 8")),
            Err(_) => bits.to_owned(),
        };
        format!("{method}:{format}").parse()
    }

    /// The ending of the job's file: GGUF has no formats of our own, and nothing of rotated inputs.
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

    /// The formats of a model's matrices.
    ///
    /// # Errors
    /// If the other file cannot be read or is of another model; [`Error::Usage`] for a budget that nothing fits; those of
    /// [`Sensitivities::measure`].
    pub fn plan(&self, file: &gguf::File, tokens: &[TokenId]) -> Result<Plan> {
        let mut plan = match &self.formats {
            Formats::Uniform(format) => {
                Plan::by(file, |name, from| if name.starts_with("blk.") { *format } else { from.into() })
            }
            Formats::Like(path) => Plan::like(file, &gguf::File::open(path)?)?,
            Formats::Budget { megabytes, among } => {
                let windows: Vec<Vec<TokenId>> =
                    tokens.chunks_exact(SENSITIVITY_WINDOW).take(1).map(<[TokenId]>::to_vec).collect();
                let mut bar: Option<Bar> = None;
                let found = Sensitivities::measure(file, windows, among, &mut |done, all| {
                    bar.get_or_insert_with(|| Bar::new(all, "matrices")).done(done);
                })?;
                let plan = found.allocate(file, megabytes.saturating_mul(1_000_000));
                plan.ok_or_else(|| {
                    Error::Usage(format!("{megabytes} MB hold not even the smallest formats"))
                })?
            }
        };
        for (words, format) in &self.exceptions {
            let names: Vec<String> =
                plan.iter().map(|(name, _)| name.to_owned()).filter(|name| name.contains(words)).collect();
            if names.is_empty() {
                return Err(Error::Usage(format!("no matrix has {words:?} in its name")));
            }
            for name in names {
                let n_cols = file.tensor(&name).map_or(0, |view| view.n_cols());
                plan.set(&name, *format, n_cols);
            }
        }
        Ok(plan)
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
        let mut options = QuantizeOptions::new(self.method, tokens);
        options.window = window;
        options.rotation = self.rotation;
        options.tie = self.tie;
        if let Some(folder) = out.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder)
                .map_err(|error| Error::Usage(format!("{}: {error}", folder.display())))?;
        }
        let plan = self.plan(&gguf::File::open(source)?, &options.tokens)?;
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
    use breakers_gguf::GroupFormat;

    use super::*;

    #[test]
    fn bits_become_formats() {
        let name = |method, bits, own| JobSpec::of_bits(method, bits, own).map(|job| job.name);
        assert_eq!(name("gptq+rotation", "3", false).unwrap(), "gptq+rotation:Q3_K");
        assert_eq!(name("gptq", "8", false).unwrap(), "gptq:Q8_0");
        assert_eq!(name("awq", "7", true).unwrap(), "awq:int7-g64");
        assert_eq!(name("hqq", "4", false).unwrap(), "hqq:int4-g64");
        assert_eq!(name("rtn", "nf4", false).unwrap(), "rtn:nf4");
        assert!(name("rtn", "7", false).is_err() && name("rtn", "9", true).is_err());
        assert!(name("rtn", "nf5", false).is_err() && name("nearest", "4", false).is_err());
    }

    #[test]
    fn words_become_jobs() {
        let job: JobSpec = "gptq+rotation:q3_k".parse().unwrap();
        assert!(
            job.rotation.is_some()
                && job.formats == Formats::Uniform(Format::Q3_K.into())
                && job.method.name() == "gptq"
        );
        let job: JobSpec = "imatrix:like=a:b.gguf".parse().unwrap();
        assert_eq!(job.formats, Formats::Like("a:b.gguf".to_owned()));
        let job: JobSpec = "gptq:budget=400".parse().unwrap();
        let among = [Format::Q2_K, Format::Q3_K, Format::Q4_K, Format::Q6_K].map(Encoding::from).to_vec();
        assert_eq!(job.formats, Formats::Budget { megabytes: 400, among });
        assert_eq!(job.extension(), "gguf");
        let job: JobSpec = "gptq+online:q4_0".parse().unwrap();
        assert_eq!((job.rotation, job.extension()), (Some(Rotate::Online { seed: SEED }), "safetensors"));
        let job: JobSpec = "imatrix:budget=40:nf4+q2_k".parse().unwrap();
        let among = vec![GroupFormat::Nf4.into(), Format::Q2_K.into()];
        assert_eq!(job.formats, Formats::Budget { megabytes: 40, among });
        assert_eq!(job.extension(), "safetensors");
        let job: JobSpec = "hqq:int4-g128".parse().unwrap();
        assert_eq!(job.formats, Formats::Uniform(GroupFormat::Affine { bits: 4, group: 128 }.into()));
        assert!(job.method.name() == "hqq" && job.extension() == "safetensors");
        let job: JobSpec = "gptq+tie:like=a.gguf,ffn_up=IQ4_NL,blk.3.ffn_up=q2_k".parse().unwrap();
        let expected = [("ffn_up", Format::IQ4_NL), ("blk.3.ffn_up", Format::Q2_K)]
            .map(|(a, b)| (a.to_owned(), b.into()));
        assert!(job.tie && job.rotation.is_none() && job.exceptions == expected);
        assert_eq!(job.formats, Formats::Like("a.gguf".to_owned()));
        for wrong in [
            "",
            "gptq",
            "gptq:Q4_0,x",
            "gptq:Q4_0,x=y",
            "gptq:Q9",
            "magic:Q4_0",
            "gptq+magic:Q4_0",
            "gptq:budget=x",
            "gptq:budget=4:Q9",
        ] {
            assert!(wrong.parse::<JobSpec>().is_err(), "{wrong}");
        }
    }
}
