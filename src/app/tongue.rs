//! What PgBouncer's tables are made of: databases, pools, servers, lists, settings.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::App;
use super::rows::{Wall, state_word};
use crate::clock::{self, Moment};
use crate::config::settings::Endpoint;
use crate::config::{default_of, is_changeable};
use crate::lanes::backends::Backend;
use crate::lanes::known::Phase;
use crate::lanes::near::End;
use crate::link::hub::Stage;
use crate::link::shared::{LinkShared, LinkState, flag};
use crate::link::totals::Totals;
use crate::snapshot::{ConfigRow, DatabaseRow, ListsRow, PoolRow, ServerRow, Work};

impl App {
    /// Closes a period of SHOW STATS' averages where it is over.
    pub(super) fn close_period(&self, now: Moment) {
        if self.averages.lock().is_due(now) {
            let totals = self.hub.totals();
            self.averages.lock().close(now, totals);
        }
    }

    pub(super) fn config_rows(&self) -> Vec<ConfigRow> {
        let row = |(key, value): (String, String)| ConfigRow {
            default: default_of(&key).map(str::to_owned),
            changeable: is_changeable(&key),
            key,
            value,
        };
        self.config.load().lines().into_iter().map(row).collect()
    }

    /// PostgreSQL's host, or its socket's directory, and port.
    fn upstream_place(&self) -> (Arc<str>, u16) {
        let config = self.config.load();
        let current = self.targets.lock().current_index().unwrap_or(0);
        let endpoints = &config.upstream.endpoints;
        match endpoints.get(current).unwrap_or(&endpoints[0]) {
            Endpoint::Tcp { host, port } => (host.clone(), *port),
            Endpoint::Unix { directory, port } => (directory.display().to_string().into(), *port),
        }
    }

    /// Every database that somebody was let in to since start, or has a slot for.
    pub(super) fn database_rows(&self) -> Vec<DatabaseRow> {
        let totals = self.hub.totals();
        let (backends, room) = self.hub.guard(|guard, _| (guard.backends(), guard.room()));
        let mut slots: BTreeMap<Arc<str>, u32> = BTreeMap::new();
        for backend in backends {
            *slots.entry(backend.database).or_default() += 1;
        }
        let names: BTreeSet<Arc<str>> = totals.keys().chain(slots.keys()).cloned().collect();
        let (host, port) = self.upstream_place();
        let disabled = self.hub.stage() != Stage::Running;
        let averages = self.averages.lock();
        let row = |name: Arc<str>| {
            let (recent, period) = averages.of(&name);
            DatabaseRow {
                host: host.clone(),
                port,
                slots_max: room.most,
                reserved: room.reserved,
                slots: slots.get(&name).copied().unwrap_or(0),
                paused: room.all_paused,
                disabled,
                total: totals.get(&name).map(work).unwrap_or_default(),
                recent: work(&recent),
                recent_us: u64::try_from(period.as_micros()).unwrap_or(u64::MAX),
                name,
            }
        };
        names.into_iter().map(row).collect()
    }

    pub(super) fn pool_rows(&self) -> Vec<PoolRow> {
        let now = clock::now();
        let mut pools: BTreeMap<(Arc<str>, Arc<str>), PoolRow> = BTreeMap::new();
        for entry in &self.hub.links {
            let link = entry.value();
            let key = link.with_labels(|l| (l.facts.database.clone(), l.facts.user.clone()));
            count_client(pool_of(&mut pools, key), link, now);
        }
        for backend in self.hub.guard(|guard, _| guard.backends()) {
            let pool = pool_of(&mut pools, (backend.database, backend.user));
            match backend.phase {
                Phase::Dialling | Phase::Login => pool.login += 1,
                Phase::Pooled => pool.idle += 1,
                Phase::Established | Phase::Taken => pool.linked += 1,
                Phase::Waiting | Phase::Closing | Phase::Zombie => {}
            }
        }
        pools.into_values().collect()
    }

