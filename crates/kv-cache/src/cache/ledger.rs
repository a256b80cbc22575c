//! The bookkeeping of steps: which tokens are final, which provisional, and what a step may do.

use std::sync::Arc;

use breakers_core::StepError;

use crate::tree;
use crate::{CacheShape, Error, Result, Visible};

/// An open step.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) n_rows: usize,
    /// Tokens before the step.
    pub(crate) first: usize,
    /// Layers appended so far.
    pub(crate) n_layers: usize,
    /// Ancestors of each row in the step.
    pub(crate) depths: Vec<usize>,
    /// Parents and paths, if the step is not a chain.
    pub(crate) tree: Option<StepTree>,
    /// What rows see, for layers with each window.
    visible: Vec<(Option<usize>, Arc<Visible>)>,
}

impl Step {
    /// Paths of the rows, if the step is not a chain.
    pub(crate) fn paths(&self) -> Option<&Arc<Vec<Vec<usize>>>> {
        self.tree.as_ref().map(|tree| &tree.paths)
    }

    /// What rows see in a layer with this window that keeps all tokens.
    pub(crate) fn visible(&self, window: Option<usize>) -> Arc<Visible> {
        match self.visible.iter().find(|(of, _)| *of == window) {
            Some((_, visible)) => Arc::clone(visible),
            None => Arc::new(Visible::step(self.first, &self.depths, self.paths(), window)),
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct StepTree {
    parents: Vec<Option<usize>>,
    paths: Arc<Vec<Vec<usize>>>,
}

/// Final and provisional tokens of one sequence.
#[derive(Clone, Debug)]
pub(crate) struct Ledger {
    n_layers: usize,
    max_tokens: usize,
    /// The layers' windows, each once.
    windows: Vec<Option<usize>>,
    len: usize,
    committed: usize,
    /// Parents of the last tokens, where they form a tree: the first of them stands at `len` minus their
    /// number.
    tree: Vec<Option<usize>>,
    step: Option<Step>,
}

impl Ledger {
    pub(crate) fn new(shape: &CacheShape) -> Self {
        let mut windows: Vec<Option<usize>> = shape.layers.iter().map(|layer| layer.window).collect();
        windows.sort_unstable();
        windows.dedup();
        let (n_layers, max_tokens) = (shape.layers.len(), shape.max_tokens);
        Self { n_layers, max_tokens, windows, len: 0, committed: 0, tree: Vec::new(), step: None }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn committed(&self) -> usize {
        self.committed
    }

    pub(crate) fn step(&self, operation: &'static str) -> Result<&Step> {
        self.step.as_ref().ok_or(Error::NoStep { operation })
    }

    /// Fails while a step is open.
    pub(crate) fn closed(&self, operation: &'static str) -> Result<()> {
        if self.step.is_some() { Err(Error::StepOpen { operation }) } else { Ok(()) }
    }

    /// Opens a step, and returns the rows' positions.
    pub(crate) fn begin(&mut self, n_rows: usize, parents: Option<&[Option<usize>]>) -> Result<Vec<usize>> {
        self.closed("begin")?;
        if n_rows == 0 {
            return Err(StepError::Empty.into());
        }
        if !self.tree.is_empty() {
            return Err(Error::UnresolvedTree { operation: "begin" });
        }
        let needed = self.len.saturating_add(n_rows);
        if needed > self.max_tokens {
            return Err(StepError::ContextFull { needed, limit: self.max_tokens }.into());
        }
        let depths = tree::depths(n_rows, parents)?;
        let tree = parents
            .filter(|parents| !tree::is_chain(parents))
            .map(|parents| StepTree { parents: parents.to_vec(), paths: Arc::new(tree::paths(parents)) });
        let first = self.len;
        let positions = depths.iter().map(|depth| first + depth).collect();
        let mut step = Step { n_rows, first, n_layers: 0, depths, tree, visible: Vec::new() };
        step.visible = self.windows.iter().map(|&window| (window, step.visible(window))).collect();
        self.step = Some(step);
        Ok(positions)
    }

    /// The open step, if `layer` is the next one.
    pub(crate) fn layer(&mut self, layer: usize) -> Result<&mut Step> {
        let step = self.step.as_mut().ok_or(Error::NoStep { operation: "attend" })?;
        if step.n_layers != layer || layer >= self.n_layers {
            return Err(Error::LayerOrder { expected: step.n_layers, found: layer });
        }
        Ok(step)
    }

    pub(crate) fn end(&mut self) -> Result<()> {
        let found = self.step("end")?.n_layers;
        if found != self.n_layers {
            return Err(Error::StepIncomplete { expected: self.n_layers, found });
        }
        if let Some(step) = self.step.take() {
            self.len += step.n_rows;
            self.tree = step.tree.map_or_else(Vec::new, |tree| tree.parents);
        }
        Ok(())
    }

    /// Undoes the open step, if there is one.
    pub(crate) fn abort(&mut self) -> Option<Step> {
        self.step.take()
    }

    /// The parent of a provisional token, both counted from the first provisional one.
    fn parent(&self, token: usize) -> Option<usize> {
        let tree_start = self.len - self.committed - self.tree.len();
        match token.checked_sub(tree_start).and_then(|row| self.tree.get(row)) {
            Some(Some(row)) => Some(tree_start + row),
            Some(None) => tree::chain_parent(tree_start),
            None => tree::chain_parent(token),
        }
    }

    /// Checks that the provisional tokens `rows` form a chain from the last final token on.
    pub(crate) fn check_retain(&self, rows: &[usize]) -> Result<()> {
        self.closed("retain")?;
        let available = self.len - self.committed;
        let mut found = None;
        for &row in rows {
            if row >= available {
                return Err(StepError::OutOfRange { what: "retain", requested: row, available }.into());
            }
            let expected = self.parent(row);
            if expected != found {
                return Err(Error::NotAChain { row, expected, found });
            }
            found = Some(row);
        }
        Ok(())
    }

    /// Notes that `n_kept` provisional tokens, a chain, were kept.
    pub(crate) fn retained(&mut self, n_kept: usize) {
        self.len = self.committed + n_kept;
        self.tree.clear();
    }

    /// Fails unless the first `n_tokens` provisional tokens can become final.
    pub(crate) fn check_commit(&self, n_tokens: usize) -> Result<()> {
        self.closed("commit")?;
        let available = self.len - self.committed;
        if n_tokens > available {
            return Err(StepError::OutOfRange { what: "commit", requested: n_tokens, available }.into());
        }
        if n_tokens > available - self.tree.len() {
            // Rows of the tree become final: they must be a chain, and so must what would follow them.
            return Err(Error::UnresolvedTree { operation: "commit" });
        }
        Ok(())
    }

    /// Notes that the first `n_tokens` provisional tokens became final.
    pub(crate) fn commit(&mut self, n_tokens: usize) {
        self.committed += n_tokens;
    }

    /// Fails unless an empty sequence can hold the first `len` of `n_tokens` tokens.
    pub(crate) fn check_restore(&self, n_tokens: usize, len: usize) -> Result<()> {
        self.closed("restore")?;
        if len > n_tokens {
            let (requested, available) = (len, n_tokens);
            return Err(StepError::OutOfRange { what: "restore", requested, available }.into());
        }
        if len > self.max_tokens {
            return Err(StepError::ContextFull { needed: len, limit: self.max_tokens }.into());
        }
        Ok(())
    }

    /// Notes that an empty sequence holds `len` final tokens.
    pub(crate) fn restored(&mut self, len: usize) {
        (self.len, self.committed) = (len, len);
    }

    pub(crate) fn check_truncate(&self, len: usize) -> Result<()> {
        self.closed("truncate")?;
        if len > self.len {
            return Err(
                StepError::OutOfRange { what: "truncate", requested: len, available: self.len }.into()
            );
        }
        Ok(())
    }

    /// Notes that the sequence was shortened to `len` tokens.
    pub(crate) fn truncated(&mut self, len: usize) {
        let tree_start = self.len - self.tree.len();
        self.tree.truncate(len.saturating_sub(tree_start));
        if tree::is_chain(&self.tree) {
            self.tree.clear();
        }
        self.len = len;
        self.committed = self.committed.min(len);
    }
}
