//! What can be done: the console's commands, with their words in a JSON body.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Extension, Json, Router};
use futures_util::StreamExt;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
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

/// What was done, in words; or why it was not.
type Done = Result<Json<Value>, Refused>;

/// An answer that says no. Boxed: it is rare, and large.
struct Refused(Box<Response>);

impl Refused {
    fn new(status: StatusCode, text: &str, hint: &str) -> Self {
        Self(Box::new(error(status, text, hint)))
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        *self.0
    }
}

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

async fn freeze(Order(by, words): Order<Freeze>) -> Done {
    let command = Command::Freeze { duration: time("for", words.r#for)?, reason: text(words.reason)? };
    by.execute(command, None).await
}

async fn pause(Path(lane): Path<String>, Order(by, words): Order<Pause>) -> Done {
    let how = words.on.map(|on| match on {
        OnPause::Hold => Disposition::Hold,
        OnPause::Reject => Disposition::Reject,
    });
    let (duration, reason) = (time("for", words.r#for)?, text(words.reason)?);
    by.execute(Command::Pause { lane, how, duration, reason }, None).await
}

async fn resume(Path(lane): Path<String>, Order(by, words): Order<Resume>) -> Done {
    let note = noted(&format!("resume of lane {lane}"), words.reason)?;
    by.execute(Command::Resume { over: time("over", words.over)?, lane }, note).await
}

async fn drain(Path(lane): Path<String>, Order(by, words): Order<Plain>) -> Done {
    let note = noted(&format!("drain of lane {lane}"), words.reason)?;
    by.execute(Command::Drain { lane }, note).await
}

async fn reset(Path(id): Path<String>, Order(by, words): Order<Plain>) -> Done {
    let id = client(&id)?;
    by.execute(Command::ResetClient { id }, noted(&format!("reset of client {id}"), words.reason)?).await
}

async fn kill(Path(id): Path<String>, Order(by, words): Order<Plain>) -> Done {
    let id = client(&id)?;
    by.execute(Command::KillClient { id }, noted(&format!("kill of client {id}"), words.reason)?).await
}

/// Who asks, and where it is done.
struct By {
    site: Arc<Site>,
    who: Operator,
}

impl By {
    /// Carries a command out to its end, even if the client hangs up meanwhile: half of one is worse than all of it.
    async fn execute(self, command: Command, note: Option<String>) -> Done {
        let Self { site, who } = self;
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
            Ok(Ok(outcome)) => Ok(Json(json!({ "message": outcome.lines.join("\n") }))),
            Ok(Err(failed)) => Err(refused(&*site.control, failed)),
            Err(_) => Err(Refused::new(StatusCode::INTERNAL_SERVER_ERROR, "internal error", "see the log")),
        }
    }
}

fn refused(control: &dyn Control, failed: CommandError) -> Refused {
    match failed {
        CommandError::UnknownLane(name) => {
            let lanes = control.lane_names();
            let hint = help::where_listed("/api/v1/lanes", &name, lanes.iter().map(|lane| &**lane));
            Refused::new(StatusCode::NOT_FOUND, &format!("there is no lane {name:.80?}"), &hint)
        }
        CommandError::UnknownClient(id) => no_client(&id.to_string()),
        CommandError::Refused(why) => Refused::new(StatusCode::CONFLICT, &why, ""),
    }
}

fn no_client(id: &str) -> Refused {
    Refused::new(StatusCode::NOT_FOUND, &format!("there is no client {id:.80}"), "/api/v1/clients lists them")
}

fn bad(text: &str, hint: &str) -> Refused {
    Refused::new(StatusCode::BAD_REQUEST, text, hint)
}

/// What is no number is no client's id.
fn client(id: &str) -> Result<u64, Refused> {
    id.parse().map_err(|_| no_client(&format!("{id:?}")))
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

/// A request to do something: who asks, and the words of its body.
struct Order<T>(By, T);

impl<T: Default + DeserializeOwned> FromRequest<Arc<Site>> for Order<T> {
    type Rejection = Response;

    async fn from_request(request: Request, site: &Arc<Site>) -> Result<Self, Response> {
        let (mut parts, body) = request.into_parts();
        let who = Extension::<Operator>::from_request_parts(&mut parts, site).await;
        let Extension(who) = who.map_err(IntoResponse::into_response)?;
        let words = words(&parts, body).await.map_err(IntoResponse::into_response)?;
        Ok(Self(By { site: site.clone(), who }, words))
    }
}

/// A body in JSON: an object, or nothing at all.
async fn words<T: Default + DeserializeOwned>(parts: &Parts, body: Body) -> Result<T, Refused> {
    if let Some(query) = parts.uri.query() {
        let text = format!("the query {query:.80?} is not understood");
        return Err(bad(&text, "the words belong into the body"));
    }
    let body = match timeout(STARTUP_TIMEOUT, collect(body)).await {
        Ok(Ok(body)) => body,
        Ok(Err(status)) => {
            return Err(Refused::new(status, "the body is too large or broken off", "8 kB are enough"));
        }
        Err(_) => return Err(Refused::new(StatusCode::REQUEST_TIMEOUT, "the body took too long", "")),
    };
    if body.is_empty() {
        return Ok(T::default());
    }
    if !is_json(parts) {
        let hint = "send content-type: application/json";
        return Err(Refused::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "the body is no JSON", hint));
    }
    // A struct may be written as an array as well, which nobody means.
    if body.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
        return Err(bad("the body is no JSON object", "write {\"reason\": \"…\"}"));
    }
    serde_json::from_slice(&body).map_err(|wrong| bad(&format!("the body is not understood: {wrong}"), ""))
}

fn is_json(parts: &Parts) -> bool {
    let kind = parts.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default();
    essence.trim().eq_ignore_ascii_case("application/json")
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
