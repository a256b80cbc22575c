//! The database: versions, what names stand for, and what was used.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use breakers_sqlite::{self as sqlite, Schema, SqliteConfig, failed};
use rusqlite::{Connection, Row, params};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::usage::{Counts, ShadowCounts, ShadowKey, UsageKey};
use super::{Canary, FileFormat, Finding, RegistryError};

type Result<T> = std::result::Result<T, RegistryError>;

const SCHEMA: Schema = Schema {
    application_id: 0x4252_4d52, // "BRMR"
    migrations: &["
        CREATE TABLE versions (
            name TEXT PRIMARY KEY,     -- sha256:…, the hash of the file
            path TEXT NOT NULL,        -- within the folder of models
            bytes INTEGER NOT NULL,
            format TEXT NOT NULL,
            license TEXT,
            parent TEXT,
            method TEXT,
            is_validated INTEGER NOT NULL DEFAULT 0,
            failure TEXT,
            findings TEXT NOT NULL DEFAULT '[]',
            canary TEXT,
            created INTEGER NOT NULL
        ) STRICT;
        -- What an alias stands for is its latest row. Rows are added and never changed.
        CREATE TABLE routes (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            alias TEXT NOT NULL,
            action TEXT NOT NULL,
            shares TEXT NOT NULL,
            shadow TEXT,
            back INTEGER REFERENCES routes (id),
            at INTEGER NOT NULL
        ) STRICT;
        CREATE INDEX routes_of_alias ON routes (alias, id);
        CREATE TABLE usage (
            day INTEGER NOT NULL,      -- its first second, UTC
            tenant TEXT NOT NULL,
            model TEXT NOT NULL,
            version TEXT NOT NULL,
            requests INTEGER NOT NULL,
            texts INTEGER NOT NULL,
            failures INTEGER NOT NULL,
            prompt_tokens INTEGER NOT NULL,
            cached_tokens INTEGER NOT NULL,
            completion_tokens INTEGER NOT NULL,
            PRIMARY KEY (day, tenant, model, version)
        ) STRICT, WITHOUT ROWID;
        CREATE TABLE shadows (
            alias TEXT NOT NULL,
            version TEXT NOT NULL,
            shadow TEXT NOT NULL,
            same INTEGER NOT NULL,
            different INTEGER NOT NULL,
            uncompared INTEGER NOT NULL,
            failed INTEGER NOT NULL,
            skipped INTEGER NOT NULL,
            PRIMARY KEY (alias, version, shadow)
        ) STRICT, WITHOUT ROWID;
    "],
};

/// What is known of a version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Version {
    /// `sha256:` and the hash of the file.
    pub name: String,
    /// The file, within the folder of models.
    pub path: PathBuf,
    /// Size of the file.
    pub bytes: u64,
    /// The kind of file.
    pub format: FileFormat,
    /// Under which license it may be used.
    pub license: Option<String>,
    /// The version that it was made from.
    pub parent: Option<String>,
    /// How it was made.
    pub method: Option<String>,
    /// How far it has got.
    pub state: VersionState,
    /// Why it failed.
    pub failure: Option<String>,
    /// What was found in the file.
    pub findings: Vec<Finding>,
    /// A prompt with the answer that it must give.
    pub canary: Option<Canary>,
    /// When it was registered, in seconds since 1970.
    pub created: u64,
    #[serde(skip)]
    pub(super) is_validated: bool,
}

/// How far a version has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum VersionState {
    /// Its file is known by its hash.
    Registered,
    /// Nothing in its file forbids to load it.
    Validated,
    /// It is being loaded, or is loaded and no alias leads to it yet.
    Loaded,
    /// It is asked for the answer that is recorded.
    Canary,
    /// An alias leads to it.
    Active,
    /// No alias leads to it anymore, and requests that began before still run.
    Draining,
    /// An alias led to it once.
    Retired,
    /// It is invalid, could not be loaded, or answered differently. It can be deployed again.
    Failed,
}

