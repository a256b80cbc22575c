//! Files of quantized matrices in formats that no GGUF block can hold.
//!
//! The container is safetensors. The metadata's value `breakers.matrices` has a line `FORMAT ROWS COLUMNS
//! SEED NAME` for each matrix, where the seed is that of the rotation of its inputs, or `-`. A matrix `m`
//! consists of these tensors:
//!
//! | format | tensors |
//! |---|---|
//! | of GGUF, such as `Q3_K` | `m.blocks` U8 `[rows, bytes of a row]` |
//! | `intB-gN` | `m.codes` U8, `m.scales` F16 `[rows, groups, 2]`: scale and offset |
//! | `symB-gN` | `m.codes` U8, `m.scales` F16 `[rows, groups]` |
//! | `nf4` | `m.codes` U8, `m.scales` I8 `[rows, groups]`, `m.factors` F32 (one for each 256 scales), `m.mean` F32 `[1]` |
//! | `nvfp4` | `m.codes` U8, `m.scales` F8_E4M3 `[rows, groups]`, `m.factors` F32 `[1]` |
//! | any | `m.inputs` F32 `[columns]`: what inputs are divided by, if they are |
//!
//! The codes of all rows are stored one after the other, lowest bits first.
//!
//! # Source
//! The container: <https://github.com/huggingface/safetensors#format>.

use crate::{
    Encoding, Error, GroupFormat, GroupMatrix, GroupScales, Parts, QuantizedMatrix, Result,
    groups::NF4_SCALES,
};
use breakers_files::Replacement;
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensorError, SafeTensors, tensor::TensorView};
use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    path::Path,
};

/// The metadata's key. There is only one, because the container writes several keys in arbitrary order, and
/// equal matrices should give equal files.
const KEY: &str = "breakers.matrices";

