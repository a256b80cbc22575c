//! Short ways to the end of a text.
//!
//! A way is looked for by walking on from where the text stands, under the masks of the engine: closing what
//! is open, where that is allowed; otherwise the shortest of what has to come; where characters are missing,
//! long tokens, and each kind of character in turn, so that no expression is walked around in a circle. What
//! a text may have to hold somewhere is given as a hint and tried (see [`words`](crate::words)). What was
//! found is spelled anew in fewer tokens, if that is allowed. It is not always the shortest way there is.
//!
//! From token to token a way is kept: it goes on where the text follows it, and mostly leads to the end, too,
//! where the text does something else, because brackets close what they closed before. That is asked of the
//! engine before a way is walked for anew.

use std::sync::Arc;

use breakers_core::{TokenId, TokenMask};
use llguidance::toktrie::{TokEnv, TokTrie};

use crate::words::Words;

/// Tokens more than the way before that a new one may have. It bounds what a search costs where the text has
/// taken a turn that does not end.
const DETOUR: usize = 256;
/// Tokens of the longest way: a search that finds none costs a mask for each.
const LONGEST: usize = 4096;
/// The same where masks are slow, because values are looked at in them.
const LONGEST_CHECKED: usize = 256;
/// Words that one walk tries, from each of their characters on.
const TRIED: usize = 2048;
/// Dead ends that a walk goes back from, one token each.
const DEAD_ENDS: usize = 64;
/// Tokens at the front of a way that a turn of the text may have made superfluous.
const SKIPPED: usize = 4;
/// Printable characters that may come next where any text may: all but a quote and what escapes.
const FREE: usize = 90;
/// Signs that take a text on in what people write: addresses, names, dates.
const SIGNS: &[u8] = b"_-/:.@";

/// Ways to the end along a text.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ways {
    /// Ways, with the number of tokens that stand before each, ascending.
    known: Vec<(usize, Vec<TokenId>)>,
}

impl Ways {
    /// Forgets what lies behind the first `n_tokens` tokens.
    pub(crate) fn back_to(&mut self, n_tokens: usize) {
        while self.known.pop_if(|(at, _)| *at > n_tokens).is_some() {}
    }

    /// A way of at most `within` tokens from behind `text`, which the engine has followed.
    ///
    /// # Errors
    /// What the engine says.
    pub(crate) fn find(
        &mut self,
        engine: &mut impl Engine,
        text: &[TokenId],
        within: usize,
    ) -> Result<Option<Vec<TokenId>>, String> {
        let environment = engine.environment()?;
        let mut longest = if engine.is_slow() { LONGEST_CHECKED } else { LONGEST };
        if let Some((at, way)) = self.known.last() {
            let tail = &text[*at..];
            if let Some(rest) = way.strip_prefix(tail).filter(|rest| rest.len() <= within) {
                return Ok(Some(rest.to_vec()));
            }
            longest = longest.min(way.len() + DETOUR);
            if let Some(way) = repaired(engine, &environment, way, tail)? {
                // One that is too long is not looked for anew: it is as short as it was before.
                return Ok((way.len() <= within).then(|| self.keep(text.len(), way)));
            }
        }
        let found = search(engine, &environment, within.min(longest));
        Ok(found.map(|way| self.keep(text.len(), way)))
    }

    fn keep(&mut self, at: usize, way: Vec<TokenId>) -> Vec<TokenId> {
        while self.known.pop_if(|(before, _)| *before >= at).is_some() {}
        self.known.push((at, way.clone()));
        way
    }
}

/// What follows a text and says what may come next.
pub(crate) trait Engine: Clone {
    /// The vocabulary.
    fn environment(&self) -> Result<TokEnv, String>;
    /// Whether the text may end here.
    fn may_end(&mut self) -> Result<bool, String>;
    /// The tokens that may come next.
    fn mask(&mut self) -> Result<TokenMask, String>;
    /// Takes back the token followed last.
    fn back(&mut self) -> Result<(), String>;
    /// Follows a token of the mask.
    fn follow(&mut self, token: TokenId) -> Result<(), String>;
    /// The only token that may come next, where that takes no mask to see.
    fn forced(&mut self) -> Option<TokenId>;
    /// Whether these tokens may follow one after the other. The state stays as it is.
    fn fits(&mut self, tokens: &[TokenId]) -> Result<bool, String>;
    /// Whether masks take long.
    fn is_slow(&self) -> bool;
    /// What a text may have to hold.
    fn words(&self) -> Arc<Words>;
    /// Whether the text may end behind these tokens. The state stays as it is.
    fn leads_to_end(&mut self, way: &[TokenId]) -> Result<bool, String>;
}

