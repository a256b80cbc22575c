//! `breakers optimize`: a served model in a smaller format, by steps that each may end it.
//!
//! Quantize; compare with the model that is served, on a text; let the new version answer a share of the
//! requests; let it answer all of them. The server's registry does the last two, so each is one change there
//! and a rollback undoes it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use breakers_cli::{Bar, Error, ModelArgs, Result, print, print_json, quantize_with_bar, read_text};
use breakers_eval::divergence::{Divergence, divergence};
use breakers_quant::job::JobSpec;
use breakers_serve::client::Client;
use breakers_tokenizer::{EncodeOptions, Tokenizer};
use serde_json::{Value, json};

use crate::batch::ServerArgs;

/// Flags of `breakers optimize`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct OptimizeArgs {
    /// The name by which clients ask for the model.
    #[arg(value_name = "ALIAS")]
    alias: String,
    /// The folder that `breakers serve` has as its --models-dir.
    #[arg(long, value_name = "FOLDER")]
    models_dir: PathBuf,
    /// METHOD:FORMAT, as `breakers quantize` takes it: gptq:Q4_K, imatrix:budget=300, …
    #[arg(long)]
    job: JobSpec,
    /// The text to calibrate with.
    #[arg(long, value_name = "FILE")]
    text: Option<String>,
    /// The text on which both versions are compared: another one than --text.
    #[arg(long, value_name = "FILE")]
    gate_text: String,
    /// The most tokens of each text to use.
    #[arg(long, default_value_t = 16_384, value_name = "N")]
    tokens: usize,
    /// Tokens per context.
    #[arg(long, default_value_t = 512, value_name = "N",
        value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(4..))]
    window: usize,
    /// The gate: the most that predictions may differ, as the mean Kullback-Leibler divergence in nats.
    #[arg(long, default_value_t = 0.1, value_name = "NATS", value_parser = limit, allow_negative_numbers = true)]
    max_kl: f64,
    /// The gate: the most by which perplexity may rise, in percent.
    #[arg(long, default_value_t = 5.0, value_name = "PERCENT", value_parser = limit)]
    max_perplexity: f64,
    /// The share of requests that the new version answers first, in percent.
    #[arg(long, default_value_t = 10, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(1..100))]
    share: u32,
    /// How many requests it has to answer, before it answers all.
    #[arg(long, default_value_t = 100, value_name = "N")]
    requests: u64,
    /// How many minutes to wait for them. If there were fewer, it is rolled back.
    #[arg(long, default_value_t = 1440.0, value_name = "MINUTES", value_parser = limit)]
    patience: f64,
    /// Stop after the gate: the server is asked what it serves, and nothing is changed there.
    #[arg(long)]
    gate_only: bool,
    /// Take the new file as an earlier run has left it, if it has, and do not quantize again.
    #[arg(long)]
    reuse: bool,
    /// Threads of the kernels [default: all hardware threads].
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Answer with one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

/// How it ended.
enum End {
    GateFailed,
    GatePassed,
    Deployed,
    RolledBack(String),
}

impl OptimizeArgs {
    /// Exit code 1 if the new version does not answer all requests in the end.
    pub(crate) fn run(&self) -> Result<ExitCode> {
        let client = self.server.client()?;
        let old = self.served(&client)?;
        let source = self.models_dir.join(text_of(&old.version, "path")?);
        let out = self.out(&source);
        let model = self.model(&source)?;
        model.apply()?;
        eprintln!("{} is {}; the new file is {}", self.alias, source.display(), out.display());
        if self.reuse && out.exists() {
            eprintln!("note: it is taken as it is");
        } else {
            let ids = self.calibration(&source)?;
            let report = quantize_with_bar(&self.job, &source, &out, ids, self.window)?;
            report.notes.iter().for_each(|note| eprintln!("note: {note}"));
        }
        let found = self.compare(&model, &out)?;
        let rise = 100.0 * (found.perplexity() / found.reference_perplexity() - 1.0);
        let passes = found.mean_kl() <= self.max_kl && rise <= self.max_perplexity;
        eprintln!(
            "gate {}: {:.4} nats (at most {}), perplexity {:+.2} % (at most {:+.2}), the same first token at {:.1} %",
            if passes { "passed" } else { "failed" },
            found.mean_kl(),
            self.max_kl,
            rise,
            self.max_perplexity,
            100.0 * found.top_agreement(),
        );
        let (mut version, mut counts) = (None, [Counts::default(); 2]);
        let end = match (passes, self.gate_only) {
            (false, _) => End::GateFailed,
            (true, true) => End::GatePassed,
            (true, false) => {
                let new = self.register(&client, &old, &out)?;
                let end = self.roll_out(&client, &old, &new, &mut counts)?;
                version = Some(new);
                end
            }
        };
        let (word, why) = match &end {
            End::GateFailed => ("gate failed", None),
            End::GatePassed => ("gate passed", None),
            End::Deployed => ("deployed", None),
            End::RolledBack(why) => ("rolled back", Some(why)),
        };
        if self.json {
            print_json(&json!({
                "end": word,
                "why": why,
                "job": self.job.to_string(),
                "file": out.file_name().map(|name| name.to_string_lossy()),
                "bytes": std::fs::metadata(&out)?.len(),
                "old_bytes": old.version["bytes"],
                "mean_kl": found.mean_kl(),
                "perplexity": found.perplexity(),
                "old_perplexity": found.reference_perplexity(),
                "top_agreement": found.top_agreement(),
                "version": version,
                "old_version": old.version["name"],
                "requests": counts.map(|counts| counts.requests),
                "failures": counts.map(|counts| counts.failures),
            }))?;
        } else {
            let why = why.map_or_else(String::new, |why| format!(": {why}"));
            print(&format!("{word}{why}\n"))?;
        }
        if let End::GateFailed = end {
            eprintln!("the file stays where it is; the server knows nothing of it");
        }
        Ok(match end {
            End::Deployed | End::GatePassed => ExitCode::SUCCESS,
            End::GateFailed | End::RolledBack(_) => ExitCode::FAILURE,
        })
    }