/// Writes matrices to a file, which appears only once it is complete.
///
/// ```
/// use breakers_gguf::{GroupFormat, GroupMatrix, GroupScales, MatrixFile, QuantizedMatrix, matrix_file};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("weights.safetensors");
/// let scales = GroupScales::store(GroupFormat::Nf4, &[(0.1, 0.0), (0.2, 0.0)]);
/// let codes: Vec<u8> = (0..2 * 64).map(|i| i % 16).collect();
/// let matrix = QuantizedMatrix::from_groups(GroupMatrix::new(GroupFormat::Nf4, 2, 64, scales, &codes)?);
/// matrix_file::write(&path, [("layer", &matrix)])?;
///
/// let file = MatrixFile::open(&path)?;
/// assert_eq!(file.names().collect::<Vec<_>>(), ["layer"]);
/// assert_eq!(file.matrix("layer")?.to_f32(), matrix.to_f32());
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::Io`] and [`Error::Safetensors`] when the disk or the container fails.
pub fn write<'a>(
    path: impl AsRef<Path>,
    matrices: impl IntoIterator<Item = (&'a str, &'a QuantizedMatrix)>,
) -> Result<()> {
    let (tensors, metadata) = collect(matrices)?;
    persist(path.as_ref(), views(&tensors)?, metadata)
}

/// As [`write()`], but without waiting for the disk, for intermediate files.
///
/// # Errors
/// As [`write()`].
pub fn write_intermediate<'a>(
    path: impl AsRef<Path>,
    matrices: impl IntoIterator<Item = (&'a str, &'a QuantizedMatrix)>,
) -> Result<()> {
    let (tensors, metadata) = collect(matrices)?;
    serialize(path.as_ref(), views(&tensors)?, metadata)
}

/// Writes the matrices of several files to one, which appears only once it is complete. Mapped files are
/// copied without being held in memory.
///
/// # Errors
/// [`Error::Io`] and [`Error::Safetensors`] when the disk or the container fails, or a name occurs twice.
pub fn join<'a>(path: impl AsRef<Path>, files: impl IntoIterator<Item = &'a MatrixFile>) -> Result<()> {
    let (mut all, mut entries) = (BTreeMap::new(), BTreeMap::new());
    for file in files {
        entries.extend(file.entries.iter().map(|(name, entry)| (name.clone(), *entry)));
        for (name, view) in file.tensors()?.tensors() {
            if all.contains_key(&name) {
                return Err(wrong(&name, "", "one tensor of the name", "two"));
            }
            all.insert(name, view);
        }
    }
    persist(path.as_ref(), all.into_iter().collect(), metadata(&entries)?)
}

/// A tensor: its name (or the end of it), type, shape and bytes.
type Part<'a, N> = (N, Dtype, Vec<usize>, Cow<'a, [u8]>);
type Tensors<'a> = Vec<Part<'a, String>>;

/// The tensors and the metadata of matrices.
fn collect<'a>(
    matrices: impl IntoIterator<Item = (&'a str, &'a QuantizedMatrix)>,
) -> Result<(Tensors<'a>, HashMap<String, String>)> {
    let (mut tensors, mut entries) = (Vec::new(), BTreeMap::new());
    for (name, matrix) in matrices {
        let (encoding, seed) = (matrix.encoding(), matrix.rotation_seed());
        let entry = Entry { encoding, n_rows: matrix.n_rows(), n_cols: matrix.n_cols(), seed };
        entries.insert(name.to_owned(), entry);
        for (part, dtype, shape, bytes) in parts(matrix) {
            tensors.push((format!("{name}.{part}"), dtype, shape, bytes));
        }
    }
    Ok((tensors, metadata(&entries)?))
}

/// A line for each matrix, by name.
fn metadata(entries: &BTreeMap<String, Entry>) -> Result<HashMap<String, String>> {
    let mut lines = String::new();
    for (name, Entry { encoding, n_rows, n_cols, seed }) in entries {
        if name.contains('\n') {
            return Err(wrong(name, "", "a name of one line", "several"));
        }
        let seed = seed.map_or_else(|| "-".to_owned(), |seed| seed.to_string());
        lines.push_str(&format!("{encoding} {n_rows} {n_cols} {seed} {name}\n"));
    }
    Ok(HashMap::from([(KEY.to_owned(), lines)]))
}

fn views<'a>(tensors: &'a Tensors<'_>) -> Result<Vec<(String, TensorView<'a>)>> {
    tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| {
            Ok((name.clone(), TensorView::new(*dtype, shape.clone(), bytes).map_err(Error::safetensors)?))
        })
        .collect()
}

fn serialize(
    path: &Path,
    views: Vec<(String, TensorView<'_>)>,
    metadata: HashMap<String, String>,
) -> Result<()> {
    safetensors::serialize_to_file(views, Some(metadata), path).map_err(|error| match error {
        SafeTensorError::IoError(source) => Error::Io { path: path.to_owned(), source },
        error => Error::safetensors(error),
    })
}

fn persist(
    path: &Path,
    views: Vec<(String, TensorView<'_>)>,
    metadata: HashMap<String, String>,
) -> Result<()> {
    // The container's writer takes a path and replaces the file there with one of its own.
    let file = Replacement::by_name(path)?;
    serialize(file.temporary(), views, metadata)?;
    Ok(file.commit()?)
}

/// The tensors of a matrix.
fn parts(matrix: &QuantizedMatrix) -> Vec<Part<'_, &'static str>> {
    let rows = matrix.n_rows();
    let floats = |values: &[f32]| -> Cow<'_, [u8]> {
        values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>().into()
    };
    let mut out: Vec<Part<'_, &'static str>> = Vec::new();
    match matrix.parts() {
        Parts::Blocks(_, bytes) => {
            let row_bytes = bytes.len() / rows.max(1);
            out.push(("blocks", Dtype::U8, vec![rows, row_bytes], bytes.into()));
        }
        Parts::Groups(groups) => {
            out.push(("codes", Dtype::U8, vec![groups.packed_codes().len()], groups.packed_codes().into()));
            let n_groups = groups.n_cols() / groups.format().group();
            match groups.scales() {
                GroupScales::Affine(scales) => {
                    let bytes: Vec<u8> = scales.iter().flatten().flat_map(|x| x.to_le_bytes()).collect();
                    out.push(("scales", Dtype::F16, vec![rows, n_groups, 2], bytes.into()));
                }
                GroupScales::Symmetric(scales) => {
                    let bytes: Vec<u8> = scales.iter().flat_map(|x| x.to_le_bytes()).collect();
                    out.push(("scales", Dtype::F16, vec![rows, n_groups], bytes.into()));
                }
                GroupScales::Nf4 { codes, scales, mean } => {
                    out.push(("scales", Dtype::I8, vec![rows, n_groups], bytemuck::cast_slice(codes).into()));
                    out.push(("factors", Dtype::F32, vec![scales.len()], floats(scales)));
                    out.push(("mean", Dtype::F32, vec![1], floats(&[*mean])));
                }
                GroupScales::NvFp4 { codes, scale } => {
                    out.push(("scales", Dtype::F8_E4M3, vec![rows, n_groups], codes.as_slice().into()));
                    out.push(("factors", Dtype::F32, vec![1], floats(&[*scale])));
                }
            }
        }
    }
    if let Some(scales) = matrix.input_scales() {
        out.push(("inputs", Dtype::F32, vec![scales.len()], floats(scales)));
    }
    out
}

/// Whether a path has the name of a file of matrices, that is, ends in `.safetensors`.
pub fn is_named(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("safetensors"))
}

/// A file of matrices. Its header is checked when it is opened, and nothing is allocated because of it before
/// the bytes are known to be there.
#[derive(Debug)]
pub struct MatrixFile {
    bytes: Bytes,
    entries: BTreeMap<String, Entry>,
}

enum Bytes {
    Mapped(Mmap),
    Owned(Vec<u8>),
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.as_slice().len())
    }
}

impl Bytes {
    fn as_slice(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Owned(bytes) => bytes,
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    encoding: Encoding,
    n_rows: usize,
    n_cols: usize,
    seed: Option<u64>,
}

impl MatrixFile {
    /// Maps a file.
    ///
    /// # Errors
    /// [`Error::Io`], and as [`from_bytes`](Self::from_bytes).
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let io = |source| Error::Io { path: path.to_owned(), source };
        let file = std::fs::File::open(path).map_err(io)?;
        // SAFETY: the map is only read; as with every mapped file, nobody may change it meanwhile.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        Self::checked(Bytes::Mapped(map))
    }

    /// Reads a file that is in memory.
    ///
    /// # Errors
    /// [`Error::Safetensors`] if it is not a safetensors file, [`Error::MatrixEntry`] when the tensors of a
    /// matrix are not those of its format and size.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self> {
        Self::checked(Bytes::Owned(bytes))
    }

    fn checked(bytes: Bytes) -> Result<Self> {
        let (_, header) = SafeTensors::read_metadata(bytes.as_slice()).map_err(Error::safetensors)?;
        let mut entries = BTreeMap::new();
        let metadata = header.metadata().as_ref();
        for line in metadata.and_then(|metadata| metadata.get(KEY)).into_iter().flat_map(|all| all.lines()) {
            let (name, entry) = Entry::parse(line)?;
            entries.insert(name, entry);
        }
        let file = Self { bytes, entries };
        let tensors = file.tensors()?;
        for (name, entry) in &file.entries {
            entry.check(&tensors, name)?;
        }
        Ok(file)
    }

    fn tensors(&self) -> Result<SafeTensors<'_>> {
        SafeTensors::deserialize(self.bytes.as_slice()).map_err(Error::safetensors)
    }

    /// The matrices' names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Whether there is a matrix of the name.
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// The format of a matrix, if there is one of the name.
    pub fn encoding(&self, name: &str) -> Option<Encoding> {
        self.entries.get(name).map(|entry| entry.encoding)
    }

    /// Rows and columns of a matrix, if there is one of the name.
    pub fn shape(&self, name: &str) -> Option<[usize; 2]> {
        self.entries.get(name).map(|entry| [entry.n_rows, entry.n_cols])
    }

    /// Bytes of the file.
    pub fn len_bytes(&self) -> usize {
        self.bytes.as_slice().len()
    }

    /// A matrix, copied out of the file.
    ///
    /// # Errors
    /// [`Error::NoMatrix`], and [`Error::MatrixEntry`] for codes that the format does not have.
    pub fn matrix(&self, name: &str) -> Result<QuantizedMatrix> {
        let entry = self.entries.get(name).ok_or_else(|| Error::NoMatrix { name: name.to_owned() })?;
        entry.read(&self.tensors()?, name)
    }
}

/// The error for a matrix that does not match its description.
fn wrong(name: &str, part: &str, expected: impl ToString, found: impl ToString) -> Error {
    let name = if part.is_empty() { name.to_owned() } else { format!("{name}.{part}") };
    Error::MatrixEntry { name, expected: expected.to_string(), found: found.to_string() }
}

impl Entry {
    /// Reads a line of the metadata: the matrix's name, and what it is.
    fn parse(line: &str) -> Result<(String, Self)> {
        let words: Vec<&str> = line.splitn(5, ' ').collect();
        let [format, rows, columns, seed, name] = words[..] else {
            return Err(wrong(line, "", "a format, rows, columns, a seed or -, and a name", words.len()));
        };
        let refused = || wrong(name, "", "a format, rows, columns and a seed or -", line);
        let encoding = Encoding::parse(format).ok_or_else(refused)?;
        let number = |text: &str| text.parse::<usize>().ok().filter(|n| *n > 0).ok_or_else(refused);
        let seed = match seed {
            "-" => None,
            seed => Some(seed.parse().map_err(|_| refused())?),
        };
        let entry = Self { encoding, n_rows: number(rows)?, n_cols: number(columns)?, seed };
        encoding.check(entry.n_cols)?;
        Ok((name.to_owned(), entry))
    }

    /// The parts of a matrix with their types and shapes.
    fn expected(&self, name: &str) -> Result<Vec<(&'static str, Dtype, Vec<usize>)>> {
        let too_many = || wrong(name, "", "a matrix that fits memory", format!("{self:?}"));
        let values = self.n_rows.checked_mul(self.n_cols).ok_or_else(too_many)?;
        let format = match self.encoding {
            Encoding::Gguf(format) => {
                let row_bytes = format.row_bytes(self.n_cols)?;
                return Ok(vec![("blocks", Dtype::U8, vec![self.n_rows, row_bytes])]);
            }
            Encoding::Groups(format) => format,
        };
        let code_bytes = values.checked_mul(usize::from(format.bits())).ok_or_else(too_many)?.div_ceil(8);
        let (rows, groups) = (self.n_rows, self.n_cols / format.group());
        let mut out = vec![("codes", Dtype::U8, vec![code_bytes])];
        match format {
            GroupFormat::Affine { .. } => out.push(("scales", Dtype::F16, vec![rows, groups, 2])),
            GroupFormat::Symmetric { .. } => out.push(("scales", Dtype::F16, vec![rows, groups])),
            GroupFormat::Nf4 => {
                out.push(("scales", Dtype::I8, vec![rows, groups]));
                out.push(("factors", Dtype::F32, vec![(rows * groups).div_ceil(NF4_SCALES)]));
                out.push(("mean", Dtype::F32, vec![1]));
            }
            GroupFormat::NvFp4 => {
                out.push(("scales", Dtype::F8_E4M3, vec![rows, groups]));
                out.push(("factors", Dtype::F32, vec![1]));
            }
        }
        Ok(out)
    }

    fn check(&self, tensors: &SafeTensors<'_>, name: &str) -> Result<()> {
        for (part, dtype, shape) in self.expected(name)? {
            part_of(tensors, name, part, dtype, &shape)?;
        }
        if tensors.tensor(&format!("{name}.inputs")).is_ok() {
            part_of(tensors, name, "inputs", Dtype::F32, &[self.n_cols])?;
        }
        Ok(())
    }

    fn read(&self, tensors: &SafeTensors<'_>, name: &str) -> Result<QuantizedMatrix> {
        let mut found = HashMap::new();
        for (part, dtype, shape) in self.expected(name)? {
            found.insert(part, part_of(tensors, name, part, dtype, &shape)?);
        }
        let bytes = |part: &str| found.get(part).copied().unwrap_or_default();
        let first = |part: &str| floats(bytes(part)).first().copied().unwrap_or_default();
        let (n_rows, n_cols) = (self.n_rows, self.n_cols);
        let halves = |part: &str| -> Vec<u16> {
            bytes(part).as_chunks::<2>().0.iter().map(|x| u16::from_le_bytes(*x)).collect()
        };
        let matrix = match self.encoding {
            Encoding::Gguf(format) => {
                QuantizedMatrix::from_blocks(format, n_rows, n_cols, bytes("blocks").to_vec())
            }
            Encoding::Groups(format) => {
                let scales = match format {
                    GroupFormat::Affine { .. } => {
                        GroupScales::Affine(halves("scales").as_chunks::<2>().0.to_vec())
                    }
                    GroupFormat::Symmetric { .. } => GroupScales::Symmetric(halves("scales")),
                    GroupFormat::Nf4 => GroupScales::Nf4 {
                        codes: bytes("scales").iter().map(|&x| x as i8).collect(),
                        scales: floats(bytes("factors")),
                        mean: first("mean"),
                    },
                    GroupFormat::NvFp4 => {
                        GroupScales::NvFp4 { codes: bytes("scales").to_vec(), scale: first("factors") }
                    }
                };
                let codes = bytes("codes").to_vec();
                let groups = GroupMatrix::from_packed(format, n_rows, n_cols, scales, codes);
                QuantizedMatrix::from_groups(groups.map_err(|error| match error {
                    Error::UnknownCode { format, found } => {
                        wrong(name, "codes", format!("codes of {format}"), found)
                    }
                    error => error,
                })?)
            }
        };
        let matrix = match tensors.tensor(&format!("{name}.inputs")) {
            Ok(_) => {
                let divisors = floats(part_of(tensors, name, "inputs", Dtype::F32, &[n_cols])?);
                matrix.of_divided_inputs(divisors).map_err(|error| match error {
                    Error::Divisor { found, .. } => {
                        wrong(name, "inputs", "finite divisors above zero", found)
                    }
                    error => error,
                })?
            }
            Err(_) => matrix,
        };
        match self.seed {
            Some(seed) => matrix.of_rotated_inputs(seed),
            None => Ok(matrix),
        }
    }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|x| f32::from_le_bytes(*x)).collect()
}

/// The bytes of a tensor of a known type and shape.
fn part_of<'a>(
    tensors: &SafeTensors<'a>,
    name: &str,
    part: &str,
    dtype: Dtype,
    shape: &[usize],
) -> Result<&'a [u8]> {
    let expected = || format!("{dtype:?} {shape:?}");
    match tensors.tensor(&format!("{name}.{part}")) {
        Ok(view) if view.dtype() == dtype && view.shape() == shape => Ok(view.data()),
        Ok(view) => Err(wrong(name, part, expected(), format!("{:?} {:?}", view.dtype(), view.shape()))),
        Err(_) => Err(wrong(name, part, expected(), "no such tensor")),
    }
}
