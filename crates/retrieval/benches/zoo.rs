//! Recall and speed of the store on distributions of every kind, beside hnswlib and faiss at the same beam:
//! `cargo bench -p breakers-retrieval --bench zoo -- [--python PYTHON] [--metric l2|cosine|dot]...
//! [--points N] [--queries N] [NAME]...`, with all metrics unless some are named. One thread; rates are of
//! processor time, where the system says it. `PYTHON` has numpy, hnswlib and faiss-cpu. Distances are
//! compared, so that of equally near vectors any will do.
#![allow(clippy::print_stdout)] // Its output is the result.

#[path = "../tests/suite/distributions.rs"]
mod distributions;

use std::{path::Path, process::Command, sync::LazyLock, time::Instant};

use breakers_cpu::pool;
use breakers_retrieval::{
    Metric,
    index::Strategy,
    store::{Collection, Config, Durability, Hit, Options, Point, Query, Store},
};
use distributions::{Draw, ZOO};
use rand::{SeedableRng as _, rngs::StdRng};

const N: usize = 20_000;
const N_QUERIES: usize = 300;
const K: usize = 10;
/// Seconds that a rate is measured for at least: the system counts them in steps of some milliseconds.
const ENOUGH: f64 = 0.2;
/// Width of everybody's beam.
const BEAM: usize = 128;

fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let (mut python, mut metrics, mut names, mut size) = (None, Vec::new(), Vec::new(), (N, N_QUERIES));
    let number = |arg: Option<String>| arg.and_then(|n| n.parse().ok()).expect("a number");
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--python" => python = args.next(),
            "--metric" => {
                let name = args.next().unwrap_or_default();
                metrics.push(Metric::ALL.into_iter().find(|m| m.name() == name).expect("l2, cosine or dot"));
            }
            "--points" => size.0 = number(args.next()),
            "--queries" => size.1 = number(args.next()),
            _ => names.push(arg),
        }
    }
    if metrics.is_empty() {
        metrics.extend(Metric::ALL);
    }
    pool::set_threads(1).unwrap();
    for metric in metrics {
        println!(
            "| {metric}, {} points | default | by scan | beam of {BEAM} | hnswlib | faiss HNSW-SQ8 | queries/s, \
             default | of the beam | of a scan |",
            size.0
        );
        println!("|---|---:|---:|---:|---:|---:|---:|---:|---:|");
        for (name, draw) in ZOO {
            if names.is_empty() || names.iter().any(|part| name.contains(part.as_str())) {
                measure(name, *draw, metric, size, python.as_deref());
            }
        }
        println!();
    }
}

/// Of this thread on a processor, on Linux; otherwise of the clock.
fn seconds() -> f64 {
    static BEGUN: LazyLock<Instant> = LazyLock::new(Instant::now);
    let spent = std::fs::read_to_string("/proc/thread-self/schedstat");
    let nanoseconds = spent.ok().and_then(|text| text.split(' ').next()?.parse::<f64>().ok());
    nanoseconds.map_or_else(|| BEGUN.elapsed().as_secs_f64(), |n| n * 1e-9)
}

/// The share of the nearest that was found.
fn recall(found: &[Vec<Hit>], truth: &[Vec<Hit>]) -> f64 {
    let count = |(found, truth): (&Vec<Hit>, &Vec<Hit>)| {
        let bound = truth.last().map_or(f32::NEG_INFINITY, |last| last.distance);
        found.iter().filter(|hit| hit.distance <= bound).count().min(truth.len())
    };
    found.iter().zip(truth).map(count).sum::<usize>() as f64 / (K * truth.len()) as f64
}

fn measure(name: &str, draw: Draw, metric: Metric, (n, n_queries): (usize, usize), python: Option<&str>) {
    let mut random = StdRng::seed_from_u64(77);
    let folder = tempfile::tempdir().unwrap();
    let mut options = Options::default();
    options.save_on_close = false;
    options.durability = Durability::Process;
    let store = Store::open_with(folder.path().join("store"), options).unwrap();
    let points: Vec<Point> = (0..n as u64).map(|id| Point::new(id, draw(&mut random))).collect();
    let collection = store.create("c", &Config::new(points[0].vector.len(), metric)).unwrap();
    collection.upsert(&points).unwrap();
    let queries: Vec<Query> = (0..n_queries).map(|_| Query::new(draw(&mut random), K)).collect();
    // Answers, and how many a second.
    let run = |change: fn(Query) -> Query| -> (Vec<Vec<Hit>>, f64) {
        let (begun, mut n_asked) = (seconds(), 0);
        let ask = |query: &Query| collection.search(&change(query.clone())).unwrap();
        loop {
            let answers = queries.iter().map(ask).collect();
            n_asked += n_queries;
            let spent = seconds() - begun;
            if spent >= ENOUGH {
                return (answers, n_asked as f64 / spent);
            }
        }
    };
    let (truth, scan_rate) = run(Query::exact);
    let (walked, beam_rate) = run(|query| query.effort(BEAM));
    let walked = recall(&walked, &truth);
    let by_scan = |collection: &Collection, query: &Query| {
        collection.explain(query).unwrap().strategy == Strategy::Scan
    };
    let (mut n_scans, mut found) = (0, Vec::new());
    for query in &queries {
        n_scans += usize::from(by_scan(&collection, query));
        found.push(collection.search(query).unwrap());
    }
    let (_, rate) = run(|query| query);
    let peers = python.map_or_else(
        || "– | – |".to_owned(),
        |python| {
            let rows = |vectors: Vec<&[f32]>| -> Vec<u8> {
                vectors.into_iter().flatten().flat_map(|x| x.to_le_bytes()).collect()
            };
            let (base, asked) = (folder.path().join("base"), folder.path().join("queries"));
            std::fs::write(&base, rows(points.iter().map(|point| &*point.vector).collect())).unwrap();
            std::fs::write(&asked, rows(queries.iter().map(|query| &*query.vector).collect())).unwrap();
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../benches/peer_zoo.py");
            let mut command = Command::new(python);
            command.arg(script).args([&base, &asked]).arg(points[0].vector.len().to_string());
            let out = command.args([metric.name(), &K.to_string(), &BEAM.to_string()]).output().unwrap();
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
            String::from_utf8(out.stdout).unwrap().trim().to_owned()
        },
    );
    let default = recall(&found, &truth);
    let share = 100.0 * n_scans as f64 / n_queries as f64;
    println!(
        "| {name} | {default:.3} | {share:.0} % | {walked:.3} | {peers} {rate:.0} | {beam_rate:.0} | {scan_rate:.0} |"
    );
}
