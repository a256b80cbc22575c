//! The matrix product of every format: the same bits on every path, and close to a product in `f64`.

use crate::support::Random;
use breakers_cpu::{self as cpu, pool};
use breakers_gguf as gguf;
use breakers_gguf::Format;
use breakers_linear::{
    Activations, Error, OutputTiles, PackedMatrix, QuantizedEmbedding, QuantizedLinear, linear_reference,
    matmul_parts,
};
use burn::{
    backend::Dispatch,
    tensor::{Device, Tensor, TensorData},
};
use std::sync::Arc;

/// Largest error, as a share of the sum of the products' magnitudes: a few roundings of `f32` per block.
const TOLERANCE: f64 = 1e-6;

impl Random {
    fn floats(&mut self, n: usize) -> Vec<f32> {
        // A few values stand out, as they do in language models.
        (0..n).map(|i| self.float() * if i % 37 == 5 { 20.0 } else { 1.0 }).collect()
    }

    /// Blocks with arbitrary codes and scales of a size that occurs.
    fn rows(&mut self, format: Format, n_values: usize) -> Vec<u8> {
        let halves: &[usize] = match format {
            Format::F16 => &[0],
            Format::Q4_0 | Format::Q5_0 | Format::Q8_0 | Format::IQ4_NL => &[0],
            Format::Q4_1 | Format::Q5_1 | Format::Q4_K | Format::Q5_K => &[0, 2],
            Format::Q2_K => &[80, 82],
            Format::Q3_K => &[108],
            Format::Q6_K => &[208],
            _ => &[],
        };
        let mut bytes = Vec::new();
        for _ in 0..n_values / format.block_size() {
            let mut block: Vec<u8> = (0..format.block_bytes()).map(|_| self.next() as u8).collect();
            for &at in halves {
                block[at..at + 2].copy_from_slice(&half::f16::from_f32(self.float() * 0.1).to_le_bytes());
            }
            match format {
                Format::F32 => block.copy_from_slice(&self.float().to_le_bytes()),
                Format::BF16 => block.copy_from_slice(&half::bf16::from_f32(self.float()).to_le_bytes()),
                Format::MXFP4 => block[0] = 120 + block[0] % 8,
                _ => {}
            }
            bytes.extend(block);
        }
        bytes
    }
}

struct Case {
    format: Format,
    n_rows: usize,
    n_cols: usize,
    bytes: Vec<u8>,
    matrix: PackedMatrix,
    /// `[n_rows, n_cols]`
    decoded: Vec<f32>,
}

fn case(format: Format, n_rows: usize, n_cols: usize) -> Case {
    let bytes = Random::new(n_rows as u64 * 1000 + n_cols as u64).rows(format, n_rows * n_cols);
    let matrix = PackedMatrix::from_bytes(format, n_rows, n_cols, &bytes).unwrap();
    let mut decoded = vec![0.0; n_rows * n_cols];
    format.decode_row(&bytes, &mut decoded).unwrap();
    Case { format, n_rows, n_cols, bytes, matrix, decoded }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// Sizes that are not multiples of anything convenient, for the format's block size.
fn sizes(format: Format) -> &'static [(usize, usize)] {
    match format.block_size() {
        256 => &[(16, 256), (5, 512), (37, 768)],
        32 => &[(16, 32), (1, 576), (37, 640), (20, 896)],
        _ => &[(16, 32), (7, 1), (37, 61), (20, 576)],
    }
}

