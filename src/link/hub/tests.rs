use std::task::{Context, Waker};

use super::*;
use crate::lanes::guard::{Arrival, Arrived};
use crate::lanes::pool::PoolKey;
use crate::lanes::settings::Settings;
use crate::link::server::Upstream;
use crate::link::shared::{Labels, tests::facts};

fn settings() -> Settings {
    let text = include_str!("../../../tests/contract.toml");
    // The hub knows no configuration file; a test may.
    crate::config::check(text, std::path::Path::new("contract.toml"))
        .expect("the contract's own sample")
        .0
        .settings
}

pub(crate) fn hub() -> (Arc<Hub>, mpsc::UnboundedReceiver<Event>) {
    hub_with(|_| {})
}

pub(crate) fn hub_with(change: impl FnOnce(&mut Settings)) -> (Arc<Hub>, mpsc::UnboundedReceiver<Event>) {
    let mut settings = settings();
    change(&mut settings);
    let (events, queue) = mpsc::unbounded_channel();
    let link_settings = LinkSettings {
        upstream_tls: None,
        doors: Vec::new(),
        connect_timeout: Duration::from_secs(1),
        tag_application_name: false,
        startup_timeout: Duration::from_secs(1),
        dead_after: Duration::ZERO,
        allow_trust: false,
        own_auth: None,
        log_literals: false,
        max_clients: 10,
    };
    let rules = Rules::new(&settings);
    // Without a monitor, so that nobody waits for a first sample.
    settings.limits.monitored = false;
    let guard = Guard::new(settings, 1, clock::now());
    (Arc::new(Hub::new(guard, rules, link_settings, events)), queue)
}

/// A link as it stands in the middle of its life: registered, with a process, a cancel key and a granted slot.
pub(crate) fn link(hub: &Arc<Hub>, pid: i32) -> (Registered, Slot) {
    link_with(hub, pid, CancelKeys::new(&[1], &[2]))
}

/// Somebody who comes into a lane, for a pooled connection where there is a key.
pub(crate) fn odoo(lane: LaneId, key: Option<PoolKey>) -> Arrival {
    let word: Arc<str> = "odoo".into();
    Arrival {
        lane,
        application: word.clone(),
        user: word.clone(),
        database: word,
        address: None,
        replication: false,
        nested: false,
        alone: false,
        key,
    }
}

fn link_with(hub: &Arc<Hub>, pid: i32, keys: CancelKeys) -> (Registered, Slot) {
    let lane = hub.guard(|guard, _| guard.lane("web")).expect("a lane web");
    let word: Arc<str> = "odoo".into();
    let id = hub.next_link();
    let labels = Labels {
        lane,
        lane_name: "web".into(),
        rule: word.clone(),
        application_name: word.clone(),
        facts: hub.facts.share(facts(&word)),
        process: None,
        statement: Vec::new(),
    };
    let shared = Arc::new(LinkShared::new(id, None, clock::now(), labels));
    let mut registered = Registered::new(hub.clone(), shared);
    registered.set_process(&ProcessKey::Pid(7));
    registered.set_key(pid, keys);
    assert_eq!(hub.guard(|guard, now| guard.arrive(now, id, odoo(lane, None))), Arrived::Granted);
    (registered, Slot::new(hub.clone(), id))
}

pub(crate) fn slots(hub: &Hub) -> u32 {
    hub.guard(|guard, now| guard.rows(now)).iter().map(|row| row.slots).sum()
}

#[test]
fn a_pid_of_two_servers_is_two_cancel_keys() {
    let (hub, _events) = hub();
    let server = |number| Server::new(number, Upstream::Tcp(format!("127.0.0.{number}"), 5432), None);
    let (old, new) = (server(1), server(2));
    let keyed = |server: &Arc<Server>| {
        let (registered, slot) = link_with(&hub, 42, CancelKeys::new(&[1], &[2]).at(server.clone()));
        registered.shared.pid.store(42, Ordering::Relaxed);
        (registered, slot)
    };
    let owners = |expected: &[&Registered]| {
        let mut found: Vec<LinkId> = hub.owners(42).iter().map(|link| link.id).collect();
        let mut expected: Vec<LinkId> = expected.iter().map(|link| link.shared.id).collect();
        found.sort();
        expected.sort();
        assert_eq!(found, expected);
    };
    hub.dial_only(Some(new.clone()));
    for late in [&old, &new] {
        // Whichever logged in first.
        let early = if late.number == 1 { &new } else { &old };
        let (first, _slot) = keyed(early);
        let (second, _other) = keyed(late);
        owners(&[&first, &second]);
        let here = |link: &Registered, on: &Arc<Server>| {
            assert_eq!(hub.pid_here(&link.shared), if on.number == 2 { 42 } else { 0 });
        };
        here(&first, early);
        here(&second, late);
        drop(second);
        owners(&[&first]);
        let (third, _other) = keyed(late);
        drop(first);
        owners(&[&third]);
        drop(third);
        owners(&[]);
        assert!(hub.keys_elsewhere.is_empty());
    }
}

