//! Time limits for each read of an answer.
//!
//! The HTTP client has limits only for whole phases. A streamed answer needs one for the first piece, one for
//! each further piece and one for the whole answer, even while the server keeps the connection busy with
//! comments. So the outermost transport asks before each read how much time is left. The calling thread,
//! which is also the one that reads, sets that beforehand.

use std::cell::Cell;
use std::time::{Duration, Instant};

use breakers_core::TimeoutPhase;
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport};

/// A point in time, and what the caller is waiting for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Deadline {
    pub(crate) at: Instant,
    pub(crate) phase: TimeoutPhase,
    /// For messages.
    pub(crate) limit: Duration,
}

impl Deadline {
    pub(crate) fn after(from: Instant, limit: Duration, phase: TimeoutPhase) -> Self {
        // A limit too large to represent becomes a very distant one.
        let at = from.checked_add(limit).unwrap_or_else(|| from + Duration::from_secs(1 << 31));
        Self { at, phase, limit }
    }

    /// The earlier of two deadlines.
    pub(crate) fn or(self, other: Self) -> Self {
        if other.at < self.at { other } else { self }
    }
}

thread_local! {
    static CURRENT: Cell<Option<Deadline>> = const { Cell::new(None) };
    static MISSED: Cell<Option<Deadline>> = const { Cell::new(None) };
}

/// Sets the deadline of this thread's reads for as long as it exists.
pub(crate) struct Scope(());

impl Scope {
    pub(crate) fn new(deadline: Deadline) -> Self {
        CURRENT.set(Some(deadline));
        MISSED.set(None);
        Self(())
    }

    pub(crate) fn set(&self, deadline: Deadline) {
        CURRENT.set(Some(deadline));
    }

    /// The deadline that a read missed.
    pub(crate) fn missed(&self) -> Option<Deadline> {
        MISSED.get()
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        CURRENT.set(None);
    }
}

/// Wraps the existing transport in a [`Limited`].
#[derive(Debug)]
pub(crate) struct Limits;

impl<In: Transport> Connector<In> for Limits {
    type Out = Limited<In>;

    fn connect(
        &self,
        _details: &ConnectionDetails<'_>,
        chained: Option<In>,
    ) -> Result<Option<Limited<In>>, ureq::Error> {
        Ok(chained.map(Limited))
    }
}

/// A transport whose reads and writes end at this thread's deadline.
#[derive(Debug)]
pub(crate) struct Limited<T>(T);

impl<T: Transport> Limited<T> {
    fn within(
        &mut self,
        mut timeout: NextTimeout,
        work: impl FnOnce(&mut T, NextTimeout) -> Result<bool, ureq::Error>,
    ) -> Result<bool, ureq::Error> {
        let Some(deadline) = CURRENT.get() else { return work(&mut self.0, timeout) };
        let left = deadline.at.saturating_duration_since(Instant::now());
        if left.is_zero() {
            MISSED.set(Some(deadline));
            return Err(ureq::Error::Timeout(timeout.reason));
        }
        let is_first = left < *timeout.after;
        if is_first {
            timeout.after = left.into();
        }
        let result = work(&mut self.0, timeout);
        if is_first && matches!(result, Err(ureq::Error::Timeout(_))) {
            MISSED.set(Some(deadline));
        }
        result
    }
}

impl<T: Transport> Transport for Limited<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.0.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        self.within(timeout, |inner, timeout| inner.transmit_output(amount, timeout).map(|()| true)).map(drop)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        self.within(timeout, |inner, timeout| inner.await_input(timeout))
    }

    fn is_open(&mut self) -> bool {
        self.0.is_open()
    }

    fn is_tls(&self) -> bool {
        self.0.is_tls()
    }
}