    /// The one version that answers for the alias now.
    fn served(&self, client: &Client) -> Result<Served> {
        let routes = client.admin("/admin/models", None)?;
        let route = list(&routes).iter().find(|route| route["alias"] == *self.alias);
        let route = route.ok_or_else(|| {
            let known: Vec<_> = list(&routes).iter().filter_map(|route| route["alias"].as_str()).collect();
            Error::Usage(format!("the server's registry has no {}; it has: {}", self.alias, known.join(", ")))
        })?;
        let shares = route["shares"].as_array().map(Vec::as_slice).unwrap_or_default();
        let [share] = shares else {
            let message = format!(
                "{} versions share the requests for {}: deploy one of them first",
                shares.len(),
                self.alias
            );
            return Err(Error::Usage(message));
        };
        let version = client.admin(&format!("/admin/versions/{}", text_of(share, "version")?), None)?;
        Ok(Served { route: route["id"].clone(), version })
    }

    /// The new file, beside the old one.
    fn out(&self, source: &Path) -> PathBuf {
        let stem = source.file_stem().unwrap_or_default().to_string_lossy();
        let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '_';
        let job: String = self.job.to_string().chars().map(|c| if is_plain(c) { c } else { '-' }).collect();
        source.with_file_name(format!("{stem}-{job}.gguf"))
    }

    fn model(&self, source: &Path) -> Result<ModelArgs> {
        let path =
            source.to_str().ok_or_else(|| Error::Usage(format!("{} is not UTF-8", source.display())))?;
        let device = "flex".to_owned();
        let (threads, matrices, ctx, isa, layers) = (self.threads, None, None, None, None);
        Ok(ModelArgs { model: path.to_owned(), matrices, threads, ctx, device, isa, layers })
    }

    fn calibration(&self, source: &Path) -> Result<Vec<u32>> {
        if !self.job.needs_text() {
            return Ok(Vec::new());
        }
        let Some(text) = &self.text else {
            return Err(Error::Usage(format!("--job {} needs a --text to calibrate with", self.job)));
        };
        self.ids(&Tokenizer::from_gguf(&breakers_gguf::File::open(source)?)?, text)
    }

    fn ids(&self, tokenizer: &Tokenizer, file: &str) -> Result<Vec<u32>> {
        let options = EncodeOptions { add_special: false, parse_special: false };
        let mut ids = tokenizer.encode(&read_text(file)?, options)?;
        ids.truncate(self.tokens);
        Ok(ids)
    }

    /// How the predictions of the new file differ from those of the old one.
    fn compare(&self, model: &ModelArgs, out: &Path) -> Result<Divergence> {
        let (old, new) = (model.load()?, model.load_other(&out.to_string_lossy())?);
        let tokenizer = old.model.tokenizer();
        let bos = if tokenizer.adds_bos() { tokenizer.bos() } else { None };
        let ids = self.ids(tokenizer, &self.gate_text)?;
        let (mut old, mut new) = (old.model.runner(), new.model.runner());
        let mut bar: Option<Bar> = None;
        let progress =
            |done, all| bar.get_or_insert_with(|| Bar::new(all, "windows of the gate's text")).done(done);
        Ok(divergence(&mut old, &mut new, &ids, self.window, bos, progress)?)
    }

