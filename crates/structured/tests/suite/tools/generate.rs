//! Calls with arguments that are hard to write and to read.

use breakers_core::{Json, Tool};
use serde_json::{Map, Value, json};

/// A reproducible source of chance.
pub(super) struct Chance(pub(super) u64);

impl Chance {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    pub(super) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub(super) fn is(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub(super) fn of<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }
}

/// A call that is to be written.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) name: String,
    pub(super) arguments: Map<String, Value>,
}

/// Pieces of strings: quotes, brackets, every format's markers and parts of them, escapes, all planes of
/// Unicode, white space.
const PIECES: &[&str] = &[
    "a",
    "Oslo",
    " ",
    "\n",
    "\n\n",
    "\t",
    "\r\n",
    "\"",
    "'",
    "\\",
    "\\\"",
    "\\n",
    "\\u00e9",
    "{",
    "}",
    "}}",
    "[",
    "]",
    "{\"name\": \"f\", \"arguments\": {}}",
    "</",
    "<tool_call>",
    "</tool_call>",
    "\n</tool_call>\n<tool_call>\n",
    "</tool_call",
    "<function=f>",
    "</function>",
    "<parameter=x>",
    "</parameter>",
    "\n</parameter>\n",
    "</param",
    "\n</parameter>\n</function>",
    "[TOOL_CALLS]",
    "[ARGS]",
    "[TOOL_CALLS]f[ARGS]{}",
    "<|python_tag|>",
    "; ",
    "```",
    "```tool_code\n",
    "\n```",
    "<|tool_call>",
    "<tool_call|>",
    "<|\"|>",
    "<|\"",
    "<|",
    "call:f{",
    ",",
    ":",
    "é",
    "ß",
    "東京",
    "😀",
    "👩‍👩‍👧",
    "\u{fffd}",
    "\u{0}",
    "\u{1b}",
    "\u{7f}",
    "\u{2028}",
    "\u{10ffff}",
    "null",
    "true",
    "12",
    "-0.5e3",
    "None",
    "<",
    ">",
    "|",
    "&amp;",
    "/*",
    "#",
    "//",
];

pub(super) fn text(chance: &mut Chance) -> String {
    let n = chance.below(5);
    (0..n).map(|_| *chance.of(PIECES)).collect()
}

fn number(chance: &mut Chance) -> Value {
    match chance.below(12) {
        0 => json!(0),
        1 => json!(-1),
        2 => json!(i64::MAX),
        3 => json!(i64::MIN),
        4 => json!(u64::MAX),
        5 => json!(f64::MAX),
        6 => json!(f64::MIN_POSITIVE),
        7 => json!(-0.1),
        8 => json!(1e-7),
        9 => json!(9_007_199_254_740_993_u64),
        _ => json!(chance.below(1000)),
    }
}

/// A value of any type.
fn any(chance: &mut Chance, depth: usize) -> Value {
    match chance.below(if depth > 2 { 5 } else { 8 }) {
        0 => Value::Null,
        1 => json!(chance.is(50)),
        2 => number(chance),
        3 | 4 => json!(text(chance)),
        5 => Value::Array((0..chance.below(4)).map(|_| any(chance, depth + 1)).collect()),
        _ => Value::Object(free(chance, |chance| any(chance, depth + 1))),
    }
}

fn free(chance: &mut Chance, mut value: impl FnMut(&mut Chance) -> Value) -> Map<String, Value> {
    let keys = ["a", "b_c", "Ding", "x-y", "z.1"];
    (0..chance.below(4)).map(|i| (keys[i].to_owned(), value(chance))).collect()
}