fn check(format: Format, n_rows: usize, n_cols: usize) {
    let case = case(format, n_rows, n_cols);
    let most = 17;
    let x = Random::new(7).floats(most * n_cols);
    // One row at a time on the reference path.
    let mut expected = vec![0.0; most * n_rows];
    cpu::with_isa(cpu::Isa::Scalar, || {
        for (x, out) in x.chunks_exact(n_cols).zip(expected.chunks_exact_mut(n_rows)) {
            case.matrix.matmul(&Activations::new(x, n_cols).unwrap(), out, n_rows).unwrap();
        }
    })
    .unwrap();
    check_values(&case, &x, &expected);
    for isa in cpu::available() {
        for n_x in (1..=most).rev() {
            let stride = n_rows + n_x % 3;
            let mut out = vec![f32::NAN; n_x * stride];
            cpu::with_isa(isa, || {
                let x = Activations::new(&x[..n_x * n_cols], n_cols).unwrap();
                case.matrix.matmul(&x, &mut out, stride).unwrap();
            })
            .unwrap();
            for (row, out) in out.chunks_exact(stride).enumerate() {
                let expected = &expected[row * n_rows..][..n_rows];
                assert_eq!(bits(&out[..n_rows]), bits(expected), "{format} {isa} {n_x} rows, row {row}");
                assert!(out[n_rows..].iter().all(|x| x.is_nan()), "what lies between rows is left alone");
            }
        }
    }
}

/// Against a product in double precision of the decoded weights and of what the quantized
/// activations stand for.
fn check_values(case: &Case, x: &[f32], results: &[f32]) {
    let activations = Activations::new(x, case.n_cols).unwrap();
    let x = match case.format {
        Format::F32 | Format::F16 | Format::BF16 => x.to_vec(),
        _ => activations.quantized().unwrap().to_f32(),
    };
    for (row, x) in x.chunks_exact(case.n_cols).enumerate() {
        for (output, weights) in case.decoded.chunks_exact(case.n_cols).enumerate() {
            let products = || weights.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x));
            let (sum, magnitude): (f64, f64) = (products().sum(), products().map(f64::abs).sum());
            let result = f64::from(results[row * case.n_rows + output]);
            assert!(
                (result - sum).abs() <= TOLERANCE * magnitude,
                "{} row {row}, output {output}: {result}, expected {sum} (magnitude {magnitude})",
                case.format
            );
        }
    }
}

#[test]
fn every_path_gives_the_same_bits() {
    for n_threads in [1, 2] {
        pool::set_threads(n_threads).unwrap();
        for format in Format::ALL {
            for &(n_rows, n_cols) in sizes(format) {
                check(format, n_rows, n_cols);
            }
        }
    }
}

#[test]
fn many_rows_are_many_single_rows() {
    for (format, n_cols) in [(Format::Q4_1, 576), (Format::Q6_K, 2048), (Format::BF16, 640)] {
        let case = case(format, 150, n_cols);
        let n_x = 201;
        let x = Random::new(3).floats(n_x * n_cols);
        let mut together = vec![0.0; n_x * 150];
        case.matrix.matmul(&Activations::new(&x, n_cols).unwrap(), &mut together, 150).unwrap();
        for (x, together) in x.chunks_exact(n_cols).zip(together.chunks_exact(150)) {
            let mut alone = vec![0.0; 150];
            case.matrix.matmul(&Activations::new(x, n_cols).unwrap(), &mut alone, 150).unwrap();
            assert_eq!(bits(&alone), bits(together), "{format}");
        }
    }
}

#[test]
fn packed_rows_decode_as_in_the_file() {
    for format in Format::ALL {
        for &(n_rows, n_cols) in sizes(format) {
            let case = case(format, n_rows, n_cols);
            for (row_idx, expected) in case.decoded.chunks_exact(n_cols).enumerate() {
                let mut row = vec![0.0; n_cols];
                case.matrix.decode_row(row_idx, &mut row).unwrap();
                assert_eq!(bits(&row), bits(expected), "{format} row {row_idx}");
            }
        }
    }
}

#[test]
fn packed_weights_take_as_much_as_the_file() {
    for format in Format::ALL {
        let case = case(format, 64, 1024);
        let ratio = case.matrix.bytes() as f64 / case.bytes.len() as f64;
        let most = match format {
            Format::Q3_K => 1.037,
            Format::Q4_K | Format::Q5_K => 1.028,
            _ => 1.0,
        };
        assert!((1.0..=most).contains(&ratio), "{format}: {ratio}");
    }
}

