use super::*;
use crate::harness::{self, Inputs, Operation, Outputs, Tolerance};
use breakers_cpu as cpu;
use burn::tensor::DType;

/// Sums of up to 3,000 squares in another order: √3000·2⁻²⁴ of the sum, and a few more steps for the rest.
const OTHER_ORDER: Tolerance = Tolerance::new("another order of summation", 2e-6, 4e-6);
const EPSILON: f32 = 1e-5;
const SHAPES: [[usize; 2]; 14] = [
    [1, 1],
    [1, 2],
    [3, 5],
    [2, 15],
    [5, 16],
    [1, 17],
    [7, 63],
    [4, 64],
    [2, 65],
    [3, 576],
    [1, 2560],
    [130, 300],
    [0, 8],
    [4, 0],
];

#[test]
fn rms_norm_in_every_leg() {
    let cases: Vec<_> = SHAPES.iter().flat_map(|shape| [0.0, 1.0].map(|offset| (*shape, offset))).collect();
    let inputs = |shape: [usize; 2], inputs: &mut Inputs| (inputs.tensor(shape), inputs.tensor([shape[1]]));
    Operation {
        name: "rms_norm",
        cases: &cases,
        cpu: OTHER_ORDER,
        gpu: OTHER_ORDER,
        same_bits: true,
        reference: &|(shape, offset), from| {
            let (x, weight) = inputs(*shape, from);
            rms_norm_reference(x, weight, *offset, EPSILON).into()
        },
        kernel: &|(shape, offset), from| {
            let (x, weight) = inputs(*shape, from);
            rms_norm_offset(x, weight, *offset, EPSILON).into()
        },
    }
    .check();
}

#[test]
fn layer_norm_in_every_leg() {
    let inputs = |shape: [usize; 2], inputs: &mut Inputs| {
        (inputs.tensor(shape), inputs.tensor([shape[1]]), inputs.tensor([shape[1]]))
    };
    Operation {
        name: "layer_norm",
        cases: &SHAPES,
        cpu: OTHER_ORDER,
        gpu: OTHER_ORDER,
        same_bits: true,
        reference: &|shape, from| {
            let (x, weight, bias) = inputs(*shape, from);
            layer_norm_reference(x, weight, bias, EPSILON).into()
        },
        kernel: &|shape, from| {
            let (x, weight, bias) = inputs(*shape, from);
            layer_norm(x, weight, bias, EPSILON).into()
        },
    }
    .check();
}

#[test]
fn rows_do_not_depend_on_their_neighbors() {
    let vector = |width: usize, scale: f32, device: &_| {
        let values: Vec<f32> = (0..width).map(|i| scale + (i % 7) as f32 * 0.25).collect();
        Tensor::<1>::from_floats(values.as_slice(), device)
    };
    let sizes = [(16, 576), (5, 33), (90, 640)];
    harness::check_rows("rms_norm", &sizes, |x: Tensor<2>| {
        let weight = vector(x.dims()[1], 1.0, &x.device());
        rms_norm(x, weight, EPSILON)
    });
    harness::check_rows("layer_norm", &sizes, |x: Tensor<2>| {
        let (weight, bias) = (vector(x.dims()[1], 1.0, &x.device()), vector(x.dims()[1], -0.5, &x.device()));
        layer_norm(x, weight, bias, EPSILON)
    });
}

#[test]
fn half_precision_in_every_leg() {
    // Both round the result to 11 bits; the reference rounds every step.
    const HALF: Tolerance = Tolerance::new("steps in half precision", 2e-3, 1e-2);
    let inputs = |width, from: &mut Inputs| {
        let x = from.tensor([3, width]).cast(DType::F16);
        // The weight has another type than the rows.
        (x, from.tensor([width]))
    };
    Operation {
        name: "norms of half-precision rows",
        cases: &[1, 16, 100],
        cpu: HALF,
        gpu: HALF,
        same_bits: true,
        reference: &|width, from| {
            let (x, weight) = inputs(*width, from);
            let bias = weight.clone();
            let layer = layer_norm_reference(x.clone(), weight.clone(), bias, 0.1);
            Outputs::from(rms_norm_reference(x, weight, 0.0, 0.1)).and(layer)
        },
        kernel: &|width, from| {
            let (x, weight) = inputs(*width, from);
            let (rms, layer) =
                (rms_norm(x.clone(), weight.clone(), 0.1), layer_norm(x, weight.clone(), weight, 0.1));
            assert_eq!((rms.dtype(), layer.dtype()), (DType::F16, DType::F16));
            Outputs::from(rms).and(layer)
        },
    }
    .check();
}

#[test]
fn slices_agree_with_double_precision() {
    let width = 896;
    let x: Vec<f32> = (0..width).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.1).collect();
    let mut out = vec![0.0; width];
    let exact: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
    let mean = exact.iter().sum::<f64>() / width as f64;
    let mean_square = exact.iter().map(|x| x * x).sum::<f64>() / width as f64;
    for isa in cpu::available() {
        rms_norm_rows(isa, &x, &vec![2.0; width], -1.0, EPSILON, &mut out);
        for (out, x) in out.iter().zip(&exact) {
            let expected = x / (mean_square + f64::from(EPSILON)).sqrt();
            assert!((f64::from(*out) - expected).abs() < 1e-6, "{out} {expected}");
        }
        layer_norm_rows(isa, &x, &vec![2.0; width], &vec![0.5; width], EPSILON, &mut out);
        for (out, x) in out.iter().zip(&exact) {
            let variance = mean_square - mean * mean;
            let expected = (x - mean) / (variance + f64::from(EPSILON)).sqrt() * 2.0 + 0.5;
            assert!((f64::from(*out) - expected).abs() < 2e-6, "{out} {expected}");
        }
    }
}
