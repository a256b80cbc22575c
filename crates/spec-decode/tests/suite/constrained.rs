//! Constraints with every drafter, in batches that texts join and leave: the tokens are those of plain masked
//! decoding.

use breakers_core::{
    ConstraintError, Error as CoreError, LanguageModel as _, SamplingConfig, TokenId, Want, token_score,
};
use breakers_spec_decode::{
    AtLimit, Batch, Config, Decoding, DraftLength, Drafter, Error, ModelDraftConfig, NgramDrafter, NoDrafter,
    Proposal, Speculator,
};

use crate::language::{Job, Language, VOCAB, decoding, job, jobs, plain, run};
use crate::support::{RandomDrafter, TreeDrafter, model_drafter};
use crate::toy::{LogitsFn, Rules, Toy, markov, repetitive};

/// Runs all jobs in one batch and checks each against plain masked decoding. Returns (drafted, accepted).
fn check(
    target: &LogitsFn,
    make: &dyn Fn(usize) -> Box<dyn Drafter>,
    jobs: &[Job],
    max_rows: usize,
    staggered: bool,
    name: &str,
) -> (usize, usize) {
    let mut model = Toy::new(VOCAB, target.clone());
    model.rules = Rules::Tidy;
    // A model that looks at masks, and one that does not.
    model.is_sparse = max_rows.is_multiple_of(2);
    model.info.masked_argmax = model.is_sparse;
    let mut batch = Batch::new(max_rows);
    let mut waiting: Vec<usize> = (0..jobs.len()).rev().collect();
    let (mut owners, mut left, mut found) = (Vec::new(), None, vec![None; jobs.len()]);
    for n_pass in 0.. {
        while let Some(i) = waiting.pop_if(|_| !staggered || n_pass % 3 == 0) {
            let decoding = decoding(&mut model, &jobs[i]);
            owners.push((batch.join(decoding, make(i)), i));
            if staggered {
                break;
            }
        }
        // A text pauses for two passes and comes back.
        if staggered && n_pass == 8 {
            let (text, i) = owners[0];
            left = batch.leave(text).map(|text| (text, i));
        }
        if let Some(((decoding, drafter), i)) = left.take_if(|_| n_pass >= 10) {
            owners[0] = (batch.join(decoding, drafter), i);
        }
        let (before, most) = (model.n_rows, max_rows.max(batch.len()));
        let done = batch.pass(&mut model).unwrap();
        assert!(model.n_rows - before <= most, "{name}: {} rows", model.n_rows - before);
        if done.is_empty() && waiting.is_empty() && left.is_none() {
            break;
        }
        for progress in done {
            progress.n_tokens.unwrap();
            let i = owners.iter().find(|owner| owner.0 == progress.text).unwrap().1;
            if batch.get(progress.text).unwrap().finish().is_some() {
                let (decoding, _) = batch.leave(progress.text).unwrap();
                let sequence = decoding.sequence();
                let held = [&jobs[i].prompt[..], &decoding.output()[..decoding.output().len() - 1]].concat();
                assert_eq!(model.tokens(sequence), held, "{name}: what the sequence holds");
                model.close(sequence);
                found[i] = Some(decoding.into_result());
            }
        }
    }
    assert_eq!((model.n_open(), batch.len()), (0, 0));
    let mut sum = (0, 0);
    for (i, (job, found)) in jobs.iter().zip(found).enumerate() {
        let found = found.unwrap_or_else(|| panic!("{name}: text {i} never ended"));
        assert_eq!((found.tokens, found.finish), plain(target, job), "{name}: text {i}");
        sum = (sum.0 + found.stats.drafted, sum.1 + found.stats.accepted);
    }
    sum
}

