//! The grammars that are shipped: texts that they accept and refuse. What is accepted has been taken by
//! SQLite and by Python's own parser; what is refused has not, but where a comment says so.

use breakers_structured::grammars::xml::{Attribute, Document, Element, Occurs};
use breakers_structured::grammars::{python_expression, sql_select};
use breakers_structured::{Error, Grammar};

use crate::{check, compiler};

const SQL: &[&str] = &[
    "SELECT 1",
    "SELECT * FROM people",
    "SELECT name FROM people WHERE age >= 18",
    "SELECT DISTINCT p.name AS who, COUNT(*) FROM people AS p LEFT JOIN visits AS v ON p.id = v.person GROUP BY p.name HAVING COUNT(*) > 2",
    "SELECT name FROM people WHERE name LIKE 'A%' AND NOT age BETWEEN 3 AND 5 OR id IN (1, 2, 3)",
    "SELECT name FROM people WHERE id IN (SELECT person FROM visits) ORDER BY name DESC, id LIMIT 10 OFFSET 5",
    "SELECT CASE WHEN age < 18 THEN 'it''s' ELSE NULL END FROM people",
    "SELECT name FROM people UNION ALL SELECT person FROM visits",
    "SELECT -age * 2 + 1.5 || 'x' FROM people CROSS JOIN visits WHERE EXISTS (SELECT 1 FROM visits) AND name IS NOT NULL",
    "SELECT SUM(DISTINCT age), ROUND(AVG(age)), COALESCE(name, 'x'), CAST(age AS REAL) FROM people",
    "SELECT selected, fromage FROM (SELECT 1 AS selected, 2 AS fromage) AS t",
];

const NO_SQL: &[&str] = &[
    "",
    "SELECT",
    "SELECT FROM people",
    "SELECT name FROM",
    "SELECT select FROM people",
    "SELECT name FROM people WHERE",
    "SELECT name, FROM people",
    "SELECT 'a FROM people",
    "SELECT COUNT( FROM people",
    // SQLite takes these, and they change data, or are other statements.
    "DELETE FROM people",
    "SELECT 1; DROP TABLE people",
    "SELECT 1 -- comment",
];

const PYTHON: &[&str] = &[
    "1",
    "x",
    "-x ** 2 + 3.5e-2 // y",
    "sum(x ** 2 for x in range(10))",
    "[a.b[0](c, d=1) for a in b if a.b > 0 if not a for c in d]",
    "{'a': [1, 2], \"b\": (1,)}",
    "{1, 2}",
    "{}",
    "()",
    "(1, 2, 3)",
    "x[1:2]",
    "x[::2]",
    "x[:]",
    "x[a, b]",
    "a if b else c if d else e",
    "lambda x, y: x + y",
    "lambda: None",
    "not a and b or c in d and e not in f and g is not h",
    "a < b <= c != d",
    "nothing + form + iffy",
    "'it\\'s \\n'",
    "f(x=1, y=2)",
    "{k: v for k, v in x.items()}",
    "~a & b | c ^ d << 2",
];

const NO_PYTHON: &[&str] = &[
    "",
    "1 +",
    "x = 1",
    "import os",
    "if",
    "a if b",
    "[1, 2",
    "(1",
    "1 + not x",
    "01",
    "'a",
    "f(x=1, 2)",
    "{1: 2, 3}",
    "1.real",
    "for x in y",
    "lambda",
    "x..y",
    "[x for x in lambda: y]",
];

#[test]
fn sql() {
    check(&compiler(), &sql_select(), SQL, NO_SQL);
}

#[test]
fn python() {
    check(&compiler(), &python_expression(), PYTHON, NO_PYTHON);
}

fn letter() -> Document {
    Document::new([
        Element::new("letter")
            .with_attribute(Attribute::new("id"))
            .with_attribute(Attribute::one_of("kind", ["private", "a&b \"c\" \\d"]).optional())
            .with_child("to", Occurs::OneOrMore)
            .with_child("date", Occurs::Optional)
            .with_child("part", Occurs::ZeroOrMore),
        Element::new("to").with_text(),
        Element::new("date").with_attribute(Attribute::new("day")),
        Element::new("part").with_text().with_child("part", Occurs::ZeroOrMore),
    ])
}

#[test]
fn xml() {
    check(
        &compiler(),
        &letter().grammar().unwrap(),
        &[
            r#"<letter id="1"><to>Ann</to></letter>"#,
            r#"<letter id="" kind="private"><to></to><to>B &amp; C</to><date day="a&quot;"/></letter>"#,
            r#"<letter id="1" kind="a&amp;b &quot;c&quot; \d"><to>x</to><part>ü<part></part><part>y</part></part></letter>"#,
        ],
        &[
            "",
            r#"<letter><to>x</to></letter>"#,
            r#"<letter id="1"></letter>"#,
            r#"<letter id="1" kind="other"><to>x</to></letter>"#,
            r#"<letter id="1"><to>a & b</to></letter>"#,
            r#"<letter id="1"><to>a</too></letter>"#,
            r#"<letter id="1"><to>]]></to></letter>"#,
            r#"<letter id="<"><to></to></letter>"#,
            r#"<letter id="1"><date day="1"/><to>x</to></letter>"#,
            r#"<letter id="1"><to>x</to><part></letter>"#,
        ],
    );
}

#[test]
fn rules_that_cannot_be_followed_are_named() {
    let element = Element::new;
    for (elements, expected) in [
        (vec![], ""),
        (vec![element("a b")], "a b"),
        (vec![element("xmlish")], "xmlish"),
        (vec![element("a"), element("a")], "a"),
        (vec![element("a").with_child("b", Occurs::Optional)], "b"),
        (vec![element("a").with_attribute(Attribute::new("1"))], "1"),
        (vec![element("a").with_attribute(Attribute::new("x")).with_attribute(Attribute::new("x"))], "x"),
        (vec![element("a").with_attribute(Attribute::one_of("x", [""; 0]))], "x"),
        (vec![element("a").with_attribute(Attribute::one_of("x", ["\n"]))], "x"),
        (vec![element("a").with_child("a", Occurs::OneOrMore)], "a"),
        (vec![element("a").with_child("b", Occurs::Once), element("b").with_child("a", Occurs::Once)], "a"),
    ] {
        match Document::new(elements).grammar() {
            Err(Error::Rule { name, .. }) => assert_eq!(name, expected),
            other => panic!("{expected}: {other:?}"),
        }
    }
    assert!(matches!(letter().grammar(), Ok(Grammar::Lark(_))));
}
