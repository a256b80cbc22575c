//! Files of named sections with checksums. They are replaced as a whole, verified before anything in them is
//! used, and memory-mapped.
//!
//! They suit large data that can be derived again: an index, a cache, packed vectors.
//!
//! # Format
//! Eight bytes of magic, the length of the header and its CRC-32 (four bytes each, little endian), the header
//! in JSON, and sections. Everything is padded with zeros to multiples of 64 bytes; a section's CRC-32 covers
//! its padding, the header's covers all before the first section. A file whose length differs from what its
//! header says is damaged.
//!
//! # Durability
//! Files are written as [`Replacement`]s: readers see the old file or the new one. A program that finds a
//! damaged file rebuilds it from the original data.
//!
//! # Example
//! ```
//! use breakers_files::{OsDisk, sections::{self, SectionFile}};
//!
//! let folder = tempfile::tempdir().unwrap();
//! let path = folder.path().join("squares.bin");
//! let squares: Vec<u8> = (0u32..9).flat_map(|i| (i * i).to_le_bytes()).collect();
//! sections::write(&OsDisk, &path, "squares of the first numbers", &[("squares", &squares)])?;
//!
//! let file = SectionFile::<String>::open(&path)?;
//! assert_eq!(file.info, "squares of the first numbers");
//! assert_eq!(file.array::<u32>("squares", 9)?[8], 64);
//! # Ok::<(), breakers_files::Error>(())
//! ```

use crate::{Buffer, Disk, Error, Replacement, Result, atomic::regular};
use bytemuck::Pod;
use memmap2::MmapOptions;
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};

const MAGIC: [u8; 8] = *b"BRKIDX\x01\n";
const ALIGN: usize = 64;
/// Headers are a page or two long; anything longer than this is not a header.
const MAX_HEADER: usize = 1 << 20;

#[derive(Serialize, serde::Deserialize)]
struct Header<H> {
    info: H,
    sections: Vec<Section>,
}

#[derive(Clone, Debug, Serialize, serde::Deserialize)]
struct Section {
    name: String,
    /// Length in bytes, without padding.
    bytes: usize,
    crc: u32,
}

