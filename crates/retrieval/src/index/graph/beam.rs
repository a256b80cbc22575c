//! The walk through the graph.

use super::{Graph, NONE};
use crate::{
    distance::{prefetch, scan_dots},
    index::top::{order, unorder},
    quantize::ScalarQuery,
};
use std::cell::RefCell;

/// Pivots that a walk starts from.
const STARTS: usize = 4;

/// Buffers that the walks of one thread share.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    pub(super) query: ScalarQuery,
    /// The vectors of the beam, nearest first: the distance's order, the slot, and whether its links were
    /// followed.
    pub(super) pool: Vec<u64>,
    /// For each slot, the last walk that saw it.
    visited: Vec<u16>,
    walk: u16,
    /// Vectors that the walk looked at.
    pub(super) looked_at: usize,
    pub(super) ids: Vec<u32>,
    pub(super) dots: Vec<i32>,
    pub(super) distances: Vec<f32>,
    pub(super) candidates: Vec<(f32, u32)>,
}

thread_local!(pub(super) static SCRATCH: RefCell<Scratch> = RefCell::default());

#[inline(always)]
fn entry(distance: f32, slot: u32) -> u64 {
    u64::from(order(distance)) << 32 | u64::from(slot) << 1
}

#[inline(always)]
pub(super) fn slot_of(entry: u64) -> u32 {
    entry as u32 >> 1
}

#[inline(always)]
pub(super) fn distance_of(entry: u64) -> f32 {
    unorder((entry >> 32) as u32)
}

impl Scratch {
    /// Forgets what was visited.
    fn begin(&mut self, n_slots: usize) {
        self.pool.clear();
        self.looked_at = 0;
        if self.visited.len() < n_slots {
            self.visited.resize(n_slots.next_power_of_two(), 0);
        }
        self.walk = self.walk.wrapping_add(1);
        if self.walk == 0 {
            self.visited.fill(0);
            self.walk = 1;
        }
    }

    /// Whether the slot is seen for the first time.
    #[inline(always)]
    fn visit(&mut self, slot: u32) -> bool {
        let seen = &mut self.visited[slot as usize];
        let first = *seen != self.walk;
        *seen = self.walk;
        first
    }

    /// Puts a vector into the beam and returns its position, or `None` if it is too far.
    #[inline(always)]
    fn offer(&mut self, distance: f32, slot: u32, effort: usize) -> Option<usize> {
        let new = entry(distance, slot);
        if self.pool.len() >= effort {
            if self.pool.last().is_none_or(|&last| new >= last) {
                return None;
            }
            self.pool.pop();
        }
        let at = self.pool.partition_point(|&e| e < new);
        self.pool.insert(at, new);
        Some(at)
    }
}

impl Graph {
    /// Fills `scratch.pool` with the nearest vectors that a beam of this width finds, removed ones included.
    pub(super) fn beam(&self, scratch: &mut Scratch, query: &ScalarQuery, effort: usize) {
        let codes = &self.flat.codes;
        scratch.begin(codes.len());
        self.start(scratch, query, effort);
        let width = self.width();
        let (links, stride, rows) = (&*self.links, codes.stride(), codes.codes().as_ptr());
        let tails = codes.tails().as_ptr();
        let mut ids = std::mem::take(&mut scratch.ids);
        let mut next = 0;
        while next < scratch.pool.len() {
            if scratch.pool[next] & 1 == 1 {
                next += 1;
                continue;
            }
            scratch.pool[next] |= 1;
            let slot = slot_of(scratch.pool[next]);
            ids.clear();
            for &link in &links[slot as usize * width..][..width] {
                if link == NONE {
                    break;
                }
                if scratch.visit(link) {
                    ids.push(link);
                    prefetch(rows.wrapping_add(link as usize * stride), stride.min(512));
                    prefetch(tails.wrapping_add(link as usize).cast(), 1);
                }
            }
            scratch.dots.resize(ids.len(), 0);
            scratch.distances.resize(ids.len(), 0.0);
            codes.gather(query, &ids, &mut scratch.dots, &mut scratch.distances);
            scratch.looked_at += ids.len();
            next += 1;
            for (i, &id) in ids.iter().enumerate() {
                if let Some(at) = scratch.offer(scratch.distances[i], id, effort) {
                    next = next.min(at);
                    // Most vectors of the beam are followed sooner or later, and the next one at once.
                    prefetch(links.as_ptr().wrapping_add(id as usize * width).cast(), 4 * width);
                }
            }
        }
        scratch.ids = ids;
    }

    /// Puts the nearest pivots into the beam.
    fn start(&self, scratch: &mut Scratch, query: &ScalarQuery, effort: usize) {
        scratch.dots.resize(self.pivots.len(), 0);
        scan_dots(&query.codes, &self.pivot_codes, &mut scratch.dots);
        let starts = STARTS.min(effort);
        for (i, (&pivot, tail)) in self.pivots.iter().zip(&self.pivot_tails).enumerate() {
            scratch.offer(query.distance(tail, scratch.dots[i]), pivot, starts);
        }
        for i in 0..scratch.pool.len() {
            let slot = slot_of(scratch.pool[i]);
            scratch.visit(slot);
        }
    }
}
