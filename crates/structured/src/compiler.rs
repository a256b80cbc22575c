use std::cell::Cell;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use breakers_core::Tokenizer;
use llguidance::api::TopLevelGrammar;
use llguidance::{Matcher, ParserFactory};
use serde_json::{Map, Value, json};

use crate::check::{Check, Tokens};
use crate::cost::{STEPS, steps};
use crate::schema::{
    Looseness, PATTERN_BYTES, Schemas, as_meant, is_assertion, rewrite, rewrite_part, subschemas,
};
use crate::words::Words;
use crate::{Error, Grammar, GrammarConstraint, Result, SchemaOptions, Warning, environment};

/// The engine follows schemas by recursion, at some kilobytes a level. Only what is used takes memory.
const STACK_BYTES: usize = 256 << 20;

/// Attempts and time for the search of what the engine refuses.
const ATTEMPTS: usize = 32;
const SEARCH: Duration = Duration::from_millis(250);

/// What a grammar may cost.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Limits {
    /// Bytes of a grammar's text.
    pub bytes: usize,
    /// Levels of nesting: values within values that a schema describes, each of two brackets in its text;
    /// brackets of an expression or a grammar of Lark. Readers of JSON stop at 127 brackets, so that more
    /// than 63 are of no use to a schema.
    pub depth: usize,
    /// Compiled grammars that are kept, those that were used last.
    pub cached: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 1 << 20, depth: 63, cached: 64 }
    }
}

/// Makes constraints for one vocabulary. Can be shared by threads.
pub struct Compiler {
    factory: ParserFactory,
    n_tokens: usize,
    tokens: Arc<Tokens>,
    limits: Limits,
    /// The one used last comes last.
    cache: Mutex<Vec<(Grammar, Compiled)>>,
}

/// A grammar, ready to be followed.
pub(crate) struct Compiled {
    pub(crate) matcher: Matcher,
    /// Whether a text is JSON.
    pub(crate) is_json: bool,
    /// What the matcher alone would let through.
    pub(crate) check: Option<Arc<Check>>,
    /// What a text may have to hold.
    pub(crate) words: Arc<Words>,
    pub(crate) warnings: Arc<[Warning]>,
}

impl Compiled {
    /// A copy of its own: what one text makes the engine remember must not count against another's limits.
    fn copy(&self) -> Self {
        let (check, words, warnings) = (self.check.clone(), self.words.clone(), self.warnings.clone());
        Self { matcher: self.matcher.deep_clone(), is_json: self.is_json, check, words, warnings }
    }
}

impl Compiler {
    /// A compiler for a vocabulary.
    ///
    /// # Errors
    /// [`Error::NoEndToken`], [`Error::Vocabulary`].
    pub fn new(tokenizer: Arc<dyn Tokenizer>) -> Result<Self> {
        let n_tokens = tokenizer.n_tokens();
        let (environment, tokens) = environment::environment(tokenizer)?;
        let factory = ParserFactory::new_simple(&environment);
        let mut factory = factory.map_err(|error| Error::Vocabulary { reason: error.to_string() })?;
        factory.quiet();
        // Or errors would quote the text so far.
        let limits = factory.limits_mut();
        limits.verbose_errors = false;
        // A fifth of what it would take: schemas in use need less, and attacks end after a second.
        limits.max_lexer_states = 50_000;
        let (tokens, limits) = (Arc::new(tokens), Limits::default());
        Ok(Self { factory, n_tokens, tokens, limits, cache: Mutex::default() })
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
        let compiled = match self.cached(grammar) {
            Some(compiled) => compiled,
            None => {
                let compiled = self.compile_apart(grammar)?;
                compiled.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
                self.keep(grammar, compiled.copy());
                compiled
            }
        };
        Ok(GrammarConstraint::new(compiled, self.tokens.clone(), self.n_tokens))
    }

