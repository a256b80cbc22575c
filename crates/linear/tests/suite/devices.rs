//! The layers of every format on every device that this build has, compared with products in double
//! precision.

use crate::support::Random;
use breakers_backend::harness::{self, Inputs, Operation, Outputs, Tolerance, values};
use breakers_gguf as gguf;
use breakers_gguf::Format;
use breakers_linear::QuantizedLinear;
use burn::tensor::{Device, Tensor, TensorData};

/// Results are divided by the sum of the weights' magnitudes. Activations up to 1 as eight bits for each 32
/// are off by 1/254 at most.
const EIGHT_BITS: Tolerance = Tolerance::new("activations of eight bits", 4e-3, 0.0);
/// A few roundings of sums that are small compared with that sum.
const OTHER_ORDER: Tolerance = Tolerance::new("another order of summation", 1e-6, 0.0);
/// A single 1 in eight bits, and minima that are added after the product.
const ONE_IN_EIGHT_BITS: Tolerance = Tolerance::new("a one of eight bits", 2e-6, 2e-6);

#[derive(Debug, Clone, Copy)]
struct Case {
    format: Format,
    n_x: usize,
    n_outputs: usize,
    n_cols: usize,
}

/// A matrix with arbitrary codes and scales of a size that occurs.
struct Matrix {
    file: gguf::File,
    /// `[n_outputs, n_cols]`
    decoded: Vec<f32>,
}

impl Case {
    fn matrix(&self) -> Matrix {
        let mut random = Random::new(self.n_outputs as u64 * 1000 + self.n_cols as u64);
        let (format, n_values) = (self.format, self.n_outputs * self.n_cols);
        let n_blocks = n_values / format.block_size();
        let halves: &[usize] = match format {
            Format::F16 | Format::Q4_0 | Format::Q5_0 | Format::Q8_0 | Format::IQ4_NL => &[0],
            Format::Q4_1 | Format::Q5_1 | Format::Q4_K | Format::Q5_K => &[0, 2],
            Format::Q2_K => &[80, 82],
            Format::Q3_K => &[108],
            Format::Q6_K => &[208],
            _ => &[],
        };
        let mut bytes: Vec<u8> =
            (0..n_blocks * format.block_bytes()).map(|_| (random.next() >> 8) as u8).collect();
        for (index, block) in bytes.chunks_exact_mut(format.block_bytes()).enumerate() {
            for &at in halves {
                // Every 7th scale is subnormal in half precision.
                let size = if index % 7 == 3 { 3e-5 } else { 0.1 };
                let scale = half::f16::from_f32(random.float() * size);
                block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
            }
            let value = random.float();
            match format {
                Format::F32 => block.copy_from_slice(&value.to_le_bytes()),
                Format::BF16 => block.copy_from_slice(&half::bf16::from_f32(value).to_le_bytes()),
                Format::MXFP4 => block[0] = 120 + block[0] % 8,
                _ => {}
            }
        }
        let mut decoded = vec![0.0; n_values];
        format.decode_row(&bytes, &mut decoded).unwrap();
        let mut plan = gguf::Writer::new();
        plan.declare("weights", format, &[self.n_outputs, self.n_cols]).unwrap();
        let mut data = plan.write_to(Vec::new()).unwrap();
        data.write("weights", &bytes).unwrap();
        Matrix { file: gguf::File::from_bytes(data.finish().unwrap()).unwrap(), decoded }
    }
}

impl Matrix {
    fn layer(&self, device: &Device) -> QuantizedLinear {
        QuantizedLinear::new(vec![self.file.require("weights").unwrap()], device).unwrap()
    }

    /// The sum of the magnitudes of each row.
    fn magnitudes(&self, n_cols: usize) -> Vec<f32> {
        let sum = |row: &[f32]| row.iter().map(|w| f64::from(w.abs())).sum::<f64>().max(1e-9) as f32;
        self.decoded.chunks_exact(n_cols).map(sum).collect()
    }
}

/// Odd numbers of rows, and columns that fill no whole number of tiles.
fn cases(format: Format) -> Vec<Case> {
    let sizes: &[(usize, usize)] = match format.block_size() {
        256 => &[(1, 256), (37, 768)],
        32 => &[(1, 32), (37, 576), (70, 896)],
        _ => &[(7, 1), (37, 61), (70, 576)],
    };
    let rows = |&(n_outputs, n_cols): &(usize, usize)| {
        [1, 2, 5, 16, 17, 33, 70, 0].map(|n_x| Case { format, n_x, n_outputs, n_cols })
    };
    sizes.iter().flat_map(rows).collect()
}

