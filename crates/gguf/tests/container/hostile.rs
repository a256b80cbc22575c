//! Files that are each wrong in one respect.

use breakers_gguf as gguf;
use breakers_gguf::Error;

use crate::{allocations::largest_during, sample};

const U32: u32 = 4;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// A file put together by hand, so that every part of it can lie.
struct Raw {
    magic: [u8; 4],
    version: u32,
    n_tensors: Option<u64>,
    n_pairs: Option<u64>,
    pairs: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    n_data: usize,
}

fn raw() -> Raw {
    Raw {
        magic: *b"GGUF",
        version: 3,
        n_tensors: None,
        n_pairs: None,
        pairs: Vec::new(),
        tensors: Vec::new(),
        n_data: 0,
    }
}

impl Raw {
    fn pair(mut self, key: &[u8], type_id: u32, value: &[u8]) -> Self {
        self.pairs.push([&string(key)[..], &type_id.to_le_bytes(), value].concat());
        self
    }

    /// `dims` as stored: innermost first.
    fn tensor(mut self, name: &[u8], dims: &[u64], type_id: u32, offset: u64) -> Self {
        let mut entry = string(name);
        entry.extend((dims.len() as u32).to_le_bytes());
        entry.extend(dims.iter().flat_map(|n| n.to_le_bytes()));
        entry.extend(type_id.to_le_bytes());
        entry.extend(offset.to_le_bytes());
        self.tensors.push(entry);
        self
    }

    fn data(mut self, n_bytes: usize) -> Self {
        self.n_data = n_bytes;
        self
    }

    fn bytes(self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.n_tensors.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.n_pairs.unwrap_or(self.pairs.len() as u64).to_le_bytes());
        out.extend(self.pairs.concat());
        out.extend(self.tensors.concat());
        if self.n_data > 0 {
            out.resize(out.len().next_multiple_of(32) + self.n_data, 0);
        }
        out
    }
}

fn string(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u64).to_le_bytes()[..], bytes].concat()
}

/// An array's element type, its length (true or not) and its bytes.
fn array(type_id: u32, length: u64, bytes: &[u8]) -> Vec<u8> {
    [&type_id.to_le_bytes()[..], &length.to_le_bytes(), bytes].concat()
}

fn check(what: &str, bytes: Vec<u8>, expected: fn(&Error) -> bool, message: &str) {
    let n_bytes = bytes.len();
    let (result, largest) = largest_during(|| gguf::File::from_bytes(bytes));
    let error = match result {
        Ok(file) => panic!("{what}: accepted as {file:?}"),
        Err(error) => error,
    };
    assert!(expected(&error), "{what}: {error:?}");
    assert!(error.to_string().contains(message), "{what}: {message:?} is not in: {error}");
    assert!(largest <= 8 * n_bytes + 4096, "{what}: {largest} bytes at once for a file of {n_bytes}");
}

#[test]
fn the_builder_makes_valid_files() {
    for version in [2, 3] {
        let file = Raw { version, ..raw() }
            .pair(b"split.count", 2, &1u16.to_le_bytes())
            .pair(b"k", U32, &7u32.to_le_bytes())
            .tensor(b"a", &[32, 2], 8, 96)
            .tensor(b"b", &[3], 0, 0)
            .data(164);
        let file = gguf::File::from_bytes(file.bytes()).unwrap();
        assert_eq!(file.version(), version);
        assert_eq!(file.metadata().require_u32("k").unwrap(), 7);
        assert_eq!(file.require("a").unwrap().shape(), [2, 32]);
        assert_eq!(file.require("b").unwrap().to_f32(), [0.0; 3]);
        sample::walk(&file);
    }
    // A file with only metadata may end without padding.
    assert_eq!(gguf::File::from_bytes(raw().bytes()).unwrap().tensors().len(), 0);
}

#[test]
fn other_files_are_named() {
    check("empty", vec![], |e| matches!(e, Error::NotGguf { .. }), "the file is empty");
    check("short", b"GG".to_vec(), |e| matches!(e, Error::NotGguf { .. }), "\"GG\"");
    check("zip", b"PK\x03\x04rest".to_vec(), |e| matches!(e, Error::NotGguf { .. }), "bytes 50 4b 03 04");
    check(
        "magic only",
        b"GGUF".to_vec(),
        |e| matches!(e, Error::Truncated { position: 4, .. }),
        "the version at byte 4",
    );
    for version in [0, 1, 4, 1 << 16] {
        let bytes = Raw { version, ..raw() }.bytes();
        check("version", bytes, |e| matches!(e, Error::UnsupportedVersion { .. }), "is not supported");
    }
    for version in [1u32, 2, 3] {
        let bytes = Raw { version: version.swap_bytes(), ..raw() }.bytes();
        check("big endian", bytes, |e| matches!(e, Error::BigEndian { .. }), "big-endian");
    }
    let shard = raw().pair(b"split.no", 2, &1u16.to_le_bytes()).pair(b"split.count", 2, &4u16.to_le_bytes());
    check("shard", shard.bytes(), |e| matches!(e, Error::Sharded { shard: 2, n_shards: 4 }), "shard 2 of 4");
}

