//! Fetching from packages, with a `pip` and an `npm` that serve what the test made.
#![cfg(unix)]

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::fake::Registry;
use crate::common::{Parted, Recorder, World, bytes, options, sha256, tgz_of, zip_of};
use breakers_hub::{Error, FetchOptions, Hub, SourceKind};

const PART_BYTES: usize = 300_000;

/// A world whose registry serves every part of a thing.
fn world(n_parts: usize) -> (World, Registry, Parted) {
    let world = World::new();
    let registry = Registry::new(world.at("registry"));
    let thing = Parted::new(n_parts, PART_BYTES);
    for idx in 0..n_parts {
        registry.put(&format!("part-{}.whl", idx + 1), &thing.wheel(idx));
    }
    (world, registry, thing)
}

fn python(registry: &Registry) -> FetchOptions {
    options(&registry.program("python3"))
}

/// The entry's folder holds the file, the marker and the lock, and nothing else.
fn check_complete(world: &World, content: &[u8]) {
    assert!(fs::read(world.cache().join("thing/thing.bin")).unwrap() == content);
    let mut names: Vec<_> = fs::read_dir(world.cache().join("thing"))
        .unwrap()
        .map(|item| item.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, [".lock", ".verified.json", "thing.bin"]);
}

#[test]
fn parts_become_a_file_and_the_second_time_nothing_runs() {
    for parallel in [1, 2, 5] {
        let (world, registry, thing) = world(4);
        let hub = world.hub(&thing.catalog(&[thing.pypi()]));
        let options = FetchOptions { parallel, ..python(&registry) };
        let mut recorder = Recorder::default();
        let resolved = hub.resolve("thing", &options, &mut recorder).unwrap();

        assert_eq!(resolved.path, world.cache().join("thing/thing.bin"));
        assert_eq!(resolved.license.as_deref(), Some("MIT"));
        assert!(!resolved.from_cache);
        check_complete(&world, &thing.content);
        assert!(recorder.said("license: MIT — made here"));
        let total: usize = (0..4).map(|idx| thing.wheel(idx).len()).sum();
        assert_eq!(recorder.totals, [total as u64]);
        assert_eq!(recorder.done.last(), Some(&(total as u64)));
        assert!(recorder.done.is_sorted());
        assert_eq!(recorder.n_finished, 1);
        let mut calls = registry.calls();
        calls.sort();
        assert_eq!(calls, ["part-1", "part-2", "part-3", "part-4"]);

        let mut again = Recorder::default();
        assert!(hub.resolve("thing", &options, &mut again).unwrap().from_cache);
        assert!(hub.cached("thing").unwrap().is_some());
        assert!(again.messages.is_empty() && registry.calls().is_empty());
        hub.verify("thing", &mut ()).unwrap();
    }
}

#[test]
fn only_missing_parts_are_fetched_after_an_interruption() {
    let (world, registry, thing) = world(5);
    let hub = world.hub(&thing.catalog(&[thing.pypi()]));
    let two_parts = (thing.wheel(0).len() + thing.wheel(1).len()) as u64;

    // Stopped by the caller while the third is under way.
    registry.put("part-3.waits", b"");
    registry.put("part-3.grows", b"");
    let mut recorder = Recorder { stop_at: Some(two_parts + 1), ..Recorder::default() };
    let error = hub.resolve("thing", &python(&registry), &mut recorder).unwrap_err();
    assert!(matches!(error, Error::Interrupted { ref name } if name == "thing"), "{error}");
    assert_eq!(registry.calls(), ["part-1", "part-2", "part-3"]);
    assert!(!world.cache().join("thing/thing.bin").exists());

    // The third fails; the fourth is not even asked for.
    registry.remove("part-3.waits");
    registry.put("part-3.fails", b"");
    let error = hub.resolve("thing", &python(&registry), &mut ()).unwrap_err();
    assert!(matches!(error, Error::Unavailable(_)), "{error}");
    assert_eq!(registry.calls(), ["part-3"]);

    registry.remove("part-3.fails");
    let mut recorder = Recorder::default();
    hub.resolve("thing", &python(&registry), &mut recorder).unwrap();
    assert_eq!(registry.calls(), ["part-3", "part-4", "part-5"]);
    assert!(recorder.said("2 of 5 packages are here"));
    assert_eq!(recorder.done.first(), Some(&two_parts));
    check_complete(&world, &thing.content);
}

