//! A needle in a haystack: a fact at some depth of a long text, asked for at its end.

use breakers_core::{LanguageModel, Step, TokenId, Want};
use breakers_examples::{Bar, CacheKind, Result};
use breakers_model::Model;
use breakers_model::tokenizer::EncodeOptions;

/// One text of one length with the needle at one depth.
#[derive(Clone, Debug)]
pub(crate) struct Needle {
    pub(crate) length: usize,
    /// Where the needle stands, in percent of the length.
    pub(crate) depth: usize,
    /// For each cache: the part of the answer's tokens that the model finds likeliest, in their places.
    pub(crate) found: Vec<f64>,
}

/// Things that are hidden, and what is hidden about them.
const FACTS: [(&str, &str); 6] = [
    ("lighthouse", "48213"),
    ("railway", "90574"),
    ("harbor", "37618"),
    ("archive", "65029"),
    ("bakery", "12846"),
    ("museum", "83951"),
];

/// Hides a number in the text at each of `depths`, `n_facts` times, and asks each cache for it.
pub(crate) fn measure(
    model: &Model,
    caches: &[CacheKind],
    text: &[TokenId],
    lengths: &[usize],
    depths: &[usize],
    n_facts: usize,
) -> Result<Vec<Needle>> {
    let plain = EncodeOptions { add_special: false, parse_special: false };
    let mut needles = Vec::new();
    let facts = &FACTS[..n_facts.clamp(1, FACTS.len())];
    let bar = Bar::new(lengths.len() * depths.len() * facts.len(), "needles");
    for &length in lengths {
        for &depth in depths {
            bar.doing(&format!("{length} tokens, needle at {depth} %"));
            let mut found = vec![0.0; caches.len()];
            for (at, (place, number)) in facts.iter().enumerate() {
                let needle = format!("\n\nThe secret number of the {place} is {number}.\n\n");
                let question = format!(
                    "\n\nQuestion: What is the secret number of the {place}?\nAnswer: The secret number of the {place} is"
                );
                let needle = model.tokenizer().encode(&needle, plain)?;
                let question = model.tokenizer().encode(&question, plain)?;
                let answer = model.tokenizer().encode(&format!(" {number}"), plain)?;
                let n_text = length.saturating_sub(needle.len() + question.len() + answer.len());
                // Another stretch of the text for each fact.
                let haystack: Vec<TokenId> =
                    text.iter().cycle().skip(at * 331).take(n_text).copied().collect();
                let split = n_text * depth / 100;
                let mut tokens = haystack[..split].to_vec();
                tokens.extend(&needle);
                tokens.extend(&haystack[split..]);
                tokens.extend(&question);
                for (cache, found) in caches.iter().zip(&mut found) {
                    *found += right(model, cache, &tokens, &answer)? / facts.len() as f64;
                }
                bar.step();
            }
            needles.push(Needle { length, depth, found });
        }
    }
    Ok(needles)
}

/// The part of `answer` that the model gives by itself behind `prompt`, token by token.
fn right(model: &Model, cache: &CacheKind, prompt: &[TokenId], answer: &[TokenId]) -> Result<f64> {
    let mut runner = cache.runner(model)?;
    let sequence = runner.open()?;
    let mut next = prompt.to_vec();
    let mut n_right = 0;
    for token in answer {
        let n = next.len();
        let mut steps = [Step::last(sequence, next, Want::ArgMax)];
        runner.forward(&mut steps)?;
        runner.commit(sequence, n)?;
        let best = steps[0].outputs.last().and_then(|row| row.output.best());
        n_right += usize::from(best == Some(*token));
        next = vec![*token];
    }
    Ok(n_right as f64 / answer.len().max(1) as f64)
}