/// Functions with all that a schema commonly says.
pub(super) fn tools() -> Vec<Tool> {
    let tool = |name: &str, parameters: Value| Tool::new(name, Json::parse(&parameters.to_string()).unwrap());
    vec![
        tool(
            "search",
            json!({
                "type": "object",
                "properties": {
                    "query": { "type": "string", "description": "What to look for" },
                    "limit": { "type": "integer" },
                    "tags": { "type": "array", "items": { "type": "string" } },
                    "options": {
                        "type": "object",
                        "properties": {
                            "deep": { "type": "boolean" },
                            "ratio": { "type": "number" },
                            "note": { "type": ["string", "null"] },
                        },
                        "required": ["deep"],
                        "additionalProperties": false,
                    },
                },
                "required": ["query"],
                "additionalProperties": false,
            }),
        ),
        tool(
            "run-shell.v2",
            json!({
                "type": "object",
                "properties": {
                    "command": { "type": "string" },
                    "env": { "type": "object", "additionalProperties": { "type": "string" } },
                    "mode": { "enum": ["fast", "slow \"mode\"", ""] },
                },
                "required": ["command", "mode"],
                "additionalProperties": false,
            }),
        ),
        tool("noop", json!({ "type": "object", "properties": {}, "additionalProperties": false })),
        tool("anything", json!({ "type": "object" })),
        tool(
            "größe_東",
            json!({
                "type": "object",
                "properties": {
                    "value": { "type": ["string", "integer", "boolean", "null", "array"] },
                    "node": { "$ref": "#/$defs/node" },
                },
                "required": ["value"],
                "additionalProperties": false,
                "$defs": { "node": {
                    "type": "object",
                    "properties": { "text": { "type": "string" }, "next": { "$ref": "#/$defs/node" } },
                    "required": ["text"],
                    "additionalProperties": false,
                } },
            }),
        ),
    ]
}

fn node(chance: &mut Chance, depth: usize) -> Value {
    let mut out = Map::new();
    out.insert("text".to_owned(), json!(text(chance)));
    if depth < 3 && chance.is(40) {
        out.insert("next".to_owned(), node(chance, depth + 1));
    }
    Value::Object(out)
}

/// A call of one of these functions, with arguments that suit it, in declared order.
pub(super) fn call(chance: &mut Chance) -> Call {
    let mut out = Map::new();
    let name = *chance.of(&["search", "search", "run-shell.v2", "noop", "anything", "größe_東"]);
    let mut put = |key: &str, value: Value| {
        out.insert(key.to_owned(), value);
    };
    match name {
        "search" => {
            put("query", json!(text(chance)));
            if chance.is(50) {
                put("limit", json!(chance.below(5) as i64 - 2));
            }
            if chance.is(50) {
                put("tags", Value::Array((0..chance.below(4)).map(|_| json!(text(chance))).collect()));
            }
            if chance.is(50) {
                let mut options = Map::new();
                options.insert("deep".to_owned(), json!(chance.is(50)));
                if chance.is(50) {
                    options.insert("ratio".to_owned(), number(chance));
                }
                if chance.is(50) {
                    let note = if chance.is(30) { Value::Null } else { json!(text(chance)) };
                    options.insert("note".to_owned(), note);
                }
                put("options", Value::Object(options));
            }
        }
        "run-shell.v2" => {
            put("command", json!(text(chance)));
            if chance.is(50) {
                put("env", Value::Object(free(chance, |chance| json!(text(chance)))));
            }
            put("mode", json!(chance.of(&["fast", "slow \"mode\"", ""])));
        }
        "noop" => {}
        "anything" => {
            free(chance, |chance| any(chance, 0)).into_iter().for_each(|(key, value)| put(&key, value))
        }
        _ => {
            let value = match chance.below(5) {
                0 => json!(chance.below(2000) as i64 - 1000),
                1 => json!(chance.is(50)),
                2 => Value::Null,
                3 => Value::Array((0..chance.below(3)).map(|_| any(chance, 1)).collect()),
                _ => json!(text(chance)),
            };
            put("value", value);
            if chance.is(50) {
                put("node", node(chance, 0));
            }
        }
    }
    Call { name: name.to_owned(), arguments: out }
}
