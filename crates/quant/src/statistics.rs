//! Statistics of a layer's inputs for quantizers, collected while a model reads text.
//!
//! # Memory
//! For `n` columns: 16 n bytes of sums; with a Hessian 4 n² bytes and up to 512 rows that have not been added
//! yet (2,048 n); with a sample of `m` rows 4 m n. The number of rows seen does not matter.
//!
//! # Cost
//! The Hessian takes n² multiplications a row (half of `XᵀX`, as it is symmetric).

use crate::{
    Error, Result,
    linalg::{Operand, Part, add_product, mirror},
};
use breakers_core::BoxError;
use breakers_cpu::{matrix::transposed, pool};
use breakers_model::{InputObserver, InputSite};
use std::collections::BTreeMap;

/// Rows that are added to the Hessian at a time, so that it is rarely read and written.
const PENDING_ROWS: usize = 512;

/// Statistics of some places of one block.
#[derive(Debug, Default)]
pub struct SiteStatistics {
    config: StatisticsConfig,
    /// `None` for a place without any inputs so far.
    sites: BTreeMap<InputSite, Option<Statistics>>,
}

impl SiteStatistics {
    /// Statistics of all places.
    pub fn new(config: StatisticsConfig) -> Self {
        Self::of(&InputSite::ALL, config)
    }

    /// Statistics of these places; inputs of others are ignored.
    pub fn of(sites: &[InputSite], config: StatisticsConfig) -> Self {
        Self { config, sites: sites.iter().map(|site| (*site, None)).collect() }
    }

    /// Takes the statistics of a place.
    pub fn take(&mut self, site: InputSite) -> Option<Statistics> {
        let mut statistics = self.sites.get_mut(&site)?.take()?;
        statistics.finish();
        Some(statistics)
    }
}

impl InputObserver for SiteStatistics {
    fn observe(&mut self, site: InputSite, rows: &[f32], n_cols: usize) -> Result<(), BoxError> {
        let config = self.config;
        if let Some(found) = self.sites.get_mut(&site) {
            found.get_or_insert_with(|| Statistics::new(n_cols, config)).observe(rows)?;
        }
        Ok(())
    }
}

/// Which statistics to collect.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct StatisticsConfig {
    /// Second moments of all pairs of columns, which error feedback (GPTQ) needs.
    pub hessian: bool,
    /// How many rows to keep, drawn uniformly from all rows; searches by output error (AWQ) need them.
    pub sample_rows: usize,
    /// Seed of the draw.
    pub seed: u64,
    /// The largest square of a row, as a multiple of the median over the rows that are observed together (a
    /// window of text); larger rows are scaled down to it. Some tokens, such as the first of a text, have
    /// inputs that are a thousand times larger than others in a few places. They alone would determine the
    /// second moments, although the following norm removes their size again.
    pub row_limit: Option<f32>,
}

impl StatisticsConfig {
    /// The statistics that satisfy both of two quantizers.
    pub fn union(self, other: Self) -> Self {
        Self {
            hessian: self.hessian || other.hessian,
            sample_rows: self.sample_rows.max(other.sample_rows),
            seed: self.seed,
            row_limit: self.row_limit.or(other.row_limit),
        }
    }
}

/// Statistics of the rows that a linear layer is fed.
///
/// ```
/// use breakers_quant::statistics::{Statistics, StatisticsConfig};
///
/// # fn main() -> Result<(), breakers_quant::Error> {
/// let mut statistics = Statistics::new(2, StatisticsConfig { hessian: true, ..Default::default() });
/// statistics.observe(&[1.0, -2.0, 3.0, 0.0])?;
/// assert_eq!(statistics.n_rows(), 2);
/// assert_eq!(statistics.mean_magnitude(), [2.0, 1.0]);
/// assert_eq!(statistics.mean_square(), [5.0, 2.0]);
/// assert_eq!(statistics.hessian()?.unwrap(), [5.0, -1.0, -1.0, 2.0]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Statistics {
    n_cols: usize,
    n_rows: u64,
    sum_magnitudes: Vec<f64>,
    sum_squares: Vec<f64>,
    /// Sums of products, of which only the upper triangle is used; empty if they are not collected.
    products: Vec<f32>,
    pending: Vec<f32>,
    sample: Vec<f32>,
    sample_rows: usize,
    random: u64,
    row_limit: Option<f32>,
}

