//! Changes while requests run: swaps, shadows, several servers on one database.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use breakers_core::{CallError, ChatModel, ScriptedModel};
use breakers_serve::registry::{Registry, RegistryError, ShadowCounts, Share, VersionState};
use serde_json::json;

use crate::shelf::{Place, Shelf, Slow, chat, said, says, serve};
use crate::support::{Client, Endless, begin, config, until};

/// In place of the number of swaps while one goes on: requests are then led to either version.
const SWAPPING: usize = usize::MAX;

#[test]
fn a_swap_under_streams_fails_and_changes_nothing() {
    let place = Place::new();
    let n_alive = Arc::new(AtomicUsize::new(0));
    for tag in ["v1", "v2"] {
        let n_alive = Arc::clone(&n_alive);
        place.shelf.put(tag, move || Ok(Slow::open(tag, &n_alive)));
    }
    let registry = place.open();
    let versions = ["v1", "v2"].map(|tag| place.add(&registry, &format!("{tag}.gguf"), tag));
    registry.deploy("m", &versions[0], None).unwrap();
    let server = serve(&registry, config());
    let is_over = AtomicBool::new(false);
    let (n_done, n_across) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let now = Mutex::new(0usize);
    std::thread::scope(|scope| {
        for stream in 0..8u64 {
            let (server, is_over, n_done, n_across) = (&server, &is_over, &n_done, &n_across);
            let (versions, now) = (&versions, &now);
            scope.spawn(move || {
                let client = Client::new(server);
                let mut seed = stream * 1_000_000;
                while !is_over.load(Ordering::SeqCst) {
                    seed += 1;
                    let is_streamed = seed % 2 == 0;
                    let before = *now.lock().unwrap();
                    let answer = chat(&client, "m", &json!({"seed": seed, "stream": is_streamed}));
                    let after = *now.lock().unwrap();
                    assert_eq!(answer.status, 200, "{}", answer.text);
                    let text: String = match is_streamed {
                        true => {
                            let events = answer.events();
                            let pieces =
                                events.iter().map(|event| event["choices"][0]["delta"]["content"].as_str());
                            pieces.map(Option::unwrap_or_default).collect()
                        }
                        false => {
                            answer.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
                        }
                    };
                    let version = answer.header("x-breakers-version").unwrap();
                    let which = versions.iter().position(|one| one == version).unwrap();
                    assert_eq!(text, Slow::text(["v1", "v2"][which], seed), "one version wrote all of it");
                    if before == after && before != SWAPPING {
                        assert_eq!(which, before % 2, "no swap during the request, so it is that version");
                    } else {
                        n_across.fetch_add(1, Ordering::SeqCst);
                    }
                    n_done.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        for swap in 1..=12usize {
            let before = n_done.load(Ordering::SeqCst);
            until("some were answered", || n_done.load(Ordering::SeqCst) >= before + 8);
            *now.lock().unwrap() = SWAPPING;
            match swap % 2 {
                1 => registry.deploy("m", &versions[1], None).unwrap(),
                _ => registry.rollback("m", None).unwrap(),
            };
            *now.lock().unwrap() = swap;
        }
        is_over.store(true, Ordering::SeqCst);
    });
    assert!(n_done.load(Ordering::SeqCst) >= 96 && n_across.load(Ordering::SeqCst) > 0);
    until("the other version is let go", || n_alive.load(Ordering::SeqCst) == 1);
    let failed: u64 = registry.usage(0, None, None).unwrap().iter().map(|row| row.counts.failures).sum();
    assert_eq!(failed, 0);
}

#[test]
fn a_version_is_drained_and_then_let_go() {
    let place = Place::new();
    let model = Endless::new();
    let inside = Arc::clone(&model);
    place.shelf.put("endless", move || Ok(Arc::clone(&inside) as Arc<dyn ChatModel>));
    let registry = place.open();
    let server = serve(&registry, config());
    let client = Client::new(&server);
    let old = place.add(&registry, "old.gguf", "endless");
    let new = place.add(&registry, "new.gguf", "says new");
    registry.deploy("m", &old, None).unwrap();
    model.holds.store(true, Ordering::SeqCst);
    let body = r#"{"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}"#;
    let mut running = begin(&server, "/v1/chat/completions", body);
    until("it runs", || model.running() == 1);
    registry.deploy("m", &new, None).unwrap();
    let state = |name: &str| registry.version(name).unwrap().state;
    assert_eq!((state(&old), said(&client, "m").as_str()), (VersionState::Draining, "new"));
    assert_eq!(chat(&client, &old, &json!({})).status, 404, "it takes no new requests");
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(state(&old), VersionState::Draining, "while a request runs");
    // Back while it still drains: it does not have to be loaded again.
    let n_loads = place.shelf.n_loads.load(Ordering::SeqCst);
    registry.rollback("m", None).unwrap();
    assert_eq!((state(&old), place.shelf.n_loads.load(Ordering::SeqCst)), (VersionState::Active, n_loads));
    registry.deploy("m", &new, None).unwrap();
    model.release();
    let mut text = String::new();
    running.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    while !text.contains("word word word") {
        let mut some = [0; 4096];
        let n = std::io::Read::read(&mut running, &mut some).unwrap();
        assert!(n > 0, "{text}");
        text += &String::from_utf8_lossy(&some[..n]);
    }
    assert!(text.contains(&format!("x-breakers-version: {old}")), "{text}");
    until("it is let go", || state(&old) == VersionState::Retired);
    // The shelf and this test have the only ones left.
    until("nobody holds it", || Arc::strong_count(&model) == 2);
}

#[test]
fn a_slow_load_does_not_hold_requests_up() {
    let place = Place::new();
    let may_load = Arc::new(AtomicBool::new(false));
    let inside = Arc::clone(&may_load);
    place.shelf.put("slow", move || {
        until("it may load", || inside.load(Ordering::SeqCst));
        Ok(says("slow"))
    });
    let registry = place.open();
    let server = serve(&registry, config());
    let client = Client::new(&server);
    let (fast, slow) = (place.add(&registry, "a.gguf", "says fast"), place.add(&registry, "b.gguf", "slow"));
    registry.deploy("m", &fast, None).unwrap();
    std::thread::scope(|scope| {
        let deploying = scope.spawn(|| {
            let body = json!({"version": slow}).to_string();
            Client::new(&server).post("/admin/models/m/deploy", &body)
        });
        until("it is being loaded", || registry.version(&slow).unwrap().state == VersionState::Loaded);
        for _ in 0..20 {
            assert_eq!(said(&client, "m"), "fast");
        }
        assert_eq!(client.get("/admin/models").json()["data"][0]["shares"][0]["version"], fast.as_str());
        may_load.store(true, Ordering::SeqCst);
        assert_eq!(deploying.join().unwrap().status, 200);
    });
    assert_eq!(said(&client, "m"), "slow");
}

#[test]
fn a_shadow_never_reaches_the_client() {
    let place = Place::new();
    let mode = Arc::new(AtomicUsize::new(0));
    let n_asked = Arc::new(AtomicUsize::new(0));
    let (inside, asked) = (Arc::clone(&mode), Arc::clone(&n_asked));
    place.shelf.put("shadow", move || {
        let (inside, asked) = (Arc::clone(&inside), Arc::clone(&asked));
        Ok(Arc::new(ScriptedModel::from_fn("inner", move |_| {
            asked.fetch_add(1, Ordering::SeqCst);
            match inside.load(Ordering::SeqCst) {
                0 => "main".into(),
                1 => "other".into(),
                2 => CallError::failed(std::io::Error::other("broken")).into(),
                3 => panic!("a shadow's panic"),
                _ => {
                    until("it may go on", || inside.load(Ordering::SeqCst) != 4);
                    "late".into()
                }
            }
        })))
    });
    let registry = place.open();
    let server = serve(&registry, config());
    let client = Client::new(&server);
    let main = place.add(&registry, "main.gguf", "says main");
    let shadow = place.add(&registry, "shadow.gguf", "shadow");
    registry.deploy("m", &main, None).unwrap();
    let body = json!({"version": shadow}).to_string();
    assert_eq!(client.post("/admin/models/m/shadow", &body).status, 200);
    n_asked.store(0, Ordering::SeqCst);
    let counts = || registry.shadows().unwrap().first().map(|row| row.counts).unwrap_or_default();
    let total = |counts: ShadowCounts| {
        counts.same + counts.different + counts.uncompared + counts.failed + counts.skipped
    };
    let mut n = 0;
    let greedy = json!({"temperature": 0});
    for (now, more) in
        [(0, &greedy), (1, &greedy), (2, &greedy), (3, &greedy), (1, &json!({"seed": 5})), (0, &json!({}))]
    {
        mode.store(now, Ordering::SeqCst);
        for is_streamed in [false, true] {
            let mut more = more.clone();
            more["stream"] = is_streamed.into();
            let answer = chat(&client, "m", &more);
            assert_eq!(answer.status, 200);
            assert_eq!(answer.header("x-breakers-version"), Some(main.as_str()));
            let text = answer.text.replace("\"\"", "");
            assert!(text.contains("main") && !text.contains("other") && !text.contains(&shadow), "{text}");
            n += 1;
            until("it was compared", || total(counts()) == n);
        }
    }
    let counted = counts();
    let seen = [counted.same, counted.different, counted.failed, counted.uncompared, counted.skipped];
    assert_eq!(seen, [2, 4, 4, 2, 0]);
    assert_eq!(n_asked.load(Ordering::SeqCst), 12);
    // One that is slow is skipped, and holds nobody up.
    mode.store(4, Ordering::SeqCst);
    for _ in 0..5 {
        assert_eq!(said(&client, "m"), "main");
    }
    until("four were skipped", || counts().skipped == 4);
    mode.store(5, Ordering::SeqCst);
    until("the first went on", || total(counts()) == n + 5);
    assert_eq!(counts().skipped, 4);
    // What a shadow costs is nobody's: usage is that of the answers.
    let usage = registry.usage(0, None, None).unwrap();
    assert!(usage.iter().all(|row| row.version == main), "{usage:?}");
    assert_eq!(usage.iter().map(|row| row.counts.texts).sum::<u64>(), 17);
    let shown = client.get("/admin/models").json();
    assert_eq!(shown["data"][0]["shadow"], shadow.as_str());
    assert_eq!(shown["data"][0]["shadows"][0]["skipped"], 4, "{shown}");
    // Deployed, it is no shadow anymore; a rollback brings it back.
    mode.store(0, Ordering::SeqCst);
    assert_eq!(registry.deploy("m", &shadow, None).unwrap().shadow, None);
    assert_eq!(registry.rollback("m", None).unwrap().shadow.as_ref(), Some(&shadow));
    assert_eq!(registry.set_shadow("m", None, None).unwrap().shadow, None);
    n_asked.store(0, Ordering::SeqCst);
    assert_eq!(said(&client, "m"), "main");
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(n_asked.load(Ordering::SeqCst), 0);
}

#[test]
fn servers_on_one_database_follow_each_other() {
    let place = Place::new();
    // Each server has its own memory, and so its own shelf.
    let other = Arc::new(Shelf::default());
    let second = Arc::new(Registry::open(place.config(), other.clone()).unwrap());
    let first = place.open();
    let servers = [serve(&first, config()), serve(&second, config())];
    let clients = [Client::new(&servers[0]), Client::new(&servers[1])];
    let a = place.add(&first, "a.gguf", "says a");
    let b = place.add(&second, "b.gguf", "says b");
    first.deploy("m", &a, None).unwrap();
    until("the other follows", || chat(&clients[1], "m", &json!({})).status == 200);
    second.set_weights("m", &[Share::new(&*a, 1), Share::new(&*b, 1)], None).unwrap();
    until("the first follows", || {
        let version = chat(&clients[0], "m", &json!({"user": "u7"}));
        let other = chat(&clients[1], "m", &json!({"user": "u7"}));
        // Both draw alike, so that a user gets one version whichever server answers.
        assert_eq!(other.status, 200);
        clients[0].get("/admin/models").json()["data"][0]["shares"].as_array().unwrap().len() == 2
            && version.header("x-breakers-version") == other.header("x-breakers-version")
            && (0..20).all(|i| {
                let user = json!({"user": i.to_string()});
                let [one, two] = [0, 1].map(|server: usize| chat(&clients[server], "m", &user));
                one.header("x-breakers-version") == two.header("x-breakers-version")
            })
    });
    // One that cannot load a version keeps what it has, and says so.
    place.shelf.put("large", || Ok(says("c")));
    other.put("large", || Err("no memory".into()));
    first.deploy("m", &a, None).unwrap();
    until("the second follows", || (0..20).all(|_| said(&clients[1], "m") == "a"));
    let c = place.add(&first, "c.gguf", "large");
    first.deploy("m", &c, None).unwrap();
    let behind = || clients[1].get("/admin/models").json()["data"][0]["behind"].as_str().map(str::to_owned);
    until("it is behind", || behind().is_some_and(|reason| reason.contains("no memory")));
    assert_eq!([said(&clients[0], "m"), said(&clients[1], "m")], ["c", "a"]);
    assert_eq!(clients[1].get("/ready").status, 200, "it answers");
    // The next change leads out of it.
    first.deploy("m", &b, None).unwrap();
    until("it follows again", || said(&clients[1], "m") == "b");
    assert_eq!(behind(), None);
    // Two who decide on the same state: one of them is told.
    let seen = first.routes().unwrap()[0].id;
    let results: Vec<Result<_, RegistryError>> = std::thread::scope(|scope| {
        let deploy = |registry: Arc<Registry>, version: String| {
            scope.spawn(move || registry.deploy("m", &version, Some(seen)))
        };
        let both = [deploy(Arc::clone(&first), a.clone()), deploy(Arc::clone(&second), b.clone())];
        both.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1, "{results:?}");
    let lost = results.iter().find_map(|result| result.as_ref().err()).unwrap();
    assert!(matches!(lost, RegistryError::Conflict { .. }), "{lost}");
    // What both servers were asked adds up.
    let before: u64 = first.usage(0, None, None).unwrap().iter().map(|row| row.counts.texts).sum();
    for client in &clients {
        for _ in 0..3 {
            said(client, "m");
        }
    }
    until("both have written", || {
        first.usage(0, None, None).unwrap().iter().map(|row| row.counts.texts).sum::<u64>() == before + 6
    });
}
