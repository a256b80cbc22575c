use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Json, JsonError, TokenId};

/// What a model is to continue.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Prompt {
    /// A text that is continued as it is.
    Text(String),
    /// A conversation, whose last message the model answers. Each model converts it to the format that it was
    /// trained on.
    Chat(Vec<Message>),
    /// Tokens of the model's own vocabulary. They mean nothing to other models.
    Tokens(Vec<TokenId>),
}

impl Prompt {
    /// The messages of a conversation; `None` for the other forms.
    pub fn messages(&self) -> Option<&[Message]> {
        match self {
            Prompt::Chat(messages) => Some(messages),
            _ => None,
        }
    }
}

impl From<&str> for Prompt {
    fn from(text: &str) -> Self {
        Prompt::Text(text.to_owned())
    }
}

impl From<String> for Prompt {
    fn from(text: String) -> Self {
        Prompt::Text(text)
    }
}

impl From<Vec<Message>> for Prompt {
    fn from(messages: Vec<Message>) -> Self {
        Prompt::Chat(messages)
    }
}

impl From<Message> for Prompt {
    fn from(message: Message) -> Self {
        Prompt::Chat(vec![message])
    }
}

impl From<Vec<TokenId>> for Prompt {
    fn from(tokens: Vec<TokenId>) -> Self {
        Prompt::Tokens(tokens)
    }
}

/// Who speaks in a message. Serialized as its name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
#[non_exhaustive]
pub enum Role {
    /// Instructions that apply to the whole conversation.
    System,
    /// The user.
    User,
    /// The model.
    Assistant,
    /// What a tool answered.
    Tool,
    /// A further role that a model's template knows (`developer`, `ipython`).
    Other(String),
}

impl Role {
    /// The name that templates and endpoints use.
    pub fn as_str(&self) -> &str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
            Role::Other(name) => name,
        }
    }
}

impl From<&str> for Role {
    fn from(name: &str) -> Self {
        match name {
            "system" => Role::System,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            "tool" => Role::Tool,
            other => Role::Other(other.to_owned()),
        }
    }
}

impl From<String> for Role {
    fn from(name: String) -> Self {
        Role::from(name.as_str())
    }
}

impl From<Role> for String {
    fn from(role: Role) -> Self {
        role.as_str().to_owned()
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A part of a message's content.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Part {
    /// Text.
    Text(String),
}

/// One turn of a conversation.
///
/// # Example
/// ```
/// use breakers_core::{Message, Role, ToolCall};
///
/// let question = Message::user("What is the weather in Oslo?");
/// let arguments = r#"{"city": "Oslo"}"#;
/// let call = Message::assistant("").with_tool_call(ToolCall::new("call_1", "weather", arguments));
/// let result = Message::tool("call_1", "4 degrees, rain");
/// assert_eq!((question.role, result.role), (Role::User, Role::Tool));
/// assert_eq!(call.tool_calls[0].name, "weather");
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said, in order.
    pub content: Vec<Part>,
    /// Functions that the model calls in this turn.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// In a tool's answer: the id of the call that it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// Further fields that the model's template knows, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<(String, Json)>,
}

impl Message {
    /// A turn that is only text. An empty text adds no part.
    pub fn new(role: impl Into<Role>, text: impl Into<String>) -> Self {
        let text = text.into();
        Self {
            role: role.into(),
            content: if text.is_empty() { Vec::new() } else { vec![Part::Text(text)] },
            tool_calls: Vec::new(),
            tool_call_id: None,
            fields: Vec::new(),
        }
    }

    /// Instructions that apply to the whole conversation.
    pub fn system(text: impl Into<String>) -> Self {
        Self::new(Role::System, text)
    }

    /// What the user says.
    pub fn user(text: impl Into<String>) -> Self {
        Self::new(Role::User, text)
    }

    /// What the model says.
    pub fn assistant(text: impl Into<String>) -> Self {
        Self::new(Role::Assistant, text)
    }

    /// What a tool answered to the call `id`.
    pub fn tool(id: impl Into<String>, result: impl Into<String>) -> Self {
        Self { tool_call_id: Some(id.into()), ..Self::new(Role::Tool, result) }
    }

    /// The same turn with one more function call.
    pub fn with_tool_call(mut self, call: ToolCall) -> Self {
        self.tool_calls.push(call);
        self
    }

    /// The same turn with one more field for the template.
    pub fn with_field(mut self, name: impl Into<String>, value: Json) -> Self {
        self.fields.push((name.into(), value));
        self
    }

    /// The text of all parts, one after the other.
    pub fn text(&self) -> Cow<'_, str> {
        match &*self.content {
            [] => Cow::Borrowed(""),
            [Part::Text(text)] => Cow::Borrowed(text),
            parts => parts.iter().map(|Part::Text(text)| text.as_str()).collect(),
        }
    }
}

/// A function call that the model asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ToolCall {
    /// The id that the tool's answer refers to.
    pub id: String,
    /// Name of the function.
    pub name: String,
    /// Its arguments as the model wrote them: JSON if it kept to the format, which
    /// [`arguments_json`](Self::arguments_json) checks.
    pub arguments: String,
}

impl ToolCall {
    /// A call; `arguments` is a JSON object as text.
    pub fn new(id: impl Into<String>, name: impl Into<String>, arguments: impl Into<String>) -> Self {
        Self { id: id.into(), name: name.into(), arguments: arguments.into() }
    }

