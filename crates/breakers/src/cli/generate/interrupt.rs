//! Ctrl-C in a conversation: it ends the answer; where there is none to end, it ends the program.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::SIGINT;
use signal_hook::flag;

/// The exit code of a program that Ctrl-C ended, as shells have it.
const EXIT_CODE: i32 = 130;

/// Whether Ctrl-C was pressed while an answer was on its way. A second one ends the program at once.
#[derive(Debug)]
pub(super) struct Interrupt {
    /// No answer is on its way, or it is to end.
    is_over: Arc<AtomicBool>,
}

impl Interrupt {
    /// Takes Ctrl-C over for the rest of the process's life.
    pub(super) fn new() -> io::Result<Self> {
        let is_over = Arc::new(AtomicBool::new(true));
        // In this order: the flag's value from before is what decides.
        flag::register_conditional_shutdown(SIGINT, EXIT_CODE, Arc::clone(&is_over))?;
        flag::register(SIGINT, Arc::clone(&is_over))?;
        Ok(Self { is_over })
    }

    /// An answer begins.
    pub(super) fn begin(&self) {
        self.is_over.store(false, Ordering::SeqCst);
    }

    /// Whether the answer is to end.
    pub(super) fn is_pressed(&self) -> bool {
        self.is_over.load(Ordering::SeqCst)
    }

    /// The answer has ended; whether by Ctrl-C.
    pub(super) fn end(&self) -> bool {
        self.is_over.swap(true, Ordering::SeqCst)
    }
}
