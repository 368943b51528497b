//! Admission: one function, [`Guard::pass`], after every event.
//!
//! Lanes below their reserve come first, then by priority, then by who waits longest; inside a lane first come first served, but one who
//! is stopped by a limit of its own does not stop those behind it. One who is stopped by nothing but the pace of logins keeps its
//! place in budget and application against worse lanes (an *earmark*): or a slow login would hand a user's slot to a batch job.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::guard::{Guard, Lane};
use super::ids::{LaneId, LinkId};
use super::ledger::{Link, Phase};
use super::queue::Place;
use super::rest::{Relief, WAITERS_MAX};
use super::settings::ApplicationSettings;
use crate::clock::Moment;
use crate::reason::Reason;

/// Who of a lane was stopped by the pace of logins in the last pass.
#[derive(Clone, Debug, Default)]
pub(super) struct Stops {
    /// By the lane's own limit.
    pub lane_logins: bool,
    /// By the limit of all lanes.
    pub all_logins: bool,
    /// By an address's.
    pub addresses: BTreeSet<IpAddr>,
    /// By `connect_rate`.
    pub rate: bool,
}

/// Slots kept for waiters stopped only by the pace of logins.
#[derive(Clone, Debug, Default)]
pub(super) struct Earmarks {
    /// Non-replication slots.
    own: u32,
    /// Slots, replication included: what counts against the lane.
    lane: u32,
    by_application: BTreeMap<Arc<str>, u32>,
}

/// What better lanes have earmarked, beyond what is reserved for them anyway.
#[derive(Clone, Debug, Default)]
pub(super) struct Claims {
    own: u32,
    by_application: BTreeMap<Arc<str>, u32>,
}

/// What stops a waiter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// Its lane: those behind it are stopped as well.
    Lane(Reason),
    /// Itself.
    Link(Reason),
}

impl Stop {
    pub(super) fn reason(self) -> Reason {
        match self {
            Self::Lane(reason) | Self::Link(reason) => reason,
        }
    }
}

/// What a waiter may have now, or what is to be done first.
#[derive(Clone, Copy, Debug)]
enum Next {
    /// It may dial.
    Dial(LinkId),
    /// It may have a pooled connection.
    Reuse(LinkId, LinkId),
    /// A pooled connection is in its way.
    Evict(LinkId),
}

/// What stops a login that nothing else stops.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pace {
    LaneLogins,
    AllLogins,
    Address(IpAddr),
    Rate,
}

impl Pace {
    fn reason(self) -> Reason {
        match self {
            Self::Rate => Reason::ConnectRate,
            _ => Reason::LoginLimit,
        }
    }
}

impl Guard {
    /// Grants everything that may be granted now.
    pub(super) fn pass(&mut self, now: Moment) {
        for index in 0..self.lanes.len() {
            self.lanes[index].stops = Stops::default();
        }
        if self.ledger.counts().waiting == 0 {
            return;
        }
        if self.limits.observe {
            return self.pass_observing(now);
        }
        self.count_newly_shed();
        while self.ledger.counts().waiting > 0
            && let Some(next) = self.next_grant(now)
        {
            match next {
                Next::Dial(link) => self.grant(now, link),
                Next::Reuse(link, pooled) => self.hand_over(now, link, pooled),
                Next::Evict(pooled) => self.evict(pooled),
            }
            self.evaluate_shed(now);
            self.trim_pool();
            self.count_newly_shed();
        }
    }

    /// Observe mode: record what would stop a link, and let it go.
    fn pass_observing(&mut self, now: Moment) {
        let queues = self.lanes.iter().flat_map(|lane| lane.queue.iter());
        for link in queues.map(|(_, link)| link).collect::<Vec<_>>() {
            let Some(known) = self.ledger.get(link).filter(|known| known.extra().not_before <= now) else {
                continue;
            };
            let (home, first) = (known.home, known.extra().failures == 0);
            let stop = self.stop(now, link, &Claims::default(), &Earmarks::default()).map(Stop::reason);
            let stop = stop.or_else(|| self.pace(now, link).map(Pace::reason));
            if let Some(reason) = stop.filter(|_| first) {
                if matches!(reason, Reason::Shed | Reason::MonitorStale) && self.lane_ref(home).shed.is_on() {
                    self.count_shed(link);
                }
                self.observed(now, link, reason, false);
            }
            match self.resting_for(link) {
                Some(pooled) => self.hand_over(now, link, pooled),
                None => self.grant(now, link),
            }
            self.evaluate_shed(now);
            self.trim_pool();
        }
    }

