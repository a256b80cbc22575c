//! The space that a store takes on disk, and how long opening a collection takes: `cargo bench -p
//! breakers-retrieval --bench open`. Files are in the system's cache; medians of seven openings.
#![allow(clippy::print_stdout)] // Its output is the result.

use std::time::Instant;

use breakers_retrieval::{
    Metric,
    store::{Config, Durability, Element, Options, Point, Store},
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

const N: u64 = 20_000;
const DIMENSION: usize = 384;
const ROUNDS: usize = 7;

fn main() {
    let open = |folder: &std::path::Path, on_disk: bool| {
        let mut options = Options::default();
        options.durability = Durability::Process;
        options.save_on_close = false;
        options.vectors_on_disk = on_disk;
        Store::open_with(folder, options).unwrap()
    };
    for element in [Element::F32, Element::F16, Element::I8] {
        let folder = tempfile::tempdir().unwrap();
        let mut random = StdRng::seed_from_u64(1);
        {
            let store = open(folder.path(), false);
            let config =
                Config { build_effort: 40, ..Config::new(DIMENSION, Metric::Cosine) }.element(element);
            let collection = store.create("c", &config).unwrap();
            for first in (0..N).step_by(1000) {
                let mut vector =
                    || (0..DIMENSION).map(|_| random.random_range(-1.0..1.0)).collect::<Vec<f32>>();
                let points: Vec<Point> = (first..first + 1000).map(|id| Point::new(id, vector())).collect();
                collection.upsert(&points).unwrap();
            }
            store.checkpoint().unwrap();
        }
        let raw = N as f64 * element.bytes(DIMENSION) as f64;
        let size = |name: &str| std::fs::metadata(folder.path().join(name)).unwrap().len() as f64 / raw;
        let time = |on_disk: bool| {
            let mut times: Vec<f64> = (0..ROUNDS)
                .map(|_| {
                    let store = open(folder.path(), on_disk);
                    let begun = Instant::now();
                    store.collection("c").unwrap();
                    begun.elapsed().as_secs_f64()
                })
                .collect();
            times.sort_by(f64::total_cmp);
            1e3 * times[ROUNDS / 2]
        };
        println!(
            "{N} × {DIMENSION} as {}: database {:.2}, index {:.2} of the vectors; opened in {:.0} ms, vectors on the \
             disk in {:.0} ms",
            element.name(),
            size("store.db"),
            size("index-1.bin"),
            time(false),
            time(true),
        );
    }
}
