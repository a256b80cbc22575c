use std::fmt;
use std::sync::Arc;

use breakers_core::{TokenId, Utf8Stream, Vocabulary};

/// Turns output tokens into text: whole characters, up to a stop string.
///
/// Anything that may be the beginning of a stop string or of a character is held back until it is certain.
/// Control tokens are not text, unless [`with_controls`](Self::with_controls) has them spelled.
#[derive(Clone)]
pub struct TextOutput {
    vocabulary: Arc<dyn Vocabulary>,
    characters: Utf8Stream,
    stop: StopStrings,
    /// Whether control tokens are spelled.
    has_controls: bool,
    /// Text that is certain but has not been taken.
    ready: String,
}

impl TextOutput {
    /// An empty output. Empty stop strings are ignored.
    pub fn new<S: AsRef<str>>(vocabulary: Arc<dyn Vocabulary>, stop: &[S]) -> Self {
        let (characters, ready) = (Utf8Stream::default(), String::new());
        Self { vocabulary, characters, stop: StopStrings::new(stop), has_controls: false, ready }
    }

    /// The same output, in which control tokens appear by their spelling, except those that end a text.
    pub fn with_controls(mut self) -> Self {
        self.has_controls = true;
        self
    }

    /// The tokens' vocabulary.
    pub fn vocabulary(&self) -> &Arc<dyn Vocabulary> {
        &self.vocabulary
    }

    /// Adds a token, and returns whether it completes a stop string; the text then ends before that string.
    pub fn push(&mut self, token: TokenId) -> bool {
        let is_spelled = self.has_controls && !self.vocabulary.end_tokens().contains(&token);
        if self.vocabulary.is_control(token) && !is_spelled {
            return false;
        }
        let bytes = self.vocabulary.token_bytes(token).unwrap_or_default();
        self.stop.push(self.characters.push(bytes), &mut self.ready)
    }

    /// Ends the text, so that nothing is held back anymore, and returns whether this completes a stop string.
    pub fn finish(&mut self) -> bool {
        let stopped = self.stop.push(self.characters.finish(), &mut self.ready);
        if !stopped {
            self.stop.finish(&mut self.ready);
        }
        stopped
    }

    /// The text that has become certain since the last call.
    pub fn take(&mut self) -> String {
        std::mem::take(&mut self.ready)
    }
}

impl fmt::Debug for TextOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { characters, stop, ready, .. } = self;
        let mut out = f.debug_struct("TextOutput");
        out.field("characters", characters).field("stop", stop).field("ready", ready).finish_non_exhaustive()
    }
}

/// Finds stop strings in a text that arrives in pieces.
///
/// # Example
/// ```
/// use breakers_spec_decode::StopStrings;
///
/// let (mut stop, mut text) = (StopStrings::new(&["END"]), String::new());
/// assert!(!stop.push("the E", &mut text));
/// assert_eq!(text, "the ");
/// assert!(stop.push("ND and more", &mut text));
/// assert_eq!(text, "the ");
/// ```
#[derive(Clone, Debug)]
pub struct StopStrings {
    stops: Vec<String>,
    held: String,
}

impl StopStrings {
    /// A finder for these stop strings; empty ones are ignored.
    pub fn new<S: AsRef<str>>(stops: &[S]) -> Self {
        let stops = stops.iter().map(S::as_ref).filter(|stop| !stop.is_empty()).map(str::to_owned).collect();
        Self { stops, held: String::new() }
    }

    /// Adds text, and appends what is now certain to `out`. Returns whether a stop string was found.
    pub fn push(&mut self, text: &str, out: &mut String) -> bool {
        self.held.push_str(text);
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            out.push_str(&self.held[..at]);
            self.held.clear();
            return true;
        }
        // The longest suffix of the held text that is the beginning of a stop string is held back.
        let keep = self.stops.iter().map(|stop| {
            let mut ends =
                stop.char_indices().map(|(i, _)| i).filter(|&i| i > 0 && self.held.ends_with(&stop[..i]));
            ends.next_back().unwrap_or(0)
        });
        let certain = self.held.len() - keep.max().unwrap_or(0);
        out.push_str(&self.held[..certain]);
        self.held.drain(..certain);
        false
    }

    /// Ends the text, and appends what was held back to `out`.
    pub fn finish(&mut self, out: &mut String) {
        out.push_str(&self.held);
        self.held.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Letters, a control token and one that ends a text.
    struct Marked;

    impl Vocabulary for Marked {
        fn n_tokens(&self) -> usize {
            4
        }
        fn token_bytes(&self, token: TokenId) -> Option<&[u8]> {
            Some([b"a".as_slice(), b"b", b"<call>", b"<end>"].get(token as usize)?)
        }
        fn is_control(&self, token: TokenId) -> bool {
            token >= 2
        }
        fn end_tokens(&self) -> &[TokenId] {
            &[3]
        }
        fn begin_token(&self) -> Option<TokenId> {
            None
        }
    }

    #[test]
    fn control_tokens_are_spelled_for_readers_of_calls() {
        let read = |mut output: TextOutput| {
            [0, 2, 1, 3].into_iter().for_each(|token| assert!(!output.push(token)));
            output.finish();
            output.take()
        };
        let output = || TextOutput::new(Arc::new(Marked), &["<end>"]);
        assert_eq!(read(output()), "ab");
        assert_eq!(read(output().with_controls()), "a<call>b");
    }

    #[test]
    fn stop_strings_are_found_across_pieces_and_never_shown() {
        let check = |stops: &[&str], pieces: &[&str], text: &str, stopped: bool| {
            let (mut finder, mut out) = (StopStrings::new(stops), String::new());
            let found = pieces.iter().any(|piece| finder.push(piece, &mut out));
            if !found {
                finder.finish(&mut out);
            }
            assert_eq!((out.as_str(), found), (text, stopped), "{stops:?} in {pieces:?}");
        };
        check(&[], &["a", "b"], "ab", false);
        check(&["END"], &["one E", "N", "D two"], "one ", true);
        check(&["END"], &["one E", "N", "E two"], "one ENE two", false);
        check(&["END"], &["one EN"], "one EN", false);
        check(&["aab"], &["aa", "a", "b"], "a", true);
        check(&["\n\n", "é!"], &["x\n", "y é", "!"], "x\ny ", true);
        check(&[""], &["a"], "a", false);
    }
}