#[test]
fn constrained_texts_are_those_of_plain_masked_decoding() {
    let (target, guess) = (markov(VOCAB, 2, 3.0, 5), markov(VOCAB, 2, 2.0, 5));
    let settings = [
        SamplingConfig::greedy(),
        SamplingConfig { top_p: 0.9, ..SamplingConfig::temperature(0.8) },
        SamplingConfig { repetition_penalty: 1.3, ..SamplingConfig::temperature(1.1) },
    ];
    type Make = Box<dyn Fn(usize) -> Box<dyn Drafter>>;
    let (draft, tree) = (guess.clone(), guess.clone());
    let likely = ModelDraftConfig { proposal: Proposal::MostLikely, ..ModelDraftConfig::default() };
    let drafters: [(&str, Make); 5] = [
        ("none", Box::new(|_| Box::new(NoDrafter))),
        ("n-gram", Box::new(|_| Box::<NgramDrafter>::default())),
        ("draft model", Box::new(move |_| Box::new(model_drafter(draft.clone(), VOCAB, likely)))),
        ("tree", Box::new(move |_| Box::new(TreeDrafter { logits: tree.clone(), width: 2 }))),
        ("random", Box::new(|i| Box::new(RandomDrafter::new(VOCAB, i as u64)))),
    ];
    for (drafter, make) in &drafters {
        let mut sum = (0, 0);
        for (s, sampling) in settings.iter().enumerate() {
            for (n, tells) in [(1, false), (1, true), (8, true)] {
                for max_rows in [1, 2, 7, usize::MAX] {
                    for staggered in [false, true] {
                        let name =
                            format!("{drafter}, settings {s}, {n} texts, {max_rows} rows, {staggered}");
                        let jobs = jobs(n, sampling, tells);
                        let (drafted, accepted) = check(&target, make, &jobs, max_rows, staggered, &name);
                        sum = (sum.0 + drafted, sum.1 + accepted);
                        if max_rows == 1 {
                            assert_eq!(drafted, 0, "{name}");
                        }
                    }
                }
            }
        }
        // The test would prove nothing if nothing were drafted or nothing rejected.
        assert!(sum.1 > 100 && (*drafter == "none" || sum.0 > sum.1), "{drafter}: {sum:?}");
    }
}

#[test]
fn certain_tokens_are_drafted_accepted_and_cost_no_logits() {
    for max in [1, 4, 16] {
        for draft_length in [DraftLength::Fixed(max), DraftLength::Adaptive { max }] {
            let mut counts = Vec::new();
            for draft_length in [draft_length, DraftLength::Fixed(0)] {
                let mut model = Toy::new(VOCAB, repetitive(VOCAB, 3));
                let mut job = job(60, draft_length, SamplingConfig::greedy());
                job.config.at_limit = AtLimit::Cut;
                let result = run(&mut model, NoDrafter, &job).unwrap();
                assert_eq!((result.tokens, result.finish), plain(&repetitive(VOCAB, 3), &job));
                let stats = result.stats;
                assert_eq!((stats.drafted, stats.accepted), (stats.certain, stats.certain));
                counts.push((stats.certain, model.n_forwards, model.n_rows, model.n_answers));
            }
            let [(certain, passes, rows, answers), (none, all_passes, all_rows, all_answers)] = counts[..]
            else {
                panic!("two runs");
            };
            assert_eq!(none, 0);
            // Each saves a pass and none is wrong, whatever is asked of the others.
            assert!(certain >= 9 && passes + certain == all_passes, "{certain} in {passes} of {all_passes}");
            assert_eq!((rows, answers), (all_rows, all_answers));
            assert!(answers + certain < rows, "{answers} answers for {rows} rows");
        }
    }
}

#[test]
fn a_drafter_goes_on_behind_what_is_certain() {
    // It says which contexts it was shown.
    #[derive(Default)]
    struct Watcher(Vec<Vec<TokenId>>);
    impl Drafter for &mut Watcher {
        fn name(&self) -> &str {
            "watcher"
        }
        fn start(&mut self, _prompt: &[TokenId]) -> breakers_spec_decode::Result<()> {
            Ok(())
        }
        fn propose(
            &mut self,
            request: &mut breakers_spec_decode::DraftRequest<'_>,
        ) -> breakers_spec_decode::Result<breakers_spec_decode::Draft> {
            self.0.push(request.context.to_vec());
            // Token 5 is allowed in many places, the end in few.
            Ok(breakers_spec_decode::Draft::chain(vec![5; request.max_tokens.min(2)]))
        }
    }
    let mut watcher = Watcher::default();
    let mut model = Toy::new(VOCAB, markov(VOCAB, 2, 3.0, 5));
    let job = job(60, DraftLength::Fixed(6), SamplingConfig::temperature(1.0));
    let result = run(&mut model, &mut watcher, &job).unwrap();
    assert_eq!((result.tokens.clone(), result.finish), plain(&markov(VOCAB, 2, 3.0, 5), &job));
    let text = [&job.prompt[..], &result.tokens].concat();
    let language = Language::default();
    for context in &watcher.0 {
        assert!(text.starts_with(context), "{context:?} is no beginning of {text:?}");
        let n_next = language.tokens(&context[job.prompt.len()..]).len();
        assert!(n_next > 1, "it was asked where the next token is certain: {context:?}");
    }
    assert!(watcher.0.is_sorted_by(|a, b| a.len() < b.len()));
    assert!(result.stats.certain > 9 && result.stats.drafted > result.stats.certain);
}

