use std::collections::{BTreeSet, HashMap};

use breakers_core::{TokenId, Tool, Vocabulary};
use serde_json::{Map, Value, json};

use super::{ToolError, Warning};
use crate::{Error, Grammar, SchemaOptions, schema};

/// Writes the grammar of calls, in the dialect of Lark that the engine reads.
///
/// All functions that return a `String` return an expression, to be put into another one.
pub struct Lark<'a> {
    vocabulary: &'a dyn Vocabulary,
    /// Control tokens by their spelling.
    controls: HashMap<Vec<u8>, TokenId>,
    text: String,
    /// Names of rules by what they stand for.
    rules: HashMap<String, String>,
    n_rules: usize,
    warnings: Vec<Warning>,
}

/// What is refused because only checks could enforce it: the schema that a key of the request holds.
pub(super) fn only_checked(keyword: &str) -> Error {
    let reason = "a part of it can only be checked when a value ends, which answers with calls are not";
    Error::Keyword { keyword: keyword.to_owned(), pointer: String::new(), reason: reason.to_owned() }
}

/// Any text, as a terminal.
pub(super) const ANY_TEXT: &str = "/(?s:.*)/";

impl<'a> Lark<'a> {
    pub(super) fn new(vocabulary: &'a dyn Vocabulary) -> Self {
        let ids = 0..TokenId::try_from(vocabulary.n_tokens()).unwrap_or(TokenId::MAX);
        let controls = ids.filter(|&id| vocabulary.is_control(id));
        let controls = controls.filter_map(|id| Some((vocabulary.token_bytes(id)?.to_vec(), id))).collect();
        let (text, rules, warnings) = (String::new(), HashMap::new(), Vec::new());
        Self { vocabulary, controls, text, rules, n_rules: 0, warnings }
    }

    pub(super) fn finish(mut self, start: &str) -> (Grammar, Vec<Warning>) {
        self.text.insert_str(0, &format!("start: {start}\n"));
        (Grammar::Lark(self.text), self.warnings)
    }

    /// A text, exactly.
    pub fn literal(&self, text: &str) -> String {
        // The dialect knows JSON's escapes; it wants this one escaped, too.
        without_brackets(&super::json::quoted(text)).replace('\u{7f}', "\\u007f")
    }

    /// A marker: the control token of this spelling if there is one, otherwise its text.
    pub fn marker(&self, spelling: &str) -> String {
        match self.controls.get(spelling.as_bytes()) {
            Some(id) if !self.vocabulary.end_tokens().contains(id) => format!("<[{id}]>"),
            _ => self.literal(spelling),
        }
    }

    /// A rule of its own. The same expression gives the same rule.
    pub fn rule(&mut self, expression: &str) -> String {
        self.named(expression, "r", "")
    }

    /// A terminal of its own.
    pub fn terminal(&mut self, expression: &str) -> String {
        self.named(expression, "T", "")
    }

    /// A rule that may name itself, for schemas that do: its name is known before its expression.
    pub(super) fn reserve(&mut self) -> String {
        self.n_rules += 1;
        format!("r{}", self.n_rules)
    }

    pub(super) fn define(&mut self, name: &str, expression: &str) {
        self.text += &format!("{name}: {expression}\n");
    }

    fn named(&mut self, expression: &str, prefix: &str, attributes: &str) -> String {
        let key = format!("{prefix}{attributes}: {expression}");
        if let Some(name) = self.rules.get(&key) {
            return name.clone();
        }
        self.n_rules += 1;
        let name = format!("{prefix}{}", self.n_rules);
        self.text += &format!("{name}{attributes}: {expression}\n");
        self.rules.insert(key, name.clone());
        name
    }

    /// Text up to a marker, and the marker: `body` is the expression of a terminal that says what the text
    /// may be. The text ends where the marker first stands.
    pub fn until(&mut self, body: &str, marker: &str) -> String {
        let spelled = self.marker(marker);
        if spelled.starts_with('<') {
            // Nor may the text spell it: whoever reads the text could not tell.
            let body = self.terminal(&format!("/(?s:.+)/ & ({body}) & {}", without(marker)));
            return format!("({body})? {spelled}");
        }
        self.named(body, "r", &format!("[suffix={spelled}]"))
    }

    /// A value by a JSON Schema that belongs to a function's parameters, at the place `pointer` in them.
    ///
    /// # Errors
    /// [`ToolError::Parameters`] if the schema cannot be enforced and the function is strict. If it is not,
    /// `wider` stands in the schema's place, and a warning says so.
    pub fn json(
        &mut self,
        tool: &Tool,
        schema: &Value,
        wider: impl FnOnce() -> Value,
    ) -> Result<String, ToolError> {
        let schemas = schema::Schemas::new(schema);
        let options = SchemaOptions::default().with_strict(tool.strict);
        let schema = match schema::rewrite(&schemas, options, schema::Looseness::Least) {
            Ok(rewritten) => {
                for crate::Warning { keyword, pointer, reason } in rewritten.warnings {
                    self.widen(tool, Error::Keyword { keyword, pointer, reason })?;
                }
                // A grammar of calls has no checks at the ends of values.
                if !rewritten.wider.is_empty() {
                    self.widen(tool, only_checked("parameters"))?;
                }
                rewritten.schema
            }
            Err(error) => {
                self.widen(tool, error)?;
                wider()
            }
        };
        Ok(self.any_json(schema))
    }

