//! Several servers: which one is dialled, and how links leave one that is not any more. `upstream/targets` decides; this does it.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{App, setup};
use crate::clock::{self, Moment};
use crate::config::checked::Config;
use crate::config::settings::Endpoint;
use crate::link::server::Server;
use crate::link::shared::Command;
use crate::reason::{Reason, Refusal};
use crate::snapshot::UpstreamRow;
use crate::upstream::monitor::MonitorHandle;
use crate::upstream::targets::{Decision, GRACE, Seen, Targets};

/// The servers of a configuration, of which nothing is known yet.
pub(super) fn targets_of(config: &Config) -> Targets {
    let now = clock::now();
    if config.upstream.is_watched() {
        let names = config.upstream.endpoints.iter().map(ToString::to_string).collect();
        Targets::new(setup::wants(config.upstream.session), names, now)
    } else {
        Targets::fixed(config.upstream.addresses(), now)
    }
}

/// Servers among which is chosen.
#[derive(Default)]
pub(super) struct Choosing {
    /// Another number with each list of servers: what monitors of an earlier list say is nothing to this one.
    generation: u64,
    endpoints: Vec<Endpoint>,
    /// Whether it is decided which one is dialled; the only one is dialled whatever it is.
    watched: bool,
    /// Who was dialled last.
    last: Option<Arc<Server>>,
}

impl App {
    /// Begins with the servers of the configuration in force. One that is dialled and still among them stays until more is known. Where there is
    /// one address, before and after, links stay where they are: nobody says that it is another server.
    pub(super) fn choose_servers(&self) {
        let mut choosing = self.choosing.lock();
        let config = self.config.load();
        choosing.generation += 1;
        choosing.endpoints.clone_from(&config.upstream.endpoints);
        let watched = config.upstream.is_watched();
        let was_watched = std::mem::replace(&mut choosing.watched, watched);
        let (current, at) = {
            let mut targets = self.targets.lock();
            let mut new = targets_of(&config);
            new.inherit(&targets);
            *targets = new;
            (targets.current_index(), targets.current_at())
        };
        let place = current.and_then(|current| config.upstream.endpoints.get(current)).map(setup::place);
        let old = self.hub.server.borrow().clone();
        if old.is_some() {
            choosing.last.clone_from(&old);
        }
        match (old, place) {
            (Some(old), Some(place)) if !watched && !was_watched => self.hub.dial_alone(old.alone(place)),
            (Some(old), Some(place)) if old.place == place => {
                self.hub.dial_at(if watched { old.among_others(at) } else { old.alone(place) });
            }
            (_, place) => {
                self.monitor.store(None);
                self.sample.store(None);
                if watched && place.is_none() {
                    self.unreachable.store(None);
                }
                self.hub.dial_only(place.map(|place| {
                    let number = self.next_number();
                    if watched { Server::new(number, place, at) } else { Server::only(number, place) }
                }));
            }
        }
        if watched || was_watched {
            // Where nobody is chosen yet it may be the same one, under another name: links are told when it is known, or when it should be.
            let patience =
                if current.is_some() { Duration::ZERO } else { GRACE + config.upstream.connect_timeout };
            self.leave(clock::now() + patience);
        }
    }

    fn next_number(&self) -> u32 {
        self.servers.fetch_add(1, Ordering::Relaxed)
    }

    /// The server that is sampled, and where probes ask; none while none is known that will do.
    pub(super) fn monitored(&self, config: &Config) -> Option<Endpoint> {
        if !config.upstream.is_watched() {
            return config.monitor.as_ref().map(|monitor| monitor.endpoint.clone());
        }
        // By its name: the configuration may be newer than the choice.
        let name = self.targets.lock().current()?.name.clone();
        config.upstream.endpoints.iter().find(|endpoint| endpoint.to_string() == name).cloned()
    }

    /// Why nobody is dialled, for people.
    pub(super) fn no_server(&self) -> String {
        let targets = self.targets.lock();
        format!("no server is {} ({})", targets.wants().word(), targets.summary())
    }

    /// Which list of servers is in force.
    pub(super) fn generation(&self) -> u64 {
        self.choosing.lock().generation
    }

    /// Whether a server of a list is the one that is dialled.
    pub(super) fn is_dialled(&self, generation: u64, index: usize) -> bool {
        let choosing = self.choosing.lock();
        let targets = self.targets.lock();
        choosing.generation == generation
            && targets.current_index() == Some(index)
            && !targets.is_seen_elsewhere()
    }

