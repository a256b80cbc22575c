//! A catalog, packages and a `pip` that exist only for one test.
#![allow(unreachable_pub)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use breakers_hub::{Catalog, FetchOptions, Hub, Progress};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// Bytes that look random, but are the same in every run, and do not compress away.
pub fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    (0..len).map(|_| next()).collect()
}

pub fn sha256(data: &[u8]) -> String {
    Sha256::digest(data).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A zip file of (name, content).
pub fn zip_of(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, content) in members {
        zip.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(content).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// A gzipped tar file of (name, content).
pub fn tgz_of(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tarball =
        tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    for (name, content) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tarball.append_data(&mut header, name, *content).unwrap();
    }
    tarball.into_inner().unwrap().finish().unwrap()
}

/// What was reported, in the order it was.
#[derive(Debug, Default)]
pub struct Recorder {
    pub messages: Vec<String>,
    pub totals: Vec<u64>,
    pub done: Vec<u64>,
    pub n_finished: usize,
    /// Stops the fetch once this many bytes have arrived.
    pub stop_at: Option<u64>,
}

impl Progress for Recorder {
    fn started(&mut self, _name: &str, total_bytes: u64) {
        self.totals.push(total_bytes);
    }

    fn advanced(&mut self, done_bytes: u64) {
        self.done.push(done_bytes);
    }

    fn message(&mut self, text: &str) {
        self.messages.push(text.to_owned());
    }

    fn finished(&mut self) {
        self.n_finished += 1;
    }

    fn keep_going(&mut self) -> bool {
        self.stop_at.is_none_or(|limit| self.done.last().is_none_or(|done| *done < limit))
    }
}

impl Recorder {
    pub fn said(&self, text: &str) -> bool {
        self.messages.iter().any(|message| message.contains(text))
    }
}

/// A temporary folder with everything that a test needs.
pub struct World {
    pub folder: TempDir,
}

impl World {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn cache(&self) -> PathBuf {
        self.at("cache")
    }

    pub fn hub(&self, catalog: &str) -> Hub {
        Hub::at(self.cache()).with_catalog(Catalog::from_json(catalog).unwrap())
    }
}

/// An entry `thing` whose one file `thing.bin` is cut into `n_parts` packages `part-1`, `part-2`, …
pub struct Parted {
    pub content: Vec<u8>,
    pub parts: Vec<Vec<u8>>,
}

impl Parted {
    pub fn new(n_parts: usize, part_bytes: usize) -> Self {
        let content = bytes(7, n_parts * part_bytes - part_bytes / 3);
        let parts = content.chunks(part_bytes).map(<[u8]>::to_vec).collect();
        Self { content, parts }
    }

    pub fn wheel(&self, idx: usize) -> Vec<u8> {
        zip_of(&[("part/__init__.py", b""), ("part/data.bin", &self.parts[idx])])
    }

    pub fn pypi(&self) -> serde_json::Value {
        let packages: Vec<_> = (0..self.parts.len())
            .map(|idx| {
                serde_json::json!({
                    "name": format!("part-{}", idx + 1),
                    "version": "1.0",
                    "bytes": self.wheel(idx).len(),
                    "pieces": [{
                        "member": "part/data.bin",
                        "file": "thing.bin",
                        "bytes": self.parts[idx].len(),
                        "sha256": sha256(&self.parts[idx]),
                    }],
                })
            })
            .collect();
        serde_json::json!({ "kind": "pypi", "packages": packages })
    }

    pub fn huggingface(&self) -> serde_json::Value {
        serde_json::json!({
            "kind": "hugging_face",
            "repo": "owner/thing",
            "revision": "0123abcd",
            "files": [{ "file": "thing.bin", "path": "sub/thing.bin" }],
        })
    }

    pub fn catalog(&self, sources: &[serde_json::Value]) -> String {
        serde_json::json!([{
            "name": "thing",
            "kind": "model",
            "title": "A thing",
            "license": "MIT",
            "license_note": "made here",
            "files": [{
                "name": "thing.bin",
                "bytes": self.content.len(),
                "sha256": sha256(&self.content),
            }],
            "sources": sources,
        }])
        .to_string()
    }
}

pub fn options(python: &Path) -> FetchOptions {
    FetchOptions {
        python: Some(python.to_path_buf()),
        parallel: 1,
        connect_timeout: Duration::from_millis(2500),
        ..FetchOptions::default()
    }
}

#[cfg(unix)]
pub mod fake {
    //! A `pip` and an `npm` made of a shell script, which serve what a test puts into a folder.

    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::{Path, PathBuf};
    use std::sync::OnceLock;

    /// `NAME.whl` or `NAME.tgz` next to the program is the package. `NAME.fails` makes it fail, `NAME.full`
    /// makes it report a full disk, `NAME.grows` makes it write a temporary file, and `NAME.waits` makes it
    /// wait until that file is gone. Every package asked for is logged in `calls`.
    const SCRIPT: &str = r##"#!/bin/sh
here=$(dirname "$0")
case "$*" in *--version*) echo "fake 1.0"; exit 0;; esac
case "$*" in
  *" download "*) ending=.whl; flag=--dest; separator="==";;
  *) ending=.tgz; flag=--pack-destination; separator="@";;
esac
while [ $# -gt 1 ]; do
  if [ "$1" = "$flag" ]; then folder=$2; fi
  shift
done
name=${1%%"$separator"*}
echo "$name" >> "$here/calls"
if [ -e "$here/$name.grows" ]; then head -c 1000 "$here/$name$ending" > "$TMPDIR/growing"; fi
while [ -e "$here/$name.waits" ]; do sleep 0.02; done
if [ -e "$here/$name.full" ]; then
  echo "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device" >&2
  exit 1
fi
if [ -e "$here/$name.fails" ]; then
  echo "WARNING: Retrying after connection broken" >&2
  echo "ERROR: No matching distribution found for $1" >&2
  exit 1
fi
cp "$here/$name$ending" "$folder/$name-1.0$ending"
"##;

    /// The script itself is written once, before any other thread starts a child: a child that is being
    /// started holds open files of its parent, and a program that is open for writing cannot run.
    fn script() -> &'static Path {
        static SCRIPT_FILE: OnceLock<PathBuf> = OnceLock::new();
        SCRIPT_FILE.get_or_init(|| {
            // In the build folder: statics are never dropped, so a temporary folder would stay.
            let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fake-registry");
            if fs::read(&path).ok().as_deref() != Some(SCRIPT.as_bytes()) {
                fs::write(&path, SCRIPT).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            }
            path
        })
    }

    pub struct Registry {
        pub folder: PathBuf,
    }

    impl Registry {
        pub fn new(folder: PathBuf) -> Self {
            fs::create_dir_all(&folder).unwrap();
            for program in ["python3", "npm"] {
                let _ = symlink(script(), folder.join(program));
            }
            Self { folder }
        }

        pub fn program(&self, name: &str) -> PathBuf {
            self.folder.join(name)
        }

        pub fn put(&self, file: &str, content: &[u8]) {
            fs::write(self.folder.join(file), content).unwrap();
        }

        pub fn remove(&self, file: &str) {
            fs::remove_file(self.folder.join(file)).unwrap();
        }

        /// The packages asked for since the last look.
        pub fn calls(&self) -> Vec<String> {
            let path = self.folder.join("calls");
            let calls = fs::read_to_string(&path).unwrap_or_default();
            let _ = fs::remove_file(path);
            calls.lines().map(str::to_owned).collect()
        }
    }
}
