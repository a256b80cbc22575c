//! Any bytes are a tokenizer.json or a typed error; a tokenizer reads any text or refuses it
//! with a typed error.

#![no_main]

use std::hint::black_box;

use breakers_tokenizer::{DecodeOptions, EncodeOptions};
use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: {
        // Panics inside the crate `tokenizers` are caught and become errors; only those that come out count.
        std::panic::set_hook(Box::new(|_| {}));
    },
    |bytes: &[u8]| {
        let tokenizer = match breakers_tokenizer_json::from_slice(bytes) {
            Ok(tokenizer) => tokenizer,
            Err(error) => {
                black_box(error.to_string());
                return;
            }
        };
        for text in ["", " a  b\n\n", "naïve 10 ▁ 漢字 🙂\0", "breakers! [CLS] <s>"] {
            for parse_special in [false, true] {
                let options = EncodeOptions { parse_special, ..EncodeOptions::default() };
                let Ok(ids) = tokenizer.encode(text, options) else { continue };
                assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
                black_box(tokenizer.decode(&ids, DecodeOptions::default()).expect("ids of the vocabulary"));
            }
            black_box(tokenizer.encode_at_most(3, text, false).is_ok());
        }
    }
);
