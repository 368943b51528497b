//! The tables of the file that are not lanes.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::raw::{Report, Section};
use super::settings::{
    AdminSettings, AdminUser, AuthSettings, BypassAction, BypassSettings, Endpoint, ListenSettings,
    LogSettings, MonitorSettings, OwnAuthSettings, ProcessSettings, Role, TargetSession, UPSTREAMS_MAX,
    UpstreamSettings, UpstreamTls,
};
use super::{tls, values};
use crate::lanes::settings::{ApplicationSettings, Limits};

/// Admin users at most.
const ADMINS_MAX: usize = 100;

/// Stands in for an address that could not be read; never seen, for a problem is on record.
fn nowhere() -> (Endpoint, Arc<str>) {
    (Endpoint::Tcp { host: "127.0.0.1".into(), port: 1 }, "".into())
}

/// `mode` and the logs' keys at the top of the file: whether decisions are only recorded.
pub(super) fn top(report: &mut Report<'_>, root: &mut Section<'_>) -> (bool, LogSettings) {
    let observe =
        root.read(report, "mode", values::word(&[("enforce", false), ("observe", true)])).unwrap_or(false);
    let json =
        root.read(report, "log_format", values::word(&[("text", false), ("json", true)])).unwrap_or(false);
    let literals = root.read(report, "log_literals", values::boolean).unwrap_or(false);
    (observe, LogSettings { json, literals })
}

/// `[[listen]]`, with whether every address could be read.
pub(super) fn listen(report: &mut Report<'_>, root: &mut Section<'_>) -> (Vec<ListenSettings>, bool) {
    let mut complete = true;
    let mut all = Vec::new();
    for mut section in root.tables(report, "listen") {
        let hint = "write address = \"127.0.0.1:6432\"";
        let address = section.require(report, "address", hint, values::endpoint(6432));
        complete &= address.is_some();
        let (mut endpoint, text) = address.unwrap_or_else(nowhere);
        if let Some(number) = section.read(report, "port", values::count(1, 65_535)) {
            match &mut endpoint {
                Endpoint::Unix { port, .. } => *port = u16::try_from(number).unwrap_or(*port),
                Endpoint::Tcp { .. } => report.problem_at(
                    &section.key("port"),
                    "belongs to a unix: address only",
                    "write the port behind the host: \"127.0.0.1:6432\"",
                ),
            }
        }
        let tls = tls::server(report, &mut section, matches!(endpoint, Endpoint::Unix { .. }));
        let lane = section.read(report, "lane", values::name);
        all.push(ListenSettings { endpoint, text, lane, tls });
        section.finish(report);
    }
    if !root.has("listen") {
        report.problem_at(
            "listen",
            "is missing: pgweir would listen nowhere",
            "add [[listen]] with address = \"127.0.0.1:6432\"",
        );
    }
    (all, complete)
}

/// `[admin]`.
pub(super) fn admin(
    report: &mut Report<'_>,
    root: &mut Section<'_>,
    state: &std::path::Path,
) -> AdminSettings {
    let path = report.path;
    let default = Endpoint::Tcp { host: "127.0.0.1".into(), port: 6433 };
    let generated = state.join("admin.password");
    let alone = |name: Arc<str>, file: Option<PathBuf>| AdminUser {
        name,
        generated: file.is_none(),
        password_file: file.unwrap_or_else(|| generated.clone()),
        role: Role::Operator,
    };
    let Some(mut section) = root.table(report, "admin") else {
        let users = vec![alone("admin".into(), None)];
        return AdminSettings { endpoint: default, users, hosts: Vec::new(), tls: None };
    };
    let endpoint = section.read(report, "address", values::endpoint(6433)).map_or(default, |(e, _)| e);
    let address = section.key("address");
    let tls = tls::server(report, &mut section, false);
    match &endpoint {
        Endpoint::Unix { .. } => report.problem_at(
            &address,
            "must be host:port",
            "the admin port serves browsers too; write \"127.0.0.1:6433\"",
        ),
        Endpoint::Tcp { host, .. } if !is_loopback(host) && !tls.as_ref().is_some_and(|tls| tls.required) => {
            report.warning_at(
                &address,
                "is not a loopback address: passwords of HTTP users cross the network in the clear",
                "write tls = \"require\", or \"127.0.0.1:6433\" and come through an SSH tunnel",
            );
        }
        Endpoint::Tcp { .. } => {}
    }
    let file = section.read(report, "password_file", values::path(path));
    let several =
        section.item(report, "user").is_some_and(|item| item.value.is_array() || item.value.is_table());
    let users = if several {
        if section.has("password_file") {
            let hint = "give each [[admin.user]] a password_file of its own";
            report.problem_at(&section.key("password_file"), "is for a single user", hint);
        }
        admin_users(report, &mut section, &generated)
    } else {
        vec![alone(section.read(report, "user", values::name).unwrap_or_else(|| "admin".into()), file)]
    };
    let hosts = section.read(report, "hosts", values::list(values::host)).unwrap_or_default();
    section.finish(report);
    AdminSettings { endpoint, users, hosts, tls }
}

