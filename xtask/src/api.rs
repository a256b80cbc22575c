//! The public interface of each crate as text: review shows every change of it.
//!
//! rustdoc says what is public, as JSON. That output is not stable yet, so this program stands in for rustdoc
//! ([`as_rustdoc`]) and switches it on only for that one program: if the variable were set for all of cargo,
//! every dependency would be built again.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, ExitCode};

use serde_json::Value;

use crate::Result;
use crate::workspace::{self, Package};

/// Tells this program, started by cargo, to act as rustdoc.
const STAND_IN: &str = "BREAKERS_STAND_IN_FOR_RUSTDOC";
/// The versions of rustdoc's JSON that this was tested with: those of Rust 1.95 to 1.97. A newer compiler may
/// well write the few fields that are read here as before, so its output is compared too, but never written.
const FORMATS: std::ops::RangeInclusive<u64> = 54..=60;

/// Whether the snapshot is compared or written.
#[derive(clap::Args, Clone)]
pub(crate) struct Options {
    /// Write the snapshots anew instead of comparing with them.
    #[arg(long)]
    write: bool,
    /// Device features to build with. CI's documentation has the same, so that nothing is built twice.
    #[arg(long, default_value = "wgpu")]
    features: String,
    /// Only this crate, such as `core`, with the features that it has in the workspace. May be given several
    /// times; crates without Burn take seconds.
    #[arg(long = "package", short, value_name = "ROOM")]
    packages: Vec<String>,
}

/// Runs rustdoc in place of this program if cargo started it for that.
pub(crate) fn as_rustdoc() -> Option<ExitCode> {
    std::env::var_os(STAND_IN)?;
    let mut rustdoc = Command::new("rustdoc");
    rustdoc.args(std::env::args_os().skip(1));
    let asks = |argument: &str| std::env::args().any(|a| a == argument);
    // Cargo's questions, such as for the version, get rustdoc's own answer.
    if asks("--crate-name") {
        rustdoc.env("RUSTC_BOOTSTRAP", "1").args(["-Zunstable-options", "--output-format", "json"]);
    }
    let code = rustdoc.status().ok().and_then(|status| u8::try_from(status.code()?).ok());
    Some(ExitCode::from(code.unwrap_or(1)))
}

pub(crate) fn run(options: &Options) -> Result {
    let packages = chosen(workspace::packages()?, &options.packages)?;
    let mut doc = workspace::cargo();
    doc.args(["doc", "--lib", "--no-deps", "--quiet"]);
    if options.packages.is_empty() {
        doc.args(["--workspace", "--features", &options.features]);
    }
    if !options.packages.is_empty() {
        let active = active_features(&options.features)?;
        for package in &packages {
            doc.args(["--package", &package.name]);
            for feature in active.get(&package.name).into_iter().flatten() {
                doc.args(["--features", &format!("{}/{feature}", package.name)]);
            }
        }
    }
    doc.env("RUSTDOC", std::env::current_exe()?).env(STAND_IN, "1").env_remove("RUSTDOCFLAGS");
    workspace::run(&mut doc)?;
    let snapshots = workspace::root().join("xtask/api");
    let mut changed = Vec::new();
    let mut unknown_format = None;
    for package in &packages {
        let crate_name = package.name.replace('-', "_");
        let path = workspace::target().join("doc").join(format!("{crate_name}.json"));
        let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        let json = serde_json::from_str(&text)?;
        let format = format_of(&json)?;
        if !FORMATS.contains(&format) {
            unknown_format = Some(format);
        }
        let now = listing(&json);
        let snapshot = snapshots.join(format!("{}.txt", package.room()));
        if options.write {
            if let Some(format) = unknown_format {
                return Err(format!("{}; write the snapshots with an older compiler", unknown(format)).into());
            }
            std::fs::create_dir_all(&snapshots)?;
            std::fs::write(&snapshot, now.join("\n") + "\n")?;
            continue;
        }
        let then = std::fs::read_to_string(&snapshot).unwrap_or_default();
        let then: BTreeSet<&str> = then.lines().collect();
        let now: BTreeSet<&str> = now.iter().map(String::as_str).collect();
        then.difference(&now).for_each(|line| changed.push(format!("- {line}")));
        now.difference(&then).for_each(|line| changed.push(format!("+ {line}")));
    }
    if changed.is_empty() {
        return Ok(());
    }
    changed.iter().for_each(|line| println!("{line}"));
    if let Some(format) = unknown_format {
        eprintln!("{}, so the difference may be the compiler's", unknown(format));
    }
    Err(format!(
        "the public interface differs from its snapshot in {} lines; if it is meant to, run `cargo xtask api --write` \
         and commit xtask/api",
        changed.len()
    )
    .into())
}

