//! Files of quantized matrices: what is written is read, and what is damaged is refused.

use breakers_cpu::random::SplitMix64;
use breakers_gguf::{
    Encoding, Error, Format, GroupFormat, GroupMatrix, GroupScales, MatrixFile, QuantizedMatrix, matrix_file,
};
use proptest::prelude::*;
use safetensors::tensor::TensorView;
use std::collections::HashMap;

const N_COLS: usize = 256;

/// Numbers below `n`, the same everywhere.
fn numbers(seed: u64, n: u64) -> impl Iterator<Item = u64> {
    let mut random = SplitMix64::new(seed);
    std::iter::repeat_with(move || random.next() % n)
}

/// Arbitrary codes and scales; halves of blocks stay finite.
fn matrix(encoding: Encoding) -> QuantizedMatrix {
    match encoding {
        Encoding::Gguf(format) => {
            let n_bytes = encoding.matrix_bytes(5, N_COLS).unwrap();
            let bytes = numbers(1, 60).take(n_bytes).map(|x| x as u8).collect();
            QuantizedMatrix::from_bytes(format, 5, N_COLS, bytes).unwrap()
        }
        Encoding::Groups(format) => {
            let n_levels = match format {
                GroupFormat::NvFp4 => 15,
                GroupFormat::Symmetric { bits, .. } => (1 << bits) - 1,
                _ => 1 << format.bits(),
            };
            let codes: Vec<u8> = numbers(2, n_levels).take(5 * N_COLS).map(|x| x as u8).collect();
            let wanted: Vec<(f32, f32)> = numbers(3, 1000)
                .take(5 * N_COLS / format.group())
                .map(|x| (0.01 + 0.001 * x as f32, -0.5 + 0.002 * x as f32))
                .collect();
            let scales = GroupScales::store(format, &wanted);
            QuantizedMatrix::from_groups(GroupMatrix::new(format, 5, N_COLS, scales, &codes).unwrap())
        }
    }
}

fn matrices() -> Vec<(String, QuantizedMatrix)> {
    let encodings = [
        Encoding::Gguf(Format::Q3_K),
        Encoding::Gguf(Format::F16),
        Encoding::Groups(GroupFormat::Affine { bits: 3, group: 64 }),
        Encoding::Groups(GroupFormat::Symmetric { bits: 5, group: 32 }),
        Encoding::Groups(GroupFormat::Nf4),
        Encoding::Groups(GroupFormat::NvFp4),
    ];
    let mut out = Vec::new();
    for encoding in encodings {
        out.push((encoding.name(), matrix(encoding)));
        let rotated = matrix(encoding).of_rotated_inputs(7).unwrap();
        out.push((format!("{} rotated", encoding.name()), rotated));
    }
    let divisors = numbers(4, 100).take(N_COLS).map(|x| 0.5 + 0.01 * x as f32).collect();
    out.push(("divided".to_owned(), matrix(encodings[2]).of_divided_inputs(divisors).unwrap()));
    out
}

fn file(matrices: &[(String, QuantizedMatrix)]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.safetensors");
    matrix_file::write(&path, matrices.iter().map(|(name, matrix)| (&**name, matrix))).unwrap();
    // The file that was written is alone in the folder.
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    let other = folder.path().join("other");
    std::fs::write(&other, []).unwrap();
    let permissions = |path| std::fs::metadata(path).unwrap().permissions();
    assert_eq!(permissions(&path), permissions(&other), "an ordinary file");
    std::fs::read(&path).unwrap()
}

#[test]
fn what_is_written_is_read() {
    let matrices = matrices();
    let store = MatrixFile::from_bytes(file(&matrices)).unwrap();
    let mut names: Vec<&str> = matrices.iter().map(|(name, _)| &**name).collect();
    names.sort_unstable();
    assert_eq!(store.names().collect::<Vec<_>>(), names);
    for (name, matrix) in &matrices {
        let found = store.matrix(name).unwrap();
        assert_eq!(found.encoding(), matrix.encoding(), "{name}");
        assert_eq!((found.n_rows(), found.n_cols(), found.bytes()), (5, N_COLS, matrix.bytes()), "{name}");
        assert_eq!(found.rotation_seed(), matrix.rotation_seed(), "{name}");
        assert_eq!(found.input_scales(), matrix.input_scales(), "{name}");
        assert_eq!(found.to_f32(), matrix.to_f32(), "{name}");
    }
    assert!(matches!(store.matrix("none"), Err(Error::NoMatrix { .. })));
}

