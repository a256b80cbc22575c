//! Payload indexes in SQLite, and the evaluation of filters with them.

use super::filter::{Filter, Payload, Scalar, visit_fields};
use crate::{Bitset, Error, Result};
use hashbrown::HashMap;
use rusqlite::{Connection, ToSql, params_from_iter, types::Value as Sql};
use serde::{Deserialize, Serialize};

/// Longer texts are indexed by their start, and compared in full afterwards.
const LONG: usize = 200;

/// Which fields of payloads have an index.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Indexed {
    /// All of them.
    #[default]
    All,
    /// These paths. A filter on another field reads all payloads.
    Only(Vec<String>),
}

impl Indexed {
    fn covers(&self, field: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(fields) => fields.iter().any(|f| f == field),
        }
    }
}

/// Kind and value as columns.
fn columns(scalar: &Scalar) -> (i64, Sql) {
    match scalar {
        Scalar::Bool(b) => (0, Sql::Integer((*b).into())),
        Scalar::Integer(i) => (1, Sql::Integer(*i)),
        Scalar::Float(x) => (1, Sql::Real(*x)),
        Scalar::Text(text) if text.len() <= LONG => (2, Sql::Text(text.clone())),
        Scalar::Text(text) => (3, Sql::Text(start_of(text).to_owned())),
    }
}

fn start_of(text: &str) -> &str {
    &text[..text.floor_char_boundary(LONG)]
}

pub(super) fn insert(
    connection: &Connection,
    collection: i64,
    indexed: &Indexed,
    id: i64,
    payload: &Payload,
) -> Result<()> {
    let mut statement = connection.prepare_cached(&format!(
        "INSERT OR IGNORE INTO fields_{collection}(field, kind, value, id) VALUES (?1, ?2, ?3, ?4)"
    ))?;
    let mut result = Ok(());
    visit_fields(payload, &mut |field, scalar| {
        if result.is_ok() && indexed.covers(field) {
            let (kind, value) = columns(&scalar);
            result = statement.execute((field, kind, value, id)).map(|_| ());
        }
    });
    Ok(result?)
}

pub(super) fn remove(connection: &Connection, collection: i64, id: i64) -> Result<()> {
    connection.prepare_cached(&format!("DELETE FROM fields_{collection} WHERE id = ?1"))?.execute([id])?;
    Ok(())
}

/// What filters are evaluated against.
pub(super) struct Evaluation<'a> {
    pub(super) connection: &'a Connection,
    pub(super) collection: i64,
    pub(super) indexed: &'a Indexed,
    pub(super) slots: &'a HashMap<u64, u32>,
    pub(super) live: &'a Bitset,
}

/// A condition on one field in SQL: the end of a query over `fields`, its parameters, and whether matches have to be
/// compared in full.
struct Leaf {
    condition: String,
    parameters: Vec<Sql>,
    verify: bool,
}

