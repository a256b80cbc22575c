//! Where a layer's keys and values are: in the host's memory, or on a GPU.

use std::sync::Arc;

use breakers_backend::{device, flex};
use breakers_cpu as cpu;
use burn::tensor::{Device, Tensor};
use burn_flex::Flex;

use super::{Compression, Layer};
#[cfg(feature = "cube")]
use super::{NEVER, device::DeviceLayer};
use crate::checks::HostRows;
#[cfg(feature = "cube")]
use crate::{Element, Visible, pages::device::DevicePages};
use crate::{LayerShape, Result};

#[derive(Clone)]
#[allow(clippy::large_enum_variant)] // A cache has a few dozen of them; their size does not matter.
pub(super) enum Storage {
    Host(Layer),
    #[cfg(feature = "cube")]
    Device(DeviceLayer),
    /// On a device, never packed.
    #[cfg(feature = "cube")]
    Plain {
        pages: DevicePages,
        window: Option<usize>,
    },
}

impl Storage {
    /// An empty layer of a sequence of at most `max_tokens`.
    pub(super) fn new(
        shape: &LayerShape,
        compression: &Compression,
        lag: usize,
        (max_tokens, device): (usize, &Device),
    ) -> Result<Self> {
        let (method, n_exact) = (&compression.method, compression.exact_tokens);
        if device::is_cpu(device) {
            return Layer::new(shape, method, n_exact, lag).map(Self::Host);
        }
        #[cfg(feature = "cube")]
        return match lag {
            NEVER => {
                let pages = DevicePages::new(shape, max_tokens, Element::F16, device)?;
                Ok(Self::Plain { pages, window: shape.window })
            }
            _ => DeviceLayer::new(shape, method, n_exact, lag, device).map(Self::Device),
        };
        // Without GPU features there are no other devices.
        #[cfg(not(feature = "cube"))]
        {
            let _ = max_tokens;
            Err(crate::Error::UnsupportedDevice { device: format!("{device:?}") })
        }
    }

    /// An empty layer that shares all tables with this one, if it has those of such a layer.
    pub(super) fn like(&self, shape: &LayerShape, lag: usize) -> Option<Self> {
        match self {
            Self::Host(layer) => {
                let layout = &layer.pages.plain.layout;
                let fits = (layout.n_kv_heads, layout.head_dim) == (shape.n_kv_heads, shape.head_dim);
                (fits && layer.pages.packing.lag == lag).then(|| Self::Host(layer.like(shape)))
            }
            #[cfg(feature = "cube")]
            Self::Device(layer) => {
                (lag != NEVER && layer.fits(shape)).then(|| Self::Device(layer.like(shape)))
            }
            #[cfg(feature = "cube")]
            Self::Plain { .. } => None,
        }
    }

    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Host(layer) => layer.pages.bytes(),
            #[cfg(feature = "cube")]
            Self::Device(layer) => layer.bytes(),
            #[cfg(feature = "cube")]
            Self::Plain { pages, .. } => pages.bytes(),
        }
    }

    pub(super) fn shared_bytes(&self) -> usize {
        match self {
            Self::Host(layer) => layer.pages.shared_bytes(),
            #[cfg(feature = "cube")]
            Self::Device(_) | Self::Plain { .. } => 0,
        }
    }

    /// Appends the tokens behind the first `first` ones and attends.
    pub(super) fn attend(
        &mut self,
        first: usize,
        [q, k, v]: [Tensor<3>; 3],
        depths: &[usize],
        paths: Option<&Arc<Vec<Vec<usize>>>>,
        scale: f32,
    ) -> Result<Tensor<2>> {
        match self {
            Self::Host(layer) => {
                let [n_rows, n_heads, head_dim] = q.dims();
                let rows = HostRows::new(q, k, v)?;
                let out = layer.attend(first, rows.slices(), n_heads, depths, paths, scale);
                let out = out.map_err(|bad| rows.not_finite(bad))?;
                Ok(Tensor::from_primitive::<Flex>(flex::from_vec(out, [n_rows, n_heads * head_dim])))
            }
            #[cfg(feature = "cube")]
            Self::Device(layer) => {
                layer.attend(first, [q, k, v], depths, paths.map(|paths| paths.as_slice()), scale)
            }
            #[cfg(feature = "cube")]
            Self::Plain { pages, window } => {
                let visible = Visible::step(first, depths, paths, *window);
                pages.attend(first, q, k, v, &visible, scale)
            }
        }
    }

    /// Packs what is to be let go once the first `committed` tokens are final.
    pub(super) fn pack(&mut self, committed: usize) -> Result<()> {
        match self {
            Self::Host(layer) => layer.pages.pack(cpu::isa(), committed + 1),
            #[cfg(feature = "cube")]
            Self::Device(layer) => layer.pack(committed + 1)?,
            #[cfg(feature = "cube")]
            Self::Plain { .. } => {}
        }
        Ok(())
    }

    /// Drops what no row behind the first `committed` tokens needs, of `len` in all.
    pub(super) fn release(&mut self, committed: usize, len: usize) {
        debug_assert!(committed <= len);
        match self {
            Self::Host(layer) => layer.pages.release(cpu::isa(), committed),
            #[cfg(feature = "cube")]
            Self::Device(layer) => layer.release(committed, len),
            #[cfg(feature = "cube")]
            Self::Plain { .. } => {}
        }
    }

    pub(super) fn retain(&mut self, first: usize, rows: &[usize]) {
        match self {
            Self::Host(layer) => layer.pages.retain(first, rows),
            #[cfg(feature = "cube")]
            Self::Device(layer) => layer.retain(first, rows),
            #[cfg(feature = "cube")]
            Self::Plain { pages, .. } => pages.retain(first, rows),
        }
    }

    pub(super) fn check_truncate(&self, len: usize) -> Result<()> {
        match self {
            Self::Host(layer) => layer.pages.check_truncate(len),
            #[cfg(feature = "cube")]
            Self::Device(layer) => layer.check_truncate(len),
            #[cfg(feature = "cube")]
            Self::Plain { .. } => Ok(()),
        }
    }

    pub(super) fn truncate(&mut self, len: usize) {
        match self {
            Self::Host(layer) => layer.pages.truncate(len),
            #[cfg(feature = "cube")]
            Self::Device(layer) => layer.truncate(len),
            #[cfg(feature = "cube")]
            Self::Plain { pages, .. } => pages.truncate(len),
        }
    }
}
