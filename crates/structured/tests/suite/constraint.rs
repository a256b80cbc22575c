//! Constraints keep the contract of the trait, whatever the grammar.

use breakers_core::{Constraint, ConstraintError, Json, TokenId, TokenMask, Vocabulary as _};
use breakers_structured::{Compiler, Error, Grammar, Limits};

use crate::bytes::{Bytes, END};
use crate::{check, compiler};

fn schema(text: &str) -> Grammar {
    Grammar::JsonSchema(Json::parse(text).unwrap())
}

pub(crate) fn grammars() -> Vec<Grammar> {
    vec![
        schema(
            r#"{"type": "object", "properties": {"name": {"type": "string", "maxLength": 5}, "ok": {"type": "boolean"},
                "n": {"type": "integer", "minimum": 0, "maximum": 120}}, "required": ["name", "ok", "n"],
                "additionalProperties": false}"#,
        ),
        schema(r#"{"type": "array", "items": {"enum": ["red", "green", 3, null]}, "maxItems": 4}"#),
        Grammar::AnyJsonObject,
        Grammar::Regex("[0-9]{4}-[0-9]{2}(-[0-9]{2})?".to_owned()),
        Grammar::Lark("start: item (\",\" item)*\nitem: /[a-z]+/ | \"(\" start \")\"".to_owned()),
        Grammar::Choice(vec!["yes".to_owned(), "no".to_owned(), "not \"now\"".to_owned()]),
    ]
}

