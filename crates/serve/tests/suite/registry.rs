//! Versions behind names: deploying, rolling back, sharing, canaries, usage, who may do so.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use breakers_core::{CallError, ChatReply, FinishReason, ScriptedModel, Usage};
use breakers_serve::registry::{
    Canary, NewVersion, Registry, RegistryError, RouteAction, Share, UsageRow, VersionState,
};
use breakers_serve::{Error, Keys, Server};
use serde_json::{Value, json};

use crate::shelf::{Place, chat, said, says, serve};
use crate::support::{Client, config, raw, until};

#[test]
fn a_file_becomes_a_version_that_answers_for_a_name() {
    let place = Place::new();
    let registry = place.open();
    let server = serve(&registry, config());
    let client = Client::new(&server);
    assert_eq!(client.get("/v1/models").json()["data"], json!([]));
    assert_eq!(chat(&client, "m", &json!({})).status, 404);
    place.write("one.gguf", "says one two");
    let registered = client.post("/admin/versions", r#"{"path": "one.gguf", "license": "MIT"}"#);
    assert_eq!(registered.status, 200, "{}", registered.text);
    let version = registered.json();
    let name = version["name"].as_str().unwrap().to_owned();
    let found = std::fs::read(place.folder.path().join("one.gguf")).unwrap();
    let hash: [u8; 32] =
        sha2::Digest::finalize(sha2::Digest::chain_update(sha2::Sha256::default(), found)).into();
    assert_eq!(name, hash.iter().fold("sha256:".to_owned(), |out, byte| format!("{out}{byte:02x}")));
    assert_eq!((&version["state"], &version["license"]), (&json!("validated"), &json!("MIT")));
    assert_eq!(version["findings"], json!([]));
    // The beginning of the hash is enough.
    let body = json!({"version": &name[7..19]}).to_string();
    let deployed = client.post("/admin/models/team%2Fm/deploy", &body);
    assert_eq!(deployed.status, 200, "{}", deployed.text);
    assert_eq!(deployed.json()["shares"], json!([{"version": name, "weight": 1}]));

    for more in [json!({}), json!({"stream": true})] {
        let answer = chat(&client, "team/m", &more);
        assert_eq!(answer.header("x-breakers-version"), Some(name.as_str()));
        let head = if answer.text.starts_with("data") { answer.events()[0].clone() } else { answer.json() };
        assert_eq!(head["model"], "team/m");
        assert!(head["system_fingerprint"].as_str().unwrap().starts_with("fp_"));
    }
    assert_eq!(said(&client, "team/m"), "one two");
    assert_eq!(said(&client, &name), "one two", "a loaded version has its own name, too");
    let listed = client.get("/v1/models").json();
    assert_eq!((&listed["data"][0]["id"], listed["data"].as_array().unwrap().len()), (&json!("team/m"), 1));
    assert_eq!(client.get("/v1/models/team/m").status, 200);
    assert_eq!(client.get("/ready").json()["models"], json!({"team/m": "ok"}));
    let state = |name: &str| client.get(&format!("/admin/versions/{name}")).json()["state"].clone();
    assert_eq!(state(&name), "active");
    // What is asked of a name that makes no vectors.
    let body = r#"{"model": "team/m", "input": "x"}"#;
    assert_eq!(client.post("/v1/embeddings", body).json()["error"]["code"], "unsupported_parameter");
    // A second server with the same database has it from the start.
    let second = serve(&place.open(), config());
    assert_eq!(said(&Client::new(&second), "team/m"), "one two");
}

#[test]
fn names_do_not_collide() {
    let place = Place::new();
    let registry = place.open();
    let version = place.add(&registry, "a.gguf", "says a");
    let server = serve_beside(&registry);
    assert!(matches!(registry.deploy("fixed", &version, None), Err(RegistryError::Taken { .. })));
    for alias in ["", "sha256:ab", "two words", "tab\t", &"x".repeat(129)] {
        let refused = registry.deploy(alias, &version, None).unwrap_err();
        assert!(matches!(refused, RegistryError::Parameter { name: "alias", .. }), "{refused}");
    }
    assert_eq!(said(&Client::new(&server), "fixed"), "fixed answer");
    drop(server);
    // An alias that is there before the model of the same name.
    let other = Place::new();
    let registry = other.open();
    let version = other.add(&registry, "a.gguf", "says a");
    registry.deploy("fixed", &version, None).unwrap();
    let server = Server::new(config()).with_model(says("x")).with_model(fixed()).with_registry(registry);
    assert!(matches!(server.spawn().unwrap_err(), Error::SameName { id } if id == "fixed"));
}

fn fixed() -> Arc<ScriptedModel> {
    Arc::new(ScriptedModel::from_fn("fixed", |_| "fixed answer".into()))
}

fn serve_beside(registry: &Arc<Registry>) -> breakers_serve::ServerHandle {
    let mut config = config();
    config.canary = false;
    crate::support::prepared(Server::new(config).with_model(fixed()).with_registry(Arc::clone(registry)))
}

#[test]
fn a_rollback_leads_to_what_was_before() {
    let place = Place::new();
    let registry = place.open();
    let server = serve(&registry, config());
    let client = Client::new(&server);
    let [a, b, c] =
        ["a", "b", "c"].map(|name| place.add(&registry, &format!("{name}.gguf"), &format!("says {name}")));
    let nothing = registry.rollback("m", None).unwrap_err();
    assert!(matches!(nothing, RegistryError::NoAlias { .. }), "{nothing}");
    for version in [&a, &b, &c] {
        registry.deploy("m", version, None).unwrap();
    }
    assert_eq!(said(&client, "m"), "c");
    let back = client.post("/admin/models/m/rollback", "");
    assert_eq!((back.status, said(&client, "m").as_str()), (200, "b"), "{}", back.text);
    assert_eq!(client.post("/admin/models/m/rollback", "{}").status, 200);
    assert_eq!(said(&client, "m"), "a");
    let end = client.post("/admin/models/m/rollback", "{}");
    assert_eq!((end.status, &end.json()["error"]["code"]), (409, &json!("nothing_to_roll_back")));
    assert_eq!(end.header("x-should-retry"), Some("false"));
    // A deployment after a rollback goes back to where it came from.
    registry.deploy("m", &c, None).unwrap();
    registry.rollback("m", None).unwrap();
    assert_eq!(said(&client, "m"), "a");
    // Weights are taken back as a whole.
    registry.set_weights("m", &[Share::new(&*a, 1), Share::new(&*b, 3)], None).unwrap();
    registry.deploy("m", &c, None).unwrap();
    let restored = registry.rollback("m", None).unwrap();
    assert_eq!(restored.shares, [Share::new(&*a, 1), Share::new(&*b, 3)]);
    let history = client.get("/admin/models/m/history").json();
    let actions: Vec<&str> =
        history["data"].as_array().unwrap().iter().rev().map(|row| row["action"].as_str().unwrap()).collect();
    assert_eq!(
        actions.join(" "),
        "deploy deploy deploy rollback rollback deploy rollback weights deploy rollback"
    );
    let state = |name: &str| registry.version(name).unwrap().state;
    until("c is let go", || state(&c) == VersionState::Retired);
    assert_eq!((state(&a), state(&b)), (VersionState::Active, VersionState::Active));
}

#[test]
fn a_name_can_be_taken_away_and_brought_back() {
    let place = Place::new();
    let registry = place.open();
    let server = serve(&registry, config());
    let client = Client::new(&server);
    let other_registry = place.open();
    let other_server = serve(&other_registry, config());
    let other = Client::new(&other_server);
    let [a, b] =
        ["a", "b"].map(|name| place.add(&registry, &format!("{name}.gguf"), &format!("says {name}")));
    assert_eq!(client.delete("/admin/models/m").status, 404);
    registry.deploy("m", &a, None).unwrap();
    let second = registry.deploy("m", &b, None).unwrap();
    until("the other server follows", || other.get("/v1/models/m").status == 200 && said(&other, "m") == "b");
    let delete = |query: String| client.delete(&format!("/admin/models/m?{query}"));
    let late = delete(format!("expect={}", second.id - 1));
    assert_eq!((late.status, said(&client, "m").as_str()), (409, "b"));

    assert_eq!((delete("expect=x".into()).status, delete("force=1".into()).status), (400, 400));
    let gone = delete(format!("expect={}", second.id));
    assert_eq!((gone.status, &gone.json()["action"]), (200, &json!("retire")), "{}", gone.text);
    let none = json!([]);
    for (client, registry) in [(&client, &registry), (&other, &other_registry)] {
        until("the name is gone", || chat(client, "m", &json!({})).status == 404);
        assert_eq!(
            (&client.get("/v1/models").json()["data"], &client.get("/ready").json()["models"]),
            (&none, &json!({}))
        );
        assert_eq!(client.get("/admin/models").json()["data"], none);
        until("b is let go", || registry.version(&b).unwrap().state == VersionState::Retired);
    }
    assert!(matches!(registry.set_shadow("m", Some(&a), None), Err(RegistryError::NoAlias { .. })));
    assert_eq!(client.delete("/admin/models/m").status, 404, "it is gone already");
    // A server that starts now has nothing to load.
    assert_eq!(chat(&Client::new(&serve(&place.open(), config())), "m", &json!({})).status, 404);

    registry.rollback("m", None).unwrap();
    assert_eq!(said(&client, "m"), "b");
    registry.retire("m", None).unwrap();
    registry.deploy("m", &a, None).unwrap();
    assert_eq!(said(&client, "m"), "a");
    until("the other server follows", || other.get("/v1/models/m").status == 200 && said(&other, "m") == "a");
    // Back to nothing, which is what there was before.
    assert!(registry.rollback("m", None).unwrap().is_retired());
    assert_eq!(chat(&client, "m", &json!({})).status, 404);
}

#[test]
fn who_asks_decides_between_versions_that_share_a_name() {
    let place = Place::new();
    let registry = place.open();
    let server = serve(&registry, config());
    let client = Client::new(&server);
    let [a, b] =
        ["a", "b"].map(|name| place.add(&registry, &format!("{name}.gguf"), &format!("says {name}")));
    registry.deploy("m", &a, None).unwrap();
    let alone = chat(&client, "m", &json!({"user": "u1"}));
    assert_eq!(alone.header("x-breakers-ignored"), Some("user"), "it decides nothing");
    let body = json!({"weights": {(a.as_str()): 3, (b.as_str()): 1}}).to_string();
    assert_eq!(client.post("/admin/models/m/weights", &body).status, 200);
    let pick = |more: Value| {
        let answer = chat(&client, "m", &more);
        assert_eq!(answer.header("x-breakers-ignored"), None);
        let content = answer.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
        let version = if content == "a" { &a } else { &b };
        assert_eq!(answer.header("x-breakers-version"), Some(version.as_str()));
        content
    };
    let mut n_b = 0;
    for i in 0..200 {
        let user = pick(json!({"user": format!("u{i}")}));
        n_b += i32::from(user == "b");
        if i % 10 == 0 {
            assert_eq!(user, pick(json!({"user": format!("u{i}")})), "always the same");
            assert_eq!(user, pick(json!({"user": format!("u{i}"), "n": 2})));
            // The newer field has the same meaning.
            assert_eq!(user, pick(json!({"safety_identifier": format!("u{i}")})));
        }
    }
    // 50 are expected, with a standard deviation of 6; the users are fixed, so that this cannot change.
    assert!((32..=68).contains(&n_b), "{n_b} of 200");
    // Without both, it is drawn for each request.
    let drawn: Vec<String> = (0..40).map(|_| pick(json!({}))).collect();
    assert!(drawn.iter().any(|one| one == "a") && drawn.iter().any(|one| one == "b"), "{drawn:?}");
    for (weights, param) in [
        (json!({}), "weights"),
        (json!({(a.as_str()): 0}), "weights"),
        (json!({(a.as_str()): 1, (&a[..20]): 1}), "weights"),
        (json!({"sha256:00000000": 1}), "version"),
    ] {
        let refused = client.post("/admin/models/m/weights", &json!({"weights": weights}).to_string());
        assert_eq!(refused.json()["error"]["param"], param, "{weights}: {}", refused.text);
        assert!((400..500).contains(&refused.status));
    }
}

#[test]
fn a_version_that_answers_differently_gets_no_request() {
    let place = Place::new();
    let registry = place.open();
    let server = serve(&registry, config());
    let client = Client::new(&server);
    let good = place.add(&registry, "good.gguf", "says good");
    registry.deploy("m", &good, None).unwrap();
    // The first answer was recorded.
    let recorded = registry.version(&good).unwrap().canary.unwrap();
    assert_eq!(recorded, Canary::new("The capital of France is", 16).with_text("good"));
    place.shelf.put("tokens", || {
        Ok(Arc::new(ScriptedModel::from_fn("inner", |_| {
            let mut reply = ChatReply::new("x y", FinishReason::EndOfText);
            reply.token_ids = vec![5, 6, 7];
            reply.into()
        })))
    });
    place.shelf.put("panics at once", || panic!("no memory left"));
    place
        .shelf
        .put("panics later", || Ok(Arc::new(ScriptedModel::from_fn("inner", |_| panic!("a bad row")))));
    place.shelf.put("fails", || {
        let error = || CallError::failed(std::io::Error::other("broken"));
        Ok(Arc::new(ScriptedModel::from_fn("inner", move |_| error().into())))
    });
    let text = |text: &str| Canary::new("x", 4).with_text(text);
    for (name, canary, code, expected) in [
        ("says one", Some(text("one two")), "canary_failed", "differs from character 3 on"),
        (
            "tokens",
            Some(Canary::new("x", 4).with_token_ids([5, 6, 8])),
            "canary_failed",
            "token 2 is 7; expected 8",
        ),
        (
            "says none",
            Some(Canary::new("x", 4).with_token_ids([5])),
            "canary_failed",
            "does not say which tokens",
        ),
        ("unknown", None, "load_failed", "no model is called"),
        ("panics at once", None, "load_failed", "no memory left"),
        ("panics later", None, "canary_failed", "a bad row"),
        ("fails", None, "canary_failed", "broken"),
    ] {
        let mut new = NewVersion::new(place.write(&format!("{name}.gguf"), name));
        new.canary = canary;
        let version = registry.register(&new).unwrap().name;
        let refused = client.post("/admin/models/m/deploy", &json!({"version": version}).to_string());
        let error = &refused.json()["error"];
        assert_eq!((refused.status, &error["code"]), (422, &json!(code)), "{name}: {}", refused.text);
        assert!(error["message"].as_str().unwrap().contains(expected), "{name}: {}", refused.text);
        let after = registry.version(&version).unwrap();
        assert_eq!(after.state, VersionState::Failed, "{name}");
        assert!(after.failure.unwrap().contains(expected), "{name}");
        assert_eq!(said(&client, "m"), "good", "{name}");
        assert_eq!(chat(&client, &version, &json!({})).status, 404, "{name}: not under its own name either");
        assert_eq!(registry.history("m").unwrap().len(), 1, "{name}");
        // Weights and shadows are no way around it.
        let shares = [Share::new(&*good, 9), Share::new(&*version, 1)];
        assert!(registry.set_weights("m", &shares, None).is_err(), "{name}");
        assert!(registry.set_shadow("m", Some(&version), None).is_err(), "{name}");
    }
    // With another canary it is as good as new.
    let version = registry.register(&NewVersion::new("says one.gguf")).unwrap();
    assert_eq!(version.canary, Some(text("one two")), "what is not given stays");
    let body = r#"{"prompt": "x", "chat": true, "max_tokens": 4, "text": "one"}"#;
    assert_eq!(client.post(&format!("/admin/versions/{}/canary", version.name), body).status, 200);
    assert_eq!(registry.version(&version.name).unwrap().state, VersionState::Validated);
    registry.deploy("m", &version.name, None).unwrap();
    assert_eq!(said(&client, "m"), "one");
    for canary in [Canary::new("", 4), Canary::new("x", 0), Canary::new("x", 5000)] {
        assert!(matches!(registry.set_canary(&good, &canary), Err(RegistryError::Parameter { .. })));
    }
}

#[test]
fn a_canary_has_a_time_limit() {
    let place = Place::new();
    let may_end = Arc::new(AtomicBool::new(false));
    let inside = Arc::clone(&may_end);
    place.shelf.put("hangs", move || {
        let inside = Arc::clone(&inside);
        Ok(Arc::new(ScriptedModel::from_fn("inner", move |_| {
            until("it may end", || inside.load(Ordering::SeqCst));
            "late".into()
        })))
    });
    let mut config = place.config();
    config.canary_time = Duration::from_millis(100);
    let registry = Registry::open(config, place.shelf.clone()).unwrap();
    let version = place.add(&registry, "a.gguf", "hangs");
    let refused = registry.deploy("m", &version, None).unwrap_err();
    assert!(refused.to_string().contains("no answer within"), "{refused}");
    may_end.store(true, Ordering::SeqCst);
}

#[test]
fn a_file_that_changed_is_not_loaded() {
    let place = Place::new();
    let registry = place.open();
    let version = place.add(&registry, "a.gguf", "says a");
    let path = place.folder.path().join("a.gguf");
    let mut bytes = std::fs::read(&path).unwrap();
    // One bit of a weight.
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let refused = registry.deploy("m", &version, None).unwrap_err();
    assert!(matches!(refused, RegistryError::Changed { .. }), "{refused}");
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(registry.deploy("m", &version, None), Err(RegistryError::Read { .. })));
    assert_eq!(registry.version(&version).unwrap().state, VersionState::Failed);
    assert_eq!(place.shelf.n_loads.load(Ordering::SeqCst), 0);
    // Back in another place, it works again.
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(place.folder.path().join("moved.gguf"), &bytes).unwrap();
    assert_eq!(registry.register(&NewVersion::new("moved.gguf")).unwrap().name, version);
    registry.deploy("m", &version, None).unwrap();
    assert_eq!(registry.version(&version).unwrap().failure, None);
}

