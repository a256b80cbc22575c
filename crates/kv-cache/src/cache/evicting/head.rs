//! One key-value head of an evicting cache: its own tokens in its own pages.

use breakers_cpu as cpu;
use half::f16;

use crate::LayerShape;
use crate::cache::quantized::Layer;
use crate::pages::page::PAGE_TOKENS;
use crate::presses::HeadView;

/// One key-value head.
#[derive(Clone)]
pub(super) struct Head {
    pub(super) layer: Layer,
    /// Positions of the tokens that were kept.
    pub(super) kept: Positions,
}

/// Positions in ascending order, as a bit set: a list would take more than a tenth of a coded token.
#[derive(Clone, Debug, Default)]
pub(super) struct Positions {
    bits: Vec<u64>,
    len: usize,
}

impl Positions {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn bytes(&self) -> usize {
        self.bits.capacity() * size_of::<u64>()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        let width = u64::BITS as usize;
        let words = self.bits.iter().enumerate();
        words.flat_map(move |(at, word)| {
            (0..width).filter(move |bit| word >> bit & 1 == 1).map(move |bit| at * width + bit)
        })
    }

    /// Adds positions that are greater than all before.
    pub(super) fn extend(&mut self, positions: impl Iterator<Item = usize>) {
        let width = u64::BITS as usize;
        for position in positions {
            let word = position / width;
            if word >= self.bits.len() {
                self.bits.resize(word + 1, 0);
            }
            self.bits[word] |= 1 << (position % width);
            self.len += 1;
        }
        self.bits.shrink_to_fit();
    }
}

impl FromIterator<usize> for Positions {
    fn from_iter<I: IntoIterator<Item = usize>>(positions: I) -> Self {
        let mut kept = Self::default();
        kept.extend(positions.into_iter());
        kept
    }
}

/// Indices of the `n` highest scores, ascending; the later ones among equal scores.
pub(super) fn best(scores: &[f32], n: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    let rank = |at: usize| if scores[at].is_nan() { f32::NEG_INFINITY } else { scores[at] };
    order.sort_unstable_by(|&a, &b| rank(b).total_cmp(&rank(a)).then(b.cmp(&a)));
    order.truncate(n);
    order.sort_unstable();
    order
}

/// The last page's worth of queries, of rows of `width` elements, of the heads that read key-value head
/// `head`, which are `group` elements.
pub(super) fn group_queries(queries: &[f32], width: usize, head: usize, group: usize) -> Vec<f32> {
    let rows = queries.chunks_exact(width);
    let skip = rows.len().saturating_sub(PAGE_TOKENS);
    rows.skip(skip).flat_map(|row| &row[head * group..][..group]).copied().collect()
}

impl Head {
    /// Index of a token that has not been through an eviction yet.
    pub(super) fn slot(&self, token: usize, pressed: usize) -> usize {
        self.kept.len() + token - pressed
    }

    /// Keys and values of slots, as the pages hold them.
    fn rows(&self, slots: impl Iterator<Item = usize>) -> [Vec<f32>; 2] {
        let plain = &self.layer.pages.plain;
        let layout = &plain.layout;
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for slot in slots {
            let region = plain.pages[slot / PAGE_TOKENS].region::<f16>(layout, 0);
            let slot = slot % PAGE_TOKENS;
            keys.extend((0..layout.head_dim).map(|dim| region[layout.key_index(slot, dim)].to_f32()));
            values.extend((0..layout.head_dim).map(|dim| region[layout.value_index(slot, dim)].to_f32()));
        }
        [keys, values]
    }

    /// The final tokens; those before `pressed` are the ones that an eviction has kept.
    pub(super) fn view(&self, pressed: usize, committed: usize) -> HeadView {
        let [keys, values] = self.rows(0..self.slot(committed, pressed));
        HeadView { keys, values, positions: self.kept.iter().chain(pressed..committed).collect() }
    }

    /// Keeps the chosen tokens of those in `view`, and `provisional` ones after them.
    pub(super) fn keep(
        &mut self,
        shape: &LayerShape,
        view: &HeadView,
        chosen: &[usize],
        provisional: usize,
        (queries, group): (&[f32], usize),
    ) {
        let dim = shape.head_dim;
        let (isa, n_old) = (cpu::isa(), view.positions.len());
        let [late_keys, late_values] = self.rows(n_old..n_old + provisional);
        let pick = |rows: &[f32], late: Vec<f32>| -> Vec<f32> {
            let chosen = chosen.iter().flat_map(|&at| &rows[at * dim..][..dim]);
            chosen.chain(&late).copied().collect()
        };
        let (keys, values) = (pick(&view.keys, late_keys), pick(&view.values, late_values));
        let mut layer = self.layer.like(shape);
        // They were checked to be finite when they were appended.
        let appended = layer.pages.plain.append(isa, 0, &keys, &values);
        debug_assert!(appended.is_ok());
        if !queries.is_empty() {
            layer.pages.note_queries(0, queries, group, false);
        }
        self.kept = chosen.iter().map(|&at| view.positions[at]).collect();
        self.layer = layer;
    }
}
