//! Pages outside of a cache: written down as they are, and read again where they lie.
//!
//! The pages of all layers follow one another, layer by layer, each layer's first tokens first. Nothing in
//! the bytes tells of their layout: it follows from the cache's shape, its elements and the number of tokens.
//! Of the last page of a layer, slots behind the last token hold anything.

use std::sync::Arc;

use breakers_core::{Snapshot, SnapshotBytes};

use super::layer::LayerPages;
use super::page::{PAGE_TOKENS, Page};
use crate::{Element, Error, Result};

/// The version of the layout of pages: another one reads other bytes.
pub(crate) const LAYOUT: u32 = 1;

/// What plain pages of these elements are called.
pub(crate) fn kind(element: Element) -> String {
    let order = if cfg!(target_endian = "big") { "big" } else { "little" };
    format!("plain {element:?}, pages of {PAGE_TOKENS}, layout {LAYOUT}, {order}-endian")
}

/// The pages of a sequence's layers at a moment.
pub(crate) struct SavedPages(pub(crate) Vec<Arc<Page>>);

impl Snapshot for SavedPages {
    fn pieces(&self, put: &mut dyn FnMut(&[u8])) {
        self.0.iter().for_each(|page| put(page.storage()));
    }
}

/// Lets empty layers read the first `len` of `n_tokens` tokens from bytes that [`SavedPages`] wrote.
///
/// # Errors
/// [`Error::SnapshotBytes`] if they are not as many as these layers need, or do not lie as pages must.
pub(crate) fn restore(
    layers: &mut [&mut LayerPages],
    bytes: &SnapshotBytes,
    n_tokens: usize,
    len: usize,
) -> Result<()> {
    let (n_written, n_read) = (n_tokens.div_ceil(PAGE_TOKENS), len.div_ceil(PAGE_TOKENS));
    let stored = |layer: &&mut LayerPages| Page::stored_bytes(&layer.layout).checked_mul(n_written);
    let expected = layers.iter().map(stored).try_fold(0usize, |sum, bytes| sum.checked_add(bytes?));
    let found = (**bytes).as_ref().len();
    if expected != Some(found) {
        return Err(Error::SnapshotBytes { expected: expected.unwrap_or(usize::MAX), found });
    }
    let mut at = 0;
    for layer in layers {
        let step = Page::stored_bytes(&layer.layout);
        let page = |i: usize| Page::read(bytes, at + i * step, &layer.layout, layer.meter()).map(Arc::new);
        let pages: Option<Vec<_>> = (0..n_read).map(page).collect();
        // What is mapped or allocated begins at a cache line at least.
        layer.pages = pages.ok_or(Error::SnapshotBytes { expected: found, found })?;
        at += n_written * step;
    }
    Ok(())
}
