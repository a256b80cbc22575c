//! Our own formats: the same bits on every path, and the products of the weights that they stand for.

use crate::support::{Random, rounded};
use breakers_backend::{
    device,
    harness::{self, Operation, Outputs, Tolerance, values},
};
use breakers_cpu::{self as cpu, hadamard::Rotation};
use breakers_gguf::{E2M1_LEVELS, Encoding, Format, GroupFormat, NF4_LEVELS, QuantizedMatrix};
use breakers_linear::{Activations, Error, PackedMatrix, QuantizedLinear};
use burn::tensor::{Device, Tensor, TensorData};
use std::sync::Arc;

const fn affine(bits: u8, group: usize) -> GroupFormat {
    GroupFormat::Affine { bits, group }
}

const fn symmetric(bits: u8, group: usize) -> GroupFormat {
    GroupFormat::Symmetric { bits, group }
}

/// A format, its columns, and how far a decoded weight may be off, as a share of its group's largest.
const CASES: [(GroupFormat, usize, f32); 27] = [
    (affine(2, 32), 96, 0.0),
    (affine(2, 64), 576, 0.0),
    (affine(2, 128), 640, 0.0),
    (affine(3, 32), 608, 0.0),
    (affine(3, 64), 576, 0.0),
    (affine(3, 128), 640, 0.0),
    (affine(4, 32), 32, 0.0),
    (affine(4, 64), 896, 0.0),
    (affine(4, 128), 384, 0.0),
    (affine(4, 256), 512, 0.0),
    (affine(5, 64), 576, 0.0),
    (affine(6, 128), 384, 0.0),
    (affine(7, 32), 96, 0.0),
    (affine(8, 64), 576, 0.0),
    (symmetric(2, 64), 576, 0.0),
    (symmetric(3, 32), 96, 0.0),
    (symmetric(3, 64), 576, 0.0),
    (symmetric(3, 128), 1536, 0.0),
    (symmetric(4, 96), 576, 0.0),
    (symmetric(4, 64), 640, 0.0),
    (symmetric(4, 128), 256, 0.0),
    (symmetric(5, 128), 256, 0.0),
    (symmetric(6, 32), 608, 0.0),
    (symmetric(7, 64), 576, 0.0),
    (symmetric(8, 128), 384, 0.0),
    // Levels in 127ths, and scales in half precision.
    (GroupFormat::Nf4, 576, 1.0 / 254.0 + 1.0 / 2048.0),
    // Half precision of the factor; a row that ends within 256 columns.
    (GroupFormat::NvFp4, 608, 1.0 / 2048.0),
];

/// One case for each kind of code: kernels of devices do not depend on the group's size, and
/// take their time to compile.
fn kinds() -> impl Iterator<Item = (GroupFormat, usize)> {
    let mut seen = Vec::new();
    CASES.into_iter().filter_map(move |(format, n_cols, _)| {
        let kind = (std::mem::discriminant(&format), format.bits());
        let is_new = !seen.contains(&kind);
        seen.push(kind);
        is_new.then_some((format, n_cols))
    })
}

fn quantized(format: GroupFormat, n_rows: usize, n_cols: usize) -> QuantizedMatrix {
    let mut random = Random::new(n_cols as u64);
    let size = |i: usize| match format {
        // All that E4M3 has, subnormal numbers and zero too.
        GroupFormat::NvFp4 => 0.5f32.powi((i / 16 % 21) as i32),
        _ if i % 37 == 5 => 6.0,
        _ => 1.0,
    };
    let values: Vec<f32> = (0..n_rows * n_cols).map(|i| 0.1 * random.float() * size(i)).collect();
    rounded(format, &values, n_rows, n_cols)
}

fn packed(matrix: &QuantizedMatrix) -> PackedMatrix {
    PackedMatrix::from_quantized(matrix).unwrap()
}