    fn count_newly_shed(&mut self) {
        for index in 0..self.lanes.len() {
            let lane = &self.lanes[index];
            if !lane.shed.is_on() || lane.queue.is_empty() {
                continue;
            }
            let uncounted = |link: &LinkId| self.ledger.get(*link).is_some_and(|known| !known.shed);
            let waiting = lane.queue.iter().map(|(_, link)| link);
            for link in waiting.filter(uncounted).collect::<Vec<_>>() {
                self.count_shed(link);
            }
        }
    }

    pub(super) fn grant(&mut self, now: Moment, link: LinkId) {
        let granted = self.ledger.update(link, |known| {
            known.phase = Phase::Dialling;
            known.dialled_at = now;
            (known.home, known.extra().place, !std::mem::replace(&mut known.admitted, true))
        });
        let Some((home, place, first)) = granted else { return };
        let lane = self.lane_mut(home);
        if !lane.settings.protected {
            lane.rate.take(now);
            self.breaker.granted(link);
        }
        self.note_granted(now, link, home, place, first);
        self.grant_action(link);
    }

    /// It is not in the queue any more, but admitted.
    pub(super) fn note_granted(
        &mut self,
        now: Moment,
        link: LinkId,
        home: LaneId,
        place: Place,
        first: bool,
    ) {
        let observe = self.limits.observe;
        let lane = self.lane_mut(home);
        lane.queue.remove(place);
        lane.counters.admitted += u64::from(first);
        if first && !observe && lane.passes_pause(place) {
            self.exempted(now, home, link);
        }
    }

    fn next_grant(&mut self, now: Moment) -> Option<Next> {
        let waiting = self.order.iter().filter(|lane| !self.lane_ref(**lane).queue.is_empty());
        let waiting: Vec<LaneId> = waiting.copied().collect();
        for lane in waiting.iter().filter(|lane| self.below_floor(**lane, 0, 0)) {
            let found = self.first_floor_waiter(now, *lane);
            if found.is_some() {
                return found;
            }
        }
        let mut waiting: Vec<_> = waiting
            .into_iter()
            .map(|id| {
                let lane = self.lane_ref(id);
                (lane.settings.priority, lane.queue.oldest(), id)
            })
            .collect();
        // Stable: what is alike stays in file order.
        waiting.sort_by_key(|(priority, oldest, _)| (*priority, *oldest));
        let mut claims = Claims::default();
        let mut relief = Relief::default();
        for same in waiting.chunk_by(|a, b| a.0 == b.0) {
            let mut new = Vec::new();
            for (_, _, lane) in same {
                let mut stops = Stops::default();
                let mut earmarks = Earmarks::default();
                let found = self.scan(now, *lane, &claims, &mut earmarks, (&mut stops, &mut relief));
                self.lane_mut(*lane).stops = stops;
                if found.is_some() {
                    return found;
                }
                new.push((*lane, earmarks));
            }
            new.into_iter().for_each(|(lane, earmarks)| self.claim(&mut claims, lane, earmarks));
        }
        None
    }

    fn first_floor_waiter(&self, now: Moment, lane: LaneId) -> Option<Next> {
        let nothing = (Claims::default(), Earmarks::default());
        for (_, link) in self.lane_ref(lane).queue.iter() {
            if self.ledger.get(link).is_none_or(|known| known.who.replication) {
                continue;
            }
            if let Some(pooled) = self.reusable(now, link, &nothing.0, &nothing.1) {
                return Some(Next::Reuse(link, pooled));
            }
            match self.stop(now, link, &nothing.0, &nothing.1) {
                None => match self.pace(now, link) {
                    None => return Some(Next::Dial(link)),
                    Some(Pace::Address(_)) => {}
                    Some(_) => return None,
                },
                Some(Stop::Link(Reason::UpstreamBudget)) => return None,
                // As in `scan`.
                Some(Stop::Lane(_)) => return None,
                Some(Stop::Link(_)) => {}
            }
        }
        None
    }

