//! Speed against llama.cpp: the same file, the same number of threads, one after the other in turn.

use std::path::{Path, PathBuf};

use breakers_eval::{BarChart, BootstrapConfig, Cell, Column, Provenance, Report, Table, stats};
use breakers_files::journal::{Journal, JournalConfig};
use serde_json::json;

use crate::peer::{self, Examples, Peer, number};
use crate::{Result, fetch, workspace};

/// What to measure.
#[derive(clap::Args, Clone)]
pub(crate) struct Options {
    /// Names of models.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "smollm2-135m,gemma3-270m,qwen2.5-coder-0.5b,qwen2.5-coder-1.5b"
    )]
    models: Vec<String>,
    /// Numbers of threads.
    #[arg(long, value_delimiter = ',', default_value = "1,2")]
    threads: Vec<usize>,
    /// Number of rounds; each runs every program once.
    #[arg(long, default_value_t = 5)]
    repeat: usize,
    /// Tokens of the prompt.
    #[arg(long, default_value_t = 512)]
    prompt_tokens: usize,
    /// Tokens generated after it.
    #[arg(long, default_value_t = 128)]
    max_tokens: usize,
    /// Our key-value cache, by name; llama.cpp's is always f16.
    #[arg(long, default_value = "f16")]
    cache: String,
    /// A Python with llama-cpp-python and numpy; otherwise one is set up in the build folder.
    #[arg(long)]
    python: Option<PathBuf>,
    /// Where the report goes; `history.jsonl` there gets a line for each run.
    #[arg(long, default_value = "target/reports/bench")]
    out: PathBuf,
}

impl Default for Options {
    fn default() -> Self {
        #[derive(clap::Parser)]
        struct Command {
            #[command(flatten)]
            options: Options,
        }
        <Command as clap::Parser>::parse_from(["bench"]).options
    }
}

/// Tokens per second of one program, a value for each round.
#[derive(Default)]
struct Speeds {
    prefill: Vec<f64>,
    decode: Vec<f64>,
}

impl Speeds {
    fn push(&mut self, answer: &serde_json::Value) -> Result {
        self.prefill.push(number(answer, "prefill_tok_s")?);
        self.decode.push(number(answer, "decode_tok_s")?);
        Ok(())
    }
}

/// The three programs of a round.
#[derive(Default)]
struct Measured {
    ours: Speeds,
    peer: Speeds,
    /// llama.cpp with flash attention.
    peer_flash: Speeds,
}

pub(crate) fn run(options: &Options) -> Result {
    if options.repeat < 2 {
        return Err("at least 2 rounds are needed for an interval; 5 for a claim".into());
    }
    let out = workspace::root().join(&options.out);
    std::fs::create_dir_all(&out)?;
    // Before the measurement: a history that cannot be written is found out now.
    let mut history = open_history(&out.join("history.jsonl"))?;
    let peer = Peer::find(options.python.as_deref())?;
    let examples = Examples::build()?;
    let names: Vec<&str> = options.models.iter().map(String::as_str).collect();
    let folder = fetch::fetch(&names)?;
    let mut provenance = Provenance::collect(Some(Path::new(env!("CARGO_MANIFEST_DIR"))));

    let mut table = Table::new("speed", "Speed, medians, and their ratio with its 95 % interval");
    for column in ["model", "threads", "what"] {
        table.column(Column::new(column).decimals(0));
    }
    table
        .column(Column::new("ours").unit("token/s").decimals(1))
        .column(Column::new("llama.cpp").unit("token/s").decimals(1))
        .column(Column::new("flash attention"))
        .column(Column::new("ratio"));
    let mut bars: Vec<(String, f64, f64)> = Vec::new();
    for name in names {
        for &threads in &options.threads {
            let model = folder.join(format!("{name}.gguf"));
            let measured = measure(&peer, &examples, &model, threads, options, &mut provenance)?;
            for what in ["prefill", "decode"] {
                let pick = |speeds: &Speeds| {
                    if what == "prefill" { speeds.prefill.clone() } else { speeds.decode.clone() }
                };
                let (plain, flash) = (pick(&measured.peer), pick(&measured.peer_flash));
                let is_flash = stats::median(&flash)? > stats::median(&plain)?;
                let (ours, theirs) = (pick(&measured.ours), if is_flash { flash } else { plain });
                let ratio = stats::ratio_of_medians(&ours, &theirs, &BootstrapConfig::default())?;
                let (ours, theirs) = (stats::median(&ours)?, stats::median(&theirs)?);
                table.row(vec![
                    Cell::from(name),
                    threads.into(),
                    what.into(),
                    ours.into(),
                    theirs.into(),
                    is_flash.into(),
                    ratio.into(),
                ])?;
                if what == "decode" {
                    bars.push((format!("{name}, {threads}"), ours, theirs));
                }
            }
        }
    }
    let mut chart = BarChart::new("Decoding speed", "token/s", bars.iter().map(|b| b.0.clone()));
    chart.series("ours", bars.iter().map(|b| Some(b.1)).collect())?;
    chart.series("llama.cpp", bars.iter().map(|b| Some(b.2)).collect())?;

    print!("{}", table.to_markdown());
    let mut report = Report::new("Speed against llama.cpp", provenance);
    report
        .paragraph(format!(
            "A prompt of {} tokens, then {} tokens one by one, greedy. {} rounds, in each of which every program \
             ran once; of llama.cpp with and without flash attention the faster one counts. Our cache: {}.",
            options.prompt_tokens, options.max_tokens, options.repeat, options.cache
        ))
        .table(table)
        .chart("decode", chart.into());
    report.write(&out)?;
    Ok(history.append(&report.to_json()?)?)
}

