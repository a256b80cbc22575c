//! What a schema says about a value that may still be open, in three-valued logic: valid and invalid hold
//! whatever follows.

use std::collections::HashSet;
use std::sync::Arc;

use hashbrown::HashMap;

use super::data::{Data, Frame};
use super::nodes::{Keyword, Node, NodeId, Type};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Valid,
    Invalid,
    /// What follows decides, or nobody knows.
    Open,
}

use Verdict::{Invalid, Open, Valid};

impl From<bool> for Verdict {
    fn from(is_valid: bool) -> Self {
        if is_valid { Valid } else { Invalid }
    }
}

/// What stands at the end of the text, within the innermost bracket.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pending<'a> {
    /// Nothing that could be told.
    Nothing,
    /// An item or a member has been announced by a comma.
    Announced,
    /// A name of a member, as far as it is written.
    Name(Option<&'a str>),
    /// A text, as far as it is written.
    Text(Option<&'a str>),
}

/// A value, finished or not.
#[derive(Clone, Copy)]
pub(super) enum View<'a> {
    Done(&'a Arc<Data>),
    /// The bracket of this depth.
    Bracket(usize),
    /// What stands at the end.
    End,
}

/// Verdicts about values that are finished, kept as long as the values are.
#[derive(Clone, Default)]
pub(super) struct Memory {
    verdicts: HashMap<(NodeId, usize), (Arc<Data>, Verdict)>,
    /// Those of the look that is being taken.
    now: HashMap<(NodeId, usize, bool), Verdict>,
}

/// Verdicts that are kept at most.
const KEPT: usize = 100_000;

/// One look at a text.
pub(super) struct Look<'a> {
    pub(super) nodes: &'a [Node],
    /// Open brackets, the outermost first.
    pub(super) brackets: Vec<&'a Frame>,
    pub(super) pending: Pending<'a>,
    memory: &'a mut Memory,
    /// Whether a verdict hung on what a text says, or on how it goes on.
    pub(super) has_read_text: bool,
    pub(super) has_read_prefix: bool,
    /// The same of a name that the schema does not spell.
    pub(super) has_read_name: bool,
}

impl<'a> Look<'a> {
    pub(super) fn new(
        nodes: &'a [Node],
        brackets: Vec<&'a Frame>,
        pending: Pending<'a>,
        memory: &'a mut Memory,
    ) -> Self {
        memory.now.clear();
        Self {
            nodes,
            brackets,
            pending,
            memory,
            has_read_text: false,
            has_read_prefix: false,
            has_read_name: false,
        }
    }

    /// What the schema says. With `trusted`, what the grammar enforces is not looked at again: the answer is
    /// then whether it is invalid.
    pub(super) fn node(&mut self, id: NodeId, view: View<'_>, trusted: bool) -> Verdict {
        let node = &self.nodes[id];
        if trusted && !node.needs_check {
            return Valid;
        }
        let place = match view {
            View::Done(data) => Arc::as_ptr(data) as usize,
            View::Bracket(depth) => depth,
            View::End => usize::MAX,
        };
        if let Some(&verdict) = self.memory.now.get(&(id, place, trusted)) {
            return verdict;
        }
        let kept = match view {
            View::Done(data) if !trusted && matches!(**data, Data::List(_) | Data::Object(_)) => Some(data),
            _ => None,
        };
        if let Some((_, verdict)) = kept.and_then(|_| self.memory.verdicts.get(&(id, place))) {
            return *verdict;
        }
        let nodes = self.nodes;
        let verdicts = nodes[id].keywords.iter().map(|keyword| {
            let is_trusted = trusted
                && !node.is_wider
                && !keyword.children().iter().any(|&child| nodes[child].needs_check);
            if is_trusted { Valid } else { self.keyword(id, keyword, view, trusted && !node.is_untold) }
        });
        let verdict = all(verdicts);
        self.memory.now.insert((id, place, trusted), verdict);
        if let Some(data) = kept {
            if self.memory.verdicts.len() > KEPT {
                self.memory.verdicts.clear();
            }
            self.memory.verdicts.insert((id, place), (data.clone(), verdict));
        }
        verdict
    }

