//! A schema made ready for looking at values: each schema within it is a node of a graph.

use std::collections::HashMap;

use regex::Regex;
use serde_json::{Map, Value};

use super::data::Data;
use super::number::Number;
use crate::schema::{HOST_NAME, PATTERN_BYTES, PATTERN_DEPTH, Schemas, Wider, expression_of_format};

pub(super) type NodeId = usize;

/// Bytes that a compiled expression may take.
const EXPRESSION_BYTES: usize = 1 << 20;

/// One schema.
#[derive(Debug, Default)]
pub(super) struct Node {
    pub(super) keywords: Vec<Keyword>,
    /// The grammar accepts more than this schema does: keywords of its own are left out.
    pub(super) is_wider: bool,
    /// Schemas that it holds are left out, too.
    pub(super) is_untold: bool,
    /// The same of it or of a schema that it holds.
    pub(super) needs_check: bool,
}

#[derive(Debug)]
pub(super) enum Keyword {
    /// No instance is valid.
    Never,
    /// Not known, or not followed: neither valid nor invalid.
    Unknown(String),
    All(Vec<NodeId>),
    Any(Vec<NodeId>),
    One(Vec<NodeId>),
    Not(NodeId),
    If {
        condition: NodeId,
        then: Option<NodeId>,
        otherwise: Option<NodeId>,
    },
    Types(Vec<Type>),
    Values(Vec<Data>),
    Properties {
        named: HashMap<String, NodeId>,
        patterns: Vec<(Regex, NodeId)>,
        additional: Option<NodeId>,
    },
    Required(Vec<String>),
    Names(NodeId),
    MinProperties(usize),
    MaxProperties(usize),
    Dependent(Vec<(String, Vec<String>)>),
    DependentSchemas(Vec<(String, NodeId)>),
    UnevaluatedProperties(NodeId),
    Items {
        prefix: Vec<NodeId>,
        rest: Option<NodeId>,
    },
    MinItems(usize),
    MaxItems(usize),
    Unique,
    Contains {
        schema: NodeId,
        min: usize,
        max: Option<usize>,
    },
    UnevaluatedItems(NodeId),
    Minimum {
        bound: Number,
        is_exclusive: bool,
    },
    Maximum {
        bound: Number,
        is_exclusive: bool,
    },
    MultipleOf(Number),
    MinLength(usize),
    MaxLength(usize),
    Pattern(Regex),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Type {
    Null,
    Boolean,
    Integer,
    Number,
    Text,
    List,
    Object,
}

impl Type {
    fn of(name: &str) -> Option<Self> {
        Some(match name {
            "null" => Self::Null,
            "boolean" => Self::Boolean,
            "integer" => Self::Integer,
            "number" => Self::Number,
            "string" => Self::Text,
            "array" => Self::List,
            "object" => Self::Object,
            _ => return None,
        })
    }
}

/// An expression of a schema, searched for in a text; `None` if it is not regular or does not parse.
pub(crate) fn expression(pattern: &str) -> Option<Regex> {
    if crate::cost::steps(pattern, false) > crate::cost::STEPS {
        return None;
    }
    let pattern = llguidance::regex_to_lark(&of_ecmascript(pattern), "dw");
    if pattern.len() > PATTERN_BYTES || crate::grammar::depth(&pattern, false) > PATTERN_DEPTH {
        return None;
    }
    regex::RegexBuilder::new(&pattern).size_limit(EXPRESSION_BYTES).build().ok()
}

/// An expression with the classes of ECMAScript, which the specification asks for: blanks and dots.
pub(crate) fn of_ecmascript(pattern: &str) -> String {
    with_blanks(pattern, [BLANKS, BLANKS])
}

/// The same for what is to be written: blanks are what ECMAScript and Python both hold for such, and other
/// characters what neither does.
pub(crate) fn of_either(pattern: &str) -> String {
    let (least, most) = (BLANKS.replace(r"\x{feff}", ""), format!(r"{BLANKS}\x1c-\x1f\x85"));
    with_blanks(pattern, [&least, &most])
}

const BLANKS: &str =
    r"\t\n\x0b\f\r \x{a0}\x{feff}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}";

/// `least` are blanks for certain, and what is not among `most` is none.
fn with_blanks(pattern: &str, [least, most]: [&str; 2]) -> String {
    let mut out = String::with_capacity(pattern.len());
    let (mut characters, mut is_in_class, mut is_negated) = (pattern.chars().peekable(), false, false);
    while let Some(c) = characters.next() {
        let [blanks, others] = if is_negated { [most, least] } else { [least, most] };
        match c {
            '\\' => match characters.next() {
                Some('s') => out.push_str(&format!("[{blanks}]")),
                Some('S') => out.push_str(&format!("[^{others}]")),
                Some(other) => out.extend(['\\', other]),
                None => out.push('\\'),
            },
            '.' if !is_in_class => out.push_str(r"[^\n\r\x{2028}\x{2029}]"),
            // A bracket within a class stands for itself there, and begins one within the class here.
            '[' if is_in_class => out.push_str("\\["),
            '[' => {
                (is_in_class, is_negated) = (true, characters.peek() == Some(&'^'));
                out.push('[');
            }
            ']' => {
                (is_in_class, is_negated) = (false, false);
                out.push(']');
            }
            _ => out.push(c),
        }
    }
    out
}

/// Schemas in a row that look at one value.
const IN_A_ROW: usize = 64;

struct Builder<'a> {
    schemas: &'a Schemas<'a>,
    nodes: Vec<Node>,
    /// Nodes of schemas of the document, by where they are in memory.
    known: HashMap<*const Value, NodeId>,
    waiting: Vec<(NodeId, &'a Value)>,
    wider: &'a Wider,
}

/// The nodes of a document, the whole of it first, and where their schemas are. `wider` are the schemas of
/// which the grammar accepts more.
pub(super) fn build<'a>(
    schemas: &'a Schemas<'a>,
    wider: &'a Wider,
) -> (Vec<Node>, HashMap<*const Value, NodeId>) {
    let (known, nodes, waiting) = (HashMap::new(), Vec::new(), Vec::new());
    let mut builder = Builder { schemas, nodes, known, waiting, wider };
    builder.node(schemas.root);
    while let Some((id, schema)) = builder.waiting.pop() {
        let keywords = builder.keywords(schema);
        builder.nodes[id].keywords = keywords;
    }
    let (mut nodes, known) = (builder.nodes, builder.known);
    // What is below counts, round references in a circle, too.
    loop {
        let mut has_changed = false;
        for id in 0..nodes.len() {
            if !nodes[id].needs_check && nodes[id].children().iter().any(|&child| nodes[child].needs_check) {
                nodes[id].needs_check = true;
                has_changed = true;
            }
        }
        if !has_changed {
            return (nodes, known);
        }
    }
}