fn decoded(matrix: &PackedMatrix) -> Vec<f32> {
    let mut out = vec![0.0; matrix.n_rows() * matrix.n_cols()];
    for (row, out) in out.chunks_exact_mut(matrix.n_cols()).enumerate() {
        matrix.decode_row(row, out).unwrap();
    }
    out
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn packed_weights_are_those_of_the_format() {
    for (format, n_cols, tolerance) in CASES {
        let quantized = quantized(format, 37, n_cols);
        let matrix = packed(&quantized);
        assert_eq!(matrix.encoding(), Encoding::Groups(format));
        let expected = quantized.stored_f32();
        let found = decoded(&matrix);
        for (expected, found) in expected.chunks(format.group()).zip(found.chunks(format.group())) {
            let largest = expected.iter().fold(0.0f32, |a, x| a.max(x.abs()));
            for (expected, found) in expected.iter().zip(found) {
                let off = (expected - found).abs();
                assert!(off <= tolerance * largest, "{}: {expected} {found}", format.name());
            }
        }
    }
}

#[test]
fn every_path_gives_the_same_bits() {
    for (format, n_cols, _) in CASES {
        let (n_rows, most, name) = (37, 11, format.name());
        let matrix = packed(&quantized(format, n_rows, n_cols));
        let weights = decoded(&matrix);
        let mut random = Random::new(3);
        let x: Vec<f32> = (0..most * n_cols).map(|_| random.float()).collect();
        let rounded = Activations::new(&x, n_cols).unwrap().quantized().unwrap().to_f32();
        let mut expected = vec![0.0; most * n_rows];
        cpu::with_isa(cpu::Isa::Scalar, || {
            matrix.matmul(&Activations::new(&x, n_cols).unwrap(), &mut expected, n_rows).unwrap();
        })
        .unwrap();
        for (x, results) in rounded.chunks_exact(n_cols).zip(expected.chunks_exact(n_rows)) {
            for (weights, result) in weights.chunks_exact(n_cols).zip(results) {
                let products = || weights.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x));
                let (sum, magnitude): (f64, f64) = (products().sum(), products().map(f64::abs).sum());
                assert!((f64::from(*result) - sum).abs() <= 1e-6 * magnitude, "{name}: {result} {sum}");
            }
        }
        for isa in cpu::available() {
            for n_x in 1..=most {
                let mut out = vec![f32::NAN; n_x * n_rows];
                cpu::with_isa(isa, || {
                    let x = Activations::new(&x[..n_x * n_cols], n_cols).unwrap();
                    matrix.matmul(&x, &mut out, n_rows).unwrap();
                })
                .unwrap();
                assert_eq!(bits(&out), bits(&expected[..n_x * n_rows]), "{name} {isa} {n_x} rows");
            }
        }
    }
}

#[test]
fn layers_mix_them_with_blocks_of_gguf() {
    let n_cols = 768;
    let mut parts = vec![Arc::new(packed(&quantized(affine(4, 128), 20, n_cols)))];
    // Codes and six-bit scales as they come; the two factors are small halves.
    let mut bytes = Vec::new();
    for block in 0..16 * n_cols / 256 {
        bytes.extend([0x00, 0x14, 0x00, 0x10]);
        bytes.extend((4..Format::Q4_K.block_bytes()).map(|at| (at * 37 + block * 11) as u8));
    }
    parts.push(Arc::new(PackedMatrix::from_bytes(Format::Q4_K, 16, n_cols, &bytes).unwrap()));
    let layer = QuantizedLinear::from_packed(parts.clone()).unwrap();
    let x: Vec<f32> = (0..n_cols).map(|i| (i as f32 * 0.11).cos()).collect();
    let input = Tensor::<2>::from_data(TensorData::new(x.clone(), [1, n_cols]), &Device::flex());
    let found = layer.forward(input).into_data().try_into_vec::<f32>().unwrap();
    let mut expected = Vec::new();
    for part in &parts {
        let mut out = vec![0.0; part.n_rows()];
        part.matmul(&Activations::new(&x, n_cols).unwrap(), &mut out, part.n_rows()).unwrap();
        expected.extend(out);
    }
    assert_eq!(bits(&found), bits(&expected));
}

