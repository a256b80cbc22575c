//! Points of one collection: writing and reading; `search` has the rest.

use super::{
    Config, fields,
    filter::{Filter, Payload},
    points::{MAX_ID, Point},
    shared::{Shared, lock},
    state::{Origin, State, collection_seq},
};
use crate::{Error, Result, index::Index as _, metric};
use rusqlite::{Connection, OptionalExtension as _, TransactionBehavior, params};
use std::sync::Arc;

/// A collection of a [`Store`](super::Store). Clones share everything.
#[derive(Debug, Clone)]
pub struct Collection {
    pub(super) shared: Arc<Shared>,
}

/// The checksum of a stored point.
pub(super) fn change_crc(id: u64, vector: &[u8], payload: Option<&str>) -> i64 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&id.to_le_bytes());
    crc.update(vector);
    crc.update(payload.unwrap_or_default().as_bytes());
    crc.finalize().into()
}

impl Collection {
    /// The name.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// The settings.
    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    /// Where the index in memory came from.
    pub fn origin(&self) -> Origin {
        self.shared.state().origin.clone()
    }

    /// Bytes of the index in memory, without the vectors in full precision.
    pub fn index_bytes(&self) -> usize {
        self.shared.state().graph.bytes()
    }

    /// Adds points, or replaces those of the same id, all of them or none. When this returns they are durable, as far as
    /// [`Durability`](super::Durability) goes.
    ///
    /// # Errors
    /// [`Error::Dimension`], [`Error::NotFinite`], [`Error::ZeroVector`], [`Error::Parameter`] for an id above [`MAX_ID`],
    /// [`Error::Sqlite`].
    pub fn upsert(&self, points: &[Point]) -> Result<()> {
        let config = &self.shared.config;
        let mut rows = Vec::with_capacity(points.len());
        for point in points {
            if point.id > MAX_ID {
                return Err(Error::parameter("id", format!("at most {MAX_ID}"), point.id));
            }
            metric::check_length("the vector", &point.vector, config.dimension)?;
            metric::check_finite("the vector", &point.vector)?;
            let bytes = config.element.encode(&point.vector);
            // What is kept is what is compared.
            let mut kept = config.element.decode(&bytes, config.dimension)?;
            config.metric.prepare("the vector", &mut kept)?;
            let payload = point.payload.as_ref().map(serde_json::to_string).transpose()?;
            rows.push((point, bytes, kept, payload));
        }
        if rows.is_empty() {
            return Ok(());
        }
        self.write(|transaction, seq| {
            let id = self.shared.id;
            let mut known = transaction.prepare_cached(&format!("SELECT 1 FROM points_{id} WHERE id = ?1"))?;
            let mut insert = transaction.prepare_cached(&format!(
                "INSERT OR REPLACE INTO points_{id}(id, seq, crc, payload, vector) VALUES (?1, ?2, ?3, ?4, ?5)"
            ))?;
            let mut revive = transaction.prepare_cached(&format!("DELETE FROM removed_{id} WHERE id = ?1"))?;
            let mut added = 0;
            for (point, bytes, _, payload) in &rows {
                let key = point.id as i64;
                if known.exists([key])? {
                    fields::remove(transaction, id, key)?;
                } else {
                    revive.execute([key])?;
                    added += 1;
                }
                let crc = change_crc(point.id, bytes, payload.as_deref());
                insert.execute(params![key, seq, crc, payload, bytes])?;
                if let Some(payload) = &point.payload {
                    fields::insert(transaction, id, &self.shared.config.indexed, key, payload)?;
                }
            }
            Ok((added, added))
        }, |state, _| {
            for (point, _, kept, _) in &rows {
                state.upsert(point.id, kept)?;
            }
            Ok(rows.len())
        })?;
        Ok(())
    }

    /// Removes points, all of them or none; how many there were.
    ///
    /// # Errors
    /// [`Error::Sqlite`].
    pub fn delete(&self, ids: &[u64]) -> Result<usize> {
        let removed = self.write(
            |transaction, seq| {
                let id = self.shared.id;
                let mut delete =
                    transaction.prepare_cached(&format!("DELETE FROM points_{id} WHERE id = ?1"))?;
                let mut note = transaction.prepare_cached(&format!(
                    "INSERT OR REPLACE INTO removed_{id}(id, seq) VALUES (?1, ?2)"
                ))?;
                let mut removed = 0i64;
                for &point in ids.iter().filter(|&&point| point <= MAX_ID) {
                    if delete.execute([point as i64])? > 0 {
                        note.execute([point as i64, seq])?;
                        fields::remove(transaction, id, point as i64)?;
                        removed += 1;
                    }
                }
                Ok((-removed, removed))
            },
            |state, _| Ok(ids.iter().filter(|&&id| state.remove(id)).count()),
        )?;
        Ok(removed as usize)
    }

