//! Keys and values of one layer as tensors on a device: for GPUs.
//!
//! One tensor each for keys and values, which doubles when it is full. Forks share it until one of them
//! appends, which copies all of it.

use std::sync::Arc;

use breakers_backend::device::max_buffer_bytes;
use breakers_core::StepError;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use super::meter::{Lease, PageMeter};
use crate::pages::page::PAGE_TOKENS;
use crate::{Element, Error, LayerShape, Result};
use breakers_cpu::float16;

#[derive(Clone)]
pub(crate) struct DevicePages {
    n_kv_heads: usize,
    head_dim: usize,
    max_tokens: usize,
    /// Tokens whose keys, or values, a buffer of the device holds.
    buffer_tokens: usize,
    element: Element,
    device: Device,
    /// Keys and values, `[capacity, n_kv_heads, head_dim]` each.
    stored: Option<[Tensor<3>; 2]>,
    meter: PageMeter,
    lease: Option<Arc<Lease>>,
}

impl DevicePages {
    pub(crate) fn new(
        layer: &LayerShape,
        max_tokens: usize,
        element: Element,
        device: &Device,
        meter: &PageMeter,
    ) -> Result<Self> {
        if !device.supports_dtype(dtype(element)) {
            return Err(Error::UnsupportedElement { element, device: format!("{device:?}") });
        }
        let LayerShape { n_kv_heads, head_dim, .. } = *layer;
        let token_bytes = n_kv_heads.saturating_mul(head_dim).saturating_mul(element.bytes());
        let buffer_tokens = max_buffer_bytes(device).checked_div(token_bytes).unwrap_or(usize::MAX);
        let (device, meter) = (device.clone(), meter.clone());
        Ok(Self {
            n_kv_heads,
            head_dim,
            max_tokens,
            buffer_tokens,
            element,
            device,
            stored: None,
            meter,
            lease: None,
        })
    }

    fn capacity(&self) -> usize {
        self.stored.as_ref().map_or(0, |[k, _]| k.dims()[0])
    }

    pub(crate) fn bytes(&self) -> usize {
        self.capacity() * self.token_bytes()
    }

    /// Frees the storage if nothing is left in it.
    pub(crate) fn truncate(&mut self, len: usize) {
        if len == 0 {
            (self.stored, self.lease) = (None, None);
        }
    }

    /// Moves the tokens `first + row` for each of `rows`, which ascend, to the slots from `first` on.
    pub(crate) fn retain(&mut self, first: usize, rows: &[usize]) {
        // Rows at the front that stay where they are need no copy.
        let n_same = rows.iter().enumerate().take_while(|(kept, row)| kept == *row).count();
        let moved: Vec<i32> = rows[n_same..].iter().map(|row| (first + row) as i32).collect();
        if moved.is_empty() {
            return;
        }
        let n_moved = moved.len();
        let indices = TensorData::new(moved, [n_moved]);
        let indices = Tensor::<1, Int>::from_data(indices, (&self.device, DType::I32));
        self.stored = self.stored.take().map(|stored| {
            stored.map(|tensor| {
                let rows = tensor.clone().select(0, indices.clone());
                self.write(tensor, first + n_same, rows)
            })
        });
    }

    /// The tensor with other tokens from slot `at` on.
    fn write(&self, tensor: Tensor<3>, at: usize, rows: Tensor<3>) -> Tensor<3> {
        let n_rows = rows.dims()[0];
        tensor.slice_assign([at..at + n_rows, 0..self.n_kv_heads, 0..self.head_dim], rows)
    }

    /// Makes room for `len` tokens, of which the first `used` are there.
    fn reserve(&mut self, used: usize, len: usize) -> Result<()> {
        let capacity = self.capacity();
        if len <= capacity {
            return Ok(());
        }
        if len > self.buffer_tokens {
            return Err(StepError::ContextFull { needed: len, limit: self.buffer_tokens }.into());
        }
        let most = self.max_tokens.max(len);
        let capacity = len.max(2 * capacity).min(most).next_multiple_of(PAGE_TOKENS).min(self.buffer_tokens);
        let shape = [capacity, self.n_kv_heads, self.head_dim];
        let empty = || Tensor::<3>::zeros(shape, (&self.device, dtype(self.element)));
        self.stored = Some(match self.stored.take() {
            Some(stored) if used > 0 => stored.map(|old| self.write(empty(), 0, old.narrow(0, 0, used))),
            _ => [empty(), empty()],
        });
        Ok(())
    }

    /// Writes tokens after the first `first` ones, and returns all keys and values, `[n_tokens, n_kv_heads,
    /// head_dim]`.
    pub(crate) fn append(&mut self, first: usize, k: Tensor<3>, v: Tensor<3>) -> Result<[Tensor<3>; 2]> {
        let len = first + k.dims()[0];
        self.reserve(first, len)?;
        let Some([old_k, old_v]) = self.stored.take() else {
            return Err(StepError::OutOfRange { what: "attend", requested: len, available: 0 }.into());
        };
        let k = self.write(old_k, first, self.rounded(k));
        let v = self.write(old_v, first, self.rounded(v));
        let seen = [&k, &v].map(|tensor| tensor.clone().narrow(0, 0, len));
        self.stored = Some([k, v]);
        self.count();
        Ok(seen)
    }

    /// Lets the meter count what is stored now. A fork is counted by itself once it has written.
    fn count(&mut self) {
        let bytes = self.bytes();
        let is_own = |lease: &Arc<Lease>| lease.bytes() == bytes && Arc::strong_count(lease) == 1;
        if !self.lease.as_ref().is_some_and(is_own) {
            self.lease = Some(Arc::new(self.meter.lease(bytes)));
        }
    }

    /// Bytes of a token.
    pub(crate) fn token_bytes(&self) -> usize {
        2 * self.n_kv_heads * self.head_dim * self.element.bytes()
    }

    /// In the type of the stored elements.
    fn rounded(&self, tensor: Tensor<3>) -> Tensor<3> {
        match self.element {
            Element::F16 => tensor.clamp(-float16::MAX, float16::MAX).cast(DType::F16),
            Element::F32 => tensor.cast(DType::F32),
        }
    }
}

fn dtype(element: Element) -> DType {
    match element {
        Element::F16 => DType::F16,
        Element::F32 => DType::F32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_buffer_holds_is_refused_and_changes_nothing() {
        let device = Device::flex();
        let layer = LayerShape::new(1, 8);
        let mut pages = DevicePages::new(&layer, 100, Element::F32, &device, &PageMeter::default()).unwrap();
        pages.buffer_tokens = 5;
        let mut append = |first: usize, n_rows: usize| {
            let ones = || Tensor::<3>::ones([n_rows, 1, 8], &device);
            pages.append(first, ones(), ones()).map(|[k, _]| k.dims())
        };
        assert_eq!(append(0, 4), Ok([4, 1, 8]));
        assert_eq!(append(4, 2), Err(StepError::ContextFull { needed: 6, limit: 5 }.into()));
        assert_eq!(append(4, 1), Ok([5, 1, 8]));
        assert_eq!(pages.bytes(), 2 * 5 * 8 * 4);
    }
}