/// What is left of a way to the end after `tail` was put before it, if it is still one.
fn repaired(
    engine: &mut impl Engine,
    environment: &TokEnv,
    way: &[TokenId],
    tail: &[TokenId],
) -> Result<Option<Vec<TokenId>>, String> {
    let trie = environment.tok_trie();
    let mut candidates = Vec::new();
    // The same characters in other tokens.
    if let Some(rest) = trie.decode_raw(way).strip_prefix(trie.decode_raw(tail).as_slice()) {
        candidates.push(environment.tokenize_bytes(rest));
    }
    candidates.extend((0..=SKIPPED.min(way.len())).rev().map(|from| way[from..].to_vec()));
    // Where characters are determined, a mask has one spelling.
    let forced = engine.forced();
    let begins_well = |way: &[TokenId]| forced.is_none() || way.first() == forced.as_ref();
    for candidate in candidates {
        if begins_well(&candidate) && engine.leads_to_end(&candidate)? {
            return Ok(Some(candidate));
        }
    }
    Ok(None)
}

/// Walks to the end in two manners, and gives the shorter way. If both walk in circles, there is a third.
fn search(engine: &impl Engine, environment: &TokEnv, within: usize) -> Option<Vec<TokenId>> {
    let hints = Hints::new(environment.tok_trie());
    let mut best: Option<Vec<TokenId>> = None;
    for manner in [Manner::SignsFirst, Manner::LettersFirst, Manner::AnythingNew] {
        if manner == Manner::AnythingNew && best.is_some() {
            break;
        }
        // Fewer tokens may say the same, so that a walk may be longer than the way may be.
        let limit = best.as_ref().map_or(within.saturating_mul(2).min(LONGEST), |best| best.len());
        let Some(way) = walk(engine, environment, &hints, manner, limit) else { continue };
        let way = respelled(engine, environment, way);
        if way.len() <= within && best.as_ref().is_none_or(|best| way.len() < best.len()) {
            best = Some(way);
        }
    }
    best
}

/// What comes first where several kinds of characters may come.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    SignsFirst,
    LettersFirst,
    /// What has not come yet also comes before brackets, quotes and commas that have: lists without brackets
    /// of their own end with it.
    AnythingNew,
}

/// Tokens that are tried before others, as the vocabulary has them.
struct Hints {
    /// They close a string and, most first, what is open around it.
    closing_text: Vec<TokenId>,
    /// They close brackets, most first.
    closing: Vec<TokenId>,
    values: Vec<TokenId>,
    /// What has to come otherwise.
    joints: Vec<TokenId>,
    /// They are allowed together only in the midst of a text.
    text: Vec<TokenId>,
}

impl Hints {
    fn new(trie: &TokTrie) -> Self {
        let tokens =
            |texts: &[&str]| texts.iter().filter_map(|text| trie.token_id(text.as_bytes())).collect();
        Self {
            closing_text: tokens(&["\"}}}", "\"}]}", "\"]}", "\"}}", "\"}]", "\"]", "\"}", "\""]),
            closing: tokens(&["}]}", "}}}", "]}", "}}", "}]", "]]", "}", "]", ")"]),
            values: tokens(&["\"\"", "0", "1", "[]", "{}", "null", "true", "false"]),
            joints: tokens(&["\":", ":", "\"", "[", "{", "\",\"", ",\"", ","]),
            text: tokens(&["x", "q", "k"]),
        }
    }

    /// Whether brackets are text where this mask is.
    fn is_text(&self, mask: &TokenMask) -> bool {
        self.text.iter().all(|&token| mask.is_allowed(token))
    }
}

/// Walks on to where the text may end, in at most `limit` tokens.
fn walk(
    engine: &impl Engine,
    environment: &TokEnv,
    hints: &Hints,
    manner: Manner,
    limit: usize,
) -> Option<Vec<TokenId>> {
    let trie = environment.tok_trie();
    let words = engine.words();
    let mut n_tried = 0;
    // Words were tried at the place before, and nothing but characters has come since.
    let mut is_among_words = false;
    // An engine need not come back from a dead end.
    let mut engine = engine.clone();
    let mut way = Vec::new();
    // When a token that begins with each kind of byte was chosen the last time.
    let mut used = [0usize; 256];
    let mut is_behind_value = false;
    // Tokens that led to a dead end, with the number of tokens before each.
    let mut dead: Vec<(usize, TokenId)> = Vec::new();
    while !engine.may_end().ok()? {
        if way.len() >= limit || dead.len() > DEAD_ENDS {
            return None;
        }
        let mut mask = engine.mask().ok()?;
        dead.iter().filter(|(at, _)| *at == way.len()).for_each(|(_, token)| mask.forbid(*token));
        if mask.is_empty() {
            let token = way.pop()?;
            engine.back().ok()?;
            dead.retain(|(at, _)| *at <= way.len());
            dead.push((way.len(), token));
            is_behind_value = false;
            continue;
        }
        // In the last manner, a bracket or a comma that has come before gives way to what has not.
        let is_new = |token| trie.token(token).first().is_some_and(|&byte| used[kind(byte)] == 0);
        let may_join = |token| manner != Manner::AnythingNew || is_new(token);
        let chosen = mask.only().or_else(|| choose(&mask, hints, is_behind_value, may_join));
        let is_text = hints.is_text(&mask);
        let tried = match chosen {
            Some(token) => (!is_text && hints.values.contains(&token)).then_some(Kind::Item),
            None => (!is_among_words).then_some(Kind::Text),
        };
        if let Some(run) = word(&mut engine, environment, &words, tried, &mut n_tried) {
            for token in run {
                engine.follow(token).ok()?;
                way.push(token);
            }
            is_behind_value = chosen.is_some();
            continue;
        }
        is_among_words = chosen.is_none();
        let token = chosen.or_else(|| other(&mask, trie, manner, &used))?;
        is_behind_value = hints.values.contains(&token);
        way.push(token);
        if mask.only().is_none() {
            used[kind(*trie.token(token).first()?)] = way.len();
        }
        engine.follow(token).ok()?;
    }
    Some(way)
}

