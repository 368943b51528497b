//! Who may ask, before any route is looked at: host and origin, password, role, rate. And what every answer bears.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use parking_lot::Mutex;

use super::credentials::{self, Unknown};
use super::origin::{self, Foreign};
use super::reply::{error, secure};
use super::{Connection, Site, is_open};
use crate::admin::HTTP_MAX;
use crate::admin::control::Operator;
use crate::clock;
use crate::lanes::rate::Rate;

/// A wrong password is answered after this long, as at the console.
const FAILURE_DELAY: Duration = Duration::from_secs(1);
/// Wrong passwords a second at most, hung up or not; while there are so many, only connections that have shown a right one are heard.
/// Half of HTTP's places: a guesser must not use up those of monitoring.
pub(super) const PENALTIES_MAX: usize = HTTP_MAX / 2;
/// Requests a second of each kind, and in a burst.
const SCRAPES_PER_S: f64 = 100.0;
const READS_PER_S: f64 = 100.0;
const COMMANDS_PER_S: f64 = 100.0;

/// How often each kind of request is answered.
pub(super) struct Rates {
    scrapes: Mutex<Rate>,
    reads: Mutex<Rate>,
    commands: Mutex<Rate>,
}

impl Default for Rates {
    fn default() -> Self {
        let rate = |per_second| Mutex::new(Rate::new(Some(per_second)));
        Self { scrapes: rate(SCRAPES_PER_S), reads: rate(READS_PER_S), commands: rate(COMMANDS_PER_S) }
    }
}

/// The outermost layer of all routes.
pub(super) async fn door(State(site): State<Arc<Site>>, mut request: Request, next: Next) -> Response {
    let connection = request.extensions().get::<Connection>().cloned();
    let mut response = match admit(&site, connection.as_ref(), &mut request).await {
        Ok(()) => {
            let settled = connection.filter(|_| is_open(&request));
            settled.iter().for_each(|connection| connection.settle(true));
            let response = next.run(request).await;
            // Whoever needs no password keeps its place no longer than its request takes.
            settled.iter().for_each(|connection| connection.settle(false));
            response
        }
        Err(refusal) => *refusal,
    };
    secure(response.headers_mut());
    response
}

async fn admit(
    site: &Site,
    connection: Option<&Connection>,
    request: &mut Request,
) -> Result<(), Box<Response>> {
    let open = is_open(request);
    origin::check_origin(request.method(), request.uri(), request.headers()).map_err(foreign)?;
    if open {
        // Under whatever name a scraper or a balancer knows this host.
        return if request.uri().path() == "/metrics" { take(&site.rates.scrapes) } else { Ok(()) };
    }
    origin::check_host(request.uri(), request.headers(), &site.hosts.load()).map_err(foreign)?;
    let known = connection.is_some_and(Connection::is_settled);
    if !known && site.penalties.available_permits() == 0 && request.headers().contains_key(AUTHORIZATION) {
        return Err(too_many("too many wrong passwords are being tried"));
    }
    let user = match credentials::user(request.headers(), &site.users) {
        Ok(user) => user,
        Err(Unknown::Silent) => return Err(unauthorized("a password is needed")),
        Err(Unknown::Wrong) => {
            penalty(site, connection).await;
            return Err(unauthorized("password authentication failed"));
        }
    };
    connection.iter().for_each(|connection| connection.settle(true));
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        if !user.may_change {
            let text = format!("user {:?} may look, not change", user.name);
            return Err(Box::new(error(StatusCode::FORBIDDEN, &text, "log in as an operator")));
        }
        take(&site.rates.commands)?;
    } else {
        take(&site.rates.reads)?;
    }
    let name = credentials::operator_name(&user.name, request.headers());
    request.extensions_mut().insert(Operator { name, may_change: user.may_change });
    Ok(())
}

fn take(rate: &Mutex<Rate>) -> Result<(), Box<Response>> {
    let (now, mut rate) = (clock::now(), rate.lock());
    if rate.allowed_at() <= now {
        rate.take(now);
        return Ok(());
    }
    Err(too_many("too many requests"))
}

fn too_many(text: &str) -> Box<Response> {
    let mut response = error(StatusCode::TOO_MANY_REQUESTS, text, "ask once a second");
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    Box::new(response)
}

/// A wrong password costs its time even if who tried it hangs up: else a guesser would be as fast as it can connect.
async fn penalty(site: &Site, connection: Option<&Connection>) {
    let peer = connection.map(|connection| connection.peer);
    tracing::warn!(?peer, "admin http: wrong password or unknown user");
    connection.iter().for_each(|connection| connection.settle(false));
    let permit = Arc::clone(&site.penalties).try_acquire_owned();
    let paid = tokio::spawn(async move {
        tokio::time::sleep(FAILURE_DELAY).await;
        drop(permit);
    });
    // It neither panics nor is aborted.
    let _ = paid.await;
}

fn foreign(foreign: Foreign) -> Box<Response> {
    let (text, hint) = match foreign {
        Foreign::Host => (
            "this name is none of the admin port's",
            "use its address or localhost, or add the name to [admin] hosts",
        ),
        Foreign::Origin => ("this request comes from another site's page", "use the page of this port"),
    };
    Box::new(error(StatusCode::FORBIDDEN, text, hint))
}

fn unauthorized(text: &str) -> Box<Response> {
    let hint = "Authorization: Basic with user and password, or Bearer with the password";
    let mut response = error(StatusCode::UNAUTHORIZED, text, hint);
    let challenge = HeaderValue::from_static("Basic realm=\"pgweir\", charset=\"UTF-8\"");
    response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
    Box::new(response)
}
