//! Any text is a catalog of models or a typed error; no path of a catalog leads out of its folder.

#![no_main]

use std::hint::black_box;
use std::path::{Component, Path};

use breakers_hub::Catalog;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let catalog = match Catalog::from_json(text) {
        Ok(catalog) => catalog,
        Err(error) => {
            black_box(error.to_string());
            return;
        }
    };
    for entry in catalog.entries() {
        let files = entry.files.iter().map(|file| file.name.as_str());
        for path in files.chain([entry.name.as_str()]) {
            let inside = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
            assert!(inside && !path.is_empty(), "{path:?}");
        }
        black_box((entry.bytes(), entry.sources.iter().map(|source| source.describe()).collect::<Vec<_>>()));
    }
});
