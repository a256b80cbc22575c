use crate::Grammar;

/// One expression in Python 3: literals, names, attributes, calls, subscripts and slices, arithmetic,
/// comparisons, `and`, `or`, `not`, `if` … `else`, `lambda`, and lists, tuples, sets, dictionaries and
/// comprehensions of them.
///
/// Left out: statements and what assigns (`:=`), `await`, `yield`, `*` and `**` before arguments, texts that
/// are formatted or raw, and complex numbers. A call can still be anything, so a text that keeps to this
/// grammar is not safe to evaluate.
///
/// # Source
/// The language reference of Python 3, chapter 6.
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
/// let mut constraint = compiler.constraint(&grammars::python_expression())?;
/// for byte in b"sum(x ** 2 for x in range(10))" {
///     constraint.advance((*byte).into())?;
/// }
/// assert!(constraint.may_end()?);
/// # Ok(())
/// # }
/// ```
pub fn python_expression() -> Grammar {
    Grammar::Lark(EXPRESSION.to_owned())
}

const EXPRESSION: &str = r#"
start: expression
expression: disjunction [" if " disjunction " else " expression] | "lambda" [" " NAME (", " NAME)*] ": " expression
disjunction: conjunction (" or " conjunction)*
conjunction: negation (" and " negation)*
negation: "not " negation | comparison
comparison: union ((" == " | " != " | " < " | " <= " | " > " | " >= " | " in " | " not in " | " is " | " is not ") union)*
union: difference (" | " difference)*
difference: intersection (" ^ " intersection)*
intersection: shift (" & " shift)*
shift: sum ((" << " | " >> ") sum)*
sum: product ((" + " | " - ") product)*
product: factor ((" * " | " / " | " // " | " % ") factor)*
factor: ("-" | "+" | "~") factor | power
power: primary [" ** " factor] | NUMBER [" ** " factor]
primary: atom (trailer)*
trailer: "." NAME | "(" [arguments] ")" | "[" (slice | expression (", " expression)*) "]"
slice: [expression] ":" [expression] [":" [expression]]
arguments: expression (", " expression)* (", " NAME "=" expression)* | NAME "=" expression (", " NAME "=" expression)*
  | expression comprehension
atom: NAME | TEXT | "True" | "False" | "None" | "(" ")" | "(" expression [comprehension] ")"
  | "(" expression "," [" " expression (", " expression)*] ")"
  | "[" [expression (comprehension | (", " expression)*)] "]"
  | "{" [expression (comprehension | (", " expression)*) | pair (comprehension | (", " pair)*)] "}"
pair: expression ": " expression
comprehension: (" for " NAME (", " NAME)* " in " disjunction (" if " disjunction)*)+
NUMBER: /(0|[1-9][0-9]{0,17})/ | /(0|[1-9][0-9]{0,17})(\.[0-9]{1,17})(e[+\-]?[0-9]{1,2})?/
TEXT: /'([^'\\\x00-\x1f]|\\[\\'"nrt])*'/ | /"([^"\\\x00-\x1f]|\\[\\'"nrt])*"/
NAME: /[A-Za-z_][A-Za-z0-9_]{0,62}/ & ~/False|None|True|and|as|assert|async|await|break|class|continue|def|del|elif|else|except|finally|for|from|global|if|import|in|is|lambda|nonlocal|not|or|pass|raise|return|try|while|with|yield|__debug__/
"#;
