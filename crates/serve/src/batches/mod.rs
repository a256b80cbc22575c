//! Files, batches and jobs: requests that are kept until they are answered, whatever happens meanwhile.
//!
//! A *batch* is OpenAI's: an uploaded file with a request in each line, two files with the results. A *job*
//! is one request that is handed in, waited for and fetched by its ticket. Both are rows of one SQLite
//! database ([`store`]); the bytes of files are files. The dispatcher ([`dispatch`]) runs them in the slots
//! that nobody waits for. What is answered depends on a line's text and on where it stands, and on nothing
//! else, so that a line that a crash interrupted has the same answer the next time ([`endpoint`]).

mod dispatch;
mod endpoint;
mod handlers;
mod input;
mod store;
mod upload;
mod wire;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};

pub(crate) use self::dispatch::dispatch;
pub(crate) use self::handlers::routes;
use self::store::{Store, StoreError};
use crate::api_error::ApiError;
use crate::{Error, Result};

/// Threads that wait for the disk, beside those of texts.
pub(crate) const N_THREADS: usize = 8;

/// Uploads at a time; further ones wait.
const N_UPLOADS: usize = 4;

/// Where files, batches and jobs are kept, and how many.
///
/// # Example
/// ```
/// use breakers_serve::{BatchConfig, ServeConfig};
///
/// let mut config = ServeConfig::default();
/// let mut batches = BatchConfig::new("/var/lib/breakers");
/// batches.reserve = 2;
/// config.batches = Some(batches);
/// assert!(config.validate().is_ok());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BatchConfig {
    /// The folder: a database, the bytes of files, and a folder `spool` for jobs that come while the server
    /// is down. It is made if it is missing, and belongs to one server at a time. Who may write into it may
    /// hand in jobs without a key.
    pub folder: PathBuf,
    /// How long a job waits for others, so that they share passes and the beginnings of their prompts.
    pub grace: Duration,
    /// Slots that stay free for requests that somebody waits for. With a single slot there is none to keep,
    /// and such a request waits for at most one text of a batch.
    pub reserve: usize,
    /// Bytes of an uploaded file.
    pub file_bytes: u64,
    /// Bytes of all files together.
    pub data_bytes: u64,
    /// Lines of a batch.
    pub lines: usize,
    /// Batches that have not ended.
    pub open_batches: usize,
    /// Jobs that have not ended.
    pub open_jobs: usize,
    /// How often a request is tried if the model fails. One that the model is too busy for is tried until the
    /// batch expires.
    pub attempts: u32,
    /// Time for an upload.
    pub upload_time: Duration,
    /// How long the answer of a job is kept.
    pub job_time: Duration,
}

impl BatchConfig {
    /// The defaults: files of 200 MB with 50,000 lines, as OpenAI allows; 10 GB in all; 2 seconds of grace;
    /// one slot in reserve; answers of jobs are kept for a week.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
            grace: Duration::from_secs(2),
            reserve: 1,
            file_bytes: 200_000_000,
            data_bytes: 10_000_000_000,
            lines: 50_000,
            open_batches: 1000,
            open_jobs: 100_000,
            attempts: 3,
            upload_time: Duration::from_secs(600),
            job_time: Duration::from_secs(7 * 24 * 3600),
        }
    }

    pub(crate) fn validate(&self, max_texts: usize) -> Result<()> {
        let wrong = |name, expected, found: String| Err(Error::Parameter { name, expected, found });
        if self.reserve >= max_texts && self.reserve > 1 {
            return wrong("reserve", "fewer slots than there are", self.reserve.to_string());
        }
        if self.attempts == 0 {
            return wrong("attempts", "at least 1", "0".to_owned());
        }
        if self.grace > Duration::from_secs(3600) {
            return wrong("grace", "at most an hour", format!("{:?}", self.grace));
        }
        Ok(())
    }

    /// Slots that batches leave free: they always have one.
    fn reserve_of(&self, max_texts: usize) -> usize {
        self.reserve.min(max_texts.saturating_sub(1))
    }
}

/// What the routes and the dispatcher share.
pub(crate) struct Batches {
    store: Arc<Store>,
    config: BatchConfig,
    threads: Arc<Semaphore>,
    /// Uploads that are on their way: what they have written is not counted yet.
    uploads: Semaphore,
    /// Told when there is news for the dispatcher.
    wake: Notify,
    /// Told when jobs have ended.
    job_ended: Notify,
}

impl Batches {
    /// Opens the folder.
    ///
    /// # Errors
    /// [`Error::Data`].
    pub(crate) fn open(config: &BatchConfig) -> Result<Self> {
        let store = Store::open(config)
            .map_err(|source| Error::Data { folder: config.folder.clone(), source: Arc::new(source) })?;
        Ok(Self {
            store: Arc::new(store),
            config: config.clone(),
            threads: Arc::new(Semaphore::new(N_THREADS)),
            uploads: Semaphore::new(N_UPLOADS),
            wake: Notify::new(),
            job_ended: Notify::new(),
        })
    }

    /// Runs work that waits for the disk, on a thread of its own.
    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let permit = Arc::clone(&self.threads).acquire_owned().await;
        let store = Arc::clone(&self.store);
        let task = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work(&store)
        });
        task.await
            .unwrap_or_else(|_| Err(StoreError::Refused(ApiError::failed("the work on the disk failed"))))
    }
}
