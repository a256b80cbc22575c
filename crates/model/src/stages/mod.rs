//! A model whose layers are divided among several processes, on one machine or on several.
//!
//! The first process has the embeddings, the head and the first layers, and is the
//! [`LanguageModel`](breakers_core::LanguageModel) that others use: a [`Runner`](crate::Runner) with
//! [stages](crate::Runner::with_stages). Each stage has some of the other layers and keeps the keys and
//! values of these. In a pass, hidden states go to one stage after the other and come back; what is done to
//! sequences in between (forks, commits, what is taken back) is told to all. The numbers are the same as in
//! one process, bit for bit, if the processors have the same instructions.
//!
//! # Failures
//! A stage that cannot be reached, answers late or answers nonsense is lost: the call fails with
//! [`Error::Stage`], and so does every later one, because nobody knows what its
//! sequences hold. Sequences of the first process are as they were before the pass. A program goes on with
//! new connections and a new runner.
//!
//! # Security
//! Stages trust whoever reaches them, and nothing is encrypted. They belong behind a firewall or in a tunnel.
//!
//! # Example
//! ```no_run
//! use breakers_core::LanguageModel as _;
//! use breakers_model::stages::{Stage, StageServer, Stream};
//! use breakers_model::{LoadOptions, Model};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Layers 12 to 29, here on another thread.
//! let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
//! let address = listener.local_addr()?;
//! std::thread::spawn(move || -> breakers_model::Result<()> {
//!     let options = LoadOptions { layers: Some(12..30), ..LoadOptions::default() };
//!     let model = Model::load("model.gguf", &options)?;
//!     let (stream, _) = listener.accept().expect("a connection");
//!     StageServer::new(model, "f16").serve(&mut Stream::tcp(stream).expect("a socket"))
//! });
//! let options = LoadOptions { layers: Some(0..12), ..LoadOptions::default() };
//! let model = Model::load("model.gguf", &options)?;
//! let stage = Stage::new(address.to_string(), Stream::connect(address)?)?;
//! let mut runner = model.runner().with_stages(vec![stage], "f16")?;
//! let sequence = runner.open()?;
//! # Ok(())
//! # }
//! ```

mod server;
mod transport;
mod wire;

use std::ops::Range;

use breakers_core::SequenceId;
use breakers_gguf as gguf;
use burn::tensor::{Device, Tensor, TensorData};

pub use self::server::StageServer;
pub use self::transport::{MAX_FRAME, Stream, Transport, channel};
pub(crate) use self::wire::PassPart;
use self::wire::{Command, Hello, Reply};
use crate::{Error, Model, Result};

/// A part of a model in another process, as the first one sees it.
pub struct Stage {
    name: String,
    hello: Hello,
    transport: Box<dyn Transport>,
    held_bytes: usize,
    /// Why it cannot be used anymore.
    lost: Option<String>,
}

impl Stage {
    /// Reads what the stage at the other end says of itself. `name` is for messages, such as its address.
    ///
    /// # Errors
    /// [`Error::Stage`] if it says nothing, or speaks another version of the protocol.
    pub fn new(name: impl Into<String>, transport: impl Transport + 'static) -> Result<Self> {
        let (name, mut transport) = (name.into(), Box::new(transport));
        let hello = match wire::receive(&mut *transport) {
            Ok((Reply::Hello(hello), _)) => Ok(hello),
            Ok(_) => Err("it does not say what it is".to_owned()),
            Err(message) => Err(message),
        };
        let hello = hello.and_then(|hello| match hello.protocol {
            wire::PROTOCOL => Ok(hello),
            found => Err(format!("it speaks version {found} of the protocol, not {}", wire::PROTOCOL)),
        });
        match hello {
            Ok(hello) => Ok(Self { name, hello, transport, held_bytes: 0, lost: None }),
            Err(message) => Err(Error::Stage { stage: name, message }),
        }
    }

    /// The layers that it has.
    pub fn layers(&self) -> Range<usize> {
        self.hello.first..self.hello.end
    }

    /// Bytes of keys and values in the stage after the last pass.
    pub fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Why the stage is lost, if it is.
    pub fn lost(&self) -> Option<&str> {
        self.lost.as_deref()
    }

    fn error(&self, message: impl Into<String>) -> Error {
        Error::Stage { stage: self.name.clone(), message: message.into() }
    }

    /// Fails unless the stage goes on where `from` ends, with the same model and settings.
    fn check(&self, model: &Model, cache: &str, from: usize) -> Result<()> {
        let own = Hello::of(model, cache);
        let found = &self.hello;
        for (what, expected, found) in [
            ("the file", format!("{:016x}", own.fingerprint), format!("{:016x}", found.fingerprint)),
            ("the number of layers", own.n_layers.to_string(), found.n_layers.to_string()),
            ("the first layer", from.to_string(), found.first.to_string()),
            ("the width", own.width.to_string(), found.width.to_string()),
            ("the longest context", own.max_context.to_string(), found.max_context.to_string()),
            ("the cache", own.cache, found.cache.clone()),
        ] {
            if expected != found {
                return Err(self.error(format!("{what} is {found} there and should be {expected}")));
            }
        }
        Ok(())
    }

    fn lose(&mut self, message: String) -> Error {
        let error = self.error(&message);
        self.lost = Some(message);
        error
    }

