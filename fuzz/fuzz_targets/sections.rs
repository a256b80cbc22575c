//! Any bytes are a file of sections or a typed error.

#![no_main]

use std::hint::black_box;

use breakers_files::sections;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|bytes: &[u8]| {
    match sections::parse::<Value>(bytes) {
        Ok((_, sections)) => {
            let total: usize = sections.iter().map(|(_, section)| section.len()).sum();
            assert!(total <= bytes.len());
        }
        Err(error) => {
            black_box(error.to_string());
        }
    }
});
