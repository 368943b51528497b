//! From the checked configuration to what each part is told.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use arc_swap::ArcSwap;
use zeroize::Zeroizing;

use super::tls::{self, Tls};
use super::writable;
use crate::admin::{AdminSettings, AdminUser};
use crate::auth::users::{Note, USERS_BYTES_MAX, Users};
use crate::cli::endpoint::AdminEndpoint;
use crate::config::checked::{Config, check_against};
use crate::config::settings::{BypassAction, Endpoint, Role, TargetSession};
use crate::config::{self, read_password};
use crate::incident::state;
use crate::link::authority::OwnAuth;
use crate::link::hub::LinkSettings;
use crate::link::server::Upstream;
use crate::tls::client::ClientTls;
use crate::upstream::monitor::{MonitorAddress, MonitorSettings};
use crate::upstream::targets::{self, Wants};
use crate::upstream::{connect, probe};

/// What links need of the configuration.
pub(super) fn link_settings(config: &Config, tls: &Tls) -> LinkSettings {
    let limits = &config.settings.limits;
    LinkSettings {
        upstream_tls: Some(tls.upstream.clone()),
        doors: tls.doors.clone(),
        connect_timeout: config.upstream.connect_timeout,
        startup_timeout: limits.startup_timeout,
        dead_after: config.process.tcp_keepalive.unwrap_or_default(),
        allow_trust: config.auth.allow_trust,
        own_auth: config.auth.own.as_ref().map(|own| OwnAuth { query: own.query.clone() }),
        tag_application_name: config.upstream.tag_application_name,
        log_literals: config.log.literals,
        max_clients: limits.max_clients,
    }
}

/// Where links are dialled, for an address of the configuration.
pub(super) fn place(endpoint: &Endpoint) -> Upstream {
    match endpoint {
        Endpoint::Tcp { host, port } => Upstream::Tcp(host.to_string(), *port),
        unix @ Endpoint::Unix { .. } => Upstream::Unix(unix.socket_path().unwrap_or_default()),
    }
}

/// What is looked for among the servers.
pub(super) fn wants(session: TargetSession) -> Wants {
    match session {
        TargetSession::Any => Wants::Any,
        TargetSession::ReadWrite => Wants::ReadWrite,
        TargetSession::ReadOnly => Wants::ReadOnly,
        TargetSession::Primary => Wants::Primary,
        TargetSession::Standby => Wants::Standby,
    }
}

/// The users file, read and understood; nobody without one. With it, what is doubtful in it.
///
/// # Errors
/// Everything that is wrong with it.
pub(super) fn users(config: &Config) -> Result<(Users, Vec<String>), Vec<String>> {
    let file = config.auth.own.as_ref().and_then(|own| own.users_file.as_deref());
    let Some(file) = file else { return Ok((Users::default(), Vec::new())) };
    let text = config::read_users(file, USERS_BYTES_MAX)
        .map_err(|error| vec![format!("auth.users_file: {error}")])?;
    let lines = |kind: &str, notes: Vec<Note>| -> Vec<String> {
        notes.iter().map(|note| format!("{kind}{}:{}: {}", file.display(), note.line, note.text)).collect()
    };
    match Users::parse(text.expose()) {
        Ok((users, doubts)) => Ok((users, lines("warning: ", doubts))),
        Err(problems) => Err(lines("", problems)),
    }
}

/// What the monitors need, one a server; none without `[monitor]`.
pub(super) fn monitors(config: &Config, tls: Option<ClientTls>) -> anyhow::Result<Vec<MonitorSettings>> {
    let Some(first) = monitor_settings(config, tls)? else { return Ok(Vec::new()) };
    if !config.upstream.is_watched() {
        return Ok(vec![first]);
    }
    let at = |endpoint| MonitorSettings { address: monitor_address(endpoint), ..first.clone() };
    Ok(config.upstream.endpoints.iter().map(at).collect())
}

pub(super) fn monitor_address(endpoint: &Endpoint) -> MonitorAddress {
    match endpoint {
        Endpoint::Tcp { host, port } => MonitorAddress::Tcp { host: host.to_string(), port: *port },
        Endpoint::Unix { directory, port } => {
            MonitorAddress::Unix { directory: directory.clone(), port: *port }
        }
    }
}

/// What the monitor of the only server needs, or of the first of several; none without `[monitor]`.
pub(super) fn monitor_settings(
    config: &Config,
    tls: Option<ClientTls>,
) -> anyhow::Result<Option<MonitorSettings>> {
    let Some(monitor) = &config.monitor else { return Ok(None) };
    let password = monitor.password_file.as_deref().map(read_password).transpose();
    let password =
        password.context("[monitor] password_file")?.map(|secret| Zeroizing::new(secret.expose().to_owned()));
    Ok(Some(MonitorSettings {
        address: monitor_address(&monitor.endpoint),
        tls,
        user: monitor.user.to_string(),
        password,
        database: monitor.database.to_string(),
        interval: monitor.interval,
        connect_timeout: config.upstream.connect_timeout,
    }))
}

