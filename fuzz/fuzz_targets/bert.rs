//! Any `config.json` and `model.safetensors` are a sentence model that embeds a text, or a typed error. The
//! input is the configuration, a zero byte, and the weights.

#![no_main]

use breakers_core::Embedder as _;
use std::hint::black_box;

use breakers_embed::Bert;
use breakers_model::LoadOptions;
use libfuzzer_sys::fuzz_target;

const TOKENIZER: &str = include_str!("../seeds/tokenizer_json/wordpiece.json");

fuzz_target!(
    init: {
        // Panics inside the crate `tokenizers` are caught and become errors; only those that come out count.
        std::panic::set_hook(Box::new(|_| {}));
    },
    |bytes: &[u8]| {
        let at = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
        let (config, weights) = (&bytes[..at], bytes.get(at + 1..).unwrap_or_default());
        let folder = std::env::temp_dir().join(format!("breakers-fuzz-bert-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder for files that are thrown away");
        let files = [("config.json", config), ("model.safetensors", weights), ("tokenizer.json", TOKENIZER.as_bytes())];
        for (name, bytes) in files {
            std::fs::write(folder.join(name), bytes).expect("a file");
        }
        match Bert::load(&folder, &LoadOptions::default().device) {
            Ok(model) => drop(black_box(model.embed(&["breakers!"]).is_ok())),
            Err(error) => drop(black_box(error.to_string())),
        }
        let _ = std::fs::remove_dir_all(&folder);
    }
);
