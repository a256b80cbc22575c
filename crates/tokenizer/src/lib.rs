//! Text to token ids and back, and conversations to prompts.
//!
//! | you want to | use |
//! |---|---|
//! | the tokenizer of a GGUF file | [`Tokenizer::from_gguf`] |
//! | that of a tokenizer.json | the crate `breakers-tokenizer-json` |
//! | one with rules of your own | [`TokenizerParts`] |
//! | text of tokens as they come, in whole characters | [`TextStream`] |
//! | the prompt that a model was trained on, from messages | [`ChatTemplate`]; its tokens: [`Tokenizer::encode_chat`] |
//!
//! A [`Tokenizer`] comes from the metadata of a GGUF file ([`Tokenizer::from_gguf`]). It has two
//! algorithms: byte-level byte-pair encoding (SmolLM2, Qwen2, Llama 3, GPT-2) and SentencePiece's byte-pair
//! encoding (Gemma, Llama 2). Token ids equal llama.cpp's, also on text that is not language.
//!
//! # Special tokens
//! Control tokens (`<|im_end|>`, `<bos>`) steer a model, so text of a user must not become one by accident:
//! they are recognized only with [`EncodeOptions::parse_special`]. [`Tokenizer::encode_chat`] puts a
//! conversation through a [chat template](ChatTemplate) so that the template's own become tokens and
//! those that a message spells stay text. User-defined tokens (`<tool_call>`, Gemma's runs of
//! newlines) are recognized always.
//!
//! # Round trip
//! `decode(encode(text)) == text` for every text when [`Tokenizer::is_lossless`] holds. Some vocabularies
//! have no token for certain bytes (SmolLM2's lacks a few control characters); these are dropped, as
//! llama.cpp drops them.
//!
//! # Deviations
//! Decoding never tidies text up: llama.cpp takes spaces before punctuation away for some models (GPT-2,
//! Llama 3), which would break the round trip. The space that SentencePiece models put before a text is
//! taken away after a leading control token too.
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
