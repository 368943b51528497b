//! A changed configuration is applied whole, without dropping a link, or refused whole.

use std::sync::Arc;

use super::incidents;
use super::tls::Tls;
use super::{App, setup};
use crate::admin::control::{CommandError, Outcome};
use crate::clock;
use crate::config::settings::ListenSettings;
use crate::config::{self, checked::Config};
use crate::lanes::classify::Rules;
use crate::link::shared::Command;

impl App {
    /// Reads the configuration file again.
    pub(super) async fn reload(&self, by: &str) -> Result<Outcome, CommandError> {
        self.notifier.reloading();
        let done = self.try_reload();
        self.notifier.ready();
        match done {
            Ok(lines) => {
                self.note_by(by, "reload", "", None, &lines.join("; "));
                if let Err(error) = self.save_pauses().await {
                    tracing::error!(%error, "pauses could not be saved");
                }
                Ok(Outcome { lines })
            }
            Err(problems) => {
                let text = problems.join("\n");
                tracing::error!("reload refused: {text}");
                self.note_by(by, "reload_refused", "", None, &text);
                Err(CommandError::Refused(format!("nothing was changed:\n{text}")))
            }
        }
    }

    fn try_reload(&self) -> Result<Vec<String>, Vec<String>> {
        let old = self.config.load_full();
        let (mut new, warnings) = config::load(&old.path)
            .map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        setup::monitor_settings(&new, None).map_err(|error| vec![format!("{error:#}")])?;
        let (users, doubts) = setup::users(&new)?;
        let fixed = keep_what_needs_restart(&old, &mut new);
        // Certificates are read anew, whether or not their names have changed: links that are there keep what they began with.
        let tls = Tls::read(&new)
            .map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        let rules = Rules::new(&new.settings);
        self.hub.guard(|guard, now| guard.reload(now, new.settings.clone()).map(drop))?;
        // Lanes before rules: who is classified meanwhile must find the lane the rules name.
        self.hub.refresh_lanes();
        self.hub.rules.store(Arc::new(rules));
        // Users before the mode: who is asked for a password must find it here.
        self.set_users(users);
        self.hub.settings.store(Arc::new(setup::link_settings(&new, &tls)));
        self.admin_tls.store(tls.admin.clone());
        self.admin_hosts.store(Arc::new(setup::admin_hosts(&new)));
        self.hub.epoch.fetch_add(1, std::sync::atomic::Ordering::Release);
        let limits = &new.settings.limits;
        self.judge.lock().configure(limits.max_resets_per_minute, limits.observe);
        let (was, is) = (&old.upstream, &new.upstream);
        let servers_changed = (&was.endpoints, was.session) != (&is.endpoints, is.session);
        if was != is {
            self.hub.pool.upstream_changed();
            self.hub.guard(|guard, now| guard.drain_pool(now, None, false));
        }
        let has_files = new.upstream.ca_file.is_some() || new.upstream.certificate.is_some();
        let monitor_changed = old.monitor != new.monitor || old.upstream != new.upstream || has_files;
        let expiries = tls.expiries(&new);
        self.incidents.exit.lock().configure(incidents::rules(&new), clock::now());
        self.config.store(Arc::new(new));
        if servers_changed {
            self.choose_servers();
        }
        if old.exit != self.config.load().exit || monitor_changed {
            self.incidents.changed.notify_one();
        }
        if monitor_changed {
            self.restart_monitor.notify_one();
        }
        for link in self.links() {
            link.post(Command::Reclassify);
        }
        let mut lines = vec!["the configuration was reloaded".to_owned()];
        lines.extend(warnings.iter().chain(&expiries).map(|warning| format!("warning: {warning}")));
        lines.extend(doubts);
        lines.extend(fixed);
        Ok(lines)
    }
}

/// Sockets and threads belong to the process: what a reload cannot change keeps its old value, and says so each time.
fn keep_what_needs_restart(old: &Config, new: &mut Config) -> Vec<String> {
    let mut kept = Vec::new();
    macro_rules! keep {
        ($name:literal, $($field:ident).+) => {
            if old.$($field).+ != new.$($field).+ {
                new.$($field).+ = old.$($field).+.clone();
                kept.push(format!("{} differs from the one in force: that takes a restart", $name));
            }
        };
    }
    let place = |listen: &ListenSettings| (listen.endpoint.clone(), listen.text.clone(), listen.lane.clone());
    if old.listen.iter().map(place).ne(new.listen.iter().map(place)) {
        keep!("[[listen]]", listen);
    }
    keep!("[admin] address", admin.endpoint);
    keep!("[admin] users", admin.users);
    keep!("[state] directory", state_directory);
    keep!("[limits] workers", process.workers);
    keep!("log_format", log.json);
    kept
}
