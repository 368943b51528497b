//! The configuration in force as lines for SHOW CONFIG: defaults filled in, no secrets.

use std::collections::HashMap;
use std::fmt::Display;
use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use super::settings::{BypassAction, Config, Role, ServerTlsSettings};
use super::units::show_duration;
use crate::lanes::settings::{Disposition, LaneSettings, LeakAction, LeakSettings, ResetWhen};

#[derive(Default)]
struct Lines(Vec<(String, String)>);

impl Lines {
    fn put(&mut self, key: impl Into<String>, value: impl Display) {
        self.0.push((key.into(), value.to_string()));
    }

    fn file(&mut self, key: impl Into<String>, value: Option<&Path>) {
        self.put(key, value.map(|file| file.display().to_string()).unwrap_or_default());
    }

    fn time(&mut self, key: impl Into<String>, value: Duration) {
        self.put(key, show_duration(value));
    }
}

/// Names of files only: what is in them is nobody's business.
fn tls_lines(lines: &mut Lines, section: &str, tls: Option<&ServerTlsSettings>) {
    let word = match tls {
        None => "off",
        Some(tls) if tls.required => "require",
        Some(_) => "allow",
    };
    lines.put(format!("{section}.tls"), word);
    let Some(tls) = tls else { return };
    lines.file(format!("{section}.certificate_file"), Some(&tls.certificate_file));
    lines.file(format!("{section}.key_file"), Some(&tls.key_file));
    lines.file(format!("{section}.client_ca_file"), tls.client_ca_file.as_deref());
}

fn opt_time(value: Option<Duration>) -> String {
    value.map_or_else(|| "0".to_owned(), show_duration)
}

fn disposition(value: Disposition) -> &'static str {
    match value {
        Disposition::Hold => "hold",
        Disposition::Reject => "reject",
    }
}

/// Keys of sockets and threads: a reload keeps their old values (`app/reload`).
const FIXED: [&str; 5] =
    ["listen[].address", "listen[].lane", "admin.address", "state.directory", "limits.workers"];
/// Keys that have no default of their own: they must be set, or follow from others.
const UNSETTLED: [&str; 12] = [
    "listen[].address",
    "upstream.address",
    "monitor.address",
    "monitor.stale_after",
    "application.*.match",
    "application.*.quota",
    "lane.*.quota",
    "lane.*.default",
    "lane.*.match[]",
    "lane.*.shed_below",
    "admin.user.*.password_file",
    "admin.user.*.role",
];
/// A file that sets as little as it may.
const LEAST: &str = r#"
listen = [{ address = "127.0.0.1:6432" }]
upstream = { address = "127.0.0.1:5432" }
monitor = {}
lane = [{ name = "x", default = true, quota = 1, idle_in_transaction = {} }]
"#;

/// A key without what the file itself names: `lane.web.quota` is `lane.*.quota`, `listen[2].lane` is `listen[].lane`. A name may have
/// dots in it.
fn kind_of(key: &str) -> String {
    let digits = |c: char| c.is_ascii_digit();
    let bare = match key.split_once('[') {
        Some((head, rest)) if rest.starts_with(digits) => {
            format!("{head}[{}", rest.trim_start_matches(digits))
        }
        _ => key.to_owned(),
    };
    for section in ["lane.", "application.", "admin.user.", "exit.probe."] {
        let Some(rest) = bare.strip_prefix(section) else { continue };
        let table = ".idle_in_transaction.";
        let last = match rest.rfind(table) {
            Some(at) if !rest[at + table.len()..].contains('.') => at,
            _ => rest.rfind('.').unwrap_or(0),
        };
        return format!("{section}*{}", &rest[last..]);
    }
    bare
}

/// Whether a reload applies a change of a key of [`Config::lines`].
pub fn is_changeable(key: &str) -> bool {
    let kind = kind_of(key);
    !FIXED.contains(&&*kind) && !kind.starts_with("admin.user.") && kind != "log_format"
}

/// What a key of [`Config::lines`] is without being set; none where it must be set, or follows from others.
pub fn default_of(key: &str) -> Option<&'static str> {
    static DEFAULTS: LazyLock<HashMap<String, String>> = LazyLock::new(|| {
        let least = super::check(LEAST, Path::new("pgweir.toml")).map(|(config, _)| config.lines());
        least.unwrap_or_default().into_iter().map(|(key, value)| (kind_of(&key), value)).collect()
    });
    let kind = kind_of(key);
    let settled = !UNSETTLED.contains(&&*kind);
    DEFAULTS.get(&kind).filter(|_| settled).map(String::as_str)
}

