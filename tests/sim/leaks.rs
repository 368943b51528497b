//! The judge inside the simulation.

use std::time::Duration;

use pgweir::lanes::ids::LinkId;
use pgweir::lanes::settings::LaneSettings;
use pgweir::leaks::judge::{LeakFacts, Verdict};

use crate::world::{State, World};

/// Everybody idle in a transaction, judged; what is to be done is done, unless the client speaks first.
pub fn sweep(world: &mut World) {
    let facts = facts(world);
    let settings = world.settings.clone();
    let policy = |lane: pgweir::lanes::ids::LaneId| {
        let name = world.guard.lane_name(lane);
        settings.lanes.iter().find(|one| one.name == name).and_then(|one| one.idle_in_transaction.as_ref())
    };
    let verdicts = world.judge.sweep(world.now, &facts, policy);
    for judged in verdicts {
        let leak = *facts.iter().find(|one| one.link == judged.link).expect("a link that was asked about");
        let id = judged.link.0;
        world.check(judged.generation == leak.generation, || {
            format!("link {id}: a verdict on another idle period")
        });
        if matches!(judged.verdict, Verdict::Warn | Verdict::LimitReached) {
            continue;
        }
        world.check(!leak.protected && !leak.exempt && !leak.watch_only, || {
            format!("link {id} must not be reset")
        });
        if matches!(judged.verdict, Verdict::WouldReset | Verdict::WouldDisconnect) {
            world.check(settings.limits.observe, || format!("link {id}: only observed"));
            continue;
        }
        world.check(!settings.limits.observe, || format!("link {id} was touched in observe mode"));
        let idle = world.now.since(leak.idle_since);
        world.check(idle >= Duration::from_secs(3), || format!("link {id} was reset after {idle:?}"));
        if world.dice.one_in(4) {
            world.judge.missed(judged.link, judged.generation);
            world.end(id);
            continue;
        }
        act(world, leak, judged.verdict);
    }
}

fn act(world: &mut World, leak: LeakFacts, verdict: Verdict) {
    let (id, now) = (leak.link.0, world.now);
    let times = world.acted.entry((id, leak.generation)).or_default();
    *times += 1;
    // A rollback, and the end of a client that stays silent.
    let allowed = 1 + u32::from(leak.reset_at.is_some());
    let times = *times;
    world.check(times <= allowed, || format!("link {id} was reset {times} times in one idle period"));
    world.resets.retain(|at| now.since(*at) < Duration::from_secs(60));
    world.resets.push(now);
    let (within, max) = (world.resets.len(), world.settings.limits.max_resets_per_minute);
    world.check(within <= max as usize, || format!("{within} resets within a minute, {max} allowed"));
    if verdict == Verdict::Disconnect {
        world.closing(id);
    } else {
        world.link(id).reset_at = Some(now);
    }
}

fn facts(world: &mut World) -> Vec<LeakFacts> {
    let idle = world.links.iter().filter(|(_, link)| link.state == State::Established);
    let idle: Vec<_> =
        idle.filter_map(|(id, link)| Some((*id, link.clone(), link.in_transaction?))).collect();
    let protected =
        |name: &str, lanes: &[LaneSettings]| lanes.iter().any(|lane| &*lane.name == name && lane.protected);
    idle.into_iter()
        .filter_map(|(id, link, since)| {
            let lane = world.guard.lane(link.counts_in())?;
            let harm = world.guard.harm(lane, link.application);
            Some(LeakFacts {
                link: LinkId(id),
                lane,
                generation: link.generation,
                idle_since: since,
                transaction_since: Some(since),
                stalled: id % 11 == 0,
                exempt: id % 7 == 0,
                protected: protected(link.counts_in(), &world.settings.lanes),
                watch_only: id % 13 == 0,
                blocks: id % 3 == 0,
                full_with_waiters: harm.full_with_waiters,
                usage_above_shed_below: harm.usage_above_shed_below,
                reset_at: link.reset_at,
                process_key: id % 5,
            })
        })
        .collect()
}
