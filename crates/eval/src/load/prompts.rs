use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{Error, Result};

/// A text of our own, of which generated prompts are pieces.
const TEXT: &str = include_str!("text.txt");

/// What is asked.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct LoadPrompt {
    content: Content,
    /// Tokens of its answer at most; `None`: as many as the others.
    pub max_tokens: Option<usize>,
}

#[derive(Clone, Debug, PartialEq)]
enum Content {
    Text(String),
    Messages(Vec<Value>),
}

impl LoadPrompt {
    /// A text: a user's message, or the beginning of a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self { content: Content::Text(text.into()), max_tokens: None }
    }

    pub(super) fn messages(&self) -> Value {
        match &self.content {
            Content::Text(text) => json!([{"role": "user", "content": text}]),
            Content::Messages(messages) => Value::Array(messages.clone()),
        }
    }

    /// The text; of a conversation, all contents that are texts, one after the other.
    pub fn text(&self) -> String {
        match &self.content {
            Content::Text(text) => text.clone(),
            Content::Messages(messages) => {
                let texts = messages.iter().filter_map(|message| message["content"].as_str());
                texts.collect::<Vec<_>>().join("\n\n")
            }
        }
    }
}

/// Reads prompts from JSON lines: objects with `prompt`, a text, or `messages`, as a request has them, and
/// if need be `max_tokens`.
///
/// # Errors
/// [`Error::Line`] for a line of another form, and for no lines.
///
/// # Example
/// ```
/// let lines = "{\"prompt\": \"Why is the sky blue?\"}\n{\"prompt\": \"And the sea?\", \"max_tokens\": 8}\n";
/// let prompts = breakers_eval::load::read_prompts(lines)?;
/// assert_eq!(prompts[1].max_tokens, Some(8));
/// # Ok::<(), breakers_eval::Error>(())
/// ```
pub fn read_prompts(text: &str) -> Result<Vec<LoadPrompt>> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Line {
        prompt: Option<String>,
        messages: Option<Vec<Value>>,
        max_tokens: Option<usize>,
    }
    let wrong = |line, reason: &str| Error::Line { what: "the prompts", line, reason: reason.to_owned() };
    let mut prompts = Vec::new();
    for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let line: Line = serde_json::from_str(line).map_err(|error| wrong(i + 1, &error.to_string()))?;
        let content = match (line.prompt, line.messages) {
            (Some(text), None) => Content::Text(text),
            (None, Some(messages)) if !messages.is_empty() => Content::Messages(messages),
            _ => return Err(wrong(i + 1, "it needs either `prompt` or `messages`")),
        };
        prompts.push(LoadPrompt { content, max_tokens: line.max_tokens });
    }
    if prompts.is_empty() { Err(wrong(1, "there are none")) } else { Ok(prompts) }
}

/// Prompts of a stated length, as pieces of a text that is part of this crate.
#[derive(Clone, Debug, PartialEq)]
pub struct GeneratedPrompts {
    /// Words of each prompt, the shared ones included. English has about 1.3 tokens a word; how many they
    /// are is for the server to say.
    pub words: usize,
    /// Words at the beginning that all prompts share, for caches of prefixes.
    pub shared_words: usize,
    /// Stands before the words that are not shared, so that a server that was measured before has not
    /// kept these prompts; empty: nothing.
    pub salt: String,
    /// Seed of the pieces.
    pub seed: u64,
}

impl Default for GeneratedPrompts {
    /// 100 words that nothing shares.
    fn default() -> Self {
        Self { words: 100, shared_words: 0, salt: String::new(), seed: 0 }
    }
}

impl GeneratedPrompts {
    /// Makes `n` prompts, each with another piece of the text behind what is shared.
    ///
    /// # Errors
    /// [`Error::Parameter`] if the shared words are more than all, or all are fewer than 8.
    pub fn make(&self, n: usize) -> Result<Vec<LoadPrompt>> {
        if self.words < 8 {
            return Err(Error::Parameter { name: "words", found: self.words as f64, expected: "at least 8" });
        }
        if self.shared_words > self.words {
            let found = self.shared_words as f64;
            return Err(Error::Parameter { name: "shared_words", found, expected: "at most all words" });
        }
        let words: Vec<&str> = TEXT.split_whitespace().collect();
        // The text begins anew at its end.
        let piece = |from: usize, n: usize| {
            let words = words.iter().cycle().skip(from).take(n);
            words.copied().collect::<Vec<_>>().join(" ")
        };
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let shared = piece(0, self.shared_words);
        Ok((0..n)
            .map(|i| {
                let own = piece(rng.random_range(0..words.len()), self.words - self.shared_words);
                // The number makes each prompt another one, also where two begin at the same word.
                let parts = [shared.clone(), self.salt.clone(), format!("({i})"), own];
                let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
                LoadPrompt::new(parts.join(" "))
            })
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_prompts_have_their_length_and_share_their_beginning() {
        let config = GeneratedPrompts { words: 900, shared_words: 600, salt: "run 7".to_owned(), seed: 1 };
        let prompts = config.make(20).unwrap();
        assert_eq!(prompts, config.make(20).unwrap());
        let words: Vec<Vec<String>> =
            prompts.iter().map(|p| p.text().split(' ').map(str::to_owned).collect()).collect();
        for one in &words {
            // The salt has two words, the number one.
            assert_eq!(one.len(), 903);
            assert_eq!(
                (&one[..600], &one[600..602]),
                (&words[0][..600], &["run".to_owned(), "7".to_owned()][..])
            );
        }
        let distinct: std::collections::BTreeSet<String> = prompts.iter().map(LoadPrompt::text).collect();
        assert_eq!(distinct.len(), 20);
        assert_ne!(words[0][603..], words[1][603..]);
    }

    #[test]
    fn impossible_prompts_are_refused() {
        let bad =
            |words, shared_words| GeneratedPrompts { words, shared_words, ..Default::default() }.make(1);
        assert!(matches!(bad(3, 0), Err(Error::Parameter { name: "words", .. })));
        assert!(matches!(bad(10, 11), Err(Error::Parameter { name: "shared_words", .. })));
        for (text, bad) in [
            ("", 1),
            ("{\"prompt\": \"a\"}\n{}", 2),
            ("{\"prompt\": \"a\", \"messages\": []}", 1),
            ("{\"messages\": []}", 1),
            ("{\"promt\": \"a\"}", 1),
            ("x", 1),
        ] {
            match read_prompts(text) {
                Err(Error::Line { line, .. }) => assert_eq!(line, bad, "{text}"),
                other => panic!("{text}: {other:?}"),
            }
        }
        let chat = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}"#;
        assert_eq!(read_prompts(chat).unwrap()[0].text(), "a\n\nb");
    }
}
