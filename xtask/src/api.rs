//! The public interface of each crate as a text, so that a change of it is seen in review.
//!
//! rustdoc says what is public, as JSON. That output is not stable yet, so this program stands in for rustdoc
//! ([`as_rustdoc`]) and switches it on for that one program alone: set for all of cargo, the variable would
//! build every dependency again.

use std::collections::BTreeSet;
use std::process::{Command, ExitCode};

use serde_json::Value;

use crate::{Result, workspace};

/// Tells this program, started by cargo, to be rustdoc.
const STAND_IN: &str = "BREAKERS_STAND_IN_FOR_RUSTDOC";
/// The form of the JSON that this reads: that of the compiler which `rust-version` names and its neighbors.
const FORMATS: std::ops::RangeInclusive<u64> = 54..=60;

/// Whether the snapshot is compared or written.
#[derive(clap::Args, Clone)]
pub(crate) struct Options {
    /// Write the snapshots anew instead of comparing with them.
    #[arg(long)]
    write: bool,
    /// Device features to build with, as CI does, so that nothing is built twice.
    #[arg(long, default_value = "wgpu")]
    features: String,
}

/// Runs rustdoc in place of this program if cargo started it for that.
pub(crate) fn as_rustdoc() -> Option<ExitCode> {
    std::env::var_os(STAND_IN)?;
    let mut rustdoc = Command::new("rustdoc");
    rustdoc.args(std::env::args_os().skip(1));
    let asks = |argument: &str| std::env::args().any(|a| a == argument);
    // Questions of cargo's, such as for the version, get rustdoc's own answer.
    if asks("--crate-name") {
        rustdoc.env("RUSTC_BOOTSTRAP", "1").args(["-Zunstable-options", "--output-format", "json"]);
    }
    let code = rustdoc.status().ok().and_then(|status| u8::try_from(status.code()?).ok());
    Some(ExitCode::from(code.unwrap_or(1)))
}

pub(crate) fn run(options: &Options) -> Result {
    let mut doc = workspace::cargo();
    doc.args(["doc", "--workspace", "--lib", "--no-deps", "--quiet", "--features", &options.features]);
    doc.env("RUSTDOC", std::env::current_exe()?).env(STAND_IN, "1").env_remove("RUSTDOCFLAGS");
    workspace::run(&mut doc)?;
    let snapshots = workspace::root().join("xtask/api");
    let mut changed = Vec::new();
    for package in workspace::packages()?.iter().filter(|p| p.is_member && p.is_published()) {
        let crate_name = package.name.replace('-', "_");
        let path = workspace::target().join("doc").join(format!("{crate_name}.json"));
        let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        let now = listing(&serde_json::from_str(&text)?)?;
        let snapshot = snapshots.join(format!("{}.txt", package.room()));
        if options.write {
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
    Err(format!(
        "the public interface changed in {} lines; `cargo xtask api --write` if that is meant",
        changed.len()
    )
    .into())
}

/// One line for each public item, sorted.
fn listing(doc: &Value) -> Result<Vec<String>> {
    let format = doc["format_version"].as_u64().unwrap_or(0);
    if !FORMATS.contains(&format) {
        return Err(format!("rustdoc's JSON has format {format}; this reads {FORMATS:?}").into());
    }
    let mut lister = Lister { index: &doc["index"], lines: BTreeSet::new() };
    lister.item(&doc["root"], "", &mut Vec::new());
    Ok(lister.lines.into_iter().collect())
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
        match kind.as_str() {
            "module" if !inside.contains(&number) => {
                inside.push(number);
                self.lines.insert(format!("mod {full}"));
                list(&inner["items"]).for_each(|id| self.item(id, &full, inside));
                inside.pop();
            }
            "use" => self.re_export(inner, path, inside),
            "struct" => {
                self.lines.insert(format!("struct {full}{}", generics(&inner["generics"])));
                let fields = [&inner["kind"]["plain"]["fields"], &inner["kind"]["tuple"]];
                fields.into_iter().flat_map(list).for_each(|id| self.item(id, &full, inside));
                self.impls(inner, &full, inside);
            }
            "enum" => {
                self.lines.insert(format!("enum {full}{}", generics(&inner["generics"])));
                list(&inner["variants"]).for_each(|id| self.item(id, &full, inside));
                self.impls(inner, &full, inside);
            }
            "trait" => {
                let bounds = bounds(&inner["bounds"]);
                let colon = if bounds.is_empty() { "" } else { ": " };
                self.lines.insert(format!("trait {full}{}{colon}{bounds}", generics(&inner["generics"])));
                list(&inner["items"]).for_each(|id| self.item(id, &full, inside));
            }
            "variant" => {
                self.lines.insert(format!("variant {full}"));
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
            // Of a private module of this crate: listed where it can be found.
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

    fn impls(&mut self, inner: &Value, full: &str, inside: &mut Vec<u64>) {
        for id in list(&inner["impls"]) {
            let imp = &self.index[id.to_string()]["inner"]["impl"];
            if imp["is_synthetic"] == true || !imp["blanket_impl"].is_null() {
                continue;
            }
            match imp["trait"]["path"].as_str() {
                None => list(&imp["items"]).for_each(|id| self.item(id, full, inside)),
                // Made by derives for the compiler alone.
                Some(name) if name.ends_with("StructuralPartialEq") => {}
                Some(_) => drop(self.lines.insert(format!("impl {} for {full}", path(&imp["trait"])))),
            }
        }
    }
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
    fn items_become_lines() {
        let text = json!({"resolved_path": {"path": "std::option::Option", "id": 9, "args": {"angle_bracketed": {
            "args": [{"type": {"borrowed_ref": {"lifetime": null, "is_mutable": true, "type": {"slice": {"primitive": "f32"}}}}}],
            "constraints": []}}}});
        let no_generics = json!({"params": [], "where_predicates": []});
        let doc = json!({"format_version": 57, "root": 0, "index": {
            "0": {"name": "rooms", "inner": {"module": {"items": [1, 4]}}},
            "1": {"name": "Room", "inner": {"struct": {"generics": no_generics, "impls": [3],
                "kind": {"plain": {"fields": [2]}}}}},
            "2": {"name": "rows", "inner": {"struct_field": text}},
            "3": {"name": null, "inner": {"impl": {"is_synthetic": false, "blanket_impl": null, "items": [],
                "trait": {"path": "Clone", "args": null}}}},
            "4": {"name": "open", "inner": {"function": {"generics": no_generics, "header": {"is_const": true},
                "sig": {"inputs": [["n", {"primitive": "usize"}]], "output": {"tuple": []}}}}},
        }});
        let expected = [
            "const fn rooms::open(n: usize) -> ()",
            "field rooms::Room::rows: Option<&mut [f32]>",
            "impl Clone for rooms::Room",
            "mod rooms",
            "struct rooms::Room",
        ];
        assert_eq!(listing(&doc).unwrap(), expected);
        assert!(listing(&json!({"format_version": 3})).unwrap_err().to_string().contains("format 3"));
    }
}
