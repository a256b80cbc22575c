//! The rules that no compiler checks.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use crate::arrows::Arrows;
use crate::licenses::Rules;
use crate::workspace::{self, Package};
use crate::{Result, bench, cuda, docs, exact, fetch, pages, serving};

/// Features that choose a device; a crate with a kernel forwards them to all crates with kernels below it.
const DEVICE_FEATURES: [&str; 5] = ["cube", "wgpu", "vulkan", "cuda", "metal"];

/// Packages that a build without device features must not compile.
const GPU_PACKAGES: [&str; 5] = ["wgpu", "cudarc", "cubecl", "ash", "burn-cubecl"];

/// Text that must not be committed. Split in two, so that this file does not contain it.
const FORBIDDEN: &[(&str, &str, &str)] = &[
    ("to", "do!(", "finish it"),
    ("unimple", "mented!(", "finish it"),
    ("FIX", "ME", "fix it or file an issue"),
    ("<<<<", "<<<", "a merge is unfinished"),
    ("/ro", "ot/", "the path of one machine"),
    ("/ho", "me/", "the path of one machine"),
    ("/wo", "rk/", "the path of one machine"),
];

pub(crate) fn run(full: bool) -> Result {
    let packages = workspace::packages()?;
    let root = workspace::root();
    let rules = Rules::parse(&std::fs::read_to_string(root.join("deny.toml"))?)?;
    let members: Vec<&Package> = packages.iter().filter(|p| p.is_member).collect();
    let tracked = workspace::output(Command::new("git").arg("-C").arg(&root).args(["ls-files", "-z"]))?;
    let files: Vec<&str> = tracked.split('\0').filter(|file| !file.is_empty()).collect();
    let sections = [
        ("dependency arrows", Arrows::read(&root)?.problems(&members)),
        ("device features", feature_problems(&members)),
        ("licenses and sources", rules.problems(&packages)),
        ("package metadata", metadata_problems(&members)),
        ("default builds without a GPU", gpu_problems(&members)?),
        ("pages", pages::page_problems(&root, &files)?),
        ("words and comments", text_problems(&root, &files)),
    ];
    let mut n_problems = 0;
    for (name, problems) in &sections {
        println!("{name}: {}", if problems.is_empty() { "ok" } else { "FAILED" });
        problems.iter().for_each(|p| println!("  {p}"));
        n_problems += problems.len();
    }
    if n_problems > 0 {
        return Err(format!("{n_problems} rules are broken").into());
    }
    if full { run_full() } else { Ok(()) }
}

/// Compiles each package on its own without its default features. Packages that need Burn, which take minutes
/// for each set of features, are included only if `with_burn`.
pub(crate) fn alone(with_burn: bool) -> Result {
    for package in workspace::packages()?.iter().filter(|p| p.is_member) {
        let selection = ["--no-default-features", "--package", &package.name];
        let has_burn = compiled(&selection)?.contains("burn");
        if with_burn || !has_burn {
            println!("{}", package.name);
            workspace::run(workspace::cargo().args(["check", "--quiet"]).args(selection))?;
        }
    }
    Ok(())
}

/// The book, each crate alone, all models, the server's clients and page, the peer, and a real CUDA build:
/// about two hours.
fn run_full() -> Result {
    // The quick check follows the links of the book's pages; only mdBook can say whether it can be built.
    docs::book(&workspace::target().join("book"))?;
    alone(true)?;
    let names: Vec<&str> = fetch::GENERATORS.into_iter().chain(["minilm"]).collect();
    let folder = fetch::fetch(&names)?;
    let mut tests = workspace::cargo();
    tests.args(["test", "--workspace", "--features", "wgpu"]);
    tests.env("BREAKERS_TEST_MODELS", &folder).env("BREAKERS_REQUIRE_MODELS", "1");
    workspace::run(&mut tests)?;
    serving::run(&serving::Options::default())?;
    exact::run(&exact::Options::default())?;
    bench::run(&bench::Options::default())?;
    cuda::build(true, true)
}

