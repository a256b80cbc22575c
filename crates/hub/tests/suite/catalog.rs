//! The catalog, names and paths.

use std::collections::HashSet;
use std::fs;

use crate::common::{Parted, World};
use breakers_hub::{Catalog, Error, FetchOptions, Hub, Source, SourceKind};
use proptest::prelude::*;

#[test]
fn the_builtin_catalog_is_valid_and_complete() {
    let catalog = Catalog::builtin().unwrap();
    let names: Vec<_> = catalog.entries().iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "smollm2-135m",
            "gemma3-270m",
            "qwen2.5-coder-0.5b",
            "qwen2.5-coder-1.5b",
            "minilm",
            "wordnet",
            "glove-50d"
        ]
    );
    for (name, n_bytes, n_packages, n_files) in [
        ("smollm2-135m", 98_362_432, 1, 1),
        ("gemma3-270m", 253_113_024, 4, 1),
        ("qwen2.5-coder-0.5b", 491_400_064, 6, 1),
        ("qwen2.5-coder-1.5b", 1_117_320_768, 22, 1),
        ("minilm", 91_336_405, 1, 9),
        ("wordnet", 35_402_815, 1, 10),
        ("glove-50d", 80_000_128, 1, 1),
    ] {
        let entry = catalog.get(name).unwrap();
        assert_eq!((entry.bytes(), entry.files.len()), (n_bytes, n_files), "{name}");
        assert!(!entry.license.is_empty() && !entry.title.is_empty());
        let (Source::Pypi { packages } | Source::Npm { packages }) = &entry.sources[0] else {
            panic!("{name}: the first source is one of packages");
        };
        assert_eq!(packages.len(), n_packages, "{name}");
        let unique: HashSet<_> = packages.iter().map(|package| &package.name).collect();
        assert_eq!(unique.len(), n_packages, "{name}");
    }
}

#[test]
fn invalid_catalogs_name_the_field() {
    let thing = Parted::new(2, 3000);
    let good = thing.catalog(&[thing.pypi(), thing.huggingface()]);
    Catalog::from_json(&good).unwrap();
    let check = |from: &str, to: &str, expected: &str| {
        assert!(good.contains(from), "{from}");
        match Catalog::from_json(&good.replacen(from, to, 1)).unwrap_err() {
            Error::InvalidCatalog { field, .. } => assert_eq!(field, expected, "{from} -> {to}"),
            error => panic!("{error}"),
        }
    };
    for bad in ["", "..", ".hidden", "a/b", "-rf", "a b", "C:", "a\\\\b", "a\\u0000b"] {
        check("\"name\":\"thing\"", &format!("\"name\":\"{bad}\""), "name");
    }
    for bad in ["", "../thing.bin", "/thing.bin", "a//b", "a/../b", ".lock", ".parts/x", "a\\\\b"] {
        check("\"name\":\"thing.bin\"", &format!("\"name\":\"{bad}\""), "files");
    }
    for bad in ["-r", "--index-url=x", "git+x", "https:", "a b", "", "../x", "part-1[extra]", "a@b"] {
        check("\"name\":\"part-1\"", &format!("\"name\":\"{bad}\""), "packages");
    }
    check("\"version\":\"1.0\"", "\"version\":\"1.0 --pre\"", "packages");
    check("\"bytes\":3000", "\"bytes\":3001", "pieces");
    check("\"bytes\":3000", "\"bytes\":18446744073709551615", "pieces");
    check("\"bytes\":3000", "\"bytes\":-1", "JSON");
    check("\"kind\":\"pypi\"", "\"kind\":\"ftp\"", "JSON");
    check("\"license\":", "\"licence\":", "JSON");
    check("\"repo\":\"owner/thing\"", "\"repo\":\"owner/../thing\"", "repo");
    check("\"repo\":\"owner/thing\"", "\"repo\":\"thing\"", "repo");
    check("\"revision\":\"0123abcd\"", "\"revision\":\"../x\"", "repo");
    check("\"path\":\"sub/thing.bin\"", "\"path\":\"../thing.bin\"", "sources");
    let hash = crate::common::sha256(&thing.content);
    check(&hash, &hash[1..], "JSON");
    check(&hash, &hash.replace(&hash[..1], "g"), "JSON");
    let twice = format!("[{0},{0}]", &good[1..good.len() - 1]);
    assert!(matches!(Catalog::from_json(&twice), Err(Error::InvalidCatalog { field: "name", .. })));
}

