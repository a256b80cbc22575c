use breakers_cpu::random::SplitMix64;
use burn::tensor::{Device, Int, Tensor, TensorData};
use std::fmt;

/// How an input tensor is laid out in its storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum View {
    /// The whole storage, in row-major order.
    Whole,
    /// In row-major order, with other elements before and after it.
    Offset,
    /// With other elements between the rows too.
    Gaps,
    /// With the last two axes swapped in the storage.
    Swapped,
}

impl View {
    /// Every view.
    pub const ALL: [Self; 4] = [Self::Whole, Self::Offset, Self::Gaps, Self::Swapped];
}

impl fmt::Display for View {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Whole => "whole tensors",
            Self::Offset => "views with an offset",
            Self::Gaps => "views with gaps",
            Self::Swapped => "views with swapped axes",
        })
    }
}

/// A source of inputs that gives every implementation the same values, on its own device.
#[derive(Debug)]
pub struct Inputs {
    random: SplitMix64,
    view: View,
    device: Device,
}

impl Inputs {
    pub(super) fn new(seed: u64, view: View, device: Device) -> Self {
        Self { random: SplitMix64::new(seed), view, device }
    }

    /// The device that the implementation runs on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Values in [−1, 1), for inputs that are not tensors.
    pub fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.random.next_symmetric()).collect()
    }

    /// Whole numbers below `end`, which is at least 1.
    pub fn below(&mut self, n: usize, end: u32) -> Vec<u32> {
        (0..n).map(|_| (self.random.next() % u64::from(end.max(1))) as u32).collect()
    }

    /// A tensor of values in [−1, 1), laid out in its storage as the current view says.
    pub fn tensor<const D: usize>(&mut self, shape: [usize; D]) -> Tensor<D> {
        let values = self.values(shape.iter().product());
        self.place(values, shape)
    }

    /// A tensor of the given values, laid out in its storage as the current view says.
    ///
    /// # Panics
    /// If the values do not fill the shape.
    pub fn place<const D: usize>(&self, values: Vec<f32>, shape: [usize; D]) -> Tensor<D> {
        assert_eq!(values.len(), shape.iter().product::<usize>(), "values for shape {shape:?}");
        let whole =
            |values, shape: [usize; D]| Tensor::from_data(TensorData::new(values, shape), &self.device);
        if D == 0 || shape.contains(&0) {
            return whole(values, shape);
        }
        let padded = |axis: usize| {
            // Different lengths before and after, so that confusing the two shows up.
            let (before, after) = (1, 2);
            let mut outer = shape;
            outer[axis] += before + after;
            let inner: usize = shape[axis..].iter().product();
            let step: usize = shape[axis + 1..].iter().product();
            let mut storage = Vec::with_capacity(outer.iter().product());
            for block in values.chunks_exact(inner) {
                storage.resize(storage.len() + before * step, f32::NAN);
                storage.extend_from_slice(block);
                storage.resize(storage.len() + after * step, f32::NAN);
            }
            whole(storage, outer).narrow(axis, before, shape[axis])
        };
        match self.view {
            View::Whole => whole(values, shape),
            View::Offset => padded(0),
            View::Gaps => padded(D - 1),
            View::Swapped if D > 1 => {
                let mut swapped = shape;
                swapped.swap(D - 2, D - 1);
                let (rows, columns) = (shape[D - 2], shape[D - 1]);
                let mut storage = Vec::with_capacity(values.len());
                for block in values.chunks_exact(rows * columns) {
                    storage.extend((0..rows * columns).map(|i| block[i % rows * columns + i / rows]));
                }
                whole(storage, swapped).swap_dims(D - 2, D - 1)
            }
            View::Swapped => padded(0),
        }
    }

    /// A whole tensor of whole numbers below `end`.
    pub fn indices<const D: usize>(&mut self, shape: [usize; D], end: u32) -> Tensor<D, Int> {
        let values: Vec<i32> =
            self.below(shape.iter().product(), end).into_iter().map(|value| value as i32).collect();
        Tensor::from_data(TensorData::new(values, shape), &self.device)
    }
}
