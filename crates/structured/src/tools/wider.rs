//! Calls of functions whose parameters the engine does not take: it takes wider ones in their place.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use breakers_core::{Json, ResponseFormat, Tokenizer, Tool, ToolChoice, chain};
use serde_json::Value;

use super::lark::only_checked;
use super::{CallRules, ToolError, ToolFormatSpec, Warning};
use crate::schema::{Looseness, Schemas, rewrite};
use crate::{Compiler, Error, Grammar, GrammarConstraint, SchemaOptions};

/// Parameters that are remembered.
const REMEMBERED: usize = 1024;

/// Constraints for calls in one format. One function of many that the engine does not take is found and told
/// by its name, and the others are enforced as before.
pub(crate) struct CallGrammars {
    format: ToolFormatSpec,
    tokenizer: Arc<dyn Tokenizer>,
    /// By parameters that the engine does not take, those that it takes.
    wider: Mutex<HashMap<String, Json>>,
}

impl CallGrammars {
    pub(crate) fn new(format: ToolFormatSpec, tokenizer: Arc<dyn Tokenizer>) -> Self {
        Self { format, tokenizer, wider: Mutex::default() }
    }

    pub(crate) fn format(&self) -> ToolFormatSpec {
        self.format
    }

    /// A constraint for calls. Where a function that is not strict has parameters that cannot be enforced,
    /// the constraint takes more than they do, and a warning says so.
    ///
    /// # Errors
    /// [`ToolError`].
    pub(crate) fn constraint(
        &self,
        compiler: &Compiler,
        rules: &CallRules<'_>,
    ) -> Result<GrammarConstraint, ToolError> {
        let mut tools = self.with_wider(compiler, rules.tools)?;
        let mut compiled = self.compile(compiler, &CallRules { tools: &tools, ..*rules });
        if matches!(compiled, Err(ToolError::Grammar(_))) && self.search(compiler, rules.tools)? {
            tools = self.with_wider(compiler, rules.tools)?;
            compiled = self.compile(compiler, &CallRules { tools: &tools, ..*rules });
        }
        let (constraint, mut warnings) = compiled?;
        for (tool, other) in rules.tools.iter().zip(&*tools) {
            if tool.parameters != other.parameters {
                let reason = only_checked("parameters");
                warnings.push(Warning { function: tool.name.clone(), reason });
            }
        }
        warnings.iter().for_each(|warning| tracing::warn!("{}", chain(warning, ": ")));
        Ok(constraint)
    }

    fn compile(
        &self,
        compiler: &Compiler,
        rules: &CallRules<'_>,
    ) -> Result<(GrammarConstraint, Vec<Warning>), ToolError> {
        let grammar = self.format.grammar(rules, &*self.tokenizer)?;
        let constraint = compiler.constraint(&grammar.grammar).map_err(|error| match error {
            // The engine quotes the lines around the place, which are not the caller's.
            Error::Grammar { reason } => {
                ToolError::Grammar(Error::Grammar { reason: reason.lines().take(1).collect() })
            }
            error => ToolError::Grammar(error),
        })?;
        Ok((constraint, grammar.warnings))
    }

    /// The same functions, with wider parameters where that is known to be needed.
    ///
    /// # Errors
    /// [`ToolError::Parameters`] for a strict one.
    fn with_wider<'t>(&self, compiler: &Compiler, tools: &'t [Tool]) -> Result<Cow<'t, [Tool]>, ToolError> {
        let mut found = Cow::Borrowed(tools);
        for (i, tool) in tools.iter().enumerate() {
            let wider = self.wider.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(parameters) = wider.get(tool.parameters.as_str()).cloned() else { continue };
            drop(wider);
            if tool.strict {
                let alone = compiler.constraint(&Grammar::JsonSchema(tool.parameters.clone()));
                let source = alone.err().unwrap_or_else(|| only_checked("parameters"));
                return Err(ToolError::Parameters { function: tool.name.clone(), source });
            }
            found.to_mut()[i].parameters = parameters;
        }
        Ok(found)
    }

    /// Looks for parameters that the engine does not take, and remembers what it takes. Whether there were
    /// any.
    fn search(&self, compiler: &Compiler, tools: &[Tool]) -> Result<bool, ToolError> {
        let mut found = false;
        for tool in tools {
            let mut alone = tool.clone();
            alone.strict = false;
            let mut takes = |parameters: &Json| {
                alone.parameters = parameters.clone();
                let tools = std::slice::from_ref(&alone);
                let (choice, response) = (&ToolChoice::Required, &ResponseFormat::Text);
                let rules = CallRules { tools, choice, parallel: Some(false), response };
                self.compile(compiler, &rules).is_ok()
            };
            if takes(&tool.parameters) {
                continue;
            }
            let json = |error: breakers_core::JsonError| ToolError::Grammar(error.into());
            let schema: Value = tool.parameters.to().map_err(json)?;
            let (schemas, options) = (Schemas::new(&schema), SchemaOptions::default().with_strict(false));
            let looser = [Looseness::Combinations, Looseness::Conditions]
                .into_iter()
                .filter_map(|looseness| rewrite(&schemas, options, looseness).ok())
                .filter_map(|rewritten| Json::parse(&rewritten.schema.to_string()).ok())
                .find(takes);
            let parameters = match looser {
                Some(parameters) => parameters,
                None => Json::parse(r#"{"type":"object"}"#).map_err(json)?,
            };
            let mut wider = self.wider.lock().unwrap_or_else(PoisonError::into_inner);
            if wider.len() >= REMEMBERED {
                wider.clear();
            }
            wider.insert(tool.parameters.as_str().to_owned(), parameters);
            found = true;
        }
        Ok(found)
    }
}
