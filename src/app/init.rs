//! `pgweir init`: reads odoo.conf, looks at PostgreSQL, writes what [`crate::advise`] proposes.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustix::fs::{Gid, Mode};
use zeroize::Zeroizing;

use crate::advise::ini::BYTES_MAX;
use crate::advise::limits::{Connected, Limits};
use crate::advise::odoo::OdooConf;
use crate::advise::place::{self, Place, Upstream};
use crate::advise::plan::{Plan, plan, role};
use crate::advise::template::Template;
use crate::advise::{render, sheet};
use crate::cli::args::Init;
use crate::config::{self, read_password};
use crate::tls::client::{ClientFiles, ClientTls, Mode as TlsMode};
use crate::upstream::limits::{self, Seen};
use crate::upstream::monitor::{MonitorAddress, MonitorSettings};
use crate::upstream::{connect, recognise};

/// Role and password file of the monitor, as in the shipped configuration.
const MONITOR: &str = "pgweir";
const PASSWORD_FILE: &str = "monitor.password";
/// Random bytes of its password.
const PASSWORD_BYTES: usize = 24;
/// For dialling and logging in, and again for the look.
const LOOK_MAX: Duration = Duration::from_secs(5);
/// Where Debian's PostgreSQL has its socket.
const SOCKETS: &str = "/var/run/postgresql";

/// Everything that is proposed.
struct Proposal {
    conf: OdooConf,
    limits: Limits,
    plan: Plan,
    place: Place,
    text: String,
}

/// Writes a configuration for an Odoo.
pub fn init(wanted: &Init, output: &Path, json: bool) -> ExitCode {
    let done = propose(wanted, output).and_then(|proposal| {
        let verifier = write(&proposal, output, wanted.force).map_err(|error| Refusal::from(vec![error]))?;
        Ok((proposal, verifier))
    });
    match done {
        Ok((proposal, verifier)) => {
            tell(&proposal, &verifier, output, json);
            ExitCode::SUCCESS
        }
        Err(Refusal { status, problems }) => {
            if json {
                println!("{}", serde_json::json!({"ok": false, "problems": problems}));
            } else {
                problems.iter().for_each(|problem| eprintln!("{problem}"));
                eprintln!("pgweir: nothing is written");
            }
            ExitCode::from(status)
        }
    }
}

/// Why nothing is written, and the exit status that says so.
struct Refusal {
    status: u8,
    problems: Vec<String>,
}

impl Refusal {
    fn usage(problem: String) -> Self {
        Self { status: 2, problems: vec![problem] }
    }
}

impl From<Vec<String>> for Refusal {
    fn from(problems: Vec<String>) -> Self {
        Self { status: 1, problems }
    }
}

fn propose(wanted: &Init, output: &Path) -> Result<Proposal, Refusal> {
    let file = &wanted.odoo_conf;
    let one = |text: String| Refusal::from(vec![text]);
    let at = |problem: &crate::advise::ini::Problem| format!("{}{problem}", file.display());
    let conf = OdooConf::parse(&read(file).map_err(one)?)
        .map_err(|problems| problems.iter().map(at).collect::<Vec<_>>())
        .map_err(Refusal::from)?;
    if !wanted.force && fs::symlink_metadata(output).is_ok() {
        return Err(one(exists(output)));
    }
    let mut place = place_of(wanted)?;
    let named = wanted.upstream.as_deref().filter(|url| *url != "none").map(target).transpose();
    let named = named.map_err(Refusal::usage)?;
    place.upstream = match &named {
        Some(target) => target.upstream.clone(),
        None => place.upstream_of(&conf).map_err(|_| one(at(&leads_here(&conf, &place))))?,
    };
    if wanted.upstream.as_deref() != Some("none") {
        refuse_a_pgweir(&conf, &place, named.as_ref(), at).map_err(one)?;
    }
    let limits = if wanted.upstream.as_deref() == Some("none") {
        Limits::assumed("--upstream none")
    } else {
        look(&conf, &place.upstream, named.as_ref())
    };
    let template = Template::shipped().map_err(one)?;
    let plan = plan(&conf, &limits, &template).map_err(|error| one(format!("pgweir: {error}")))?;
    let text = render::toml(&template, &conf, &limits, &plan, &place);
    // A file that `check` refuses would be a bug; it must not be found by the reader.
    let (checked, _) = config::check(&text, output).map_err(told)?;
    let reserved = limits.superuser_reserved + limits.reserved;
    let found = config::check_against(&checked, limits.max_connections, reserved);
    if found.is_empty() { Ok(Proposal { conf, limits, plan, place, text }) } else { Err(told(found)) }
}