#[test]
fn texts_are_told_apart() {
    let compiler = compiler();
    let [object, list, any_object, regex, lark, choice] = grammars().try_into().unwrap();
    check(
        &compiler,
        &object,
        &[r#"{"name":"Ada","ok":true,"n":36}"#, r#"{"name": "", "ok": false, "n": 0}"#],
        &[
            "",
            "{}",
            r#"{"name":"Ada","ok":true}"#,
            r#"{"name":"Ada","ok":true,"n":121}"#,
            r#"{"name":"Augusta","ok":true,"n":1}"#,
            r#"{"name":"Ada","ok":true,"n":36,"x":1}"#,
            r#"{"name":  "Ada","ok":true,"n":36}"#,
        ],
    );
    check(&compiler, &list, &["[]", r#"["red",3,null]"#], &[r#"["blue"]"#, "[3,3,3,3,3]", "[3,"]);
    check(&compiler, &any_object, &["{}", r#"{"a": [1, {"b": null}]}"#], &["[]", "1", r#"{"a": }"#]);
    check(&compiler, &Grammar::AnyJson, &["[]", "1", "{}", "null", "\"x\""], &["", "nul", "[1"]);
    check(&compiler, &regex, &["2026-11", "2026-11-30"], &["2026", "2026-11-3", "2026-111"]);
    check(&compiler, &lark, &["a", "ab,(c,(d))"], &["(a", "a,", "()"]);
    check(&compiler, &choice, &["yes", "no", "not \"now\""], &["", "n", "not", "maybe"]);
}

#[test]
fn masks_say_what_may_be_advanced_and_taken_back() {
    let compiler = compiler();
    let n_tokens = Bytes.n_tokens();
    let mut mask = TokenMask::none(n_tokens);
    for grammar in grammars() {
        for seed in 0..6u64 {
            let mut constraint = compiler.constraint(&grammar).unwrap();
            let (mut state, mut masks, mut text) = (seed, Vec::new(), Vec::new());
            for _ in 0..60 {
                constraint.allowed(&mut mask).unwrap();
                assert!(!mask.is_empty(), "{grammar:?} after {text:?}");
                assert_eq!(mask.is_allowed(END), constraint.may_end().unwrap(), "{grammar:?} after {text:?}");
                // A few of all tokens, whether they are allowed or not.
                for token in
                    (seed as TokenId % 7..n_tokens as TokenId).step_by(7).filter(|&token| token != END)
                {
                    let found = constraint.advance(token);
                    // Where the text is determined, the mask holds one spelling of it, and others fit, too.
                    let is_other = mask.only().is_some() && !mask.is_allowed(token);
                    assert!(
                        found.is_ok() == mask.is_allowed(token) || is_other,
                        "{grammar:?}: {token} after {text:?}"
                    );
                    match found {
                        Ok(()) => constraint.rollback(1).unwrap(),
                        Err(ConstraintError::NotAllowed { token: found }) => assert_eq!(found, token),
                        Err(error) => panic!("{error}"),
                    }
                }
                masks.push(mask.clone());
                let next: Vec<TokenId> = mask.iter().filter(|&token| token != END).collect();
                if next.is_empty() {
                    break;
                }
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let token = next[(state >> 33) as usize % next.len()];
                constraint.advance(token).unwrap();
                text.push(token);
            }
            // All the way back, the same masks.
            while let Some(expected) = masks.pop() {
                if masks.len() < text.len() {
                    text.pop();
                    constraint.rollback(1).unwrap();
                }
                constraint.allowed(&mut mask).unwrap();
                assert_eq!(mask, expected, "{grammar:?}");
            }
            assert!(text.is_empty());
            let back = constraint.rollback(1);
            assert!(
                matches!(back, Err(ConstraintError::Rollback { requested: 1, available: 0 })),
                "{back:?}"
            );
        }
    }
}

#[test]
fn forced_tokens_are_what_the_masks_leave() {
    let compiler = compiler();
    let grammar = Grammar::Regex("SELECT [a-z]+ FROM people".to_owned());
    let mut constraint = compiler.constraint(&grammar).unwrap();
    let forced = constraint.forced().unwrap();
    assert!(forced.len() > 4, "{forced:?}");
    let mut mask = TokenMask::none(Bytes.n_tokens());
    for token in forced {
        constraint.allowed(&mut mask).unwrap();
        assert_eq!(mask.only(), Some(token));
        constraint.advance(token).unwrap();
    }
}

#[test]
fn tokens_that_never_fit() {
    let mut constraint = compiler().constraint(&Grammar::AnyJson).unwrap();
    for token in [END, 100_000, TokenId::MAX] {
        assert!(matches!(constraint.advance(token), Err(ConstraintError::NotAllowed { .. })), "{token}");
    }
    // A mask of another size holds no token beyond the vocabulary.
    for n_tokens in [10, 10_000] {
        let mut mask = TokenMask::all(n_tokens);
        constraint.allowed(&mut mask).unwrap();
        assert!(mask.iter().all(|token| (token as usize) < Bytes.n_tokens().min(n_tokens)));
    }
}

#[test]
fn grammars_are_kept() {
    let compiler = compiler().with_limits({
        let mut limits = Limits::default();
        limits.cached = 2;
        limits
    });
    let choices = |text: &str| Grammar::Choice(vec![text.to_owned()]);
    for text in ["a", "b", "a", "c", "b", "a"] {
        // Constraints of one grammar do not share their place.
        let (mut one, mut two) =
            (compiler.constraint(&choices(text)).unwrap(), compiler.constraint(&choices(text)).unwrap());
        one.advance(text.as_bytes()[0].into()).unwrap();
        assert!(one.may_end().unwrap() && !two.may_end().unwrap());
    }
}

#[test]
fn hostile_grammars_are_typed_errors() {
    let compiler = compiler();
    let refused = |grammar: Grammar| {
        compiler.constraint(&grammar).map(|_| grammar.clone()).expect_err("it is accepted")
    };
    let groups = format!("{}{}", "(".repeat(60_000), ")".repeat(60_000));
    assert!(matches!(refused(Grammar::Regex(groups.clone())), Error::Limit { limit: 63, found: 60_000, .. }));
    assert!(matches!(refused(Grammar::Lark(format!("start: {groups}"))), Error::Limit { .. }));
    let deep = format!("{}{{}}{}", "{\"not\":".repeat(200), "}".repeat(200));
    assert!(matches!(
        refused(schema(&deep)),
        Error::Limit { what: "levels of nested values", found: 101, .. }
    ));
    let long = serde_json::json!({ "enum": (0..150_000).map(|i| format!("v{i}")).collect::<Vec<_>>() });
    assert!(matches!(refused(schema(&long.to_string())), Error::Limit { what: "bytes", .. }));
    assert!(matches!(refused(Grammar::Choice(Vec::new())), Error::NoChoice));
    for grammar in [
        schema(r##"{"$ref": "#"}"##),
        schema(
            r##"{"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}"##,
        ),
        schema("false"),
        schema(r#"{"type": "text"}"#),
        Grammar::Regex("(".to_owned()),
        Grammar::Lark("no rules".to_owned()),
    ] {
        let error = refused(grammar.clone());
        assert!(matches!(error, Error::Grammar { .. } | Error::Keyword { .. }), "{grammar:?}: {error:?}");
    }
}

#[test]
fn a_vocabulary_needs_an_end() {
    struct Endless;
    impl breakers_core::Vocabulary for Endless {
        fn n_tokens(&self) -> usize {
            256
        }
        fn token_bytes(&self, token: TokenId) -> Option<&[u8]> {
            Bytes.token_bytes(token).map(|_| &b"x"[..])
        }
        fn is_control(&self, _token: TokenId) -> bool {
            false
        }
        fn end_tokens(&self) -> &[TokenId] {
            &[]
        }
        fn begin_token(&self) -> Option<TokenId> {
            None
        }
    }
    impl breakers_core::Tokenizer for Endless {
        fn encode(
            &self,
            _text: &str,
            _options: breakers_core::EncodeOptions,
        ) -> Result<Vec<TokenId>, breakers_core::BoxError> {
            Ok(Vec::new())
        }
        fn encode_chat(
            &self,
            _format: &dyn breakers_core::ChatFormat,
            _messages: &[breakers_core::Message],
            _tools: &[breakers_core::Tool],
        ) -> Result<Vec<TokenId>, breakers_core::BoxError> {
            Ok(Vec::new())
        }
    }
    let refused = Compiler::new(std::sync::Arc::new(Endless)).map(|_| ());
    assert!(matches!(refused, Err(Error::NoEndToken { n_tokens: 256 })), "{refused:?}");
}

/// Inputs that are made to take long, with what is found wrong; the last is the place.
fn attacks() -> Vec<(&'static str, Grammar)> {
    let nested =
        |head: &str, n: usize, core: &str, tail: &str| format!("{}{core}{}", head.repeat(n), tail.repeat(n));
    let doubling = |keyword: &str| {
        let definition = |i: usize| {
            format!(
                r##""d{i}":{{"{keyword}":[{{"$ref":"#/$defs/d{0}"}},{{"$ref":"#/$defs/d{0}"}}]}}"##,
                i + 1
            )
        };
        let definitions: Vec<String> = (0..40).map(definition).collect();
        format!(
            r##"{{"$ref":"#/$defs/d0","uniqueItems":true,"$defs":{{{},"d40":{{"type":"null"}}}}}}"##,
            definitions.join(",")
        )
    };
    vec![
        ("groups", Grammar::Regex(nested("(", 60_000, "a", ")"))),
        ("groups of a pattern", schema(&format!(r#"{{"pattern":"{}"}}"#, nested("(", 60_000, "a", ")")))),
        ("groups of Lark", Grammar::Lark(format!("start: {}", nested("(", 60_000, "\"a\"", ")")))),
        ("repetitions", Grammar::Regex("((((a{1,1000}){1,1000}){1,1000}){1,1000}){1,1000}".to_owned())),
        (
            "repetitions of a pattern",
            schema(r#"{"type": "string", "pattern": "^((a{1,500}b?){1,500}c?){1,500}$"}"#),
        ),
        ("choices without end", Grammar::Regex("(a|a|aa)*(a|b|ab)*c".repeat(200))),
        ("a circle", schema(r##"{"$ref": "#"}"##)),
        ("a circle with a check", schema(r##"{"$ref": "#", "uniqueItems": true}"##)),
        (
            "a circle of two",
            schema(r##"{"allOf":[{"$ref":"#/$defs/a"}],"$defs":{"a":{"anyOf":[{"$ref":"#"}]}}}"##),
        ),
        ("doubling", schema(&doubling("allOf"))),
        ("doubling of options", schema(&doubling("anyOf"))),
        ("doubling of one", schema(&doubling("oneOf"))),
        (
            "many values",
            schema(
                &serde_json::json!({ "enum": (0..150_000).map(|i| format!("v{i}")).collect::<Vec<_>>() })
                    .to_string(),
            ),
        ),
        ("deep", schema(&nested("{\"items\":", 500, "{}", "}"))),
        ("deep not", schema(&nested("{\"not\":", 60, "{\"enum\":[1,2]}", "}"))),
        (
            "many items",
            schema(r#"{"type": "array", "minItems": 4000000000, "items": {"minLength": 4000000000}}"#),
        ),
        ("long texts", schema(r#"{"type": "string", "minLength": 100000000, "maxLength": 4000000000}"#)),
        ("rules in a circle", Grammar::Lark("start: a\na: b\nb: a".to_owned())),
        ("rules of nothing", Grammar::Lark("start: a a a a a a a a\na: b*\nb: c*\nc: \"\"*".to_owned())),
        (
            "doubling rules",
            Grammar::Lark(
                (0..40).map(|i| format!("r{i}: r{0} r{0}\n", i + 1)).collect::<String>()
                    + "r40: \"a\"\nstart: r0",
            ),
        ),
        ("a huge repetition", Grammar::Lark("start: (\"a\"{1000000}){1000000}".to_owned())),
    ]
}

/// Each ends with a typed error, or with a constraint that works: nothing hangs, and nothing runs out of
/// stack.
#[test]
fn attacks_end() {
    let compiler = compiler();
    let mut mask = TokenMask::none(Bytes.n_tokens());
    for (name, grammar) in attacks() {
        let start = std::time::Instant::now();
        let outcome = match compiler.constraint(&grammar) {
            Err(error) => {
                let text = error.to_string();
                assert!(text.len() < 4096, "{name}: an error of {} bytes", text.len());
                text
            }
            Ok(mut constraint) => match constraint.allowed(&mut mask) {
                Ok(()) => "accepted".to_owned(),
                Err(error) => error.to_string(),
            },
        };
        eprintln!("{name}: {:?}, {}", start.elapsed(), outcome.chars().take(100).collect::<String>());
    }
}
