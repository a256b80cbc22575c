//! Where calibration and GPTQ spend their time:
//! `cargo bench -p breakers-quant --bench quantize -- 1536 4864 8960`.
//!
//! Operations count multiplication and addition: n² for each row of a Hessian (half of XᵀX), n³/3 for its
//! factor, n² for each row of weights.

use breakers_cpu::random::SplitMix64;
use breakers_cpu::{self as cpu, pool};
use breakers_gguf::{Encoding, Format};
use breakers_quant::methods::{GptqConfig, GptqFactor, RoundToNearest};
use breakers_quant::quantizer::{Quantizer, WeightMatrix};
use breakers_quant::statistics::{Statistics, StatisticsConfig};
use std::time::Instant;

const ROWS: usize = 2048;
const WEIGHT_ROWS: usize = 1024;

fn random(n: usize) -> Vec<f32> {
    let mut random = SplitMix64::new(1);
    (0..n).map(|_| random.next_symmetric()).collect()
}

#[allow(clippy::print_stdout)] // a benchmark's result
fn main() {
    let sizes: Vec<usize> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let sizes = if sizes.is_empty() { vec![1536, 4864] } else { sizes };
    println!("{} threads, {}", pool::threads(), cpu::isa());
    for n in sizes {
        let rows = random(ROWS * n);
        let mut statistics = Statistics::new(n, StatisticsConfig { hessian: true, ..Default::default() });
        let time = |what: &str, operations: f64, run: &mut dyn FnMut()| {
            let start = Instant::now();
            run();
            let seconds = start.elapsed().as_secs_f64();
            println!("{n:6} {what:28} {seconds:8.3} s {:8.1} GFLOP/s", operations / seconds / 1e9);
        };
        let square = (n * n) as f64;
        time("Hessian of 2048 rows", ROWS as f64 * square, &mut || {
            statistics.observe(&rows).expect("finite rows");
            statistics.finish();
        });
        let mut factor = None;
        time("factor", square * n as f64 / 3.0, &mut || {
            factor = GptqFactor::new(&statistics, GptqConfig::default()).ok();
        });
        let weights = &rows[..WEIGHT_ROWS * n];
        let weights = WeightMatrix::new(weights, WEIGHT_ROWS, n).expect("finite weights");
        let encoding = Encoding::Gguf(Format::Q3_K);
        let encoding = if encoding.check(n).is_ok() { encoding } else { Encoding::Gguf(Format::Q4_0) };
        let factor = factor.expect("a positive definite Hessian");
        time("GPTQ, 1024 rows of weights", WEIGHT_ROWS as f64 * square, &mut || {
            factor.quantize(&weights, encoding, None).expect("fitting rows");
        });
        time("scales and codes alone", 0.0, &mut || {
            RoundToNearest::new().quantize(&weights, encoding, None).expect("fitting rows");
        });
    }
}
