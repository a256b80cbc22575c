//! What a front knows of its servers, and the checks by which it learns it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::{HeaderValue, Method, Request, StatusCode, header};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::{Notify, watch};

use super::choose::{Bound, Budget, Candidate, Rank, Way, choose};
use super::config::{UpstreamNews, UpstreamStatus, UpstreamsConfig, base};
use super::health::{Condition, Health, Rhythm};
use super::prefix::{Chain, Prefixes};
use crate::environment::new_id;
use crate::{Environment, Result};

/// Connections that nobody uses are closed before servers close them, which some do after 5 seconds.
const IDLE_CONNECTION: Duration = Duration::from_secs(4);
/// Messages, or pieces of long ones, that are a beginning worth going after though it ends no earlier
/// request.
const LONG: usize = 4;
/// The most bytes of a list of models.
const LIST_BYTES: usize = 8 << 20;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByServer {
    upstream: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReason {
    upstream: String,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByState {
    upstream: String,
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByWay {
    result: &'static str,
}

#[derive(Default)]
struct Counts {
    requests: Family<ByServer, Counter>,
    ended: Family<ByReason, Counter>,
    outstanding: Family<ByServer, Gauge>,
    state: Family<ByState, Gauge>,
    affinity: Family<ByWay, Counter>,
    retries: Counter,
    refused_retries: Counter,
}

/// A server that requests are passed on to.
pub(super) struct Server {
    pub(super) name: String,
    pub(super) url: String,
    /// Scheme and authority, and the path before `/v1`.
    base: (String, String),
    pub(super) key: Option<HeaderValue>,
    pub(super) pass_keys: bool,
    /// Told when it goes down.
    pub(super) gone: watch::Sender<u64>,
    /// Told when its check is due.
    due: Notify,
}

impl Server {
    pub(super) fn uri(&self, path: &str) -> String {
        format!("{}{}{path}", self.base.0, self.base.1)
    }
}

/// What changes.
struct Board {
    health: Vec<Health>,
    outstanding: Vec<usize>,
    /// The entries of lists of models by their ids.
    models: Vec<BTreeMap<String, Box<RawValue>>>,
    reasons: Vec<Option<String>>,
    prefixes: Prefixes,
    budget: Budget,
}

/// A choice of a server.
pub(super) struct Pick {
    pub(super) server: usize,
    way: Way,
    pub(super) is_busy: bool,
}

pub(crate) struct Front {
    pub(super) config: UpstreamsConfig,
    pub(super) servers: Vec<Server>,
    pub(super) client: Client<HttpConnector, Full<Bytes>>,
    /// What this front calls itself, so that it notices requests that come back to it.
    pub(super) id: String,
    board: Mutex<Board>,
    counts: Counts,
    rhythm: Rhythm,
    environment: Arc<dyn Environment>,
}

impl Front {
    pub(crate) fn new(config: UpstreamsConfig, environment: Arc<dyn Environment>) -> Result<Self> {
        config.validate()?;
        let servers = config.upstreams.iter().map(|upstream| {
            Ok(Server {
                name: upstream.name.clone(),
                url: upstream.url.clone(),
                base: base(&upstream.url)?,
                key: upstream.key.as_ref().map(|key| key.header().clone()),
                pass_keys: upstream.pass_keys,
                gone: watch::Sender::new(0),
                due: Notify::new(),
            })
        });
        let servers: Vec<Server> = servers.collect::<Result<_>>()?;
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(config.connect_time));
        connector.set_keepalive(Some(Duration::from_secs(30)));
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE_CONNECTION)
            .pool_timer(TokioTimer::new())
            .build(connector);
        let n = servers.len();
        let now = environment.elapsed();
        let board = Board {
            health: vec![Health::new(now); n],
            outstanding: vec![0; n],
            models: vec![BTreeMap::new(); n],
            reasons: vec![None; n],
            prefixes: Prefixes::new(config.remembered),
            budget: Budget::new(config.retry_burst, config.retry_share),
        };
        let rhythm = Rhythm {
            interval: config.check_interval,
            backoff: config.backoff,
            max_backoff: config.max_backoff,
        };
        let id = new_id(&*environment, "breakers-");
        let counts = Counts::default();
        let front =
            Self { config, servers, client, id, board: Mutex::new(board), counts, rhythm, environment };
        (0..n).for_each(|i| front.show_state(i, Condition::Probing));
        Ok(front)
    }

    pub(crate) fn register(&self, registry: &mut Registry) {
        let counts = &self.counts;
        let help = "Requests that were passed on to a server";
        registry.register("upstream_requests", help, counts.requests.clone());
        let help = "Requests that a server has done with, by reason; with outstanding ones they are all";
        registry.register("upstream_request_ended", help, counts.ended.clone());
        let help = "Requests that a server has not answered wholly";
        registry.register("upstream_outstanding", help, counts.outstanding.clone());
        registry.register("upstream_state", "1 for the state that a server is in", counts.state.clone());
        let help = "First tries of requests, by whether they went where their beginning is known best";
        registry.register("upstream_affinity", help, counts.affinity.clone());
        registry.register("upstream_retries", "Further tries of requests", counts.retries.clone());
        let help = "Further tries that were not made, because there were too many";
        registry.register("upstream_retries_refused", help, counts.refused_retries.clone());
    }

    fn lock(&self) -> MutexGuard<'_, Board> {
        // The board is valid after every step.
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn chance(&self) -> f64 {
        (self.environment.random() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Whether any server has named this model.
    pub(super) fn knows(&self, model: &str) -> bool {
        self.lock().models.iter().any(|models| models.contains_key(model))
    }

    /// All models that servers have named, each as its first server describes it.
    pub(super) fn models(&self) -> BTreeMap<String, Box<RawValue>> {
        let board = self.lock();
        let mut all = BTreeMap::new();
        for (id, entry) in board.models.iter().flatten() {
            all.entry(id.clone()).or_insert_with(|| entry.clone());
        }
        all
    }

    /// For each model, whether a server that has it can be asked.
    pub(super) fn usable_models(&self) -> BTreeMap<String, bool> {
        let board = self.lock();
        let mut all = BTreeMap::new();
        for (models, health) in board.models.iter().zip(&board.health) {
            for id in models.keys() {
                *all.entry(id.clone()).or_insert(false) |= health.condition().is_usable();
            }
        }
        all
    }

    /// How many servers can be asked.
    pub(crate) fn n_usable(&self) -> usize {
        self.lock().health.iter().filter(|health| health.condition().is_usable()).count()
    }

    /// The servers that can be asked, for what belongs to no model.
    pub(super) fn usable(&self) -> Vec<usize> {
        let board = self.lock();
        (0..self.servers.len()).filter(|i| board.health[*i].condition().is_usable()).collect()
    }

    /// The best server for a request but for those in `tried` (a bit for each).
    pub(super) fn pick(&self, model: &str, chain: &Chain, tried: u64) -> Option<Pick> {
        let now = self.environment.elapsed();
        let board = self.lock();
        let candidate = |i: usize| {
            let health = &board.health[i];
            let may = health.condition().is_usable() && tried >> i & 1 == 0;
            if !may || !board.models[i].contains_key(model) {
                return None;
            }
            let rank = match health.condition() {
                _ if !health.busy_for(now).is_zero() => Rank::Busy,
                Condition::Healthy => Rank::Healthy,
                _ => Rank::Suspect,
            };
            let seed = Chain::new(&[], [self.servers[i].name.as_bytes()]).key();
            Some(Candidate { rank, outstanding: board.outstanding[i], seed })
        };
        let candidates: Vec<_> = (0..self.servers.len()).map(candidate).collect();
        let known = board.prefixes.find(chain);
        // A few words that many requests begin with are not worth an uneven load.
        let is_worth = known.len() >= LONG || known.last().is_some_and(|known| known.is_whole);
        let bound = match is_worth {
            true => Bound { factor: self.config.load_factor, slack: self.config.load_slack },
            false => Bound { factor: 1.0, slack: 1 },
        };
        let known: Vec<u64> = known.iter().map(|known| known.servers).collect();
        let (server, way) = choose(&candidates, &known, chain.key(), bound)?;
        let is_busy = candidates[server].is_some_and(|candidate| candidate.rank == Rank::Busy);
        Some(Pick { server, way, is_busy })
    }

    /// Counts a request that is about to be sent.
    pub(super) fn begin(self: &Arc<Self>, pick: &Pick, chain: &Chain, is_first: bool) -> Running {
        let server = pick.server;
        let mut board = self.lock();
        board.outstanding[server] += 1;
        board.prefixes.record(chain, server);
        drop(board);
        if is_first {
            self.counts.affinity.get_or_create(&ByWay { result: pick.way.as_str() }).inc();
        }
        self.begin_plain(server, false)
    }

    /// Counts a request without a prompt.
    pub(super) fn begin_plain(self: &Arc<Self>, server: usize, is_new: bool) -> Running {
        if is_new {
            self.lock().outstanding[server] += 1;
        }
        let label = ByServer { upstream: self.servers[server].name.clone() };
        self.counts.requests.get_or_create(&label).inc();
        self.counts.outstanding.get_or_create(&label).inc();
        Running { front: Arc::clone(self), server, reason: "cancelled" }
    }

    /// A request came.
    pub(super) fn earn(&self) {
        self.lock().budget.earn();
    }

    /// Whether a request may be tried again.
    pub(super) fn may_retry(&self) -> bool {
        let may = self.lock().budget.spend();
        let count = if may { &self.counts.retries } else { &self.counts.refused_retries };
        count.inc();
        may
    }

    /// A server answered.
    pub(super) fn succeeded(&self, server: usize) {
        self.lock().health[server].request_succeeded();
    }

    /// A server failed a request.
    pub(super) fn failed(&self, server: usize, reason: String) {
        let (now, chance) = (self.environment.elapsed(), self.chance());
        self.change(server, Some(reason), |health| health.request_failed(now, &self.rhythm, chance));
        self.servers[server].due.notify_one();
    }

    /// A server wants no requests for a while.
    pub(super) fn defer(&self, server: usize, wait: Duration) {
        let now = self.environment.elapsed();
        self.lock().health[server].defer(now, wait);
    }

    /// The least time until a server with this model takes requests again.
    pub(super) fn shortest_wait(&self, model: &str) -> Option<Duration> {
        let now = self.environment.elapsed();
        let board = self.lock();
        let waits = (0..self.servers.len())
            .filter(|i| board.models[*i].contains_key(model) && board.health[*i].condition().is_usable())
            .map(|i| board.health[i].busy_for(now));
        waits.filter(|wait| !wait.is_zero()).min()
    }

    /// Changes what is known of a server, and tells of it.
    fn change(&self, server: usize, reason: Option<String>, change: impl FnOnce(&mut Health)) {
        let mut board = self.lock();
        let before = board.health[server].condition();
        change(&mut board.health[server]);
        let after = board.health[server].condition();
        if reason.is_some() || after == Condition::Healthy {
            board.reasons[server] = reason;
        }
        if after == before {
            return;
        }
        if after == Condition::Down {
            board.prefixes.forget(server);
        }
        let status = self.status(&board, server);
        drop(board);
        self.show_state(server, after);
        if after == Condition::Down {
            self.servers[server].gone.send_modify(|n| *n += 1);
        }
        // Each check of a server that stays down passes through `Probing`: no news.
        let is_news =
            after != Condition::Probing && !(before == Condition::Probing && after == Condition::Down);
        if is_news {
            let UpstreamStatus { name, reason, .. } = &status;
            tracing::info!(
                upstream = name,
                state = after.as_str(),
                reason = reason.as_deref(),
                "state changed"
            );
            if let Some(observer) = &self.config.observer {
                observer(UpstreamNews::Changed(&status));
            }
        }
    }

    fn show_state(&self, server: usize, condition: Condition) {
        for one in Condition::ALL {
            let label = ByState { upstream: self.servers[server].name.clone(), state: one.as_str() };
            self.counts.state.get_or_create(&label).set(i64::from(one == condition));
        }
    }

    fn status(&self, board: &Board, server: usize) -> UpstreamStatus {
        let Server { name, url, .. } = &self.servers[server];
        UpstreamStatus {
            name: name.clone(),
            url: url.clone(),
            condition: board.health[server].condition(),
            reason: board.reasons[server].clone(),
            models: board.models[server].keys().cloned().collect(),
        }
    }

    /// Checks all servers once, and tells how they are.
    pub(crate) async fn start(self: &Arc<Self>) {
        let mut checks = tokio::task::JoinSet::new();
        for server in 0..self.servers.len() {
            let front = Arc::clone(self);
            checks.spawn(async move { front.check(server).await });
        }
        while checks.join_next().await.is_some() {}
        if let Some(observer) = &self.config.observer {
            let board = self.lock();
            let all: Vec<_> = (0..self.servers.len()).map(|server| self.status(&board, server)).collect();
            drop(board);
            observer(UpstreamNews::Start(&all));
        }
    }

    /// Checks a server whenever that is due.
    pub(crate) async fn watch(self: Arc<Self>, server: usize) {
        loop {
            let due = self.lock().health[server].check_at();
            let wait = due.saturating_sub(self.environment.elapsed());
            if wait.is_zero() {
                self.check(server).await;
                continue;
            }
            tokio::select! {
                _ = tokio::time::sleep(wait) => {}
                _ = self.servers[server].due.notified() => {}
            }
        }
    }

    pub(crate) fn n_servers(&self) -> usize {
        self.servers.len()
    }

    async fn check(&self, server: usize) {
        self.change(server, None, Health::check_begins);
        let result = tokio::time::timeout(self.config.check_time, self.examine(server)).await;
        let result = result.unwrap_or_else(|_| Err("a check took too long".to_owned()));
        let (now, chance) = (self.environment.elapsed(), self.chance());
        match result {
            Ok(models) => {
                self.lock().models[server] = models;
                self.change(server, None, |health| health.check_passed(now, &self.rhythm, chance));
            }
            Err(reason) => {
                self.change(server, Some(reason), |health| health.check_failed(now, &self.rhythm, chance));
            }
        }
    }

    /// Whether a server is well, and its models.
    async fn examine(&self, server: usize) -> Result<BTreeMap<String, Box<RawValue>>, String> {
        #[derive(Deserialize)]
        struct List {
            data: Vec<Box<RawValue>>,
        }
        #[derive(Deserialize)]
        struct Entry {
            id: String,
        }
        let (status, _) = self.get(server, "/health").await?;
        // Not every server has this route.
        if !status.is_success() && !matches!(status.as_u16(), 404 | 405) {
            return Err(format!("/health answers {}", status.as_u16()));
        }
        let (status, body) = self.get(server, "/v1/models").await?;
        if !status.is_success() {
            return Err(format!("/v1/models answers {}", status.as_u16()));
        }
        let wrong = |_| "/v1/models answers with no list of models".to_owned();
        let list: List = serde_json::from_slice(&body).map_err(wrong)?;
        let entries = list.data.into_iter().map(|entry| {
            let Entry { id } = serde_json::from_str(entry.get()).map_err(wrong)?;
            Ok((id, entry))
        });
        entries.collect()
    }

    async fn get(&self, server: usize, path: &str) -> Result<(StatusCode, Bytes), String> {
        let Server { key, .. } = &self.servers[server];
        let mut request = Request::builder()
            .method(Method::GET)
            .uri(self.servers[server].uri(path))
            .header(header::VIA, format!("1.1 {}", self.id));
        if let Some(key) = key {
            request = request.header(header::AUTHORIZATION, key);
        }
        let request = request.body(Full::default()).map_err(|_| "its address is wrong".to_owned())?;
        let response = self.client.request(request).await.map_err(|error| describe(&error))?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, LIST_BYTES).collect().await;
        Ok((parts.status, body.map_err(|_| format!("{path} broke off"))?.to_bytes()))
    }
}

/// What went wrong with a call, with its causes.
pub(super) fn describe(error: &(dyn std::error::Error + 'static)) -> String {
    let mut out = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        out = format!("{out}: {error}");
        source = error.source();
    }
    out
}

/// A request that a server has not answered wholly.
pub(super) struct Running {
    front: Arc<Front>,
    pub(super) server: usize,
    reason: &'static str,
}

impl Running {
    /// When this is dropped, it will have ended for this reason.
    pub(super) fn set(&mut self, reason: &'static str) {
        self.reason = reason;
    }

    /// It has ended, for this reason.
    pub(super) fn end(mut self, reason: &'static str) {
        self.reason = reason;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let upstream = self.front.servers[self.server].name.clone();
        self.front.lock().outstanding[self.server] -= 1;
        let counts = &self.front.counts;
        counts.outstanding.get_or_create(&ByServer { upstream: upstream.clone() }).dec();
        counts.ended.get_or_create(&ByReason { upstream, reason: self.reason }).inc();
    }
}