    /// The first in a lane's queue who may go; else what of it is stopped by the pace of logins.
    fn scan(
        &self,
        now: Moment,
        lane: LaneId,
        claims: &Claims,
        earmarks: &mut Earmarks,
        (stops, relief): (&mut Stops, &mut Relief),
    ) -> Option<Next> {
        // Stopped applications of this scan: thousands may wait for the same one.
        let mut full: BTreeSet<&str> = BTreeSet::new();
        let mut budget_is_spent = false;
        let mut lane_stopped: Option<Reason> = None;
        let pooling = !self.pool.is_empty();
        for (at, (_, link)) in self.lane_ref(lane).queue.iter().enumerate() {
            let Some(known) = self.ledger.get(link) else { continue };
            let looks = pooling && at < WAITERS_MAX;
            if looks && let Some(pooled) = self.reusable(now, link, claims, earmarks) {
                return Some(Next::Reuse(link, pooled));
            }
            let is_counted = !known.who.replication;
            let stop = if let Some(reason) = lane_stopped {
                Some(Stop::Lane(reason))
            } else if is_counted && budget_is_spent {
                Some(Stop::Link(Reason::UpstreamBudget))
            } else if is_counted && full.contains(&*known.who.application) {
                Some(Stop::Link(Reason::ApplicationFull))
            } else {
                self.stop(now, link, claims, earmarks)
            };
            // Whom something stops even beside a connection of its own, that connection's room would not help.
            if let Some(stop) = stop.filter(|_| looks && self.resting_for(link).is_none())
                && let Some(pooled) = self.relief(link, stop.reason(), relief)
            {
                return Some(Next::Evict(pooled));
            }
            match stop {
                // Those behind it may use a connection that it cannot.
                Some(Stop::Lane(
                    reason @ (Reason::LaneFull
                    | Reason::UpstreamFull
                    | Reason::UpstreamDown
                    | Reason::NoPrimary),
                )) if looks => lane_stopped = Some(reason),
                // Nested links, which a pause may let pass, come first: whom the lane stops, it stops with all behind.
                Some(Stop::Lane(_)) => break,
                Some(Stop::Link(Reason::ApplicationFull)) => drop(full.insert(&known.who.application)),
                Some(Stop::Link(Reason::UpstreamBudget)) => budget_is_spent = true,
                Some(Stop::Link(_)) => {}
                None => {
                    let Some(pace) = self.pace(now, link) else { return Some(Next::Dial(link)) };
                    match pace {
                        Pace::LaneLogins => stops.lane_logins = true,
                        Pace::AllLogins => stops.all_logins = true,
                        Pace::Address(address) => drop(stops.addresses.insert(address)),
                        Pace::Rate => stops.rate = true,
                    }
                    earmarks.lane += 1;
                    if !known.who.replication {
                        earmarks.own += 1;
                        *earmarks.by_application.entry(known.who.application.clone()).or_default() += 1;
                    }
                }
            }
        }
        None
    }

    fn claim(&self, claims: &mut Claims, lane: LaneId, earmarks: Earmarks) {
        let reserved = self.unfilled(lane);
        claims.own += earmarks.own.saturating_sub(reserved);
        for (application, slots) in earmarks.by_application {
            let shares = self.application_settings(&application).is_some_and(|app| self.may_match(app, lane));
            let beyond = if shares { slots.saturating_sub(reserved) } else { slots };
            *claims.by_application.entry(application).or_default() += beyond;
        }
    }

    /// Slots reserved for a lane that it does not have. Visitors do not fill its reserve: they leave again.
    pub(super) fn unfilled(&self, lane: LaneId) -> u32 {
        self.lane_ref(lane).floor().saturating_sub(self.ledger.lane(lane).residents)
    }

    fn below_floor(&self, lane: LaneId, earmarked: u32, own_slot: u32) -> bool {
        let residents = self.ledger.lane(lane).residents.saturating_sub(own_slot);
        self.lane_ref(lane).floor().saturating_sub(residents) > earmarked
    }

    fn application_settings(&self, name: &str) -> Option<&ApplicationSettings> {
        self.applications.iter().find(|app| &*app.name == name)
    }

    fn may_match(&self, app: &ApplicationSettings, lane: LaneId) -> bool {
        app.lanes.contains(&self.lane_ref(lane).settings.name)
    }

