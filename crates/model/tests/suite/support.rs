//! Models for tests: real ones, and files written for a test.

use std::collections::BTreeMap;
use std::path::Path;

use breakers_backend::harness::model_path;
use breakers_gguf as gguf;
use breakers_gguf::{Format, Value};
use breakers_model::{LoadOptions, Model};

/// A model on the CPU; `None`, with a note, where it has not been fetched.
pub(crate) fn load(name: &str) -> Option<Model> {
    model_path(name).map(|path| Model::load(path, &LoadOptions::default()).expect(name))
}

/// Writes a GGUF file with these keys and tensors, each a shape and its numbers.
pub(crate) fn write_gguf<'a>(
    path: &Path,
    metadata: impl IntoIterator<Item = (&'a String, &'a Value)>,
    tensors: &BTreeMap<String, (Vec<usize>, Vec<f32>)>,
) {
    let mut writer = gguf::Writer::new();
    for (key, value) in metadata {
        writer.insert(key, value.clone()).unwrap();
    }
    for (name, (shape, _)) in tensors {
        writer.declare(name, Format::F32, shape).unwrap();
    }
    let mut file = writer.create(path).unwrap();
    for (name, (_, values)) in tensors {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        file.write(name, &bytes).unwrap();
    }
    file.finish().unwrap();
}