    fn keyword(&mut self, id: NodeId, keyword: &Keyword, view: View<'_>, trusted: bool) -> Verdict {
        match keyword {
            Keyword::Never => Invalid,
            Keyword::Unknown(_) => Open,
            Keyword::All(ids) => all(ids.iter().map(|&id| self.node(id, view, trusted))),
            Keyword::Any(ids) => any(ids.iter().map(|&id| self.node(id, view, false))),
            Keyword::One(ids) => {
                let verdicts: Vec<Verdict> = ids.iter().map(|&id| self.node(id, view, false)).collect();
                let count = |verdict| verdicts.iter().filter(|other| **other == verdict).count();
                match (count(Valid), count(Open)) {
                    (2.., _) | (0, 0) => Invalid,
                    (1, 0) => Valid,
                    _ => Open,
                }
            }
            Keyword::Not(id) => match self.node(*id, view, false) {
                Valid => Invalid,
                Invalid => Valid,
                Open => Open,
            },
            Keyword::If { condition, then, otherwise } => {
                let mut branch = |id: &Option<NodeId>| id.map_or(Valid, |id| self.node(id, view, false));
                let branches = [branch(then), branch(otherwise)];
                match (self.node(*condition, view, false), branches) {
                    (Valid, [then, _]) => then,
                    (Invalid, [_, otherwise]) => otherwise,
                    (Open, [Invalid, Invalid]) => Invalid,
                    (Open, [Valid, Valid]) => Valid,
                    _ => Open,
                }
            }
            Keyword::Types(types) => self.types(types, view),
            Keyword::Values(values) => self.values(values, view),
            _ => match view {
                View::Done(data) => self.done(id, keyword, data, trusted),
                View::Bracket(depth) => self.bracket(id, keyword, depth, trusted),
                View::End => match (keyword, self.pending) {
                    (
                        Keyword::MinLength(_) | Keyword::MaxLength(_) | Keyword::Pattern(_),
                        Pending::Text(_),
                    ) => {
                        self.has_read_text = true;
                        Open
                    }
                    _ => Open,
                },
            },
        }
    }

    fn types(&self, types: &[Type], view: View<'_>) -> Verdict {
        let has = |wanted: &[Type]| Verdict::from(wanted.iter().any(|wanted| types.contains(wanted)));
        match view {
            View::Done(data) => match &**data {
                Data::Null => has(&[Type::Null]),
                Data::Bool(_) => has(&[Type::Boolean]),
                Data::Number(number) if number.is_whole() => has(&[Type::Number, Type::Integer]),
                Data::Number(_) => has(&[Type::Number]),
                Data::Text(_) => has(&[Type::Text]),
                Data::List(_) => has(&[Type::List]),
                Data::Object(_) => has(&[Type::Object]),
            },
            View::Bracket(depth) if self.brackets[depth].is_object => has(&[Type::Object]),
            View::Bracket(_) => has(&[Type::List]),
            View::End => match self.pending {
                Pending::Text(_) => has(&[Type::Text]),
                _ => Open,
            },
        }
    }

    fn values(&mut self, values: &[Data], view: View<'_>) -> Verdict {
        match view {
            View::Done(data) => {
                self.has_read_text |= matches!(**data, Data::Text(_) | Data::List(_) | Data::Object(_));
                values.iter().any(|value| value.is(data)).into()
            }
            View::Bracket(depth) => {
                let is_object = self.brackets[depth].is_object;
                let is_kind = |value: &Data| match value {
                    Data::Object(_) => is_object,
                    Data::List(_) => !is_object,
                    _ => false,
                };
                if values.iter().any(is_kind) { Open } else { Invalid }
            }
            View::End => match self.pending {
                Pending::Text(text) => {
                    (self.has_read_text, self.has_read_prefix) = (true, true);
                    let goes_on = |value: &Data| match (value, text) {
                        (Data::Text(value), Some(text)) => value.starts_with(text),
                        (Data::Text(_), None) => true,
                        _ => false,
                    };
                    if values.iter().any(goes_on) { Open } else { Invalid }
                }
                _ => Open,
            },
        }
    }

