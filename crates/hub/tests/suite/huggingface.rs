//! Hugging Face, played by a server on this machine.
#![cfg(feature = "hf")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{Parted, Recorder, World, sha256};
use breakers_hub::{Error, FetchOptions, SourceKind};

/// How the server behaves.
#[derive(Debug, Clone)]
struct Manner {
    content: Vec<u8>,
    etag: String,
    /// The connection breaks after this many bytes of a body; one value per request, taken from the end of
    /// the list.
    breaks_after: Vec<usize>,
    knows_ranges: bool,
    status: Option<&'static str>,
    /// Accepts connections and never answers, or answers the first request and stops in the middle of the
    /// second.
    silent: bool,
    stalls: bool,
}

impl Manner {
    fn good(content: &[u8]) -> Self {
        Self {
            content: content.to_vec(),
            etag: sha256(content),
            breaks_after: Vec::new(),
            knows_ranges: true,
            status: None,
            silent: false,
            stalls: false,
        }
    }
}

struct Server {
    endpoint: String,
    /// Path and first byte of each request for a body.
    requests: Arc<Mutex<Vec<(String, usize)>>>,
    manner: Arc<Mutex<Manner>>,
}

impl Server {
    fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let manner = Arc::new(Mutex::new(manner));
        let (noted, shared) = (requests.clone(), manner.clone());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (noted, shared) = (noted.clone(), shared.clone());
                thread::spawn(move || answer(stream, &noted, &shared));
            }
        });
        Self { endpoint, requests, manner }
    }

    fn bodies(&self) -> Vec<usize> {
        self.requests.lock().unwrap().drain(..).map(|(_, start)| start).collect()
    }
}

fn answer(mut stream: TcpStream, noted: &Mutex<Vec<(String, usize)>>, shared: &Mutex<Manner>) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    loop {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if line == "\r\n" {
                break;
            }
            head.push(line.trim().to_owned());
        }
        let path = head[0].split(' ').nth(1)?.to_owned();
        let range = head.iter().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("range").then(|| value.trim().trim_start_matches("bytes=").to_owned())
        });
        let mut manner = shared.lock().unwrap().clone();
        if manner.silent {
            thread::sleep(Duration::from_secs(60));
            return None;
        }
        if let Some(status) = manner.status {
            write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").ok()?;
            continue;
        }
        let total = manner.content.len();
        let is_look_up = range.as_deref() == Some("0-0");
        let (start, end) = match range.as_deref().and_then(|range| range.split_once('-')) {
            Some((start, end)) if manner.knows_ranges || is_look_up => {
                (start.parse().ok()?, end.parse::<usize>().map_or(total, |last| last + 1))
            }
            _ => (0, total),
        };
        if start >= total {
            write!(stream, "HTTP/1.1 416 Range Not Satisfiable\r\nContent-Length: 0\r\n\r\n").ok()?;
            continue;
        }
        let mut body = manner.content[start..end].to_vec();
        let length = body.len();
        let mut breaks = false;
        if !is_look_up {
            noted.lock().unwrap().push((path, start));
            if let Some(limit) = shared.lock().unwrap().breaks_after.pop() {
                body.truncate(limit);
                breaks = true;
            }
            if manner.stalls {
                manner.stalls = false;
                body.truncate(100);
            }
        }
        write!(
            stream,
            "HTTP/1.1 206 Partial Content\r\nx-repo-commit: 0123abcd\r\nx-linked-etag: \"{}\"\r\netag: \"x\"\r\n\
             Content-Range: bytes {start}-{}/{total}\r\nContent-Length: {length}\r\n\r\n",
            manner.etag,
            end - 1,
        )
        .ok()?;
        stream.write_all(&body).ok()?;
        stream.flush().ok()?;
        if breaks {
            return None;
        }
        if body.len() < length {
            thread::sleep(Duration::from_secs(60));
            return None;
        }
    }
}

fn options(endpoint: &str) -> FetchOptions {
    FetchOptions {
        sources: vec![SourceKind::HuggingFace],
        endpoint: Some(endpoint.to_owned()),
        stall_timeout: Duration::from_millis(700),
        ..FetchOptions::default()
    }
}

fn thing() -> Parted {
    Parted::new(3, 400_000)
}