/// What an alias stands for, from one change to the next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ModelRoute {
    /// The number of this state; later ones have higher numbers, over all aliases.
    pub id: i64,
    /// The name that requests use.
    pub alias: String,
    /// What led to it.
    pub action: RouteAction,
    /// The versions that answer.
    pub shares: Vec<Share>,
    /// The version that is asked in secret, to compare.
    pub shadow: Option<String>,
    /// The state that a rollback leads back to.
    pub back: Option<i64>,
    /// When it began, in seconds since 1970.
    pub at: u64,
}

impl ModelRoute {
    /// Whether no version answers: the alias was taken away.
    pub fn is_retired(&self) -> bool {
        self.shares.is_empty()
    }

    /// All versions that it needs.
    pub(super) fn versions(&self) -> BTreeSet<&str> {
        let answering = self.shares.iter().map(|share| share.version.as_str());
        answering.chain(self.shadow.as_deref()).collect()
    }
}

/// A version's part of an alias's requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Share {
    /// The version.
    pub version: String,
    /// Its part is this, divided by the sum of all weights.
    pub weight: u32,
}

impl Share {
    /// A version with a weight.
    pub fn new(version: impl Into<String>, weight: u32) -> Self {
        Self { version: version.into(), weight }
    }
}

/// What changed an alias.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RouteAction {
    /// One version answers all requests.
    Deploy,
    /// An earlier state was restored.
    Rollback,
    /// Several versions share the requests.
    Weights,
    /// Another version is asked in secret, or none anymore.
    Shadow,
    /// No version answers: there is no such name anymore.
    Retire,
}

/// What was used on a day.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct UsageRow {
    /// The day's first second (UTC), in seconds since 1970.
    pub day: u64,
    /// Whose key it was; empty without keys.
    pub tenant: String,
    /// The name in the requests.
    pub model: String,
    /// The version that answered; empty for a model that the registry does not manage.
    pub version: String,
    /// How much.
    #[serde(flatten)]
    pub counts: Counts,
}

/// How often a version asked in secret agreed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ShadowRow {
    /// The name in the requests.
    pub alias: String,
    /// The version that answered.
    pub version: String,
    /// The version that was asked in secret.
    pub shadow: String,
    /// How often what happened.
    #[serde(flatten)]
    pub counts: ShadowCounts,
}

/// A file that becomes a version.
pub(super) struct NewRow<'a> {
    pub(super) name: &'a str,
    pub(super) path: &'a Path,
    pub(super) bytes: u64,
    pub(super) format: FileFormat,
    pub(super) license: Option<&'a str>,
    pub(super) parent: Option<&'a str>,
    pub(super) method: Option<&'a str>,
    pub(super) canary: Option<&'a Canary>,
    pub(super) now: u64,
}

/// A state of an alias that is to be written.
#[derive(Debug)]
pub(super) struct NewRoute {
    pub(super) action: RouteAction,
    pub(super) shares: Vec<Share>,
    pub(super) shadow: Option<String>,
    pub(super) back: Option<i64>,
}

pub(super) struct Store {
    connection: Connection,
    path: PathBuf,
}

fn int(x: u64) -> i64 {
    i64::try_from(x).unwrap_or(i64::MAX)
}

fn count(row: &Row<'_>, place: usize) -> rusqlite::Result<u64> {
    row.get::<_, i64>(place).map(|x| u64::try_from(x).unwrap_or(0))
}

fn parse<T: DeserializeOwned>(what: &'static str, text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|error| RegistryError::Row { what, message: error.to_string() })
}

fn word<T: DeserializeOwned>(what: &'static str, text: String) -> Result<T> {
    serde_json::from_value(serde_json::Value::String(text))
        .map_err(|error| RegistryError::Row { what, message: error.to_string() })
}

fn json(value: &impl Serialize) -> String {
    // Strings, numbers and maps with strings as keys.
    serde_json::to_string(value).unwrap_or_default()
}

/// A unit variant's name, without quotes.
fn name_of(value: &impl Serialize) -> String {
    json(value).trim_matches('"').to_owned()
}

const VERSION: &str = "SELECT name, path, bytes, format, license, parent, method, is_validated, failure, findings, \
                       canary, created FROM versions";
const ROUTE: &str = "SELECT id, alias, action, shares, shadow, back, at FROM routes";

