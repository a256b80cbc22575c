//! Versions of models behind names: deployed, compared and rolled back while the server runs.
//!
//! | to | use |
//! |---|---|
//! | make a file known, check it | [`Registry::register`] |
//! | let a version answer for a name | [`Registry::deploy`] |
//! | go back to what was before | [`Registry::rollback`] |
//! | let several versions share the requests | [`Registry::set_weights`] |
//! | ask a version in secret and compare | [`Registry::set_shadow`] |
//! | take a name away | [`Registry::retire`] |
//! | see who used what | [`Registry::usage`] |
//!
//! A version is a file, and its name is the file's hash. An *alias* is the name that requests use. What an
//! alias stands for is one row of a database (SQLite); a change adds a row, so that it happens wholly or not
//! at all, and the rows before it say where a rollback leads.
//!
//! Before an alias changes, the new version's file is hashed, loaded beside the old one, and asked its
//! [`Canary`]. If any of that fails, the error says why, and nothing has changed. Requests that run go on
//! with the version that they began with, which stays loaded until the last of them has ended.
//!
//! Several servers may use one database. Each follows the changes of the others within
//! [`RegistryConfig::sync_time`]; one that cannot load a version stays with the one that it has.
//!
//! # Memory
//! While a version is being replaced, both are loaded.
//!
//! # Example
//! ```
//! use std::sync::Arc;
//! use breakers_core::{BoxError, ChatModel, ScriptedModel};
//! use breakers_serve::registry::{Loader, NewVersion, Registry, RegistryConfig, Version};
//! use breakers_serve::{ServeConfig, Server};
//!
//! /// Opens what `path` holds.
//! struct Files;
//!
//! impl Loader for Files {
//!     fn load(&self, path: &std::path::Path, _: &Version) -> Result<Arc<dyn ChatModel>, BoxError> {
//!         let text = std::fs::metadata(path)?.len().to_string();
//!         Ok(Arc::new(ScriptedModel::from_fn("m", move |_| text.as_str().into())))
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let folder = folder.path();
//! let config = RegistryConfig::new(folder.join("registry.db"), folder);
//! let registry = Arc::new(Registry::open(config, Arc::new(Files))?);
//! // Not a model: it is refused, and the registry says why.
//! std::fs::write(folder.join("model.gguf"), "GGUF, or so it says")?;
//! let refused = registry.register(&NewVersion::new("model.gguf")).unwrap_err();
//! assert!(refused.to_string().contains("version"), "{refused}");
//! let mut config = ServeConfig::default();
//! config.address = "127.0.0.1:0".parse()?;
//! let server = Server::new(config).with_registry(registry).spawn()?;
//! # Ok(())
//! # }
//! ```

mod admin;
mod canary;
mod draw;
mod error;
mod live;
mod safetensors;
mod shadow;
mod store;
mod usage;
mod validate;

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, TryLockError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use breakers_core::{BoxError, ChatModel, chain};
pub use breakers_sqlite::SqliteConfig;

pub(crate) use self::admin::{MAX_ADMIN, routes};
pub use self::canary::Canary;
pub use self::error::RegistryError;
use self::live::{Behind, Live, LiveRoute, Loaded};
pub(crate) use self::shadow::Shadow;
pub use self::store::{ModelRoute, RouteAction, ShadowRow, Share, UsageRow, Version, VersionState};
use self::store::{NewRoute, NewRow, Store};
use self::usage::Unwritten;
pub use self::usage::{Counts, ShadowCounts};
pub(crate) use self::usage::{ShadowKey, UsageKey};
pub use self::validate::{FileFormat, Finding, Severity};
use crate::state::{Health, Hosted};

/// Result of the registry's functions.
pub type Result<T, E = RegistryError> = std::result::Result<T, E>;

/// The longest name of an alias, in bytes.
const MAX_ALIAS: usize = 128;
/// The largest weight.
const MAX_WEIGHT: u32 = 1_000_000;
/// The most versions that share an alias.
const MAX_SHARES: usize = 64;
/// Time between looks at versions that are being drained.
const DRAIN_TIME: Duration = Duration::from_millis(20);
/// Time between tries to reach a state that could not be reached.
const RETRY_TIME: Duration = Duration::from_secs(30);

