//! The official tests of JSON Schema, draft 2020-12. `BREAKERS_JSON_SCHEMA_TESTS` names the folder
//! `draft2020-12` of the JSON-Schema-Test-Suite; it is also within the source package `jsonschema` of PyPI,
//! at `json/tests`. Without it the test is skipped.
//!
//! `tests/data/json-schema-2020-12.tsv` holds what came of each test, by file and number of the schema: `p`
//! passes, `v` a valid instance is refused, `r` the schema is refused, with the keyword. It may only get
//! better. `BREAKERS_RATCHET=write` writes it anew.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use breakers_core::Json;
use breakers_structured::{Error, Grammar};
use serde_json::Value;

use crate::{accepts, compiler, ratchet};

fn files(folder: &Path, name: &str, found: &mut Vec<(String, PathBuf)>) {
    let mut entries: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        let name = format!("{name}{}", path.file_name().unwrap().to_string_lossy());
        if path.is_dir() {
            files(&path, &format!("{name}/"), found);
        } else if path.extension().is_some_and(|extension| extension == "json") {
            found.push((name, path));
        }
    }
}

#[test]
fn official_tests_are_never_wrongly_accepted() {
    let Some(folder) = std::env::var_os("BREAKERS_JSON_SCHEMA_TESTS") else {
        eprintln!("skipped: no official tests, see BREAKERS_JSON_SCHEMA_TESTS");
        return;
    };
    let compiler = compiler();
    let mut paths = Vec::new();
    files(Path::new(&folder), "", &mut paths);
    assert!(!paths.is_empty(), "no tests in {folder:?}");
    let (mut wrong, mut found, mut n_mandatory, mut n_passed) = (Vec::new(), BTreeMap::new(), 0, 0);
    for (name, path) in paths {
        let groups: Vec<Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        for (i, group) in groups.iter().enumerate() {
            let grammar = Grammar::JsonSchema(Json::parse(&group["schema"].to_string()).unwrap());
            let (mut classes, mut keyword) = (String::new(), String::new());
            let is_refused = match compiler.constraint(&grammar) {
                Ok(_) => false,
                Err(Error::Keyword { keyword: found, .. }) => {
                    keyword = found;
                    true
                }
                Err(_) => true,
            };
            for test in group["tests"].as_array().unwrap() {
                let is_valid = test["valid"] == true;
                let class = if is_refused {
                    'r'
                } else {
                    let constraint = compiler.constraint(&grammar).unwrap();
                    match (accepts(constraint, &test["data"].to_string()).unwrap(), is_valid) {
                        (true, false) => {
                            wrong.push(format!("{name} {}: {}", group["description"], test["description"]));
                            'w'
                        }
                        (false, true) => 'v',
                        _ => 'p',
                    }
                };
                if !name.starts_with("optional/") {
                    n_mandatory += 1;
                    n_passed += usize::from(class == 'p');
                }
                classes.push(class);
            }
            found.insert(format!("{name}\t{i}"), format!("{classes}\t{keyword}"));
        }
    }
    eprintln!("{n_passed} of {n_mandatory} mandatory tests pass, {} are wrongly accepted", wrong.len());
    assert!(wrong.is_empty(), "{} invalid instances are accepted:\n{}", wrong.len(), wrong.join("\n"));
    assert!(n_passed * 100 >= n_mandatory * 70, "{n_passed} of {n_mandatory}");
    ratchet("json-schema-2020-12.tsv", &found, |old, new| {
        let rank = |class: char| "vrp".find(class);
        let classes =
            |line: &str| line.split('\t').next().unwrap_or_default().chars().map(rank).collect::<Vec<_>>();
        let (old, new) = (classes(old), classes(new));
        old.len() == new.len() && old.iter().zip(&new).all(|(old, new)| new >= old)
    });
}
