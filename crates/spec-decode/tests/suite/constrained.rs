//! Constraints, with every drafter, in batches that texts join and leave: the tokens of plain
//! masked decoding.

use breakers_core::{
    Constraint, ConstraintError, Error as CoreError, FinishReason, LanguageModel as _, Sampler,
    SamplingConfig, TokenId, TokenMask,
};
use breakers_spec_decode::{
    Batch, Config, Decoding, DraftLength, Drafter, Error, ModelDraftConfig, NgramDrafter, NoDrafter, Proposal,
};

use crate::support::{RandomDrafter, TreeDrafter, model_drafter};
use crate::toy::{LogitsFn, Rules, Toy, markov, mix, repetitive};

const VOCAB: usize = 24;
const END: TokenId = 0;

/// A language in which what may come next depends on the last token and on how many there are:
/// half of the tokens in most places, one in three of seven places, and an end only in every
/// fourth place after the tenth.
#[derive(Clone, Default)]
struct Language {
    text: Vec<TokenId>,
    /// Whether forced runs are told.
    tells: bool,
    /// The place from which on nothing is allowed.
    dead_end: Option<usize>,
}

impl Language {
    fn tokens(&self, text: &[TokenId]) -> Vec<TokenId> {
        let (n, last) = (text.len() as u64, text.last().copied().unwrap_or(1));
        if self.dead_end.is_some_and(|at| text.len() >= at) {
            return Vec::new();
        }
        if (3..6).contains(&(n % 7)) {
            return vec![1 + (mix(n) % (VOCAB as u64 - 1)) as TokenId];
        }
        let fits = |token: &TokenId| mix(u64::from(last * 31 + token)).is_multiple_of(2) || *token == 5;
        let end = (n >= 10 && n.is_multiple_of(4)).then_some(END);
        (1..VOCAB as TokenId).filter(fits).chain(end).collect()
    }
}

impl Constraint for Language {
    fn allowed(&mut self, mask: &mut TokenMask) -> Result<(), ConstraintError> {
        mask.forbid_all();
        self.tokens(&self.text).into_iter().for_each(|token| mask.allow(token));
        Ok(())
    }

    fn advance(&mut self, token: TokenId) -> Result<(), ConstraintError> {
        assert_ne!(token, END, "an end token was advanced");
        if !self.tokens(&self.text).contains(&token) {
            return Err(ConstraintError::NotAllowed { token });
        }
        self.text.push(token);
        Ok(())
    }

    fn rollback(&mut self, n_tokens: usize) -> Result<(), ConstraintError> {
        let available = self.text.len();
        let keep = available.checked_sub(n_tokens);
        self.text.truncate(keep.ok_or(ConstraintError::Rollback { requested: n_tokens, available })?);
        Ok(())
    }

    fn forced(&mut self) -> Result<Vec<TokenId>, ConstraintError> {
        let mut text = self.text.clone();
        while let (true, [only]) = (self.tells, &*self.tokens(&text)) {
            text.push(*only);
        }
        Ok(text.split_off(self.text.len()))
    }
}

/// Plain masked decoding by the book, without the crate under test.
fn plain(logits: &LogitsFn, job: &Job) -> (Vec<TokenId>, FinishReason) {
    let mut text = job.prompt.clone();
    let mut sampler = Sampler::new(job.config.sampling.clone(), job.config.seed);
    let mut language = job.language.clone();
    loop {
        let output = &text[job.prompt.len()..];
        let finish = match output.last() {
            Some(&END) => FinishReason::EndOfText,
            _ if output.len() == job.config.max_tokens => FinishReason::Length,
            _ => {
                let mut row = logits(&text);
                if let Some(language) = &mut language {
                    let mut mask = TokenMask::none(VOCAB);
                    language.allowed(&mut mask).unwrap();
                    mask.apply(&mut row);
                }
                let next = sampler.sample(&row, &text).unwrap();
                if let Some(language) = language.as_mut().filter(|_| next != END) {
                    language.advance(next).unwrap();
                }
                text.push(next);
                continue;
            }
        };
        return (text.split_off(job.prompt.len()), finish);
    }
}

struct Job {
    prompt: Vec<TokenId>,
    config: Config,
    language: Option<Language>,
}

/// Texts with settings of their own; every third one is free.
fn jobs(n: usize, sampling: &SamplingConfig, tells: bool) -> Vec<Job> {
    let job = |i: usize| {
        let free = i % 3 == 2;
        let sampling = if i % 4 == 3 { SamplingConfig::greedy() } else { sampling.clone() };
        let draft_length = match i % 2 {
            0 => DraftLength::Fixed(1 + i % 5),
            _ => DraftLength::Adaptive { max: 9 },
        };
        let config = Config {
            max_tokens: 30 + 7 * i,
            sampling,
            seed: 40 + i as u64,
            end_tokens: Some(vec![END]),
            draft_length,
            ..Config::default()
        };
        let prompt = (0..3 + 4 * i as TokenId).map(|t| 1 + t % 9).collect();
        Job { prompt, config, language: (!free).then(|| Language { tells, ..Language::default() }) }
    };
    (0..n).map(job).collect()
}

fn decoding(model: &mut Toy, job: &Job) -> Decoding {
    let sequence = model.open().unwrap();
    let decoding = Decoding::new(model, sequence, &job.prompt, &job.config).unwrap();
    match &job.language {
        Some(language) => decoding.with_constraint(Box::new(language.clone())),
        None => decoding,
    }
}

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
        // The test would prove nothing if nothing was drafted, or nothing rejected.
        assert!(sum.1 > 100 && (*drafter == "none" || sum.0 > sum.1), "{drafter}: {sum:?}");
    }
}

#[test]
fn forced_tokens_are_drafted_and_all_of_them_accepted() {
    let run = |tells| {
        let mut model = Toy::new(VOCAB, repetitive(VOCAB, 3));
        let job = &jobs(1, &SamplingConfig::greedy(), tells)[0];
        let config = Config { draft_length: DraftLength::Fixed(4), ..job.config.clone() };
        let job = Job { config, prompt: job.prompt.clone(), language: job.language.clone() };
        let mut batch = Batch::new(usize::MAX);
        let text = decoding(&mut model, &job);
        let id = batch.join(text, NoDrafter);
        while !batch.pass(&mut model).unwrap().is_empty() {}
        let result = batch.leave(id).unwrap().0.into_result();
        assert_eq!((result.tokens.clone(), result.finish), plain(&repetitive(VOCAB, 3), &job));
        (result.stats.drafted, result.stats.accepted, model.n_forwards)
    };
    let (drafted, accepted, passes) = run(true);
    assert_eq!((drafted, run(false).0), (accepted, 0));
    assert!(drafted >= 9 && passes + drafted == run(false).2, "{drafted} drafted in {passes} passes");
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
        if steps[0].tokens.len() > 2 && n_failed % 2 == 0 {
            // The first draft token is accepted, and the constraint has followed it, when the step fails.
            steps[0].outputs.truncate(2);
            let error = text.absorb(&mut model, &mut NoDrafter, &steps[0], 0.0).unwrap_err();
            assert!(matches!(error, Error::MissingOutput { row: 2, .. }), "{error:?}");
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