#[test]
fn a_server_starts_with_what_can_be_loaded() {
    let place = Place::new();
    let registry = place.open();
    let [a, b] =
        ["a", "b"].map(|name| place.add(&registry, &format!("{name}.gguf"), &format!("says {name}")));
    registry.deploy("m", &a, None).unwrap();
    registry.deploy("n", &b, None).unwrap();
    drop(registry);
    std::fs::remove_file(place.folder.path().join("b.gguf")).unwrap();
    let registry = place.open();
    let server = serve(&registry, config());
    let client = Client::new(&server);
    assert_eq!(said(&client, "m"), "a");
    let absent = chat(&client, "n", &json!({}));
    assert_eq!((absent.status, &absent.json()["error"]["code"]), (503, &json!("model_unavailable")));
    let ready = client.get("/ready");
    assert_eq!((ready.status, &ready.json()["models"]), (503, &json!({"m": "ok", "n": "failing"})));
    let shown = client.get("/admin/models").json();
    assert!(shown["data"][1]["behind"].as_str().unwrap().contains("b.gguf"), "{shown}");
    // A change leads out of it.
    place.write("b.gguf", "says b");
    registry.deploy("n", &b, None).unwrap();
    assert_eq!((said(&client, "n").as_str(), client.get("/ready").status), ("b", 200));
}

