//! Tests that compare all implementations of an operation with each other.
//!
//! An operation of this project exists several times: as a reference in tensor operations, as a CPU kernel
//! for each instruction set, and as a CubeCL kernel that runs on every GPU. [`Operation`] sends the same
//! seeded inputs through all of them that the machine has (as whole tensors and as views with an offset, with
//! gaps and with swapped axes) and compares the results under a named [`Tolerance`]. The memory around a view
//! is NaN, so that a kernel that reads past the view is caught. [`check_rows`] tests that a row's result has
//! the same bits whatever else is in the call.
//!
//! Devices that this build or this machine lacks are skipped, with a note on standard error. The environment
//! variable `BREAKERS_REQUIRE_DEVICES` (`wgpu`, or `wgpu,cuda:0`) turns the absence of a device into a
//! failure.
//!
//! # Example
//! ```
//! use breakers_backend::harness::{Operation, Tolerance};
//! use breakers_backend::norm::{rms_norm, rms_norm_reference};
//!
//! Operation {
//!     name: "rms_norm",
//!     cases: &[[1, 3], [5, 64], [0, 8]],
//!     cpu: Tolerance::new("another order of summation", 1e-6, 2e-6),
//!     gpu: Tolerance::new("another order of summation", 1e-6, 2e-6),
//!     same_bits: true,
//!     reference: &|shape, inputs| {
//!         let (x, weight) = (inputs.tensor(*shape), inputs.tensor([shape[1]]));
//!         rms_norm_reference(x, weight, 0.0, 1e-5).into()
//!     },
//!     kernel: &|shape, inputs| {
//!         let (x, weight) = (inputs.tensor(*shape), inputs.tensor([shape[1]]));
//!         rms_norm(x, weight, 1e-5).into()
//!     },
//! }
//! .check();
//! ```

mod inputs;
mod models;
mod rows;
#[cfg(test)]
mod tests;

pub use inputs::{Inputs, View};
pub use models::model_path;
pub use rows::{check_rows, compare_rows};

use crate::{
    Error, Result,
    device::{self, Kind},
};
use breakers_cpu as cpu;
use burn::tensor::{Device, Int, Tensor};
use std::{fmt, fmt::Debug};

/// How far a result may be from the expected one: `absolute + relative · |expected|`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerance {
    /// Why there may be a difference at all.
    pub name: &'static str,
    /// The part that does not depend on the value.
    pub absolute: f32,
    /// The part that grows with it.
    pub relative: f32,
}

impl Tolerance {
    /// Equal numbers only (0 and −0 are equal, and so are two NaN).
    pub const EXACT: Self = Self::new("equal numbers", 0.0, 0.0);

    /// A tolerance with a name that says where the difference comes from.
    pub const fn new(name: &'static str, absolute: f32, relative: f32) -> Self {
        Self { name, absolute, relative }
    }

    /// Whether `found` is close enough to `expected`.
    pub fn admits(&self, found: f32, expected: f32) -> bool {
        if found == expected || (found.is_nan() && expected.is_nan()) {
            return true;
        }
        // An infinity or a NaN on one side alone makes the difference infinite or NaN.
        (found - expected).abs() <= self.absolute + self.relative * expected.abs() && found.is_finite()
    }
}

impl fmt::Display for Tolerance {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} (± {:e} ± {:e} of the value)", self.name, self.absolute, self.relative)
    }
}

/// What an operation computed: one or several tensors, read back as `f32`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Outputs(Vec<Output>);

#[derive(Debug, Clone, PartialEq)]
struct Output {
    shape: Vec<usize>,
    values: Vec<f32>,
}

impl Outputs {
    /// The outputs of `self`, then those of `other`.
    pub fn and(mut self, other: impl Into<Self>) -> Self {
        self.0.extend(other.into().0);
        self
    }

    fn one(shape: &[usize], values: Vec<f32>) -> Self {
        Self(vec![Output { shape: shape.to_vec(), values }])
    }
}

impl<const D: usize> From<Tensor<D>> for Outputs {
    fn from(tensor: Tensor<D>) -> Self {
        Self::one(&tensor.dims(), values(tensor))
    }
}

impl<const D: usize> From<Tensor<D, Int>> for Outputs {
    fn from(tensor: Tensor<D, Int>) -> Self {
        tensor.float().into()
    }
}

impl From<Vec<f32>> for Outputs {
    fn from(values: Vec<f32>) -> Self {
        Self::one(&[values.len()], values)
    }
}

