//! Any bytes are the records of a journal or a typed error; what was read is written and read again.

#![no_main]

use std::hint::black_box;

use breakers_files::journal::{JournalConfig, Reader};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|bytes: &[u8]| {
    for accept_unchecked in [false, true] {
        let mut config = JournalConfig::default();
        (config.accept_unchecked, config.max_line) = (accept_unchecked, 1 << 12);
        let mut reader = Reader::<Value, _>::new(bytes, "journal", &config);
        let mut n = 0;
        for record in &mut reader {
            match record {
                Ok(_) => n += 1,
                Err(error) => {
                    black_box(error.to_string());
                    return;
                }
            }
        }
        let recovery = reader.recovery();
        assert_eq!(recovery.n_records, n);
        assert!(recovery.torn_bytes <= bytes.len() as u64);
    }
});
