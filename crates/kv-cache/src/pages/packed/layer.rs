//! One layer of a compressed cache: plain pages for what is recent or may be taken back, packed ones for the
//! rest.
//!
//! A row at position t sees page p packed if p + `lag` < t / [`PAGE_TOKENS`], and plain otherwise. That
//! depends only on positions, so a row's bits are the same however its prefix was fed. Pages are packed as
//! soon as a row needs them packed. Their plain form is kept until no row can need it anymore.

use breakers_core::StepError;
use std::sync::Arc;

use half::f16;

use super::bytes::BytesFormat;
use super::{Coded, PackedFormat, PackedPage, Tile, TileCoder};
use crate::pages::layer::LayerPages;
use crate::pages::meter::PageMeter;
use crate::pages::page::{PAGE_TOKENS, Page, PageLayout};
use crate::{Element, LayerShape, Result};
use breakers_cpu::simd::Stored;

/// How one layer is packed.
pub(crate) struct Packing {
    pub(crate) format: Format,
    /// Whole pages before a row's own that it sees plain.
    pub(crate) lag: usize,
    /// First slots of the sequence that are exact.
    pub(crate) n_exact: usize,
    /// Whether queries of the first page tell how much a channel of the keys matters.
    pub(crate) weighs_channels: bool,
}

/// How pages are packed.
#[allow(clippy::large_enum_variant)] // One for each kind of layer; its size does not matter.
pub(crate) enum Format {
    /// Not at all.
    Plain,
    /// In the format that kernels read.
    Packed { format: PackedFormat, keys: Box<dyn TileCoder>, values: Box<dyn TileCoder> },
    /// In bytes that only their coders can read.
    Bytes(BytesFormat),
}

impl Packing {
    /// Bytes of a packed page, exact slots apart.
    pub(crate) fn page_bytes(&self) -> usize {
        match &self.format {
            Format::Plain => 0,
            Format::Packed { format, .. } => format.page_bytes(),
            Format::Bytes(format) => format.page_bytes(),
        }
    }
}

/// A layer whose last packed pages hold the tokens of one row's path through a tree.
pub(crate) struct PathPages<'a> {
    pub(crate) layer: &'a PackedLayer,
    /// The first page that is the path's own.
    pub(crate) first_page: usize,
    pub(crate) pages: Vec<Arc<PackedPage>>,
}

/// Keys and values of one layer. Clones share pages.
#[derive(Clone)]
pub(crate) struct PackedLayer {
    pub(crate) packing: Arc<Packing>,
    pub(crate) window: Option<usize>,
    pub(crate) plain: LayerPages,
    pub(crate) packed: Vec<Arc<PackedPage>>,
    /// Leading pages whose plain self is dropped.
    n_dropped: usize,
    /// Leading pages that are behind the window of every row to come.
    n_evicted: usize,
    /// Squares of the first page's queries, summed over the heads of a group: `[slots, n_kv_heads,
    /// head_dim]`.
    squares: Vec<f32>,
    /// Their sums over the first page, once it is packed: `[n_kv_heads, head_dim]`.
    weights: Option<Arc<Vec<f32>>>,
    nothing: Arc<Page>,
}

