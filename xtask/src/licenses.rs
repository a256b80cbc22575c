//! The part of `deny.toml` that needs no network: licenses, banned crates, sources.

use std::collections::{HashMap, HashSet};

use serde::Deserialize;

use crate::Result;
use crate::workspace::Package;

/// The part of `deny.toml` that is read.
#[derive(Deserialize)]
pub(crate) struct Rules {
    licenses: Licenses,
    bans: Bans,
}

#[derive(Deserialize)]
struct Licenses {
    allow: Vec<String>,
    #[serde(default)]
    exceptions: Vec<Exception>,
    #[serde(default)]
    clarify: Vec<Clarification>,
}

#[derive(Deserialize)]
struct Exception {
    #[serde(rename = "crate")]
    name: String,
    allow: Vec<String>,
}

#[derive(Deserialize)]
struct Clarification {
    #[serde(rename = "crate")]
    name: String,
    expression: String,
}

#[derive(Deserialize)]
struct Bans {
    deny: Vec<Ban>,
}

#[derive(Deserialize)]
struct Ban {
    #[serde(rename = "crate")]
    name: String,
}

impl Rules {
    pub(crate) fn parse(toml: &str) -> Result<Self> {
        Ok(toml::from_str(toml)?)
    }

    /// One line for each dependency that breaks a rule.
    pub(crate) fn problems(&self, packages: &[Package]) -> Vec<String> {
        let allowed: HashSet<&str> = self.licenses.allow.iter().map(String::as_str).collect();
        let exceptions: HashMap<&str, &Vec<String>> =
            self.licenses.exceptions.iter().map(|e| (e.name.as_str(), &e.allow)).collect();
        let clarified: HashMap<&str, &String> =
            self.licenses.clarify.iter().map(|c| (c.name.as_str(), &c.expression)).collect();
        let mut problems = Vec::new();
        for package in packages {
            let name = package.name.as_str();
            let is_allowed = |license: &str| {
                allowed.contains(license)
                    || exceptions.get(name).is_some_and(|more| more.iter().any(|l| l == license))
            };
            match clarified.get(name).copied().or(package.license.as_ref()) {
                None => problems.push(format!("{name} names no license")),
                Some(expression) => match satisfies(expression, &is_allowed) {
                    Ok(true) => {}
                    Ok(false) => problems.push(format!("{name}: license {expression} is not allowed")),
                    Err(reason) => problems.push(format!("{name}: license {expression}: {reason}")),
                },
            }
            if self.bans.deny.iter().any(|ban| ban.name == name) {
                problems.push(format!("{name} is banned"));
            }
            if !package.source.as_ref().is_none_or(|s| s.starts_with("registry+")) {
                problems.push(format!(
                    "{name} comes from {}, not from the registry",
                    package.source.as_ref().map_or("", |s| s)
                ));
            }
        }
        problems
    }
}

/// Whether an SPDX expression can be met with the licenses that are allowed.
fn satisfies(expression: &str, is_allowed: &dyn Fn(&str) -> bool) -> std::result::Result<bool, String> {
    // `MIT/Apache-2.0` is how `OR` used to be written.
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut parser = Parser { words: &words, is_allowed };
    let met = parser.any()?;
    match parser.words.first() {
        None => Ok(met),
        Some(word) => Err(format!("`{word}` is out of place")),
    }
}

struct Parser<'a> {
    words: &'a [&'a str],
    is_allowed: &'a dyn Fn(&str) -> bool,
}

