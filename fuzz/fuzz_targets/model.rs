//! Any bytes are a GGUF model that can be loaded and run for a token, or a typed error.

#![no_main]

use std::hint::black_box;

use breakers_core::{LanguageModel, Step, Want};
use breakers_model::{LoadOptions, Model};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let path = std::env::temp_dir().join(format!("breakers-fuzz-model-{}.gguf", std::process::id()));
    std::fs::write(&path, bytes).expect("a file that is thrown away");
    match Model::load(&path, &LoadOptions::default()) {
        Ok(model) => {
            let mut runner = model.runner();
            let step = runner.open().map(|sequence| Step::last(sequence, vec![0], Want::ArgMax));
            black_box(step.and_then(|step| runner.forward(&mut [step])).is_ok());
        }
        Err(error) => drop(black_box(error.to_string())),
    }
    let _ = std::fs::remove_file(&path);
});
