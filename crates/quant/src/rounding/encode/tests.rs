use super::*;
use breakers_cpu::random::SplitMix64;

fn random(n: usize, seed: u64) -> Vec<f32> {
    let mut random = SplitMix64::new(seed);
    let mut uniform = || random.next_symmetric();
    (0..n).map(|_| uniform() + uniform() + uniform()).collect()
}

/// Formats of integer codes, and the largest relative squared error of normal weights: that of a uniform grid
/// over ±2.8 standard deviations, with some reserve.
const FORMATS: [(Format, f64); 12] = [
    (Format::Q4_0, 0.008),
    (Format::Q4_1, 0.006),
    (Format::Q5_0, 0.002),
    (Format::Q5_1, 0.0016),
    (Format::Q8_0, 0.00004),
    (Format::Q2_K, 0.095),
    (Format::Q3_K, 0.027),
    (Format::Q4_K, 0.006),
    (Format::Q5_K, 0.0016),
    (Format::Q6_K, 0.0005),
    (Format::IQ4_NL, 0.007),
    (Format::MXFP4, 0.014),
];

#[test]
fn the_packed_bytes_decode_to_the_values_of_the_grid() {
    for (format, tolerance) in FORMATS {
        for n_rows in [1, 33] {
            let n_cols = 512;
            let mut weights = random(n_rows * n_cols, 1);
            // A block of zeros, one of equal values, one of positive values, and an outlier.
            weights[..32].fill(0.0);
            weights[32..64].fill(-0.25);
            weights[64..96].iter_mut().for_each(|x| *x = x.abs());
            weights[100] = 30.0;
            let importance: Vec<f32> = random(n_cols, 2).iter().map(|x| x * x).collect();
            for importance in [None, Some(&importance[..])] {
                let blocks = Blocks::choose(format, &weights, n_cols, importance).unwrap();
                let codes = blocks.grid.nearest(&weights);
                let bytes = blocks.pack(&codes);
                let mut decoded = vec![0.0; weights.len()];
                format.decode_row(&bytes, &mut decoded).unwrap();
                let values = blocks.grid.values(&codes);
                // Zeros may differ in sign.
                assert!(decoded.iter().zip(&values).all(|(a, b)| a == b), "{format}");
                if n_rows > 1 && importance.is_none() {
                    let rows = n_cols..n_rows * n_cols;
                    let (mut wrong, mut all) = (0.0, 0.0);
                    for i in rows {
                        wrong += f64::from(decoded[i] - weights[i]).powi(2);
                        all += f64::from(weights[i]).powi(2);
                    }
                    assert!(wrong / all < tolerance, "{format}: {}", wrong / all);
                }
            }
        }
    }
}

#[test]
fn importance_moves_the_error_to_other_columns() {
    let n_cols = 512;
    let weights = random(64 * n_cols, 3);
    let importance: Vec<f32> = (0..n_cols).map(|i| if i % 4 == 0 { 100.0 } else { 1.0 }).collect();
    for (format, _) in FORMATS {
        let wrong = |importance| -> f64 {
            let blocks = Blocks::choose(format, &weights, n_cols, importance).unwrap();
            let values = blocks.grid.values(&blocks.grid.nearest(&weights));
            let each = values.iter().zip(&weights).enumerate().filter(|(i, _)| i % 4 == 0);
            each.map(|(_, (a, b))| f64::from(a - b).powi(2)).sum()
        };
        let (with, without) = (wrong(Some(&importance[..])), wrong(None));
        // Eight bits leave nothing to choose, and neither does a power of two.
        let factor = if matches!(format, Format::Q8_0 | Format::MXFP4 | Format::Q6_K) { 1.001 } else { 0.97 };
        assert!(with < factor * without, "{format}: {with} {without}");
    }
}

#[test]
fn scales_do_not_depend_on_the_path() {
    let weights = random(4 * 512, 4);
    for (format, _) in FORMATS {
        let bytes = |isa| {
            cpu::with_isa(isa, || {
                let blocks = Blocks::choose(format, &weights, 512, None).unwrap();
                blocks.pack(&blocks.grid.nearest(&weights))
            })
            .unwrap()
        };
        let reference = bytes(cpu::Isa::Scalar);
        for isa in cpu::available() {
            assert_eq!(bytes(isa), reference, "{format} {isa}");
        }
    }
}

#[test]
fn extreme_weights_stay_finite() {
    for (format, _) in FORMATS {
        for extreme in [1e-40f32, -1e-40, f32::MIN_POSITIVE, 1e30, -3e38, 0.0, -0.0] {
            let mut weights = vec![extreme; 512];
            weights[300] = 1.0;
            let blocks = Blocks::choose(format, &weights, 512, None).unwrap();
            let bytes = blocks.pack(&blocks.grid.nearest(&weights));
            let mut decoded = vec![0.0; 512];
            format.decode_row(&bytes, &mut decoded).unwrap();
            assert!(decoded.iter().all(|x| x.is_finite()), "{format} {extreme}");
        }
    }
}
