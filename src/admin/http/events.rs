//! `GET /api/v1/events`: server-sent events. A snapshot of everything the page shows once a second, and at once after something happened;
//! the timeline's entries as they come, each with its number as id, so that a browser that reconnects misses none.
//!
//! Bounds: [`STREAMS_MAX`] streams, each for [`STREAM_LIFE`]. Nothing is queued for a stream: one that reads slowly gets fewer snapshots,
//! and of the timeline what is still kept; one that does not read at all is dropped with its connection. A snapshot is made once for all
//! streams, and lists the first [`ROWS_MAX`] rows of tables that clients can make long.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::sleep;

use super::Site;
use super::read;
use super::reply::error;
use crate::admin::command::Show;
use crate::admin::control::Control;
use crate::admin::io::REST;
use crate::admin::view::{self, Rows};
use crate::clock::{self, Moment};
use crate::snapshot::{TimelineEntry, utc};

/// Streams at most.
const STREAMS_MAX: usize = 16;
/// A stream ends after this long, in good order; the browser opens the next one.
const STREAM_LIFE: Duration = Duration::from_secs(14 * 60);
/// Between two snapshots, and at least, where something happens again and again.
const INTERVAL: Duration = Duration::from_secs(1);
const INTERVAL_MIN: Duration = Duration::from_millis(200);
/// A snapshot this young is good for other streams as well.
const FRESH: Duration = Duration::from_millis(150);
/// A sign of life where there was nothing to say for so long.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// The browser's pause before it reconnects.
const RETRY: Duration = Duration::from_secs(2);
/// Rows of leaks and applications in a snapshot; their routes have all of them.
const ROWS_MAX: usize = 100;

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// What the streams share.
pub(super) struct Feed {
    control: Arc<dyn Control>,
    streams: Arc<Semaphore>,
    last: Mutex<Option<(Moment, Arc<str>)>>,
}

impl Feed {
    pub(super) fn new(control: Arc<dyn Control>) -> Self {
        Self { control, streams: Arc::new(Semaphore::new(STREAMS_MAX)), last: Mutex::new(None) }
    }

    async fn snapshot(&self) -> Arc<str> {
        // One is made at a time: whoever comes meanwhile finds it fresh.
        let mut last = self.last.lock().await;
        let now = clock::now();
        if let Some((at, text)) = &*last
            && now.since(*at) < FRESH
        {
            return Arc::clone(text);
        }
        let text: Arc<str> = snapshot(&*self.control).await.to_string().into();
        *last = Some((now, Arc::clone(&text)));
        text
    }
}

/// Everything the page shows but clients and timeline. It is made in parts with a rest behind each: all at once it would take milliseconds where
/// there are thousands of links, in which a worker would wait for the core.
async fn snapshot(control: &dyn Control) -> Value {
    let some = |show, rows: Rows| {
        let rows = read::named(show, rows);
        // Of those that are not shown none is made.
        let total = rows.size_hint().0;
        (rows.take(ROWS_MAX).collect::<Vec<Value>>(), total)
    };
    let (lanes, applications) = control.lanes_and_applications().await;
    let (applications, applications_total) = some(Show::Applications, view::applications(applications));
    let lanes: Vec<Value> = read::named(Show::Lanes, view::lanes(lanes)).collect();
    sleep(REST).await;
    let (leaks, leaks_total) = some(Show::Leaks, view::rows(Show::Leaks, control).await);
    sleep(REST).await;
    json!({
        "at": utc(clock::wall_now()),
        "status": read::status(control).await,
        "usage": read::usage(control).await,
        "lanes": lanes,
        "applications": applications,
        "applications_total": applications_total,
        "leaks": leaks,
        "leaks_total": leaks_total,
        "exit": read::exit(control).await,
        "incident": read::open_incident(control).await,
    })
}

pub(super) async fn stream(
    State(site): State<Arc<Site>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let Ok(permit) = Arc::clone(&site.feed.streams).try_acquire_owned() else {
        let text = format!("{STREAMS_MAX} event streams are open");
        return error(StatusCode::SERVICE_UNAVAILABLE, &text, "close one, or poll the other routes");
    };
    let asked = match query.as_deref() {
        None => None,
        Some(query) => match query.strip_prefix("after=").map(str::parse) {
            Some(Ok(after)) => Some(after),
            _ => return read::unknown_query(query),
        },
    };
    // A browser that reconnects asks by the address it began with, and says in the header how far it came since.
    let seen = headers.get(LAST_EVENT_ID).and_then(|id| id.to_str().ok()?.parse().ok());
    let reader = Reader::new(Arc::clone(&site.feed), seen.or(asked), permit);
    let events = stream::unfold(reader, async |mut reader| Some((reader.next().await?, reader)));
    let mut response = Sse::new(events).keep_alive(KeepAlive::new().interval(HEARTBEAT)).into_response();
    // A proxy in between must not gather events.
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// One stream.
struct Reader {
    feed: Arc<Feed>,
    changed: watch::Receiver<u64>,
    /// Number of the last entry sent.
    after: u64,
    entries: VecDeque<TimelineEntry>,
    greeted: bool,
    next_snapshot: Moment,
    last_snapshot: Moment,
    ends: Moment,
    _permit: OwnedSemaphorePermit,
}

impl Reader {
    fn new(feed: Arc<Feed>, after: Option<u64>, permit: OwnedSemaphorePermit) -> Self {
        let changed = feed.control.timeline_changed();
        let last = *changed.borrow();
        // A number beyond the last is of another timeline: then all of this one is new.
        let after = after.map_or(last, |after| if after > last { 0 } else { after });
        let now = clock::now();
        Self {
            feed,
            changed,
            after,
            entries: VecDeque::new(),
            greeted: false,
            next_snapshot: now,
            last_snapshot: Moment::default(),
            ends: now + STREAM_LIFE,
            _permit: permit,
        }
    }

    /// The next event; none at the end.
    async fn next(&mut self) -> Option<Result<Event, Infallible>> {
        if !std::mem::replace(&mut self.greeted, true) {
            return Some(Ok(Event::default().retry(RETRY)));
        }
        loop {
            if let Some(entry) = self.entries.pop_front() {
                self.after = entry.seq;
                return Some(Ok(entry_event(entry)));
            }
            if *self.changed.borrow_and_update() > self.after {
                self.entries = self.feed.control.timeline_after(self.after).into();
                // Something happened: what it changed is worth showing at once.
                self.next_snapshot = self.next_snapshot.min(self.last_snapshot + INTERVAL_MIN);
                if !self.entries.is_empty() {
                    continue;
                }
            }
            let now = clock::now();
            if now >= self.ends {
                return None;
            }
            if now >= self.next_snapshot {
                (self.last_snapshot, self.next_snapshot) = (now, now + INTERVAL);
                return Some(Ok(Event::default().event("snapshot").data(&*self.feed.snapshot().await)));
            }
            tokio::select! {
                changed = self.changed.changed() => changed.ok()?,
                () = tokio::time::sleep(self.next_snapshot.since(now)) => {}
            }
        }
    }
}

fn entry_event(entry: TimelineEntry) -> Event {
    let id = entry.seq.to_string();
    let data = view::object(view::columns(Show::Timeline), &view::timeline(entry)).to_string();
    Event::default().event("timeline").id(id).data(data)
}