#[test]
fn usage_is_kept_by_key_and_version() {
    let place = Place::new();
    place.shelf.put("mixed", || {
        Ok(Arc::new(ScriptedModel::from_fn("inner", |request| {
            let text = request.prompt.messages().map_or("text".into(), |messages| messages[0].text());
            if text == "fail" {
                return CallError::failed(std::io::Error::other("broken")).into();
            }
            let mut reply = ChatReply::new("one two", FinishReason::EndOfText);
            reply.usage = Usage::new(7, 2);
            reply.usage.cached_prompt = 4;
            reply.into()
        })))
    });
    let registry = place.open();
    let version = place.add(&registry, "a.gguf", "mixed");
    registry.deploy("m", &version, None).unwrap();
    let mut config = config();
    let text =
        "[[key]]\ntenant = \"a\"\nkey = \"one\"\n[[key]]\ntenant = \"b\"\nkey = \"two\"\nadmin = true\n";
    config.keys = Some(Keys::parse(text).unwrap());
    let server = serve(&registry, config);
    let client = Client::new(&server);
    let ask = |key: &str, text: &str, n: usize, stream: bool| {
        let body =
            json!({"model": "m", "messages": [{"role": "user", "content": text}], "n": n, "stream": stream});
        client.post_with("/v1/chat/completions", &body.to_string(), &[("api-key", key)]).status
    };
    assert_eq!([ask("one", "x", 1, false), ask("one", "x", 3, true), ask("two", "x", 1, true)], [200; 3]);
    assert_eq!((ask("one", "fail", 1, false), ask("wrong", "x", 1, false)), (500, 401));
    let usage = |query: &str| {
        let answer = client.get_with(&format!("/admin/usage{query}"), &[("api-key", "two")]);
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.json()["data"].clone()
    };
    until("all is counted", || {
        usage("").as_array().is_some_and(|rows| rows.iter().any(|row| row["texts"] == 5))
    });
    let now = crate::support::NOW;
    let day = now - now % 86_400;
    let row = |tenant: &str, [requests, texts, failures, prompt, cached, completion]: [u64; 6]| {
        json!({"day": day, "tenant": tenant, "model": "m", "version": version, "requests": requests, "texts": texts,
            "failures": failures, "prompt_tokens": prompt, "cached_tokens": cached, "completion_tokens": completion})
    };
    // Three answers to one prompt: its tokens count once.
    let expected = json!([row("a", [3, 5, 1, 14, 8, 8]), row("b", [1, 1, 0, 7, 4, 2])]);
    assert_eq!(usage(""), expected);
    assert_eq!(usage("?tenant=b"), json!([expected[1]]));
    assert_eq!(usage("?model=m&tenant=a&since=0"), json!([expected[0]]));
    assert_eq!(usage(&format!("?since={}", day + 86_399)), expected);
    assert_eq!(usage(&format!("?since={}", day + 86_400)), json!([]));
    assert_eq!(usage("?model=other"), json!([]));
    assert_eq!(client.get_with("/admin/usage?until=3", &[("api-key", "two")]).status, 400);
    // It is written without being asked for, and lasts.
    drop(server);
    drop(registry);
    let kept: Vec<UsageRow> = place.open().usage(0, None, None).unwrap();
    assert_eq!(serde_json::to_value(kept).unwrap(), expected);
}

