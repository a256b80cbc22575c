use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use breakers_core::Tokenizer;
use llguidance::api::TopLevelGrammar;
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

use crate::{Error, Grammar, GrammarConstraint, Result, environment, schema};

/// The engine follows schemas by recursion, at some kilobytes a level. Only what is used takes memory.
const STACK_BYTES: usize = 256 << 20;

/// What a grammar may cost.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Limits {
    /// Bytes of a grammar's text.
    pub bytes: usize,
    /// Levels of brackets in a grammar's text.
    pub depth: usize,
    /// Compiled grammars that are kept, those that were used last.
    pub cached: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 1 << 20, depth: 64, cached: 64 }
    }
}

/// Makes constraints for one vocabulary. Can be shared by threads.
pub struct Compiler {
    factory: ParserFactory,
    n_tokens: usize,
    limits: Limits,
    /// The one used last comes last.
    cache: Mutex<Vec<(Grammar, Matcher)>>,
}

impl Compiler {
    /// A compiler for a vocabulary.
    ///
    /// # Errors
    /// [`Error::NoEndToken`], [`Error::Vocabulary`].
    pub fn new(tokenizer: Arc<dyn Tokenizer>) -> Result<Self> {
        let n_tokens = tokenizer.n_tokens();
        let environment = environment::environment(tokenizer)?;
        let factory = ParserFactory::new_simple(&environment);
        let mut factory = factory.map_err(|error| Error::Vocabulary { reason: error.to_string() })?;
        factory.quiet();
        // Or errors would quote the text so far.
        factory.limits_mut().verbose_errors = false;
        Ok(Self { factory, n_tokens, limits: Limits::default(), cache: Mutex::default() })
    }

    /// The same compiler with other limits.
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// A constraint at the beginning of a text.
    ///
    /// # Errors
    /// [`Error::Keyword`], [`Error::Json`], [`Error::Limit`], [`Error::NoChoice`], [`Error::Grammar`],
    /// [`Error::Thread`].
    pub fn constraint(&self, grammar: &Grammar) -> Result<GrammarConstraint> {
        let matcher = match self.cached(grammar) {
            Some(matcher) => matcher,
            None => {
                let matcher = self.compile_apart(grammar)?;
                self.keep(grammar, matcher.deep_clone());
                matcher
            }
        };
        Ok(GrammarConstraint::new(matcher, self.n_tokens))
    }

    fn cached(&self, grammar: &Grammar) -> Option<Matcher> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let place = cache.iter().position(|(other, _)| other == grammar)?;
        let entry = cache.remove(place);
        // A copy of its own: what one text makes the engine remember must not count against another's limits.
        let matcher = entry.1.deep_clone();
        cache.push(entry);
        Some(matcher)
    }

    fn keep(&self, grammar: &Grammar, matcher: Matcher) {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.retain(|(other, _)| other != grammar);
        cache.push((grammar.clone(), matcher));
        let surplus = cache.len().saturating_sub(self.limits.cached);
        cache.drain(..surplus);
    }

    fn compile_apart(&self, grammar: &Grammar) -> Result<Matcher> {
        let limit = |what, limit, found| {
            if found > limit { Err(Error::Limit { what, limit, found }) } else { Ok(()) }
        };
        limit("bytes", self.limits.bytes, grammar.bytes())?;
        limit("levels of brackets", self.limits.depth, grammar.depth())?;
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
            let thread = thread.spawn_scoped(scope, || self.compile(grammar));
            let thread = thread.map_err(|error| Error::Thread { kind: error.kind() })?;
            thread.join().unwrap_or_else(|_| Err(Error::Grammar { reason: "the engine panicked".to_owned() }))
        })
    }

    fn compile(&self, grammar: &Grammar) -> Result<Matcher> {
        let top = match grammar {
            Grammar::JsonSchema(json) => json_schema(schema::rewrite(&json.to()?)?),
            Grammar::AnyJson => json_schema(json!({})),
            Grammar::AnyJsonObject => json_schema(json!({ "type": "object" })),
            Grammar::Regex(expression) => TopLevelGrammar::from_regex(expression),
            Grammar::Lark(grammar) => TopLevelGrammar::from_lark(grammar.clone()),
            Grammar::Choice(texts) if texts.is_empty() => return Err(Error::NoChoice),
            Grammar::Choice(texts) => {
                let literal = |text: &String| -> String {
                    text.chars().map(|c| format!("\\x{{{:x}}}", u32::from(c))).collect()
                };
                let options: Vec<String> = texts.iter().map(literal).collect();
                TopLevelGrammar::from_regex(&format!("(?:{})", options.join("|")))
            }
        };
        let mut matcher = Matcher::new(Ok(self.factory.create_parser(top).map_err(refused)?));
        // A grammar of no text, such as one that only refers to itself, shows at its first mask.
        matcher.compute_mask_or_eos().map_err(refused)?;
        Ok(matcher)
    }
}

fn refused(error: impl fmt::Display) -> Error {
    Error::Grammar { reason: error.to_string() }
}

/// A schema with our whitespace: one space at most.
fn json_schema(schema: Value) -> TopLevelGrammar {
    let mut schema = match schema {
        Value::Bool(true) => json!({}),
        schema => schema,
    };
    if let Value::Object(schema) = &mut schema {
        schema.insert("x-guidance".to_owned(), json!({ "whitespace_pattern": " " }));
    }
    TopLevelGrammar::from_json_schema(schema)
}

impl fmt::Debug for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compiler")
            .field("n_tokens", &self.n_tokens)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}
