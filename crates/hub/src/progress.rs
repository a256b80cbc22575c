//! How a caller can watch a fetch, and stop it.

/// Receives the progress of a fetch. Every method has a default, so a user interface implements only what it
/// needs.
///
/// All calls come from the thread that called [`Hub::resolve`](crate::Hub::resolve).
///
/// # Example
/// ```
/// use breakers_hub::Progress;
///
/// #[derive(Default)]
/// struct Lines(Vec<String>);
///
/// impl Progress for Lines {
///     fn message(&mut self, text: &str) {
///         self.0.push(text.to_owned());
///     }
/// }
/// let mut lines = Lines::default();
/// lines.started("smollm2-135m", 93_000_000);
/// lines.message("license: Apache-2.0");
/// assert_eq!(lines.0, ["license: Apache-2.0"]);
/// ```
pub trait Progress {
    /// A transfer begins. Called again with a new total if another source is tried.
    ///
    /// # Units
    /// `total_bytes` counts the bytes to transfer: compressed packages are smaller than the files inside.
    fn started(&mut self, name: &str, total_bytes: u64) {
        let _ = (name, total_bytes);
    }

    /// `done_bytes` of the total have arrived so far, including parts kept from an earlier fetch.
    fn advanced(&mut self, done_bytes: u64) {
        let _ = done_bytes;
    }

    /// A line worth showing: the license, the source in use, or why a source failed.
    fn message(&mut self, text: &str) {
        let _ = text;
    }

    /// The transfer that [`started`](Self::started) announced is over, whether it succeeded or not.
    fn finished(&mut self) {}

    /// Asked several times a second; `false` stops the fetch with
    /// [`Error::Interrupted`](crate::Error::Interrupted) and keeps the parts that have arrived.
    fn keep_going(&mut self) -> bool {
        true
    }
}

/// Ignores all progress.
impl Progress for () {}