#[test]
fn what_was_used_reaches_the_database_without_being_asked_for() {
    let place = Place::new();
    let registry = place.open();
    let version = place.add(&registry, "a.gguf", "says a");
    registry.deploy("m", &version, None).unwrap();
    let server = serve(&registry, config());
    assert_eq!(said(&Client::new(&server), "m"), "a");
    // Another process sees it although this one was neither asked nor ended.
    let other = place.open();
    until("it is written", || other.usage(0, None, None).unwrap().iter().any(|row| row.counts.texts == 1));
}

#[test]
fn a_server_that_ends_writes_what_was_used() {
    let place = Place::new();
    let mut rarely = place.config();
    rarely.usage_time = Duration::from_secs(3600);
    let registry = Arc::new(Registry::open(rarely, place.shelf.clone()).unwrap());
    let version = place.add(&registry, "a.gguf", "says a");
    registry.deploy("m", &version, None).unwrap();
    let server = serve(&registry, config());
    assert_eq!(said(&Client::new(&server), "m"), "a");
    let other = place.open();
    assert!(other.usage(0, None, None).unwrap().is_empty(), "it is not time yet");
    server.stop();
    server.join().unwrap();
    assert_eq!(other.usage(0, None, None).unwrap().len(), 1);
    drop(registry);
}

