//! What must always hold, judged by the model's own counts.

use std::collections::BTreeMap;
use std::sync::Arc;

use pgweir::lanes::settings::LaneSettings;
use pgweir::snapshot::{LaneRow, LaneState};

use crate::world::{Shadow, State, World};

/// The model's counts of a lane.
#[derive(Default)]
struct Counts {
    slots: u32,
    away: u32,
    residents: u32,
    logins: u32,
    waiting: u32,
}

/// SHOW LANES by name.
pub type Rows = BTreeMap<Arc<str>, LaneRow>;
type All<'a> = BTreeMap<&'a str, Counts>;

pub fn check(world: &mut World, rows: &Rows) {
    if world.steps.is_multiple_of(16) {
        let audit = world.guard.audit();
        world.check(audit.is_ok(), || format!("{audit:?}"));
    }
    note_opened(world, rows);
    ramps(world, rows);
    let world = &*world;
    let counts = count(world);
    let own = own_slots(world);
    let usage = world.guard.usage_row(world.now);
    world.check(usage.own_slots == own, || format!("own slots {} but {own} by the model", usage.own_slots));
    for (name, row) in rows {
        let none = Counts::default();
        let mine = counts.get(&**name).unwrap_or(&none);
        world.check(row.slots == mine.slots, || {
            format!("{name}: {} slots, {} by the model", row.slots, mine.slots)
        });
        world.check(row.waiting == mine.waiting, || {
            format!("{name}: {} waiting, {} by the model", row.waiting, mine.waiting)
        });
    }
    let admitted: u64 = rows.values().map(|row| row.admitted).sum();
    let refused: u64 = world.guard.refusals().iter().map(|(_, _, count)| count).sum();
    let known = world.admitted.len() as u64;
    world.check(admitted <= known, || format!("{admitted} admitted, {known} by the model"));
    if !world.settings.limits.observe {
        world
            .check(refused == world.refused, || format!("{refused} refused, {} by the model", world.refused));
        admissions(world, rows, &counts, own);
        reserves(world, &counts, own);
        starvation(world, rows, &counts, own);
        probes(world);
    }
    protected(world, rows);
    pooled(world, rows, &counts);
}

fn note_opened(world: &mut World, rows: &Rows) {
    for (name, row) in rows {
        let is_stopped = matches!(row.state, LaneState::Paused | LaneState::Ramping);
        let was_stopped =
            if is_stopped { !world.stopped.insert(name.to_string()) } else { world.stopped.remove(&**name) };
        if was_stopped && !is_stopped {
            world.open_since.insert(name.to_string(), world.now);
        }
    }
}

fn count(world: &World) -> All<'_> {
    let mut all = All::new();
    for link in world.links.values() {
        if link.held {
            all.entry(link.counts_in()).or_default().waiting += 1;
        }
        if link.state == State::Waiting {
            all.entry(&link.lane).or_default().waiting += 1;
        }
        if !link.has_slot() {
            continue;
        }
        all.entry(link.counts_in()).or_default().slots += 1;
        let home = all.entry(&link.lane).or_default();
        home.away += u32::from(link.visiting.is_some());
        home.residents += u32::from(!link.replication);
        home.logins += u32::from(link.is_login());
    }
    all
}

fn own_slots(world: &World) -> u32 {
    world.links.values().filter(|link| link.has_slot() && !link.replication).count() as u32
}

fn application_slots(world: &World, name: &str) -> u32 {
    let of = |link: &&Shadow| link.has_slot() && !link.replication && link.application == name;
    world.links.values().filter(of).count() as u32
}

fn budget(world: &World) -> Option<u32> {
    let limits = &world.settings.limits;
    let (_, usable, bypass) = world.last_sample.filter(|_| limits.monitored)?;
    Some(usable.saturating_sub(limits.headroom).saturating_sub(bypass))
}

