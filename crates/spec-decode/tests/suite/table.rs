//! Drafters by name: each gives the tokens of plain decoding.

use breakers_core::{SamplingConfig, TokenId};
use breakers_spec_decode::{
    Build, Config, DRAFTERS, DraftLength, DraftModel, DrafterSpec, Error, TokenizerFingerprint,
};

use crate::support::{fingerprint, plain, run};
use crate::toy::{Rules, Toy, perturbed, repetitive};

const VOCAB: usize = 40;

/// A name that parses.
fn full_name(name: &str, build: &Build) -> String {
    match build {
        Build::WithModel(_) => format!("{name}:small"),
        _ => name.to_owned(),
    }
}

#[test]
fn every_drafter_of_the_table_gives_the_tokens_of_plain_decoding() {
    let target = repetitive(VOCAB, 3);
    let similar = perturbed(target.clone(), 0.2, 1);
    let prompt: Vec<TokenId> = (0..25).collect();
    for entry in DRAFTERS {
        let spec: DrafterSpec = full_name(entry.name, &entry.build).parse().unwrap();
        for (sampling, draft_length) in [
            (SamplingConfig::greedy(), DraftLength::Fixed(5)),
            (SamplingConfig::greedy(), DraftLength::Adaptive { max: 8 }),
            (SamplingConfig::temperature(0.5), DraftLength::Fixed(4)),
        ] {
            let config = Config { max_tokens: 120, sampling, draft_length, seed: 3, ..Config::default() };
            let mut loaded = Vec::new();
            let drafter = spec
                .make(|name| -> Result<_, Error> {
                    loaded.push(name.to_owned());
                    let mut model = Box::new(Toy::new(VOCAB, similar.clone()));
                    // A draft model keeps what it has fed until the next proposal.
                    model.rules = Rules::Trait;
                    Ok(DraftModel { model, tokenizer: fingerprint(), target_tokenizer: fingerprint() })
                })
                .unwrap();
            assert_eq!(loaded.iter().map(String::as_str).collect::<Vec<_>>(), Vec::from_iter(spec.model()));
            let result = run(&target, VOCAB, 1 << 20, drafter, &prompt, &config);
            // A model that samples gives the distribution of plain decoding, not its tokens.
            if config.sampling.is_greedy() || entry.name != "model" {
                let (expected, _) = plain(&target, &prompt, &config, 1 << 20);
                assert_eq!(result.tokens, expected, "{spec}, {config:?}");
            }
            // An adaptive length may be 0 where the machine says that drafts do not pay.
            if entry.name == "none" || matches!(config.draft_length, DraftLength::Fixed(_)) {
                assert_eq!(result.stats.accepted > 0, entry.name != "none", "{spec}, {config:?}");
            }
        }
    }
}

#[test]
fn names_are_known_or_listed() {
    for entry in DRAFTERS {
        let name = full_name(entry.name, &entry.build);
        assert_eq!(name.parse::<DrafterSpec>().unwrap().to_string(), name);
        assert_eq!(DRAFTERS.iter().filter(|other| other.name == entry.name).count(), 1);
    }
    assert_eq!(DrafterSpec::default().to_string(), "none");
    // A model's name may be a path.
    let spec: DrafterSpec = "model:c:/models/a.gguf".parse().unwrap();
    assert_eq!(spec.model(), Some("c:/models/a.gguf"));
    for name in ["", "n-gram", "model", "model:", "ngram:smollm2", "None", ":x"] {
        match name.parse::<DrafterSpec>() {
            Err(Error::UnknownDrafter { name: found, known }) => {
                assert_eq!(found, name);
                assert_eq!(known, "none, ngram, ngram-frequent, model:NAME, model-likely:NAME");
            }
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn a_model_with_another_tokenizer_is_refused() {
    let spec: DrafterSpec = "model:small".parse().unwrap();
    let other = TokenizerFingerprint::from_tokens(["x"]);
    let made = spec.make(|_| -> Result<_, Error> {
        let model = Box::new(Toy::repetitive(VOCAB, 1));
        Ok(DraftModel { model, tokenizer: other, target_tokenizer: fingerprint() })
    });
    assert!(matches!(made.map(|_| ()), Err(Error::TokenizerMismatch { found, .. }) if found == other));
}

#[test]
fn the_table_is_the_one_in_the_documentation() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/speculative-decoding.md");
    let page = std::fs::read_to_string(page).unwrap();
    let row = |entry: &breakers_spec_decode::Entry| format!("| `{}` | {} |\n", entry.name, entry.paper);
    let table: String = DRAFTERS.iter().map(row).collect();
    assert!(
        page.contains(&format!("| drafter | paper |\n|---|---|\n{table}\n")),
        "docs/speculative-decoding.md lacks:\n{table}"
    );
}
