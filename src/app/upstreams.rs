//! Several servers: which one is dialled, and how links leave one that is not any more. `upstream/targets` decides; this does it.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{App, setup};
use crate::clock::{self, Moment};
use crate::config::checked::Config;
use crate::config::settings::Endpoint;
use crate::incident::servers::Servers;
use crate::incident::state::StateError;
use crate::link::server::Server;
use crate::link::shared::Command;
use crate::reason::{Reason, Refusal};
use crate::snapshot::UpstreamRow;
use crate::upstream::monitor::{ELSEWHERE, MonitorHandle};
use crate::upstream::targets::{Decision, GRACE, Memory, Seen, Target, Targets};

/// How an operator has pgweir go on with a server that it does not dial.
const GO_ON: &str = "make it the only [upstream] address of each pgweir, without target_session_attrs, and reload; stop the others and \
     rebuild them from it (pg_basebackup, pg_rewind), then write the list again";

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
    /// What the state directory holds of them, or will in a moment.
    kept: Servers,
}

impl App {
    /// Takes what the last run knew of the servers: to be called before they are chosen among. A file that is of no use is put aside, and nothing
    /// is known then. Blocks on the disk.
    pub(super) fn recall_servers(&self) {
        let kept = self.servers_file.load().unwrap_or_else(|error| {
            let why = match error {
                StateError::Corrupt { file, why, .. } => format!("{}: {why}", file.display()),
                error => error.to_string(),
            };
            let done = match self.servers_file.set_aside(clock::wall_now()) {
                Ok(path) => format!("it was put aside as {}", path.display()),
                Err(error) => format!("it could not be put aside ({error}), and is not written over: a restart will not know of the servers either"),
            };
            let text = format!(
                "{why}: {done}. Which cluster was served, and its timeline, is not known: a primary that was left behind would not be noticed"
            );
            tracing::error!("{text}");
            self.note("upstream", "", None, &text);
            Servers::default()
        });
        let memory = Memory { system: kept.system_identifier, timeline: kept.timeline };
        self.targets.lock().restore(memory, &kept.addresses);
        self.choosing.lock().kept = kept;
    }