/// The features that each crate has when all of the workspace is built: a crate by itself would have fewer,
/// and with them fewer public items.
fn active_features(features: &str) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let mut tree = workspace::cargo();
    tree.args(["tree", "--workspace", "--edges", "no-dev", "--prefix", "none", "--format", "{p} {f}"]);
    tree.args(["--features", features]);
    Ok(listed_features(&workspace::output(&mut tree)?))
}

/// Reads lines such as `breakers-core v0.1.0 (/folder/of/it) default,testing (*)`.
fn listed_features(tree: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut features = BTreeMap::<String, BTreeSet<String>>::new();
    for line in tree.lines() {
        let name = line.split(' ').next().unwrap_or_default();
        let Some((_, rest)) = line.split_once(") ") else { continue };
        let list = rest.trim_end_matches("(*)").trim();
        let list = list.split(',').filter(|feature| !feature.is_empty()).map(str::to_owned);
        features.entry(name.to_owned()).or_default().extend(list);
    }
    features
}

/// The published crates, or those of them that `rooms` names.
fn chosen(packages: Vec<Package>, rooms: &[String]) -> Result<Vec<Package>> {
    let published: Vec<Package> = packages.into_iter().filter(Package::is_published).collect();
    if let Some(stranger) = rooms.iter().find(|room| !published.iter().any(|p| p.room() == *room)) {
        let known: Vec<&str> = published.iter().map(Package::room).collect();
        return Err(
            format!("no published crate is called `{stranger}`; there are {}", known.join(", ")).into()
        );
    }
    let is_chosen = |p: &Package| rooms.is_empty() || rooms.iter().any(|room| room == p.room());
    Ok(published.into_iter().filter(is_chosen).collect())
}

fn unknown(format: u64) -> String {
    format!("rustdoc's JSON has version {format}, and this program was tested with {FORMATS:?}")
}

/// The version of rustdoc's JSON, if this may read it.
fn format_of(doc: &Value) -> Result<u64> {
    match doc["format_version"].as_u64() {
        Some(format) if format >= *FORMATS.start() => Ok(format),
        Some(format) => Err(unknown(format).into()),
        None => Err("rustdoc's JSON does not say its version".into()),
    }
}

/// One line for each public item, sorted.
fn listing(doc: &Value) -> Vec<String> {
    let mut lister = Lister { index: &doc["index"], lines: BTreeSet::new() };
    lister.item(&doc["root"], "", &mut Vec::new());
    lister.lines.into_iter().collect()
}

struct Lister<'a> {
    index: &'a Value,
    lines: BTreeSet<String>,
}

