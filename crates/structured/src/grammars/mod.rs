//! Grammars of languages that models are asked to write: XML by rules, a part of SQL, a part of Python.
//!
//! | to get | give |
//! |---|---|
//! | a document of elements and attributes that you declare | [`xml::Document`] |
//! | one `SELECT` statement | [`sql_select`] |
//! | one expression in Python | [`python_expression`] |
//!
//! Each writes one spelling of what can be spelled in several ways, with one space where one is needed: there
//! is nothing that a model could repeat without end, but for the contents themselves.

mod python;
mod sql;
pub mod xml;

pub use python::python_expression;
pub use sql::sql_select;