/// Makes models of files.
pub trait Loader: Send + Sync {
    /// Loads a version's file.
    ///
    /// The name on the model's card plays no part. It may panic: that counts as an error.
    ///
    /// # Errors
    /// Why the file cannot be loaded: the registry keeps that and shows it to whoever deploys.
    fn load(&self, path: &Path, version: &Version) -> Result<Arc<dyn ChatModel>, BoxError>;
}

/// Settings of a [`Registry`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RegistryConfig {
    /// The database; it is created if there is none.
    pub database: PathBuf,
    /// The folder of models: files outside of it are refused.
    pub folder: PathBuf,
    /// How the database is opened.
    pub sqlite: SqliteConfig,
    /// Time in which the changes of other servers are seen.
    pub sync_time: Duration,
    /// Time between writes of what was used. A crash loses what was used since the last one.
    pub usage_time: Duration,
    /// Time for the answer to a canary.
    pub canary_time: Duration,
}

impl RegistryConfig {
    /// The usual settings: half a second until changes and usage are seen, a minute for a canary.
    pub fn new(database: impl Into<PathBuf>, folder: impl Into<PathBuf>) -> Self {
        Self {
            database: database.into(),
            folder: folder.into(),
            sqlite: SqliteConfig::default(),
            sync_time: Duration::from_millis(500),
            usage_time: Duration::from_millis(500),
            canary_time: Duration::from_secs(60),
        }
    }
}

/// A file that is to become a version.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NewVersion {
    /// The file, within the folder of models.
    pub path: PathBuf,
    /// Under which license it may be used.
    pub license: Option<String>,
    /// The version that it was made from: its name or the beginning of its name.
    pub parent: Option<String>,
    /// How it was made.
    pub method: Option<String>,
    /// A prompt with the answer that it must give. `None`: a prompt is chosen when it is loaded for the first
    /// time, and the answer that it then gives is recorded.
    pub canary: Option<Canary>,
}

impl NewVersion {
    /// A file of which nothing else is known.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), license: None, parent: None, method: None, canary: None }
    }

    /// The same with a canary.
    pub fn with_canary(mut self, canary: Canary) -> Self {
        self.canary = Some(canary);
        self
    }
}

/// Versions of models behind names. See the [module](self).
pub struct Registry {
    inner: Arc<Inner>,
    keeper: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("config", &self.inner.config).finish_non_exhaustive()
    }
}

struct Inner {
    config: RegistryConfig,
    folder: PathBuf,
    loader: Arc<dyn Loader>,
    store: Mutex<Store>,
    /// One change at a time.
    turn: Mutex<Turn>,
    live: RwLock<Arc<Live>>,
    draining: Mutex<Vec<Arc<Loaded>>>,
    /// Versions that are on their way.
    progress: Mutex<BTreeMap<String, VersionState>>,
    unwritten: Unwritten,
    /// Names that are no aliases.
    reserved: Mutex<BTreeSet<String>>,
    is_ended: Mutex<bool>,
    wake: Condvar,
}

/// What only who changes something looks at.
#[derive(Default)]
struct Turn {
    /// The latest state, over all aliases, that this process has followed.
    seen: Option<i64>,
    retry: Option<Instant>,
}

/// What is behind these locks is valid after every step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// The state of an alias that there is.
///
/// # Errors
/// [`RegistryError::NoAlias`], also if it was taken away.
fn present<'r>(alias: &str, current: Option<&'r ModelRoute>) -> Result<&'r ModelRoute> {
    let current = current.filter(|current| !current.is_retired());
    current.ok_or_else(|| RegistryError::NoAlias { alias: alias.to_owned() })
}

