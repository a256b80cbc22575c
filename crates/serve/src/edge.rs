//! What every request passes before its route: who calls, and from where.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State as Shared};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use crate::api_error::{ApiError, Code};
use crate::environment::new_id;
use crate::keys::{Key, Visit};
use crate::state::{Phase, State};

/// The address at the other end of a request's connection.
#[derive(Clone, Copy)]
pub(crate) struct Peer(pub(crate) SocketAddr);

/// Who sent a request; nobody in particular if the server has no keys.
#[derive(Clone, Default)]
pub(crate) struct Caller {
    key: Option<Arc<Key>>,
    #[cfg_attr(not(feature = "registry"), expect(dead_code, reason = "only the registry has such routes"))]
    may_administer: bool,
}

impl Caller {
    /// Whether the caller may use a model. One that it may not use does not exist for it.
    pub(crate) fn check_model(&self, model: &str) -> Result<(), ApiError> {
        let is_allowed = self.key.as_ref().is_none_or(|key| key.allows(model));
        if is_allowed { Ok(()) } else { Err(ApiError::no_model(model)) }
    }

    /// Whose requests these are; empty without keys.
    pub(crate) fn tenant(&self) -> &str {
        self.key.as_ref().map_or("", |key| &key.tenant)
    }

    /// Whether the caller may see and change what is behind the names of models.
    #[cfg(feature = "registry")]
    pub(crate) fn check_admin(&self) -> Result<(), ApiError> {
        if self.may_administer {
            return Ok(());
        }
        let message = match &self.key {
            Some(_) => "this key may not use routes under /admin: it lacks `admin = true`",
            None => "without keys, routes under /admin are for programs on this machine",
        };
        Err(ApiError::forbidden("admin_only", message))
    }

    /// Counts a request against the caller's limits.
    pub(crate) fn visit(&self, now: Duration) -> Result<Option<Visit>, ApiError> {
        let Some(key) = &self.key else { return Ok(None) };
        key.visit(now).map(Some).map_err(|exceeded| {
            let message = format!("the limit of {} for {} is reached", exceeded.what, key.tenant);
            ApiError::rate_limited(message, exceeded.retry_after)
        })
    }
}

/// Checks a request, passes it on, and names it in the answer.
pub(crate) async fn pass(Shared(state): Shared<Arc<State>>, mut request: Request, next: Next) -> Response {
    let id = new_id(&*state.environment, "req_");
    let mut response = match check(&state, &request) {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(error) => error.into_response(),
    };
    let status = response.status();
    if status.is_client_error() || status.is_server_error() {
        let code = response.extensions().get::<Code>().map_or("none", |code| code.0);
        state.metrics.refuse(status.as_u16(), code);
    }
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&id) {
        // A server behind a front has named it already.
        headers.entry("x-request-id").or_insert(id);
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn check(state: &State, request: &Request) -> Result<Caller, ApiError> {
    let headers = request.headers();
    let config = &state.config;
    let host = headers.get(header::HOST).map(HeaderValue::as_bytes);
    let is_checked = config.keys.is_none() || config.address.ip().is_loopback();
    if let (true, Some(host)) = (is_checked, host)
        && !is_own_host(host, &config.hosts)
    {
        return Err(ApiError::forbidden("host_not_allowed", "this server is not known by that name"));
    }
    // Pages of other sites may send requests here, but not have them answered.
    if let Some(origin) = headers.get(header::ORIGIN) {
        let authority =
            origin.as_bytes().splitn(2, |&byte| byte == b'/').nth(1).and_then(|rest| rest.strip_prefix(b"/"));
        if authority.is_none() || authority != host {
            return Err(ApiError::forbidden(
                "origin_not_allowed",
                "requests from other sites are not allowed",
            ));
        }
    }
    let path = request.uri().path();
    let is_open = matches!(path, "/" | "/health" | "/ready");
    let caller = match &config.keys {
        Some(keys) if !is_open => {
            let key = presented(headers).ok_or_else(|| ApiError::no_key("an API key is needed"))?;
            let key = keys.find(key).ok_or_else(|| ApiError::no_key("the API key is wrong"))?;
            Caller { key: Some(Arc::clone(key)), may_administer: key.is_admin }
        }
        Some(_) => Caller::default(),
        None => Caller { key: None, may_administer: is_from_here(request) },
    };
    let needs_models = path.starts_with("/v1/") || path.starts_with("/admin/");
    if state.phase() != Phase::Serving && needs_models {
        return Err(ApiError::stopping());
    }
    Ok(caller)
}

/// Whether a request comes from a program on this machine, and from no proxy.
fn is_from_here(request: &Request) -> bool {
    let is_passed_on = ["forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip"]
        .iter()
        .any(|name| request.headers().contains_key(*name));
    let peer = request.extensions().get::<Peer>();
    !is_passed_on && peer.is_some_and(|Peer(address)| address.ip().to_canonical().is_loopback())
}

/// The key that a client sends, in any of the three customary headers.
fn presented(headers: &HeaderMap) -> Option<&str> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let bearer = text("authorization").and_then(|value| {
        let (scheme, key) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(key.trim())
    });
    bearer.or_else(|| text("api-key")).or_else(|| text("x-api-key"))
}

/// Whether a `Host` header names this machine: `localhost`, an IP address, or a name that was allowed. A name
/// of another site that was pointed here does not.
fn is_own_host(host: &[u8], allowed: &[String]) -> bool {
    let Ok(host) = std::str::from_utf8(host) else { return false };
    let name = match host.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, _)) => address,
            None => return false,
        },
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    let is_local = name.eq_ignore_ascii_case("localhost");
    is_local || name.parse::<IpAddr>().is_ok() || allowed.iter().any(|one| one.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        let allowed = ["models.example".to_owned()];
        for host in
            ["localhost", "LocalHost:80", "127.0.0.1:8080", "[::1]:8080", "10.0.0.7", "Models.Example:1"]
        {
            assert!(is_own_host(host.as_bytes(), &allowed), "{host}");
        }
        for host in
            ["evil.example", "localhost.evil.example:80", "127.0.0.1.evil.example", "[::1", "", "\u{e9}"]
        {
            assert!(!is_own_host(host.as_bytes(), &allowed), "{host}");
        }
    }

    #[test]
    fn keys_come_in_three_headers() {
        let found = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_str(value).unwrap());
            presented(&headers).map(str::to_owned)
        };
        assert_eq!(found("authorization", "Bearer abc").as_deref(), Some("abc"));
        assert_eq!(found("authorization", "bearer  abc").as_deref(), Some("abc"));
        assert_eq!(found("authorization", "Basic abc"), None);
        assert_eq!(found("api-key", "abc").as_deref(), Some("abc"));
        assert_eq!(found("x-api-key", "abc").as_deref(), Some("abc"));
    }
}
