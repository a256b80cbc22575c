//! Files of sections: every flipped bit, every other length, every failing call, any bytes.

use breakers_files::{
    Error, OsDisk,
    sections::{self, SectionFile},
    testing::{Fault, FaultyDisk},
};
use proptest::prelude::*;
use std::fs;

#[test]
fn every_flipped_bit_and_every_other_length_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let (a, b) = ([1u32, 2, 3], [4u8; 70]);
    sections::write(&OsDisk, &path, 7u32, &[("a", bytemuck::bytes_of(&a)), ("b", &b), ("none", &[])])
        .unwrap();
    let opened = SectionFile::<u32>::open(&path).unwrap();
    assert_eq!(opened.info, 7);
    assert_eq!(&*opened.array::<u32>("a", 3).unwrap(), &a);
    assert_eq!(&*opened.array::<u8>("b", 70).unwrap(), &b);
    assert!(opened.array::<u8>("none", 0).unwrap().is_empty());
    assert!(matches!(opened.array::<u32>("a", 4), Err(Error::Damaged { what: "a", .. })));
    assert!(matches!(opened.array::<u32>("c", 4), Err(Error::Damaged { what: "c", .. })));
    let good = fs::read(&path).unwrap();
    let (info, parts) = sections::parse::<u32>(&good).unwrap();
    assert_eq!((info, parts.len()), (7, 3));
    assert_eq!(parts[1], ("b".to_owned(), &b[..]));
    let refused = |bytes: &[u8], what: &str| {
        fs::write(&path, bytes).unwrap();
        let error = SectionFile::<u32>::open(&path).unwrap_err();
        assert!(matches!(error, Error::Damaged { .. } | Error::Io { .. }), "{what}: {error}");
        assert!(matches!(sections::parse::<u32>(bytes), Err(Error::Damaged { .. })), "{what}");
    };
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        refused(&bad, &format!("byte {at}"));
        refused(&good[..at], &format!("{at} bytes"));
    }
    refused(&[&good[..], &[0; 64]].concat(), "longer");
    assert!(matches!(SectionFile::<u32>::open(folder.path()), Err(Error::NotAFile { .. })));
}

#[test]
fn every_failing_call_leaves_the_old_file_or_the_new_one() {
    for fault in Fault::ALL {
        for n in 0.. {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("file");
            let write =
                |disk: &FaultyDisk, info: u32| sections::write(disk, &path, info, &[("s", &[1; 100])]);
            let disk = FaultyDisk::default();
            write(&disk, 1).unwrap();
            disk.countdown().start(n, fault);
            let result = write(&disk, 2);
            let met = disk.countdown().stop();
            let found = SectionFile::<u32>::open(&path).unwrap().info;
            assert!(found == 2 || (found == 1 && result.is_err()), "{fault:?} at {n}: {result:?}");
            if !met {
                assert_eq!((result.is_ok(), found), (true, 2));
                break;
            }
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_are_parsed_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(sections::parse::<serde_json::Value>(&bytes).is_err());
    }

    // Random bytes never form a header, so this one builds headers that make false claims.
    #[test]
    fn any_claims_are_checked(claims in prop::collection::vec((any::<u32>(), any::<u32>()), 0..4), tail in 0usize..300) {
        let list: Vec<_> = claims
            .iter()
            .map(|(bytes, crc)| serde_json::json!({"name": "s", "bytes": u64::from(*bytes) << 33, "crc": crc}))
            .collect();
        let json = serde_json::to_vec(&serde_json::json!({"info": null, "sections": list})).unwrap();
        let mut file = b"BRKIDX\x01\n".to_vec();
        file.extend((json.len() as u32).to_le_bytes());
        file.extend([0; 4]);
        file.extend(json);
        file.resize(file.len().next_multiple_of(64), 0);
        let mut crc = crc32fast::Hasher::new();
        crc.update(&file[..12]);
        crc.update(&file[16..]);
        file[12..16].copy_from_slice(&crc.finalize().to_le_bytes());
        file.resize(file.len() + tail, 0);
        let good = claims.iter().all(|(bytes, crc)| *bytes == 0 && *crc == 0) && tail == 0;
        prop_assert_eq!(sections::parse::<serde_json::Value>(&file).is_ok(), good);
    }
}
