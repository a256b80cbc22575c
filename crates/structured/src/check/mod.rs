//! Checks of a text that is followed as JSON, for what a grammar cannot say.
//!
//! Of every text it is seen to that all readers of JSON see the same in it (see [`tracker`]). And where the
//! grammar accepts more than the schema does, each value, name or comma that ends is looked at: a token after
//! which the text could not become a valid instance is forbidden. So an invalid instance is never finished.

mod data;
mod evaluated;
mod nodes;
mod number;
mod open;
mod sound;
mod tracker;
mod verdict;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use breakers_core::{TokenId, TokenMask};
use serde_json::Value;

use self::nodes::{Keyword, Node, build, circle};
pub(crate) use self::nodes::{expression, of_ecmascript, of_either};
use self::sound::Unsound;
use self::tracker::{Event, Lexeme, Place};
use self::verdict::{Look, Memory, Verdict, View};
use crate::schema::{Schemas, Wider, step};
use crate::{Error, Result, Warning};

/// Tokens that are tried one by one where a text is one of a few: more than these are no few.
const FEW: usize = 2048;
/// A text that stands for any other.
const NOBODYS: &str = "\u{10fffd}\u{10fffe}\u{10fffd}";

/// A schema, made ready for checks.
#[derive(Debug)]
pub(crate) struct Check {
    nodes: Vec<Node>,
    /// Names that the schema spells.
    names: HashSet<String>,
}

impl Check {
    /// `None` if the grammar enforces all of the schema; with the keywords that are not followed. `wider` are
    /// the schemas of which the grammar accepts more.
    ///
    /// # Errors
    /// [`Error::Keyword`] for a schema that leads back to itself.
    pub(crate) fn new<'a>(
        schemas: &'a Schemas<'a>,
        wider: &'a Wider,
    ) -> Result<(Option<Self>, Vec<Warning>)> {
        if wider.is_empty() {
            return Ok((None, Vec::new()));
        }
        let (nodes, places) = build(schemas, wider);
        let pointer = |id: usize| {
            let place = places.iter().find(|(_, other)| **other == id).map(|(place, _)| *place);
            place.and_then(|place| pointer(schemas.root, place)).unwrap_or_default()
        };
        if let Some(id) = circle(&nodes) {
            let reason = "schemas lead back to themselves, or too many look at one value".to_owned();
            return Err(Error::Keyword { keyword: "$ref".to_owned(), pointer: pointer(id), reason });
        }
        let mut unknown = Vec::new();
        let mut names = HashSet::new();
        for (id, keyword) in
            nodes.iter().enumerate().flat_map(|(id, node)| node.keywords.iter().map(move |k| (id, k)))
        {
            match keyword {
                Keyword::Unknown(keyword) => unknown.push(Warning {
                    keyword: keyword.clone(),
                    pointer: pointer(id),
                    reason: "it is not followed".to_owned(),
                }),
                Keyword::Properties { named, .. } => names.extend(named.keys().cloned()),
                Keyword::Required(required) => names.extend(required.iter().cloned()),
                Keyword::Dependent(rules) => {
                    names
                        .extend(rules.iter().flat_map(|(name, wanted)| wanted.iter().chain([name])).cloned());
                }
                Keyword::DependentSchemas(rules) => names.extend(rules.iter().map(|(name, _)| name.clone())),
                _ => {}
            }
        }
        let needs_check = nodes.first().is_some_and(|node| node.needs_check);
        Ok((needs_check.then_some(Self { nodes, names }), unknown))
    }
}

/// Where a schema stands in a document.
fn pointer(schema: &Value, wanted: *const Value) -> Option<String> {
    if std::ptr::from_ref(schema) == wanted {
        return Some(String::new());
    }
    match schema {
        Value::Object(members) => members
            .iter()
            .find_map(|(name, inner)| Some(format!("/{}{}", step(name), pointer(inner, wanted)?))),
        Value::Array(items) => {
            items.iter().enumerate().find_map(|(i, inner)| Some(format!("/{i}{}", pointer(inner, wanted)?)))
        }
        _ => None,
    }
}

/// The bytes of a vocabulary's tokens, and which of them have to be tried.
pub(crate) struct Tokens {
    words: Vec<Vec<u8>>,
    /// Those that can end a value.
    ends: TokenMask,
    /// Those with a quote, which alone can end a text.
    quotes: Vec<TokenId>,
    /// The place of each among all, sorted by their bytes.
    ranks: Vec<u32>,
    end_tokens: Vec<TokenId>,
    unsound: Unsound,
}

