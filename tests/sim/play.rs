//! One run: random events, then the end of everything.

use std::time::Duration;

use pgweir::clock::Moment;
use pgweir::lanes::guard::{Action, Guard};
use pgweir::lanes::ids::LinkId;
use pgweir::lanes::pause::PauseRecord;
use pgweir::lanes::settings::Disposition;
use pgweir::leaks::reclaim::{self, IdleLink};

use pgweir::snapshot::{LaneRow, LaneState};

use crate::config;
use crate::leaks;
use crate::world::{Shadow, State, World};

/// What happened, so that a simulation that never gets anywhere is noticed.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    admitted: u64,
    refused: u64,
    resets: u64,
    held: u64,
    reclaimed: u64,
    reloads: u64,
    reloads_refused: u64,
    zombies: u64,
    shed: u64,
    reused: u64,
    evicted: u64,
}

impl Totals {
    pub fn add(&mut self, other: &Self) {
        self.admitted += other.admitted;
        self.refused += other.refused;
        self.resets += other.resets;
        self.held += other.held;
        self.reclaimed += other.reclaimed;
        self.reloads += other.reloads;
        self.reloads_refused += other.reloads_refused;
        self.zombies += other.zombies;
        self.shed += other.shed;
        self.reused += other.reused;
        self.evicted += other.evicted;
    }

    pub fn is_varied(&self) -> bool {
        let all = [
            self.admitted,
            self.refused,
            self.resets,
            self.held,
            self.reclaimed,
            self.reloads,
            self.reloads_refused,
            self.zombies,
            self.shed,
            self.reused,
            self.evicted,
        ];
        all.iter().all(|count| *count > 50)
    }
}

pub struct Run {
    pub trace: u64,
    pub totals: Totals,
}

pub fn run(seed: u64, steps: u64) -> Run {
    let mut world = World::new(seed);
    let mut totals = Totals::default();
    for step in 0..steps {
        world.steps = step;
        event(&mut world, &mut totals);
    }
    totals.reused = world.reused;
    totals.evicted = world.evicted;
    totals.admitted = world.admitted.len() as u64;
    totals.refused = world.refused;
    totals.resets = world.acted.len() as u64;
    totals.shed = world.guard.rows(world.now).iter().map(|row| row.shed).sum();
    finish(&mut world);
    Run { trace: world.trace, totals }
}

fn event(world: &mut World, totals: &mut Totals) {
    match world.dice.below(100) {
        0..18 => world.arrive(),
        18..38 => upstream(world),
        38..63 => session(world, totals),
        63..72 if world.dice.one_in(2) => pooling(world),
        63..72 => ending(world, totals),
        72..86 => time(world),
        86..91 => usage(world),
        91..93 => reclaim(world, totals),
        93..98 => operator(world),
        _ => rare(world, totals),
    }
}

fn time(world: &mut World) {
    let ms = match world.dice.below(20) {
        0 => world.dice.range(5_000, 70_000),
        1..6 => world.dice.range(500, 3_000),
        _ => world.dice.range(1, 300),
    };
    world.advance(Duration::from_millis(ms));
    leaks::sweep(world);
}

/// Dials and logins go on.
fn upstream(world: &mut World) {
    match world.dice.below(20) {
        0..9 => {
            if let Some(id) = world.some(|link| link.state == State::Dialling) {
                world.connected(id);
            }
        }
        9..18 => {
            if let Some(id) = world.some(|link| link.state == State::Login) {
                match world.dice.below(5) {
                    0 => world.guard.upstream_answered(world.now, LinkId(id)),
                    1 if world.links[&id].pid == 0 => world.authenticated(id),
                    _ => return world.login_done(id),
                }
                world.settle();
            }
        }
        _ => {
            if let Some(id) = world.some(|link| link.is_login()) {
                world.dial_failed(id);
            }
        }
    }
}

