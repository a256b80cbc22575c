//! Reading a journal line by line.

use super::{JournalConfig, Recovery, line, line::Checked};
use crate::{Error, Result};
use serde::de::DeserializeOwned;
use std::{
    fs::File,
    io::{BufRead, BufReader, Read as _},
    marker::PhantomData,
    path::{Path, PathBuf},
};

/// The records of a journal, in order, as they are now. A writer may be active at the same time.
///
/// After an error no more records come.
///
/// ```
/// use breakers_files::journal::{Journal, JournalConfig, Reader};
/// use std::collections::BTreeMap;
///
/// let folder = tempfile::tempdir().unwrap();
/// let path = folder.path().join("journal.jsonl");
/// let mut journal = Journal::open(&path, JournalConfig::default())?;
/// journal.append(&BTreeMap::from([("a", 1)]))?;
/// let reader = Reader::open(&path, &JournalConfig::default())?;
/// let records: Result<Vec<BTreeMap<String, u32>>, _> = reader.collect();
/// assert_eq!(records?[0]["a"], 1);
/// # Ok::<(), breakers_files::Error>(())
/// ```
#[derive(Debug)]
pub struct Reader<T, R = BufReader<File>> {
    lines: Lines<R>,
    ended: bool,
    record: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Reader<T> {
    /// Opens a journal to read it.
    ///
    /// # Errors
    /// [`Error::NotAFile`], [`Error::Io`], also if there is none.
    pub fn open(path: impl AsRef<Path>, config: &JournalConfig) -> Result<Self> {
        let path = path.as_ref();
        Ok(Self::new(BufReader::new(crate::open(path)?), path, config))
    }
}

impl<T: DeserializeOwned, R: BufRead> Reader<T, R> {
    /// Reads the lines of a journal from any source; the path is only used in messages.
    pub fn new(source: R, path: impl AsRef<Path>, config: &JournalConfig) -> Self {
        Self { lines: Lines::new(source, path.as_ref(), config), ended: false, record: PhantomData }
    }

    /// What has been read so far; complete once the records have ended.
    pub fn recovery(&self) -> Recovery {
        self.lines.recovery()
    }
}

impl<T: DeserializeOwned, R: BufRead> Iterator for Reader<T, R> {
    type Item = Result<T>;

    fn next(&mut self) -> Option<Result<T>> {
        if self.ended {
            return None;
        }
        let path = self.lines.path.clone();
        let next = match self.lines.next_line() {
            Ok(Some((number, text))) => Some(line::record(text, &path, number)),
            Ok(None) => None,
            Err(error) => Some(Err(error)),
        };
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}

/// The whole lines of a journal.
#[derive(Debug)]
pub(super) struct Lines<R> {
    source: R,
    path: PathBuf,
    max_line: usize,
    accept_unchecked: bool,
    /// The line just read, and its object.
    bytes: Vec<u8>,
    text: String,
    number: u64,
    good_bytes: u64,
    recovery: Recovery,
    /// Whether the line just read has no line end.
    unended: bool,
}

/// A line that is not whole.
struct Bad {
    number: u64,
    expected: String,
    found: String,
    /// It has no line end, or holds zeros, which JSON never does. It is an interrupted write if no whole line
    /// follows.
    may_be_torn: bool,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(source: R, path: &Path, config: &JournalConfig) -> Self {
        Self {
            source,
            path: path.to_owned(),
            max_line: config.max_line,
            accept_unchecked: config.accept_unchecked,
            bytes: Vec::new(),
            text: String::new(),
            number: 0,
            good_bytes: 0,
            recovery: Recovery::default(),
            unended: false,
        }
    }

    /// Bytes of whole lines.
    pub(super) fn good_bytes(&self) -> u64 {
        self.good_bytes
    }

    pub(super) fn recovery(&self) -> Recovery {
        self.recovery
    }

    /// Whether the last whole line has no line end.
    pub(super) fn lacks_end(&self) -> bool {
        self.unended && self.recovery.torn_bytes == 0
    }

    /// The next line's number and object. Ends before an interrupted write.
    pub(super) fn next_line(&mut self) -> Result<Option<(u64, &str)>> {
        let Some(n_bytes) = self.read()? else { return Ok(None) };
        match self.check() {
            Ok(()) => {
                self.good_bytes += n_bytes;
                self.recovery.n_records += 1;
                Ok(Some((self.number, &self.text)))
            }
            Err(bad) => self.finish(bad, n_bytes).map(|()| None),
        }
    }

    /// Reads a line with its line end, up to the allowed length, and returns the number of bytes; `None` at
    /// the end of the file.
    fn read(&mut self) -> Result<Option<u64>> {
        self.bytes.clear();
        let mut limited = (&mut self.source).take(self.max_line as u64);
        let n_bytes = limited.read_until(b'\n', &mut self.bytes).map_err(Error::io("read", &self.path))?;
        if n_bytes == 0 {
            return Ok(None);
        }
        self.number += 1;
        Ok(Some(n_bytes as u64))
    }

    /// Puts the object of the line just read into `self.text`.
    fn check(&mut self) -> Result<(), Bad> {
        let number = self.number;
        let line = self.bytes.strip_suffix(b"\n");
        self.unended = line.is_none();
        if self.unended && self.bytes.len() >= self.max_line {
            let expected = format!("a line of at most {} bytes", self.max_line);
            return Err(Bad { number, expected, found: "a longer one".to_owned(), may_be_torn: false });
        }
        let line = line.unwrap_or(&self.bytes);
        let may_be_torn = self.unended || line.contains(&0);
        match line::check(line) {
            Checked::Good(before) => line::object(before, &mut self.text),
            // A beginning of an object is not a valid object, so this is not an interrupted write.
            Checked::Unchecked(text) if self.accept_unchecked && line::is_object(text) => {
                self.text.clear();
                self.text.push_str(text);
            }
            Checked::Unchecked(_) => {
                let (expected, found) = ("a checksum".to_owned(), "none".to_owned());
                return Err(Bad { number, expected, found, may_be_torn });
            }
            Checked::Bad(expected, found) => return Err(Bad { number, expected, found, may_be_torn }),
        }
        Ok(())
    }

    /// Decides what a line that is not whole is: an interrupted write if no whole line follows, otherwise
    /// damage.
    fn finish(&mut self, bad: Bad, n_bytes: u64) -> Result<()> {
        let mut torn_bytes = n_bytes;
        let mut is_torn = bad.may_be_torn;
        while is_torn && let Some(n_bytes) = self.read()? {
            torn_bytes += n_bytes;
            is_torn = self.check().is_err();
        }
        if !is_torn {
            let Bad { number, expected, found, .. } = bad;
            return Err(Error::DamagedLine { path: self.path.clone(), line: number, expected, found });
        }
        self.recovery.torn_bytes = torn_bytes;
        Ok(())
    }
}
