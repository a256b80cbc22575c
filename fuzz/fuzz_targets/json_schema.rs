//! A schema and an instance, a line each: whatever the schema, compiling ends, and what is accepted is JSON.
#![no_main]

use std::sync::Arc;

use breakers_core::{Constraint as _, Json, TokenMask, Vocabulary as _};
use breakers_structured::{Compiler, Grammar, Order, SchemaOptions};
use libfuzzer_sys::fuzz_target;

#[allow(dead_code)]
#[path = "../../crates/structured/tests/suite/bytes.rs"]
mod bytes;

fuzz_target!(|data: &str| {
    let (schema, instance) = data.split_once('\n').unwrap_or((data, "null"));
    let Ok(schema) = Json::parse(schema) else { return };
    let compiler = Compiler::new(Arc::new(bytes::Bytes)).expect("a vocabulary with an end");
    let mut mask = TokenMask::none(bytes::Bytes.n_tokens());
    for order in [Order::Declared, Order::Any] {
        let options = SchemaOptions::default().with_strict(false).with_order(order);
        let Ok(mut constraint) = compiler.constraint(&Grammar::JsonSchemaWith(schema.clone(), options))
        else {
            continue;
        };
        let mut is_accepted = true;
        for byte in instance.bytes() {
            let has_mask = constraint.allowed(&mut mask).is_ok();
            is_accepted = constraint.advance(byte.into()).is_ok();
            assert!(is_accepted || !has_mask || !mask.is_allowed(byte.into()), "the mask allows {byte}");
            if !is_accepted {
                break;
            }
        }
        if is_accepted && constraint.may_end().unwrap_or(false) {
            Json::parse(instance).expect("what is accepted is JSON");
        }
    }
});