impl Node {
    fn children(&self) -> Vec<NodeId> {
        self.keywords.iter().flat_map(Keyword::children).collect()
    }
}

impl Keyword {
    /// The schemas that it holds.
    pub(super) fn children(&self) -> Vec<NodeId> {
        match self {
            Self::All(ids) | Self::Any(ids) | Self::One(ids) => ids.clone(),
            Self::Not(id)
            | Self::Names(id)
            | Self::UnevaluatedProperties(id)
            | Self::UnevaluatedItems(id) => {
                vec![*id]
            }
            Self::If { condition, then, otherwise } => {
                [Some(*condition), *then, *otherwise].into_iter().flatten().collect()
            }
            Self::Properties { named, patterns, additional } => {
                let patterns = patterns.iter().map(|(_, id)| *id);
                named.values().copied().chain(patterns).chain(*additional).collect()
            }
            Self::DependentSchemas(members) => members.iter().map(|(_, id)| *id).collect(),
            Self::Items { prefix, rest } => prefix.iter().copied().chain(*rest).collect(),
            Self::Contains { schema, .. } => vec![*schema],
            _ => Vec::new(),
        }
    }
}

/// A node from which the same value is looked at again and again, or in too long a row.
pub(super) fn circle(nodes: &[Node]) -> Option<NodeId> {
    // Schemas that apply to the same value.
    let in_place = |id: NodeId| {
        let keywords = nodes[id].keywords.iter().filter(|keyword| {
            !matches!(
                keyword,
                Keyword::Properties { .. }
                    | Keyword::Items { .. }
                    | Keyword::Contains { .. }
                    | Keyword::Names(_)
                    | Keyword::UnevaluatedProperties(_)
                    | Keyword::UnevaluatedItems(_)
            )
        });
        keywords.flat_map(Keyword::children).collect::<Vec<_>>()
    };
    let mut lengths = vec![None; nodes.len()];
    for start in 0..nodes.len() {
        // Nodes under way with what is left of their children.
        let mut path: Vec<(NodeId, Vec<NodeId>)> = vec![(start, in_place(start))];
        while let Some((id, children)) = path.last_mut() {
            let id = *id;
            match children.pop() {
                Some(child) if lengths[child].is_some() => {}
                Some(child) if path.len() > IN_A_ROW || path.iter().any(|(other, _)| *other == child) => {
                    return Some(child);
                }
                Some(child) => path.push((child, in_place(child))),
                None => {
                    let longest = in_place(id).iter().filter_map(|&child| lengths[child]).max();
                    lengths[id] = Some(longest.map_or(0usize, |length| length + 1));
                    if lengths[id] > Some(IN_A_ROW) {
                        return Some(id);
                    }
                    path.pop();
                }
            }
        }
    }
    None
}