#[test]
fn a_kept_part_that_was_damaged_is_fetched_again() {
    let (world, registry, thing) = world(4);
    let hub = world.hub(&thing.catalog(&[thing.pypi()]));
    registry.put("part-4.fails", b"");
    hub.resolve("thing", &python(&registry), &mut ()).unwrap_err();
    registry.remove("part-4.fails");
    // One byte of the second part flips on the disk.
    let name = format!("{}.partial", &sha256(&thing.content)[..16]);
    let partial = world.cache().join("thing/.parts").join(name);
    let mut damaged = fs::read(&partial).unwrap();
    damaged[PART_BYTES + 5] ^= 1;
    fs::write(&partial, damaged).unwrap();
    registry.calls();

    hub.resolve("thing", &python(&registry), &mut ()).unwrap();
    assert_eq!(registry.calls(), ["part-2", "part-4"]);
    check_complete(&world, &thing.content);
}

#[test]
fn a_tool_that_failed_once_gets_a_second_try_when_others_succeeded() {
    let (world, registry, thing) = world(3);
    let hub = world.hub(&thing.catalog(&[thing.pypi()]));
    registry.put("part-2.fails", b"");
    hub.resolve("thing", &python(&registry), &mut ()).unwrap_err();
    assert_eq!(registry.calls(), ["part-1", "part-2", "part-2"]);
}

/// Fetches a bad first package and checks which error the source reports.
fn check_bad_package(wheel: &[u8], is_expected: impl Fn(&Error) -> bool) {
    let (world, registry, thing) = world(2);
    registry.put("part-1.whl", wheel);
    let hub = world.hub(&thing.catalog(&[thing.pypi()]));
    match hub.resolve("thing", &python(&registry), &mut ()).unwrap_err() {
        Error::Unavailable(details) => {
            assert_eq!(details.attempts.len(), 1);
            assert!(is_expected(&details.attempts[0].error), "{}", details.attempts[0].error);
        }
        error => panic!("{error}"),
    }
    let mut files = walk(world.folder.path());
    files.retain(|file| !file.starts_with(world.at("registry")) && !file.starts_with(world.cache()));
    assert!(files.is_empty(), "written outside of the cache: {files:?}");
    assert!(!world.cache().join("thing/thing.bin").exists());

    // A good package repairs it.
    registry.put("part-1.whl", &thing.wheel(0));
    hub.resolve("thing", &python(&registry), &mut ()).unwrap();
    check_complete(&world, &thing.content);
}

fn walk(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for item in fs::read_dir(folder).unwrap().flatten() {
        if item.file_type().unwrap().is_dir() {
            files.extend(walk(&item.path()));
        } else {
            files.push(item.path());
        }
    }
    files
}

