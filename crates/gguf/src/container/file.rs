//! Reading: the mapped file and its tensors.

use std::{collections::HashMap, ops::Range, path::Path, sync::Arc};

use super::{MAGIC, MAX_DIMENSIONS, Metadata, parse::Cursor};
use crate::{Error, Format, Result};

/// A GGUF file, mapped into memory. Clones share the mapping.
///
/// The mapping is only as constant as the file: a program that truncates or overwrites it in place
/// meanwhile can end this process or change weights under it. [`Writer`](super::Writer) and the hub
/// replace files by renaming, which leaves existing mappings whole.
///
/// # Memory
/// The header is copied (a vocabulary of 262,144 tokens takes some 6 MB); tensors are not.
///
/// ```no_run
/// use breakers_gguf::File;
///
/// # fn main() -> Result<(), breakers_gguf::Error> {
/// let file = File::open("model.gguf")?;
/// println!("{}", file.metadata().require_str("general.architecture")?);
/// for tensor in file.tensors() {
///     println!("{} {} {:?}", tensor.name(), tensor.format(), tensor.shape());
/// }
/// let embedding = file.require("token_embd.weight")?.to_f32();
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct File {
    inner: Arc<Inner>,
}

struct Inner {
    storage: Storage,
    version: u32,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    index: HashMap<Box<str>, usize>,
}

enum Storage {
    Mapped(memmap2::Mmap),
    Owned(Box<dyn AsRef<[u8]> + Send + Sync>),
}

impl Storage {
    fn bytes(&self) -> &[u8] {
        match self {
            Storage::Mapped(map) => map,
            Storage::Owned(bytes) => (**bytes).as_ref(),
        }
    }

    /// Lets the system reclaim the pages that hold the range; they are loaded again when they are read.
    fn advise_done(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Storage::Mapped(map) = self
            && !range.is_empty()
        {
            let advice = memmap2::UncheckedAdvice::DontNeed;
            // SAFETY: the mapping is shared, read-only and backed by a file, so a reclaimed page is read from
            // the file again, with the same bytes.
            let taken = unsafe { map.unchecked_advise_range(advice, range.start, range.len()) };
            if let Err(error) = taken {
                tracing::debug!(%error, ?range, "pages of a GGUF file stay resident");
            }
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}

/// A tensor's entry in the header, checked.
struct TensorInfo {
    name: Box<str>,
    format: Format,
    n_dimensions: usize,
    /// Row-major: outermost first.
    shape: [usize; MAX_DIMENSIONS],
    /// Offset within the data section, as stored.
    offset: u64,
    /// Bytes within the file.
    range: Range<usize>,
}

impl File {
    /// Maps a file and reads its header.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be opened or mapped; any of the errors of
    /// [`from_bytes`](Self::from_bytes) when it is not a valid GGUF file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let failed = |source| Error::Io { path: path.to_owned(), source };
        if !std::fs::metadata(path).map_err(failed)?.is_file() {
            // Directories and devices can be opened, but their "contents" cannot be mapped; opening a pipe
            // would wait for a process that writes to it.
            return Err(failed(std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file")));
        }
        let file = std::fs::File::open(path).map_err(failed)?;
        // SAFETY: the mapping is read-only. Another process could still change the file under it, which the
        // type's documentation excludes; no code relies on bytes staying the same after a check, and strings
        // of the header are copied.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(failed)?;
        Self::from_storage(Storage::Mapped(map))
    }

    /// Reads a file that is already in memory: a `Vec<u8>`, a `&'static [u8]`, an `Arc<[u8]>`-like owner.
    ///
    /// # Errors
    /// - [`Error::NotGguf`], [`Error::BigEndian`], [`Error::UnsupportedVersion`]: another kind of file;
    /// - [`Error::Sharded`]: a part of a split model;
    /// - [`Error::Truncated`], [`Error::CountTooLarge`], [`Error::TensorOutOfRange`]: the file ends early
    ///   or lies about its contents;
    /// - [`Error::InvalidUtf8`], [`Error::UnknownValueType`], [`Error::NestedArray`],
    ///   [`Error::DuplicateKey`], [`Error::InvalidAlignment`]: bad metadata;
    /// - [`Error::UnknownTensorType`], [`Error::InvalidDimensions`], [`Error::TensorRowLength`],
    ///   [`Error::TensorAlignment`], [`Error::TensorOverlap`], [`Error::DuplicateTensor`]: a bad tensor.
    pub fn from_bytes(bytes: impl AsRef<[u8]> + Send + Sync + 'static) -> Result<Self> {
        Self::from_storage(Storage::Owned(Box::new(bytes)))
    }

    /// Version of the container: 2 or 3.
    pub fn version(&self) -> u32 {
        self.inner.version
    }

    /// Size of the whole file.
    ///
    /// # Units
    /// Bytes.
    pub fn len_bytes(&self) -> usize {
        self.inner.storage.bytes().len()
    }

    /// The key-value pairs.
    pub fn metadata(&self) -> &Metadata {
        &self.inner.metadata
    }

    /// The tensors, in the order of the file.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = TensorView<'_>> + DoubleEndedIterator {
        self.inner.tensors.iter().map(|info| self.view(info))
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
        self.inner.index.get(name).map(|&position| self.view(&self.inner.tensors[position]))
    }

    /// The tensor of that name.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] when there is none.
    pub fn require(&self, name: &str) -> Result<TensorView<'_>> {
        self.tensor(name).ok_or_else(|| Error::MissingTensor { tensor: name.to_owned() })
    }

    /// Tells the system that no part of the file is needed for now; see [`TensorView::advise_done`].
    pub fn advise_done(&self) {
        self.inner.storage.advise_done(0..self.len_bytes());
    }

    fn view<'a>(&'a self, info: &'a TensorInfo) -> TensorView<'a> {
        TensorView { info, file: self, slab: None }
    }

    fn from_storage(storage: Storage) -> Result<Self> {
        let bytes = storage.bytes();
        let mut cursor = Cursor::new(bytes);
        let version = read_version(&mut cursor)?;
        // The least that a tensor takes: name length, number of dimensions, one dimension, type, offset.
        let n_tensors = cursor.count(8 + 4 + 8 + 4 + 8, "the number of tensors")?;
        // The least that a pair takes: key length, type, one byte.
        let n_pairs = cursor.count(8 + 4 + 1, "the number of metadata pairs")?;
        let metadata = Metadata::read(&mut cursor, n_pairs)?;
        refuse_shards(&metadata)?;

        let mut tensors = Vec::new();
        let mut index = HashMap::new();
        for position in 0..n_tensors {
            let info = TensorInfo::read(&mut cursor)?;
            if index.insert(info.name.clone(), position).is_some() {
                return Err(Error::DuplicateTensor { tensor: info.name.into() });
            }
            tensors.push(info);
        }
        place(&mut tensors, cursor.position(), bytes.len(), metadata.alignment()?)?;
        Ok(Self { inner: Arc::new(Inner { version, metadata, tensors, index, storage }) })
    }
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("File")
            .field("version", &self.version())
            .field("len_bytes", &self.len_bytes())
            .field("n_pairs", &self.inner.metadata.len())
            .field("n_tensors", &self.inner.tensors.len())
            .finish()
    }
}