#[test]
fn log_probabilities_are_the_models_own() {
    let target = markov(VOCAB, 2, 3.0, 5);
    for (is_sparse, sampling) in [
        (false, SamplingConfig::greedy()),
        (true, SamplingConfig::greedy()),
        (true, SamplingConfig::temperature(1.0)),
    ] {
        for n_top in [0, 3] {
            let mut job = job(40, DraftLength::Fixed(4), sampling.clone());
            job.config.top_logprobs = Some(n_top);
            let mut model = Toy::new(VOCAB, target.clone());
            (model.is_sparse, model.info.masked_argmax) = (is_sparse, is_sparse);
            let tree = TreeDrafter { logits: target.clone(), width: 2 };
            let result = run(&mut model, tree, &job).unwrap();
            assert_eq!((result.tokens.clone(), result.finish), plain(&target, &job));
            let mut text = job.prompt.clone();
            for (token, score) in result.tokens.iter().zip(&result.scores) {
                assert_eq!(*score, token_score(&target(&text), *token, n_top).unwrap());
                text.push(*token);
            }
            assert_eq!(result.scores.len(), result.tokens.len());
        }
    }
}

#[test]
fn a_model_that_breaks_its_word_on_masks_is_told() {
    struct Careless(Toy);
    impl breakers_core::LanguageModel for Careless {
        fn info(&self) -> &breakers_core::ModelInfo {
            self.0.info()
        }
        fn open(&mut self) -> breakers_core::Result<breakers_core::SequenceId> {
            self.0.open()
        }
        fn fork(
            &mut self,
            sequence: breakers_core::SequenceId,
        ) -> breakers_core::Result<breakers_core::SequenceId> {
            self.0.fork(sequence)
        }
        fn close(&mut self, sequence: breakers_core::SequenceId) {
            self.0.close(sequence)
        }
        fn len(&self, sequence: breakers_core::SequenceId) -> breakers_core::Result<usize> {
            self.0.len(sequence)
        }
        fn committed(&self, sequence: breakers_core::SequenceId) -> breakers_core::Result<usize> {
            self.0.committed(sequence)
        }
        fn forward(&mut self, steps: &mut [breakers_core::Step]) -> breakers_core::Result<()> {
            steps.iter_mut().for_each(|step| step.masks.clear());
            self.0.forward(steps)
        }
        fn retain(
            &mut self,
            sequence: breakers_core::SequenceId,
            rows: &[usize],
        ) -> breakers_core::Result<()> {
            self.0.retain(sequence, rows)
        }
        fn commit(&mut self, sequence: breakers_core::SequenceId, n: usize) -> breakers_core::Result<()> {
            self.0.commit(sequence, n)
        }
        fn truncate(&mut self, sequence: breakers_core::SequenceId, len: usize) -> breakers_core::Result<()> {
            self.0.truncate(sequence, len)
        }
    }
    let mut model = Careless(Toy::new(VOCAB, markov(VOCAB, 2, 3.0, 5)));
    model.0.info.masked_argmax = true;
    let job = job(40, DraftLength::Fixed(4), SamplingConfig::greedy());
    let sequence = model.open().unwrap();
    let text = Decoding::new(&model, sequence, &job.prompt, &job.config).unwrap();
    let mut text = text.with_constraint(Box::new(job.language.unwrap()));
    let driven =
        Speculator::new(NoDrafter).drive(&mut model, &mut text, |_, _| std::ops::ControlFlow::Continue(()));
    assert!(matches!(driven, Err(Error::OutsideMask { .. })), "{driven:?}");
}