#[test]
fn bad_packages_give_typed_errors_and_leave_nothing() {
    let good = Parted::new(2, PART_BYTES);
    let part = good.parts[0].as_slice();
    let mut flipped = part.to_vec();
    flipped[PART_BYTES / 2] ^= 0x10;
    let zeros = vec![0; 50 << 20];
    let mut cut = good.wheel(0);
    cut.truncate(cut.len() / 2);
    let mut damaged = good.wheel(0);
    let middle = damaged.len() / 2;
    damaged[middle..middle + 64].fill(0xaa);
    // The zip's central directory states the right size, but the data are a decompression bomb.
    let lying = {
        let mut wheel = zip_of(&[("part/data.bin", &zeros)]);
        let (claimed, real) = ((part.len() as u32).to_le_bytes(), (zeros.len() as u32).to_le_bytes());
        let places: Vec<_> = (0..wheel.len() - 4).filter(|&at| wheel[at..at + 4] == real).collect();
        assert!(!places.is_empty());
        places.iter().for_each(|&at| wheel[at..at + 4].copy_from_slice(&claimed));
        wheel
    };
    let not_a_member =
        |error: &Error| matches!(error, Error::MissingMember { member, .. } if member == "part/data.bin");
    let wrong_size = |error: &Error| matches!(error, Error::SizeMismatch { expected, found, .. } if *expected == PART_BYTES as u64 && found != expected);

    check_bad_package(&zip_of(&[("part/data.bin", &flipped)]), |error| {
        matches!(error, Error::HashMismatch { expected, found, .. }
            if expected.to_string() == sha256(part) && found.to_string() == sha256(&flipped))
    });
    check_bad_package(&zip_of(&[("part/data.bin", &part[1..])]), wrong_size);
    check_bad_package(&zip_of(&[("part/data.bin", &zeros)]), wrong_size);
    check_bad_package(&lying, |error| wrong_size(error) || matches!(error, Error::BadArchive { .. }));
    check_bad_package(&zip_of(&[("part/other.bin", part)]), not_a_member);
    check_bad_package(&zip_of(&[("../../../../part/data.bin", part)]), not_a_member);
    check_bad_package(&zip_of(&[("/part/data.bin", part)]), not_a_member);
    check_bad_package(b"", |error| matches!(error, Error::BadArchive { .. }));
    check_bad_package(&bytes(3, 5000), |error| matches!(error, Error::BadArchive { .. }));
    check_bad_package(&cut, |error| matches!(error, Error::BadArchive { .. }));
    check_bad_package(&damaged, |error| {
        matches!(error, Error::BadArchive { .. } | Error::HashMismatch { .. } | Error::SizeMismatch { .. })
    });
}

#[test]
fn a_catalog_whose_parts_do_not_make_the_file_is_noticed() {
    let (world, registry, thing) = world(2);
    let wrong = thing.catalog(&[thing.pypi()]).replace(&sha256(&thing.content), &sha256(b"another"));
    match world.hub(&wrong).resolve("thing", &python(&registry), &mut ()).unwrap_err() {
        Error::Unavailable(details) => {
            assert!(matches!(details.attempts[0].error, Error::HashMismatch { .. }));
        }
        error => panic!("{error}"),
    }
    assert!(!world.cache().join("thing/thing.bin").exists());
}

#[test]
fn without_a_tool_or_a_network_the_error_says_what_to_do() {
    let (world, registry, thing) = world(1);
    let hub = world.hub(&thing.catalog(&[thing.pypi()]));
    let check = |options: FetchOptions, expected: &[&str]| {
        let error = hub.resolve("thing", &options, &mut ()).unwrap_err();
        assert!(matches!(error, Error::Unavailable(_)), "{error}");
        let text = error.to_string();
        let path = world.cache().join("thing/thing.bin").display().to_string();
        let hash = sha256(&thing.content);
        for part in expected.iter().copied().chain([path.as_str(), hash.as_str(), "BREAKERS_CACHE"]) {
            assert!(text.contains(part), "`{part}` is not in:\n{text}");
        }
    };
    let nowhere = options(&world.at("no/such/python"));
    check(nowhere, &["PyPI package part-1", "no working `pip`", "no/such/python -m pip`: not found"]);
    registry.put("part-1.fails", b"");
    check(python(&registry), &["exit code 1", "ERROR: No matching distribution found for part-1==1.0"]);
    check(FetchOptions { offline: true, ..python(&registry) }, &["the fetch was offline"]);

    let chosen = FetchOptions { sources: vec![SourceKind::Npm], ..python(&registry) };
    let error = hub.resolve("thing", &chosen, &mut ()).unwrap_err();
    assert!(matches!(error, Error::NoSuchSource { ref available, .. } if available == "pypi"), "{error}");
}

