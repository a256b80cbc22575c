use std::path::PathBuf;

use crate::Format;

/// Result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong with packed weights and the files that hold them.
///
/// Positions are bytes from the start of the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused to read or write a file.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// A file cannot be replaced: something else than a file is in its place.
    #[error(transparent)]
    File(Box<breakers_files::Error>),
    /// A sink given to the writer failed.
    #[error("writing GGUF: {source}")]
    Write {
        /// The sink's error.
        source: std::io::Error,
    },
    /// The bytes do not begin with `GGUF`.
    #[error("this is not a GGUF file (magic {}, expected \"GGUF\")", describe_magic(found))]
    NotGguf {
        /// The first bytes found, at most four.
        found: Vec<u8>,
    },
    /// A GGUF file for big-endian machines.
    #[error(
        "this is a big-endian GGUF file (version {version}); only little-endian files are read: convert it \
         with gguf-convert-endian"
    )]
    BigEndian {
        /// The version once its bytes are swapped.
        version: u32,
    },
    /// A version of the container that is not known here.
    #[error("GGUF version {found} is not supported (versions 2 and 3 are)")]
    UnsupportedVersion {
        /// The version found.
        found: u32,
    },
    /// One file of a model that was split into several.
    #[error(
        "this is shard {shard} of {n_shards} of a split model; merge the shards into one GGUF file first"
    )]
    Sharded {
        /// Number of this shard, from 1.
        shard: u64,
        /// Number of shards.
        n_shards: u64,
    },
    /// The file ends before something it announced.
    #[error("the file ends within {what} at byte {position}: {needed} bytes needed, {available} there")]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Where it begins.
        position: usize,
        /// Bytes needed.
        needed: u64,
        /// Bytes left in the file.
        available: usize,
    },
    /// A count that the rest of the file cannot hold, or that is beyond a fixed limit.
    #[error("{what} at byte {position} is {found}; at most {limit} are possible")]
    CountTooLarge {
        /// What is counted.
        what: &'static str,
        /// Where the count stands.
        position: usize,
        /// The count found.
        found: u64,
        /// The largest count that makes sense there.
        limit: u64,
    },
    /// Text that is not UTF-8.
    #[error("{what} at byte {position} is not valid UTF-8")]
    InvalidUtf8 {
        /// What was being read.
        what: &'static str,
        /// Where the text begins.
        position: usize,
    },
    /// A metadata value of a type that GGUF does not define.
    #[error("metadata key {key:?} has the unknown value type {found}")]
    UnknownValueType {
        /// The key.
        key: String,
        /// The type number found.
        found: u32,
    },
    /// A metadata array of arrays.
    #[error("metadata key {key:?} holds an array of arrays, which is not supported")]
    NestedArray {
        /// The key.
        key: String,
    },
    /// A metadata key that stands twice.
    #[error("metadata key {key:?} appears twice")]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// A metadata key that is needed and absent.
    #[error("metadata key {key:?} is missing")]
    MissingKey {
        /// The key.
        key: String,
    },
    /// A metadata value of another type than asked for.
    #[error("metadata key {key:?} holds {found}, expected {expected}")]
    ValueType {
        /// The key.
        key: String,
        /// The type asked for.
        expected: &'static str,
        /// The type found.
        found: &'static str,
    },
    /// A metadata number that does not fit the type asked for.
    #[error("metadata key {key:?} holds {found}, which does not fit {expected}")]
    ValueRange {
        /// The key.
        key: String,
        /// The type asked for.
        expected: &'static str,
        /// The number found.
        found: i128,
    },
    /// `general.alignment` is not a power of two.
    #[error("the alignment {found} is not a power of two")]
    InvalidAlignment {
        /// The alignment found.
        found: u64,
    },
    /// A tensor name that stands twice.
    #[error("tensor {tensor:?} appears twice")]
    DuplicateTensor {
        /// The tensor.
        tensor: String,
    },
    /// A tensor that is needed and absent.
    #[error("tensor {tensor:?} is missing")]
    MissingTensor {
        /// The tensor.
        tensor: String,
    },
    /// A tensor name too long for other readers of the format.
    #[error("the tensor name {tensor:?} has {found} bytes; at most {limit} are portable")]
    TensorName {
        /// The tensor.
        tensor: String,
        /// Bytes of the name.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// A tensor in a format that this crate does not decode.
    #[error("tensor {tensor:?} has type {found} ({name}), which is not supported")]
    UnknownTensorType {
        /// The tensor.
        tensor: String,
        /// GGUF's number of the type.
        found: u32,
        /// GGUF's name of the type, or "unknown".
        name: &'static str,
    },
    /// A tensor with no dimensions, too many, or one that is zero, or whose size overflows.
    #[error("tensor {tensor:?} has the dimensions {found:?}; 1 to 4 are expected, none zero, within memory")]
    InvalidDimensions {
        /// The tensor.
        tensor: String,
        /// The dimensions as stored (innermost first); when there are more than four only their number.
        found: Vec<u64>,
    },
    /// A row that does not consist of whole blocks.
    #[error("rows of {found} values are not whole blocks of {block_size} as {format} needs")]
    RowLength {
        /// The format.
        format: Format,
        /// Values per block.
        block_size: usize,
        /// Values per row found.
        found: usize,
    },
    /// A tensor whose rows do not consist of whole blocks.
    #[error(
        "tensor {tensor:?}: rows of {found} values are not whole blocks of {block_size} as {format} needs"
    )]
    TensorRowLength {
        /// The tensor.
        tensor: String,
        /// The format.
        format: Format,
        /// Values per block.
        block_size: usize,
        /// Values per row found.
        found: usize,
    },
    /// A tensor that does not begin on an aligned position.
    #[error("tensor {tensor:?} begins at offset {found}, which is not a multiple of {alignment}")]
    TensorAlignment {
        /// The tensor.
        tensor: String,
        /// Offset within the data section.
        found: u64,
        /// The file's alignment.
        alignment: u64,
    },
    /// A tensor that lies outside of the file.
    #[error(
        "tensor {tensor:?} takes {n_bytes} bytes at offset {offset}, but the data section has {available}"
    )]
    TensorOutOfRange {
        /// The tensor.
        tensor: String,
        /// Offset within the data section.
        offset: u64,
        /// Bytes that the tensor takes.
        n_bytes: usize,
        /// Bytes in the data section.
        available: usize,
    },
    /// Two tensors that share bytes.
    #[error("tensors {first:?} and {second:?} overlap")]
    TensorOverlap {
        /// The tensor that begins first.
        first: String,
        /// The one that begins before the first one's end.
        second: String,
    },
    /// Bytes or values of another number than the shape asks for.
    #[error("{what}: {expected} expected, {found} found")]
    Length {
        /// What is counted.
        what: &'static str,
        /// The number expected.
        expected: usize,
        /// The number found.
        found: usize,
    },
    /// Tensor data was written out of the declared order.
    #[error("tensor {found:?} was written where {expected:?} is next")]
    TensorOrder {
        /// The tensor that is next by declaration; empty when all are written.
        expected: String,
        /// The tensor that was written.
        found: String,
    },
    /// A group size that does not divide a row.
    #[error("groups of {group} do not divide rows of {n_cols}")]
    GroupSize {
        /// Weights in a group.
        group: usize,
        /// Weights in a row.
        n_cols: usize,
    },
    /// A number of bits that is not possible.
    #[error("{found} bits a weight; 2 to 8 are possible")]
    Bits {
        /// The number found.
        found: u8,
    },
    /// A file of matrices that its container's reader or writer refuses.
    #[error("safetensors: {source}")]
    Safetensors {
        /// What the reader or writer says.
        source: Box<safetensors::SafeTensorError>,
    },
    /// A matrix of a file whose tensors are not those of its format and size.
    #[error("{name}: expected {expected}, found {found}")]
    MatrixEntry {
        /// The matrix or its tensor.
        name: String,
        /// What should stand there.
        expected: String,
        /// What does.
        found: String,
    },
    /// A matrix that a file lacks.
    #[error("there is no matrix {name:?}")]
    NoMatrix {
        /// The name asked for.
        name: String,
    },
    /// A code that the format has no level for.
    #[error("{format} has no level for the code {found}")]
    UnknownCode {
        /// The format's name.
        format: String,
        /// The code.
        found: u8,
    },
    /// Scales of another kind than the format has.
    #[error("the scales are not those of {format}")]
    ScaleKind {
        /// The format's name.
        format: String,
    },
    /// A divisor of inputs that is not a finite number above zero.
    #[error("the inputs of column {col} are divided by {found}; a finite number above zero is needed")]
    Divisor {
        /// The column.
        col: usize,
        /// What stands there.
        found: f32,
    },
    /// Inputs of a length that has no rotation.
    #[error(transparent)]
    Rotation(Box<breakers_cpu::Error>),
}

impl Error {
    pub(crate) fn safetensors(source: safetensors::SafeTensorError) -> Self {
        Error::Safetensors { source: Box::new(source) }
    }
}

fn describe_magic(found: &[u8]) -> String {
    if found.is_empty() {
        return "nothing: the file is empty".into();
    }
    let hex: Vec<String> = found.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("\"{}\", bytes {}", found.escape_ascii(), hex.join(" "))
}

impl From<breakers_files::Error> for Error {
    fn from(error: breakers_files::Error) -> Self {
        match error {
            breakers_files::Error::Io { path, source, .. } => Self::Io { path, source },
            error => Self::File(Box::new(error)),
        }
    }
}
