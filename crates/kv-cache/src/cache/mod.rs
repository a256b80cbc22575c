//! The cache trait and its implementations.

pub(crate) mod driver;
pub(crate) mod evicting;
pub(crate) mod ledger;
pub(crate) mod plain;
pub(crate) mod quantized;
pub(crate) mod spec;

use breakers_core::{Snapshot, SnapshotBytes};
use burn::tensor::Tensor;

use self::driver::Lane;
use crate::pages::meter::PageMeter;
use crate::{CacheShape, Error, Result};

/// Keys and values of one sequence, and attention over them.
///
/// # Steps
/// A forward pass over some tokens is a *step*: [`begin`](Self::begin), then [`attend`](Self::attend) once
/// for each layer in ascending order, then [`end`](Self::end). The tokens of an ended step are
/// *provisional*: every later step sees them, and they can be taken back by
/// [`truncate`](Self::truncate) or, if they form a tree, thinned out to one path by
/// [`retain`](Self::retain). [`commit`](Self::commit) makes them final; a cache that compresses does so
/// then, on fixed token-index boundaries, so that each row sees what plain decoding would have shown it.
///
/// A step that fails in the middle is undone by [`abort`](Self::abort).
///
/// # Positions
/// A token's *position* is its place in the text; its *slot* is where the cache keeps it. A cache that evicts
/// tokens has fewer slots than positions; [`len`](Self::len), [`commit`](Self::commit) and
/// [`truncate`](Self::truncate) count positions. Rows of a token tree that share a parent share a position.
///
/// # Batch invariance
/// A row's result has the same bits, however many rows are in the call, in whichever chunks the tokens
/// before it were fed, whether it came as part of a tree or of a chain, and on any number of threads.
pub trait KvCache: Send {
    /// Layers and limit of the cache.
    fn shape(&self) -> &CacheShape;

    /// Tokens in the cache, provisional ones included. An open step does not count.
    fn len(&self) -> usize;

    /// Whether the cache holds no token.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Final tokens in the cache.
    fn committed(&self) -> usize;

    /// Bytes that the cache keeps in memory, including pages that it shares with forks.
    fn bytes(&self) -> usize;

    /// Bytes that a final token takes in all layers together, before a window or a press evicts it.
    fn bytes_per_token(&self) -> f64;

    /// Counts the bytes of the pages of this cache and its forks, each page once; `None` for a cache
    /// that does not count them.
    fn page_meter(&self) -> Option<&PageMeter> {
        None
    }

    /// Whether another text with the same beginning may continue from a fork as it would from its own cache.
    /// This is so if what the cache keeps depends only on the tokens, and not on where a prompt ended or on
    /// what followed.
    fn shareable(&self) -> bool;

    /// Opens a step of `n_rows` tokens.
    ///
    /// `parents`: `None` for a chain, each row following the one before it. For a tree, the parent of each
    /// row in this step; rows without one follow the last token of the cache.
    ///
    /// Returns the rows' positions, which is what rotary embeddings need: for a chain `len`, `len + 1`, …;
    /// for a tree `len` plus the number of the row's ancestors in the step.
    ///
    /// # Errors
    /// [`StepError::Empty`](breakers_core::StepError::Empty), [`Error::StepOpen`](crate::Error::StepOpen),
    /// [`StepError::RowCount`](breakers_core::StepError::RowCount),
    /// [`StepError::InvalidParent`](breakers_core::StepError::InvalidParent),
    /// [`StepError::ContextFull`](breakers_core::StepError::ContextFull), and
    /// [`Error::UnresolvedTree`](crate::Error::UnresolvedTree) if an earlier step's tree still has branches.
    fn begin(&mut self, n_rows: usize, parents: Option<&[Option<usize>]>) -> Result<Vec<usize>>;

    /// Appends the step's keys and values of one layer and attends: row i sees the tokens before the step
    /// (as far as the layer's window reaches), its ancestors in the step, and itself.
    ///
    /// Keys and values are rounded to the cache's element type before any row sees them, the row's own
    /// included. Rotary embeddings are applied to `q` and `k` before the call.
    ///
    /// # Shapes
    /// - `q`: `[n_rows, n_heads, head_dim]`; query head h reads key-value head h / (n_heads / n_kv_heads)
    /// - `k`, `v`: `[n_rows, n_kv_heads, head_dim]`
    /// - result: `[n_rows, n_heads * head_dim]`
    ///
    /// `scale` multiplies the scores before the softmax, usually 1 / √head_dim.
    ///
    /// # Errors
    /// [`Error::NoStep`](crate::Error::NoStep), [`Error::LayerOrder`](crate::Error::LayerOrder),
    /// [`Error::TensorShape`](crate::Error::TensorShape), [`Error::HeadCount`](crate::Error::HeadCount),
    /// [`Error::Device`](crate::Error::Device), [`Error::NotFinite`](crate::Error::NotFinite), and
    /// [`StepError::ContextFull`](breakers_core::StepError::ContextFull) where a device has no larger
    /// buffers. The step stays open, unchanged, and can be aborted.
    fn attend(
        &mut self,
        layer: usize,
        q: Tensor<3>,
        k: Tensor<3>,
        v: Tensor<3>,
        scale: f32,
    ) -> Result<Tensor<2>>;

