//! Measurements of a model whose predictions are known.

mod needle;
mod score;
mod toy;
