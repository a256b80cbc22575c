//! Real models for tests.

use std::path::PathBuf;

/// Models that only the full check fetches: they are too large for continuous integration.
const LARGE: &str = "qwen";

/// The file `<name>.gguf`, or the folder `<name>`, in the folder that the environment variable
/// `BREAKERS_TEST_MODELS` names; `None`, with a note on standard error, if it is not there.
///
/// # Panics
/// With `BREAKERS_REQUIRE_MODELS=1`, if a model is missing that continuous integration fetches.
///
/// # Example
/// ```
/// let Some(path) = breakers_backend::harness::model_path("qwen-of-tomorrow") else { return };
/// assert!(path.exists());
/// ```
pub fn model_path(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("BREAKERS_TEST_MODELS").map(PathBuf::from);
    let found = folder
        .iter()
        .flat_map(|folder| [folder.join(format!("{name}.gguf")), folder.join(name)])
        .find(|path| path.exists());
    if found.is_none() {
        let required = std::env::var("BREAKERS_REQUIRE_MODELS").is_ok_and(|value| value == "1");
        assert!(
            !required || name.starts_with(LARGE),
            "{name} is not in the folder of BREAKERS_TEST_MODELS ({folder:?}); run `cargo xtask fetch`"
        );
        eprintln!(
            "skipped: {name} is not in the folder of BREAKERS_TEST_MODELS; `cargo xtask fetch` gets it"
        );
    }
    found
}