impl Lister<'_> {
    /// Lists an item and what is in it. `inside` are the modules on the way, since re-exports
    /// may run in circles.
    fn item(&mut self, id: &Value, path: &str, inside: &mut Vec<u64>) {
        let number = id.as_u64().unwrap_or(u64::MAX);
        let item = &self.index[number.to_string()];
        let Some((kind, inner)) = item["inner"].as_object().and_then(|inner| inner.iter().next()) else {
            return;
        };
        let name = item["name"].as_str().unwrap_or_default();
        let full = if path.is_empty() { name.to_owned() } else { format!("{path}::{name}") };
        // A type that users can neither build nor match to the end may grow without breaking them.
        let open = if is_non_exhaustive(item) { "#[non_exhaustive] " } else { "" };
        match kind.as_str() {
            "module" if !inside.contains(&number) => {
                inside.push(number);
                self.lines.insert(format!("mod {full}"));
                list(&inner["items"]).for_each(|id| self.item(id, &full, inside));
                inside.pop();
            }
            "use" => self.re_export(inner, path, inside),
            "struct" => {
                let kind = &inner["kind"];
                // A private field of a tuple stands as `null` among the others.
                let is_hidden = list(&kind["tuple"]).any(Value::is_null);
                let is_hidden = is_hidden || kind["plain"]["has_stripped_fields"] == true;
                let rest = if is_hidden { " { .. }" } else { "" };
                self.lines.insert(format!("{open}struct {full}{}{rest}", generics(&inner["generics"])));
                let fields = [&inner["kind"]["plain"]["fields"], &inner["kind"]["tuple"]];
                fields.into_iter().flat_map(list).for_each(|id| self.item(id, &full, inside));
                self.impls(inner, &full, inside);
            }
            "enum" => {
                self.lines.insert(format!("{open}enum {full}{}", generics(&inner["generics"])));
                list(&inner["variants"]).for_each(|id| self.item(id, &full, inside));
                self.impls(inner, &full, inside);
            }
            "trait" => {
                let bounds = bounds(&inner["bounds"]);
                let colon = if bounds.is_empty() { "" } else { ": " };
                self.lines.insert(format!("trait {full}{}{colon}{bounds}", generics(&inner["generics"])));
                for id in list(&inner["items"]) {
                    self.item(id, &full, inside);
                    let item = &self.index[id.to_string()];
                    if item["inner"]["function"]["has_body"] == false {
                        let name = item["name"].as_str().unwrap_or_default();
                        self.lines.insert(format!("required {full}::{name}"));
                    }
                }
                self.foreign_impls(&full, inner);
            }
            "variant" => {
                self.lines.insert(format!("{open}variant {full}"));
                let fields = [&inner["kind"]["struct"]["fields"], &inner["kind"]["tuple"]];
                fields.into_iter().flat_map(list).for_each(|id| self.item(id, &full, inside));
            }
            "struct_field" => drop(self.lines.insert(format!("field {full}: {}", show(inner)))),
            "function" => drop(self.lines.insert(signature(inner, &full))),
            "constant" => drop(self.lines.insert(format!("const {full}: {}", show(&inner["type"])))),
            "assoc_const" => drop(self.lines.insert(format!("const {full}: {}", show(&inner["type"])))),
            "static" => drop(self.lines.insert(format!("static {full}: {}", show(&inner["type"])))),
            "type_alias" => drop(self.lines.insert(format!("type {full} = {}", show(&inner["type"])))),
            "assoc_type" => drop(self.lines.insert(format!("type {full}: {}", bounds(&inner["bounds"])))),
            "macro" | "proc_macro" => drop(self.lines.insert(format!("macro {full}"))),
            _ => {}
        }
    }

    fn re_export(&mut self, inner: &Value, path: &str, inside: &mut Vec<u64>) {
        let name = inner["name"].as_str().unwrap_or_default();
        let target = inner["id"].as_u64().map(|id| &self.index[id.to_string()]);
        match target.filter(|target| target.is_object()) {
            // From a private module of this crate: listed where users find it.
            Some(target) if target["name"] == name => self.item(&inner["id"], path, inside),
            Some(module) if inner["is_glob"] == true => {
                let items = &module["inner"]["module"]["items"];
                list(items).for_each(|id| self.item(id, path, inside));
            }
            _ => {
                let source = inner["source"].as_str().unwrap_or_default();
                self.lines.insert(format!("use {path}::{name} = {source}"));
            }
        }
    }

    /// What implements a trait of this crate and is not a type of this crate: references, boxes, all that
    /// implement another trait.
    fn foreign_impls(&mut self, full: &str, inner: &Value) {
        for id in list(&inner["implementations"]) {
            let imp = &self.index[id.to_string()]["inner"]["impl"];
            let target = &imp["for"];
            let of_this_crate = &self.index[target["resolved_path"]["id"].to_string()];
            if imp.is_object() && !of_this_crate.is_object() {
                let generics = generics(&imp["generics"]);
                self.lines.insert(format!("impl{generics} {full} for {}", show(target)));
            }
        }
    }

    fn impls(&mut self, inner: &Value, full: &str, inside: &mut Vec<u64>) {
        for id in list(&inner["impls"]) {
            let imp = &self.index[id.to_string()]["inner"]["impl"];
            if imp["is_synthetic"] == true || !imp["blanket_impl"].is_null() {
                continue;
            }
            match imp["trait"]["path"].as_str() {
                None => list(&imp["items"]).for_each(|id| self.item(id, full, inside)),
                // Made by derives only for the compiler.
                Some(name) if name.ends_with("StructuralPartialEq") => {}
                Some(_) => drop(self.lines.insert(format!("impl {} for {full}", path(&imp["trait"])))),
            }
        }
    }
}

/// rustdoc writes an attribute as source text or by name.
fn is_non_exhaustive(item: &Value) -> bool {
    list(&item["attrs"]).any(|a| a.as_str().is_some_and(|a| a.contains("non_exhaustive")))
}

fn list(values: &Value) -> impl Iterator<Item = &Value> {
    values.as_array().into_iter().flatten()
}

fn join<'a>(values: impl Iterator<Item = &'a Value>, show: impl Fn(&Value) -> String, by: &str) -> String {
    values.map(show).collect::<Vec<_>>().join(by)
}

