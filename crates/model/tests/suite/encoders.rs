//! Models that cannot continue texts.

use breakers_backend::harness::model_path;
use breakers_model::{Error, LoadOptions, Model};

#[test]
fn an_encoder_continues_no_text() {
    let Some(folder) = model_path("minilm") else { return };
    let error = Model::load(folder, &LoadOptions::default()).unwrap_err();
    assert!(matches!(&error, Error::NotCausal { found, .. } if found == "bert"), "{error:?}");
}
