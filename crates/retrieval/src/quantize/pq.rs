//! Product quantization: a vector is cut into parts, and each part is replaced by the number of the nearest
//! of 256 codewords.
//!
//! # Memory
//! One byte for each part.
//!
//! # Source
//! Jégou, Douze and Schmid, "Product quantization for nearest neighbor search", IEEE TPAMI 33
//! (2011), sections II and III.

use super::kmeans::{Centers, kmeans};
use crate::{Error, Result};

/// Codewords of a part: as many as a byte has values.
const CODEWORDS: usize = 256;
/// The most rows that a codebook is trained on.
const SAMPLE: usize = 64 * CODEWORDS;

/// Codebooks of all parts.
///
/// # Example
/// ```
/// use breakers_retrieval::quantize::{ProductQuantizer, table_product};
///
/// // 512 vectors of 4 numbers; each half of a vector becomes a byte.
/// let rows: Vec<f32> = (0..2048).map(|i| ((i * 37) % 101) as f32).collect();
/// let quantizer = ProductQuantizer::train(&rows, 4, 2, 1)?;
/// let code = quantizer.encode(&rows[..4]);
/// assert_eq!(code.len(), quantizer.n_parts());
///
/// // A product with a query is one look-up for each byte.
/// let table = quantizer.table(&[1.0, 0.0, 0.0, 0.0]);
/// assert!((table_product(&table, &code) - quantizer.decode(&code)[0]).abs() < 1e-3);
/// # Ok::<(), breakers_retrieval::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct ProductQuantizer {
    parts: Vec<Centers>,
    part: usize,
}

impl ProductQuantizer {
    /// Learns codebooks of `n_parts` parts from rows `[n, dimension]`.
    ///
    /// # Errors
    /// [`Error::Parameter`] unless the parts divide the dimension and there is a row.
    pub fn train(rows: &[f32], dimension: usize, n_parts: usize, seed: u64) -> Result<Self> {
        if n_parts == 0 || !dimension.is_multiple_of(n_parts) {
            return Err(Error::parameter("n_parts", format!("a divisor of {dimension}"), n_parts));
        }
        let n = rows.len() / dimension;
        if n == 0 {
            return Err(Error::parameter("rows to learn from", "at least one", n));
        }
        let part = dimension / n_parts;
        let step = n.div_ceil(SAMPLE);
        let parts = (0..n_parts).map(|p| {
            let sample: Vec<f32> = rows
                .chunks_exact(dimension)
                .step_by(step)
                .flat_map(|row| &row[p * part..][..part])
                .copied()
                .collect();
            kmeans(&sample, part, CODEWORDS, 8, seed.wrapping_add(p as u64))
        });
        Ok(Self { parts: parts.collect(), part })
    }

    /// Bytes of a code.
    pub fn n_parts(&self) -> usize {
        self.parts.len()
    }

    /// The code of a vector.
    pub fn encode(&self, vector: &[f32]) -> Vec<u8> {
        let mut scratch = Vec::new();
        let parts = self.parts.iter().zip(vector.chunks_exact(self.part));
        parts.map(|(centers, part)| centers.nearest(part, &mut scratch).0 as u8).collect()
    }

    /// The vector that a code stands for.
    pub fn decode(&self, code: &[u8]) -> Vec<f32> {
        self.parts.iter().zip(code).flat_map(|(centers, &code)| centers.row(code.into())).collect()
    }

    /// The inner products of a query with all codewords, `[n_parts, 256]`.
    pub fn table(&self, query: &[f32]) -> Vec<f32> {
        let (mut table, mut products) = (Vec::with_capacity(self.parts.len() * CODEWORDS), Vec::new());
        for (centers, part) in self.parts.iter().zip(query.chunks_exact(self.part)) {
            centers.products(part, &mut products);
            table.extend_from_slice(&products);
        }
        table
    }
}

/// ⟨query, what the code stands for⟩ from a [table](ProductQuantizer::table).
#[inline]
pub fn table_product(table: &[f32], code: &[u8]) -> f32 {
    let parts = table.as_chunks::<CODEWORDS>().0.iter().zip(code);
    // Four sums: their loads overlap.
    let mut sums = [0.0f32; 4];
    for (i, (codewords, &code)) in parts.enumerate() {
        sums[i % 4] += codewords[usize::from(code)];
    }
    (sums[0] + sums[1]) + (sums[2] + sums[3])
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt as _, SeedableRng as _};

    #[test]
    fn codes_stand_for_near_vectors_and_tables_for_products() {
        let mut random = rand::rngs::StdRng::seed_from_u64(4);
        let (n, dimension) = (2000, 12);
        let rows: Vec<f32> = (0..n * dimension).map(|_| random.random_range(-1.0..1.0)).collect();
        let error = |n_parts| {
            let quantizer = ProductQuantizer::train(&rows, dimension, n_parts, 1).unwrap();
            let mut sum = 0.0;
            for row in rows.chunks_exact(dimension) {
                let code = quantizer.encode(row);
                let decoded = quantizer.decode(&code);
                sum += crate::distance::l2(row, &decoded);
                let product = table_product(&quantizer.table(&rows[..dimension]), &code);
                assert!((product - crate::distance::dot(&rows[..dimension], &decoded)).abs() < 1e-4);
            }
            sum / n as f32
        };
        let errors = [3, 6, 12].map(error);
        // Uniform numbers have a variance of 1/3; a twelfth of a squared step of 2/256 is the
        // best for single numbers.
        assert!(errors[0] < 0.3 * 4.0 && errors[1] < 0.4 * errors[0] && errors[2] < 0.01, "{errors:?}");
        assert!(ProductQuantizer::train(&rows, dimension, 5, 1).is_err());
        assert!(ProductQuantizer::train(&[], dimension, 4, 1).is_err());
    }
}
