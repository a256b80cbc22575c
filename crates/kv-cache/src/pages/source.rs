//! What attention needs from a layer's pages.

use std::sync::Arc;

use super::layer::LayerPages;
use super::packed::bytes::BytesFormat;
use super::packed::layer::{Format, PackedLayer, PathPages};
use super::packed::{PackedFormat, PackedPage};
use super::page::{Page, PageLayout};

/// The pages of one layer, or of one head of it, as rows see them.
pub(crate) trait PageSource: Sync {
    /// Where things stand in the plain pages.
    fn layout(&self) -> &PageLayout;

    /// A page as 16- or 32-bit floats; `None` if that storage has been freed.
    fn plain(&self, page: usize) -> Option<&Page>;

    /// How packed pages are laid out, if there may be any that kernels read.
    fn format(&self) -> Option<&PackedFormat> {
        None
    }

    /// How packed pages are decoded, if there may be any that kernels cannot read.
    fn bytes_format(&self) -> Option<&BytesFormat> {
        None
    }

    /// Leading pages that a row at `position` sees packed.
    fn n_packed_for(&self, _position: usize) -> usize {
        0
    }

    /// A packed page.
    fn packed(&self, _page: usize) -> Option<&PackedPage> {
        None
    }

    /// What is read after a packed page's region: that of the next page, or else of the next
    /// head's page `first`.
    fn next(&self, format: &PackedFormat, page: usize, first: usize, head: usize) -> Next {
        let stored = |page: usize| self.packed(page).filter(|page| page.bytes() > 0);
        let next_head = (head + 1) % format.n_kv_heads;
        let next = stored(page + 1).map(|page| page.region(format, head));
        let next = next.or_else(|| stored(first).map(|page| page.region(format, next_head)));
        let page = self.packed(page + 2).or_else(|| self.packed(first));
        Next {
            region: next.map_or(std::ptr::null(), <[u32]>::as_ptr),
            page: page.map_or(std::ptr::null(), std::ptr::from_ref),
        }
    }
}

/// The data that is read next, to be prefetched. Null if there is none.
#[derive(Clone, Copy)]
pub(crate) struct Next {
    pub(crate) region: *const u32,
    /// The page after that one, which tells where its storage is.
    pub(crate) page: *const PackedPage,
}

impl<T: PageSource + ?Sized> PageSource for &T {
    fn layout(&self) -> &PageLayout {
        (**self).layout()
    }

    fn plain(&self, page: usize) -> Option<&Page> {
        (**self).plain(page)
    }

    fn format(&self) -> Option<&PackedFormat> {
        (**self).format()
    }

    fn bytes_format(&self) -> Option<&BytesFormat> {
        (**self).bytes_format()
    }

    fn n_packed_for(&self, position: usize) -> usize {
        (**self).n_packed_for(position)
    }

    fn packed(&self, page: usize) -> Option<&PackedPage> {
        (**self).packed(page)
    }
}

impl PageSource for LayerPages {
    fn layout(&self) -> &PageLayout {
        &self.layout
    }

    fn plain(&self, page: usize) -> Option<&Page> {
        self.pages.get(page).map(Arc::as_ref)
    }
}

impl PageSource for PackedLayer {
    fn layout(&self) -> &PageLayout {
        &self.plain.layout
    }

    fn plain(&self, page: usize) -> Option<&Page> {
        // A packed page may have no plain form.
        self.plain.plain(page).filter(|page| page.bytes() > 0)
    }

    fn format(&self) -> Option<&PackedFormat> {
        match &self.packing.format {
            Format::Packed { format, .. } => Some(format),
            _ => None,
        }
    }

    fn bytes_format(&self) -> Option<&BytesFormat> {
        match &self.packing.format {
            Format::Bytes(format) => Some(format),
            _ => None,
        }
    }

    fn n_packed_for(&self, position: usize) -> usize {
        Self::n_packed_for(self, position)
    }

    fn packed(&self, page: usize) -> Option<&PackedPage> {
        self.packed.get(page).map(Arc::as_ref)
    }
}

/// A layer as a row of a tree sees it.
impl PageSource for PathPages<'_> {
    fn layout(&self) -> &PageLayout {
        self.layer.layout()
    }

    fn plain(&self, page: usize) -> Option<&Page> {
        self.layer.plain(page)
    }

    fn format(&self) -> Option<&PackedFormat> {
        self.layer.format()
    }

    fn bytes_format(&self) -> Option<&BytesFormat> {
        self.layer.bytes_format()
    }

    fn n_packed_for(&self, position: usize) -> usize {
        self.layer.n_packed_for(position)
    }

    fn packed(&self, page: usize) -> Option<&PackedPage> {
        match page.checked_sub(self.first_page) {
            Some(own) => self.pages.get(own).map(Arc::as_ref),
            None => self.layer.packed.get(page).map(Arc::as_ref),
        }
    }
}