#[test]
fn a_file_placed_by_hand_counts_when_its_hash_is_right() {
    let (world, registry, thing) = world(2);
    let hub = world.hub(&thing.catalog(&[thing.pypi()]));
    let path = world.cache().join("thing/thing.bin");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, &thing.content).unwrap();
    let offline = FetchOptions { offline: true, ..python(&registry) };
    assert!(hub.cached("thing").unwrap().is_none());
    assert!(hub.resolve("thing", &offline, &mut ()).unwrap().from_cache);
    assert!(hub.cached("thing").unwrap().is_some());

    // Damaged later, at the same size: `verify` sees it, and the next fetch replaces it.
    let mut damaged = thing.content.clone();
    damaged[10] ^= 1;
    fs::write(&path, &damaged).unwrap();
    assert!(matches!(hub.verify("thing", &mut ()).unwrap_err(), Error::HashMismatch { .. }));
    let mut recorder = Recorder::default();
    hub.resolve("thing", &python(&registry), &mut recorder).unwrap();
    assert!(recorder.said("it will be replaced"));
    assert_eq!(registry.calls(), ["part-1", "part-2"]);
    assert!(fs::read(&path).unwrap() == thing.content);
}

#[test]
fn a_removed_entry_leaves_nothing_of_ours_and_all_of_others() {
    let (world, registry, thing) = world(2);
    let hub = world.hub(&thing.catalog(&[thing.pypi()]));
    assert_eq!(hub.remove("thing", &mut ()).unwrap(), 0);
    assert!(matches!(hub.remove("thin", &mut ()).unwrap_err(), Error::UnknownName { .. }));
    let folder = world.cache().join("thing");
    for foreign in [None, Some("notes.txt")] {
        hub.resolve("thing", &python(&registry), &mut ()).unwrap();
        // As an interrupted fetch leaves it.
        fs::create_dir_all(folder.join(".parts/work-1-0-0")).unwrap();
        fs::write(folder.join(".parts/work-1-0-0/wheel"), [0; 100]).unwrap();
        if let Some(name) = foreign {
            fs::write(folder.join(name), "mine").unwrap();
        }
        assert_eq!(hub.remove("thing", &mut ()).unwrap(), thing.content.len() as u64 + 100);
        assert!(hub.cached("thing").unwrap().is_none());
        let left: Vec<_> =
            fs::read_dir(&folder).into_iter().flatten().map(|i| i.unwrap().file_name()).collect();
        assert_eq!(left, foreign.into_iter().collect::<Vec<_>>());
    }
}

