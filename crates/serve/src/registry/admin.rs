//! The routes under `/admin`: what models there are, and changes to them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::extract::{Path, Request, State as Shared};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{delete, get, post};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use super::{Canary, ModelRoute, NewVersion, Registry, RegistryError, ShadowRow, Share};
use crate::answer;
use crate::api_error::ApiError;
use crate::edge::Caller;
use crate::routes::{json, read_body};
use crate::state::State;

type Answer = Result<Response, ApiError>;

/// How many of these requests work at a time; further ones wait. Each takes a thread.
pub(crate) const MAX_ADMIN: usize = 4;

static PLACES: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(MAX_ADMIN)));

/// The routes, without the checks that come before all routes.
pub(crate) fn routes() -> Router<Arc<State>> {
    Router::new()
        .route("/admin/models", get(models))
        .route("/admin/models/{alias}", delete(retire))
        .route("/admin/models/{alias}/history", get(history))
        .route("/admin/models/{alias}/deploy", post(deploy))
        .route("/admin/models/{alias}/rollback", post(rollback))
        .route("/admin/models/{alias}/weights", post(weights))
        .route("/admin/models/{alias}/shadow", post(shadow))
        .route("/admin/versions", get(versions).post(register))
        .route("/admin/versions/{version}", get(version))
        .route("/admin/versions/{version}/canary", post(canary))
        .route("/admin/usage", get(usage))
}

impl From<RegistryError> for ApiError {
    fn from(error: RegistryError) -> Self {
        use RegistryError::*;
        let (status, code, param) = match &error {
            NoVersion { .. } => (StatusCode::NOT_FOUND, "version_not_found", Some("version")),
            NoAlias { .. } => (StatusCode::NOT_FOUND, "model_not_found", Some("model")),
            Ambiguous { .. } => (StatusCode::BAD_REQUEST, "invalid_value", Some("version")),
            Parameter { name, .. } => (StatusCode::BAD_REQUEST, "invalid_value", Some(*name)),
            Outside { .. } | Read { .. } => (StatusCode::BAD_REQUEST, "file_not_readable", Some("path")),
            Taken { .. } => (StatusCode::CONFLICT, "name_taken", Some("model")),
            NothingBefore { .. } => (StatusCode::CONFLICT, "nothing_to_roll_back", None),
            Conflict { .. } => (StatusCode::CONFLICT, "changed_meanwhile", Some("expect")),
            Invalid { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "invalid_file", Some("path")),
            Changed { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "file_changed", Some("version")),
            Load { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "load_failed", Some("version")),
            Canary { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "canary_failed", Some("version")),
            Database(_) | Row { .. } | Thread { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "failed", None),
        };
        let api = ApiError::registry(status, code, error.to_string());
        // Trying again loads the same file again, or meets the same state.
        let is_final = matches!(status, StatusCode::CONFLICT | StatusCode::UNPROCESSABLE_ENTITY);
        ApiError { param: param.map(str::to_owned), is_final, ..api }
    }
}

/// Checks who calls, reads the body, and works on a thread that may wait.
async fn work<B: DeserializeOwned + Send + 'static, R: Serialize + Send + 'static>(
    state: &Arc<State>,
    request: Request,
    work: impl FnOnce(&Registry, B) -> Result<R, RegistryError> + Send + 'static,
) -> Answer {
    let (parts, body) = request.into_parts();
    parts.extensions.get::<Caller>().cloned().unwrap_or_default().check_admin()?;
    let registry = state.registry.clone().ok_or_else(|| ApiError::failed("there is no registry"))?;
    let body = read_body(state, body).await?;
    let body = if body.iter().all(u8::is_ascii_whitespace) { &b"{}"[..] } else { &body };
    let body: B = serde_json::from_slice(body).map_err(|error| ApiError::body(error.to_string()))?;
    let place = Arc::clone(&PLACES).acquire_owned().await.map_err(|_| ApiError::stopping())?;
    let done = tokio::task::spawn_blocking(move || {
        let _place = place;
        work(&registry, body).map(|result| answer::json(&result))
    });
    let text = done.await.map_err(|_| ApiError::failed("the registry panicked"))??;
    Ok(json(text))
}

/// A body that says nothing.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

fn name(path: Result<Path<String>, axum::extract::rejection::PathRejection>) -> Result<String, ApiError> {
    path.map(|Path(name)| name).map_err(|error| ApiError::body(error.to_string()))
}

type Name = Result<Path<String>, axum::extract::rejection::PathRejection>;

#[derive(Serialize)]
struct List<T> {
    object: &'static str,
    data: Vec<T>,
}

impl<T> List<T> {
    fn new(data: Vec<T>) -> Self {
        Self { object: "list", data }
    }
}

/// An alias as it is shown.
#[derive(Serialize)]
struct WireAlias {
    #[serde(flatten)]
    route: ModelRoute,
    /// Why this server is not in that state, if so.
    #[serde(skip_serializing_if = "Option::is_none")]
    behind: Option<String>,
    /// How versions asked in secret compare, those of the past included.
    shadows: Vec<ShadowRow>,
}

async fn models(Shared(state): Shared<Arc<State>>, request: Request) -> Answer {
    work(&state, request, |registry, Nothing {}| {
        let shadows = registry.shadows()?;
        let mut behind = registry.behind();
        let aliases = registry.routes()?.into_iter().map(|route| {
            let behind = behind.remove(&route.alias).filter(|behind| behind.route == route.id);
            let shadows = shadows.iter().filter(|row| row.alias == route.alias).cloned().collect();
            WireAlias { route, behind: behind.map(|behind| behind.reason), shadows }
        });
        Ok(List::new(aliases.collect()))
    })
    .await
}