    /// Makes the file known to the server, and returns its version.
    fn register(&self, client: &Client, old: &Served, out: &Path) -> Result<String> {
        let file = out.file_name().unwrap_or_default().to_string_lossy();
        let path = Path::new(text_of(&old.version, "path")?).with_file_name(&*file);
        let body = json!({
            "path": path,
            "parent": old.version["name"],
            "license": old.version["license"],
            "method": format!("breakers optimize --job {}", self.job),
        });
        let version = client.admin("/admin/versions", Some(&body))?;
        let name = text_of(&version, "name")?.to_owned();
        if let Some(canary) = old.version["canary"].as_object().filter(|_| version["canary"].is_null()) {
            // The same question; its own first answer is what it has to give from then on.
            let ask: serde_json::Map<String, Value> = canary
                .iter()
                .filter(|(field, _)| matches!(&***field, "prompt" | "chat" | "max_tokens"))
                .map(|(field, value)| (field.clone(), value.clone()))
                .collect();
            client.admin(&format!("/admin/versions/{name}/canary"), Some(&Value::Object(ask)))?;
        }
        Ok(name)
    }

    /// Gives the new version a share of the requests, and then all of them or none.
    fn roll_out(&self, client: &Client, old: &Served, new: &str, counts: &mut [Counts; 2]) -> Result<End> {
        let before = [text_of(&old.version, "name")?, new];
        let begun = self.usage(client, before)?;
        let weights = json!({ before[0]: 100 - self.share, before[1]: self.share });
        let path = |action: &str| format!("/admin/models/{}/{action}", self.alias);
        let body = json!({ "weights": weights, "expect": old.route });
        let mut state = client.admin(&path("weights"), Some(&body))?["id"].clone();
        eprintln!("{new} answers {} % of the requests", self.share);
        let bar = Bar::new(usize::try_from(self.requests).unwrap_or(usize::MAX), "requests");
        let since = Instant::now();
        loop {
            let now = self.usage(client, before)?;
            for ((count, now), begun) in counts.iter_mut().zip(now).zip(begun) {
                *count = now.since(begun);
            }
            let [old, new] = *counts;
            bar.done(usize::try_from(new.requests.min(self.requests)).unwrap_or(usize::MAX));
            let is_worse = new.failures > 0 && new.share() > old.share() + FAILURES;
            let is_late = since.elapsed() >= Duration::from_secs_f64(60.0 * self.patience);
            let why = match () {
                () if is_worse && new.requests >= self.requests.min(ENOUGH) => {
                    Some(format!("{} of its {} texts failed", new.failures, new.texts))
                }
                () if new.requests < self.requests && is_late => {
                    Some(format!("{} of {} requests came in time", new.requests, self.requests))
                }
                () => None,
            };
            let is_done = why.is_none() && new.requests >= self.requests;
            if why.is_some() || is_done {
                drop(bar);
                let (action, body) = match &why {
                    Some(_) => ("rollback", json!({ "expect": state.take() })),
                    None => ("deploy", json!({ "version": before[1], "expect": state.take() })),
                };
                client.admin(&path(action), Some(&body))?;
                return Ok(why.map_or(End::Deployed, End::RolledBack));
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// What was used of two versions so far.
    fn usage(&self, client: &Client, versions: [&str; 2]) -> Result<[Counts; 2]> {
        let rows = client.admin("/admin/usage", None)?;
        Ok(versions.map(|version| {
            let is_asked = |row: &&Value| row["model"] == *self.alias && row["version"] == *version;
            let rows = list(&rows).iter().filter(is_asked);
            rows.fold(Counts::default(), |sum, row| sum.plus(row))
        }))
    }
}

/// Requests after which failures are believed.
const ENOUGH: u64 = 20;
/// The share of failed texts that a new version may have beyond the old one's.
const FAILURES: f64 = 0.01;
const PAUSE: Duration = Duration::from_millis(500);

/// What answers for the alias.
struct Served {
    /// The number of the state, so that nobody else's change is undone.
    route: Value,
    version: Value,
}

#[derive(Clone, Copy, Default)]
struct Counts {
    requests: u64,
    texts: u64,
    failures: u64,
}

impl Counts {
    fn plus(self, row: &Value) -> Self {
        let of = |field: &str| row[field].as_u64().unwrap_or(0);
        Self {
            requests: self.requests + of("requests"),
            texts: self.texts + of("texts"),
            failures: self.failures + of("failures"),
        }
    }

    fn since(self, begun: Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(begun.requests),
            texts: self.texts.saturating_sub(begun.texts),
            failures: self.failures.saturating_sub(begun.failures),
        }
    }

    /// The share of texts that failed.
    fn share(self) -> f64 {
        self.failures as f64 / self.texts.max(1) as f64
    }
}

fn list(answer: &Value) -> &[Value] {
    answer["data"].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text_of<'a>(object: &'a Value, field: &str) -> Result<&'a str> {
    let text = object[field].as_str();
    text.ok_or_else(|| Error::Failed(format!("the server's answer has no {field}: {object}").into()))
}

fn limit(text: &str) -> std::result::Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| number.is_finite() && *number >= 0.0);
    number.ok_or_else(|| "expected a number that is not negative".to_owned())
}