    /// Keeps what is known of the servers over a restart, where that has changed. Nobody waits for the disk.
    fn keep_servers(&self, choosing: &mut Choosing) {
        let known = {
            let targets = self.targets.lock();
            let Memory { system, timeline } = targets.memory();
            let addresses = targets.all().iter().map(|target| target.name.clone()).collect();
            Servers { addresses, system_identifier: system, timeline }
        };
        if known == choosing.kept || known.is_nothing() && choosing.kept.is_nothing() {
            return;
        }
        let before = std::mem::replace(&mut choosing.kept, known.clone());
        if known.is_nothing() {
            let identifier =
                before.system_identifier.map_or("not known".to_owned(), |system| system.to_string());
            let text = format!(
                "what was known of the servers before is forgotten (timeline {}, system identifier {identifier}): whatever is there now may be dialled",
                before.timeline
            );
            tracing::warn!("{text}");
            self.note("upstream", "", None, &text);
        }
        let file = self.servers_file.clone();
        file.want(known);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = file.write() {
                tracing::error!(%error, "which cluster is served, and its timeline, could not be saved: a restart will not know of it. It is tried again each second");
            }
        });
    }

    /// What could not be saved is tried again. Nobody waits for the disk.
    pub(super) fn keep_servers_after_all(&self) {
        if !self.servers_file.is_due() {
            return;
        }
        let file = self.servers_file.clone();
        tokio::task::spawn_blocking(move || {
            // What stands in the way was said when it failed first.
            if file.write().is_ok() {
                tracing::info!("which cluster is served, and its timeline, is saved");
            }
        });
    }

    /// The last word of the process about them. Blocks on the disk.
    pub(super) fn keep_servers_at_the_end(&self) {
        if let Err(error) = self.servers_file.write() {
            tracing::error!(%error, "which cluster is served, and its timeline, could not be saved");
        }
    }

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
        self.keep_servers(&mut choosing);
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
        if targets.all().iter().all(|target| targets.objection(target).is_empty()) {
            return format!("no server is {} ({})", targets.wants().word(), targets.summary());
        }
        format!(
            "no server will do ({}; how to go on with one that is refused is in docs/high-availability.md)",
            targets.summary()
        )
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
        match targets.current() {
            None => {
                Some(format!("no server is dialled, and each has pids of its own ({})", targets.summary()))
            }
            Some(_) => targets.is_seen_elsewhere().then(|| ELSEWHERE.to_owned()),
        }
    }

    /// Time has passed.
    pub(super) fn look_again(&self, generation: u64, monitors: &[MonitorHandle]) {
        self.keep_servers_after_all();
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
        let (changed, decisions, name, several) = {
            let mut targets = self.targets.lock();
            let (changed, decisions) = targets.saw_at(clock::now(), index, seen, from);
            let name = targets.all().get(index).map(|target| target.name.clone()).unwrap_or_default();
            let several = targets.all().len() > 1;
            (changed, decisions, name, several)
        };
        if changed && several {
            tracing::info!(upstream = name, seen = text, "a server was looked at");
            self.note("upstream_seen", "", None, &format!("{name} is {text}"));
        }
        let is_news = changed || !decisions.is_empty();
        self.carry_out_decisions(&mut choosing, decisions, monitors);
        if is_news {
            self.lose_the_silent(&choosing);
        }
    }

    /// A server that was left while it seemed to live, or while there was no other, and is silent by now: nothing can come of what is under way
    /// there either.
    fn lose_the_silent(&self, choosing: &Choosing) {
        let Some(current) = self.hub.server.borrow().clone() else { return };
        let silent: Vec<Arc<Server>> = {
            let targets = self.targets.lock();
            let found = |(target, at): (&Target, Option<IpAddr>)| {
                let endpoint = choosing.endpoints.iter().find(|one| one.to_string() == target.name)?;
                // A name that is not known to lead anywhere is no silence of its servers.
                let is_known = at.is_some() || matches!(endpoint, Endpoint::Unix { .. });
                is_known.then(|| Server::new(0, setup::place(endpoint), at))
            };
            targets.silent_elsewhere().filter_map(found).collect()
        };
        if silent.is_empty() {
            return;
        }
        let mut found = false;
        for link in self.links() {
            let Some(server) = link.cancel_keys().and_then(|keys| keys.server()) else { continue };
            // All of one choice are lost as one.
            let is_left = !current.is(server) && current.number != server.number;
            if is_left && !server.is_lost() && silent.iter().any(|silent| silent.is_at(server)) {
                server.mark_lost();
                found = true;
            }
        }
        if found {
            self.leave(clock::now());
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
                Decision::Foreign(which) => self.foreign(which),
            }
        }
        self.keep_servers(choosing);
        let (settled, memory) = {
            let targets = self.targets.lock();
            (targets.is_settled(), targets.memory())
        };
        for monitor in monitors {
            monitor.left_behind_by(memory);
            monitor.hurry(!settled);
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
            "{} would take writes but was left behind: another server was promoted after it, or it is a backup from before the last promotion, and \
             what is written there may be thrown away. It is not dialled ({}). If it is the one to go on with, {GO_ON}",
            self.names(which),
            self.targets.lock().summary()
        );
        tracing::error!("{text}");
        self.note("upstream_stale", "", None, &text);
    }

    fn foreign(&self, which: usize) {
        let text = {
            let targets = self.targets.lock();
            let Some(target) = targets.all().get(which) else { return };
            format!(
                "{} is {}. It is not dialled, whatever becomes of the others. If it is the one to go on with, {}",
                target.name,
                targets.objection(target),
                GO_ON
            )
        };
        tracing::error!("{text}");
        self.note("upstream_foreign", "", None, &text);
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
        let row = |(index, target): (usize, &Target)| UpstreamRow {
            address: target.name.clone(),
            ip: match target.seen {
                Seen::Is { at: Some(ip), .. } => ip.to_string(),
                _ => String::new(),
            },
            role: target.seen.word(),
            current: current == Some(index),
            since_ms: u64::try_from(now.since(target.since).as_millis()).unwrap_or(u64::MAX),
            timeline: match target.seen {
                Seen::Is { role, .. } => Some(role.timeline()).filter(|timeline| *timeline > 0),
                _ => None,
            },
            cause: match target.seen.cause() {
                "" => targets.objection(target),
                cause => cause.to_owned(),
            },
        };
        targets.all().iter().enumerate().map(row).collect()
    }
}
