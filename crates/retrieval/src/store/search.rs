//! Searches of a collection: exact sets of the points that match a filter, and the strategy that the planner
//! chooses.

use super::{
    Collection,
    fields::{self, Evaluation},
    filter::Filter,
    points::{Hit, Query},
    sample::Stored,
    state::State,
};
use crate::{
    Bitset, Error, Result,
    index::{Index as _, Neighbor, Plan, Search, Size, Strategy, Tuned, tune},
    metric,
};
use rusqlite::Connection;
use std::sync::Arc;

impl Collection {
    /// The nearest points, nearest first: always `k` of them if at least `k` satisfy the filter.
    ///
    /// # Errors
    /// Those of [`Metric::prepare`](crate::Metric::prepare) for the query,
    /// [`Error::Filter`](crate::Error::Filter), [`Error::Sqlite`](crate::Error::Sqlite).
    pub fn search(&self, query: &Query) -> Result<Vec<Hit>> {
        Ok(self.run(query, true)?.1)
    }

    /// How a query would be, or was, answered.
    ///
    /// # Errors
    /// As [`search`](Self::search).
    ///
    /// # Example
    /// ```
    /// use breakers_retrieval::{Metric, store::{Config, Point, Query, Store}};
    ///
    /// let folder = tempfile::tempdir().unwrap();
    /// let points = Store::open(folder.path())?.create("points", &Config::new(2, Metric::L2))?;
    /// points.upsert(&[Point::new(1, [0.0, 0.0])])?;
    /// println!("{}", points.explain(&Query::new([0.1, 0.1], 1))?);
    /// # Ok::<(), breakers_retrieval::Error>(())
    /// ```
    pub fn explain(&self, query: &Query) -> Result<Plan> {
        Ok(self.run(query, false)?.0)
    }

    fn run(&self, query: &Query, execute: bool) -> Result<(Plan, Vec<Hit>)> {
        let metric = self.shared.config.metric;
        metric::check_length("the query", &query.vector, self.shared.config.dimension)?;
        let mut vector = query.vector.clone();
        metric.prepare("the query", &mut vector)?;
        query.filter.as_ref().map_or(Ok(()), Filter::check)?;
        self.refresh()?;
        let needs_database = query.with_payload || self.store.options.vectors_on_disk;
        if !(needs_database && execute) {
            let state = self.shared.state();
            let known = query.filter.as_ref().map(|filter| state.kept_filter(filter));
            if !matches!(known, Some(None)) {
                return self.answer(query, &vector, execute, None, (&state, known.flatten()));
            }
        }
        self.together(|connection, state| {
            let allowed = query.filter.as_ref().map(|filter| self.matching(filter, connection, &state));
            self.answer(query, &vector, execute, Some(connection), (&state, allowed.transpose()?))
        })
    }

    /// Answers from one state and the slots that are allowed in it, with payloads from the database in the
    /// same state.
    fn answer(
        &self,
        query: &Query,
        vector: &[f32],
        execute: bool,
        connection: Option<&Connection>,
        (state, allowed): (&State, Option<Arc<Bitset>>),
    ) -> Result<(Plan, Vec<Hit>)> {
        let mut search = Search::new(query.k);
        search.effort = query.effort;
        search.allowed = allowed.as_deref();
        let mut plan = state.graph.plan(&search);
        if query.exact {
            plan.strategy = if allowed.is_some() { Strategy::FilteredScan } else { Strategy::Scan };
            plan.reason = "exact search was asked for".to_owned();
        }
        plan.notes.push(state.origin.to_string());
        if !execute {
            return Ok((plan, Vec::new()));
        }
        let stored = self.stored(connection, state)?;
        search.source = stored.as_ref().map(|stored| stored as _);
        let found = state.graph.execute(vector, &search, &plan)?;
        let ids = state.ids.of_slots();
        let hit = |n: &Neighbor| Hit { id: ids[n.slot as usize], distance: n.distance, payload: None };
        let mut hits: Vec<Hit> = found.iter().map(hit).collect();
        if let Some(connection) = connection.filter(|_| query.with_payload) {
            self.add_payloads(connection, state, &mut hits)?;
        }
        Ok((plan, hits))
    }

