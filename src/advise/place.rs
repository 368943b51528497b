//! Where things are: PostgreSQL, pgweir, and its files. Pure.

use std::fmt;
use std::path::PathBuf;

use super::ini::Problem;
use super::odoo::OdooConf;

/// PostgreSQL's port where nothing is said.
const PORT: u16 = 5432;
/// The shipped directory of pgweir's socket.
pub const RUN: &str = "/run/pgweir";

/// PostgreSQL, as `[upstream] address` has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upstream {
    /// Name or address.
    Tcp {
        /// An IPv6 address without brackets.
        host: String,
        /// Port.
        port: u16,
    },
    /// A socket's directory.
    Unix {
        /// Absolute.
        directory: PathBuf,
        /// The number in its name.
        port: u16,
    },
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix { directory, port } => write!(f, "unix:{}:{port}", directory.display()),
        }
    }
}

/// All places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The odoo.conf, for the generated file's first line.
    pub odoo_conf: PathBuf,
    /// PostgreSQL.
    pub upstream: Upstream,
    /// Host of the TCP listener.
    pub listen_host: String,
    /// Port of the listeners; the admin port is the next one.
    pub listen_port: u16,
    /// Where socket and state are, absolute; none is the system's places.
    pub directory: Option<PathBuf>,
}

impl Place {
    /// Directory of pgweir's socket.
    pub fn run(&self) -> PathBuf {
        self.directory.as_ref().map_or_else(|| PathBuf::from(RUN), |directory| directory.join("run"))
    }

    /// `db_host` of an Odoo that is to come through pgweir: the socket, which tells pgweir who connects, unless it was told to listen for
    /// another host.
    pub fn odoo_host(&self) -> String {
        match self.listen_host.as_str() {
            "127.0.0.1" | "::1" | "localhost" | "0.0.0.0" | "::" => self.run().display().to_string(),
            host => host.to_owned(),
        }
    }

    /// Where PostgreSQL is by an odoo.conf. A Unix socket becomes loopback: through the socket PostgreSQL would take pgweir's account for the
    /// client's.
    ///
    /// # Errors
    /// The file leads to pgweir already.
    pub fn upstream_of(&self, conf: &OdooConf) -> Result<Upstream, Problem> {
        let port = conf.db_port.value.unwrap_or(PORT);
        let host = conf.db_host.value.as_deref().unwrap_or_default();
        let host = host.split(',').next().unwrap_or_default().trim();
        if is_here(host) && port == self.listen_port {
            return Err(leads_here(conf, None));
        }
        let host = if host.is_empty() || host.starts_with('/') { "127.0.0.1" } else { host };
        Ok(Upstream::Tcp { host: host.to_owned(), port })
    }
}

/// Why nothing can be learnt of PostgreSQL from an odoo.conf that leads to a pgweir; `postgres`: where PostgreSQL itself says it is.
pub fn leads_here(conf: &OdooConf, postgres: Option<&str>) -> Problem {
    let port = conf.db_port.value.unwrap_or(PORT);
    let line = conf.db_port.line.or(conf.db_host.line);
    let message = format!("db_host and db_port ({port}) lead to a pgweir already");
    let hint = match postgres {
        Some(at) => format!("name PostgreSQL itself: --upstream {at}, as it says of itself"),
        None => "name PostgreSQL itself: --upstream HOST:PORT".to_owned(),
    };
    Problem { line, message, hint }
}

/// The socket's directory that an odoo.conf names, if it does.
pub fn socket_of(conf: &OdooConf) -> Option<Upstream> {
    let host = conf.db_host.value.as_deref().filter(|host| host.starts_with('/'))?;
    Some(Upstream::Unix { directory: host.into(), port: conf.db_port.value.unwrap_or(PORT) })
}

/// The `tls` of an upstream that is to be as safe as odoo.conf has it, as far as can be without the authority's file. "allow" logs in twice,
/// which pgweir cannot: it becomes libpq's own default.
pub fn tls(conf: &OdooConf) -> &'static str {
    match conf.db_sslmode.value.as_str() {
        "disable" => "disable",
        "require" | "verify-ca" | "verify-full" => "require",
        _ => "prefer",
    }
}

/// Whether `db_host` is this host: nothing, a socket's directory, or loopback.
pub fn is_here(host: &str) -> bool {
    let is_loopback = || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    host.is_empty() || host.starts_with('/') || host == "localhost" || is_loopback()
}
