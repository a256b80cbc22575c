use std::borrow::Cow;

use crate::{BoxError, CallError, ChatFormat, ChatRequest, Constraint, Delta, Message, Part, Role, Tool};

/// Knows the forms of answers that requests ask for: JSON, a schema, calls of functions.
///
/// Whoever generates an answer asks for its [`AnswerPlan`] first, holds the tokens to the plan's constraint,
/// and hands the text to the plan's reader. Forms depend on a model's vocabulary and on how its family writes
/// calls, so that each model has its own.
pub trait AnswerForms: Send + Sync {
    /// The plan for the answer to a request. `seed` is that of the request; ids of calls follow from it.
    ///
    /// # Errors
    /// [`CallError::BadRequest`] for a form that cannot be enforced, [`CallError::Unsupported`].
    fn plan(&self, request: &ChatRequest, seed: u64) -> Result<AnswerPlan, CallError>;

    /// Whether it knows how the model writes calls of functions.
    fn has_calls(&self) -> bool;

    /// What tells the model of these functions if its chat template does not: a part of its instructions.
    fn instructions(&self, tools: &[Tool]) -> Option<String> {
        let _ = tools;
        None
    }

    /// The conversation that the model is shown: the same, with [`instructions`](Self::instructions) if the
    /// chat format leaves the functions out.
    ///
    /// # Errors
    /// Those of the chat format.
    fn conversation<'m>(
        &self,
        format: &dyn ChatFormat,
        messages: &'m [Message],
        tools: &[Tool],
    ) -> Result<Cow<'m, [Message]>, BoxError> {
        if tools.is_empty() || format.render(messages, tools)? != format.render(messages, &[])? {
            return Ok(Cow::Borrowed(messages));
        }
        let Some(instructions) = self.instructions(tools) else { return Ok(Cow::Borrowed(messages)) };
        let mut messages = messages.to_vec();
        match messages.first_mut().filter(|first| first.role == Role::System) {
            Some(first) => first.content.push(Part::Text(format!("\n\n{instructions}"))),
            None => messages.insert(0, Message::system(instructions)),
        }
        Ok(Cow::Owned(messages))
    }
}

/// How an answer is held to its form, and read.
#[derive(Default)]
#[non_exhaustive]
pub struct AnswerPlan {
    /// Which tokens may come; `None`: any.
    pub constraint: Option<Box<dyn Constraint>>,
    /// What takes the text apart; `None`: it is only text.
    ///
    /// A reader has to see the spelling of control tokens, because some models write calls with them.
    pub reader: Option<Box<dyn AnswerReader>>,
}

impl AnswerPlan {
    /// An answer that may be any text.
    pub fn text() -> Self {
        Self::default()
    }

    /// An answer that is held to a constraint, and is only text.
    pub fn constrained(constraint: Box<dyn Constraint>) -> Self {
        Self { constraint: Some(constraint), reader: None }
    }

    /// The same plan with a reader.
    pub fn with_reader(mut self, reader: Box<dyn AnswerReader>) -> Self {
        self.reader = Some(reader);
        self
    }
}

impl std::fmt::Debug for AnswerPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AnswerPlan")
            .field("is_constrained", &self.constraint.is_some())
            .field("is_read", &self.reader.is_some())
            .finish()
    }
}

/// Takes the text of an answer apart while it grows: what is text, and what is a call of a function.
pub trait AnswerReader: Send {
    /// Appends what the next piece brings to `out`. The pieces may be cut anywhere between characters.
    ///
    /// # Errors
    /// [`CallError::Malformed`] for a call that has begun and cannot be read. What came before it is in
    /// `out`.
    fn push(&mut self, text: &str, out: &mut Vec<Delta>) -> Result<(), CallError>;

    /// Appends what was held back: the answer has ended.
    ///
    /// # Errors
    /// [`CallError::Malformed`] if it has ended within a call. What could be read is in `out`.
    fn finish(self: Box<Self>, out: &mut Vec<Delta>) -> Result<(), CallError>;
}
