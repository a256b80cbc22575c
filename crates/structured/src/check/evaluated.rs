//! Which members and items other keywords have evaluated, for `unevaluatedProperties` and `unevaluatedItems`.

use std::collections::HashSet;
use std::sync::Arc;

use super::data::Data;
use super::nodes::{Keyword, NodeId};
use super::verdict::Verdict::Valid;
use super::verdict::{Look, View, of_member};

impl<'a> Look<'a> {
    /// Whether a value is valid for a schema that applies at the same place.
    fn is_valid(&mut self, id: NodeId, data: &Arc<Data>) -> bool {
        self.node(id, View::Done(data), false) == Valid
    }

    /// The schemas that apply at the same place and that the value satisfies.
    fn in_place(&mut self, id: NodeId, data: &Arc<Data>) -> Vec<NodeId> {
        let mut found = Vec::new();
        for keyword in &self.nodes[id].keywords {
            match keyword {
                Keyword::All(ids) | Keyword::Any(ids) | Keyword::One(ids) => {
                    found.extend(ids.iter().filter(|&&id| self.is_valid(id, data)));
                }
                Keyword::If { condition, then, otherwise } => match self.is_valid(*condition, data) {
                    true => found.extend([Some(*condition), *then].into_iter().flatten()),
                    false => found.extend(otherwise),
                },
                Keyword::DependentSchemas(rules) => {
                    let Data::Object(members) = &**data else { continue };
                    let has = |name: &str| members.iter().any(|(key, _)| **key == *name);
                    found.extend(rules.iter().filter(|(name, _)| has(name)).map(|(_, id)| *id));
                }
                _ => {}
            }
        }
        found
    }

    pub(super) fn evaluated_members(&mut self, id: NodeId, data: &Arc<Data>, seen: &mut HashSet<Arc<str>>) {
        let Data::Object(members) = &**data else { return };
        for inner in self.in_place(id, data) {
            self.evaluated_members(inner, data, seen);
            let is_all = |keyword: &Keyword| matches!(keyword, Keyword::UnevaluatedProperties(_));
            if self.nodes[inner].keywords.iter().any(is_all) {
                seen.extend(members.iter().map(|(key, _)| key.clone()));
            }
        }
        for keyword in
            self.nodes[id].keywords.iter().filter(|keyword| matches!(keyword, Keyword::Properties { .. }))
        {
            let names = members.iter().map(|(key, _)| key);
            seen.extend(names.filter(|key| !of_member(keyword, key).is_empty()).cloned());
        }
    }

    pub(super) fn evaluated_items(&mut self, id: NodeId, data: &Arc<Data>, seen: &mut HashSet<usize>) {
        let Data::List(items) = &**data else { return };
        for inner in self.in_place(id, data) {
            self.evaluated_items(inner, data, seen);
            let is_all = |keyword: &Keyword| matches!(keyword, Keyword::UnevaluatedItems(_));
            if self.nodes[inner].keywords.iter().any(is_all) {
                seen.extend(0..items.len());
            }
        }
        for keyword in &self.nodes[id].keywords {
            match keyword {
                Keyword::Items { prefix, rest } => {
                    seen.extend(0..if rest.is_some() { items.len() } else { prefix.len() });
                }
                Keyword::Contains { schema, .. } => {
                    seen.extend((0..items.len()).filter(|&i| self.is_valid(*schema, &items[i])));
                }
                _ => {}
            }
        }
    }

    /// Names that any schema at the same place speaks of; `None` if some speak of more than names.
    pub(super) fn mentioned(&self, id: NodeId, names: &mut Option<HashSet<&'a str>>, depth: usize) {
        for keyword in &self.nodes[id].keywords {
            match keyword {
                Keyword::Properties { named, patterns, additional } => {
                    if !patterns.is_empty() || additional.is_some() {
                        *names = None;
                    }
                    if let Some(names) = names {
                        names.extend(named.keys().map(String::as_str));
                    }
                }
                Keyword::UnevaluatedProperties(_) if depth > 0 => *names = None,
                Keyword::All(_)
                | Keyword::Any(_)
                | Keyword::One(_)
                | Keyword::If { .. }
                | Keyword::DependentSchemas(_) => {
                    if depth > 32 {
                        *names = None;
                        return;
                    }
                    keyword.children().iter().for_each(|&id| self.mentioned(id, names, depth + 1));
                }
                _ => {}
            }
        }
    }
}