impl Config {
    /// Key and value of everything in force, in the order of the reference. Durations are written as in the file, 0 is never or
    /// no limit, an empty value is absent. No password is among them: the configuration holds only names of password files.
    pub fn lines(&self) -> Vec<(String, String)> {
        let mut lines = Lines::default();
        let limits = &self.settings.limits;
        lines.put("mode", if limits.observe { "observe" } else { "enforce" });
        lines.put("log_format", if self.log.json { "json" } else { "text" });
        lines.put("log_literals", self.log.literals);
        for (at, listen) in self.listen.iter().enumerate() {
            lines.put(format!("listen[{}].address", at + 1), &listen.endpoint);
            tls_lines(&mut lines, &format!("listen[{}]", at + 1), listen.tls.as_ref());
            lines.put(format!("listen[{}].lane", at + 1), listen.lane.as_deref().unwrap_or(""));
        }
        self.admin_lines(&mut lines);
        lines.put("upstream.address", self.upstream.addresses());
        lines.put("upstream.target_session_attrs", self.upstream.session.word());
        lines.time("upstream.resolve_interval", self.upstream.resolve_interval);
        lines.put("upstream.tls", self.upstream.tls.word());
        lines.put("upstream.tls_negotiation", if self.upstream.direct { "direct" } else { "postgres" });
        lines.file("upstream.ca_file", self.upstream.ca_file.as_deref());
        let (certificate, key) = self.upstream.certificate.as_ref().map(|(c, k)| (&**c, &**k)).unzip();
        lines.file("upstream.certificate_file", certificate);
        lines.file("upstream.key_file", key);
        lines.time("upstream.connect_timeout", self.upstream.connect_timeout);
        lines.put("upstream.headroom", limits.headroom);
        lines.put("upstream.tag_application_name", self.upstream.tag_application_name);
        if let Some(monitor) = &self.monitor {
            lines.put("monitor.address", &monitor.endpoint);
            lines.put("monitor.user", &monitor.user);
            lines.put("monitor.database", &monitor.database);
            let file = monitor.password_file.as_ref().map(|f| f.display().to_string());
            lines.put("monitor.password_file", file.unwrap_or_default());
            lines.time("monitor.interval", monitor.interval);
            lines.time("monitor.stale_after", limits.stale_after);
        }
        lines.put("auth.mode", if self.auth.own.is_some() { "scram" } else { "passthrough" });
        let own = self.auth.own.clone().unwrap_or_default();
        lines.put(
            "auth.users_file",
            own.users_file.map(|file| file.display().to_string()).unwrap_or_default(),
        );
        lines.put("auth.query", own.query.as_deref().unwrap_or_default());
        lines.put("auth.allow_trust", self.auth.allow_trust);
        lines.put("limits.max_clients", limits.max_clients);
        lines.put("limits.max_logins", limits.max_logins);
        lines.time("limits.startup_timeout", limits.startup_timeout);
        lines.put("limits.max_resets_per_minute", limits.max_resets_per_minute);
        lines.time("limits.drain_timeout", self.process.drain_timeout);
        lines.put("limits.workers", self.process.workers);
        lines.put("limits.tcp_keepalive", opt_time(self.process.tcp_keepalive));
        lines.put("state.directory", self.state_directory.display());
        let action = match self.bypass.action {
            BypassAction::List => "list",
            BypassAction::Terminate => "terminate",
        };
        lines.put("bypass.action", action);
        lines.time("bypass.after", self.bypass.after);
        for application in &self.settings.applications {
            let key = |name: &str| format!("application.{}.{name}", application.name);
            lines.put(key("match"), &application.pattern.text);
            lines.put(key("quota"), application.quota.unwrap_or(0));
            lines.put(key("lanes"), application.lanes.join(", "));
        }
        for lane in &self.settings.lanes {
            lane_lines(&mut lines, lane);
        }
        self.exit_lines(&mut lines);
        lines.0
    }

    fn admin_lines(&self, lines: &mut Lines) {
        lines.put("admin.address", &self.admin.endpoint);
        tls_lines(lines, "admin", self.admin.tls.as_ref());
        lines.put("admin.hosts", self.admin.hosts.join(", "));
        for user in &self.admin.users {
            let key = |name: &str| format!("admin.user.{}.{name}", user.name);
            lines.put(key("password_file"), user.password_file.display());
            let role = match user.role {
                Role::Operator => "operator",
                Role::Viewer => "viewer",
            };
            lines.put(key("role"), role);
        }
    }

    fn exit_lines(&self, lines: &mut Lines) {
        lines.put("exit.usage_below", self.exit.usage_below);
        lines.time("exit.hold_for", self.exit.hold_for);
        lines.put("exit.critical_lanes", self.exit.critical_lanes.join(", "));
        lines.put("exit.failures_below", self.exit.failures_below);
        lines.put("exit.opens_at", self.opens_at());
        let log = self.exit.log_file.as_ref().map(|file| file.display().to_string());
        lines.put("exit.log_file", log.unwrap_or_default());
        for probe in &self.exit.probes {
            let (interval, timeout) = (opt_time(Some(probe.interval)), opt_time(Some(probe.timeout)));
            let text = format!("{}, {}, every {interval}, within {timeout}", probe.ask, probe.expect);
            lines.put(format!("exit.probe.{}", probe.name), text);
        }
    }
}