    /// JSON by a schema that the engine knows.
    pub(super) fn any_json(&mut self, schema: Value) -> String {
        let mut schema = match schema {
            Value::Bool(true) => json!({}),
            schema => schema,
        };
        if let Value::Object(members) = &mut schema {
            // One space at most between two tokens of JSON.
            members.insert("x-guidance".to_owned(), json!({ "whitespace_pattern": " " }));
        }
        self.rule(&format!("%json {}", without_brackets(&schema.to_string())))
    }

    /// Marks and text between calls: a marker if it is one.
    pub(super) fn spelled(&self, text: &str) -> String {
        if text.is_empty() { String::new() } else { self.marker(text) }
    }

    /// The arguments of a function as a JSON object.
    ///
    /// # Errors
    /// Those of [`json`](Self::json); [`ToolError::Parameters`] for parameters that are not an object's.
    pub fn arguments(&mut self, tool: &Tool) -> Result<String, ToolError> {
        let schema = Value::Object(parameters(tool)?);
        self.json(tool, &schema, || json!({ "type": "object" }))
    }

    /// A keyword of a function's parameters that the format's grammar leaves out.
    ///
    /// # Errors
    /// [`ToolError::Parameters`] if the function is strict; otherwise there is a warning.
    pub fn leave_out(&mut self, tool: &Tool, keyword: &str, pointer: &str) -> Result<(), ToolError> {
        let reason = "it is not enforced in this format of calls".to_owned();
        self.widen(tool, Error::Keyword { keyword: keyword.to_owned(), pointer: pointer.to_owned(), reason })
    }

    fn widen(&mut self, tool: &Tool, source: Error) -> Result<(), ToolError> {
        let function = tool.name.clone();
        if tool.strict {
            return Err(ToolError::Parameters { function, source });
        }
        self.warnings.push(Warning { function, reason: source });
        Ok(())
    }
}

/// The same JSON with the brackets in its strings escaped. What a description says does not count as depth of
/// the grammar.
fn without_brackets(json: &str) -> String {
    let (mut out, mut in_string, mut chars) = (String::with_capacity(json.len()), false, json.chars());
    while let Some(c) = chars.next() {
        match c {
            '(' | ')' | '[' | ']' | '{' | '}' if in_string => {
                out.push_str(&format!("\\u{:04x}", u32::from(c)));
                continue;
            }
            '"' => in_string = !in_string,
            '\\' => {
                out.push(c);
                out.extend(chars.next());
                continue;
            }
            _ => {}
        }
        out.push(c);
    }
    out
}

/// A function's parameters, as a schema of an object.
///
/// # Errors
/// [`ToolError::Parameters`] for JSON that is no schema of an object.
pub(super) fn parameters(tool: &Tool) -> Result<Map<String, Value>, ToolError> {
    let refused = |source| ToolError::Parameters { function: tool.name.clone(), source };
    let schema: Value = tool.parameters.to().map_err(|error| refused(error.into()))?;
    let mut schema = match schema {
        Value::Object(schema) => schema,
        Value::Bool(true) => Map::new(),
        _ => return Err(refused(no_object("type"))),
    };
    match schema.get("type") {
        None => {
            schema.insert("type".to_owned(), json!("object"));
        }
        Some(Value::String(name)) if name == "object" => {}
        Some(Value::Array(names)) if names.iter().any(|name| name == "object") => {
            schema.insert("type".to_owned(), json!("object"));
        }
        Some(_) => return Err(refused(no_object("type"))),
    }
    Ok(schema)
}

fn no_object(keyword: &str) -> Error {
    Error::Keyword {
        keyword: keyword.to_owned(),
        pointer: String::new(),
        reason: "parameters are those of an object".to_owned(),
    }
}

/// A regular expression for a text.
pub(super) fn pattern(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric();
    text.chars()
        .map(|c| if plain(c) { c.to_string() } else { format!("\\x{{{:x}}}", u32::from(c)) })
        .collect()
}

/// A terminal's expression for texts that do not hold a text.
pub(super) fn without(text: &str) -> String {
    format!("~/(?s:.*){}(?s:.*)/", pattern(text))
}

/// A terminal's expression for texts that are none of some.
pub(super) fn none_of(texts: &BTreeSet<&str>) -> String {
    if texts.is_empty() {
        return ANY_TEXT.to_owned();
    }
    let options: Vec<String> = texts.iter().map(|text| pattern(text)).collect();
    format!("~/({})/", options.join("|"))
}
