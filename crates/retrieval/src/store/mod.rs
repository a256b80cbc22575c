//! The store: SQLite is the truth, indexes are derived.
//!
//! A store is a folder. `store.db` holds collections, vectors and payloads; `index-N.bin` is the index of a
//! collection, derived from the database. It may be missing, old or damaged: when a collection is opened, it
//! is checked, and brought up to date from the database or built anew.
//!
//! # Durability
//! A write is a transaction, in SQLite's write-ahead log. When it returns, the log has been synced
//! ([`Durability::Full`]); the write then survives a crash of the process and a power failure. With
//! [`Durability::Process`] the log is synced only now and then: a crash of the process loses nothing, a crash
//! of the system may lose the last writes, but never part of one.
//!
//! # Readers and writers
//! Any number of threads and processes read while one writes; a second writer waits. Searches find what this
//! process wrote at once, and what another one wrote after at most [`Options::refresh`].

mod admin;
mod collection;
mod element;
mod fields;
mod files;
mod filter;
mod ids;
mod number;
mod points;
mod sample;
mod saver;
mod schema;
mod search;
mod shared;
mod state;

pub use admin::{Job, Repair, Verification};
pub use collection::Collection;
pub use element::Element;
pub use fields::Indexed;
pub use filter::{Filter, Payload};
pub use number::{Number, Scalar};
pub use points::{Hit, MAX_DEPTH, MAX_ID, Point, Query};
pub use schema::SCHEMA_VERSION;
pub use state::Origin;

use crate::{Error, Metric, Result, metric::check_dimension};
use breakers_files::{Disk, OsDisk};
use breakers_sqlite::{self as sqlite, SqliteConfig};
use hashbrown::HashMap;
use rusqlite::{Connection, OptionalExtension as _, TransactionBehavior, params};
use serde::{Deserialize, Serialize};
use shared::{Shared, lock, lock_within};
use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, atomic::Ordering},
    time::Duration,
};

/// The database within a store's folder.
pub(crate) const DATABASE: &str = "store.db";

/// A connection's cache of the database if memory is short, in KiB.
const SHORT_CACHE_KIB: i64 = 128;

/// What survives once a write was acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Durability {
    /// Synced to the disk.
    #[default]
    Full,
    /// Safe from a crash of the process; a crash of the system may lose the last writes.
    Process,
}

/// Options for opening a store.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Options {
    /// What survives once a write was acknowledged.
    pub durability: Durability,
    /// How long a search may miss what another process wrote. Zero asks the database every time, which takes
    /// a few microseconds.
    pub refresh: Duration,
    /// How long a write waits for the writes of other threads and processes.
    pub busy_timeout: Duration,
    /// Leaves full vectors in the database and reads those that are compared, instead of keeping them all in
    /// memory.
    pub vectors_on_disk: bool,
    /// The number of points of a collection for which memory is reserved at once. Without it, buffers are
    /// moved as they grow, which takes twice the memory for a moment.
    pub expected_points: usize,
    /// Writes index files when a store is closed, and before that in the background: when a quarter of an
    /// index has changed, or when a change is [`save_after`](Self::save_after) old.
    pub save_on_close: bool,
    /// The age of a change at which the index file is written in the background.
    pub save_after: Duration,
    /// The file system that index files are written through.
    pub disk: Arc<dyn Disk>,
    /// The SQLite VFS; `None` takes SQLite's default.
    pub vfs: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            durability: Durability::Full,
            refresh: Duration::from_millis(5),
            busy_timeout: Duration::from_secs(30),
            vectors_on_disk: false,
            expected_points: 0,
            save_on_close: true,
            save_after: Duration::from_secs(30),
            disk: Arc::new(OsDisk),
            vfs: None,
        }
    }
}

impl Options {
    /// Keeps the index of `n` vectors within a budget: full vectors stay in memory if they fit, otherwise in
    /// the database, and then only their codes and links take memory, also while points are written and the
    /// index is saved. Not counted are SQLite's own memory, some hundred KiB for each connection, the points
    /// of a call, and the moment in which codes get another center because vectors have drifted, when old and
    /// new codes exist at once.
    ///
    /// # Units
    /// `budget`: bytes
    ///
    /// # Errors
    /// [`Error::Parameter`], which names the smallest budget that works, if codes and links alone do not fit.
    pub fn within(self, budget: usize, n: usize, config: &Config) -> Result<Self> {
        let codes = config.code_bytes().saturating_mul(n);
        if codes > budget {
            return Err(Error::parameter("the memory budget", format!("at least {codes} bytes"), budget));
        }
        let full = config.full_bytes().saturating_mul(n);
        Ok(Self { vectors_on_disk: full > budget, expected_points: n, ..self })
    }
}

/// Settings of a collection, fixed when it is created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Numbers of a vector.
    pub dimension: usize,
    /// What "near" means.
    pub metric: Metric,
    /// How vectors are kept.
    #[serde(default)]
    pub element: Element,
    /// Which fields of payloads have an index.
    #[serde(default)]
    pub indexed: Indexed,
    /// Links that a new vector gets in the graph.
    pub links: usize,
    /// The width of the beam that finds them.
    pub build_effort: usize,
}

