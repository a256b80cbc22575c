//! Prompts, sampling flags, files of ids.

use std::io::Read as _;

use breakers_core::{SamplingConfig, TokenId};
use serde_json::Value;

use super::{Error, Result};

/// Flags that give a prompt.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct PromptArgs {
    /// The prompt.
    #[arg(long, value_name = "TEXT", conflicts_with = "prompt_file")]
    pub prompt: Option<String>,
    /// A file that holds the prompt; - reads standard input.
    #[arg(long, value_name = "FILE")]
    pub prompt_file: Option<String>,
}

impl PromptArgs {
    /// The prompt, if one was given.
    ///
    /// # Errors
    /// [`Error::Usage`] if the file cannot be read.
    pub fn read(&self) -> Result<Option<String>> {
        match (&self.prompt, &self.prompt_file) {
            (Some(prompt), _) => Ok(Some(prompt.clone())),
            (None, Some(file)) => read_text(file).map(Some),
            (None, None) => Ok(None),
        }
    }
}

/// Flags that choose tokens.
#[derive(Clone, Debug, clap::Args)]
pub struct SamplingArgs {
    /// 0: always the most likely token.
    #[arg(long, default_value_t = 0.0)]
    pub temperature: f32,
    /// Draw from the K most likely tokens; 0: from all.
    #[arg(long, default_value_t = 0, value_name = "K")]
    pub top_k: usize,
    /// Draw from the most likely tokens that together have this probability.
    #[arg(long, default_value_t = 1.0, value_name = "P")]
    pub top_p: f32,
    /// Draw from tokens with at least this fraction of the best one's probability.
    #[arg(long, default_value_t = 0.0, value_name = "P")]
    pub min_p: f32,
    /// Make tokens of the last 64 less likely; 1: no penalty.
    #[arg(long, default_value_t = 1.0, value_name = "R")]
    pub repetition_penalty: f32,
    /// Seed of random choices.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

impl SamplingArgs {
    /// The settings.
    ///
    /// # Errors
    /// [`Error::Usage`] for values out of range.
    pub fn config(&self) -> Result<SamplingConfig> {
        let config = SamplingConfig {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            ..SamplingConfig::greedy()
        };
        config.validate().map_err(|e| Error::Usage(e.to_string()))?;
        Ok(config)
    }
}

/// Token ids of a prompt and of its continuation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ids {
    /// The prompt's.
    pub prompt: Vec<TokenId>,
    /// The continuation's.
    pub output: Vec<TokenId>,
}

/// Reads a text file; `-` is standard input.
///
/// # Errors
/// [`Error::Usage`] if it cannot be read or is not UTF-8.
pub fn read_text(file: &str) -> Result<String> {
    let mut bytes = Vec::new();
    let read = match file {
        "-" => std::io::stdin().lock().read_to_end(&mut bytes).map(|_| ()),
        file => std::fs::read(file).map(|content| bytes = content),
    };
    read.map_err(|e| Error::Usage(format!("cannot read {file}: {e}")))?;
    String::from_utf8(bytes).map_err(|e| Error::Usage(format!("{file} is not UTF-8: {e}")))
}

/// Reads `{"prompt_ids": […], "output_ids": […]}`; other fields are ignored, `output_ids` may be missing.
///
/// # Errors
/// [`Error::Usage`] if the file cannot be read or holds something else.
pub fn read_ids(file: &str) -> Result<Ids> {
    parse_ids(&read_text(file)?).map_err(|reason| Error::Usage(format!("{file}: {reason}")))
}

fn parse_ids(text: &str) -> std::result::Result<Ids, String> {
    let json: Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
    let list = |field: &str| -> std::result::Result<Vec<TokenId>, String> {
        let expected = || format!("expected `{field}` to be a list of token ids");
        let list = json[field].as_array().ok_or_else(expected)?;
        list.iter().map(|id| id.as_u64().and_then(|id| id.try_into().ok()).ok_or_else(expected)).collect()
    };
    let output = if json["output_ids"].is_null() { Vec::new() } else { list("output_ids")? };
    Ok(Ids { prompt: list("prompt_ids")?, output })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read() {
        let both = r#"{"prompt_ids": [1, 2], "output_ids": [3], "steps": []}"#;
        assert_eq!(parse_ids(both), Ok(Ids { prompt: vec![1, 2], output: vec![3] }));
        assert_eq!(parse_ids(r#"{"prompt_ids": [1]}"#), Ok(Ids { prompt: vec![1], output: vec![] }));
        for bad in [
            "",
            "[]",
            "{}",
            r#"{"prompt_ids": 1}"#,
            r#"{"prompt_ids": [-1]}"#,
            r#"{"prompt_ids": [4294967296]}"#,
        ] {
            assert!(parse_ids(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_prompt_is_read_from_where_it_is() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "from a file\n").unwrap();
        let name = file.path().to_str().unwrap().to_owned();
        let none = PromptArgs::default();
        assert_eq!(none.read().unwrap(), None);
        let given = PromptArgs { prompt: Some("given".to_owned()), ..none.clone() };
        assert_eq!(given.read().unwrap().as_deref(), Some("given"));
        let in_file = PromptArgs { prompt_file: Some(name.clone()), ..none.clone() };
        assert_eq!(in_file.read().unwrap().as_deref(), Some("from a file\n"));
        std::fs::write(file.path(), b"\xff").unwrap();
        assert!(matches!(in_file.read(), Err(Error::Usage(m)) if m.contains("UTF-8")));
        let nowhere = PromptArgs { prompt_file: Some("no/such/file".to_owned()), ..none };
        assert!(matches!(nowhere.read(), Err(Error::Usage(_))));
    }

    #[test]
    fn sampling_out_of_range_is_a_usage_error() {
        let mut flags = SamplingArgs {
            temperature: 0.7,
            top_k: 3,
            top_p: 0.9,
            min_p: 0.0,
            repetition_penalty: 1.0,
            seed: 0,
        };
        assert_eq!(flags.config().unwrap().top_k, 3);
        flags.top_p = 1.5;
        assert!(matches!(flags.config(), Err(Error::Usage(m)) if m.contains("top_p")));
    }
}
