//! The file of a batch: a request in each line, checked as a whole before the first one runs.

use std::collections::HashSet;

use serde::Serialize;

use super::endpoint::Endpoint;
use crate::api_error::ApiError;
use crate::request::Fields;

/// Wrong lines that are listed.
const MAX_LISTED: usize = 100;
/// Bytes of a `custom_id`.
const ID_BYTES: usize = 512;

/// A line that can be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// Counted from 1, empty ones too.
    pub(crate) number: u64,
    pub(crate) custom_id: String,
    /// Where the request's body begins in the file, in bytes.
    pub(crate) start: u64,
    /// Bytes of the body.
    pub(crate) length: u64,
    /// Its place in the order of running: lines that begin alike follow each other, so that what one of them
    /// leaves in the model's cache serves the next.
    pub(crate) rank: u64,
}

/// What is wrong with a line, as OpenAI lists it in `errors.data`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct LineError {
    pub(crate) code: String,
    pub(crate) message: String,
    pub(crate) param: Option<String>,
    pub(crate) line: Option<u64>,
}

/// What a file may hold.
pub(crate) struct InputLimits {
    pub(crate) lines: usize,
    pub(crate) line_bytes: usize,
    pub(crate) json_depth: usize,
}

/// Reads a file. `has_model` tells which models there are.
///
/// # Errors
/// All that is wrong, up to a hundred lines.
pub(crate) fn read(
    bytes: &[u8],
    endpoint: Endpoint,
    limits: &InputLimits,
    has_model: &dyn Fn(&str) -> bool,
) -> Result<Vec<Line>, Vec<LineError>> {
    let mut lines = Vec::new();
    // Borrowed from the file: the model, then what its prompt begins with.
    let mut keys: Vec<(String, &str, &str)> = Vec::new();
    let mut ids = HashSet::new();
    let mut errors = Vec::new();
    let mut n_errors = 0;
    let mut start = 0;
    for (number, text) in (1..).zip(bytes.split(|&byte| byte == b'\n')) {
        let offset = start;
        start += text.len() + 1;
        if text.trim_ascii().is_empty() {
            continue;
        }
        if lines.len() == limits.lines {
            let message = format!("the file has more than {} requests", limits.lines);
            return Err(vec![LineError { code: "too_many_lines".into(), message, param: None, line: None }]);
        }
        match read_line(text, endpoint, limits, has_model) {
            Ok(found) => {
                let is_new = ids.insert(found.custom_id.clone());
                if is_new {
                    let length = found.body.len() as u64;
                    // `body` lies within `text`.
                    let at = offset + (found.body.as_ptr() as usize - text.as_ptr() as usize);
                    let custom_id = found.custom_id;
                    lines.push(Line { number, custom_id, start: at as u64, length, rank: 0 });
                    keys.push((found.model, found.tools, found.prompt));
                    continue;
                }
                let message = format!("the custom_id {:.100?} is there twice", found.custom_id);
                let error =
                    ApiError { code: Some("duplicate_custom_id"), ..ApiError::field("custom_id", message) };
                push(&mut errors, &mut n_errors, number, error);
            }
            Err(error) => push(&mut errors, &mut n_errors, number, error),
        }
    }
    if n_errors > errors.len() {
        let message = format!("{} further lines are wrong", n_errors - errors.len());
        errors.push(LineError { code: "too_many_errors".into(), message, param: None, line: None });
    }
    if errors.is_empty() && lines.is_empty() {
        let message = "the file has no requests".to_owned();
        errors.push(LineError { code: "empty_file".into(), message, param: None, line: None });
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let mut order: Vec<usize> = (0..lines.len()).collect();
    order.sort_by(|&a, &b| keys[a].cmp(&keys[b]));
    for (rank, line) in order.into_iter().enumerate() {
        lines[line].rank = rank as u64;
    }
    Ok(lines)
}

fn push(errors: &mut Vec<LineError>, n_errors: &mut usize, number: u64, error: ApiError) {
    *n_errors += 1;
    if errors.len() < MAX_LISTED {
        let ApiError { code, message, param, .. } = error;
        let code = code.unwrap_or("invalid_request").to_owned();
        errors.push(LineError { code, message, param, line: Some(number) });
    }
}

struct Found<'a> {
    custom_id: String,
    body: &'a str,
    model: String,
    tools: &'a str,
    prompt: &'a str,
}

