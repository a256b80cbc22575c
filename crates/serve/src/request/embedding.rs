//! Bodies of `/v1/embeddings`.

use breakers_core::TokenId;

use super::{Fields, Prompts};
use crate::Limits;
use crate::api_error::ApiError;

/// A request for vectors.
#[derive(Debug)]
pub(crate) struct EmbeddingRequest {
    pub(crate) model: String,
    pub(crate) inputs: Inputs,
    pub(crate) encoding: Encoding,
    pub(crate) dimensions: Option<usize>,
    pub(crate) ignored: Vec<&'static str>,
}

/// What is turned into vectors.
#[derive(Debug)]
pub(crate) enum Inputs {
    Texts(Vec<String>),
    Tokens(Vec<Vec<TokenId>>),
}

/// How numbers are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    Float,
    Base64,
}

impl EmbeddingRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// What is wrong with it, by field.
    pub(crate) fn read(body: &[u8], limits: &Limits) -> Result<Self, ApiError> {
        let mut fields = Fields::of_body(body, limits.json_depth)?;
        let model = fields.need("model")?;
        let inputs = Prompts::read(&mut fields, "input")?;
        if inputs.len() > limits.inputs {
            return Err(fields.wrong("input", format!("more than {} texts", limits.inputs)));
        }
        let encoding = match fields.get::<String>("encoding_format")?.as_deref() {
            None | Some("float") => Encoding::Float,
            Some("base64") => Encoding::Base64,
            Some(_) => return Err(fields.wrong("encoding_format", "it is neither `float` nor `base64`")),
        };
        let dimensions = fields.count("dimensions", 1, u64::MAX)?;
        let ignored = if fields.raw("user").is_some() { vec!["user"] } else { Vec::new() };
        let inputs = match inputs {
            Prompts::Texts(texts) => Inputs::Texts(texts),
            Prompts::Tokens(tokens) => Inputs::Tokens(tokens),
        };
        let is_empty = match &inputs {
            Inputs::Texts(texts) => texts.iter().any(String::is_empty),
            Inputs::Tokens(tokens) => tokens.iter().any(Vec::is_empty),
        };
        if is_empty {
            return Err(fields.wrong("input", "an input is empty"));
        }
        Ok(Self { model, inputs, encoding, dimensions, ignored })
    }
}