    /// A transaction that changes points, and the same changes in memory.
    ///
    /// `change` returns by how much the number of points changes, and what to return.
    fn write(
        &self,
        change: impl FnOnce(&Connection, i64) -> Result<(i64, i64)>,
        apply: impl FnOnce(&mut State, i64) -> Result<usize>,
    ) -> Result<i64> {
        let shared = &*self.shared;
        let mut writer = lock(&shared.store.writer);
        let transaction = writer.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let (before, _) = collection_seq(&transaction, shared.id)?;
        let seq = before + 1;
        let (difference, result) = change(&transaction, seq)?;
        transaction
            .prepare_cached("UPDATE collections SET seq = ?1, n_points = n_points + ?2 WHERE id = ?3")?
            .execute([seq, difference, shared.id])?;
        transaction.commit()?;
        // Committed: from here on nothing may fail but the index in memory, which can be had from the database again.
        let mut state = shared.state_mut();
        if state.seq == before
            && let Ok(n) = apply(&mut state, seq)
        {
            state.seq = seq;
            state.unsaved += n;
            return Ok(result);
        }
        drop(state);
        if let Err(error) = shared.catch_up(&writer) {
            tracing::warn!("the index of {} is behind: {error}", shared.name);
        }
        Ok(result)
    }

    /// Number of points.
    ///
    /// # Errors
    /// [`Error::Sqlite`].
    pub fn len(&self) -> Result<usize> {
        let sql = "SELECT n_points FROM collections WHERE id = ?1";
        self.shared.store.read(|connection| {
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
        self.shared.refresh()?;
        let (_state, set) = self.matching(filter)?;
        Ok(set.count())
    }

    /// Points by id, in the order asked for; none for ids that there are not. The vectors are as they were stored.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for a point that is not as it was written, [`Error::Sqlite`].
    pub fn get(&self, ids: &[u64]) -> Result<Vec<Option<Point>>> {
        self.shared.store.read(|connection| {
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

    /// Up to `limit` points with ids from `start` on, ascending, that satisfy a condition.
    ///
    /// # Errors
    /// As [`get`](Self::get), and [`Error::Filter`].
    pub fn scroll(&self, start: u64, limit: usize, filter: Option<&Filter>) -> Result<Vec<Point>> {
        if let Some(filter) = filter {
            filter.check()?;
        }
        self.shared.store.read(|connection| {
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
                let point = self.point(row)?;
                if filter.is_none_or(|filter| filter.matches(point.payload.as_ref().unwrap_or(&empty))) {
                    points.push(point);
                }
            }
            Ok(points)
        })
    }

    fn point(&self, row: &rusqlite::Row<'_>) -> Result<Point> {
        let config = &self.shared.config;
        let id = row.get::<_, i64>(0)? as u64;
        let vector = row.get_ref(1)?.as_blob().map_err(rusqlite::Error::from)?;
        let payload = row.get_ref(2)?.as_str_or_null().map_err(rusqlite::Error::from)?;
        let (expected, found) = (row.get::<_, i64>(3)?, change_crc(id, vector, payload));
        if expected != found {
            return Err(Error::Corrupt {
                what: format!("point {id} of {:?}", self.shared.name),
                expected: format!("checksum {expected:08x}"),
                found: format!("{found:08x}"),
            });
        }
        let vector = config.element.decode(vector, config.dimension)?;
        Ok(Point { id, vector, payload: payload.map(fields::parse).transpose()? })
    }

    /// Writes the index file, so that the next start need not build the index.
    ///
    /// # Errors
    /// [`Error::Io`]; the collection and an older file are as they were.
    pub fn save_index(&self) -> Result<()> {
        self.shared.save()
    }

    /// Builds the index anew from the database.
    ///
    /// # Errors
    /// [`Error::Sqlite`], [`Error::Corrupt`].
    pub fn rebuild_index(&self) -> Result<()> {
        let shared = &*self.shared;
        let writer = lock(&shared.store.writer);
        let transaction = writer.unchecked_transaction()?;
        let state = State::rebuild(&transaction, shared.id, &shared.config, "asked for".to_owned())?;
        *shared.state_mut() = state;
        Ok(())
    }
}
