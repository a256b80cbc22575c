//! The other end: some of a model's layers, for one first process.

use std::collections::BTreeMap;

use breakers_kv_cache::{CacheShape, KvCache, Segment};

use super::tensor;
use super::transport::Transport;
use super::wire::{self, Command, Hello, PassPart, Reply};
use crate::runner::{page_bytes, plain_cache};
use crate::{CacheFactory, Error, Model, Result};

/// Runs some of a model's layers for a runner in another process.
pub struct StageServer {
    model: Model,
    name: String,
    cache: Box<CacheFactory>,
    sequences: BTreeMap<u64, Box<dyn KvCache>>,
    /// What went wrong with a command that has no answer.
    failure: Option<String>,
}

impl StageServer {
    /// The layers of a model that was loaded with [`LoadOptions::layers`](crate::LoadOptions::layers).
    /// `cache` is the name of its sequences' cache; both ends must have the same.
    pub fn new(model: Model, cache: impl Into<String>) -> Self {
        let factory = plain_cache(&model);
        Self { model, name: cache.into(), cache: factory, sequences: BTreeMap::new(), failure: None }
    }

    /// The same with another cache than the plain one. Its layers are those of the stage: what it does with
    /// one must not depend on the layer's number.
    pub fn with_cache(
        mut self,
        cache: impl Fn(&CacheShape) -> Result<Box<dyn KvCache>, breakers_kv_cache::Error> + Send + 'static,
    ) -> Self {
        self.cache = Box::new(cache);
        self
    }

    /// Says what it is and does what it is told, until the other end is gone. Its sequences go then.
    ///
    /// # Errors
    /// [`Error::Stage`] for a connection that fails, and for what cannot be understood.
    pub fn serve(&mut self, transport: &mut dyn Transport) -> Result<()> {
        let failed = |message| Error::Stage { stage: "of this process".to_owned(), message };
        self.sequences.clear();
        self.failure = None;
        wire::send(transport, &Reply::Hello(Hello::of(&self.model, &self.name)), &[]).map_err(failed)?;
        loop {
            let frame = match transport.receive() {
                Ok(frame) => frame,
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => break,
                Err(error) => return Err(failed(error.to_string())),
            };
            let (command, numbers) = wire::parse::<Command>(&frame).map_err(failed)?;
            match command {
                Command::Pass { parts, kept } => {
                    let (reply, rows) = self.answer(&parts, &kept, numbers);
                    wire::send(transport, &reply, &rows).map_err(failed)?;
                }
                command => {
                    if let Err(error) = self.obey(&command) {
                        self.failure.get_or_insert(format!("{command:?}: {error}"));
                    }
                }
            }
        }
        self.sequences.clear();
        Ok(())
    }

    fn get(&mut self, sequence: u64) -> Result<&mut Box<dyn KvCache>> {
        let message = || format!("there is no sequence {sequence}");
        let unknown = || Error::Stage { stage: "of this process".to_owned(), message: message() };
        self.sequences.get_mut(&sequence).ok_or_else(unknown)
    }

    fn obey(&mut self, command: &Command) -> Result<()> {
        match command {
            Command::Open { sequence } => {
                let cache = (self.cache)(&self.model.cache_shape())?;
                self.sequences.insert(*sequence, cache);
            }
            Command::Fork { sequence, copy } => {
                let cache = self.get(*sequence)?.fork()?;
                self.sequences.insert(*copy, cache);
            }
            Command::Close { sequence } => {
                self.sequences.remove(sequence);
            }
            Command::Retain { sequence, rows } => self.get(*sequence)?.retain(rows)?,
            Command::Commit { sequence, n_tokens } => self.get(*sequence)?.commit(*n_tokens)?,
            Command::Truncate { sequence, len } => self.get(*sequence)?.truncate(*len)?,
            Command::Pass { .. } => {}
        }
        Ok(())
    }

    fn answer(&mut self, parts: &[PassPart], kept: &[usize], numbers: Vec<f32>) -> (Reply, Vec<f32>) {
        let failed = |message: String, part| (Reply::Failed { message, part }, Vec::new());
        if let Some(message) = &self.failure {
            return failed(message.clone(), None);
        }
        let (width, n_rows) = (self.model.info().hidden_size, numbers.len() / self.model.info().hidden_size);
        let rows: Option<usize> =
            parts.iter().try_fold(0usize, |sum, part| sum.checked_add(part.n_rows)).filter(|rows| *rows > 0);
        let ascends = kept.is_sorted_by(|a, b| a < b) && kept.last().is_none_or(|last| *last < n_rows);
        if rows != Some(n_rows) || numbers.len() != n_rows * width || !ascends {
            return failed("the rows of the pass are not those that it names".to_owned(), None);
        }
        // The caches are taken out of the map during the pass, so that several can be borrowed at once.
        let mut caches: Vec<Box<dyn KvCache>> =
            parts.iter().filter_map(|part| self.sequences.remove(&part.sequence)).collect();
        if caches.len() < parts.len() {
            return failed("a sequence of the pass is unknown, or there twice".to_owned(), None);
        }
        let result = self.pass(parts, kept, numbers, &mut caches);
        for (part, mut cache) in parts.iter().zip(caches) {
            if result.is_err() {
                cache.abort();
            }
            self.sequences.insert(part.sequence, cache);
        }
        match result {
            Ok(rows) => (Reply::Done { held_bytes: self.held_bytes() }, rows),
            Err(Error::AtStep { step, source }) => failed(source.to_string(), Some(step)),
            Err(error) => failed(error.to_string(), None),
        }
    }

    fn pass(
        &self,
        parts: &[PassPart],
        kept: &[usize],
        numbers: Vec<f32>,
        caches: &mut [Box<dyn KvCache>],
    ) -> Result<Vec<f32>> {
        let mut positions = Vec::new();
        for (at, (part, cache)) in parts.iter().zip(caches.iter_mut()).enumerate() {
            let begun = cache.begin(part.n_rows, part.parents.as_deref());
            positions.extend(begun.map_err(|error| Error::from(error).at_step(at))?);
        }
        let mut segments: Vec<Segment<'_>> = caches
            .iter_mut()
            .zip(parts)
            .map(|(cache, part)| Segment { cache: &mut **cache, n_rows: part.n_rows })
            .collect();
        let x = tensor(numbers, self.model.info().hidden_size, self.model.device());
        let passed = self.model.decoder().pass(x, &positions, &mut segments, kept, &[])?;
        let rows = match passed.last {
            Some(rows) => rows.into_data().try_into_vec::<f32>().map_err(Error::tensor_data)?,
            None => Vec::new(),
        };
        caches.iter_mut().try_for_each(|cache| cache.end())?;
        Ok(rows)
    }

    fn held_bytes(&self) -> usize {
        page_bytes(self.sequences.values().map(|cache| &**cache))
    }
}

impl std::fmt::Debug for StageServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { model, name, sequences, failure, .. } = self;
        f.debug_struct("StageServer")
            .field("model", model)
            .field("cache", name)
            .field("sequences", &sequences.len())
            .field("failure", failure)
            .finish_non_exhaustive()
    }
}
