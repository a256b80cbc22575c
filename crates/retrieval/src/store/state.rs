//! What a process keeps of a collection in memory: the index, and which point each slot holds. All of it is derived.

use super::{Config, collection::change_crc};
use crate::{
    Error, Result,
    index::{Graph, GraphConfig, Index as _},
};
use breakers_files::{Disk, sections::SectionFile};
use hashbrown::HashMap;
use rusqlite::{Connection, OptionalExtension as _};
use serde::{Deserialize, Serialize};
use std::{fmt, path::Path};

/// What an index file says about the collection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileInfo {
    /// The collection's random number; a restored backup gets another one.
    uid: i64,
    /// The change up to which the file is.
    seq: i64,
}

/// Where a collection's index is kept.
pub(super) struct IndexFile<'a> {
    pub(super) collection: i64,
    pub(super) config: &'a Config,
    pub(super) path: &'a Path,
    /// Whether full vectors stay there.
    pub(super) on_disk: bool,
}

/// Index and slots, up to a change.
#[derive(Debug)]
pub(super) struct State {
    pub(super) graph: Graph,
    /// The point in each slot.
    pub(super) ids: Vec<u64>,
    pub(super) slots: HashMap<u64, u32>,
    /// The change up to which this is.
    pub(super) seq: i64,
    /// Changes since the file was written.
    pub(super) unsaved: usize,
    /// Where the index came from, for reports.
    pub(super) origin: Origin,
}

/// Where a collection's index in memory came from.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// Nothing was stored yet.
    Empty,
    /// The index file, and so many changes after it.
    File {
        /// Changes that the file did not have.
        caught_up: usize,
    },
    /// Built from the database.
    Rebuilt {
        /// Why the file was not used.
        reason: String,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(out, "index begun empty"),
            Self::File { caught_up } => write!(out, "index from its file and {caught_up} changes after it"),
            Self::Rebuilt { reason } => write!(out, "index built from the database: {reason}"),
        }
    }
}

impl State {
    pub(super) fn empty(config: &Config) -> Result<Self> {
        Ok(Self {
            graph: Graph::new(config.metric, config.dimension, config.graph())?,
            ids: Vec::new(),
            slots: HashMap::new(),
            seq: 0,
            unsaved: 0,
            origin: Origin::Empty,
        })
    }

