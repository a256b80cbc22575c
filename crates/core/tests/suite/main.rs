//! Tests of this crate as its users see it.

mod reference;
mod sampling;