/// What stands in front of PostgreSQL knows neither its limits nor where it is.
fn refuse_a_pgweir(
    conf: &OdooConf,
    place: &Place,
    named: Option<&Target>,
    at: impl Fn(&crate::advise::ini::Problem) -> String,
) -> Result<(), String> {
    if named.is_some() && is_pgweir(&place.upstream) {
        let itself = behind(conf, &place.upstream, named).map_or_else(String::new, |at| format!(": {at}"));
        return Err(format!(
            "--upstream {} is a pgweir, not PostgreSQL. Hint: name PostgreSQL itself{itself}",
            place.upstream
        ));
    }
    let mut led = std::iter::once(place.upstream.clone()).chain(place::socket_of(conf));
    if named.is_none() && led.any(|upstream| is_pgweir(&upstream)) {
        return Err(at(&leads_here(conf, place)));
    }
    Ok(())
}

/// With PostgreSQL's own address, where a session through that pgweir can tell it.
fn leads_here(conf: &OdooConf, place: &Place) -> crate::advise::ini::Problem {
    let host = conf.db_host.value.clone().unwrap_or_default();
    let host = if host.is_empty() { "127.0.0.1".to_owned() } else { host };
    let port = conf.db_port.value.unwrap_or(place.listen_port);
    let through = place::socket_of(conf).unwrap_or(Upstream::Tcp { host, port });
    place::leads_here(conf, behind(conf, &through, None).as_deref())
}

fn behind(conf: &OdooConf, through: &Upstream, named: Option<&Target>) -> Option<String> {
    let (host, port) = look_at(conf, through, named).ok()?.server?;
    Some(Upstream::Tcp { host, port }.to_string())
}

fn is_pgweir(place: &Upstream) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.is_ok_and(|runtime| runtime.block_on(recognise::is_pgweir(&address_of(place), LOOK_MAX)))
}

fn address_of(place: &Upstream) -> MonitorAddress {
    match place {
        Upstream::Tcp { host, port } => MonitorAddress::Tcp { host: host.clone(), port: *port },
        Upstream::Unix { directory, port } => {
            MonitorAddress::Unix { directory: directory.clone(), port: *port }
        }
    }
}

fn told(problems: Vec<config::Problem>) -> Refusal {
    let told =
        problems.iter().map(|problem| format!("the file that was to be written would not pass: {problem}"));
    told.collect::<Vec<_>>().into()
}

fn exists(output: &Path) -> String {
    format!("{}: exists. Hint: --output FILE writes another, --force replaces it", output.display())
}

fn read(file: &Path) -> Result<Zeroizing<String>, String> {
    let mut bytes = Zeroizing::new(Vec::new());
    File::open(file).and_then(|file| file.take(BYTES_MAX as u64 + 1).read_to_end(&mut bytes)).map_err(
        |error| format!("{}: cannot be read: {error}. Hint: it is Odoo's own file", file.display()),
    )?;
    let text = std::str::from_utf8(&bytes).map_err(|error| {
        let line = 1 + bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
        format!(
            "{}:{line}: is not UTF-8 text. Hint: Odoo does not read it either: save it as UTF-8",
            file.display()
        )
    })?;
    Ok(Zeroizing::new(text.to_owned()))
}

