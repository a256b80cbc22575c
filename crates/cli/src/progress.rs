//! Progress on standard error: bars on a terminal, lines elsewhere.

use std::io::IsTerminal as _;
use std::time::Duration;

use breakers_hub::Progress;
use indicatif::{ProgressBar, ProgressStyle};

/// Shows the progress of a download.
#[derive(Default)]
pub struct FetchBar {
    bar: Option<ProgressBar>,
}

impl FetchBar {
    /// A bar with nothing to show yet.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Progress for FetchBar {
    fn started(&mut self, name: &str, total_bytes: u64) {
        let style = "{msg} [{bar:32}] {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left";
        let bar = ProgressBar::new(total_bytes).with_style(bar_style(style)).with_message(name.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        self.bar = Some(bar);
    }

    fn advanced(&mut self, done_bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(done_bytes);
        }
    }

    fn message(&mut self, text: &str) {
        match &self.bar {
            // Without a terminal the bar is hidden, and it would hide its messages too.
            Some(bar) if !bar.is_hidden() => bar.println(text),
            _ => eprintln!("{text}"),
        }
    }

    fn finished(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

/// Shows work that has a known number of steps.
pub struct Bar {
    bar: ProgressBar,
    lines: bool,
}

impl Bar {
    /// A new bar. `unit` names the steps.
    pub fn new(n_steps: usize, unit: &str) -> Self {
        let style = format!("{{msg}} [{{bar:32}}] {{pos}}/{{len}} {unit}, {{eta}} left");
        let bar = ProgressBar::new(n_steps as u64).with_style(bar_style(&style));
        Self { bar, lines: !std::io::stderr().is_terminal() }
    }

    /// Shows what is being done.
    pub fn doing(&self, what: &str) {
        if self.lines {
            eprintln!("{what} ({}/{})", self.bar.position() + 1, self.bar.length().unwrap_or(0));
        }
        self.bar.set_message(what.to_owned());
        // Time is measured between these calls, so no background thread may draw the bar.
        self.bar.tick();
    }

    /// Sets the number of steps done.
    pub fn done(&self, n_steps: usize) {
        self.bar.set_position(n_steps as u64);
    }

    /// Counts one more step.
    pub fn step(&self) {
        self.bar.inc(1);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn bar_style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    style.progress_chars("=> ")
}
