//! What can be done: the console's commands, with their words in a JSON body.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Path, Request, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Extension, Json, Router};
use futures_util::StreamExt;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::time::timeout;

use super::Site;
use super::reply::error;
use crate::admin::STARTUP_TIMEOUT;
use crate::admin::command::Command;
use crate::admin::control::{CommandError, Control, Operator};
use crate::admin::help;
use crate::admin::parse::{TEXT_MAX, duration};
use crate::lanes::settings::Disposition;

/// Bytes of a body at most.
pub(super) const BODY_LEN_MAX: usize = 8 * 1024;
/// Of a longer one so much is read and thrown away: closing with unread bytes would reset the connection, and the peer would never see why.
const DISCARD_LEN_MAX: usize = 1024 * 1024;

pub(super) fn routes() -> Router<Arc<Site>> {
    Router::new()
        .route("/api/v1/freeze", post(freeze))
        .route("/api/v1/lanes/{name}/pause", post(pause))
        .route("/api/v1/lanes/{name}/resume", post(resume))
        .route("/api/v1/lanes/{name}/drain", post(drain))
        .route("/api/v1/clients/{id}/reset", post(reset))
        .route("/api/v1/clients/{id}/kill", post(kill))
}

type Shared = State<Arc<Site>>;
type Refused = Box<Response>;

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Freeze {
    reason: Option<String>,
    r#for: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pause {
    reason: Option<String>,
    r#for: Option<String>,
    on: Option<OnPause>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum OnPause {
    Hold,
    Reject,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Resume {
    reason: Option<String>,
    over: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Plain {
    reason: Option<String>,
}

async fn freeze(
    State(site): Shared,
    Extension(who): Extension<Operator>,
    Words(words): Words<Freeze>,
) -> Response {
    respond(async {
        let command = Command::Freeze { duration: time("for", words.r#for)?, reason: text(words.reason)? };
        execute(&site, who, command, None).await
    })
    .await
}

async fn pause(
    State(site): Shared,
    Extension(who): Extension<Operator>,
    Path(lane): Path<String>,
    Words(words): Words<Pause>,
) -> Response {
    respond(async {
        let how = words.on.map(|on| match on {
            OnPause::Hold => Disposition::Hold,
            OnPause::Reject => Disposition::Reject,
        });
        let (duration, reason) = (time("for", words.r#for)?, text(words.reason)?);
        execute(&site, who, Command::Pause { lane, how, duration, reason }, None).await
    })
    .await
}

async fn resume(
    State(site): Shared,
    Extension(who): Extension<Operator>,
    Path(lane): Path<String>,
    Words(words): Words<Resume>,
) -> Response {
    respond(async {
        let note = noted(&format!("resume of lane {lane}"), words.reason)?;
        execute(&site, who, Command::Resume { over: time("over", words.over)?, lane }, note).await
    })
    .await
}

async fn drain(
    State(site): Shared,
    Extension(who): Extension<Operator>,
    Path(lane): Path<String>,
    Words(words): Words<Plain>,
) -> Response {
    respond(async {
        let note = noted(&format!("drain of lane {lane}"), words.reason)?;
        execute(&site, who, Command::Drain { lane }, note).await
    })
    .await
}

async fn reset(
    State(site): Shared,
    Extension(who): Extension<Operator>,
    Path(id): Path<String>,
    Words(words): Words<Plain>,
) -> Response {
    respond(async {
        let id = client(&id)?;
        let note = noted(&format!("reset of client {id}"), words.reason)?;
        execute(&site, who, Command::ResetClient { id }, note).await
    })
    .await
}

async fn kill(
    State(site): Shared,
    Extension(who): Extension<Operator>,
    Path(id): Path<String>,
    Words(words): Words<Plain>,
) -> Response {
    respond(async {
        let id = client(&id)?;
        let note = noted(&format!("kill of client {id}"), words.reason)?;
        execute(&site, who, Command::KillClient { id }, note).await
    })
    .await
}

async fn respond(work: impl Future<Output = Result<Response, Refused>>) -> Response {
    work.await.unwrap_or_else(|refused| *refused)
}

/// Carries a command out to its end, even if the client hangs up meanwhile: half of one is worse than all of it.
async fn execute(
    site: &Site,
    who: Operator,
    command: Command,
    note: Option<String>,
) -> Result<Response, Refused> {
    let control = Arc::clone(&site.control);
    let work = tokio::spawn(async move {
        let done = control.execute(&who, command).await;
        if let (Ok(_), Some(text)) = (&done, note) {
            // A note is never refused.
            let _ = control.execute(&who, Command::Note { text }).await;
        }
        done
    });
    match work.await {
        Ok(Ok(outcome)) => Ok(Json(json!({ "message": outcome.lines.join("\n") })).into_response()),
        Ok(Err(failed)) => Err(refused(&*site.control, failed)),
        Err(_) => Err(Box::new(error(StatusCode::INTERNAL_SERVER_ERROR, "internal error", "see the log"))),
    }
}

fn refused(control: &dyn Control, failed: CommandError) -> Refused {
    Box::new(match failed {
        CommandError::UnknownLane(name) => {
            let lanes = control.lanes();
            let hint = match help::nearest_name(&name, lanes.iter().map(|row| &*row.lane)) {
                Some(near) => format!("/api/v1/lanes lists them; the nearest is: {near}"),
                None => "/api/v1/lanes lists them".to_owned(),
            };
            error(StatusCode::NOT_FOUND, &format!("there is no lane {name:.80?}"), &hint)
        }
        CommandError::UnknownClient(id) => no_client(&id.to_string()),
        CommandError::Refused(why) => error(StatusCode::CONFLICT, &why, ""),
    })
}

fn no_client(id: &str) -> Response {
    error(StatusCode::NOT_FOUND, &format!("there is no client {id:.80}"), "/api/v1/clients lists them")
}

fn bad(text: &str, hint: &str) -> Refused {
    Box::new(error(StatusCode::BAD_REQUEST, text, hint))
}

/// What is no number is no client's id.
fn client(id: &str) -> Result<u64, Refused> {
    id.parse().map_err(|_| Box::new(no_client(&format!("{id:?}"))))
}

fn time(key: &str, value: Option<String>) -> Result<Option<Duration>, Refused> {
    let read = |value: String| duration(&value).map_err(|wrong| bad(&format!("{key}: {wrong}"), ""));
    value.map(read).transpose()
}

/// A reason on one line, as long as the console's may be.
fn text(value: Option<String>) -> Result<String, Refused> {
    let value = value.unwrap_or_default();
    if value.chars().count() > TEXT_MAX {
        return Err(bad(&format!("reason: the text is longer than {TEXT_MAX} characters"), ""));
    }
    Ok(value.chars().map(|c| if c.is_control() { ' ' } else { c }).collect())
}

/// Of a command that has no reason of its own, it becomes a note.
fn noted(what: &str, reason: Option<String>) -> Result<Option<String>, Refused> {
    let reason = text(reason)?;
    Ok((!reason.trim().is_empty()).then(|| format!("{what}: {reason}")))
}

/// A body in JSON: an object, or nothing at all.
struct Words<T>(T);

impl<T: Default + DeserializeOwned> FromRequest<Arc<Site>> for Words<T> {
    type Rejection = Response;

    async fn from_request(request: Request, _: &Arc<Site>) -> Result<Self, Response> {
        let is_json =
            request.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).is_some_and(|kind| {
                kind.split(';')
                    .next()
                    .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
            });
        if let Some(query) = request.uri().query() {
            return Err(*bad(
                &format!("the query {query:.80?} is not understood"),
                "the words belong into the body",
            ));
        }
        let body = match timeout(STARTUP_TIMEOUT, collect(request.into_body())).await {
            Ok(Ok(body)) => body,
            Ok(Err(status)) => {
                return Err(error(status, "the body is too large or broken off", "8 kB are enough"));
            }
            Err(_) => return Err(error(StatusCode::REQUEST_TIMEOUT, "the body took too long", "")),
        };
        if body.is_empty() {
            return Ok(Self(T::default()));
        }
        if !is_json {
            let hint = "send content-type: application/json";
            return Err(error(StatusCode::UNSUPPORTED_MEDIA_TYPE, "the body is no JSON", hint));
        }
        // A struct may be written as an array as well, which nobody means.
        if body.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
            return Err(*bad("the body is no JSON object", "write {\"reason\": \"…\"}"));
        }
        let words = serde_json::from_slice(&body);
        words.map(Self).map_err(|wrong| *bad(&format!("the body is not understood: {wrong}"), ""))
    }
}

async fn collect(body: Body) -> Result<Bytes, StatusCode> {
    let mut chunks = body.into_data_stream();
    let (mut all, mut seen) = (Vec::new(), 0);
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| StatusCode::BAD_REQUEST)?;
        seen += chunk.len();
        if seen > DISCARD_LEN_MAX {
            break;
        }
        if seen <= BODY_LEN_MAX {
            all.extend_from_slice(&chunk);
        }
    }
    if seen > BODY_LEN_MAX { Err(StatusCode::PAYLOAD_TOO_LARGE) } else { Ok(all.into()) }
}
