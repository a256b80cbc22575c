//! Times the matrix product: `cargo bench -p breakers-quant --bench matmul -- [filters]`.
//!
//! A filter is a format (`Q4_K`), a shape (`8960x1536`), `threads=N`, `rows=N` or `isa=NAME`; several of a kind add
//! up. Weights are taken from several copies in turn that together exceed the caches, as in a model's forward pass.
//! The time is the median over repetitions, or the least one with the filter `best`, for a machine that is busy.

#![allow(clippy::print_stdout)] // The table is what the program is for.

use breakers_backend::{cpu, pool};
use breakers_quant::{Activations, Format, PackedMatrix};
use std::{hint::black_box, time::Instant};

/// `(n_rows, n_cols)`: SmolLM2's gate or up projection and its head, Qwen-1.5B's up and down projections.
const SHAPES: [(usize, usize); 4] = [(1536, 576), (49152, 576), (8960, 1536), (1536, 8960)];
const ROWS: [usize; 6] = [1, 2, 4, 8, 16, 512];
/// Weights that are not in any cache when their turn comes again.
const COLD_BYTES: usize = 160 << 20;
const SECONDS: f64 = 0.25;

fn main() {
    let filters: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let values = |key: &str| -> Vec<&str> {
        filters.iter().filter_map(|filter| filter.strip_prefix(key)?.strip_prefix('=')).collect()
    };
    let plain: Vec<&String> =
        filters.iter().filter(|filter| !filter.contains('=') && *filter != "best").collect();
    let matches = |name: &str, of: &dyn Fn(&str) -> bool| {
        plain.iter().any(|filter| *filter == name) || !plain.iter().any(|filter| of(filter))
    };
    let is_shape = |filter: &str| filter.contains('x');
    let is_format = |filter: &str| !filter.contains('x');
    let rows: Vec<usize> = match values("rows").iter().map(|n| n.parse().expect("a number of rows")).collect()
    {
        rows if !Vec::is_empty(&rows) => rows,
        _ => ROWS.to_vec(),
    };
    for isa in values("isa") {
        cpu::force(isa.parse().expect("an instruction set")).expect("an instruction set of this machine");
    }
    let threads = match values("threads").iter().map(|n| n.parse().expect("a number of threads")).collect() {
        threads if !Vec::is_empty(&threads) => threads,
        _ => vec![1],
    };
    let is_best = filters.iter().any(|filter| filter == "best");
    for threads in threads {
        pool::set_threads(threads).expect("a number of threads");
        println!("{} threads, {}", threads, cpu::isa());
        println!("| format | shape | repack GB/s | rows | us | GB/s | GOPS | per 1 row |");
        println!("|---|---|---|---|---|---|---|---|");
        for format in Format::ALL {
            for (n_rows, n_cols) in SHAPES {
                let fits = n_cols.is_multiple_of(format.block_size());
                if fits
                    && matches(format.name(), &is_format)
                    && matches(&format!("{n_rows}x{n_cols}"), &is_shape)
                {
                    bench(format, n_rows, n_cols, &rows, is_best);
                }
            }
        }
    }
}

fn bench(format: Format, n_rows: usize, n_cols: usize, rows: &[usize], is_best: bool) {
    let n_bytes = format.row_bytes(n_cols).expect("whole blocks") * n_rows;
    let bytes = blocks(format, n_bytes);
    let started = Instant::now();
    let copies: Vec<PackedMatrix> = (0..(COLD_BYTES / n_bytes).max(2))
        .map(|_| PackedMatrix::from_bytes(format, n_rows, n_cols, &bytes).expect("a matrix"))
        .collect();
    let repack = (n_bytes * copies.len()) as f64 / started.elapsed().as_secs_f64() / 1e9;
    let mut single = None;
    for &n_x in rows {
        let x: Vec<f32> = (0..n_x * n_cols).map(|i| (i % 255) as f32 - 127.0).collect();
        let mut out = vec![0.0; n_x * n_rows];
        let mut next = copies.iter().cycle();
        let seconds = measure(is_best, || {
            let matrix = next.next().expect("a cycle");
            let x = Activations::new(black_box(&x), n_cols).expect("whole rows");
            matrix.matmul(&x, &mut out, n_rows).expect("operands that fit");
            black_box(&mut out);
        });
        let single = *single.get_or_insert(seconds);
        println!(
            "| {format} | {n_rows}x{n_cols} | {repack:.2} | {n_x} | {:.1} | {:.1} | {:.0} | {:.2} |",
            seconds * 1e6,
            copies[0].bytes() as f64 / seconds / 1e9,
            2.0 * (n_x * n_rows * n_cols) as f64 / seconds / 1e9,
            seconds / single,
        );
    }
}

/// Blocks with small finite scales, whatever the format.
fn blocks(format: Format, n_bytes: usize) -> Vec<u8> {
    let mut state = 1u32;
    (0..n_bytes)
        .map(|i| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // A half-precision number whose upper byte is below 0x3c is less than one.
            if format.block_size() == 1 || i % 2 == 1 {
                (state >> 24) as u8 % 0x3c
            } else {
                (state >> 24) as u8
            }
        })
        .collect()
}

fn measure(is_best: bool, mut run: impl FnMut()) -> f64 {
    run();
    let (started, mut times) = (Instant::now(), Vec::new());
    while times.len() < 5 || started.elapsed().as_secs_f64() < SECONDS {
        let started = Instant::now();
        run();
        times.push(started.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    times[if is_best { 0 } else { times.len() / 2 }]
}
