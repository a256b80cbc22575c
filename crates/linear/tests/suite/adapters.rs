//! Low-rank additions on every device, compared with sums in double precision.

use breakers_backend::harness::{self, Inputs, Operation, Tolerance, values};
use breakers_linear::{Error, LowRank, QuantizedLinear};
use burn::tensor::{Device, Tensor, TensorData};

/// Some hundred roundings of sums up to 20.
const OTHER_ORDER: Tolerance = Tolerance::new("another order of summation", 1e-5, 4e-6);

/// Columns, outputs, and the adapters' first outputs, outputs and ranks.
type Case = (usize, usize, usize, &'static [(usize, usize, usize)]);

/// The layer's weights, and for each adapter A and B.
fn weights(&(_, n_cols, n_outputs, adapters): &Case, from: &mut Inputs) -> (Vec<f32>, Vec<[Vec<f32>; 2]>) {
    let base = from.values(n_outputs * n_cols);
    let pair = |&(_, n_adapted, rank): &(usize, usize, usize)| {
        [from.values(rank * n_cols), from.values(n_adapted * rank)]
    };
    (base, adapters.iter().map(pair).collect())
}

fn scale(adapter: usize) -> f32 {
    0.5 - adapter as f32
}

fn layer(case: &Case, base: &[f32], pairs: &[[Vec<f32>; 2]], device: &Device) -> QuantizedLinear {
    let layer = QuantizedLinear::from_f32(case.2, case.1, base, device).unwrap();
    let adapters = case.3.iter().zip(pairs).enumerate();
    adapters.fold(layer, |layer, (i, (&(first_output, _, rank), [down, up]))| {
        layer.with_adapter(LowRank { first_output, rank, down, up, scale: scale(i) }).unwrap()
    })
}

fn dot(a: &[f64], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * f64::from(*b)).sum()
}

fn exact(case: &Case, base: &[f32], pairs: &[[Vec<f32>; 2]], x: &[f32]) -> Vec<f32> {
    let &(n_rows, n_cols, n_outputs, adapters) = case;
    let mut out = Vec::with_capacity(n_rows * n_outputs);
    for x in x.chunks_exact(n_cols) {
        let x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
        let mut row: Vec<f64> = base.chunks_exact(n_cols).map(|weights| dot(&x, weights)).collect();
        for (i, (&(first, _, rank), [down, up])) in adapters.iter().zip(pairs).enumerate() {
            let inner: Vec<f64> = down.chunks_exact(n_cols).map(|weights| dot(&x, weights)).collect();
            for (y, weights) in row[first..].iter_mut().zip(up.chunks_exact(rank)) {
                *y += f64::from(scale(i)) * dot(&inner, weights);
            }
        }
        out.extend(row.iter().map(|y| *y as f32));
    }
    out
}

#[test]
fn adapters_in_every_leg() {
    Operation {
        name: "low-rank adapters",
        cases: &[
            (1, 33, 5, &[(0, 5, 1)][..]),
            (3, 64, 40, &[(8, 16, 4)]),
            (17, 96, 24, &[(0, 24, 8), (20, 4, 3), (3, 1, 16)]),
            (2, 40, 6, &[]),
            (0, 40, 6, &[(1, 2, 2)]),
        ],
        cpu: OTHER_ORDER,
        gpu: OTHER_ORDER,
        same_bits: true,
        reference: &|case, from| {
            let (base, pairs) = weights(case, from);
            let x = from.tensor([case.0, case.1]);
            let out = exact(case, &base, &pairs, &values(x));
            Tensor::<2>::from_data(TensorData::new(out, [case.0, case.2]), from.device()).into()
        },
        kernel: &|case, from| {
            let (base, pairs) = weights(case, from);
            let x = from.tensor([case.0, case.1]);
            layer(case, &base, &pairs, from.device()).forward(x).into()
        },
    }
    .check();
}

#[test]
fn rows_do_not_depend_on_their_neighbors() {
    let numbers = |n: usize| (0..n).map(|i| ((i * 37 % 101) as f32 - 50.0) / 64.0).collect::<Vec<_>>();
    let (base, down, up) = (numbers(24 * 96), numbers(4 * 96), numbers(8 * 4));
    harness::check_rows("rows with adapters", &[(32, 96)], |x: Tensor<2>| {
        let layer = QuantizedLinear::from_f32(24, 96, &base, &x.device()).unwrap();
        let adapter = LowRank { first_output: 9, rank: 4, down: &down, up: &up, scale: 2.0 };
        layer.with_adapter(adapter).unwrap().forward(x)
    });
}

#[test]
fn adapters_that_do_not_fit_are_refused() {
    let device = Device::flex();
    let layer = QuantizedLinear::from_f32(4, 3, &[1.0; 12], &device).unwrap();
    let bytes = layer.bytes();
    let with = |first_output, rank, n_down, n_up| {
        let (down, up) = (vec![1.0; n_down], vec![1.0; n_up]);
        layer.clone().with_adapter(LowRank { first_output, rank, down: &down, up: &up, scale: 1.0 })
    };
    assert!(with(2, 2, 6, 4).unwrap().bytes() > bytes);
    for (rank, n_down, n_up, expected, found) in [
        (0, 0, 0, 3, 0),
        (2, 5, 4, 6, 5),
        (2, 6, 5, 4, 5),
        (2, 6, 0, 2, 0),
        (usize::MAX, 6, 4, usize::MAX, 6),
    ] {
        match with(0, rank, n_down, n_up) {
            Err(Error::Length { expected: e, found: f, .. }) => assert_eq!((e, f), (expected, found)),
            other => panic!("rank {rank}: {other:?}"),
        }
    }
    for first in [3, usize::MAX] {
        let error = with(first, 2, 6, 4).unwrap_err();
        assert!(matches!(error, Error::AdapterOutputs { n_outputs: 4, .. }), "{error:?}");
    }
}