    /// # Errors
    /// [`Error::Corrupt`] and [`Error::UnknownPoint`] for points that are not as they were written; all of
    /// them are suspects then.
    fn add_payloads(&self, connection: &Connection, state: &State, hits: &mut [Hit]) -> Result<()> {
        let sql = format!("SELECT id, vector, payload, crc FROM points_{} WHERE id = ?1", self.shared.id);
        let mut statement = connection.prepare_cached(&sql)?;
        let mut damage = Ok(());
        for hit in hits {
            let mut rows = statement.query([hit.id as i64])?;
            let payload = match rows.next()? {
                Some(row) => fields::payload_of(row, &self.shared.config),
                None => Err(Error::UnknownPoint { id: hit.id }),
            };
            match payload {
                Ok(payload) => hit.payload = payload,
                Err(error @ (Error::Corrupt { .. } | Error::UnknownPoint { .. })) => {
                    state.suspect(hit.id);
                    damage = Err(error);
                }
                Err(error) => return Err(error),
            }
        }
        damage
    }

    /// The vectors that the index leaves in the database; `connection` sees it in the same state.
    fn stored<'a>(
        &'a self,
        connection: Option<&'a Connection>,
        state: &'a State,
    ) -> Result<Option<Stored<'a>>> {
        let connection = connection.filter(|_| self.store.options.vectors_on_disk);
        let place = self.shared.place(&self.store);
        connection.map(|connection| Stored::new(connection, place, state)).transpose()
    }

    /// The slots that satisfy a filter in this state; `connection` sees the database in the same state.
    pub(super) fn matching(
        &self,
        filter: &Filter,
        connection: &Connection,
        state: &State,
    ) -> Result<Arc<Bitset>> {
        if let Some(set) = state.kept_filter(filter) {
            return Ok(set);
        }
        let set = Arc::new(self.evaluation(connection, state).matching(filter)?);
        state.keep_filter(filter, &set);
        Ok(set)
    }

    fn evaluation<'a>(&'a self, connection: &'a Connection, state: &'a State) -> Evaluation<'a> {
        Evaluation { connection, collection: self.shared.id, config: &self.shared.config, state }
    }

    /// About how many points satisfy a filter, from at most `limit` index entries for each condition.
    ///
    /// # Errors
    /// [`Error::Filter`](crate::Error::Filter), [`Error::Sqlite`](crate::Error::Sqlite).
    pub fn estimate(&self, filter: &Filter, limit: usize) -> Result<f64> {
        filter.check()?;
        self.together(|connection, state| self.evaluation(connection, &state).estimate(filter, limit))
    }

    /// Measures the width of the beam that finds this share of the nearest `k`, and uses it from now on; the
    /// index file keeps it. Without points nothing changes.
    ///
    /// Searches and writes go on in the meantime.
    ///
    /// # Errors
    /// [`Error::Parameter`](crate::Error::Parameter) for a recall outside of 0 to 1 and for no queries, and
    /// those of [`search`](Self::search).
    pub fn tune(&self, queries: &[Vec<f32>], k: usize, recall: f64) -> Result<Tuned> {
        self.refresh()?;
        let now = {
            let state = self.shared.state();
            Size { n: state.graph.len(), effort: state.graph.config().effort }
        };
        let tuned = tune(now, queries, k, recall, |query, effort| {
            let answer = |connection: Option<&Connection>, state: &State| {
                let stored = self.stored(connection, state)?;
                let mut search = Search::new(k);
                search.effort = effort;
                search.source = stored.as_ref().map(|stored| stored as _);
                match effort {
                    None => state.graph.exact().search(query, &search),
                    Some(_) => state.graph.search(query, &search),
                }
            };
            if self.store.options.vectors_on_disk {
                self.together(|connection, state| answer(Some(connection), &state))
            } else {
                answer(None, &self.shared.state())
            }
        })?;
        if now.n > 0 {
            let changing = self.shared.change(&self.store)?;
            let mut state = self.shared.state_mut(&changing);
            state.graph.set_effort(tuned.effort)?;
            state.note_unsaved(1);
        }
        Ok(tuned)
    }
}
