//! A row's logits have the same bits, whatever else is in the call. On real weights.

use std::sync::Arc;

use breakers_backend::harness::model_path;
use breakers_core::{
    Error, LanguageModel, LayerTap, Output, SequenceId, Step, StepError, TokenId, TokenMask, Want,
    argmax_within,
};
use breakers_cpu::{self as cpu, pool};
use breakers_model::{Model, Runner};

const MODELS: [&str; 3] = ["smollm2-135m", "gemma3-270m", "qwen2.5-coder-0.5b"];

fn tokens(model: &Model, n: usize) -> Vec<TokenId> {
    let text = "fn main() {\n    // The quick brown fox jumps over the lazy dog; 12 × 34 = 408.\n    println!(\"héllo\");\n}\n";
    let ids = model.tokenizer().encode(&text.repeat(8), Default::default()).unwrap();
    ids[..n].to_vec()
}

/// Logits of every token, fed in chunks of the given sizes (the last one repeats).
fn logits(runner: &mut Runner, tokens: &[TokenId], chunks: &[usize]) -> Vec<Vec<f32>> {
    let sequence = runner.open().unwrap();
    let (mut out, mut from, mut chunk) = (Vec::new(), 0, chunks.iter().copied().cycle());
    while from < tokens.len() {
        let to = tokens.len().min(from + chunk.next().unwrap());
        out.extend(feed(runner, sequence, &tokens[from..to]));
        runner.commit(sequence, to - from).unwrap();
        from = to;
    }
    runner.close(sequence);
    out
}

fn feed(runner: &mut Runner, sequence: SequenceId, tokens: &[TokenId]) -> Vec<Vec<f32>> {
    let mut steps = [Step::each(sequence, tokens.to_vec(), Want::Logits)];
    runner.forward(&mut steps).unwrap();
    rows(&steps[0])
}

fn rows(step: &Step) -> Vec<Vec<f32>> {
    let row = |o: &breakers_core::RowOutput| match &o.output {
        Output::Logits(l) => l.clone(),
        other => panic!("logits were wanted, got {other:?}"),
    };
    step.outputs.iter().map(row).collect()
}

fn assert_same(got: &[Vec<f32>], want: &[Vec<f32>], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let differ = g.iter().zip(w).filter(|(g, w)| g.to_bits() != w.to_bits()).count();
        assert_eq!(differ, 0, "{what}: row {i} differs in {differ} of {} logits", w.len());
        assert!(g.iter().all(|l| l.is_finite()), "{what}: row {i}");
    }
}

#[test]
fn chunks_and_threads_do_not_change_a_bit() {
    for name in MODELS {
        let Some(model) = crate::support::load(name) else { continue };
        let mut runner = model.runner();
        let tokens = tokens(&model, 67);
        let want = logits(&mut runner, &tokens, &[1]);
        for chunks in [&[2][..], &[3, 1], &[5], &[8], &[16], &[17], &[64], &[67]] {
            assert_same(
                &logits(&mut runner, &tokens, chunks),
                &want,
                &format!("{name}, chunks of {chunks:?}"),
            );
        }
        let threads = pool::threads();
        for n in [1, 2, 3] {
            pool::set_threads(n).unwrap();
            for chunks in [&[1][..], &[16], &[67]] {
                let got = logits(&mut runner, &tokens[..33], chunks);
                assert_same(&got, &want[..33], &format!("{name}, {n} threads, chunks of {chunks:?}"));
            }
        }
        pool::set_threads(threads).unwrap();
    }
}

#[test]
fn instruction_sets_do_not_change_a_bit() {
    let Some(model) = crate::support::load("smollm2-135m") else { return };
    let tokens = tokens(&model, 9);
    let run = || logits(&mut model.runner(), &tokens, &[4, 1]);
    let want = run();
    for isa in cpu::available() {
        assert_same(&cpu::with_isa(isa, run).unwrap(), &want, &format!("{isa}"));
    }
}

#[test]
fn passes_and_neighbors_do_not_change_a_bit() {
    let Some(path) = model_path("smollm2-135m") else { return };
    let options = breakers_model::LoadOptions { rows_per_pass: 7, ..Default::default() };
    let narrow = Model::load(&path, &options).unwrap();
    let wide = Model::load(&path, &Default::default()).unwrap();
    let tokens = tokens(&wide, 40);
    let mut runner = wide.runner();
    let want = logits(&mut runner, &tokens, &[40]);
    assert_same(&logits(&mut narrow.runner(), &tokens, &[40]), &want, "passes of 7 rows");
    for runner in [&mut runner, &mut narrow.runner()] {
        // Three sequences of different length in one call.
        let [a, b, c] = [(); 3].map(|()| runner.open().unwrap());
        let mut steps = [
            Step::each(a, tokens.clone(), Want::Logits),
            Step::last(b, tokens[..9].to_vec(), Want::Logits),
            Step::each(c, tokens[..1].to_vec(), Want::Logits),
        ];
        runner.forward(&mut steps).unwrap();
        assert_same(&rows(&steps[0]), &want, "first of three sequences");
        assert_eq!(steps[1].outputs[8].output, Output::Logits(want[8].clone()));
        assert_eq!(steps[1].outputs[7].output, Output::Nothing);
        assert_same(&rows(&steps[2]), &want[..1], "last of three sequences");
    }
}

