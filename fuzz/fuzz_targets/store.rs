//! Any bytes give a file of matrices or a typed error; its matrices can be decoded and packed, or are refused.

#![no_main]

use std::hint::black_box;

use breakers_quant::store::Store;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    match Store::from_bytes(bytes.to_vec()) {
        Ok(store) => {
            for name in store.names() {
                if let Ok(matrix) = store.matrix(name) {
                    assert_eq!(matrix.to_f32().len(), matrix.n_rows() * matrix.n_cols());
                    black_box(matrix.to_packed().is_ok());
                }
            }
        }
        Err(error) => {
            black_box(error.to_string());
        }
    }
});