impl Tokens {
    pub(crate) fn new(words: Vec<Vec<u8>>, end_tokens: Vec<TokenId>) -> Self {
        let (mut ends, mut quotes) = (TokenMask::none(words.len()), Vec::new());
        for (token, word) in (0..).zip(&words) {
            if word.iter().any(|byte| b"\",]}{[ \t\n\r".contains(byte)) {
                ends.allow(token);
            }
            if word.contains(&b'"') {
                quotes.push(token);
            }
        }
        let unsound = Unsound::new(&words);
        let mut ranks = vec![0; words.len()];
        for (rank, &token) in (0..).zip(unsound.by_bytes()) {
            ranks[token as usize] = rank;
        }
        Self { words, ends, quotes, ranks, end_tokens, unsound }
    }
}

/// A text of JSON that is followed.
#[derive(Clone)]
pub(crate) struct Checked {
    /// `None` if the grammar enforces all of the schema.
    check: Option<Arc<Check>>,
    tokens: Arc<Tokens>,
    text: Vec<u8>,
    place: Place,
    /// The places and lengths before each token.
    before: Vec<(Place, usize)>,
    memory: Memory,
    reads: Reads,
}

impl Checked {
    pub(crate) fn new(check: Option<Arc<Check>>, tokens: Arc<Tokens>) -> Self {
        let (text, before) = (Vec::new(), Vec::new());
        Self {
            check,
            tokens,
            text,
            place: Place::default(),
            before,
            memory: Memory::default(),
            reads: Reads::default(),
        }
    }

    /// Whether values are looked at when they end.
    pub(crate) fn has_check(&self) -> bool {
        self.check.is_some()
    }

    /// Takes note of a token, unless the text could not become valid after it.
    pub(crate) fn advance(&mut self, token: TokenId) -> bool {
        let tokens = self.tokens.clone();
        let Some(word) = tokens.words.get(token as usize) else { return false };
        let (place, length) = (self.place.clone(), self.text.len());
        let is_possible = self.extend(word);
        self.before.push((place, length));
        if !is_possible {
            self.rollback(1);
        }
        is_possible
    }

    pub(crate) fn rollback(&mut self, n_tokens: usize) {
        for _ in 0..n_tokens {
            if let Some((place, length)) = self.before.pop() {
                self.place = place;
                self.text.truncate(length);
            }
        }
    }

    /// Whether the text as it stands is a valid instance.
    pub(crate) fn is_valid(&mut self) -> bool {
        let mut place = self.place.clone();
        if place.finish(&self.text) == Event::Lost || place.root.is_none() {
            return false;
        }
        let Some(check) = &self.check else { return true };
        look(&check.nodes, &place, &self.text, &mut self.memory).0 != Verdict::Invalid
    }

    /// Forbids the tokens after which the text could not become valid.
    pub(crate) fn restrict(&mut self, mask: &mut TokenMask) {
        self.restrict_to_sound(mask);
        if self.is_below_zero() {
            self.tokens.end_tokens.iter().for_each(|&token| mask.forbid(token));
        }
        let Some(check) = self.check.clone() else { return };
        let tokens = self.tokens.clone();
        if tokens.end_tokens.iter().any(|&token| mask.is_allowed(token)) && !self.is_valid() {
            tokens.end_tokens.iter().for_each(|&token| mask.forbid(token));
        }
        self.reads = Reads::default();
        self.may_go_on();
        let reads = self.reads;
        // Tokens that end a text in the same way are alike, unless somebody reads it.
        let (is_few, is_alike) = (
            reads.prefix && mask.count() <= FEW,
            match self.place.lexeme {
                Lexeme::Text { is_name: true, .. } => !reads.name,
                Lexeme::Text { .. } => !reads.text,
                _ => false,
            },
        );
        let mut candidates: Vec<TokenId> = match self.place.lexeme {
            _ if is_few => mask.iter().filter(|token| !tokens.end_tokens.contains(token)).collect(),
            Lexeme::Text { .. } => {
                tokens.quotes.iter().copied().filter(|&token| mask.is_allowed(token)).collect()
            }
            _ => mask.iter().filter(|&token| tokens.ends.is_allowed(token)).collect(),
        };
        candidates.sort_unstable_by_key(|&token| tokens.ranks[token as usize]);
        let mut alike: HashMap<&[u8], Option<bool>> = HashMap::new();
        let mut walk = Walk::new(self.place.clone());
        for token in candidates {
            let Some(word) = tokens.words.get(token as usize) else { continue };
            let mut is_possible = None;
            if is_alike && !is_few {
                let Lexeme::Text { start, is_name, is_escaped } = self.place.lexeme else { continue };
                // Or the text goes on.
                let Some(at) = end_of_text(word, is_escaped) else { continue };
                if !is_name || self.is_other_name(&check, start, &word[..at]) {
                    is_possible = *alike.entry(&word[at..]).or_insert_with(|| self.try_end(&word[at..]));
                }
            }
            if !is_possible.unwrap_or_else(|| self.try_next(&mut walk, word, is_few)) {
                mask.forbid(token);
            }
        }
    }

