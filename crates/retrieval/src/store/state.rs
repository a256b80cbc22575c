//! What a process keeps of a collection in memory: the index, and which point each slot holds. All of it is
//! derived from the database.

use super::{Config, collection::change_crc, filter::Filter, ids::Ids, shared::lock};
use crate::{
    Bitset, Error, Result,
    index::{Exact, Graph, GraphConfig, Index as _},
};
use breakers_files::{Disk, sections::SectionFile};
use rusqlite::{Connection, OptionalExtension as _, Row};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    fmt,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

/// The number of filters whose sets are kept.
const KEPT_FILTERS: usize = 32;

/// What an index file says about the collection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileInfo {
    /// The collection's random number; a restored backup gets another one.
    uid: i64,
    /// The last change that the file contains.
    seq: i64,
}

/// The collection that the index belongs to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) collection: i64,
    pub(super) config: &'a Config,
    /// Whether full vectors stay in the database.
    pub(super) on_disk: bool,
    /// The number of points to reserve room for.
    pub(super) expected: usize,
}

/// Index and slots as of a change.
#[derive(Debug)]
pub(super) struct State {
    pub(super) graph: Graph,
    /// The point in each slot.
    pub(super) ids: Ids,
    /// The last change that this contains.
    pub(super) seq: i64,
    /// How the index came about, for reports.
    pub(super) origin: Origin,
    /// Points that are not as they were written, and are therefore in no slot.
    pub(super) damaged: BTreeSet<u64>,
    /// Points that still have a slot, but were not as they were written when they were read again.
    suspects: Mutex<BTreeSet<u64>>,
    /// Changes since the file was written.
    unsaved: AtomicUsize,
    /// Sets of slots that satisfy filters. They live here because they are valid only for this numbering of
    /// the slots.
    filters: Mutex<Vec<(Filter, Arc<Bitset>)>>,
}

/// Vectors that are stored in the index but not shown yet, and those that are to be removed.
#[derive(Debug, Default)]
pub(super) struct Pending {
    pub(super) added: Vec<(u64, u32)>,
    pub(super) removed: Vec<u64>,
    pub(super) damaged: Vec<u64>,
}

