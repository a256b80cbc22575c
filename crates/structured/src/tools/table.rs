//! All formats by name.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use breakers_core::{Tool, Vocabulary};

use super::calls::{self, CallRules, ToolGrammar};
use super::{
    Answer, Gemma3, Gemma4, Hermes, HermesBare, Llama3, Mistral, MistralList, Parser, Qwen3Coder, ToolError,
    ToolFormat,
};

/// A format of calls, by name.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Entry {
    /// The name, lower case, as in `--tool-format hermes`.
    pub name: &'static str,
    /// Models that write it.
    pub models: &'static str,
    /// Where it is set down.
    pub source: &'static str,
    /// What a chat template holds, all of it, if its model writes the format; nothing if no template tells.
    pub marks: &'static [&'static str],
    /// What it does not hold.
    pub not_marks: &'static [&'static str],
    /// Makes it.
    pub build: fn() -> Arc<dyn ToolFormat>,
}

/// Every format of this crate. A new one is a file and a line here.
pub const FORMATS: &[Entry] = &[
    Entry {
        name: "hermes",
        models: "Hermes 2 Pro and 3, Qwen 2.5, Qwen 3",
        source: "NousResearch, Hermes-Function-Calling",
        marks: &["<tool_call>", "\"arguments\": "],
        not_marks: &["<function=", "<arg_key>"],
        build: || Arc::new(Hermes),
    },
    Entry {
        name: "hermes-bare",
        models: "Qwen2.5-Coder",
        source: "chat template of Qwen/Qwen2.5-Coder-1.5B-Instruct, and what the model writes",
        // Nothing in the template tells them from Hermes, so that somebody has to name the format.
        marks: &[],
        not_marks: &[],
        build: || Arc::new(HermesBare),
    },
    Entry {
        name: "qwen3-coder",
        models: "Qwen3-Coder, Qwen 3.5 and later",
        source: "chat template of Qwen/Qwen3-Coder-30B-A3B-Instruct",
        marks: &["<tool_call>", "<function=", "<parameter="],
        not_marks: &[],
        build: || Arc::new(Qwen3Coder),
    },
    Entry {
        name: "llama3",
        models: "Llama 3.1, 3.2, 3.3",
        source: "chat template of meta-llama/Llama-3.1-8B-Instruct",
        marks: &["<|start_header_id|>", "\"parameters\": "],
        not_marks: &["<tool_call>"],
        build: || Arc::new(Llama3),
    },
    Entry {
        name: "mistral",
        models: "Mistral Small 3.2, Magistral, Devstral, Ministral 3",
        source: "mistralai/mistral-common, tokenizers 11 and 13",
        marks: &["[TOOL_CALLS]", "[ARGS]"],
        not_marks: &[],
        build: || Arc::new(Mistral),
    },
    Entry {
        name: "mistral-list",
        models: "Mistral 7B v0.3, Nemo, Mistral Small 3.1",
        source: "mistralai/mistral-common, tokenizers 2 to 7",
        marks: &["[TOOL_CALLS]"],
        not_marks: &["[ARGS]"],
        build: || Arc::new(MistralList),
    },
    Entry {
        name: "gemma3",
        models: "Gemma 3",
        source: "Google, Function calling with Gemma",
        // Its own template says nothing of calls, so that somebody has to name the format.
        marks: &["<start_of_turn>", "```tool_code"],
        not_marks: &[],
        build: || Arc::new(Gemma3),
    },
    Entry {
        name: "gemma4",
        models: "Gemma 4",
        source: "chat template of google/gemma-4-31B-it",
        marks: &["<|tool_call>", "<|\"|>"],
        not_marks: &[],
        build: || Arc::new(Gemma4),
    },
];

/// Which format of calls a model writes.
///
/// # Example
/// ```
/// use breakers_structured::tools::ToolFormatSpec;
///
/// let format: ToolFormatSpec = "mistral".parse()?;
/// let answer = format.parse("Yes. [TOOL_CALLS]weather[ARGS]{\"city\": \"Oslo\"}", &[], 0);
/// assert_eq!((answer.text.as_str(), answer.calls[0].name.as_str()), ("Yes. ", "weather"));
/// assert!("mistral-7b".parse::<ToolFormatSpec>().is_err());
/// # Ok::<(), breakers_structured::tools::ToolError>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct ToolFormatSpec {
    entry: &'static Entry,
}

