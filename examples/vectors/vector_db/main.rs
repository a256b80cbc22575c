//! Vector indexes on real vectors: recall against speed, beside the usual engines.
//!
//! ```sh
//! python3 -m venv peers
//! peers/bin/pip install numpy hnswlib faiss-cpu usearch sqlite-vec apsw qdrant-edge-py
//! cargo run --release --example vector_db -- --python peers/bin/python
//! ```
//! Without `--python` the peers are left out. The vectors are glosses of WordNet through all-MiniLM-L6-v2,
//! embedded once and kept; `--text FILE` takes the lines of a file instead, `--data glove` GloVe's words.
//!
//! JSON: the report.

mod corpus;
mod engines;
mod filters;
mod peers;
mod report;
mod scale;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use breakers_backend::device;
use breakers_cli::{Result, print, print_json, run};
use breakers_cpu::{self as cpu, pool};
use breakers_eval::{Provenance, Report};
use clap::{Parser, ValueEnum};

use corpus::Corpus;

/// Vector indexes on real vectors: recall against speed.
#[derive(Parser)]
struct Arguments {
    /// The data to search.
    #[arg(long, value_enum, default_value_t = Data::Wordnet)]
    data: Data,
    /// A text file whose lines are embedded and searched instead.
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Vectors that are stored.
    #[arg(long, default_value_t = 20_000, value_name = "N")]
    n: usize,
    /// Number of queries; half of them choose settings, the other half are reported.
    #[arg(long, default_value_t = 2000, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    queries: u32,
    /// Queries for engines that scan everything.
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    slow_queries: u32,
    /// Rounds over all queries.
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    repeat: u32,
    /// Instead of the comparison: a store of this many vectors, drawn from the statistics of the real ones,
    /// full vectors on disk.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(100..))]
    scale: Option<u32>,
    /// The engines of this process to run.
    #[arg(long, default_value = engines::ENGINES, value_name = "NAMES")]
    engines: String,
    /// Also search exactly on this device, with 16-bit floats: flex, wgpu, vulkan, cuda, …
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// Leave out filters and churn.
    #[arg(long)]
    speed_only: bool,
    /// A Python that has the peers.
    #[arg(long, value_name = "PYTHON")]
    python: Option<String>,
    /// The peers to run, out of those that benches/peer_vectors.py knows.
    #[arg(long, default_value = "numpy,hnswlib,faiss,usearch,sqlite-vec,qdrant", value_name = "NAMES")]
    peers: String,
    /// Where embedded vectors are kept.
    #[arg(long, default_value = "target/vector_db", value_name = "FOLDER")]
    cache: PathBuf,
    /// Folder of the report.
    #[arg(long, default_value = "target/reports/vector_db", value_name = "FOLDER")]
    out: PathBuf,
    /// Answer with one JSON object: the report.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Data {
    /// Glosses of WordNet through all-MiniLM-L6-v2, 384 numbers each.
    Wordnet,
    /// GloVe's words, 50 numbers each.
    Glove,
}

fn main() -> ExitCode {
    run(|| {
        let arguments = Arguments::parse();
        let (n, n_queries) = (arguments.n, arguments.queries as usize);
        let corpus = match (arguments.data, &arguments.text) {
            (Data::Glove, None) => Corpus::glove(n, n_queries, &arguments.cache)?,
            (_, text) => Corpus::sentences(n, n_queries, text.as_deref(), &arguments.cache)?,
        };
        let mut provenance = Provenance::collect(Some(Path::new(env!("CARGO_MANIFEST_DIR"))));
        provenance.isa = Some(cpu::isa().to_string());
        provenance.threads = Some(1);
        // Queries are answered by one thread, here and by the peers.
        pool::set_threads(1)?;
        let report = match arguments.scale {
            Some(scale) => scale::measure(&corpus, scale as usize, n_queries.min(500), provenance)?,
            None => compare(&arguments, &corpus, provenance)?,
        };
        report.write(&arguments.out)?;
        if arguments.json {
            print_json(&report.to_json()?)?;
        } else {
            for table in report.tables() {
                print(&format!("{}\n\n{}\n", table.title(), table.to_markdown()))?;
            }
        }
        eprintln!("report: {}", arguments.out.join("report.md").display());
        Ok(ExitCode::SUCCESS)
    })
}

/// Ours and the peers, filters, churn.
fn compare(arguments: &Arguments, corpus: &Corpus, provenance: Provenance) -> Result<Report> {
    let (n_queries, repeat) = (arguments.queries as usize, arguments.repeat as usize);
    let slow_queries = arguments.slow_queries.min(arguments.queries) as usize;
    let truth = corpus.truth(engines::K);
    let mut measured = engines::measure(&arguments.engines, corpus, repeat, slow_queries)?;
    if let Some(name) = &arguments.device {
        let device = device::open(name)?;
        measured.push(engines::device_engine(&device, name, corpus, repeat, n_queries)?);
    }
    let mut missing = Vec::new();
    if let Some(python) = &arguments.python {
        let (peers, lacking) = peers::measure(python, &arguments.peers, corpus, repeat, slow_queries)?;
        measured.extend(peers);
        missing = lacking;
    }
    let (mut filtered, mut churn) = (Vec::new(), None);
    if !arguments.speed_only {
        let folder = tempfile::tempdir()?;
        let (_store, collection, _) = engines::filled_store(corpus, folder.path())?;
        filtered = filters::measure(corpus, &collection, n_queries.min(500))?;
        let graph = measured.iter().find(|engine| engine.name == "graph");
        let choice = graph.and_then(|graph| report::choose(graph, &truth, 0.99));
        let effort = choice.map_or(128, |choice| choice.setting.effort);
        churn = Some(filters::churn(corpus, effort, n_queries.min(500))?);
    }
    report::build(corpus, &truth, &measured, &missing, &filtered, churn.as_ref(), provenance)
}