#[test]
fn scales_are_stored_once_for_a_group() {
    // Bits a weight, the codes and what the format's own scales take in a tile.
    for (format, n_cols, expected) in [
        (affine(4, 128), 1536, 4.25),
        (affine(3, 128), 1536, 3.25),
        (symmetric(3, 128), 1536, 3.125),
        (affine(2, 64), 1536, 2.5),
        (symmetric(8, 128), 1536, 8.5),
        (symmetric(4, 32), 1536, 4.5),
        (GroupFormat::Nf4, 1536, 4.25),
        (GroupFormat::NvFp4, 1536, 4.5625),
    ] {
        let matrix = packed(&quantized(format, 64, n_cols));
        let found = 8.0 * matrix.bytes() as f64 / (64 * n_cols) as f64;
        assert!((found - expected).abs() < 0.01, "{}: {found}", format.name());
    }
}

/// A layer of a quantized matrix, and the sums of its rows' magnitudes as `[1, n_rows]`.
fn layer(matrix: &QuantizedMatrix, device: &Device) -> (QuantizedLinear, Tensor<2>) {
    let weights = decoded(&packed(matrix));
    let sums = weights.chunks_exact(matrix.n_cols()).map(|row| row.iter().map(|w| w.abs()).sum::<f32>());
    let sums = TensorData::new(sums.collect::<Vec<f32>>(), [1, matrix.n_rows()]);
    let layer = QuantizedLinear::from_quantized(std::slice::from_ref(matrix), device).unwrap();
    (layer, Tensor::from_data(sums, device))
}

/// Results are divided by the sum of the weights' magnitudes.
#[test]
fn every_format_in_every_leg() {
    for (format, n_cols) in kinds() {
        let n_rows = 37;
        let quantized = quantized(format, n_rows, n_cols);
        let weights = decoded(&packed(&quantized));
        Operation {
            name: &format!("product with {}", format.name()),
            cases: &[1, 5, 33],
            // Activations up to 1 as eight bits for each 32 are off by 1/254 at most.
            cpu: Tolerance::new("activations of eight bits", 4e-3, 0.0),
            gpu: Tolerance::new("another order of summation", 1e-6, 0.0),
            same_bits: true,
            reference: &|&n_x, from| {
                let x = values(from.tensor([n_x, n_cols]));
                let product = |i: usize| {
                    let x = &x[i / n_rows * n_cols..][..n_cols];
                    let row = &weights[i % n_rows * n_cols..][..n_cols];
                    let products = row.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x));
                    let magnitude: f64 = row.iter().map(|w| f64::from(w.abs())).sum();
                    (products.sum::<f64>() / magnitude) as f32
                };
                let out: Vec<f32> = (0..n_x * n_rows).map(product).collect();
                Tensor::<2>::from_data(TensorData::new(out, [n_x, n_rows]), from.device()).into()
            },
            kernel: &|&n_x, from| {
                let (layer, sums) = layer(&quantized, from.device());
                (layer.forward(from.tensor([n_x, n_cols])) / sums).into()
            },
        }
        .check();
    }
}