/// Invariant 1: no admission makes slots exceed a quota or the budget; and who is stopped is not admitted.
fn admissions(world: &World, rows: &Rows, counts: &All<'_>, own: u32) {
    for (name, row) in rows.iter().filter(|(name, _)| world.granted(|link| *link.lane == ***name)) {
        let load = counts.get(&**name).map_or(0, |mine| mine.slots + mine.away);
        let quota = world.quotas.get(&**name).copied().unwrap_or(0);
        world.check(load <= quota, || format!("{name}: {load} slots after an admission, quota {quota}"));
        partial_limits(world, name);
        let ordinary = world.granted(|link| *link.lane == **name && !link.nested);
        let stops = row.state == LaneState::Paused && (ordinary || world.pause_refuses(name));
        world.check(!stops, || format!("{name} admitted while paused"));
        let shed = world.was_shed.contains(&**name) && !world.unshed.contains(&**name);
        world.check(!shed, || format!("{name} admitted while shed"));
        if row.state == LaneState::Ramping {
            world.check(load <= row.quota, || format!("{name}: {load} slots in a ramp of {}", row.quota));
        }
    }
    for app in &world.settings.applications {
        let slots = application_slots(world, &app.name);
        let grew = world.granted(|link| *link.application == *app.name && !link.replication);
        if let Some(quota) = app.quota.filter(|_| grew) {
            world.check(slots <= quota, || {
                format!("{}: {slots} slots after an admission, quota {quota}", app.name)
            });
        }
    }
    // Who takes a connection that is open, within its lane's reserve, adds nothing: those who bypass may have taken the rest.
    let opened = world.granted(|link| {
        let residents = counts.get(&*link.lane).map_or(0, |mine| mine.residents);
        let taken = matches!(link.state, State::Taken(_)) && residents <= floor(world, &link.lane);
        !link.replication && !taken
    });
    if let Some(budget) = budget(world).filter(|_| opened) {
        world.check(own <= budget, || format!("{own} own slots after an admission, budget {budget}"));
    }
}

/// Those granted in a lane are within its limits per application, user and address.
fn partial_limits(world: &World, lane: &str) {
    let Some(settings) = world.settings.lanes.iter().find(|one| &*one.name == lane) else { return };
    let mine = || world.links.values().filter(|link| link.has_slot() && link.lane == lane);
    for granted in world.granted.iter().map(|id| &world.links[id]).filter(|link| link.lane == lane) {
        let within = |limit: u32, same: &dyn Fn(&&Shadow) -> bool, what: &str| {
            let slots = mine().filter(same).count();
            world.check(limit == 0 || slots <= limit as usize, || {
                format!("{lane}: {slots} slots {what}, {limit} allowed")
            });
        };
        within(settings.per_user, &|link| link.user == granted.user, "of a user");
        within(
            settings.per_application,
            &|link| link.application == granted.application,
            "of an application",
        );
        if granted.alone && settings.links_per_process > 0 {
            let quota = world.quotas.get(lane).copied().unwrap_or(0);
            let processes = mine().filter(|link| link.alone).count() as u32;
            world.check(processes <= (quota / settings.links_per_process).max(1), || {
                format!("{lane}: {processes} processes in a quota of {quota}")
            });
        }
        if granted.address.is_some() {
            within(settings.per_address, &|link| link.address == granted.address, "of an address");
        }
    }
}

/// A lane's reserve, as far as its quota lets it have that.
fn floor(world: &World, name: &str) -> u32 {
    let reserve = world.settings.lanes.iter().find(|lane| *lane.name == *name).map_or(0, |lane| lane.reserve);
    reserve.min(world.quotas.get(name).copied().unwrap_or(0))
}

/// A grant beyond a lane's own reserve leaves every other lane's reserve free.
fn reserves(world: &World, counts: &All<'_>, own: u32) {
    let Some(budget) = budget(world) else { return };
    let unfilled = |lane: &LaneSettings| {
        let residents = counts.get(&*lane.name).map_or(0, |mine| mine.residents);
        floor(world, &lane.name).saturating_sub(residents)
    };
    let reserved: u32 = world.settings.lanes.iter().map(unfilled).sum();
    for lane in &world.settings.lanes {
        let name = &*lane.name;
        let floor = floor(world, name);
        let residents = counts.get(name).map_or(0, |mine| mine.residents);
        if world.granted(|link| link.lane == name && !link.replication) && residents > floor {
            world.check(own + reserved <= budget, || {
                format!("{name} took a reserve: {own} own + {reserved} reserved, budget {budget}")
            });
        }
    }
}

