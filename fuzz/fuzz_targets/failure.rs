//! Any status, headers and body of an endpoint are one typed error; a pause that it asks for is no panic.

#![no_main]

use std::hint::black_box;

use breakers_remote::testing::read_failure;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((status, rest)) = bytes.split_first_chunk::<2>() else { return };
    let mut parts = rest.splitn(3, |&byte| byte == b'\n');
    let mut part = || parts.next().unwrap_or_default();
    let headers = [("retry-after", part()), ("retry-after-ms", part())];
    let error = read_failure(u16::from_le_bytes(*status), &headers, part());
    black_box((error.to_string(), error.retry_after(), error.is_retryable()));
});
