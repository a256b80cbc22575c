//! The metadata of any GGUF file is a tokenizer and a chat template, or a typed error; a
//! tokenizer reads any text.

#![no_main]

use std::hint::black_box;

use breakers_core::Message;
use breakers_gguf::File;
use breakers_tokenizer::{ChatTemplate, DecodeOptions, EncodeOptions, Tokenizer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = File::from_bytes(bytes.to_vec()) else { return };
    match Tokenizer::from_gguf(&file) {
        Ok(tokenizer) => read(&tokenizer, &String::from_utf8_lossy(bytes)),
        Err(error) => drop(black_box(error.to_string())),
    }
    match ChatTemplate::from_gguf(&file) {
        Ok(Some(template)) => drop(black_box(template.render(&[Message::user("Hi!")], None, true))),
        Ok(None) => {}
        Err(error) => drop(black_box(error.to_string())),
    }
});

fn read(tokenizer: &Tokenizer, text: &str) {
    for text in ["", " a  b\n\n", "naïve 10 ▁ 漢字 🙂\0", text] {
        for parse_special in [false, true] {
            let options = EncodeOptions { parse_special, ..EncodeOptions::default() };
            let Ok(ids) = tokenizer.encode(text, options) else { continue };
            assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()), "an id outside of the vocabulary");
            let plain = tokenizer.decode(&ids, DecodeOptions::default()).expect("ids of the vocabulary");
            black_box(plain);
        }
        let options = EncodeOptions { add_special: false, parse_special: false };
        if let (true, Ok(ids)) = (tokenizer.is_lossless(), tokenizer.encode(text, options)) {
            let options = DecodeOptions { skip_special: false, ..DecodeOptions::default() };
            assert_eq!(tokenizer.decode(&ids, options).expect("ids of the vocabulary"), text);
        }
    }
}
