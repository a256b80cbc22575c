//! The examples as programs, and what the crates do together on real weights.
//!
//! One program, because each program links all of Burn. For the same reason, modules of examples that have
//! unit tests are compiled here once more: `cargo test --examples` would link each example again.

mod calls;
mod command_line;
mod constrained;
mod contract;
mod golden;
mod kv_cache;
mod lossless;
mod prefixes;
mod serve;
mod structured;

#[allow(dead_code)] // Their own tests use more of them.
#[path = "../../../../crates/structured/tests/suite/bytes.rs"]
mod bytes;
#[allow(dead_code)]
#[path = "../../../../crates/spec-decode/tests/suite/toy.rs"]
mod toy;

#[allow(dead_code)] // The program uses what the tests do not.
#[path = "../../../decode/roofline/machine.rs"]
mod machine;
#[allow(dead_code)]
#[path = "../../../decode/spec_decode/measure.rs"]
mod measure;
#[allow(dead_code)]
#[path = "../../../decode/roofline/spans.rs"]
mod spans;
