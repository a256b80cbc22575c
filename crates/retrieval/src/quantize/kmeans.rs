//! Lloyd's k-means, for coarse lists and codebooks.

use breakers_cpu::{self as cpu, per_isa, pool, random::SplitMix64};

/// Centers laid out by coordinate, `[dimension, k]`: computing the distances to all centers is then a loop
/// over lanes.
#[derive(Debug, Clone)]
pub(crate) struct Centers {
    pub(crate) k: usize,
    by_coordinate: Vec<f32>,
    /// Half the squared length of each center.
    half_norms: Vec<f32>,
}

impl Centers {
    /// From rows `[k, dimension]`.
    pub(crate) fn new(rows: &[f32], dimension: usize) -> Self {
        let k = rows.len() / dimension;
        let by_coordinate = (0..k * dimension).map(|i| rows[i % k * dimension + i / k]).collect();
        let half_norms =
            rows.chunks_exact(dimension).map(|row| row.iter().map(|x| x * x).sum::<f32>() / 2.0).collect();
        Self { k, by_coordinate, half_norms }
    }

    /// One center.
    pub(crate) fn row(&self, center: usize) -> impl Iterator<Item = f32> + '_ {
        self.by_coordinate.iter().skip(center).step_by(self.k).copied()
    }

    /// ⟨x, center⟩ for each center.
    pub(crate) fn products(&self, x: &[f32], out: &mut Vec<f32>) {
        out.clear();
        out.resize(self.k, 0.0);
        per_isa!(cpu::isa(), || for (&x, centers) in x.iter().zip(self.by_coordinate.chunks_exact(self.k)) {
            for (out, &c) in out.iter_mut().zip(centers) {
                *out = x.mul_add(c, *out);
            }
        });
    }

    /// The nearest center, and half the squared distance to it, less the part that is the same for all.
    pub(crate) fn nearest(&self, x: &[f32], scratch: &mut Vec<f32>) -> (usize, f32) {
        self.products(x, scratch);
        let distances = scratch.iter().zip(&self.half_norms).map(|(product, half)| half - product);
        let best = |best: (usize, f32), next: (usize, f32)| if next.1 < best.1 { next } else { best };
        distances.enumerate().fold((0, f32::INFINITY), best)
    }

    /// Centers by distance, nearest first.
    pub(crate) fn ranking(&self, x: &[f32], scratch: &mut Vec<f32>) -> Vec<(f32, u32)> {
        self.products(x, scratch);
        let distances = scratch.iter().zip(&self.half_norms).map(|(product, half)| half - product);
        let mut ranking: Vec<(f32, u32)> = distances.zip(0..).collect();
        ranking.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        ranking
    }
}

/// `k` centers of the rows `[n, dimension]`, n > 0; fewer rows than centers are repeated. The same for
/// every number of threads.
pub(crate) fn kmeans(rows: &[f32], dimension: usize, k: usize, iterations: usize, seed: u64) -> Centers {
    let n = rows.len() / dimension;
    let row = |i: usize| &rows[i * dimension..][..dimension];
    // Rows spread over the sample are the first centers.
    let mut random = SplitMix64::new(seed);
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        order.swap(i, random.next() as usize % (i + 1));
    }
    let mut centers: Vec<f32> = (0..k).flat_map(|i| row(order[i % n])).copied().collect();
    let mut assigned = vec![(0usize, 0.0f32); n];
    for _ in 0..iterations {
        let current = Centers::new(&centers, dimension);
        pool::parallel_chunks_mut(&mut assigned, 256, |start, chunk| {
            let mut scratch = Vec::new();
            for (offset, assigned) in chunk.iter_mut().enumerate() {
                *assigned = current.nearest(row(start + offset), &mut scratch);
            }
        });
        let (mut sums, mut counts) = (vec![0.0f64; k * dimension], vec![0usize; k]);
        for (i, &(center, _)) in assigned.iter().enumerate() {
            counts[center] += 1;
            let sum = &mut sums[center * dimension..][..dimension];
            sum.iter_mut().zip(row(i)).for_each(|(sum, &x)| *sum += f64::from(x));
        }
        for center in 0..k {
            let place = &mut centers[center * dimension..][..dimension];
            if counts[center] == 0 {
                // A center that no row is near to moves to a row.
                place.copy_from_slice(row(random.next() as usize % n));
            } else {
                let sum = &sums[center * dimension..][..dimension];
                place.iter_mut().zip(sum).for_each(|(c, s)| *c = (s / counts[center] as f64) as f32);
            }
        }
    }
    Centers::new(&centers, dimension)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_are_found() {
        // Three groups on a line; the second coordinate is noise.
        let rows: Vec<f32> = (0..300).flat_map(|i| [(i % 3) as f32 * 10.0, (i % 7) as f32 * 0.1]).collect();
        let centers = kmeans(&rows, 2, 3, 10, 1);
        let mut found: Vec<i32> = (0..3).map(|c| centers.row(c).next().unwrap().round() as i32).collect();
        found.sort_unstable();
        assert_eq!(found, [0, 10, 20]);
        let mut scratch = Vec::new();
        let (center, _) = centers.nearest(&[19.0, 0.3], &mut scratch);
        assert_eq!(centers.row(center).next(), Some(20.0));
        assert_eq!(centers.ranking(&[19.0, 0.3], &mut scratch)[0].1 as usize, center);
        // More centers than rows.
        assert_eq!(kmeans(&rows[..4], 2, 5, 3, 1).k, 5);
    }
}