#[test]
fn only_administrators_administer() {
    let place = Place::new();
    let registry = place.open();
    place.write("a.gguf", "says a");
    let routes = [
        ("GET", "/admin/models"),
        ("GET", "/admin/models/m/history"),
        ("POST", "/admin/models/m/deploy"),
        ("POST", "/admin/models/m/rollback"),
        ("POST", "/admin/models/m/weights"),
        ("POST", "/admin/models/m/shadow"),
        ("GET", "/admin/versions"),
        ("POST", "/admin/versions"),
        ("GET", "/admin/versions/00000000"),
        ("POST", "/admin/versions/00000000/canary"),
        ("GET", "/admin/usage"),
    ];
    let mut keyed = config();
    let text =
        "[[key]]\ntenant = \"a\"\nkey = \"user\"\n[[key]]\ntenant = \"b\"\nkey = \"boss\"\nadmin = true\n";
    keyed.keys = Some(Keys::parse(text).unwrap());
    let server = serve(&registry, keyed);
    let client = Client::new(&server);
    for (method, path) in routes {
        let status = |key: Option<&str>| {
            let headers: Vec<(&str, &str)> = key.into_iter().map(|key| ("api-key", key)).collect();
            let answer = match method {
                "GET" => client.get_with(path, &headers),
                _ => client.post_with(path, "", &headers),
            };
            answer.status
        };
        assert_eq!([status(None), status(Some("wrong")), status(Some("user"))], [401, 401, 403], "{path}");
        let admitted = status(Some("boss"));
        assert!(admitted != 401 && admitted != 403 && admitted < 500, "{path}: {admitted}");
    }
    let refused = client.get_with("/admin/models", &[("api-key", "user")]).json();
    assert_eq!(refused["error"]["code"], "admin_only", "{refused}");
    drop(server);
    // Without keys: programs of this machine, but no page of another site, and nobody behind a proxy.
    let server = serve(&registry, config());
    let client = Client::new(&server);
    assert_eq!(client.get("/admin/models").status, 200);
    for header in ["x-forwarded-for", "forwarded", "via", "x-real-ip"] {
        assert_eq!(client.get_with("/admin/models", &[(header, "10.0.0.1")]).status, 403, "{header}");
    }
    let foreign = "GET /admin/models HTTP/1.1\r\nHost: localhost\r\nOrigin: https://evil.example\r\nConnection: close\r\n\r\n";
    assert!(raw(&server, foreign).starts_with("HTTP/1.1 403"));
    drop(server);
    // Without a registry there are no such routes.
    let server = crate::support::server(says("x"), config());
    assert_eq!(Client::new(&server).get("/admin/models").status, 404);
}