/// What a panic said.
fn panic_text(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

impl Registry {
    /// Opens a registry. Nothing is loaded yet: a [`Server`](crate::Server) does that when it starts.
    ///
    /// # Errors
    /// [`RegistryError::Database`], [`RegistryError::Read`] for a folder that is not there,
    /// [`RegistryError::Thread`].
    pub fn open(config: RegistryConfig, loader: Arc<dyn Loader>) -> Result<Self> {
        let failed = |source| RegistryError::Read { path: config.folder.clone(), source };
        let folder = std::fs::canonicalize(&config.folder).map_err(failed)?;
        let store = Store::open(&config.database, &config.sqlite)?;
        let inner = Arc::new(Inner {
            config,
            folder,
            loader,
            store: Mutex::new(store),
            turn: Mutex::default(),
            live: RwLock::default(),
            draining: Mutex::default(),
            progress: Mutex::default(),
            unwritten: Unwritten::default(),
            reserved: Mutex::default(),
            is_ended: Mutex::new(false),
            wake: Condvar::new(),
        });
        let inside = Arc::clone(&inner);
        let keep = move || inside.keep();
        let keeper = std::thread::Builder::new().name("breakers-registry".to_owned()).spawn(keep);
        Ok(Self { inner, keeper: Some(keeper.map_err(|source| RegistryError::Thread { source })?) })
    }

    /// Makes a file known: hashes it, and checks it without loading it. A file that is known already is
    /// checked again, and what is given here replaces what was known.
    ///
    /// # Errors
    /// [`RegistryError::Invalid`] with all findings; the version is then listed as failed.
    /// [`RegistryError::Outside`], [`RegistryError::Read`], [`RegistryError::Database`],
    /// [`RegistryError::NoVersion`] for the parent, [`RegistryError::Parameter`] for the canary.
    pub fn register(&self, new: &NewVersion) -> Result<Version> {
        let inner = &*self.inner;
        // Without the turn: a large file takes long, and must not hold a rollback up.
        if let Some(canary) = &new.canary {
            canary.check()?;
        }
        let full = inner.find(&new.path)?;
        let path = full.strip_prefix(&inner.folder).unwrap_or(&full).to_owned();
        if path.to_str().is_none() {
            let (expected, found) = ("a name in UTF-8", path.display().to_string());
            return Err(RegistryError::Parameter { name: "path", expected, found });
        }
        let parent = match &new.parent {
            Some(parent) => Some(inner.store().version(parent)?.name),
            None => None,
        };
        let (name, bytes) = validate::hash(&full)?;
        let format = validate::format_of(&full)?;
        inner.store().add_version(&NewRow {
            name: &name,
            path: &path,
            bytes,
            format,
            license: new.license.as_deref(),
            parent: parent.as_deref(),
            method: new.method.as_deref(),
            canary: new.canary.as_ref(),
            now: now(),
        })?;
        inner.validate(&name, &full, format)?;
        self.version(&name)
    }

    /// Replaces a version's canary, and forgets that it failed.
    ///
    /// # Errors
    /// [`RegistryError::Parameter`], [`RegistryError::NoVersion`], [`RegistryError::Database`].
    pub fn set_canary(&self, version: &str, canary: &Canary) -> Result<Version> {
        canary.check()?;
        let _turn = lock(&self.inner.turn);
        let mut store = self.inner.store();
        let version = store.version(version)?;
        store.set_canary(&version.name, canary)?;
        if version.is_validated {
            store.set_failure(&version.name, None)?;
        }
        drop(store);
        self.version(&version.name)
    }

    /// Lets one version answer all requests to an alias. The alias is new if there was none. `expect` is the
    /// state that the caller has seen ([`ModelRoute::id`]); `None` changes any state.
    ///
    /// Returns when the version is loaded and has passed its canary.
    ///
    /// # Errors
    /// [`RegistryError::Invalid`], [`RegistryError::Changed`], [`RegistryError::Load`],
    /// [`RegistryError::Canary`]: the version is then listed as failed. [`RegistryError::NoVersion`],
    /// [`RegistryError::Ambiguous`], [`RegistryError::Taken`], [`RegistryError::Parameter`] for the alias,
    /// [`RegistryError::Conflict`], [`RegistryError::Database`]. Nothing has changed then.
    pub fn deploy(&self, alias: &str, version: &str, expect: Option<i64>) -> Result<ModelRoute> {
        self.set(RouteAction::Deploy, alias, &[Share::new(version, 1)], expect)
    }

    /// Lets several versions share the requests to an alias by their weights. A `user` in the request
    /// decides, or else its seed, which version it gets, always the same one; without both it is drawn.
    ///
    /// # Errors
    /// As [`deploy`](Self::deploy); [`RegistryError::Parameter`] for a weight of 0 or above a million, and
    /// for no version, more than 64, or one that is there twice.
    pub fn set_weights(&self, alias: &str, shares: &[Share], expect: Option<i64>) -> Result<ModelRoute> {
        self.set(RouteAction::Weights, alias, shares, expect)
    }

    fn set(
        &self,
        action: RouteAction,
        alias: &str,
        shares: &[Share],
        expect: Option<i64>,
    ) -> Result<ModelRoute> {
        let wrong = |expected, found| RegistryError::Parameter { name: "weights", expected, found };
        if shares.is_empty() || shares.len() > MAX_SHARES {
            return Err(wrong("1 to 64 versions", format!("{} versions", shares.len())));
        }
        if let Some(share) = shares.iter().find(|share| !(1..=MAX_WEIGHT).contains(&share.weight)) {
            return Err(wrong("1 to 1,000,000", share.weight.to_string()));
        }
        self.inner.change(alias, expect, |store, current| {
            let mut named: Vec<Share> = Vec::with_capacity(shares.len());
            for share in shares {
                let version = store.version(&share.version)?.name;
                if named.iter().any(|other| other.version == version) {
                    return Err(wrong("each version once", format!("{version} twice")));
                }
                named.push(Share { version, weight: share.weight });
            }
            // A shadow goes on in the shadow of others, but not of itself alone.
            let shadow = current.and_then(|current| current.shadow.clone());
            let shadow = shadow.filter(|shadow| named.iter().all(|share| share.version != *shadow));
            Ok(NewRoute { action, shares: named, shadow, back: current.map(|current| current.id) })
        })
    }

    /// Lets a version get an alias's requests in secret, after they were answered, to compare what it says;
    /// `None` ends that. [`shadows`](Self::shadows) tells the result.
    ///
    /// # Errors
    /// As [`deploy`](Self::deploy); [`RegistryError::NoAlias`]; [`RegistryError::Parameter`] for a version
    /// that answers already.
    pub fn set_shadow(&self, alias: &str, version: Option<&str>, expect: Option<i64>) -> Result<ModelRoute> {
        self.inner.change(alias, expect, |store, current| {
            let current = present(alias, current)?;
            let shadow =
                version.map(|version| store.version(version)).transpose()?.map(|version| version.name);
            if let Some(shadow) =
                shadow.as_ref().filter(|shadow| current.versions().contains(shadow.as_str()))
                && current.shadow.as_ref() != Some(shadow)
            {
                let (expected, found) = ("a version that does not answer", shadow.clone());
                return Err(RegistryError::Parameter { name: "shadow", expected, found });
            }
            let shares = current.shares.clone();
            Ok(NewRoute { action: RouteAction::Shadow, shares, shadow, back: Some(current.id) })
        })
    }

    /// Goes back to what the alias stood for before its last change; doing so again goes further back.
    ///
    /// # Errors
    /// As [`deploy`](Self::deploy); [`RegistryError::NoAlias`], [`RegistryError::NothingBefore`].
    pub fn rollback(&self, alias: &str, expect: Option<i64>) -> Result<ModelRoute> {
        self.inner.change(alias, expect, |store, current| {
            let current = current.ok_or_else(|| RegistryError::NoAlias { alias: alias.to_owned() })?;
            let before = current.back.map(|id| store.route(id)).transpose()?.flatten();
            let before = before.ok_or_else(|| RegistryError::NothingBefore { alias: alias.to_owned() })?;
            let ModelRoute { shares, shadow, back, .. } = before;
            Ok(NewRoute { action: RouteAction::Rollback, shares, shadow, back })
        })
    }

    /// Takes an alias away: requests to it are refused from now on, and those that run are finished. Its
    /// history stays, and a rollback or a deployment brings it back.
    ///
    /// # Errors
    /// [`RegistryError::NoAlias`], [`RegistryError::Taken`], [`RegistryError::Conflict`],
    /// [`RegistryError::Database`].
    pub fn retire(&self, alias: &str, expect: Option<i64>) -> Result<ModelRoute> {
        self.inner.change(alias, expect, |_, current| {
            let current = present(alias, current)?;
            let (shares, back) = (Vec::new(), Some(current.id));
            Ok(NewRoute { action: RouteAction::Retire, shares, shadow: None, back })
        })
    }

    /// A version by its name, or by 8 or more digits that its hash begins with.
    ///
    /// # Errors
    /// [`RegistryError::NoVersion`], [`RegistryError::Ambiguous`], [`RegistryError::Database`].
    pub fn version(&self, name: &str) -> Result<Version> {
        let mut version = self.inner.store().version(name)?;
        self.inner.set_states(std::slice::from_mut(&mut version))?;
        Ok(version)
    }

    /// All versions, the latest first.
    ///
    /// # Errors
    /// [`RegistryError::Database`].
    pub fn versions(&self) -> Result<Vec<Version>> {
        let mut versions = self.inner.store().versions()?;
        self.inner.set_states(&mut versions)?;
        Ok(versions)
    }

    /// What each alias stands for; those that were taken away stand for nothing and are left out.
    ///
    /// # Errors
    /// [`RegistryError::Database`].
    pub fn routes(&self) -> Result<Vec<ModelRoute>> {
        let mut routes = self.inner.store().routes()?;
        routes.retain(|route| !route.is_retired());
        Ok(routes)
    }

    /// Everything that an alias has stood for, the latest first.
    ///
    /// # Errors
    /// [`RegistryError::Database`], [`RegistryError::NoAlias`].
    pub fn history(&self, alias: &str) -> Result<Vec<ModelRoute>> {
        let history = self.inner.store().history(alias)?;
        if history.is_empty() {
            return Err(RegistryError::NoAlias { alias: alias.to_owned() });
        }
        Ok(history)
    }

    /// What was used since a moment (in seconds since 1970), in whole days; of one tenant and one name if
    /// these are given.
    ///
    /// # Errors
    /// [`RegistryError::Database`].
    pub fn usage(&self, since: u64, tenant: Option<&str>, model: Option<&str>) -> Result<Vec<UsageRow>> {
        self.flush()?;
        self.inner.store().usage(since, tenant, model)
    }

    /// How versions that were asked in secret compare.
    ///
    /// # Errors
    /// [`RegistryError::Database`].
    pub fn shadows(&self) -> Result<Vec<ShadowRow>> {
        self.flush()?;
        self.inner.store().shadows()
    }

    /// Writes what was used and is not in the database yet.
    ///
    /// # Errors
    /// [`RegistryError::Database`]; it is kept and written later.
    pub fn flush(&self) -> Result<()> {
        self.inner.flush()
    }

    /// Loads what the aliases stand for. What cannot be loaded is told in the log and tried again.
    pub(crate) fn start(&self) {
        if let Err(error) = self.inner.follow(&mut lock(&self.inner.turn)) {
            tracing::warn!(%error, "the registry cannot be read");
        }
    }

    /// Names that cannot become aliases. Returns one that is an alias already.
    pub(crate) fn reserve<'a>(&self, names: impl Iterator<Item = &'a String>) -> Result<Option<String>> {
        let mut reserved = lock(&self.inner.reserved);
        reserved.extend(names.cloned());
        let routes = self.routes()?;
        Ok(routes.into_iter().map(|route| route.alias).find(|alias| reserved.contains(alias)))
    }

    /// The model for a request: that of an alias or a version. `key` decides between versions that share an
    /// alias. `None`: there is no such name. An error says that it is known and not there now.
    pub(crate) fn choose(&self, name: &str, key: &[u8]) -> Option<Result<Arc<Hosted>, ()>> {
        let live = self.inner.live();
        let found =
            live.routes.get(name).and_then(|route| route.choose(key)).or_else(|| live.versions.get(name));
        match found {
            Some(hosted) => Some(Ok(Arc::clone(hosted))),
            None => live.behind.contains_key(name).then_some(Err(())),
        }
    }

    /// How many versions share a name; 0 if there is no such alias.
    pub(crate) fn n_shares(&self, name: &str) -> usize {
        self.inner.live().routes.get(name).map_or(0, |live| live.targets().len())
    }

    /// The aliases, whether each is well, and how long a context each of its versions has.
    pub(crate) fn aliases(&self) -> Vec<(String, Health, Option<usize>)> {
        let live = self.inner.live();
        let well = live.routes.iter().map(|(alias, live)| {
            let targets = live.targets();
            let is_bad = targets.iter().any(|hosted| hosted.health() == Health::Bad);
            let context = targets.iter().filter_map(|hosted| hosted.model.card().max_context).min();
            (alias.clone(), if is_bad { Health::Bad } else { Health::Good }, context)
        });
        let absent = live.behind.keys().filter(|alias| !live.routes.contains_key(*alias));
        well.chain(absent.map(|alias| (alias.clone(), Health::Bad, None))).collect()
    }

    /// All that requests can be led to.
    pub(crate) fn hosted(&self) -> Vec<Arc<Hosted>> {
        self.inner.live().versions.values().cloned().collect()
    }

    pub(crate) fn count(&self, key: UsageKey, counts: Counts) {
        self.inner.unwritten.add(key, counts);
    }

    pub(crate) fn count_shadow(&self, key: ShadowKey, counts: ShadowCounts) {
        self.inner.unwritten.add_shadow(key, counts);
    }

    /// Why aliases are not in their present state.
    fn behind(&self) -> BTreeMap<String, Behind> {
        self.inner.live().behind.clone()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        *lock(&self.inner.is_ended) = true;
        self.inner.wake.notify_all();
        if let Some(keeper) = self.keeper.take() {
            let _ = keeper.join();
        }
        if let Err(error) = self.inner.flush() {
            tracing::warn!(%error, "what was used last is not written");
        }
    }
}

