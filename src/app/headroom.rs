//! SHOW HEADROOM: what PostgreSQL and the host say, put together.

use std::path::Path;
use std::sync::Arc;

use super::App;
use crate::config::settings::Endpoint;
use crate::headroom::{self, Facts, Host, host};
use crate::snapshot::HeadroomRow;

impl App {
    pub(super) async fn headroom_rows(&self) -> Vec<HeadroomRow> {
        let monitor = self.monitor.load_full();
        let settings = match &monitor {
            Some(monitor) => monitor.memory_settings().await.unwrap_or_default(),
            None => Default::default(),
        };
        let (usage, host) = (self.hub.guard(|guard, now| guard.usage_row(now)), self.look_at_host().await);
        let facts = Facts {
            settings,
            host,
            connected: usage.connections.into(),
            max_connections: usage.max_connections.into(),
        };
        headroom::reckon(&facts)
    }

    /// Measures on a thread of its own: walking page tables takes its time.
    async fn look_at_host(&self) -> Result<Host, String> {
        let config = self.config.load_full();
        if config.monitor.is_none() {
            return Err("without [monitor] nothing is known of PostgreSQL's processes".to_owned());
        }
        let Some(endpoint) = self.monitored(&config) else {
            return Err("no server is known that will do".to_owned());
        };
        if let Endpoint::Tcp { host, .. } = &endpoint
            && !is_here(host)
        {
            return Err(format!(
                "PostgreSQL is at {endpoint}, and pgweir sees the memory of its own host only"
            ));
        }
        let sample = self.sample.load_full().ok_or("the monitor has not seen PostgreSQL yet")?;
        let looked = tokio::task::spawn_blocking(move || {
            let backends = sample.sessions.iter().filter(|s| !s.walsender && s.pid != sample.monitor_pid);
            let backends: Vec<i32> = backends.map(|session| session.pid).collect();
            host::look(Path::new("/proc"), Path::new("/sys/fs/cgroup"), sample.monitor_pid, &backends)
        });
        looked.await.unwrap_or_else(|error| Err(error.to_string()))
    }
}

/// Whether a host is this one, by its name or number. A name that leads here by DNS only is not known as such.
fn is_here(host: &Arc<str>) -> bool {
    **host == *"localhost" || host.parse::<std::net::IpAddr>().is_ok_and(crate::listen::socket::is_local)
}
