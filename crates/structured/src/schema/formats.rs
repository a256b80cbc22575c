//! Formats that the specification defines.

/// Formats that the engine enforces.
const OF_ENGINE: [&str; 10] =
    ["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"];

/// Formats that are enforced as expressions.
const EXPRESSIONS: [(&str, &str); 3] = [
    ("json-pointer", "^(?:/(?:[^/~]|~[01])*)*$"),
    (
        "uri-template",
        concat!(
            r#"^(?:[^\x00-\x20"'%<>\\^`{|}\x7f]|%[0-9A-Fa-f]{2}|"#,
            r"\{[+#./;?&=,!@|]?(?:[A-Za-z0-9_]|%[0-9A-Fa-f]{2})(?:[A-Za-z0-9_.]|%[0-9A-Fa-f]{2})*(?::[1-9][0-9]{0,3}|\*)?",
            r"(?:,(?:[A-Za-z0-9_]|%[0-9A-Fa-f]{2})(?:[A-Za-z0-9_.]|%[0-9A-Fa-f]{2})*(?::[1-9][0-9]{0,3}|\*)?)*\})*$",
        ),
    ),
    (
        "uri-reference",
        concat!(
            r"^(?:(?:[A-Za-z][A-Za-z0-9+.\-]*:)?//(?:(?:[A-Za-z0-9\-._~!$&'()*+,;=:]|%[0-9A-Fa-f]{2})*@)?",
            r"(?:[A-Za-z0-9\-._~!$&'()*+,;=]|%[0-9A-Fa-f]{2})*(?::[0-9]*)?(?:/(?:[A-Za-z0-9\-._~!$&'()*+,;=:@/]|%[0-9A-Fa-f]{2})*)?",
            r"|[A-Za-z][A-Za-z0-9+.\-]*:(?:/?(?:[A-Za-z0-9\-._~!$&'()*+,;=:@]|%[0-9A-Fa-f]{2})(?:[A-Za-z0-9\-._~!$&'()*+,;=:@/]|%[0-9A-Fa-f]{2})*)?",
            r"|/(?:(?:[A-Za-z0-9\-._~!$&'()*+,;=:@]|%[0-9A-Fa-f]{2})(?:[A-Za-z0-9\-._~!$&'()*+,;=:@/]|%[0-9A-Fa-f]{2})*)?",
            r"|(?:(?:[A-Za-z0-9\-._~!$&'()*+,;=@]|%[0-9A-Fa-f]{2})+(?:/(?:[A-Za-z0-9\-._~!$&'()*+,;=:@/]|%[0-9A-Fa-f]{2})*)?)?)",
            r"(?:\?(?:[A-Za-z0-9\-._~!$&'()*+,;=:@/?]|%[0-9A-Fa-f]{2})*)?(?:#(?:[A-Za-z0-9\-._~!$&'()*+,;=:@/?]|%[0-9A-Fa-f]{2})*)?$",
        ),
    ),
];

/// Formats of the specification that are not enforced.
const OTHERS: [&str; 6] =
    ["idn-email", "idn-hostname", "iri", "iri-reference", "relative-json-pointer", "regex"];

/// What a format means here.
pub(super) enum Meaning {
    /// The engine knows it.
    Engine,
    /// An expression that texts must match.
    Expression(&'static str),
    /// The specification defines it, and it is not enforced.
    Missing,
    /// Nobody defines it: an annotation.
    Annotation,
}

pub(super) fn meaning(format: &str) -> Meaning {
    let expression = EXPRESSIONS.iter().find(|(name, _)| *name == format);
    match expression {
        Some((_, expression)) => Meaning::Expression(expression),
        None if OF_ENGINE.contains(&format) => Meaning::Engine,
        None if OTHERS.contains(&format) => Meaning::Missing,
        None => Meaning::Annotation,
    }
}

/// Whether the specification defines it.
pub(super) fn is_defined(format: &str) -> bool {
    !matches!(meaning(format), Meaning::Annotation)
}
