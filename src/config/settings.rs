//! The checked configuration: what the parts other than the lanes are told.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::incident::exit::Expect;
use crate::lanes::settings::Settings;

/// A place to listen at or to connect to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// TCP.
    Tcp {
        /// Name or address; an IPv6 address without its brackets.
        host: Arc<str>,
        /// Port, never 0.
        port: u16,
    },
    /// A Unix socket `DIRECTORY/.s.PGSQL.PORT`.
    Unix {
        /// Absolute.
        directory: PathBuf,
        /// The number in the socket's name, never 0.
        port: u16,
    },
}

impl Endpoint {
    /// The socket's path, of a Unix endpoint.
    pub fn socket_path(&self) -> Option<PathBuf> {
        match self {
            Self::Tcp { .. } => None,
            Self::Unix { directory, port } => Some(directory.join(format!(".s.PGSQL.{port}"))),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix { directory, port } => write!(f, "unix:{}:{port}", directory.display()),
        }
    }
}

/// One `[[listen]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenSettings {
    /// Where.
    pub endpoint: Endpoint,
    /// `address` as written: what a rule's `listener` is compared with.
    pub text: Arc<str>,
    /// The lane of everything that comes in here.
    pub lane: Option<Arc<str>>,
    /// TLS, where there is any.
    pub tls: Option<ServerTlsSettings>,
}

/// TLS of a listener or of the admin port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerTlsSettings {
    /// Whether connections without it are refused.
    pub required: bool,
    /// Certificate, PEM, with those between it and its authority.
    pub certificate_file: PathBuf,
    /// Its key, PEM.
    pub key_file: PathBuf,
    /// Authorities of clients' certificates; with it each client needs one.
    pub client_ca_file: Option<PathBuf>,
}

/// What an admin user may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Everything.
    Operator,
    /// SHOW only.
    Viewer,
}

/// One person or program at the admin port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminUser {
    /// Name to log in with.
    pub name: Arc<str>,
    /// Where the password is; see [`super::read_password`].
    pub password_file: PathBuf,
    /// Whether the file is ours to make (mode 0600) where it is missing. True of at most one user.
    pub generated: bool,
    /// Rights.
    pub role: Role,
}

/// `[admin]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminSettings {
    /// Always TCP: browsers come here too.
    pub endpoint: Endpoint,
    /// At least one.
    pub users: Vec<AdminUser>,
    /// Names under which browsers may reach it, besides addresses and localhost.
    pub hosts: Vec<Arc<str>>,
    /// TLS, where there is any.
    pub tls: Option<ServerTlsSettings>,
}

/// `tls` of `[upstream]`, in libpq's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamTls {
    /// Plain.
    Disable,
    /// TLS where the server has it.
    Prefer,
    /// TLS; with `ca_file` as verify-ca.
    Require,
    /// TLS with a certificate of an authority in `ca_file`.
    VerifyCa,
    /// The same, and it must name the host.
    VerifyFull,
}

impl UpstreamTls {
    /// The words of the file.
    pub const WORDS: [(&'static str, Self); 5] = [
        ("disable", Self::Disable),
        ("prefer", Self::Prefer),
        ("require", Self::Require),
        ("verify-ca", Self::VerifyCa),
        ("verify-full", Self::VerifyFull),
    ];

    /// The word of the file.
    pub fn word(self) -> &'static str {
        Self::WORDS.iter().find(|(_, tls)| *tls == self).map_or("", |(word, _)| word)
    }
}

/// Addresses of `[upstream]` at most.
pub const UPSTREAMS_MAX: usize = 16;

/// libpq's target_session_attrs, as far as a proxy can do it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetSession {
    /// Whatever answers.
    Any,
    /// A primary that lets transactions write.
    ReadWrite,
    /// A standby, or a primary whose transactions are read-only by default.
    ReadOnly,
    /// A primary.
    Primary,
    /// A standby.
    Standby,
}

impl TargetSession {
    /// As in the file.
    pub const WORDS: [(&'static str, Self); 5] = [
        ("any", Self::Any),
        ("read-write", Self::ReadWrite),
        ("read-only", Self::ReadOnly),
        ("primary", Self::Primary),
        ("standby", Self::Standby),
    ];

    /// The word in the file.
    pub fn word(self) -> &'static str {
        Self::WORDS.iter().find(|(_, one)| *one == self).map_or("", |(word, _)| word)
    }
}

/// `[upstream]`; its `headroom` is in [`crate::lanes::settings::Limits`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamSettings {
    /// PostgreSQL: at least one, at most [`UPSTREAMS_MAX`], each once.
    pub endpoints: Vec<Endpoint>,
    /// Which of them clients are led to.
    pub session: TargetSession,
    /// How often a name among them is looked up again, never zero.
    pub resolve_interval: Duration,
    /// TLS, of the monitor and of cancels too.
    pub tls: UpstreamTls,
    /// Whether TLS begins without asking.
    pub direct: bool,
    /// Authorities of PostgreSQL's certificate.
    pub ca_file: Option<PathBuf>,
    /// Own certificate and key.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// Time for one dial, never zero.
    pub connect_timeout: Duration,
    /// Whether PostgreSQL sees the client's address behind its application_name.
    pub tag_application_name: bool,
}

impl UpstreamSettings {
    /// Whether it takes the monitor to know which address to dial. Otherwise it is the one there is, whatever it may be.
    pub fn is_watched(&self) -> bool {
        self.endpoints.len() > 1 || self.session != TargetSession::Any
    }

    /// The addresses as in the file.
    pub fn addresses(&self) -> String {
        self.endpoints.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }
}

