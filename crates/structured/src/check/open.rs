//! Verdicts about lists and objects that are still open.

use std::collections::HashSet;
use std::sync::Arc;

use super::data::{Data, Frame};
use super::nodes::{Keyword, NodeId};
use super::verdict::Verdict::{self, Invalid, Open, Valid};
use super::verdict::{Look, Pending, View, contains, of_member};

impl<'a> Look<'a> {
    pub(super) fn bracket(&mut self, id: NodeId, keyword: &Keyword, depth: usize, trusted: bool) -> Verdict {
        let frame = self.brackets[depth];
        let is_innermost = depth + 1 == self.brackets.len();
        let is_announced = is_innermost && !matches!(self.pending, Pending::Nothing);
        // Children that are there or must come.
        let n = frame.n_children + usize::from(!is_innermost || is_announced);
        let inner = match is_innermost {
            false => Some(View::Bracket(depth + 1)),
            true => match (self.pending, &frame.key) {
                (Pending::Name(_), _) => None,
                (_, Some(_)) => Some(View::End),
                (_, None) => (is_announced && !frame.is_object).then_some(View::End),
            },
        };
        let too_many = |most: usize| if n > most { Invalid } else { Open };
        let enough = |least: usize| if n >= least { Valid } else { Open };
        match (keyword, frame.is_object) {
            (Keyword::MaxItems(max), false) | (Keyword::MaxProperties(max), true) => too_many(*max),
            (Keyword::MinItems(min), false) | (Keyword::MinProperties(min), true) => enough(*min),
            (Keyword::Items { prefix, rest }, false) => {
                let of = |i: usize| prefix.get(i).or(rest.as_ref()).copied();
                let done = frame.children().enumerate();
                let mut verdict = Open;
                for (i, child) in done {
                    if let Some(id) = of(frame.n_children - 1 - i)
                        && self.node(id, View::Done(&child.value), trusted) == Invalid
                    {
                        verdict = Invalid;
                    }
                    // What stands before has been looked at when it was finished.
                    if trusted || verdict == Invalid {
                        break;
                    }
                }
                let inner = inner.zip(of(frame.n_children));
                if inner.is_some_and(|(view, id)| self.node(id, view, trusted) == Invalid) {
                    verdict = Invalid;
                }
                verdict
            }
            (Keyword::Unique, false) => self.unique(id, frame, inner),
            (Keyword::Contains { schema, min, max }, false) => {
                let mut verdicts: Vec<_> = frame
                    .children()
                    .map(|child| self.node(*schema, View::Done(&child.value), false))
                    .collect();
                verdicts.extend(inner.map(|view| self.node(*schema, view, false)));
                contains(&verdicts, *min, *max, false)
            }
            (Keyword::Required(names), true) => {
                if names.iter().all(|name| frame.has(name) || frame.key.as_deref() == Some(name)) {
                    Valid
                } else {
                    Open
                }
            }
            (Keyword::DependentSchemas(rules), true) => {
                let is_there = |name: &str| frame.has(name) || frame.key.as_deref() == Some(name);
                let verdicts = rules.iter().filter(|(name, _)| is_there(name));
                let is_invalid = verdicts
                    .into_iter()
                    .any(|&(_, id)| self.node(id, View::Bracket(depth), false) == Invalid);
                if is_invalid { Invalid } else { Open }
            }
            (Keyword::Names(schema), true) => {
                self.has_read_name = true;
                let names = frame.latest.iter().filter_map(|child| child.key.as_ref()).chain(&frame.key);
                let names: Vec<_> = names.cloned().collect();
                if names.iter().any(|name| self.name(*schema, name) == Invalid) { Invalid } else { Open }
            }
            (Keyword::Properties { .. }, true) => self.members(keyword, frame, inner, is_innermost, trusted),
            (Keyword::UnevaluatedProperties(schema), true) if self.is_never(*schema) => {
                let mut names = Some(HashSet::new());
                self.mentioned(id, &mut names, 0);
                let Some(names) = names else { return Open };
                let is_other = |key: &Arc<str>| !names.contains(&**key);
                let latest = frame.latest.as_ref().and_then(|child| child.key.as_ref());
                if latest.into_iter().chain(&frame.key).any(is_other) { Invalid } else { Open }
            }
            // The others are about the other kind of bracket, or about what is no bracket.
            (Keyword::Dependent(_) | Keyword::UnevaluatedProperties(_), true)
            | (Keyword::UnevaluatedItems(_), false) => Open,
            _ => Valid,
        }
    }

