use breakers_backend::harness::{self, Inputs, Operation, Outputs, Tolerance};
use burn::backend::Dispatch;
use burn::tensor::Tensor;

use super::best::best_reference;
use super::gated::gated_reference;
use super::heads::{heads_reference, optional};
use super::*;

const OTHER_ORDER: Tolerance = Tolerance::new("exponentials and sums of another implementation", 4e-6, 8e-6);

#[test]
fn gated_activation_in_every_leg() {
    let both = [Activation::Silu, Activation::GeluTanh];
    let cases: Vec<_> = [[1, 1], [3, 5], [7, 64], [2, 1536], [70, 33], [0, 4], [4, 0]]
        .iter()
        .flat_map(|shape| both.map(|activation| (*shape, activation)))
        .collect();
    // Some gates far from zero.
    let input = |[rows, width]: [usize; 2], from: &mut Inputs| {
        let values = from.values(rows * 2 * width).iter().map(|x| x * 12.0).collect();
        from.place(values, [rows, 2 * width])
    };
    Operation {
        name: "gated activation",
        cases: &cases,
        cpu: OTHER_ORDER,
        gpu: OTHER_ORDER,
        same_bits: true,
        reference: &|(shape, activation), from| {
            let x = input(*shape, from).into_dispatch();
            Tensor::<2>::from_dispatch(gated_reference::<Dispatch>(x, *activation)).into()
        },
        kernel: &|(shape, activation), from| gated_activation(input(*shape, from), *activation).into(),
    }
    .check();
}

#[derive(Debug, Clone, Copy)]
struct HeadCase {
    rows: usize,
    n_rotated: usize,
    layout: HeadLayout,
    has_bias: bool,
    /// Of query and key heads.
    has_norms: [bool; 2],
}

/// What [`split_heads`] takes but for the layout.
struct HeadInputs {
    qkv: Tensor<2>,
    bias: Option<Tensor<1>>,
    norms: [Option<Tensor<1>>; 2],
    rope: RopeTable,
}

impl HeadCase {
    fn new(rows: usize, [n_heads, n_kv_heads, head_dim, n_rotated]: [usize; 4], rope: RopeStyle) -> Self {
        let layout = HeadLayout { n_heads, n_kv_heads, head_dim, rope, norm_eps: 1e-6 };
        Self { rows, n_rotated, layout, has_bias: true, has_norms: [false; 2] }
    }

    fn normed(self, queries: bool, keys: bool) -> Self {
        Self { has_norms: [queries, keys], ..self }
    }

    fn without_bias(self) -> Self {
        Self { has_bias: false, ..self }
    }

    fn inputs(&self, from: &mut Inputs) -> HeadInputs {
        let (width, d) = (self.layout.width(), self.layout.head_dim);
        let qkv = from.tensor([self.rows, width]);
        let bias = self.has_bias.then(|| from.tensor([width]));
        let norms = self.has_norms.map(|there| there.then(|| from.tensor([d])));
        let positions: Vec<usize> = (0..self.rows).map(|row| row * 37).collect();
        let rope = RopeTable::new(&positions, self.n_rotated, 10_000.0, 1.0, &[], from.device());
        HeadInputs { qkv, bias, norms, rope }
    }
}

#[test]
fn heads_in_every_leg() {
    use RopeStyle::{Halves, Interleaved};
    Operation {
        name: "heads",
        cases: &[
            HeadCase::new(1, [1, 1, 2, 2], Interleaved),
            HeadCase::new(5, [9, 3, 64, 64], Interleaved),
            HeadCase::new(5, [9, 3, 64, 64], Interleaved).without_bias(),
            HeadCase::new(3, [4, 1, 256, 256], Halves).normed(true, true),
            HeadCase::new(17, [6, 2, 40, 24], Halves),
            HeadCase::new(2, [3, 3, 33, 14], Interleaved).normed(true, true).without_bias(),
            HeadCase::new(2, [4, 2, 20, 12], Halves).normed(true, false),
            HeadCase::new(2, [4, 2, 20, 12], Halves).normed(false, true).without_bias(),
            HeadCase::new(0, [2, 1, 8, 8], Halves),
            HeadCase::new(0, [2, 1, 8, 8], Halves).normed(true, true).without_bias(),
            HeadCase::new(3, [2, 1, 8, 0], Halves),
        ],
        cpu: OTHER_ORDER,
        gpu: OTHER_ORDER,
        same_bits: true,
        reference: &|case, from| {
            let HeadInputs { qkv, bias, norms, rope } = case.inputs(from);
            let (cos, sin) = rope.angles();
            let [q_norm, k_norm] = norms;
            let [bias, q_norm, k_norm] = optional([bias, q_norm, k_norm]);
            let heads = heads_reference::<Dispatch>(
                qkv.into_dispatch(),
                bias,
                q_norm,
                k_norm,
                cos.into_dispatch(),
                sin.into_dispatch(),
                case.layout,
            );
            let [q, k, v] = [heads.q, heads.k, heads.v].map(Tensor::<3>::from_dispatch);
            Outputs::from(q).and(k).and(v)
        },
        kernel: &|case, from| {
            let HeadInputs { qkv, bias, norms, rope } = case.inputs(from);
            let heads = split_heads(qkv, bias, norms, &rope, case.layout);
            Outputs::from(heads.q).and(heads.k).and(heads.v)
        },
    }
    .check();
}