    /// Why a pid may not be taken for one of the server that is dialled: the monitor's session is with another one, or nobody is dialled.
    pub(super) fn monitor_is_elsewhere(&self) -> Option<String> {
        let targets = self.targets.lock();
        let elsewhere = "the monitor is at another server of the same name at the moment, which may have the same pid: ask again";
        match targets.current() {
            None => {
                Some(format!("no server is dialled, and each has pids of its own ({})", targets.summary()))
            }
            Some(_) => targets.is_seen_elsewhere().then(|| elsewhere.to_owned()),
        }
    }

    /// Time has passed.
    pub(super) fn look_again(&self, generation: u64, monitors: &[MonitorHandle]) {
        let mut choosing = self.choosing.lock();
        if choosing.generation == generation {
            let decisions = self.targets.lock().tick(clock::now());
            self.carry_out_decisions(&mut choosing, decisions, monitors);
        }
    }

    /// The resolver has said where the name of one of a list leads.
    pub(super) fn named(
        &self,
        generation: u64,
        index: usize,
        addresses: Vec<IpAddr>,
        monitors: &[MonitorHandle],
    ) {
        let mut choosing = self.choosing.lock();
        if choosing.generation == generation {
            let decisions = self.targets.lock().leads(clock::now(), index, addresses);
            self.carry_out_decisions(&mut choosing, decisions, monitors);
        }
    }

    /// A monitor of one of a list has seen its server.
    pub(super) fn saw(
        &self,
        generation: u64,
        index: usize,
        (seen, from): (Seen, Option<IpAddr>),
        monitors: &[MonitorHandle],
    ) {
        let mut choosing = self.choosing.lock();
        if choosing.generation != generation {
            return;
        }
        let text = match seen.cause() {
            "" => seen.word().to_owned(),
            cause => format!("{}: {cause}", seen.word()),
        };
        let (changed, decisions, name, several, settled, highest) = {
            let mut targets = self.targets.lock();
            let (changed, decisions) = targets.saw_at(clock::now(), index, seen, from);
            let name = targets.all().get(index).map(|target| target.name.clone()).unwrap_or_default();
            let several = targets.all().len() > 1;
            (changed, decisions, name, several, targets.is_settled(), targets.highest())
        };
        if changed && several {
            tracing::info!(upstream = name, seen = text, "a server was looked at");
            self.note("upstream_seen", "", None, &format!("{name} is {text}"));
        }
        self.carry_out_decisions(&mut choosing, decisions, monitors);
        for monitor in monitors {
            monitor.left_behind_by(highest);
            monitor.hurry(!settled);
        }
    }

    fn carry_out_decisions(
        &self,
        choosing: &mut Choosing,
        decisions: Vec<Decision>,
        monitors: &[MonitorHandle],
    ) {
        for decision in decisions {
            match decision {
                Decision::Serve { target, at, lost } => self.serve(choosing, (target, at), lost, monitors),
                Decision::Found(at) => self.found(at, monitors),
                Decision::Hold => self.hold(monitors),
                Decision::Split(which) => self.split(&which),
                Decision::SplitOver => self.note("upstream_split", "", None, "one primary again"),
                Decision::Stale(which) => self.stale(&which),
            }
        }
    }

    fn found(&self, at: Option<IpAddr>, monitors: &[MonitorHandle]) {
        let old = self.hub.server.borrow().clone();
        let current = self.targets.lock().current_index();
        if let Some(monitor) = current.and_then(|current| monitors.get(current)) {
            monitor.dialled(at);
        }
        if let Some(old) = old {
            self.hub.dial_at(old.at(at));
            // Its name may have led links to others.
            self.leave(clock::now());
        }
    }

    fn serve(
        &self,
        choosing: &mut Choosing,
        (target, at): (usize, Option<IpAddr>),
        lost: bool,
        monitors: &[MonitorHandle],
    ) {
        let Some(endpoint) = choosing.endpoints.get(target) else { return };
        let old = self.hub.server.borrow().clone();
        if let Some(old) = old.as_ref().filter(|_| lost) {
            old.mark_lost();
        }
        // Sampled by the time its first link is there.
        for (index, monitor) in monitors.iter().enumerate() {
            monitor.dialled(at.filter(|_| index == target));
            monitor.sample(index == target);
        }
        self.monitor.store(monitors.get(target).cloned().map(Arc::new));
        self.sample.store(None);
        self.unreachable.store(None);
        let server = Server::new(self.next_number(), setup::place(endpoint), at);
        self.hub.dial_only(Some(server.clone()));
        // What was asked for before is of no use any more.
        monitors.iter().skip(target).take(1).for_each(MonitorHandle::sample_now);
        let shown = match at {
            Some(ip) if !matches!(endpoint, Endpoint::Tcp { host, .. } if **host == ip.to_string()) => {
                format!("{endpoint} ({ip})")
            }
            _ => endpoint.to_string(),
        };
        let text = {
            let targets = self.targets.lock();
            format!("{shown} is dialled from now on: {}", targets.summary())
        };
        let last = choosing.last.replace(server.clone());
        if last.is_none_or(|last| server.is(&last)) {
            tracing::info!("{text}");
            self.note("upstream", "", None, &text);
        } else {
            self.switches.fetch_add(1, Ordering::Relaxed);
            tracing::warn!("switched: {text}");
            self.note("upstream_switched", "", None, &text);
        }
        self.leave(clock::now());
    }