/// Who may use the admin port. A password that is ours to make is made at the first start.
pub(super) fn admin_settings(config: &Config) -> anyhow::Result<AdminSettings> {
    let mut users = Vec::new();
    for user in &config.admin.users {
        let password = Zeroizing::new(if user.generated {
            let (password, new) = state::admin_password(&config.state_directory)?;
            if new {
                tracing::info!(file = %user.password_file.display(), "made a password for the admin port");
            }
            password.reveal().to_owned()
        } else {
            read_password(&user.password_file)?.expose().to_owned()
        });
        users.push(AdminUser::new(&user.name, &password, user.role == Role::Operator)?);
    }
    let hosts = Arc::new(ArcSwap::from_pointee(admin_hosts(config)));
    Ok(AdminSettings { users, tls: Default::default(), hosts })
}

/// Names under which browsers may reach the admin port: those of the file, and its address where that is a name.
pub(super) fn admin_hosts(config: &Config) -> Vec<String> {
    let address = match &config.admin.endpoint {
        Endpoint::Tcp { host, .. } => Some(host),
        Endpoint::Unix { .. } => None,
    };
    address.into_iter().chain(&config.admin.hosts).map(ToString::to_string).collect()
}

/// Logs to standard error, as text or JSON; `RUST_LOG` chooses what.
pub(super) fn start_log(config: &Config) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if config.log.json {
        builder.json().flatten_event(true).init();
    } else {
        builder.with_target(false).with_ansi(false).init();
    }
}

/// `pgweir check`: every problem and warning of a configuration file, and whether it fits the PostgreSQL behind it, where that can be
/// reached.
pub fn check(path: &Path, json: bool) -> ExitCode {
    let (mut problems, mut warnings) = (Vec::new(), Vec::new());
    match config::load(path) {
        Ok((config, found)) => {
            warnings.extend(found.iter().map(ToString::to_string));
            problems.extend(writable::problems(&config));
            match users(&config) {
                Ok((_, doubts)) => warnings.extend(doubts),
                Err(found) => problems.extend(found),
            }
            match Tls::read(&config) {
                Ok(tls) => {
                    warnings.extend(tls.expiries(&config).iter().map(ToString::to_string));
                    check_servers(&config, &tls, &mut problems, &mut warnings);
                }
                Err(found) => problems.extend(found.iter().map(ToString::to_string)),
            }
        }
        Err(found) => problems.extend(found.iter().map(ToString::to_string)),
    }
    if json {
        println!(
            "{}",
            serde_json::json!({"ok": problems.is_empty(), "problems": problems, "warnings": warnings})
        );
    } else {
        problems.iter().chain(&warnings).for_each(|line| println!("{line}"));
        if problems.is_empty() {
            println!("{}: ok", path.display());
        }
    }
    ExitCode::from(u8::from(!problems.is_empty()))
}

fn check_servers(config: &Config, tls: &Tls, problems: &mut Vec<String>, warnings: &mut Vec<String>) {
    match monitors(config, Some(tls.upstream.clone())) {
        Ok(monitors) => check_postgres(config, &monitors, problems, warnings),
        Err(error) => problems.push(format!("{error:#}")),
    }
    problems.extend(tls.certificates_differ(config).iter().map(ToString::to_string));
}

/// What only PostgreSQL can tell: each server's limits, the monitor role's rights there, and which of several is to be dialled.
fn check_postgres(
    config: &Config,
    monitors: &[MonitorSettings],
    problems: &mut Vec<String>,
    warnings: &mut Vec<String>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let several = monitors.len() > 1;
    let (mut roles, mut clusters) = (Vec::new(), Vec::new());
    for monitor in monitors {
        let looked = match &runtime {
            Ok(runtime) => runtime.block_on(probe::look(monitor, config.upstream.is_watched())),
            Err(error) => Err(error.to_string()),
        };
        let at = if several { format!("{}: ", monitor.address) } else { String::new() };
        match looked {
            Ok(facts) => {
                let found = check_facts(config, &monitor.user, &facts);
                problems.extend(found.into_iter().map(|problem| format!("{at}{problem}")));
                let timeouts = facts.idle_timeouts.into_iter();
                let timeouts: Vec<_> = timeouts
                    .map(|(role, database, value)| config::RoleTimeout { role, database, value })
                    .collect();
                let found = config::check_timeouts(config, &timeouts);
                warnings.extend(found.iter().map(|warning| format!("{at}{warning}")));
                roles.extend(facts.role.map(|role| (monitor.address.to_string(), role)));
                clusters.extend(facts.system.map(|system| (monitor.address.to_string(), system)));
            }
            Err(error) => {
                let (what, hint) = if error.contains("authentication failed") {
                    (
                        "refused the monitor",
                        "create its role, or mend its password: `pgweir init` prints the SQL",
                    )
                } else {
                    ("was not reached", "run check again when it is up")
                };
                let error = connect::at(&monitor.address, &error);
                warnings.push(format!(
                    "warning: PostgreSQL {what}, so limits and rights are not checked: {error}. Hint: {hint}"
                ));
            }
        }
    }
    if config.upstream.is_watched() && !roles.is_empty() {
        warnings.extend(check_roles(wants(config.upstream.session), &roles));
        warnings.extend(check_clusters(&clusters));
    }
}

