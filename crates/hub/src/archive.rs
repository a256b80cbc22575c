//! Taking pinned members out of wheels (zip) and npm tarballs.
//!
//! Nothing in an archive is trusted: members are looked up by the exact name in the catalog, the paths inside
//! are never used as paths on disk, and reading stops at the pinned size, so an archive that unpacks to more
//! than it should costs no more than the expected file.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;

use flate2::read::GzDecoder;
use sha2::{Digest as _, Sha256};

use crate::catalog::{Digest, Package, Piece};
use crate::error::{Error, Result};
use crate::tool::ToolKind;

const CHUNK: usize = 1 << 20;

/// Passes every piece of the package that `wanted` accepts to `sink`.
pub(crate) fn extract(
    archive: &Path,
    kind: ToolKind,
    package: &Package,
    work: &Path,
    wanted: &dyn Fn(usize) -> bool,
    sink: &mut dyn FnMut(usize, &mut dyn Read) -> Result<()>,
) -> Result<()> {
    let label = format!("{} {}", package.name, package.version);
    let file = File::open(archive).map_err(|error| Error::io("open", archive, error))?;
    match (kind, &package.nested) {
        (ToolKind::Pip, None) => extract_zip(file, &label, &package.pieces, wanted, sink),
        (ToolKind::Pip, Some(nested)) => {
            let path = work.join("nested.zip");
            let mut outer = open_zip(file, &label)?;
            let mut member = zip_member(&mut outer, &label, &nested.member, nested.bytes)?;
            let mut inner = File::create_new(&path).map_err(|error| Error::io("create", &path, error))?;
            let what = format!("{label}: {}", nested.member);
            copy_verified(&mut member, &mut inner, &path, &what, nested.bytes, nested.sha256)?;
            drop(inner);
            let inner = File::open(&path).map_err(|error| Error::io("open", &path, error))?;
            extract_zip(inner, &what, &package.pieces, wanted, sink)
        }
        (ToolKind::Npm, _) => extract_tarball(file, &label, &package.pieces, wanted, sink),
    }
}

type Zip = zip::ZipArchive<BufReader<File>>;

fn open_zip(file: File, label: &str) -> Result<Zip> {
    zip::ZipArchive::new(BufReader::new(file))
        .map_err(|error| Error::BadArchive { archive: label.to_owned(), reason: error.to_string() })
}

fn zip_member<'a>(
    zip: &'a mut Zip,
    label: &str,
    member: &str,
    expected: u64,
) -> Result<zip::read::ZipFile<'a, BufReader<File>>> {
    let found = match zip.by_name(member) {
        Ok(found) => found,
        Err(zip::result::ZipError::FileNotFound) => {
            return Err(Error::MissingMember { archive: label.to_owned(), member: member.to_owned() });
        }
        Err(error) => {
            return Err(Error::BadArchive { archive: label.to_owned(), reason: error.to_string() });
        }
    };
    if found.size() != expected {
        let what = format!("{label}: {member}");
        return Err(Error::SizeMismatch { what, expected, found: found.size() });
    }
    Ok(found)
}

fn extract_zip(
    file: File,
    label: &str,
    pieces: &[Piece],
    wanted: &dyn Fn(usize) -> bool,
    sink: &mut dyn FnMut(usize, &mut dyn Read) -> Result<()>,
) -> Result<()> {
    let mut zip = open_zip(file, label)?;
    for (piece_idx, piece) in pieces.iter().enumerate().filter(|(piece_idx, _)| wanted(*piece_idx)) {
        sink(piece_idx, &mut zip_member(&mut zip, label, &piece.member, piece.bytes)?)?;
    }
    Ok(())
}

fn extract_tarball(
    file: File,
    label: &str,
    pieces: &[Piece],
    wanted: &dyn Fn(usize) -> bool,
    sink: &mut dyn FnMut(usize, &mut dyn Read) -> Result<()>,
) -> Result<()> {
    let bad =
        |error: std::io::Error| Error::BadArchive { archive: label.to_owned(), reason: error.to_string() };
    let mut missing: Vec<usize> = (0..pieces.len()).filter(|piece_idx| wanted(*piece_idx)).collect();
    // Allows for members that are not wanted, but not for a decompression bomb.
    let limit =
        pieces.iter().fold(64 << 20, |sum: u64, piece| sum.saturating_add(piece.bytes.saturating_mul(2)));
    let mut tarball = tar::Archive::new(GzDecoder::new(BufReader::new(file)).take(limit));
    for member in tarball.entries().map_err(bad)? {
        if missing.is_empty() {
            break;
        }
        let mut member = member.map_err(bad)?;
        let path = member.path_bytes().into_owned();
        let Some(position) = missing.iter().position(|&idx| pieces[idx].member.as_bytes() == path) else {
            continue;
        };
        let piece_idx = missing.swap_remove(position);
        let (expected, found) = (pieces[piece_idx].bytes, member.size());
        if expected != found {
            let what = format!("{label}: {}", pieces[piece_idx].member);
            return Err(Error::SizeMismatch { what, expected, found });
        }
        sink(piece_idx, &mut member)?;
    }
    match missing.first() {
        Some(&piece_idx) => {
            Err(Error::MissingMember { archive: label.to_owned(), member: pieces[piece_idx].member.clone() })
        }
        None => Ok(()),
    }
}

