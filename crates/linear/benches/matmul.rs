//! Times the matrix product: `cargo bench -p breakers-linear --bench matmul -- [options]`.
//!
//! Options, which may be given several times: formats (`Q4_K`), shapes (`8960x1536`, or any other), `rows=8`,
//! `threads=2`, `isa=avx2`; `best` reports the shortest time instead of the median, for busy machines;
//! `cached` uses a single copy of the weights. Otherwise the benchmark goes through several copies that
//! together exceed the caches, as in a model's forward pass.

#![allow(clippy::print_stdout)] // It prints a table.

use breakers_cpu::{self as cpu, pool};
use breakers_gguf::Format;
use breakers_linear::{Activations, PackedMatrix};
use std::{hint::black_box, time::Instant};

/// `(n_rows, n_cols)`: SmolLM2's gate or up projection and its head, Qwen-1.5B's up and down projections.
const SHAPES: [(usize, usize); 4] = [(1536, 576), (49152, 576), (8960, 1536), (1536, 8960)];
const ROWS: [usize; 6] = [1, 2, 4, 8, 16, 512];
/// Enough bytes of weights that none are still in a cache when they are used again.
const COLD_BYTES: usize = 160 << 20;
const SECONDS: f64 = 0.25;

#[derive(Default)]
struct Options {
    formats: Vec<Format>,
    shapes: Vec<(usize, usize)>,
    rows: Vec<usize>,
    threads: Vec<usize>,
    isas: Vec<cpu::Isa>,
    is_best: bool,
    is_cached: bool,
}

impl Options {
    fn parse(args: impl Iterator<Item = String>) -> Self {
        let mut options = Self::default();
        let number = |text: &str| text.parse().expect("a number");
        for arg in args.filter(|arg| !arg.starts_with("--")) {
            match arg.split_once('=') {
                Some(("rows", value)) => options.rows.push(number(value)),
                Some(("threads", value)) => options.threads.push(number(value)),
                Some(("isa", value)) => options.isas.push(value.parse().expect("an instruction set")),
                _ if arg == "best" => options.is_best = true,
                _ if arg == "cached" => options.is_cached = true,
                _ => match (Format::ALL.into_iter().find(|format| format.name() == arg), arg.split_once('x'))
                {
                    (Some(format), _) => options.formats.push(format),
                    (_, Some((n_rows, n_cols))) => options.shapes.push((number(n_rows), number(n_cols))),
                    _ => panic!("{arg} is neither a format nor a shape nor an option"),
                },
            }
        }
        fn or<T: Clone>(values: &mut Vec<T>, default: &[T]) {
            if values.is_empty() {
                values.extend_from_slice(default);
            }
        }
        or(&mut options.formats, &Format::ALL);
        or(&mut options.shapes, &SHAPES);
        or(&mut options.rows, &ROWS);
        or(&mut options.threads, &[1]);
        or(&mut options.isas, &[cpu::isa()]);
        options
    }
}

fn main() {
    let options = Options::parse(std::env::args().skip(1));
    for &threads in &options.threads {
        pool::set_threads(threads).expect("a number of threads");
        for &isa in &options.isas {
            cpu::force(isa).expect("an instruction set of this machine");
            println!("{threads} threads, {isa}");
            println!("| format | shape | repack GB/s | rows | us | GB/s | GOPS | per 1 row |");
            println!("|---|---|---|---|---|---|---|---|");
            for &format in &options.formats {
                for &(n_rows, n_cols) in &options.shapes {
                    if n_cols.is_multiple_of(format.block_size()) {
                        bench(&options, format, n_rows, n_cols);
                    }
                }
            }
        }
    }
}

fn bench(options: &Options, format: Format, n_rows: usize, n_cols: usize) {
    let n_bytes = format.row_bytes(n_cols).expect("whole blocks") * n_rows;
    let bytes = blocks(format, n_bytes);
    let n_copies = if options.is_cached { 1 } else { (COLD_BYTES / n_bytes).max(2) };
    let pack = || PackedMatrix::from_bytes(format, n_rows, n_cols, &bytes).expect("a matrix");
    let copies: Vec<PackedMatrix> = (0..n_copies).map(|_| pack()).collect();
    let repack = options.measure(|| {
        black_box(pack());
    });
    let mut single = None;
    for &n_x in &options.rows {
        let x: Vec<f32> = (0..n_x * n_cols).map(|i| (i % 255) as f32 - 127.0).collect();
        let mut out = vec![0.0; n_x * n_rows];
        let mut next = copies.iter().cycle();
        let seconds = options.measure(|| {
            let matrix = next.next().expect("a cycle");
            let x = Activations::new(black_box(&x), n_cols).expect("whole rows");
            matrix.matmul(&x, &mut out, n_rows).expect("operands that fit");
            black_box(&mut out);
        });
        let single = *single.get_or_insert(seconds);
        println!(
            "| {format} | {n_rows}x{n_cols} | {:.2} | {n_x} | {:.1} | {:.1} | {:.0} | {:.2} |",
            n_bytes as f64 / repack / 1e9,
            seconds * 1e6,
            copies[0].bytes() as f64 / seconds / 1e9,
            2.0 * (n_x * n_rows * n_cols) as f64 / seconds / 1e9,
            seconds / single,
        );
    }
}

impl Options {
    fn measure(&self, mut run: impl FnMut()) -> f64 {
        run();
        let (started, mut times) = (Instant::now(), Vec::new());
        while times.len() < 5 || started.elapsed().as_secs_f64() < SECONDS {
            let started = Instant::now();
            run();
            times.push(started.elapsed().as_secs_f64());
        }
        times.sort_by(f64::total_cmp);
        times[if self.is_best { 0 } else { times.len() / 2 }]
    }
}

/// Blocks with small finite scales, whatever the format.
fn blocks(format: Format, n_bytes: usize) -> Vec<u8> {
    let mut state = 1u32;
    (0..n_bytes)
        .map(|i| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let byte = (state >> 24) as u8;
            // A half-precision number whose upper byte is below 0x3c is less than one.
            if format.block_size() == 1 || i % 2 == 1 { byte % 0x3c } else { byte }
        })
        .collect()
}