impl ToolFormatSpec {
    /// The format that a model's chat template writes calls in.
    ///
    /// It is told by the markers in the template's text. `None` if there are none that belong to a format of
    /// this crate, or those of several: then somebody has to say which it is.
    ///
    /// # Example
    /// ```
    /// use breakers_structured::tools::ToolFormatSpec;
    ///
    /// let template = "{{ '[TOOL_CALLS]' + call.name + '[ARGS]' + call.arguments | tojson }}";
    /// assert_eq!(ToolFormatSpec::of_template(template).unwrap().to_string(), "mistral");
    /// assert!(ToolFormatSpec::of_template("{{ messages }}").is_none());
    /// ```
    pub fn of_template(source: &str) -> Option<Self> {
        // Within a string of the template, quotes are escaped.
        let source = source.replace('\\', "");
        let holds = |marks: &[&str]| marks.iter().filter(|mark| source.contains(**mark)).count();
        let fits = |entry: &&Entry| {
            let is_told = !entry.marks.is_empty() && holds(entry.marks) == entry.marks.len();
            is_told && holds(entry.not_marks) == 0
        };
        let mut found = FORMATS.iter().filter(fits);
        let entry = found.next()?;
        found.next().is_none().then_some(Self { entry })
    }

    /// The format that a model writes calls in, told from its chat template and from its name: a few models
    /// do not write what their template asks for. `None` as for [`of_template`](Self::of_template).
    ///
    /// # Example
    /// ```
    /// use breakers_structured::tools::ToolFormatSpec;
    ///
    /// let template = r#"<tool_call>\n{"name": ..., "arguments": ...}"#;
    /// let format = |name| ToolFormatSpec::of_model(name, template).unwrap().to_string();
    /// assert_eq!(format("Qwen2.5 7B Instruct"), "hermes");
    /// assert_eq!(format("Qwen2.5 Coder 0.5B Instruct GGUF"), "hermes-bare");
    /// ```
    pub fn of_model(name: &str, template: &str) -> Option<Self> {
        let told = Self::of_template(template)?;
        let name: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
        let leaves_markers_out = name.to_ascii_lowercase().contains("qwen25coder");
        let bare = FORMATS.iter().find(|entry| entry.name == "hermes-bare");
        match bare.filter(|_| told.entry.name == "hermes" && leaves_markers_out) {
            Some(entry) => Some(Self { entry }),
            None => Some(told),
        }
    }

    /// Its line in the table.
    pub fn entry(&self) -> &'static Entry {
        self.entry
    }

    /// The format itself.
    pub fn format(&self) -> Arc<dyn ToolFormat> {
        (self.entry.build)()
    }

    /// The grammar that an answer is held to: free text where the rules allow it, and calls of the functions
    /// with arguments by their parameters.
    ///
    /// A function's parameters are enforced as a whole. What cannot be enforced is refused if the function is
    /// strict; if not, any arguments are accepted in its place, and a warning says so.
    ///
    /// Markers that are control tokens of the vocabulary are written as these.
    ///
    /// # Errors
    /// [`ToolError`].
    pub fn grammar(
        &self,
        rules: &CallRules<'_>,
        vocabulary: &dyn Vocabulary,
    ) -> Result<ToolGrammar, ToolError> {
        calls::grammar(&*self.format(), self.entry.name, rules, vocabulary)
    }

    /// A parser for one answer. `tools` are those of the request: some formats read values by a function's
    /// parameters. Ids that the model does not give itself follow from the seed.
    pub fn parser(&self, tools: &[Tool], seed: u64) -> Parser {
        Parser::new(self.format(), tools, seed)
    }

    /// Takes a whole answer apart.
    pub fn parse(&self, text: &str, tools: &[Tool], seed: u64) -> Answer {
        let mut parser = self.parser(tools, seed);
        let mut answer: Answer = parser.push(text).into_iter().collect();
        answer.extend(parser.finish());
        answer
    }
}

impl PartialEq for ToolFormatSpec {
    fn eq(&self, other: &Self) -> bool {
        self.entry.name == other.entry.name
    }
}

impl Eq for ToolFormatSpec {}

impl fmt::Display for ToolFormatSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.entry.name)
    }
}

impl FromStr for ToolFormatSpec {
    type Err = ToolError;

    /// # Errors
    /// [`ToolError::UnknownFormat`], which lists all names.
    fn from_str(name: &str) -> Result<Self, ToolError> {
        let entry = FORMATS.iter().find(|entry| entry.name == name).ok_or_else(|| {
            let known = FORMATS.iter().map(|entry| entry.name).collect::<Vec<_>>().join(", ");
            ToolError::UnknownFormat { name: name.to_owned(), known }
        })?;
        Ok(Self { entry })
    }
}
