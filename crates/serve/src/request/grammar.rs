//! Forms of answers in the words of other servers: vLLM's `structured_outputs` and its older `guided_…`,
//! SGLang's `regex`, llama.cpp's `json_schema`.

use breakers_core::{Json, ResponseFormat, ResponseSchema};
use serde_json::value::RawValue;

use super::{Fields, chat, fields};
use crate::Limits;
use crate::api_error::ApiError;

/// What is wrong with two forms.
pub(super) const TWICE: &str = "the form of the answer is given twice";

/// The form that these fields ask for, and the field; `None` if there are none.
///
/// # Errors
/// More than one form, and what cannot be enforced, by field.
pub(super) fn form(
    fields: &mut Fields<'_>,
    limits: &Limits,
) -> Result<Option<(ResponseFormat, &'static str)>, ApiError> {
    let mut found: Option<(ResponseFormat, &'static str)> = None;
    for (name, kind) in [
        ("guided_json", "json"),
        ("guided_regex", "regex"),
        ("guided_choice", "choice"),
        ("guided_grammar", "grammar"),
        ("json_schema", "json"),
        ("regex", "regex"),
    ] {
        let Some(form) = one(fields, name, kind, limits)? else { continue };
        if found.replace((form, name)).is_some() {
            return Err(fields.wrong(name, TWICE));
        }
    }
    if let Some(mut inner) = fields.object("structured_outputs")? {
        for name in ["json", "regex", "choice", "grammar", "json_object"] {
            let Some(form) = one(&mut inner, name, name, limits)? else { continue };
            if found.replace((form, "structured_outputs")).is_some() {
                return Err(inner.wrong(name, TWICE));
            }
        }
        for name in [
            "structural_tag",
            "whitespace_pattern",
            "disable_any_whitespace",
            "disable_additional_properties",
        ] {
            if inner.raw(name).is_some_and(|value| value.get() != "false") {
                return Err(inner.unsupported(name, "it is not supported"));
            }
        }
    }
    Ok(found)
}

/// One field with a form of this kind. Empty values, which clients send as defaults, are none.
fn one(
    fields: &mut Fields<'_>,
    name: &str,
    kind: &str,
    limits: &Limits,
) -> Result<Option<ResponseFormat>, ApiError> {
    let is_none = |value: &RawValue| match kind {
        "choice" => value.get() == "[]",
        "json_object" => value.get() == "false",
        _ => value.get() == "\"\"",
    };
    let Some(value) = fields.raw(name).filter(|value| !is_none(value)) else { return Ok(None) };
    let path = fields.path(name);
    let text = |value: &RawValue| -> Result<String, ApiError> {
        if value.get().len() > limits.schema_bytes {
            return Err(fields.wrong(name, format!("a grammar of more than {} bytes", limits.schema_bytes)));
        }
        fields::read(value, &path)
    };
    Ok(Some(match kind {
        "json" => {
            // Some clients send the schema as a text.
            let schema = match value.get().starts_with('"') {
                true => Json::parse(&text(value)?).map_err(|error| fields.wrong(name, error))?,
                false => chat::json_schema(value, fields, name, limits)?,
            };
            if !schema.as_str().trim_start().starts_with('{') {
                return Err(fields.wrong(name, "a schema is an object"));
            }
            ResponseFormat::JsonSchema(ResponseSchema::new(name, schema))
        }
        "json_object" => {
            fields::read::<bool>(value, &path)?;
            ResponseFormat::JsonObject
        }
        "regex" => ResponseFormat::Regex(text(value)?),
        "choice" => {
            let texts: Vec<String> = fields::read(value, &path)?;
            if texts.iter().map(String::len).sum::<usize>() > limits.schema_bytes {
                return Err(fields.wrong(name, format!("more than {} bytes", limits.schema_bytes)));
            }
            if texts.iter().any(String::is_empty) {
                return Err(fields.wrong(name, "a choice is empty"));
            }
            ResponseFormat::Choice(texts)
        }
        _ => {
            let grammar = text(value)?;
            if grammar.contains("::=") {
                return Err(fields.unsupported(name, "GBNF and EBNF are not read; Lark is"));
            }
            ResponseFormat::Lark(grammar)
        }
    }))
}