#[test]
fn absurd_counts_are_refused_before_anything_is_allocated() {
    let is_count = |e: &Error| matches!(e, Error::CountTooLarge { .. });
    for count in [u64::MAX, 1 << 63, 1 << 32, 1 << 20, 1] {
        let tensors = Raw { n_tensors: Some(count), ..raw() };
        check("tensors", tensors.bytes(), is_count, "the number of tensors");
        let pairs = Raw { n_pairs: Some(count), ..raw() };
        check("pairs", pairs.bytes(), is_count, "the number of metadata pairs");
        for type_id in (0..=12).filter(|&id| id != ARRAY) {
            let array = raw().pair(b"k", ARRAY, &array(type_id, count, b""));
            check("array", array.bytes(), is_count, "the length of a metadata array");
        }
    }
    // The number of strings fits, but their lengths do not.
    let lengths = (1u64 << 40).to_le_bytes().repeat(1000);
    let strings = raw().pair(b"k", ARRAY, &array(STRING, 1000, &lengths));
    check(
        "strings",
        strings.bytes(),
        |e| matches!(e, Error::Truncated { .. }),
        "a string in a metadata array",
    );
    let key = Raw { n_pairs: Some(1), pairs: vec![vec![b'x'; 70_000]], ..raw() };
    check("key length", key.bytes(), is_count, "a metadata key");
    for length in [u64::MAX, 1 << 62, 1000] {
        let value = raw().pair(b"k", STRING, &length.to_le_bytes());
        check("string", value.bytes(), |e| matches!(e, Error::Truncated { .. }), "a metadata string");
    }
}

/// Oddities of real files: a name in Latin-1, booleans written by C. They do not make a file invalid.
#[test]
fn odd_notes_are_read() {
    let open = |raw: Raw| gguf::File::from_bytes(raw.bytes()).unwrap();
    for (bytes, expected) in
        [(&b"a\xc3"[..], "a\u{fffd}"), (b"caf\xe9 au lait", "caf\u{fffd} au lait"), (b"\xff", "\u{fffd}")]
    {
        let file =
            open(raw().pair(b"general.author", STRING, &string(bytes)).pair(b"n", U32, &7u32.to_le_bytes()));
        assert_eq!(file.metadata().str("general.author").unwrap(), Some(expected));
        assert_eq!(file.metadata().u32("n").unwrap(), Some(7));
    }
    for (byte, expected) in [(0, false), (1, true), (2, true), (255, true)] {
        let file = open(raw().pair(b"flag", 7, &[byte]));
        assert_eq!(file.metadata().bool("flag").unwrap(), Some(expected));
    }
    let file = open(raw().pair(b"flags", ARRAY, &array(7, 3, &[0, 1, 2])));
    assert_eq!(file.metadata().get("flags"), Some(&gguf::Value::from(vec![false, true, true])));
}

#[cfg(unix)]
#[test]
fn a_pipe_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for path in [pipe.as_path(), folder.path(), std::path::Path::new("/dev/null")] {
        let refused = gguf::File::open(path).unwrap_err();
        assert!(matches!(refused, Error::Io { .. }), "{refused}");
    }
}

#[test]
fn bad_metadata_is_refused() {
    let u32_pair = |key: &[u8]| raw().pair(key, U32, &0u32.to_le_bytes());
    let is_utf8 = |e: &Error| matches!(e, Error::InvalidUtf8 { .. });
    check("key", u32_pair(b"\xff\xfe").bytes(), is_utf8, "a metadata key at byte 32");
    let strings = [string(b"fine"), string(b"\xed\xa0\x80")].concat();
    check("element", raw().pair(b"k", ARRAY, &array(STRING, 2, &strings)).bytes(), is_utf8, "array");
    // Both halves are invalid, only their concatenation is a character.
    let strings = [string(b"\xc3"), string(b"\xa9")].concat();
    check("halves", raw().pair(b"k", ARRAY, &array(STRING, 2, &strings)).bytes(), is_utf8, "array");

    let twice = u32_pair(b"twice").pair(b"twice", 0, &[1]);
    check("duplicate", twice.bytes(), |e| matches!(e, Error::DuplicateKey { .. }), "\"twice\"");
    for type_id in [13, 255, u32::MAX] {
        let value = raw().pair(b"odd", type_id, &[0; 64]);
        let is_type = |e: &Error| matches!(e, Error::UnknownValueType { .. });
        check("type", value.bytes(), is_type, &format!("\"odd\" has the unknown value type {type_id}"));
        let elements = raw().pair(b"odd", ARRAY, &array(type_id, 0, &[]));
        check("element type", elements.bytes(), is_type, "\"odd\"");
    }
    let nested = raw().pair(b"nested", ARRAY, &array(ARRAY, 1, &array(0, 0, &[])));
    check("nested", nested.bytes(), |e| matches!(e, Error::NestedArray { .. }), "\"nested\"");

    for alignment in [0u32, 24, u32::MAX] {
        let pair = raw().pair(b"general.alignment", U32, &alignment.to_le_bytes());
        let is_alignment = |e: &Error| matches!(e, Error::InvalidAlignment { .. });
        check("alignment", pair.bytes(), is_alignment, "not a power of two");
    }
    let text = raw().pair(b"general.alignment", STRING, &string(b"32"));
    check("alignment", text.bytes(), |e| matches!(e, Error::ValueType { .. }), "holds a string");
    let text = raw().pair(b"split.count", STRING, &string(b"2"));
    check("split", text.bytes(), |e| matches!(e, Error::ValueType { .. }), "\"split.count\"");
    let negative = raw().pair(b"general.alignment", 5, &(-32i32).to_le_bytes());
    check("alignment", negative.bytes(), |e| matches!(e, Error::ValueRange { found: -32, .. }), "-32");
}

