//! The probes of `[exit]`, each a task; they are started anew when the configuration changed.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use zeroize::Zeroizing;

use super::{App, setup};
use crate::clock;
use crate::config::read_password;
use crate::config::settings::{self, ProbeSettings};
use crate::incident::exit::{Expect, Measured};
use crate::prober::http::Pages;
use crate::prober::tail::Tail;
use crate::prober::{self, Ask};

/// Queries at once: each is a connection to PostgreSQL beside pgweir's.
const QUERIES_MAX: usize = 2;
/// Pages and programs at once.
const OTHERS_MAX: usize = 4;
/// Time between two looks at PostgreSQL's log.
const LOG_EVERY: Duration = Duration::from_secs(1);

impl App {
    /// Keeps the probes of the configuration in force running.
    pub(super) async fn probe(self: Arc<Self>) {
        let pages = Pages::default();
        let (queries, others) = (Arc::new(Semaphore::new(QUERIES_MAX)), Arc::new(Semaphore::new(OTHERS_MAX)));
        loop {
            let config = self.config.load_full();
            // Dropped with the turn: a probe under way is given up, and what it had to do with it.
            let mut tasks = JoinSet::new();
            for probe in &config.exit.probes {
                let turns = match probe.ask {
                    settings::Ask::Sql { .. } => &queries,
                    _ => &others,
                };
                tasks.spawn(self.clone().repeat(probe.clone(), pages.clone(), turns.clone()));
            }
            if let Some(file) = &config.exit.log_file {
                tasks.spawn(self.clone().follow_log(Tail::new(file)));
            }
            self.incidents.changed.notified().await;
        }
    }

    async fn repeat(self: Arc<Self>, probe: ProbeSettings, pages: Pages, turns: Arc<Semaphore>) {
        loop {
            let answer = match (self.question(&probe), turns.acquire().await) {
                (Ok(question), Ok(_turn)) => prober::ask(&question, &pages, probe.timeout).await,
                (Err(why), _) => Err(why),
                (_, Err(_)) => return,
            };
            self.answered(&probe, answer);
            tokio::time::sleep(probe.interval).await;
        }
    }

    fn answered(&self, probe: &ProbeSettings, answer: Result<Measured, String>) {
        if let Err(why) = &answer {
            tracing::debug!(probe = &*probe.name, why, "a probe has no answer");
        }
        self.incidents.exit.lock().answered(clock::now(), &probe.name, answer);
    }

    /// What to ask, with the passwords and certificates of now.
    fn question(&self, probe: &ProbeSettings) -> Result<Ask, String> {
        match &probe.ask {
            settings::Ask::Sql { database, sql, role } => {
                let tls = self.hub.settings.load().upstream_tls.clone();
                let monitor = setup::monitor_settings(&self.config.load(), tls)
                    .map_err(|error| format!("{error:#}"))?;
                let mut settings = monitor.ok_or("there is no [monitor] to ask through")?;
                let endpoint =
                    self.monitored(&self.config.load()).ok_or("no server is known that will do")?;
                settings.address = setup::monitor_address(&endpoint);
                settings.database = database.to_string();
                settings.connect_timeout = probe.timeout;
                if let Some((user, file)) = role {
                    settings.user = user.to_string();
                    settings.password = file.as_deref().map(secret).transpose()?;
                }
                Ok(Ask::Sql { settings: Box::new(settings), sql: sql.clone() })
            }
            settings::Ask::Http { url, contains } => {
                let url = url.parse().map_err(|error| format!("{url}: {error}"))?;
                Ok(Ask::Http { url, contains: contains.clone() })
            }
            settings::Ask::Command { argv } => {
                Ok(Ask::Command { argv: argv.clone(), number: probe.expect != Expect::Ok })
            }
        }
    }

    async fn follow_log(self: Arc<Self>, mut tail: Tail) {
        // A new tail counts from 0: what was counted before stays counted.
        let before = self.incidents.logged.lock().as_ref().copied().unwrap_or(0);
        let mut known = 0;
        loop {
            let looked = tokio::task::spawn_blocking(move || {
                let looked = tail.look();
                (tail, looked)
            });
            let Ok((same, looked)) = looked.await else { return };
            tail = same;
            if let Ok(found) = looked
                && found > known
            {
                let text = format!(
                    "PostgreSQL's log: {} clients were told \"too many clients\", those who bypass pgweir among them",
                    found - known
                );
                self.note("log_too_many_clients", "", None, &text);
                known = found;
            }
            *self.incidents.logged.lock() = looked.map(|found| before + found);
            tokio::time::sleep(LOG_EVERY).await;
        }
    }
}

fn secret(file: &Path) -> Result<Zeroizing<String>, String> {
    let secret = read_password(file).map_err(|error| error.to_string())?;
    Ok(Zeroizing::new(secret.expose().to_owned()))
}