    /// The arguments, if they are JSON.
    ///
    /// # Errors
    /// [`JsonError`].
    pub fn arguments_json(&self) -> Result<Json, JsonError> {
        Json::parse(&self.arguments)
    }
}

/// A function that a model may call.
///
/// # Example
/// ```
/// use breakers_core::{Json, Tool};
///
/// let parameters = Json::parse(r#"{"type": "object", "properties": {"city": {"type": "string"}}}"#)?;
/// let weather = Tool::new("weather", parameters).with_description("The weather of a city");
/// assert_eq!(weather.name, "weather");
/// # Ok::<(), breakers_core::JsonError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Tool {
    /// Name of the function.
    pub name: String,
    /// What it does, for the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Its arguments, as a JSON Schema of an object.
    pub parameters: Json,
    /// Whether the arguments must follow the schema exactly.
    #[serde(default)]
    pub strict: bool,
}

impl Tool {
    /// A function with the given name, and the JSON Schema of its arguments.
    pub fn new(name: impl Into<String>, parameters: Json) -> Self {
        Self { name: name.into(), description: None, parameters, strict: false }
    }

    /// The same function with a description.
    pub fn with_description(mut self, description: impl Into<String>) -> Self {
        self.description = Some(description.into());
        self
    }

    /// The same function, whose arguments must follow the schema exactly.
    pub fn with_strict(mut self) -> Self {
        self.strict = true;
        self
    }

    /// Reads the form that [`to_json`](Self::to_json) writes, or the inner object alone. A function without
    /// `parameters` takes none.
    ///
    /// # Errors
    /// [`JsonError`] for another form, and for keys that nobody would read.
    ///
    /// # Example
    /// ```
    /// use breakers_core::{Json, Tool};
    ///
    /// let text = r#"{"type": "function", "function": {"name": "now", "description": "The time"}}"#;
    /// let json = Json::parse(text)?;
    /// let now = Tool::from_json(&json)?;
    /// assert_eq!(now.name, "now");
    /// assert!(now.parameters.as_str().contains(r#""additionalProperties":false"#));
    /// assert!(Tool::from_json(&Json::parse(r#"{"name": "now", "parametres": {}}"#)?).is_err());
    /// # Ok::<(), breakers_core::JsonError>(())
    /// ```
    pub fn from_json(json: &Json) -> Result<Self, JsonError> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Function {
            name: String,
            #[serde(default)]
            description: Option<String>,
            #[serde(default)]
            parameters: Option<Json>,
            #[serde(default)]
            strict: Option<bool>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "snake_case")]
        enum Kind {
            Function,
        }
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Wrapped {
            #[serde(rename = "type")]
            _kind: Kind,
            function: Function,
        }
        let is_wrapped = json.to::<std::collections::BTreeMap<String, Json>>()?.contains_key("function");
        let function = if is_wrapped { json.to::<Wrapped>()?.function } else { json.to::<Function>()? };
        let Function { name, description, parameters, strict } = function;
        let nothing = r#"{"type":"object","properties":{},"additionalProperties":false}"#;
        let parameters = parameters.map_or_else(|| Json::parse(nothing), Ok)?;
        Ok(Self { name, description, parameters, strict: strict.unwrap_or_default() })
    }

    /// The form that chat templates and OpenAI's interface use:
    /// `{"type": "function", "function": {"name": …, "description": …, "parameters": …}}`.
    pub fn to_json(&self) -> Json {
        #[derive(Serialize)]
        struct Function<'a> {
            name: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            description: Option<&'a str>,
            parameters: &'a Json,
            #[serde(skip_serializing_if = "std::ops::Not::not")]
            strict: bool,
        }
        #[derive(Serialize)]
        struct Wrapped<'a> {
            r#type: &'static str,
            function: Function<'a>,
        }
        let Self { name, description, parameters, strict } = self;
        let function = Function { name, description: description.as_deref(), parameters, strict: *strict };
        let json = Json::from_serialize(&Wrapped { r#type: "function", function });
        json.expect("strings and JSON are JSON")
    }
}

/// Which functions the model may or must call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ToolChoice {
    /// The model decides.
    #[default]
    Auto,
    /// None.
    None,
    /// At least one.
    Required,
    /// The one of this name.
    Function(String),
}

/// The form that the text of an answer must have.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ResponseFormat {
    /// Anything.
    #[default]
    Text,
    /// A JSON object.
    JsonObject,
    /// JSON that a schema accepts.
    JsonSchema(ResponseSchema),
    /// A text that the whole of a regular expression matches.
    Regex(String),
    /// A text of a context-free grammar in Lark's notation.
    Lark(String),
    /// One of these texts.
    Choice(Vec<String>),
}

impl ResponseFormat {
    /// Whether it is a grammar of its own, neither free text nor JSON.
    pub fn is_grammar(&self) -> bool {
        matches!(self, Self::Regex(_) | Self::Lark(_) | Self::Choice(_))
    }
}

/// A schema that an answer must follow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ResponseSchema {
    /// Name of the format, for the model and for messages.
    pub name: String,
    /// The JSON Schema.
    pub schema: Json,
    /// Whether the answer must follow the schema exactly; otherwise the schema is a hint.
    pub strict: bool,
}

impl ResponseSchema {
    /// A schema that the answer must follow exactly.
    pub fn new(name: impl Into<String>, schema: Json) -> Self {
        Self { name: name.into(), schema, strict: true }
    }
}