/// A waiter below its lane's reserve, stopped by nothing that may stop it, is not left waiting; nor is one that nothing stops at all.
fn starvation(world: &World, rows: &Rows, counts: &All<'_>, own: u32) {
    if world.guard.upstream_trouble().is_some() {
        return;
    }
    let cold = world.settings.limits.monitored && world.last_sample.is_none();
    let all_logins: u32 = world.guard.logins();
    for lane in &world.settings.lanes {
        let name = &*lane.name;
        let Some(row) = rows.get(name) else { continue };
        let none = Counts::default();
        let mine = counts.get(name).unwrap_or(&none);
        let lane_quota = world.quotas.get(name).copied().unwrap_or(0);
        let partial = lane.per_application
            + lane.per_user
            + lane.per_database
            + lane.per_address
            + lane.links_per_process
            > 0;
        let is_free = matches!(row.state, LaneState::Open | LaneState::Over)
            && mine.slots + mine.away < lane_quota
            && mine.logins == 0
            && !partial
            && lane.connect_rate.is_none()
            && !cold;
        if !is_free || lane.protected {
            continue;
        }
        let on_floor = mine.residents < lane.reserve.min(lane_quota);
        let login_free = lane.reserve > 0 || all_logins == 0;
        for (id, link) in world.waiting_in(name).filter(|(_, link)| !link.replication) {
            let app = world.settings.applications.iter().find(|app| *app.name == *link.application);
            let quota = app.and_then(|app| app.quota);
            let app_free = quota.is_none_or(|quota| application_slots(world, link.application) < quota);
            let budget_free = budget(world).is_none_or(|budget| own < budget);
            let from_address =
                world.links.values().filter(|one| one.is_login() && one.address == link.address).count();
            let address_free = link.address.is_none() || from_address == 0;
            let starves = login_free && address_free && on_floor && app_free && budget_free;
            world.check(!starves, || format!("link {id} waits below the reserve of {name}"));
            // Those ahead whom only the pace of logins stops keep their place.
            let place = |id: &u64, link: &Shadow| (!link.nested, link.since, *id);
            let ahead = || {
                let before = |(other, one): &(&u64, &Shadow)| place(other, one) < place(id, link);
                world.waiting_in(name).filter(before).count() as u32
            };
            let nothing = login_free && address_free && quota.is_none() && budget(world).is_none();
            let nothing = nothing && mine.slots + mine.away + ahead() < lane_quota;
            world.check(!nothing, || format!("link {id} waits in {name} for nothing: {row:?} {link:?}"));
        }
    }
}

/// While PostgreSQL is in trouble one link at a time finds out whether it still is.
fn probes(world: &World) {
    let free =
        |link: &Shadow| world.settings.lanes.iter().any(|lane| *lane.name == *link.lane && lane.protected);
    let dials = |link: &Shadow| link.state == State::Dialling;
    let probes =
        world.granted.iter().map(|id| &world.links[id]).filter(|link| dials(link) && !free(link)).count();
    let in_trouble = world.was_in_trouble && world.guard.upstream_trouble().is_some();
    world.check(probes <= 1 || !in_trouble, || format!("{probes} probes at once"));
}

fn ramps(world: &mut World, rows: &Rows) {
    let ramping = |lane: &str| rows.get(lane).is_some_and(|row| row.state == LaneState::Ramping);
    for link in world.links.values_mut().filter(|link| link.ramped) {
        link.ramped = ramping(link.counts_in());
    }
    for (name, row) in rows.iter().filter(|(_, row)| row.state == LaneState::Ramping) {
        let counted =
            world.links.values().filter(|link| link.ramped && link.counts_in() == &**name).count() as u32;
        world.check(counted <= row.quota, || {
            format!("{name}: {counted} transactions in a ramp of {}", row.quota)
        });
    }
}

/// A pooled connection is nobody's: not in a lane that is stopped, and not while somebody waits who could have its room.
fn pooled(world: &World, rows: &Rows, counts: &All<'_>) {
    for (name, row) in rows {
        let mine = || world.links.values().filter(|link| link.lane == **name);
        let resting = mine().filter(|link| link.state == State::Pooled).count() as u32;
        let lane = world.guard.lane(name);
        world.check(lane.is_none_or(|lane| world.guard.pooled(lane) == resting), || {
            format!("{name}: {resting} pooled by the model")
        });
        if resting == 0 {
            continue;
        }
        let settings = world.settings.lanes.iter().find(|lane| *lane.name == **name);
        let may_rest = settings.is_some_and(|lane| lane.pooling.is_some())
            && !matches!(row.state, LaneState::Paused | LaneState::Shedding);
        world.check(may_rest, || format!("{name}: {resting} pooled, {row:?}"));
        let in_trouble = world.guard.upstream_trouble().is_some();
        if world.settings.limits.observe || in_trouble || row.state != LaneState::Open || row.waiting == 0 {
            continue;
        }
        let load = counts.get(&**name).map_or(0, |mine| mine.slots + mine.away);
        let quota = world.quotas.get(&**name).copied().unwrap_or(0);
        let ending = mine().filter(|link| matches!(link.state, State::Closing | State::Zombie(_))).count();
        let waiting = world.waiting_in(name).filter(|(_, link)| link.key.is_none()).count();
        // Of a key no connection of which is kept: what stops those even beside a connection of their own is another matter.
        world.check(load < quota || waiting <= ending, || {
            format!("{name}: {waiting} wait for {ending} that close, and {resting} are pooled: {row:?}")
        });
    }
}

/// Invariant 4, as far as the guard goes.
fn protected(world: &World, rows: &Rows) {
    for lane in world.settings.lanes.iter().filter(|lane| lane.protected) {
        let Some(row) = rows.get(&*lane.name) else { continue };
        world.check(row.state != LaneState::Shedding && row.shed == 0, || format!("{} was shed", lane.name));
        world.check(row.paused_by != "freezer", || format!("{} was frozen", lane.name));
    }
}
