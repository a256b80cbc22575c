//! Real models for tests.

use breakers_backend::harness::model_path;
use breakers_model::{LoadOptions, Model};

/// A model on the CPU; `None`, with a note, where it has not been fetched.
pub(crate) fn load(name: &str) -> Option<Model> {
    model_path(name).map(|path| Model::load(path, &LoadOptions::default()).expect(name))
}