/// The only attempt's error.
fn failure(world: &World, thing: &Parted, options: &FetchOptions) -> Error {
    let hub = world.hub(&thing.catalog(&[thing.huggingface()]));
    match hub.resolve("thing", options, &mut ()).unwrap_err() {
        Error::Unavailable(mut details) => details.attempts.remove(0).error,
        error => error,
    }
}

fn check_complete(world: &World, content: &[u8]) {
    assert!(fs::read(world.cache().join("thing/thing.bin")).unwrap() == content);
    assert!(!world.cache().join("thing/.parts").exists());
}

#[test]
fn a_file_comes_by_its_path_in_the_repository() {
    let (world, thing) = (World::new(), thing());
    let server = Server::start(Manner::good(&thing.content));
    let hub = world.hub(&thing.catalog(&[thing.huggingface()]));
    let mut recorder = Recorder::default();
    let resolved = hub.resolve("thing", &options(&server.endpoint), &mut recorder).unwrap();
    assert!(!resolved.from_cache);
    check_complete(&world, &thing.content);
    assert_eq!(
        *server.requests.lock().unwrap(),
        [("/owner/thing/resolve/0123abcd/sub/thing.bin".to_owned(), 0)]
    );
    assert_eq!(recorder.totals, [thing.content.len() as u64]);
    assert_eq!(recorder.done.last(), Some(&(thing.content.len() as u64)));
    assert!(recorder.done.is_sorted() && recorder.done.len() > 2);
    assert!(hub.resolve("thing", &options(&server.endpoint), &mut ()).unwrap().from_cache);
}

#[test]
fn a_broken_transfer_goes_on_where_it_broke() {
    let (world, thing) = (World::new(), thing());
    let manner = Manner { breaks_after: vec![200_000, 300_000], ..Manner::good(&thing.content) };
    let server = Server::start(manner);
    let hub = world.hub(&thing.catalog(&[thing.huggingface()]));
    let mut recorder = Recorder::default();
    hub.resolve("thing", &options(&server.endpoint), &mut recorder).unwrap();
    check_complete(&world, &thing.content);
    assert_eq!(server.bodies(), [0, 300_000, 500_000]);
    assert!(recorder.said("going on"));
}

#[test]
fn the_next_fetch_goes_on_by_bytes() {
    let (world, thing) = (World::new(), thing());
    // No byte comes after the break, so that the first fetch gives up.
    let server = Server::start(Manner { breaks_after: vec![0, 400_000], ..Manner::good(&thing.content) });
    let error = failure(&world, &thing, &options(&server.endpoint));
    assert!(matches!(error, Error::HuggingFace { .. }), "{error}");
    assert_eq!(server.bodies(), [0, 400_000]);
    world
        .hub(&thing.catalog(&[thing.huggingface()]))
        .resolve("thing", &options(&server.endpoint), &mut ())
        .unwrap();
    assert_eq!(server.bodies(), [400_000]);
    check_complete(&world, &thing.content);
}

#[test]
fn a_server_without_ranges_and_a_damaged_part_start_anew() {
    for knows_ranges in [false, true] {
        let (world, thing) = (World::new(), thing());
        let server = Server::start(Manner { breaks_after: vec![0, 400_000], ..Manner::good(&thing.content) });
        failure(&world, &thing, &options(&server.endpoint));
        if knows_ranges {
            let part = world
                .cache()
                .join("thing/.parts/huggingface/hub/models--owner--thing/blobs")
                .join(format!("{}.part", sha256(&thing.content)));
            let mut damaged = fs::read(&part).unwrap();
            damaged[77] ^= 1;
            fs::write(&part, damaged).unwrap();
        }
        server.manner.lock().unwrap().knows_ranges = knows_ranges;
        server.bodies();
        world
            .hub(&thing.catalog(&[thing.huggingface()]))
            .resolve("thing", &options(&server.endpoint), &mut ())
            .unwrap();
        assert_eq!(server.bodies().last(), Some(&0));
        check_complete(&world, &thing.content);
    }
}

