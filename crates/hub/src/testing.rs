//! What tests and fuzz targets need in addition to the public interface.

use std::fs;
use std::path::Path;

use crate::archive::{extract, write_piece};
use crate::catalog::Package;
use crate::error::{Error, Result};
use crate::tool::ToolKind;

/// How a registry packs its packages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArchiveKind {
    /// A zip file, as on PyPI.
    Wheel,
    /// A gzipped tar file, as on npm.
    Tarball,
}

/// The contents of a package's pieces, in the order of the catalog, extracted from an archive on this disk in
/// the way that a fetch does it. Files are created in `work` and left there.
///
/// # Errors
/// [`Error::BadArchive`], [`Error::MissingMember`], [`Error::SizeMismatch`] and [`Error::HashMismatch`] for
/// an archive that is not what the catalog says, [`Error::Io`].
///
/// # Example
/// ```no_run
/// use breakers_hub::testing::{ArchiveKind, unpack};
/// use breakers_hub::{Catalog, Source};
/// use std::path::Path;
///
/// let catalog = Catalog::builtin()?;
/// let Source::Pypi { packages } = &catalog.entries()[0].sources[0] else { return Ok(()) };
/// let pieces = unpack(Path::new("package.whl"), ArchiveKind::Wheel, &packages[0], Path::new("work"))?;
/// assert_eq!(pieces.len(), packages[0].pieces.len());
/// # Ok::<(), breakers_hub::Error>(())
/// ```
pub fn unpack(archive: &Path, kind: ArchiveKind, package: &Package, work: &Path) -> Result<Vec<Vec<u8>>> {
    let kind = match kind {
        ArchiveKind::Wheel => ToolKind::Pip,
        ArchiveKind::Tarball => ToolKind::Npm,
    };
    let mut pieces = vec![Vec::new(); package.pieces.len()];
    extract(archive, kind, package, work, &|_| true, &mut |piece_idx, reader| {
        let piece = &package.pieces[piece_idx];
        let path = work.join(format!("piece-{piece_idx}"));
        write_piece(reader, &path, 0, &piece.member, piece)?;
        pieces[piece_idx] = fs::read(&path).map_err(|error| Error::io("read", &path, error))?;
        Ok(())
    })?;
    Ok(pieces)
}
