//! What can be looked at: the console's tables as JSON, column by column.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};
use axum::{Extension, Json, Router};
use futures_util::{StreamExt, stream};
use serde_json::{Map, Value, json};

use super::Site;
use super::reply::error;
use crate::admin::command::Show;
use crate::admin::control::{Control, Operator};
use crate::admin::io::{CHUNK_LEN, REST};
use crate::admin::view::{self, Rows};
use crate::clock::WallMs;
use crate::snapshot::{HistoryRow, LanePolicyRow, utc};

type Shared = State<Arc<Site>>;

pub(super) fn routes() -> Router<Arc<Site>> {
    Router::new()
        .route("/api/v1/lanes", shown(Show::Lanes))
        .route("/api/v1/applications", shown(Show::Applications))
        .route("/api/v1/clients", shown(Show::Clients))
        .route("/api/v1/sessions", shown(Show::Sessions))
        .route("/api/v1/upstreams", shown(Show::Upstreams))
        .route("/api/v1/leaks", shown(Show::Leaks))
        .route("/api/v1/usage", get(async |State(site): Shared| Json(usage(&*site.control).await)))
        .route("/api/v1/status", get(async |State(site): Shared| Json(status(&*site.control).await)))
        .route("/api/v1/exit", shown(Show::Exit))
        .route("/api/v1/incidents", shown(Show::Incidents))
        .route("/api/v1/peaks", shown(Show::Peaks))
        .route("/api/v1/timeline", get(timeline))
        .route("/api/v1/history", get(history))
        .route("/api/v1/policy", get(policy))
}

/// The row of SHOW USAGE.
pub(super) async fn usage(control: &dyn Control) -> Value {
    objects(Show::Usage, control).await.next().unwrap_or_default()
}

/// SHOW STATUS as one object.
pub(super) async fn status(control: &dyn Control) -> Value {
    let rows = view::rows(Show::Status, control).await;
    let pairs = rows.filter_map(|row| {
        let mut values = row.into_iter();
        Some((values.next()?.text()?, values.next()?.json()))
    });
    Value::Object(pairs.collect::<Map<_, _>>())
}

/// The rows of SHOW EXIT.
pub(super) async fn exit(control: &dyn Control) -> Value {
    Value::Array(objects(Show::Exit, control).await.collect())
}

/// The row of SHOW INCIDENTS that is open; null where none is.
pub(super) async fn open_incident(control: &dyn Control) -> Value {
    objects(Show::Incidents, control).await.find(|row| row["closed_at"].is_null()).unwrap_or_default()
}

/// A table, one object a row.
async fn objects(show: Show, control: &dyn Control) -> impl Iterator<Item = Value> + use<> {
    named(show, view::rows(show, control).await)
}

/// Rows of a table as objects.
pub(super) fn named(show: Show, rows: Rows) -> impl Iterator<Item = Value> + use<> {
    let columns = view::columns(show);
    rows.map(move |row| view::object(columns, &row))
}

fn shown(show: Show) -> MethodRouter<Arc<Site>> {
    get(move |State(site): Shared, RawQuery(query): RawQuery| async move {
        match query {
            Some(query) => unknown_query(&query),
            None => array(show, view::rows(show, &*site.control).await),
        }
    })
}

/// A JSON array, written row by row in pieces: 10,000 clients are never held as text.
fn array(show: Show, mut rows: Rows) -> Response {
    let columns = view::columns(show);
    let mut open = "[";
    let chunks = std::iter::from_fn(move || {
        if open.is_empty() {
            return None;
        }
        let mut chunk = String::new();
        while chunk.len() < CHUNK_LEN {
            let Some(row) = rows.next() else {
                // An empty table has had no opening bracket yet.
                chunk.push_str(if open == "[" { "[]\n" } else { "\n]\n" });
                open = "";
                break;
            };
            chunk.push_str(open);
            chunk.push('\n');
            chunk.push_str(&view::object(columns, &row).to_string());
            open = ",";
        }
        Some(Ok::<_, std::convert::Infallible>(Bytes::from(chunk)))
    });
    let rested = stream::iter(chunks.enumerate()).then(|(n, chunk)| async move {
        if n > 0 {
            tokio::time::sleep(REST).await;
        }
        chunk
    });
    ([(CONTENT_TYPE, "application/json")], Body::from_stream(rested)).into_response()
}

/// `?after=SEQ`: only what came behind it.
async fn timeline(State(site): Shared, RawQuery(query): RawQuery) -> Response {
    let after = match query.as_deref() {
        None => 0,
        Some(query) => match query.strip_prefix("after=").map(str::parse) {
            Some(Ok(after)) => after,
            _ => return unknown_query(query),
        },
    };
    let columns = view::columns(Show::Timeline);
    let entries = site.control.timeline_after(after).into_iter();
    let rows: Vec<Value> = entries.map(|entry| view::object(columns, &view::timeline(entry))).collect();
    Json(rows).into_response()
}

/// Usage over the last 15 minutes.
async fn history(State(site): Shared, RawQuery(query): RawQuery) -> Response {
    if let Some(query) = query {
        return unknown_query(&query);
    }
    let row = |row: HistoryRow| {
        let percent = row.percent.map(|percent| (percent * 100.0).round() / 100.0);
        let (connections, bypass) = (row.connections, row.bypass);
        json!({ "at": utc(WallMs(row.at)), "percent": percent, "connections": connections, "bypass": bypass })
    };
    Json(site.control.history().into_iter().map(row).collect::<Vec<_>>()).into_response()
}

/// Who asks, and what the configuration says of what the page's buttons do.
async fn policy(
    State(site): Shared,
    Extension(who): Extension<Operator>,
    RawQuery(query): RawQuery,
) -> Response {
    if let Some(query) = query {
        return unknown_query(&query);
    }
    let found = site.control.policy();
    let lane = |row: LanePolicyRow| {
        json!({
            "lane": &*row.lane, "protected": row.protected, "freeze": row.freeze, "shed_above": row.shed_above,
            "shed_below": row.shed_below, "on_pause": row.on_pause, "reset": row.reset,
        })
    };
    Json(json!({
        "operator": who.name,
        "may_change": who.may_change,
        "usage_below": found.usage_below,
        "lanes": found.lanes.into_iter().map(lane).collect::<Vec<_>>(),
    }))
    .into_response()
}

pub(super) fn unknown_query(query: &str) -> Response {
    let text = format!("the query {query:.80?} is not understood");
    error(StatusCode::BAD_REQUEST, &text, "the timeline and the events take ?after=NUMBER, other routes none")
}
