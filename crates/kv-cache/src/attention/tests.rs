use breakers_backend::device;
use breakers_backend::harness::{Inputs, Operation, Tolerance, check_rows, values};
use burn::tensor::{Device, Tensor, TensorData};

use super::*;

#[derive(Debug)]
struct Case {
    /// n_rows, n_heads, n_kv_heads, head_dim
    shape: [usize; 4],
    visible: Visible,
}

fn case(n_heads: usize, n_kv_heads: usize, head_dim: usize, visible: Visible) -> Case {
    Case { shape: [visible.n_rows(), n_heads, n_kv_heads, head_dim], visible }
}

fn inputs(case: &Case, inputs: &mut Inputs) -> [Tensor<3>; 3] {
    let [n_rows, n_heads, n_kv_heads, head_dim] = case.shape;
    let n_keys = case.visible.n_keys();
    [
        inputs.tensor([n_rows, n_heads, head_dim]),
        inputs.tensor([n_keys, n_kv_heads, head_dim]),
        inputs.tensor([n_keys, n_kv_heads, head_dim]),
    ]
}

/// Scores of some size: the inputs are in [−1, 1).
const SCALE: f32 = 0.8;

#[test]
fn all_legs_agree() {
    let tree = [None, Some(0), Some(0), Some(2), None, Some(3)];
    let tolerance = Tolerance::new("sums of some hundred products in another order", 2e-6, 4e-6);
    Operation {
        name: "attention",
        cases: &[
            case(1, 1, 1, Visible::all(1, 1)),
            case(4, 2, 64, Visible::all(7, 7)),
            case(12, 12, 32, Visible::all(70, 70)),
            case(9, 3, 64, Visible::causal(0, 65, None)),
            case(6, 1, 17, Visible::causal(300, 3, None)),
            case(4, 4, 40, Visible::causal(90, 70, Some(50))),
            case(3, 1, 24, Visible::tree(62, &tree, None).unwrap()),
            case(2, 2, 8, Visible::tree(0, &tree, Some(2)).unwrap()),
            case(2, 1, 8, Visible::all(3, 0)),
            case(2, 1, 8, Visible::all(0, 3)),
        ],
        cpu: tolerance,
        gpu: tolerance,
        same_bits: true,
        reference: &|case, input| {
            let [q, k, v] = inputs(case, input);
            attention_reference(q, k, v, &case.visible, SCALE).unwrap().into()
        },
        kernel: &|case, input| {
            let [q, k, v] = inputs(case, input);
            attention(q, k, v, &case.visible, SCALE).unwrap().into()
        },
    }
    .check();
}

/// Numbers in −1 to 1 that repeat late.
fn numbers<const D: usize>(shape: [usize; D], seed: usize, device: &Device) -> Tensor<D> {
    let n = shape.iter().product();
    let values: Vec<f32> = (0..n).map(|i| ((i + seed) * 7919 % 2003) as f32 / 1001.0 - 1.0).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

#[test]
fn rows_do_not_depend_on_their_neighbors() {
    for n_keys in [5, 64, 150] {
        check_rows(&format!("attention over {n_keys} keys"), &[(32, 4 * 40)], |x: Tensor<2>| {
            let (n_rows, device) = (x.dims()[0], x.device());
            let [k, v] = [1, 2].map(|seed| numbers([n_keys, 2, 40], seed, &device));
            let visible = Visible::all(n_rows, n_keys);
            attention(x.reshape([n_rows, 4, 40]), k, v, &visible, SCALE).unwrap()
        });
    }
}

#[test]
fn a_path_of_a_tree_has_the_bits_of_a_chain_on_every_device() {
    let (n_before, path) = (62, [0, 2, 3, 5]);
    let tree = [None, Some(0), Some(0), Some(2), None, Some(3)];
    for description in device::available() {
        let device = device::open(&description.name).unwrap();
        for window in [None, Some(5), Some(64)] {
            let [q, k, v] = [(1, 6, 4), (2, n_before + 6, 2), (3, n_before + 6, 2)]
                .map(|(seed, n, heads)| numbers([n, heads, 24], seed, &device));
            let visible = Visible::tree(n_before, &tree, window).unwrap();
            let in_tree = attention(q.clone(), k.clone(), v.clone(), &visible, SCALE).unwrap();
            let rows = |x: &Tensor<3>, from: usize, path: &[usize]| {
                let rows = path.iter().map(|row| x.clone().narrow(0, from + row, 1));
                Tensor::cat(rows.collect(), 0)
            };
            let chain = |x: &Tensor<3>| {
                let before = x.clone().narrow(0, 0, n_before);
                Tensor::cat(vec![before, rows(x, n_before, &path)], 0)
            };
            let visible = Visible::causal(n_before, path.len(), window);
            let alone = attention(rows(&q, 0, &path), chain(&k), chain(&v), &visible, SCALE).unwrap();
            let in_tree: Vec<_> = path.iter().map(|row| in_tree.clone().narrow(0, *row, 1)).collect();
            let bits = |x| values::<2>(x).into_iter().map(f32::to_bits).collect::<Vec<_>>();
            assert_eq!(bits(Tensor::cat(in_tree, 0)), bits(alone), "{}, {window:?}", description.name);
        }
    }
}

#[test]
fn wrong_inputs_are_refused() {
    let device = burn::tensor::Device::flex();
    let ones = |shape: [usize; 3]| Tensor::<3>::ones(shape, &device);
    let run = |q, k, v, visible: &Visible, scale| {
        let found = attention(ones(q), ones(k), ones(v), visible, scale).map(|out| out.dims());
        let reference = attention_reference(ones(q), ones(k), ones(v), visible, scale).map(|out| out.dims());
        assert_eq!(found, reference);
        found
    };
    let all = Visible::all(2, 3);
    assert_eq!(run([2, 4, 8], [3, 2, 8], [3, 2, 8], &all, 1.0), Ok([2, 32]));
    let shape = |tensor, expected, found| Err(Error::TensorShape { tensor, expected, found });
    let (k, bad) = ([3, 2, 8], [3, 2, 7]);
    assert_eq!(run([2, 4, 8], bad, k, &all, 1.0), shape("k", k, bad));
    assert_eq!(run([2, 4, 8], k, [2, 2, 8], &all, 1.0), shape("v", k, [2, 2, 8]));
    let heads = |n_heads, n_kv_heads| Err(Error::HeadCount { n_heads, n_kv_heads });
    assert_eq!(run([2, 3, 8], k, k, &all, 1.0), heads(3, 2));
    assert_eq!(run([2, 3, 8], [3, 0, 8], [3, 0, 8], &all, 1.0), heads(3, 0));
    let visible = Err(Error::VisibleShape { expected: [2, 3], found: [3, 2] });
    assert_eq!(run([2, 4, 8], k, k, &Visible::all(3, 2), 1.0), visible);
    let infinite = Err(Error::NotFinite { tensor: "scale", row: 0, value: f32::INFINITY });
    assert_eq!(run([2, 4, 8], k, k, &all, f32::INFINITY), infinite);
    let bad = Tensor::<3>::full([3, 2, 8], f32::INFINITY, &device);
    let found = attention(ones([2, 4, 8]), ones(k), bad, &all, 1.0).map(|out| out.dims());
    assert_eq!(found, Err(Error::NotFinite { tensor: "v", row: 0, value: f32::INFINITY }));
}
