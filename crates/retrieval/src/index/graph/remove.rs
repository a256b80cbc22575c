//! Removal: links around the gap, parents for orphans, and the sweep.

use super::{Graph, NONE, Scratch, link::n_pivots, slot_of};
use crate::Bitset;
use hashbrown::HashMap;

/// Width of the beam that finds the vectors which link to a removed one.
const EFFORT: usize = 48;
/// Slots that are swept with each removal.
const SWEPT: usize = 32;

impl Graph {
    /// Removes a slot that searches no longer return from the graph.
    pub(crate) fn unlink(&mut self, slot: u32) {
        self.linked.remove(slot);
        self.n_linked -= 1;
        let mut scratch = self.scratch.take().unwrap_or_default();
        let mut query = std::mem::take(&mut scratch.query);
        self.flat.codes.stored_query(slot, &mut query);
        self.beam(&mut scratch, &query, EFFORT);
        scratch.query = query;
        let mut linking: Vec<u32> = scratch.pool.iter().map(|&e| slot_of(e)).collect();
        linking.extend(self.links_of(slot));
        linking.sort_unstable();
        linking.dedup();
        self.cut(slot, &linking, &mut scratch);
        self.scratch = Some(scratch);
        self.retired.push_back((slot, self.swept));
        self.sweep();
    }

    /// Removes slots whose codes are not known from the graph; they are free at once.
    ///
    /// Without codes, a walk cannot find the vectors that link to them, so all lists are searched.
    pub(super) fn forget(&mut self, lost: &[u32]) {
        if lost.is_empty() {
            return;
        }
        let mut gone = Bitset::new(self.flat.n_slots());
        lost.iter().for_each(|&slot| gone.insert(slot));
        let mut linking: HashMap<u32, Vec<u32>> = HashMap::new();
        for slot in self.linked.iter() {
            for &link in self.links_of(slot).iter().filter(|&&link| gone.contains(link)) {
                linking.entry(link).or_default().push(slot);
            }
        }
        let mut scratch = self.scratch.take().unwrap_or_default();
        for &slot in lost {
            self.flat.slots.retire(slot);
            self.linked.remove(slot);
            self.n_linked -= 1;
            self.cut(slot, linking.get(&slot).map_or(&[], Vec::as_slice), &mut scratch);
        }
        self.scratch = Some(scratch);
        // A replacement link may lead to another of them.
        (0..self.flat.n_slots() as u32).for_each(|slot| self.strip(slot));
        self.flat.slots.free.extend(lost);
        self.keep_pivots();
    }

    /// Gives the children of a slot other parents, and other links to those of `linking` that link to it.
    fn cut(&mut self, slot: u32, linking: &[u32], scratch: &mut Scratch) {
        let own: Vec<u32> = self.links_of(slot).to_vec();
        let links_to = |other: u32| other != slot && self.links_of(other).contains(&slot);
        let linking: Vec<u32> = linking.iter().copied().filter(|&other| links_to(other)).collect();
        self.move_children(slot, &own, scratch);
        for other in linking {
            self.replace_link(other, slot, &own, scratch);
        }
        if let Some(at) = self.pivots.iter().position(|&pivot| pivot == slot) {
            self.drop_pivot(at);
        }
    }

    /// Gives the children of a slot other parents and removes the slot from the tree.
    fn move_children(&mut self, slot: u32, own: &[u32], scratch: &mut Scratch) {
        let mut children: Vec<u32> = own.iter().copied().filter(|&link| self.is_parent(slot, link)).collect();
        if self.root == slot {
            // The nearest child takes the root's place, and its siblings can be its children.
            self.root = children.first().copied().unwrap_or(NONE);
            if self.root != NONE {
                children.remove(0);
                self.parents.make_mut()[self.root as usize] = self.root;
                self.parents.make_mut()[slot as usize] = self.root;
            }
        }
        for child in children {
            let others: Vec<u32> = self
                .links_of(child)
                .iter()
                .chain(own)
                .copied()
                .filter(|&o| o != slot && o != child && self.linked.contains(o))
                .collect();
            let mut near = self.distances_from(child, &others, scratch);
            near.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            let parent =
                near.iter().map(|&(_, id)| id).find(|&id| self.has_room(id) && !self.is_below(id, child));
            let parent = parent.unwrap_or_else(|| self.roomy_elsewhere(child));
            self.parents.make_mut()[child as usize] = parent;
            self.add_link(parent, child, scratch);
            self.add_link(child, parent, scratch);
        }
        self.parents.make_mut()[slot as usize] = NONE;
    }

