//! What the handles of a collection in one process share: the index in memory, and how it follows the
//! database.
//!
//! # Locks
//! In this order: `changing`, the store's connection that writes, `state`. A thread that changes the index
//! holds `changing` as long as that takes, and `state` only for single steps, between which searches go on.
//! So nobody waits for a thread that only reads `state`, however long its save or search takes.

use super::{
    Config, Inner, fields,
    state::{Pending, Place, State, collection_seq, point_of},
};
use crate::{
    Error, Result,
    index::{
        Index as _,
        center::{Drift, SAMPLE},
    },
};
use rusqlite::Connection;
use std::{
    path::PathBuf,
    sync::{
        Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// Up to this many slots of removed vectors are tolerated.
const HOLLOW: usize = 2000;
/// The pause between two attempts to get a lock.
const PAUSE: Duration = Duration::from_micros(200);

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) id: i64,
    pub(super) name: String,
    pub(super) config: Config,
    /// Whether this process removed the collection.
    pub(super) removed: AtomicBool,
    /// Removals since the remembered ones were last counted.
    pub(super) removals: AtomicUsize,
    changing: Mutex<()>,
    state: RwLock<State>,
    /// When the database was last asked for what other processes wrote.
    asked: Mutex<Option<Instant>>,
}

/// What happened to the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CaughtUp {
    /// Slots are as they were.
    InPlace,
    /// It was built anew, with other slots.
    Anew,
}

/// The right to change the index.
pub(super) type Changing<'a> = MutexGuard<'a, ()>;

impl Shared {
    pub(super) fn open(store: &Inner, id: i64, name: String, config: Config) -> Result<Self> {
        let path = store.index_path(id);
        let place = store.options.place(id, &config);
        let state = store.read(|connection| State::load(connection, place, &path))?;
        Ok(Self {
            id,
            name,
            config,
            removed: AtomicBool::new(false),
            removals: AtomicUsize::new(0),
            changing: Mutex::new(()),
            state: RwLock::new(state),
            asked: Mutex::new(None),
        })
    }

    /// The state to read. It may be held as long as needed.
    pub(super) fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state to change, for a moment.
    pub(super) fn state_mut(&self, _: &Changing<'_>) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody else changes the index.
    ///
    /// # Errors
    /// [`Error::Busy`].
    pub(super) fn change(&self, store: &Inner) -> Result<Changing<'_>> {
        lock_within(&self.changing, store.options.busy_timeout, "the index")
    }

    fn index_path(&self, store: &Inner) -> PathBuf {
        store.index_path(self.id)
    }

