//! Searches of a collection: exact sets of what matches a filter, and the way that the planner chooses.

use super::{
    Collection,
    fields::{self, Evaluation},
    filter::Filter,
    points::{Hit, Query},
    shared::lock,
    state::{State, collection_seq},
};
use crate::{
    Bitset, Result,
    index::{Neighbor, Plan, Search, Strategy, Tuned},
    metric,
};
use rusqlite::OptionalExtension as _;
use std::sync::{Arc, RwLockReadGuard};

/// Filters whose sets are kept.
const KEPT_FILTERS: usize = 32;

impl Collection {
    /// The nearest points, nearest first: `k` of them whenever so many satisfy the filter.
    ///
    /// # Errors
    /// Those of [`Metric::prepare`](crate::Metric::prepare) for the query, [`Error::Filter`](crate::Error::Filter),
    /// [`Error::Sqlite`](crate::Error::Sqlite).
    pub fn search(&self, query: &Query) -> Result<Vec<Hit>> {
        Ok(self.run(query, true)?.1)
    }

    /// How a query would be, or was, answered.
    ///
    /// # Errors
    /// As [`search`](Self::search).
    pub fn explain(&self, query: &Query) -> Result<Plan> {
        Ok(self.run(query, false)?.0)
    }

    fn run(&self, query: &Query, execute: bool) -> Result<(Plan, Vec<Hit>)> {
        self.shared.refresh()?;
        let metric = self.shared.config.metric;
        metric::check_length("the query", &query.vector, self.shared.config.dimension)?;
        let mut vector = query.vector.clone();
        metric.prepare("the query", &mut vector)?;
        let (state, allowed) = match &query.filter {
            None => (self.shared.state(), None),
            Some(filter) => {
                let (state, set) = self.matching(filter)?;
                (state, Some(set))
            }
        };
        let graph = &state.graph;
        let mut search = Search::new(query.k);
        search.effort = query.effort;
        search.allowed = allowed.as_deref();
        let mut plan = graph.plan(&search);
        if query.exact {
            plan.strategy = if allowed.is_some() { Strategy::FilteredScan } else { Strategy::Scan };
            plan.reason = "exact search was asked for".to_owned();
        }
        plan.notes.push(state.origin.to_string());
        if !execute {
            return Ok((plan, Vec::new()));
        }
        let found = graph.execute(&vector, &search, &plan)?;
        let hit = |n: &Neighbor| Hit { id: state.ids[n.slot as usize], distance: n.distance, payload: None };
        let mut hits: Vec<Hit> = found.iter().map(hit).collect();
        drop(state);
        if query.with_payload {
            self.shared.store.read(|connection| {
                let sql = format!("SELECT payload FROM points_{} WHERE id = ?1", self.shared.id);
                let mut statement = connection.prepare_cached(&sql)?;
                for hit in &mut hits {
                    let text = statement
                        .query_row([hit.id as i64], |row| row.get::<_, Option<String>>(0))
                        .optional()?;
                    hit.payload = text.flatten().as_deref().map(fields::parse).transpose()?;
                }
                Ok(())
            })?;
        }
        Ok((plan, hits))
    }

    /// The slots that satisfy a filter, and the state that they are of.
    pub(super) fn matching(&self, filter: &Filter) -> Result<(RwLockReadGuard<'_, State>, Arc<Bitset>)> {
        filter.check()?;
        let shared = &*self.shared;
        let key = serde_json::to_string(filter)?;
        {
            let state = shared.state();
            let kept = lock(&shared.filters);
            if let Some((_, _, set)) = kept.iter().find(|(k, seq, _)| *k == key && *seq == state.seq) {
                let set = Arc::clone(set);
                drop(kept);
                return Ok((state, set));
            }
        }
        loop {
            let found = shared.store.read(|connection| {
                let transaction = connection.unchecked_transaction()?;
                let state = shared.state();
                // Fields in the database and slots in memory must be of the same moment.
                if collection_seq(&transaction, shared.id)?.0 != state.seq {
                    drop(state);
                    drop(transaction);
                    shared.catch_up(connection)?;
                    return Ok(None);
                }
                let evaluation = Evaluation {
                    connection: &transaction,
                    collection: shared.id,
                    indexed: &shared.config.indexed,
                    slots: &state.slots,
                    live: &state.graph.exact().live,
                };
                let set = Arc::new(evaluation.matching(filter)?);
                Ok(Some((state, set)))
            })?;
            if let Some((state, set)) = found {
                let mut kept = lock(&shared.filters);
                kept.retain(|(k, seq, _)| *k != key && *seq == state.seq);
                if kept.len() == KEPT_FILTERS {
                    kept.remove(0);
                }
                kept.push((key, state.seq, Arc::clone(&set)));
                drop(kept);
                return Ok((state, set));
            }
        }
    }

    /// About how many points satisfy a filter, from at most `limit` index entries for each condition.
    ///
    /// # Errors
    /// [`Error::Filter`](crate::Error::Filter), [`Error::Sqlite`](crate::Error::Sqlite).
    pub fn estimate(&self, filter: &Filter, limit: usize) -> Result<f64> {
        filter.check()?;
        let state = self.shared.state();
        self.shared.store.read(|connection| {
            Evaluation {
                connection,
                collection: self.shared.id,
                indexed: &self.shared.config.indexed,
                slots: &state.slots,
                live: &state.graph.exact().live,
            }
            .estimate(filter, limit)
        })
    }

    /// Measures how wide the graph must be searched for this share of the nearest `k`, and searches so from now on; the
    /// index file keeps it.
    ///
    /// # Errors
    /// [`Error::Parameter`](crate::Error::Parameter) for a recall outside of 0 to 1 and for no queries, and those of [`search`](Self::search).
    pub fn tune(&self, queries: &[Vec<f32>], k: usize, recall: f64) -> Result<Tuned> {
        let tuned = self.shared.state().graph.tune(queries, k, recall)?;
        let mut state = self.shared.state_mut();
        state.graph.set_effort(tuned.effort)?;
        state.unsaved += 1;
        Ok(tuned)
    }
}
