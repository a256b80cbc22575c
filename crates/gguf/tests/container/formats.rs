use breakers_gguf::{Error, Format};

/// Packed rows and their values from an independent decoder; see `tests/data/make_vectors.py`.
const VECTORS: [(Format, &[u8]); 15] = [
    (Format::F32, include_bytes!("../data/f32.bin")),
    (Format::F16, include_bytes!("../data/f16.bin")),
    (Format::BF16, include_bytes!("../data/bf16.bin")),
    (Format::Q4_0, include_bytes!("../data/q4_0.bin")),
    (Format::Q4_1, include_bytes!("../data/q4_1.bin")),
    (Format::Q5_0, include_bytes!("../data/q5_0.bin")),
    (Format::Q5_1, include_bytes!("../data/q5_1.bin")),
    (Format::Q8_0, include_bytes!("../data/q8_0.bin")),
    (Format::Q2_K, include_bytes!("../data/q2_k.bin")),
    (Format::Q3_K, include_bytes!("../data/q3_k.bin")),
    (Format::Q4_K, include_bytes!("../data/q4_k.bin")),
    (Format::Q5_K, include_bytes!("../data/q5_k.bin")),
    (Format::Q6_K, include_bytes!("../data/q6_k.bin")),
    (Format::IQ4_NL, include_bytes!("../data/iq4_nl.bin")),
    (Format::MXFP4, include_bytes!("../data/mxfp4.bin")),
];

fn check(format: Format, vector: &[u8]) {
    let (size, packed_bytes) = (format.block_size(), format.block_bytes());
    let n_blocks = vector.len() / (packed_bytes + 4 * size);
    let (packed, values) = vector.split_at(n_blocks * packed_bytes);
    let expected: Vec<u32> =
        values.chunks_exact(4).map(|v| u32::from_le_bytes(v.try_into().unwrap())).collect();
    assert_eq!(expected.len(), n_blocks * size, "{format}: the file is whole blocks");

    // Every number of blocks from none to all, and one block at a time.
    for n in 0..=n_blocks {
        let mut row = vec![f32::NAN; n * size];
        format.decode_row(&packed[..n * packed_bytes], &mut row).unwrap();
        let bits: Vec<u32> = row.iter().map(|v| v.to_bits()).collect();
        assert_eq!(bits, expected[..n * size], "{format}, {n} blocks");
    }
    for (block, expected) in packed.chunks_exact(packed_bytes).zip(expected.chunks_exact(size)) {
        let mut row = vec![f32::NAN; size];
        format.decode_row(block, &mut row).unwrap();
        assert!(row.iter().map(|v| v.to_bits()).eq(expected.iter().copied()), "{format}, one block");
    }
}

#[test]
fn rows_decode_to_the_bits_of_an_independent_decoder() {
    assert_eq!(VECTORS.map(|(format, _)| format), Format::ALL);
    for (format, vector) in VECTORS {
        check(format, vector);
    }
}

#[test]
fn numbers_and_names_of_formats_are_unique() {
    for format in Format::ALL {
        assert_eq!(Format::from_ggml(format.to_ggml()), Some(format));
        let same = |other: &&Format| other.name() == format.name() || other.to_ggml() == format.to_ggml();
        assert_eq!(Format::ALL.iter().filter(same).count(), 1);
    }
    for undecoded in [4, 9, 15, 23, 26, 41, 42, u32::MAX] {
        assert_eq!(Format::from_ggml(undecoded), None);
    }
}

#[test]
fn lengths_that_do_not_agree_are_refused() {
    for format in Format::ALL {
        let (size, bytes) = (format.block_size(), format.block_bytes());
        let mut out = vec![0.0; 2 * size];
        for wrong in [0, 1, bytes, 2 * bytes - 1, 2 * bytes + 1] {
            let error = format.decode_row(&vec![0; wrong], &mut out).unwrap_err();
            assert!(
                matches!(error, Error::Length { expected, found, .. } if expected == 2 * bytes && found == wrong),
                "{format}: {error}"
            );
        }
        if size > 1 {
            let error = format.decode_row(&vec![0; bytes], &mut out[..size - 1]).unwrap_err();
            assert!(
                matches!(error, Error::RowLength { block_size, found, .. } if block_size == size && found == size - 1)
            );
        }
    }
    // The widest row of whole blocks: only F32 has blocks of more bytes than values.
    assert!(matches!(Format::F32.row_bytes(usize::MAX), Err(Error::CountTooLarge { .. })));
    assert!(Format::Q8_0.row_bytes(usize::MAX - 31).is_err());
}