#[test]
fn unknown_names_are_answered_with_the_nearest() {
    let hub = Hub::at("unused");
    let check = |asked: &str, expected: Option<&str>| match hub.entry(asked).unwrap_err() {
        Error::UnknownName { name, nearest, known } => {
            assert_eq!((name.as_str(), nearest.as_deref()), (asked, expected));
            assert_eq!(known.len(), hub.entries().len());
        }
        error => panic!("{error}"),
    };
    check("smollm2-135", Some("smollm2-135m"));
    check("SmolLM2-135M", Some("smollm2-135m"));
    check("smollm", Some("smollm2-135m"));
    check("qwen2.5-coder-1.5", Some("qwen2.5-coder-1.5b"));
    check("qwen-2.5-coder-0.5b", Some("qwen2.5-coder-0.5b"));
    check("gemma", Some("gemma3-270m"));
    check("mini-lm", Some("minilm"));
    check("completely-different-thing", None);
    check("", None);
}

#[test]
fn paths_pass_through() {
    let world = World::new();
    let hub = world.hub("[]");
    let file = world.at("model.gguf");
    fs::write(&file, b"GGUF").unwrap();
    let options = FetchOptions::default();
    for path in [file.as_path(), world.folder.path()] {
        let resolved = hub.resolve(path, &options, &mut ()).unwrap();
        assert_eq!((resolved.path.as_path(), resolved.name), (path, None));
        assert_eq!(resolved.files, [path]);
    }
    let missing =
        |path: &str| matches!(hub.resolve(path, &options, &mut ()), Err(Error::PathNotFound { .. }));
    assert!(missing("no/such/folder"));
    assert!(missing("./minilm2"));
    assert!(missing("model-that-is-not-there.gguf"));
    assert!(!missing("no-such-name"));
    assert!(!world.cache().exists(), "nothing was fetched, so nothing was created");
}

#[test]
fn sources_are_chosen_by_words() {
    let check = |text: &str, expected: Option<&[SourceKind]>| {
        assert_eq!(SourceKind::parse_list(text).ok().as_deref(), expected, "{text}");
    };
    check("auto", Some(&[]));
    check("", Some(&[]));
    check("pypi", Some(&[SourceKind::Pypi]));
    check("huggingface, npm", Some(&[SourceKind::HuggingFace, SourceKind::Npm]));
    check("hf", Some(&[SourceKind::HuggingFace]));
    check("ftp", None);
    check("pypi,,npm", None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever a catalog says, it is either refused or safe to use.
    #[test]
    fn catalogs_never_panic(name in "\\PC{0,12}", file in "\\PC{0,12}", size in any::<u64>(), cut in 0_usize..400) {
        let thing = Parted::new(2, 100);
        let good = thing.catalog(&[thing.pypi(), thing.huggingface()]);
        let encode = |text: &str| serde_json::to_string(text).unwrap();
        let changed = good
            .replace("\"thing\"", &encode(&name))
            .replace("\"thing.bin\"", &encode(&file))
            .replacen("100", &size.to_string(), 1);
        if let Ok(catalog) = Catalog::from_json(&changed) {
            let entry = &catalog.entries()[0];
            prop_assert!(!entry.name.contains(['/', '\\']) && !entry.name.starts_with(['.', '-']));
            prop_assert!(!entry.files[0].name.contains("..") && !entry.files[0].name.starts_with(['/', '.']));
        }
        let mut end = cut.min(good.len());
        while !good.is_char_boundary(end) {
            end -= 1;
        }
        prop_assert!(Catalog::from_json(&good[..end]).is_err());
    }

    /// Any word as a name gives a result or a typed error.
    #[test]
    fn names_never_panic(name in "\\PC{0,40}") {
        let hub = Hub::at("unused");
        let known = hub.entries().iter().any(|entry| entry.name == name);
        prop_assert_eq!(hub.entry(&name).is_ok(), known);
    }
}