/// Enabling a device feature of a package must enable it in every package below that has it.
fn feature_problems(members: &[&Package]) -> Vec<String> {
    let by_name: BTreeMap<&str, &Package> = members.iter().map(|p| (p.name.as_str(), *p)).collect();
    let mut problems = Vec::new();
    for package in members {
        let below = packages_below(package, &by_name);
        for feature in DEVICE_FEATURES {
            let with_feature: Vec<&&Package> =
                below.iter().filter(|p| p.features.contains_key(feature)).collect();
            if with_feature.is_empty() {
                continue;
            }
            if !package.features.contains_key(feature) {
                // `cube` is private to the crates with kernels; the others enable a runtime.
                if feature != "cube" && package.dependencies.iter().any(|d| by_name.contains_key(d.as_str()))
                {
                    problems.push(format!("{} does not forward `{feature}`", package.name));
                }
                continue;
            }
            let enabled = enabled_by(package, feature, &by_name);
            for lower in with_feature {
                if !enabled.contains(&(lower.name.as_str(), feature)) {
                    problems.push(format!("{}/{feature} does not reach {}", package.name, lower.name));
                }
            }
        }
    }
    problems
}

fn packages_below<'a>(package: &'a Package, by_name: &BTreeMap<&str, &'a Package>) -> Vec<&'a Package> {
    let mut below: BTreeMap<&str, &Package> = BTreeMap::new();
    let mut open = vec![package];
    while let Some(package) = open.pop() {
        for name in &package.dependencies {
            if let Some(&lower) = by_name.get(name.as_str())
                && below.insert(&lower.name, lower).is_none()
            {
                open.push(lower);
            }
        }
    }
    below.into_values().collect()
}

/// Everything that a feature switches on, as (package, feature).
fn enabled_by<'a>(
    package: &'a Package,
    feature: &'a str,
    by_name: &BTreeMap<&str, &'a Package>,
) -> BTreeSet<(&'a str, &'a str)> {
    let mut enabled = BTreeSet::new();
    let mut open = vec![(package, feature)];
    while let Some((package, feature)) = open.pop() {
        if !enabled.insert((package.name.as_str(), feature)) {
            continue;
        }
        for on in package.features.get(feature).into_iter().flatten() {
            match on.split_once('/') {
                Some((name, feature)) => {
                    if let Some(&lower) = by_name.get(name.trim_end_matches('?')) {
                        open.push((lower, feature));
                    }
                }
                None => open.push((package, on)),
            }
        }
    }
    enabled
}

fn metadata_problems(members: &[&Package]) -> Vec<String> {
    let mut problems = Vec::new();
    for package in members.iter().filter(|p| p.is_published()) {
        for field in ["description", "license", "repository", "rust_version"] {
            if package.manifest[field].as_str().is_none_or(str::is_empty) {
                problems.push(format!("{} has no {field}", package.name));
            }
        }
        for field in ["keywords", "categories"] {
            if package.manifest[field].as_array().is_none_or(Vec::is_empty) {
                problems.push(format!("{} has no {field}", package.name));
            }
        }
        let library = package.folder().join("src/lib.rs");
        match std::fs::read_to_string(&library) {
            Err(error) => problems.push(format!("{}: {error}", library.display())),
            Ok(source) => {
                // A README that is included as the crate's documentation counts.
                let readme = std::fs::read_to_string(package.folder().join("README.md")).unwrap_or_default();
                let readme = if source.contains("include_str!(\"../README.md\")") { &readme } else { "" };
                let lines = source.lines().filter_map(|l| l.strip_prefix("//! ")).chain(readme.lines());
                let fences = lines.filter(|l| l.starts_with("```")).count();
                if fences < 2 {
                    problems.push(format!("{}: the crate's documentation has no example", package.name));
                }
            }
        }
    }
    problems
}

/// The names of all packages that cargo compiles for a selection of packages and features.
fn compiled(selection: &[&str]) -> Result<BTreeSet<String>> {
    let mut tree = workspace::cargo();
    tree.args(["tree", "--edges", "normal,build", "--prefix", "none", "--format", "{p}"]).args(selection);
    let tree = workspace::output(&mut tree)?;
    Ok(tree.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect())
}