fn read_line<'a>(
    text: &'a [u8],
    endpoint: Endpoint,
    limits: &InputLimits,
    has_model: &dyn Fn(&str) -> bool,
) -> Result<Found<'a>, ApiError> {
    if text.len() > limits.line_bytes {
        let error = ApiError::body(format!("the line has more than {} bytes", limits.line_bytes));
        return Err(ApiError { code: Some("line_too_large"), ..error });
    }
    let mut fields = Fields::of_body(text, limits.json_depth).map_err(|error| {
        let message = error.message.replacen("the body", "the line", 1);
        ApiError { code: Some("invalid_json_line"), message, ..error }
    })?;
    let custom_id: String = fields.need("custom_id")?;
    if custom_id.is_empty() || custom_id.len() > ID_BYTES {
        return Err(fields.wrong("custom_id", format!("it does not have 1 to {ID_BYTES} bytes")));
    }
    let method: String = fields.need("method")?;
    if method != "POST" {
        let error = fields.wrong("method", format!("{method:.40?} is not POST"));
        return Err(ApiError { code: Some("invalid_method"), ..error });
    }
    let url: String = fields.need("url")?;
    if url != endpoint.path() {
        let message = format!("{url:.100?} is not the batch's endpoint, {}", endpoint.path());
        return Err(ApiError { code: Some("invalid_url"), ..fields.wrong("url", message) });
    }
    let body = fields.raw("body").ok_or_else(|| fields.missing("body"))?;
    let mut inner = Fields::of_value(body, "body")?;
    let model: String = inner.need("model")?;
    if !has_model(&model) {
        let error = ApiError::no_model(&model);
        return Err(ApiError { param: Some("body.model".to_owned()), ..error });
    }
    let tools = inner.raw("tools").map_or("", |value| value.get());
    let prompt = inner.raw(endpoint.text_field()).map_or("", |value| value.get());
    Ok(Found { custom_id, body: body.get(), model, tools, prompt })
}

/// What a request's prompt begins with, to bring those together that begin alike.
pub(crate) fn order_of(endpoint: Endpoint, body: &str) -> (String, String, String) {
    let Ok(mut fields) = Fields::of_body(body.as_bytes(), usize::MAX) else { return Default::default() };
    let model = fields.get::<String>("model").ok().flatten().unwrap_or_default();
    let tools = fields.raw("tools").map_or("", |value| value.get()).to_owned();
    let prompt = fields.raw(endpoint.text_field()).map_or("", |value| value.get()).to_owned();
    (model, tools, prompt)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: InputLimits = InputLimits { lines: 5, line_bytes: 300, json_depth: 8 };

    fn line(id: &str, text: &str) -> String {
        format!(
            r#"{{"custom_id": "{id}", "method": "POST", "url": "/v1/completions", "body": {{"model": "m", "prompt": "{text}"}}}}"#
        )
    }

    fn errors(text: &str) -> Vec<(String, Option<String>, Option<u64>)> {
        let found = read(text.as_bytes(), Endpoint::Text, &LIMITS, &|model| model == "m").unwrap_err();
        found.into_iter().map(|error| (error.code, error.param, error.line)).collect()
    }

    #[test]
    fn lines_that_begin_alike_follow_each_other() {
        let text =
            [line("a", "x1"), String::new(), line("b", "y"), line("c", "x0"), "  \r".to_owned()].join("\n");
        let lines = read(text.as_bytes(), Endpoint::Text, &LIMITS, &|_| true).unwrap();
        let told: Vec<_> = lines.iter().map(|line| (line.number, &*line.custom_id, line.rank)).collect();
        assert_eq!(told, [(1, "a", 1), (3, "b", 2), (4, "c", 0)]);
        for (line, prompt) in lines.iter().zip(["x1", "y", "x0"]) {
            let body = &text[line.start as usize..(line.start + line.length) as usize];
            assert_eq!(body, format!(r#"{{"model": "m", "prompt": "{prompt}"}}"#));
        }
    }

    #[test]
    fn everything_that_is_wrong_is_listed_by_line() {
        let good = line("a", "x");
        let cases = [
            ("", "empty_file", None, None),
            ("{", "invalid_json_line", None, Some(1)),
            ("[]", "invalid_json_line", None, Some(1)),
            ("{}", "missing_required_parameter", Some("custom_id"), Some(1)),
            (r#"{"custom_id": 3}"#, "invalid_type", Some("custom_id"), Some(1)),
            (r#"{"custom_id": ""}"#, "invalid_value", Some("custom_id"), Some(1)),
            (&good.replace("POST", "GET"), "invalid_method", Some("method"), Some(1)),
            (&good.replace("/v1/completions", "/v1/embeddings"), "invalid_url", Some("url"), Some(1)),
            (&good.replace("\"m\"", "\"z\""), "model_not_found", Some("body.model"), Some(1)),
            (
                &good.replace("\"model\": \"m\", ", ""),
                "missing_required_parameter",
                Some("body.model"),
                Some(1),
            ),
            (&line("a", &"x".repeat(300)), "line_too_large", None, Some(1)),
            (&format!("{good}\n{good}"), "duplicate_custom_id", Some("custom_id"), Some(2)),
        ];
        for (text, code, param, number) in cases {
            assert_eq!(errors(text), [(code.to_owned(), param.map(str::to_owned), number)], "{text}");
        }
        let many: Vec<_> = (0..6).map(|i| line(&i.to_string(), "x")).collect();
        assert_eq!(errors(&many.join("\n"))[0].0, "too_many_lines");
        let found = errors(&"{\n".repeat(150));
        assert_eq!((found.len(), &*found[100].0, found[99].2), (101, "too_many_errors", Some(100)));
    }
}