fn signature(inner: &Value, full: &str) -> String {
    let header = &inner["header"];
    let words = [("is_const", "const "), ("is_async", "async "), ("is_unsafe", "unsafe ")];
    let words: String = words.iter().filter(|(flag, _)| header[*flag] == true).map(|w| w.1).collect();
    let argument = |input: &Value| format!("{}: {}", input[0].as_str().unwrap_or("_"), show(&input[1]));
    let inputs = join(list(&inner["sig"]["inputs"]), argument, ", ");
    let output = &inner["sig"]["output"];
    let output = if output.is_null() { String::new() } else { format!(" -> {}", show(output)) };
    format!("{words}fn {full}{}({inputs}){output}", generics(&inner["generics"]))
}

fn generics(generics: &Value) -> String {
    let parameter = |parameter: &Value| {
        let name = parameter["name"].as_str().unwrap_or_default();
        let kind = &parameter["kind"];
        match kind.as_object().and_then(|kind| kind.keys().next()).map(String::as_str) {
            Some("const") => format!("const {name}: {}", show(&kind["const"]["type"])),
            Some("type") if list(&kind["type"]["bounds"]).next().is_some() => {
                format!("{name}: {}", bounds(&kind["type"]["bounds"]))
            }
            _ => name.to_owned(),
        }
    };
    // Parameters of `impl Trait` arguments stand there already.
    let named = list(&generics["params"]).filter(|p| p["kind"]["type"]["is_synthetic"] != true);
    let parameters = join(named, parameter, ", ");
    let mut text = if parameters.is_empty() { String::new() } else { format!("<{parameters}>") };
    for predicate in list(&generics["where_predicates"]) {
        let bound = &predicate["bound_predicate"];
        if bound.is_object() {
            text += &format!(" where {}: {}", show(&bound["type"]), bounds(&bound["bounds"]));
        }
    }
    text
}

fn bounds(values: &Value) -> String {
    let bound = |bound: &Value| match bound["trait_bound"].is_object() {
        true => {
            let maybe = if bound["trait_bound"]["modifier"] == "maybe" { "?" } else { "" };
            format!("{maybe}{}", path(&bound["trait_bound"]["trait"]))
        }
        false => bound["outlives"].as_str().unwrap_or("_").to_owned(),
    };
    join(list(values), bound, " + ")
}

fn path(value: &Value) -> String {
    // The path is as the source wrote it; the last part is what a reader needs.
    let name = value["path"].as_str().unwrap_or_default().rsplit("::").next().unwrap_or_default();
    let arguments = &value["args"];
    let angle = &arguments["angle_bracketed"];
    let argument = |argument: &Value| match argument.as_object().and_then(|a| a.iter().next()) {
        Some((kind, inner)) if kind == "type" => show(inner),
        Some((kind, inner)) if kind == "const" => inner["expr"].as_str().unwrap_or("_").to_owned(),
        Some((_, inner)) => inner.as_str().unwrap_or("_").to_owned(),
        None => "_".to_owned(),
    };
    let constraint = |c: &Value| {
        let name = c["name"].as_str().unwrap_or_default();
        format!("{name} = {}", show(&c["binding"]["equality"]["type"]))
    };
    let mut inside: Vec<String> = list(&angle["args"]).map(argument).collect();
    inside.extend(list(&angle["constraints"]).map(constraint));
    if !inside.is_empty() {
        return format!("{name}<{}>", inside.join(", "));
    }
    let round = &arguments["parenthesized"];
    if round.is_object() {
        let output =
            if round["output"].is_null() { String::new() } else { format!(" -> {}", show(&round["output"])) };
        return format!("{name}({}){output}", join(list(&round["inputs"]), show, ", "));
    }
    name.to_owned()
}