    /// The same as [`try_word`](Self::try_word), without what the word has in common with the one before.
    fn try_next<'w>(&mut self, walk: &mut Walk<'w>, word: &'w [u8], is_few: bool) -> bool {
        let n_common = walk.word.iter().zip(word).take_while(|(one, other)| one == other).count();
        walk.word = word;
        // The word before had come to its end, or to the byte that must not be there.
        if n_common > walk.places.len() - 1 {
            return false;
        }
        walk.places.truncate(n_common + 1);
        let (start, length) = (self.place.clone(), self.text.len());
        self.place.clone_from(&walk.places[n_common]);
        self.text.extend_from_slice(&word[..n_common]);
        let mut is_possible = true;
        for &byte in &word[n_common..] {
            is_possible = self.push(byte);
            if !is_possible {
                break;
            }
            walk.places.push(self.place.clone());
        }
        is_possible = is_possible && (!is_few || self.may_go_on());
        self.place = start;
        self.text.truncate(length);
        is_possible
    }

    /// Whether a name, of which the end is given, is none that anybody asks for.
    fn is_other_name(&self, check: &Check, start: usize, end: &[u8]) -> bool {
        let name = [&self.text[start..], end].concat();
        match std::str::from_utf8(&name) {
            Ok(name) if !name.contains('\\') => {
                let has = |frame: &data::Frame| frame.has(name);
                !check.names.contains(name) && !self.place.frame.as_deref().is_some_and(has)
            }
            _ => false,
        }
    }

    fn try_word(&mut self, word: &[u8], is_few: bool) -> bool {
        let (place, length) = (self.place.clone(), self.text.len());
        let is_possible = self.extend(word) && (!is_few || self.may_go_on());
        self.place = place;
        self.text.truncate(length);
        is_possible
    }

    /// Ends the text that is open, whatever it says; `None` if somebody reads it after all.
    fn try_end(&mut self, rest: &[u8]) -> Option<bool> {
        let (place, length) = (self.place.clone(), self.text.len());
        if let Lexeme::Text { start, is_escaped, .. } = &mut self.place.lexeme {
            (*start, *is_escaped) = (length, false);
        }
        // A name that no schema has.
        self.text.extend_from_slice(NOBODYS.as_bytes());
        self.reads = Reads::default();
        let is_possible = self.extend(rest);
        self.place = place;
        self.text.truncate(length);
        (!self.reads.text && !self.reads.name).then_some(is_possible)
    }

    fn may_go_on(&mut self) -> bool {
        let Some(check) = &self.check else { return true };
        let (verdict, reads) = look(&check.nodes, &self.place, &self.text, &mut self.memory);
        self.reads.text |= reads.text;
        self.reads.prefix |= reads.prefix;
        self.reads.name |= reads.name;
        verdict != Verdict::Invalid
    }

    fn extend(&mut self, word: &[u8]) -> bool {
        word.iter().all(|&byte| self.push(byte))
    }

    fn push(&mut self, byte: u8) -> bool {
        self.text.push(byte);
        match self.place.push(&self.text) {
            Event::Nothing => true,
            Event::Boundary => self.may_go_on(),
            Event::Lost => false,
        }
    }
}

/// The bytes of a word that was tried, and where each led.
struct Walk<'w> {
    word: &'w [u8],
    /// The place before the word, and that behind each byte that may stand there.
    places: Vec<Place>,
}

impl Walk<'_> {
    fn new(start: Place) -> Self {
        Self { word: &[], places: vec![start] }
    }
}

/// What a verdict hung on.
#[derive(Clone, Copy, Default)]
struct Reads {
    /// What a text says.
    text: bool,
    /// How it begins.
    prefix: bool,
    /// A name that the schema does not spell.
    name: bool,
}

fn look(nodes: &[Node], place: &Place, text: &[u8], memory: &mut Memory) -> (Verdict, Reads) {
    let mut brackets: Vec<_> =
        std::iter::successors(place.frame.as_deref(), |frame| frame.parent.as_deref()).collect();
    brackets.reverse();
    let view = match (&place.root, brackets.is_empty()) {
        (Some(root), _) => View::Done(root),
        (None, false) => View::Bracket(0),
        (None, true) => View::End,
    };
    let mut look = Look::new(nodes, brackets, place.pending(text), memory);
    let verdict = look.node(0, view, true);
    let (text, prefix, name) = (look.has_read_text, look.has_read_prefix, look.has_read_name);
    (verdict, Reads { text, prefix, name })
}

/// Where the quote is that ends a text.
fn end_of_text(word: &[u8], is_escaped: bool) -> Option<usize> {
    let mut is_escaped = is_escaped;
    word.iter().position(|&byte| {
        let is_end = byte == b'"' && !is_escaped;
        is_escaped = !is_escaped && byte == b'\\';
        is_end
    })
}
