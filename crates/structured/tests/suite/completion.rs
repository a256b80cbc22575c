//! Ways to the end: they lead there, leave the state alone, do not depend on what was taken back, and keep
//! every text of a schema valid at every limit from the shortest text on.

use breakers_core::{Constraint as _, Json, TokenId, TokenMask, Vocabulary as _};
use breakers_structured::{Compiler, Grammar, GrammarConstraint};
use serde_json::Value;

use crate::bytes::{Bytes, END};
use crate::constraint::grammars;
use crate::{compiler, maskbench};

/// Room for every way.
const ROOM: usize = 4096;

/// A source of choices that a seed determines.
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }
}

fn mask(constraint: &mut GrammarConstraint) -> TokenMask {
    let mut mask = TokenMask::none(Bytes.n_tokens());
    constraint.allowed(&mut mask).unwrap();
    mask
}

/// Any token of a mask.
fn any(mask: &TokenMask, chance: &mut Chance) -> TokenId {
    let tokens: Vec<TokenId> = mask.iter().collect();
    tokens[chance.below(tokens.len())]
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
                match any(&before, &mut chance) {
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
                match any(&mask(&mut other), &mut chance) {
                    END => break,
                    token => other.advance(token).unwrap(),
                }
                n_ahead += 1;
                other.completion(chance.below(30)).unwrap();
            }
            other.rollback(n_ahead).unwrap();
            match any(&mask(&mut one), &mut chance) {
                END => break,
                token => {
                    one.advance(token).unwrap();
                    other.advance(token).unwrap();
                }
            }
        }
    }
}

/// A text of random tokens that ends within `limit` tokens, its end token among them, by the book.
fn random_text(mut constraint: GrammarConstraint, limit: usize, chance: &mut Chance) -> Vec<TokenId> {
    let mut way = constraint.completion(limit - 1).unwrap().unwrap();
    let mut tokens = Vec::new();
    for left in (1..=limit).rev() {
        let first = way.first().copied();
        let token = match way.len() + 1 == left {
            true => first.unwrap_or(END),
            false => any(&mask(&mut constraint), chance),
        };
        assert!(mask(&mut constraint).is_allowed(token));
        if token == END {
            return tokens;
        }
        constraint.advance(token).unwrap();
        tokens.push(token);
        if first == Some(token) {
            way.remove(0);
            continue;
        }
        match left.checked_sub(2).map(|within| constraint.completion(within).unwrap()) {
            Some(Some(found)) => way = found,
            _ => {
                constraint.rollback(1).unwrap();
                tokens.pop();
                let Some(first) = first else { return tokens };
                constraint.advance(first).unwrap();
                tokens.push(first);
                way.remove(0);
            }
        }
    }
    panic!("{limit} tokens are over, and the text has not ended: {:?}", text(&tokens));
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
            let tokens =
                random_text(constraint, shortest.len() + more, &mut Chance((seed * 100 + more) as u64));
            assert!(tokens.len() < shortest.len() + more);
            let written = text(&tokens);
            let value: Value = match serde_json::from_str(&written) {
                Ok(value) => value,
                // JSON has numbers that this parser has not.
                Err(error) if error.to_string().starts_with("number out of range") => continue,
                Err(error) => panic!("{}: {error} in {written}", row["name"]),
            };
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