    /// Why a link waits, for people: its first failing check.
    pub(super) fn why_waiting(&self, now: Moment, link: LinkId) -> Reason {
        match self.stop(now, link, &Claims::default(), &Earmarks::default()) {
            Some(stop) => stop.reason(),
            // What is left is kept for those who came first.
            None => self.pace(now, link).map_or(Reason::UpstreamBudget, Pace::reason),
        }
    }

    /// The first failing check but the pace of logins, in the order of ARCHITECTURE.md.
    pub(super) fn stop(
        &self,
        now: Moment,
        link: LinkId,
        claims: &Claims,
        earmarks: &Earmarks,
    ) -> Option<Stop> {
        self.stop_beside(now, link, claims, earmarks, 0)
    }

    /// The same for one that would have the slot of a pooled connection of its key: as if that were not there.
    pub(super) fn stop_reuse(
        &self,
        now: Moment,
        link: LinkId,
        claims: &Claims,
        earmarks: &Earmarks,
    ) -> Option<Stop> {
        self.stop_beside(now, link, claims, earmarks, 1)
    }

    fn stop_beside(
        &self,
        now: Moment,
        link: LinkId,
        claims: &Claims,
        earmarks: &Earmarks,
        own_slot: u32,
    ) -> Option<Stop> {
        let known = self.ledger.get(link)?;
        let lane = self.lane_ref(known.home);
        if let Some(reason) = self.lane_stop(now, known, lane, own_slot) {
            // Without a server there is nobody to sample: that is the cause.
            let homeless = reason == Reason::MonitorStale && self.breaker.is_homeless();
            return Some(Stop::Lane(if homeless { Reason::NoPrimary } else { reason }));
        }
        if own_slot > 0 {
            // Nobody dials.
        } else if self.breaker.is_homeless() {
            return Some(Stop::Lane(Reason::NoPrimary));
        } else if !lane.settings.protected {
            if let Some(reason) = self.breaker.stops(now) {
                return Some(Stop::Lane(reason));
            }
        } else if known.extra().not_before > now {
            return Some(Stop::Link(Reason::UpstreamDown));
        }
        if self.ledger.lane(known.home).load() + earmarks.lane >= lane.quota() + own_slot {
            return Some(Stop::Lane(Reason::LaneFull));
        }
        if self.process_is_one_too_many(known, lane) {
            return Some(Stop::Link(Reason::ProcessLimit));
        }
        let on_floor = !known.who.replication && self.below_floor(known.home, earmarks.own, own_slot);
        if !known.who.replication && self.application_is_full(known, on_floor, claims, earmarks, own_slot) {
            return Some(Stop::Link(Reason::ApplicationFull));
        }
        if let Some(reason) = self.partial_limit(known, lane, own_slot) {
            return Some(Stop::Link(reason));
        }
        if !known.who.replication && self.budget_is_spent(known.home, on_floor, claims, earmarks, own_slot) {
            return Some(Stop::Link(Reason::UpstreamBudget));
        }
        None
    }

    /// Pause, ramp, missing data, shedding: what stops a lane's arrivals. Of these only a pause that holds lets nested ones pass.
    fn lane_stop(&self, now: Moment, known: &Link, lane: &Lane, own_slot: u32) -> Option<Reason> {
        if lane.retired {
            return Some(Reason::LaneFull);
        }
        if lane.pause.is_some() && !lane.passes_pause(known.extra().place) {
            return Some(Reason::Paused);
        }
        let load = self.ledger.lane(known.home).load();
        if lane.ramp.as_ref().is_some_and(|ramp| load >= ramp.allowance(lane.quota()) + own_slot) {
            return Some(Reason::Paused);
        }
        if !lane.settings.protected && self.usage.is_cold(now, &self.limits) {
            return Some(Reason::MonitorStale);
        }
        lane.shed.is_on().then(|| self.shed_reason())
    }

    fn application_is_full(
        &self,
        known: &Link,
        on_floor: bool,
        claims: &Claims,
        earmarks: &Earmarks,
        own_slot: u32,
    ) -> bool {
        let Some(settings) = self.application_settings(&known.who.application) else { return false };
        let Some(quota) = settings.quota else { return false };
        let of = |map: &BTreeMap<Arc<str>, u32>| map.get(&known.who.application).copied().unwrap_or(0);
        let slots = self.ledger.counts().application(&known.who.application).slots;
        let taken = slots + of(&earmarks.by_application);
        if on_floor {
            return taken >= quota + own_slot;
        }
        let others =
            self.order.iter().filter(|lane| **lane != known.home && self.may_match(settings, **lane));
        let reserved: u32 = others.map(|lane| self.unfilled(*lane)).sum();
        taken + of(&claims.by_application) + reserved >= quota + own_slot
    }

