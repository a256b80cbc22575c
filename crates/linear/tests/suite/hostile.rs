//! Damaged files of matrices: what can be read can be packed, or is refused.

use crate::support::{Random, rounded};
use breakers_gguf::{GroupFormat, MatrixFile, QuantizedMatrix, matrix_file};
use breakers_linear::PackedMatrix;
use proptest::prelude::*;

const FORMATS: [GroupFormat; 4] = [
    GroupFormat::Affine { bits: 3, group: 64 },
    GroupFormat::Symmetric { bits: 5, group: 32 },
    GroupFormat::Nf4,
    GroupFormat::NvFp4,
];

fn file() -> Vec<u8> {
    let mut random = Random::new(1);
    let values: Vec<f32> = (0..5 * 256).map(|_| random.float()).collect();
    let matrices: Vec<(String, QuantizedMatrix)> =
        FORMATS.map(|format| (format.name(), rounded(format, &values, 5, 256))).into();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.safetensors");
    matrix_file::write(&path, matrices.iter().map(|(name, matrix)| (&**name, matrix))).unwrap();
    std::fs::read(&path).unwrap()
}

#[test]
fn the_file_itself_can_be_packed() {
    let file = MatrixFile::from_bytes(file()).unwrap();
    let packed = |name: &str| PackedMatrix::from_quantized(&file.matrix(name).unwrap()).unwrap();
    assert_eq!(file.names().map(packed).map(|matrix| matrix.n_rows()).sum::<usize>(), 5 * FORMATS.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn damaged_files_are_packed_or_refused(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        static FILE: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
        let mut bytes = FILE.get_or_init(file).clone();
        for (at, byte) in changes {
            // Half of the changes hit the header.
            let n = if byte % 2 == 0 { bytes.len() } else { bytes.len().min(2048) };
            bytes[at.index(n)] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(file) = MatrixFile::from_bytes(bytes) {
            for name in file.names() {
                if let Ok(matrix) = file.matrix(name) {
                    prop_assert_eq!(matrix.to_f32().len(), matrix.n_rows() * matrix.n_cols());
                    if let Ok(packed) = PackedMatrix::from_quantized(&matrix) {
                        prop_assert_eq!((packed.n_rows(), packed.n_cols()), (matrix.n_rows(), matrix.n_cols()));
                    }
                }
            }
        }
    }
}