    fn hold(&self, monitors: &[MonitorHandle]) {
        for monitor in monitors {
            monitor.dialled(None);
            monitor.sample(false);
        }
        self.hub.dial_only(None);
        self.sample.store(None);
        self.unreachable.store(None);
        let text = format!("{}: newcomers wait", self.no_server());
        tracing::warn!("{text}");
        self.note("upstream_hold", "", None, &text);
        self.leave(clock::now());
    }

    fn split(&self, which: &[usize]) {
        let text = format!(
            "SPLIT BRAIN: {} both take writes. Clients are led to the one promoted last, and stay where they are if none is known to be that; \
             stop the one that should not be primary",
            self.names(which)
        );
        tracing::error!("{text}");
        self.note("upstream_split", "", None, &text);
    }

    fn stale(&self, which: &[usize]) {
        let text = format!(
            "{} would take writes but was left behind: another server was promoted after it, and what is written there would be thrown away. \
             It is not dialled ({}). If it is the one to go on with, make it the only [upstream] address and reload",
            self.names(which),
            self.targets.lock().summary()
        );
        tracing::error!("{text}");
        self.note("upstream_stale", "", None, &text);
    }

    fn names(&self, which: &[usize]) -> String {
        let targets = self.targets.lock();
        let names: Vec<&str> =
            which.iter().filter_map(|at| Some(targets.all().get(*at)?.name.as_str())).collect();
        names.join(" and ")
    }

    /// Links on servers that are not dialled any more are to end, then.
    fn leave(&self, then: Moment) {
        *self.left.lock() = Some(then);
        self.end_left_links(clock::now());
    }

    /// Tells links on servers that are not dialled any more to end: outside a transaction at once, else with it. PostgreSQL refuses writes
    /// on them for ever, and Odoo repeats what is refused on the same connection. Where the server is silent and was replaced, nothing can come
    /// of a transaction: it ends at once, not when the network gives up. Repeated, for links may have been logging in when they were told.
    pub(super) fn end_left_links(&self, now: Moment) {
        let Some(since) = self.left.lock().filter(|since| *since <= now) else { return };
        let current = self.hub.server.borrow().clone();
        let mut found = false;
        for link in self.links() {
            let Some(server) = link.cancel_keys().and_then(|keys| keys.server()) else { continue };
            if current.as_ref().is_some_and(|current| current.is(server)) {
                continue;
            }
            found = true;
            let detail = if server.is_lost() { "its server does not answer" } else { "its server was left" };
            let refusal = Refusal::new(Reason::UpstreamSwitched, detail, "connect again");
            link.post(if server.is_lost() {
                Command::Close { generation: None, refusal }
            } else {
                Command::Leave(refusal)
            });
        }
        let logins = {
            let settings = self.hub.settings.load();
            settings.connect_timeout + settings.startup_timeout + Duration::from_secs(1)
        };
        if !found && now.since(since) > logins {
            *self.left.lock() = None;
        }
    }

    pub(super) fn upstream_rows(&self) -> Vec<UpstreamRow> {
        let now = clock::now();
        let targets = self.targets.lock();
        let current = targets.current_index();
        let row = |(index, target): (usize, &crate::upstream::targets::Target)| UpstreamRow {
            address: target.name.clone(),
            ip: match target.seen {
                Seen::Is(_, Some(ip)) => ip.to_string(),
                _ => String::new(),
            },
            role: target.seen.word(),
            current: current == Some(index),
            since_ms: u64::try_from(now.since(target.since).as_millis()).unwrap_or(u64::MAX),
            timeline: match target.seen {
                Seen::Is(role, _) => Some(role.timeline()).filter(|timeline| *timeline > 0),
                _ => None,
            },
            cause: target.seen.cause().to_owned(),
        };
        targets.all().iter().enumerate().map(row).collect()
    }
}
