//! Real models for the tests of crates without Burn.

/// The file `<name>.gguf` in the folder that `BREAKERS_TEST_MODELS` names; `None`, with a note, if it is not
/// there. (A copy of the function in `breakers-backend`, so that these tests do not need Burn.)
pub(crate) fn model_path(name: &str) -> Option<std::path::PathBuf> {
    let folder = std::env::var_os("BREAKERS_TEST_MODELS").map(std::path::PathBuf::from);
    let found = folder.map(|folder| folder.join(format!("{name}.gguf"))).filter(|path| path.exists());
    let required = std::env::var("BREAKERS_REQUIRE_MODELS").is_ok_and(|value| value == "1");
    // Only the full check fetches the large ones.
    assert!(
        found.is_some() || !required || name.starts_with("qwen"),
        "{name} is not in the folder of BREAKERS_TEST_MODELS"
    );
    if found.is_none() {
        eprintln!("skipped: {name} is not in the folder of BREAKERS_TEST_MODELS");
    }
    found
}
