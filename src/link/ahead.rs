//! Pooled connections made ahead of clients: `min_pool_size` of each user, database and set of startup parameters that was seen, and what a
//! lane's `keep_reserve` lacks, for whom was seen last.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tracing::debug;

use super::binding::Binding;
use super::closing;
use super::dial::{Dialled, dial};
use super::hub::{Hub, Slot, Stage};
use super::login::{self, LoggedIn, Login, LoginError};
use super::pool::{self, Resting, Ticket};
use super::shared::{Labels, LinkShared};
use super::stream::Stream;
use super::tag::Tag;
use crate::clock::{self, Moment};
use crate::lanes::classify::Facts;
use crate::lanes::guard::{Arrival, DialFailure};
use crate::lanes::ids::{LaneId, LinkId};
use crate::lanes::pool::PoolKey;

/// Sets of parameters remembered at most; the one seen longest ago gives way.
const SEEN_MAX: usize = 256;
/// Those nobody came with for so long are forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(3600);
/// How often it is looked for connections to make.
const EVERY: Duration = Duration::from_millis(200);
/// Pause after a login that failed.
const AFTER_FAILURE: Duration = Duration::from_secs(30);
/// Pause where PostgreSQL was only not ready, or full.
const AFTER_NOT_NOW: Duration = Duration::from_secs(2);

/// A client that was here, and may come again.
#[derive(Clone)]
struct Guest {
    startup: Arc<[u8]>,
    facts: Arc<Facts>,
    application: Arc<str>,
    tag: Option<Arc<Tag>>,
    at: Moment,
    not_before: Moment,
}

/// Clients that were here, by lane and parameters.
#[derive(Default)]
pub struct Seen {
    guests: Mutex<HashMap<(LaneId, PoolKey), Guest>>,
    /// The first of them came.
    came: Notify,
}

impl Seen {
    /// A client came with these parameters.
    pub(super) fn note(&self, ticket: &Ticket, startup: &[u8], facts: &Arc<Facts>) {
        let now = clock::now();
        let mut seen = self.guests.lock();
        let key = (ticket.lane, ticket.key.clone());
        if let Some(known) = seen.get_mut(&key) {
            known.at = now;
            return;
        }
        if seen.len() >= SEEN_MAX
            && let Some(oldest) = seen.iter().min_by_key(|(_, guest)| guest.at).map(|(key, _)| key.clone())
        {
            seen.remove(&oldest);
        }
        let (facts, application) = (facts.clone(), ticket.application.clone());
        let (startup, tag) = (startup.into(), ticket.tag.clone());
        seen.insert(key, Guest { startup, facts, application, tag, at: now, not_before: now });
        self.came.notify_one();
    }

    /// Waits until there is somebody to make connections for.
    async fn somebody(&self) {
        while self.guests.lock().is_empty() {
            self.came.notified().await;
        }
    }

    fn due(&self, now: Moment) -> Vec<((LaneId, PoolKey), Guest)> {
        let mut seen = self.guests.lock();
        seen.retain(|_, guest| now.since(guest.at) < FORGET_AFTER);
        let due = seen.iter().filter(|(_, guest)| guest.not_before <= now);
        let mut due: Vec<_> = due.map(|(key, guest)| (key.clone(), guest.clone())).collect();
        // A reserve is for whom was seen last.
        due.sort_by_key(|(_, guest)| std::cmp::Reverse(guest.at));
        due
    }

    /// None is made for a user before then: what stopped one login, a password or a limit of the role, mostly stops its others.
    fn put_off(&self, user: &str, until: Moment) {
        for guest in self.guests.lock().values_mut().filter(|guest| &*guest.facts.user == user) {
            guest.not_before = until;
        }
    }

    /// Whether one may still be made that was due when it was last asked.
    fn is_due(&self, key: &(LaneId, PoolKey), now: Moment) -> bool {
        self.guests.lock().get(key).is_some_and(|guest| guest.not_before <= now)
    }
}

/// Makes connections ahead, one at a time, until the process ends. To be run where tokio runs.
pub async fn run(hub: Arc<Hub>) {
    loop {
        hub.pool.seen.somebody().await;
        tokio::time::sleep(EVERY).await;
        for (key, guest) in hub.pool.seen.due(clock::now()) {
            while hub.stage() == Stage::Running && hub.pool.seen.is_due(&key, clock::now()) {
                match make(&hub, &key, &guest).await {
                    Some(Ok(())) => {}
                    Some(Err(pause)) => {
                        hub.pool.seen.put_off(&guest.facts.user, clock::now() + pause);
                        break;
                    }
                    None => break,
                }
            }
        }
    }
}

