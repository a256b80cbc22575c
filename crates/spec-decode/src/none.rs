use breakers_core::TokenId;

use crate::{Draft, DraftRequest, Drafter, Result};

/// Proposes nothing: plain decoding, the baseline of every comparison.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoDrafter;

impl Drafter for NoDrafter {
    fn name(&self) -> &str {
        "none"
    }

    fn start(&mut self, _prompt: &[TokenId]) -> Result<()> {
        Ok(())
    }

    fn propose(&mut self, _request: &mut DraftRequest<'_>) -> Result<Draft> {
        Ok(Draft::none())
    }
}
