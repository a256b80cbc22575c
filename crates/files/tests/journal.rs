//! The journal: every torn end, every flipped byte, every failing call.

use breakers_files::{
    Error,
    journal::{Journal, JournalConfig, Reader, SyncPolicy},
    testing::{Fault, FaultyDisk},
};
use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{fs, path::Path, sync::Arc, time::Duration};

fn config() -> JournalConfig {
    JournalConfig::default()
}

fn read(path: &Path, config: &JournalConfig) -> Result<Vec<Value>, Error> {
    Reader::open(path, config)?.collect()
}

/// Opens, closes and reads; reading and resuming agree.
fn resume(path: &Path) -> Result<(Vec<Value>, u64), Error> {
    let read = read(path, &config());
    let resumed = Journal::resume::<Value>(path, config());
    match (read, resumed) {
        (Ok(read), Ok((journal, records))) => {
            assert_eq!(read, records);
            Ok((records, journal.recovery().torn_bytes))
        }
        (Err(read), Err(resumed)) => {
            assert_eq!(read.to_string(), resumed.to_string());
            Err(resumed)
        }
        (read, resumed) => panic!("{read:?} {resumed:?}"),
    }
}

fn written(path: &Path, records: &[Value]) -> Vec<u8> {
    let _ = fs::remove_file(path);
    Journal::open(path, config()).unwrap().append_all(records).unwrap();
    fs::read(path).unwrap()
}

#[test]
fn lines_are_json_that_others_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("j");
    let records = [json!({}), json!({"a": "b\nc\r", "n": [1, 2.5, null]}), json!({"crc32": "mine"})];
    let bytes = written(&path, &records);
    let text = String::from_utf8(bytes).unwrap();
    assert_eq!(text.lines().next(), Some(r#"{"crc32":"15d54739"}"#));
    for (line, record) in text.lines().zip(&records) {
        let mut value: Value = serde_json::from_str(line).unwrap();
        if record.get("crc32").is_none() {
            value.as_object_mut().unwrap().remove("crc32");
            assert_eq!(value, *record);
        }
    }
    assert_eq!(resume(&path).unwrap(), (records.to_vec(), 0));
}

#[test]
fn what_is_no_object_is_refused_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("j");
    let mut config = config();
    config.max_line = 60;
    let mut journal = Journal::open(&path, config).unwrap();
    for value in [json!(1), json!([1]), json!("{}"), json!(null), json!({"a": "x".repeat(60)})] {
        let error = journal.append_all([&json!({"good": 1}), &value]).unwrap_err();
        assert!(matches!(error, Error::Record { .. }), "{value}: {error}");
    }
    #[derive(Serialize)]
    struct Never(#[serde(serialize_with = "never")] ());
    fn never<S: serde::Serializer>(_: &(), _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("never"))
    }
    assert!(matches!(journal.append(&Never(())), Err(Error::Json { .. })));
    journal.append(&json!({"a": 1})).unwrap();
    drop(journal);
    assert_eq!(resume(&path).unwrap().0, [json!({"a": 1})]);
}

#[test]
fn every_torn_end_is_cut_off_and_the_journal_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("j");
    let records = [json!({"a": 1}), json!({"b": "two \u{20ac}"}), json!({})];
    let good = written(&path, &records);
    let ends: Vec<usize> = (0..good.len()).filter(|&at| good[at] == b'\n').collect();
    for length in 0..=good.len() {
        // With nothing after it, or with zeros where a page did not arrive.
        for zeros in [0, 1, 5000] {
            fs::write(&path, [&good[..length], &vec![0; zeros]].concat()).unwrap();
            // A line that lacks only its line end was written whole.
            let whole = ends.iter().filter(|&&end| end < length || (end == length && zeros == 0)).count();
            let (found, torn) = resume(&path).unwrap();
            assert_eq!(found, records[..whole], "{length} bytes, {zeros} zeros");
            let kept = if whole == 0 { 0 } else { ends[whole - 1] + 1 };
            assert_eq!(torn as usize, (length + zeros).saturating_sub(kept), "{length} bytes, {zeros} zeros");
            Journal::open(&path, config()).unwrap().append(&json!({"after": length})).unwrap();
            let mut expected = records[..whole].to_vec();
            expected.push(json!({"after": length}));
            assert_eq!(resume(&path).unwrap(), (expected, 0));
        }
    }
}

