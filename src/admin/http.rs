//! The HTTP side of the admin port: what monitoring needs without a password. Everything else is to come here as routes.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde_json::json;
use tokio::time::timeout;

use super::control::Control;
use super::io::{Stream, say_and_close};
use super::{MESSAGE_LEN_MAX, STARTUP_TIMEOUT};

/// A connection ends after this long, whatever it does: a peer that reads nothing must not keep its place for ever.
const CONNECTION_MAX: Duration = Duration::from_secs(15 * 60);
/// Then, to finish the response in progress.
const GRACE: Duration = Duration::from_secs(5);

/// Serves one connection to its end. A request's head must come within [`STARTUP_TIMEOUT`], from the end of the last one.
pub(crate) async fn run(stream: impl Stream + 'static, control: Arc<dyn Control>) {
    let service = TowerToHyperService::new(router(control));
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(STARTUP_TIMEOUT).max_buf_size(MESSAGE_LEN_MAX);
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = match timeout(CONNECTION_MAX, connection.as_mut()).await {
        Ok(ended) => ended,
        Err(_) => {
            connection.as_mut().graceful_shutdown();
            timeout(GRACE, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "admin http: connection");
    }
}

/// Refuses a connection above the limit.
pub(crate) async fn refuse(stream: Box<dyn Stream>) {
    let response =
        b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nconnection: close\r\n\
                     content-length: 32\r\n\r\n{\"error\":\"too many connections\"}";
    say_and_close(stream, response).await;
}

/// Refuses a connection without TLS where it is demanded.
pub(crate) async fn refuse_plain(stream: Box<dyn Stream>) {
    let response = b"HTTP/1.1 403 Forbidden\r\ncontent-type: application/json\r\nconnection: close\r\n\
                     content-length: 40\r\n\r\n{\"error\":\"TLS is needed: use https://\"}\n";
    say_and_close(stream, response).await;
}

fn router(control: Arc<dyn Control>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        // The dashboard and /api/v1 go here, behind the password and the checks of Host and Origin.
        .fallback(async || error(StatusCode::NOT_FOUND, "not found"))
        .method_not_allowed_fallback(async || error(StatusCode::METHOD_NOT_ALLOWED, "method not allowed"))
        .layer(DefaultBodyLimit::max(MESSAGE_LEN_MAX))
        .with_state(control)
}

async fn metrics(State(control): State<Arc<dyn Control>>) -> Response {
    let text = control.metrics();
    // The end mark is what tells the newer format from the older.
    let kind = if text.trim_end().ends_with("# EOF") {
        "application/openmetrics-text; version=1.0.0; charset=utf-8"
    } else {
        "text/plain; version=0.0.4; charset=utf-8"
    };
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

/// Not ready means that connecting now is in vain. PostgreSQL being full, or usage unknown, is not that: clients queue, protected lanes
/// pass, and a balancer that takes the only pgweir away makes it worse.
async fn readyz(State(control): State<Arc<dyn Control>>) -> Response {
    let process = control.process();
    if process.state == "draining" {
        return error(StatusCode::SERVICE_UNAVAILABLE, "pgweir is draining");
    }
    if process.upstream.starts_with("down") {
        return error(StatusCode::SERVICE_UNAVAILABLE, &format!("upstream is {}", process.upstream));
    }
    "ready\n".into_response()
}

fn error(status: StatusCode, text: &str) -> Response {
    (status, Json(json!({ "error": text }))).into_response()
}