fn check_facts(config: &Config, user: &str, facts: &probe::Facts) -> Vec<String> {
    let found = check_against(config, facts.max_connections, facts.reserved);
    let mut problems: Vec<String> = found.iter().map(ToString::to_string).collect();
    if !facts.is_postgres {
        problems.push(
            "monitor: a pooler answers, not PostgreSQL. Hint: [monitor] address must be PostgreSQL's own"
                .to_owned(),
        );
    }
    if !facts.may_read {
        problems.push(format!(
            "monitor.user: {user} sees only its own sessions. Hint: GRANT pg_monitor TO {user}"
        ));
    }
    if !facts.may_signal && config.bypass.action == BypassAction::Terminate {
        problems.push(format!(
            "bypass.action: {user} may not terminate sessions. Hint: GRANT pg_signal_backend TO {user}"
        ));
    }
    problems
}

/// Whether exactly one of the servers that answer will do, where there should be one.
fn check_roles(wants: Wants, roles: &[(String, targets::Role)]) -> Option<String> {
    let list = |roles: &[(String, targets::Role)]| {
        let one = |(address, role): &(String, targets::Role)| format!("{address} is {}", role.word());
        roles.iter().map(one).collect::<Vec<_>>().join(", ")
    };
    let primaries = roles.iter().filter(|(_, role)| matches!(role, targets::Role::Primary { .. })).count();
    let (text, hint) = if !roles.iter().any(|(_, role)| wants.suits(*role)) {
        (format!("no server is {}: clients would wait", wants.word()), "promote one, or start the primary")
    } else if matches!(wants, Wants::ReadWrite | Wants::Primary) && primaries > 1 {
        ("more than one server is a primary".to_owned(), "stop the one that should not be")
    } else {
        return None;
    };
    Some(format!("warning: upstream.address: {text} ({}). Hint: {hint}", list(roles)))
}

/// Whether all servers are of one cluster, as far as they tell their system identifiers.
fn check_clusters(clusters: &[(String, u64)]) -> Option<String> {
    let (_, first) = clusters.first()?;
    clusters.iter().any(|(_, system)| system != first).then(|| {
        let one = |(address, system): &(String, u64)| format!("{address} has system identifier {system}");
        let list = clusters.iter().map(one).collect::<Vec<_>>().join(", ");
        format!(
            "warning: upstream.address: these servers are of several clusters, and only one will be dialled ({list}). \
             Hint: list the servers of one cluster"
        )
    })
}

/// Where the console of a configuration is, for the CLI. A configuration with problems elsewhere still says so: `reload` must be able to
/// ask the running pgweir what it thinks of it.
///
/// # Errors
/// The configuration's problems.
pub fn admin_endpoint(path: &Path) -> Result<AdminEndpoint, String> {
    let admin = match config::load(path) {
        Ok((config, _)) => config.admin,
        Err(problems) => config::admin_of(path)
            .ok_or_else(|| problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))?,
    };
    let user = admin.users.first().ok_or("no admin user is configured")?;
    let password =
        read_password(&user.password_file).map(|secret| secret.expose().to_owned()).map_err(|error| {
            let missing = user.generated && std::fs::symlink_metadata(&user.password_file).is_err();
            let hint = "Hint: pgweir makes it when it is started for the first time. Was it, with this configuration?";
            if missing { format!("{error}. {hint}") } else { error.to_string() }
        });
    let (host, port) = match &admin.endpoint {
        Endpoint::Tcp { host, port } => {
            let host = match &**host {
                "0.0.0.0" => "127.0.0.1",
                "::" => "::1",
                host => host,
            };
            (host.to_owned(), *port)
        }
        Endpoint::Unix { directory, port } => (directory.display().to_string(), *port),
    };
    let tls = admin.tls.as_ref().map(tls::pinned).transpose()?;
    Ok(AdminEndpoint { host, port, user: user.name.to_string(), password, tls })
}