    /// Whether the tree's path from `slot` to the root leads through `above`.
    fn is_below(&self, mut slot: u32, above: u32) -> bool {
        // A path has no more slots than the tree.
        for _ in 0..=self.parents.len() {
            if slot == above {
                return true;
            }
            match self.parents[slot as usize] {
                NONE => return true,
                parent if parent == slot => return false,
                parent => slot = parent,
            }
        }
        true
    }

    /// A live slot with room that is not below `child`. There always is one: if no other, a leaf of the rest
    /// of the tree.
    fn roomy_elsewhere(&self, child: u32) -> u32 {
        let mut open = vec![self.root];
        while let Some(slot) = open.pop() {
            if slot == child {
                continue;
            }
            if self.linked.contains(slot) && self.has_room(slot) {
                return slot;
            }
            open.extend(self.links_of(slot).iter().filter(|&&link| self.is_parent(slot, link)));
        }
        self.root
    }

    /// Removes the link to `gone` and links to the nearest of its neighbors that is not occluded by another
    /// link.
    fn replace_link(&mut self, from: u32, gone: u32, around: &[u32], scratch: &mut Scratch) {
        let mut links: Vec<u32> = self.links_of(from).iter().copied().filter(|&link| link != gone).collect();
        if links.len() == self.width() {
            // A child that moved to `from` has already taken the place of the link to `gone`.
            return;
        }
        let candidates: Vec<u32> = around
            .iter()
            .copied()
            .filter(|&c| c != from && self.linked.contains(c) && !links.contains(&c))
            .collect();
        let mut near = self.distances_from(from, &candidates, scratch);
        near.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let codes = &self.flat.codes;
        for &(distance, id) in near.iter().take(4) {
            scratch.dots.resize(links.len(), 0);
            scratch.distances.resize(links.len(), 0.0);
            codes.gather_from(id, &links, &mut scratch.dots, &mut scratch.distances);
            let limit = (codes.base(from) + distance) / self.config.occlusion;
            if scratch.distances.iter().all(|&d| codes.base(id) + d > limit) {
                links.push(id);
                break;
            }
        }
        self.set_links(from, &links);
    }

    /// Removes the links to removed slots from the next few slots, and frees the slots that nothing links to
    /// anymore.
    fn sweep(&mut self) {
        let n_slots = self.flat.n_slots();
        for _ in 0..SWEPT.min(n_slots) {
            let slot = (self.swept % n_slots as u64) as u32;
            self.swept += 1;
            self.strip(slot);
        }
        while let Some(&(slot, since)) = self.retired.front()
            && self.swept >= since + n_slots as u64
        {
            self.retired.pop_front();
            self.flat.slots.free.push(slot);
        }
        self.keep_pivots();
    }

    /// Removes a slot's links to slots that are no longer in the graph.
    fn strip(&mut self, slot: u32) {
        let links = self.links_of(slot);
        if self.linked.contains(slot) && links.iter().any(|&link| !self.linked.contains(link)) {
            let left: Vec<u32> = links.iter().copied().filter(|&l| self.linked.contains(l)).collect();
            self.set_links(slot, &left);
        }
    }

    /// Keeps no more pivots than there should be, and at least one if there is a vector.
    fn keep_pivots(&mut self) {
        while self.pivots.len() > 1 && self.pivots.len() > 2 * n_pivots(self.n_linked) {
            self.drop_pivot(0);
        }
        // Removals may have taken all pivots of a graph that is not empty.
        if self.pivots.is_empty() && self.root != NONE {
            self.add_pivot(self.root);
        }
    }

    fn drop_pivot(&mut self, at: usize) {
        let stride = self.flat.codes.stride();
        let last = self.pivots.len() - 1;
        self.pivots.swap_remove(at);
        self.pivot_tails.swap_remove(at);
        self.pivot_codes.copy_within(last * stride.., at * stride);
        self.pivot_codes.truncate(last * stride);
    }
}
