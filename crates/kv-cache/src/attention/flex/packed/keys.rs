//! Scores of a tile of rows: what comes before the loop over the keys' codes, and after it.

use super::factors;
use super::tile::{Scratch, Tile};
use crate::pages::packed::run::QUAD;
use crate::pages::packed::{Group, MAX_CODED, MAX_GROUPS};
use crate::pages::page::{LANES, PAGE_BLOCKS, PAGE_TOKENS};
use breakers_cpu::simd::{Kernel, Simd};

/// Puts the steps of one set of channels into the queries, and makes integers of them.
pub(super) struct Prepare<'a, const R: usize> {
    pub(super) tile: Tile<'a>,
    pub(super) set: usize,
    pub(super) scratch: *mut Scratch,
}

impl<const R: usize> Kernel for Prepare<'_, R> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Tile { head, rows, .. } = self.tile;
        let (format, keys) = (head.format, &head.format.keys);
        let n = keys.n_coded();
        // SAFETY: the caller's promises; groups begin and end at multiples of LANES, and an
        // adaptive format has one.
        unsafe {
            let scratch = &mut *self.scratch;
            let steps = head.halves.add(format.key_meta.steps + self.set * n);
            let lows = head.halves.add(format.key_meta.lows + self.set * n);
            let zero = S::splat(0.0);
            let mut low = [zero; R];
            for channel in (0..n).step_by(LANES) {
                let (step, low_end) = (S::widen(steps.add(channel)), S::widen(lows.add(channel)));
                let order = head.order.get(channel..channel + LANES).map(|order| S::indices(order.as_ptr()));
                for r in 0..R {
                    let query = rows.q.add(r * rows.stride);
                    let q = match order {
                        Some(order) => S::pick(query, n, order),
                        None => S::load(query.add(channel)),
                    };
                    low[r] = S::fma(q, low_end, low[r]);
                    S::store(scratch.factors.as_mut_ptr().add(r * MAX_CODED + channel), S::mul(q, step));
                }
            }
            for r in 0..R {
                scratch.low[r] = S::reduce_add(low[r]);
                for (g, group) in keys.groups.iter().enumerate() {
                    let (at, n) = (r * MAX_CODED + group.from, group.to - group.from);
                    let from = scratch.factors.as_ptr().add(at);
                    let to = scratch.quads.as_mut_ptr().add(at / QUAD);
                    scratch.rounded[r * MAX_GROUPS + g] =
                        factors::round::<S>(keys.query_planes(), from, n, to, keys.needs_sums());
                }
            }
        }
    }
}

/// Turns one group's sums over a set's slots into scores, or adds them to those of the groups before.
pub(super) struct Combine<'a> {
    pub(super) tile: Tile<'a>,
    pub(super) set: usize,
    pub(super) group: usize,
    pub(super) scratch: *mut Scratch,
}

impl Kernel for Combine<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { tile: Tile { head, rows, spans, queries, .. }, set, group, .. } = self;
        let (meta, keys) = (&head.format.key_meta, &head.format.keys);
        let n_blocks = PAGE_BLOCKS / keys.n_sets().max(1);
        // Low ends are those of all groups: they come with the last one.
        let has_low = keys.channel_slots.is_some() && group + 1 == keys.groups.len();
        // SAFETY: the caller's promises.
        unsafe {
            let scratch = &*self.scratch;
            for r in 0..spans.len() {
                let rounded = if queries.exist() {
                    *queries.rounded(r).add(group)
                } else {
                    scratch.rounded[r * MAX_GROUPS + group]
                };
                let low = if has_low { scratch.low[r] } else { 0.0 };
                let Group { step, offset, .. } = keys.groups[group];
                let (step, offset) = (rounded.step * step, rounded.sum.mul_add(offset, low));
                let (step, offset) = (S::splat(step), S::splat(offset));
                for b in 0..n_blocks {
                    let slot = (set * n_blocks + b) * LANES;
                    let at = rows.weights.add(r * PAGE_TOKENS + slot);
                    let sum = S::words(scratch.sums.as_ptr().add(r * PAGE_TOKENS + b * LANES).cast());
                    let mut score = S::fma(S::float(sum), step, offset);
                    if keys.scales {
                        let scale = head.halves.add(meta.scales + group * PAGE_TOKENS + slot);
                        score = S::mul(score, S::widen(scale));
                    }
                    if keys.offsets {
                        let offset = S::widen(head.halves.add(meta.offsets + group * PAGE_TOKENS + slot));
                        score = S::fma(offset, S::splat(rounded.sum), score);
                    }
                    if group > 0 {
                        score = S::add(score, S::load(at));
                    }
                    S::store(at, score);
                }
            }
        }
    }
}