fn read_version(cursor: &mut Cursor<'_>) -> Result<u32> {
    let magic = cursor.take(cursor.remaining().min(MAGIC.len()) as u64, "the magic")?;
    if magic != MAGIC {
        return Err(Error::NotGguf { found: magic.to_vec() });
    }
    match cursor.u32("the version")? {
        version @ 2..=3 => Ok(version),
        swapped if (1..=3).contains(&swapped.swap_bytes()) => {
            Err(Error::BigEndian { version: swapped.swap_bytes() })
        }
        found => Err(Error::UnsupportedVersion { found }),
    }
}

fn refuse_shards(metadata: &Metadata) -> Result<()> {
    match metadata.u64("split.count")? {
        Some(n_shards) if n_shards > 1 => {
            let shard = metadata.u64("split.no")?.unwrap_or(0).saturating_add(1);
            Err(Error::Sharded { shard, n_shards })
        }
        _ => Ok(()),
    }
}

impl TensorInfo {
    /// Reads one entry and checks everything that does not depend on other entries; `range` is set by
    /// [`place`].
    fn read(cursor: &mut Cursor<'_>) -> Result<Self> {
        const WHAT: &str = "the description of a tensor";
        let name = cursor.string("a tensor name")?;
        let n_dimensions = cursor.u32(WHAT)? as usize;
        if !(1..=MAX_DIMENSIONS).contains(&n_dimensions) {
            return Err(Error::InvalidDimensions {
                tensor: name.to_owned(),
                found: vec![0; n_dimensions.min(5)],
            });
        }
        let mut stored = [1u64; MAX_DIMENSIONS];
        for dimension in &mut stored[..n_dimensions] {
            *dimension = cursor.u64(WHAT)?;
        }
        let type_id = cursor.u32(WHAT)?;
        let offset = cursor.u64(WHAT)?;
        let format = Format::from_ggml(type_id).ok_or_else(|| Error::UnknownTensorType {
            tensor: name.to_owned(),
            found: type_id,
            name: Format::foreign_name(type_id),
        })?;
        let mut shape = [1; MAX_DIMENSIONS];
        for (to, from) in shape[..n_dimensions].iter_mut().zip(stored[..n_dimensions].iter().rev()) {
            // A value that does not fit becomes zero, which `layout` refuses.
            *to = usize::try_from(*from).unwrap_or(0);
        }
        let n_bytes = layout(name, format, &shape[..n_dimensions])?;
        Ok(Self { name: name.into(), format, n_dimensions, shape, offset, range: 0..n_bytes })
    }
}

