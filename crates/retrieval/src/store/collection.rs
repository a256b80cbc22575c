//! Points of one collection: writing and reading; `search` has the rest.

use super::{
    Config, Inner, fields,
    filter::{Filter, Payload},
    points::{MAX_ID, Point, check_depth},
    shared::{CaughtUp, Shared},
    state::{Origin, Pending, State, collection_seq, stored_point},
};
use crate::{Error, Result, index::Index as _, metric};
use rusqlite::{Connection, OptionalExtension as _, TransactionBehavior, params};
use std::sync::{Arc, RwLockReadGuard, atomic::Ordering};

/// A collection of a [`Store`](super::Store). Clones share everything, and so do all handles of one store:
/// the index stays in memory as long as the store.
///
/// # Example
/// ```
/// use breakers_retrieval::{Metric, store::{Config, Filter, Point, Store}};
/// use serde_json::json;
///
/// let folder = tempfile::tempdir().unwrap();
/// let store = Store::open(folder.path())?;
/// let books = store.create("books", &Config::new(2, Metric::Cosine))?;
/// let point = |id, vector: [f32; 2], year| Point::new(id, vector).with_payload(json!({"year": year}));
/// books.upsert(&[point(1, [1.0, 0.0], 1990)?, point(2, [0.0, 1.0], 2005)?])?;
///
/// assert_eq!(books.count(&Filter::eq("year", 2005))?, 1);
/// assert_eq!(books.get(&[2])?[0].as_ref().unwrap().vector, [0.0, 1.0]);
/// assert_eq!(books.scroll(0, 10, None)?.len(), 2);
/// assert_eq!((books.delete(&[1])?, books.len()?), (1, 1));
/// # Ok::<(), breakers_retrieval::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Collection {
    pub(super) store: Arc<Inner>,
    pub(super) shared: Arc<Shared>,
}

/// After this many removals, the remembered ones are counted.
const CHECK_REMOVALS: usize = 1000;
/// This many removals, plus twice the number of points, are remembered.
const KEPT_REMOVALS: i64 = 5000;

/// How often a damaged point is looked for without one being found: another thread may have found it.
const MOST_IN_VAIN: usize = 3;

/// The checksum of a stored point.
pub(super) fn change_crc(id: u64, vector: &[u8], payload: Option<&str>) -> i64 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&id.to_le_bytes());
    crc.update(vector);
    crc.update(payload.unwrap_or_default().as_bytes());
    crc.finalize().into()
}

impl Config {
    /// The vector that is compared: rounded to the stored form, then prepared.
    fn kept(&self, vector: &[f32]) -> Result<Vec<f32>> {
        let mut kept = self.element.decode(&self.element.encode(vector)?, self.dimension)?;
        self.metric.prepare("the vector", &mut kept)?;
        Ok(kept)
    }
}

impl Collection {
    /// Its name in the store.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// The settings that it was created with.
    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    /// How the index in memory came about.
    pub fn origin(&self) -> Origin {
        self.shared.state().origin.clone()
    }

    /// Bytes of the index in memory, without the vectors in full precision.
    pub fn index_bytes(&self) -> usize {
        self.shared.state().graph.bytes()
    }