#[test]
fn extreme_codes_do_not_overflow() {
    for format in Format::ALL.into_iter().filter(|format| format.block_size() > 1) {
        for fill in [0x00, 0x7f, 0x80, 0xff] {
            let (n_rows, n_cols) = (16, 512);
            let mut bytes = vec![fill; format.row_bytes(n_cols).unwrap() * n_rows];
            let scales = Random::new(5).rows(format, n_rows * n_cols);
            for (block, scales) in
                bytes.chunks_exact_mut(format.block_bytes()).zip(scales.chunks_exact(format.block_bytes()))
            {
                let halves: &[usize] = match format {
                    Format::Q2_K => &[80, 82],
                    Format::Q3_K => &[108],
                    Format::Q6_K => &[208],
                    Format::Q4_1 | Format::Q5_1 | Format::Q4_K | Format::Q5_K => &[0, 2],
                    Format::MXFP4 => &[],
                    _ => &[0],
                };
                for &at in halves {
                    block[at..at + 2].copy_from_slice(&scales[at..at + 2]);
                }
                if format == Format::MXFP4 {
                    block[0] = 121;
                }
            }
            let matrix = PackedMatrix::from_bytes(format, n_rows, n_cols, &bytes).unwrap();
            let mut decoded = vec![0.0; n_rows * n_cols];
            format.decode_row(&bytes, &mut decoded).unwrap();
            let case = Case { format, n_rows, n_cols, bytes, matrix, decoded };
            let signs = Random::new(9).floats(n_cols);
            for x in [vec![1.0; n_cols], vec![-1.0; n_cols], signs.iter().map(|x| x.signum()).collect()] {
                let mut results = Vec::new();
                for isa in cpu::available() {
                    let mut out = vec![0.0; n_rows];
                    cpu::with_isa(isa, || {
                        case.matrix.matmul(&Activations::new(&x, n_cols).unwrap(), &mut out, n_rows).unwrap()
                    })
                    .unwrap();
                    check_values(&case, &x, &out);
                    results.push(bits(&out));
                }
                assert!(results.iter().all(|result| *result == results[0]), "{format} {fill:#x}");
            }
        }
    }
}

