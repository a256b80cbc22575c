//! Decoding with our own formats compared with Q4_K: `cargo bench -p breakers-linear --bench decode --
//! [threads=N] [formats]`.
//!
//! One row of activations, matrices of Qwen2.5-1.5B. Each format alternates with Q4_K, product by product, so
//! that both see the same machine. There are enough copies of the weights to exceed the caches. The table has
//! medians, the ratio of the times, and what that ratio would be if only the bytes of packed weights counted.

#![allow(clippy::print_stdout)] // It prints a table.

use breakers_cpu::random::SplitMix64;
use breakers_cpu::{self as cpu, pool};
use breakers_gguf::{Encoding, Format, GroupFormat, GroupMatrix, GroupScales, QuantizedMatrix};
use breakers_linear::{Activations, PackedMatrix};
use std::{hint::black_box, time::Instant};

const SHAPES: [(usize, usize); 3] = [(1536, 1536), (8960, 1536), (1536, 8960)];
/// Enough bytes of weights that none are still in a cache when they are used again.
const COLD_BYTES: usize = 160 << 20;
const ROUNDS: usize = 400;

const ENCODINGS: [Encoding; 12] = [
    Encoding::Groups(GroupFormat::Symmetric { bits: 4, group: 128 }),
    Encoding::Groups(GroupFormat::Affine { bits: 4, group: 128 }),
    Encoding::Groups(GroupFormat::Affine { bits: 4, group: 32 }),
    Encoding::Groups(GroupFormat::Nf4),
    Encoding::Groups(GroupFormat::NvFp4),
    Encoding::Gguf(Format::MXFP4),
    Encoding::Gguf(Format::Q3_K),
    Encoding::Groups(GroupFormat::Symmetric { bits: 3, group: 128 }),
    Encoding::Groups(GroupFormat::Affine { bits: 3, group: 64 }),
    Encoding::Groups(GroupFormat::Affine { bits: 3, group: 128 }),
    Encoding::Gguf(Format::Q2_K),
    Encoding::Groups(GroupFormat::Affine { bits: 2, group: 64 }),
];

fn main() {
    let mut names = Vec::new();
    for argument in std::env::args().skip(1).filter(|argument| !argument.starts_with("--")) {
        match argument.strip_prefix("threads=") {
            Some(n) => pool::set_threads(n.parse().expect("a number")).expect("a number of threads"),
            None => names.push(argument),
        }
    }
    println!("{} threads, {}", pool::threads(), cpu::isa());
    println!("| format | shape | us | GB/s | Q4_K, us | GB/s | Q4_K's time over ours | by bytes |");
    println!("|---|---|---|---|---|---|---|---|");
    for (n_rows, n_cols) in SHAPES {
        let base = copies(Encoding::Gguf(Format::Q4_K), n_rows, n_cols);
        for encoding in ENCODINGS {
            if names.is_empty() || names.contains(&encoding.name()) {
                compare(encoding, &base, n_rows, n_cols);
            }
        }
    }
}

fn copies(encoding: Encoding, n_rows: usize, n_cols: usize) -> Vec<PackedMatrix> {
    // What codes and scales are makes no difference, as long as they are finite.
    let mut random = SplitMix64::new(1);
    let mut below = |n: u64| (random.next() % n) as u8;
    let quantized = match encoding {
        Encoding::Gguf(format) => {
            let n_bytes = encoding.matrix_bytes(n_rows, n_cols).expect("whole blocks");
            let bytes = (0..n_bytes).map(|_| below(60)).collect();
            QuantizedMatrix::from_bytes(format, n_rows, n_cols, bytes)
        }
        Encoding::Groups(format) => {
            let n_levels = match format {
                GroupFormat::NvFp4 => 15,
                GroupFormat::Symmetric { bits, .. } => (1 << bits) - 1,
                _ => 1 << format.bits(),
            };
            let codes: Vec<u8> = (0..n_rows * n_cols).map(|_| below(n_levels)).collect();
            let scales = GroupScales::store(format, &vec![(0.1, -0.5); n_rows * n_cols / format.group()]);
            GroupMatrix::new(format, n_rows, n_cols, scales, &codes).map(QuantizedMatrix::from_groups)
        }
    }
    .expect("bytes and codes of the format");
    let n_copies = (COLD_BYTES / quantized.bytes()).max(2);
    (0..n_copies)
        .map(|_| PackedMatrix::from_quantized(&quantized).expect("a format with a product"))
        .collect()
}

fn compare(encoding: Encoding, base: &[PackedMatrix], n_rows: usize, n_cols: usize) {
    let ours = copies(encoding, n_rows, n_cols);
    let x: Vec<f32> = (0..n_cols).map(|i| (i % 255) as f32 - 127.0).collect();
    let mut out = vec![0.0; n_rows];
    let mut time = |matrix: &PackedMatrix| {
        let start = Instant::now();
        let x = Activations::new(black_box(&x), n_cols).expect("whole rows");
        matrix.matmul(&x, &mut out, n_rows).expect("operands that fit");
        black_box(&mut out);
        start.elapsed().as_secs_f64() * 1e6
    };
    let (mut times, mut base_times) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        times.push(time(&ours[round % ours.len()]));
        base_times.push(time(&base[round % base.len()]));
    }
    let median = |times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    let (time, base_time) = (median(&mut times), median(&mut base_times));
    let (bytes, base_bytes) = (ours[0].bytes() as f64, base[0].bytes() as f64);
    println!(
        "| {} | {n_rows}x{n_cols} | {time:.0} | {:.1} | {base_time:.0} | {:.1} | {:.2} | {:.2} |",
        encoding.name(),
        bytes / time / 1e3,
        base_bytes / base_time / 1e3,
        base_time / time,
        base_bytes / bytes,
    );
}
