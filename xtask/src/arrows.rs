//! Which room may depend on which, checked against the drawing in ARCHITECTURE.md.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::Result;
use crate::workspace::Package;

/// Examples and their tests compose everything, and are never dependencies.
const EXAMPLES: &str = "examples-";
/// Where the drawing begins, in ARCHITECTURE.md.
const HEADING: &str = "## Which way the arrows run";

/// The arrows as drawn: each room with those right below it.
#[derive(Debug, PartialEq)]
pub(crate) struct Arrows(BTreeMap<String, BTreeSet<String>>);

impl Arrows {
    /// Reads the drawing of the workspace.
    pub(crate) fn read(root: &Path) -> Result<Self> {
        Self::parse(&std::fs::read_to_string(root.join("ARCHITECTURE.md"))?)
    }

    /// Reads `room ─► room, room` lines; a room that depends on nothing has a dash.
    pub(crate) fn parse(page: &str) -> Result<Self> {
        let section =
            page.split_once(HEADING).ok_or_else(|| format!("ARCHITECTURE.md lacks \"{HEADING}\""))?.1;
        let drawing = section.split("```").nth(1).ok_or("the section on arrows lacks its drawing")?;
        let mut arrows = BTreeMap::new();
        for line in drawing.lines() {
            let Some((room, below)) = line.split_once("─►") else { continue };
            let below =
                below.split(',').map(str::trim).filter(|name| *name != "–").map(str::to_owned).collect();
            if arrows.insert(room.trim().to_owned(), below).is_some() {
                return Err(format!("the drawing of arrows has {} twice", room.trim()).into());
            }
        }
        Ok(Self(arrows))
    }

    /// Everything below a room, by one arrow or several.
    fn below(&self, room: &str) -> BTreeSet<&str> {
        let mut found = BTreeSet::new();
        let mut open = vec![room];
        while let Some(room) = open.pop() {
            for lower in self.0.get(room).into_iter().flatten() {
                if found.insert(lower.as_str()) {
                    open.push(lower);
                }
            }
        }
        found
    }

    /// Where manifests and drawing differ.
    pub(crate) fn problems(&self, members: &[&Package]) -> Vec<String> {
        let rooms: BTreeSet<&str> = members.iter().map(|p| p.room()).collect();
        let mut problems = Vec::new();
        for package in members.iter().filter(|p| !p.room().starts_with(EXAMPLES)) {
            let from = package.room();
            let Some(drawn) = self.0.get(from) else {
                problems.push(format!("{from} has no place in the drawing of arrows (ARCHITECTURE.md)"));
                continue;
            };
            let below = self.below(from);
            if below.contains(from) {
                problems.push(format!("the arrows from {from} lead back to it"));
            }
            // A room's own tests may name the room, to switch on a feature.
            let targets: BTreeSet<&str> = package
                .dependencies
                .iter()
                .map(|name| name.strip_prefix("breakers-").unwrap_or(name))
                .filter(|room| rooms.contains(room) && *room != from)
                .collect();
            for to in targets.iter().filter(|to| !below.contains(**to)) {
                problems.push(format!("{from} must not depend on {to}"));
            }
            for to in drawn.iter().filter(|to| !targets.contains(to.as_str())) {
                problems
                    .push(format!("the drawing has an arrow from {from} to {to}, and the manifest has none"));
            }
        }
        for room in self.0.keys().filter(|room| !rooms.contains(room.as_str())) {
            problems.push(format!("the drawing of arrows has {room}, which is no room"));
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::parse_metadata;
    use serde_json::{Value, json};

    fn members(specs: &[(&str, &[&str])]) -> Vec<Package> {
        let packages: Vec<Value> = specs
            .iter()
            .map(|(name, dependencies)| {
                json!({
                    "id": name, "name": name, "license": null, "source": null, "features": {},
                    "dependencies": dependencies.iter().map(|d| json!({ "name": d })).collect::<Vec<_>>(),
                })
            })
            .collect();
        let ids: Vec<&str> = specs.iter().map(|s| s.0).collect();
        parse_metadata(&json!({ "workspace_members": ids, "packages": packages })).unwrap()
    }

    #[test]
    fn manifests_are_held_against_the_drawing() {
        let page = format!("x\n{HEADING}\n\n```text\nmodel ─► kv-cache\nkv-cache ─► core\ncore ─► –\n```\n");
        let arrows = Arrows::parse(&page).unwrap();
        let core: (&str, &[&str]) = ("breakers-core", &["serde"]);
        let cache: (&str, &[&str]) = ("breakers-kv-cache", &["breakers-core"]);
        let model: (&str, &[&str]) = ("breakers-model", &["breakers-kv-cache", "breakers-core"]);
        let example: (&str, &[&str]) = ("breakers-examples-decode", &["breakers-model"]);
        for (specs, expected) in [
            (vec![core, cache, model, example], vec![]),
            (
                vec![("breakers-core", &["breakers-kv-cache"][..]), cache, model],
                vec!["core must not depend on kv-cache"],
            ),
            (
                vec![core, cache, model, ("breakers-kitchen", &[])],
                vec!["kitchen has no place in the drawing of arrows (ARCHITECTURE.md)"],
            ),
            (
                vec![core, cache, ("breakers-model", &["breakers-core"])],
                vec!["the drawing has an arrow from model to kv-cache, and the manifest has none"],
            ),
            (
                vec![
                    core,
                    ("breakers-kv-cache", &["breakers-core", "breakers-examples-decode"]),
                    model,
                    example,
                ],
                vec!["kv-cache must not depend on examples-decode"],
            ),
            (vec![core, cache], vec!["the drawing of arrows has model, which is no room"]),
        ] {
            let packages = members(&specs);
            assert_eq!(arrows.problems(&packages.iter().collect::<Vec<_>>()), expected);
        }
        let circle = Arrows::parse(&page.replace("core ─► –", "core ─► model")).unwrap();
        let packages = members(&[("breakers-core", &["breakers-model"]), cache, model]);
        let problems = circle.problems(&packages.iter().collect::<Vec<_>>());
        assert!(problems.contains(&"the arrows from core lead back to it".to_owned()), "{problems:?}");
        assert!(Arrows::parse("no drawing").is_err());
    }
}