#[test]
fn best_in_every_leg() {
    let input = |[rows, vocab, _]: [usize; 3], from: &mut Inputs| from.tensor([rows, vocab]) * 9.0;
    Operation {
        name: "best",
        cases: &[[1, 1, 1], [3, 7, 7], [1, 255, 4], [5, 257, 1], [2, 5000, 40], [17, 999, 3]],
        // Ids are whole numbers, which no tolerance of this size lets pass for another one.
        cpu: OTHER_ORDER,
        gpu: OTHER_ORDER,
        same_bits: true,
        reference: &|case, from| {
            let logits = input(*case, from).into_dispatch();
            Tensor::<2>::from_dispatch(best_reference::<Dispatch>(logits, case[2])).into()
        },
        kernel: &|case, from| best(input(*case, from), case[2]).into(),
    }
    .check();
}

#[test]
fn equal_logits_come_in_the_order_of_their_ids_and_nan_is_noticed() {
    const VOCAB: usize = 700;
    let mut logits = vec![-1.0f32; 3 * VOCAB];
    for at in [3, 130, 259, 699] {
        logits[at] = 2.0;
    }
    logits[VOCAB + 512] = f32::NAN;
    logits[2 * VOCAB..].fill(f32::NEG_INFINITY);
    logits[2 * VOCAB + 600] = 5.0;
    let ids = |rows: &[f32], row: usize, n: usize| rows[row * 12..row * 12 + n].to_vec();
    Operation {
        name: "best of equal logits",
        cases: &[()],
        cpu: Tolerance::EXACT,
        gpu: Tolerance::EXACT,
        same_bits: true,
        reference: &|(), _| vec![3.0, 130.0, 259.0, 699.0, 0.0, 1.0, -1.0, 600.0, 0.0].into(),
        kernel: &|(), from| {
            let found = harness::values(best(from.place(logits.clone(), [3, VOCAB]), 6));
            let (tied, nan) = (ids(&found, 0, 6), ids(&found, 1, 1));
            let sure = [found[24], found[24 + 6]];
            [&tied[..], &nan, &sure].concat().into()
        },
    }
    .check();
}

#[test]
fn rows_do_not_depend_on_their_neighbors() {
    harness::check_rows("gated activation", &[(16, 66), (40, 300)], |x: Tensor<2>| {
        gated_activation(x, Activation::GeluTanh)
    });
    harness::check_rows("best", &[(16, 1000)], |x: Tensor<2>| best(x, 5));
    let layout =
        HeadLayout { n_heads: 4, n_kv_heads: 2, head_dim: 24, rope: RopeStyle::Halves, norm_eps: 1e-6 };
    harness::check_rows("heads", &[(16, layout.width())], |x: Tensor<2>| {
        let device = x.device();
        let (n_rows, d) = (x.dims()[0], layout.head_dim);
        // Every row at the same position, since rows are told apart by what they hold alone.
        let rope = RopeTable::new(&vec![11; n_rows], d, 10_000.0, 1.0, &[], &device);
        let norm: Tensor<1> = Tensor::ones([d], &device) * 1.5;
        let heads = split_heads(x, None, [Some(norm.clone()), Some(norm)], &rope, layout);
        Tensor::cat(vec![heads.q, heads.k, heads.v], 1)
    });
}
