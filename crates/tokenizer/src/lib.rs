//! Turns text into token ids and back, and conversations into prompts.
//!
//! | to | use |
//! |---|---|
//! | read the tokenizer of a GGUF file | [`Tokenizer::from_gguf`] |
//! | read a tokenizer.json | the crate `breakers-tokenizer-json` |
//! | build one with rules of your own | [`TokenizerParts`] |
//! | turn tokens into text as they arrive, in whole characters | [`TextStream`] |
//! | turn messages into the prompt that a model was trained on | [`ChatTemplate`]; its tokens: [`Tokenizer::encode_chat`] |
//!
//! A [`Tokenizer`] comes from the metadata of a GGUF file ([`Tokenizer::from_gguf`]). It has two algorithms:
//! byte-level byte-pair encoding (SmolLM2, Qwen2, Llama 3, GPT-2) and SentencePiece's byte-pair encoding
//! (Gemma, Llama 2). Token ids equal llama.cpp's, even for text that is not language.
//!
//! # Special tokens
//! Control tokens (`<|im_end|>`, `<bos>`) steer a model, so a user's text must not become one by accident:
//! they are recognized only with [`EncodeOptions::parse_special`]. [`Tokenizer::encode_chat`] formats a
//! conversation with a [chat template](ChatTemplate): the template's own control tokens become tokens, and
//! spellings of them in messages remain text. User-defined tokens (`<tool_call>`, Gemma's runs of newlines)
//! are always recognized.
//!
//! # Round trip
//! `decode(encode(text)) == text` for every text when [`Tokenizer::is_lossless`] holds. Some vocabularies
//! have no token for certain bytes (SmolLM2's lacks a few control characters); these are dropped, as
//! llama.cpp drops them.
//!
//! # Deviations
//! Decoding never cleans up text. For some models (GPT-2, Llama 3) llama.cpp removes spaces before
//! punctuation, which would break the round trip. The space that SentencePiece models put before a text is
//! also removed after a leading control token.
//!
//! # Example
//! ```
//! use breakers_tokenizer::{DecodeOptions, EncodeOptions, Tokenizer};
//!
//! # fn main() -> Result<(), breakers_tokenizer::Error> {
//! let tokenizer = Tokenizer::bytes();
//! let ids = tokenizer.encode("héllo", EncodeOptions::default())?;
//! assert_eq!(ids, [104, 195, 169, 108, 108, 111]);
//! assert_eq!(tokenizer.decode(&ids, DecodeOptions::default())?, "héllo");
//! # Ok(())
//! # }
//! ```

mod chat;
mod error;
mod tokenizer;

pub use chat::{ChatTemplate, TemplateError};
pub use error::{Error, Result};
pub use tokenizer::{
    Control, DecodeOptions, END_NAMES, Encode, EncodeOptions, Piece, TextStream, Tokenizer, TokenizerParts,
    alphabet,
};
