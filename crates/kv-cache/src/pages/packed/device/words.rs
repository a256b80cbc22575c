//! The storage of packed pages on the device: pieces that are never written again once they are full.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

/// Packed pages whose softmax is computed together.
pub(crate) const SPLIT_PAGES: usize = 4;
/// Most pages of a piece. A multiple of [`SPLIT_PAGES`].
const PIECE_PAGES: usize = 64;
/// Pages by which a piece grows, once it has as many.
const GROWTH: usize = 8;
/// Words after a piece, which units may read without using them.
const PADDING: usize = 128;

const _: () = assert!(PIECE_PAGES.is_multiple_of(GROWTH) && GROWTH.is_multiple_of(SPLIT_PAGES));

/// Packed pages of one layer. Clones share all pieces; the last one is copied when one of them appends.
#[derive(Clone)]
pub(crate) struct Words {
    page_words: usize,
    piece_pages: usize,
    device: Device,
    /// `None` for pages that no row needs anymore.
    pieces: Vec<Option<Tensor<1, Int>>>,
    n_pages: usize,
}

impl Words {
    /// Storage of a layer whose rows see the pages of `window` tokens, or all of them.
    pub(crate) fn new(page_words: usize, window_pages: Option<usize>, device: &Device) -> Self {
        // Pieces are freed as a whole, so those for a window are small compared with it.
        let piece_pages =
            window_pages.map_or(PIECE_PAGES, |n| (n / 4).next_multiple_of(GROWTH).clamp(GROWTH, PIECE_PAGES));
        Self { page_words, piece_pages, device: device.clone(), pieces: Vec::new(), n_pages: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.n_pages
    }

    pub(crate) fn bytes(&self) -> usize {
        self.pieces.iter().flatten().map(|piece| piece.dims()[0] * size_of::<u32>()).sum()
    }

    /// Appends pages, one after the other in `words`.
    pub(crate) fn push(&mut self, words: Vec<u32>) {
        let mut left: &[u32] = &words;
        while !left.is_empty() {
            let (piece, used) = (self.n_pages / self.piece_pages, self.n_pages % self.piece_pages);
            let n = (left.len() / self.page_words).min(self.piece_pages - used);
            let (now, later) = left.split_at(n * self.page_words);
            left = later;
            let from = used * self.page_words;
            let to = from + now.len();
            // The first few double.
            let n_pages = (used + n).next_multiple_of(GROWTH).min((used + n).next_power_of_two());
            let size = n_pages * self.page_words + PADDING;
            if self.pieces.len() == piece {
                self.pieces.push(None);
            }
            let old = self.pieces[piece].take();
            let target = match old {
                Some(old) if old.dims()[0] >= size => old,
                old => {
                    let new = Tensor::<1, Int>::zeros([size], (&self.device, DType::I32));
                    match old {
                        Some(old) if from > 0 => new.slice_assign(0..from, old.narrow(0, 0, from)),
                        _ => new,
                    }
                }
            };
            let now: Vec<i32> = now.iter().map(|word| word.cast_signed()).collect();
            let data = TensorData::new(now, [to - from]);
            let rows = Tensor::<1, Int>::from_data(data, (&self.device, DType::I32));
            self.pieces[piece] = Some(target.slice_assign(from..to, rows));
            self.n_pages += n;
        }
    }

    /// Pieces that are there, with the number of their first page and of the one behind their last.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = (usize, usize, &Tensor<1, Int>)> {
        self.pieces.iter().enumerate().filter_map(|(at, piece)| {
            let first = at * self.piece_pages;
            piece.as_ref().map(|piece| (first, self.n_pages.min(first + self.piece_pages), piece))
        })
    }

    /// Drops all pages but the first `n_pages`.
    pub(crate) fn truncate(&mut self, n_pages: usize) {
        if n_pages < self.n_pages {
            self.n_pages = n_pages;
            self.pieces.truncate(n_pages.div_ceil(self.piece_pages));
        }
    }

    /// Frees the first pages, as far as they fill whole pieces.
    pub(crate) fn evict(&mut self, n_pages: usize) {
        for piece in self.pieces.iter_mut().take(n_pages / self.piece_pages) {
            *piece = None;
        }
    }
}
