//! Index files: written beside their place and renamed, checked before anything in them is believed.
//!
//! # Format
//! Eight bytes of magic, the length of the header and its CRC-32 (four bytes each, little endian), the header in JSON, and
//! sections. Everything is padded with zeros to multiples of 64 bytes; a section's CRC-32 covers its padding, the header's
//! covers all before the first section. A file of another length than its header says is damaged.
//!
//! # Durability
//! A file is written under a temporary name, synced, renamed, and its folder is synced; readers see the old file or the
//! new one. Index files are derived: whatever is wrong with one, the store builds it anew from SQLite.

use crate::{Error, Result, buffer::Buffer};
use bytemuck::Pod;
use memmap2::MmapOptions;
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fmt,
    fs::File,
    io::{self, Read as _, Write},
    path::{Path, PathBuf},
};

const MAGIC: [u8; 8] = *b"BRKIDX\x01\n";
const ALIGN: usize = 64;
/// A header is a page or two; a longer one is none.
const MAX_HEADER: usize = 1 << 20;

/// The operations that index files need of a file system, so that tests can make each of them fail.
pub trait Disk: Send + Sync + fmt::Debug {
    /// Creates a file, or empties it.
    ///
    /// # Errors
    /// Those of the operating system, for all methods.
    fn create(&self, path: &Path) -> io::Result<File>;
    /// Writes all bytes.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<()>;
    /// Waits until a file's content is on the disk.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    fn sync(&self, file: &File) -> io::Result<()>;
    /// Renames a file over another one.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Waits until the names in a folder are on the disk.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    fn sync_folder(&self, path: &Path) -> io::Result<()>;
    /// Removes a file.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    fn remove(&self, path: &Path) -> io::Result<()>;
}

/// The operating system's file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct OsDisk;

impl Disk for OsDisk {
    fn create(&self, path: &Path) -> io::Result<File> {
        File::create(path)
    }

    fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        file.write_all(bytes)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        // Only Unix lets folders be synced.
        if cfg!(unix) { File::open(path)?.sync_all() } else { Ok(()) }
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }
}

#[derive(Serialize, serde::Deserialize)]
struct Header<H> {
    info: H,
    sections: Vec<Section>,
}

#[derive(Clone, Serialize, serde::Deserialize)]
struct Section {
    name: String,
    /// Bytes without padding.
    bytes: usize,
    crc: u32,
}

/// Writes a file of sections in place of the one that is there.
///
/// # Errors
/// [`Error::Io`]; the old file is still there then.
pub(crate) fn write<H: Serialize>(
    disk: &dyn Disk,
    path: &Path,
    info: H,
    sections: &[(&str, &[u8])],
) -> Result<()> {
    let describe = |&(name, bytes): &(&str, &[u8])| {
        let mut crc = crc32fast::Hasher::new();
        crc.update(bytes);
        crc.update(&[0; ALIGN][..padding(bytes.len())]);
        Section { name: name.to_owned(), bytes: bytes.len(), crc: crc.finalize() }
    };
    let header = Header { info, sections: sections.iter().map(describe).collect() };
    let json = serde_json::to_vec(&header)?;
    let mut start = MAGIC.to_vec();
    start.extend((json.len() as u32).to_le_bytes());
    start.extend([0; 4]);
    start.extend(&json);
    start.resize(start.len() + padding(start.len()), 0);
    let crc = header_crc(&start);
    start[12..16].copy_from_slice(&crc.to_le_bytes());

    let temporary = temporary_name(path);
    let result = (|| {
        let mut file = disk.create(&temporary)?;
        disk.write(&mut file, &start)?;
        for (_, bytes) in sections {
            // In pieces, so that a disk that fills up is met between them too.
            for piece in bytes.chunks(1 << 24) {
                disk.write(&mut file, piece)?;
            }
            disk.write(&mut file, &[0; ALIGN][..padding(bytes.len())])?;
        }
        disk.sync(&file)?;
        drop(file);
        disk.rename(&temporary, path)?;
        disk.sync_folder(path.parent().unwrap_or(Path::new(".")))
    })();
    result.map_err(|source| {
        let _ = disk.remove(&temporary);
        Error::Io { path: path.to_owned(), source }
    })
}

/// The name under which a file is written before it is renamed.
pub(crate) fn temporary_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    name.into()
}

fn padding(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGN) - bytes
}

/// Of the start of the file but for the checksum itself.
fn header_crc(start: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&start[..12]);
    crc.update(&start[16..]);
    crc.finalize()
}

/// A file whose header and sections are whole.
pub(crate) struct SectionFile<H> {
    pub(crate) info: H,
    path: PathBuf,
    file: File,
    /// Name, first byte, bytes.
    sections: Vec<(String, usize, usize)>,
}