async fn history(Shared(state): Shared<Arc<State>>, alias: Name, request: Request) -> Answer {
    let alias = name(alias)?;
    work(&state, request, move |registry, Nothing {}| Ok(List::new(registry.history(&alias)?))).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Deploy {
    version: String,
    expect: Option<i64>,
}

async fn deploy(Shared(state): Shared<Arc<State>>, alias: Name, request: Request) -> Answer {
    let alias = name(alias)?;
    work(&state, request, move |registry, Deploy { version, expect }| {
        registry.deploy(&alias, &version, expect)
    })
    .await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rollback {
    expect: Option<i64>,
}

async fn rollback(Shared(state): Shared<Arc<State>>, alias: Name, request: Request) -> Answer {
    let alias = name(alias)?;
    work(&state, request, move |registry, Rollback { expect }| registry.rollback(&alias, expect)).await
}

async fn retire(Shared(state): Shared<Arc<State>>, alias: Name, request: Request) -> Answer {
    let alias = name(alias)?;
    // In the query, since clients send no body with this method.
    let [expect] = query(&request, ["expect"])?;
    let wrong = |_| ApiError::field("expect", "`expect`: it is no number");
    let expect = expect.map(|value| value.parse()).transpose().map_err(wrong)?;
    work(&state, request, move |registry, Nothing {}| registry.retire(&alias, expect)).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Weights {
    weights: BTreeMap<String, u32>,
    expect: Option<i64>,
}

async fn weights(Shared(state): Shared<Arc<State>>, alias: Name, request: Request) -> Answer {
    let alias = name(alias)?;
    work(&state, request, move |registry, Weights { weights, expect }| {
        let shares: Vec<Share> =
            weights.into_iter().map(|(version, weight)| Share::new(version, weight)).collect();
        registry.set_weights(&alias, &shares, expect)
    })
    .await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ShadowOf {
    /// Null ends it.
    #[serde(deserialize_with = "given")]
    version: Option<String>,
    expect: Option<i64>,
}

/// A field that may be null, but must be there.
fn given<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Option::deserialize(deserializer)
}

async fn shadow(Shared(state): Shared<Arc<State>>, alias: Name, request: Request) -> Answer {
    let alias = name(alias)?;
    work(&state, request, move |registry, ShadowOf { version, expect }| {
        registry.set_shadow(&alias, version.as_deref(), expect)
    })
    .await
}

async fn versions(Shared(state): Shared<Arc<State>>, request: Request) -> Answer {
    work(&state, request, |registry, Nothing {}| Ok(List::new(registry.versions()?))).await
}

async fn version(Shared(state): Shared<Arc<State>>, wanted: Name, request: Request) -> Answer {
    let wanted = name(wanted)?;
    work(&state, request, move |registry, Nothing {}| registry.version(&wanted)).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Register {
    path: PathBuf,
    license: Option<String>,
    parent: Option<String>,
    method: Option<String>,
    canary: Option<Canary>,
}

async fn register(Shared(state): Shared<Arc<State>>, request: Request) -> Answer {
    let (sender, refused) = std::sync::mpsc::channel();
    let answer = work(&state, request, move |registry, body: Register| {
        let Register { path, license, parent, method, canary } = body;
        let result = registry.register(&NewVersion { path, license, parent, method, canary });
        match result {
            // The findings are the answer, under another status.
            Err(error @ RegistryError::Invalid { .. }) => {
                if let RegistryError::Invalid { version, .. } = &error {
                    let _ = sender.send(registry.version(version)?);
                }
                Err(error)
            }
            other => other,
        }
    })
    .await;
    match (answer, refused.try_recv()) {
        (Err(error), Ok(version)) => {
            #[derive(Serialize)]
            struct Refused {
                #[serde(flatten)]
                error: serde_json::Value,
                version: super::Version,
            }
            let status = error.status;
            let value = serde_json::from_str(&error.to_json()).unwrap_or_default();
            let mut response = json(answer::json(&Refused { error: value, version }));
            *response.status_mut() = status;
            Ok(response)
        }
        (answer, _) => answer,
    }
}

async fn canary(Shared(state): Shared<Arc<State>>, wanted: Name, request: Request) -> Answer {
    let wanted = name(wanted)?;
    work(&state, request, move |registry, canary: Canary| registry.set_canary(&wanted, &canary)).await
}

/// The values of these fields of the query.
///
/// # Errors
/// Other fields.
fn query<const N: usize>(request: &Request, names: [&str; N]) -> Result<[Option<String>; N], ApiError> {
    let mut values = [const { None }; N];
    let query = request.uri().query().unwrap_or_default();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        let Some(place) = names.iter().position(|known| *known == name) else {
            let message = format!("`{name:.40}` is none of {}", names.join(", "));
            return Err(ApiError::field(name.into_owned(), message));
        };
        values[place] = Some(value.into_owned());
    }
    Ok(values)
}

async fn usage(Shared(state): Shared<Arc<State>>, request: Request) -> Answer {
    let [since, tenant, model] = query(&request, ["since", "tenant", "model"])?;
    let wrong = |_| ApiError::field("since", "`since`: it is no number of seconds since 1970");
    let since = since.map_or(Ok(0), |value| value.parse()).map_err(wrong)?;
    work(&state, request, move |registry, Nothing {}| {
        Ok(List::new(registry.usage(since, tenant.as_deref(), model.as_deref())?))
    })
    .await
}