impl Evaluation<'_> {
    /// The slots whose payloads satisfy the filter.
    pub(super) fn matching(&self, filter: &Filter) -> Result<Bitset> {
        match filter {
            Filter::And(all) => {
                let mut set = self.live.clone();
                for filter in all {
                    set.intersect(&self.matching(filter)?);
                }
                Ok(set)
            }
            Filter::Or(any) => {
                let mut set = Bitset::new(self.live.len());
                for filter in any {
                    set.unite(&self.matching(filter)?);
                }
                Ok(set)
            }
            Filter::Not(filter) => {
                let mut set = self.live.clone();
                set.subtract(&self.matching(filter)?);
                Ok(set)
            }
            Filter::Eq { field, .. }
            | Filter::In { field, .. }
            | Filter::Range { field, .. }
            | Filter::Exists { field } => {
                if self.indexed.covers(field) {
                    self.indexed_leaf(filter)
                } else {
                    self.scanned_leaf(filter)
                }
            }
        }
    }

    /// Reads every payload.
    fn scanned_leaf(&self, filter: &Filter) -> Result<Bitset> {
        let mut set = Bitset::new(self.live.len());
        let sql = format!("SELECT id, payload FROM points_{} WHERE payload IS NOT NULL", self.collection);
        let mut statement = self.connection.prepare_cached(&sql)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            if let Some(&slot) = self.slots.get(&(row.get::<_, i64>(0)? as u64))
                && filter.matches(&parse(row.get_ref(1)?.as_str().map_err(rusqlite::Error::from)?)?)
            {
                set.insert(slot);
            }
        }
        Ok(set)
    }

    fn indexed_leaf(&self, filter: &Filter) -> Result<Bitset> {
        let mut set = Bitset::new(self.live.len());
        for leaf in leaves(filter) {
            let sql = format!("SELECT id FROM fields_{} WHERE {}", self.collection, leaf.condition);
            let mut statement = self.connection.prepare_cached(&sql)?;
            let mut rows =
                statement.query(params_from_iter(leaf.parameters.iter().map(|p| p as &dyn ToSql)))?;
            while let Some(row) = rows.next()? {
                let id: i64 = row.get(0)?;
                let Some(&slot) = self.slots.get(&(id as u64)) else { continue };
                if !leaf.verify || self.verified(filter, id)? {
                    set.insert(slot);
                }
            }
        }
        Ok(set)
    }

    fn verified(&self, filter: &Filter, id: i64) -> Result<bool> {
        let sql = format!("SELECT payload FROM points_{} WHERE id = ?1", self.collection);
        let text: String = self.connection.prepare_cached(&sql)?.query_row([id], |row| row.get(0))?;
        Ok(filter.matches(&parse(&text)?))
    }

    /// About how many points satisfy the filter, from the index alone and with at most `limit` rows read for each
    /// condition; conditions are taken for independent.
    pub(super) fn estimate(&self, filter: &Filter, limit: usize) -> Result<f64> {
        let n = self.slots.len() as f64;
        let share = |count: f64| if n > 0.0 { (count / n).min(1.0) } else { 0.0 };
        Ok(match filter {
            Filter::And(all) => {
                let mut product = 1.0;
                for filter in all {
                    product *= share(self.estimate(filter, limit)?);
                }
                n * product
            }
            Filter::Or(any) => {
                let mut none = 1.0;
                for filter in any {
                    none *= 1.0 - share(self.estimate(filter, limit)?);
                }
                n * (1.0 - none)
            }
            Filter::Not(filter) => n - self.estimate(filter, limit)?,
            Filter::Eq { field, .. }
            | Filter::In { field, .. }
            | Filter::Range { field, .. }
            | Filter::Exists { field } => {
                if !self.indexed.covers(field) {
                    return Ok(n / 3.0);
                }
                let mut sum = 0.0;
                for leaf in leaves(filter) {
                    let sql = format!(
                        "SELECT count(*) FROM (SELECT 1 FROM fields_{} WHERE {} LIMIT {limit})",
                        self.collection, leaf.condition
                    );
                    let mut statement = self.connection.prepare_cached(&sql)?;
                    let parameters = params_from_iter(leaf.parameters.iter().map(|p| p as &dyn ToSql));
                    sum += statement.query_row(parameters, |row| row.get::<_, i64>(0))? as f64;
                }
                sum.min(n)
            }
        })
    }
}

/// The queries that together answer a condition on one field.
fn leaves(filter: &Filter) -> Vec<Leaf> {
    let equal = |field: &String, value: &Scalar| {
        let (kind, column) = columns(value);
        Leaf {
            condition: "field = ?1 AND kind = ?2 AND value = ?3".to_owned(),
            parameters: vec![Sql::Text(field.clone()), Sql::Integer(kind), column],
            verify: kind == 3,
        }
    };
    match filter {
        Filter::Eq { field, value } => vec![equal(field, value)],
        Filter::In { field, values } => values.iter().map(|value| equal(field, value)).collect(),
        Filter::Range { field, at_least, above, at_most, below } => {
            let mut condition = "field = ?1 AND kind = 1".to_owned();
            let mut parameters = vec![Sql::Text(field.clone())];
            for (operator, bound) in [(">=", at_least), (">", above), ("<=", at_most), ("<", below)] {
                if let Some(bound) = bound {
                    parameters.push(Sql::Real(*bound));
                    condition += &format!(" AND value {operator} ?{}", parameters.len());
                }
            }
            vec![Leaf { condition, parameters, verify: false }]
        }
        Filter::Exists { field } => vec![Leaf {
            condition: "field = ?1".to_owned(),
            parameters: vec![Sql::Text(field.clone())],
            verify: false,
        }],
        _ => Vec::new(),
    }
}

/// A payload as it is stored.
pub(super) fn parse(text: &str) -> Result<Payload> {
    serde_json::from_str(text).map_err(|error| Error::Corrupt {
        what: "a payload".to_owned(),
        expected: "a JSON object".to_owned(),
        found: error.to_string(),
    })
}
