//! Flags that say which form an answer must have.

use std::sync::Arc;

use breakers_cli::generate::MakeConstraint;
use breakers_cli::{Error, LoadedModel, Result, read_text};
use breakers_core::Json;
use breakers_structured::{Compiler, Grammar, Order, SchemaOptions};

/// The form of an answer; without one of these flags it may be any text.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct FormArgs {
    /// Answer with JSON that this JSON Schema accepts: a file, or the schema itself.
    #[arg(long, value_name = "FILE|SCHEMA", group = "form")]
    schema: Option<String>,
    /// With --schema: let the properties of an object come in any order, not only in the schema's.
    #[arg(long, requires = "schema")]
    any_order: bool,
    /// With --schema: enforce what can be enforced, and warn about the rest, where it would be refused.
    #[arg(long, requires = "schema")]
    lenient: bool,
    /// Answer with any JSON object.
    #[arg(long, group = "form")]
    json_object: bool,
    /// Answer with a text that this regular expression matches as a whole.
    #[arg(long, value_name = "EXPRESSION", allow_hyphen_values = true, group = "form")]
    regex: Option<String>,
    /// Answer with a text of this Lark grammar, whose first rule is `start`.
    #[arg(long, value_name = "FILE", group = "form")]
    grammar: Option<String>,
    /// Answer with one of these texts; to be given several times.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, group = "form")]
    choice: Vec<String>,
}

impl FormArgs {
    /// The grammar that the flags ask for.
    fn grammar(&self) -> Result<Option<Grammar>> {
        for (flag, is_given) in [("--any-order", self.any_order), ("--lenient", self.lenient)] {
            if is_given && self.schema.is_none() {
                return Err(Error::Usage(format!("{flag} needs a --schema")));
            }
        }
        if let Some(schema) = &self.schema {
            let is_schema = schema.trim_start().starts_with('{');
            let text = if is_schema { schema.clone() } else { read_text(schema)? };
            let json = Json::parse(&text).map_err(|error| Error::Usage(format!("--schema: {error}")))?;
            let order = if self.any_order { Order::Any } else { Order::Declared };
            let options = SchemaOptions::default().with_order(order).with_strict(!self.lenient);
            return Ok(Some(Grammar::JsonSchemaWith(json, options)));
        }
        Ok(match self {
            Self { json_object: true, .. } => Some(Grammar::AnyJsonObject),
            Self { regex: Some(expression), .. } => Some(Grammar::Regex(expression.clone())),
            Self { grammar: Some(file), .. } => Some(Grammar::Lark(read_text(file)?)),
            Self { choice, .. } if !choice.is_empty() => Some(Grammar::Choice(choice.clone())),
            _ => None,
        })
    }

    /// What makes the constraints of a model's answers. The grammar is compiled here, so that a bad one is an
    /// error before anything is generated.
    pub(crate) fn constraint(&self, loaded: &LoadedModel) -> Result<Option<MakeConstraint>> {
        let Some(grammar) = self.grammar()? else { return Ok(None) };
        let compiler = Compiler::new(Arc::new(loaded.model.tokenizer().clone()))?;
        compiler.constraint(&grammar)?;
        Ok(Some(Box::new(move || Ok(Box::new(compiler.constraint(&grammar)?)))))
    }
}