#[test]
fn a_path_of_a_tree_equals_the_chain() {
    for name in ["smollm2-135m", "gemma3-270m"] {
        let Some(model) = crate::support::load(name) else { continue };
        let mut runner = model.runner();
        let tokens = tokens(&model, 30);
        let (prefix, a) = tokens.split_at(20);
        let b: Vec<TokenId> = a.iter().rev().copied().collect();
        let chain = |runner: &mut Runner, path: &[TokenId]| {
            let sequence = runner.open().unwrap();
            feed(runner, sequence, prefix);
            let out = feed(runner, sequence, path);
            runner.close(sequence);
            out
        };
        let want_a = chain(&mut runner, &a[..3]);
        let want_b = chain(&mut runner, &[a[0], b[0], b[1], b[2]]);
        // a0 ─ a1 ─ a2, and a0 ─ b0 ─ b1, interleaved.
        let sequence = runner.open().unwrap();
        feed(&mut runner, sequence, prefix);
        runner.commit(sequence, prefix.len()).unwrap();
        let mut steps = [Step {
            parents: Some(vec![None, Some(0), Some(0), Some(1), Some(2)]),
            ..Step::each(sequence, vec![a[0], a[1], b[0], a[2], b[1]], Want::Logits)
        }];
        runner.forward(&mut steps).unwrap();
        let got = rows(&steps[0]);
        let pick = |at: &[usize]| at.iter().map(|&i| got[i].clone()).collect::<Vec<_>>();
        assert_same(&pick(&[0, 1, 3]), &want_a, &format!("{name}, path a"));
        assert_same(&pick(&[0, 2, 4]), &want_b[..3], &format!("{name}, path b"));
        // Accept path b and go on.
        runner.retain(sequence, &[0, 2, 4]).unwrap();
        runner.commit(sequence, 3).unwrap();
        assert_same(&feed(&mut runner, sequence, &b[2..3]), &want_b[3..], &format!("{name}, behind path b"));
    }
}

#[test]
fn masks_leave_the_bits_of_what_they_allow() {
    for name in MODELS {
        let Some(model) = crate::support::load(name) else { continue };
        assert!(model.info().masked_argmax);
        let mut runner = model.runner();
        let vocab_size = model.info().vocab_size;
        let tokens = tokens(&model, 9);
        let all = logits(&mut runner, &tokens, &[9]);
        // One token, a few neighbors, a few far apart, most.
        let masks: Vec<Arc<TokenMask>> = [
            TokenMask::of(vocab_size, [5]),
            TokenMask::of(vocab_size, 100..140),
            TokenMask::of(vocab_size, (0..vocab_size as TokenId).step_by(997)),
            TokenMask::of(vocab_size, (0..vocab_size as TokenId).filter(|id| id % 3 != 0)),
        ]
        .map(Arc::new)
        .to_vec();
        for (first, n_masks) in [(0, 1), (1, 1), (2, 1), (3, 1), (0, 3), (0, 4)] {
            for want in [Want::Logits, Want::ArgMax] {
                let sequence = runner.open().unwrap();
                let mut step = Step::each(sequence, tokens.clone(), want);
                step.masks = (0..9).map(|row| Some(masks[first + row % n_masks].clone())).collect();
                let mut steps = [step];
                runner.forward(&mut steps).unwrap();
                runner.close(sequence);
                for (row, output) in steps[0].outputs.iter().enumerate() {
                    let mask = &masks[first + row % n_masks];
                    match &output.output {
                        Output::ArgMax(token) => assert_eq!(*token, argmax_within(&all[row], mask).unwrap()),
                        Output::Logits(found) => {
                            let mut expected = all[row].clone();
                            mask.apply(&mut expected);
                            let differ =
                                found.iter().zip(&expected).filter(|(a, b)| a.to_bits() != b.to_bits());
                            assert_eq!((differ.count(), found.len()), (0, vocab_size), "{name}, row {row}");
                        }
                        other => panic!("{other:?}"),
                    }
                }
            }
        }
        // A row without a mask, and one that wants log-probabilities, are computed whole.
        let sequence = runner.open().unwrap();
        let mut step = Step::each(sequence, tokens[..2].to_vec(), Want::Logits);
        step.masks = vec![Some(masks[0].clone()), None];
        let mut steps = [step];
        runner.forward(&mut steps).unwrap();
        assert_same(&rows(&steps[0])[1..], &all[1..2], name);
        runner.truncate(sequence, 0).unwrap();
        steps[0].wants = vec![Want::TopK(5); 2];
        steps[0].masks = vec![Some(masks[0].clone()); 2];
        runner.forward(&mut steps).unwrap();
        for (row, output) in steps[0].outputs.iter().enumerate() {
            let expected = breakers_core::top_k(&all[row], 5).unwrap();
            assert_eq!(output.output, Output::TopK(expected), "{name}, row {row}");
        }
        runner.close(sequence);
    }
}