impl Config {
    /// The default settings for this dimension and metric.
    pub fn new(dimension: usize, metric: Metric) -> Self {
        let (element, indexed) = (Element::F32, Indexed::All);
        Self { dimension, metric, element, indexed, links: 16, build_effort: 200 }
    }

    /// Bytes of memory that a vector takes without its full form: codes, links, and the entry that maps its
    /// id to its slot.
    pub fn code_bytes(&self) -> usize {
        let slots = 2 * (size_of::<u64>() + size_of::<(u64, u32)>());
        let links = self.links.saturating_mul(8).saturating_add(4);
        self.padded_dimension().saturating_add(links).saturating_add(16 + slots)
    }

    /// Numbers of a vector as its codes have them.
    fn padded_dimension(&self) -> usize {
        self.dimension.checked_next_multiple_of(64).unwrap_or(usize::MAX)
    }

    /// Bytes of memory that a vector takes with its full form, which includes four bits a coordinate for
    /// exact scans.
    pub fn full_bytes(&self) -> usize {
        let floats = self.dimension.saturating_mul(4).saturating_add(16);
        self.code_bytes().saturating_add(self.padded_dimension() / 2).saturating_add(floats)
    }

    /// Keeps vectors in this form.
    pub fn element(self, element: Element) -> Self {
        Self { element, ..self }
    }

    /// Indexes these fields of payloads.
    pub fn indexed(self, indexed: Indexed) -> Self {
        Self { indexed, ..self }
    }
}

/// A folder of collections. Clones share everything.
///
/// ```
/// use breakers_retrieval::{Metric, store::{Config, Filter, Point, Query, Store}};
/// use serde_json::json;
///
/// let folder = tempfile::tempdir().unwrap();
/// let store = Store::open(folder.path())?;
/// let colors = store.create("colors", &Config::new(3, Metric::L2))?;
/// colors.upsert(&[
///     Point::new(1, [1.0, 0.0, 0.0]).with_payload(json!({"name": "red", "warm": true}))?,
///     Point::new(2, [0.0, 0.0, 1.0]).with_payload(json!({"name": "blue", "warm": false}))?,
///     Point::new(3, [1.0, 0.6, 0.0]).with_payload(json!({"name": "orange", "warm": true}))?,
/// ])?;
/// let query = Query::new([1.0, 0.2, 0.0], 2);
/// let ids: Vec<u64> = colors.search(&query)?.iter().map(|hit| hit.id).collect();
/// assert_eq!(ids, [1, 3]);
/// let cold = query.clone().filter(Filter::eq("warm", false));
/// assert_eq!(colors.search(&cold)?[0].id, 2);
/// println!("{}", colors.explain(&query)?);
/// # Ok::<(), breakers_retrieval::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    folder: PathBuf,
    options: Options,
    /// Which file the database is.
    place: Option<files::FilePlace>,
    writer: Mutex<Connection>,
    readers: Mutex<Vec<Connection>>,
    /// Open collections stay open, so a new handle for each write costs nothing.
    collections: Mutex<HashMap<i64, Arc<Shared>>>,
    saver: saver::Saver,
}