/// The rows of the identity, in calls of 16 and all at once, bring out each weight: on a device
/// those of the CPU's tile.
#[test]
fn devices_have_the_weights_of_the_tiles() {
    for (format, n_cols) in kinds() {
        let quantized = quantized(format, 5, n_cols);
        Operation {
            name: &format!("weights of {}", format.name()),
            cases: &[()],
            // A one in eight bits, and minima that are added after the product.
            cpu: Tolerance::new("a one of eight bits", 2e-6, 2e-6),
            gpu: Tolerance::EXACT,
            same_bits: true,
            reference: &|(), from| {
                let weights = TensorData::new(decoded(&packed(&quantized)), [5, n_cols]);
                let weights = Tensor::<2>::from_data(weights, from.device()).transpose();
                Outputs::from(weights.clone()).and(weights)
            },
            kernel: &|(), from| {
                let (layer, _) = layer(&quantized, from.device());
                let one = |i: usize| if i / n_cols == i % n_cols { 1.0 } else { 0.0 };
                let identity: Vec<f32> = (0..n_cols * n_cols).map(one).collect();
                let identity: Tensor<2> = from.place(identity, [n_cols, n_cols]);
                let parts = identity.clone().split(16, 0).into_iter().map(|rows| layer.forward(rows));
                Outputs::from(Tensor::cat(parts.collect(), 0)).and(layer.forward(identity))
            },
        }
        .check();
    }
}

#[test]
fn rows_do_not_depend_on_their_neighbors() {
    for (format, n_cols) in kinds().filter(|(format, _)| matches!(format.bits(), 3 | 4)) {
        let quantized = quantized(format, 37, n_cols);
        harness::check_rows(&format!("rows with {}", format.name()), &[(32, n_cols)], |x: Tensor<2>| {
            layer(&quantized, &x.device()).0.forward(x)
        });
    }
}