/// Transactions and moves.
fn session(world: &mut World, totals: &mut Totals) {
    match world.dice.below(11) {
        0..5 => {
            let released = world.some(|link| link.state == State::Established && link.released);
            let ready = |world: &mut World| {
                world.some(|link| {
                    link.state == State::Established && link.in_transaction.is_none() && !link.held
                })
            };
            if let Some(id) = released.or_else(|| ready(world)) {
                world.begin(id);
                totals.held += u64::from(world.links[&id].held);
            }
        }
        5..8 => {
            if let Some(id) = world.some(|link| link.in_transaction.is_some()) {
                world.end(id);
            }
        }
        8 => {
            if let (Some(id), Some(lane)) =
                (world.some(|link| link.state == State::Established), a_lane(world))
            {
                world.visit(id, &lane);
            }
        }
        9 => {
            let movable = |state| matches!(state, State::Established | State::Waiting | State::Login);
            if let (Some(id), Some(lane)) = (world.some(|link| movable(link.state)), a_lane(world)) {
                world.move_link(id, &lane);
            }
        }
        _ => {
            if let Some(id) = world.some(|link| link.held) {
                world.link(id).held = false;
                world.guard.unhold(world.now, LinkId(id));
                world.settle();
            }
        }
    }
}

fn a_lane(world: &mut World) -> Option<String> {
    let lanes: Vec<usize> = (0..world.settings.lanes.len()).collect();
    world.dice.pick(&lanes).map(|index| world.settings.lanes[index].name.to_string())
}

/// Clients end well, and others come into what they leave.
fn pooling(world: &mut World) {
    match world.dice.below(15) {
        12.. => {
            if let Some(id) = world.some(|link| link.state == State::Pooled) {
                world.arrive_again(id);
            }
        }
        0..6 => {
            let rests = |link: &Shadow| {
                link.state == State::Established
                    && link.in_transaction.is_none()
                    && !link.held
                    && link.key.is_some()
            };
            if let Some(id) = world.some(rests) {
                world.pool(id);
                let rests = world.links.get(&id).is_some_and(|link| link.state == State::Pooled);
                if rests && world.dice.one_in(2) {
                    world.arrive_again(id);
                }
            }
        }
        6..10 => {
            if let Some(id) = world.some(|link| matches!(link.state, State::Taken(_))) {
                match world.dice.below(5) {
                    0 => world.stale(id, true),
                    1 => world.stale(id, false),
                    _ => world.revived(id),
                }
            }
        }
        10 => {
            let until = world.now + Duration::from_secs(2);
            let database = world.dice.pick(&["db", "another"]).expect("some");
            world.guard.bar_database(world.now, database, until);
            world.settle();
        }
        11 => {
            let lane = a_lane(world).map(|lane| world.lane(&lane));
            world.guard.drain_pool(world.now, lane, false);
            world.settle();
        }
    }
}

/// Links end, one way or another.
fn ending(world: &mut World, totals: &mut Totals) {
    match world.dice.below(10) {
        0 | 1 => {
            let gives_up = |state| matches!(state, State::Waiting | State::Dialling | State::Taken(_));
            if let Some(id) = world.some(|link| gives_up(link.state)) {
                world.hang_up(id);
            }
        }
        2..5 => {
            if let Some(id) = world.some(|link| matches!(link.state, State::Established | State::Login)) {
                world.closing(id);
            }
        }
        5 => {
            if let Some(id) = world.some(|link| link.has_slot() && !matches!(link.state, State::Zombie(_))) {
                world.zombie(id);
                totals.zombies += 1;
            }
        }
        6 => {
            // A backend goes, and nobody has seen its EOF yet.
            if let Some(id) = world.some(|link| {
                matches!(link.state, State::Closing | State::Zombie(_) | State::Pooled) && link.backend
            }) {
                world.link(id).backend = false;
            }
        }
        _ => {
            if let Some(id) =
                world.some(|link| matches!(link.state, State::Closing | State::Established | State::Pooled))
            {
                world.closed(id);
            }
        }
    }
}

fn usage(world: &mut World) {
    match world.dice.below(8) {
        0 => world.foreign = world.dice.range(0, u64::from(world.max_connections)) as u32,
        1 => world.foreign = world.dice.range(0, 6) as u32,
        2 | 3 => world.ask_sample(),
        _ if world.settings.limits.monitored => world.take_sample(),
        _ => {}
    }
}