#[test]
fn forks_and_truncation_restore_the_past() {
    let Some(model) = crate::support::load("smollm2-135m") else { return };
    let mut runner = model.runner();
    let tokens = tokens(&model, 90);
    let want = logits(&mut runner, &tokens, &[90]);
    let sequence = runner.open().unwrap();
    feed(&mut runner, sequence, &tokens[..70]);
    let copy = runner.fork(sequence).unwrap();
    feed(&mut runner, sequence, &[5, 6, 7]);
    runner.truncate(sequence, 70).unwrap();
    assert_same(&feed(&mut runner, sequence, &tokens[70..]), &want[70..], "after truncation");
    assert_same(&feed(&mut runner, copy, &tokens[70..]), &want[70..], "in the fork");
    runner.commit(copy, 90).unwrap();
    runner.truncate(copy, 10).unwrap();
    assert_eq!((runner.len(copy).unwrap(), runner.committed(copy).unwrap()), (10, 10));
    assert_same(&feed(&mut runner, copy, &tokens[10..20]), &want[10..20], "after truncating final tokens");
}

#[test]
fn answers_agree_with_the_logits() {
    let Some(model) = crate::support::load("smollm2-135m") else { return };
    let mut runner = model.runner();
    let tokens = tokens(&model, 12);
    let want = logits(&mut runner, &tokens, &[12]);
    let sequence = runner.open().unwrap();
    let mut step = Step::each(sequence, tokens.clone(), Want::ArgMax);
    step.wants[3] = Want::TopK(5);
    step.wants[4] = Want::Nothing;
    step.taps = vec![LayerTap::Final, LayerTap::AfterBlock(0), LayerTap::AfterBlock(29)];
    let mut steps = [step];
    runner.forward(&mut steps).unwrap();
    for (i, (row, logits)) in steps[0].outputs.iter().zip(&want).enumerate() {
        let best = breakers_core::argmax(logits).unwrap();
        match i {
            3 => assert_eq!(row.output, Output::TopK(breakers_core::top_k(logits, 5).unwrap())),
            4 => assert_eq!(row.output, Output::Nothing),
            _ => assert_eq!(row.output, Output::ArgMax(best)),
        }
        let widths: Vec<usize> = row.hidden.iter().map(Vec::len).collect();
        assert_eq!(widths, [576; 3], "row {i}");
        assert!(row.hidden.iter().flatten().all(|x| x.is_finite()));
        assert_ne!(row.hidden[1], row.hidden[2]);
    }
}

#[test]
fn impossible_steps_are_refused_and_change_nothing() {
    let Some(path) = model_path("smollm2-135m") else { return };
    let options = breakers_model::LoadOptions { max_context: Some(8), ..Default::default() };
    let mut runner = Model::load(path, &options).unwrap().runner();
    let sequence = runner.open().unwrap();
    feed(&mut runner, sequence, &[1, 2, 3]);
    let step = |tokens: Vec<TokenId>| Step::last(sequence, tokens, Want::ArgMax);
    let check = |runner: &mut Runner, mut steps: Vec<Step>, expected: fn(&Error) -> bool| {
        let error = runner.forward(&mut steps).unwrap_err();
        assert!(expected(error.cause()), "{error:?}");
        assert_eq!(error.step(), Some(steps.len() - 1), "{error:?}");
        assert_eq!(runner.len(sequence).unwrap(), 3);
    };
    let closed = runner.open().unwrap();
    runner.close(closed);
    check(&mut runner, vec![Step { sequence: closed, ..step(vec![1]) }], |e| {
        matches!(e, Error::UnknownSequence { .. })
    });
    check(&mut runner, vec![step(vec![])], |e| matches!(e, Error::Step(StepError::Empty)));
    check(&mut runner, vec![step(vec![49_152])], |e| matches!(e, Error::InvalidToken { token: 49_152, .. }));
    check(&mut runner, vec![step(vec![1; 6])], |e| {
        matches!(e, Error::Step(StepError::ContextFull { needed: 9, limit: 8 }))
    });
    check(&mut runner, vec![step(vec![1]), step(vec![2])], |e| matches!(e, Error::DuplicateSequence { .. }));
    let taps = vec![LayerTap::AfterBlock(30)];
    check(&mut runner, vec![Step { taps, ..step(vec![1]) }], |e| {
        matches!(e, Error::Step(StepError::OutOfRange { available: 30, .. }))
    });
    let parents = Some(vec![Some(0)]);
    check(&mut runner, vec![Step { parents, ..step(vec![1]) }], |e| {
        matches!(e, Error::Step(StepError::InvalidParent { .. }))
    });
    assert!(matches!(
        runner.commit(sequence, 4),
        Err(Error::Step(StepError::OutOfRange { requested: 4, available: 3, .. }))
    ));
    assert!(matches!(runner.truncate(sequence, 4), Err(Error::Step(StepError::OutOfRange { .. }))));
    assert!(matches!(runner.retain(sequence, &[3]), Err(Error::Step(StepError::OutOfRange { .. }))));
}