/// The size of a tensor in bytes, after checking that its name, format and shape are possible.
pub(super) fn layout(name: &str, format: Format, shape: &[usize]) -> Result<usize> {
    let impossible = || Error::InvalidDimensions {
        tensor: name.to_owned(),
        found: shape.iter().rev().map(|&dimension| dimension as u64).collect(),
    };
    let (&n_cols, outer) = shape.split_last().ok_or_else(impossible)?;
    if shape.len() > MAX_DIMENSIONS || shape.contains(&0) {
        return Err(impossible());
    }
    let row_bytes = format.row_bytes(n_cols).map_err(|error| match error {
        Error::RowLength { format, block_size, found } => {
            Error::TensorRowLength { tensor: name.to_owned(), format, block_size, found }
        }
        _ => impossible(),
    })?;
    // Decoding takes four bytes per value, so this product must not exceed `isize` either.
    let n_rows =
        outer.iter().try_fold(1usize, |product, &n| product.checked_mul(n)).ok_or_else(impossible)?;
    let decoded = n_rows.checked_mul(n_cols).and_then(|n| n.checked_mul(size_of::<f32>()));
    if decoded.is_none_or(|bytes| bytes > isize::MAX as usize) {
        return Err(impossible());
    }
    n_rows.checked_mul(row_bytes).ok_or_else(impossible)
}

/// Turns offsets into byte ranges of the file; checks alignment, bounds and overlaps.
fn place(tensors: &mut [TensorInfo], header_end: usize, file_end: usize, alignment: u64) -> Result<()> {
    let data_start = (header_end as u64).next_multiple_of(alignment).min(file_end as u64) as usize;
    let available = file_end - data_start;
    for tensor in tensors.iter_mut() {
        if !tensor.offset.is_multiple_of(alignment) {
            return Err(Error::TensorAlignment {
                tensor: tensor.name.to_string(),
                found: tensor.offset,
                alignment,
            });
        }
        let n_bytes = tensor.range.len();
        let start = usize::try_from(tensor.offset).ok();
        match start.and_then(|start| Some((start, start.checked_add(n_bytes)?))) {
            Some((start, end)) if end <= available => tensor.range = data_start + start..data_start + end,
            _ => {
                return Err(Error::TensorOutOfRange {
                    tensor: tensor.name.to_string(),
                    offset: tensor.offset,
                    n_bytes,
                    available,
                });
            }
        }
    }
    let mut by_start: Vec<&TensorInfo> = tensors.iter().collect();
    by_start.sort_by_key(|tensor| tensor.range.start);
    for pair in by_start.windows(2) {
        if pair[1].range.start < pair[0].range.end {
            return Err(Error::TensorOverlap {
                first: pair[0].name.to_string(),
                second: pair[1].name.to_string(),
            });
        }
    }
    Ok(())
}

/// A tensor within a [`File`], its bytes borrowed from the mapping.
///
/// # Example
/// ```
/// use breakers_gguf::{File, Format, Writer};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("tiny.gguf");
/// let mut plan = Writer::new();
/// plan.declare("two.weight", Format::F32, &[2, 3])?;
/// let mut file = plan.create(&path)?;
/// for value in [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0] {
///     file.write("two.weight", &value.to_le_bytes())?;
/// }
/// file.finish()?;
///
/// let file = File::open(&path)?;
/// let tensor = file.require("two.weight")?;
/// assert_eq!(tensor.n_rows() * tensor.n_cols(), tensor.n_values());
/// assert_eq!(tensor.to_f32(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
/// assert_eq!(tensor.bytes().len(), 24);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy)]
pub struct TensorView<'a> {
    info: &'a TensorInfo,
    file: &'a File,
    /// The slab that this view shows, if it is not the whole tensor.
    slab: Option<usize>,
}