impl Statistics {
    /// Empty statistics of rows of `n_cols` values.
    pub fn new(n_cols: usize, config: StatisticsConfig) -> Self {
        Self {
            n_cols,
            n_rows: 0,
            sum_magnitudes: vec![0.0; n_cols],
            sum_squares: vec![0.0; n_cols],
            products: vec![0.0; if config.hessian { n_cols * n_cols } else { 0 }],
            pending: Vec::new(),
            sample: Vec::new(),
            sample_rows: config.sample_rows,
            random: config.seed,
            row_limit: config.row_limit,
        }
    }

    /// Sees rows of inputs.
    ///
    /// # Shapes
    /// `rows`: `[n, n_cols]`
    ///
    /// # Errors
    /// [`Error::Length`] when they are not whole rows, [`Error::NotFinite`] when a value is infinite or NaN;
    /// then nothing is counted.
    pub fn observe(&mut self, rows: &[f32]) -> Result<()> {
        let n = self.n_cols;
        if n == 0 || !rows.len().is_multiple_of(n) {
            let expected = rows.len().next_multiple_of(n.max(1));
            return Err(Error::Length { what: "values of calibration rows", expected, found: rows.len() });
        }
        if let Some(at) = rows.iter().position(|x| !x.is_finite()) {
            return Err(Error::NotFinite {
                what: "calibration inputs",
                row: at / n,
                col: at % n,
                found: rows[at],
            });
        }
        let limited = self.row_limit.and_then(|limit| limited(rows, n, limit));
        let rows = limited.as_deref().unwrap_or(rows);
        for row in rows.chunks_exact(n) {
            for ((magnitude, square), &x) in
                self.sum_magnitudes.iter_mut().zip(&mut self.sum_squares).zip(row)
            {
                *magnitude += f64::from(x.abs());
                *square += f64::from(x) * f64::from(x);
            }
            self.n_rows += 1;
            self.keep(row);
        }
        if !self.products.is_empty() {
            let mut rest = rows;
            while !rest.is_empty() {
                let room = PENDING_ROWS * n - self.pending.len();
                let (now, later) = rest.split_at(room.min(rest.len()));
                self.pending.extend_from_slice(now);
                if self.pending.len() == PENDING_ROWS * n {
                    self.add_pending();
                }
                rest = later;
            }
        }
        Ok(())
    }

    /// Draws the row into the sample or not (reservoir sampling, Vitter's algorithm R).
    fn keep(&mut self, row: &[f32]) {
        if self.sample_rows == 0 {
            return;
        }
        if self.sample.len() < self.sample_rows * self.n_cols {
            self.sample.extend_from_slice(row);
            return;
        }
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let place = ((u128::from(self.random) * u128::from(self.n_rows)) >> 64) as usize;
        if place < self.sample_rows {
            self.sample[place * self.n_cols..(place + 1) * self.n_cols].copy_from_slice(row);
        }
    }

    fn add_pending(&mut self) {
        let n = self.n_cols;
        let rows = Operand { values: &self.pending, stride: n, n };
        add_product(rows, rows, self.pending.len() / n, 1.0, &mut self.products, n, Part::Upper);
        self.pending.clear();
    }

    /// Values in a row.
    pub fn n_cols(&self) -> usize {
        self.n_cols
    }

    /// Rows seen.
    pub fn n_rows(&self) -> u64 {
        self.n_rows
    }

    /// The mean of |x| of each column; zeros before any row was seen.
    pub fn mean_magnitude(&self) -> Vec<f32> {
        self.mean(&self.sum_magnitudes)
    }

    /// The mean of x² of each column: the importance of a column for the squared error of the outputs.
    pub fn mean_square(&self) -> Vec<f32> {
        self.mean(&self.sum_squares)
    }

    fn mean(&self, sums: &[f64]) -> Vec<f32> {
        sums.iter().map(|sum| (sum / self.n_rows.max(1) as f64) as f32).collect()
    }

    /// The rows that were drawn, `[n, n_cols]`.
    pub fn sample(&self) -> &[f32] {
        &self.sample
    }

    /// Whether second moments of pairs of columns are collected.
    pub fn has_hessian(&self) -> bool {
        !self.products.is_empty()
    }

    /// The mean of xxᵀ, `[n_cols, n_cols]`, if it is collected.
    ///
    /// # Errors
    /// [`Error::TooFewRows`] before any row was seen.
    pub fn hessian(&self) -> Result<Option<Vec<f32>>> {
        if !self.has_hessian() {
            return Ok(None);
        }
        let order: Vec<usize> = (0..self.n_cols).collect();
        let mut mean = self.gathered(&order)?;
        mirror(&mut mean, self.n_cols, false);
        Ok(Some(mean))
    }

    /// Adds the remaining rows to the Hessian and frees their memory.
    pub fn finish(&mut self) {
        if self.has_hessian() && !self.pending.is_empty() {
            self.add_pending();
        }
        self.pending = Vec::new();
    }