#[test]
fn spoiled_activations_spoil_their_row_only() {
    let case = case(Format::Q4_1, 20, 64);
    for spoiled in [f32::NAN, f32::INFINITY] {
        let mut x = Random::new(1).floats(3 * 64);
        x[64 + 40] = spoiled;
        let mut out = vec![0.0; 3 * 20];
        case.matrix.matmul(&Activations::new(&x, 64).unwrap(), &mut out, 20).unwrap();
        for (row, out) in out.chunks_exact(20).enumerate() {
            assert!(out.iter().all(|y| y.is_finite() != (row == 1)), "row {row}");
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let matrix = case(Format::Q8_0, 20, 64).matrix;
    let x = vec![0.5; 128];
    let multiply = |n_cols: usize, n_out: usize, stride: usize| {
        matrix.matmul(&Activations::new(&x, n_cols)?, &mut vec![0.0; n_out], stride)
    };
    assert!(multiply(64, 40, 20).is_ok());
    assert!(matches!(multiply(32, 80, 20), Err(Error::Columns { expected: 64, found: 32 })));
    assert!(matches!(multiply(64, 39, 20), Err(Error::Length { expected: 40, found: 39, .. })));
    assert!(matches!(multiply(64, 40, 19), Err(Error::Length { expected: 20, found: 19, .. })));
    assert!(matches!(multiply(64, 40, usize::MAX), Err(Error::Length { .. })));
    assert!(matches!(multiply(50, 40, 20), Err(Error::Length { expected: 150, found: 128, .. })));
    assert!(matches!(matrix.decode_row(20, &mut [0.0; 64]), Err(Error::RowIndex { n_rows: 20, found: 20 })));
    assert!(matches!(matrix.decode_row(0, &mut [0.0; 63]), Err(Error::Length { .. })));
    let packed = |n_rows, n_cols, n_bytes| {
        PackedMatrix::from_bytes(Format::Q8_0, n_rows, n_cols, &vec![0; n_bytes]).unwrap_err()
    };
    assert!(matches!(packed(1, 33, 34), Error::Gguf(gguf::Error::RowLength { .. })));
    assert!(matches!(packed(2, 32, 34), Error::Length { expected: 68, found: 34, .. }));
    assert!(matches!(packed(usize::MAX / 8, 64, 34), Error::Length { .. }));
}

#[test]
fn empty_operands_give_empty_or_zero_results() {
    let none = PackedMatrix::from_bytes(Format::Q4_1, 0, 64, &[]).unwrap();
    none.matmul(&Activations::new(&[1.0; 128], 64).unwrap(), &mut [], 0).unwrap();
    let thin = PackedMatrix::from_f32(3, 0, &[]).unwrap();
    thin.matmul(&Activations::new(&[], 0).unwrap(), &mut [], 3).unwrap();
    let matrix = case(Format::Q4_1, 20, 64).matrix;
    matrix.matmul(&Activations::new(&[], 64).unwrap(), &mut [], 20).unwrap();
    let layer = QuantizedLinear::from_packed(vec![Arc::new(matrix)]).unwrap();
    assert_eq!(layer.forward(Tensor::zeros([0, 64], &Device::flex())).dims(), [0, 20]);
}

/// A file with the given tensors.
fn file(tensors: &[(&str, &Case)]) -> gguf::File {
    let mut plan = gguf::Writer::new();
    for (name, case) in tensors {
        plan.declare(name, case.format, &[case.n_rows, case.n_cols]).unwrap();
    }
    let mut data = plan.write_to(Vec::new()).unwrap();
    for (name, case) in tensors {
        data.write(name, &case.bytes).unwrap();
    }
    gguf::File::from_bytes(data.finish().unwrap()).unwrap()
}

#[test]
fn layers_join_the_outputs_of_their_parts() {
    let device = Device::flex();
    let (q, k, v) = (case(Format::Q4_1, 40, 64), case(Format::Q8_0, 17, 64), case(Format::F32, 3, 64));
    let file = file(&[("q", &q), ("k", &k), ("v", &v)]);
    let views = || file.tensors().collect::<Vec<_>>();
    let layer = QuantizedLinear::new(views(), &device).unwrap();
    assert_eq!((layer.n_inputs(), layer.n_outputs()), (64, 60));
    for n_x in [1, 2, 9, 33] {
        let values = Random::new(n_x as u64).floats((n_x + 1) * 64);
        // A view that starts within its storage.
        let x = Tensor::<2>::from_data(TensorData::new(values.clone(), [n_x + 1, 64]), &device);
        let x = x.narrow(0, 1, n_x);
        let out = layer.forward(x.clone()).into_data().try_to_vec::<f32>().unwrap();
        let mut expected = vec![0.0; n_x * 60];
        let activations = Activations::new(&values[64..], 64).unwrap();
        for (case, start) in [(&q, 0), (&k, 40), (&v, 57)] {
            case.matrix.matmul(&activations, &mut expected[start..], 60).unwrap();
        }
        assert_eq!(bits(&out), bits(&expected));

        // The reference multiplies what the weights stand for with activations that are not quantized.
        let matrices: Arc<[_]> = layer.matrices().unwrap().into();
        let reference = Tensor::<2>::from_dispatch(linear_reference::<Dispatch>(x.into_dispatch(), matrices));
        let reference = reference.into_data().try_to_vec::<f32>().unwrap();
        let distance = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
        };
        let share = distance(&out, &reference) / distance(&reference, &vec![0.0; reference.len()]);
        assert!(share < 0.02, "rounding activations to bytes moved the results by {share}");

        let mut by_slices = vec![0.0; n_x * 60];
        matmul_parts(layer.matrices().unwrap(), &activations, &mut by_slices, 60).unwrap();
        assert_eq!(bits(&out), bits(&by_slices));
    }
    assert!(matches!(QuantizedLinear::new(Vec::new(), &device), Err(Error::NoMatrices)));
    let other = case(Format::F32, 3, 32);
    let matrices = vec![Arc::new(q.matrix), Arc::new(other.matrix)];
    assert!(matches!(
        QuantizedLinear::from_packed(matrices),
        Err(Error::Columns { expected: 64, found: 32 })
    ));
}

#[test]
fn embeddings_decode_the_rows_asked_for() {
    let device = Device::flex();
    for format in [Format::Q8_0, Format::Q6_K, Format::F16] {
        let table = case(format, 50, 256);
        let file = file(&[("table", &table), ("other", &table)]);
        let view = file.require("table").unwrap();
        let head = QuantizedLinear::new(vec![view], &device).unwrap();
        let embeddings = [
            QuantizedEmbedding::from_linear(&head).unwrap(),
            QuantizedEmbedding::new(view, &device).unwrap(),
        ];
        for embedding in embeddings {
            for ids in [vec![], vec![49], (0..40).map(|i| i * 7 % 50).collect::<Vec<u32>>()] {
                let out = embedding.lookup(&ids, &device).unwrap();
                assert_eq!(out.dims(), [ids.len(), 256]);
                let expected: Vec<f32> =
                    ids.iter().flat_map(|&id| &table.decoded[id as usize * 256..][..256]).copied().collect();
                assert_eq!(bits(&out.into_data().try_to_vec::<f32>().unwrap()), bits(&expected));
            }
            let beyond = embedding.lookup(&[3, 50], &device);
            assert!(matches!(beyond, Err(Error::RowIndex { n_rows: 50, found: 50 })));
        }
        let several = QuantizedLinear::new(file.tensors().collect(), &device).unwrap();
        assert!(matches!(QuantizedEmbedding::from_linear(&several), Err(Error::ManyMatrices { found: 2 })));
    }
}

#[test]
fn some_outputs_have_the_bits_that_they_have_among_all() {
    let device = Device::flex();
    let mut random = Random::new(11);
    for format in [Format::Q4_K, Format::Q8_0, Format::F32, Format::BF16] {
        // Two matrices side by side, neither of whole tiles.
        let n_cols = 512;
        let parts = [37, 150].map(|n_rows| Arc::new(case(format, n_rows, n_cols).matrix));
        for parts in [vec![parts[1].clone()], parts.to_vec()] {
            let layer = QuantizedLinear::from_packed(parts.clone()).unwrap();
            for n_x in [1, 3, 8, 17] {
                let x = TensorData::new(random.floats(n_x * n_cols), [n_x, n_cols]);
                let x = Tensor::<2>::from_data(x, &device);
                let all = layer.forward(x.clone()).into_data().try_into_vec::<f32>().unwrap();
                for sparse in [0, 1, 3, 1000] {
                    // Words beyond the last output are left out.
                    let words: Vec<u32> = (0..8)
                        .map(|_| (0..sparse).fold(0, |word, _| word | 1 << (random.next() % 32)))
                        .collect();
                    let some =
                        layer.forward_tiles(x.clone(), &OutputTiles::from_words(words.iter().copied()));
                    assert_eq!(some.dims(), [n_x, layer.n_outputs()]);
                    let some = some.into_data().try_into_vec::<f32>().unwrap();
                    for (i, (some, all)) in some.iter().zip(&all).enumerate() {
                        // Of several matrices each begins with a tile of its own.
                        let output = i % layer.n_outputs();
                        let is_second = parts.len() == 2 && output >= 37;
                        let tile = if is_second { 3 + (output - 37) / 16 } else { output / 16 };
                        let half = words.get(tile / 2).copied().unwrap_or(0) >> (16 * (tile % 2)) & 0xffff;
                        let expected = if half == 0 { f32::NEG_INFINITY } else { *all };
                        assert_eq!(
                            some.to_bits(),
                            expected.to_bits(),
                            "{format}, {n_x} rows, output {output}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn tiles_of_outputs() {
    let tiles = |words: &[u32]| OutputTiles::from_words(words.iter().copied()).n_tiles();
    assert_eq!([tiles(&[]), tiles(&[0, 0]), tiles(&[1 << 15]), tiles(&[1 << 15 | 1 << 16])], [0, 0, 1, 2]);
    assert_eq!(tiles(&[u32::MAX, 0, 1 << 31]), 3);
}