impl PackedLayer {
    pub(crate) fn new(shape: &LayerShape, packing: Arc<Packing>, meter: &PageMeter) -> Self {
        let plain = LayerPages::transient(shape, Element::F16, meter);
        let nothing = Arc::new(Page::empty());
        Self {
            packing,
            window: shape.window,
            plain,
            packed: Vec::new(),
            n_dropped: 0,
            n_evicted: 0,
            squares: Vec::new(),
            weights: None,
            nothing,
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        let packed = self.packed.iter().map(|page| page.bytes()).sum::<usize>();
        let lists = self.packed.capacity() * size_of::<Arc<PackedPage>>();
        let weights = self.weights.as_ref().map_or(0, |weights| weights.len()) + self.squares.capacity();
        self.plain.bytes() + packed + lists + weights * size_of::<f32>()
    }

    pub(crate) fn shared_bytes(&self) -> usize {
        let shared = self.packed.iter().filter(|page| Arc::strong_count(page) > 1);
        self.plain.shared_bytes() + shared.map(|page| page.bytes()).sum::<usize>()
    }

    /// Pages of a page's number that a row sees packed, if its position is `position`.
    pub(crate) fn n_packed_for(&self, position: usize) -> usize {
        (position / PAGE_TOKENS).saturating_sub(self.packing.lag)
    }

    /// Notes the queries `[n_rows, n_heads, head_dim]` of the slots from `first` on, as far as they count:
    /// those of the first page, and of a tree all that may move there.
    pub(crate) fn note_queries(&mut self, first: usize, q: &[f32], n_heads: usize, is_tree: bool) {
        if !self.packing.weighs_channels || first >= PAGE_TOKENS || self.weights.is_some() {
            return;
        }
        let PageLayout { n_kv_heads, head_dim, .. } = self.plain.layout;
        let (width, group) = (n_kv_heads * head_dim, n_heads / n_kv_heads);
        let n_slots = if is_tree { first + q.len() / (n_heads * head_dim) } else { 0 };
        self.squares.resize(n_slots.max(PAGE_TOKENS) * width, 0.0);
        let rows = q.chunks_exact(n_heads * head_dim);
        for (q, squares) in rows.zip(self.squares.chunks_exact_mut(width).skip(first)) {
            for (q, squares) in q.chunks_exact(group * head_dim).zip(squares.chunks_exact_mut(head_dim)) {
                squares.fill(0.0);
                for q in q.chunks_exact(head_dim) {
                    squares.iter_mut().zip(q).for_each(|(square, q)| *square = q.mul_add(*q, *square));
                }
            }
        }
    }

    /// Packs what rows at positions before `end` may see packed.
    pub(crate) fn pack(&mut self, end: usize) {
        self.pack_pages(self.n_packed_for(end.saturating_sub(1)));
    }

    fn pack_pages(&mut self, n_pages: usize) {
        while self.packed.len() < n_pages {
            let page = self.packed.len();
            if page == 0 && self.packing.weighs_channels && self.weights.is_none() {
                self.weights = Some(Arc::new(self.weigh(|slot| slot)));
            }
            let packed = self.pack_page(page, self.weights.as_deref(), |slot| slot);
            self.packed.push(Arc::new(packed));
        }
    }

    /// How much each channel of the keys matters, by the queries of the first page, whose slots
    /// stand where `place` says.
    fn weigh(&self, place: impl Fn(usize) -> usize) -> Vec<f32> {
        let width = self.plain.layout.n_kv_heads * self.plain.layout.head_dim;
        let mut weights = vec![0.0f32; width];
        for slot in self.packing.n_exact..PAGE_TOKENS {
            let squares = self.squares.get(place(slot) * width..).unwrap_or_default();
            weights.iter_mut().zip(squares).for_each(|(sum, square)| *sum += square);
        }
        // Without a query that counts, all channels matter alike.
        if weights.iter().all(|weight| *weight == 0.0) {
            weights.fill(1.0);
        }
        weights
    }

    /// Packs a page whose slots stand where `place` says.
    fn pack_page(
        &self,
        page: usize,
        weights: Option<&Vec<f32>>,
        place: impl Fn(usize) -> usize,
    ) -> PackedPage {
        let (packing, layout) = (&*self.packing, &self.plain.layout);
        let n_exact = if page == 0 { packing.n_exact } else { 0 };
        let (dim, n_kv_heads) = (layout.head_dim, layout.n_kv_heads);
        let n_halves = n_kv_heads * n_exact * 2 * dim;
        let mut packed = PackedPage::zeroed(packing.page_bytes(), n_halves, self.plain.meter());
        let mut rows = [vec![0.0f32; PAGE_TOKENS * dim], vec![0.0f32; PAGE_TOKENS * dim]];
        let ones = vec![1.0; dim];
        for head in 0..n_kv_heads {
            for slot in 0..PAGE_TOKENS {
                let at = place(page * PAGE_TOKENS + slot);
                let region = self.plain.pages[at / PAGE_TOKENS].region::<f16>(layout, head);
                let at = at % PAGE_TOKENS;
                for channel in 0..dim {
                    rows[0][slot * dim + channel] = region[layout.key_index(at, channel)].to_f32();
                    rows[1][slot * dim + channel] = region[layout.value_index(at, channel)].to_f32();
                }
            }
            let exact = packed.exact_mut(n_kv_heads, head);
            for (slot, exact) in exact.chunks_exact_mut(2 * dim).enumerate() {
                for (rows, exact) in rows.iter().zip(exact.chunks_exact_mut(dim)) {
                    let row = &rows[slot * dim..][..dim];
                    exact.iter_mut().zip(row).for_each(|(to, from)| *to = Stored::from_f32(*from));
                }
            }
            let weights = match weights {
                Some(weights) => &weights[head * dim..][..dim],
                None => &ones,
            };
            match &packing.format {
                Format::Plain => debug_assert!(false, "a plain layer is never packed"),
                Format::Packed { format, keys, values } => {
                    let code = |coder: &dyn TileCoder, rows, weights| {
                        let mut coded = Coded::new(coder.format());
                        coder.code(&Tile { rows, head_dim: dim, n_exact, weights }, &mut coded);
                        coded
                    };
                    let (keys, values) = (code(&**keys, &rows[0], weights), code(&**values, &rows[1], &ones));
                    packed.write(format, head, &keys, &values);
                }
                Format::Bytes(format) => {
                    format.encode(&mut packed, head, [&rows[0], &rows[1]], n_exact);
                }
            }
        }
        packed
    }

    /// Pages as seen by each row of a tree, whose first row is at `first` and whose last one is at most at
    /// `end` − 1: a page that some rows see packed holds different tokens for each of them. Rows share the
    /// pages that their paths have in common.
    pub(crate) fn pack_paths(
        &mut self,
        first: usize,
        end: usize,
        paths: &[Vec<usize>],
    ) -> Vec<PathPages<'_>> {
        let first_page = first / PAGE_TOKENS;
        // Whole pages before the tree are the same for all.
        self.pack_pages(self.n_packed_for(end - 1).min(first_page));
        let layer = &*self;
        // A page of some paths, by its number and the row of its last slot: that row's own path leads to it.
        let mut made: Vec<((usize, usize), Arc<PackedPage>)> = Vec::new();
        let mut weighed: Vec<(usize, Arc<Vec<f32>>)> = Vec::new();
        let mut all = Vec::with_capacity(paths.len());
        for path in paths {
            let place = |slot: usize| if slot < first { slot } else { first + path[slot - first] };
            let n_packed = layer.n_packed_for(first + path.len() - 1);
            let mut pages = Vec::new();
            for page in first_page..n_packed {
                let last_row = |page: usize| path[(page + 1) * PAGE_TOKENS - 1 - first];
                let key = (page, last_row(page));
                if let Some((_, page)) = made.iter().find(|(made, _)| *made == key) {
                    pages.push(Arc::clone(page));
                    continue;
                }
                let mut weights = layer.weights.clone();
                if weights.is_none() && layer.packing.weighs_channels {
                    // Nothing is packed yet, so the first page is one of the path's.
                    let of = last_row(0);
                    let found = weighed.iter().find(|(row, _)| *row == of).map(|(_, w)| Arc::clone(w));
                    weights = Some(found.unwrap_or_else(|| Arc::new(layer.weigh(place))));
                    weighed.extend(weights.clone().map(|weights| (of, weights)));
                }
                let packed = Arc::new(layer.pack_page(page, weights.as_deref(), place));
                made.push((key, Arc::clone(&packed)));
                pages.push(packed);
            }
            all.push(PathPages { layer, first_page, pages });
        }
        all
    }