/// A tensor's elements as `f32`, in row-major order.
///
/// # Panics
/// If the device fails.
pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    device::read(tensor).expect("the device has computed the tensor")
}

/// An implementation of an operation: takes a case and the source of its inputs, and returns the outputs.
pub type Implementation<'a, C> = &'a dyn Fn(&C, &mut Inputs) -> Outputs;

/// An operation with its implementations and the cases to try.
///
/// The reference and the kernel must ask [`Inputs`] for the same values in the same order.
#[derive(Clone, Copy)]
pub struct Operation<'a, C> {
    /// The name in messages, and the seed of the inputs.
    pub name: &'a str,
    /// The cases: shapes, options, or both. Include prime sizes and empty ones.
    pub cases: &'a [C],
    /// How far the CPU kernels may be from the reference.
    pub cpu: Tolerance,
    /// How far GPU kernels may be from the reference.
    pub gpu: Tolerance,
    /// Whether all CPU instruction sets must give the same bits.
    pub same_bits: bool,
    /// The operation in tensor operations. It is run on Flex, on whole tensors.
    pub reference: Implementation<'a, C>,
    /// The operation as users call it. It is run on every device, and on Flex with every instruction set.
    pub kernel: Implementation<'a, C>,
}

/// What [`Operation::compare`] did.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Summary {
    /// Each leg's name and its largest difference from the reference.
    pub legs: Vec<(String, f32)>,
    /// The devices that were skipped, and why.
    pub left_out: Vec<String>,
}

impl<C: Debug> Operation<'_, C> {
    /// Compares every implementation that the machine can run (a *leg*) with the reference, in all cases and
    /// views.
    ///
    /// # Errors
    /// [`Error::LegDiffers`] and [`Error::LegShape`] for the first difference; the errors of
    /// [`device::open`] for a device that `BREAKERS_REQUIRE_DEVICES` names.
    ///
    /// # Panics
    /// If an implementation does.
    pub fn compare(&self) -> Result<Summary> {
        let devices = Devices::find()?;
        let mut summary = Summary { legs: Vec::new(), left_out: devices.left_out };
        let flex = device::open("flex")?;
        let expected: Vec<_> =
            (0..self.cases.len()).map(|index| self.run(self.reference, index, View::Whole, &flex)).collect();
        for isa in cpu::available() {
            let largest =
                self.compare_leg(&format!("flex with {isa}"), self.cpu, &expected, |index, view| {
                    Ok(cpu::with_isa(isa, || self.run(self.kernel, index, view, &flex))?)
                })?;
            summary.legs.push((format!("flex with {isa}"), largest));
        }
        if self.same_bits {
            self.compare_bits(&flex)?;
        }
        for (name, gpu) in devices.gpus {
            let largest = self.compare_leg(&name, self.gpu, &expected, |index, view| {
                Ok(self.run(self.kernel, index, view, &gpu))
            })?;
            summary.legs.push((name, largest));
        }
        Ok(summary)
    }

    /// As [`compare`](Self::compare), for tests: reports the largest differences and the skipped devices on
    /// standard error, and panics if a difference is too large.
    ///
    /// # Panics
    /// With the error, if `compare` has one.
    #[track_caller]
    pub fn check(&self) -> Summary {
        let summary = self.compare().unwrap_or_else(|error| panic!("{error}"));
        for (leg, largest) in &summary.legs {
            eprintln!("{} on {leg}: off by {largest:.1e} at most", self.name);
        }
        for reason in &summary.left_out {
            eprintln!("{}: left out: {reason}", self.name);
        }
        summary
    }

    fn run(&self, implementation: Implementation<C>, index: usize, view: View, device: &Device) -> Outputs {
        let mut inputs = Inputs::new(self.seed(index), view, device.clone());
        implementation(&self.cases[index], &mut inputs)
    }

    /// A seed for each case, the same for all of its legs.
    fn seed(&self, index: usize) -> u64 {
        let hash = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
        self.name.bytes().fold(0xCBF2_9CE4_8422_2325 ^ index as u64, hash)
    }

    fn compare_leg(
        &self,
        leg: &str,
        tolerance: Tolerance,
        expected: &[Outputs],
        run: impl Fn(usize, View) -> Result<Outputs>,
    ) -> Result<f32> {
        let mut largest = 0.0f32;
        for view in View::ALL {
            for (index, expected) in expected.iter().enumerate() {
                let place = || self.place(leg, index, view);
                largest = largest.max(compare(&run(index, view)?, expected, tolerance, place)?);
            }
        }
        Ok(largest)
    }

    fn compare_bits(&self, flex: &Device) -> Result<()> {
        for index in 0..self.cases.len() {
            let run = |isa| cpu::with_isa(isa, || self.run(self.kernel, index, View::Whole, flex));
            let expected = run(cpu::Isa::Scalar)?;
            for isa in cpu::available() {
                let place = || self.place(&format!("flex with {isa} against scalar"), index, View::Whole);
                compare_bits(&run(isa)?, &expected, place)?;
            }
        }
        Ok(())
    }

    fn place(&self, leg: &str, index: usize, view: View) -> Place {
        let case = format!("{:?} as {view}", self.cases[index]);
        Place { operation: self.name.to_owned(), leg: leg.to_owned(), case }
    }
}