/// How a collection's index in memory came about.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// It began empty.
    Empty,
    /// From the index file and the changes after it.
    File {
        /// How many changes the file did not have.
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
    fn empty(place: Place<'_>) -> Result<Self> {
        let Place { config, .. } = place;
        let new = if place.on_disk { Exact::lean } else { Exact::new };
        let mut graph = Graph::over(new(config.metric, config.dimension)?, config.graph())?;
        graph.reserve(place.expected);
        Ok(Self::new(graph, Ids::expecting(place.expected), 0))
    }

    fn new(graph: Graph, ids: Ids, seq: i64) -> Self {
        Self {
            graph,
            ids,
            seq,
            origin: Origin::Empty,
            damaged: BTreeSet::new(),
            suspects: Mutex::default(),
            unsaved: AtomicUsize::new(0),
            filters: Mutex::default(),
        }
    }

    /// Changes that the index file does not have.
    pub(super) fn n_unsaved(&self) -> usize {
        self.unsaved.load(Ordering::Relaxed)
    }

    pub(super) fn note_unsaved(&self, n: usize) {
        self.unsaved.fetch_add(n, Ordering::Relaxed);
    }

    /// Notes a point whose row is not as it was written. The caller then returns an error, upon which
    /// [`Collection::together`](super::Collection) takes the point out and asks again.
    pub(super) fn suspect(&self, id: u64) {
        lock(&self.suspects).insert(id);
    }

    /// The points noted since this was last called.
    pub(super) fn take_suspects(&self) -> BTreeSet<u64> {
        std::mem::take(&mut *lock(&self.suspects))
    }

    /// The slots that satisfy a filter, if they are known.
    pub(super) fn kept_filter(&self, filter: &Filter) -> Option<Arc<Bitset>> {
        let kept = lock(&self.filters);
        kept.iter().find(|(known, _)| known == filter).map(|(_, set)| Arc::clone(set))
    }

    pub(super) fn keep_filter(&self, filter: &Filter, set: &Arc<Bitset>) {
        let mut kept = lock(&self.filters);
        kept.retain(|(known, _)| known != filter);
        if kept.len() == KEPT_FILTERS {
            kept.remove(0);
        }
        kept.push((filter.clone(), Arc::clone(set)));
    }

    /// Shows what is pending as the state of this change. Returns the slots that are no longer shown, to be
    /// unlinked.
    pub(super) fn finish(&mut self, pending: &Pending, seq: i64) -> Vec<u32> {
        lock(&self.filters).clear();
        let mut gone = Vec::new();
        for id in &pending.removed {
            self.damaged.remove(id);
            gone.extend(self.ids.remove(*id));
        }
        self.ids.grow(self.graph.exact().n_slots());
        for &(id, slot) in &pending.added {
            self.damaged.remove(&id);
            gone.extend(self.ids.insert(id, slot));
            self.graph.flat.slots.show(slot);
        }
        for id in &pending.damaged {
            gone.extend(self.ids.remove(*id));
            self.damaged.insert(*id);
        }
        for &slot in &gone {
            self.graph.flat.slots.retire(slot);
        }
        self.graph.flat.drift.add(gone.len());
        self.note_unsaved(pending.added.len() + pending.removed.len());
        self.seq = seq;
        gone
    }

    /// From the index file if it can be used, and the database.
    pub(super) fn load(connection: &Connection, place: Place<'_>, path: &Path) -> Result<Self> {
        let transaction = connection.unchecked_transaction()?;
        let reason = match Self::read(&transaction, place, path) {
            Ok(mut state) => {
                let caught_up = state.apply(&transaction, place, Some(state.seq))?;
                state.origin = Origin::File { caught_up };
                return Ok(state);
            }
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                "there is none".to_owned()
            }
            Err(error @ (Error::Damaged { .. } | Error::Files(_) | Error::Io { .. })) => {
                tracing::warn!("the index of collection {} is rebuilt: {error}", place.collection);
                // Once the database has moved on, a file of another history could look like one of this one.
                let _ = std::fs::remove_file(path);
                error.to_string()
            }
            Err(error) => return Err(error),
        };
        Self::rebuild(&transaction, place, reason)
    }

    /// From the database alone.
    pub(super) fn rebuild(connection: &Connection, place: Place<'_>, reason: String) -> Result<Self> {
        let mut state = Self::empty(place)?;
        state.look_at_center(connection, place, &[])?;
        state.apply(connection, place, None)?;
        if state.n_unsaved() > 0 {
            state.origin = Origin::Rebuilt { reason };
        }
        Ok(state)
    }

    /// Links from the index file, and vectors from the database, as of the file's last change. Later writes
    /// and removals are not included.
    fn read(connection: &Connection, place: Place<'_>, path: &Path) -> Result<Self> {
        let Place { collection, config, on_disk, .. } = place;
        let file = SectionFile::open(path)?;
        let mut graph = Graph::read::<FileInfo>(&file, on_disk)?;
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
        let of_slots = file.array::<u64>("ids", n)?;
        let live = &graph.exact().slots.live;
        let mut ids = Ids::expecting(place.expected.max(n));
        ids.grow(n);
        for slot in live.iter() {
            ids.insert(of_slots[slot as usize], slot);
        }
        if ids.len() != graph.len() {
            return Err(file.damaged("ids", "each once", "some twice").into());
        }
        let (mut missing, mut damaged) = (live.clone(), BTreeSet::new());
        let sql = format!("SELECT id, vector, payload, crc, seq FROM points_{collection} ORDER BY id");
        let mut statement = connection.prepare(&sql)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            if row.get::<_, i64>(4)? > info.seq {
                continue;
            }
            let id = row.get::<_, i64>(0)? as u64;
            match (point_of(row, config), ids.slot(id)) {
                (Ok((vector, _)), Some(slot)) => {
                    graph.flat.set(slot, &vector)?;
                    missing.remove(slot);
                }
                (Ok(_), None) => return Err(file.damaged("ids", &format!("{id}, too"), "others").into()),
                (Err(error @ Error::Corrupt { .. }), _) => {
                    tracing::warn!("collection {collection} goes on without point {id}: {error}");
                    damaged.insert(id);
                }
                (Err(error), _) => return Err(error),
            }
        }
        let lost: Vec<u32> = missing.iter().collect();
        if lost.len() > graph.len() / 2 {
            let (expected, found) = (graph.len(), graph.len() - lost.len());
            return Err(file.damaged("points left", &expected.to_string(), &found.to_string()).into());
        }
        graph.complete(&lost);
        let mut state = Self::new(graph, ids, info.seq);
        for slot in lost {
            state.ids.remove(of_slots[slot as usize]);
        }
        state.damaged = damaged;
        Ok(state)
    }

    /// Writes the index file.
    pub(super) fn save(
        &self,
        connection: &Connection,
        disk: &dyn Disk,
        collection: i64,
        path: &Path,
    ) -> Result<()> {
        let extra = FileInfo { uid: uid(connection, collection)?, seq: self.seq };
        self.graph.write(disk, path, extra, &[("ids", bytemuck::cast_slice(self.ids.of_slots()))])?;
        self.unsaved.store(0, Ordering::Relaxed);
        Ok(())
    }

    /// Applies the changes of the database after `self.seq`. Returns how many, or `None` if some are
    /// forgotten already.
    pub(super) fn catch_up(&mut self, connection: &Connection, place: Place<'_>) -> Result<Option<usize>> {
        let (seq, pruned) = collection_seq(connection, place.collection)?;
        if seq == self.seq {
            return Ok(Some(0));
        }
        if pruned > self.seq || seq < self.seq {
            return Ok(None);
        }
        self.apply(connection, place, Some(self.seq)).map(Some)
    }

    fn apply(&mut self, connection: &Connection, place: Place<'_>, since: Option<i64>) -> Result<usize> {
        let (seq, _) = collection_seq(connection, place.collection)?;
        let mut pending = Pending::default();
        Self::read_changes(connection, place, since, &mut pending, |pending, id, vector| {
            let slot = self.graph.store(vector)?;
            let place = self.graph.find_place(slot);
            self.graph.link(slot, &place);
            pending.added.push((id, slot));
            Ok(())
        })?;
        for slot in self.finish(&pending, seq) {
            self.graph.unlink(slot);
        }
        Ok(pending.added.len() + pending.removed.len())
    }

    /// Reads what was removed after a change, or nothing, and then each point that was written after it,
    /// prepared.
    ///
    /// A damaged point does not keep the others from being read.
    pub(super) fn read_changes(
        connection: &Connection,
        place: Place<'_>,
        since: Option<i64>,
        pending: &mut Pending,
        mut add: impl FnMut(&mut Pending, u64, &[f32]) -> Result<()>,
    ) -> Result<()> {
        let Place { collection, config, .. } = place;
        if let Some(since) = since {
            let sql = format!("SELECT id FROM removed_{collection} WHERE seq > ?1");
            let mut statement = connection.prepare_cached(&sql)?;
            let mut rows = statement.query([since])?;
            while let Some(row) = rows.next()? {
                pending.removed.push(row.get::<_, i64>(0)? as u64);
            }
        }
        // In the order of the ids, which is the order on the disk, if all are read.
        let condition = if since.is_none() { "ORDER BY id" } else { "WHERE seq > ?1 ORDER BY seq, id" };
        let sql = format!("SELECT id, vector, payload, crc FROM points_{collection} {condition}");
        let mut statement = connection.prepare_cached(&sql)?;
        let mut rows =
            if let Some(since) = since { statement.query([since])? } else { statement.query([])? };
        while let Some(row) = rows.next()? {
            let id = row.get::<_, i64>(0)? as u64;
            match point_of(row, config) {
                Ok((vector, _)) => add(pending, id, &vector)?,
                Err(error @ Error::Corrupt { .. }) => {
                    tracing::warn!("collection {collection} goes on without point {id}: {error}");
                    pending.damaged.push(id);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// The prepared vector and the payload of a row of id, vector, payload and checksum.
///
/// # Errors
/// [`Error::Corrupt`] if they are not what was written.
pub(super) fn point_of<'a>(row: &'a Row<'_>, config: &Config) -> Result<(Vec<f32>, Option<&'a str>)> {
    let (mut vector, payload) = stored_point(row, config)?;
    config.metric.prepare("the vector", &mut vector).map_err(|error| Error::Corrupt {
        what: "a vector".to_owned(),
        expected: "one that can be compared".to_owned(),
        found: error.to_string(),
    })?;
    Ok((vector, payload))
}

/// As [`point_of`], with the vector as stored.
pub(super) fn stored_point<'a>(row: &'a Row<'_>, config: &Config) -> Result<(Vec<f32>, Option<&'a str>)> {
    let id = row.get::<_, i64>(0)? as u64;
    // Damage may also change the types of columns.
    let corrupt =
        |expected: String, found: String| Error::Corrupt { what: format!("point {id}"), expected, found };
    let other_type = |_| corrupt("a vector and a payload".to_owned(), "columns of other types".to_owned());
    let vector = row.get_ref(1)?.as_blob().map_err(other_type)?;
    let payload = row.get_ref(2)?.as_str_or_null().map_err(other_type)?;
    let (expected, found) = (row.get_ref(3)?.as_i64().map_err(other_type)?, change_crc(id, vector, payload));
    if expected != found {
        return Err(corrupt(format!("checksum {expected:08x}"), format!("{found:08x}")));
    }
    Ok((config.element.decode(vector, config.dimension)?, payload))
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
