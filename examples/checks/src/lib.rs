//! Tests that need several crates, and the examples as programs: see `tests/suite`.

/// The project's front page: its examples must compile.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct FrontPage;
