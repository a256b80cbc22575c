use crate::Grammar;

/// One `SELECT` statement: columns and expressions with names, `DISTINCT`, joins, `WHERE`, `GROUP BY`,
/// `HAVING`, `UNION`, `ORDER BY`, `LIMIT` and `OFFSET`, and selects within expressions.
///
/// Keywords are in capitals, names in small letters and none of the words that SQL keeps for itself. Nothing
/// that changes a database can be written. Whether tables and columns exist is not known here.
///
/// # Source
/// The syntax that SQLite, PostgreSQL and MySQL have in common.
///
/// # Example
/// ```
/// # mod bytes { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/suite/bytes.rs")); }
/// use std::sync::Arc;
/// use breakers_core::Constraint;
/// use breakers_structured::{Compiler, grammars};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let tokenizer = bytes::Bytes;
/// let compiler = Compiler::new(Arc::new(tokenizer))?;
/// let mut constraint = compiler.constraint(&grammars::sql_select())?;
/// for byte in b"SELECT name FROM people WHERE age >= 18" {
///     constraint.advance((*byte).into())?;
/// }
/// assert!(constraint.may_end()?);
/// # Ok(())
/// # }
/// ```
pub fn sql_select() -> Grammar {
    Grammar::Lark(SELECT.to_owned())
}

const SELECT: &str = r#"
start: select (" UNION " ["ALL "] select)* [" ORDER BY " order (", " order)*] [limit]
limit: " LIMIT " COUNT [" OFFSET " COUNT]
order: expression [" ASC" | " DESC"]
select: "SELECT " ["DISTINCT "] column (", " column)* [" FROM " source] [" WHERE " expression] [group]
group: " GROUP BY " expression (", " expression)* [" HAVING " expression]
column: "*" | NAME ".*" | expression [" AS " NAME]
source: table (join)*
table: NAME [" AS " NAME] | "(" select ") AS " NAME
join: (" JOIN " | " LEFT JOIN " | " CROSS JOIN ") table [" ON " expression]
expression: conjunction (" OR " conjunction)*
conjunction: negation (" AND " negation)*
negation: "NOT " negation | "EXISTS (" select ")" | comparison
comparison: sum [(" = " | " <> " | " < " | " <= " | " > " | " >= " | " LIKE " | " NOT LIKE ") sum
  | " IS NULL" | " IS NOT NULL" | " BETWEEN " sum " AND " sum
  | (" IN (" | " NOT IN (") (select | expression (", " expression)*) ")"]
sum: product ((" + " | " - " | " || ") product)*
product: sign ((" * " | " / " | " % ") sign)*
sign: "-" atom | atom
atom: NUMBER | TEXT | "NULL" | "TRUE" | "FALSE" | NAME ["." NAME] | call | case | cast | "(" (expression | select) ")"
call: AGGREGATE "(" ["DISTINCT "] expression ")" | "COUNT(" ("*" | ["DISTINCT "] expression) ")"
  | FUNCTION "(" expression ")" | "COALESCE(" expression ", " expression (", " expression)* ")"
case: "CASE" (" WHEN " expression " THEN " expression)+ [" ELSE " expression] " END"
cast: "CAST(" expression " AS " ("INTEGER" | "REAL" | "TEXT") ")"
AGGREGATE: "SUM" | "AVG" | "MIN" | "MAX"
FUNCTION: "LOWER" | "UPPER" | "LENGTH" | "ABS" | "ROUND" | "TRIM"
COUNT: /0|[1-9][0-9]{0,8}/
NUMBER: /(0|[1-9][0-9]{0,17})(\.[0-9]{1,17})?/
TEXT: /'([^'\x00-\x1f]|'')*'/
NAME: /[a-z_][a-z0-9_]{0,62}/ & ~/abort|action|add|after|all|alter|always|analyze|and|as|asc|attach|autoincrement|before|begin|between|by|cascade|case|cast|check|collate|column|commit|conflict|constraint|create|cross|current|current_date|current_time|current_timestamp|database|default|deferrable|deferred|delete|desc|detach|distinct|do|drop|each|else|end|escape|except|exclude|exclusive|exists|explain|fail|false|filter|first|following|for|foreign|from|full|generated|glob|group|groups|having|if|ignore|immediate|in|index|indexed|initially|inner|insert|instead|intersect|into|is|isnull|join|key|last|left|like|limit|match|materialized|natural|no|not|nothing|notnull|null|nulls|of|offset|on|or|order|others|outer|over|partition|plan|pragma|preceding|primary|query|raise|range|recursive|references|regexp|reindex|release|rename|replace|restrict|returning|right|rollback|row|rows|savepoint|select|set|table|temp|temporary|then|ties|to|transaction|trigger|true|unbounded|union|unique|update|using|vacuum|values|view|virtual|when|where|window|with|without/
"#;
