//! The quantizers compared with each other, on a layer whose inputs resemble those of language models.

use breakers_gguf as gguf;
use breakers_gguf::{Encoding, Format, GroupFormat};
use breakers_quant::Error;
use breakers_quant::methods::{
    Awq, AwqConfig, ColumnOrder, Gptq, GptqConfig, Hqq, HqqConfig, Rotated, RoundToNearest, ScaleImportance,
};
use breakers_quant::quantizer::{Quantizer, WeightMatrix};
use breakers_quant::statistics::{Statistics, StatisticsConfig};

use crate::support::Random;

impl Random {
    /// By Box and Muller.
    fn normal(&mut self) -> f32 {
        let (u, v) = (f64::from(self.float()), f64::from(self.float()));
        let radius = (-2.0 * (0.5 * (u + 1.0)).max(1e-12).ln()).sqrt();
        (radius * (std::f64::consts::PI * v).cos()) as f32
    }

    fn normals(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.normal()).collect()
    }
}

/// A layer, inputs to calibrate with, and other ones.
struct Layer {
    n: usize,
    weights: Vec<f32>,
    calibration: Statistics,
    held_out: Vec<f32>,
}

impl Layer {
    /// Normal weights; inputs whose covariance has the spectrum 1/i in a random basis, with log-normal
    /// channels: the quantiles of that distribution in random order, as AWQ depends on how far the largest
    /// one stands out.
    fn new(n: usize, n_rows: usize, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let basis = orthogonal(n, &mut random);
        let roots: Vec<f32> = (1..=n).map(|i| 1.0 / (i as f32).sqrt()).collect();
        let mut channels: Vec<f32> = log_normal_quantiles(n);
        for i in (1..n).rev() {
            channels.swap(i, random.next() as usize % (i + 1));
        }
        // A row of the factor maps a coordinate of the spectrum to all channels.
        let mut factor = basis;
        for (row, root) in factor.chunks_exact_mut(n).zip(roots) {
            row.iter_mut().zip(&channels).for_each(|(x, channel)| *x *= root * channel);
        }
        let inputs = |n_rows: usize, random: &mut Random| {
            let mut out = vec![0.0; n_rows * n];
            for row in out.chunks_exact_mut(n) {
                for line in factor.chunks_exact(n) {
                    let z = random.normal();
                    row.iter_mut().zip(line).for_each(|(x, f)| *x += z * f);
                }
            }
            out
        };
        let config = StatisticsConfig { hessian: true, sample_rows: 512, seed, row_limit: None };
        let mut calibration = Statistics::new(n, config);
        calibration.observe(&inputs(n_rows, &mut random)).unwrap();
        let held_out = inputs(1024, &mut random);
        Self { n, weights: random.normals(n * n), calibration, held_out }
    }

    /// The squared error of the outputs over their squares, on inputs that were not calibrated with.
    fn error(&self, quantizer: &dyn Quantizer, encoding: impl Into<Encoding>) -> f64 {
        let weights = WeightMatrix::new(&self.weights, self.n, self.n).unwrap();
        let quantized = quantizer.quantize(&weights, encoding.into(), Some(&self.calibration)).unwrap();
        let decoded = quantized.matrix.to_f32();
        let differences: Vec<f32> = self.weights.iter().zip(&decoded).map(|(a, b)| a - b).collect();
        self.squares(&differences) / self.squares(&self.weights)
    }

    fn squares(&self, matrix: &[f32]) -> f64 {
        let mut sum = 0.0;
        for row in matrix.chunks_exact(self.n) {
            for input in self.held_out.chunks_exact(self.n) {
                let mut lanes = [0.0f32; 16];
                for (a, b) in row.chunks_exact(16).zip(input.chunks_exact(16)) {
                    for i in 0..16 {
                        lanes[i] += a[i] * b[i];
                    }
                }
                sum += f64::from(lanes.iter().sum::<f32>()).powi(2);
            }
        }
        sum
    }
}

