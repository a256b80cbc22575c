//! Scans of every form of the same vectors: `cargo bench -p breakers-retrieval --bench scan`. One thread;
//! each line is the median of eleven rounds.
#![allow(clippy::print_stdout)] // Its output is the result.

use std::hint::black_box;
use std::time::Instant;

use breakers_cpu::pool;
use breakers_retrieval::{
    Metric, distance,
    index::{Exact, Index, Search},
    quantize::{EPSILON, Estimate, RabitqCodes},
};

const N: usize = 20_000;
const DIMENSION: usize = 384;
const ROUNDS: usize = 11;

fn main() {
    pool::set_threads(1).unwrap();
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let rows: Vec<f32> = (0..N * DIMENSION).map(|_| next()).collect();
    let query: Vec<f32> = (0..DIMENSION).map(|_| next()).collect();
    let time = |name: &str, reference: Option<f64>, scan: &mut dyn FnMut()| -> f64 {
        let mut times: Vec<f64> = (0..ROUNDS)
            .map(|_| {
                let start = Instant::now();
                scan();
                start.elapsed().as_secs_f64()
            })
            .collect();
        times.sort_by(f64::total_cmp);
        let median = times[ROUNDS / 2];
        let ratio = reference.map_or(String::new(), |reference| format!(", {:.1} × f32", reference / median));
        println!("{name}: {:.2} ns a vector{ratio}", median * 1e9 / N as f64);
        median
    };
    let floats = time("f32", None, &mut || {
        let sum: f32 = rows.chunks_exact(DIMENSION).map(|row| distance::dot(row, &query)).sum();
        black_box(sum);
    });
    let mut exact = Exact::new(Metric::L2, DIMENSION).unwrap();
    rows.chunks_exact(DIMENSION).for_each(|row| drop(black_box(exact.insert(row))));
    time("exact search, 8 bits and bounds", Some(floats), &mut || {
        black_box(exact.search(&query, &Search::new(10)).unwrap());
    });
    for bits in [1, 4] {
        let mut codes = RabitqCodes::new(Metric::L2, &[0.0; DIMENSION], bits, 0).unwrap();
        rows.chunks_exact(DIMENSION).for_each(|row| codes.push(row).unwrap());
        let mut out = vec![Estimate { distance: 0.0, lower: 0.0 }; N];
        let prepared = codes.query(&query).unwrap();
        time(&format!("RaBitQ, {bits} bits"), Some(floats), &mut || {
            codes.scan(&prepared, EPSILON, &mut out).unwrap();
            black_box(&out);
        });
    }
}