impl<'a> TensorView<'a> {
    /// The tensor's name.
    pub fn name(&self) -> &'a str {
        &self.info.name
    }

    /// The format of its rows.
    pub fn format(&self) -> Format {
        self.info.format
    }

    /// The shape in row-major order, outermost dimension first: a weight matrix is `[out features, in
    /// features]`. (The file stores the reverse.) There are one to four dimensions, none of them zero.
    pub fn shape(&self) -> &'a [usize] {
        &self.info.shape[usize::from(self.slab.is_some())..self.info.n_dimensions]
    }

    /// Number of rows: the product of all dimensions but the last.
    pub fn n_rows(&self) -> usize {
        let shape = self.shape();
        shape[..shape.len() - 1].iter().product()
    }

    /// Values in a row: the last dimension.
    pub fn n_cols(&self) -> usize {
        self.info.shape[self.info.n_dimensions - 1]
    }

    /// One matrix of a stack: the view at one index of its outermost dimension. The experts of a layer are
    /// stored this way. `None` for a tensor that is not a stack, for a slab of a slab, and for an index
    /// beyond the last.
    ///
    /// # Shapes
    /// `[n_slabs, n_rows, n_cols]` becomes `[n_rows, n_cols]`.
    pub fn slab(&self, slab_idx: usize) -> Option<TensorView<'a>> {
        let is_stack = self.slab.is_none() && self.shape().len() > 2;
        (is_stack && slab_idx < self.shape()[0]).then_some(TensorView { slab: Some(slab_idx), ..*self })
    }

    /// Where its bytes are in the file.
    fn range(&self) -> Range<usize> {
        let all = &self.info.range;
        match self.slab {
            None => all.clone(),
            Some(at) => {
                let n_bytes = all.len() / self.info.shape[0];
                all.start + at * n_bytes..all.start + (at + 1) * n_bytes
            }
        }
    }

    /// Number of values.
    pub fn n_values(&self) -> usize {
        self.shape().iter().product()
    }

    /// The packed bytes of all rows, one after the other.
    pub fn bytes(&self) -> &'a [u8] {
        &self.file.inner.storage.bytes()[self.range()]
    }

    /// The packed bytes of one row, or `None` beyond the last row.
    pub fn row(&self, row_idx: usize) -> Option<&'a [u8]> {
        if row_idx >= self.n_rows() {
            return None;
        }
        let row_bytes = self.range().len() / self.n_rows();
        Some(&self.bytes()[row_idx * row_bytes..(row_idx + 1) * row_bytes])
    }

    /// Decodes all values.
    ///
    /// # Shapes
    /// Row-major in [`shape`](Self::shape).
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.n_values()];
        // The header's checks made sure that the numbers of bytes and values match.
        let decoded = self.format().decode_row(self.bytes(), &mut values);
        debug_assert!(decoded.is_ok(), "{decoded:?}");
        values
    }

    /// Tells the system that the bytes are not needed for now, because they were copied or repacked: the
    /// pages that hold them leave the process's resident memory. They stay readable, and are loaded again
    /// from the system's cache or the disk when they are read. Neighbors that share the first or last page
    /// lose it too, at the cost of at most one page fault. Nothing happens for a file in memory, or on
    /// systems other than Unix.
    pub fn advise_done(&self) {
        self.file.inner.storage.advise_done(self.range());
    }

    /// As [`advise_done`](Self::advise_done), for some of the tensor's bytes. Parts of the range beyond the
    /// tensor are ignored.
    pub fn advise_done_with(&self, range: Range<usize>) {
        let all = self.range();
        let range = range.start.min(all.len())..range.end.min(all.len());
        self.file.inner.storage.advise_done(all.start + range.start..all.start + range.end);
    }

    /// The tensor with shared ownership of the file, so that it can outlive its [`File`].
    pub fn to_shared(&self) -> SharedTensor {
        let tensor_idx = self.file.inner.index[&*self.info.name];
        SharedTensor { file: self.file.clone(), tensor_idx, slab: self.slab }
    }
}

/// A tensor that keeps its file mapped. Clones share the mapping.
#[derive(Clone)]
pub struct SharedTensor {
    file: File,
    tensor_idx: usize,
    slab: Option<usize>,
}

impl SharedTensor {
    /// The tensor.
    pub fn view(&self) -> TensorView<'_> {
        TensorView { slab: self.slab, ..self.file.view(&self.file.inner.tensors[self.tensor_idx]) }
    }
}

impl std::fmt::Debug for SharedTensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.view().fmt(f)
    }
}

impl std::fmt::Debug for TensorView<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TensorView")
            .field("name", &self.name())
            .field("format", &self.format())
            .field("shape", &self.shape())
            .finish()
    }
}
