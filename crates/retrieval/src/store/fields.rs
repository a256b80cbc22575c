//! Payload indexes in SQLite, and the evaluation of filters with them.

use super::{
    Config,
    filter::{Filter, Number, Payload, Scalar, visit_fields},
    state::{State, stored_point},
};
use crate::{Bitset, Error, Result};
use rusqlite::{Connection, Row, ToSql, params_from_iter, types::Value as Sql};
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;

/// Longer texts are indexed by their beginning and compared in full afterwards.
const LONG: usize = 200;

/// Which fields of payloads have an index.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Indexed {
    /// All of them.
    #[default]
    All,
    /// Only these paths. A filter on another field reads all payloads.
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

/// Kinds of values in the table. Integers beyond those of SQLite are a kind of their own, less 2⁶³.
const BOOL: i64 = 0;
const NUMBER: i64 = 1;
const TEXT: i64 = 2;
const LONG_TEXT: i64 = 3;
const LARGE: i64 = 4;

/// Kind and value as columns.
fn columns(scalar: &Scalar) -> (i64, Sql) {
    match scalar {
        Scalar::Bool(b) => (BOOL, Sql::Integer((*b).into())),
        Scalar::Integer(i) => (NUMBER, Sql::Integer(*i)),
        Scalar::Unsigned(u) => match i64::try_from(*u) {
            Ok(i) => (NUMBER, Sql::Integer(i)),
            Err(_) => (LARGE, Sql::Integer((u ^ (1 << 63)) as i64)),
        },
        Scalar::Float(x) => (NUMBER, Sql::Real(*x)),
        Scalar::Text(text) if text.len() <= LONG => (TEXT, Sql::Text(text.clone())),
        Scalar::Text(text) => (LONG_TEXT, Sql::Text(start_of(text).to_owned())),
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
    insert_into(connection, &format!("fields_{collection}"), indexed, id, payload)
}

fn insert_into(
    connection: &Connection,
    table: &str,
    indexed: &Indexed,
    id: i64,
    payload: &Payload,
) -> Result<()> {
    let mut statement = connection.prepare_cached(&format!(
        "INSERT OR IGNORE INTO {table}(field, kind, value, id) VALUES (?1, ?2, ?3, ?4)"
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

/// What the table of fields should hold, built from payloads in a second table.
pub(super) struct Expected<'a> {
    connection: &'a Connection,
    indexed: &'a Indexed,
}

impl<'a> Expected<'a> {
    pub(super) fn new(connection: &'a Connection, indexed: &'a Indexed) -> Result<Self> {
        connection.execute_batch(
            "CREATE TABLE IF NOT EXISTS temp.expected_fields (
                 field TEXT NOT NULL, kind INTEGER NOT NULL, value, id INTEGER NOT NULL,
                 PRIMARY KEY (field, kind, value, id)
             ) WITHOUT ROWID;
             DELETE FROM temp.expected_fields;",
        )?;
        Ok(Self { connection, indexed })
    }

    pub(super) fn add(&self, id: i64, payload: &Payload) -> Result<()> {
        insert_into(self.connection, "temp.expected_fields", self.indexed, id, payload)
    }

    /// Whether the table of fields differs from it.
    pub(super) fn differs(&self, collection: i64) -> Result<bool> {
        let (all, fields) = ("field, kind, value, id", format!("fields_{collection}"));
        let sql = format!(
            "SELECT EXISTS (SELECT {all} FROM {fields} EXCEPT SELECT {all} FROM temp.expected_fields)
                 OR EXISTS (SELECT {all} FROM temp.expected_fields EXCEPT SELECT {all} FROM {fields})"
        );
        Ok(self.connection.query_row(&sql, [], |row| row.get(0))?)
    }

    /// Replaces the table of fields by it.
    pub(super) fn replace(&self, collection: i64) -> Result<()> {
        let fields = format!("fields_{collection}");
        self.connection.execute_batch(&format!(
            "DELETE FROM {fields};
             INSERT INTO {fields}(field, kind, value, id) SELECT field, kind, value, id FROM temp.expected_fields;"
        ))?;
        Ok(())
    }
}

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        // If that fails, the next one removes it.
        let _ = self.connection.execute_batch("DROP TABLE IF EXISTS temp.expected_fields");
    }
}

/// What filters are evaluated on: a database and an index of the same change.
pub(super) struct Evaluation<'a> {
    pub(super) connection: &'a Connection,
    pub(super) collection: i64,
    pub(super) config: &'a Config,
    pub(super) state: &'a State,
}

/// A condition on one field in SQL: the end of a query over `fields`, its parameters, and whether matches
/// have to be compared in full.
struct Leaf {
    condition: String,
    parameters: Vec<Sql>,
    verify: bool,
}

