//! Files that lie: they are refused with what is wrong, before anything is loaded.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;

use breakers_gguf::{Format, Writer};
use breakers_serve::registry::{
    FileFormat, Finding, NewVersion, Registry, RegistryError, Severity, VersionState,
};
use serde_json::json;

use crate::shelf::{Place, gguf, metadata, serve};
use crate::support::{Client, config};

/// What is found in a file; `Err` if it is refused.
fn findings(
    place: &Place,
    registry: &Registry,
    file: &str,
    bytes: &[u8],
) -> Result<Vec<Finding>, Vec<Finding>> {
    std::fs::write(place.folder.path().join(file), bytes).unwrap();
    match registry.register(&NewVersion::new(file)) {
        Ok(version) => Ok(version.findings),
        Err(RegistryError::Invalid { version, findings }) => {
            // The registry remembers, and does not load it either.
            let known = registry.version(&version).unwrap();
            assert_eq!((known.state, &known.findings), (VersionState::Failed, &findings));
            assert!(matches!(registry.deploy("m", &version, None), Err(RegistryError::Invalid { .. })));
            Err(findings)
        }
        Err(error) => panic!("{error}"),
    }
}

fn has(findings: &[Finding], severity: Severity, part: &str) -> bool {
    findings.iter().any(|finding| finding.severity == severity && finding.message.contains(part))
}

/// A file with one value changed.
fn with(key: &str, value: impl Into<breakers_gguf::Value>) -> Vec<u8> {
    let mut metadata = metadata("says x");
    metadata.insert(key, value).unwrap();
    gguf(metadata, [1.0; 4])
}

fn without(key: &str) -> Vec<u8> {
    let mut metadata = metadata("says x");
    metadata.remove(key).unwrap();
    gguf(metadata, [1.0; 4])
}