/// Several matrices of one format share a buffer, also where each has a factor of its own.
#[test]
fn neighbors_of_one_format_keep_their_scales() {
    for format in [GroupFormat::NvFp4, GroupFormat::Nf4, symmetric(3, 64)] {
        let n_cols = 576;
        let parts = [1.0f32, 40.0].map(|size| {
            let values: Vec<f32> = (0..20 * n_cols).map(|i| size * (i as f32 * 0.37).sin()).collect();
            rounded(format, &values, 20, n_cols)
        });
        let weights: Vec<f32> = parts.iter().flat_map(|part| decoded(&packed(part))).collect();
        Operation {
            name: &format!("neighbors of {}", format.name()),
            cases: &[()],
            cpu: Tolerance::new("activations of eight bits", 4.0, 0.0),
            gpu: Tolerance::new("another order of summation", 4e-3, 0.0),
            same_bits: true,
            reference: &|(), from| {
                let x = values(from.tensor([1, n_cols]));
                let product = |row: &[f32]| {
                    row.iter().zip(&x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>() as f32
                };
                let out: Vec<f32> = weights.chunks_exact(n_cols).map(product).collect();
                Tensor::<2>::from_data(TensorData::new(out, [1, 40]), from.device()).into()
            },
            kernel: &|(), from| {
                let layer = QuantizedLinear::from_quantized(&parts, from.device()).unwrap();
                layer.forward(from.tensor([1, n_cols])).into()
            },
        }
        .check();
    }
}

#[test]
fn what_has_no_kernel_is_refused_by_name() {
    for (format, n_cols) in
        [(affine(2, 16), 128), (affine(8, 48), 96), (symmetric(4, 16), 64), (GroupFormat::NvFp4, 48)]
    {
        let quantized = quantized(format, 2, n_cols);
        let found = PackedMatrix::from_quantized(&quantized);
        assert!(matches!(found, Err(Error::NoProduct { .. })), "{}: {found:?}", format.name());
        for device in device::available() {
            let device = device::open(&device.name).unwrap();
            let found = QuantizedLinear::from_quantized(std::slice::from_ref(&quantized), &device);
            assert!(matches!(found, Err(Error::NoProduct { .. })), "{}: {found:?}", format.name());
        }
    }
}

#[test]
fn layers_rotate_the_inputs_of_rotated_matrices() {
    let (n_rows, n_cols, n_x) = (24, 192, 3);
    let mut random = Random::new(9);
    let mut floats = |n: usize| -> Vec<f32> { (0..n).map(|_| random.float()).collect() };
    let (values, x) = (floats(n_rows * n_cols), floats(n_x * n_cols));
    let with_seed = |seed| {
        let mut rotated = values.clone();
        Rotation::random(n_cols, seed).unwrap().forward(&mut rotated).unwrap();
        rounded(symmetric(8, 64), &rotated, n_rows, n_cols).of_rotated_inputs(seed).unwrap()
    };
    let (parts, mixed) = ([with_seed(1), with_seed(1)], [with_seed(1), with_seed(2)]);
    for device in device::available() {
        let name = device.name;
        let device = device::open(&name).unwrap();
        let layer = QuantizedLinear::from_quantized(&parts, &device).unwrap();
        let run = |x: &[f32]| {
            let n = x.len() / n_cols;
            let x = Tensor::<2>::from_data(TensorData::new(x.to_vec(), [n, n_cols]), &device);
            layer.forward(x).into_data().try_into_vec::<f32>().unwrap()
        };
        let found = run(&x);
        assert_eq!(found[..2 * n_rows], run(&x[..n_cols]), "{name}: a row by itself has the same bits");
        for (x, found) in x.chunks_exact(n_cols).zip(found.chunks_exact(2 * n_rows)) {
            let (first, second) = found.split_at(n_rows);
            for (row, (first, second)) in values.chunks_exact(n_cols).zip(first.iter().zip(second)) {
                let expected: f32 = row.iter().zip(x).map(|(w, x)| w * x).sum();
                // Weights and, on the CPU, inputs in eight bits.
                let off = (first - expected).abs();
                assert!(off < 0.1 && first == second, "{name}: {first} {second} for {expected}");
            }
        }
        let found = QuantizedLinear::from_quantized(&mixed, &device);
        assert!(matches!(found, Err(Error::InputBasis)), "{found:?}");
    }
}

/// A number of E2M1 by its definition: a sign, two bits of exponent with bias 1, one bit of mantissa
/// (OCP MX 1.0, section 5.3.3).
fn e2m1(code: u8) -> f64 {
    let (sign, exponent, mantissa) = (code >> 3, i32::from(code >> 1 & 3), f64::from(code & 1));
    let magnitude = match exponent {
        0 => 0.5 * mantissa,
        _ => 2f64.powi(exponent - 1) * (1.0 + 0.5 * mantissa),
    };
    if sign == 1 { -magnitude } else { magnitude }
}

#[test]
fn mxfp4_decodes_by_the_specification() {
    for scale in [1u8, 2, 64, 120, 127, 140, 200, 252] {
        // Every code in both halves of the bytes.
        let codes: Vec<u8> = (0..32u8).map(|i| if i < 16 { i } else { (47 - i) & 15 }).collect();
        let mut block = vec![scale];
        block.extend((0..16).map(|i| codes[i] | codes[i + 16] << 4));
        let mut found = [0.0; 32];
        Format::MXFP4.decode_row(&block, &mut found).unwrap();
        for (code, found) in codes.iter().zip(found) {
            // E8M0: a power of two with bias 127.
            let expected = (e2m1(*code) * 2f64.powi(i32::from(scale) - 127)) as f32;
            assert!(found == expected, "{code} with scale {scale}: {found} {expected}");
        }
    }
    // NVFP4 has the same numbers.
    let mut sorted: Vec<f64> = (0..16).map(e2m1).collect();
    sorted.sort_by(f64::total_cmp);
    sorted.dedup();
    assert!(E2M1_LEVELS.iter().map(|x| f64::from(*x)).eq(sorted));
}

/// The numbers in appendix E of the QLoRA paper, arXiv 2305.14314.
#[test]
fn nf4_levels_are_those_of_the_paper() {
    #[rustfmt::skip] #[allow(clippy::excessive_precision)] // digits as they are printed there
    let paper: [f32; 16] = [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
        0.7229568362236023, 1.0,
    ];
    assert_eq!(bits(&NF4_LEVELS), bits(&paper));
}
