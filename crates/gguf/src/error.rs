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
        /// The operating system's error.
        source: std::io::Error,
    },
    /// A file cannot be replaced: there is something other than a file in its place.
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
    /// The version of the container is not supported.
    #[error("GGUF version {found} is not supported (versions 2 and 3 are)")]
    UnsupportedVersion {
        /// The version found.
        found: u32,
    },
    /// The file is one part of a model that was split into several.
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
        /// The position of the count.
        position: usize,
        /// The count found.
        found: u64,
        /// The largest count that is possible there.
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
    /// A metadata key occurs twice.
    #[error("metadata key {key:?} appears twice")]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// A required metadata key is missing.
    #[error("metadata key {key:?} is missing")]
    MissingKey {
        /// The key.
        key: String,
    },
    /// A metadata value has another type than requested.
    #[error("metadata key {key:?} holds {found}, expected {expected}")]
    ValueType {
        /// The key.
        key: String,
        /// The type asked for.
        expected: &'static str,
        /// The type found.
        found: &'static str,
    },
    /// A metadata number does not fit the requested type.
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
    /// A tensor name occurs twice.
    #[error("tensor {tensor:?} appears twice")]
    DuplicateTensor {
        /// The tensor.
        tensor: String,
    },
    /// A required tensor is missing.
    #[error("tensor {tensor:?} is missing")]
    MissingTensor {
        /// The tensor.
        tensor: String,
    },
    /// A tensor name is too long for other readers of the format.
    #[error("the tensor name {tensor:?} has {found} bytes; at most {limit} are portable")]
    TensorName {
        /// The tensor.
        tensor: String,
        /// Bytes of the name.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// A tensor has a format that this crate does not decode.
    #[error("tensor {tensor:?} has type {found} ({name}), which is not supported")]
    UnknownTensorType {
        /// The tensor.
        tensor: String,
        /// GGUF's number for the type.
        found: u32,
        /// GGUF's name of the type, or "unknown".
        name: &'static str,
    },
    /// A tensor has no dimensions, too many, or one that is zero, or its size overflows.
    #[error("tensor {tensor:?} has the dimensions {found:?}; 1 to 4 are expected, none zero, within memory")]
    InvalidDimensions {
        /// The tensor.
        tensor: String,
        /// The dimensions as stored (innermost first); when there are more than four only their number.
        found: Vec<u64>,
    },
    /// A row does not consist of whole blocks.
    #[error("rows of {found} values are not whole blocks of {block_size} as {format} needs")]
    RowLength {
        /// The format.
        format: Format,
        /// Values per block.
        block_size: usize,
        /// Values per row found.
        found: usize,
    },
    /// The rows of a tensor do not consist of whole blocks.
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
    /// A tensor does not begin at an aligned position.
    #[error("tensor {tensor:?} begins at offset {found}, which is not a multiple of {alignment}")]
    TensorAlignment {
        /// The tensor.
        tensor: String,
        /// Offset within the data section.
        found: u64,
        /// The file's alignment.
        alignment: u64,
    },
    /// A tensor is outside of the file.
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
    /// Two tensors share bytes.
    #[error("tensors {first:?} and {second:?} overlap")]
    TensorOverlap {
        /// The tensor that begins first.
        first: String,
        /// The tensor that begins before the first one ends.
        second: String,
    },
    /// The number of bytes or values does not match the shape.
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
    /// A group size does not divide a row.
    #[error("groups of {group} do not divide rows of {n_cols}")]
    GroupSize {
        /// Weights in a group.
        group: usize,
        /// Weights in a row.
        n_cols: usize,
    },
    /// A number of bits is not supported.
    #[error("{found} bits a weight; 2 to 8 are possible")]
    Bits {
        /// The number found.
        found: u8,
    },
    /// The safetensors reader or writer refuses a file of matrices.
    #[error("safetensors: {source}")]
    Safetensors {
        /// The reader's or writer's error.
        source: Box<safetensors::SafeTensorError>,
    },
    /// The tensors of a matrix do not match its format and size.
    #[error("{name}: expected {expected}, found {found}")]
    MatrixEntry {
        /// The matrix or its tensor.
        name: String,
        /// What was expected.
        expected: String,
        /// What was found.
        found: String,
    },
    /// The file has no matrix of this name.
    #[error("there is no matrix {name:?}")]
    NoMatrix {
        /// The name asked for.
        name: String,
    },
    /// The format has no level for a code.
    #[error("{format} has no level for the code {found}")]
    UnknownCode {
        /// The format's name.
        format: String,
        /// The code.
        found: u8,
    },
    /// The scales are of another kind than the format's.
    #[error("the scales are not those of {format}")]
    ScaleKind {
        /// The format's name.
        format: String,
    },
    /// A divisor of inputs is not a finite number above zero.
    #[error("the inputs of column {col} are divided by {found}; a finite number above zero is needed")]
    Divisor {
        /// The column.
        col: usize,
        /// The divisor found.
        found: f32,
    },
    /// There is no rotation for inputs of this length.
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
