use crate::{cpu::Isa, device::Kind, harness::Place};

/// Result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in this crate.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A number of threads that the pool cannot have.
    #[error("{requested} threads asked for; the pool has between 1 and {max}")]
    ThreadCount {
        /// Threads asked for.
        requested: usize,
        /// Most threads that the pool can have.
        max: usize,
    },
    /// The operating system refused a new thread.
    #[error("the operating system refused thread {index} of {requested}: {reason}")]
    ThreadSpawn {
        /// Threads asked for.
        requested: usize,
        /// The thread that could not be started, counted from 1 (0 is the caller).
        index: usize,
        /// The system's words.
        reason: String,
    },
    /// The pool cannot be changed by a task that runs on it.
    #[error("the number of threads cannot be changed from within a task of the pool")]
    PoolInUse,
    /// The machine lacks the instructions of a kernel path.
    #[error("this machine cannot run the {requested} kernels (it can run {})", Isa::list(.available))]
    IsaUnavailable {
        /// The path asked for.
        requested: Isa,
        /// The paths that this machine can run.
        available: Vec<Isa>,
    },
    /// No kernel path has this name.
    #[error("unknown instruction set {name:?}; known are {}", Isa::list(&Isa::ALL))]
    UnknownIsa {
        /// The name received.
        name: String,
    },
    /// Rows that are not whole blocks, or values that are not whole rows.
    #[error("{n_values} values do not make rows of {n_cols} in whole blocks of {block}")]
    RowLength {
        /// Values in a block.
        block: usize,
        /// Values in a row.
        n_cols: usize,
        /// Values received.
        n_values: usize,
    },
    /// No backend has this name.
    #[error(
        "unknown device {name:?}; known are flex, wgpu, vulkan, metal and cuda, with a number as in cuda:1"
    )]
    UnknownDevice {
        /// The name received.
        name: String,
    },
    /// What follows the colon of a device name is no number.
    #[error("device {device:?}: {index:?} is not a number")]
    DeviceIndex {
        /// The whole name received.
        device: String,
        /// What stands after the colon.
        index: String,
    },
    /// The backend is not part of this build.
    #[error("this build has no {kind} devices; build it with --features {kind}")]
    DeviceNotCompiled {
        /// The backend asked for, which is the feature's name too.
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
    /// The machine has fewer devices of the backend.
    #[error("{kind} device {index} was asked for; this machine has {found}, counted from 0")]
    DeviceOutOfRange {
        /// The backend asked for.
        kind: Kind,
        /// The number asked for.
        index: usize,
        /// How many devices there are.
        found: usize,
    },
    /// The device is there but could not be initialized.
    #[error("device {device} could not be initialized: {reason}")]
    DeviceFailed {
        /// The device's name.
        device: String,
        /// The driver's words.
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
    /// A width of packed codes that is not between 1 and 8.
    #[error("codes of {bits} bits; 1 to 8 are supported")]
    BitWidth {
        /// The width received.
        bits: u32,
    },
    /// A code does not fit into its bits.
    #[error("code {code} at {index} does not fit into {bits} bits")]
    CodeRange {
        /// The code.
        code: u8,
        /// Where it stands.
        index: usize,
        /// Bits of a code.
        bits: u32,
    },
    /// A slice has the wrong length.
    #[error("{what} holds {found} elements, {expected} are needed")]
    Length {
        /// Which slice.
        what: &'static str,
        /// Elements needed.
        expected: usize,
        /// Elements found.
        found: usize,
    },
    /// No rotation has this length.
    #[error(
        "no rotation of length {len}: its odd factor {odd_factor} must be between 1 and {max_odd_factor}"
    )]
    RotationLength {
        /// The length asked for.
        len: usize,
        /// What remains of it after division by two as often as possible.
        odd_factor: usize,
        /// The largest supported.
        max_odd_factor: usize,
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
        /// The reference's.
        expected: Vec<Vec<usize>>,
    },
}