type VersionRow = (Version, String, String, Option<String>);

fn version_row(row: &Row<'_>) -> rusqlite::Result<VersionRow> {
    let version = Version {
        name: row.get(0)?,
        path: row.get::<_, String>(1)?.into(),
        bytes: count(row, 2)?,
        format: FileFormat::Gguf,
        license: row.get(4)?,
        parent: row.get(5)?,
        method: row.get(6)?,
        is_validated: row.get(7)?,
        failure: row.get(8)?,
        state: VersionState::Registered,
        findings: Vec::new(),
        canary: None,
        created: count(row, 11)?,
    };
    Ok((version, row.get(3)?, row.get(9)?, row.get(10)?))
}

fn version((mut version, format, findings, canary): VersionRow) -> Result<Version> {
    version.format = word("format", format)?;
    version.findings = parse("findings", &findings)?;
    version.canary = canary.map(|text| parse("canary", &text)).transpose()?;
    Ok(version)
}

type RouteRow = (i64, String, String, String, Option<String>, Option<i64>, u64);

fn route_row(row: &Row<'_>) -> rusqlite::Result<RouteRow> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?, count(row, 6)?))
}

fn route((id, alias, action, shares, shadow, back, at): RouteRow) -> Result<ModelRoute> {
    let (action, shares) = (word("action", action)?, parse("shares", &shares)?);
    Ok(ModelRoute { id, alias, action, shares, shadow, back, at })
}

impl Store {
    pub(super) fn open(path: &Path, config: &SqliteConfig) -> Result<Self> {
        let connection = sqlite::open(path, config, &SCHEMA)?;
        Ok(Self { connection, path: path.to_owned() })
    }

    fn write<R>(&mut self, work: impl FnOnce(&Connection) -> rusqlite::Result<R>) -> Result<R> {
        let path = &self.path;
        Ok(sqlite::write(&mut self.connection, path, |transaction| work(transaction).map_err(failed(path)))?)
    }

