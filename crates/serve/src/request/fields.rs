//! A JSON object field by field, so that every error names the field.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::api_error::ApiError;

/// The fields of an object that have not been read yet.
pub(crate) struct Fields<'a> {
    /// Where the object is in the body, with a dot behind it; empty for the body itself.
    path: String,
    values: BTreeMap<String, &'a RawValue>,
}

impl<'a> Fields<'a> {
    /// The fields of a whole body.
    ///
    /// # Errors
    /// If it is no JSON object, or is nested too deeply.
    pub(crate) fn of_body(body: &'a [u8], max_depth: usize) -> Result<Self, ApiError> {
        let text = std::str::from_utf8(body).map_err(|_| ApiError::body("the body is not UTF-8"))?;
        if depth(text) > max_depth {
            return Err(ApiError::body(format!("the body is nested more than {max_depth} deep")));
        }
        let values = serde_json::from_str(text)
            .map_err(|error| ApiError::body(format!("the body is no JSON object: {error}")))?;
        Ok(Self { path: String::new(), values })
    }

    /// The fields of an object within a body. `path` says where it is.
    pub(crate) fn of_value(value: &'a RawValue, path: impl Into<String>) -> Result<Self, ApiError> {
        let mut path = path.into();
        let values = read(value, &path)?;
        path.push('.');
        Ok(Self { path, values })
    }

    /// The full name of a field.
    pub(crate) fn path(&self, name: &str) -> String {
        format!("{}{name}", self.path)
    }

    /// Takes a field as it is; `None` if it is missing or null.
    pub(crate) fn raw(&mut self, name: &str) -> Option<&'a RawValue> {
        self.values.remove(name).filter(|value| value.get() != "null")
    }

    /// Takes a field; `None` if it is missing or null.
    ///
    /// # Errors
    /// If it is of another type.
    pub(crate) fn get<T: Deserialize<'a>>(&mut self, name: &str) -> Result<Option<T>, ApiError> {
        let Some(value) = self.raw(name) else { return Ok(None) };
        read(value, &self.path(name)).map(Some)
    }

    /// Takes a field that must be there.
    pub(crate) fn need<T: Deserialize<'a>>(&mut self, name: &str) -> Result<T, ApiError> {
        self.get(name)?.ok_or_else(|| self.missing(name))
    }

    /// Takes a field that is an object.
    pub(crate) fn object(&mut self, name: &str) -> Result<Option<Fields<'a>>, ApiError> {
        let path = self.path(name);
        self.raw(name).map(|value| Fields::of_value(value, path)).transpose()
    }

    /// Takes a number that must lie in a range.
    pub(crate) fn number(&mut self, name: &str, min: f64, max: f64) -> Result<Option<f32>, ApiError> {
        let Some(x) = self.get::<f64>(name)? else { return Ok(None) };
        if !(min..=max).contains(&x) {
            return Err(self.wrong(name, format!("{x} is not from {min} to {max}")));
        }
        Ok(Some(x as f32))
    }

    /// Takes a count that must lie in a range.
    pub(crate) fn count(&mut self, name: &str, min: u64, max: u64) -> Result<Option<usize>, ApiError> {
        let Some(n) = self.get::<u64>(name)? else { return Ok(None) };
        if !(min..=max).contains(&n) {
            let message = match max {
                u64::MAX => format!("{n} is less than {min}"),
                _ => format!("{n} is not from {min} to {max}"),
            };
            return Err(self.wrong(name, message));
        }
        Ok(Some(usize::try_from(n).unwrap_or(usize::MAX)))
    }

    /// An error for a field.
    pub(crate) fn wrong(&self, name: &str, message: impl std::fmt::Display) -> ApiError {
        let path = self.path(name);
        ApiError::field(&path, format!("`{path}`: {message}"))
    }

    pub(crate) fn missing(&self, name: &str) -> ApiError {
        let path = self.path(name);
        let error = ApiError::field(&path, format!("Missing required parameter: `{path}`."));
        ApiError { code: Some("missing_required_parameter"), ..error }
    }

    /// An error for a field that asks for what this server does not do.
    pub(crate) fn unsupported(&self, name: &str, message: impl std::fmt::Display) -> ApiError {
        let path = self.path(name);
        ApiError::unsupported(&path, format!("`{path}`: {message}"))
    }
}

/// Reads a value of which `path` says where it is.
pub(crate) fn read<'a, T: Deserialize<'a>>(value: &'a RawValue, path: &str) -> Result<T, ApiError> {
    serde_json::from_str(value.get()).map_err(|error| {
        let error = error.to_string();
        // Lines and columns are those of the value alone.
        let message = error.split(" at line ").next().unwrap_or_default();
        let error = ApiError::field(path, format!("`{path}`: {message}"));
        ApiError { code: Some("invalid_type"), ..error }
    })
}

/// How deep brackets are nested, those within strings aside.
fn depth(text: &str) -> usize {
    let (mut depth, mut max, mut in_string, mut escaped) = (0usize, 0usize, false, false);
    for byte in text.bytes() {
        if in_string {
            (in_string, escaped) = (escaped || byte != b'"', !escaped && byte == b'\\');
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'{' | b'[' => {
                depth += 1;
                max = max.max(depth);
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    max
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_counts_brackets_outside_of_strings() {
        for (text, expected) in [
            ("1", 0),
            ("{}", 1),
            ("[[],[[]]]", 3),
            (r#"{"a": "[[[[", "b": ["\"[["]}"#, 2),
            (r#"["\\", [1]]"#, 2),
            ("]]][", 1),
        ] {
            assert_eq!(depth(text), expected, "{text}");
        }
    }

    #[test]
    fn errors_name_the_field() {
        let body = br#"{"a": {"b": "x", "c": 3}, "d": null}"#;
        let mut fields = Fields::of_body(body, 8).ok().unwrap();
        assert_eq!(fields.get::<u64>("d"), Ok(None));
        let mut inner = fields.object("a").ok().unwrap().unwrap();
        let error = inner.get::<u64>("b").unwrap_err();
        assert_eq!((error.param.as_deref(), error.status.as_u16()), (Some("a.b"), 400));
        assert!(error.message.contains("a.b") && !error.message.contains("line"), "{}", error.message);
        assert_eq!(inner.count("c", 1, 2).unwrap_err().param.as_deref(), Some("a.c"));
        assert_eq!(inner.missing("e").param.as_deref(), Some("a.e"));
    }
}