impl Store {
    /// Opens the store in a folder; creates it if there is none.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Sqlite`], [`Error::SchemaVersion`].
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(folder, Options::default())
    }

    /// [`open`](Self::open) with options.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(folder: impl AsRef<Path>, options: Options) -> Result<Self> {
        let folder = folder.as_ref().to_owned();
        std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
        let path = folder.join(DATABASE);
        let writer = sqlite::open(&path, &options.sqlite(), &schema::SCHEMA)?;
        options.limit_cache(&writer)?;
        let place = files::file_place(&path);
        let inner = Inner {
            folder,
            options,
            place,
            writer: Mutex::new(writer),
            readers: Mutex::default(),
            collections: Mutex::default(),
            saver: saver::Saver::default(),
        };
        inner.clean();
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.inner.folder
    }

    /// Names of the collections.
    ///
    /// # Errors
    /// [`Error::Sqlite`].
    pub fn list(&self) -> Result<Vec<String>> {
        self.inner.read(|connection| {
            let mut statement = connection.prepare_cached("SELECT name FROM collections ORDER BY name")?;
            let names = statement.query_map([], |row| row.get(0))?;
            Ok(names.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// Creates a collection, or opens an existing one with this name and these settings.
    ///
    /// # Errors
    /// [`Error::CollectionExists`] if one with this name has other settings, [`Error::DimensionRange`],
    /// [`Error::Parameter`], and those of [`collection`](Self::collection).
    pub fn create(&self, name: &str, config: &Config) -> Result<Collection> {
        check_dimension(config.dimension)?;
        config.graph().check()?;
        {
            let mut writer = self.inner.writer()?;
            let transaction = writer.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let found: Option<String> = transaction
                .query_row("SELECT config FROM collections WHERE name = ?1", [name], |row| row.get(0))
                .optional()?;
            let wanted = serde_json::to_string(config)?;
            match found {
                Some(found) if parse_config(name, &found)? == *config => {}
                Some(found) => {
                    let name = name.to_owned();
                    return Err(Error::CollectionExists { name, expected: wanted, found });
                }
                None => {
                    transaction.execute(
                        "INSERT INTO collections(name, uid, config) VALUES (?1, random(), ?2)",
                        params![name, wanted],
                    )?;
                    let id = transaction.last_insert_rowid();
                    schema::create_tables(&transaction, id)?;
                    transaction.commit()?;
                }
            }
        }
        self.collection(name)
    }

    /// Opens a collection. Its index is loaded from its file, or built if that is not possible.
    ///
    /// # Errors
    /// [`Error::UnknownCollection`], [`Error::Corrupt`], [`Error::Sqlite`].
    pub fn collection(&self, name: &str) -> Result<Collection> {
        let sql = "SELECT id, config FROM collections WHERE name = ?1";
        let found: Option<(i64, String)> = self.inner.read(|connection| {
            let mut statement = connection.prepare_cached(sql)?;
            Ok(statement.query_row([name], |row| Ok((row.get(0)?, row.get(1)?))).optional()?)
        })?;
        let Some((id, config)) = found else {
            return Err(Error::UnknownCollection { name: name.to_owned() });
        };
        let config = parse_config(name, &config)?;
        let store = Arc::clone(&self.inner);
        // Under the lock, so that two threads do not load the same index.
        let mut open = lock(&store.collections);
        let shared = match open.get(&id) {
            Some(shared) => Arc::clone(shared),
            None => {
                let shared = Arc::new(Shared::open(&store, id, name.to_owned(), config)?);
                open.insert(id, Arc::clone(&shared));
                shared
            }
        };
        drop(open);
        Ok(Collection { store, shared })
    }

    /// Removes a collection and all of its points. Returns whether there was one.
    ///
    /// # Errors
    /// [`Error::Sqlite`].
    pub fn remove(&self, name: &str) -> Result<bool> {
        let mut writer = self.inner.writer()?;
        let transaction = writer.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let id: Option<i64> = transaction
            .query_row("SELECT id FROM collections WHERE name = ?1", [name], |row| row.get(0))
            .optional()?;
        let Some(id) = id else { return Ok(false) };
        transaction.execute("DELETE FROM collections WHERE id = ?1", [id])?;
        schema::drop_tables(&transaction, id)?;
        transaction.commit()?;
        drop(writer);
        if let Some(shared) = lock(&self.inner.collections).remove(&id) {
            shared.removed.store(true, Ordering::Relaxed);
        }
        // Without the collection nobody opens the file; if it stays, it is never read.
        let _ = self.inner.options.disk.remove(&self.inner.index_path(id));
        Ok(true)
    }
}

fn parse_config(name: &str, text: &str) -> Result<Config> {
    serde_json::from_str(text).map_err(|error| Error::Corrupt {
        what: format!("the settings of {name:?}"),
        expected: "settings that this build knows".to_owned(),
        found: error.to_string(),
    })
}

impl Options {
    /// If memory is short, SQLite caches few pages, too.
    fn limit_cache(&self, connection: &Connection) -> Result<()> {
        if self.vectors_on_disk {
            connection.pragma_update(None, "cache_size", -SHORT_CACHE_KIB)?;
        }
        Ok(())
    }

    fn place<'a>(&self, collection: i64, config: &'a Config) -> state::Place<'a> {
        let (on_disk, expected) = (self.vectors_on_disk, self.expected_points);
        state::Place { collection, config, on_disk, expected }
    }

    fn sqlite(&self) -> SqliteConfig {
        let mut config = SqliteConfig::default();
        config.durability = match self.durability {
            Durability::Full => sqlite::Durability::Full,
            Durability::Process => sqlite::Durability::Process,
        };
        config.busy_timeout = self.busy_timeout;
        config.vfs.clone_from(&self.vfs);
        config
    }
}

impl Inner {
    pub(crate) fn index_path(&self, collection: i64) -> PathBuf {
        self.folder.join(format!("index-{collection}.bin"))
    }

    /// The connection that writes.
    ///
    /// # Errors
    /// [`Error::Busy`].
    pub(crate) fn writer(&self) -> Result<MutexGuard<'_, Connection>> {
        lock_within(&self.writer, self.options.busy_timeout, "the connection that writes")
    }

    /// Calls `f` with a connection that no other thread uses.
    pub(crate) fn read<R>(&self, f: impl FnOnce(&Connection) -> Result<R>) -> Result<R> {
        let connection = lock(&self.readers).pop();
        let connection = match connection {
            Some(connection) => connection,
            None => {
                let connection = sqlite::connect(self.folder.join(DATABASE), &self.options.sqlite())?;
                self.options.limit_cache(&connection)?;
                connection
            }
        };
        let result = f(&connection);
        // A connection that failed in the middle of an operation is not used again.
        if result.is_ok() {
            lock(&self.readers).push(connection);
        }
        result
    }
}