    /// Closes the step; its tokens now count, provisionally.
    ///
    /// # Errors
    /// [`Error::NoStep`](crate::Error::NoStep), and
    /// [`Error::StepIncomplete`](crate::Error::StepIncomplete) before the last layer; the step stays open.
    fn end(&mut self) -> Result<()>;

    /// Undoes an open step; does nothing without one.
    fn abort(&mut self);

    /// Keeps, of the provisional tokens, only those with the given indices (0 = first provisional token).
    ///
    /// They must form one chain from the last final token on: the first has no provisional parent, each
    /// other one follows the one before it. An empty list drops all provisional tokens.
    ///
    /// # Errors
    /// [`StepError::OutOfRange`](breakers_core::StepError::OutOfRange) for an index that is not provisional,
    /// [`Error::NotAChain`](crate::Error::NotAChain), [`Error::StepOpen`](crate::Error::StepOpen); the cache
    /// is then unchanged.
    fn retain(&mut self, rows: &[usize]) -> Result<()>;

    /// Makes the first `n_tokens` provisional tokens final.
    ///
    /// # Errors
    /// [`StepError::OutOfRange`](breakers_core::StepError::OutOfRange) if fewer are provisional,
    /// [`Error::UnresolvedTree`](crate::Error::UnresolvedTree) if they are not a chain,
    /// [`Error::StepOpen`](crate::Error::StepOpen).
    fn commit(&mut self, n_tokens: usize) -> Result<()>;

    /// Shortens the cache to `len` tokens. Final tokens can be removed too if the cache supports it.
    ///
    /// # Errors
    /// [`StepError::OutOfRange`](breakers_core::StepError::OutOfRange) if it is shorter already,
    /// [`StepError::TruncateEvicted`](breakers_core::StepError::TruncateEvicted) if what is needed is gone,
    /// [`Error::StepOpen`](crate::Error::StepOpen).
    fn truncate(&mut self, len: usize) -> Result<()>;

    /// A second cache with the same tokens. Storage is shared until one of them writes to it.
    ///
    /// # Errors
    /// [`Error::StepOpen`](crate::Error::StepOpen).
    fn fork(&self) -> Result<Box<dyn KvCache>>;

    /// What has to be the same for a snapshot to be restored, beside the shape; `None` for a cache that has
    /// none.
    fn snapshot_kind(&self) -> Option<String> {
        None
    }

    /// The pages of the final tokens, detached from the cache. They are shared with it until it writes to
    /// them.
    ///
    /// # Errors
    /// [`Error::NoSnapshot`](crate::Error::NoSnapshot), [`Error::StepOpen`](crate::Error::StepOpen).
    fn snapshot(&self) -> Result<Box<dyn Snapshot>> {
        Err(Error::NoSnapshot)
    }

    /// Makes an empty cache hold the first `len` of the `n_tokens` tokens of a snapshot, all of them final.
    /// Bytes are read where they lie; they are trusted to be those of a snapshot of this kind and shape.
    ///
    /// # Errors
    /// [`Error::NoSnapshot`](crate::Error::NoSnapshot), also for a cache that is not empty;
    /// [`Error::SnapshotBytes`](crate::Error::SnapshotBytes) if there are more or fewer;
    /// [`StepError::OutOfRange`](breakers_core::StepError::OutOfRange) for a `len` above `n_tokens`, and
    /// [`StepError::ContextFull`](breakers_core::StepError::ContextFull).
    fn restore(&mut self, bytes: &SnapshotBytes, n_tokens: usize, len: usize) -> Result<()> {
        let _ = (bytes, n_tokens, len);
        Err(Error::NoSnapshot)
    }

    /// The next layer, for [`attend_many`](crate::attend_many); `None` for a cache that can only attend on
    /// its own.
    ///
    /// # Errors
    /// [`Error::NoStep`](crate::Error::NoStep), [`Error::LayerOrder`](crate::Error::LayerOrder).
    #[doc(hidden)]
    fn lane(&mut self, layer: usize) -> Result<Option<Lane<'_>>> {
        let _ = layer;
        Ok(None)
    }
}