fn inputs(case: &Case, from: &mut Inputs) -> (Matrix, Tensor<2>, Tensor<2>) {
    let matrix = case.matrix();
    let x = from.tensor([case.n_x, case.n_cols]);
    let scale = Tensor::from_data(
        TensorData::new(matrix.magnitudes(case.n_cols), [1, case.n_outputs]),
        from.device(),
    );
    (matrix, x, scale)
}

fn exact_product(case: &Case, matrix: &Matrix, x: &[f32], device: &Device) -> Tensor<2> {
    let rows = x.chunks_exact(case.n_cols);
    let out: Vec<f32> = rows
        .flat_map(|x| {
            let product = move |w: &[f32]| {
                w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>() as f32
            };
            matrix.decoded.chunks_exact(case.n_cols).map(product)
        })
        .collect();
    Tensor::from_data(TensorData::new(out, [case.n_x, case.n_outputs]), device)
}

#[test]
fn every_format_in_every_leg() {
    for format in Format::ALL {
        Operation {
            name: &format!("product with {format}"),
            cases: &cases(format),
            cpu: EIGHT_BITS,
            gpu: OTHER_ORDER,
            same_bits: true,
            reference: &|case, from| {
                let (matrix, x, scale) = inputs(case, from);
                (exact_product(case, &matrix, &values(x), from.device()) / scale).into()
            },
            kernel: &|case, from| {
                let (matrix, x, scale) = inputs(case, from);
                (matrix.layer(from.device()).forward(x) / scale).into()
            },
        }
        .check();
    }
}

/// The rows of the identity, in calls of 16 and all at once, give each weight.
#[test]
fn weights_are_decoded_exactly() {
    for format in Format::ALL {
        let n_cols = format.block_size().max(32) + if format.block_size() == 1 { 5 } else { 0 };
        let case = Case { format, n_x: n_cols, n_outputs: 13, n_cols };
        Operation {
            name: &format!("weights of {format}"),
            cases: &[case],
            cpu: ONE_IN_EIGHT_BITS,
            gpu: Tolerance::EXACT,
            same_bits: true,
            reference: &|case, from| {
                let decoded = case.matrix().decoded;
                let shape = [case.n_outputs, case.n_cols];
                let weights =
                    Tensor::<2>::from_data(TensorData::new(decoded, shape), from.device()).transpose();
                Outputs::from(weights.clone()).and(weights)
            },
            kernel: &|case, from| {
                let layer = case.matrix().layer(from.device());
                let n = case.n_cols;
                let identity: Vec<f32> = (0..n * n).map(|i| if i / n == i % n { 1.0 } else { 0.0 }).collect();
                let identity: Tensor<2> = from.place(identity, [n, n]);
                let parts = identity.clone().split(16, 0).into_iter().map(|rows| layer.forward(rows));
                Outputs::from(Tensor::cat(parts.collect(), 0)).and(layer.forward(identity))
            },
        }
        .check();
    }
}

#[test]
fn rows_do_not_depend_on_their_neighbors() {
    for format in Format::ALL {
        let n_cols = if format.block_size() == 256 { 512 } else { 576 };
        let case = Case { format, n_x: 32, n_outputs: 37, n_cols };
        let matrix = case.matrix();
        harness::check_rows(&format!("rows with {format}"), &[(32, n_cols)], |x: Tensor<2>| {
            matrix.layer(&x.device()).forward(x)
        });
    }
}

#[test]
fn plain_numbers_in_every_leg() {
    Operation {
        name: "product with plain numbers",
        cases: &[[1, 3, 5], [17, 9, 33], [2, 384, 384], [3, 0, 4], [2, 4, 0], [0, 4, 4]],
        // √384 roundings of sums up to 20.
        cpu: Tolerance::new("another order of summation", 1e-5, 4e-6),
        gpu: Tolerance::new("another order of summation", 1e-5, 4e-6),
        same_bits: true,
        reference: &|&[n_x, n_outputs, n_cols], from| {
            let (weights, x) = (from.values(n_outputs * n_cols), from.tensor([n_x, n_cols]));
            let x = values(x);
            let product = |i: usize| {
                let (x, w) = (&x[i / n_outputs * n_cols..], &weights[i % n_outputs * n_cols..]);
                (0..n_cols).map(|k| f64::from(x[k]) * f64::from(w[k])).sum::<f64>() as f32
            };
            let out: Vec<f32> = (0..n_x * n_outputs).map(product).collect();
            Tensor::<2>::from_data(TensorData::new(out, [n_x, n_outputs]), from.device()).into()
        },
        kernel: &|&[n_x, n_outputs, n_cols], from| {
            let weights = from.values(n_outputs * n_cols);
            let x = from.tensor([n_x, n_cols]);
            QuantizedLinear::from_f32(n_outputs, n_cols, &weights, from.device()).unwrap().forward(x).into()
        },
    }
    .check();
}
