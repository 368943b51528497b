//! Several servers: which one is dialled, and how links leave one that is not any more. `upstream/targets` decides; this does it.

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
use crate::upstream::targets::{Decision, Seen, Targets};

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
}

impl App {
    /// Begins with the servers of the configuration in force. One that is dialled and still among them stays until more is known.
    pub(super) fn choose_servers(&self) {
        let mut choosing = self.choosing.lock();
        let config = self.config.load();
        choosing.generation += 1;
        choosing.endpoints.clone_from(&config.upstream.endpoints);
        let (current, at) = {
            let mut targets = self.targets.lock();
            let mut new = targets_of(&config);
            new.inherit(&targets);
            *targets = new;
            (targets.current_index(), targets.current_at())
        };
        let endpoint = current.and_then(|current| config.upstream.endpoints.get(current));
        let old = self.hub.server.borrow().clone();
        let is_same = |old: &Server, endpoint| {
            old.place == setup::place(endpoint) && old.at.zip(at).is_none_or(|(was, is)| was == is)
        };
        if let Some(old) = old.filter(|old| endpoint.is_some_and(|endpoint| is_same(old, endpoint))) {
            self.hub.dial_at(old.at(at));
            return;
        }
        self.hub.dial_only(endpoint.map(|endpoint| self.server(endpoint, at)));
        if config.upstream.is_watched() && current.is_none() {
            self.unreachable.store(None);
        }
    }

    fn server(&self, endpoint: &Endpoint, at: Option<std::net::IpAddr>) -> Arc<Server> {
        let number = self.servers.fetch_add(1, Ordering::Relaxed);
        Server::new(number, setup::place(endpoint), at)
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

    /// Time has passed.
    pub(super) fn look_again(&self, generation: u64, monitors: &[MonitorHandle]) {
        let choosing = self.choosing.lock();
        if choosing.generation == generation {
            let decisions = self.targets.lock().tick(clock::now());
            self.carry_out_decisions(&choosing, decisions, monitors);
        }
    }

    /// A monitor of one of a list has seen its server.
    pub(super) fn saw(&self, generation: u64, index: usize, seen: Seen, monitors: &[MonitorHandle]) {
        let choosing = self.choosing.lock();
        if choosing.generation != generation {
            return;
        }
        let text = match seen.cause() {
            "" => seen.word().to_owned(),
            cause => format!("{}: {cause}", seen.word()),
        };
        let (changed, decisions, name, several, settled, highest) = {
            let mut targets = self.targets.lock();
            let (changed, decisions) = targets.saw(clock::now(), index, seen);
            let name = targets.all().get(index).map(|target| target.name.clone()).unwrap_or_default();
            let several = targets.all().len() > 1;
            (changed, decisions, name, several, targets.is_settled(), targets.highest())
        };
        if changed && several {
            tracing::info!(upstream = name, seen = text, "a server was looked at");
            self.note("upstream_seen", "", None, &format!("{name} is {text}"));
        }
        self.carry_out_decisions(&choosing, decisions, monitors);
        for monitor in monitors {
            monitor.left_behind_by(highest);
            monitor.hurry(!settled);
        }
    }

    fn carry_out_decisions(&self, choosing: &Choosing, decisions: Vec<Decision>, monitors: &[MonitorHandle]) {
        for decision in decisions {
            match decision {
                Decision::Serve { target, at, lost } => {
                    if let Some(endpoint) = choosing.endpoints.get(target) {
                        self.serve(target, endpoint, at, lost, monitors);
                    }
                }
                Decision::Found(at) => self.found(at),
                Decision::Hold => self.hold(monitors),
                Decision::Split(which) => self.split(&which),
                Decision::SplitOver => self.note("upstream_split", "", None, "one primary again"),
                Decision::Stale(which) => self.stale(&which),
            }
        }
    }

    fn found(&self, at: Option<std::net::IpAddr>) {
        let old = self.hub.server.borrow().clone();
        if let Some(old) = old {
            self.hub.dial_at(old.at(at));
            // Its name may have led links to others.
            self.leave(clock::now());
        }
    }

    fn serve(
        &self,
        target: usize,
        endpoint: &Endpoint,
        at: Option<std::net::IpAddr>,
        lost: bool,
        monitors: &[MonitorHandle],
    ) {
        let old = self.hub.server.borrow().clone();
        if let Some(old) = old.as_ref().filter(|_| lost) {
            old.mark_lost();
        }
        // Sampled by the time its first link is there.
        for (index, monitor) in monitors.iter().enumerate() {
            monitor.sample(index == target);
        }
        self.monitor.store(monitors.get(target).cloned().map(Arc::new));
        self.sample.store(None);
        self.unreachable.store(None);
        let server = self.server(endpoint, at);
        let first = server.number == 0;
        self.hub.dial_only(Some(server));
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
        if first {
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
        monitors.iter().for_each(|monitor| monitor.sample(false));
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

    /// Links on servers that are not dialled any more are to end.
    fn leave(&self, now: Moment) {
        *self.left.lock() = Some(now);
        self.end_left_links(now);
    }

    /// Tells links on servers that are not dialled any more to end: outside a transaction at once, else with it. PostgreSQL refuses writes
    /// on them for ever, and Odoo repeats what is refused on the same connection. Where the server is silent and was replaced, nothing can come
    /// of a transaction: it ends at once, not when the network gives up. Repeated, for links may have been logging in when they were told.
    pub(super) fn end_left_links(&self, now: Moment) {
        let Some(since) = *self.left.lock() else { return };
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