impl Inner {
    fn store(&self) -> MutexGuard<'_, Store> {
        lock(&self.store)
    }

    fn live(&self) -> Arc<Live> {
        Arc::clone(&self.live.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Where a file of the folder is. Links are followed, and must not lead out.
    fn find(&self, path: &Path) -> Result<PathBuf> {
        let wanted = self.folder.join(path);
        let failed = |source| RegistryError::Read { path: path.to_owned(), source };
        let full = std::fs::canonicalize(wanted).map_err(failed)?;
        if !full.starts_with(&self.folder) {
            return Err(RegistryError::Outside { path: path.to_owned() });
        }
        if !full.is_file() {
            return Err(failed(std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file")));
        }
        Ok(full)
    }

    /// Checks a version's file and keeps what was found.
    fn validate(&self, name: &str, full: &Path, format: FileFormat) -> Result<()> {
        let checked = catch_unwind(AssertUnwindSafe(|| validate::check(full, format)));
        let findings = checked.unwrap_or_else(|payload| {
            let mut findings = validate::Findings::default();
            findings.error("file", format!("reading it panicked: {}", panic_text(&*payload)));
            Ok(findings.0)
        })?;
        let error = RegistryError::Invalid { version: name.to_owned(), findings };
        let RegistryError::Invalid { findings, .. } = &error else { return Err(error) };
        let is_valid = !findings.iter().any(Finding::is_error);
        let failure = (!is_valid).then(|| error.to_string());
        self.store().set_findings(name, findings, failure.as_deref())?;
        if is_valid { Ok(()) } else { Err(error) }
    }

    /// Changes an alias: decides on its present state, loads what is needed, adds the row, and leads requests
    /// there.
    fn change(
        &self,
        alias: &str,
        expect: Option<i64>,
        decide: impl FnOnce(&Store, Option<&ModelRoute>) -> Result<NewRoute>,
    ) -> Result<ModelRoute> {
        let is_name = !alias.is_empty()
            && alias.len() <= MAX_ALIAS
            && !alias.starts_with("sha256:")
            && !alias.chars().any(|c| c.is_control() || c.is_whitespace());
        if !is_name {
            let expected = "1 to 128 bytes without spaces, not beginning with sha256:";
            let found = alias.chars().take(MAX_ALIAS).collect();
            return Err(RegistryError::Parameter { name: "alias", expected, found });
        }
        if lock(&self.reserved).contains(alias) {
            return Err(RegistryError::Taken { alias: alias.to_owned() });
        }
        let mut turn = lock(&self.turn);
        let (current, new) = {
            let store = self.store();
            let current = store.current(alias)?;
            let found = current.as_ref().map_or(0, |current| current.id);
            if expect.is_some_and(|expect| expect != found) {
                return Err(RegistryError::Conflict { alias: alias.to_owned(), found });
            }
            let new = decide(&store, current.as_ref())?;
            (current, new)
        };
        let mut loaded = self.live().loaded.clone();
        let needed: BTreeSet<&str> =
            new.shares.iter().map(|share| share.version.as_str()).chain(new.shadow.as_deref()).collect();
        for name in needed {
            self.load_into(&mut loaded, name)?;
        }
        let added = self.store().add_route(alias, current.map(|current| current.id), &new, now());
        self.progress_done();
        let route = added?;
        // Changes of others are followed in their own time: `seen` stays.
        self.lead(BTreeMap::from([(alias.to_owned(), route.clone())]), loaded, &[alias], BTreeMap::new());
        if turn.seen.is_some_and(|seen| seen + 1 == route.id) {
            turn.seen = Some(route.id);
        }
        Ok(route)
    }

    /// Loads a version unless it is loaded.
    fn load_into(&self, loaded: &mut BTreeMap<String, Arc<Loaded>>, name: &str) -> Result<()> {
        if loaded.contains_key(name) {
            return Ok(());
        }
        // One that is being drained is still whole.
        let mut draining = lock(&self.draining);
        let revived = draining.iter().position(|one| *one.name == *name).map(|place| draining.remove(place));
        drop(draining);
        let one = match revived {
            Some(one) => one,
            None => {
                let result = self.load(name);
                if result.is_err() {
                    self.progress_done();
                }
                result?
            }
        };
        loaded.insert(name.to_owned(), one);
        Ok(())
    }

    /// Hashes, loads and tests a version. If it fails, the database says why.
    fn load(&self, name: &str) -> Result<Arc<Loaded>> {
        let version = self.store().version(name)?;
        let result = self.try_load(&version);
        let failure = result.as_ref().err().map(ToString::to_string);
        // What is wrong with the database, or with another version, is no fault of this one.
        let is_own = match &result {
            Ok(_) => version.failure.is_some(),
            Err(RegistryError::Database(_) | RegistryError::Row { .. } | RegistryError::Invalid { .. }) => {
                false
            }
            Err(_) => true,
        };
        if is_own {
            let kept = self.store().set_failure(name, failure.as_deref());
            if let Err(error) = kept {
                tracing::warn!(%name, %error, "whether the version works is not kept");
            }
        }
        if let Some(failure) = &failure {
            tracing::warn!(%name, %failure, "a version is not loaded");
        }
        result
    }

    fn try_load(&self, version: &Version) -> Result<Arc<Loaded>> {
        let name = &version.name;
        let full = self.find(&version.path)?;
        let (found, _) = validate::hash(&full)?;
        if found != *name {
            return Err(RegistryError::Changed { version: name.clone(), found });
        }
        if !version.is_validated {
            self.validate(name, &full, version.format)?;
        }
        self.progress(name, VersionState::Loaded);
        let loading = catch_unwind(AssertUnwindSafe(|| self.loader.load(&full, version)));
        let failed = |message: String| RegistryError::Load { version: name.clone(), message };
        let model = match loading {
            Ok(Ok(model)) => model,
            Ok(Err(error)) => return Err(failed(chain(&*error, ": "))),
            Err(payload) => return Err(failed(format!("the loader panicked: {}", panic_text(&*payload)))),
        };
        self.progress(name, VersionState::Canary);
        let canary = version.canary.clone().unwrap_or_else(|| Canary::of_card(model.card()));
        let failed = |message| RegistryError::Canary { version: name.clone(), message };
        let answer = canary.ask(&model, self.config.canary_time).map_err(failed)?;
        if let Some(difference) = canary.difference(&answer) {
            return Err(failed(difference));
        }
        if !canary.is_recorded() {
            self.store().set_canary(name, &canary.recorded(&answer))?;
        }
        self.progress(name, VersionState::Loaded);
        let loaded = Loaded::new(name, model);
        loaded.health.store(Health::Good as u8, std::sync::atomic::Ordering::Relaxed);
        Ok(Arc::new(loaded))
    }

    fn progress(&self, name: &str, state: VersionState) {
        lock(&self.progress).insert(name.to_owned(), state);
    }

    fn progress_done(&self) {
        lock(&self.progress).clear();
    }

    /// Leads requests to new routes. `settled` are the aliases that are now in their present state, `behind`
    /// those that are not.
    fn lead(
        &self,
        new: BTreeMap<String, ModelRoute>,
        loaded: BTreeMap<String, Arc<Loaded>>,
        settled: &[&str],
        behind: BTreeMap<String, Behind>,
    ) {
        let old = self.live();
        let mut routes = old.routes.clone();
        for (alias, route) in new {
            if route.is_retired() {
                routes.remove(&alias);
            } else if let Some(route) = LiveRoute::new(route, &loaded) {
                routes.insert(alias, Arc::new(route));
            }
        }
        let mut all_behind = old.behind.clone();
        all_behind.retain(|alias, _| !settled.contains(&alias.as_str()));
        all_behind.extend(behind);
        let (live, unneeded) = old.with_routes(routes, loaded, all_behind);
        lock(&self.draining).extend(unneeded);
        *self.live.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(live);
        self.wake.notify_all();
    }

    /// Brings this process to what the database says.
    fn follow(&self, turn: &mut Turn) -> Result<()> {
        let latest = self.store().latest()?;
        let is_due = turn.retry.is_some_and(|at| at <= Instant::now());
        if turn.seen == Some(latest) && !is_due {
            return Ok(());
        }
        let wanted = self.store().routes()?;
        let live = self.live();
        let mut loaded = live.loaded.clone();
        let (mut new, mut settled, mut behind) = (BTreeMap::new(), Vec::new(), BTreeMap::new());
        for route in wanted {
            if live.routes.get(&route.alias).is_some_and(|live| live.route.id >= route.id) {
                continue;
            }
            let result = match !route.is_retired() && lock(&self.reserved).contains(&route.alias) {
                true => Err(RegistryError::Taken { alias: route.alias.clone() }),
                false => Ok(()),
            };
            let result = result.and_then(|()| {
                route.versions().into_iter().try_for_each(|name| self.load_into(&mut loaded, name))
            });
            match result {
                Ok(()) => {
                    settled.push(route.alias.clone());
                    new.insert(route.alias.clone(), route);
                }
                Err(error) => {
                    tracing::warn!(alias = %route.alias, %error, "an alias stays what it was");
                    behind.insert(route.alias, Behind { route: route.id, reason: error.to_string() });
                }
            }
        }
        self.progress_done();
        turn.seen = Some(latest);
        turn.retry = (!behind.is_empty()).then(|| Instant::now() + RETRY_TIME);
        if !(new.is_empty() && behind.is_empty()) {
            let settled: Vec<&str> = settled.iter().map(String::as_str).collect();
            self.lead(new, loaded, &settled, behind);
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        // Held from taking to putting back, so that who flushes last finds everything.
        let mut store = self.store();
        let batch = self.unwritten.take();
        if batch.is_empty() {
            return Ok(());
        }
        let written = store.add_usage(batch.usage.iter(), batch.shadows.iter());
        if written.is_err() {
            self.unwritten.put_back(batch);
        }
        written
    }

    /// How far versions have got: what this process knows, and what the database says of the rest.
    fn set_states(&self, versions: &mut [Version]) -> Result<()> {
        let (routes, used) = {
            let store = self.store();
            (store.routes()?, store.ever_used()?)
        };
        let current: BTreeSet<&str> = routes.iter().flat_map(ModelRoute::versions).collect();
        let progress = lock(&self.progress).clone();
        let live = self.live();
        let draining = lock(&self.draining);
        for version in versions {
            let name = version.name.as_str();
            version.state = if let Some(state) = progress.get(name) {
                *state
            } else if live.loaded.contains_key(name) {
                VersionState::Active
            } else if draining.iter().any(|one| *one.name == *name) {
                VersionState::Draining
            } else if version.failure.is_some() {
                VersionState::Failed
            } else if current.contains(name) {
                VersionState::Active
            } else if used.contains(name) {
                VersionState::Retired
            } else if version.is_validated {
                VersionState::Validated
            } else {
                VersionState::Registered
            };
        }
        Ok(())
    }

    /// What the registry does by itself: lets go of what is drained, follows other servers, writes what was
    /// used.
    fn keep(&self) {
        let (mut followed, mut flushed) = (Instant::now(), Instant::now());
        let mut is_ended = lock(&self.is_ended);
        while !*is_ended {
            let is_draining = !lock(&self.draining).is_empty();
            let RegistryConfig { sync_time, usage_time, .. } = self.config;
            let pause = sync_time.min(usage_time).min(if is_draining { DRAIN_TIME } else { Duration::MAX });
            let waited = self.wake.wait_timeout(is_ended, pause.max(Duration::from_millis(1)));
            is_ended = waited.map_or_else(|poisoned| poisoned.into_inner().0, |(guard, _)| guard);
            if *is_ended {
                break;
            }
            drop(is_ended);
            let idle: Vec<_> = lock(&self.draining).extract_if(.., |one| one.is_idle()).collect();
            for one in idle {
                tracing::info!(version = %one.name, "a version is drained");
                // Models may take long to be let go, and may panic.
                let _ = catch_unwind(AssertUnwindSafe(|| drop(one)));
            }
            if flushed.elapsed() >= usage_time {
                if let Err(error) = self.flush() {
                    tracing::warn!(%error, "what was used is written later");
                }
                flushed = Instant::now();
            }
            if followed.elapsed() >= sync_time {
                // Who has the turn changes something, and knows what it does.
                let turn = match self.turn.try_lock() {
                    Ok(turn) => Some(turn),
                    Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
                    Err(TryLockError::WouldBlock) => None,
                };
                if let Some(mut turn) = turn.filter(|turn| turn.seen.is_some())
                    && let Err(error) = self.follow(&mut turn)
                {
                    tracing::warn!(%error, "the registry cannot be read");
                }
                followed = Instant::now();
            }
            is_ended = lock(&self.is_ended);
        }
    }
}
