//! What PostgreSQL shows of itself, and when the guard hears of it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pgweir::lanes::sample::{Sample, Session};

use crate::world::{State, World};

/// A sample on its way from PostgreSQL.
pub struct Pending {
    sample: Sample,
    foreign: u32,
    /// Links whose backend was there.
    listed: BTreeSet<u64>,
    pids: BTreeSet<i32>,
}

impl World {
    /// PostgreSQL looks at itself; the answer arrives later.
    pub fn ask_sample(&mut self) {
        let seen_at = self.now;
        let row = |pid: i32, local: Option<SocketAddr>| Session {
            pid,
            walsender: false,
            address: local.map(|local| local.ip()),
            port: local.map(|local| local.port()),
            application: "".into(),
            user: "".into(),
            database: "".into(),
            state: "idle".into(),
            seen_at,
            started: 0,
            changed: 0,
            state_age: Duration::ZERO,
            transaction_age: None,
            wait_event: ("".into(), "".into()),
            query: "".into(),
            blocked_by: Vec::new(),
        };
        let mut sessions = Vec::new();
        let mut listed = BTreeSet::new();
        for (id, link) in self.links.iter().filter(|(_, link)| link.backend) {
            let (walsender, user) = (link.replication, link.user.into());
            sessions.push(Arc::new(Session { walsender, user, ..row(link.pid, link.local) }));
            listed.insert(*id);
        }
        for stranger in 0..self.foreign {
            let local = (!self.unix).then(|| SocketAddr::from(([10, 9, 9, 9], 40_000 + stranger as u16)));
            sessions.push(Arc::new(row(900_000 + stranger as i32, local)));
        }
        let sample = Sample {
            asked_at: self.now,
            taken_at: self.now,
            max_connections: self.max_connections,
            reserved_connections: 3,
            monitor_pid: 900_000,
            sessions,
            lock_holders: [].into(),
            locks_asked_at: self.now,
        };
        let pids = sample.sessions.iter().map(|row| row.pid).collect();
        self.pending.push(Pending { sample, foreign: self.foreign, listed, pids });
    }

    pub fn take_sample(&mut self) {
        if self.pending.is_empty() {
            self.ask_sample();
        }
        let index = self.dice.below(self.pending.len() as u64) as usize;
        let mut pending = self.pending.remove(index);
        pending.sample.taken_at = self.now;
        let Sample { asked_at, .. } = pending.sample;
        for (id, link) in &mut self.links {
            let State::Zombie(since) = link.state else { continue };
            let waited = if link.pid_known { Duration::ZERO } else { Duration::from_secs(60) };
            // Over a Unix socket the pid is all there is to go by, and nothing while we do not know it.
            let listed = match self.unix {
                true => link.pid_known && pending.pids.contains(&link.pid),
                false => pending.listed.contains(id),
            };
            if asked_at >= since && asked_at.since(since) >= waited && !listed {
                link.give_up();
            }
        }
        let known = |id| self.links.get(id).or(self.gone.get(id));
        let orphans =
            pending.listed.iter().filter(|id| known(id).is_some_and(|link| link.orphan)).count() as u32;
        let newer = self.last_sample.is_none_or(|(before, _, _)| asked_at >= before);
        self.guard.sample(self.now, &pending.sample);
        if newer {
            let seen = self.guard.usage_row(self.now).bypass;
            let most = pending.foreign + orphans;
            let least = if self.unix { 0 } else { pending.foreign };
            self.check((least..=most).contains(&seen), || {
                format!("bypass {seen}, {least} to {most} strangers")
            });
            self.last_sample = Some((asked_at, self.max_connections - 3, seen));
        }
        self.settle();
    }
}