#[test]
fn every_flipped_byte_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("j");
    let records = [json!({"a": 1}), json!({"b": 22}), json!({"c": 333})];
    let good = written(&path, &records);
    for at in 0..good.len() {
        for bit in 0..8 {
            let mut bad = good.clone();
            bad[at] ^= 1 << bit;
            fs::write(&path, &bad).unwrap();
            match resume(&path) {
                // The last line's end may be missing, or a zero may be in the line.
                Ok((found, torn)) => {
                    let last_line = good[..good.len() - 1].iter().rposition(|&b| b == b'\n').unwrap() + 1;
                    let end_lost = at == good.len() - 1 && found == records[..2] && torn > 0;
                    let zero = bad[at] == 0 && at >= last_line && found == records[..2];
                    assert!(end_lost || zero, "byte {at}, bit {bit}: {found:?}");
                }
                Err(error) => assert!(matches!(error, Error::DamagedLine { .. }), "byte {at}: {error}"),
            }
        }
    }
    // A whole line without its checksum is not an interrupted write.
    fs::write(&path, [&good[..], b"{\"d\":1}\n"].concat()).unwrap();
    let error = resume(&path).unwrap_err();
    assert!(matches!(&error, Error::DamagedLine { line: 4, found, .. } if found == "none"), "{error}");
    // Zeros with a whole line after them are not an interrupted write.
    fs::write(&path, [&good[..], &[0; 100], b"\n", &good[..]].concat()).unwrap();
    assert!(matches!(resume(&path).unwrap_err(), Error::DamagedLine { line: 4, .. }));
}

#[test]
fn a_line_that_is_too_long_is_never_cut_off() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("j");
    let good = written(&path, &[json!({"a": 1}), json!({"long": "x".repeat(500)})]);
    let mut short = config();
    short.max_line = 100;
    for length in [good.len(), good.len() - 1, good.len() - 100] {
        fs::write(&path, &good[..length]).unwrap();
        let error = Journal::open(&path, short.clone()).unwrap_err();
        assert!(matches!(error, Error::DamagedLine { line: 2, .. }), "{error}");
        assert_eq!(fs::read(&path).unwrap(), good[..length]);
    }
}

#[test]
fn lines_of_other_programs_are_taken_when_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("j");
    let mut lenient = config();
    lenient.accept_unchecked = true;
    // With and without the last line's end; the start of an object is an interrupted write.
    for (content, records) in [
        ("{\"a\": 1}\n{\"b\": 2}\n", vec![json!({"a": 1}), json!({"b": 2})]),
        ("{\"a\": 1}\n{\"b\": 2}", vec![json!({"a": 1}), json!({"b": 2})]),
        ("{\"a\": 1}\n{\"b\": 2", vec![json!({"a": 1})]),
    ] {
        fs::write(&path, content).unwrap();
        assert!(matches!(Journal::open(&path, config()), Err(Error::DamagedLine { line: 1, .. })));
        let (mut journal, found) = Journal::resume::<Value>(&path, lenient.clone()).unwrap();
        assert_eq!(found, records);
        journal.append(&json!({"c": 3})).unwrap();
        drop(journal);
        assert_eq!(read(&path, &lenient).unwrap(), [&records[..], &[json!({"c": 3})]].concat());
    }
    for content in ["[1]\n", "1\n", "{\"a\": }\n", "\n", "{\"a\": 1} x\n"] {
        fs::write(&path, content).unwrap();
        assert!(matches!(Journal::open(&path, lenient.clone()), Err(Error::DamagedLine { line: 1, .. })));
    }
}

