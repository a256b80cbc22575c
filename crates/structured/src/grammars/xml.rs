//! XML by rules: which elements there are, what they hold, and which attributes they have.
//!
//! A small description in the place of a document type or a schema. What it accepts is well-formed XML 1.0
//! without declarations, comments and processing instructions. Attributes come in the order in which they
//! are declared, children in the order of their rules.
//!
//! # Example
//! ```
//! # mod bytes { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/suite/bytes.rs")); }
//! use std::sync::Arc;
//! use breakers_core::Constraint;
//! use breakers_structured::Compiler;
//! use breakers_structured::grammars::xml::{Attribute, Document, Element, Occurs};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let tokenizer = bytes::Bytes;
//! let list = Element::new("list").with_child("item", Occurs::ZeroOrMore);
//! let item = Element::new("item")
//!     .with_attribute(Attribute::one_of("state", ["open", "done"]))
//!     .with_text();
//! let grammar = Document::new([list, item]).grammar()?;
//! let compiler = Compiler::new(Arc::new(tokenizer))?;
//! let mut constraint = compiler.constraint(&grammar)?;
//! for byte in br#"<list><item state="open">buy milk &amp; bread</item></list>"# {
//!     constraint.advance((*byte).into())?;
//! }
//! assert!(constraint.may_end()?);
//! # Ok(())
//! # }
//! ```

use std::fmt::Write as _;

use crate::{Error, Grammar, Result};

/// How often a child stands at its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occurs {
    /// Once.
    Once,
    /// Once or not at all.
    Optional,
    /// Any number of times.
    ZeroOrMore,
    /// At least once.
    OneOrMore,
}

/// An attribute of an element.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attribute {
    name: String,
    /// All values; `None` for any text.
    values: Option<Vec<String>>,
    is_optional: bool,
}

impl Attribute {
    /// An attribute that must be there, with any text.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), values: None, is_optional: false }
    }

    /// An attribute that must be there, with one of these values.
    pub fn one_of<V: Into<String>>(name: impl Into<String>, values: impl IntoIterator<Item = V>) -> Self {
        let values = values.into_iter().map(Into::into).collect();
        Self { name: name.into(), values: Some(values), is_optional: false }
    }

    /// The same attribute, which may be left out.
    pub fn optional(mut self) -> Self {
        self.is_optional = true;
        self
    }
}

/// An element: its attributes, and either children or a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    name: String,
    attributes: Vec<Attribute>,
    children: Vec<(String, Occurs)>,
    has_text: bool,
}

impl Element {
    /// An element without attributes, which is empty.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), attributes: Vec::new(), children: Vec::new(), has_text: false }
    }

    /// The same element with an attribute more.
    pub fn with_attribute(mut self, attribute: Attribute) -> Self {
        self.attributes.push(attribute);
        self
    }

    /// The same element with a child more, after those that it has.
    pub fn with_child(mut self, name: impl Into<String>, occurs: Occurs) -> Self {
        self.children.push((name.into(), occurs));
        self
    }

    /// The same element with a text before its children.
    pub fn with_text(mut self) -> Self {
        self.has_text = true;
        self
    }
}

/// A document: its elements, the outermost first. Elements may hold each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    elements: Vec<Element>,
}

/// Characters of a text that need no escape, and the escapes. `>` is written as one: `]]>` may not stand in a
/// text.
const TEXT: &str = r#"/([^<>&\x00-\x08\x0b-\x1f\x{fffe}\x{ffff}]|&(amp|lt|gt|quot|apos);)+/"#;
const VALUE: &str = r#"/"([^<>&"\x00-\x1f\x{fffe}\x{ffff}]|&(amp|lt|gt|quot|apos);)*"/"#;

impl Document {
    /// A document of these elements, the first of which is the outermost.
    pub fn new(elements: impl IntoIterator<Item = Element>) -> Self {
        Self { elements: elements.into_iter().collect() }
    }