/// Reclaimed links are idle ones of lanes that allow it.
fn reclaim(world: &mut World, totals: &mut Totals) {
    let needs = world.guard.wants_reclaim(world.now);
    let idle: Vec<IdleLink> = world
        .links
        .iter()
        .filter(|(_, link)| link.state == State::Established && link.in_transaction.is_none() && !link.held)
        .filter_map(|(id, link)| {
            let lane = world.guard.lane(&link.lane)?;
            let listening = id % 4 == 0;
            Some(IdleLink {
                link: LinkId(*id),
                lane,
                idle_since: link.since,
                generation: 0,
                listening,
                advisory_lock: false,
            })
        })
        .collect();
    let wanted: u32 = needs.iter().map(|need| need.count).sum();
    let chosen = reclaim::choose(world.now, &needs, &idle);
    world.check(chosen.len() <= wanted as usize, || format!("{} reclaimed, {wanted} wanted", chosen.len()));
    for (link, _) in chosen {
        let lane = world.links[&link.0].lane.clone();
        let allows =
            world.settings.lanes.iter().any(|one| *one.name == *lane && one.reclaim_idle_after.is_some());
        world.check(allows, || format!("link {link} of {lane} was reclaimed"));
        totals.reclaimed += 1;
        world.closing(link.0);
    }
}

fn operator(world: &mut World) {
    let now = world.now;
    let until = world.dice.one_in(3).then(|| now + Duration::from_millis(world.dice.range(100, 20_000)));
    let over = (!world.dice.one_in(3)).then(|| Duration::from_millis(world.dice.range(500, 20_000)));
    let Some(name) = a_lane(world) else { return };
    let lane = world.lane(&name);
    let rows = world.guard.rows(now);
    let stopped = |one: &&LaneRow| matches!(one.state, LaneState::Paused | LaneState::Ramping);
    match world.dice.below(10) {
        0..2 => {
            let how = world.dice.pick(&[None, Some(Disposition::Hold), Some(Disposition::Reject)]).flatten();
            world.guard.pause(now, lane, how, until, "me", "test");
        }
        2 => drop(world.guard.freeze(now, until, "freezer", "test")),
        3..6 => {
            let expected = rows.iter().filter(stopped).any(|row| *row.lane == *name);
            let resumed = world.guard.resume(now, lane, over, "me");
            world.check(resumed == expected, || format!("{name}: resumed {resumed}, was {expected}"));
        }
        6..8 => {
            let ramps_too = over.is_none();
            let expected =
                rows.iter().filter(stopped).filter(|row| ramps_too || row.state == LaneState::Paused);
            let (expected, resumed) = (expected.count(), world.guard.resume_all(now, over, "me"));
            world.check(resumed == expected, || format!("{resumed} lanes resumed, {expected} by the model"));
        }
        8 => restore(world, &name, until, over),
        _ => {
            let quota = world.dice.range(0, 8) as u32;
            let set = world.guard.set_quota(now, lane, quota);
            let reserve =
                world.settings.lanes.iter().find(|lane| *lane.name == *name).map_or(0, |lane| lane.reserve);
            world.check(set.is_ok() == (quota > 0 && quota >= reserve), || format!("{set:?} for {quota}"));
            if set.is_ok() {
                world.quotas.insert(name.clone(), quota);
                uncount(world, &name);
            }
        }
    }
    world.settle();
}

/// A pause of an earlier run comes back, or the ramp that was lifting it; and another process would take all of them as they are.
fn restore(world: &mut World, lane: &str, until: Option<Moment>, over: Option<Duration>) {
    let how = if world.dice.one_in(3) { Disposition::Reject } else { Disposition::Hold };
    let record = PauseRecord {
        lane: lane.into(),
        how,
        by: "me".to_owned(),
        reason: "test".to_owned(),
        since: world.now,
        before: Duration::from_secs(60),
        until: until.filter(|_| over.is_none()),
        ramp_over: over,
    };
    // A ramp may follow on a ramp here, with a count of its own.
    uncount(world, lane);
    let restored = world.guard.restore_pause(world.now, &record);
    world.check(restored, || format!("{record:?} was not restored"));
    while let Some(action) = world.guard.poll_action() {
        let is_entry = matches!(&action, Action::Timeline { event: "pause" | "resume" | "ramp", .. });
        world.check(!is_entry, || format!("a restored pause is in the timeline: {action:?}"));
        world.carry_out(action);
    }
    world.settle();
    let mut twin = Guard::new(world.settings.clone(), 1, world.now);
    let records = world.guard.pauses();
    let all = records.iter().all(|record| twin.restore_pause(world.now, record));
    let what = |records: Vec<PauseRecord>| -> Vec<_> {
        let told = |one: PauseRecord| (one.lane, one.how, one.by, one.until, one.ramp_over);
        records.into_iter().map(told).collect()
    };
    let same = what(twin.pauses()) == what(records);
    world.check(all && same, || format!("another process has {:?}", twin.pauses()));
}