#[test]
fn bad_tensors_are_refused() {
    let one = |dims: &[u64], type_id, offset| raw().tensor(b"w", dims, type_id, offset).data(4096).bytes();

    let is_dims = |e: &Error| matches!(e, Error::InvalidDimensions { .. });
    check("no dimension", one(&[], 0, 0), is_dims, "\"w\"");
    check("five dimensions", one(&[1; 5], 0, 0), is_dims, "\"w\"");
    check("zero", one(&[32, 0], 8, 0), is_dims, "[32, 0]");
    check("zero columns", one(&[0, 32], 8, 0), is_dims, "[0, 32]");
    for dims in [&[1 << 62, 4][..], &[1 << 32, 1 << 32], &[u64::MAX - 31], &[1 << 61], &[1 << 16; 4]] {
        check("overflow", one(dims, 0, 0), is_dims, "\"w\"");
        check("overflow", one(dims, 2, 0), is_dim_or_row, "\"w\"");
    }
    fn is_dim_or_row(e: &Error) -> bool {
        matches!(e, Error::InvalidDimensions { .. } | Error::TensorRowLength { .. })
    }

    let is_row = |e: &Error| matches!(e, Error::TensorRowLength { .. });
    check("row", one(&[33], 8, 0), is_row, "rows of 33 values are not whole blocks of 32 as Q8_0");
    check("row", one(&[576], 12, 0), is_row, "rows of 576 values are not whole blocks of 256 as Q4_K");

    let is_type = |e: &Error| matches!(e, Error::UnknownTensorType { .. });
    check("known type", one(&[256], 23, 0), is_type, "tensor \"w\" has type 23 (IQ4_XS)");
    check("unknown type", one(&[256], 4711, 0), is_type, "tensor \"w\" has type 4711 (unknown)");

    let is_outside = |e: &Error| matches!(e, Error::TensorOutOfRange { .. });
    check("beyond the end", one(&[1025], 0, 0), is_outside, "4100 bytes at offset 0");
    check("offset beyond", one(&[8], 0, 4096), is_outside, "offset 4096");
    check("offset far beyond", one(&[8], 0, !31), is_outside, "\"w\"");
    let no_data = raw().tensor(b"w", &[8], 0, 0).bytes();
    check("no data", no_data, is_outside, "the data section has 0");
    let aligned_away = raw()
        .pair(b"general.alignment", U32, &(1u32 << 31).to_le_bytes())
        .tensor(b"w", &[8], 0, 0)
        .data(64)
        .bytes();
    check("data section beyond the end", aligned_away, is_outside, "the data section has 0");
    check("unaligned", one(&[8], 0, 16), |e| matches!(e, Error::TensorAlignment { .. }), "multiple of 32");

    let pair = |second: &[u8], offset| {
        raw().tensor(b"w", &[16], 0, 0).tensor(second, &[16], 0, offset).data(4096).bytes()
    };
    check("same name", pair(b"w", 64), |e| matches!(e, Error::DuplicateTensor { .. }), "\"w\"");
    let is_overlap = |e: &Error| matches!(e, Error::TensorOverlap { .. });
    check("same place", pair(b"v", 0), is_overlap, "overlap");
    check("partly", pair(b"v", 32), is_overlap, "tensors \"w\" and \"v\" overlap");
    check("name", pair(b"\xff", 64), |e| matches!(e, Error::InvalidUtf8 { .. }), "a tensor name");
}

#[test]
fn paths_that_are_no_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let is_io = |path: &std::path::Path| {
        let error = gguf::File::open(path).unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{error:?}");
        assert!(error.to_string().contains(&path.display().to_string()));
    };
    is_io(folder.path());
    is_io(&folder.path().join("absent.gguf"));
    #[cfg(unix)]
    is_io(std::path::Path::new("/dev/zero"));

    let empty = folder.path().join("empty.gguf");
    std::fs::write(&empty, b"").unwrap();
    assert!(matches!(gguf::File::open(&empty), Err(Error::NotGguf { .. })));
}
