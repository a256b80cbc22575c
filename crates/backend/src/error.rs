use crate::{device::Kind, harness::Place};

/// Result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in this crate.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// This machine does not have the threads or the instruction set asked for.
    #[error(transparent)]
    Cpu(#[from] breakers_cpu::Error),
    /// No backend has this name.
    #[error(
        "unknown device {name:?}; known are flex, wgpu, vulkan, metal and cuda, with a number as in cuda:1"
    )]
    UnknownDevice {
        /// The name received.
        name: String,
    },
    /// What follows the colon of a device name is not a number.
    #[error("device {device:?}: {index:?} is not a number")]
    DeviceIndex {
        /// The whole name received.
        device: String,
        /// What follows the colon.
        index: String,
    },
    /// The backend is not part of this build.
    #[error("this build has no {kind} devices; build it with --features {kind}")]
    DeviceNotCompiled {
        /// The backend asked for, which is also the feature's name.
        kind: Kind,
    },
    /// The build has the backend, but the machine has no device of it.
    #[error("no {kind} device was found on this machine; it takes {requirement}")]
    NoDevice {
        /// The backend asked for.
        kind: Kind,
        /// What the backend needs.
        requirement: &'static str,
    },
    /// The machine has fewer devices of this backend.
    #[error("{kind} device {index} was asked for; this machine has {found}, counted from 0")]
    DeviceOutOfRange {
        /// The backend asked for.
        kind: Kind,
        /// The number asked for.
        index: usize,
        /// How many devices there are.
        found: usize,
    },
    /// The device exists but could not be initialized.
    #[error("device {device} could not be initialized: {reason}")]
    DeviceFailed {
        /// The device's name.
        device: String,
        /// The driver's error message.
        reason: String,
    },
    /// A result could not be read from its device.
    #[error("a tensor could not be read from its device: {reason}")]
    Read {
        /// Burn's error message.
        reason: String,
    },
    /// Our kernels do not run on the device.
    #[error(
        "{device} has none of this build's kernels; open devices by name through breakers_backend::device"
    )]
    UnsupportedDevice {
        /// Burn's description of the device.
        device: String,
    },
    /// Two implementations of an operation differ.
    #[error("{place}: output {output} at {index} is {found}, expected {expected} within {tolerance}")]
    LegDiffers {
        /// The operation, the implementation and the case.
        place: Place,
        /// Which of the operation's outputs.
        output: usize,
        /// Which of its elements, in row-major order.
        index: usize,
        /// The element.
        found: f32,
        /// What the reference has there.
        expected: f32,
        /// The tolerance.
        tolerance: String,
    },
    /// Two implementations of an operation give outputs of different shapes.
    #[error("{place}: outputs of shapes {found:?}, expected {expected:?}")]
    LegShape {
        /// The operation, the implementation and the case.
        place: Place,
        /// The shapes.
        found: Vec<Vec<usize>>,
        /// The shapes of the reference's outputs.
        expected: Vec<Vec<usize>>,
    },
}