    /// Its grammar.
    ///
    /// # Errors
    /// [`Error::Rule`] for a document without elements, a name that XML does not allow, an element or
    /// attribute that is declared twice, a child that is not declared, an attribute without a value to take,
    /// and an element that must hold itself without end.
    pub fn grammar(&self) -> Result<Grammar> {
        self.check()?;
        let number = |name: &str| self.elements.iter().position(|element| element.name == name).unwrap_or(0);
        let mut grammar = String::from("start: e0\n");
        // Texts cannot fail to be written.
        let _ = writeln!(grammar, "TEXT: {TEXT}\nVALUE: {VALUE}");
        for (i, element) in self.elements.iter().enumerate() {
            let name = &element.name;
            let _ = write!(grammar, "e{i}: \"<{name}\"");
            for attribute in &element.attributes {
                let name = &attribute.name;
                let value = match &attribute.values {
                    None => format!("\" {name}=\" VALUE"),
                    Some(values) => {
                        let spelled = |value: &String| literal(&format!(" {name}=\"{}\"", escaped(value)));
                        format!("({})", values.iter().map(spelled).collect::<Vec<_>>().join(" | "))
                    }
                };
                let _ = if attribute.is_optional {
                    write!(grammar, " [{value}]")
                } else {
                    write!(grammar, " {value}")
                };
            }
            if !element.has_text && element.children.is_empty() {
                let _ = writeln!(grammar, " \"/>\"");
                continue;
            }
            let _ = write!(grammar, " \">\"");
            if element.has_text {
                let _ = write!(grammar, " [TEXT]");
            }
            for (child, occurs) in &element.children {
                let suffix = match occurs {
                    Occurs::Once => "",
                    Occurs::Optional => "?",
                    Occurs::ZeroOrMore => "*",
                    Occurs::OneOrMore => "+",
                };
                let _ = write!(grammar, " e{}{suffix}", number(child));
            }
            let _ = writeln!(grammar, " \"</{name}>\"");
        }
        Ok(Grammar::Lark(grammar))
    }

    fn check(&self) -> Result<()> {
        let rule = |name: &str, reason| Err(Error::Rule { name: name.to_owned(), reason });
        if self.elements.is_empty() {
            return rule("", "a document has at least one element");
        }
        for (i, element) in self.elements.iter().enumerate() {
            if !is_name(&element.name) {
                return rule(&element.name, "it is no name of an element");
            }
            if self.elements[..i].iter().any(|other| other.name == element.name) {
                return rule(&element.name, "the element is declared twice");
            }
            for (j, attribute) in element.attributes.iter().enumerate() {
                if !is_name(&attribute.name) {
                    return rule(&attribute.name, "it is no name of an attribute");
                }
                if element.attributes[..j].iter().any(|other| other.name == attribute.name) {
                    return rule(&attribute.name, "the attribute is declared twice");
                }
                if attribute.values.as_ref().is_some_and(Vec::is_empty) {
                    return rule(&attribute.name, "the attribute has no value to take");
                }
                if attribute.values.iter().flatten().any(|value| value.chars().any(|c| c < ' ')) {
                    return rule(&attribute.name, "a value holds a control character");
                }
            }
            for (child, _) in &element.children {
                if !self.elements.iter().any(|other| other.name == *child) {
                    return rule(child, "the element is not declared");
                }
            }
        }
        // Elements that can end: those whose necessary children can.
        let mut ending: Vec<&str> = Vec::new();
        loop {
            let is_needed = |occurs: &Occurs| matches!(occurs, Occurs::Once | Occurs::OneOrMore);
            let can_end = |element: &&Element| {
                !ending.contains(&&*element.name)
                    && element
                        .children
                        .iter()
                        .all(|(child, occurs)| !is_needed(occurs) || ending.contains(&&**child))
            };
            let new: Vec<&str> = self.elements.iter().filter(can_end).map(|element| &*element.name).collect();
            if new.is_empty() {
                break;
            }
            ending.extend(new);
        }
        match self.elements.iter().find(|element| !ending.contains(&&*element.name)) {
            Some(element) => rule(&element.name, "the element must hold itself without end"),
            None => Ok(()),
        }
    }
}

/// Names of ASCII; those that begin with `xml` are kept for XML itself.
fn is_name(name: &str) -> bool {
    let is_start = |c: char| c.is_ascii_alphabetic() || c == '_';
    name.starts_with(is_start)
        && name.chars().all(|c| is_start(c) || c.is_ascii_digit() || c == '-' || c == '.')
        && !name.get(..3).is_some_and(|start| start.eq_ignore_ascii_case("xml"))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A text of Lark.
fn literal(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}