/// Makes one, if one is wanted and may be. An error is how long not to try again.
async fn make(
    hub: &Arc<Hub>,
    (lane, key): &(LaneId, PoolKey),
    guest: &Guest,
) -> Option<Result<(), Duration>> {
    let epoch = hub.pool.epoch();
    let mut chosen = hub.server.subscribe();
    let dialling = chosen.borrow_and_update().clone()?;
    let known = hub.lane(*lane)?;
    known.settings.pooling.as_ref().filter(|pooling| pooling.makes_ahead())?;
    let credentials = hub.authority.credentials(&guest.facts.user)?;
    let id = hub.next_link();
    let who = Arrival {
        lane: *lane,
        application: guest.application.clone(),
        user: guest.facts.user.clone(),
        database: guest.facts.database.clone(),
        address: None,
        replication: false,
        nested: false,
        alone: false,
        key: Some(key.clone()),
    };
    if !hub.guard(|guard, now| guard.arrive_ahead(now, id, who)) {
        return None;
    }
    let mut slot = Slot::new(hub.clone(), id);
    let settings = hub.settings.load_full();
    let Dialled { stream: mut upstream, local, server } = match dial(&settings, &dialling).await {
        Ok(dialled) => dialled,
        Err(error) => {
            slot.forget();
            let is_left = !hub.dials(&dialling);
            let why = if is_left { DialFailure::Moved } else { DialFailure::Down(error.to_string()) };
            hub.guard(|guard, now| guard.dial_failed(now, id, why, false));
            return Some(Err(AFTER_NOT_NOW));
        }
    };
    slot.dialled(local);
    let labels = Labels {
        lane: *lane,
        lane_name: known.name.clone(),
        rule: "".into(),
        application_name: guest.application.clone(),
        facts: guest.facts.clone(),
        process: None,
        statement: Vec::new(),
    };
    // In no registry: nobody's client.
    let shared = Arc::new(LinkShared::new(id, None, clock::now(), labels));
    // What a client would be told goes nowhere.
    let (near, _far) = UnixStream::pair().ok()?;
    let mut nobody = Stream::from(near);
    let login = Login {
        hub,
        shared: &shared,
        may_skip_password: true,
        replication: false,
        binding: Binding::between(&nobody, &upstream),
        bound: settings.startup_timeout,
        own: Some((&credentials, &[])),
        tag: guest.tag.as_deref(),
        chosen,
    };
    let sent = login::send_startup(&mut upstream, &guest.startup).await;
    let logged_in = match sent {
        Ok(()) => login.relay(&mut nobody, &mut upstream, &server, Vec::new()).await,
        Err(_) => Err(LoginError::ClientGone),
    };
    match logged_in {
        Ok(LoggedIn { pid, keys, parameters, .. }) => {
            hub.guard(|guard, now| guard.login_done(now, id, pid));
            let (application, tag) = (guest.application.clone(), guest.tag.clone());
            let keys = keys.at(server);
            let ticket = Ticket::new(epoch, key.clone(), *lane, application, parameters, tag);
            pool::rest(hub, Resting { upstream, slot, key: (pid, keys), ticket, since: clock::now() });
            Some(Ok(()))
        }
        Err(error) => {
            let error = if hub.dials(&server) { error } else { error.of_another_server() };
            give_up(hub, id, &error, upstream, slot).await;
            let is_later = matches!(error, LoginError::NotNow { .. } | LoginError::Moved { .. });
            Some(Err(if is_later { AFTER_NOT_NOW } else { AFTER_FAILURE }))
        }
    }
}

async fn give_up(hub: &Arc<Hub>, id: LinkId, error: &LoginError, mut upstream: Stream, slot: Slot) {
    debug!(link = id.0, ?error, "no connection could be made ahead");
    if matches!(error, LoginError::NotNow { full: true, .. }) {
        hub.guard(|guard, now| guard.too_many_clients(now));
    }
    hub.guard(|guard, now| guard.closing(now, id));
    let _ = upstream.shutdown().await;
    if closing::wait_closed(&mut upstream).await {
        slot.released();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_that_failed_puts_off_all_of_its_user() {
        let seen = Seen::default();
        let key = |name: &str| PoolKey::new(format!("____{name}").as_bytes());
        let facts = |user: &str| {
            let word: Arc<str> = "x".into();
            Arc::new(Facts { user: user.into(), ..crate::link::shared::tests::facts(&word) })
        };
        for (name, user) in [("a", "odoo"), ("b", "odoo"), ("c", "bi")] {
            let ticket = Ticket::new(0, key(name), LaneId(0), "x".into(), Vec::new(), None);
            seen.note(&ticket, b"packet", &facts(user));
        }
        let now = clock::now();
        assert_eq!(seen.due(now).len(), 3);
        seen.put_off("odoo", now + AFTER_FAILURE);
        let due: Vec<_> = seen.due(now).into_iter().map(|((_, key), _)| key).collect();
        assert_eq!(due, [key("c")]);
        assert!(seen.is_due(&(LaneId(0), key("c")), now) && !seen.is_due(&(LaneId(0), key("b")), now));
        assert!(seen.is_due(&(LaneId(0), key("b")), now + AFTER_FAILURE));
    }
}
