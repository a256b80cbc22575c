//! Real models for tests: a folder of `<name>.gguf` files named by `BREAKERS_TEST_MODELS`.

use std::path::PathBuf;

use breakers_model::{LoadOptions, Model};

/// The path of a model's file or folder; `None`, with a note, where the models have not been fetched.
///
/// With `BREAKERS_REQUIRE_MODELS=1` a missing model that continuous integration fetches is a failure.
pub(crate) fn path(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("BREAKERS_TEST_MODELS").map(PathBuf::from);
    let found =
        folder.iter().flat_map(|f| [f.join(format!("{name}.gguf")), f.join(name)]).find(|p| p.exists());
    if found.is_none() {
        let required =
            std::env::var("BREAKERS_REQUIRE_MODELS").is_ok_and(|v| v == "1") && !name.starts_with("qwen");
        assert!(!required, "{name} is not in BREAKERS_TEST_MODELS ({folder:?}); run `cargo xtask fetch`");
        eprintln!("skipped: {name} is not in BREAKERS_TEST_MODELS; `cargo xtask fetch` gets it");
    }
    found
}

/// A model on the CPU.
pub(crate) fn load(name: &str) -> Option<Model> {
    path(name).map(|p| Model::load(p, &LoadOptions::default()).expect(name))
}