#[test]
fn what_does_not_fit_is_refused() {
    let format = GroupFormat::Symmetric { bits: 2, group: 4 };
    let scales = || GroupScales::store(format, &[(1.0, 0.0); 2]);
    assert!(GroupMatrix::new(format, 2, 4, scales(), &[0, 1, 2, 0, 0, 1, 2, 0]).is_ok());
    let found = GroupMatrix::new(format, 2, 4, scales(), &[0, 1, 2, 3, 0, 1, 2, 0]);
    assert!(matches!(found, Err(Error::UnknownCode { found: 3, .. })), "{found:?}");
    let found = GroupMatrix::from_packed(format, 2, 4, scales(), vec![0b1110_0100, 0]);
    assert!(matches!(found, Err(Error::UnknownCode { found: 3, .. })), "{found:?}");
    let found = GroupMatrix::new(format, 2, 4, scales(), &[0; 7]);
    assert!(matches!(found, Err(Error::Length { expected: 8, found: 7, .. })), "{found:?}");
    let found = GroupMatrix::from_packed(format, 2, 4, scales(), vec![0; 3]);
    assert!(matches!(found, Err(Error::Length { expected: 2, found: 3, .. })), "{found:?}");
    let found = GroupMatrix::new(format, 3, 4, scales(), &[0; 12]);
    assert!(matches!(found, Err(Error::Length { expected: 3, found: 2, .. })), "{found:?}");
    let found = GroupMatrix::new(GroupFormat::Affine { bits: 2, group: 4 }, 2, 4, scales(), &[0; 8]);
    assert!(matches!(found, Err(Error::ScaleKind { .. })), "{found:?}");
    let found = GroupMatrix::new(format, 2, 6, scales(), &[0; 12]);
    assert!(matches!(found, Err(Error::GroupSize { group: 4, n_cols: 6 })), "{found:?}");
    let matrix = || matrix(Encoding::Groups(GroupFormat::Nf4));
    let found = matrix().of_divided_inputs(vec![1.0; 3]);
    assert!(matches!(found, Err(Error::Length { expected: N_COLS, found: 3, .. })), "{found:?}");
    for divisor in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let found = matrix().of_divided_inputs([vec![1.0; N_COLS - 1], vec![divisor]].concat());
        assert!(matches!(found, Err(Error::Divisor { col: 255, .. })), "{found:?}");
    }
}

#[test]
fn formats_are_found_by_their_names() {
    for format in [
        GroupFormat::Affine { bits: 4, group: 128 },
        GroupFormat::Symmetric { bits: 3, group: 96 },
        GroupFormat::Nf4,
        GroupFormat::NvFp4,
    ] {
        assert_eq!(GroupFormat::parse(&format.name()), Some(format));
    }
    for wrong in ["", "int", "int4", "int4-g", "int-g4", "intx-g4", "äöü4-g32", "nf5", "sym999-g4"] {
        assert_eq!(GroupFormat::parse(wrong), None, "{wrong}");
    }
}

/// The file with one text in its header replaced by another of the same length.
fn changed(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let at = bytes.windows(from.len()).position(|part| part == from.as_bytes()).expect(from);
    let mut out = bytes.to_vec();
    out[at..at + to.len()].copy_from_slice(to.as_bytes());
    out
}

