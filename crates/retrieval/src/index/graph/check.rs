//! The invariants of a graph.

use super::{Graph, NONE};
use crate::Bitset;

impl Graph {
    /// Verifies the invariants: links exist and are not duplicated, the tree spans all live slots, every link
    /// of the tree is in both lists, and every live slot can be reached from every other one.
    ///
    /// The text says what is wrong.
    pub fn check(&self) -> Result<(), String> {
        let n = self.flat.n_slots();
        if self.links.len() != n * self.width() || self.parents.len() != n {
            return Err(format!(
                "{n} slots have {} links and {} parents",
                self.links.len(),
                self.parents.len()
            ));
        }
        if (self.root == NONE) != (self.n_linked == 0) {
            return Err(format!("the root of {} vectors is {}", self.n_linked, self.root));
        }
        let mut children = vec![Vec::new(); n];
        for slot in self.linked.iter() {
            let links = self.links_of(slot);
            let mut sorted = links.to_vec();
            sorted.sort_unstable();
            sorted.dedup();
            if sorted.len() != links.len() || links.iter().any(|&l| l as usize >= n || l == slot) {
                return Err(format!("links of {slot}: {links:?}"));
            }
            let parent = self.parents[slot as usize];
            if slot == self.root {
                if parent != slot {
                    return Err(format!("the root {slot} has the parent {parent}"));
                }
            } else if !self.linked.contains(parent)
                || !links.contains(&parent)
                || !self.links_of(parent).contains(&slot)
            {
                return Err(format!("{slot} and its parent {parent} do not link to each other"));
            } else {
                children[parent as usize].push(slot);
            }
        }
        let mut reached = Bitset::new(n);
        let mut open: Vec<u32> = self.linked.contains(self.root).then_some(self.root).into_iter().collect();
        while let Some(slot) = open.pop() {
            reached.insert(slot);
            open.extend(&children[slot as usize]);
        }
        match self.linked.iter().find(|&slot| !reached.contains(slot)) {
            Some(slot) => Err(format!("{slot} is not in the tree")),
            None if self.pivots.is_empty() && self.n_linked > 0 => Err("there is no pivot".to_owned()),
            None => Ok(()),
        }
    }
}