impl Parser<'_> {
    fn take(&mut self, word: &str) -> bool {
        let found = self.words.first() == Some(&word);
        if found {
            self.words = &self.words[1..];
        }
        found
    }

    fn any(&mut self) -> std::result::Result<bool, String> {
        let mut met = self.all()?;
        while self.take("OR") {
            met |= self.all()?;
        }
        Ok(met)
    }

    fn all(&mut self) -> std::result::Result<bool, String> {
        let mut met = self.one()?;
        while self.take("AND") {
            met &= self.one()?;
        }
        Ok(met)
    }

    fn one(&mut self) -> std::result::Result<bool, String> {
        if self.take("(") {
            let met = self.any()?;
            return if self.take(")") { Ok(met) } else { Err("a parenthesis is not closed".to_owned()) };
        }
        let Some((&license, rest)) = self.words.split_first() else {
            return Err("a license is missing".to_owned());
        };
        self.words = rest;
        if matches!(license, "OR" | "AND" | "WITH" | ")") {
            return Err(format!("`{license}` is out of place"));
        }
        if !self.take("WITH") {
            return Ok((self.is_allowed)(license));
        }
        let Some((&exception, rest)) = self.words.split_first() else {
            return Err("an exception is missing".to_owned());
        };
        self.words = rest;
        // An exception only adds permissions.
        Ok((self.is_allowed)(license) || (self.is_allowed)(&format!("{license} WITH {exception}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::parse_metadata;
    use serde_json::json;

    #[test]
    fn expressions() {
        let allowed = |license: &str| matches!(license, "MIT" | "Zlib" | "Apache-2.0 WITH LLVM-exception");
        let cases = [
            ("MIT", Some(true)),
            ("GPL-3.0", Some(false)),
            ("GPL-3.0 OR MIT", Some(true)),
            ("GPL-3.0/MIT", Some(true)),
            ("GPL-3.0 AND MIT", Some(false)),
            ("MIT AND Zlib", Some(true)),
            ("(GPL-3.0 OR MIT) AND Zlib", Some(true)),
            ("GPL-3.0 OR MIT AND Zlib", Some(true)),
            ("(GPL-3.0 OR MIT) AND BSL-1.0", Some(false)),
            ("Apache-2.0 WITH LLVM-exception", Some(true)),
            ("Apache-2.0", Some(false)),
            ("MIT WITH anything", Some(true)),
            ("", None),
            ("MIT OR", None),
            ("MIT Zlib", None),
            ("(MIT", None),
            ("MIT WITH", None),
            ("AND MIT", None),
        ];
        for (expression, expected) in cases {
            assert_eq!(satisfies(expression, &allowed).ok(), expected, "{expression}");
        }
    }

    #[test]
    fn each_rule_is_enforced() {
        let rules = Rules::parse(
            r#"
            [licenses]
            allow = ["MIT"]
            exceptions = [{ crate = "special", allow = ["MPL-2.0"] }]
            clarify = [{ crate = "silent", expression = "MIT" }]
            [bans]
            deny = [{ crate = "banned" }]
            "#,
        )
        .unwrap();
        let package = |name: &str, license: Option<&str>, source: Option<&str>| json!({ "id": name, "name": name, "license": license, "source": source, "dependencies": [], "features": {} });
        let registry = Some("registry+https://example.invalid/index");
        let metadata = json!({ "workspace_members": [], "packages": [
            package("ours", Some("MIT"), None),
            package("good", Some("MIT OR GPL-3.0"), registry),
            package("special", Some("MPL-2.0"), registry),
            package("silent", None, registry),
            package("mute", None, registry),
            package("viral", Some("GPL-3.0"), registry),
            package("banned", Some("MIT"), registry),
            package("elsewhere", Some("MIT"), Some("git+https://example.invalid/x")),
        ]});
        let problems = rules.problems(&parse_metadata(&metadata).unwrap());
        let subjects: Vec<&str> =
            problems.iter().map(|p| p.split([' ', ':']).next().unwrap_or_default()).collect();
        assert_eq!(subjects, ["mute", "viral", "banned", "elsewhere"], "{problems:?}");
    }

    #[test]
    fn the_real_file_parses() {
        let path = crate::workspace::root().join("deny.toml");
        let rules = Rules::parse(&std::fs::read_to_string(path).unwrap()).unwrap();
        assert!(rules.licenses.allow.iter().any(|l| l == "MIT"));
    }
}
