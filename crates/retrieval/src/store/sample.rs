//! Vectors that are read from the database: those that an index does not hold itself, and samples for the
//! center of codes.

use super::state::{Place, State, point_of};
use crate::{
    Error, Result,
    index::{
        Source,
        center::{self, Drift},
    },
    quantize::{CoarseCodes, ScalarCodes},
};
use rusqlite::{CachedStatement, Connection};
use std::{cell::RefCell, fmt};

/// The vectors of a state's slots, read from the database as of the state's change.
pub(super) struct Stored<'a> {
    place: Place<'a>,
    state: &'a State,
    statement: RefCell<CachedStatement<'a>>,
}

impl fmt::Debug for Stored<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Stored").field("place", &self.place).finish_non_exhaustive()
    }
}

impl<'a> Stored<'a> {
    pub(super) fn new(connection: &'a Connection, place: Place<'a>, state: &'a State) -> Result<Self> {
        let sql = format!("SELECT id, vector, payload, crc FROM points_{} WHERE id = ?1", place.collection);
        Ok(Self { place, state, statement: RefCell::new(connection.prepare_cached(&sql)?) })
    }

    /// The prepared vector of a point.
    fn point(&self, id: u64) -> Result<Vec<f32>> {
        let mut statement = self.statement.borrow_mut();
        let mut rows = statement.query([id as i64])?;
        let row = rows.next()?.ok_or(Error::UnknownPoint { id })?;
        Ok(point_of(row, self.place.config)?.0)
    }

    /// As [`point`](Self::point), or `None` for a point that is damaged or gone.
    fn get(&self, id: u64) -> Result<Option<Vec<f32>>> {
        match self.point(id) {
            Ok(vector) => Ok(Some(vector)),
            Err(Error::Corrupt { .. } | Error::UnknownPoint { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Source for Stored<'_> {
    fn read(&self, slot: u32) -> Result<Vec<f32>> {
        let id = self.state.ids.of_slots()[slot as usize];
        let vector = self.point(id);
        if let Err(Error::Corrupt { .. } | Error::UnknownPoint { .. }) = vector {
            self.state.suspect(id);
        }
        vector
    }
}

impl State {
    /// Looks for a center that suits the database's vectors and the `coming` ones better, and adopts it.
    pub(super) fn look_at_center(
        &mut self,
        connection: &Connection,
        place: Place<'_>,
        coming: &[Vec<f32>],
    ) -> Result<()> {
        if let Some((codes, coarse)) = self.around_better_center(connection, place, coming)? {
            self.graph.adopt(codes, coarse);
        }
        self.graph.flat.drift = Drift::default();
        Ok(())
    }

    /// The codes of all vectors around a center that suits them better, if there is one.
    ///
    /// The database may be ahead of this state: points that it no longer has are about to be removed here.
    pub(super) fn around_better_center(
        &self,
        connection: &Connection,
        place: Place<'_>,
        coming: &[Vec<f32>],
    ) -> Result<Option<(ScalarCodes, Option<CoarseCodes>)>> {
        let ids = sample_of_ids(connection, place)?;
        let stored = Stored::new(connection, place, self)?;
        let mut sample = coming.to_vec();
        for id in ids {
            sample.extend(stored.get(id)?);
        }
        let flat = &self.graph.flat;
        let Some(center) = center::better(flat.codes.center(), &sample) else { return Ok(None) };
        let n = flat.codes.len();
        let mut codes = flat.codes.around(center, n);
        for slot in 0..n as u32 {
            let at = slot as usize;
            if let Some(vector) = flat.vectors.get(slot) {
                codes.set(at, vector);
                continue;
            }
            let is_live = flat.slots.live.contains(slot);
            let vector = if is_live { stored.get(self.ids.of_slots()[at])? } else { None };
            // Links may still lead to removed ones.
            codes.set(at, &vector.unwrap_or_else(|| flat.codes.decode(at)));
        }
        let coarse = flat.coarse.is_some().then(|| CoarseCodes::of(&codes));
        Ok(Some((codes, coarse)))
    }
}

/// The ids of some points, evenly spread over all changes.
fn sample_of_ids(connection: &Connection, place: Place<'_>) -> Result<Vec<u64>> {
    // Only from the index by change, which is small.
    let n: i64 =
        connection
            .query_row(&format!("SELECT count(*) FROM points_{}", place.collection), [], |row| row.get(0))?;
    let mut wanted = center::evenly(n as usize).peekable();
    let mut ids = Vec::new();
    let sql = format!("SELECT id FROM points_{} ORDER BY seq", place.collection);
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query([])?;
    let mut at = 0;
    while let (Some(&next), Some(row)) = (wanted.peek(), rows.next()?) {
        if next == at {
            wanted.next();
            ids.push(row.get::<_, i64>(0)? as u64);
        }
        at += 1;
    }
    Ok(ids)
}
