//! The tokens of a layer that are kept as 16-bit floats on the device.

use breakers_core::StepError;
use std::ops::Range;

use burn::tensor::{DType, Device, Int, Tensor, TensorData, f16};

use crate::Result;
use crate::pages::page::PAGE_TOKENS;
use breakers_cpu::float16;

/// The sequence's exact first tokens, and all tokens from slot `base` on.
#[derive(Clone)]
pub(crate) struct Tail {
    n_kv_heads: usize,
    head_dim: usize,
    n_exact: usize,
    /// Tokens that a buffer of the device holds.
    limit: usize,
    device: Device,
    /// First slot that is kept, which is the first of a page. Earlier slots are not kept, except for the
    /// exact ones.
    base: usize,
    /// Keys and values, `[n_exact + capacity, n_kv_heads, head_dim]` each: the exact tokens once `base` is
    /// above 0, then those from `base` on.
    stored: Option<[Tensor<3>; 2]>,
}

impl Tail {
    pub(crate) fn new(
        n_kv_heads: usize,
        head_dim: usize,
        n_exact: usize,
        limit: usize,
        device: &Device,
    ) -> Self {
        let device = device.clone();
        Self { n_kv_heads, head_dim, n_exact, limit, device, base: 0, stored: None }
    }

    pub(crate) fn bytes(&self) -> usize {
        let rows = self.stored.as_ref().map_or(0, |[k, _]| k.dims()[0]);
        2 * rows * self.n_kv_heads * self.head_dim * size_of::<f16>()
    }

    pub(crate) fn base(&self) -> usize {
        self.base
    }

    /// Keys and values as they stand on the device.
    pub(crate) fn stored(&self) -> Option<&[Tensor<3>; 2]> {
        self.stored.as_ref()
    }

    /// Where a slot from `base` on stands.
    fn row(&self, slot: usize) -> usize {
        self.n_exact + slot - self.base
    }

    fn zeros(&self, capacity: usize) -> Tensor<3> {
        Tensor::zeros([self.n_exact + capacity, self.n_kv_heads, self.head_dim], (&self.device, DType::F16))
    }

    fn write(&self, tensor: Tensor<3>, at: usize, rows: Tensor<3>) -> Tensor<3> {
        let n_rows = rows.dims()[0];
        tensor.slice_assign([at..at + n_rows, 0..self.n_kv_heads, 0..self.head_dim], rows)
    }

    /// Writes tokens `[n_rows, n_kv_heads, head_dim]` to the slots from `first` on, behind which there is
    /// nothing.
    pub(crate) fn append(&mut self, first: usize, k: Tensor<3>, v: Tensor<3>) -> Result<()> {
        let needed = first + k.dims()[0] - self.base;
        let capacity = self.stored.as_ref().map_or(0, |[k, _]| k.dims()[0] - self.n_exact);
        if needed > self.limit {
            return Err(StepError::ContextFull {
                needed: first + k.dims()[0],
                limit: self.base + self.limit,
            }
            .into());
        }
        if needed > capacity {
            let new = needed.max(2 * capacity).next_multiple_of(PAGE_TOKENS).min(self.limit);
            let used = self.row(first);
            self.stored = Some(match self.stored.take() {
                Some(old) if used > 0 => {
                    old.map(|old| self.write(self.zeros(new), 0, old.narrow(0, 0, used)))
                }
                _ => [self.zeros(new), self.zeros(new)],
            });
        }
        let at = self.row(first);
        if let Some([old_k, old_v]) = self.stored.take() {
            let half = |x: Tensor<3>| x.clamp(-float16::MAX, float16::MAX).cast(DType::F16);
            self.stored = Some([self.write(old_k, at, half(k)), self.write(old_v, at, half(v))]);
        }
        Ok(())
    }

    /// Moves the tokens `first + row` for each of `rows`, which ascend, to the slots from `first` on.
    pub(crate) fn retain(&mut self, first: usize, rows: &[usize]) {
        let n_same = rows.iter().enumerate().take_while(|(kept, row)| kept == *row).count();
        let moved: Vec<usize> = rows[n_same..].iter().map(|row| self.row(first + row)).collect();
        let at = self.row(first + n_same);
        self.stored = self.stored.take().map(|stored| {
            stored.map(|tensor| match moved.is_empty() {
                true => tensor,
                false => {
                    let rows = select(tensor.clone(), &moved);
                    self.write(tensor, at, rows)
                }
            })
        });
    }

    /// Frees the slots before `base`, of `len` in all.
    pub(crate) fn release(&mut self, base: usize, len: usize) {
        if base <= self.base {
            return;
        }
        let n_left = len.saturating_sub(base);
        let exact = if self.base == 0 { self.row(0) } else { 0 };
        let from = self.row(base);
        self.stored = self.stored.take().map(|stored| {
            stored.map(|old| {
                let mut new = self.zeros(n_left.next_multiple_of(PAGE_TOKENS).max(PAGE_TOKENS));
                for (to, from, n) in [(0, exact, self.n_exact), (self.n_exact, from, n_left)] {
                    if n > 0 {
                        new = self.write(new, to, old.clone().narrow(0, from, n));
                    }
                }
                new
            })
        });
        self.base = base;
    }

    /// Forgets the tokens after the first `len`; slots are kept from `base` on, if it is below what it was.
    pub(crate) fn truncate(&mut self, len: usize, base: usize) {
        self.base = self.base.min(base);
        if len == 0 {
            self.stored = None;
        }
    }

    /// Keys and values of some slots, `[2, n_slots, n_kv_heads, head_dim]`.
    pub(crate) fn read(&self, slots: Range<usize>) -> Vec<f16> {
        let Some([k, v]) = &self.stored else { return Vec::new() };
        let part = |x: &Tensor<3>| x.clone().narrow(0, self.row(slots.start), slots.len());
        let both = Tensor::cat(vec![part(k), part(v)], 0);
        // The device is as it was when it took the numbers.
        both.into_data().try_into_vec().unwrap_or_default()
    }
}

/// Rows of a tensor.
pub(crate) fn select<const D: usize>(tensor: Tensor<D>, rows: &[usize]) -> Tensor<D> {
    let device = tensor.device();
    let rows: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
    let n_rows = rows.len();
    tensor.select(0, Tensor::<1, Int>::from_data(TensorData::new(rows, [n_rows]), (&device, DType::I32)))
}