impl<H: DeserializeOwned> SectionFile<H> {
    /// Opens a file and verifies all of it.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Io`].
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let damaged = |what, expected: &dyn ToString, found: &dyn ToString| Error::Damaged {
            path: path.to_owned(),
            what,
            expected: expected.to_string(),
            found: found.to_string(),
        };
        let mut file = File::open(path).map_err(Error::io(path))?;
        let length = file.metadata().map_err(Error::io(path))?.len();
        let mut start = vec![0; 16];
        file.read_exact(&mut start).map_err(Error::io(path))?;
        if start[..8] != MAGIC {
            return Err(damaged("magic", &format!("{MAGIC:02x?}"), &format!("{:02x?}", &start[..8])));
        }
        let word = |at: usize| u32::from_le_bytes([start[at], start[at + 1], start[at + 2], start[at + 3]]);
        let (json_bytes, crc) = (word(8) as usize, word(12));
        if json_bytes > MAX_HEADER {
            return Err(damaged("header length", &format!("at most {MAX_HEADER}"), &json_bytes));
        }
        let header_bytes = (16 + json_bytes).next_multiple_of(ALIGN);
        start.resize(header_bytes, 0);
        file.read_exact(&mut start[16..]).map_err(Error::io(path))?;
        if header_crc(&start) != crc {
            return Err(damaged(
                "header checksum",
                &format!("{crc:08x}"),
                &format!("{:08x}", header_crc(&start)),
            ));
        }
        let header: Header<H> = serde_json::from_slice(&start[16..16 + json_bytes])
            .map_err(|error| damaged("header", &"a known header", &error))?;
        let mut sections = Vec::new();
        let mut at = header_bytes;
        for section in &header.sections {
            let padded = section.bytes.checked_next_multiple_of(ALIGN);
            let end = padded.and_then(|bytes| at.checked_add(bytes)).filter(|&end| end as u64 <= length);
            let Some(end) = end else {
                return Err(damaged("section end", &format!("at most {length}"), &section.bytes));
            };
            sections.push((section.name.clone(), at, section.bytes));
            at = end;
        }
        if at as u64 != length {
            return Err(damaged("file length", &at, &length));
        }
        let opened = Self { info: header.info, path: path.to_owned(), file, sections };
        for (section, &(_, start, bytes)) in header.sections.iter().zip(&opened.sections) {
            if bytes == 0 {
                continue;
            }
            let map = opened.map(start, bytes.next_multiple_of(ALIGN))?;
            let crc = crc32fast::hash(&map);
            if crc != section.crc {
                return Err(damaged(
                    "section checksum",
                    &format!("{:08x}", section.crc),
                    &format!("{crc:08x}"),
                ));
            }
        }
        Ok(opened)
    }

    fn map(&self, start: usize, bytes: usize) -> Result<memmap2::MmapMut> {
        // SAFETY: the mapping is private. Files of this crate are replaced by renaming and never written in place; a
        // program that truncates one while it is mapped breaks this, as it would break any mapped file.
        unsafe { MmapOptions::new().offset(start as u64).len(bytes).map_copy(&self.file) }
            .map_err(Error::io(&self.path))
    }

    fn find(&self, name: &'static str) -> Result<(usize, usize)> {
        let section = self.sections.iter().find(|(n, ..)| n == name);
        section
            .map(|&(_, start, bytes)| (start, bytes))
            .ok_or_else(|| self.damaged(name, "a section", "none"))
    }

    /// A section as an array of exactly `n` elements.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Io`].
    pub(crate) fn array<T: Pod>(&self, name: &'static str, n: usize) -> Result<Buffer<T>> {
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
    /// # Errors
    /// [`Error::Damaged`].
    pub(crate) fn place<T: Pod>(&self, name: &'static str, n: usize) -> Result<u64> {
        let (start, bytes) = self.find(name)?;
        if Some(bytes) != n.checked_mul(size_of::<T>()) {
            return Err(self.damaged(name, &format!("{n} × {} bytes", size_of::<T>()), &bytes.to_string()));
        }
        Ok(start as u64)
    }

    pub(crate) fn damaged(&self, what: &'static str, expected: &str, found: &str) -> Error {
        Error::Damaged {
            path: self.path.clone(),
            what,
            expected: expected.to_owned(),
            found: found.to_owned(),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_and_every_other_length_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let (a, b) = ([1u32, 2, 3], [4u8; 70]);
        write(&OsDisk, &path, 7u32, &[("a", bytemuck::bytes_of(&a)), ("b", &b), ("none", &[])]).unwrap();
        let opened = SectionFile::<u32>::open(&path).unwrap();
        assert_eq!(opened.info, 7);
        assert_eq!(&*opened.array::<u32>("a", 3).unwrap(), &a);
        assert_eq!(&*opened.array::<u8>("b", 70).unwrap(), &b);
        assert!(opened.array::<u8>("none", 0).unwrap().is_empty());
        assert!(matches!(opened.array::<u32>("a", 4), Err(Error::Damaged { what: "a", .. })));
        assert!(matches!(opened.array::<u32>("c", 4), Err(Error::Damaged { what: "c", .. })));
        let good = std::fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            std::fs::write(&path, &bad).unwrap();
            assert!(SectionFile::<u32>::open(&path).is_err(), "byte {at}");
            std::fs::write(&path, &good[..at]).unwrap();
            assert!(SectionFile::<u32>::open(&path).is_err(), "{at} bytes");
        }
        std::fs::write(&path, [&good[..], &[0; 64]].concat()).unwrap();
        assert!(matches!(SectionFile::<u32>::open(&path), Err(Error::Damaged { what: "file length", .. })));
    }
}