#[test]
fn several_files_nested_archives_and_tarballs() {
    let world = World::new();
    let registry = Registry::new(world.at("registry"));
    let (small, large) = (bytes(1, 90), bytes(2, 400_000));
    let inner = zip_of(&[("config.json", &small), ("model.bin", &large)]);
    let wheel = zip_of(&[("pack/model.zip", &inner)]);
    let tarball =
        tgz_of(&[("package/README", b"hello"), ("package/model.bin", &large), ("package/c.json", &small)]);
    registry.put("nested.whl", &wheel);
    registry.put("tarred.tgz", &tarball);
    let piece = |member: &str, file: &str, data: &[u8]| serde_json::json!({ "member": member, "file": file, "bytes": data.len(), "sha256": sha256(data) });
    let nested = serde_json::json!({ "kind": "pypi", "packages": [{
        "name": "nested", "version": "1.0", "bytes": wheel.len(),
        "nested": { "member": "pack/model.zip", "bytes": inner.len(), "sha256": sha256(&inner) },
        "pieces": [piece("config.json", "sub/config.json", &small), piece("model.bin", "model.bin", &large)],
    }] });
    let tarred = serde_json::json!({ "kind": "npm", "packages": [{
        "name": "tarred", "version": "1.0", "bytes": tarball.len(),
        "pieces": [piece("package/c.json", "sub/config.json", &small), piece("package/model.bin", "model.bin", &large)],
    }] });
    let catalog = serde_json::json!([{
        "name": "pair", "kind": "data", "title": "Two files", "license": "MIT",
        "files": [
            { "name": "sub/config.json", "bytes": small.len(), "sha256": sha256(&small) },
            { "name": "model.bin", "bytes": large.len(), "sha256": sha256(&large) },
        ],
        "sources": [nested, tarred],
    }])
    .to_string();

    let check = |sources: Vec<SourceKind>, expected_calls: &[&str]| {
        let _ = fs::remove_dir_all(world.cache());
        let hub = world.hub(&catalog);
        let options = FetchOptions { sources, npm: Some(registry.program("npm")), ..python(&registry) };
        let resolved = hub.resolve("pair", &options, &mut ()).unwrap();
        assert_eq!(resolved.path, world.cache().join("pair"));
        assert!(
            fs::read(&resolved.files[0]).unwrap() == small && fs::read(&resolved.files[1]).unwrap() == large
        );
        assert_eq!(registry.calls(), expected_calls);
        // One file is lost: only that one is fetched again, the other is not touched.
        let before = fs::metadata(&resolved.files[1]).unwrap().modified().unwrap();
        fs::remove_file(&resolved.files[0]).unwrap();
        hub.resolve("pair", &options, &mut ()).unwrap();
        assert_eq!(fs::metadata(&resolved.files[1]).unwrap().modified().unwrap(), before);
        registry.calls();
    };
    check(vec![SourceKind::Pypi], &["nested"]);
    check(vec![SourceKind::Npm], &["tarred"]);
    registry.put("nested.fails", b"");
    check(vec![], &["nested", "tarred"]);
}

#[test]
fn growing_files_of_the_tool_move_the_progress() {
    let (world, registry, thing) = world(1);
    let hub = world.hub(&thing.catalog(&[thing.pypi()]));
    registry.put("part-1.waits", b"");
    registry.put("part-1.grows", b"");
    let mut recorder = Recorder { stop_at: Some(1000), ..Recorder::default() };
    let error = hub.resolve("thing", &python(&registry), &mut recorder).unwrap_err();
    assert!(matches!(error, Error::Interrupted { .. }), "{error}");
    assert_eq!(recorder.done.last(), Some(&1000));
    assert_eq!(work_folders(&world), 0);
}

/// How many working folders of tools there are.
fn work_folders(world: &World) -> usize {
    let parts = fs::read_dir(world.cache().join("thing/.parts")).unwrap();
    parts.filter(|item| item.as_ref().unwrap().file_name().to_string_lossy().starts_with("work-")).count()
}

#[test]
fn a_full_disk_is_told_from_a_source_that_fails() {
    let (world, registry, thing) = world(2);
    registry.put("part-2.full", b"");
    let hub = world.hub(&thing.catalog(&[thing.pypi(), thing.pypi()]));
    let error = hub.resolve("thing", &python(&registry), &mut ()).unwrap_err();
    assert!(matches!(error, Error::DiskFull { .. }), "{error}");
    assert_eq!(registry.calls(), ["part-1", "part-2"]);

    // No disk has this much room, so no tool is started.
    let (archive, huge) = (thing.wheel(0).len(), 1_u64 << 60);
    let catalog = thing.catalog(&[thing.pypi()]).replacen(
        &format!("\"bytes\":{archive},"),
        &format!("\"bytes\":{huge},"),
        1,
    );
    let world = World::new();
    match world.hub(&catalog).resolve("thing", &python(&registry), &mut ()).unwrap_err() {
        Error::DiskFull { needed: Some(needed), available: Some(available), .. } => {
            assert!(needed > huge && available < needed);
        }
        error => panic!("{error}"),
    }
    assert!(registry.calls().is_empty());
}

