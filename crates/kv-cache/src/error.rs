/// Result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong with one of the sequences of [`attend_many`](crate::attend_many).
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("sequence {segment} of the call: {source}")]
pub struct SegmentError {
    /// Index of the segment.
    pub segment: usize,
    /// The error; rows are counted within the segment's own step.
    pub source: Error,
}

/// What can go wrong with a cache.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The step is malformed, or asks for what the sequence cannot give.
    #[error(transparent)]
    Step(#[from] breakers_core::StepError),
    /// A cache cannot have this shape.
    #[error("layer {layer}: {field} must be at least 1")]
    ZeroDimension {
        /// The layer in question.
        layer: usize,
        /// Its field that is zero.
        field: &'static str,
    },
    /// A cache needs at least one layer.
    #[error("a cache needs at least one layer")]
    NoLayers,
    /// A tensor's shape does not fit the step and the layer.
    #[error("{tensor} has the shape {found:?}, the step needs {expected:?}")]
    TensorShape {
        /// `q`, `k` or `v`.
        tensor: &'static str,
        /// Shape that the step and the layer call for.
        expected: [usize; 3],
        /// Shape found.
        found: [usize; 3],
    },
    /// A description of what rows see does not fit the tensors.
    #[error("the visible keys are of {found:?} rows and keys, the tensors of {expected:?}")]
    VisibleShape {
        /// Rows of `q` and keys of `k`.
        expected: [usize; 2],
        /// Rows and keys of the description.
        found: [usize; 2],
    },
    /// The kernels do not run on this device.
    #[error("the kernels do not run on {device}")]
    UnsupportedDevice {
        /// The device.
        device: String,
    },
    /// The device cannot store elements of this type.
    #[error("{device} cannot store elements of type {element:?}")]
    UnsupportedElement {
        /// The element type asked for.
        element: crate::Element,
        /// The device.
        device: String,
    },
    /// Query heads cannot be shared out evenly to key-value heads.
    #[error("{n_heads} query heads cannot share {n_kv_heads} key-value heads evenly")]
    HeadCount {
        /// Query heads found in `q`.
        n_heads: usize,
        /// Key-value heads of the layer.
        n_kv_heads: usize,
    },
    /// A tensor lives on another device than the cache.
    #[error("{tensor} lives on {found}, the cache on {expected}")]
    Device {
        /// `q`, `k` or `v`.
        tensor: &'static str,
        /// The cache's device.
        expected: String,
        /// The tensor's device.
        found: String,
    },
    /// A NaN or an infinity in the input, which would spread to every later token.
    #[error("{tensor} holds {value} in row {row}")]
    NotFinite {
        /// `q`, `k`, `v` or `scale`.
        tensor: &'static str,
        /// Row of the step (0 for `scale`).
        row: usize,
        /// The value found.
        value: f32,
    },
    /// The call is not possible while a step is open.
    #[error("{operation} is not possible while a step is open; end or abort it first")]
    StepOpen {
        /// The operation refused.
        operation: &'static str,
    },
    /// The call needs an open step.
    #[error("{operation} needs an open step; call begin first")]
    NoStep {
        /// The operation refused.
        operation: &'static str,
    },
    /// The layers of a step come in ascending order, each once.
    #[error("layer {found} was called where layer {expected} comes next")]
    LayerOrder {
        /// The layer that comes next.
        expected: usize,
        /// The layer of the call.
        found: usize,
    },
    /// A step was ended before all of its layers were appended.
    #[error("the step ends after {found} of {expected} layers")]
    StepIncomplete {
        /// Layers of the cache.
        expected: usize,
        /// Layers appended so far.
        found: usize,
    },
    /// A token tree has branches that have not been thinned out to one path.
    #[error("{operation}: the provisional tokens form a tree; keep one path of it by retain first")]
    UnresolvedTree {
        /// The operation refused.
        operation: &'static str,
    },
    /// Rows to be kept do not follow one another.
    #[error(
        "provisional token {row} does not follow the one kept before it: its parent is {expected:?}, not {found:?}"
    )]
    NotAChain {
        /// The provisional token, counted from the first one.
        row: usize,
        /// Its parent, `None` for the last final token.
        expected: Option<usize>,
        /// The token kept before it, `None` for the last final token.
        found: Option<usize>,
    },
    /// A method has no codes of this width.
    #[error("{what} takes {expected} bits, not {found}")]
    BitWidth {
        /// What the width was for.
        what: &'static str,
        /// Widths that are possible.
        expected: &'static str,
        /// Width found.
        found: f64,
    },
    /// A method does not work on heads of this width.
    #[error("heads of {found} elements cannot be compressed this way; expected {expected}")]
    HeadWidth {
        /// Widths that are possible.
        expected: &'static str,
        /// Width found.
        found: usize,
    },
    /// A vector or its code has another length than the quantizer.
    #[error("{found} elements where {expected} are expected")]
    VectorLength {
        /// Elements of the quantizer's vectors.
        expected: usize,
        /// Elements found.
        found: usize,
    },
    /// A method has no groups of this size.
    #[error("groups of {found} tokens are not possible; expected {expected}")]
    GroupSize {
        /// Sizes that are possible.
        expected: &'static str,
        /// Size found.
        found: usize,
    },
    /// A cache that evicts tokens is supported only on the CPU.
    #[error("a cache that evicts tokens needs the CPU, not {device}")]
    EvictionDevice {
        /// The device asked for.
        device: String,
    },
    /// A method from another crate has no GPU kernel.
    #[error("{coder} codes pages that only the CPU can read, not {device}")]
    CoderDevice {
        /// The method's name.
        coder: String,
        /// The device asked for.
        device: String,
    },
    /// More tokens should stay exact than a page holds.
    #[error("{found} exact first tokens asked for, {most} are possible")]
    ExactTokens {
        /// Most that are possible.
        most: usize,
        /// Tokens asked for.
        found: usize,
    },
    /// No compression has this name.
    #[error("unknown cache {name:?}; known: {known}")]
    UnknownCompression {
        /// The name asked for.
        name: String,
        /// Names that exist.
        known: String,
    },
    /// A budget is smaller than what the press keeps in any case.
    #[error("a budget of {found} tokens is below the {least} that the press needs")]
    Budget {
        /// Smallest budget.
        least: usize,
        /// Budget found.
        found: usize,
    },
    /// The name of a cache asks for an impossible part of the tokens.
    #[error("{name}: {found:?} is no percentage above 0 and up to 100")]
    Percentage {
        /// The name of the cache.
        name: String,
        /// The text in place of the percentage.
        found: String,
    },
    /// A budget is not a fraction of the tokens.
    #[error("a budget is a fraction above 0 and at most 1, not {found}")]
    BudgetFraction {
        /// Fraction found.
        found: f64,
    },
    /// A press did not give every token a score.
    #[error("{press} gave {found:?} scores to the tokens of each head, which are {expected:?}")]
    PressScores {
        /// The press's name.
        press: String,
        /// Tokens of each key-value head.
        expected: Vec<usize>,
        /// Scores of each head.
        found: Vec<usize>,
    },
    /// A cache of this kind is not written down, or not from here.
    #[error("a cache of this kind has no snapshots")]
    NoSnapshot,
    /// The bytes are not those of a snapshot of such a cache.
    #[error("a snapshot of this cache has {expected} bytes, these are {found}")]
    SnapshotBytes {
        /// Bytes that the cache's layers need.
        expected: usize,
        /// Bytes found.
        found: usize,
    },
    /// Tokens that were coded cannot be evicted later.
    #[error("a press that works again and again cannot be combined with a quantizer")]
    RepeatedEviction,
}
