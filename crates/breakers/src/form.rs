//! Flags that say which form an answer must have.

use std::sync::Arc;

use breakers_cli::generate::Form;
use breakers_cli::{Error, LoadedModel, Result, read_text};
use breakers_core::{
    AnswerForms, AnswerPlan, CallError, ChatRequest, Json, JsonError, Tokenizer, Tool, ToolChoice,
};
use breakers_structured::tools::{FORMATS, ToolFormatSpec};
use breakers_structured::{Compiler, Forms, Grammar, Order, SchemaOptions};
use breakers_tokenizer::ChatTemplate;

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
    /// Let the model call the functions of this file: a JSON list as OpenAI's interface has it. Calls are
    /// printed, a line of JSON each; a chat asks for their results.
    #[arg(long, value_name = "FILE", group = "form")]
    tools: Option<String>,
    /// With --tools: what the model may do; auto, none, required, or the name of a function that it must
    /// call.
    #[arg(long, value_name = "CHOICE", requires = "tools")]
    tool_choice: Option<String>,
    /// With --tools: the form in which the model writes calls, if its template does not tell.
    #[arg(long, value_name = "NAME", requires = "tools")]
    tool_format: Option<ToolFormatSpec>,
    /// With --tools: one call at most in an answer.
    #[arg(long, requires = "tools")]
    one_call: bool,
}

impl FormArgs {
    /// The grammar that the flags ask for.
    fn grammar(&self) -> Result<Option<Grammar>> {
        for (flag, is_given) in [("--any-order", self.any_order), ("--lenient", self.lenient)] {
            if is_given && self.schema.is_none() {
                return Err(Error::Usage(format!("{flag} needs a --schema")));
            }
        }
        let of_tools = [
            ("--tool-choice", self.tool_choice.is_some()),
            ("--tool-format", self.tool_format.is_some()),
            ("--one-call", self.one_call),
        ];
        if let Some((flag, _)) = of_tools.iter().find(|(_, is_given)| *is_given && self.tools.is_none()) {
            return Err(Error::Usage(format!("{flag} needs --tools")));
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

    /// The form of a model's answers. A grammar is compiled here, so that a bad one is an error before
    /// anything is generated.
    pub(crate) fn of(&self, loaded: &LoadedModel, template: Option<&ChatTemplate>) -> Result<Option<Form>> {
        let grammar = self.grammar()?;
        let tokenizer = Arc::new(loaded.model.tokenizer().clone());
        if let Some(file) = &self.tools {
            return self.calls(file, tokenizer, loaded, template).map(Some);
        }
        let Some(grammar) = grammar else { return Ok(None) };
        let compiler = Compiler::new(tokenizer)?;
        compiler.constraint(&grammar)?;
        Ok(Some(Form { forms: Box::new(Fixed { compiler, grammar }), request: ChatRequest::new("") }))
    }

    /// The form of answers that may call functions.
    fn calls(
        &self,
        file: &str,
        tokenizer: Arc<dyn Tokenizer>,
        loaded: &LoadedModel,
        template: Option<&ChatTemplate>,
    ) -> Result<Form> {
        let model = &loaded.name;
        let Some(template) = template else {
            return Err(Error::Usage(format!(
                "--tools: functions are called in conversations, and {model} has no chat template here"
            )));
        };
        let wrong = |error: JsonError| Error::Usage(format!("--tools: {file}: {error}"));
        let list: Vec<Json> = Json::parse(&read_text(file)?).and_then(|json| json.to()).map_err(wrong)?;
        let tools =
            list.iter().map(|json| Tool::from_json(json).map_err(wrong)).collect::<Result<Vec<_>>>()?;
        if tools.is_empty() {
            return Err(Error::Usage(format!("--tools: {file} holds no function")));
        }
        let choice = match self.tool_choice.as_deref() {
            None | Some("auto") => ToolChoice::Auto,
            Some("none") => ToolChoice::None,
            Some("required") => ToolChoice::Required,
            Some(name) => ToolChoice::Function(name.to_owned()),
        };
        let format = self
            .tool_format
            .or_else(|| ToolFormatSpec::of_model(&loaded.model.info().name, template.source()));
        let format = format.ok_or_else(|| {
            let names = FORMATS.iter().map(|entry| entry.name).collect::<Vec<_>>().join(", ");
            Error::Usage(format!("the template of {model} does not tell how it calls functions: name the form with --tool-format ({names})"))
        })?;
        let mut request = ChatRequest::new("").with_tools(tools, choice);
        request.parallel_tool_calls = self.one_call.then_some(false);
        let forms = Forms::new(tokenizer)?.with_calls(format);
        forms.plan(&request, 0)?;
        Ok(Form { forms: Box::new(forms), request })
    }
}

/// One grammar for all answers.
struct Fixed {
    compiler: Compiler,
    grammar: Grammar,
}

impl AnswerForms for Fixed {
    fn plan(&self, _: &ChatRequest, _: u64) -> std::result::Result<AnswerPlan, CallError> {
        let constraint = self.compiler.constraint(&self.grammar).map_err(CallError::failed)?;
        Ok(AnswerPlan::constrained(Box::new(constraint)))
    }

    fn has_calls(&self) -> bool {
        false
    }
}
