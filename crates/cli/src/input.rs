//! Prompts, sampling flags, files of ids.

use std::io::Read as _;

use breakers_core::{SamplingConfig, TokenId};
use serde_json::Value;

use super::{Error, Result};

/// Flags that give a prompt.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct PromptArgs {
    /// The prompt.
    #[arg(short, long, value_name = "TEXT", conflicts_with = "prompt_file", allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// A file that holds the prompt; - reads standard input.
    #[arg(short = 'f', long, value_name = "FILE")]
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
    /// Divide logits by this; 0 always takes the most likely token.
    #[arg(long, visible_alias = "temp", default_value_t = 0.0, value_name = "T")]
    pub temperature: f32,
    /// Draw from the K most likely tokens; 0 draws from all.
    #[arg(long, default_value_t = 0, value_name = "K")]
    pub top_k: usize,
    /// Draw from the most likely tokens that together have this probability.
    #[arg(long, default_value_t = 1.0, value_name = "P")]
    pub top_p: f32,
    /// Draw from tokens with at least this fraction of the best one's probability.
    #[arg(long, default_value_t = 0.0, value_name = "P")]
    pub min_p: f32,
    /// Make tokens among the last --repeat-last-n less likely; 1 means no penalty.
    #[arg(long, visible_alias = "repeat-penalty", default_value_t = 1.0, value_name = "R")]
    pub repetition_penalty: f32,
    /// Subtract this from the logit of a token for each time that it occurs in the last --repeat-last-n.
    #[arg(long, default_value_t = 0.0, value_name = "P", allow_negative_numbers = true)]
    pub frequency_penalty: f32,
    /// Subtract this from the logit of a token that occurs in the last --repeat-last-n, however often.
    #[arg(long, default_value_t = 0.0, value_name = "P", allow_negative_numbers = true)]
    pub presence_penalty: f32,
    /// How many of the last tokens the penalties look at; 0 for none, -1 for all.
    #[arg(long, default_value = "64", value_name = "N", allow_negative_numbers = true, value_parser = parse_window)]
    pub repeat_last_n: usize,
    /// Add this to the logit of a token, by its id (15043=-100, or 15043-100 as in llama.cpp); may be given
    /// several times.
    #[arg(long, value_name = "ID=BIAS", value_parser = parse_bias)]
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Seed of the random choices. With -1 or without a seed, a new one is chosen each time and printed on
    /// standard error.
    #[arg(short, long, value_name = "N", allow_negative_numbers = true, value_parser = parse_seed)]
    pub seed: Option<Seed>,
}

/// A seed given on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seed {
    /// This seed.
    Fixed(u64),
    /// A random seed.
    Random,
}

fn parse_seed(text: &str) -> std::result::Result<Seed, String> {
    match text {
        "-1" => Ok(Seed::Random),
        _ => {
            text.parse().map(Seed::Fixed).map_err(|_| format!("{text:?} is neither -1 nor 0 to {}", u64::MAX))
        }
    }
}

/// A number of tokens; -1 means all of them.
fn parse_window(text: &str) -> std::result::Result<usize, String> {
    match text {
        "-1" => Ok(usize::MAX),
        _ => text.parse().map_err(|_| format!("{text:?} is neither -1 nor a number of tokens")),
    }
}

/// `15043=-1.5`, or llama.cpp's `15043-1.5` and `15043+1.5`.
fn parse_bias(text: &str) -> std::result::Result<(TokenId, f32), String> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (token, bias) = text.split_at(end);
    let bias = bias.strip_prefix('=').unwrap_or(bias);
    let wrong = || format!("{text:?} is no token id with what to add to its logit, such as 15043=-100");
    token.parse().ok().zip(bias.parse().ok()).ok_or_else(wrong)
}

impl SamplingArgs {
    /// The seed. If one is needed and none is given, a new one is drawn and printed, so that the text can be
    /// reproduced.
    pub fn seed(&self) -> u64 {
        match self.seed {
            Some(Seed::Fixed(seed)) => seed,
            _ if self.temperature == 0.0 => 0,
            _ => {
                use std::hash::{BuildHasher as _, Hasher as _};
                // Uses the standard library's source of random keys; 32 bits are short enough to type again.
                let seed = std::hash::RandomState::new().build_hasher().finish() >> 32;
                eprintln!("[seed {seed}]");
                seed
            }
        }
    }

