//! Tokenizers and chat templates against their originals, and files that mean harm.

mod chat;
mod controls;
#[path = "../../../gguf/tests/container/models.rs"]
mod models;
mod tokenizer;
mod tokenizer_hostile;
