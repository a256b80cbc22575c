//! Queries as integers, computed once for all pages, for formats whose keys do not change them from page to
//! page.

use super::factors::{self, Rounded};
use crate::attention::flex::page::{Rows, scale_query};
use crate::pages::packed::run::QUAD;
use crate::pages::packed::{MAX_HEAD_DIM, PackedFormat};
use breakers_cpu::simd::{Quad, Simd};

/// Rows' queries: for each row the sums of the groups of channels, then the quads of all groups.
#[derive(Clone, Copy)]
pub(crate) struct Queries {
    start: *const f32,
    stride: usize,
    n_groups: usize,
}

/// How many numbers a row needs; zero if queries are prepared page by page.
pub(crate) fn floats(format: &PackedFormat) -> usize {
    let keys = &format.keys;
    match keys.channel_slots {
        None => keys.groups.len() * ROUNDED + keys.n_coded() / QUAD * QUAD_WORDS,
        Some(_) => 0,
    }
}

const ROUNDED: usize = size_of::<Rounded>() / size_of::<f32>();
const QUAD_WORDS: usize = size_of::<Quad>() / size_of::<f32>();

impl Queries {
    pub(crate) fn none() -> Self {
        Self { start: std::ptr::null(), stride: 0, n_groups: 0 }
    }

    /// The same from row `n` on.
    pub(crate) fn skip(self, n: usize) -> Self {
        Self { start: self.start.wrapping_add(n * self.stride), ..self }
    }

    /// Whether there are any.
    pub(super) fn exist(self) -> bool {
        !self.start.is_null()
    }

    /// A row's groups.
    pub(super) fn rounded(self, row: usize) -> *const Rounded {
        self.start.wrapping_add(row * self.stride).cast()
    }

    /// The first row's quads, and how many there are from row to row.
    pub(super) fn quads(self) -> (*const Quad, usize) {
        (self.start.wrapping_add(self.n_groups * ROUNDED).cast(), self.stride / QUAD_WORDS)
    }
}

/// Prepares `n_rows` rows: `rows.q`, and `sketch(row)`, which is yet to be multiplied by `scale`.
///
/// # Safety
/// `S`'s instructions are there; `to` has [`floats`] numbers for each row, and `sketch` the head's
/// elements if the format has one.
#[inline(always)]
pub(crate) unsafe fn prepare<'a, S: Simd>(
    format: &PackedFormat,
    rows: Rows,
    n_rows: usize,
    sketch: impl Fn(usize) -> &'a [f32],
    scale: f32,
    to: &mut [f32],
) -> Queries {
    let keys = &format.keys;
    let queries = Queries { start: to.as_ptr(), stride: floats(format), n_groups: keys.groups.len() };
    let planes = keys.query_planes();
    let mut projected = [0.0f32; MAX_HEAD_DIM];
    for row in 0..n_rows {
        for (g, group) in keys.groups.iter().enumerate() {
            let n = group.to - group.from;
            // SAFETY: the caller's promises; a group has whole registers, of the head or of its sketch.
            unsafe {
                let from = if group.sketch {
                    // The queries are known to be finite, and so are the products with them.
                    scale_query::<S>(&sketch(row)[..n], scale, projected.as_mut_ptr());
                    projected.as_ptr()
                } else {
                    rows.q.add(row * rows.stride + group.from)
                };
                let (quads, stride) = queries.quads();
                let quads = quads.cast_mut().add(row * stride + group.from / QUAD);
                *queries.rounded(row).cast_mut().add(g) = factors::round::<S>(planes, from, n, quads, true);
            }
        }
    }
    queries
}
