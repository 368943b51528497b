//! From the checked configuration to what each part is told.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use arc_swap::ArcSwap;
use zeroize::Zeroizing;

use super::tls::{self, Tls};
use crate::admin::{AdminSettings, AdminUser};
use crate::auth::users::{Note, USERS_BYTES_MAX, Users};
use crate::cli::endpoint::AdminEndpoint;
use crate::config::checked::{Config, check_against};
use crate::config::settings::{BypassAction, Endpoint, Role};
use crate::config::{self, read_password};
use crate::incident::state;
use crate::link::authority::OwnAuth;
use crate::link::hub::{LinkSettings, Upstream};
use crate::tls::client::ClientTls;
use crate::upstream::monitor::{MonitorAddress, MonitorSettings};
use crate::upstream::probe;

/// What links need of the configuration.
pub(super) fn link_settings(config: &Config, tls: &Tls) -> LinkSettings {
    let upstream = match &config.upstream.endpoint {
        Endpoint::Tcp { host, port } => Upstream::Tcp(host.to_string(), *port),
        unix @ Endpoint::Unix { .. } => Upstream::Unix(unix.socket_path().unwrap_or_default()),
    };
    let limits = &config.settings.limits;
    LinkSettings {
        upstream,
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

/// What the monitor needs; none without `[monitor]`.
pub(super) fn monitor_settings(
    config: &Config,
    tls: Option<ClientTls>,
) -> anyhow::Result<Option<MonitorSettings>> {
    let Some(monitor) = &config.monitor else { return Ok(None) };
    let password = monitor.password_file.as_deref().map(read_password).transpose();
    let password =
        password.context("[monitor] password_file")?.map(|secret| Zeroizing::new(secret.expose().to_owned()));
    let address = match &monitor.endpoint {
        Endpoint::Tcp { host, port } => MonitorAddress::Tcp { host: host.to_string(), port: *port },
        Endpoint::Unix { directory, port } => {
            MonitorAddress::Unix { directory: directory.clone(), port: *port }
        }
    };
    Ok(Some(MonitorSettings {
        address,
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
    match monitor_settings(config, Some(tls.upstream.clone())) {
        Ok(Some(monitor)) => check_postgres(config, &monitor, problems, warnings),
        Ok(None) => {}
        Err(error) => problems.push(format!("{error:#}")),
    }
    problems.extend(tls.certificates_differ(config).iter().map(ToString::to_string));
}

/// What only PostgreSQL can tell: its limits and the monitor role's rights.
fn check_postgres(
    config: &Config,
    monitor: &MonitorSettings,
    problems: &mut Vec<String>,
    warnings: &mut Vec<String>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let looked = match runtime {
        Ok(runtime) => runtime.block_on(probe::look(monitor)),
        Err(error) => Err(error.to_string()),
    };
    let facts = match looked {
        Ok(facts) => facts,
        Err(error) => {
            warnings.push(format!(
                "warning: PostgreSQL was not reached, so limits and rights are not checked: {error}. Hint: run check again when it is up"
            ));
            return;
        }
    };
    let found = check_against(config, facts.max_connections, facts.reserved);
    problems.extend(found.iter().map(ToString::to_string));
    let timeouts = facts.idle_timeouts.into_iter();
    let timeouts: Vec<_> =
        timeouts.map(|(role, database, value)| config::RoleTimeout { role, database, value }).collect();
    warnings.extend(config::check_timeouts(config, &timeouts).iter().map(ToString::to_string));
    let user = &monitor.user;
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
    let password = read_password(&user.password_file)
        .map(|secret| secret.expose().to_owned())
        .map_err(|error| error.to_string());
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
