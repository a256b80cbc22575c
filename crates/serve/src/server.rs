use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::pin::pin;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use breakers_core::{ChatModel, ChatRequest, Embedder, Message, Prompt, Tokenizer};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::connection::Patient;
use crate::edge::Peer;
use crate::metrics::Metrics;
use crate::responses::Store;
use crate::state::{Health, Hosted, HostedEmbedder, Phase, Slots, State};
use crate::{Environment, Error, Result, ServeConfig, SystemEnvironment, edge, routes};

/// Time between tests of a model that does not answer.
const CANARY_TIME: Duration = Duration::from_secs(5);
/// The most bytes of a request's head.
const HEAD_BYTES: usize = 64 << 10;

/// Models over HTTP, in OpenAI's protocol.
///
/// HTTP runs on one thread; each text runs on a thread of its own, at most
/// [`Limits::max_texts`](crate::Limits::max_texts) at a time.
///
/// # Example
/// ```
/// use std::sync::Arc;
/// use breakers_core::ScriptedModel;
/// use breakers_serve::{ServeConfig, Server};
///
/// let mut config = ServeConfig::default();
/// config.address = "127.0.0.1:0".parse().unwrap();
/// let model = Arc::new(ScriptedModel::from_fn("test", |_| "Hello there.".into()));
/// let server = Server::new(config).with_model(model).spawn()?;
/// println!("http://{}/v1", server.address());
/// server.stop();
/// assert_eq!(server.join()?.n_cut, 0);
/// # Ok::<(), breakers_serve::Error>(())
/// ```
pub struct Server {
    config: ServeConfig,
    models: Vec<Arc<dyn ChatModel>>,
    embedders: Vec<(String, HostedEmbedder)>,
    #[cfg(feature = "registry")]
    registry: Option<Arc<crate::registry::Registry>>,
    #[cfg(feature = "upstreams")]
    upstreams: Option<crate::upstreams::UpstreamsConfig>,
    environment: Arc<dyn Environment>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("config", &self.config).finish_non_exhaustive()
    }
}

/// How a server ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ended {
    /// Connections that were cut off; 0 if all answers had ended.
    pub n_cut: usize,
}

impl Server {
    /// A server without models.
    pub fn new(config: ServeConfig) -> Self {
        let environment = Arc::new(SystemEnvironment::default());
        Self {
            config,
            models: Vec::new(),
            embedders: Vec::new(),
            #[cfg(feature = "registry")]
            registry: None,
            #[cfg(feature = "upstreams")]
            upstreams: None,
            environment,
        }
    }

    /// The same server with one more model, by the name on its card.
    pub fn with_model(mut self, model: Arc<dyn ChatModel>) -> Self {
        self.models.push(model);
        self
    }

    /// The same server with something that makes vectors. The tokenizer counts the tokens of inputs, and
    /// turns inputs that are tokens into text.
    pub fn with_embedder(
        mut self,
        id: impl Into<String>,
        embedder: Arc<dyn Embedder>,
        tokenizer: Arc<dyn Tokenizer>,
    ) -> Self {
        self.embedders.push((id.into(), HostedEmbedder::new(embedder, tokenizer)));
        self
    }

    /// The same server with the models of a registry, whose routes are then under `/admin`. When the server
    /// starts, what its aliases stand for is loaded.
    #[cfg(feature = "registry")]
    pub fn with_registry(mut self, registry: Arc<crate::registry::Registry>) -> Self {
        self.registry = Some(registry);
        self
    }

    /// A front: requests are passed on to other servers. It has no models of its own.
    #[cfg(feature = "upstreams")]
    pub fn with_upstreams(mut self, upstreams: crate::upstreams::UpstreamsConfig) -> Self {
        self.upstreams = Some(upstreams);
        self
    }

    /// The same server with other clocks and random numbers.
    pub fn with_environment(mut self, environment: Arc<dyn Environment>) -> Self {
        self.environment = environment;
        self
    }

