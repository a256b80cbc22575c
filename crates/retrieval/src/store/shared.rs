//! What the handles of a collection in one process share: the index in memory, and how it follows the database.

use super::{
    Config, Inner,
    state::{IndexFile, State, collection_seq},
};
use crate::{Bitset, Result};
use rusqlite::Connection;
use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Instant,
};

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) store: Arc<Inner>,
    pub(super) id: i64,
    pub(super) name: String,
    pub(super) config: Config,
    pub(super) state: RwLock<State>,
    /// When the database was last asked for what other processes wrote.
    asked: Mutex<Option<Instant>>,
    /// Filters that were evaluated, with the change that the sets are of.
    pub(super) filters: Mutex<Vec<(String, i64, Arc<Bitset>)>>,
}

impl Shared {
    pub(super) fn open(store: Arc<Inner>, id: i64, name: String, config: Config) -> Result<Self> {
        let path = store.index_path(id);
        let on_disk = store.options.vectors_on_disk;
        let place = IndexFile { collection: id, config: &config, path: &path, on_disk };
        let state = store.read(|connection| State::load(connection, &place))?;
        let (asked, filters) = (Mutex::new(None), Mutex::new(Vec::new()));
        Ok(Self { store, id, name, config, state: RwLock::new(state), asked, filters })
    }

    pub(super) fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn index_path(&self) -> PathBuf {
        self.store.index_path(self.id)
    }

    /// Takes over what the database has and this process has not seen.
    pub(super) fn catch_up(&self, connection: &Connection) -> Result<()> {
        let transaction = connection.unchecked_transaction()?;
        let (seq, _) = collection_seq(&transaction, self.id)?;
        if self.state().seq == seq {
            return Ok(());
        }
        let mut state = self.state_mut();
        if state.seq >= seq {
            // Another thread was faster.
            return Ok(());
        }
        let caught_up = state.catch_up(&transaction, self.id, &self.config);
        if !matches!(caught_up, Ok(Some(_))) {
            let reason = match caught_up {
                Err(error) => error.to_string(),
                _ => "another process forgot its changes".to_owned(),
            };
            *state = State::rebuild(&transaction, self.id, &self.config, reason)?;
        }
        Ok(())
    }

    /// [`catch_up`](Self::catch_up), unless that was done a moment ago.
    pub(super) fn refresh(&self) -> Result<()> {
        let interval = self.store.options.refresh;
        let now = Instant::now();
        {
            let mut asked = lock(&self.asked);
            if asked.is_some_and(|then| now.duration_since(then) < interval) {
                return Ok(());
            }
            *asked = Some(now);
        }
        self.store.read(|connection| self.catch_up(connection))
    }

    /// [`save`](Self::save), if there is something that the file does not have.
    pub(super) fn save_changes(&self) -> Result<()> {
        if self.state().unsaved == 0 { Ok(()) } else { self.save() }
    }

    pub(super) fn save(&self) -> Result<()> {
        // Written under the lock: searches go on, writes wait.
        self.store.read(|connection| {
            self.catch_up(connection)?;
            let mut state = self.state_mut();
            state.save(connection, &*self.store.options.disk, self.id, &self.index_path())
        })
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if self.store.options.save_on_close
            && let Err(error) = self.save_changes()
        {
            tracing::warn!("the index of {} was not saved: {error}", self.name);
        }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