#[test]
fn an_unreachable_server_is_given_up_within_three_seconds() {
    let silent = Server::start(Manner { silent: true, ..Manner::good(b"x") });
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    // The last one is an address of the documentation range, where packets vanish or are refused.
    for endpoint in [silent.endpoint.as_str(), &closed, "http://no-such-host.invalid", "http://192.0.2.1:81"]
    {
        let (world, thing) = (World::new(), thing());
        let begun = Instant::now();
        let mut patient = options(endpoint);
        patient.stall_timeout = Duration::from_secs(60);
        let error = failure(&world, &thing, &patient);
        assert!(
            matches!(error, Error::Unreachable { .. } | Error::HuggingFace { .. }),
            "{endpoint}: {error}"
        );
        assert!(begun.elapsed() < Duration::from_secs(3), "{endpoint}: {:?}", begun.elapsed());
    }
}

#[cfg(unix)]
#[test]
fn the_next_source_takes_over() {
    let (world, thing) = (World::new(), thing());
    let registry = crate::common::fake::Registry::new(world.at("registry"));
    for idx in 0..3 {
        registry.put(&format!("part-{}.whl", idx + 1), &thing.wheel(idx));
    }
    let silent = Server::start(Manner { silent: true, ..Manner::good(b"x") });
    let hub = world.hub(&thing.catalog(&[thing.huggingface(), thing.pypi()]));
    let mut recorder = Recorder::default();
    let options = FetchOptions {
        sources: Vec::new(),
        python: Some(registry.program("python3")),
        ..options(&silent.endpoint)
    };
    hub.resolve("thing", &options, &mut recorder).unwrap();
    check_complete(&world, &thing.content);
    assert!(recorder.said("did not answer within 2500 ms"));
}

#[test]
fn answers_that_are_not_the_pinned_file_are_refused_before_the_transfer() {
    let thing = thing();
    let check = |manner: Manner, is_expected: fn(&Error) -> bool| {
        let world = World::new();
        let server = Server::start(manner);
        let error = failure(&world, &thing, &options(&server.endpoint));
        assert!(is_expected(&error), "{error}");
        assert!(server.bodies().is_empty());
    };
    let good = Manner::good(&thing.content);
    check(Manner { etag: sha256(b"other"), ..good.clone() }, |error| {
        matches!(error, Error::HashMismatch { .. })
    });
    check(Manner { content: thing.content[1..].to_vec(), ..good.clone() }, |error| {
        matches!(error, Error::SizeMismatch { .. })
    });
    check(
        Manner { etag: "../../../escaped".to_owned(), ..good.clone() },
        |error| matches!(error, Error::HuggingFace { reason, .. } if reason.contains("unsafe")),
    );
    check(
        Manner { status: Some("404 Not Found"), ..good.clone() },
        |error| matches!(error, Error::HuggingFace { reason, .. } if reason.contains("404")),
    );
    check(
        Manner { status: Some("401 Unauthorized"), ..good.clone() },
        |error| matches!(error, Error::HuggingFace { reason, .. } if reason.contains("HF_TOKEN")),
    );
    check(Manner { status: Some("302 Found"), ..good }, |error| matches!(error, Error::HuggingFace { .. }));
}

#[test]
fn wrong_bytes_under_the_right_name_are_refused() {
    let (world, thing) = (World::new(), thing());
    let mut content = thing.content.clone();
    content[5] ^= 1;
    let server = Server::start(Manner { etag: sha256(&thing.content), ..Manner::good(&content) });
    let error = failure(&world, &thing, &options(&server.endpoint));
    assert!(matches!(error, Error::HashMismatch { .. }), "{error}");
    assert!(!world.cache().join("thing/thing.bin").exists());
}

#[test]
fn a_stalled_transfer_is_given_up_and_a_stopped_one_is_kept() {
    let (world, thing) = (World::new(), thing());
    let server = Server::start(Manner { stalls: true, ..Manner::good(&thing.content) });
    let error = failure(&world, &thing, &options(&server.endpoint));
    assert!(matches!(error, Error::HuggingFace { ref reason, .. } if reason.contains("no byte")), "{error}");

    let world = World::new();
    let server = Server::start(Manner { stalls: true, ..Manner::good(&thing.content) });
    let hub = world.hub(&thing.catalog(&[thing.huggingface()]));
    let mut recorder = Recorder { stop_at: Some(50), ..Recorder::default() };
    let error = hub.resolve("thing", &options(&server.endpoint), &mut recorder).unwrap_err();
    assert!(matches!(error, Error::Interrupted { .. }), "{error}");
}