fn admin_users(
    report: &mut Report<'_>,
    admin: &mut Section<'_>,
    generated: &std::path::Path,
) -> Vec<AdminUser> {
    let path = report.path;
    let mut users: Vec<AdminUser> = Vec::new();
    for mut section in admin.tables(report, "user") {
        let name = section.require(report, "name", "write name = \"…\"", values::name);
        let file = section.read(report, "password_file", values::path(path));
        let roles = [("operator", Role::Operator), ("viewer", Role::Viewer)];
        let role = section.read(report, "role", values::word(&roles)).unwrap_or(Role::Viewer);
        let mut user = AdminUser {
            name: name.clone().unwrap_or_default(),
            generated: !section.has("password_file"),
            password_file: file.unwrap_or_else(|| generated.to_owned()),
            role,
        };
        if user.generated && users.iter().any(|u| u.generated) {
            user.generated = false;
            let text = "is missing: only one password can be generated";
            report.problem_at(
                &section.key("password_file"),
                text,
                "name a file that holds this user's password",
            );
        }
        if name.is_some() && users.iter().any(|u| u.name == user.name) {
            let text = format!("there is another user {:?}", user.name);
            report.problem_at(&section.key("name"), text, "give each user a name of its own");
        }
        users.push(user);
        section.finish(report);
    }
    let key = admin.key("user");
    if users.len() > ADMINS_MAX {
        report.problem_at(&key, format!("has more than {ADMINS_MAX} users"), "share a viewer's password");
    } else if users.is_empty() {
        report.problem_at(&key, "lists nobody", "write user = \"admin\", or add [[admin.user]]");
    } else if users.iter().all(|u| u.role == Role::Viewer) {
        report.warning_at(
            &key,
            "nobody may change anything: all users are viewers",
            "write role = \"operator\" for one of them",
        );
    }
    users
}

/// Whether `host` is this machine by name or number.
pub(super) fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// `[upstream]` with its headroom.
pub(super) fn upstream(report: &mut Report<'_>, root: &mut Section<'_>) -> (UpstreamSettings, u32) {
    let mut settings = UpstreamSettings {
        endpoints: vec![nowhere().0],
        session: TargetSession::Any,
        resolve_interval: Duration::from_secs(10),
        tls: UpstreamTls::Prefer,
        direct: false,
        ca_file: None,
        certificate: None,
        connect_timeout: Duration::from_secs(5),
        tag_application_name: false,
    };
    let hint = "add [upstream] with address = \"127.0.0.1:5432\": where PostgreSQL listens";
    let Some(mut section) = root.table(report, "upstream") else {
        if !root.has("upstream") {
            report.problem_at("upstream", "is missing", hint);
        }
        return (settings, 3);
    };
    if let Some(endpoints) = section.require(report, "address", hint, values::endpoints(5432, UPSTREAMS_MAX))
    {
        settings.endpoints = endpoints;
    }
    let session = section.read(report, "target_session_attrs", values::word(&TargetSession::WORDS));
    let several = settings.endpoints.len() > 1;
    settings.session = session.unwrap_or(if several { TargetSession::ReadWrite } else { TargetSession::Any });
    if let Some(interval) = section.read(report, "resolve_interval", values::positive_duration) {
        settings.resolve_interval = interval;
    }
    tls::upstream(report, &mut section, &mut settings);
    if let Some(timeout) = section.read(report, "connect_timeout", values::positive_duration) {
        settings.connect_timeout = timeout;
    }
    if let Some(tag) = section.read(report, "tag_application_name", values::boolean) {
        settings.tag_application_name = tag;
    }
    let headroom = section.read(report, "headroom", values::count(0, values::CONNECTIONS_MAX)).unwrap_or(3);
    section.finish(report);
    (settings, headroom)
}