/// A smaller quota leaves more transactions in a ramp than it would have allowed.
fn uncount(world: &mut World, lane: &str) {
    for link in world.links.values_mut().filter(|link| link.counts_in() == lane) {
        link.ramped = false;
    }
}

fn rare(world: &mut World, totals: &mut Totals) {
    if world.dice.one_in(2) {
        world.guard.too_many_clients(world.now);
        return world.settle();
    }
    let mut settings = config::random(&mut world.dice);
    settings.limits.observe = world.settings.limits.observe;
    let names: Vec<String> = settings.lanes.iter().map(|lane| lane.name.to_string()).collect();
    let rows = world.guard.rows(world.now);
    let paused = rows.iter().filter(|row| row.state == LaneState::Paused);
    let drops_pause = paused.map(|row| &row.lane).any(|lane| !names.iter().any(|name| **name == **lane));
    let reserves: u32 = settings.lanes.iter().map(|lane| lane.reserve).sum();
    let budget = world.last_sample.filter(|_| settings.limits.monitored);
    let budget = budget.map(|(_, usable, _)| usable.saturating_sub(settings.limits.headroom));
    let exceeds = budget.is_some_and(|budget| reserves > budget);
    match world.guard.reload(world.now, settings.clone()) {
        Err(_) => {
            totals.reloads_refused += 1;
            world.check(drops_pause || exceeds, || "a reload was refused for nothing".to_owned());
        }
        Ok(plan) => {
            world.check(!drops_pause, || "a reload dropped a pause".to_owned());
            world.check(!exceeds, || "a reload promised more than there is".to_owned());
            world.check(world.guard.reserve_problem().is_none(), || "reserves exceed the budget".to_owned());
            totals.reloads += 1;
            world.take_quotas(&settings);
            let limits = &settings.limits;
            world.judge.configure(limits.max_resets_per_minute, limits.observe);
            names.iter().for_each(|name| uncount(world, name));
            world.settle();
            for link in plan.reclassify {
                let Some(shadow) = world.links.get(&link.0) else { continue };
                if !names.contains(&shadow.lane) {
                    world.move_link(link.0, "other");
                }
            }
        }
    }
    world.settle();
}

/// Everybody goes; nothing may be left.
fn finish(world: &mut World) {
    world.steps += 1;
    world.guard.resume_all(world.now, None, "me");
    world.settle();
    world.check(!world.links.values().any(|link| link.held), || "a link is held by nobody".to_owned());
    let living: Vec<u64> =
        world.links.iter().filter(|(_, link)| link.state != State::Over).map(|(id, _)| *id).collect();
    for id in living {
        match world.links.get(&id).map_or(State::Over, |link| link.state) {
            State::Waiting | State::Taken(_) => world.hang_up(id),
            State::Zombie(_) => world.link(id).backend = false,
            State::Over => {}
            _ => world.closed(id),
        }
    }
    // Some were granted while others went.
    while let Some(id) = world.some(|link| link.has_slot() && !matches!(link.state, State::Zombie(_))) {
        world.closed(id);
    }
    world.advance(Duration::from_secs(301));
    world.ask_sample();
    world.take_sample();
    for _ in 0..20 {
        world.ask_sample();
        world.take_sample();
    }
    world.advance(Duration::from_secs(301));
    let rows = world.guard.rows(world.now);
    let clean = rows.iter().all(|row| row.slots == 0 && row.waiting == 0);
    world.check(clean, || format!("something is left: {rows:?}"));
    world.check(world.guard.logins() == 0, || "a login is left".to_owned());
    world.check(world.guard.usage_row(world.now).own_slots == 0, || "a slot is left".to_owned());
    let applications = world.guard.application_rows();
    world.check(applications.iter().all(|row| row.slots + row.waiting == 0), || format!("{applications:?}"));
    let unknown =
        applications.iter().filter(|row| row.quota.is_none() && &*row.application == "psql").count();
    world.check(unknown == 0, || "an application without links is remembered".to_owned());
}