/// Writes one piece to its place in the file and checks its hash at the same time.
pub(crate) fn write_piece(
    reader: &mut dyn Read,
    path: &Path,
    offset: u64,
    what: &str,
    piece: &Piece,
) -> Result<()> {
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(|error| Error::io("open", path, error))?;
    file.seek(SeekFrom::Start(offset)).map_err(|error| Error::io("seek in", path, error))?;
    copy_verified(reader, &mut file, path, what, piece.bytes, piece.sha256)
}

/// Copies exactly `bytes` bytes and compares their hash.
fn copy_verified(
    reader: &mut dyn Read,
    writer: &mut File,
    path: &Path,
    what: &str,
    bytes: u64,
    sha256: Digest,
) -> Result<()> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    let mut copied = 0_u64;
    loop {
        // Reads one byte more than expected, to notice a member that is too long.
        let room = bytes.saturating_sub(copied).saturating_add(1).min(CHUNK as u64) as usize;
        let n_bytes = match reader.read(&mut buffer[..room]) {
            Ok(n_bytes) => n_bytes,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => {
                return Err(Error::BadArchive { archive: what.to_owned(), reason: error.to_string() });
            }
        };
        copied += n_bytes as u64;
        if copied > bytes || (n_bytes == 0 && copied < bytes) {
            return Err(Error::SizeMismatch { what: what.to_owned(), expected: bytes, found: copied });
        }
        if n_bytes == 0 {
            break;
        }
        hasher.update(&buffer[..n_bytes]);
        writer.write_all(&buffer[..n_bytes]).map_err(|error| Error::io("write", path, error))?;
    }
    expect_digest(what, sha256, Digest(hasher.finalize().into()))
}

/// Hashes `len` bytes from `offset` on; `None` if the file ends before that.
pub(crate) fn hash_range(
    file: &mut File,
    path: &Path,
    offset: u64,
    len: u64,
    on_bytes: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<Option<Digest>> {
    file.seek(SeekFrom::Start(offset)).map_err(|error| Error::io("seek in", path, error))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    let mut left = len;
    while left > 0 {
        let room = left.min(CHUNK as u64) as usize;
        match file.read(&mut buffer[..room]) {
            Ok(0) => return Ok(None),
            Ok(n_bytes) => {
                hasher.update(&buffer[..n_bytes]);
                left -= n_bytes as u64;
                on_bytes(n_bytes as u64)?;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io("read", path, error)),
        }
    }
    Ok(Some(Digest(hasher.finalize().into())))
}

/// Returns an error unless the two are equal.
pub(crate) fn expect_digest(what: &str, expected: Digest, found: Digest) -> Result<()> {
    if expected == found {
        Ok(())
    } else {
        Err(Error::HashMismatch { what: what.to_owned(), expected, found })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::catalog::Nested;

    fn zip_of(member: &str, content: &[u8]) -> Vec<u8> {
        let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        zip.start_file(member, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(content).unwrap();
        zip.finish().unwrap().into_inner()
    }

    fn tarball_of(member: &str, content: &[u8]) -> Vec<u8> {
        let gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        let mut tarball = tar::Builder::new(gzip);
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        tarball.append_data(&mut header, member, content).unwrap();
        tarball.into_inner().unwrap().finish().unwrap()
    }

    fn digest(data: &[u8]) -> Digest {
        Digest(Sha256::digest(data).into())
    }

    /// Extracts the one piece of an archive and returns the file it makes.
    fn extract_one(archive: &[u8], kind: ToolKind, package: &Package) -> Result<Vec<u8>> {
        let folder = tempfile::tempdir().unwrap();
        let (path, out) = (folder.path().join("archive"), folder.path().join("out"));
        std::fs::write(&path, archive).unwrap();
        extract(&path, kind, package, folder.path(), &|_| true, &mut |piece_idx, reader| {
            write_piece(reader, &out, 0, "piece", &package.pieces[piece_idx])
        })?;
        Ok(std::fs::read(&out).unwrap())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// A damaged archive gives an error or, if the damage does not matter, the pinned bytes.
        #[test]
        fn damaged_archives_never_panic_or_lie(
            shape in 0_usize..3,
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            cut in prop::option::of(any::<prop::sample::Index>()),
        ) {
            let content: Vec<u8> = (0..3000_u32).map(|value| (value * value % 251) as u8).collect();
            let inner = zip_of("data.bin", &content);
            let (kind, mut archive, nested) = match shape {
                0 => (ToolKind::Pip, zip_of("data.bin", &content), None),
                1 => (ToolKind::Npm, tarball_of("data.bin", &content), None),
                _ => {
                    let bytes = inner.len() as u64;
                    let nested = Nested { member: "in.zip".to_owned(), bytes, sha256: digest(&inner) };
                    (ToolKind::Pip, zip_of("in.zip", &inner), Some(nested))
                }
            };
            let piece = Piece {
                member: "data.bin".to_owned(),
                file: "out".to_owned(),
                bytes: content.len() as u64,
                sha256: digest(&content),
            };
            let package = Package {
                name: "package".to_owned(),
                version: "1".to_owned(),
                bytes: archive.len() as u64,
                nested,
                pieces: vec![piece],
            };
            prop_assert!(extract_one(&archive, kind, &package).unwrap() == content);
            for (place, value) in damage {
                let place = place.index(archive.len());
                archive[place] = value;
            }
            if let Some(cut) = cut {
                archive.truncate(cut.index(archive.len()));
            }
            if let Ok(found) = extract_one(&archive, kind, &package) {
                prop_assert!(found == content);
            }
        }
    }
}