/// Writes a file of sections, replacing the one at the path. `info` describes the file and is stored as JSON;
/// sections are found by name, in any order.
///
/// # Errors
/// [`Error::Json`] if `info` cannot be written, [`Error::NotAFile`], [`Error::Io`]; the old file is still
/// there then, as [`replace`](crate::replace) says.
pub fn write<H: Serialize>(disk: &dyn Disk, path: &Path, info: H, sections: &[(&str, &[u8])]) -> Result<()> {
    // In pieces, so that a disk that fills up is met between them too.
    let whole = |bytes: &'_ [u8], put: &mut dyn FnMut(&[u8])| bytes.chunks(1 << 24).for_each(put);
    let pieces: Vec<_> =
        sections.iter().map(|&(_, bytes)| move |put: &mut dyn FnMut(&[u8])| whole(bytes, put)).collect();
    let sections: Vec<(&str, Pieces<'_>)> =
        sections.iter().zip(&pieces).map(|(&(name, _), pieces)| (name, pieces as Pieces<'_>)).collect();
    write_pieces(disk, path, info, &sections)
}

/// Hands out the bytes of a section piece by piece, the same ones each time that it is called.
pub type Pieces<'a> = &'a dyn Fn(&mut dyn FnMut(&[u8]));

/// As [`write()`], for sections that never are in memory as a whole: they are asked for twice, since the
/// checksums stand before them.
///
/// # Errors
/// As [`write()`].
pub fn write_pieces<H: Serialize>(
    disk: &dyn Disk,
    path: &Path,
    info: H,
    sections: &[(&str, Pieces<'_>)],
) -> Result<()> {
    let describe = |&(name, pieces): &(&str, Pieces<'_>)| {
        let (mut crc, mut bytes) = (crc32fast::Hasher::new(), 0);
        pieces(&mut |piece| {
            crc.update(piece);
            bytes += piece.len();
        });
        crc.update(&[0; ALIGN][..padding(bytes)]);
        Section { name: name.to_owned(), bytes, crc: crc.finalize() }
    };
    let header = Header { info, sections: sections.iter().map(describe).collect() };
    let failed = |source| Error::Json { path: path.to_owned(), source };
    let json = serde_json::to_vec(&header).map_err(failed)?;
    if json.len() > MAX_HEADER {
        let expected = format!("at most {MAX_HEADER} bytes of header");
        return Err(Error::Record { path: path.to_owned(), expected, found: json.len().to_string() });
    }
    let mut start = MAGIC.to_vec();
    start.extend((json.len() as u32).to_le_bytes());
    start.extend([0; 4]);
    start.extend(&json);
    start.resize(start.len() + padding(start.len()), 0);
    let crc = header_crc(&start);
    start[12..16].copy_from_slice(&crc.to_le_bytes());

    let mut file = Replacement::on(disk, path)?;
    file.put(&start)?;
    for ((_, pieces), section) in sections.iter().zip(&header.sections) {
        let mut written = Ok(());
        pieces(&mut |piece| {
            if written.is_ok() {
                written = file.put(piece);
            }
        });
        written?;
        file.put(&[0; ALIGN][..padding(section.bytes)])?;
    }
    file.commit()
}

fn padding(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGN) - bytes
}

/// The checksum of the start of the file, leaving out the checksum itself.
fn header_crc(start: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&start[..12]);
    crc.update(&start[16..]);
    crc.finalize()
}

/// The first bytes of a file: magic, length of the header, checksum.
const FIXED: usize = 16;

/// The contents of a header, checked against the file's length.
struct Layout<H> {
    info: H,
    /// In the file's order; each section begins where the previous one ends.
    sections: Vec<Section>,
    header_bytes: usize,
}

impl<H: DeserializeOwned> Layout<H> {
    /// The length of the header, from the first bytes of a file.
    fn header_bytes(fixed: &[u8; FIXED], path: &Path) -> Result<usize> {
        if fixed[..8] != MAGIC {
            let (expected, found) = (format!("{MAGIC:02x?}"), format!("{:02x?}", &fixed[..8]));
            return Err(damaged(path, "magic", expected, found));
        }
        let json_bytes = word(fixed, 8) as usize;
        if json_bytes > MAX_HEADER {
            return Err(damaged(path, "header length", format!("at most {MAX_HEADER}"), json_bytes));
        }
        Ok((FIXED + json_bytes).next_multiple_of(ALIGN))
    }

    /// Reads the header; `start` is all of a file before the first section.
    fn parse(start: &[u8], length: u64, path: &Path) -> Result<Self> {
        let (crc, found) = (word(start, 12), header_crc(start));
        if crc != found {
            return Err(damaged(path, "header checksum", format!("{crc:08x}"), format!("{found:08x}")));
        }
        let json = &start[FIXED..FIXED + word(start, 8) as usize];
        let header: Header<H> =
            serde_json::from_slice(json).map_err(|error| damaged(path, "header", "a known header", error))?;
        let mut at = start.len();
        for section in &header.sections {
            let padded = section.bytes.checked_next_multiple_of(ALIGN);
            let end = padded.and_then(|bytes| at.checked_add(bytes)).filter(|&end| end as u64 <= length);
            let Some(end) = end else {
                return Err(damaged(path, "section end", format!("at most {length}"), section.bytes));
            };
            at = end;
        }
        if at as u64 != length {
            return Err(damaged(path, "file length", at, length));
        }
        Ok(Self { info: header.info, sections: header.sections, header_bytes: start.len() })
    }
}

impl Section {
    /// Compares the checksum of a section with its padding.
    fn check(&self, padded: &[u8], path: &Path) -> Result<()> {
        let crc = crc32fast::hash(padded);
        if crc == self.crc {
            return Ok(());
        }
        Err(damaged(path, "section checksum", format!("{:08x}", self.crc), format!("{crc:08x}")))
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn damaged(path: &Path, what: &'static str, expected: impl ToString, found: impl ToString) -> Error {
    let (expected, found) = (expected.to_string(), found.to_string());
    Error::Damaged { path: path.to_owned(), what, expected, found }
}

/// Checks a file that is in memory, and returns its `info` and the name and bytes of each section.
///
/// # Errors
/// [`Error::Damaged`] with an empty path.
#[expect(clippy::type_complexity, reason = "what it says")]
pub fn parse<H: DeserializeOwned>(bytes: &[u8]) -> Result<(H, Vec<(String, &[u8])>)> {
    let path = Path::new("");
    let too_short =
        |expected: usize| damaged(path, "file length", format!("at least {expected}"), bytes.len());
    let fixed = bytes.first_chunk::<FIXED>().ok_or_else(|| too_short(FIXED))?;
    let header_bytes = Layout::<H>::header_bytes(fixed, path)?;
    let start = bytes.get(..header_bytes).ok_or_else(|| too_short(header_bytes))?;
    let layout = Layout::<H>::parse(start, bytes.len() as u64, path)?;
    let mut sections = Vec::new();
    let mut at = layout.header_bytes;
    for section in layout.sections {
        let padded = &bytes[at..at + section.bytes.next_multiple_of(ALIGN)];
        section.check(padded, path)?;
        at += padded.len();
        sections.push((section.name, &padded[..section.bytes]));
    }
    Ok((layout.info, sections))
}

/// A file whose header and sections are whole.
#[derive(Debug)]
pub struct SectionFile<H> {
    /// What the file says about itself.
    pub info: H,
    path: PathBuf,
    file: File,
    /// Each with its first byte.
    sections: Vec<(Section, usize)>,
    /// Whether sections are verified when they are asked for.
    is_lazy: bool,
}

impl<H: DeserializeOwned> SectionFile<H> {
    /// Opens a file and verifies all of it.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::NotAFile`], [`Error::Io`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let opened = Self::open_lazily(path)?;
        for (section, at) in &opened.sections {
            opened.check(section, *at)?;
        }
        Ok(Self { is_lazy: false, ..opened })
    }

    /// Opens a file and verifies its header and its length; each section is verified when it is asked for.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_lazily(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        regular(path)?;
        let io = |source| Error::io("read", path)(source);
        let mut file = File::open(path).map_err(Error::io("open", path))?;
        let length = file.metadata().map_err(io)?.len();
        let long_enough = |bytes: usize| match bytes as u64 <= length {
            true => Ok(bytes),
            false => Err(damaged(path, "file length", format!("at least {bytes}"), length)),
        };
        let mut fixed = [0; FIXED];
        long_enough(FIXED)?;
        file.read_exact(&mut fixed).map_err(io)?;
        let mut start = vec![0; long_enough(Layout::<H>::header_bytes(&fixed, path)?)?];
        start[..FIXED].copy_from_slice(&fixed);
        file.read_exact(&mut start[FIXED..]).map_err(io)?;
        let layout = Layout::<H>::parse(&start, length, path)?;
        let mut at = layout.header_bytes;
        let place = |section: Section| {
            let start = at;
            at += section.bytes.next_multiple_of(ALIGN);
            (section, start)
        };
        let sections = layout.sections.into_iter().map(place).collect();
        Ok(Self { info: layout.info, path: path.to_owned(), file, sections, is_lazy: true })
    }

    fn check(&self, section: &Section, at: usize) -> Result<()> {
        match section.bytes.next_multiple_of(ALIGN) {
            0 => Ok(()),
            padded => section.check(&self.map(at, padded)?, &self.path),
        }
    }

    fn map(&self, start: usize, bytes: usize) -> Result<memmap2::MmapMut> {
        // SAFETY: the mapping is private. Files of sections are replaced by renaming and never
        // written in place; a program that truncates one while it is mapped breaks this, as it
        // would break any mapped file.
        unsafe { MmapOptions::new().offset(start as u64).len(bytes).map_copy(&self.file) }
            .map_err(Error::io("map", &self.path))
    }

    /// The first byte of a section, and its bytes.
    fn find(&self, name: &'static str) -> Result<(usize, usize)> {
        let found = self.sections.iter().find(|(section, _)| section.name == name);
        let (section, at) = found.ok_or_else(|| self.damaged(name, "a section", "none"))?;
        if self.is_lazy {
            self.check(section, *at)?;
        }
        Ok((*at, section.bytes))
    }

    /// Bytes of a section, which is not verified; `None` if there is none of this name.
    pub fn section_bytes(&self, name: &str) -> Option<usize> {
        self.sections.iter().find(|(section, _)| section.name == name).map(|(section, _)| section.bytes)
    }

    /// A section as a mapped array of exactly `n` elements. Writes to it stay in memory.
    ///
    /// # Errors
    /// [`Error::Damaged`] if there is no section of this name and size, [`Error::Io`].
    pub fn array<T: Pod>(&self, name: &'static str, n: usize) -> Result<Buffer<T>> {
        let (start, bytes) = self.find(name)?;
        if Some(bytes) != n.checked_mul(size_of::<T>()) {
            return Err(self.damaged(name, &format!("{n} × {} bytes", size_of::<T>()), &bytes.to_string()));
        }
        if n == 0 {
            return Ok(Buffer::new());
        }
        let map = self.map(start, bytes)?;
        Buffer::mapped(map, 0, n).ok_or_else(|| self.damaged(name, "an aligned section", "another"))
    }

    /// Where a section of exactly `n` elements begins in the file.
    ///
    /// # Units
    /// Bytes
    ///
    /// # Errors
    /// [`Error::Damaged`] if there is no section of this name and size.
    pub fn place<T: Pod>(&self, name: &'static str, n: usize) -> Result<u64> {
        let (start, bytes) = self.find(name)?;
        if Some(bytes) != n.checked_mul(size_of::<T>()) {
            return Err(self.damaged(name, &format!("{n} × {} bytes", size_of::<T>()), &bytes.to_string()));
        }
        Ok(start as u64)
    }

    /// An error that names this file, for readers that find its sections inconsistent with each other.
    pub fn damaged(&self, what: &'static str, expected: &str, found: &str) -> Error {
        Error::Damaged {
            path: self.path.clone(),
            what,
            expected: expected.to_owned(),
            found: found.to_owned(),
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}