    fn cached(&self, grammar: &Grammar) -> Option<Compiled> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let place = cache.iter().position(|(other, _)| other == grammar)?;
        let entry = cache.remove(place);
        let compiled = entry.1.copy();
        cache.push(entry);
        Some(compiled)
    }

    fn keep(&self, grammar: &Grammar, compiled: Compiled) {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.retain(|(other, _)| other != grammar);
        cache.push((grammar.clone(), compiled));
        let surplus = cache.len().saturating_sub(self.limits.cached);
        cache.drain(..surplus);
    }

    fn compile_apart(&self, grammar: &Grammar) -> Result<Compiled> {
        let limit = |what, limit, found| {
            if found > limit { Err(Error::Limit { what, limit, found }) } else { Ok(()) }
        };
        limit("bytes", self.limits.bytes, grammar.bytes())?;
        let (depth, what) = grammar.depth();
        limit(what, self.limits.depth, depth)?;
        match grammar {
            Grammar::Regex(expression) => {
                limit("bytes of an expression", PATTERN_BYTES, expression.len())?;
                limit("steps with its repetitions written out", STEPS, steps(expression, false))?;
            }
            Grammar::Lark(text) => {
                limit("steps with its repetitions written out", STEPS, steps(text, true))?;
            }
            _ => {}
        }
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
            let thread = thread.spawn_scoped(scope, || self.compile(grammar));
            let thread = thread.map_err(|error| Error::Thread { kind: error.kind() })?;
            thread.join().unwrap_or_else(|_| Err(Error::Grammar { reason: "the engine panicked".to_owned() }))
        })
    }

    fn compile(&self, grammar: &Grammar) -> Result<Compiled> {
        let top = match grammar {
            Grammar::JsonSchema(json) => {
                return self.json_schema(&as_meant(json.to()?), SchemaOptions::default());
            }
            Grammar::JsonSchemaWith(json, options) => {
                return self.json_schema(&as_meant(json.to()?), *options);
            }
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
        let is_json = matches!(grammar, Grammar::AnyJson | Grammar::AnyJsonObject);
        let words = match grammar {
            Grammar::Regex(expression) => Arc::new(Words::of_expression(expression)),
            _ => Arc::default(),
        };
        Ok(Compiled { matcher: self.matcher(top)?, is_json, check: None, words, warnings: Arc::default() })
    }

    /// A schema, with less of it in the grammar and more of it in checks the less the engine takes.
    fn json_schema(&self, schema: &Value, options: SchemaOptions) -> Result<Compiled> {
        let schemas = Schemas::new(schema);
        let mut first = None;
        for looseness in [Looseness::Least, Looseness::Combinations, Looseness::Conditions] {
            let rewritten = rewrite(&schemas, options, looseness)?;
            let (check, unknown) = Check::new(&schemas, &rewritten.wider)?;
            if let (Some(Warning { keyword, pointer, reason }), true) =
                (unknown.first().cloned(), options.strict)
            {
                return Err(Error::Keyword { keyword, pointer, reason });
            }
            match self.matcher(json_schema(rewritten.schema)) {
                Ok(matcher) => {
                    let mut warnings = rewritten.warnings;
                    let is_new = |new: &&Warning| {
                        let is_same =
                            |old: &Warning| (&old.keyword, &old.pointer) == (&new.keyword, &new.pointer);
                        !warnings.iter().any(is_same)
                    };
                    let new: Vec<Warning> = unknown.iter().filter(is_new).cloned().collect();
                    warnings.extend(new);
                    let check = check.map(Arc::new);
                    let words = Arc::new(Words::of_schema(&schemas));
                    return Ok(Compiled { matcher, is_json: true, check, words, warnings: warnings.into() });
                }
                Err(error) => first = first.or(Some(error)),
            }
        }
        let error = first.unwrap_or_else(|| refused("no attempt was made"));
        Err(self.located(&schemas, options, error))
    }

    /// The keyword and the place of what the engine refuses, where taking things away tells that.
    fn located(&self, schemas: &Schemas<'_>, options: SchemaOptions, error: Error) -> Error {
        let (start, n_attempts) = (Instant::now(), Cell::new(0));
        // Why a part is refused, or that it is not; `None` if that is not known in time.
        let outcome = |schema: &Value, at: &str| -> Option<Option<String>> {
            n_attempts.set(n_attempts.get() + 1);
            if n_attempts.get() > ATTEMPTS || start.elapsed() > SEARCH {
                return None;
            }
            let rewritten = rewrite_part(schemas, schema, at, options, Looseness::Conditions).ok()?;
            match self.matcher(json_schema(rewritten.schema)) {
                Ok(_) => Some(None),
                Err(Error::Grammar { reason }) => Some(Some(reason)),
                Err(_) => None,
            }
        };
        let Error::Grammar { mut reason } = error else { return error };
        let (mut pointer, mut schema) = (String::new(), schemas.root);
        // The innermost schema that is refused for the same reason, or without which the outer one is not.
        while let Some((at, inner, found)) = subschemas(schema).into_iter().find_map(|(step, inner)| {
            let at = format!("{pointer}{step}");
            let found = outcome(inner, &at)??;
            let is_cause = || {
                let mut without = schema.clone();
                if let Some(part) = without.pointer_mut(&step) {
                    *part = Value::Bool(true);
                }
                outcome(&without, &pointer) == Some(None)
            };
            (reason.contains(found.as_str()) || is_cause()).then_some((at, inner, found))
        }) {
            (pointer, schema, reason) = (at, inner, found);
        }
        let mut keywords: Vec<&String> = schema.as_object().into_iter().flat_map(Map::keys).collect();
        // Without its type, a schema mostly accepts something.
        keywords.sort_by_key(|keyword| *keyword == "type");
        let keyword = keywords.into_iter().find(|keyword| {
            let mut rest = schema.clone();
            rest.as_object_mut().and_then(|rest| rest.shift_remove(keyword.as_str()));
            is_assertion(keyword) && outcome(&rest, &pointer) == Some(None)
        });
        match keyword {
            Some(keyword) => Error::Keyword { keyword: keyword.clone(), pointer, reason },
            None if pointer.is_empty() => Error::Grammar { reason },
            None => Error::Grammar { reason: format!("{reason}, at {pointer:?} of the schema") },
        }
    }

    fn matcher(&self, grammar: TopLevelGrammar) -> Result<Matcher> {
        let mut matcher = Matcher::new(Ok(self.factory.create_parser(grammar).map_err(refused)?));
        // A grammar of no text, such as one that only refers to itself, shows at its first mask.
        matcher.compute_mask_or_eos().map_err(refused)?;
        Ok(matcher)
    }
}

fn refused(error: impl fmt::Display) -> Error {
    let text = error.to_string();
    let reason = if text.contains("NoExtensionBias") { "it accepts no text".to_owned() } else { text };
    Error::Grammar { reason }
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