/// Where a difference was found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Place {
    /// The operation.
    pub operation: String,
    /// The leg: a device, and on the CPU the instruction set.
    pub leg: String,
    /// The case and the view.
    pub case: String,
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} on {}, {}", self.operation, self.leg, self.case)
    }
}

/// The largest difference, or the first one beyond the tolerance.
fn compare(
    found: &Outputs,
    expected: &Outputs,
    tolerance: Tolerance,
    place: impl Fn() -> Place,
) -> Result<f32> {
    let mut largest = 0.0f32;
    for_each_pair(found, expected, &place, |output, index, found, expected| {
        if !tolerance.admits(found, expected) {
            let (tolerance, place) = (tolerance.to_string(), place());
            return Err(Error::LegDiffers { place, output, index, found, expected, tolerance });
        }
        // A pair of equal infinities or NaN has no difference.
        largest = largest.max((found - expected).abs());
        Ok(())
    })?;
    Ok(largest)
}

fn compare_bits(found: &Outputs, expected: &Outputs, place: impl Fn() -> Place) -> Result<()> {
    for_each_pair(found, expected, &place, |output, index, found, expected| {
        if found.to_bits() == expected.to_bits() {
            return Ok(());
        }
        let (tolerance, place) = ("the same bits".to_owned(), place());
        Err(Error::LegDiffers { place, output, index, found, expected, tolerance })
    })
}

/// Calls `check(output, index, found, expected)` for every pair of elements.
fn for_each_pair(
    found: &Outputs,
    expected: &Outputs,
    place: &impl Fn() -> Place,
    mut check: impl FnMut(usize, usize, f32, f32) -> Result<()>,
) -> Result<()> {
    let shapes = |outputs: &Outputs| outputs.0.iter().map(|output| output.shape.clone()).collect::<Vec<_>>();
    if shapes(found) != shapes(expected) {
        let (found, expected) = (shapes(found), shapes(expected));
        return Err(Error::LegShape { place: place(), found, expected });
    }
    for (output, (found, expected)) in found.0.iter().zip(&expected.0).enumerate() {
        for (index, (found, expected)) in found.values.iter().zip(&expected.values).enumerate() {
            check(output, index, *found, *expected)?;
        }
    }
    Ok(())
}

/// The GPUs to test on, and those that are skipped.
struct Devices {
    gpus: Vec<(String, Device)>,
    left_out: Vec<String>,
}

impl Devices {
    fn find() -> Result<Self> {
        let required = std::env::var("BREAKERS_REQUIRE_DEVICES").unwrap_or_default();
        Self::find_with(&required)
    }

    fn find_with(required: &str) -> Result<Self> {
        let mut devices = Self { gpus: Vec::new(), left_out: Vec::new() };
        for name in required.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            device::open(name)?;
        }
        for kind in [Kind::Cuda, Kind::Metal, Kind::Vulkan, Kind::Wgpu] {
            // wgpu chooses Metal or Vulkan by itself, so it would only repeat their tests.
            let covered = || devices.gpus.iter().any(|(name, _)| !name.starts_with(Kind::Cuda.name()));
            if kind == Kind::Wgpu && covered() {
                continue;
            }
            let found = device::available_of(kind).and_then(|found| {
                let open = |name: String| device::open(&name).map(|device| (name, device));
                found.into_iter().map(|description| open(description.name)).collect::<Result<Vec<_>>>()
            });
            match found {
                Ok(found) => devices.gpus.extend(found),
                Err(error) => devices.left_out.push(error.to_string()),
            }
        }
        Ok(devices)
    }
}
