//! Where a layer's keys and values are: in the host's memory, or on a GPU.

use breakers_backend::device;
use burn::tensor::{Device, Tensor};

#[cfg(feature = "cube")]
use super::device::DeviceLayer;
use super::{Compression, Layer, NEVER};
use crate::cache::ledger::Step;
use crate::pages::meter::PageMeter;
#[cfg(feature = "cube")]
use crate::{Element, attention, pages::device::DevicePages};
use crate::{LayerShape, Result};

/// Where a layer is to be stored.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    /// Most tokens of the sequence.
    pub(super) max_tokens: usize,
    pub(super) device: &'a Device,
    pub(super) meter: &'a PageMeter,
}

#[derive(Clone)]
#[allow(clippy::large_enum_variant)] // A cache has a few dozen of them; their size does not matter.
pub(super) enum LayerStorage {
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

impl LayerStorage {
    /// An empty layer.
    pub(super) fn new(
        shape: &LayerShape,
        compression: &Compression,
        lag: usize,
        place: Place<'_>,
    ) -> Result<Self> {
        let (coder, n_exact) = (&*compression.coder, compression.exact_tokens);
        let Place { max_tokens, device, meter } = place;
        if device::is_cpu(device) {
            return match lag {
                NEVER => Ok(Self::Host(Layer::plain(shape, meter))),
                _ => Layer::new(shape, coder, n_exact, lag, meter).map(Self::Host),
            };
        }
        #[cfg(feature = "cube")]
        return match lag {
            NEVER => {
                let pages = DevicePages::new(shape, max_tokens, Element::F16, device, meter)?;
                Ok(Self::Plain { pages, window: shape.window })
            }
            _ => DeviceLayer::new(shape, coder, n_exact, lag, device, meter).map(Self::Device),
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

    pub(super) fn bytes_per_token(&self) -> f64 {
        match self {
            Self::Host(layer) => layer.bytes_per_token(),
            #[cfg(feature = "cube")]
            Self::Device(layer) => layer.bytes_per_token(),
            #[cfg(feature = "cube")]
            Self::Plain { pages, .. } => pages.token_bytes() as f64,
        }
    }

    /// Appends the step's tokens and attends, if the layer is on a device.
    pub(super) fn attend_on_device(
        &mut self,
        step: &Step,
        [q, k, v]: [Tensor<3>; 3],
        scale: f32,
    ) -> Result<Tensor<2>> {
        match self {
            Self::Host(_) => {
                let _ = (step, k, v, scale);
                Err(crate::Error::UnsupportedDevice { device: format!("{:?}", q.device()) })
            }
            #[cfg(feature = "cube")]
            Self::Device(layer) => {
                let paths = step.paths().map(|paths| paths.as_slice());
                layer.attend(step.first, [q, k, v], &step.depths, paths, scale)
            }
            #[cfg(feature = "cube")]
            Self::Plain { pages, window } => {
                let [k, v] = pages.append(step.first, k, v)?;
                attention(q, k, v, &step.visible(*window), scale)
            }
        }
    }

    /// Packs what is to be let go once the first `committed` tokens are final.
    pub(super) fn pack(&mut self, committed: usize) -> Result<()> {
        match self {
            Self::Host(layer) => layer.pages.pack(committed + 1),
            #[cfg(feature = "cube")]
            Self::Device(layer) => layer.pack(committed + 1)?,
            #[cfg(feature = "cube")]
            Self::Plain { .. } => {}
        }
        Ok(())
    }

    /// Drops what no row after the first `committed` tokens needs, of `len` in all.
    pub(super) fn release(&mut self, committed: usize, len: usize) {
        debug_assert!(committed <= len);
        match self {
            Self::Host(layer) => layer.pages.release(committed),
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