    fn done(&mut self, id: NodeId, keyword: &Keyword, data: &Arc<Data>, trusted: bool) -> Verdict {
        match (keyword, &**data) {
            (Keyword::Minimum { bound, is_exclusive }, Data::Number(number)) => {
                let order = number.compare(*bound);
                (order.is_gt() || (order.is_eq() && !is_exclusive)).into()
            }
            (Keyword::Maximum { bound, is_exclusive }, Data::Number(number)) => {
                let order = number.compare(*bound);
                (order.is_lt() || (order.is_eq() && !is_exclusive)).into()
            }
            (Keyword::MultipleOf(unit), Data::Number(number)) => number.is_multiple_of(*unit).into(),
            (Keyword::MinLength(min), Data::Text(text)) => {
                self.has_read_text = true;
                (text.chars().count() >= *min).into()
            }
            (Keyword::MaxLength(max), Data::Text(text)) => {
                self.has_read_text = true;
                (text.chars().count() <= *max).into()
            }
            (Keyword::Pattern(pattern), Data::Text(text)) => {
                self.has_read_text = true;
                pattern.is_match(text).into()
            }
            (Keyword::MinItems(min), Data::List(items)) => (items.len() >= *min).into(),
            (Keyword::MaxItems(max), Data::List(items)) => (items.len() <= *max).into(),
            (Keyword::Unique, Data::List(items)) => {
                self.has_read_text = true;
                are_distinct(items.iter().map(|item| &**item)).into()
            }
            (Keyword::Items { prefix, rest }, Data::List(items)) => {
                all(items.iter().enumerate().map(|(i, item)| match prefix.get(i).or(rest.as_ref()) {
                    Some(&id) => self.node(id, View::Done(item), trusted),
                    None => Valid,
                }))
            }
            (Keyword::Contains { schema, min, max }, Data::List(items)) => {
                let verdicts: Vec<_> =
                    items.iter().map(|item| self.node(*schema, View::Done(item), false)).collect();
                contains(&verdicts, *min, *max, true)
            }
            (Keyword::UnevaluatedItems(schema), Data::List(items)) => {
                let mut seen = HashSet::new();
                self.evaluated_items(id, data, &mut seen);
                let others = items.iter().enumerate().filter(|(i, _)| !seen.contains(i));
                all(others.map(|(_, item)| self.node(*schema, View::Done(item), false)))
            }
            (Keyword::MinProperties(min), Data::Object(members)) => (members.len() >= *min).into(),
            (Keyword::MaxProperties(max), Data::Object(members)) => (members.len() <= *max).into(),
            (Keyword::Required(names), Data::Object(members)) => {
                names.iter().all(|name| members.iter().any(|(key, _)| **key == **name)).into()
            }
            (Keyword::Dependent(rules), Data::Object(members)) => {
                let has = |name: &String| members.iter().any(|(key, _)| **key == **name);
                rules.iter().all(|(name, wanted)| !has(name) || wanted.iter().all(has)).into()
            }
            (Keyword::DependentSchemas(rules), Data::Object(members)) => {
                let has = |name: &str| members.iter().any(|(key, _)| **key == *name);
                all(rules
                    .iter()
                    .filter(|(name, _)| has(name))
                    .map(|&(_, id)| self.node(id, View::Done(data), false)))
            }
            (Keyword::Names(schema), Data::Object(members)) => {
                all(members.iter().map(|(key, _)| self.name(*schema, key)))
            }
            (Keyword::Properties { .. }, Data::Object(members)) => all(members.iter().map(|(key, item)| {
                all(of_member(keyword, key).into_iter().map(|id| self.node(id, View::Done(item), trusted)))
            })),
            (Keyword::UnevaluatedProperties(schema), Data::Object(members)) => {
                let mut seen = HashSet::new();
                self.evaluated_members(id, data, &mut seen);
                let others = members.iter().filter(|(key, _)| !seen.contains(key));
                all(others.map(|(_, item)| self.node(*schema, View::Done(item), false)))
            }
            _ => Valid,
        }
    }

    /// A name of a member as a value of its own.
    pub(super) fn name(&mut self, schema: NodeId, name: &Arc<str>) -> Verdict {
        let data = Arc::new(Data::Text(name.clone()));
        // Its place in memory is free again afterwards.
        let now = std::mem::take(&mut self.memory.now);
        let verdict = self.node(schema, View::Done(&data), false);
        self.memory.now = now;
        verdict
    }

    pub(super) fn is_never(&self, id: NodeId) -> bool {
        matches!(self.nodes[id].keywords[..], [Keyword::Never])
    }
}

pub(super) fn all(verdicts: impl IntoIterator<Item = Verdict>) -> Verdict {
    let mut found = Valid;
    for verdict in verdicts {
        match verdict {
            Invalid => return Invalid,
            Open => found = Open,
            Valid => {}
        }
    }
    found
}

fn any(verdicts: impl IntoIterator<Item = Verdict>) -> Verdict {
    let mut found = Invalid;
    for verdict in verdicts {
        match verdict {
            Valid => return Valid,
            Open => found = Open,
            Invalid => {}
        }
    }
    found
}

pub(super) fn contains(verdicts: &[Verdict], min: usize, max: Option<usize>, is_done: bool) -> Verdict {
    let count = |wanted| verdicts.iter().filter(|verdict| **verdict == wanted).count();
    let (valid, open) = (count(Valid), count(Open));
    if max.is_some_and(|max| valid > max) || (is_done && valid + open < min) {
        Invalid
    } else if valid >= min && (max.is_none() || (is_done && open == 0)) {
        Valid
    } else {
        Open
    }
}

/// The schemas of a member.
pub(super) fn of_member(keyword: &Keyword, name: &str) -> Vec<NodeId> {
    let Keyword::Properties { named, patterns, additional } = keyword else { return Vec::new() };
    let by_pattern = patterns.iter().filter(|(pattern, _)| pattern.is_match(name)).map(|(_, id)| *id);
    let found: Vec<NodeId> = named.get(name).copied().into_iter().chain(by_pattern).collect();
    if found.is_empty() { additional.iter().copied().collect() } else { found }
}

fn are_distinct<'d>(items: impl Iterator<Item = &'d Data> + Clone) -> bool {
    let texts: Vec<&str> = items
        .clone()
        .filter_map(|item| if let Data::Text(text) = item { Some(&**text) } else { None })
        .collect();
    if texts.iter().collect::<HashSet<_>>().len() < texts.len() {
        return false;
    }
    let mut rest = items.filter(|item| !matches!(item, Data::Text(_)));
    while let Some(item) = rest.next() {
        if rest.clone().any(|other| other.is(item)) {
            return false;
        }
    }
    true
}