/// Opens the journal of all reports; those that were written before lines had checksums count as well.
fn open_history(path: &Path) -> Result<Journal> {
    let mut config = JournalConfig::default();
    config.accept_unchecked = true;
    Ok(Journal::open(path, config)?)
}

fn measure(
    peer: &Peer,
    examples: &Examples,
    model: &Path,
    threads: usize,
    options: &Options,
    provenance: &mut Provenance,
) -> Result<Measured> {
    let model = model.to_str().ok_or("the model's path is not UTF-8")?;
    let ids_file = workspace::target().join("bench-ids.json");
    let text_file = workspace::target().join("bench-text.txt");
    std::fs::write(&text_file, peer::own_prose(40_000)?)?;
    let text_file = text_file.to_string_lossy().into_owned();
    let tokenized =
        examples.ask("tokenize", &["--model", model, "--text-file", &text_file, "--add-special"])?;
    let mut ids = peer::ids(&tokenized, "ids")?;
    if ids.len() < options.prompt_tokens {
        return Err(format!("the text has {} tokens, {} are wanted", ids.len(), options.prompt_tokens).into());
    }
    ids.truncate(options.prompt_tokens);
    std::fs::write(&ids_file, json!({ "prompt_ids": ids }).to_string())?;

    let ids_file = ids_file.to_string_lossy().into_owned();
    let (threads, n) = (threads.to_string(), options.max_tokens.to_string());
    let shared = ["--model", model, "--threads", &threads, "--max-tokens", &n];
    let ours = [&shared[..], &["--measure", &ids_file, "--cache", &options.cache]].concat();
    let theirs = [&["speed"], &shared[..], &["--ids-file", &ids_file]].concat();
    let theirs_flash = [&theirs[..], &["--flash-attention"]].concat();

    let mut measured = Measured::default();
    for round in 0..options.repeat {
        // Each program comes first in a third of the rounds.
        for turn in 0..3 {
            match (round + turn) % 3 {
                0 => measured.ours.push(&examples.ask("generate", &ours)?)?,
                1 => {
                    let answer = peer.ask(&theirs)?;
                    measured.peer.push(&answer)?;
                    if let Some(version) = answer["peer"].as_str() {
                        provenance.settings.insert("peer".to_owned(), version.to_owned());
                    }
                }
                _ => measured.peer_flash.push(&peer.ask(&theirs_flash)?)?,
            }
        }
        let last = |speeds: &Speeds| {
            let show = |v: &[f64]| v.last().map_or_else(String::new, |v| format!("{v:.1}"));
            format!("{}/{}", show(&speeds.prefill), show(&speeds.decode))
        };
        let Measured { ours, peer, peer_flash } = &measured;
        eprintln!(
            "{model}, {threads} threads, round {}: ours {}, llama.cpp {}, with flash attention {} (prefill/decode token/s)",
            round + 1,
            last(ours),
            last(peer),
            last(peer_flash)
        );
    }
    Ok(measured)
}
