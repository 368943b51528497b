//! The monitors' word: samples for the guard, everything else for the timeline, and what each server is for who decides which one is
//! dialled.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::{App, setup};
use crate::clock;
use crate::lanes::sample::Sample;
use crate::upstream::monitor::{Monitor, MonitorEvent, MonitorHandle, MonitorSettings, Scouting, Sign};
use crate::upstream::targets::{GRACE, Seen};

/// Events of all monitors not yet taken.
const EVENTS_MAX: usize = 4;

impl App {
    /// Keeps monitors running with the settings in force, one a server.
    pub(super) async fn watch(self: Arc<Self>) {
        loop {
            // Before the configuration, which is never older than the list of this number.
            let generation = self.generation();
            let tls = self.hub.settings.load().upstream_tls.clone();
            let settings = match setup::monitors(&self.config.load(), tls) {
                Ok(settings) => settings,
                Err(error) => {
                    tracing::error!("monitor: {error:#}");
                    self.note("monitor_error", "", None, &format!("{error:#}"));
                    Vec::new()
                }
            };
            if settings.is_empty() {
                self.monitor.store(None);
                self.restart_monitor.notified().await;
                continue;
            }
            // Dropped with the turn: monitors end with those who hear them.
            let mut ears = JoinSet::new();
            let (monitors, events) = self.start_monitors(settings, &mut ears);
            tokio::select! {
                () = self.hear(generation, events, &monitors) => {}
                () = self.restart_monitor.notified() => {}
            }
        }
    }

    fn start_monitors(
        &self,
        settings: Vec<MonitorSettings>,
        ears: &mut JoinSet<()>,
    ) -> (Vec<MonitorHandle>, mpsc::Receiver<(usize, MonitorEvent)>) {
        let upstream = self.config.load().upstream.clone();
        let (current, at) = {
            let targets = self.targets.lock();
            (targets.current_index(), targets.current_at())
        };
        let (said, heard) = mpsc::channel(EVENTS_MAX);
        let mut monitors = Vec::new();
        for (index, settings) in settings.into_iter().enumerate() {
            let scouting = Scouting {
                resolve_interval: upstream.resolve_interval,
                wants: setup::wants(upstream.session),
                dialled: at.filter(|_| current == Some(index)),
            };
            let (monitor, mut events) = if upstream.is_watched() {
                Monitor::scout(settings, clock::now, scouting)
            } else {
                Monitor::spawn(settings, clock::now)
            };
            monitor.sample(current == Some(index));
            monitors.push(monitor);
            let said = said.clone();
            ears.spawn(async move {
                while let Some(event) = events.recv().await {
                    if said.send((index, event)).await.is_err() {
                        return;
                    }
                }
            });
        }
        self.monitor
            .store(current.and_then(|at| monitors.get(at)).or(monitors.first()).cloned().map(Arc::new));
        (monitors, heard)
    }

    async fn hear(
        self: &Arc<Self>,
        generation: u64,
        mut events: mpsc::Receiver<(usize, MonitorEvent)>,
        monitors: &[MonitorHandle],
    ) {
        let is_watched = self.config.load().upstream.is_watched();
        let mut trouble = false;
        let mut ticks = tokio::time::interval(GRACE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let event = tokio::select! {
                event = events.recv() => event,
                _ = ticks.tick() => {
                    self.look_again(generation, monitors);
                    continue;
                }
            };
            let Some((index, event)) = event else { return };
            if let MonitorEvent::Name(addresses) = event {
                self.named(generation, index, addresses, monitors);
                continue;
            }
            if let Some(seen) = seen(&event, is_watched) {
                self.saw(generation, index, seen, monitors);
            }
            // Of the others no more is of interest than what they are.
            if self.is_dialled(generation, index) {
                self.take(event, &mut trouble).await;
            }
        }
    }

    async fn take(self: &Arc<Self>, event: MonitorEvent, trouble: &mut bool) {
        match event {
            MonitorEvent::Sample(sample) => {
                if std::mem::take(trouble) {
                    self.note("monitor_ok", "", None, "PostgreSQL's usage is known again");
                }
                self.take_sample(sample).await;
            }
            MonitorEvent::Down { cause, .. } => {
                let is_known = self.unreachable.load().as_deref().is_some_and(|known| **known == cause);
                // Said again where another server of its name was looked at between.
                if std::mem::replace(trouble, true) && is_known {
                    return;
                }
                if cause.contains("53300") {
                    self.incidents.monitor_full.fetch_add(1, Ordering::Relaxed);
                }
                self.note("monitor_down", "", None, &cause);
                self.unreachable.store(Some(Arc::new(cause)));
            }
            MonitorEvent::Blind => {
                *trouble = true;
                self.unreachable.store(None);
                let text = "the monitor's role lacks pg_read_all_stats: GRANT pg_monitor TO it";
                tracing::error!("{text}");
                self.note("monitor_blind", "", None, text);
            }
            MonitorEvent::Pooler { what, .. } => {
                *trouble = true;
                tracing::error!("monitor: {what}");
                self.note("monitor_pooler", "", None, &what);
            }
            MonitorEvent::Role { .. } | MonitorEvent::Name(_) => {}
        }
    }

    async fn take_sample(self: &Arc<Self>, sample: Sample) {
        self.unreachable.store(None);
        let sample = Arc::new(sample);
        self.hub.guard(|guard, now| guard.sample(now, &sample));
        self.sample.store(Some(sample.clone()));
        self.judge_by_fresh_sample(&sample).await;
        if self.hub.pool.is_enabled() {
            let active = sample.sessions.iter().filter(|session| &*session.state == "active");
            active.for_each(|session| self.hub.make_room_for(session.query.as_bytes()));
        }
        // Not waited for: each may take as long as PostgreSQL likes, and it is to be heard meanwhile that a server is lost. The monitor
        // and the leaks are those of the sample, whatever is dialled by then.
        let leaks = self.bypass_leaks_to_terminate(&sample);
        if let Some(monitor) = self.monitor.load_full().filter(|_| !leaks.is_empty()) {
            let app = Arc::clone(self);
            tokio::spawn(async move {
                if let Ok(_alone) = app.terminating.try_lock() {
                    app.terminate_bypass_leaks(leaks, &monitor).await;
                }
            });
        }
    }
}

/// What an event says of a server, and of which one of its name.
fn seen(event: &MonitorEvent, is_watched: bool) -> Option<(Seen, Option<IpAddr>)> {
    Some(match event {
        MonitorEvent::Role { role, at, system } => (Seen::Is { role: *role, at: *at, system: *system }, *at),
        MonitorEvent::Down { cause, sign, at } => {
            let trouble = match sign {
                Sign::Answers | Sign::Suspect => Seen::Mute,
                Sign::Hung => Seen::Hung,
                Sign::Silent => Seen::Silent,
            };
            (trouble(cause.clone()), *at)
        }
        MonitorEvent::Pooler { what, at } => (Seen::Mute(what.clone()), *at),
        // The only one is not asked what it is.
        MonitorEvent::Sample(_) | MonitorEvent::Blind if !is_watched => (Seen::Mute(String::new()), None),
        MonitorEvent::Sample(_) | MonitorEvent::Blind | MonitorEvent::Name(_) => return None,
    })
}
