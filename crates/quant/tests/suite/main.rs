//! The crate's tests: the methods, whole models, jobs as text, and a method from outside.

mod methods;
mod own_method;
mod specs;
mod support;
mod tiny_model;
mod whole_models;
