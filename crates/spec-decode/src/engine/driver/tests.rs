//! Passes one by one, without threads: who is admitted, who pauses, who ends first.

use super::*;
use crate::NoDrafter;

#[path = "../../../tests/suite/bytes.rs"]
mod bytes;
#[path = "../../../tests/suite/toy.rs"]
#[allow(dead_code)]
mod toy;

const ONE: Limits = Limits { max_texts: 1, max_rows: 16, max_pass: None, cache_bytes: 0, max_bytes: None };

fn driver() -> Driver<toy::Toy, NoDrafter> {
    Driver::new(toy::Toy::repetitive(256, 5), Box::new(|| Ok(NoDrafter)))
}

fn job(ticket: u64, max_tokens: usize, priority: Priority) -> (Ticket, Job) {
    let job = Job {
        tenant: Arc::from(""),
        priority,
        n_overtaken: 0,
        prompt: vec![97, 98, 99, ticket as TokenId],
        config: Config { max_tokens, ..Config::default() },
        stop: Vec::new(),
        constraint: None,
        prediction: None,
        has_controls: false,
        vocabulary: Arc::new(bytes::Bytes),
    };
    (Ticket(ticket), job)
}

/// Runs passes until nothing is left; the tickets in the order in which they ended, and the tokens of each.
fn drain(
    driver: &mut Driver<toy::Toy, NoDrafter>,
    mut waiting: Vec<(Ticket, Job)>,
    limits: Limits,
) -> Vec<(u64, Vec<TokenId>)> {
    let (mut ended, mut tokens) = (Vec::new(), std::collections::HashMap::<u64, Vec<TokenId>>::new());
    loop {
        let done = driver.step(waiting, limits);
        waiting = done.refused;
        for (Ticket(ticket), event) in done.events {
            tokens.entry(ticket).or_default().extend(event.tokens);
            if let Some(end) = event.end {
                end.unwrap();
                ended.push((ticket, tokens.remove(&ticket).unwrap_or_default()));
            }
        }
        if waiting.is_empty() && driver.batch.is_empty() && driver.paused.is_empty() {
            return ended;
        }
    }
}

#[test]
fn what_can_wait_pauses_for_what_cannot() {
    let alone = drain(&mut driver(), vec![job(0, 50, Priority::Background)], ONE).remove(0).1;
    for cache_bytes in [0, 1 << 20] {
        let (mut driver, limits) = (driver(), Limits { cache_bytes, ..ONE });
        let mut waiting = vec![job(0, 50, Priority::Background)];
        let mut found = Vec::new();
        for _ in 0..10 {
            let done = driver.step(waiting, limits);
            found.extend(done.events.into_iter().flat_map(|(_, event)| event.tokens));
            waiting = done.refused;
        }
        assert_eq!(found, alone[..10]);
        let n_rows = driver.model.n_rows;
        let urgent = [1, 2].map(|ticket| job(ticket, 5, Priority::Normal));
        let ended = drain(&mut driver, urgent.into(), limits);
        let order: Vec<u64> = ended.iter().map(|(ticket, _)| *ticket).collect();
        assert_eq!(order, [1, 2, 0], "{cache_bytes}");
        assert_eq!(ended[2].1, alone[10..], "{cache_bytes}");
        // Read once more, or kept: 13 tokens had been fed.
        let again = if cache_bytes == 0 { 13 } else { 0 };
        // What they begin with is kept, too.
        let urgent_rows = if cache_bytes == 0 { 2 * 8 } else { 2 * 5 };
        assert_eq!(driver.model.n_rows - n_rows, urgent_rows + 40 + again, "{cache_bytes}");
    }
}

#[test]
fn what_can_wait_does_not_wait_forever() {
    let mut driver = driver();
    let many = (2..100).map(|ticket| job(ticket, 3, Priority::Normal));
    let waiting: Vec<_> = [job(1, 3, Priority::Background)].into_iter().chain(many).collect();
    let ended = drain(&mut driver, waiting, ONE);
    let at = ended.iter().position(|(ticket, _)| *ticket == 1).unwrap();
    assert_eq!(at, PATIENCE);
    // Nor does one that has begun.
    let mut driver = self::driver();
    let begun = driver.step(vec![job(1, 3, Priority::Background)], ONE);
    assert!(begun.refused.is_empty());
    let many: Vec<_> = (2..100).map(|ticket| job(ticket, 3, Priority::Normal)).collect();
    let ended = drain(&mut driver, many, ONE);
    let at = ended.iter().position(|(ticket, _)| *ticket == 1).unwrap();
    assert_eq!(at, PATIENCE);
}

#[test]
fn the_first_is_admitted_first() {
    let waiting: Vec<_> = (0..20).map(|ticket| job(ticket, 3, Priority::Normal)).collect();
    let ended = drain(&mut driver(), waiting, ONE);
    assert!(ended.iter().map(|(ticket, _)| *ticket).eq(0..20));
}

/// The latest pauses; the first goes on whatever it takes.
#[test]
fn memory_is_given_to_the_first() {
    let limits = Limits { max_texts: 4, max_bytes: Some(40), ..ONE };
    let jobs = |n: u64| (0..n).map(|ticket| job(ticket, 60, Priority::Normal)).collect::<Vec<_>>();
    let alone: Vec<_> =
        jobs(3).into_iter().map(|job| drain(&mut driver(), vec![job], ONE).remove(0)).collect();
    let mut driver = driver();
    assert_eq!(drain(&mut driver, jobs(3), limits), alone);
    // One that has paused waits until another one has ended, and is not read again and again.
    let (n_pauses, n_rows) = (driver.counts.n_pauses, driver.model.n_rows);
    assert!(n_pauses <= 5 && n_rows < 3 * 64 + 5 * 64, "{n_pauses} pauses, {n_rows} rows");
}

/// Memory that is taken by what can wait is given to what cannot.
#[test]
fn memory_is_given_to_what_cannot_wait() {
    for cache_bytes in [0, 1 << 20] {
        let limits = Limits { max_texts: 4, max_bytes: Some(600), cache_bytes, ..ONE };
        let mut driver = driver();
        let mut waiting = vec![job(0, 500, Priority::Background)];
        // Until what a token takes is known, and little is left.
        for _ in 0..550 {
            if driver.bytes_per_token > 0.0 && driver.model.held_bytes() > 400 {
                break;
            }
            waiting = driver.step(waiting, limits).refused;
        }
        assert!(driver.model.held_bytes() > 400 && driver.batch.len() == 1);
        let mut urgent = job(1, 5, Priority::Normal);
        urgent.1.prompt = vec![98; 300];
        let ended = drain(&mut driver, vec![urgent], limits);
        assert_eq!(ended.iter().map(|(ticket, _)| *ticket).collect::<Vec<_>>(), [1, 0], "{cache_bytes}");
    }
}