/// A type as a reader would write it.
fn show(value: &Value) -> String {
    let Some((kind, inner)) = value.as_object().and_then(|object| object.iter().next()) else {
        return "_".to_owned();
    };
    let mutable = if inner["is_mutable"] == true { "mut " } else { "" };
    match kind.as_str() {
        "resolved_path" => path(inner),
        "generic" | "primitive" => inner.as_str().unwrap_or("_").to_owned(),
        "borrowed_ref" => {
            let lifetime = inner["lifetime"].as_str().map(|l| format!("{l} ")).unwrap_or_default();
            format!("&{lifetime}{mutable}{}", show(&inner["type"]))
        }
        "raw_pointer" => {
            format!("*{}{}", if mutable.is_empty() { "const " } else { mutable }, show(&inner["type"]))
        }
        "slice" => format!("[{}]", show(inner)),
        "array" => format!("[{}; {}]", show(&inner["type"]), inner["len"].as_str().unwrap_or("_")),
        "tuple" => format!("({})", join(list(inner), show, ", ")),
        "impl_trait" => format!("impl {}", bounds(inner)),
        "dyn_trait" => {
            let traits = join(list(&inner["traits"]), |t| path(&t["trait"]), " + ");
            let lifetime = inner["lifetime"].as_str().map(|l| format!(" + {l}")).unwrap_or_default();
            format!("dyn {traits}{lifetime}")
        }
        "qualified_path" => {
            format!("{}::{}", show(&inner["self_type"]), inner["name"].as_str().unwrap_or("_"))
        }
        "function_pointer" => {
            let argument = |input: &Value| show(&input[1]);
            let output = &inner["sig"]["output"];
            let output = if output.is_null() { String::new() } else { format!(" -> {}", show(output)) };
            format!("fn({}){output}", join(list(&inner["sig"]["inputs"]), argument, ", "))
        }
        _ => "_".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn features_of_the_workspace() {
        let tree = "breakers-core v0.1.0 (/a/core) testing\n\
                    breakers-core v0.1.0 (/a/core) testing (*)\n\
                    breakers-remote v0.1.0 (/a/remote) default,tls (*)\n\
                    breakers-cpu v0.1.0 (/a/cpu) (*)\n\
                    serde v1.0.0 derive,std\n";
        let found = listed_features(tree);
        let of = |name: &str| found.get(name).into_iter().flatten().map(String::as_str).collect::<Vec<_>>();
        assert_eq!(of("breakers-core"), ["testing"]);
        assert_eq!(of("breakers-remote"), ["default", "tls"]);
        assert_eq!((of("breakers-cpu"), of("serde")), (vec![], vec![]));
    }

    #[test]
    fn items_become_lines() {
        let text = json!({"resolved_path": {"path": "std::option::Option", "id": 9, "args": {"angle_bracketed": {
            "args": [{"type": {"borrowed_ref": {"lifetime": null, "is_mutable": true, "type": {"slice": {"primitive": "f32"}}}}}],
            "constraints": []}}}});
        let no_generics = json!({"params": [], "where_predicates": []});
        let doc = json!({"format_version": 57, "root": 0, "index": {
            "0": {"name": "rooms", "inner": {"module": {"items": [1, 4, 5]}}},
            "1": {"name": "Room", "attrs": ["non_exhaustive"], "inner": {"struct": {"generics": no_generics,
                "impls": [3], "kind": {"plain": {"fields": [2], "has_stripped_fields": true}}}}},
            "2": {"name": "rows", "inner": {"struct_field": text}},
            "3": {"name": null, "inner": {"impl": {"is_synthetic": false, "blanket_impl": null, "items": [],
                "for": {"resolved_path": {"path": "Room", "id": 1}}, "trait": {"path": "Clone", "args": null}}}},
            "4": {"name": "open", "inner": {"function": {"generics": no_generics, "header": {"is_const": true},
                "sig": {"inputs": [["n", {"primitive": "usize"}]], "output": {"tuple": []}}}}},
            "5": {"name": "Door", "inner": {"trait": {"generics": no_generics, "bounds": [], "items": [6, 7],
                "implementations": [3, 8]}}},
            "6": {"name": "push", "inner": {"function": {"generics": no_generics, "header": {}, "has_body": false,
                "sig": {"inputs": [], "output": null}}}},
            "7": {"name": "pull", "inner": {"function": {"generics": no_generics, "header": {}, "has_body": true,
                "sig": {"inputs": [], "output": null}}}},
            "8": {"name": null, "inner": {"impl": {"is_synthetic": false, "generics": no_generics, "items": [],
                "for": {"slice": {"primitive": "u8"}}, "trait": {"path": "Door", "args": null}}}},
        }});
        let expected = [
            "#[non_exhaustive] struct rooms::Room { .. }",
            "const fn rooms::open(n: usize) -> ()",
            "field rooms::Room::rows: Option<&mut [f32]>",
            "fn rooms::Door::pull()",
            "fn rooms::Door::push()",
            "impl Clone for rooms::Room",
            "impl rooms::Door for [u8]",
            "mod rooms",
            "required rooms::Door::push",
            "trait rooms::Door",
        ];
        assert_eq!(listing(&doc), expected);
        assert_eq!(format_of(&doc).unwrap(), 57);
        // A newer compiler's is compared, an older one's is not known to be the same.
        assert_eq!(format_of(&json!({"format_version": 99})).unwrap(), 99);
        assert!(format_of(&json!({"format_version": 3})).unwrap_err().to_string().contains("version 3"));
        assert!(format_of(&json!({})).is_err());
    }
}
