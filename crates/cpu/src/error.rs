use crate::Isa;

/// Result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in this crate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A number of threads that the pool cannot have.
    #[error("{requested} threads asked for; the pool has between 1 and {max}")]
    ThreadCount {
        /// Threads asked for.
        requested: usize,
        /// The most threads that the pool can have.
        max: usize,
    },
    /// The operating system refused a new thread.
    #[error("the operating system refused thread {index} of {requested}: {reason}")]
    ThreadSpawn {
        /// Threads asked for.
        requested: usize,
        /// The thread that could not be started, counted from 1 (0 is the caller).
        index: usize,
        /// The system's error message.
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
    /// Rows are not made of whole blocks, or the values are not whole rows.
    #[error("{n_values} values do not make rows of {n_cols} in whole blocks of {block}")]
    RowLength {
        /// Values in a block.
        block: usize,
        /// Values in a row.
        n_cols: usize,
        /// Values received.
        n_values: usize,
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
        /// Its largest odd factor.
        odd_factor: usize,
        /// The largest supported.
        max_odd_factor: usize,
    },
}