    fn rows<T, R>(
        &self,
        sql: &str,
        params: impl rusqlite::Params,
        read: fn(&Row<'_>) -> rusqlite::Result<T>,
        finish: fn(T) -> Result<R>,
    ) -> Result<Vec<R>> {
        let all = || -> rusqlite::Result<Vec<T>> {
            let mut statement = self.connection.prepare_cached(sql)?;
            statement.query_map(params, read)?.collect()
        };
        all().map_err(failed(&self.path))?.into_iter().map(finish).collect()
    }

    /// Adds a version, or renews what is told of it if its file is known already. A canary that is not given
    /// stays what it was.
    pub(super) fn add_version(&mut self, new: &NewRow<'_>) -> Result<()> {
        let sql = "INSERT INTO versions (name, path, bytes, format, license, parent, method, canary, created)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
            ON CONFLICT (name) DO UPDATE SET path = excluded.path, format = excluded.format,
                license = coalesce(excluded.license, license), parent = coalesce(excluded.parent, parent),
                method = coalesce(excluded.method, method), canary = coalesce(excluded.canary, canary)";
        let path = new.path.to_str().unwrap_or_default();
        let (format, canary) = (name_of(&new.format), new.canary.map(json));
        let values = params![
            new.name,
            path,
            int(new.bytes),
            format,
            new.license,
            new.parent,
            new.method,
            canary,
            int(new.now)
        ];
        self.write(|connection| connection.execute(sql, values)).map(drop)
    }

    /// Keeps what was found in a version's file. `failure` is the first error.
    pub(super) fn set_findings(
        &mut self,
        name: &str,
        findings: &[Finding],
        failure: Option<&str>,
    ) -> Result<()> {
        let sql =
            "UPDATE versions SET findings = ?2, failure = ?3, is_validated = ?3 IS NULL WHERE name = ?1";
        let findings = json(&findings);
        self.write(|connection| connection.execute(sql, params![name, findings, failure])).map(drop)
    }

    /// Keeps why a version failed; `None`: it works.
    pub(super) fn set_failure(&mut self, name: &str, failure: Option<&str>) -> Result<()> {
        let sql = "UPDATE versions SET failure = ?2 WHERE name = ?1";
        self.write(|connection| connection.execute(sql, params![name, failure])).map(drop)
    }

    /// Keeps a version's canary.
    pub(super) fn set_canary(&mut self, name: &str, canary: &Canary) -> Result<()> {
        let (sql, canary) = ("UPDATE versions SET canary = ?2 WHERE name = ?1", json(canary));
        self.write(|connection| connection.execute(sql, params![name, canary])).map(drop)
    }

    /// The version whose name begins like this.
    pub(super) fn version(&self, name: &str) -> Result<Version> {
        let hash = name.strip_prefix("sha256:").unwrap_or(name);
        let is_hash = (8..=64).contains(&hash.len()) && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
        let no_version = || RegistryError::NoVersion { name: name.chars().take(100).collect() };
        if !is_hash {
            return Err(no_version());
        }
        let from = format!("sha256:{}", hash.to_ascii_lowercase());
        let sql = format!("{VERSION} WHERE name >= ?1 AND name < ?1 || 'g' LIMIT 2");
        let mut found = self.rows(&sql, [from], version_row, version)?;
        match (found.pop(), found.pop()) {
            (Some(version), None) => Ok(version),
            (None, _) => Err(no_version()),
            _ => Err(RegistryError::Ambiguous { name: name.to_owned() }),
        }
    }

    /// All versions, the latest first.
    pub(super) fn versions(&self) -> Result<Vec<Version>> {
        self.rows(&format!("{VERSION} ORDER BY created DESC, name"), [], version_row, version)
    }

    /// What each alias stands for, also those that were taken away.
    pub(super) fn routes(&self) -> Result<Vec<ModelRoute>> {
        let sql = format!("{ROUTE} WHERE id IN (SELECT max(id) FROM routes GROUP BY alias) ORDER BY alias");
        self.rows(&sql, [], route_row, route)
    }

    /// The number of the latest state of any alias; 0 if there is none.
    pub(super) fn latest(&self) -> Result<i64> {
        let sql = "SELECT coalesce(max(id), 0) FROM routes";
        Ok(self.connection.query_row(sql, [], |row| row.get(0)).map_err(failed(&self.path))?)
    }

    /// What an alias stands for.
    pub(super) fn current(&self, alias: &str) -> Result<Option<ModelRoute>> {
        let sql = format!("{ROUTE} WHERE alias = ?1 ORDER BY id DESC LIMIT 1");
        Ok(self.rows(&sql, [alias], route_row, route)?.pop())
    }

    /// A state by its number.
    pub(super) fn route(&self, id: i64) -> Result<Option<ModelRoute>> {
        Ok(self.rows(&format!("{ROUTE} WHERE id = ?1"), [id], route_row, route)?.pop())
    }

    /// All states of an alias, the latest first.
    pub(super) fn history(&self, alias: &str) -> Result<Vec<ModelRoute>> {
        self.rows(&format!("{ROUTE} WHERE alias = ?1 ORDER BY id DESC"), [alias], route_row, route)
    }

    /// All versions that any alias ever led to.
    pub(super) fn ever_used(&self) -> Result<BTreeSet<String>> {
        let all = self.rows(ROUTE, [], route_row, route)?;
        Ok(all.iter().flat_map(ModelRoute::versions).map(str::to_owned).collect())
    }

    /// Adds a row: from now on the alias stands for something else. `before` is the state that this was
    /// decided on.
    ///
    /// # Errors
    /// [`RegistryError::Conflict`] if it has another one by now.
    pub(super) fn add_route(
        &mut self,
        alias: &str,
        before: Option<i64>,
        new: &NewRoute,
        now: u64,
    ) -> Result<ModelRoute> {
        let shares = json(&new.shares);
        let action = name_of(&new.action);
        let added = self.write(|connection| {
            let sql = "SELECT max(id) FROM routes WHERE alias = ?1";
            let found: Option<i64> = connection.query_row(sql, [alias], |row| row.get(0))?;
            if found != before {
                return Ok(Err(found));
            }
            let sql = "INSERT INTO routes (alias, action, shares, shadow, back, at)
                VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
            connection.execute(sql, params![alias, action, shares, new.shadow, new.back, int(now)])?;
            Ok(Ok(connection.last_insert_rowid()))
        })?;
        let conflict = |found: Option<i64>| RegistryError::Conflict {
            alias: alias.to_owned(),
            found: found.unwrap_or(0),
        };
        Ok(ModelRoute {
            id: added.map_err(conflict)?,
            alias: alias.to_owned(),
            action: new.action,
            shares: new.shares.clone(),
            shadow: new.shadow.clone(),
            back: new.back,
            at: now,
        })
    }

    /// Adds to what was used, in one transaction.
    pub(super) fn add_usage<'a>(
        &mut self,
        usage: impl Iterator<Item = (&'a UsageKey, &'a Counts)>,
        shadows: impl Iterator<Item = (&'a ShadowKey, &'a ShadowCounts)>,
    ) -> Result<()> {
        self.write(|connection| {
            let mut statement = connection.prepare_cached(
                "INSERT INTO usage VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
                ON CONFLICT DO UPDATE SET requests = requests + excluded.requests,
                    texts = texts + excluded.texts, failures = failures + excluded.failures,
                    prompt_tokens = prompt_tokens + excluded.prompt_tokens,
                    cached_tokens = cached_tokens + excluded.cached_tokens,
                    completion_tokens = completion_tokens + excluded.completion_tokens",
            )?;
            for (key, n) in usage {
                statement.execute(params![
                    int(key.day),
                    key.tenant,
                    key.model,
                    key.version,
                    int(n.requests),
                    int(n.texts),
                    int(n.failures),
                    int(n.prompt_tokens),
                    int(n.cached_tokens),
                    int(n.completion_tokens)
                ])?;
            }
            let mut statement = connection.prepare_cached(
                "INSERT INTO shadows VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
                ON CONFLICT DO UPDATE SET same = same + excluded.same, different = different + excluded.different,
                    uncompared = uncompared + excluded.uncompared, failed = failed + excluded.failed,
                    skipped = skipped + excluded.skipped",
            )?;
            for (key, n) in shadows {
                statement.execute(params![
                    key.alias,
                    key.version,
                    key.shadow,
                    int(n.same),
                    int(n.different),
                    int(n.uncompared),
                    int(n.failed),
                    int(n.skipped)
                ])?;
            }
            Ok(())
        })
    }

