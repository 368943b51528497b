//! The monitor's word: samples for the guard, everything else for the timeline.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::mpsc;

use super::{App, setup};
use crate::clock;
use crate::upstream::monitor::{Monitor, MonitorEvent};

impl App {
    /// Keeps a monitor running with the settings in force.
    pub(super) async fn watch(self: Arc<Self>) {
        loop {
            let tls = self.hub.settings.load().upstream_tls.clone();
            let settings = match setup::monitor_settings(&self.config.load(), tls) {
                Ok(settings) => settings,
                Err(error) => {
                    tracing::error!("monitor: {error:#}");
                    self.note("monitor_error", "", None, &format!("{error:#}"));
                    None
                }
            };
            let Some(settings) = settings else {
                self.monitor.store(None);
                self.restart_monitor.notified().await;
                continue;
            };
            let (handle, events) = Monitor::spawn(settings, clock::now);
            self.monitor.store(Some(Arc::new(handle)));
            tokio::select! {
                () = self.take_samples(events) => {}
                () = self.restart_monitor.notified() => {}
            }
        }
    }

    async fn take_samples(&self, mut events: mpsc::Receiver<MonitorEvent>) {
        let mut trouble = false;
        while let Some(event) = events.recv().await {
            match event {
                MonitorEvent::Sample(sample) => {
                    if std::mem::take(&mut trouble) {
                        self.note("monitor_ok", "", None, "PostgreSQL's usage is known again");
                    }
                    self.unreachable.store(None);
                    let sample = Arc::new(sample);
                    self.hub.guard(|guard, now| guard.sample(now, &sample));
                    self.sample.store(Some(sample.clone()));
                    self.judge_by_fresh_sample(&sample).await;
                    if self.hub.pool.is_enabled() {
                        let active = sample.sessions.iter().filter(|session| &*session.state == "active");
                        active.for_each(|session| self.hub.make_room_for(session.query.as_bytes()));
                    }
                    self.terminate_bypass_leaks(&sample).await;
                }
                MonitorEvent::Down { cause } => {
                    trouble = true;
                    if cause.contains("53300") {
                        self.incidents.monitor_full.fetch_add(1, Ordering::Relaxed);
                    }
                    self.note("monitor_down", "", None, &cause);
                    self.unreachable.store(Some(Arc::new(cause)));
                }
                MonitorEvent::Blind => {
                    trouble = true;
                    self.unreachable.store(None);
                    let text = "the monitor's role lacks pg_read_all_stats: GRANT pg_monitor TO it";
                    tracing::error!("{text}");
                    self.note("monitor_blind", "", None, text);
                }
                MonitorEvent::Pooler(cause) => {
                    trouble = true;
                    tracing::error!("monitor: {cause}");
                    self.note("monitor_pooler", "", None, &cause);
                }
            }
        }
    }
}
