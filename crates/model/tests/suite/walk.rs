//! A text through one block after the other.

use breakers_backend::harness::model_path;
use breakers_core::{BoxError, LanguageModel, LayerTap, Output, Step, TokenId, Want};
use breakers_gguf as gguf;
use breakers_kv_cache::Element;
use breakers_model::walk::BlockWalk;
use breakers_model::{Error, InputObserver, InputSite, LoadOptions, Model};

/// Squared differences over squares.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    let wrong: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    wrong / a.iter().map(|a| f64::from(*a).powi(2)).sum::<f64>()
}

#[test]
fn the_walk_sees_what_the_runner_computes() {
    let Some(path) = model_path("smollm2-135m") else { return };
    let options = LoadOptions { cache_element: Element::F32, ..LoadOptions::default() };
    let model = Model::load(&path, &options).unwrap();
    let tokens: Vec<TokenId> = (100..140).collect();
    let mut runner = model.runner();
    let sequence = runner.open().unwrap();
    let mut steps = [Step::each(sequence, tokens.clone(), Want::Nothing)];
    steps[0].taps = vec![LayerTap::Final];
    runner.forward(&mut steps).unwrap();
    let expected: Vec<f32> = steps[0].outputs.iter().flat_map(|row| row.hidden[0].clone()).collect();
    let file = gguf::File::open(&path).unwrap();
    let mut walk = BlockWalk::new(&file, vec![tokens]).unwrap();
    for block in 0..walk.n_blocks() {
        walk.run(&file, block, None, None, true, &mut |_| ()).unwrap();
    }
    let mut found = Vec::new();
    walk.head_inputs(&file, |rows| {
        found.extend_from_slice(rows);
        Ok(())
    })
    .unwrap();
    assert!(distance(&expected, &found) < 1e-9, "{}", distance(&expected, &found));
    // The head, which is the table of embeddings here: that of every fourth token.
    let sequence = runner.open().unwrap();
    let mut steps = [Step::each(sequence, (100..140).collect(), Want::Logits)];
    runner.forward(&mut steps).unwrap();
    let mut expected = Vec::new();
    for row in steps[0].outputs.iter().skip(3).step_by(4) {
        let Output::Logits(logits) = &row.output else { panic!("{:?}", row.output) };
        expected.extend_from_slice(logits);
    }
    let found = walk.logits(&file, 4).unwrap();
    assert_eq!(found.len(), 10);
    let off = distance(&expected, &found.concat());
    assert!(off < 1e-6, "{off}");
    assert!(walk.logits(&file, 41).unwrap().is_empty());
}

/// Fails at the inputs of the down projection.
struct Fails(Vec<InputSite>);

impl InputObserver for Fails {
    fn observe(&mut self, site: InputSite, rows: &[f32], n_cols: usize) -> Result<(), BoxError> {
        assert_eq!(rows.len(), 4 * n_cols);
        self.0.push(site);
        if site == InputSite::FeedForwardOut { Err("no room left".into()) } else { Ok(()) }
    }
}

#[test]
fn an_observer_that_fails_ends_the_pass() {
    let Some(path) = model_path("smollm2-135m") else { return };
    let file = gguf::File::open(&path).unwrap();
    let mut walk = BlockWalk::new(&file, vec![vec![1, 2, 3, 4]]).unwrap();
    let mut observer = Fails(Vec::new());
    let found = walk.run(&file, 0, None, Some(&mut observer), true, &mut |_| ());
    assert!(
        matches!(&found, Err(Error::Observer(error)) if error.to_string() == "no room left"),
        "{found:?}"
    );
    assert_eq!(observer.0, InputSite::ALL);
    let found = walk.head_inputs(&file, |_| Err("enough".into()));
    assert!(matches!(&found, Err(Error::Observer(error)) if error.to_string() == "enough"), "{found:?}");
}