/// `[monitor]` with its `stale_after`.
pub(super) fn monitor(
    report: &mut Report<'_>,
    root: &mut Section<'_>,
    upstream: &UpstreamSettings,
) -> (Option<MonitorSettings>, Duration) {
    let path = report.path;
    let stale_default = Duration::from_secs(5);
    let Some(mut section) = root.table(report, "monitor") else {
        if upstream.is_watched() && !root.has("monitor") {
            let text = "needs a [monitor]: it is the monitor that sees which server is which";
            report.problem_at("upstream.address", text, "add [monitor] with a role that has pg_monitor");
        }
        return (None, stale_default);
    };
    if upstream.is_watched() && section.has("address") {
        let text = "has no meaning here: the monitor asks each address of [upstream]";
        report.problem_at(&section.key("address"), text, "remove it");
    }
    let interval =
        section.read(report, "interval", values::positive_duration).unwrap_or(Duration::from_secs(1));
    let stale_after = section
        .read(report, "stale_after", values::positive_duration)
        .unwrap_or(stale_default.max(interval * 5));
    let settings = MonitorSettings {
        endpoint: section
            .read(report, "address", values::endpoint(5432))
            .map_or_else(|| upstream.endpoints[0].clone(), |(endpoint, _)| endpoint),
        user: section.read(report, "user", values::name).unwrap_or_else(|| "pgweir".into()),
        database: section.read(report, "database", values::name).unwrap_or_else(|| "postgres".into()),
        password_file: section.read(report, "password_file", values::path(path)),
        interval,
    };
    let key = section.key("stale_after");
    if stale_after <= interval {
        let text = "is not longer than the interval between samples: every sample would be stale";
        report.problem_at(&key, text, "write at least three times the interval");
    } else if stale_after < interval * 2 {
        let text = "is less than two intervals: one late sample makes lanes shed";
        report.warning_at(&key, text, "write at least three times the interval");
    }
    section.finish(report);
    (Some(settings), stale_after)
}

/// `[auth]`.
pub(super) fn auth(report: &mut Report<'_>, root: &mut Section<'_>, monitored: bool) -> AuthSettings {
    let path = report.path;
    let Some(mut section) = root.table(report, "auth") else { return AuthSettings::default() };
    let words = [("passthrough", false), ("scram", true)];
    let mode = section.read(report, "mode", values::word(&words));
    let users_file = section.read(report, "users_file", values::path(path));
    let query = section.read(report, "query", values::text);
    let allow_trust = section.read(report, "allow_trust", values::boolean);
    let mut own = None;
    if mode == Some(true) {
        let key = section.key("mode");
        if !section.has("users_file") && !section.has("query") {
            let hint = "add users_file = \"userlist.txt\", or query = \"…\"";
            report.problem_at(
                &key,
                "\"scram\" needs to know users: there is neither users_file nor query",
                hint,
            );
        }
        if let Some(query) = &query {
            check_query(report, &section.key("query"), query, monitored);
        }
        if allow_trust.is_some() {
            let text = "has no effect with mode = \"scram\": every client is asked for a password";
            report.warning_at(&section.key("allow_trust"), text, "remove it");
        }
        own = Some(OwnAuthSettings { users_file, query });
    } else if mode == Some(false) || !section.has("mode") {
        for name in ["users_file", "query"] {
            if section.has(name) {
                let text = "belongs to mode = \"scram\"; without it PostgreSQL checks the passwords";
                report.problem_at(&section.key(name), text, "write mode = \"scram\", or remove it");
            }
        }
    }
    section.finish(report);
    AuthSettings { own, allow_trust: allow_trust.unwrap_or(false) }
}

fn check_query(report: &mut Report<'_>, key: &str, query: &str, monitored: bool) {
    if !query.contains("$1") {
        let hint = "write … where usename = $1";
        report.problem_at(key, "does not use $1, the name of the user who logs in", hint);
    }
    if !monitored {
        let hint = "add [monitor] with a role that may run it";
        report.problem_at(key, "is put over the monitor's connection, and there is no [monitor]", hint);
    }
}

