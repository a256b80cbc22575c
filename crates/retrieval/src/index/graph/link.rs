//! How new vectors find their links.

use super::{Graph, NONE, SCRATCH, Scratch, distance_of, slot_of};
use crate::Result;

/// Kept links that a candidate is compared with at a time.
const CHUNK: usize = 4;
/// How many of its own copies a vector links to: enough for a chain through all of them.
const MAX_COPIES: usize = 2;

/// Where a new vector belongs.
#[derive(Debug)]
pub(crate) struct Place {
    links: Vec<u32>,
    /// [`NONE`] for the first vector.
    parent: u32,
}

impl Graph {
    /// Stores a prepared vector, which is neither linked nor returned by searches yet; its slot.
    pub(crate) fn store(&mut self, prepared: &[f32]) -> Result<u32> {
        let slot = self.flat.place(prepared)?;
        let (n_slots, old, width) = (self.flat.n_slots(), self.parents.len(), self.width());
        if old < n_slots {
            self.parents.extend_zeroed(n_slots - old);
            self.parents.make_mut()[old..].fill(NONE);
            self.links.extend_zeroed((n_slots - old) * width);
            self.links.make_mut()[old * width..].fill(NONE);
        }
        self.set_links(slot, &[]);
        Ok(slot)
    }

    /// Finds the links of a stored slot. Searches may go on meanwhile; changes may not.
    pub(crate) fn find_place(&self, slot: u32) -> Place {
        if self.root == NONE {
            return Place { links: Vec::new(), parent: NONE };
        }
        SCRATCH.with_borrow_mut(|scratch| {
            let mut query = std::mem::take(&mut scratch.query);
            self.flat.codes.stored_query(slot, &mut query);
            self.beam(scratch, &query, self.config.build_effort);
            scratch.query = query;
            let mut candidates = std::mem::take(&mut scratch.candidates);
            candidates.clear();
            let found = scratch.pool.iter().map(|&e| (distance_of(e), slot_of(e)));
            candidates.extend(found.filter(|&(_, id)| id != slot && self.linked.contains(id)));
            let mut links = Vec::with_capacity(self.config.links);
            self.select(slot, &candidates, self.config.links, |_| false, scratch, &mut links);
            // The nearest that has room for a child becomes the parent. If every linked vector was left out,
            // the root does.
            let near = links.iter().chain(candidates.iter().map(|(_, id)| id)).copied();
            let parent = near.into_iter().find(|&id| self.has_room(id));
            let parent = parent.unwrap_or_else(|| self.descend(self.root));
            if !links.contains(&parent) {
                links.truncate(self.config.links - 1);
                links.push(parent);
            }
            scratch.candidates = candidates;
            Place { links, parent }
        })
    }

    /// Links a stored slot at the place that [`find_place`](Self::find_place) found since the last change.
    pub(crate) fn link(&mut self, slot: u32, place: &Place) {
        self.linked.insert(slot);
        self.n_linked += 1;
        if place.parent == NONE {
            self.root = slot;
            self.parents.make_mut()[slot as usize] = slot;
            self.add_pivot(slot);
            return;
        }
        self.parents.make_mut()[slot as usize] = place.parent;
        self.set_links(slot, &place.links);
        let mut scratch = self.scratch.take().unwrap_or_default();
        for &other in &place.links {
            self.add_link(other, slot, &mut scratch);
        }
        self.scratch = Some(scratch);
        // A vector in √n is a pivot, whatever the order in which vectors come.
        if self.pivots.len() < n_pivots(self.n_linked) {
            self.add_pivot(slot);
        }
    }

    /// Whether a slot may become a parent: half of its links stay free for near vectors.
    pub(super) fn has_room(&self, slot: u32) -> bool {
        let children = self.links_of(slot).iter().filter(|&&link| self.is_parent(slot, link)).count();
        children + 1 < self.config.links
    }

    /// A slot below this one in the tree that has room: a leaf, if no other has.
    pub(super) fn descend(&self, mut slot: u32) -> u32 {
        while !self.has_room(slot) {
            match self.links_of(slot).iter().find(|&&link| self.is_parent(slot, link)) {
                Some(&child) => slot = child,
                None => break,
            }
        }
        slot
    }

    pub(super) fn is_parent(&self, parent: u32, child: u32) -> bool {
        child != parent && self.parents[child as usize] == parent
    }

