//! The HTTP side of the admin port: page, JSON API, events, and what monitoring needs without a password. docs/api.md is its contract.
//!
//! Everything shown is the console's own read model (`admin::view`), every change one of the console's commands: console, CLI and page
//! cannot disagree. `door` decides who may ask, `read` and `write` hold the routes, `events` the stream, `page` what a browser loads.
//! Pure: `origin`, `credentials`.
//!
//! Bounds: a head within [`STARTUP_TIMEOUT`] and [`MESSAGE_LEN_MAX`] bytes, a body within [`write::BODY_LEN_MAX`] and as long; a peer that
//! reads nothing for [`WRITE_TIMEOUT`] is left; a connection ends after [`CONNECTION_MAX`]; rates in `door`; streams in `events`.

pub mod credentials;
mod door;
mod events;
pub mod origin;
mod page;
mod read;
mod reply;
mod write;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_io_timeout::TimeoutStream;

use super::control::Control;
use super::io::{Stream, WRITE_TIMEOUT, say_and_close};
use super::places::Place;
use super::{AdminUser, MESSAGE_LEN_MAX, STARTUP_TIMEOUT};
use door::{PENALTIES_MAX, Rates};
use events::Feed;
use reply::error;

/// A connection ends after this long, whatever it does: a peer that reads nothing must not keep its place for ever.
const CONNECTION_MAX: Duration = Duration::from_secs(15 * 60);
/// Then, to finish the response in progress.
const GRACE: Duration = Duration::from_secs(5);

/// What all connections share.
pub(crate) struct Site {
    control: Arc<dyn Control>,
    users: Vec<AdminUser>,
    /// Names under which the port may be reached, besides addresses and localhost.
    hosts: Arc<ArcSwap<Vec<String>>>,
    rates: Rates,
    /// Wrong passwords that have not been paid for yet.
    penalties: Arc<Semaphore>,
    feed: Arc<Feed>,
}

impl Site {
    pub(crate) fn new(
        control: Arc<dyn Control>,
        users: Vec<AdminUser>,
        hosts: Arc<ArcSwap<Vec<String>>>,
    ) -> Self {
        let feed = Arc::new(Feed::new(Arc::clone(&control)));
        Self {
            control,
            users,
            hosts,
            rates: Rates::default(),
            penalties: Arc::new(Semaphore::new(PENALTIES_MAX)),
            feed,
        }
    }
}

/// What a request is told of the connection it came by.
#[derive(Clone)]
struct Connection {
    peer: SocketAddr,
    places: Arc<[Place]>,
}

impl Connection {
    /// Whether it keeps its places while others want some.
    fn settle(&self, settled: bool) {
        self.places.iter().for_each(|place| place.settle(settled));
    }

    /// Whether somebody has shown a password on it.
    fn is_settled(&self) -> bool {
        self.places.iter().all(Place::is_settled)
    }
}

/// Serves one connection to its end. A request's head must come within [`STARTUP_TIMEOUT`], from the end of the last one.
pub(crate) async fn run(stream: impl Stream + 'static, router: Router, peer: SocketAddr, places: Vec<Place>) {
    let connection = Connection { peer, places: places.into() };
    let places = Arc::clone(&connection.places);
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(connection.clone());
        router.call(request)
    });
    let mut stream = Box::pin(TimeoutStream::new(stream));
    stream.as_mut().set_write_timeout_pinned(Some(WRITE_TIMEOUT));
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(STARTUP_TIMEOUT).max_buf_size(MESSAGE_LEN_MAX);
    let mut served = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    let taken = futures_util::future::select_all(places.iter().map(|place| Box::pin(place.taken())));
    let ended = tokio::select! {
        ended = timeout(CONNECTION_MAX, served.as_mut()) => ended,
        _ = taken => return,
    };
    let ended = match ended {
        Ok(ended) => ended,
        Err(_) => {
            served.as_mut().graceful_shutdown();
            timeout(GRACE, served).await.unwrap_or(Ok(()))
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

/// All routes. Made once.
pub(crate) fn router(site: Arc<Site>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .merge(page::routes())
        .merge(read::routes())
        .merge(write::routes())
        .route("/api/v1/events", get(events::stream))
        .fallback(async || {
            error(StatusCode::NOT_FOUND, "there is no such page", "docs/api.md lists the routes")
        })
        .method_not_allowed_fallback(async || {
            error(
                StatusCode::METHOD_NOT_ALLOWED,
                "this route takes another method",
                "docs/api.md lists the routes",
            )
        })
        .layer(from_fn_with_state(Arc::clone(&site), door::door))
        .with_state(site)
}

/// The routes that need no password.
fn is_open(request: &Request) -> bool {
    matches!(request.uri().path(), "/metrics" | "/healthz" | "/readyz")
}

async fn metrics(State(site): State<Arc<Site>>, headers: HeaderMap) -> Response {
    let text = site.control.metrics().await;
    let wants_openmetrics = headers
        .get_all(ACCEPT)
        .iter()
        .any(|accept| accept.to_str().is_ok_and(|accept| accept.contains("application/openmetrics-text")));
    if wants_openmetrics {
        let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        return ([(CONTENT_TYPE, kind)], text).into_response();
    }
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    ([(CONTENT_TYPE, kind)], reply::classic(&text)).into_response()
}

/// Not ready means that connecting now is in vain. PostgreSQL being full, or usage unknown, is not that: clients queue, protected lanes
/// pass, and a balancer that takes the only pgweir away makes it worse.
async fn readyz(State(site): State<Arc<Site>>) -> Response {
    let process = site.control.process();
    if process.state == "draining" {
        return error(StatusCode::SERVICE_UNAVAILABLE, "pgweir is draining", "");
    }
    if process.upstream.starts_with("down") {
        return error(StatusCode::SERVICE_UNAVAILABLE, &format!("upstream is {}", process.upstream), "");
    }
    "ready\n".into_response()
}