fn lane_lines(lines: &mut Lines, lane: &LaneSettings) {
    let key = |name: &str| format!("lane.{}.{name}", lane.name);
    lines.put(key("protected"), lane.protected);
    lines.put(key("default"), lane.default);
    lines.put(key("priority"), lane.priority);
    let counts = [
        ("quota", lane.quota),
        ("reserve", lane.reserve),
        ("per_application", lane.per_application),
        ("per_user", lane.per_user),
        ("per_database", lane.per_database),
        ("per_address", lane.per_address),
        ("links_per_process", lane.links_per_process),
    ];
    for (name, count) in counts {
        lines.put(key(name), count);
    }
    lines.put(key("shed_above"), lane.shed_above.map(|p| p.to_string()).unwrap_or_default());
    lines.put(key("shed_below"), lane.shed_below);
    lines.time(key("shed_dwell"), lane.shed_dwell);
    lines.put(key("on_shed"), disposition(lane.on_shed));
    lines.put(key("freeze"), lane.freeze);
    lines.put(key("on_pause"), disposition(lane.on_pause));
    lines.put(key("pause_hold_timeout"), opt_time(lane.pause_hold_timeout));
    lines.time(key("wait_timeout"), lane.wait_timeout);
    lines.put(key("max_waiting"), lane.max_waiting);
    lines.put(key("connect_rate"), lane.connect_rate.unwrap_or(0.0));
    lines.put(key("reclaim_idle_after"), opt_time(lane.reclaim_idle_after));
    lines.put(key("pooling"), if lane.pooling.is_some() { "session" } else { "none" });
    if let Some(pooling) = &lane.pooling {
        lines.time(key("server_lifetime"), pooling.lifetime);
        lines.time(key("server_idle_timeout"), pooling.idle_timeout);
        lines.time(key("server_check_delay"), pooling.check_after);
        lines.put(key("server_application_name"), if pooling.normalises { "normalised" } else { "client" });
        lines.put(key("min_pool_size"), pooling.min_size);
        lines.put(key("keep_reserve"), pooling.keeps_reserve);
    }
    for (at, rule) in lane.rules.iter().enumerate() {
        lines.put(key(&format!("match[{}]", at + 1)), &rule.text);
    }
    if let Some(leaks) = &lane.idle_in_transaction {
        leak_lines(lines, &key("idle_in_transaction"), leaks);
    }
}

fn leak_lines(lines: &mut Lines, prefix: &str, leaks: &LeakSettings) {
    let key = |name: &str| format!("{prefix}.{name}");
    lines.put(key("warn"), opt_time(leaks.warn));
    lines.put(key("reset"), opt_time(leaks.reset));
    let when = match leaks.when {
        ResetWhen::Harm => "harm",
        ResetWhen::Always => "always",
    };
    lines.put(key("when"), when);
    lines.put(key("cap"), opt_time(leaks.cap));
    let action = match leaks.action {
        LeakAction::Rollback => "rollback",
        LeakAction::Disconnect => "disconnect",
        LeakAction::None => "none",
    };
    lines.put(key("action"), action);
    lines.put(key("sqlstate"), leaks.sqlstate);
    lines.put(key("disconnect_after"), opt_time(leaks.disconnect_after));
    for (at, glob) in leaks.exempt.iter().enumerate() {
        lines.put(key(&format!("exempt[{}]", at + 1)), &glob.text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_known_whatever_the_file_calls_its_parts() {
        for (key, kind) in [
            ("limits.workers", "limits.workers"),
            ("listen[12].address", "listen[].address"),
            ("lane.web.quota", "lane.*.quota"),
            ("lane.a.b.quota", "lane.*.quota"),
            ("lane.web.match[3]", "lane.*.match[]"),
            ("lane.web.idle_in_transaction.warn", "lane.*.idle_in_transaction.warn"),
            ("lane.web.idle_in_transaction.exempt[1]", "lane.*.idle_in_transaction.exempt[]"),
            ("admin.user.bob.role", "admin.user.*.role"),
        ] {
            assert_eq!(kind_of(key), kind, "{key}");
        }
    }

    #[test]
    fn defaults_are_those_of_a_file_that_sets_nothing() {
        assert_eq!(default_of("limits.max_clients"), Some("10000"));
        assert_eq!(default_of("upstream.headroom"), Some("3"));
        assert_eq!(default_of("lane.web.shed_dwell"), Some("5s"));
        assert_eq!(default_of("lane.web.idle_in_transaction.action"), Some("rollback"));
        assert_eq!((default_of("lane.web.quota"), default_of("upstream.address")), (None, None));
        assert_eq!(default_of("no.such.key"), None);
    }

    #[test]
    fn sockets_and_threads_are_the_process_s_own() {
        for key in ["listen[1].address", "limits.workers", "admin.user.admin.role", "log_format"] {
            assert!(!is_changeable(key), "{key}");
        }
        for key in ["lane.web.quota", "limits.max_clients", "listen[1].certificate_file"] {
            assert!(is_changeable(key), "{key}");
        }
    }
}
