//! Any text is the name of a format, a source, a drafter or an instruction set, or nothing; a name that is
//! read is written again.

#![no_main]

use std::hint::black_box;

use breakers_cpu::Isa;
use breakers_gguf::{Encoding, GroupFormat};
use breakers_hub::{Digest, SourceKind};
use breakers_spec_decode::DrafterSpec;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Some(encoding) = Encoding::parse(text) {
        assert_eq!(Encoding::parse(&encoding.name()), Some(encoding));
    }
    if let Some(format) = GroupFormat::parse(text) {
        assert_eq!(GroupFormat::parse(&format.name()), Some(format));
    }
    if let Ok(isa) = text.parse::<Isa>() {
        assert_eq!(isa.to_string().parse::<Isa>().ok(), Some(isa));
    }
    for kind in SourceKind::parse_list(text).into_iter().flatten() {
        assert_eq!(kind.to_string().parse::<SourceKind>().ok(), Some(kind));
    }
    if let Ok(drafter) = text.parse::<DrafterSpec>() {
        assert_eq!(drafter.to_string(), text);
    }
    if let Some(digest) = Digest::from_hex(text) {
        assert_eq!(Digest::from_hex(&digest.to_string()), Some(digest));
    }
    black_box(text);
});
