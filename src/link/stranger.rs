//! Refusals of those who have no session: their first bytes, their TLS or their password were not right.

use std::pin::Pin;

use tracing::{info, warn};

use super::closing;
use super::hub::{Hub, Lane};
use super::serve::Accepted;
use crate::reason::{Reason, Refusal};
use crate::wire::startup::STARTUP_LEN_MAX;

/// The way out. In a room of its own, so that the way in is short.
pub(super) type Leaves = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Refuses a client that has not proved who it is.
#[cold]
pub(super) fn refuse_unproved(hub: &Hub, accepted: Accepted, user: &str, refusal: &Refusal) -> Leaves {
    let reason = refusal.reason;
    *hub.counters.strangers_refused.entry(reason).or_insert(0) += 1;
    if hub.may_log(&"".into(), reason) {
        info!(reason = reason.label(), user = ?user, address = ?accepted.peer, detail = refusal.detail, "login refused");
    }
    closing::refuse(accepted.stream, refusal)
}

/// Refuses a client of whom nothing is known yet.
#[cold]
pub(super) fn refuse(hub: &Hub, accepted: Accepted, reason: Reason) -> Leaves {
    let (detail, hint) = first_words(hub, reason);
    refuse_for(hub, accepted, &Refusal::new(reason, detail, hint))
}

#[cold]
pub(super) fn refuse_for(hub: &Hub, accepted: Accepted, refusal: &Refusal) -> Leaves {
    note_stranger(hub, &accepted, refusal.reason, "refused before startup", "");
    closing::refuse(accepted.stream, refusal)
}

/// A client with whom TLS could not be agreed upon has been told by an alert; a message of ours it could not read.
#[cold]
pub(super) fn see_off_without_tls(hub: &Hub, accepted: Accepted, why: &str) -> Leaves {
    note_stranger(hub, &accepted, Reason::TlsFailed, "no TLS with a client", why);
    Box::pin(closing::dismiss(accepted.stream, &[]))
}

/// Refuses a client for whom there is no room.
#[cold]
pub(super) fn refuse_at_max(hub: &Hub, accepted: Accepted, lane: &Lane, sessions: u32, max: u32) -> Leaves {
    let refusal = Refusal::new(
        Reason::MaxClients,
        format!("{sessions} clients are connected, max_clients is {max}"),
        "raise [limits] max_clients, or see who they are: SHOW CLIENTS",
    );
    hub.guard(|guard, _| guard.count_refusal(lane.id, refusal.reason));
    if hub.may_log(&lane.name, refusal.reason) {
        warn!(reason = refusal.reason.label(), lane = %lane.name, address = ?accepted.peer, "refused");
    }
    closing::refuse(accepted.stream, &refusal)
}

fn note_stranger(hub: &Hub, accepted: &Accepted, reason: Reason, what: &str, why: &str) {
    *hub.counters.strangers_refused.entry(reason).or_insert(0) += 1;
    if hub.may_log(&"".into(), reason) {
        info!(reason = reason.label(), address = ?accepted.peer, listener = %accepted.listener, why, "{what}");
    }
}

/// PostgreSQL would refuse it too, but only after it was given a lane by it.
pub(super) fn bad_replication() -> Refusal {
    let detail = "invalid value for parameter \"replication\" of the startup packet";
    Refusal::new(Reason::Malformed, detail, "it must be a boolean or \"database\"")
}

/// What a client refused before its session began can be told.
fn first_words(hub: &Hub, reason: Reason) -> (String, &'static str) {
    match reason {
        Reason::StartupTimeout => {
            let bound = hub.settings.load().startup_timeout.as_secs_f64();
            (format!("no complete startup packet came within {bound} s"), "is this a PostgreSQL client?")
        }
        Reason::Oversized => {
            (format!("a startup packet has at most {STARTUP_LEN_MAX} bytes"), "is this a PostgreSQL client?")
        }
        Reason::TlsRequired => (
            "this listener takes sessions over TLS only".to_owned(),
            "connect with sslmode=require or better",
        ),
        Reason::Unsupported => ("protocol 3.0 and 3.2 are served".to_owned(), "use a newer client"),
        Reason::ShuttingDown => {
            ("no new connections are taken".to_owned(), "connect again when pgweir is back")
        }
        _ => (
            "the first bytes are no startup packet, or something was stuffed behind a request for encryption"
                .to_owned(),
            "is this a PostgreSQL client?",
        ),
    }
}
