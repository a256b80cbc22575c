//! Ctrl-C in a conversation: it ends the current answer or, if there is none, the program.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::SIGINT;
use signal_hook::flag;

/// The exit code that shells use for a program ended by Ctrl-C.
const EXIT_CODE: i32 = 130;

/// Whether Ctrl-C was pressed during an answer. Pressing it a second time ends the program at once.
#[derive(Debug)]
pub(super) struct Interrupt {
    /// Set while there is no answer, or if it is to end.
    is_over: Arc<AtomicBool>,
}

impl Interrupt {
    /// Handles Ctrl-C from now on, for the rest of the process.
    pub(super) fn new() -> io::Result<Self> {
        let is_over = Arc::new(AtomicBool::new(true));
        // The order matters: the first handler must see the flag before the second sets it.
        flag::register_conditional_shutdown(SIGINT, EXIT_CODE, Arc::clone(&is_over))?;
        flag::register(SIGINT, Arc::clone(&is_over))?;
        Ok(Self { is_over })
    }

    /// Notes that an answer begins.
    pub(super) fn begin(&self) {
        self.is_over.store(false, Ordering::SeqCst);
    }

    /// Whether the answer is to end.
    pub(super) fn is_pressed(&self) -> bool {
        self.is_over.load(Ordering::SeqCst)
    }

    /// Notes that the answer has ended, and returns whether Ctrl-C ended it.
    pub(super) fn end(&self) -> bool {
        self.is_over.swap(true, Ordering::SeqCst)
    }
}