    fn send(&mut self, command: &Command, payload: &[f32]) -> Result<()> {
        if let Some(message) = &self.lost {
            return Err(self.error(message));
        }
        wire::send(&mut *self.transport, command, payload).map_err(|message| self.lose(message))
    }

    /// Runs the stage's layers over rows.
    fn pass(&mut self, parts: &[PassPart], kept: &[usize], x: Tensor<2>) -> Result<Option<Tensor<2>>> {
        let (device, width) = (x.device(), self.hello.width);
        let n_rows = x.dims()[0];
        let is_end = self.hello.end == self.hello.n_layers;
        let sent = x.into_data().try_into_vec::<f32>().map_err(Error::tensor_data)?;
        self.send(&Command::Pass { parts: parts.to_vec(), kept: kept.to_vec() }, &sent)?;
        let answer = wire::receive(&mut *self.transport).map_err(|message| self.lose(message))?;
        let (n_expected, payload) = (if is_end { kept.len() } else { n_rows }, answer.1);
        match answer.0 {
            Reply::Done { held_bytes } if payload.len() == n_expected * width => {
                self.held_bytes = held_bytes;
                Ok((n_expected > 0).then(|| tensor(payload, width, &device)))
            }
            // The sequences are as they were before the pass.
            Reply::Failed { message, part: Some(part) } => Err(self.error(message).at_step(part)),
            Reply::Failed { message, part: None } => Err(self.lose(message)),
            Reply::Done { .. } => {
                let found = payload.len();
                Err(self.lose(format!("{n_expected} rows of {width} were expected, {found} numbers came")))
            }
            Reply::Hello(_) => Err(self.lose("it starts anew".to_owned())),
        }
    }
}

impl std::fmt::Debug for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, hello, lost, .. } = self;
        f.debug_struct("Stage")
            .field("name", name)
            .field("hello", hello)
            .field("lost", lost)
            .finish_non_exhaustive()
    }
}

/// The stages of a runner, in the order of their layers.
#[derive(Debug, Default)]
pub(crate) struct Stages(Vec<Stage>);

impl Stages {
    /// # Errors
    /// [`Error::Stage`] if they do not have the model's other layers, each once.
    pub(crate) fn new(mut stages: Vec<Stage>, model: &Model, cache: &str) -> Result<Self> {
        stages.sort_by_key(|stage| stage.hello.first);
        let n_layers = model.info().n_layers;
        let mut from = model.layers().end;
        for stage in &stages {
            stage.check(model, cache, from)?;
            from = stage.hello.end;
        }
        if from != n_layers {
            return Err(Error::Layers { found: from..n_layers, limit: n_layers });
        }
        Ok(Self(stages))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn held_bytes(&self) -> usize {
        self.0.iter().map(Stage::held_bytes).sum()
    }

    pub(crate) fn open(&mut self, sequence: SequenceId) -> Result<()> {
        self.tell(Command::Open { sequence: sequence.0 })
    }

    pub(crate) fn fork(&mut self, sequence: SequenceId, copy: SequenceId) -> Result<()> {
        self.tell(Command::Fork { sequence: sequence.0, copy: copy.0 })
    }

    /// A stage that is lost has no sequences.
    pub(crate) fn close(&mut self, sequence: SequenceId) {
        let _ = self.tell(Command::Close { sequence: sequence.0 });
    }

    pub(crate) fn retain(&mut self, sequence: SequenceId, rows: &[usize]) -> Result<()> {
        self.tell(Command::Retain { sequence: sequence.0, rows: rows.to_vec() })
    }

    pub(crate) fn commit(&mut self, sequence: SequenceId, n_tokens: usize) -> Result<()> {
        self.tell(Command::Commit { sequence: sequence.0, n_tokens })
    }

    pub(crate) fn truncate(&mut self, sequence: SequenceId, len: usize) -> Result<()> {
        self.tell(Command::Truncate { sequence: sequence.0, len })
    }

    /// All hear it, whatever becomes of some.
    fn tell(&mut self, command: Command) -> Result<()> {
        self.0.iter_mut().map(|stage| stage.send(&command, &[])).fold(Ok(()), Result::and)
    }

    /// Runs all layers that are not here, over the rows of some sequences.
    pub(crate) fn pass(
        &mut self,
        parts: &[PassPart],
        kept: &[usize],
        x: Tensor<2>,
    ) -> Result<Option<Tensor<2>>> {
        let mut x = Some(x);
        for stage in &mut self.0 {
            if let Some(rows) = x {
                x = stage.pass(parts, kept, rows)?;
            }
        }
        Ok(x)
    }
}

/// Rows `[n, width]` of numbers.
fn tensor(numbers: Vec<f32>, width: usize, device: &Device) -> Tensor<2> {
    let n_rows = numbers.len() / width;
    Tensor::from_data(TensorData::new(numbers, [n_rows, width]), device)
}

/// A number that other files do not have: of lengths, names, formats and some bytes of each tensor (FNV-1a).
pub(crate) fn fingerprint(file: &gguf::File) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut add = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    add(&file.len_bytes().to_le_bytes());
    for tensor in file.tensors() {
        add(tensor.name().as_bytes());
        add(tensor.format().name().as_bytes());
        let bytes = tensor.bytes();
        let middle = bytes.len() / 2;
        for from in [0, middle, bytes.len().saturating_sub(64)] {
            add(&bytes[from..bytes.len().min(from + 64)]);
        }
    }
    hash
}