    /// Adds points, or replaces those of the same id, all of them or none. When this returns they are
    /// durable, as far as [`Durability`](super::Durability) goes.
    ///
    /// # Errors
    /// [`Error::Dimension`], [`Error::NotFinite`], [`Error::ZeroVector`], [`Error::ElementRange`],
    /// [`Error::Parameter`] for an id above [`MAX_ID`], [`Error::PayloadDepth`], [`Error::Sqlite`],
    /// [`Error::Io`] if the database's file was removed or replaced.
    pub fn upsert(&self, points: &[Point]) -> Result<()> {
        let config = &self.shared.config;
        // All are checked before anything is written; later they are prepared one by one, so a batch takes no
        // extra memory.
        for point in points {
            if point.id > MAX_ID {
                return Err(Error::parameter("id", format!("at most {MAX_ID}"), point.id));
            }
            metric::check_length("the vector", &point.vector, config.dimension)?;
            metric::check_finite("the vector", &point.vector)?;
            config.kept(&point.vector)?;
            point.payload.as_ref().map_or(Ok(()), check_depth)?;
        }
        if points.is_empty() {
            return self.read(|connection| collection_seq(connection, self.shared.id).map(|_| ()));
        }
        self.write(points, &[], |transaction, seq| {
            let id = self.shared.id;
            let mut known = transaction.prepare_cached(&format!("SELECT 1 FROM points_{id} WHERE id = ?1"))?;
            let mut insert = transaction.prepare_cached(&format!(
                "INSERT OR REPLACE INTO points_{id}(id, seq, crc, payload, vector) VALUES (?1, ?2, ?3, ?4, ?5)"
            ))?;
            let mut revive = transaction.prepare_cached(&format!("DELETE FROM removed_{id} WHERE id = ?1"))?;
            let mut added = 0;
            for point in points {
                let bytes = config.element.encode(&point.vector)?;
                let payload = point.payload.as_ref().map(serde_json::to_string).transpose()?;
                let key = point.id as i64;
                if known.exists([key])? {
                    fields::remove(transaction, id, key)?;
                } else {
                    revive.execute([key])?;
                    added += 1;
                }
                let crc = change_crc(point.id, &bytes, payload.as_deref());
                insert.execute(params![key, seq, crc, payload, bytes])?;
                if let Some(payload) = &point.payload {
                    fields::insert(transaction, id, &self.shared.config.indexed, key, payload)?;
                }
            }
            Ok((added, added))
        })?;
        Ok(())
    }

    /// Removes points, all of them or none. Returns how many there were.
    ///
    /// # Errors
    /// [`Error::Sqlite`], [`Error::Io`] if the database's file was removed or replaced.
    pub fn delete(&self, ids: &[u64]) -> Result<usize> {
        let removed = self.write(&[], ids, |transaction, seq| {
            let id = self.shared.id;
            let mut delete = transaction.prepare_cached(&format!("DELETE FROM points_{id} WHERE id = ?1"))?;
            let mut note = transaction
                .prepare_cached(&format!("INSERT OR REPLACE INTO removed_{id}(id, seq) VALUES (?1, ?2)"))?;
            let mut removed = 0i64;
            for &point in ids.iter().filter(|&&point| point <= MAX_ID) {
                if delete.execute([point as i64])? > 0 {
                    note.execute([point as i64, seq])?;
                    fields::remove(transaction, id, point as i64)?;
                    removed += 1;
                }
            }
            self.forget_removals(transaction, removed as usize)?;
            Ok((-removed, removed))
        })?;
        Ok(removed as usize)
    }

    /// Forgets the older half of the removals when there are far more than points: a process that has not
    /// seen them by now has missed more than there are points, and builds its index anew.
    fn forget_removals(&self, transaction: &Connection, n: usize) -> Result<()> {
        let since = self.shared.removals.fetch_add(n, Ordering::Relaxed);
        // Also the first time, because other processes may remove a few each.
        if since != 0 && since + n < CHECK_REMOVALS {
            return Ok(());
        }
        self.shared.removals.store(1, Ordering::Relaxed);
        let id = self.shared.id;
        let count = |sql: &str| transaction.query_row(sql, [], |row| row.get::<_, i64>(0));
        let n_removed = count(&format!("SELECT count(*) FROM removed_{id}"))?;
        let n_points = count(&format!("SELECT n_points FROM collections WHERE id = {id}"))?;
        if n_removed <= KEPT_REMOVALS + 2 * n_points {
            return Ok(());
        }
        let until =
            count(&format!("SELECT seq FROM removed_{id} ORDER BY seq LIMIT 1 OFFSET {}", n_removed / 2))?;
        transaction.execute(&format!("DELETE FROM removed_{id} WHERE seq <= ?1"), [until])?;
        transaction.execute("UPDATE collections SET pruned = max(pruned, ?1) WHERE id = ?2", [until, id])?;
        Ok(())
    }