#[test]
fn gguf_files_are_checked() {
    let place = Place::new();
    let registry = place.open();
    assert_eq!(findings(&place, &registry, "good.gguf", &gguf(metadata("says x"), [1.0; 4])), Ok(Vec::new()));
    let good = gguf(metadata("says x"), [1.0; 4]);
    let mut large = good.clone();
    // The number of tensors.
    large[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    for (bytes, part) in [
        (b"GGUF".to_vec(), "ends within"),
        (b"a text, and no model".to_vec(), "not a GGUF file"),
        (Vec::new(), "empty"),
        (good[..good.len() - 20].to_vec(), "takes 16 bytes"),
        (large, "the number of tensors"),
        (without("general.architecture"), "general.architecture"),
        (without("tokenizer.ggml.model"), "tokenizer.ggml.model"),
        (with("tokenizer.ggml.merges", vec!["a c"]), "merge"),
        (with("tokenizer.chat_template", "{% for %}"), "template"),
        (with("tokenizer.chat_template", 3u32), "chat_template"),
        (gguf(metadata("says x"), [1.0, f32::NAN, 1.0, 1.0]), "no finite numbers"),
        (gguf(metadata("says x"), [1.0, 1.0, 1.0, f32::INFINITY]), "no finite numbers"),
        (Writer::with_metadata(metadata("x")).write_to(Vec::new()).unwrap().finish().unwrap(), "no tensors"),
    ] {
        let found = findings(&place, &registry, "bad.gguf", &bytes);
        assert!(found.as_ref().is_err_and(|found| has(found, Severity::Error, part)), "{part}: {found:?}");
    }
    assert_eq!(place.shelf.n_loads.load(Ordering::SeqCst), 0);
    for (bytes, part) in [
        (without("tokenizer.chat_template"), "there is no chat template"),
        (with("tokenizer.chat_template", "always the same"), "does not look at the conversation"),
        (with("tokenizer.chat_template", "{{ messages[0].role }}"), "leaves out what the user says"),
        (with("tokenizer.chat_template", "{{ messages[3].content }}"), "refuses a conversation"),
        (
            with("tokenizer.chat_template", "{{ raise_exception('no') }}{{ messages }}"),
            "refuses a conversation",
        ),
        (
            with(
                "tokenizer.chat_template",
                "{{ messages[0].content }}{% if false %}{{ ''.__class__ }}{% endif %}",
            ),
            "__class__",
        ),
        (with("evil.payload", "x"), "evil.payload"),
    ] {
        let found = findings(&place, &registry, "odd.gguf", &bytes);
        assert!(found.as_ref().is_ok_and(|found| has(found, Severity::Warning, part)), "{part}: {found:?}");
    }
    // A scale that is no number, in a format of blocks: half floats have it at the beginning of each block.
    let mut plan = Writer::with_metadata(metadata("says x"));
    plan.declare("token_embd.weight", Format::Q8_0, &[3, 64]).unwrap();
    let mut data = plan.write_to(Vec::new()).unwrap();
    let mut blocks = vec![1u8; 6 * 34];
    blocks[4 * 34..4 * 34 + 2].copy_from_slice(&0x7e00u16.to_le_bytes());
    data.write("token_embd.weight", &blocks).unwrap();
    let found = findings(&place, &registry, "scale.gguf", &data.finish().unwrap());
    assert!(found.as_ref().is_err_and(|found| has(found, Severity::Error, "no finite numbers")), "{found:?}");
}

#[test]
fn findings_are_shown_to_who_registers() {
    let place = Place::new();
    let registry = place.open();
    let server = serve(&registry, config());
    let client = Client::new(&server);
    std::fs::write(place.folder.path().join("a.gguf"), with("evil.payload", "x")).unwrap();
    let found = client.post("/admin/versions", r#"{"path": "a.gguf"}"#);
    assert_eq!(
        (found.status, &found.json()["findings"][0]["severity"]),
        (200, &json!("warning")),
        "{}",
        found.text
    );
    std::fs::write(place.folder.path().join("b.gguf"), "nothing").unwrap();
    let refused = client.post("/admin/versions", r#"{"path": "b.gguf"}"#);
    assert_eq!(
        (refused.status, &refused.json()["error"]["code"]),
        (422, &json!("invalid_file")),
        "{}",
        refused.text
    );
    let version = refused.json()["version"].clone();
    assert_eq!((&version["state"], &version["findings"][0]["severity"]), (&json!("failed"), &json!("error")));
    assert_eq!(client.get("/admin/versions").json()["data"].as_array().unwrap().len(), 2);
}

/// Every truncation and every flipped bit of a small file: an answer, and never a panic.
#[test]
fn damaged_gguf_files_are_answered() {
    let place = Place::new();
    let registry = place.open();
    let good = gguf(metadata("says x"), [1.0; 4]);
    let (mut n_refused, mut n) = (0, 0);
    let mut try_bytes = |bytes: &[u8]| {
        std::fs::write(place.folder.path().join("f.gguf"), bytes).unwrap();
        let result = catch_unwind(AssertUnwindSafe(|| registry.register(&NewVersion::new("f.gguf"))));
        match result.expect("no panic") {
            Ok(_) => {}
            Err(RegistryError::Invalid { findings, .. }) => {
                assert!(!has(&findings, Severity::Error, "panicked"), "{findings:?}");
                n_refused += 1;
            }
            Err(error) => panic!("{error}"),
        }
        n += 1;
    };
    for length in (0..good.len()).step_by(7) {
        try_bytes(&good[..length]);
    }
    for at in (0..good.len()).step_by(3) {
        let mut bytes = good.clone();
        bytes[at] ^= 1 << (at % 8);
        try_bytes(&bytes);
    }
    assert!(n_refused > n / 3, "{n_refused} of {n}");
}

/// A safetensors file with this header and so many bytes of data.
fn file_of(header: &str, n_data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + n_data, 0);
    bytes
}

#[test]
fn safetensors_files_are_checked() {
    let place = Place::new();
    let registry = place.open();
    let good = r#"{"__metadata__": {"a": "b"}, "x": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}, "y":
        {"dtype": "BF16", "shape": [3], "data_offsets": [16, 22]}}"#;
    let bytes = file_of(good, 22);
    assert_eq!(findings(&place, &registry, "good.safetensors", &bytes), Ok(Vec::new()));
    assert!(safetensors::SafeTensors::deserialize(&bytes).is_ok(), "the library of the format agrees");
    let name = registry.versions().unwrap()[0].name.clone();
    assert_eq!(registry.version(&name).unwrap().format, FileFormat::Safetensors);
    let mut endless = file_of("{}", 0);
    endless[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let tensor = |entries: &str| format!("{{{entries}}}");
    for (bytes, part) in [
        (Vec::new(), "0 bytes are no safetensors file"),
        (endless, "the header has"),
        (file_of("{\"x\": ", 0), "no JSON object"),
        (file_of("[]", 0), "no JSON object"),
        (file_of("{}", 0), "no tensors"),
        (file_of(good, 21), "the data at 21"),
        (file_of(good, 23), "1 bytes belong to no tensor"),
        (
            file_of(&tensor(r#""x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}"#), 8),
            "takes 8 bytes",
        ),
        (
            file_of(&tensor(r#""x": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}"#), 8),
            "from 8 to 0",
        ),
        (
            file_of(
                &tensor(
                    r#""x": {"dtype": "F32", "shape": [4294967296, 4294967296, 8], "data_offsets": [0, 8]}"#,
                ),
                8,
            ),
            "too large",
        ),
        (
            file_of(&tensor(r#""x": {"dtype": "F4", "shape": [3], "data_offsets": [0, 1]}"#), 1),
            "no whole bytes",
        ),
        (file_of(&tensor(r#""x": {"dtype": "PICKLE", "shape": [], "data_offsets": [0, 1]}"#), 1), "PICKLE"),
        (file_of(&tensor(r#""x": {"dtype": "U8", "shape": [-1], "data_offsets": [0, 1]}"#), 1), "integer"),
        (
            file_of(
                &tensor(
                    r#""x": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},
                    "y": {"dtype": "U8", "shape": [4], "data_offsets": [2, 6]}"#,
                ),
                6,
            ),
            "overlap",
        ),
        (
            file_of(
                &tensor(
                    r#""x": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]},
                    "x": {"dtype": "U8", "shape": [2], "data_offsets": [2, 4]}"#,
                ),
                4,
            ),
            "is there twice",
        ),
        (
            file_of(
                &tensor(
                    r#""__metadata__": {"a": 1}, "x": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}"#,
                ),
                1,
            ),
            "no object of texts",
        ),
    ] {
        let found = findings(&place, &registry, "bad.safetensors", &bytes);
        assert!(found.as_ref().is_err_and(|found| has(found, Severity::Error, part)), "{part}: {found:?}");
    }
    // Truncations and flipped bits.
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (at % 8);
        for bytes in [&bytes[..at], &flipped] {
            std::fs::write(place.folder.path().join("f.safetensors"), bytes).unwrap();
            let result =
                catch_unwind(AssertUnwindSafe(|| registry.register(&NewVersion::new("f.safetensors"))));
            let is_refused = match result.expect("no panic") {
                Ok(_) => false,
                Err(RegistryError::Invalid { .. }) => true,
                Err(error) => panic!("{error}"),
            };
            // What the library of the format refuses is refused here, too.
            assert!(is_refused || safetensors::SafeTensors::deserialize(bytes).is_ok(), "{at}");
        }
    }
}

#[test]
fn files_stay_within_the_folder() {
    let place = Place::new();
    let outside = Place::new();
    let registry = place.open();
    let good = outside.write("good.gguf", "says x");
    let path = outside.folder.path().join(good);
    let refused = registry.register(&NewVersion::new(&path)).unwrap_err();
    assert!(matches!(refused, RegistryError::Outside { .. }), "{refused}");
    #[cfg(unix)]
    {
        let link = place.folder.path().join("link.gguf");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(matches!(
            registry.register(&NewVersion::new("link.gguf")),
            Err(RegistryError::Outside { .. })
        ));
        // A link within is followed.
        place.write("real.gguf", "says y");
        std::os::unix::fs::symlink("real.gguf", place.folder.path().join("inner.gguf")).unwrap();
        assert!(registry.register(&NewVersion::new("inner.gguf")).is_ok());
    }
    for file in [".", "..", "", "none.gguf"] {
        let refused = registry.register(&NewVersion::new(file)).unwrap_err();
        assert!(
            matches!(refused, RegistryError::Outside { .. } | RegistryError::Read { .. }),
            "{file}: {refused}"
        );
    }
    assert_eq!(registry.versions().unwrap().len(), usize::from(cfg!(unix)));
}