impl<'a> Builder<'a> {
    fn node(&mut self, schema: &'a Value) -> NodeId {
        let place = std::ptr::from_ref(schema);
        if let Some(&id) = self.known.get(&place) {
            return id;
        }
        let id = self.nodes.len();
        let (is_wider, is_untold) = match self.wider.get(&place) {
            Some(is_untold) => (true, *is_untold),
            None => (false, false),
        };
        self.nodes.push(Node { keywords: Vec::new(), is_wider, is_untold, needs_check: is_wider });
        self.known.insert(place, id);
        self.waiting.push((id, schema));
        id
    }

    fn list(&mut self, value: &'a Value) -> Vec<NodeId> {
        value.as_array().into_iter().flatten().map(|schema| self.node(schema)).collect()
    }

    fn keywords(&mut self, schema: &'a Value) -> Vec<Keyword> {
        let schema = match schema {
            Value::Bool(true) => return Vec::new(),
            Value::Object(schema) => schema,
            _ => return vec![Keyword::Never],
        };
        let mut found = Vec::new();
        for (keyword, value) in schema {
            found.extend(self.keyword(schema, keyword, value));
        }
        if ["properties", "patternProperties", "additionalProperties"]
            .iter()
            .any(|key| schema.contains_key(*key))
        {
            found.push(self.properties(schema));
        }
        if ["items", "prefixItems", "additionalItems"].iter().any(|key| schema.contains_key(*key)) {
            found.push(self.items(schema));
        }
        if let Some(condition) = schema.get("if") {
            let condition = self.node(condition);
            let then = schema.get("then").map(|then| self.node(then));
            let otherwise = schema.get("else").map(|otherwise| self.node(otherwise));
            found.push(Keyword::If { condition, then, otherwise });
        }
        found
    }

