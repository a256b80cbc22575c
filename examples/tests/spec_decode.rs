//! Unit tests of the example `spec_decode`. An example with `test = true` would be built as a test alone, and
//! `tests/command_line.rs` needs the program, so its module is compiled here once more.

#[allow(dead_code)] // The program uses what the tests do not.
#[path = "../spec_decode/measure.rs"]
mod measure;