#[test]
fn a_reload_that_spells_the_only_address_otherwise_makes_nobody_a_stranger() {
    let (hub, _events) = hub();
    let place = |host: &str| Upstream::Tcp(host.to_owned(), 5432);
    let here = |link: &Registered| hub.pid_here(&link.shared);
    let keyed = |pid: i32, server: &Arc<Server>| {
        let (registered, slot) = link_with(&hub, pid, CancelKeys::new(&[1], &[2]).at(server.clone()));
        registered.shared.pid.store(pid, Ordering::Relaxed);
        (registered, slot)
    };
    let first = Server::only(0, place("127.0.0.1"));
    hub.dial_only(Some(first.clone()));
    let chosen = hub.server.subscribe();
    let (link, _slot) = keyed(42, &first);
    let (epoch, second) = (hub.pool.epoch(), first.alone(place("localhost")));
    hub.dial_alone(second.clone());
    assert!(hub.dials(&first) && hub.pool.epoch() != epoch, "and nothing is pooled that was dialled before");
    assert!(!chosen.has_changed().expect("alive"), "no login is begun anew");
    let (other, _other) = keyed(43, &second);
    assert_eq!((here(&link), here(&other)), (42, 43));
    // Held, and served again, as another choice.
    let (a, b) = (Server::new(1, place("127.0.0.1"), None), Server::new(2, place("127.0.0.2"), None));
    hub.dial_only(None);
    assert_eq!((here(&link), chosen.has_changed().expect("alive")), (0, true));
    drop(chosen);
    for (server, pid) in [(&a, 42), (&b, 0), (&Server::new(3, place("127.0.0.1"), None), 42)] {
        hub.dial_only(Some(server.clone()));
        assert_eq!(here(&link), pid, "{server:?}");
    }
}

/// Counted, registered, reachable by cancel: all of it goes with the task, and nobody else notices.
#[tokio::test]
async fn a_panic_in_one_link_gives_everything_back_and_ends_that_link_only() {
    let (hub, _events) = hub();
    let other = link(&hub, 42);
    let doomed = hub.clone();
    let task = tokio::spawn(async move {
        let _held = link(&doomed, 42);
        assert_eq!((slots(&doomed), doomed.links.len()), (2, 2));
        panic!("a bug");
    });
    assert!(task.await.is_err_and(|error| error.is_panic()));
    assert_eq!((slots(&hub), hub.links.len()), (1, 1));
    assert!(hub.guard(|guard, _| guard.audit()).is_ok());
    drop(other);
    assert_eq!((slots(&hub), hub.links.len(), hub.keys.len(), hub.processes.lock().len()), (0, 0, 0, 0));
    hub.forget_processes();
    assert_eq!(hub.facts.len(), 0);
}

#[test]
fn a_dialled_slot_that_is_only_dropped_stays_counted_until_postgresql_confirms() {
    let (hub, _events) = hub();
    let (registered, mut slot) = link(&hub, 42);
    slot.dialled(None);
    drop(slot);
    drop(registered);
    assert_eq!(slots(&hub), 1, "a zombie");
    let (_registered, mut slot) = link(&hub, 42);
    slot.dialled(None);
    slot.released();
    assert_eq!(slots(&hub), 1, "only the zombie is left");
}

#[test]
fn the_ticker_rests_until_somebody_waits_and_is_told_once() {
    let (hub, _events) = hub();
    let is_told = || {
        let mut told = std::pin::pin!(hub.ticker.notified());
        told.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready()
    };
    assert_eq!(
        hub.tick(true),
        Rest::UntilTold(None),
        "nothing waits, and there is no monitor whose word could be stale"
    );
    // All that the lane has, and one who waits.
    let lane = hub.guard.lock().lane("web").expect("a lane web");
    let arrive = || {
        let id = hub.next_link();
        (id, hub.guard(|guard, now| guard.arrive(now, id, odoo(lane, None))))
    };
    let mut granted = Vec::new();
    let waiting = loop {
        match arrive() {
            (id, Arrived::Granted) => granted.push(id),
            (id, Arrived::Waiting(_)) => break id,
            (_, arrived) => panic!("{arrived:?}"),
        }
        assert!(
            granted.len() < 1000 && !hub.tick_wanted.load(Ordering::Relaxed),
            "a grant waits for no time"
        );
    };
    assert!(is_told() && !is_told(), "by the first who waits, and once");
    let (other, arrived) = arrive();
    assert!(matches!(arrived, Arrived::Waiting(_)) && !is_told(), "it looks for itself now");
    assert!(matches!(hub.tick(true), Rest::For(_)));
    for id in [waiting, other] {
        hub.guard(|guard, now| guard.hang_up(now, id));
    }
    assert!(matches!(hub.tick(false), Rest::For(_)), "who was told stays for one more turn");
    assert!(!is_told());
    assert_eq!(hub.tick(true), Rest::UntilTold(None));
    arrive();
    assert!(is_told());
}