impl Evaluation<'_> {
    fn live(&self) -> &Bitset {
        &self.state.graph.flat.slots.live
    }

    /// Whether the payload of a row of id, vector, payload and checksum satisfies the filter.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for a row that is not as it was written; its point is a suspect then.
    fn row_matches(&self, filter: &Filter, row: &Row<'_>) -> Result<bool> {
        let payload = payload_of(row, self.config);
        if let Err(Error::Corrupt { .. }) = payload {
            self.state.suspect(row.get::<_, i64>(0)? as u64);
        }
        Ok(filter.matches(&payload?.unwrap_or_default()))
    }

    /// The slots whose payloads satisfy the filter.
    pub(super) fn matching(&self, filter: &Filter) -> Result<Bitset> {
        match filter {
            Filter::And(all) => {
                let mut set = self.live().clone();
                for filter in all {
                    set.intersect(&self.matching(filter)?);
                }
                Ok(set)
            }
            Filter::Or(any) => {
                let mut set = Bitset::new(self.live().len());
                for filter in any {
                    set.unite(&self.matching(filter)?);
                }
                Ok(set)
            }
            Filter::Not(filter) => {
                let mut set = self.live().clone();
                set.subtract(&self.matching(filter)?);
                Ok(set)
            }
            Filter::Eq { field, .. }
            | Filter::In { field, .. }
            | Filter::Range { field, .. }
            | Filter::Exists { field } => {
                if self.config.indexed.covers(field) {
                    self.indexed_leaf(filter)
                } else {
                    self.scanned_leaf(filter)
                }
            }
        }
    }

    /// Reads every payload.
    fn scanned_leaf(&self, filter: &Filter) -> Result<Bitset> {
        let mut set = Bitset::new(self.live().len());
        let sql = format!("SELECT id, vector, payload, crc FROM points_{}", self.collection);
        let mut statement = self.connection.prepare_cached(&sql)?;
        let mut rows = statement.query([])?;
        let (mut missing, mut damage) = (self.live().clone(), Ok(()));
        while let Some(row) = rows.next()? {
            let Some(slot) = self.state.ids.slot(row.get::<_, i64>(0)? as u64) else { continue };
            missing.remove(slot);
            match self.row_matches(filter, row) {
                Ok(true) => set.insert(slot),
                Ok(false) => {}
                // The rest is read as well, so that all suspects are taken out together.
                Err(error @ Error::Corrupt { .. }) => damage = Err(error),
                Err(error) => return Err(error),
            }
        }
        for slot in missing.iter() {
            let id = self.state.ids.of_slots()[slot as usize];
            self.state.suspect(id);
            damage = Err(Error::UnknownPoint { id });
        }
        damage.map(|()| set)
    }

    fn indexed_leaf(&self, filter: &Filter) -> Result<Bitset> {
        let mut set = Bitset::new(self.live().len());
        for leaf in leaves(filter) {
            let sql = format!("SELECT id FROM fields_{} WHERE {}", self.collection, leaf.condition);
            let mut statement = self.connection.prepare_cached(&sql)?;
            let mut rows =
                statement.query(params_from_iter(leaf.parameters.iter().map(|p| p as &dyn ToSql)))?;
            while let Some(row) = rows.next()? {
                let id: i64 = row.get(0)?;
                let Some(slot) = self.state.ids.slot(id as u64) else { continue };
                if !leaf.verify || self.verified(filter, id)? {
                    set.insert(slot);
                }
            }
        }
        Ok(set)
    }

    fn verified(&self, filter: &Filter, id: i64) -> Result<bool> {
        let sql = format!("SELECT id, vector, payload, crc FROM points_{} WHERE id = ?1", self.collection);
        let mut statement = self.connection.prepare_cached(&sql)?;
        let mut rows = statement.query([id])?;
        match rows.next()? {
            Some(row) => self.row_matches(filter, row),
            None => {
                self.state.suspect(id as u64);
                Err(Error::UnknownPoint { id: id as u64 })
            }
        }
    }

    /// About how many points satisfy the filter, from the index alone and with at most `limit` rows read for
    /// each condition; conditions are taken for independent.
    pub(super) fn estimate(&self, filter: &Filter, limit: usize) -> Result<f64> {
        let n = self.state.ids.len() as f64;
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
                if !self.config.indexed.covers(field) {
                    return Ok(n / 3.0);
                }
                let limit = i64::try_from(limit).unwrap_or(i64::MAX);
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
    match filter {
        Filter::Eq { field, value } => equal(field, value),
        Filter::In { field, values } => values.iter().flat_map(|value| equal(field, value)).collect(),
        Filter::Range { field, at_least, above, at_most, below } => {
            let bounds = [(">=", at_least), (">", above), ("<=", at_most), ("<", below)];
            let bounds = bounds.map(|(operator, bound)| bound.map(|bound| (operator, bound)));
            let small: Option<Vec<_>> = bounds.iter().flatten().map(|&bound| small_bound(bound)).collect();
            let large: Option<Vec<_>> = bounds.iter().flatten().map(|&bound| large_bound(bound)).collect();
            let leaf = |kind, bounds: Vec<(&str, Sql)>| {
                let mut condition = "field = ?1 AND kind = ?2".to_owned();
                let mut parameters = vec![Sql::Text(field.clone()), Sql::Integer(kind)];
                for (operator, bound) in bounds {
                    parameters.push(bound);
                    condition += &format!(" AND value {operator} ?{}", parameters.len());
                }
                Leaf { condition, parameters, verify: false }
            };
            let small = small.map(|bounds| leaf(NUMBER, bounds));
            let large = large.map(|bounds| leaf(LARGE, bounds));
            small.into_iter().chain(large).collect()
        }
        Filter::Exists { field } => vec![Leaf {
            condition: "field = ?1".to_owned(),
            parameters: vec![Sql::Text(field.clone())],
            verify: false,
        }],
        _ => Vec::new(),
    }
}