    pub(super) fn server_rows(&self) -> Vec<ServerRow> {
        let wall = Wall::new(clock::now());
        let (host, port) = self.upstream_place();
        let host = if host.starts_with('/') { "unix".into() } else { host };
        let links: HashMap<u64, Arc<LinkShared>> =
            self.hub.links.iter().map(|entry| (entry.key().0, entry.value().clone())).collect();
        let backends = self.hub.guard(|guard, _| guard.backends());
        let row = |backend: Backend| {
            let link = links.get(&backend.link.0);
            let requested = link.and_then(|link| link.figures.requested_at()).unwrap_or(backend.dialled_at);
            let raw = link.map(|link| link.with_labels(|labels| labels.facts.application.clone()));
            ServerRow {
                link: backend.link.0,
                lane: backend.lane,
                application: raw.unwrap_or(backend.application),
                user: backend.user,
                database: backend.database,
                state: match backend.phase {
                    Phase::Waiting | Phase::Dialling | Phase::Login => "new",
                    Phase::Established | Phase::Taken => "active",
                    Phase::Pooled => "idle",
                    Phase::Closing | Phase::Zombie => "closing",
                },
                link_state: link.map_or("", |link| state_word(link)),
                host: host.clone(),
                port,
                local_address: backend.near.map(|end| match end {
                    End::Tcp(local) => local.ip().to_string(),
                    End::Unix => "unix".to_owned(),
                }),
                local_port: match backend.near {
                    Some(End::Tcp(local)) => local.port(),
                    Some(End::Unix) | None => 0,
                },
                connected_at: wall.of(backend.dialled_at),
                requested_at: wall.of(requested),
                pid: backend.pid,
                tls: link.is_some_and(|link| link.flags() & flag::UPSTREAM_TLS != 0),
            }
        };
        backends.into_iter().map(row).collect()
    }

    pub(super) fn lists_row(&self) -> ListsRow {
        let used = self.hub.counters.clients.load(Ordering::Relaxed);
        let most = self.config.load().settings.limits.max_clients;
        let (backends, room) = self.hub.guard(|guard, _| (guard.backends().len(), guard.room()));
        let logins = self
            .hub
            .links
            .iter()
            .filter(|e| matches!(e.value().state().0, LinkState::Starting | LinkState::Login));
        ListsRow {
            free_clients: most.saturating_sub(used),
            used_clients: used,
            login_clients: u32::try_from(logins.count()).unwrap_or(u32::MAX),
            free_servers: room.left,
            used_servers: u32::try_from(backends).unwrap_or(u32::MAX),
        }
    }
}

fn pool_of(pools: &mut BTreeMap<(Arc<str>, Arc<str>), PoolRow>, key: (Arc<str>, Arc<str>)) -> &mut PoolRow {
    let (database, user) = key.clone();
    pools.entry(key).or_insert_with(|| PoolRow { database, user, ..PoolRow::default() })
}

fn count_client(pool: &mut PoolRow, link: &LinkShared, now: Moment) {
    let (state, since) = link.state();
    match state {
        LinkState::Waiting | LinkState::Held => {
            pool.waiting += 1;
            let waited = u64::try_from(now.since(since).as_micros()).unwrap_or(u64::MAX);
            pool.max_wait_us = pool.max_wait_us.max(waited);
        }
        LinkState::Idle | LinkState::Active | LinkState::IdleInTransaction => pool.active += 1,
        LinkState::Starting | LinkState::Login | LinkState::Closing => {}
    }
    pool.idle_in_transaction += u32::from(state == LinkState::IdleInTransaction);
    let cancels = link.cancels_under_way();
    pool.cancels += cancels;
    pool.cancelled += u32::from(cancels > 0);
}

fn work(totals: &Totals) -> Work {
    Work {
        transactions: totals.transactions,
        transaction_us: totals.transaction_us,
        queries: totals.queries,
        query_us: totals.query_us,
        received: totals.received,
        sent: totals.sent,
        wait_us: totals.wait_us,
    }
}