    /// Frees the Hessian's memory and keeps the rest.
    pub fn drop_hessian(&mut self) {
        (self.products, self.pending) = (Vec::new(), Vec::new());
    }

    /// The upper triangle of the mean of xxᵀ with its columns in the given order; zeros below.
    pub(crate) fn gathered(&self, order: &[usize]) -> Result<Vec<f32>> {
        let n = self.n_cols;
        if !self.has_hessian() {
            return Err(Error::NoStatistics { needed: "second moments of pairs of columns" });
        }
        if self.n_rows == 0 {
            return Err(Error::TooFewRows { expected: 1, found: 0 });
        }
        let mut with_pending = Vec::new();
        let sums = if self.pending.is_empty() {
            &self.products
        } else {
            with_pending.clone_from(&self.products);
            let rows = Operand { values: &self.pending, stride: n, n };
            add_product(rows, rows, self.pending.len() / n, 1.0, &mut with_pending, n, Part::Upper);
            &with_pending
        };
        let factor = (1.0 / self.n_rows as f64) as f32;
        let mut out = vec![0.0; n * n];
        pool::parallel_chunks_mut(&mut out, n, |start, row| {
            let i = start / n;
            let first = order[i];
            for (out, &second) in row[i..].iter_mut().zip(&order[i..]) {
                *out = factor * sums[first.min(second) * n + first.max(second)];
            }
        });
        Ok(out)
    }

    /// Statistics of the same rows after a linear map of each, which `transform` applies to rows in place:
    /// the Hessian H becomes RHRᵀ, the sample is mapped row by row. Magnitudes are those of the sample,
    /// squares those of the Hessian, or of the sample without one.
    ///
    /// # Errors
    /// Those of `transform`.
    pub fn transformed(&self, transform: impl Fn(&mut [f32]) -> Result<()>) -> Result<Self> {
        let n = self.n_cols;
        let mut out = Self { pending: Vec::new(), products: Vec::new(), ..self.clone() };
        transform(&mut out.sample)?;
        let n_sample = (out.sample.len() / n.max(1)).max(1) as f64;
        let factor = self.n_rows as f64 / n_sample;
        out.sum_magnitudes.fill(0.0);
        out.sum_squares.fill(0.0);
        for row in out.sample.chunks_exact(n) {
            for (i, &x) in row.iter().enumerate() {
                out.sum_magnitudes[i] += factor * f64::from(x.abs());
                out.sum_squares[i] += factor * f64::from(x) * f64::from(x);
            }
        }
        if let Some(mut hessian) = self.hessian()? {
            // H is symmetric: rotating its rows gives HRᵀ, and rotating the rows of the transpose RHRᵀ.
            transform(&mut hessian)?;
            let mut hessian = transposed(&hessian, n);
            transform(&mut hessian)?;
            let rows = self.n_rows as f32;
            pool::parallel_chunks_mut(&mut hessian, 16 * n, |_, part| {
                part.iter_mut().for_each(|x| *x *= rows)
            });
            for (i, square) in out.sum_squares.iter_mut().enumerate() {
                *square = f64::from(hessian[i * n + i]);
            }
            out.products = hessian;
        }
        Ok(out)
    }
}

/// The fewest rows for which the median is meaningful.
const LIMITED_ROWS: usize = 16;

/// The rows, with none above a multiple of the median square; `None` if there is nothing to change.
fn limited(rows: &[f32], n_cols: usize, limit: f32) -> Option<Vec<f32>> {
    let squares: Vec<f64> =
        rows.chunks_exact(n_cols).map(|row| row.iter().map(|x| f64::from(*x).powi(2)).sum()).collect();
    if squares.len() < LIMITED_ROWS {
        return None;
    }
    let mut sorted = squares.clone();
    sorted.sort_by(f64::total_cmp);
    let most = f64::from(limit) * sorted[sorted.len() / 2];
    if most.is_nan() || most <= 0.0 || sorted[sorted.len() - 1] <= most {
        return None;
    }
    let mut out = rows.to_vec();
    for (row, square) in out.chunks_exact_mut(n_cols).zip(squares) {
        if square > most {
            let factor = (most / square).sqrt() as f32;
            row.iter_mut().for_each(|x| *x *= factor);
        }
    }
    Some(out)
}

impl std::fmt::Debug for Statistics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Statistics")
            .field("n_cols", &self.n_cols)
            .field("n_rows", &self.n_rows)
            .field("hessian", &!self.products.is_empty())
            .field("sample", &(self.sample.len() / self.n_cols.max(1)))
            .finish()
    }
}