    /// Whether a link belongs to the tree.
    pub(super) fn is_pinned(&self, from: u32, to: u32) -> bool {
        self.is_parent(from, to) || self.is_parent(to, from)
    }

    pub(super) fn set_links(&mut self, slot: u32, links: &[u32]) {
        let width = self.width();
        debug_assert!(links.len() <= width);
        let row = &mut self.links.make_mut()[slot as usize * width..][..width];
        row[..links.len()].copy_from_slice(links);
        row[links.len()..].fill(NONE);
    }

    /// Links `from` to `to`; if `from` is full, its links are chosen anew.
    pub(super) fn add_link(&mut self, from: u32, to: u32, scratch: &mut Scratch) {
        let width = self.width();
        let start = from as usize * width;
        let row = &self.links[start..start + width];
        if row.contains(&to) {
            return;
        }
        if let Some(free) = row.iter().position(|&link| link == NONE) {
            self.links.make_mut()[start + free] = to;
            return;
        }
        let mut ids = std::mem::take(&mut scratch.ids);
        ids.clear();
        ids.extend_from_slice(row);
        ids.push(to);
        let mut candidates = self.distances_from(from, &ids, scratch);
        candidates.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let mut kept = Vec::with_capacity(width);
        self.select(from, &candidates, width, |id| self.is_pinned(from, id), scratch, &mut kept);
        self.set_links(from, &kept);
        scratch.ids = ids;
    }

    /// The distances of these slots from a stored one.
    pub(super) fn distances_from(&self, slot: u32, ids: &[u32], scratch: &mut Scratch) -> Vec<(f32, u32)> {
        scratch.dots.resize(ids.len(), 0);
        scratch.distances.resize(ids.len(), 0.0);
        self.flat.codes.gather_from(slot, ids, &mut scratch.dots, &mut scratch.distances);
        scratch.distances.iter().copied().zip(ids.iter().copied()).collect()
    }

    /// Chooses up to `n` of the candidates, which are sorted: pinned ones, and then each that is nearer to
    /// `slot` than to every one chosen before.
    pub(super) fn select(
        &self,
        slot: u32,
        candidates: &[(f32, u32)],
        n: usize,
        pinned: impl Fn(u32) -> bool,
        scratch: &mut Scratch,
        kept: &mut Vec<u32>,
    ) {
        kept.clear();
        // Copies of `slot` are as near to everything as `slot` itself: they would occlude all others and fill
        // the list.
        let mut copies = [NONE; MAX_COPIES];
        let mut n_copies = 0;
        let codes = &self.flat.codes;
        let base = codes.base(slot);
        let mut left_pinned = candidates.iter().filter(|&&(_, id)| pinned(id)).count();
        scratch.dots.resize(CHUNK, 0);
        scratch.distances.resize(CHUNK, 0.0);
        for &(distance, id) in candidates {
            let pin = left_pinned > 0 && pinned(id);
            if pin {
                left_pinned -= 1;
                kept.push(id);
                continue;
            }
            if codes.is_copy(slot, id) {
                if n_copies < MAX_COPIES {
                    copies[n_copies] = id;
                    n_copies += 1;
                }
                continue;
            }
            if kept.len() + n_copies + left_pinned >= n {
                if left_pinned == 0 {
                    break;
                }
                continue;
            }
            let limit = (base + distance) / self.config.occlusion;
            let own = codes.base(id);
            let occluded = kept.chunks(CHUNK).any(|ids| {
                let (dots, distances) = (&mut scratch.dots[..ids.len()], &mut scratch.distances[..ids.len()]);
                codes.gather_from(id, ids, dots, distances);
                distances.iter().any(|&d| own + d <= limit)
            });
            if !occluded {
                kept.push(id);
            }
        }
        // Pinned links and copies together may be more than there is room for.
        let room = n.saturating_sub(kept.len()).min(n_copies);
        kept.extend_from_slice(&copies[..room]);
    }

    pub(super) fn add_pivot(&mut self, slot: u32) {
        self.pivots.push(slot);
        self.pivot_codes.extend_from_slice(self.flat.codes.row(slot as usize));
        self.pivot_tails.push(self.flat.codes.tails()[slot as usize]);
    }
}

/// How many pivots a graph of this size has.
pub(super) fn n_pivots(n: usize) -> usize {
    (2 * n.isqrt()).clamp(1, 2048)
}