/// `[monitor]`; its `stale_after` is in [`crate::lanes::settings::Limits`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MonitorSettings {
    /// PostgreSQL itself.
    pub endpoint: Endpoint,
    /// A role with pg_monitor.
    pub user: Arc<str>,
    /// Database to connect to.
    pub database: Arc<str>,
    /// Where its password is, if it needs one.
    pub password_file: Option<PathBuf>,
    /// Time between samples, never zero.
    pub interval: Duration,
}

/// `[auth]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuthSettings {
    /// pgweir itself asks clients for their password; none leaves that to PostgreSQL.
    pub own: Option<OwnAuthSettings>,
    /// Whether a client that is not local may log in where upstream asks for no password.
    pub allow_trust: bool,
}

/// `[auth] mode = "scram"`. At least one of the two is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnAuthSettings {
    /// PgBouncer's userlist.txt.
    pub users_file: Option<PathBuf>,
    /// Asked through the monitor for users the file does not have: `$1` is the name, the row is name and secret.
    pub query: Option<Arc<str>>,
}

/// How and what is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogSettings {
    /// JSON instead of text.
    pub json: bool,
    /// Whether literals of statements are shown.
    pub literals: bool,
}

/// The part of `[limits]` that is not the guard's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessSettings {
    /// Time for transactions to finish at shutdown.
    pub drain_timeout: Duration,
    /// Worker threads; 0 is one per core.
    pub workers: u16,
    /// Time after which a silent peer is known dead; none leaves it to the system.
    pub tcp_keepalive: Option<Duration>,
}

/// What is done to leaks that bypass pgweir.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BypassAction {
    /// They are listed.
    List,
    /// They are terminated through the monitor.
    Terminate,
}

/// `[bypass]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BypassSettings {
    /// What.
    pub action: BypassAction,
    /// Idle time in transaction from which a session counts as a leak.
    pub after: Duration,
}

/// What a probe does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Asks PostgreSQL at the monitor's address, over a connection of its own for each time.
    Sql {
        /// Where to ask.
        database: Arc<str>,
        /// What: one row, one number.
        sql: Arc<str>,
        /// Role and password file; none is the monitor's.
        role: Option<(Arc<str>, Option<PathBuf>)>,
    },
    /// Gets a page.
    Http {
        /// http or https, without user and password.
        url: Arc<str>,
        /// What the page must contain.
        contains: Option<Arc<str>>,
    },
    /// Runs a program, without a shell.
    Command {
        /// Program and arguments, at least the first.
        argv: Vec<Arc<str>>,
    },
}

impl fmt::Display for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sql { database, sql, .. } => write!(f, "{sql} in {database}"),
            Self::Http { url, contains: None } => f.write_str(url),
            Self::Http { url, contains: Some(text) } => write!(f, "{url} with {text:?}"),
            Self::Command { argv } => f.write_str(&argv.join(" ")),
        }
    }
}

/// One `[[exit.probe]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct ProbeSettings {
    /// Shown.
    pub name: Arc<str>,
    /// What.
    pub ask: Ask,
    /// How the answer must be.
    pub expect: Expect,
    /// Time between two looks, 1 s to an hour.
    pub interval: Duration,
    /// Time for one look, at most a minute, never zero.
    pub timeout: Duration,
}

/// `[exit]`: when an incident begins and is over.
#[derive(Clone, Debug, PartialEq)]
pub struct ExitSettings {
    /// Usage in percent.
    pub usage_below: f64,
    /// How long every criterion must hold, a second to a day.
    pub hold_for: Duration,
    /// Lanes whose transactions must succeed.
    pub critical_lanes: Vec<Arc<str>>,
    /// Share of their transactions that may fail, in percent.
    pub failures_below: f64,
    /// Usage in percent from which an incident is open; none is the lowest `shed_above`, or 90 where no lane sheds.
    pub opens_at: Option<f64>,
    /// PostgreSQL's log, or the directory of its logs.
    pub log_file: Option<PathBuf>,
    /// Figures to watch.
    pub probes: Vec<ProbeSettings>,
}

/// Where nothing sheds, an incident is open from this usage on, in percent.
const OPENS_AT: f64 = 90.0;

impl Config {
    /// Usage in percent from which an incident is open.
    pub fn opens_at(&self) -> f64 {
        let lowest = self.settings.lanes.iter().filter_map(|lane| lane.shed_above).reduce(f64::min);
        self.exit.opens_at.or(lowest).unwrap_or(OPENS_AT)
    }
}

/// A whole configuration in which nothing is invalid.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file it came from.
    pub path: PathBuf,
    /// At least one.
    pub listen: Vec<ListenSettings>,
    /// The admin port.
    pub admin: AdminSettings,
    /// PostgreSQL.
    pub upstream: UpstreamSettings,
    /// None: nothing is sampled, nothing sheds.
    pub monitor: Option<MonitorSettings>,
    /// Clients' logins.
    pub auth: AuthSettings,
    /// Pauses, admin password, timeline.
    pub state_directory: PathBuf,
    /// Logs.
    pub log: LogSettings,
    /// Threads, drain, keepalive.
    pub process: ProcessSettings,
    /// Leaks that bypass pgweir.
    pub bypass: BypassSettings,
    /// End of an incident.
    pub exit: ExitSettings,
    /// What the guard is told: lanes, applications, limits.
    pub settings: Settings,
    /// Key → line, for problems found later, when PostgreSQL's limits are known.
    pub(super) places: BTreeMap<String, usize>,
}
