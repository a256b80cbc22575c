//! What the first process and a stage say to each other: a header in JSON, and rows of numbers.
//!
//! A frame has the length of the header (four bytes, the lowest first), the header, and numbers of four bytes
//! each, as they are in memory of a little-endian machine. So all bits arrive as they were.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::transport::Transport;
use crate::Model;

/// The version of all this.
pub(super) const PROTOCOL: u32 = 1;

/// What a stage is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Hello {
    pub(super) protocol: u32,
    /// Of the model's file.
    pub(super) fingerprint: u64,
    pub(super) first: usize,
    pub(super) end: usize,
    pub(super) n_layers: usize,
    pub(super) width: usize,
    pub(super) max_context: usize,
    pub(super) cache: String,
}

impl Hello {
    pub(super) fn of(model: &Model, cache: &str) -> Self {
        let (layers, info) = (model.layers(), model.info());
        Self {
            protocol: PROTOCOL,
            fingerprint: model.fingerprint(),
            first: layers.start,
            end: layers.end,
            n_layers: info.n_layers,
            width: info.hidden_size,
            max_context: info.max_context,
            cache: cache.to_owned(),
        }
    }
}

/// What a stage is to do. Only a pass is answered; what went wrong before is the answer to the next one.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Command {
    Open {
        sequence: u64,
    },
    Fork {
        sequence: u64,
        copy: u64,
    },
    Close {
        sequence: u64,
    },
    Retain {
        sequence: u64,
        rows: Vec<usize>,
    },
    Commit {
        sequence: u64,
        n_tokens: usize,
    },
    Truncate {
        sequence: u64,
        len: usize,
    },
    /// The rows of all parts follow. Behind the last layer, only the kept ones are wanted.
    Pass {
        parts: Vec<PassPart>,
        kept: Vec<usize>,
    },
}

/// The rows of one sequence in a pass.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PassPart {
    pub(crate) sequence: u64,
    pub(crate) n_rows: usize,
    pub(crate) parents: Option<Vec<Option<usize>>>,
}

/// What a stage answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Reply {
    Hello(Hello),
    /// Rows follow.
    Done {
        held_bytes: usize,
    },
    /// If a part is named, nothing has changed; otherwise the stage cannot go on.
    Failed {
        message: String,
        part: Option<usize>,
    },
}

/// Sends a header with numbers; an error says what is wrong.
pub(super) fn send(
    transport: &mut dyn Transport,
    header: &impl Serialize,
    numbers: &[f32],
) -> Result<(), String> {
    let json = serde_json::to_vec(header).map_err(|error| error.to_string())?;
    let mut frame = Vec::with_capacity(4 + json.len() + 4 * numbers.len());
    frame.extend((json.len() as u32).to_le_bytes());
    frame.extend_from_slice(&json);
    numbers.iter().for_each(|number| frame.extend(number.to_le_bytes()));
    transport.send(&frame).map_err(|error| error.to_string())
}

/// Waits for a header with numbers; an error says what is wrong.
pub(super) fn receive<H: DeserializeOwned>(transport: &mut dyn Transport) -> Result<(H, Vec<f32>), String> {
    let frame = transport.receive().map_err(|error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => "the connection has ended".to_owned(),
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => "no answer came in time".to_owned(),
        _ => error.to_string(),
    })?;
    parse(&frame)
}

/// Reads a frame.
pub(super) fn parse<H: DeserializeOwned>(frame: &[u8]) -> Result<(H, Vec<f32>), String> {
    let cut = || format!("a frame of {} bytes is cut off", frame.len());
    let (length, rest) = frame.split_first_chunk::<4>().ok_or_else(cut)?;
    let length = u32::from_le_bytes(*length) as usize;
    let (json, numbers) = rest.split_at_checked(length).ok_or_else(cut)?;
    let header = serde_json::from_slice(json).map_err(|error| format!("a header cannot be read: {error}"))?;
    let (numbers, left) = numbers.as_chunks::<4>();
    if !left.is_empty() {
        return Err(cut());
    }
    Ok((header, numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever comes, it is read or refused; what was sent is what comes, to the last bit.
        #[test]
        fn frames(bytes in prop::collection::vec(any::<u8>(), 0..200), bits in prop::collection::vec(any::<u32>(), 0..9), cut in 1usize..4) {
            let _ = parse::<Command>(&bytes);
            let (mut a, mut b) = super::super::channel();
            let numbers: Vec<f32> = bits.iter().map(|bits| f32::from_bits(*bits)).collect();
            let part = PassPart { sequence: u64::MAX, n_rows: 3, parents: Some(vec![None, Some(0)]) };
            send(&mut a, &Command::Pass { parts: vec![part], kept: vec![7] }, &numbers).unwrap();
            let frame = b.receive().unwrap();
            let (command, found) = parse::<Command>(&frame).unwrap();
            prop_assert_eq!(found.iter().map(|x| x.to_bits()).collect::<Vec<_>>(), bits);
            let Command::Pass { parts, kept } = command else { panic!("another command") };
            prop_assert_eq!((parts[0].sequence, parts[0].n_rows, kept), (u64::MAX, 3, vec![7]));
            prop_assert!(parse::<Command>(&frame[..frame.len() - cut]).is_err());
            prop_assert!(parse::<Reply>(&frame).is_err());
        }
    }
}