fn place_of(wanted: &Init) -> Result<Place, Refusal> {
    let (listen_host, listen_port) = host_and_port(&wanted.listen)
        .filter(|(_, port)| *port < u16::MAX)
        .ok_or_else(|| Refusal::usage(format!("--listen wants HOST:PORT, not {:?}", wanted.listen)))?;
    let directory = wanted.directory.as_deref().map(std::path::absolute).transpose();
    let directory = directory.map_err(|error| Refusal::usage(format!("--directory: {error}")))?;
    let upstream = Upstream::Tcp { host: String::new(), port: 0 };
    Ok(Place { odoo_conf: wanted.odoo_conf.clone(), upstream, listen_host, listen_port, directory })
}

fn host_and_port(text: &str) -> Option<(String, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let port = port.parse().ok().filter(|port| *port > 0)?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    (!host.is_empty() && !host.contains(['/', '@'])).then(|| (host.to_owned(), port))
}

/// PostgreSQL as `--upstream` names it.
struct Target {
    upstream: Upstream,
    user: Option<String>,
    password: Option<Zeroizing<String>>,
    database: Option<String>,
}

/// The URL itself is in no message: it may carry a password.
fn target(text: &str) -> Result<Target, String> {
    if let Some((host, port)) = host_and_port(text) {
        let upstream = Upstream::Tcp { host, port };
        return Ok(Target { upstream, user: None, password: None, database: None });
    }
    let wrong = || "--upstream wants HOST:PORT, postgres://user@host:port/database or none".to_owned();
    let config = tokio_postgres::Config::from_str(text).map_err(|_| wrong())?;
    let port = config.get_ports().first().copied().unwrap_or(5432);
    let upstream = match config.get_hosts().first().ok_or_else(wrong)? {
        tokio_postgres::config::Host::Tcp(host) => Upstream::Tcp { host: host.clone(), port },
        tokio_postgres::config::Host::Unix(directory) => {
            Upstream::Unix { directory: directory.clone(), port }
        }
    };
    let password = config.get_password().and_then(|bytes| std::str::from_utf8(bytes).ok());
    Ok(Target {
        upstream,
        user: config.get_user().map(str::to_owned),
        password: password.map(|text| Zeroizing::new(text.to_owned())),
        database: config.get_dbname().map(str::to_owned),
    })
}

/// Looks as Odoo would log in, or as whom `--upstream` names. Where Odoo uses the socket, that is tried as well.
fn look(conf: &OdooConf, upstream: &Upstream, named: Option<&Target>) -> Limits {
    let socket =
        || Upstream::Unix { directory: PathBuf::from(SOCKETS), port: conf.db_port.value.unwrap_or(5432) };
    let by_socket = (named.is_none() && conf.db_host.value.is_none()).then(socket);
    let mut why = None;
    for place in std::iter::once(upstream.clone()).chain(by_socket) {
        match look_at(conf, &place, named) {
            Ok(seen) if !seen.is_postgres => {
                return Limits::assumed(format!("a pooler answers at {place}: name PostgreSQL itself"));
            }
            Ok(seen) => return limits_of(seen),
            Err(error) => why = why.or_else(|| Some(connect::at(&address_of(&place), &error))),
        }
    }
    Limits::assumed(why.unwrap_or_default())
}

fn look_at(conf: &OdooConf, place: &Upstream, named: Option<&Target>) -> Result<Seen, String> {
    let mode = match place::tls(conf) {
        "disable" => TlsMode::Disable,
        "require" => TlsMode::Require,
        _ => TlsMode::Prefer,
    };
    let tls = ClientTls::load(&ClientFiles { mode, ..ClientFiles::default() }).ok();
    let own = conf.db_password.as_ref().map(|password| password.expose().clone());
    let settings = MonitorSettings {
        address: address_of(place),
        tls,
        user: named.and_then(|target| target.user.clone()).unwrap_or_else(|| role(conf).to_owned()),
        password: match named {
            Some(Target { user: Some(_), password, .. }) => password.clone(),
            _ => own,
        },
        database: named.and_then(|target| target.database.clone()).unwrap_or_else(|| "postgres".to_owned()),
        interval: LOOK_MAX,
        connect_timeout: LOOK_MAX,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| error.to_string())?.block_on(limits::look(&settings, role(conf), MONITOR))
}

