//! Any bytes give a file of matrices or a typed error; its matrices can be decoded and
//! packed, or are refused.

#![no_main]

use std::hint::black_box;

use breakers_gguf::MatrixFile;
use breakers_linear::PackedMatrix;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    match MatrixFile::from_bytes(bytes.to_vec()) {
        Ok(file) => {
            for name in file.names() {
                if let Ok(matrix) = file.matrix(name) {
                    assert_eq!(matrix.to_f32().len(), matrix.n_rows() * matrix.n_cols());
                    black_box(PackedMatrix::from_quantized(&matrix).is_ok());
                }
            }
        }
        Err(error) => {
            black_box(error.to_string());
        }
    }
});