    /// The sampling settings.
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
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            repetition_window: self.repeat_last_n,
            logit_bias: self.logit_bias.iter().copied().collect(),
        };
        config.validate().map_err(|e| Error::Usage(e.to_string()))?;
        Ok(config)
    }
}

/// Token ids of a prompt and of its continuation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ids {
    /// The prompt's ids.
    pub prompt: Vec<TokenId>,
    /// The continuation's ids.
    pub output: Vec<TokenId>,
}

/// Reads a text file; `-` is standard input.
///
/// # Errors
/// [`Error::Usage`] if it cannot be read or is not UTF-8.
pub fn read_text(file: &str) -> Result<String> {
    let mut bytes = Vec::new();
    let read = match at_home(file).as_str() {
        "-" => std::io::stdin().lock().read_to_end(&mut bytes).map(|_| ()),
        file => std::fs::read(file).map(|content| bytes = content),
    };
    read.map_err(|e| Error::Usage(format!("cannot read {file}: {e}")))?;
    String::from_utf8(bytes).map_err(|e| Error::Usage(format!("{file} is not UTF-8: {e}")))
}

/// Expands `~/x`, which shells do not do after an equals sign or in quotes; other paths are unchanged.
pub(super) fn at_home(path: &str) -> String {
    let at_home = path.strip_prefix("~/").zip(std::env::home_dir()).map(|(rest, home)| home.join(rest));
    at_home.and_then(|path| path.into_os_string().into_string().ok()).unwrap_or_else(|| path.to_owned())
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
    fn seeds_are_numbers_or_minus_one() {
        assert_eq!(parse_seed("-1"), Ok(Seed::Random));
        assert_eq!(parse_seed("18446744073709551615"), Ok(Seed::Fixed(u64::MAX)));
        for wrong in ["-2", "x", "", "1.5", "18446744073709551616"] {
            assert!(parse_seed(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn biases_are_spelled_as_in_llama_cpp_or_with_an_equals_sign() {
        for (text, bias) in [("7=-1.5", -1.5), ("7-1.5", -1.5), ("7+2", 2.0), ("7=2", 2.0)] {
            assert_eq!(parse_bias(text), Ok((7, bias)), "{text}");
        }
        for wrong in ["", "7", "7=", "=1", "-7=1", "7=x", "hello=1", "4294967296=1"] {
            assert!(parse_bias(wrong).is_err(), "{wrong}");
        }
        assert_eq!((parse_window("-1"), parse_window("0")), (Ok(usize::MAX), Ok(0)));
        assert!(parse_window("-2").is_err() && parse_window("x").is_err());
    }

    #[test]
    fn a_tilde_is_the_home_folder() {
        let home = std::env::home_dir().unwrap();
        assert_eq!(at_home("~/a/b"), home.join("a/b").to_str().unwrap());
        for other in ["-", "a/b", "/~/a", "~a/b", "~"] {
            assert_eq!(at_home(other), other);
        }
    }

    #[test]
    fn sampling_out_of_range_is_a_usage_error() {
        let mut flags = SamplingArgs {
            temperature: 0.7,
            top_k: 3,
            top_p: 0.9,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: -0.5,
            presence_penalty: 0.5,
            repeat_last_n: 32,
            logit_bias: vec![(7, 1.0), (7, 2.0)],
            seed: None,
        };
        assert_eq!(flags.config().unwrap().top_k, 3);
        assert_eq!(flags.config().unwrap().repetition_window, 32);
        assert_eq!(flags.config().unwrap().frequency_penalty, -0.5);
        assert_eq!(flags.config().unwrap().presence_penalty, 0.5);
        assert_eq!(flags.config().unwrap().logit_bias, [(7, 2.0)].into());
        flags.top_p = 1.5;
        assert!(matches!(flags.config(), Err(Error::Usage(m)) if m.contains("top_p")));
    }
}