    fn members(
        &mut self,
        keyword: &Keyword,
        frame: &Frame,
        inner: Option<View<'_>>,
        is_innermost: bool,
        trusted: bool,
    ) -> Verdict {
        let Keyword::Properties { named, patterns, additional } = keyword else { return Open };
        let mut is_valid = true;
        for child in frame.children() {
            let Some(key) = &child.key else { continue };
            for id in of_member(keyword, key) {
                match self.node(id, View::Done(&child.value), trusted) {
                    Invalid => return Invalid,
                    Open => is_valid = false,
                    Valid => {}
                }
            }
            // What stands before has been looked at when it was finished.
            if trusted {
                break;
            }
        }
        if let Some(key) = &frame.key {
            is_valid = false;
            for id in of_member(keyword, key) {
                if self.is_never(id) || inner.is_some_and(|view| self.node(id, view, trusted) == Invalid) {
                    return Invalid;
                }
            }
        }
        self.has_read_name |= !patterns.is_empty();
        let is_closed = patterns.is_empty() && additional.is_some_and(|id| self.is_never(id));
        if is_closed && is_innermost && frame.key.is_none() {
            let start = match self.pending {
                Pending::Announced => Some(""),
                Pending::Name(start) => start,
                _ => None,
            };
            self.has_read_prefix |= matches!(self.pending, Pending::Name(_));
            let is_free = |name: &String, id: NodeId, start: &str| {
                name.starts_with(start) && !self.is_never(id) && !frame.has(name)
            };
            if start.is_some_and(|start| !named.iter().any(|(name, &id)| is_free(name, id, start))) {
                return Invalid;
            }
        }
        // Once all that it names is there, nothing can change.
        let is_complete =
            patterns.is_empty() && additional.is_none() && named.keys().all(|name| frame.has(name));
        if is_valid && is_complete { Valid } else { Open }
    }

    fn unique(&mut self, id: NodeId, frame: &Frame, inner: Option<View<'_>>) -> Verdict {
        if let Some(latest) = &frame.latest
            && frame.children().skip(1).any(|child| child.value.is(&latest.value))
        {
            return Invalid;
        }
        if inner.is_none() {
            return Open;
        }
        // What may still come, where the items are listed.
        let listed = self.nodes[id].keywords.iter().find_map(|keyword| match keyword {
            Keyword::Items { prefix, rest: Some(rest) } if prefix.is_empty() => self.listed(*rest, 0),
            _ => None,
        });
        if let Pending::Text(_) = self.pending {
            self.has_read_text = true;
        }
        let Some(values) = listed else { return Open };
        let mut left = values.iter().filter(|value| !frame.children().any(|child| child.value.is(value)));
        let goes_on = match self.pending {
            Pending::Text(start) => {
                self.has_read_prefix = true;
                left.any(|value| match (value, start) {
                    (Data::Text(value), Some(start)) => value.starts_with(start),
                    (Data::Text(_), None) => true,
                    _ => false,
                })
            }
            _ => left.next().is_some(),
        };
        if goes_on { Open } else { Invalid }
    }

    fn listed(&self, id: NodeId, depth: usize) -> Option<&'a [Data]> {
        self.nodes[id].keywords.iter().find_map(|keyword| match keyword {
            Keyword::Values(values) => Some(&**values),
            Keyword::All(ids) if depth < 8 => ids.iter().find_map(|&id| self.listed(id, depth + 1)),
            _ => None,
        })
    }
}