    /// From the index file if it can be used, and the database.
    pub(super) fn load(connection: &Connection, place: &IndexFile<'_>) -> Result<Self> {
        let &IndexFile { collection, config, path, .. } = place;
        let transaction = connection.unchecked_transaction()?;
        let state = match Self::read(&transaction, place) {
            Ok(mut state) => match state.catch_up(&transaction, collection, config)? {
                Some(caught_up) => {
                    state.origin = Origin::File { caught_up };
                    Ok(state)
                }
                None => Err("its changes are forgotten".to_owned()),
            },
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                Err("there is none".to_owned())
            }
            Err(error) => {
                tracing::warn!("the index of collection {collection} is rebuilt: {error}");
                // Once the database has moved on, a file of another history could look like one of this one.
                let _ = std::fs::remove_file(path);
                Err(error.to_string())
            }
        };
        match state {
            Ok(state) => Ok(state),
            Err(reason) => Self::rebuild(&transaction, collection, config, reason),
        }
    }

    /// From the database alone.
    pub(super) fn rebuild(
        connection: &Connection,
        collection: i64,
        config: &Config,
        reason: String,
    ) -> Result<Self> {
        let mut state = Self::empty(config)?;
        state.seq = -1;
        let n = state.apply(connection, collection, config, true)?;
        state.unsaved = n;
        if n > 0 {
            state.origin = Origin::Rebuilt { reason };
        }
        Ok(state)
    }

    fn read(connection: &Connection, place: &IndexFile<'_>) -> Result<Self> {
        let &IndexFile { collection, config, path, on_disk } = place;
        let file = SectionFile::open(path)?;
        let graph = Graph::read::<FileInfo>(&file, on_disk)?;
        let info: &FileInfo = &file.info.extra;
        let (seq, _) = collection_seq(connection, collection)?;
        let expected = FileInfo { uid: uid(connection, collection)?, seq: info.seq.min(seq) };
        if *info != expected {
            return Err(file.damaged("collection", &format!("{expected:?}"), &format!("{info:?}")).into());
        }
        let wanted = config.graph();
        let built = GraphConfig { effort: wanted.effort, ..*graph.config() };
        if graph.dimension() != config.dimension || graph.metric() != config.metric || built != wanted {
            return Err(file.damaged("settings", &format!("{wanted:?}"), &format!("{built:?}")).into());
        }
        let n = graph.exact().n_slots();
        let ids = file.array::<u64>("ids", n)?.to_vec();
        let slots: HashMap<u64, u32> =
            graph.exact().live.iter().map(|slot| (ids[slot as usize], slot)).collect();
        if slots.len() != graph.len() {
            return Err(file.damaged("ids", "each once", "some twice").into());
        }
        let seq = info.seq;
        Ok(Self { graph, ids, slots, seq, unsaved: 0, origin: Origin::Empty })
    }

    /// Writes the index file.
    pub(super) fn save(
        &mut self,
        connection: &Connection,
        disk: &dyn Disk,
        collection: i64,
        path: &Path,
    ) -> Result<()> {
        let extra = FileInfo { uid: uid(connection, collection)?, seq: self.seq };
        self.graph.write(disk, path, extra, &[("ids", bytemuck::cast_slice(&self.ids))])?;
        self.unsaved = 0;
        Ok(())
    }

    /// Applies what the database has after `self.seq`; how many changes, or none if too much is forgotten.
    pub(super) fn catch_up(
        &mut self,
        connection: &Connection,
        collection: i64,
        config: &Config,
    ) -> Result<Option<usize>> {
        let (seq, pruned) = collection_seq(connection, collection)?;
        if seq == self.seq {
            return Ok(Some(0));
        }
        if pruned > self.seq || seq < self.seq {
            return Ok(None);
        }
        self.apply(connection, collection, config, false).map(Some)
    }

    fn apply(
        &mut self,
        connection: &Connection,
        collection: i64,
        config: &Config,
        from_scratch: bool,
    ) -> Result<usize> {
        let (seq, _) = collection_seq(connection, collection)?;
        let mut n_changes = 0;
        if !from_scratch {
            let sql = format!("SELECT id FROM removed_{collection} WHERE seq > ?1");
            let mut statement = connection.prepare_cached(&sql)?;
            let mut rows = statement.query([self.seq])?;
            while let Some(row) = rows.next()? {
                self.remove(row.get::<_, i64>(0)? as u64);
                n_changes += 1;
            }
        }
        // In the order of the ids, which is the order on the disk, if all are read.
        let condition = if from_scratch { "ORDER BY id" } else { "WHERE seq > ?1 ORDER BY seq, id" };
        let sql = format!("SELECT id, vector, payload, crc FROM points_{collection} {condition}");
        let mut statement = connection.prepare_cached(&sql)?;
        let mut rows = if from_scratch { statement.query([])? } else { statement.query([self.seq])? };
        while let Some(row) = rows.next()? {
            let id = row.get::<_, i64>(0)? as u64;
            let vector = row.get_ref(1)?.as_blob().map_err(rusqlite::Error::from)?;
            let payload = row.get_ref(2)?.as_str_or_null().map_err(rusqlite::Error::from)?;
            let crc: i64 = row.get(3)?;
            if change_crc(id, vector, payload) != crc {
                return Err(Error::Corrupt {
                    what: format!("point {id} of collection {collection}"),
                    expected: format!("checksum {crc:08x}"),
                    found: format!("{:08x}", change_crc(id, vector, payload)),
                });
            }
            let vector = config.element.decode(vector, config.dimension)?;
            self.upsert(id, &vector)?;
            n_changes += 1;
        }
        self.unsaved += n_changes;
        self.seq = seq;
        Ok(n_changes)
    }

    /// Puts a point's vector in place of the one it had.
    pub(super) fn upsert(&mut self, id: u64, vector: &[f32]) -> Result<()> {
        self.remove(id);
        let slot = self.graph.insert(vector)?;
        if self.ids.len() <= slot as usize {
            self.ids.resize(slot as usize + 1, 0);
        }
        self.ids[slot as usize] = id;
        self.slots.insert(id, slot);
        Ok(())
    }

    pub(super) fn remove(&mut self, id: u64) -> bool {
        let slot = self.slots.remove(&id);
        slot.is_some_and(|slot| self.graph.remove(slot))
    }
}

/// The last change of a collection, and the last one whose removals are forgotten.
pub(super) fn collection_seq(connection: &Connection, collection: i64) -> Result<(i64, i64)> {
    let mut statement = connection.prepare_cached("SELECT seq, pruned FROM collections WHERE id = ?1")?;
    let found = statement.query_row([collection], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    found.ok_or_else(|| Error::UnknownCollection { name: format!("#{collection}") })
}

fn uid(connection: &Connection, collection: i64) -> Result<i64> {
    Ok(connection.query_row("SELECT uid FROM collections WHERE id = ?1", [collection], |row| row.get(0))?)
}

impl Config {
    /// The settings of the graph.
    pub(super) fn graph(&self) -> GraphConfig {
        GraphConfig { links: self.links, build_effort: self.build_effort, ..GraphConfig::default() }
    }
}
