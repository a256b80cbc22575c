//! Fetches an entry by name, or lists all names: `cargo run -p breakers-hub --example fetch -- smollm2-135m`.

use std::process::ExitCode;

use breakers_hub::{Error, FetchOptions, Hub, Progress};

#[derive(Default)]
struct Lines {
    total: u64,
    shown: u64,
}

impl Progress for Lines {
    fn started(&mut self, _name: &str, total_bytes: u64) {
        (self.total, self.shown) = (total_bytes, 0);
    }

    fn advanced(&mut self, done_bytes: u64) {
        let percent = (done_bytes * 100).checked_div(self.total).unwrap_or(100);
        if percent >= self.shown + 5 {
            self.shown = percent;
            eprintln!("{percent:>3} % of {:.1} MB", self.total as f64 / 1e6);
        }
    }

    fn message(&mut self, text: &str) {
        eprintln!("{text}");
    }
}

fn run() -> Result<(), Error> {
    let hub = Hub::new()?;
    match std::env::args().nth(1) {
        Some(name) => {
            let resolved = hub.resolve(name, &FetchOptions::from_env()?, &mut Lines::default())?;
            eprintln!("{}", resolved.path.display());
        }
        None => {
            for entry in hub.entries() {
                eprintln!(
                    "{:<20} {:>7.1} MB  {} ({})",
                    entry.name,
                    entry.bytes() as f64 / 1e6,
                    entry.title,
                    entry.license
                );
            }
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
