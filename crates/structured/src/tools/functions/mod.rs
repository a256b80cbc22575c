//! Functions that do something: a calculator, and a search in the files of a folder. Both take what a model
//! writes for the input of a stranger.

mod calculator;
mod file_search;

pub use calculator::Calculator;
pub use file_search::FileSearch;
