//! Formats that the specification defines, as expressions. Each accepts only what every reader of the format
//! takes: where readers differ, the narrower reading.

use std::sync::LazyLock;

const DATE: &str = concat!(
    "(?:(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])-",
    "(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))",
    "|(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)-02-29)",
);
/// A second of 60 is known at the end of a day in UTC alone.
const TIME: &str = concat!(
    r"(?:(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]+)?(?:[zZ]|[+\-](?:[01][0-9]|2[0-3]):[0-5][0-9])",
    r"|23:59:60(?:\.[0-9]+)?[zZ])",
);
const DURATION: &str = concat!(
    "P(?:[0-9]+W|(?:[0-9]+Y(?:[0-9]+M(?:[0-9]+D)?)?|[0-9]+M(?:[0-9]+D)?|[0-9]+D)",
    "(?:T(?:[0-9]+H(?:[0-9]+M(?:[0-9]+S)?)?|[0-9]+M(?:[0-9]+S)?|[0-9]+S))?",
    "|T(?:[0-9]+H(?:[0-9]+M(?:[0-9]+S)?)?|[0-9]+M(?:[0-9]+S)?|[0-9]+S))",
);
const IPV4: &str = concat!(
    r"(?:(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])\.){3}",
    "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])",
);
/// Without two hyphens in the third and fourth place, which announce letters beyond ASCII.
const LABEL: &str = concat!(
    "[A-Za-z0-9](?:[A-Za-z0-9\\-]?[A-Za-z0-9]|[A-Za-z0-9\\-][A-Za-z0-9\\-][A-Za-z0-9]",
    "|[A-Za-z0-9\\-](?:[A-Za-z0-9][A-Za-z0-9\\-]|-[A-Za-z0-9])[A-Za-z0-9\\-]{0,58}[A-Za-z0-9])?",
);
const UUID: &str = "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}";
const ATOM: &str = "[A-Za-z0-9!#$%&'*+\\-/=?^_`{|}~]+";
const JSON_POINTER: &str = "(?:/(?:[^/~]|~[01])*)*";
const URI_TEMPLATE: &str = concat!(
    r#"(?:[^\x00-\x20"'%<>\\^`{|}\x7f]|%[0-9A-Fa-f]{2}|"#,
    r"\{[+#./;?&=,!@|]?(?:[A-Za-z0-9_]|%[0-9A-Fa-f]{2})(?:[A-Za-z0-9_.]|%[0-9A-Fa-f]{2})*(?::[1-9][0-9]{0,3}|\*)?",
    r"(?:,(?:[A-Za-z0-9_]|%[0-9A-Fa-f]{2})(?:[A-Za-z0-9_.]|%[0-9A-Fa-f]{2})*(?::[1-9][0-9]{0,3}|\*)?)*\})*",
);
/// What follows a path.
const TAIL: &str = r"(?:\?(?:[P/?])*)?(?:#(?:[P/?])*)?";

/// The expressions by name, each for the whole of a text.
static EXPRESSIONS: LazyLock<Vec<(&str, String)>> = LazyLock::new(|| {
    let hostname = format!(r"{LABEL}(?:\.{LABEL})*");
    let email = format!(r"{ATOM}(?:\.{ATOM})*@(?:{hostname}|\[{IPV4}\])");
    // `[P]` and the like stand for the characters of a segment, an escape among them.
    let characters = |text: &str| {
        let some = |others: &str| format!("(?:[A-Za-z0-9\\-._~!$&'()*+,;={others}]|%[0-9A-Fa-f]{{2}})");
        text.replace("[P/?]", &some(":@/?"))
            .replace("[P/]", &some(":@/"))
            .replace("[P]", &some(":@"))
            .replace("[N]", &some("@"))
            .replace("[U]", &some(":"))
            .replace("[H]", &some(""))
    };
    let scheme = r"[A-Za-z][A-Za-z0-9+.\-]*:";
    let authority = r"//(?:(?:[U])*@)?(?:[H])*(?::[0-9]*)?(?:/(?:[P/])*)?";
    let rootless = "(?:/?(?:[P])(?:[P/])*|/)?";
    let uri = characters(&format!("{scheme}(?:{authority}|{rootless}){TAIL}"));
    let reference = characters(&format!(
        "(?:{scheme}(?:{authority}|{rootless})|{authority}|/(?:(?:[P])(?:[P/])*)?|(?:(?:[N])+(?:/(?:[P/])*)?)?){TAIL}"
    ));
    let anchored = |text: &str| format!("^(?:{text})$");
    let named = |name, text: &str| (name, anchored(text));
    vec![
        named("date-time", &format!("{DATE}[tT]{TIME}")),
        named("date", DATE),
        named("time", TIME),
        named("duration", DURATION),
        named("email", &email),
        named("hostname", &hostname),
        named("ipv4", IPV4),
        named("ipv6", &ipv6()),
        named("uuid", UUID),
        named("uri", &uri),
        named("uri-reference", &reference),
        named("uri-template", URI_TEMPLATE),
        named("json-pointer", JSON_POINTER),
        named("relative-json-pointer", &format!("(?:0|[1-9][0-9]*)(?:#|{JSON_POINTER})")),
    ]
});

/// Groups before two colons and groups after them, or all eight.
fn ipv6() -> String {
    let group = "[0-9A-Fa-f]{1,4}";
    let mut options = vec![format!("(?:{group}:){{7}}{group}"), format!("(?:{group}:){{6}}{IPV4}")];
    for before in 0..8 {
        let head = match before {
            0 => String::new(),
            1 => group.to_owned(),
            _ => format!("{group}(?::{group}){{{}}}", before - 1),
        };
        let tail =
            if before < 7 { format!("(?:{group}(?::{group}){{0,{}}})?", 6 - before) } else { String::new() };
        options.push(format!("{head}::{tail}"));
        if before < 6 {
            options.push(format!("{head}::(?:{group}:){{0,{}}}{IPV4}", 5 - before));
        }
    }
    options.join("|")
}

/// Characters of a host name.
pub(crate) const HOST_NAME: usize = 253;

/// Formats of the specification that are not enforced.
const OTHERS: [&str; 5] = ["idn-email", "idn-hostname", "iri", "iri-reference", "regex"];

/// What a format means here.
pub(super) enum Meaning {
    /// An expression that texts must match.
    Expression(&'static str),
    /// The specification defines it, and it is not enforced.
    Missing,
    /// Nobody defines it: an annotation.
    Annotation,
}

pub(super) fn meaning(format: &str) -> Meaning {
    match EXPRESSIONS.iter().find(|(name, _)| *name == format) {
        Some((_, expression)) => Meaning::Expression(expression),
        None if OTHERS.contains(&format) => Meaning::Missing,
        None => Meaning::Annotation,
    }
}

/// Whether the specification defines it.
pub(super) fn is_defined(format: &str) -> bool {
    !matches!(meaning(format), Meaning::Annotation)
}

/// The expression of a format, `None` for an annotation, and an error where it is not enforced.
pub(crate) fn expression_of_format(format: &str) -> Result<Option<&'static str>, ()> {
    match meaning(format) {
        Meaning::Expression(expression) => Ok(Some(expression)),
        Meaning::Annotation => Ok(None),
        Meaning::Missing => Err(()),
    }
}