    /// Processes that each hold some links of a full lane and wait for more would wait for each other for ever: the last of them waits outside.
    fn process_is_one_too_many(&self, known: &Link, lane: &Lane) -> bool {
        let each = lane.settings.links_per_process;
        let processes = self.ledger.lane(known.home).processes;
        known.alone && each > 0 && processes >= (lane.quota() / each).max(1)
    }

    fn partial_limit(&self, known: &Link, lane: &Lane, own_slot: u32) -> Option<Reason> {
        let counts = self.ledger.lane(known.home);
        let settings = &lane.settings;
        let reached = |limit: u32, slots: &dyn Fn() -> u32| limit > 0 && slots() >= limit + own_slot;
        if reached(settings.per_application, &|| counts.of_application(&known.who.application)) {
            return Some(Reason::ApplicationLimit);
        }
        if reached(settings.per_user, &|| counts.of_user(&known.who.user)) {
            return Some(Reason::UserLimit);
        }
        if reached(settings.per_database, &|| counts.of_database(&known.who.database)) {
            return Some(Reason::DatabaseLimit);
        }
        let address = known.who.address?;
        // A pooled connection is no address's.
        reached(settings.per_address, &|| counts.of_address(address) + own_slot)
            .then_some(Reason::AddressLimit)
    }

    fn budget_is_spent(
        &self,
        home: LaneId,
        on_floor: bool,
        claims: &Claims,
        earmarks: &Earmarks,
        own_slot: u32,
    ) -> bool {
        let Some(budget) = self.usage.budget(&self.limits) else { return false };
        let taken = self.ledger.counts().own + earmarks.own;
        if on_floor {
            // Who takes an open connection opens none: what others have grown to in PostgreSQL is no reason to withhold a reserve.
            return own_slot == 0 && taken >= budget;
        }
        let others = self.order.iter().filter(|lane| **lane != home);
        let reserved: u32 = others.map(|lane| self.unfilled(*lane)).sum();
        taken + claims.own + reserved >= budget + own_slot
    }

    /// What stops a login that nothing else stops.
    pub(super) fn pace(&self, now: Moment, link: LinkId) -> Option<Pace> {
        let known = self.ledger.get(link)?;
        let lane = self.lane_ref(known.home);
        let counts = self.ledger.lane(known.home);
        if counts.logins >= (lane.quota() / 4).max(1) {
            return Some(Pace::LaneLogins);
        }
        if lane.settings.protected {
            return None;
        }
        // A lane with a reserve may always have one login under way, whatever the others do.
        let first_of_reserved = lane.settings.reserve > 0 && counts.logins == 0;
        if !first_of_reserved && self.ledger.counts().logins >= self.logins_max() {
            return Some(Pace::AllLogins);
        }
        let address_max = (self.limits.max_logins / 2).max(1);
        if let Some(address) =
            known.who.address.filter(|a| self.ledger.counts().logins_from(*a) >= address_max)
        {
            return Some(Pace::Address(address));
        }
        (lane.rate.allowed_at() > now).then_some(Pace::Rate)
    }

    /// Logins in progress at most, protected lanes left out.
    fn logins_max(&self) -> u32 {
        let share = self.usage.budget(&self.limits).map_or(u32::MAX, |budget| (budget / 4).max(1));
        share.min(self.limits.max_logins)
    }

    /// Whether others wait for this link's login to end: a stalled one may be ended early.
    pub fn pressure(&self, link: LinkId) -> bool {
        let Some(known) = self.ledger.get(link).filter(|known| known.phase.is_login()) else { return false };
        let lane = self.lane_ref(known.home);
        if lane.stops.lane_logins {
            return true;
        }
        let in_pool = !lane.settings.protected;
        let anybody = self.lanes.iter().any(|lane| {
            lane.stops.all_logins
                || known.who.address.is_some_and(|address| lane.stops.addresses.contains(&address))
        });
        in_pool && anybody
    }
}
