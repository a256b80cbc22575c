//! Valid files that were damaged: the result is a file or a typed error, whatever the bytes.

use breakers_gguf as gguf;
use proptest::prelude::*;

use crate::{allocations::largest_during, sample};

fn check(bytes: Vec<u8>) -> bool {
    let n_bytes = bytes.len();
    let (result, largest) = largest_during(|| gguf::File::from_bytes(bytes));
    // A hash table of 20 pairs and a list of as many values take some kilobytes whatever they hold.
    assert!(largest <= 8 * n_bytes + 4096, "{largest} bytes at once for a file of {n_bytes}");
    match &result {
        Ok(file) => sample::walk(file),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    result.is_ok()
}

#[test]
fn truncated_anywhere() {
    let bytes = sample::file();
    let file = gguf::File::from_bytes(bytes.clone()).unwrap();
    // Everything after the last byte of the last tensor is padding.
    let last = file.require("last").unwrap().bytes();
    let end = bytes.windows(last.len()).rposition(|window| window == last).unwrap() + last.len();
    assert!(end < bytes.len());
    for length in 0..=bytes.len() {
        assert_eq!(check(bytes[..length].to_vec()), length >= end, "{length} of {} bytes", bytes.len());
    }
}

#[test]
fn every_byte_of_the_header_set_to_extremes() {
    let bytes = sample::file();
    let header = bytes.len() / 2;
    for position in 0..header {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            let mut damaged = bytes.clone();
            damaged[position] = value;
            check(damaged);
        }
        for value in [0, 1, u64::MAX, 1 << 63, u64::from(u32::MAX), 1 << 40] {
            let mut damaged = bytes.clone();
            let end = (position + 8).min(bytes.len());
            damaged[position..end].copy_from_slice(&value.to_le_bytes()[..end - position]);
            check(damaged);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn flipped_bytes(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..16)) {
        let mut bytes = sample::file();
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= value;
        }
        check(bytes);
    }

    #[test]
    fn pieces_moved(
        from in any::<prop::sample::Index>(), to in any::<prop::sample::Index>(), length in 1usize..64,
        insert in any::<bool>(),
    ) {
        let mut bytes = sample::file();
        let from = from.index(bytes.len());
        let piece = bytes[from..(from + length).min(bytes.len())].to_vec();
        let to = to.index(bytes.len());
        let replaced = if insert { 0 } else { piece.len().min(bytes.len() - to) };
        bytes.splice(to..to + replaced, piece);
        check(bytes);
    }

    #[test]
    fn random_bytes_after_the_magic(tail in prop::collection::vec(any::<u8>(), 0..256)) {
        check([b"GGUF\x03\0\0\0".as_slice(), &tail].concat());
    }
}
