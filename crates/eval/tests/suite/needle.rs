use breakers_core::{BoxError, TokenId};
use breakers_eval::Error;
use breakers_eval::needle::{NeedleConfig, advantage, found_by, needles};

use crate::toy::Toy;

/// A token is a byte.
fn encode(text: &str) -> Result<Vec<TokenId>, BoxError> {
    Ok(text.bytes().map(TokenId::from).collect())
}

/// Finds the last earlier occurrence of the text's longest possible ending, and continues as it did there: a
/// perfect finder of needles.
fn reader() -> Toy {
    Toy::new(256, |held| {
        let mut row = vec![0.0; 256];
        for n in (1..=40.min(held.len() - 1)).rev() {
            let (ending, before) = (&held[held.len() - n..], &held[..held.len() - 1]);
            if let Some(at) = before.windows(n).rposition(|window| window == ending) {
                row[held[at + n] as usize] = 5.0;
                return row;
            }
        }
        row
    })
}

fn config() -> NeedleConfig {
    NeedleConfig { lengths: vec![600, 900], depths: vec![0, 50, 100], n_facts: 2 }
}

#[test]
fn needles_are_hidden_where_they_should_be_and_found_by_a_perfect_reader() {
    let haystack: Vec<TokenId> = encode("All that is gold does not glitter. ").unwrap();
    let (mut told, mut prompts) = (Vec::new(), Vec::new());
    let found = needles(
        &config(),
        &haystack,
        encode,
        |prompt, answer| {
            prompts.push(prompt.to_vec());
            let blind = found_by(&mut Toy::constant(vec![0.0; 256]), prompt, answer)?;
            Ok::<_, Error>(vec![found_by(&mut reader(), prompt, answer)?, blind])
        },
        |length, depth| told.push((length, depth)),
    )
    .unwrap();
    assert_eq!((found.len(), told.len(), config().n_texts()), (6, 12, 12));
    for (i, needle) in found.iter().enumerate() {
        assert_eq!((needle.part(0), needle.part(1), needle.part(2)), (1.0, 0.0, 0.0), "{needle:?}");
        for prompt in &prompts[2 * i..2 * i + 2] {
            let text = String::from_utf8(prompt.iter().map(|&t| t as u8).collect()).unwrap();
            let at = text.find("The secret number").unwrap() as f64;
            assert_eq!(prompt.len() + " 48213".len(), needle.length);
            // Needle and question take about 150 bytes.
            assert!((at - (needle.length as f64 - 180.0) * needle.depth as f64 / 100.0).abs() < 40.0);
        }
    }
    let more = advantage(&found, 0, 1).unwrap();
    assert_eq!((more.value, more.low, more.high), (100.0, 100.0, 100.0));
}

#[test]
fn what_cannot_be_hidden_is_refused() {
    let none = |_: &[TokenId], _: &[TokenId]| Ok::<_, Error>(vec![]);
    let deep = NeedleConfig { depths: vec![101], ..config() };
    let result = needles(&deep, &[1], encode, none, |_, _| ());
    assert!(matches!(result, Err(Error::Parameter { name: "depth", .. })));
    assert!(matches!(needles(&config(), &[], encode, none, |_, _| ()), Err(Error::TooFewValues { .. })));
    let refuse = |_: &str| -> Result<Vec<TokenId>, BoxError> { Err("no".into()) };
    assert!(matches!(needles(&config(), &[1], refuse, none, |_, _| ()), Err(Error::Tokenizer(_))));
    assert!(found_by(&mut reader(), &[1], &[2]).is_err());
}