    /// Drops what no row after the first `committed` tokens needs.
    pub(crate) fn release(&mut self, committed: usize) {
        self.pack(committed + 1);
        let n_dropped = self.n_packed_for(committed);
        for page in &mut self.plain.pages[self.n_dropped.min(n_dropped)..n_dropped] {
            *page = Arc::clone(&self.nothing);
        }
        self.n_dropped = self.n_dropped.max(n_dropped);
        if self.n_dropped > 0 {
            self.squares = Vec::new();
        }
        if let Some(window) = self.window {
            // The next row sees the slots above committed − window.
            let n_evicted = ((committed + 1).saturating_sub(window) / PAGE_TOKENS).min(self.n_dropped);
            for page in self.n_evicted..n_evicted {
                self.packed[page] = Arc::new(PackedPage::evicted());
            }
            self.n_evicted = self.n_evicted.max(n_evicted);
        }
    }

    /// Fails unless the layer can be shortened to `len` tokens.
    pub(crate) fn check_truncate(&self, len: usize) -> Result<()> {
        check_truncate(len, self.n_packed_for(len), self.window, self.n_dropped, self.n_evicted)
    }

    /// Drops the tokens after the first `len`, as far as there are any.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.plain.truncate(len);
        self.forget(len);
    }

    /// Drops what was computed from tokens after the first `len`, because they changed.
    pub(crate) fn forget(&mut self, len: usize) {
        self.packed.truncate(len / PAGE_TOKENS);
        self.n_dropped = self.n_dropped.min(self.packed.len());
        self.n_evicted = self.n_evicted.min(self.packed.len());
        if self.packed.is_empty() {
            self.weights = None;
        }
    }

    /// Moves the tokens `first + row` for each of `rows`, which ascend, to the slots from `first` on.
    pub(crate) fn retain(&mut self, first: usize, rows: &[usize]) {
        self.plain.retain(first, rows);
        let width = self.plain.layout.n_kv_heads * self.plain.layout.head_dim;
        for (kept, row) in rows.iter().enumerate() {
            let (from, to) = ((first + row) * width, (first + kept) * width);
            if from != to && from + width <= self.squares.len() {
                self.squares.copy_within(from..from + width, to);
            }
        }
        let moved = rows.iter().enumerate().position(|(kept, row)| kept != *row).unwrap_or(rows.len());
        self.forget(first + moved);
    }
}

/// Fails unless a layer whose first pages are dropped, or evicted, can be shortened to `len` tokens, of which
/// a row after them sees `needs_plain` pages packed.
pub(crate) fn check_truncate(
    len: usize,
    needs_plain: usize,
    window: Option<usize>,
    n_dropped: usize,
    n_evicted: usize,
) -> Result<()> {
    // The next row, and later ones, must find all pages that they see plain; a packed page that is full can
    // stay.
    let own = len.div_ceil(PAGE_TOKENS);
    let first_seen = window.map_or(0, |window| (len + 1).saturating_sub(window)) / PAGE_TOKENS;
    let lost_plain = needs_plain < own && needs_plain < n_dropped;
    let lost_packed = first_seen < n_evicted && len > 0;
    if lost_plain || lost_packed {
        let evicted_from = if lost_plain { needs_plain } else { first_seen } * PAGE_TOKENS;
        return Err(StepError::TruncateEvicted { requested: len, evicted_from }.into());
    }
    Ok(())
}