    fn state(self) -> Result<State> {
        #[cfg(feature = "registry")]
        let registry = self.registry;
        #[cfg(feature = "registry")]
        let has_registry = registry.is_some();
        #[cfg(not(feature = "registry"))]
        let has_registry = false;
        #[cfg(feature = "upstreams")]
        let upstreams = self.upstreams;
        #[cfg(feature = "upstreams")]
        let is_front = upstreams.is_some();
        #[cfg(not(feature = "upstreams"))]
        let is_front = false;
        let Self { config, models, embedders, environment, .. } = self;
        config.validate()?;
        let has_models = !models.is_empty() || !embedders.is_empty() || has_registry;
        #[cfg(feature = "upstreams")]
        if is_front {
            #[cfg(feature = "batches")]
            let has_models = has_models || config.batches.is_some();
            if has_models {
                return Err(Error::MixedFront);
            }
        }
        if !has_models && !is_front {
            return Err(Error::NoModel);
        }
        let mut hosted = BTreeMap::new();
        for model in models {
            let id = model.card().id.clone();
            let model = Arc::new(Hosted::new(model));
            if !config.canary {
                model.set_health(Health::Good);
            }
            if hosted.insert(id.clone(), model).is_some() {
                return Err(Error::SameName { id });
            }
        }
        let mut vectors = BTreeMap::new();
        for (id, embedder) in embedders {
            if !config.canary {
                embedder.set_health(Health::Good);
            }
            if hosted.contains_key(&id) || vectors.insert(id.clone(), embedder).is_some() {
                return Err(Error::SameName { id });
            }
        }
        #[cfg(feature = "registry")]
        if let Some(registry) = &registry {
            let failed = |error: crate::registry::RegistryError| Error::Registry { source: Arc::new(error) };
            if let Some(id) = registry.reserve(hosted.keys().chain(vectors.keys())).map_err(failed)? {
                return Err(Error::SameName { id });
            }
            registry.start();
        }
        let slots = Arc::new(Slots::new(config.limits.max_texts, config.limits.max_waiting));
        let (phase, _) = watch::channel(Phase::Serving);
        let started = environment.unix_time();
        #[cfg_attr(not(feature = "upstreams"), expect(unused_mut, reason = "only fronts add to it"))]
        let mut metrics = Metrics::new();
        #[cfg(feature = "upstreams")]
        let front = match upstreams {
            Some(upstreams) => {
                let front = Arc::new(crate::upstreams::Front::new(upstreams, Arc::clone(&environment))?);
                front.register(metrics.registry_mut());
                Some(front)
            }
            None => None,
        };
        let responses = Store::new(config.limits.stored_responses, config.limits.stored_bytes);
        #[cfg(feature = "batches")]
        let batches = config.batches.as_ref().map(crate::batches::Batches::open).transpose()?.map(Arc::new);
        Ok(State {
            config,
            models: hosted,
            embedders: vectors,
            #[cfg(feature = "registry")]
            registry,
            slots,
            responses,
            metrics,
            environment,
            phase,
            started,
            #[cfg(feature = "upstreams")]
            front,
            #[cfg(feature = "batches")]
            batches,
        })
    }

    /// Serves on a thread of its own, until the handle stops it or is dropped.
    ///
    /// # Errors
    /// [`Error`], if the server cannot start.
    pub fn spawn(self) -> Result<ServerHandle> {
        let state = Arc::new(self.state()?);
        let runtime = runtime(&state)?;
        let listener = listen(&runtime, state.config.address)?;
        let address = address_of(&listener, &state)?;
        #[cfg(feature = "upstreams")]
        if let Some(front) = &state.front {
            runtime.block_on(front.start());
        }
        let inside = Arc::clone(&state);
        let serve = move || {
            let ended = runtime.block_on(serve(Arc::clone(&inside), listener));
            inside.finish();
            // Threads of texts that are cut off may still be in a pass; they are not waited for.
            runtime.shutdown_background();
            ended
        };
        let thread = std::thread::Builder::new().name("breakers-serve".to_owned()).spawn(serve);
        let thread = thread.map_err(|source| Error::Setup { what: "a thread", source: Arc::new(source) })?;
        Ok(ServerHandle { address, state, thread: Some(thread) })
    }

    /// Serves on this thread until the program is asked to end, by Ctrl-C or SIGTERM: then no connection is
    /// accepted anymore, and running answers have [`Limits::drain_time`](crate::Limits::drain_time) to end. A
    /// second request to end cuts them off. `on_start` learns the address.
    ///
    /// # Errors
    /// [`Error`], if the server cannot start.
    pub fn run(self, on_start: impl FnOnce(SocketAddr)) -> Result<Ended> {
        let state = Arc::new(self.state()?);
        let runtime = runtime(&state)?;
        let listener = listen(&runtime, state.config.address)?;
        let address = address_of(&listener, &state)?;
        let ended = runtime.block_on(async {
            watch_signals(&state)?;
            #[cfg(feature = "upstreams")]
            if let Some(front) = &state.front {
                front.start().await;
            }
            on_start(address);
            Ok(serve(Arc::clone(&state), listener).await)
        });
        state.finish();
        runtime.shutdown_background();
        ended
    }
}

