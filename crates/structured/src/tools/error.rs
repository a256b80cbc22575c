use crate::Error;

/// Why calls of functions cannot be asked for.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ToolError {
    /// No format of this name.
    #[error("no tool format {name:?}, expected one of: {known}")]
    UnknownFormat {
        /// The name asked for.
        name: String,
        /// All names.
        known: String,
    },
    /// A call is demanded, and there is no function.
    #[error("the request demands a call and offers no function, expected at least one")]
    NoFunctions,
    /// The function that must be called is not offered.
    #[error("the function {name:?} must be called, but only these are offered: {known}")]
    UnknownFunction {
        /// The name asked for.
        name: String,
        /// All names.
        known: String,
    },
    /// Two functions of one name: a call could not be told apart.
    #[error("the function {name:?} is offered twice, expected each name once")]
    RepeatedFunction {
        /// The name.
        name: String,
    },
    /// A name that the format cannot write.
    #[error("the name {name:?} cannot be written in the format {format}: {reason}")]
    Name {
        /// The name of a function or of a parameter.
        name: String,
        /// The format.
        format: &'static str,
        /// Why.
        reason: &'static str,
    },
    /// The parameters of a function are not those of an object, or a strict function's parameters cannot be
    /// enforced.
    #[error("the parameters of the function {function:?} cannot be enforced")]
    Parameters {
        /// The function.
        function: String,
        /// What is wrong with them.
        source: Error,
    },
    /// The format cannot tell a call from an answer of the form asked for.
    #[error("the format {format} cannot tell calls from an answer of the form that the request asks for")]
    AnswerFormat {
        /// The format.
        format: &'static str,
    },
    /// The whole grammar is refused.
    #[error("the grammar of calls is refused")]
    Grammar(#[source] Error),
}
