//! Tokenizers and chat templates compared with the originals, and malicious files.

mod chat;
mod controls;
#[path = "../../../gguf/tests/container/models.rs"]
mod models;
mod tokenizer;
mod tokenizer_hostile;