fn limits_of(seen: Seen) -> Limits {
    let connected = seen.sessions.into_iter();
    Limits {
        assumed: None,
        max_connections: seen.max_connections,
        superuser_reserved: seen.superuser_reserved,
        reserved: seen.reserved,
        connected: connected
            .map(|(user, application, count)| Connected { user, application, count })
            .collect(),
        databases: Some(seen.databases),
        has_monitor: Some(seen.has_monitor),
    }
}

/// Writes file and password; what PostgreSQL is to store of the latter.
fn write(proposal: &Proposal, output: &Path, force: bool) -> Result<String, String> {
    let said = |path: &Path, error: io::Error| format!("{}: cannot be written: {error}", path.display());
    let directory = output.parent().unwrap_or(Path::new(""));
    let password_file = directory.join(PASSWORD_FILE);
    let password = match password(&password_file) {
        Ok(password) => password,
        Err(error) => return Err(said(&password_file, error)),
    };
    let written = if force { replace(output, &proposal.text) } else { create(output, &proposal.text) };
    written.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => exists(output),
        _ => said(output, error),
    })?;
    Ok(postgres_protocol::password::scram_sha_256(password.as_bytes()))
}

/// The monitor's password: the one that is there, or a new one.
fn password(file: &Path) -> io::Result<Zeroizing<String>> {
    if fs::symlink_metadata(file).is_ok() {
        let known = read_password(file).map_err(|error| io::Error::other(error.to_string()))?;
        return Ok(Zeroizing::new(known.expose().to_owned()));
    }
    let mut random = Zeroizing::new([0; PASSWORD_BYTES]);
    getrandom::fill(&mut *random).map_err(|error| io::Error::other(error.to_string()))?;
    let password = Zeroizing::new(URL_SAFE_NO_PAD.encode(*random));
    create(file, &Zeroizing::new(format!("{}\n", *password)))?;
    Ok(password)
}

/// Never through a link, never over what is there, for nobody else to read but the service's account.
fn create(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    if let Some(group) = service_group(path) {
        rustix::fs::fchown(&file, None, Some(group))?;
        rustix::fs::fchmod(&file, Mode::RUSR | Mode::WUSR | Mode::RGRP)?;
    }
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Written by root where only root and a group may look (/etc/pgweir as the package makes it), a file is for that group: pgweir does not
/// run as root.
fn service_group(path: &Path) -> Option<Gid> {
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
    let directory = rustix::fs::stat(directory.unwrap_or(Path::new("."))).ok()?;
    let closed = Mode::from_raw_mode(directory.st_mode) & (Mode::RWXO | Mode::WGRP) == Mode::empty();
    let lent = directory.st_uid == 0 && directory.st_gid != 0 && closed;
    (lent && rustix::process::geteuid().is_root()).then(|| Gid::from_raw(directory.st_gid))
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    create(&new, text)?;
    fs::rename(&new, path)
}

fn tell(proposal: &Proposal, verifier: &str, output: &Path, json: bool) {
    let Proposal { conf, limits, plan, place, .. } = proposal;
    let sql = sheet::sql(conf, limits, plan, verifier);
    let lines = sheet::odoo_lines(conf, plan, place);
    if json {
        let odoo_conf: serde_json::Map<String, serde_json::Value> =
            lines.into_iter().map(|(key, value)| (key.to_owned(), value.into())).collect();
        let warnings: Vec<_> = plan.warnings.iter().map(ToString::to_string).collect();
        let all = serde_json::json!({
            "ok": true, "output": output, "odoo": conf, "limits": limits, "plan": plan, "warnings": warnings,
            "sql": sql, "odoo_conf": odoo_conf,
        });
        return print(&format!("{all}\n"));
    }
    let lines: String = lines.iter().map(|(key, value)| format!("   {key} = {value}\n")).collect();
    let sql: String = sql.lines().map(|line| format!("   {line}\n")).collect();
    let service = if place.directory.is_none() {
        "   As a service: both files to /etc/pgweir, owned by the account it runs as.\n"
    } else {
        ""
    };
    print(&format!(
        "{}\nWritten: {} (observe: it touches nothing), and the monitor's password beside it.\n\n\
         1. As a superuser, in psql (what is stored of the password is not the password):\n{sql}\
         2. {program} check --config {output} && {program} run --config {output}\n{service}\
         3. In odoo.conf, then restart Odoo:\n{lines}",
        sheet::text(conf, plan, place),
        output.display(),
        output = output.display(),
        program = program(std::env::args_os().next(), is_on_path()),
    ));
}

/// As the reader has just called it, so that the next command works as it stands.
fn program(called: Option<std::ffi::OsString>, on_path: bool) -> String {
    let called = called.and_then(|name| name.into_string().ok());
    let plain = |name: &String| {
        let is_place = name.contains('/') && !(on_path && name.starts_with('/'));
        is_place && name.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+".contains(c))
    };
    called.filter(plain).unwrap_or_else(|| "pgweir".to_owned())
}

fn is_on_path() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join("pgweir").is_file())
}