/// The numbers below which lie (i + 1/2)/n of a log-normal distribution, found by integrating the normal
/// density.
fn log_normal_quantiles(n: usize) -> Vec<f32> {
    let (mut out, mut below, step) = (Vec::with_capacity(n), 0.0, 1e-4);
    let mut x = -6.0f64;
    while out.len() < n && x < 6.0 {
        below += step * (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
        x += step;
        while out.len() < n && below >= (out.len() as f64 + 0.5) / n as f64 {
            out.push(x.exp() as f32);
        }
    }
    out.resize(n, x.exp() as f32);
    out
}

/// A random orthogonal matrix, by Gram and Schmidt, twice for accuracy.
fn orthogonal(n: usize, random: &mut Random) -> Vec<f32> {
    let mut rows = random.normals(n * n);
    for i in 0..n {
        let (done, rest) = rows.split_at_mut(i * n);
        let row = &mut rest[..n];
        for _ in 0..2 {
            for other in done.chunks_exact(n) {
                let dot: f32 = row.iter().zip(other).map(|(a, b)| a * b).sum();
                row.iter_mut().zip(other).for_each(|(a, b)| *a -= dot * b);
            }
        }
        let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
        row.iter_mut().for_each(|x| *x /= norm);
    }
    rows
}

/// Mean errors of round-to-nearest, AWQ, GPTQ and GPTQ with act-order, computed independently (numpy), at 4,
/// 3 and 2 bits.
const TABLE: [(u8, [f64; 4]); 3] = [
    (4, [0.0099, 0.0065, 0.0046, 0.0035]),
    (3, [0.0451, 0.0296, 0.0223, 0.0160]),
    (2, [0.245, 0.162, 0.172, 0.089]),
];

#[test]
fn the_layer_error_table_is_reproduced() {
    let layers: Vec<Layer> = (1..=3).map(|seed| Layer::new(512, 4096, seed)).collect();
    for (bits, expected) in TABLE {
        let encoding = Encoding::Groups(GroupFormat::Affine { bits, group: 128 });
        let act_order = GptqConfig { order: ColumnOrder::DescendingSquares, ..GptqConfig::paper() };
        let methods: [Box<dyn Quantizer>; 4] = [
            Box::new(RoundToNearest::extremes()),
            Box::new(Awq::new(AwqConfig { clip: false, ..AwqConfig::paper() })),
            Box::new(Gptq::new(GptqConfig::paper())),
            Box::new(Gptq::new(act_order)),
        ];
        for (method, expected) in methods.iter().zip(expected) {
            let errors: Vec<f64> = layers.iter().map(|layer| layer.error(&**method, encoding)).collect();
            let mean = errors.iter().sum::<f64>() / errors.len() as f64;
            assert!((mean / expected - 1.0).abs() < 0.1, "{bits} {}: {errors:?}", method.name());
        }
    }
}

/// Every encoding that is to be ranked.
const ENCODINGS: [Encoding; 10] = [
    Encoding::Gguf(Format::Q4_0),
    Encoding::Gguf(Format::Q4_K),
    Encoding::Gguf(Format::Q3_K),
    Encoding::Gguf(Format::Q2_K),
    Encoding::Gguf(Format::IQ4_NL),
    Encoding::Gguf(Format::MXFP4),
    Encoding::Groups(GroupFormat::Nf4),
    Encoding::Groups(GroupFormat::NvFp4),
    Encoding::Groups(GroupFormat::Symmetric { bits: 4, group: 64 }),
    Encoding::Groups(GroupFormat::Affine { bits: 3, group: 64 }),
];

/// Without shrinkage: rows of these layers are drawn independently, and are many.
fn independent() -> GptqConfig {
    GptqConfig { shrinkage: 0.0, ..GptqConfig::default() }
}

#[test]
fn methods_rank_as_they_should() {
    let layer = Layer::new(512, 2048, 7);
    for encoding in ENCODINGS {
        let name = encoding.name();
        let plain = layer.error(&RoundToNearest::new().unweighted(), encoding);
        let weighted = layer.error(&RoundToNearest::new(), encoding);
        let awq = layer.error(&Awq::new(AwqConfig::default()), encoding);
        let gptq = layer.error(&Gptq::new(independent()), encoding);
        let rotated = layer.error(&Rotated::new(Gptq::new(independent()), 1), encoding);
        assert!(weighted < plain, "{name}: {weighted} {plain}");
        assert!(awq < plain, "{name}: {awq} {plain}");
        assert!(gptq < 0.6 * weighted, "{name}: {gptq} {weighted}");
        assert!(rotated < 0.6 * plain, "{name}: {rotated} {plain}");
    }
    for bits in [4, 3, 2] {
        let encoding = Encoding::Groups(GroupFormat::Affine { bits, group: 64 });
        let extremes = layer.error(&RoundToNearest::extremes(), encoding);
        let hqq = layer.error(&Hqq::new(HqqConfig::paper()), encoding);
        assert!(hqq < extremes, "{bits}: {hqq} {extremes}");
    }
}

#[test]
fn ranges_are_cut_off_where_outputs_lose_least() {
    let layer = Layer::new(256, 1024, 9);
    for format in [
        GroupFormat::Affine { bits: 3, group: 128 },
        GroupFormat::Affine { bits: 2, group: 64 },
        GroupFormat::Symmetric { bits: 4, group: 128 },
        GroupFormat::Nf4,
    ] {
        let error = |clip| {
            let config = AwqConfig { clip, ..AwqConfig::paper() };
            layer.error(&Awq::new(config), format)
        };
        let (whole, clipped) = (error(false), error(true));
        assert!(clipped < 0.97 * whole, "{}: {clipped} {whole}", format.name());
    }
}

#[test]
fn shrinkage_helps_where_rows_are_few() {
    let error = |n_rows, shrinkage| {
        let config = GptqConfig { shrinkage, ..GptqConfig::default() };
        Layer::new(256, n_rows, 11).error(&Gptq::new(config), Format::Q3_K)
    };
    // Fewer rows than columns, and four times as many.
    let (few, few_shrunk) = (error(128, 0.0), error(128, 0.5));
    assert!(few_shrunk < 0.9 * few, "{few_shrunk} {few}");
    let (many, many_shrunk) = (error(1024, 0.0), error(1024, 0.5));
    assert!(many < few && many_shrunk < 1.5 * many, "{many_shrunk} {many}");
}

#[test]
fn a_few_large_rows_do_not_decide_alone() {
    // One row in a window is a thousand times as large as the others in a few places, as the first of a text
    // is in models.
    let n = 256;
    let mut random = Random::new(12);
    let mut window = random.normals(n * 64);
    let usual = window.clone();
    window[..n].iter_mut().step_by(32).for_each(|x| *x *= 1000.0);
    let squares = |rows: &[f32], row_limit| {
        let config = StatisticsConfig { row_limit, ..Default::default() };
        let mut statistics = Statistics::new(n, config);
        statistics.observe(rows).unwrap();
        statistics.mean_square()
    };
    let share = |squares: Vec<f32>| squares.iter().step_by(32).sum::<f32>() / squares.iter().sum::<f32>();
    assert!(share(squares(&window, None)) > 0.99);
    assert!(share(squares(&window, Some(4.0))) < 0.12);
    // Rows of usual size stay as they are.
    assert_eq!(squares(&usual, Some(4.0)), squares(&usual, None));
}

#[test]
fn what_scales_are_weighted_by_matters_to_feedback() {
    let layer = Layer::new(512, 2048, 8);
    for format in [Format::Q2_K, Format::Q3_K, Format::Q4_K] {
        let error = |importance| {
            let config = GptqConfig { importance, ..independent() };
            layer.error(&Gptq::new(config), format)
        };
        let (none, conditional) = (error(ScaleImportance::None), error(ScaleImportance::Conditional));
        assert!(conditional < 0.75 * none, "{format}: {conditional} {none}");
    }
}

/// How a quantizer reacts to invalid weights.
#[test]
fn bad_input_is_refused_by_name() {
    let blocks = Encoding::Gguf(Format::Q4_K);
    let integers = Encoding::Groups(GroupFormat::Affine { bits: 4, group: 256 });
    let quantizers: [(Box<dyn Quantizer>, Encoding); 5] = [
        (Box::new(RoundToNearest::new()), blocks),
        (Box::new(Gptq::new(GptqConfig::default())), blocks),
        (Box::new(Awq::new(AwqConfig::default())), blocks),
        (Box::new(Hqq::new(HqqConfig::paper())), integers),
        (Box::new(Rotated::new(RoundToNearest::new(), 0)), blocks),
    ];
    let mut random = Random::new(9);
    let statistics = |n: usize, random: &mut Random| {
        let config = StatisticsConfig { hessian: true, sample_rows: 16, ..Default::default() };
        let mut statistics = Statistics::new(n, config);
        statistics.observe(&random.normals(n * 32)).unwrap();
        statistics
    };
    let (fitting, other) = (statistics(256, &mut random), statistics(128, &mut random));
    let uneven = statistics(96, &mut random);
    let values = random.normals(2 * 256);
    let weights = WeightMatrix::new(&values, 2, 256).unwrap();
    let narrow = WeightMatrix::new(&values[..192], 2, 96).unwrap();
    for (quantizer, encoding) in quantizers {
        let name = quantizer.name();
        assert!(quantizer.quantize(&weights, encoding, Some(&fitting)).is_ok(), "{name}");
        let mixed = quantizer.quantize(&weights, encoding, Some(&other));
        assert!(matches!(mixed, Err(Error::Columns { expected: 256, found: 128 })), "{name}: {mixed:?}");
        let found = quantizer.quantize(&narrow, encoding, Some(&uneven));
        let expected =
            matches!(found, Err(Error::Gguf(gguf::Error::RowLength { .. } | gguf::Error::GroupSize { .. })));
        assert!(expected, "{name}: {found:?}");
        let needs = quantizer.needs().is_some_and(|needs| needs != StatisticsConfig::default());
        let without = quantizer.quantize(&weights, encoding, None);
        assert_eq!(matches!(without, Err(Error::NoStatistics { .. })), needs, "{name}");
    }
    for spoil in [f32::NAN, f32::INFINITY] {
        let mut values = values.clone();
        values[256 + 7] = spoil;
        let found = WeightMatrix::new(&values, 2, 256).err();
        assert!(matches!(found, Some(Error::NotFinite { row: 1, col: 7, .. })), "{found:?}");
        let mut statistics = Statistics::new(256, StatisticsConfig::default());
        assert!(matches!(statistics.observe(&values), Err(Error::NotFinite { row: 1, col: 7, .. })));
        assert_eq!(statistics.n_rows(), 0);
    }
    assert!(matches!(WeightMatrix::new(&values, 2, 255), Err(Error::Length { .. })));
    assert!(matches!(WeightMatrix::new(&[], 0, 256), Err(Error::Length { .. })));
    let hqq = Hqq::new(HqqConfig::paper());
    let bits = hqq.quantize(&weights, GroupFormat::Affine { bits: 1, group: 128 }.into(), None);
    assert!(matches!(bits, Err(Error::Gguf(gguf::Error::Bits { found: 1 }))));
    for encoding in [blocks, GroupFormat::Symmetric { bits: 4, group: 64 }.into(), GroupFormat::Nf4.into()] {
        let found = hqq.quantize(&weights, encoding, None);
        assert!(matches!(found, Err(Error::Unsuited { found, .. }) if found == encoding), "{encoding}");
        assert!(hqq.check(encoding).is_err() && hqq.check(integers).is_ok());
    }
    let damping = GptqConfig { damping: f32::NAN, ..GptqConfig::default() };
    let found = Gptq::new(damping).quantize(&weights, blocks, Some(&fitting));
    assert!(matches!(found, Err(Error::Setting { .. })));
}

#[test]
fn columns_that_are_never_fed_and_weights_of_zero_are_no_trouble() {
    let mut random = Random::new(10);
    let n = 256;
    let mut rows = random.normals(n * 64);
    let mut values = random.normals(n * 4);
    rows.chunks_exact_mut(n).for_each(|row| row[32..64].fill(0.0));
    values.chunks_exact_mut(n).for_each(|row| row[64..96].fill(0.0));
    values[..n].fill(0.0);
    let mut statistics =
        Statistics::new(n, StatisticsConfig { hessian: true, sample_rows: 64, ..Default::default() });
    statistics.observe(&rows).unwrap();
    let weights = WeightMatrix::new(&values, 4, n).unwrap();
    for format in [Format::Q4_K, Format::Q2_K, Format::Q4_0, Format::MXFP4] {
        let encoding = Encoding::Gguf(format);
        let methods: [Box<dyn Quantizer>; 4] = [
            Box::new(RoundToNearest::new()),
            Box::new(Awq::new(AwqConfig::default())),
            Box::new(Gptq::new(independent())),
            Box::new(Rotated::new(Gptq::new(independent()), 2)),
        ];
        for method in methods {
            let quantized = method.quantize(&weights, encoding, Some(&statistics)).unwrap();
            let decoded = quantized.matrix.to_f32();
            assert!(decoded.iter().all(|x| x.is_finite()), "{}", method.name());
            assert!(decoded[..n].iter().all(|x| *x == 0.0), "{}: a row of zeros stays one", method.name());
        }
    }
}