/// `[limits]`; what stands elsewhere in the file is filled in by the caller.
pub(super) fn limits(report: &mut Report<'_>, root: &mut Section<'_>) -> (Limits, ProcessSettings) {
    let mut limits = Limits {
        max_clients: 10_000,
        max_logins: 64,
        startup_timeout: Duration::from_secs(10),
        max_resets_per_minute: 10,
        headroom: 3,
        stale_after: Duration::from_secs(5),
        monitored: false,
        observe: false,
    };
    let mut process = ProcessSettings {
        drain_timeout: Duration::from_secs(30),
        workers: 0,
        tcp_keepalive: Some(Duration::from_secs(60)),
    };
    let Some(mut section) = root.table(report, "limits") else { return (limits, process) };
    let mut number = |name, min, max, into: &mut u32| {
        if let Some(n) = section.read(report, name, values::count(min, max)) {
            *into = n;
        }
    };
    let mut workers = 0;
    number("max_clients", 1, 1_000_000, &mut limits.max_clients);
    number("max_logins", 1, 100_000, &mut limits.max_logins);
    number("max_resets_per_minute", 0, 100_000, &mut limits.max_resets_per_minute);
    number("workers", 0, 1_024, &mut workers);
    process.workers = u16::try_from(workers).unwrap_or(0);
    if let Some(d) = section.read(report, "startup_timeout", values::positive_duration) {
        limits.startup_timeout = d;
    }
    if let Some(d) = section.read(report, "drain_timeout", values::duration) {
        process.drain_timeout = d;
    }
    if let Some(d) = section.read(report, "tcp_keepalive", values::optional_duration) {
        process.tcp_keepalive = d;
        if d.is_some_and(|d| d < Duration::from_secs(1)) {
            let text = "is below the second in which the system counts";
            report.problem_at(
                &section.key("tcp_keepalive"),
                text,
                "write \"60s\"; \"0\" leaves it to the system",
            );
        }
    }
    section.finish(report);
    (limits, process)
}

/// `[state]`.
pub(super) fn state(report: &mut Report<'_>, root: &mut Section<'_>) -> PathBuf {
    let path = report.path;
    let directory = root.table(report, "state").and_then(|mut section| {
        let directory = section.read(report, "directory", values::path(path));
        section.finish(report);
        directory
    });
    directory.unwrap_or_else(|| "/var/lib/pgweir".into())
}

/// `[bypass]`.
pub(super) fn bypass(report: &mut Report<'_>, root: &mut Section<'_>, monitored: bool) -> BypassSettings {
    let mut settings = BypassSettings { action: BypassAction::List, after: Duration::from_secs(600) };
    let Some(mut section) = root.table(report, "bypass") else { return settings };
    let words = [("list", BypassAction::List), ("terminate", BypassAction::Terminate)];
    if let Some(action) = section.read(report, "action", values::word(&words)) {
        settings.action = action;
    }
    if let Some(after) = section.read(report, "after", values::positive_duration) {
        settings.after = after;
    }
    if settings.action == BypassAction::Terminate && !monitored {
        let hint = "add [monitor], with a role that has pg_signal_backend";
        report.problem_at(
            &section.key("action"),
            "\"terminate\" works through the monitor, and there is none",
            hint,
        );
    }
    section.finish(report);
    settings
}

/// `[[application]]`, each with the key it stands under.
pub(super) fn applications(
    report: &mut Report<'_>,
    root: &mut Section<'_>,
) -> Vec<(ApplicationSettings, String)> {
    let mut all: Vec<(ApplicationSettings, String)> = Vec::new();
    for mut section in root.tables(report, "application") {
        let name = section.require(report, "name", "write name = \"odoo\": what it is called", values::name);
        if let Some(name) = &name {
            if all.iter().any(|(other, _)| other.name == *name) {
                let text = format!("there is another application {name:?}");
                report.problem_at(&section.key("name"), text, "use one glob for both, or two names");
            } else {
                section.rename(report, format!("application.{name}"));
            }
        }
        let hint = "write match = \"odoo-*\": a glob on application_name";
        let pattern = section.require(report, "match", hint, values::application_glob);
        let quota = section.read(report, "quota", values::count(1, values::CONNECTIONS_MAX));
        if let (Some(pattern), Some(name)) = (pattern, name) {
            let key = section.name.clone();
            all.push((ApplicationSettings { pattern, name, quota, lanes: Vec::new() }, key));
        }
        section.finish(report);
    }
    all
}
