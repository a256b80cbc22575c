//! Any text is the name of a cache or of a quantization job, or a typed error; a name that is
//! read is written again.

#![no_main]

use std::hint::black_box;

use breakers_quant::job::JobSpec;
use breakers_kv_cache::CacheSpec;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match text.parse::<CacheSpec>() {
        Ok(spec) => assert_eq!(spec.to_string(), text),
        Err(error) => drop(black_box(error.to_string())),
    }
    if let Ok(job) = text.parse::<JobSpec>() {
        black_box(job.extension());
        assert!(job.to_string().parse::<JobSpec>().is_ok());
    }
});
