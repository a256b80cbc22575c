//! Replacing files, cleaning up, locks.

use breakers_files::{
    Error, FileLock, OsDisk, Replacement, clean, is_temporary, put_in_place, replace,
    testing::{Fault, FaultyDisk},
};
use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().flatten();
    let mut names: Vec<String> = entries.map(|e| e.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

type Write = fn(&FaultyDisk, &Path, &[u8]) -> breakers_files::Result<()>;

/// Every way of writing a file.
const WAYS: [(&str, Write); 3] = [
    ("in pieces", |disk, path, content| {
        let mut file = Replacement::on(disk, path)?;
        for piece in content.chunks(3) {
            file.put(piece)?;
        }
        file.commit()
    }),
    ("by name", |disk, path, content| {
        let file = Replacement::by_name_on(disk, path)?;
        fs::write(file.temporary(), content).unwrap();
        file.commit()
    }),
    ("by another file of the name", |disk, path, content| {
        let file = Replacement::by_name_on(disk, path)?;
        let other = file.temporary().with_extension("other");
        fs::write(&other, content).unwrap();
        fs::rename(&other, file.temporary()).unwrap();
        file.commit()
    }),
];

#[test]
fn every_failing_call_leaves_the_old_file_or_the_new_one() {
    for (way, write) in WAYS {
        for fault in Fault::ALL {
            for old in [None, Some("old content")] {
                for n in 0.. {
                    let folder = tempfile::tempdir().unwrap();
                    let path = folder.path().join("file");
                    if let Some(old) = old {
                        fs::write(&path, old).unwrap();
                    }
                    let disk = FaultyDisk::default();
                    disk.countdown().start(n, fault);
                    let result = write(&disk, &path, b"new content");
                    let met = disk.countdown().stop();
                    let found = fs::read_to_string(&path).ok();
                    let is_new = found.as_deref() == Some("new content");
                    let what = format!("{way}, {fault:?} at {n}: {result:?}, {found:?}");
                    assert!(is_new || (result.is_err() && found.as_deref() == old), "{what}");
                    // After a single fault it still cleans up after itself.
                    let alone = names(folder.path()).iter().all(|name| name == "file");
                    assert!(alone || fault != Fault::Once, "{what}: {:?}", names(folder.path()));
                    clean(&OsDisk, folder.path()).unwrap();
                    if !met {
                        result.unwrap();
                        assert!(n >= 4, "{what}");
                        break;
                    }
                    assert!(matches!(result, Err(Error::Io { .. })), "{what}");
                }
            }
        }
    }
}

#[test]
fn a_name_without_a_folder_and_a_long_name_are_fine() {
    let folder = tempfile::tempdir().unwrap();
    // The longest name that file systems take, in characters of three bytes.
    let long = folder.path().join("\u{20ac}".repeat(85));
    replace(&long, b"1").unwrap();
    assert_eq!(fs::read(&long).unwrap(), b"1");
    // All tests share the working folder, so the name must be unique.
    let name = format!("breakers-files-test-{}", std::process::id());
    replace(&name, b"2").unwrap();
    assert_eq!(fs::read(&name).unwrap(), b"2");
    fs::remove_file(&name).unwrap();
}

#[test]
fn what_is_no_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut cases: Vec<(PathBuf, &str)> = vec![
        (folder.path().to_owned(), "a folder"),
        ("/".into(), "a path without a file name"),
        ("".into(), "a path without a file name"),
        ("..".into(), "a path without a file name"),
    ];
    #[cfg(unix)]
    {
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("/dev/null", &link).unwrap();
        let socket = folder.path().join("socket");
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        cases.extend([("/dev/null".into(), "a device"), (link, "a device"), (socket, "a socket")]);
    }
    for (path, expected) in &cases {
        for error in [
            replace(path, b"").unwrap_err(),
            breakers_files::open(path).unwrap_err(),
            FileLock::try_exclusive(path).unwrap_err(),
            put_in_place(&OsDisk, folder.path().join("none"), path).unwrap_err(),
        ] {
            assert!(
                matches!(&error, Error::NotAFile { found, .. } if found == expected),
                "{}: {error}",
                path.display()
            );
        }
    }
    let missing = replace(folder.path().join("no folder/file"), b"").unwrap_err();
    assert_eq!(missing.io_kind(), Some(std::io::ErrorKind::NotFound), "{missing}");
}

#[cfg(unix)]
#[test]
fn permissions_stay_and_links_are_replaced() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let plain = folder.path().join("plain");
    fs::write(&plain, "").unwrap();
    for (way, write) in WAYS {
        for wanted in [0o600, 0o444, 0o640, 0o755] {
            let path = folder.path().join("file");
            fs::write(&path, "old").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(wanted)).unwrap();
            write(&FaultyDisk::default(), &path, b"new").unwrap();
            assert_eq!(mode(&path), wanted, "{way}");
            fs::remove_file(&path).unwrap();
            write(&FaultyDisk::default(), &path, b"new").unwrap();
            assert_eq!(mode(&path), mode(&plain), "{way}");
            fs::remove_file(&path).unwrap();
        }
        let (link, target) = (folder.path().join("link"), folder.path().join("target"));
        fs::write(&target, "shared").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        write(&FaultyDisk::default(), &link, b"own").unwrap();
        assert_eq!((fs::read(&link).unwrap(), fs::read(&target).unwrap()), (b"own".into(), b"shared".into()));
        fs::remove_file(&link).unwrap();
    }
}