/// Asks cargo what each published crate compiles on its own with its default features.
fn gpu_problems(members: &[&Package]) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    for package in members.iter().filter(|p| p.is_published()) {
        let compiled = compiled(&["--package", &package.name])?;
        for gpu in GPU_PACKAGES.iter().filter(|gpu| compiled.contains(**gpu)) {
            problems.push(format!("{} compiles {gpu} by default", package.name));
        }
    }
    Ok(problems)
}

fn text_problems(root: &Path, files: &[&str]) -> Vec<String> {
    let mut problems = Vec::new();
    for file in files {
        // A file that is deleted but not yet committed, or is not text, has no words.
        if let Ok(text) = std::fs::read_to_string(root.join(file)) {
            problems.extend(words_in(file, &text));
            if file.ends_with(".rs") {
                problems.extend(pages::wide_comments(file, &text));
            }
        }
    }
    problems
}

fn words_in(file: &str, text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    for (n, line) in text.lines().enumerate() {
        for (start, end, advice) in FORBIDDEN {
            let word = format!("{start}{end}");
            if line.contains(&word) {
                problems.push(format!("{file}:{}: `{word}`: {advice}", n + 1));
            }
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::parse_metadata;
    use serde_json::{Value, json};

    type Spec<'a> = (&'a str, &'a [&'a str], &'a [(&'a str, &'a [&'a str])]);

    fn members(specs: &[Spec<'_>]) -> Vec<Package> {
        let packages: Vec<Value> = specs
            .iter()
            .map(|(name, dependencies, features)| {
                json!({
                    "id": name, "name": name, "license": null, "source": null,
                    "dependencies": dependencies.iter().map(|d| json!({ "name": d })).collect::<Vec<_>>(),
                    "features": features.iter().map(|(f, on)| ((*f).to_owned(), json!(on)))
                        .collect::<serde_json::Map<_, _>>(),
                })
            })
            .collect();
        let ids: Vec<&str> = specs.iter().map(|s| s.0).collect();
        parse_metadata(&json!({ "workspace_members": ids, "packages": packages })).unwrap()
    }

    #[test]
    fn features_reach_the_bottom() {
        const BOTTOM: Spec<'_> = ("b", &[], &[("vulkan", &[])]);
        let cases: &[(&[Spec<'_>], &[&str])] = &[
            (&[BOTTOM, ("m", &["b"], &[("vulkan", &["b/vulkan"])])], &[]),
            // Through the middle crate is as good as directly.
            (
                &[
                    BOTTOM,
                    ("m", &["b"], &[("vulkan", &["b?/vulkan"])]),
                    ("t", &["m", "b"], &[("vulkan", &["extra", "m/vulkan"]), ("extra", &[])]),
                ],
                &[],
            ),
            (&[BOTTOM, ("m", &["b"], &[])], &["m does not forward `vulkan`"]),
            (&[BOTTOM, ("m", &["b"], &[("vulkan", &["b/wgpu"])])], &["m/vulkan does not reach b"]),
            (
                &[
                    BOTTOM,
                    ("m", &["b"], &[("vulkan", &["b/vulkan"])]),
                    ("t", &["m"], &[("vulkan", &["other/vulkan"])]),
                ],
                &["t/vulkan does not reach b", "t/vulkan does not reach m"],
            ),
            (&[("b", &[], &[("cube", &[])]), ("t", &["b"], &[])], &[]),
        ];
        for (specs, expected) in cases {
            let packages = members(specs);
            let packages: Vec<&Package> = packages.iter().collect();
            assert_eq!(feature_problems(&packages), *expected, "{specs:?}");
        }
    }

    #[test]
    fn words() {
        let text = format!("fine\n    {}{})\n", "to", "do!(");
        let expected = format!("a.rs:2: `{}{}`: finish it", "to", "do!(");
        assert_eq!(words_in("a.rs", &text), [expected]);
        assert!(words_in("a.rs", "a method is done").is_empty());
    }
}