/// A server that runs on a thread of its own. Dropping it ends the server at once.
pub struct ServerHandle {
    address: SocketAddr,
    state: Arc<State>,
    thread: Option<JoinHandle<Ended>>,
}

impl std::fmt::Debug for ServerHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerHandle").field("address", &self.address).finish_non_exhaustive()
    }
}

impl ServerHandle {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops it as the first signal does: running answers may end.
    pub fn stop(&self) {
        advance(&self.state.phase, Phase::Draining);
    }

    /// Stops it as the second signal does: at once.
    pub fn cut(&self) {
        advance(&self.state.phase, Phase::Ending);
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// [`Error::Panicked`].
    pub fn join(mut self) -> Result<Ended> {
        match self.thread.take() {
            Some(thread) => thread.join().map_err(|_| Error::Panicked),
            None => Err(Error::Panicked),
        }
    }
}

impl Drop for ServerHandle {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.cut();
            let _ = thread.join();
        }
    }
}

/// Moves on to a later phase.
fn advance(phase: &watch::Sender<Phase>, to: Phase) {
    phase.send_if_modified(|now| {
        let is_later = to > *now;
        *now = to.max(*now);
        is_later
    });
}

fn runtime(state: &State) -> Result<Runtime> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    // One thread for each text that runs or pauses, one for tests of models, and some for what else there is.
    let n_threads = state.config.limits.max_texts.saturating_mul(2).saturating_add(1);
    #[cfg(feature = "registry")]
    let n_threads = n_threads.saturating_add(crate::registry::MAX_ADMIN);
    #[cfg(feature = "batches")]
    let n_threads = n_threads.saturating_add(crate::batches::N_THREADS);
    builder.enable_all().max_blocking_threads(n_threads);
    builder.build().map_err(|source| Error::Setup { what: "the HTTP thread", source: Arc::new(source) })
}

fn listen(runtime: &Runtime, address: SocketAddr) -> Result<TcpListener> {
    runtime
        .block_on(TcpListener::bind(address))
        .map_err(|source| Error::Listen { address, source: Arc::new(source) })
}

fn address_of(listener: &TcpListener, state: &State) -> Result<SocketAddr> {
    let address = state.config.address;
    listener.local_addr().map_err(|source| Error::Listen { address, source: Arc::new(source) })
}

/// Each signal to end moves the server on by a phase.
fn watch_signals(state: &Arc<State>) -> Result<()> {
    let failed = |source| Error::Setup { what: "signals", source: Arc::new(source) };
    #[cfg(unix)]
    let mut terminate =
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).map_err(failed)?;
    #[cfg(unix)]
    let mut interrupt =
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt()).map_err(failed)?;
    #[cfg(not(unix))]
    let _ = failed;
    let state = Arc::clone(state);
    tokio::spawn(async move {
        for phase in [Phase::Draining, Phase::Ending] {
            #[cfg(unix)]
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            #[cfg(not(unix))]
            if tokio::signal::ctrl_c().await.is_err() {
                return;
            }
            advance(&state.phase, phase);
        }
    });
    Ok(())
}

/// Accepts connections until the server stops, then waits for them.
async fn serve(state: Arc<State>, listener: TcpListener) -> Ended {
    let checks = axum::middleware::from_fn_with_state(Arc::clone(&state), edge::pass);
    let router = routes::router(Arc::clone(&state)).layer(checks);
    if state.config.canary {
        tokio::spawn(test_models(Arc::clone(&state)));
    }
    #[cfg(feature = "upstreams")]
    if let Some(front) = &state.front {
        for server in 0..front.n_servers() {
            tokio::spawn(Arc::clone(front).watch(server));
        }
    }
    #[cfg(feature = "batches")]
    tokio::spawn(crate::batches::dispatch(Arc::clone(&state)));
    let limit = state.config.limits.max_connections;
    let connections = Arc::new(Semaphore::new(limit));
    // Closed when all connections have ended, each of which holds a sender.
    let (open, mut closed) = mpsc::channel::<()>(1);
    let mut phase = state.phase.subscribe();
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &connections) => accepted,
            _ = phase.wait_for(|phase| *phase != Phase::Serving) => break,
        };
        let Some((stream, peer, permit)) = accepted else { continue };
        let connection = converse(Arc::clone(&state), stream, peer, router.clone(), state.phase.subscribe());
        let open = open.clone();
        tokio::spawn(async move {
            connection.await;
            drop((permit, open));
        });
    }
    drop((listener, open));
    tokio::select! {
        _ = closed.recv() => return Ended { n_cut: 0 },
        _ = tokio::time::sleep(state.config.limits.drain_time) => advance(&state.phase, Phase::Ending),
        _ = phase.wait_for(|phase| *phase == Phase::Ending) => {}
    }
    let n_cut = limit - connections.available_permits();
    // Streams learn that they are cut off, if their clients read that soon.
    let _ = tokio::time::timeout(Duration::from_millis(500), closed.recv()).await;
    Ended { n_cut }
}