#[test]
fn a_relative_cache_folder_works() {
    let (world, registry, thing) = world(1);
    let depth = std::env::current_dir().unwrap().components().count() - 1;
    let relative = Path::new(&"../".repeat(depth)).join(world.cache().strip_prefix("/").unwrap());
    let catalog = breakers_hub::Catalog::from_json(&thing.catalog(&[thing.pypi()])).unwrap();
    let hub = Hub::at(relative).with_catalog(catalog);
    assert!(hub.resolve("thing", &python(&registry), &mut ()).unwrap().path.is_absolute());
    check_complete(&world, &thing.content);
}

/// Not a test by itself: the process that the next test starts with other variables.
#[test]
fn child_environment() {
    if let Some(report) = std::env::var_os("HUB_TEST_REPORT") {
        let hub = Hub::new().unwrap();
        let sources = FetchOptions::from_env().map(|options| options.sources);
        let cache = hub.cache().map_or("no cache".to_owned(), |cache| cache.display().to_string());
        // A path needs none; a name does.
        let path = std::env::current_exe().unwrap();
        assert_eq!(hub.resolve(&path, &FetchOptions::default(), &mut ()).unwrap().path, path);
        let offline = FetchOptions { offline: true, ..FetchOptions::default() };
        let named = hub.resolve("smollm2-135m", &offline, &mut ()).unwrap_err();
        assert_eq!(matches!(named, breakers_hub::Error::NoCacheFolder), hub.cache().is_none(), "{named}");
        fs::write(report, format!("{cache} {sources:?}")).unwrap();
    }
}

#[test]
fn environment_variables_choose_cache_and_sources() {
    let check = |variables: &[(&str, &str)], expected: &str| {
        let world = World::new();
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "packages::child_environment"])
            .env_remove("BREAKERS_CACHE")
            .env_remove("BREAKERS_SOURCE")
            .env_remove("XDG_CACHE_HOME")
            .env("HOME", "/srv/somebody")
            .envs(variables.iter().copied())
            .env("HUB_TEST_REPORT", world.at("report"))
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
        let report = fs::read_to_string(world.at("report")).unwrap();
        assert_eq!(report, expected, "{variables:?}");
    };
    check(&[], "/srv/somebody/.cache/breakers Ok([])");
    check(&[("XDG_CACHE_HOME", "/elsewhere")], "/elsewhere/breakers Ok([])");
    check(&[("XDG_CACHE_HOME", "relative")], "/srv/somebody/.cache/breakers Ok([])");
    check(&[("BREAKERS_CACHE", "/big/disk"), ("XDG_CACHE_HOME", "/elsewhere")], "/big/disk Ok([])");
    check(&[("HOME", "relative")], "no cache Ok([])");
    check(&[("BREAKERS_CACHE", "")], "/srv/somebody/.cache/breakers Ok([])");
    check(
        &[("BREAKERS_SOURCE", "huggingface,pypi")],
        "/srv/somebody/.cache/breakers Ok([HuggingFace, Pypi])",
    );
    let unknown = "/srv/somebody/.cache/breakers Err(UnknownSource { found: \"ftp\" })";
    check(&[("BREAKERS_SOURCE", "ftp")], unknown);
}

#[test]
fn threads_that_want_the_same_entry_fetch_it_once() {
    let (world, registry, thing) = world(3);
    let hub = world.hub(&thing.catalog(&[thing.pypi()]));
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| hub.resolve("thing", &python(&registry), &mut ()).unwrap().from_cache))
            .collect();
        let from_cache: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert_eq!(from_cache.iter().filter(|&&cached| !cached).count(), 1);
    });
    assert_eq!(registry.calls(), ["part-1", "part-2", "part-3"]);
    check_complete(&world, &thing.content);
}

/// Not a test by itself: the process that the next tests start, which fetches `thing`.
#[test]
fn child_process() {
    let Some(world) = std::env::var_os("HUB_TEST_WORLD") else { return };
    let world = Path::new(&world);
    let registry = Registry { folder: world.join("registry") };
    let catalog = fs::read_to_string(world.join("catalog.json")).unwrap();
    let hub = Hub::at(world.join("cache")).with_catalog(breakers_hub::Catalog::from_json(&catalog).unwrap());
    hub.resolve("thing", &python(&registry), &mut ()).unwrap();
}

