//! Ways to the end: they lead there, leave the state alone, do not depend on what was taken back, and keep
//! every text of a schema valid at every limit from the shortest text on.

use breakers_core::{Constraint as _, Json, TokenId, TokenMask, Vocabulary as _};
use breakers_structured::{Compiler, Grammar, GrammarConstraint};
use serde_json::Value;

use crate::bytes::{Bytes, END};
use crate::constraint::grammars;
use crate::texts::{Chance, Outcome, random_text};
use crate::{compiler, maskbench};

/// Room for every way.
const ROOM: usize = 4096;

fn mask(constraint: &mut GrammarConstraint) -> TokenMask {
    let mut mask = TokenMask::none(Bytes.n_tokens());
    constraint.allowed(&mut mask).unwrap();
    mask
}

fn text(tokens: &[TokenId]) -> String {
    let bytes = tokens.iter().flat_map(|&token| Bytes.token_bytes(token).unwrap()).copied().collect();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn ways_lead_to_the_end() {
    let compiler = compiler();
    for grammar in grammars() {
        for seed in 0..8 {
            let mut chance = Chance(seed);
            let mut constraint = compiler.constraint(&grammar).unwrap();
            for _ in 0..40 {
                let before = mask(&mut constraint);
                let way = constraint.completion(ROOM).unwrap();
                let way = way.unwrap_or_else(|| panic!("{grammar:?}: no way from {constraint:?}"));
                assert_eq!(mask(&mut constraint), before, "the state has changed");
                for (i, &token) in way.iter().enumerate() {
                    assert!(mask(&mut constraint).is_allowed(token), "{grammar:?}: {:?}", text(&way));
                    constraint.advance(token).unwrap();
                    // What is left of the way is found again.
                    let left = way.len() - i - 1;
                    let rest = constraint.completion(left).unwrap();
                    assert!(rest.is_some_and(|rest| way[i + 1..].starts_with(&rest)), "{grammar:?}");
                }
                assert!(constraint.may_end().unwrap() && mask(&mut constraint).is_allowed(END));
                assert_eq!(constraint.completion(0).unwrap().as_deref(), Some(&[][..]));
                constraint.rollback(way.len()).unwrap();
                assert_eq!(mask(&mut constraint), before, "the state has changed");
                // No way is longer than it may be.
                if let Some(short) = way.len().checked_sub(1) {
                    assert!(constraint.completion(short).unwrap().is_none_or(|found| found.len() <= short));
                }
                match chance.token(&before) {
                    END => break,
                    token => constraint.advance(token).unwrap(),
                }
            }
        }
    }
}

#[test]
fn the_shortest_texts_of_simple_grammars() {
    let compiler = compiler();
    let schema = |text: &str| Grammar::JsonSchema(Json::parse(text).unwrap());
    let regex = |text: &str| Grammar::Regex(text.to_owned());
    let check = |grammar: &Grammar, n_tokens: usize| {
        let way = compiler.constraint(grammar).unwrap().completion(ROOM).unwrap().unwrap();
        assert!(way.len() <= n_tokens, "{grammar:?}: {} tokens, {:?}", way.len(), text(&way));
    };
    // The pieces of several bytes count as one token: see the vocabulary.
    check(&Grammar::AnyJson, 1);
    check(&Grammar::AnyJsonObject, 2);
    check(&schema(r#"{"type": "array", "items": {"type": "integer"}, "minItems": 3}"#), 7);
    check(&schema(r#"{"type": "string", "minLength": 9}"#), 11);
    check(
        &schema(
            r#"{"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "boolean"}}, "required": ["a", "b"], "additionalProperties": false}"#,
        ),
        // {"  a  ":  "  ","  b  ":  true  }
        9,
    );
    // An optional part is left out, however short its name.
    check(
        &schema(
            r#"{"type": "object", "properties": {"a": {"type": "array", "minItems": 50}}, "additionalProperties": false}"#,
        ),
        2,
    );
    check(&schema(r#"{"anyOf": [{"type": "array", "minItems": 9}, {"type": "boolean"}]}"#), 1);
    check(&regex("[a-z]+@[a-z]+[.][a-z]+"), 5);
    check(&regex("[0-9]+[.][0-9]+[.][0-9]+"), 5);
    check(&schema(r#"{"type": "string", "format": "email"}"#), 14);
    check(&Grammar::Lark("start: \"(\" start \")\" | /[a-z]+/".to_owned()), 1);
    let list = "start: \"SELECT \" NAME (\", \" NAME)* \" FROM \" NAME\nNAME: /[a-z]+/";
    check(&Grammar::Lark(list.to_owned()), 15);
    check(&Grammar::Choice(vec!["yes".to_owned(), "no".to_owned()]), 3);
}

#[test]
fn ways_do_not_depend_on_what_was_taken_back() {
    let compiler = compiler();
    for grammar in grammars() {
        let mut chance = Chance(5);
        let (mut one, mut other) =
            (compiler.constraint(&grammar).unwrap(), compiler.constraint(&grammar).unwrap());
        for _ in 0..40 {
            assert_eq!(one.completion(ROOM).unwrap(), other.completion(ROOM).unwrap(), "{grammar:?}");
            // One of the two looks around.
            let mut n_ahead = 0;
            for _ in 0..chance.below(4) {
                match chance.token(&mask(&mut other)) {
                    END => break,
                    token => other.advance(token).unwrap(),
                }
                n_ahead += 1;
                other.completion(chance.below(30)).unwrap();
            }
            other.rollback(n_ahead).unwrap();
            match chance.token(&mask(&mut one)) {
                END => break,
                token => {
                    one.advance(token).unwrap();
                    other.advance(token).unwrap();
                }
            }
        }
    }
}

#[test]
fn texts_are_valid_at_every_limit_from_the_shortest_on() {
    let Some(path) = maskbench::file() else {
        eprintln!("skipped: no MaskBench, see BREAKERS_MASKBENCH");
        return;
    };
    let step = if maskbench::is_whole() { 1 } else { 150 };
    let compiler: Compiler = compiler();
    let (mut n_schemas, mut unknown) = (0, Vec::new());
    for (seed, line) in maskbench::lines(&path).step_by(step).enumerate() {
        let row: Value = serde_json::from_str(&line).unwrap();
        let grammar = Grammar::JsonSchema(Json::parse(&row["schema"].to_string()).unwrap());
        let Ok(mut constraint) = compiler.constraint(&grammar) else { continue };
        n_schemas += 1;
        let Some(shortest) = constraint.completion(ROOM).unwrap() else {
            unknown.push(row["name"].to_string());
            continue;
        };
        // Long ones take long without optimization.
        if shortest.len() > 150 && !maskbench::is_whole() {
            continue;
        }
        let validator = jsonschema::validator_for(&row["schema"]).ok();
        for more in 1..=20 {
            let constraint = compiler.constraint(&grammar).unwrap();
            let mut chance = Chance((seed * 100 + more) as u64);
            let outcome = random_text(constraint, &Bytes, shortest.len() + more, more, &mut chance);
            let Ok(Outcome::Ended(tokens)) = outcome else { panic!("{}: {outcome:?}", row["name"]) };
            assert!(tokens.len() < shortest.len() + more);
            let written = text(&tokens);
            let value: Value = serde_json::from_str(&written)
                .unwrap_or_else(|error| panic!("{}: {error} in {written}", row["name"]));
            // Schemas that no validator takes are not held against us.
            let is_valid = validator.as_ref().is_none_or(|validator| validator.is_valid(&value));
            assert!(is_valid, "{} at {} tokens: {written}", row["name"], shortest.len() + more);
        }
    }
    // A text that has to hold a certain word anywhere, and anything beside it, is a way that nobody finds.
    eprintln!("{n_schemas} schemas, {} without a known way: {unknown:?}", unknown.len());
    assert!(n_schemas > 15 && unknown.len() * 15 <= n_schemas, "{n_schemas}: {unknown:?}");
}

/// Where only checks see that nothing may follow, a walk goes back and takes another turn.
#[test]
fn ways_lead_around_dead_ends() {
    let compiler = compiler();
    for schema in [
        r#"{"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 4}, "uniqueItems": true, "minItems": 4}"#,
        r#"{"type": "array", "items": {"type": "boolean"}, "uniqueItems": true, "minItems": 2}"#,
    ] {
        let grammar = Grammar::JsonSchema(Json::parse(schema).unwrap());
        let mut constraint = compiler.constraint(&grammar).unwrap();
        let way = constraint.completion(ROOM).unwrap().unwrap_or_else(|| panic!("{schema}: no way"));
        way.iter().for_each(|token| constraint.advance(*token).unwrap());
        assert!(constraint.may_end().unwrap(), "{schema}");
    }
}