/// The next connection, as soon as there is room for it; `None` if accepting one failed.
async fn accept(
    listener: &TcpListener,
    connections: &Arc<Semaphore>,
) -> Option<(TcpStream, Peer, tokio::sync::OwnedSemaphorePermit)> {
    let permit = Arc::clone(connections).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, address)) => Some((stream, Peer(address), permit)),
        Err(error) => {
            tracing::warn!(%error, "a connection was not accepted");
            // Out of file descriptors, for example: that does not change at once.
            tokio::time::sleep(Duration::from_millis(50)).await;
            None
        }
    }
}

/// Serves one connection.
async fn converse(
    state: Arc<State>,
    stream: TcpStream,
    peer: Peer,
    router: Router,
    mut phase: watch::Receiver<Phase>,
) {
    // Events are small and must not wait for each other.
    let _ = stream.set_nodelay(true);
    let limits = &state.config.limits;
    let io = TokioIo::new(Patient::new(stream, limits.write_time));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits.head_time).max_buf_size(HEAD_BYTES);
    let router = TowerToHyperService::new(router);
    let service = hyper::service::service_fn(move |mut request| {
        let extensions: &mut hyper::http::Extensions = hyper::Request::extensions_mut(&mut request);
        extensions.insert(peer);
        hyper::service::Service::call(&router, request)
    });
    let mut connection = pin!(http.serve_connection(io, service));
    tokio::select! {
        result = connection.as_mut() => return report(result),
        _ = phase.wait_for(|phase| *phase != Phase::Serving) => connection.as_mut().graceful_shutdown(),
    }
    report(connection.await);
}

fn report(result: hyper::Result<()>) {
    if let Err(error) = result {
        tracing::debug!(%error, "a connection ended early");
    }
}

/// Asks each model that is not known to be well for one token or vector, again and again.
async fn test_models(state: Arc<State>) {
    let mut phase = state.phase.subscribe();
    loop {
        for hosted in state.hosted().into_iter().filter(|hosted| hosted.health() != Health::Good) {
            test(move || hosted.set_health(health_of(answers(&*hosted.model)))).await;
        }
        for (id, hosted) in state.embedders.iter().filter(|(_, hosted)| hosted.health() != Health::Good) {
            let (id, hosted) = (id.clone(), hosted.clone());
            test(move || hosted.set_health(health_of(makes_vectors(&id, &*hosted.embedder)))).await;
        }
        tokio::select! {
            _ = tokio::time::sleep(CANARY_TIME) => {}
            _ = phase.wait_for(|phase| *phase != Phase::Serving) => return,
        }
    }
}

/// Runs a test on a thread that may wait.
async fn test(work: impl FnOnce() + Send + 'static) {
    let (done, is_done) = oneshot::channel();
    tokio::task::spawn_blocking(move || {
        work();
        let _ = done.send(());
    });
    let _ = is_done.await;
}

fn health_of(is_well: bool) -> Health {
    if is_well { Health::Good } else { Health::Bad }
}

/// Whether an embedder makes a vector as it should be.
fn makes_vectors(id: &str, embedder: &dyn Embedder) -> bool {
    match embedder.embed(&["Hello"]) {
        Ok(vectors) => {
            let is_vector = |vector: &Vec<f32>| {
                vector.len() == embedder.dimension() && vector.iter().all(|x| x.is_finite())
            };
            let is_well = vectors.len() == 1 && vectors.iter().all(is_vector);
            if !is_well {
                tracing::warn!(model = id, "the model's vectors are not what they should be");
            }
            is_well
        }
        Err(error) => {
            tracing::warn!(model = id, %error, "the model does not answer");
            false
        }
    }
}

/// Whether a model answers at all.
fn answers(model: &dyn ChatModel) -> bool {
    let prompt: Prompt = match model.card().capabilities.chat {
        true => Message::user("Hello").into(),
        false => "Hello".into(),
    };
    let request = ChatRequest::new(prompt).with_max_tokens(1);
    let result = model.chat(&request, &mut |_| ControlFlow::Continue(()));
    if let Err(error) = &result {
        tracing::warn!(model = %model.card().id, %error, "the model does not answer");
    }
    result.is_ok()
}