#[test]
fn only_own_leftovers_of_the_dead_are_cleaned() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.b");
    let foreign = [
        "thesis.tmp",
        ".thesis.breakers-tmp",
        ".a.12-xyz-0.breakers-tmp",
        ".a.12-ab-0-1.breakers-tmp",
        "a.12-ab-0.breakers-tmp",
        ".a.12-ab-0.breakers-tmp~",
        ".a.-ab-0.breakers-tmp",
    ];
    for name in foreign {
        fs::write(folder.path().join(name), "").unwrap();
        assert!(!is_temporary(name), "{name}");
    }
    fs::create_dir(folder.path().join(".a.12-ab-1.breakers-tmp")).unwrap();
    let living = Replacement::new(&path).unwrap();
    let by_name = Replacement::by_name(&path).unwrap();
    assert!(is_temporary(living.temporary()) && is_temporary(by_name.temporary()));
    // As killed processes leave them.
    let copy_name = |of: &Replacement<'_>, pid: &str| {
        let name = of.temporary().file_name().unwrap().to_str().unwrap();
        folder.path().join(name.replace(&format!(".{}-", std::process::id()), &format!(".{pid}-")))
    };
    let (dead, dead_by_name) = (copy_name(&living, "1"), copy_name(&by_name, "1"));
    let sidecar = PathBuf::from(format!("{}-journal", dead_by_name.display()));
    for path in [&dead, &dead_by_name, &sidecar] {
        fs::write(path, "half").unwrap();
    }
    let removed = clean(&OsDisk, folder.path()).unwrap();
    assert_eq!((removed, dead.exists()), (usize::from(cfg!(unix)), !cfg!(unix)));
    // Recent ones may still be in use under another name.
    assert!(dead_by_name.exists() && sidecar.exists());
    let long_ago = SystemTime::now() - Duration::from_secs(3600);
    for path in [&dead_by_name, &sidecar, by_name.temporary()] {
        fs::File::options().write(true).open(path).unwrap().set_modified(long_ago).unwrap();
    }
    assert_eq!(clean(&OsDisk, folder.path()).unwrap(), 2);
    living.commit().unwrap();
    by_name.commit().unwrap();
    let mut left: Vec<&str> = [&foreign[..], &[".a.12-ab-1.breakers-tmp", "a.b"]].concat();
    left.sort_unstable();
    assert_eq!(names(folder.path()), left);
}

#[test]
fn threads_that_write_one_file_never_mix_and_cleaning_never_disturbs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let contents: Vec<Vec<u8>> = (0..4u8).map(|i| vec![b'a' + i; 10_000]).collect();
    replace(&path, &contents[0]).unwrap();
    std::thread::scope(|scope| {
        for content in &contents {
            scope.spawn(|| {
                for _ in 0..40 {
                    let mut file = Replacement::new(&path).unwrap();
                    content.chunks(997).for_each(|piece| file.write_all(piece).unwrap());
                    file.commit().unwrap();
                    assert!(contents.contains(&fs::read(&path).unwrap()));
                }
            });
        }
        // It may meet a file that was made and is not locked yet; its writer notices and takes another name.
        scope.spawn(|| {
            for _ in 0..400 {
                clean(&OsDisk, folder.path()).unwrap();
            }
        });
    });
    assert_eq!(names(folder.path()), ["file"]);
}

#[test]
fn a_finished_file_moves_with_every_failing_call() {
    for fault in Fault::ALL {
        for n in 0.. {
            let folder = tempfile::tempdir().unwrap();
            let (from, to) = (folder.path().join("part"), folder.path().join("whole"));
            fs::write(&from, "new").unwrap();
            fs::write(&to, "old").unwrap();
            let disk = FaultyDisk::default();
            disk.countdown().start(n, fault);
            let result = put_in_place(&disk, &from, &to);
            let met = disk.countdown().stop();
            let found = fs::read_to_string(&to).unwrap();
            assert!(found == "new" || (result.is_err() && found == "old" && from.exists()), "{fault:?} {n}");
            if !met {
                result.unwrap();
                assert_eq!(n, 3);
                break;
            }
        }
    }
}

#[test]
fn a_lock_ends_with_its_holder_and_waits_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(".lock");
    let held = FileLock::exclusive(&path, Duration::ZERO).unwrap();
    assert!(matches!(FileLock::exclusive(&path, Duration::from_millis(20)), Err(Error::Locked { .. })));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| FileLock::exclusive(&path, Duration::from_secs(60)).unwrap());
        std::thread::sleep(Duration::from_millis(30));
        assert!(!waiting.is_finished());
        drop(held);
        waiting.join().unwrap();
    });
    assert!(FileLock::try_exclusive(&path).unwrap().is_some());
}
