//! Recall and speed of the store on distributions of every kind, beside hnswlib and faiss at the same beam:
//! `cargo bench -p breakers-retrieval --bench zoo -- [--python PYTHON] [--metric l2|cosine|dot] [NAME]...`.
//! One thread; `PYTHON` needs numpy, hnswlib and faiss-cpu. Distances are compared, not ids, so any of
//! several equally near vectors counts.
#![allow(clippy::print_stdout)] // Its output is the result.

#[path = "../tests/suite/distributions.rs"]
mod distributions;

use std::{path::Path, process::Command, time::Instant};

use breakers_cpu::pool;
use breakers_retrieval::{
    Metric,
    index::Strategy,
    store::{Collection, Config, Durability, Hit, Options, Point, Query, Store},
};
use distributions::{Draw, ZOO};
use rand::{SeedableRng as _, rngs::StdRng};

const N: usize = 20_000;
const N_QUERIES: usize = 500;
const K: usize = 10;
/// The width of the beam in every library.
const BEAM: usize = 128;

fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let (mut python, mut metric, mut names) = (None, Metric::L2, Vec::new());
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--python" => python = args.next(),
            "--metric" => {
                let name = args.next().unwrap_or_default();
                metric = Metric::ALL.into_iter().find(|m| m.name() == name).expect("l2, cosine or dot");
            }
            _ => names.push(arg),
        }
    }
    pool::set_threads(1).unwrap();
    println!("| {metric} | beam of {BEAM} | default | by scan | queries/s | hnswlib | faiss HNSW-SQ8 |");
    println!("|---|---:|---:|---:|---:|---:|---:|");
    for (name, draw) in ZOO {
        if names.is_empty() || names.iter().any(|part| name.contains(part.as_str())) {
            measure(name, *draw, metric, python.as_deref());
        }
    }
}

/// The share of the nearest that was found.
fn recall(found: &[Vec<Hit>], truth: &[Vec<Hit>]) -> f64 {
    let count = |(found, truth): (&Vec<Hit>, &Vec<Hit>)| {
        let bound = truth.last().map_or(f32::NEG_INFINITY, |last| last.distance);
        found.iter().filter(|hit| hit.distance <= bound).count().min(truth.len())
    };
    found.iter().zip(truth).map(count).sum::<usize>() as f64 / (K * truth.len()) as f64
}

fn measure(name: &str, draw: Draw, metric: Metric, python: Option<&str>) {
    let mut random = StdRng::seed_from_u64(77);
    let folder = tempfile::tempdir().unwrap();
    let mut options = Options::default();
    options.save_on_close = false;
    options.durability = Durability::Process;
    let store = Store::open_with(folder.path().join("store"), options).unwrap();
    let points: Vec<Point> = (0..N as u64).map(|id| Point::new(id, draw(&mut random))).collect();
    let collection = store.create("c", &Config::new(points[0].vector.len(), metric)).unwrap();
    collection.upsert(&points).unwrap();
    let queries: Vec<Query> = (0..N_QUERIES).map(|_| Query::new(draw(&mut random), K)).collect();
    let run = |change: fn(Query) -> Query| -> Vec<Vec<Hit>> {
        queries.iter().map(|query| collection.search(&change(query.clone())).unwrap()).collect()
    };
    let truth = run(Query::exact);
    let walked = recall(&run(|query| query.effort(BEAM)), &truth);
    let by_scan = |collection: &Collection, query: &Query| {
        collection.explain(query).unwrap().strategy == Strategy::Scan
    };
    let (mut n_scans, mut found) = (0, Vec::new());
    for query in &queries {
        n_scans += usize::from(by_scan(&collection, query));
        found.push(collection.search(query).unwrap());
    }
    let begun = Instant::now();
    run(|query| query);
    let rate = N_QUERIES as f64 / begun.elapsed().as_secs_f64();
    let peers = python.map_or_else(String::new, |python| {
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
    });
    let default = recall(&found, &truth);
    let share = 100.0 * n_scans as f64 / N_QUERIES as f64;
    println!("| {name} | {walked:.3} | {default:.3} | {share:.0} % | {rate:.0} | {peers}");
}