#[test]
fn a_text_that_fails_leaves_the_others_alone() {
    let target = markov(VOCAB, 2, 3.0, 5);
    let jobs = jobs(4, &SamplingConfig::temperature(1.0), true);
    let mut model = Toy::new(VOCAB, target.clone());
    let mut batch = Batch::new(16);
    let mut ids = Vec::new();
    for (i, job) in jobs.iter().enumerate() {
        let mut job =
            Job { prompt: job.prompt.clone(), config: job.config.clone(), language: job.language.clone() };
        if i == 1 {
            job.language.as_mut().unwrap().dead_end = Some(9);
        }
        let text = decoding(&mut model, &job);
        if i == 2 {
            model.fail_sequence = Some(text.sequence());
        }
        ids.push(batch.join(text, NgramDrafter::default()));
    }
    let (mut dead_ends, mut faults) = (0, 0);
    loop {
        let done = batch.pass(&mut model).unwrap();
        if done.is_empty() {
            break;
        }
        for progress in done {
            let i = ids.iter().position(|id| *id == progress.text).unwrap();
            match progress.n_tokens {
                Ok(_) => continue,
                Err(Error::Constraint(ConstraintError::DeadEnd { n_tokens: 9 })) if i == 1 => dead_ends += 1,
                Err(Error::Target(CoreError::AtStep { .. })) if i == 2 => faults += 1,
                Err(error) => panic!("text {i}: {error:?}"),
            }
            let text = batch.get(progress.text).unwrap();
            // It can be tried again, and fails again.
            assert_eq!(model.len(text.sequence()).unwrap(), model.committed(text.sequence()).unwrap());
            if dead_ends == 3 || faults == 3 {
                let (text, _) = batch.leave(progress.text).unwrap();
                (dead_ends, faults) = if i == 1 { (100, faults) } else { (dead_ends, 100) };
                if i == 1 {
                    assert_eq!(text.output(), &plain(&target, &jobs[1]).0[..9]);
                }
            }
        }
    }
    assert_eq!((dead_ends, faults), (100, 100));
    for i in [0, 3] {
        let text = batch.leave(ids[i]).unwrap().0.into_result();
        assert_eq!((text.tokens, text.finish), plain(&target, &jobs[i]), "text {i}");
    }
}

#[test]
fn a_step_that_fails_in_the_middle_can_be_repeated() {
    let target = repetitive(VOCAB, 3);
    let job = &jobs(1, &SamplingConfig::temperature(1.0), true)[0];
    let mut model = Toy::new(VOCAB, target.clone());
    let config = Config { draft_length: DraftLength::Fixed(4), ..job.config.clone() };
    let job = Job { config, prompt: job.prompt.clone(), language: job.language.clone() };
    let mut text = decoding(&mut model, &job);
    let mut n_failed = 0;
    while let Some(step) = text.plan(&mut NoDrafter, usize::MAX).unwrap() {
        let mut steps = [step];
        model.forward(&mut steps).unwrap();
        // The first row that a model has to answer: the tokens before it are certain.
        let rows = 0..steps[0].tokens.len();
        let asked = rows.into_iter().find(|&row| steps[0].want(row) != Want::Nothing);
        if let Some(asked) = asked.filter(|&asked| asked > 1 && n_failed % 2 == 0) {
            // At least two draft tokens are accepted, and the constraint has followed them, when it fails.
            steps[0].outputs.truncate(asked);
            let error = text.absorb(&mut model, &mut NoDrafter, &steps[0], 0.0).unwrap_err();
            assert!(matches!(error, Error::MissingOutput { row, .. } if row == asked), "{error:?}");
            n_failed += 1;
            continue;
        }
        n_failed += n_failed % 2;
        text.absorb(&mut model, &mut NoDrafter, &steps[0], 0.0).unwrap();
    }
    assert!(n_failed >= 4, "{n_failed}");
    let result = text.into_result();
    assert_eq!((result.tokens, result.finish), plain(&target, &job));
}