#[test]
fn other_machines_need_an_administrators_key() {
    use std::net::{IpAddr, UdpSocket};
    // The address of this machine on its network; nothing is sent.
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    let own = socket.connect("192.0.2.1:9").ok().and_then(|()| socket.local_addr().ok()).map(|own| own.ip());
    let Some(own @ IpAddr::V4(_)) = own.filter(|own| !own.is_loopback() && !own.is_unspecified()) else {
        eprintln!("this machine has no address but its own loopback; not tested");
        return;
    };
    let place = Place::new();
    let registry = place.open();
    let mut open = config();
    open.address = "0.0.0.0:0".parse().unwrap();
    open.allow_no_keys = true;
    let server = serve(&registry, open);
    let get = |address: IpAddr| {
        use std::io::{Read as _, Write as _};
        let mut stream = std::net::TcpStream::connect((address, server.address().port())).unwrap();
        stream
            .write_all(b"GET /admin/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text[9..12].to_owned()
    };
    assert_eq!(get("127.0.0.1".parse().unwrap()), "200");
    assert_eq!(get(own), "403", "{own}");
}

#[test]
fn bodies_of_administrators_are_read_closely() {
    let place = Place::new();
    let registry = place.open();
    let server = serve(&registry, config());
    let client = Client::new(&server);
    let version = place.add(&registry, "a.gguf", "says a");
    registry.deploy("m", &version, None).unwrap();
    for (path, body, status) in [
        ("/admin/models/m/deploy", json!({}), 400),
        ("/admin/models/m/deploy", json!({"version": version, "force": true}), 400),
        ("/admin/models/m/deploy", json!({"version": "sha256:0"}), 404),
        ("/admin/models/m/deploy", json!({"version": "latest"}), 404),
        ("/admin/models/m/deploy", json!({"version": version, "expect": 99}), 409),
        ("/admin/models/m/rollback", json!({"to": 1}), 400),
        ("/admin/models/m/shadow", json!({}), 400),
        ("/admin/models/m/shadow", json!({"version": version}), 400),
        ("/admin/models/none/shadow", json!({"version": null}), 404),
        ("/admin/versions", json!({"path": "a.gguf", "name": "x"}), 400),
        ("/admin/versions", json!({"path": "../a.gguf"}), 400),
        ("/admin/versions", json!({"path": "/etc/passwd"}), 400),
        ("/admin/versions", json!({"path": "none.gguf"}), 400),
        ("/admin/versions", json!({"path": "a.gguf", "parent": "sha256:00000000"}), 404),
        ("/admin/versions", json!({"path": "a.gguf", "canary": {"prompt": "x"}}), 400),
        ("/admin/versions", json!({"path": "a.gguf", "canary": {"prompt": "x", "max_tokens": 0}}), 400),
    ] {
        let answer = client.post(path, &body.to_string());
        assert_eq!(answer.status, status, "{path} {body}: {}", answer.text);
        let error = answer.json()["error"].clone();
        for key in ["message", "type", "param", "code"] {
            assert!(error.get(key).is_some(), "{path} {body}: {}", answer.text);
        }
    }
    assert_eq!(registry.history("m").unwrap().len(), 1);
    assert_eq!(registry.history("m").unwrap()[0].action, RouteAction::Deploy);
    assert!(client.get("/admin/models").json()["data"][0]["back"].is_null());
    let begun = Instant::now();
    assert_eq!(client.post("/admin/models/m/deploy", "[").status, 400);
    assert!(begun.elapsed() < Duration::from_secs(5));
}
