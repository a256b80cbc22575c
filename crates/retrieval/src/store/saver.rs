//! Index files are written in the background, by age and by size. A process that is ended by a signal
//! therefore leaves files that are nearly up to date.

use super::{Inner, Shared, shared::lock};
use std::{
    sync::{
        Arc, Mutex, Weak,
        mpsc::{RecvTimeoutError, Sender, channel},
    },
    time::{Duration, Instant},
};

/// This many changes are too few to be written because of their number.
const FEW: usize = 1000;

/// The thread that saves; it starts with the first change and ends with the store.
#[derive(Debug, Default)]
pub(super) struct Saver(Mutex<Option<Sender<Note>>>);

/// What writers tell the thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Note {
    /// Something was changed.
    Changed,
    /// Much was changed.
    ChangedMuch,
}

impl Inner {
    /// Tells the thread that a collection was changed; it writes the index file when it is time.
    pub(super) fn note_change(self: &Arc<Self>, shared: &Shared) {
        if !self.options.save_on_close {
            return;
        }
        let is_much = is_much(shared);
        let mut sender = lock(&self.saver.0);
        if sender.is_none() {
            let (store, after) = (Arc::downgrade(self), self.options.save_after);
            let (notes, received) = channel();
            let run = move || save_when_told(&store, after, &received);
            match std::thread::Builder::new().name("index files".to_owned()).spawn(run) {
                Ok(_) => *sender = Some(notes),
                Err(error) => tracing::warn!("index files are written on closing alone: {error}"),
            }
        }
        if let Some(sender) = &*sender {
            // Without a thread, they are written on closing.
            let _ = sender.send(if is_much { Note::ChangedMuch } else { Note::Changed });
        }
    }

    /// Writes the index files of the open collections, all or those that changed much.
    fn save_all(&self, much: bool) {
        let open: Vec<Arc<Shared>> = lock(&self.collections).values().cloned().collect();
        for shared in open {
            if much && !is_much(&shared) {
                continue;
            }
            if let Err(error) = shared.compact_if_hollow(self).and_then(|()| shared.save_changes(self)) {
                tracing::warn!("the index of {} was not saved: {error}", shared.name);
            }
        }
    }
}

/// A quarter of the points: all files that are written while an index grows are then not much larger in total
/// than the last one.
fn is_much(shared: &Shared) -> bool {
    let state = shared.state();
    state.n_unsaved() >= FEW + state.ids.len() / 4
}

fn save_when_told(store: &Weak<Inner>, after: Duration, notes: &std::sync::mpsc::Receiver<Note>) {
    let mut oldest: Option<Instant> = None;
    loop {
        let note = match oldest {
            None => notes.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(since) => notes.recv_timeout(after.saturating_sub(since.elapsed())),
        };
        let much = match note {
            Ok(Note::Changed) => {
                oldest = oldest.or_else(|| Some(Instant::now()));
                continue;
            }
            Ok(Note::ChangedMuch) => {
                oldest = oldest.or_else(|| Some(Instant::now()));
                true
            }
            Err(RecvTimeoutError::Timeout) => {
                oldest = None;
                false
            }
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let Some(store) = store.upgrade() else { return };
        store.save_all(much);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.options.save_on_close {
            self.save_all(false);
        }
    }
}