    pub(super) fn place(&self, store: &Inner) -> Place<'_> {
        store.options.place(self.id, &self.config)
    }

    /// # Errors
    /// [`Error::CollectionRemoved`].
    pub(super) fn check_not_removed(&self) -> Result<()> {
        if self.removed.load(Ordering::Relaxed) {
            return Err(Error::CollectionRemoved { name: self.name.clone() });
        }
        Ok(())
    }

    /// Whether it is time to estimate the center again, with this many vectors about to be added.
    pub(super) fn is_center_due(&self, n_coming: usize) -> bool {
        let state = self.state();
        state.graph.flat.drift.is_due(state.graph.len(), n_coming)
    }

    /// If enough has changed, or changes with the next `n_coming` vectors, of which `coming` gives the i-th,
    /// moves the codes to a center that suits them. Searches go on with the old codes until the new ones are
    /// ready.
    pub(super) fn look_at_center(
        &self,
        store: &Inner,
        changing: &Changing<'_>,
        connection: &Connection,
        n_coming: usize,
        coming: impl Fn(usize) -> Result<Vec<f32>>,
    ) -> Result<()> {
        if !self.is_center_due(n_coming) {
            return Ok(());
        }
        let state = self.state();
        let n = state.graph.len();
        // The new vectors have the same share of the sample that they will have of the collection.
        let n_asked = (SAMPLE * n_coming).div_ceil((n + n_coming).max(1)).min(n_coming);
        let some: Vec<Vec<f32>> =
            (0..n_asked).map(|i| coming(i * n_coming / n_asked)).collect::<Result<_>>()?;
        let better = state.around_better_center(connection, self.place(store), &some)?;
        drop(state);
        let graph = &mut self.state_mut(changing).graph;
        if let Some((codes, coarse)) = better {
            graph.adopt(codes, coarse);
        }
        graph.flat.drift = Drift::default();
        Ok(())
    }

    /// Stores and links vectors that searches do not find yet, one step at a time.
    pub(super) fn link(
        &self,
        changing: &Changing<'_>,
        pending: &mut Pending,
        id: u64,
        vector: &[f32],
    ) -> Result<()> {
        let slot = self.state_mut(changing).graph.store(vector)?;
        let place = self.state().graph.find_place(slot);
        self.state_mut(changing).graph.link(slot, &place);
        pending.added.push((id, slot));
        Ok(())
    }

    /// Shows what is pending, all of it at once, as the state of this change.
    pub(super) fn finish(&self, changing: &Changing<'_>, pending: &Pending, seq: i64) {
        let gone = self.state_mut(changing).finish(pending, seq);
        for slot in gone {
            self.state_mut(changing).graph.unlink(slot);
        }
    }

    /// Takes back what is pending.
    pub(super) fn discard(&self, changing: &Changing<'_>, pending: &Pending) {
        for &(_, slot) in &pending.added {
            self.state_mut(changing).graph.unlink(slot);
        }
    }

    /// Applies the changes of the database that this process has not seen, as this connection sees them.
    pub(super) fn catch_up(
        &self,
        store: &Inner,
        changing: &Changing<'_>,
        connection: &Connection,
    ) -> Result<CaughtUp> {
        let place = self.place(store);
        let (seq, pruned) = collection_seq(connection, self.id)?;
        let known = self.state().seq;
        if known == seq {
            return Ok(CaughtUp::InPlace);
        }
        if pruned > known || seq < known {
            let reason = "another process forgot its changes".to_owned();
            let state = State::rebuild(connection, place, reason)?;
            *self.state_mut(changing) = state;
            return Ok(CaughtUp::Anew);
        }
        // What others wrote is in the database's sample.
        let sql = format!("SELECT count(*) FROM points_{} WHERE seq > ?1", self.id);
        let n: i64 = connection.prepare_cached(&sql)?.query_row([known], |row| row.get(0))?;
        self.state_mut(changing).graph.flat.drift.add(n as usize);
        self.look_at_center(store, changing, connection, 0, |_| Ok(Vec::new()))?;
        let mut pending = Pending::default();
        let link = |pending: &mut Pending, id, vector: &[f32]| self.link(changing, pending, id, vector);
        let read = State::read_changes(connection, place, Some(known), &mut pending, link);
        if let Err(error) = read {
            self.discard(changing, &pending);
            return Err(error);
        }
        self.finish(changing, &pending, seq);
        Ok(CaughtUp::InPlace)
    }

    /// Brings the state up to date in a transaction of its own.
    pub(super) fn catch_up_now(&self, store: &Inner, changing: &Changing<'_>) -> Result<()> {
        store.read(|connection| {
            let transaction = connection.unchecked_transaction()?;
            self.catch_up(store, changing, &transaction).map(|_| ())
        })
    }

    /// Looks for what other processes wrote, unless that was done a moment ago. If the index is being
    /// changed, the answer is of the state before the change.
    pub(super) fn refresh(&self, store: &Inner) -> Result<()> {
        self.check_not_removed()?;
        let interval = store.options.refresh;
        let now = Instant::now();
        {
            let mut asked = lock(&self.asked);
            if asked.is_some_and(|then| now.duration_since(then) < interval) {
                return Ok(());
            }
            *asked = Some(now);
        }
        let seq = store.read(|connection| Ok(collection_seq(connection, self.id)?.0))?;
        if self.state().seq == seq {
            return Ok(());
        }
        match self.changing.try_lock() {
            Ok(changing) => self.catch_up_now(store, &changing),
            Err(TryLockError::Poisoned(changing)) => self.catch_up_now(store, &changing.into_inner()),
            Err(TryLockError::WouldBlock) => Ok(()),
        }
    }

    /// Calls `f` with the database and the index of one and the same change.
    pub(super) fn together<R>(
        &self,
        store: &Inner,
        mut f: impl FnMut(&Connection, RwLockReadGuard<'_, State>) -> Result<R>,
    ) -> Result<R> {
        let begun = Instant::now();
        loop {
            let result = store.read(|connection| {
                let transaction = connection.unchecked_transaction()?;
                let (seq, _) = collection_seq(&transaction, self.id)?;
                let state = self.state();
                if state.seq == seq { f(&transaction, state).map(Some) } else { Ok(None) }
            })?;
            if let Some(result) = result {
                return Ok(result);
            }
            // A writer of this process is between its transaction and the update of the index, or another
            // process wrote.
            match self.changing.try_lock() {
                Ok(changing) => self.catch_up_now(store, &changing)?,
                Err(TryLockError::Poisoned(changing)) => self.catch_up_now(store, &changing.into_inner())?,
                Err(TryLockError::WouldBlock) if begun.elapsed() > store.options.busy_timeout => {
                    return Err(Error::Busy { what: "the index", limit: store.options.busy_timeout });
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(PAUSE),
            }
        }
    }

    /// Takes the points out of the index that were not as they were written when they were read again, as
    /// opening the collection would. Returns how many.
    pub(super) fn take_out_damaged(&self, store: &Inner) -> Result<usize> {
        let changing = self.change(store)?;
        store.read(|connection| {
            let transaction = connection.unchecked_transaction()?;
            let suspects = self.state().take_suspects();
            self.catch_up(store, &changing, &transaction)?;
            let sql = format!("SELECT id, vector, payload, crc FROM points_{} WHERE id = ?1", self.id);
            let mut statement = transaction.prepare_cached(&sql)?;
            let mut pending = Pending::default();
            for id in suspects {
                let mut rows = statement.query([id as i64])?;
                let Some(row) = rows.next()? else {
                    tracing::warn!("point {id} of {:?} is gone from the database", self.name);
                    pending.removed.push(id);
                    continue;
                };
                match point_of(row, &self.config).and_then(|_| fields::payload_of(row, &self.config)) {
                    // It was replaced in between.
                    Ok(_) => {}
                    Err(error @ Error::Corrupt { .. }) => {
                        tracing::warn!("{:?} goes on without point {id}: {error}", self.name);
                        pending.damaged.push(id);
                    }
                    Err(error) => return Err(error),
                }
            }
            let seq = self.state().seq;
            self.finish(&changing, &pending, seq);
            Ok(pending.removed.len() + pending.damaged.len())
        })
    }

    /// Builds the index anew beside the one that is in use, and puts it in its place.
    pub(super) fn rebuild(&self, store: &Inner, reason: &str) -> Result<()> {
        let place = self.place(store);
        let mut state = store.read(|connection| {
            let transaction = connection.unchecked_transaction()?;
            State::rebuild(&transaction, place, reason.to_owned())
        })?;
        let changing = self.change(store)?;
        store.read(|connection| {
            let transaction = connection.unchecked_transaction()?;
            if state.catch_up(&transaction, place)?.is_none() {
                state = State::rebuild(&transaction, place, reason.to_owned())?;
            }
            Ok(())
        })?;
        // An empty one differs from the file, too.
        state.note_unsaved(1);
        *self.state_mut(&changing) = state;
        Ok(())
    }

    /// Builds the index anew if removed vectors take more room than those that are left.
    pub(super) fn compact_if_hollow(&self, store: &Inner) -> Result<()> {
        let (n_slots, n_live) = {
            let state = self.state();
            (state.graph.exact().n_slots(), state.graph.len())
        };
        if n_slots > 2 * n_live + HOLLOW {
            self.rebuild(store, "removed vectors took most of the room")
        } else {
            Ok(())
        }
    }

    /// Builds the index anew if removed vectors take any room.
    pub(super) fn compact(&self, store: &Inner) -> Result<()> {
        let is_full = {
            let state = self.state();
            state.graph.exact().n_slots() == state.graph.len()
        };
        if is_full { Ok(()) } else { self.rebuild(store, "compacted") }
    }

    /// [`save`](Self::save), if there is something that the file does not have.
    pub(super) fn save_changes(&self, store: &Inner) -> Result<()> {
        if self.state().n_unsaved() == 0 { Ok(()) } else { self.save(store) }
    }

    /// Writes the index file. Searches go on, changes wait.
    pub(super) fn save(&self, store: &Inner) -> Result<()> {
        self.check_not_removed()?;
        let changing = self.change(store)?;
        self.catch_up_now(store, &changing)?;
        let state = self.state();
        store
            .read(|connection| state.save(connection, &*store.options.disk, self.id, &self.index_path(store)))
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for a lock, up to a time limit.
///
/// # Errors
/// [`Error::Busy`].
pub(super) fn lock_within<'a, T>(
    mutex: &'a Mutex<T>,
    limit: Duration,
    what: &'static str,
) -> Result<MutexGuard<'a, T>> {
    let begun = Instant::now();
    loop {
        match mutex.try_lock() {
            Ok(guard) => return Ok(guard),
            Err(TryLockError::Poisoned(guard)) => return Ok(guard.into_inner()),
            Err(TryLockError::WouldBlock) if begun.elapsed() >= limit => {
                return Err(Error::Busy { what, limit });
            }
            Err(TryLockError::WouldBlock) => std::thread::sleep(PAUSE),
        }
    }
}