    /// A transaction that changes points, and the same changes in the index.
    ///
    /// `change` returns the change of the number of points, and the result. Vectors are linked before the
    /// transaction begins, which keeps it short, and searches find them once it has ended.
    fn write(
        &self,
        points: &[Point],
        removed: &[u64],
        change: impl FnOnce(&Connection, i64) -> Result<(i64, i64)>,
    ) -> Result<i64> {
        let shared = &*self.shared;
        shared.check_not_removed()?;
        let changing = shared.change(&self.store)?;
        let mut pending = Pending { removed: removed.to_vec(), ..Pending::default() };
        pending.added.reserve_exact(points.len());
        let written = (|| {
            let kept = |i: usize| shared.config.kept(&points[i].vector);
            let link = |pending: &mut Pending| {
                let mut points = points.iter();
                points.try_for_each(|point| {
                    shared.link(&changing, pending, point.id, &shared.config.kept(&point.vector)?)
                })
            };
            shared.catch_up_now(&self.store, &changing)?;
            if shared.is_center_due(points.len()) {
                self.store.read(|connection| {
                    let transaction = connection.unchecked_transaction()?;
                    shared.look_at_center(&self.store, &changing, &transaction, points.len(), kept)
                })?;
            }
            link(&mut pending)?;
            let mut writer = self.store.writer()?;
            let transaction = writer.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let (before, _) = collection_seq(&transaction, shared.id)?;
            if shared.catch_up(&self.store, &changing, &transaction)? == CaughtUp::Anew {
                pending.added.clear();
                link(&mut pending)?;
            }
            let seq = before + 1;
            let (difference, result) = change(&transaction, seq)?;
            self.store.check_in_place()?;
            transaction
                .prepare_cached("UPDATE collections SET seq = ?1, n_points = n_points + ?2 WHERE id = ?3")?
                .execute([seq, difference, shared.id])?;
            transaction.commit()?;
            Ok((seq, result))
        })();
        match written {
            Ok((seq, result)) => {
                shared.finish(&changing, &pending, seq);
                drop((changing, pending));
                self.store.note_change(shared);
                Ok(result)
            }
            Err(error) => {
                shared.discard(&changing, &pending);
                Err(self.removed_or(error))
            }
        }
    }

    /// Reads from the database, in one transaction.
    pub(super) fn read<R>(&self, f: impl FnOnce(&Connection) -> Result<R>) -> Result<R> {
        self.shared.check_not_removed()?;
        let result = self.store.read(|connection| {
            let transaction = connection.unchecked_transaction()?;
            f(&transaction)
        });
        result.map_err(|error| self.removed_or(error))
    }

    /// The error; [`Error::CollectionRemoved`] if that is its cause.
    pub(super) fn removed_or(&self, error: Error) -> Error {
        if !matches!(error, Error::Sqlite(_) | Error::UnknownCollection { .. }) {
            return error;
        }
        match self.store.read(|connection| collection_seq(connection, self.shared.id)) {
            Err(Error::UnknownCollection { .. }) => {
                Error::CollectionRemoved { name: self.shared.name.clone() }
            }
            _ => error,
        }
    }

    /// Number of points.
    ///
    /// # Errors
    /// [`Error::Sqlite`].
    pub fn len(&self) -> Result<usize> {
        let sql = "SELECT n_points FROM collections WHERE id = ?1";
        self.read(|connection| {
            let n: i64 = connection.prepare_cached(sql)?.query_row([self.shared.id], |row| row.get(0))?;
            Ok(n as usize)
        })
    }

    /// Whether there are no points.
    ///
    /// # Errors
    /// [`Error::Sqlite`].
    pub fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Number of points that satisfy a condition.
    ///
    /// # Errors
    /// [`Error::Filter`], [`Error::Sqlite`].
    pub fn count(&self, filter: &Filter) -> Result<usize> {
        filter.check()?;
        self.refresh()?;
        self.together(|connection, state| Ok(self.matching(filter, connection, &state)?.count()))
    }