/// A reader that has gone (`| head`) is no failure of ours.
fn print(text: &str) {
    let _ = io::stdout().lock().write_all(text.as_bytes());
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail")]
mod tests {
    use super::*;

    #[test]
    fn postgresql_is_named_in_three_ways_and_never_repeated() {
        let upstream = |text: &str| target(text).map(|target| target.upstream.to_string());
        assert_eq!(upstream("db:5433"), Ok("db:5433".into()));
        assert_eq!(upstream("[::1]:5433"), Ok("[::1]:5433".into()));
        assert_eq!(upstream("postgres://odoo:hunter2@db/x"), Ok("db:5432".into()));
        assert_eq!(upstream("postgres:///x?host=/run/postgresql"), Ok("unix:/run/postgresql:5432".into()));
        let named = target("postgres://odoo:hunter2@db/x").unwrap();
        assert_eq!((named.user.as_deref(), named.database.as_deref()), (Some("odoo"), Some("x")));
        assert_eq!(named.password.as_ref().map(|text| text.as_str()), Some("hunter2"));
        for wrong in ["", "db", "db:x", "postgres://odoo:hunter2@db:x/x", "/run"] {
            let said = upstream(wrong).err().unwrap();
            assert!(said.contains("--upstream wants") && !said.contains("hunter2"), "{said}");
        }
    }

    #[test]
    fn the_next_command_is_called_as_this_one_was() {
        let shown = |name: &str| program(Some(name.into()), false);
        assert_eq!([shown("pgweir"), shown("target/release/pgweir")], ["pgweir", "target/release/pgweir"]);
        assert_eq!([shown("/opt/a b/pgweir"), program(None, false)], ["pgweir", "pgweir"]);
        assert_eq!(shown("/opt/pgweir"), "/opt/pgweir");
        assert_eq!(program(Some("/usr/bin/pgweir".into()), true), "pgweir");
    }

    #[test]
    fn a_monitor_is_known_by_its_name() {
        assert_eq!(crate::advise::limits::MONITOR_APPLICATION, connect::APPLICATION_NAME);
    }

    #[test]
    fn nothing_is_overwritten_and_nobody_else_may_read() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("pgweir.toml");
        create(&file, "one").unwrap();
        assert_eq!(create(&file, "two").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        replace(&file, "three").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "three");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let secret = directory.path().join(PASSWORD_FILE);
        let first = password(&secret).unwrap();
        assert_eq!((first.len(), password(&secret).unwrap()), (32, first));
        assert_eq!(fs::metadata(&secret).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn what_root_writes_into_a_services_directory_is_for_the_service() {
        use std::os::unix::fs::{MetadataExt, PermissionsExt};
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        std::os::unix::fs::chown(directory.path(), Some(0), Some(4242)).unwrap();
        for (open, expected) in [(0o750, (4242, 0o640)), (0o755, (0, 0o600)), (0o770, (0, 0o600))] {
            fs::set_permissions(directory.path(), fs::Permissions::from_mode(open)).unwrap();
            let file = directory.path().join(format!("{open:o}"));
            create(&file, "").unwrap();
            let made = fs::metadata(&file).unwrap();
            assert_eq!((made.gid(), made.mode() & 0o777), expected, "{open:o}");
        }
    }
}