    fn keyword(&mut self, schema: &'a Map<String, Value>, keyword: &str, value: &'a Value) -> Vec<Keyword> {
        let name = keyword;
        let one =
            |keyword: Option<Keyword>| vec![keyword.unwrap_or_else(|| Keyword::Unknown(name.to_owned()))];
        let count = || crate::schema::count(value);
        let number = |value: &Value| Number::parse(&value.as_number()?.to_string());
        match keyword {
            "$ref" => {
                let target = value.as_str().and_then(|reference| self.schemas.target(reference));
                one(target.map(|target| Keyword::All(vec![self.node(target)])))
            }
            "$dynamicRef" | "$recursiveRef" => one(None),
            "type" => {
                let names: Option<Vec<Type>> = match value {
                    Value::String(name) => Type::of(name).map(|found| vec![found]),
                    Value::Array(names) => names.iter().map(|name| Type::of(name.as_str()?)).collect(),
                    _ => None,
                };
                one(names.map(Keyword::Types))
            }
            "const" => vec![Keyword::Values(vec![Data::of(value)])],
            "enum" => one(value.as_array().map(|list| Keyword::Values(list.iter().map(Data::of).collect()))),
            "allOf" => vec![Keyword::All(self.list(value))],
            "anyOf" => vec![Keyword::Any(self.list(value))],
            "oneOf" => vec![Keyword::One(self.list(value))],
            "not" => vec![Keyword::Not(self.node(value))],
            "required" => {
                let names =
                    value.as_array().map(|names| names.iter().filter_map(Value::as_str).map(str::to_owned));
                // Draft 3 has it as a word about one property.
                names.map(|names| Keyword::Required(names.collect())).into_iter().collect()
            }
            "propertyNames" => vec![Keyword::Names(self.node(value))],
            "minProperties" => one(count().map(Keyword::MinProperties)),
            "maxProperties" => one(count().map(Keyword::MaxProperties)),
            "dependentRequired" | "dependentSchemas" | "dependencies" => self.dependent(keyword, value),
            "unevaluatedProperties" => vec![Keyword::UnevaluatedProperties(self.node(value))],
            "minItems" => one(count().map(Keyword::MinItems)),
            "maxItems" => one(count().map(Keyword::MaxItems)),
            "uniqueItems" if value == true => vec![Keyword::Unique],
            "contains" => {
                let limit = |keyword: &str| schema.get(keyword).and_then(crate::schema::count);
                let (min, max) = (limit("minContains").unwrap_or(1), limit("maxContains"));
                vec![Keyword::Contains { schema: self.node(value), min, max }]
            }
            "unevaluatedItems" => vec![Keyword::UnevaluatedItems(self.node(value))],
            "minimum" => one(number(value).map(|bound| {
                let is_exclusive = schema.get("exclusiveMinimum") == Some(&Value::Bool(true));
                Keyword::Minimum { bound, is_exclusive }
            })),
            "maximum" => one(number(value).map(|bound| {
                let is_exclusive = schema.get("exclusiveMaximum") == Some(&Value::Bool(true));
                Keyword::Maximum { bound, is_exclusive }
            })),
            "exclusiveMinimum" | "exclusiveMaximum" if value.is_boolean() => Vec::new(),
            "exclusiveMinimum" => {
                one(number(value).map(|bound| Keyword::Minimum { bound, is_exclusive: true }))
            }
            "exclusiveMaximum" => {
                one(number(value).map(|bound| Keyword::Maximum { bound, is_exclusive: true }))
            }
            "multipleOf" => one(number(value).map(Keyword::MultipleOf)),
            "minLength" => one(count().map(Keyword::MinLength)),
            "maxLength" => one(count().map(Keyword::MaxLength)),
            "pattern" => one(value.as_str().and_then(expression).map(Keyword::Pattern)),
            "format" => match value.as_str().map(expression_of_format) {
                Some(Ok(Some(pattern))) => {
                    let longest = (value == "hostname").then_some(Keyword::MaxLength(HOST_NAME));
                    let pattern = one(expression(pattern).map(Keyword::Pattern));
                    pattern.into_iter().chain(longest).collect()
                }
                Some(Err(())) => one(None),
                _ => Vec::new(),
            },
            _ => Vec::new(),
        }
    }

    fn dependent(&mut self, keyword: &str, value: &'a Value) -> Vec<Keyword> {
        let Value::Object(members) = value else { return vec![Keyword::Unknown(keyword.to_owned())] };
        let (mut names, mut schemas) = (Vec::new(), Vec::new());
        for (name, demand) in members {
            match demand {
                Value::Array(list) => {
                    let list = list.iter().filter_map(Value::as_str).map(str::to_owned);
                    names.push((name.clone(), list.collect()));
                }
                Value::String(other) => names.push((name.clone(), vec![other.clone()])),
                schema => schemas.push((name.clone(), self.node(schema))),
            }
        }
        let mut found = Vec::new();
        if !names.is_empty() {
            found.push(Keyword::Dependent(names));
        }
        if !schemas.is_empty() {
            found.push(Keyword::DependentSchemas(schemas));
        }
        found
    }

    fn properties(&mut self, schema: &'a Map<String, Value>) -> Keyword {
        let members = |keyword: &str| schema.get(keyword).and_then(Value::as_object).into_iter().flatten();
        let named = members("properties").map(|(name, schema)| (name.clone(), self.node(schema))).collect();
        let mut patterns = Vec::new();
        for (pattern, schema) in members("patternProperties") {
            let Some(pattern) = expression(pattern) else {
                return Keyword::Unknown("patternProperties".to_owned());
            };
            patterns.push((pattern, self.node(schema)));
        }
        let additional = schema.get("additionalProperties").map(|schema| self.node(schema));
        Keyword::Properties { named, patterns, additional }
    }

    fn items(&mut self, schema: &'a Map<String, Value>) -> Keyword {
        let (prefix, rest) = match (schema.get("prefixItems"), schema.get("items")) {
            (_, Some(list @ Value::Array(_))) => (Some(list), schema.get("additionalItems")),
            (prefix, rest) => (prefix, rest),
        };
        let prefix = prefix.map(|prefix| self.list(prefix)).unwrap_or_default();
        Keyword::Items { prefix, rest: rest.map(|rest| self.node(rest)) }
    }
}