/// A token that takes a text on towards its end whatever it says.
fn choose(
    mask: &TokenMask,
    hints: &Hints,
    is_behind_value: bool,
    may_join: impl Fn(TokenId) -> bool,
) -> Option<TokenId> {
    let first_of = |tokens: &[TokenId]| tokens.iter().copied().find(|&token| mask.is_allowed(token));
    let joint = || first_of(&hints.joints).filter(|&token| may_join(token));
    if hints.is_text(mask) {
        return first_of(&hints.closing_text);
    }
    let closing = first_of(&hints.closing);
    closing.or_else(|| if is_behind_value { joint() } else { first_of(&hints.values).or_else(joint) })
}

/// What a word stands for.
#[derive(Clone, Copy)]
enum Kind {
    Text,
    Item,
}

/// The shortest of some words that may follow here, as a whole or from any character on.
fn word<E: Engine>(
    engine: &mut E,
    environment: &TokEnv,
    words: &Words,
    kind: Option<Kind>,
    n_tried: &mut usize,
) -> Option<Vec<TokenId>> {
    let mut best: Option<Vec<TokenId>> = None;
    let (words_of_kind, is_item) = match kind? {
        Kind::Text => (&words.texts, false),
        Kind::Item => (&words.items, true),
    };
    for word in words_of_kind {
        let starts = 0..if is_item { 1 } else { word.len() };
        for start in starts.rev() {
            if *n_tried >= TRIED {
                return best;
            }
            *n_tried += 1;
            let tokens = environment.tokenize_bytes(&word[start..]);
            let is_shorter = best.as_ref().is_none_or(|best| tokens.len() < best.len());
            let mut fits = || match words.are_whole {
                true => engine.leads_to_end(&tokens),
                false => engine.fits(&tokens),
            };
            if is_shorter && !tokens.is_empty() && fits().unwrap_or(false) {
                best = Some(tokens);
                break;
            }
        }
    }
    best
}

/// Letters are of one kind and digits of another; each sign is of its own.
fn kind(byte: u8) -> usize {
    usize::from(match byte {
        b'0'..=b'9' => b'0',
        b'a'..=b'z' => b'a',
        b'A'..=b'Z' => b'A',
        0x80.. => 0x80,
        sign => sign,
    })
}

/// A token of any kind: a long one where any text may come, and otherwise one that begins with the kind of
/// character that has not come for longest.
fn other(mask: &TokenMask, trie: &TokTrie, manner: Manner, used: &[usize; 256]) -> Option<TokenId> {
    let mut may_begin = [false; 256];
    let tokens = || mask.iter().filter(|&token| !trie.is_special_token(token) && trie.token_len(token) > 0);
    for token in tokens() {
        may_begin[usize::from(trie.token(token)[0])] = true;
    }
    let is_free = (b' '..=b'~').filter(|&byte| may_begin[usize::from(byte)]).count() >= FREE;
    tokens().max_by_key(|&token| {
        let bytes = trie.token(token);
        let rest = (is_spelled_plainly(bytes), bytes.len(), std::cmp::Reverse(token));
        if is_free {
            return (std::cmp::Reverse(0), false, None, rest);
        }
        let is_first = bytes[0].is_ascii_alphanumeric() == (manner == Manner::LettersFirst);
        let sign = SIGNS.iter().position(|sign| *sign == bytes[0]);
        (std::cmp::Reverse(used[kind(bytes[0])]), is_first, sign, rest)
    })
}

/// Without escapes and parts of characters, which would have to be completed.
fn is_spelled_plainly(bytes: &[u8]) -> bool {
    bytes.is_ascii() && !bytes.contains(&b'\\')
}

/// The same way in fewer tokens, if each of them is allowed in its place.
fn respelled(engine: &impl Engine, environment: &TokEnv, way: Vec<TokenId>) -> Vec<TokenId> {
    let trie = environment.tok_trie();
    let bytes = trie.decode_raw(&way);
    let mut best = way;
    for tokens in [environment.tokenize_bytes(&bytes), trie.greedy_tokenize(&bytes)] {
        if tokens.len() < best.len() && is_allowed(engine, &tokens) {
            best = tokens;
        }
    }
    best
}

/// Whether each token is in the mask of its place, and the text may end behind them.
fn is_allowed(engine: &impl Engine, way: &[TokenId]) -> bool {
    let mut engine = engine.clone();
    let mut follows = |token: &TokenId| {
        engine.mask().is_ok_and(|mask| mask.is_allowed(*token)) && engine.follow(*token).is_ok()
    };
    way.iter().all(&mut follows) && engine.may_end().is_ok_and(|ends| ends)
}
