use super::ops::nearest_of_blocks_generic;
use super::*;
use breakers_backend::harness::{Inputs, Operation, Tolerance};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

#[test]
fn all_legs_agree() {
    let tolerance = Tolerance::new("sums of some hundred products in another order", 4e-6, 4e-6);
    let inputs = |&[n_blocks, dimension, n_queries, _]: &[usize; 4], inputs: &mut Inputs| {
        let base = inputs.tensor([n_blocks, dimension, BLOCK]);
        (base, inputs.tensor([n_blocks, BLOCK]), inputs.tensor([n_queries, dimension]))
    };
    Operation {
        name: "nearest_of_blocks",
        cases: &[[1, 1, 1, 1], [2, 3, 5, 4], [3, 50, 4, 14], [1, 17, 9, 256], [0, 4, 2, 3], [2, 4, 0, 3]],
        cpu: tolerance,
        gpu: tolerance,
        same_bits: true,
        reference: &|case, input| {
            let (base, offsets, queries) = inputs(case, input);
            if case[0] * case[2] == 0 {
                return Tensor::<4>::zeros([case[2], case[0], case[3], 2], &base.device()).into();
            }
            let (base, offsets) = (base.into_dispatch(), offsets.into_dispatch());
            let queries = queries.into_dispatch();
            let out = nearest_of_blocks_generic::<Dispatch>(base, offsets, queries, case[3]);
            Tensor::<4>::from_dispatch(out).into()
        },
        kernel: &|case, input| {
            let (base, offsets, queries) = inputs(case, input);
            nearest_of_blocks(base, offsets, queries, case[3]).into()
        },
    }
    .check();
}

/// A search on every device is a plain scan over the same 16-bit values, ties included.
fn check(metric: Metric, dimension: usize, n: usize, k: usize, grid: f32) {
    let mut random = StdRng::seed_from_u64((dimension * n) as u64);
    // With a grid many vectors are equally near.
    let mut draw = || -> Vec<f32> {
        (0..dimension)
            .map(|_| (random.random_range(-1.0f32..1.0) * grid).round() / grid + 0.25 / grid)
            .collect()
    };
    let vectors: Vec<Vec<f32>> = (0..n).map(|_| draw()).collect();
    let queries: Vec<Vec<f32>> = (0..7).map(|_| draw()).collect();
    let queries: Vec<&[f32]> = queries.iter().map(Vec::as_slice).collect();
    let prepared = |vector: &[f32]| {
        let mut vector = vector.to_vec();
        metric.prepare("a vector", &mut vector).unwrap();
        vector
    };
    let halves: Vec<Vec<f32>> = vectors
        .iter()
        .map(|v| {
            prepared(v)
                .iter()
                .map(|&x| f16::from_f32(x))
                .map(|x| if x.is_normal() { x.to_f32() } else { 0.0 })
                .collect()
        })
        .collect();
    let expected: Vec<Vec<Neighbor>> = queries
        .iter()
        .map(|query| {
            let mut all: Vec<Neighbor> = (0..)
                .zip(&halves)
                .map(|(slot, v)| Neighbor { slot, distance: metric.distance(&prepared(query), v) })
                .collect();
            all.sort_by(|a, b| a.distance.total_cmp(&b.distance).then(a.slot.cmp(&b.slot)));
            all.truncate(k);
            all
        })
        .collect();
    for description in device::available() {
        let device = device::open(&description.name).unwrap();
        let scan = DeviceScan::new(metric, dimension, vectors.iter().map(Vec::as_slice), &device).unwrap();
        assert_eq!(scan.len(), n);
        let found = scan.search(&queries, k).unwrap();
        assert_eq!(found, expected, "{}: {metric}, {dimension}, {n}, {k}", description.name);
    }
}

#[test]
fn a_device_finds_what_a_plain_scan_finds() {
    for metric in Metric::ALL {
        check(metric, 384, 700, 10, 1e6);
        check(metric, 3, 1000, 30, 4.0);
        check(metric, 20, 300, 300, 1e6);
        check(metric, 5, 1, 3, 1e6);
        check(metric, 5, 0, 3, 1e6);
    }
}

#[test]
fn what_cannot_be_kept_is_refused() {
    let device = Device::flex();
    let scan = |vector: &[f32]| DeviceScan::new(Metric::L2, 2, [vector], &device);
    assert!(matches!(scan(&[1.0]), Err(Error::Dimension { expected: 2, found: 1, .. })));
    assert!(matches!(scan(&[1.0, 70_000.0]), Err(Error::NotFinite { index: 1, .. })));
    assert!(matches!(scan(&[f32::NAN, 0.0]), Err(Error::NotFinite { index: 0, .. })));
    let scan = scan(&[1.0, 2.0]).unwrap();
    assert!(matches!(scan.search(&[&[1.0]], 1), Err(Error::Dimension { .. })));
    assert!(matches!(scan.search(&[&[1.0, f32::INFINITY]], 1), Err(Error::NotFinite { .. })));
    assert!(scan.search(&[&[1.0, 2.0]], 0).unwrap()[0].is_empty());
    assert!(DeviceScan::new(Metric::L2, 0, [], &device).is_err());
}