    /// What was used from a moment on, by day.
    pub(super) fn usage(
        &self,
        since: u64,
        tenant: Option<&str>,
        model: Option<&str>,
    ) -> Result<Vec<UsageRow>> {
        let sql =
            "SELECT day, tenant, model, version, requests, texts, failures, prompt_tokens, cached_tokens,
            completion_tokens FROM usage
            WHERE day + 86400 > ?1 AND (?2 IS NULL OR tenant = ?2) AND (?3 IS NULL OR model = ?3)
            ORDER BY day, tenant, model, version";
        let read = |row: &Row<'_>| {
            Ok(UsageRow {
                day: count(row, 0)?,
                tenant: row.get(1)?,
                model: row.get(2)?,
                version: row.get(3)?,
                counts: Counts {
                    requests: count(row, 4)?,
                    texts: count(row, 5)?,
                    failures: count(row, 6)?,
                    prompt_tokens: count(row, 7)?,
                    cached_tokens: count(row, 8)?,
                    completion_tokens: count(row, 9)?,
                },
            })
        };
        self.rows(sql, params![int(since), tenant, model], read, Ok)
    }

    /// How versions asked in secret compare.
    pub(super) fn shadows(&self) -> Result<Vec<ShadowRow>> {
        let sql = "SELECT alias, version, shadow, same, different, uncompared, failed, skipped FROM shadows";
        let read = |row: &Row<'_>| {
            Ok(ShadowRow {
                alias: row.get(0)?,
                version: row.get(1)?,
                shadow: row.get(2)?,
                counts: ShadowCounts {
                    same: count(row, 3)?,
                    different: count(row, 4)?,
                    uncompared: count(row, 5)?,
                    failed: count(row, 6)?,
                    skipped: count(row, 7)?,
                },
            })
        };
        self.rows(sql, [], read, Ok)
    }
}
