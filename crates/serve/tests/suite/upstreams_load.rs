//! A front under load: where conversations go, how even the load is, and what restarts cost.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use breakers_core::ScriptedModel;
use breakers_serve::upstreams::Upstream;
use breakers_serve::{Server, ServerHandle};

use crate::support::{Client, config, metric, until};
use crate::upstreams::{CHAT, Scripted, WHOLE, body, front, reply, settings};

#[test]
fn conversations_stay_where_their_beginning_is() {
    let servers: Vec<Scripted> = (0..4)
        .map(|_| {
            Scripted::new(|_, stream| {
                std::thread::sleep(Duration::from_millis(2));
                reply(stream, "200 OK", "", WHOLE);
            })
        })
        .collect();
    let front = front(settings(servers.iter().map(Scripted::upstream)));
    let client = Client::new(&front);
    // Each conversation, with the servers of its turns; all begin with the same instructions.
    let turns = Mutex::new(HashMap::<usize, Vec<String>>::new());
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                loop {
                    // Eight conversations at a time, whose turns alternate with those of others.
                    let conversation = next.fetch_add(1, Ordering::SeqCst);
                    if conversation >= 200 {
                        return;
                    }
                    let mut messages = vec![r#"{"role":"system","content":"Be brief."}"#.to_owned()];
                    for turn in 0..5 {
                        messages.push(format!(r#"{{"role":"user","content":"{conversation} asks {turn}"}}"#));
                        let body = format!(r#"{{"model":"m","messages":[{}]}}"#, messages.join(","));
                        let answer = client.post(CHAT, &body);
                        assert_eq!(answer.status, 200);
                        let server = answer.header("x-breakers-upstream").unwrap().to_owned();
                        turns.lock().unwrap().entry(conversation).or_default().push(server);
                        messages.push(format!(r#"{{"role":"assistant","content":"answer {turn}"}}"#));
                    }
                }
            });
        }
    });
    let turns = turns.into_inner().unwrap();
    let follow_ups = turns.values().flat_map(|servers| servers.windows(2));
    let (mut n, mut n_hits) = (0, 0);
    for pair in follow_ups {
        n += 1;
        n_hits += usize::from(pair[0] == pair[1]);
    }
    assert_eq!(n, 800);
    assert!(n_hits * 100 >= n * 95, "{n_hits} of {n}");
    let shares: Vec<usize> = servers.iter().map(|server| server.got.lock().unwrap().len()).collect();
    eprintln!("{n_hits} of {n} follow-up turns went where the beginning is; requests by server {shares:?}");
    assert!(shares.iter().all(|share| *share > 50), "{shares:?}");
    let hits = metric(&client.get("/metrics").text, "breakers_upstream_affinity_total{result=\"hit\"}");
    assert!(hits >= n_hits as f64, "{hits}");
}

#[test]
fn one_beginning_for_all_does_not_overload_its_server() {
    let running: Vec<Arc<AtomicUsize>> = (0..4).map(|_| Arc::default()).collect();
    let most: Vec<Arc<AtomicUsize>> = (0..4).map(|_| Arc::default()).collect();
    let servers: Vec<Scripted> = (0..4)
        .map(|i| {
            let (running, most) = (Arc::clone(&running[i]), Arc::clone(&most[i]));
            Scripted::new(move |_, stream| {
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(30));
                running.fetch_sub(1, Ordering::SeqCst);
                reply(stream, "200 OK", "", WHOLE);
            })
        })
        .collect();
    let front = front(settings(servers.iter().map(Scripted::upstream)));
    let client = Client::new(&front);
    std::thread::scope(|scope| {
        for _ in 0..32 {
            scope.spawn(|| {
                (0..10).for_each(|_| assert_eq!(client.post(CHAT, &body("same", false)).status, 200))
            });
        }
    });
    let most: Vec<usize> = most.iter().map(|most| most.load(Ordering::SeqCst)).collect();
    eprintln!("32 at a time with one beginning: at most {most:?} at each server");
    // Evenly they were 8 each. One that has 12 or more has half as many again as the least loaded, or 4 more.
    assert!(most.iter().all(|most| (3..=13).contains(most)), "{most:?}");
}

fn serve_at(address: SocketAddr) -> ServerHandle {
    let model = ScriptedModel::from_fn("m", |_| {
        std::thread::sleep(Duration::from_millis(5));
        "one two three".into()
    });
    let model = Arc::new(model);
    // The port may still be held by connections that are closing.
    for _ in 0..200 {
        let mut config = config();
        config.address = address;
        match Server::new(config).with_model(model.clone()).spawn() {
            Ok(server) => return server,
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
    panic!("{address} stays taken");
}

#[test]
fn a_rolling_restart_fails_no_request() {
    let addresses: Vec<SocketAddr> =
        (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).map(|l| l.local_addr().unwrap()).collect();
    let mut servers: Vec<Option<ServerHandle>> =
        addresses.iter().map(|address| Some(serve_at(*address))).collect();
    let front = front(settings(addresses.iter().map(|address| Upstream::new(format!("http://{address}")))));
    let client = Client::new(&front);
    let stop = AtomicBool::new(false);
    let n_done = AtomicUsize::new(0);
    let all_usable = || client.get("/ready").json()["upstreams"]["usable"] == 3;
    until("all are there", all_usable);
    std::thread::scope(|scope| {
        for worker in 0..6 {
            let (client, stop, n_done) = (&client, &stop, &n_done);
            scope.spawn(move || {
                for i in 0.. {
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                    let stream = i % 2 == 1;
                    let answer = client.post(CHAT, &body(&format!("{worker} {i}"), stream));
                    let is_whole = if stream {
                        answer.text.ends_with("data: [DONE]\n\n")
                    } else {
                        answer.text.contains("one two three")
                    };
                    if answer.status != 200 || !is_whole || answer.text.contains("\"error\"") {
                        stop.store(true, Ordering::SeqCst);
                        panic!("{} {}", answer.status, answer.text);
                    }
                    n_done.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        for round in 0..2 {
            for (server, address) in servers.iter_mut().zip(&addresses) {
                let old = server.take().unwrap();
                old.stop();
                assert_eq!(old.join().unwrap().n_cut, 0);
                let before = n_done.load(Ordering::SeqCst);
                until("others go on", || {
                    stop.load(Ordering::SeqCst) || n_done.load(Ordering::SeqCst) > before + 20
                });
                *server = Some(serve_at(*address));
                until("it is back", || stop.load(Ordering::SeqCst) || all_usable());
                assert!(!stop.load(Ordering::SeqCst), "a request failed in round {round}");
            }
        }
        stop.store(true, Ordering::SeqCst);
    });
    eprintln!("{} requests during 6 restarts, none failed", n_done.load(Ordering::SeqCst));
    let ended = client.get("/metrics").text;
    assert!(n_done.load(Ordering::SeqCst) > 120, "{ended}");
}