fn start_process(world: &World) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "packages::child_process"])
        .env("HUB_TEST_WORLD", world.folder.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(30), "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_killed_process_loses_nothing_but_the_part_under_way() {
    let (world, registry, thing) = world(4);
    let catalog = thing.catalog(&[thing.pypi()]);
    fs::write(world.at("catalog.json"), &catalog).unwrap();
    registry.put("part-3.waits", b"");
    let mut child = start_process(&world);
    let asked = || fs::read_to_string(registry.folder.join("calls")).unwrap_or_default();
    wait_until("the third part is asked for", || asked().ends_with("part-3\n"));
    child.kill().unwrap();
    child.wait().unwrap();
    registry.remove("part-3.waits");
    assert_eq!(work_folders(&world), 1, "it was killed in the middle");

    registry.calls();
    world.hub(&catalog).resolve("thing", &python(&registry), &mut ()).unwrap();
    assert_eq!(registry.calls(), ["part-3", "part-4"]);
    check_complete(&world, &thing.content);
}

#[test]
fn processes_wait_for_each_other() {
    let (world, registry, thing) = world(2);
    let catalog = thing.catalog(&[thing.pypi()]);
    fs::write(world.at("catalog.json"), &catalog).unwrap();
    registry.put("part-2.waits", b"");
    let mut child = start_process(&world);
    let asked = || fs::read_to_string(registry.folder.join("calls")).unwrap_or_default();
    wait_until("the second part is asked for", || asked().ends_with("part-2\n"));

    let hub = world.hub(&catalog);
    let mut recorder = Recorder::default();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let result = hub.resolve("thing", &python(&registry), &mut recorder);
            (result, recorder)
        });
        std::thread::sleep(Duration::from_millis(300));
        assert!(!waiting.is_finished());
        registry.remove("part-2.waits");
        let (result, recorder) = waiting.join().unwrap();
        assert!(result.unwrap().from_cache);
        assert!(recorder.said("another process is fetching it"));
    });
    assert!(child.wait().unwrap().success());
    assert_eq!(registry.calls(), ["part-1", "part-2"]);
    check_complete(&world, &thing.content);
}

#[test]
fn a_cache_that_cannot_be_written_is_named() {
    let (world, registry, thing) = world(1);
    let catalog = thing.catalog(&[thing.pypi()]);
    // There is a file where the cache should be.
    fs::write(world.cache(), b"").unwrap();
    let error = world.hub(&catalog).resolve("thing", &python(&registry), &mut ()).unwrap_err();
    assert!(matches!(error, Error::Io { ref path, .. } if path.starts_with(world.cache())), "{error}");
    fs::remove_file(world.cache()).unwrap();

    // Nobody, not even root, may create anything in the kernel's folder of a process.
    #[cfg(target_os = "linux")]
    {
        let hub =
            Hub::at("/proc/self/cache").with_catalog(breakers_hub::Catalog::from_json(&catalog).unwrap());
        let error = hub.resolve("thing", &python(&registry), &mut ()).unwrap_err();
        assert!(matches!(error, Error::Permission { .. } | Error::Io { .. }), "{error}");
    }

    use std::os::unix::fs::PermissionsExt;
    fs::create_dir(world.cache()).unwrap();
    fs::set_permissions(world.cache(), fs::Permissions::from_mode(0o555)).unwrap();
    let is_root = fs::write(world.cache().join("probe"), b"").is_ok();
    if !is_root {
        let error = world.hub(&catalog).resolve("thing", &python(&registry), &mut ()).unwrap_err();
        assert!(matches!(error, Error::Permission { .. }), "{error}");
        assert!(error.to_string().contains("BREAKERS_CACHE"));
    }
    fs::set_permissions(world.cache(), fs::Permissions::from_mode(0o755)).unwrap();
    assert!(registry.calls().is_empty());
}
