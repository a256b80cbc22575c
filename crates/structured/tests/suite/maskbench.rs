//! Schemas in use with valid and invalid instances: MaskBench, or a part of it. `BREAKERS_MASKBENCH` names
//! the file, lines of `{name, schema, tests: [{valid, data}]}`, compressed or not; without it, the part
//! beside the project is taken if it is there. Every eighth schema is looked at, or all with
//! `BREAKERS_MASKBENCH_ALL=1`.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use breakers_core::Json;
use breakers_structured::Grammar;
use serde_json::Value;

use crate::{accepts, compiler};

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

/// Names of properties in the order in which a schema declares them.
fn declared(schema: &Value, names: &mut Vec<String>) {
    match schema {
        Value::Object(members) => {
            for (keyword, value) in members {
                let properties = value.as_object().filter(|_| keyword == "properties");
                let new = properties.into_iter().flat_map(|properties| properties.keys());
                let new: Vec<String> = new.filter(|name| !names.contains(name)).cloned().collect();
                names.extend(new);
                declared(value, names);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| declared(item, names)),
        _ => {}
    }
}

/// The same value with properties in this order.
fn reordered(value: &Value, names: &[String]) -> Value {
    match value {
        Value::Object(members) => {
            let mut members: Vec<_> =
                members.iter().map(|(name, value)| (name.clone(), reordered(value, names))).collect();
            members
                .sort_by_key(|(name, _)| names.iter().position(|other| other == name).unwrap_or(usize::MAX));
            Value::Object(members.into_iter().collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(|item| reordered(item, names)).collect()),
        value => value.clone(),
    }
}

#[test]
fn no_invalid_instance_is_accepted() {
    let Some(path) = file() else {
        eprintln!("skipped: no MaskBench, see BREAKERS_MASKBENCH");
        return;
    };
    let step = if is_whole() { 1 } else { 8 };
    let compiler = compiler();
    let (mut n_schemas, mut n_compiled, mut n_valid, mut n_refused) = (0, 0, 0, 0);
    let mut wrong = Vec::new();
    for line in lines(&path).step_by(step) {
        let row: Value = serde_json::from_str(&line).unwrap();
        n_schemas += 1;
        let grammar = Grammar::JsonSchema(Json::parse(&row["schema"].to_string()).unwrap());
        if compiler.constraint(&grammar).is_err() {
            continue;
        }
        n_compiled += 1;
        let mut names = Vec::new();
        declared(&row["schema"], &mut names);
        for test in row["tests"].as_array().unwrap() {
            let accepts =
                |value: &Value| accepts(compiler.constraint(&grammar).unwrap(), &value.to_string()).unwrap();
            let is_valid = test["valid"] == true;
            let found = accepts(&test["data"]);
            if found && !is_valid {
                wrong.push(format!("{}: {}", row["name"], test["data"]));
            }
            n_valid += usize::from(is_valid);
            n_refused += usize::from(is_valid && !found && !accepts(&reordered(&test["data"], &names)));
        }
    }
    eprintln!(
        "schemas {n_schemas}, compiled {n_compiled}, wrong_accepted {}, wrong_refused {n_refused} of {n_valid}",
        wrong.len()
    );
    assert!(wrong.is_empty(), "{} invalid instances are accepted:\n{}", wrong.len(), wrong.join("\n"));
    assert!(n_compiled * 100 >= n_schemas * 93, "{n_compiled} of {n_schemas} schemas are enforced");
    // Orders of properties that are not the declared one, most of them.
    assert!(n_refused * 100 <= n_valid * 3, "{n_refused} of {n_valid} valid instances are refused");
}