#[test]
fn headers_that_lie_are_refused() {
    let all = matrices();
    let one = |name: &str| -> Vec<(String, QuantizedMatrix)> {
        all.iter().filter(|(found, _)| found == name).cloned().collect()
    };
    let nf4 = file(&one("nf4"));
    for (from, to) in [
        ("nf4 5 256", "nf4 4 256"),
        ("nf4 5 256", "nf4 5 320"),
        ("nf4 5 256", "nf4 5 100"),
        ("nf4 5 256", "nf4 0 256"),
        ("nf4 5 256", "nf4 52 56"),
        ("nf4 5 256", "int4-g256"),
        ("nf4.scales", "nf4.scares"),
        ("\"I8\"", "\"U8\""),
    ] {
        let found = MatrixFile::from_bytes(changed(&nf4, from, to));
        let refused = matches!(found, Err(Error::MatrixEntry { .. } | Error::GroupSize { .. }));
        assert!(refused, "{from} as {to}: {found:?}");
    }
    // Entries without tensors: sizes whose product overflows, words that are not sizes.
    for words in [
        "nf4 18446744073709551615 1844674407370955136 - m",
        "int4-g1 18446744073709551615 18446744073709551615 - m",
        "Q4_0 4611686018427387904 32 - m",
        "nf4 1 64 - m",
        "nf4 1 64 x m",
        "nf4 1 64 2 m",
        "nf4 1 64 m",
        "nf5 1 64 - m",
        "\n",
    ] {
        let metadata = HashMap::from([("breakers.matrices".to_owned(), words.to_owned())]);
        let tensors: Vec<(String, TensorView<'_>)> = Vec::new();
        let found = MatrixFile::from_bytes(safetensors::serialize(tensors, Some(metadata)).unwrap());
        assert!(matches!(found, Err(Error::MatrixEntry { .. })), "{words}: {found:?}");
    }
    assert!(matches!(MatrixFile::from_bytes(Vec::new()), Err(Error::Safetensors { .. })));
    assert!(matches!(MatrixFile::from_bytes(vec![0xff; 64]), Err(Error::Safetensors { .. })));
    // Codes without a level: 15 of NVFP4.
    let nvfp4 = file(&one("nvfp4"));
    let data = nvfp4.len() - 5 * N_COLS / 2 - 5 * N_COLS / 16;
    let mut spoiled = nvfp4.clone();
    spoiled[data..].fill(0xff);
    let found = MatrixFile::from_bytes(spoiled).unwrap().matrix("nvfp4");
    assert!(matches!(found, Err(Error::MatrixEntry { .. })), "{found:?}");
    let nowhere = matrix_file::write_intermediate("/nowhere/at/all.safetensors", [("m", &all[0].1)]);
    assert!(matches!(nowhere, Err(Error::Io { .. })), "{nowhere:?}");
    let missing = MatrixFile::open("/nowhere/at/all.safetensors");
    assert!(matches!(missing, Err(Error::Io { .. })), "{missing:?}");
}

#[test]
fn files_are_joined_and_equal_matrices_make_equal_files() {
    let all = matrices();
    let folder = tempfile::tempdir().unwrap();
    let (whole, joined) = (folder.path().join("whole"), folder.path().join("joined"));
    fn refs(part: &[(String, QuantizedMatrix)]) -> impl Iterator<Item = (&str, &QuantizedMatrix)> {
        part.iter().map(|(name, matrix)| (&**name, matrix))
    }
    matrix_file::write(&whole, refs(&all)).unwrap();
    let parts: Vec<MatrixFile> = all
        .chunks(3)
        .map(|chunk| {
            let path = folder.path().join("part");
            matrix_file::write_intermediate(&path, refs(chunk)).unwrap();
            MatrixFile::from_bytes(std::fs::read(path).unwrap()).unwrap()
        })
        .collect();
    matrix_file::join(&joined, parts.iter().rev()).unwrap();
    assert!(std::fs::read(&whole).unwrap() == std::fs::read(&joined).unwrap());
    let found = matrix_file::join(&joined, [&parts[0], &parts[0]]);
    assert!(matches!(found, Err(Error::MatrixEntry { .. })), "{found:?}");
    let store = MatrixFile::open(&joined).unwrap();
    for (name, matrix) in &all {
        let (encoding, shape) = (matrix.encoding(), [matrix.n_rows(), matrix.n_cols()]);
        assert_eq!((store.encoding(name), store.shape(name)), (Some(encoding), Some(shape)));
        // Bytes of the inputs' divisors come on top.
        let divisors = matrix.input_scales().map_or(0, |scales| 4 * scales.len());
        assert_eq!(encoding.matrix_bytes(shape[0], shape[1]).unwrap() + divisors, matrix.bytes(), "{name}");
    }
    let two_lines = matrix_file::write(folder.path().join("two"), [("a\nb", &all[0].1)]);
    assert!(matches!(two_lines, Err(Error::MatrixEntry { .. })), "{two_lines:?}");
}

/// The fuzz target's seeds get as far as the decoder.
#[test]
fn seeds_of_the_fuzz_target_are_read() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/seeds/matrix_file");
    let mut n_matrices = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let store = MatrixFile::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        for name in store.names() {
            let matrix = store.matrix(name).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            assert!(matrix.to_f32().iter().all(|x| x.is_finite()), "{}", path.display());
            n_matrices += 1;
        }
    }
    assert!(n_matrices > 5, "{n_matrices}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn damaged_files_give_errors_or_numbers(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        static FILE: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
        let mut bytes = FILE.get_or_init(|| file(&matrices())).clone();
        for (at, byte) in changes {
            // Half of the changes hit the header.
            let n = if byte % 2 == 0 { bytes.len() } else { bytes.len().min(2048) };
            bytes[at.index(n)] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(store) = MatrixFile::from_bytes(bytes) {
            for name in store.names() {
                if let Ok(matrix) = store.matrix(name) {
                    prop_assert_eq!(matrix.to_f32().len(), matrix.n_rows() * matrix.n_cols());
                }
            }
        }
    }
}