    /// Points by id, in the order asked for, `None` for unknown ids. The vectors are as they were stored.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for a point that is not as it was written, [`Error::Sqlite`].
    pub fn get(&self, ids: &[u64]) -> Result<Vec<Option<Point>>> {
        self.read(|connection| {
            let sql = format!("SELECT id, vector, payload, crc FROM points_{} WHERE id = ?1", self.shared.id);
            let mut statement = connection.prepare_cached(&sql)?;
            let mut points = Vec::with_capacity(ids.len());
            for &id in ids {
                let key = i64::try_from(id).unwrap_or(-1);
                points.push(statement.query_row([key], |row| Ok(self.point(row))).optional()?.transpose()?);
            }
            Ok(points)
        })
    }

    /// Up to `limit` points with ids from `start` on, ascending, that satisfy a condition. Points that are
    /// [damaged](Self::damaged) are left out.
    ///
    /// # Errors
    /// [`Error::Filter`], [`Error::Sqlite`].
    pub fn scroll(&self, start: u64, limit: usize, filter: Option<&Filter>) -> Result<Vec<Point>> {
        if let Some(filter) = filter {
            filter.check()?;
        }
        self.read(|connection| {
            let sql = format!(
                "SELECT id, vector, payload, crc FROM points_{} WHERE id >= ?1 ORDER BY id",
                self.shared.id
            );
            let mut statement = connection.prepare_cached(&sql)?;
            let Ok(start) = i64::try_from(start) else { return Ok(Vec::new()) };
            let mut rows = statement.query([start])?;
            let (mut points, empty) = (Vec::new(), Payload::new());
            while points.len() < limit {
                let Some(row) = rows.next()? else { break };
                let point = match self.point(row) {
                    Err(error @ Error::Corrupt { .. }) => {
                        tracing::warn!("{:?} goes on without a point: {error}", self.shared.name);
                        continue;
                    }
                    point => point?,
                };
                if filter.is_none_or(|filter| filter.matches(point.payload.as_ref().unwrap_or(&empty))) {
                    points.push(point);
                }
            }
            Ok(points)
        })
    }

    fn point(&self, row: &rusqlite::Row<'_>) -> Result<Point> {
        let (vector, payload) = stored_point(row, &self.shared.config)?;
        Ok(Point {
            id: row.get::<_, i64>(0)? as u64,
            vector,
            payload: payload.map(fields::parse).transpose()?,
        })
    }

    /// Writes the index file; the next start then need not build the index.
    ///
    /// # Errors
    /// [`Error::Io`]; the collection and an older file then stay as they were.
    pub fn save_index(&self) -> Result<()> {
        self.shared.save(&self.store).map_err(|error| self.removed_or(error))
    }

    /// Builds the index anew from the database. Searches go on with the old one until then.
    ///
    /// # Errors
    /// [`Error::Sqlite`], [`Error::Corrupt`], [`Error::Busy`].
    pub fn rebuild_index(&self) -> Result<()> {
        self.shared.check_not_removed()?;
        self.shared.rebuild(&self.store, "asked for").map_err(|error| self.removed_or(error))
    }

    /// Points that are not as they were written: searches, [`count`](Self::count) and
    /// [`scroll`](Self::scroll) go on without them, [`get`](Self::get) says what is wrong, and
    /// [`Store::repair`](super::Store::repair) takes them out.
    pub fn damaged(&self) -> Vec<u64> {
        self.shared.state().damaged.iter().copied().collect()
    }

    pub(super) fn refresh(&self) -> Result<()> {
        self.shared.refresh(&self.store).map_err(|error| self.removed_or(error))
    }

    pub(super) fn together<R>(
        &self,
        mut f: impl FnMut(&Connection, RwLockReadGuard<'_, State>) -> Result<R>,
    ) -> Result<R> {
        let mut n_in_vain = 0;
        loop {
            let result = self.shared.together(&self.store, &mut f);
            let is_damage = matches!(result, Err(Error::Corrupt { .. } | Error::UnknownPoint { .. }));
            if !is_damage || n_in_vain == MOST_IN_VAIN {
                return result.map_err(|error| self.removed_or(error));
            }
            // A point that was damaged while the collection is open hides none of the others.
            let n = self.shared.take_out_damaged(&self.store).map_err(|error| self.removed_or(error))?;
            n_in_vain = if n == 0 { n_in_vain + 1 } else { 0 };
        }
    }
}
