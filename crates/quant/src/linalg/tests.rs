use super::*;
use breakers_cpu::random::SplitMix64;
use breakers_cpu::{self as cpu, Isa, pool};

fn random(n: usize, seed: u64) -> Vec<f32> {
    let mut random = SplitMix64::new(seed);
    (0..n).map(|_| random.next_symmetric()).collect()
}

/// A Gram matrix of `n_k` random rows, by the plain formula in `f64`, the diagonal raised a little.
fn gram(rows: &[f32], n: usize) -> Vec<f64> {
    let mut out = vec![0.0; n * n];
    for row in rows.chunks_exact(n) {
        for i in 0..n {
            for j in 0..n {
                out[i * n + j] += f64::from(row[i]) * f64::from(row[j]);
            }
        }
    }
    out
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn products_are_those_of_the_formula_on_every_path() {
    for (m, n, n_k) in [(1, 1, 1), (12, 32, 5), (13, 33, 257), (130, 300, 40), (7, 513, 300), (3, 4, 0)] {
        let (left, right) = (random(m * n_k, 1), random(n * n_k, 2));
        let product = |isa: Isa| {
            let mut out = vec![1.0; m * n];
            let left = Operand { values: &left, stride: m, n: m };
            let right = Operand { values: &right, stride: n, n };
            cpu::with_isa(isa, || add_product(left, right, n_k, -1.0, &mut out, n, Part::All)).unwrap();
            out
        };
        let reference = product(Isa::Scalar);
        for isa in cpu::available() {
            assert_eq!(bits(&product(isa)), bits(&reference), "{isa} {m} {n} {n_k}");
        }
        for i in 0..m {
            for j in 0..n {
                let sum: f64 =
                    (0..n_k).map(|k| f64::from(left[k * m + i]) * f64::from(right[k * n + j])).sum();
                let difference = (f64::from(reference[i * n + j]) - (1.0 - sum)).abs();
                assert!(difference < 1e-5 * (1.0 + n_k as f64).sqrt(), "{m} {n} {n_k}: {difference}");
            }
        }
    }
}

#[test]
fn the_upper_part_is_the_same_as_in_the_whole() {
    let (n, n_k) = (301, 64);
    let rows = random(n * n_k, 3);
    let operand = Operand { values: &rows, stride: n, n };
    let product = |part| {
        let mut out = vec![0.0; n * n];
        add_product(operand, operand, n_k, 1.0, &mut out, n, part);
        out
    };
    let (all, upper) = (product(Part::All), product(Part::Upper));
    for i in 0..n {
        assert_eq!(bits(&all[i * n + i..(i + 1) * n]), bits(&upper[i * n + i..(i + 1) * n]));
    }
}

#[test]
fn a_factor_gives_the_matrix_back() {
    for n in [1, 2, 31, 128, 129, 300] {
        let rows = random(n * (n + 40), 4);
        let matrix = gram(&rows, n);
        let mut factor: Vec<f32> = matrix.iter().map(|x| *x as f32).collect();
        // What lies below the diagonal must not be read.
        (0..n).for_each(|i| factor[i * n..i * n + i].fill(f32::NAN));
        cholesky(&mut factor, n).unwrap();
        let scale = matrix.iter().fold(0.0f64, |a, x| a.max(x.abs()));
        for i in 0..n {
            for j in i..n {
                let sum: f64 =
                    (0..=i).map(|k| f64::from(factor[k * n + i]) * f64::from(factor[k * n + j])).sum();
                assert!((sum - matrix[i * n + j]).abs() < 1e-5 * scale, "{n}: {i} {j}");
            }
        }
    }
}

#[test]
fn factors_do_not_depend_on_paths_and_threads() {
    let n = 290;
    let matrix: Vec<f32> = gram(&random(n * 400, 5), n).iter().map(|x| *x as f32).collect();
    let factor = |isa: Isa| {
        let mut factor = matrix.clone();
        cpu::with_isa(isa, || cholesky(&mut factor, n)).unwrap().unwrap();
        bits(&factor)
    };
    let reference = factor(Isa::Scalar);
    for isa in cpu::available() {
        assert_eq!(factor(isa), reference, "{isa}");
    }
    let threads = pool::threads();
    pool::set_threads(if threads == 1 { 2 } else { 1 }).unwrap();
    let other = factor(cpu::isa());
    pool::set_threads(threads).unwrap();
    assert_eq!(other, reference);
}

#[test]
fn what_is_not_positive_definite_is_refused() {
    for (n, spoil) in [(1, -1.0), (5, 0.0), (140, f32::NAN), (140, f32::INFINITY), (3, -2.0)] {
        let mut matrix = vec![0.0; n * n];
        (0..n).for_each(|i| matrix[i * n + i] = 1.0);
        matrix[n * n - 1] = spoil;
        assert_eq!(cholesky(&mut matrix, n), Err(n - 1), "{n} {spoil}");
    }
    // A matrix of rank 2.
    let rows = random(2 * 6, 6);
    let mut matrix: Vec<f32> = gram(&rows, 6).iter().map(|x| *x as f32).collect();
    assert!(cholesky(&mut matrix, 6).is_err());
}

#[test]
fn triangles_are_copied() {
    let n = 70;
    let values = random(n * n, 7);
    for to_upper in [false, true] {
        let mut mirrored = values.clone();
        mirror(&mut mirrored, n, to_upper);
        for i in 0..n {
            for j in 0..n {
                let (a, b) = if to_upper { (i.max(j), i.min(j)) } else { (i.min(j), i.max(j)) };
                assert_eq!(mirrored[i * n + j], values[a * n + b], "{i} {j} {to_upper}");
            }
        }
    }
}