#[test]
fn every_failing_call_keeps_what_was_acknowledged() {
    for fault in Fault::ALL {
        for sync in [SyncPolicy::Each, SyncPolicy::OnDemand, SyncPolicy::Every(Duration::ZERO)] {
            for n in 0.. {
                let folder = tempfile::tempdir().unwrap();
                let path = folder.path().join("j");
                let disk = Arc::new(FaultyDisk::default());
                let mut config = config();
                (config.sync, config.disk) = (sync, Arc::clone(&disk) as _);
                disk.countdown().start(n, fault);
                let (mut sure, mut maybe) = (Vec::new(), Vec::new());
                let mut failed = 0;
                if let Ok(mut journal) = Journal::open(&path, config) {
                    for i in 0..6 {
                        let record = json!({"i": i, "text": "t".repeat(i * 50)});
                        match journal.append(&record) {
                            Ok(()) => {
                                sure.push(record.clone());
                                maybe.push(record);
                            }
                            Err(error) => {
                                failed += 1;
                                // Only a failed sync may have left the record there.
                                let is_sync = matches!(&error, Error::Io { action: "sync", .. });
                                if is_sync {
                                    maybe.push(record);
                                }
                                let after_sync = maybe.len() > sure.len();
                                assert_eq!(matches!(error, Error::Failed { .. }), after_sync && !is_sync);
                            }
                        }
                    }
                }
                let met = disk.countdown().stop();
                let found = if path.exists() { resume(&path).unwrap().0 } else { Vec::new() };
                assert!(found == sure || found == maybe, "{fault:?} {sync:?} at {n}: {found:?}\n{sure:?}");
                if fault == Fault::Once && failed > 0 && maybe.len() == sure.len() {
                    assert_eq!(failed, 1, "a disk that has room again takes records again");
                }
                if !met {
                    assert_eq!(found.len(), 6);
                    assert!(n >= 8, "{n}");
                    break;
                }
            }
        }
    }
}

#[test]
fn one_writer_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("j");
    let mut impatient = config();
    impatient.lock_wait = Duration::from_millis(10);
    let mut journal = Journal::open(&path, config()).unwrap();
    assert!(matches!(Journal::open(&path, impatient), Err(Error::Locked { .. })));
    journal.append(&json!({"n": 0})).unwrap();
    // Readers need no lock.
    if cfg!(unix) {
        assert_eq!(read(&path, &config()).unwrap().len(), 1);
    }
    drop(journal);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let path = &path;
            scope.spawn(move || {
                for i in 0..10 {
                    let mut journal = Journal::open(path, config()).unwrap();
                    journal.append(&json!({"thread": thread, "i": i})).unwrap();
                }
            });
        }
    });
    assert_eq!(resume(&path).unwrap().0.len(), 41);
}

#[cfg(unix)]
#[test]
fn a_journal_that_was_moved_away_meanwhile_is_begun_anew() {
    let folder = tempfile::tempdir().unwrap();
    let (path, old) = (folder.path().join("j"), folder.path().join("old"));
    let first = Journal::open(&path, config()).unwrap();
    std::thread::scope(|scope| {
        let second = scope.spawn(|| Journal::open(&path, config()).unwrap().append(&json!({"n": 2})));
        std::thread::sleep(Duration::from_millis(30));
        fs::rename(&path, &old).unwrap();
        drop(first);
        second.join().unwrap().unwrap();
    });
    assert_eq!(resume(&path).unwrap().0, [json!({"n": 2})]);
}

#[test]
fn a_record_of_another_type_is_named() {
    #[derive(Debug, Deserialize)]
    struct Row {
        #[expect(dead_code, reason = "only its presence counts")]
        n: u32,
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("j");
    written(&path, &[json!({"n": 1}), json!({"m": 1})]);
    let error = Journal::resume::<Row>(&path, config()).unwrap_err();
    assert!(matches!(error, Error::DamagedLine { line: 2, .. }), "{error}");
    let mut reader = Reader::<Row>::open(&path, &config()).unwrap();
    assert!(reader.next().unwrap().is_ok() && reader.next().unwrap().is_err() && reader.next().is_none());
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(".{0,4}", inner, 0..4).prop_map(|map| json!(map)),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_goes_in_comes_out(
        records in prop::collection::vec(prop::collection::btree_map(".{0,4}", any_value(), 0..4), 0..6)
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("j");
        let records: Vec<Value> = records.into_iter().map(|map| json!(map)).collect();
        written(&path, &records);
        prop_assert_eq!(resume(&path).unwrap(), (records, 0));
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("j");
        fs::write(&path, &bytes).unwrap();
        if let Err(error) = resume(&path) {
            let is_damage = matches!(error, Error::DamagedLine { .. });
            prop_assert!(is_damage, "{error}");
            prop_assert_eq!(fs::read(&path).unwrap(), bytes);
        }
    }
}
