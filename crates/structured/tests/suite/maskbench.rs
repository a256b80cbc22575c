//! Schemas in use with valid and invalid instances: MaskBench, or a part of it. `BREAKERS_MASKBENCH` names
//! the file, lines of `{name, schema, tests: [{valid, data}]}`, compressed or not; without it, the part
//! beside the project is taken if it is there. Every eighth schema is looked at, or all with
//! `BREAKERS_MASKBENCH_ALL=1`.
//!
//! `tests/data/maskbench.tsv` holds the schemas of the part that are refused or refuse a valid instance, in
//! either order of properties. It may only get shorter. `BREAKERS_RATCHET=write` writes it anew; take all
//! schemas then.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use breakers_structured::maskbench::{Case, Outcome, Summary, run};
use breakers_structured::{Order, SchemaOptions};

use crate::bytes::Bytes;
use crate::{compiler, ratchet};

pub(crate) fn file() -> Option<PathBuf> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data/maskbench/sample.jsonl.gz");
    let named = std::env::var_os("BREAKERS_MASKBENCH").map(PathBuf::from);
    named.or_else(|| Some(PathBuf::from(beside)).filter(|path| path.exists()))
}

pub(crate) fn lines(path: &Path) -> impl Iterator<Item = String> {
    let file = File::open(path).unwrap();
    let reader: Box<dyn Read> = match path.extension().is_some_and(|extension| extension == "gz") {
        true => Box::new(flate2::read::GzDecoder::new(file)),
        false => Box::new(file),
    };
    BufReader::new(reader).lines().map(Result::unwrap)
}

/// Whether all schemas are to be looked at.
pub(crate) fn is_whole() -> bool {
    std::env::var_os("BREAKERS_MASKBENCH_ALL").is_some()
}

fn check(order: Order, least_refused: usize) {
    let Some(path) = file() else {
        eprintln!("skipped: no MaskBench, see BREAKERS_MASKBENCH");
        return;
    };
    let step = if is_whole() { 1 } else { 8 };
    let compiler = compiler();
    let options = SchemaOptions::default().with_order(order);
    let outcomes: Vec<Outcome> = lines(&path)
        .step_by(step)
        .map(|line| run(&compiler, &Bytes, &Case::parse(&line).unwrap(), options, false).unwrap())
        .collect();
    let sum: Summary = outcomes.iter().collect();
    eprintln!("{order:?}: {}", sum.to_json());
    let wrong: Vec<&String> = outcomes.iter().flat_map(|outcome| &outcome.wrong_accepted).collect();
    assert!(wrong.is_empty(), "{} invalid instances are accepted: {wrong:?}", wrong.len());
    assert!(
        sum.compiled * 100 >= sum.schemas * 98,
        "{} of {} schemas are enforced",
        sum.compiled,
        sum.schemas
    );
    // In a thousand. Other orders of properties than the declared one are most of them.
    let (n_refused, n_valid) = (sum.wrong_refused, sum.n_valid);
    assert!(
        n_refused * 1000 <= n_valid * least_refused,
        "{n_refused} of {n_valid} valid instances are refused"
    );
    let named = std::env::var_os("BREAKERS_MASKBENCH").is_some();
    if named {
        return;
    }
    let found: BTreeMap<String, String> = outcomes
        .iter()
        .filter(|outcome| outcome.refused.is_some() || !outcome.wrong_refused.is_empty())
        .map(|outcome| {
            let n = if outcome.refused.is_some() {
                "refused".to_owned()
            } else {
                outcome.wrong_refused.len().to_string()
            };
            (outcome.name.clone(), n)
        })
        .collect();
    let file = match order {
        Order::Declared => "maskbench-declared.tsv",
        Order::Any => "maskbench-any.tsv",
    };
    let number = |text: &str| text.parse().unwrap_or(usize::MAX);
    ratchet(file, &found, |old, new| number(new) <= number(old));
}

#[test]
fn no_invalid_instance_is_accepted() {
    check(Order::Declared, 50);
}

#[test]
fn nearly_all_valid_instances_are_accepted_in_any_order() {
    check(Order::Any, 12);
}