/// Every form in which a value that is equal may be stored.
fn equal(field: &str, value: &Scalar) -> Vec<Leaf> {
    let mut forms = vec![columns(value)];
    match value {
        // A number beyond SQLite's integers is stored as it came: as an integer or as a float.
        Scalar::Unsigned(u) if i64::try_from(*u).is_err() => {
            forms.extend(Number::Unsigned(*u).exact_float().map(|x| (NUMBER, Sql::Real(x))));
        }
        Scalar::Float(x) => {
            let whole =
                Number::Float(*x).unsigned_floor().filter(|&u| Number::Unsigned(u) == Number::Float(*x));
            forms.extend(whole.filter(|&u| i64::try_from(u).is_err()).map(|u| columns(&Scalar::Unsigned(u))));
        }
        _ => {}
    }
    let leaf = |(kind, column)| Leaf {
        condition: "field = ?1 AND kind = ?2 AND value = ?3".to_owned(),
        parameters: vec![Sql::Text(field.to_owned()), Sql::Integer(kind), column],
        verify: kind == LONG_TEXT,
    };
    forms.into_iter().map(leaf).collect()
}

/// A bound on numbers in SQLite's own integers and floats, which it compares exactly.
fn small_bound((operator, bound): (&'static str, Number)) -> Option<(&'static str, Sql)> {
    Some(match bound {
        Number::Integer(i) => (operator, Sql::Integer(i)),
        Number::Float(x) => (operator, Sql::Real(x)),
        Number::Unsigned(u) => match (i64::try_from(u), bound.exact_float()) {
            (Ok(i), _) => (operator, Sql::Integer(i)),
            (Err(_), Some(x)) => (operator, Sql::Real(x)),
            // Between two floats, and beyond all integers: the next float on the side that counts.
            (Err(_), None) => {
                let near = u as f64;
                let is_above = Number::Float(near).compare(bound).is_some_and(Ordering::is_gt);
                match operator {
                    ">" | ">=" => (">=", Sql::Real(if is_above { near } else { near.next_up() })),
                    _ => ("<=", Sql::Real(if is_above { near.next_down() } else { near })),
                }
            }
        },
    })
}

/// A bound on integers beyond SQLite's own; `None` if none of them is within it.
fn large_bound((operator, bound): (&'static str, Number)) -> Option<(&'static str, Sql)> {
    const FIRST: u64 = 1 << 63;
    let column = |u: u64| Sql::Integer((u ^ FIRST) as i64);
    Some(match operator {
        ">=" => (">=", column(bound.unsigned_ceiling()?.max(FIRST))),
        ">" => match bound.unsigned_floor() {
            Some(floor) if floor >= FIRST => (">", column(floor)),
            _ => (">=", column(FIRST)),
        },
        "<=" => ("<=", column(bound.unsigned_floor().filter(|&u| u >= FIRST)?)),
        _ => match bound.unsigned_ceiling() {
            // Infinite, or beyond 64 bits.
            None => ("<=", column(u64::MAX)),
            Some(ceiling) if ceiling > FIRST => ("<", column(ceiling)),
            Some(_) => return None,
        },
    })
}

/// The payload of a row of id, vector, payload and checksum.
///
/// # Errors
/// [`Error::Corrupt`] if the row is not as it was written.
pub(super) fn payload_of(row: &Row<'_>, config: &Config) -> Result<Option<Payload>> {
    stored_point(row, config)?.1.map(parse).transpose()
}

/// A payload as it is stored.
pub(super) fn parse(text: &str) -> Result<Payload> {
    serde_json::from_str(text).map_err(|error| Error::Corrupt {
        what: "a payload".to_owned(),
        expected: "a JSON object".to_owned(),
        found: error.to_string(),
    })
}
