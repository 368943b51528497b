//! The monitor's own connection: dial, log in, learn the pid PostgreSQL announced.

use std::error::Error as _;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::NoTlsStream;
use tokio_postgres::{Client, Config, Connection, NoTls};
use zeroize::Zeroizing;

use super::sniff::KeyScan;
use crate::tls::asked::{Answered, Wary};
use crate::tls::client::ClientTls;
use crate::tls::stream::TlsStream;

/// `application_name` of the monitor's session.
pub const APPLICATION_NAME: &str = "pgweir monitor";

/// What the operator is told where the password would be for all to read. `tls = "require"` alone verifies nobody.
const EXPOSED: &str = "PostgreSQL asks for the monitor's password in the clear, and the connection is neither local nor TLS with a \
    verified server: use scram-sha-256 in pg_hba.conf, or [upstream] tls = \"verify-full\" with ca_file";

/// Where PostgreSQL listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MonitorAddress {
    /// Name or address, and port.
    Tcp {
        /// Resolved anew at each dial.
        host: String,
        /// Port.
        port: u16,
    },
    /// `DIRECTORY/.s.PGSQL.PORT`.
    Unix {
        /// The socket's directory.
        directory: PathBuf,
        /// The number in the socket's name.
        port: u16,
    },
}

impl fmt::Display for MonitorAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix { directory, port } => write!(f, "{}/.s.PGSQL.{port}", directory.display()),
        }
    }
}

/// How the monitor reaches PostgreSQL, and how often it looks.
#[derive(Clone, PartialEq, Eq)]
pub struct MonitorSettings {
    /// Where.
    pub address: MonitorAddress,
    /// TLS, over TCP.
    pub tls: Option<ClientTls>,
    /// A role with pg_monitor (or pg_read_all_stats); pg_signal_backend for CANCEL PID and TERMINATE PID.
    pub user: String,
    /// Its password, where PostgreSQL asks for one; the driver makes copies of its own.
    pub password: Option<Zeroizing<String>>,
    /// Any database it may connect to.
    pub database: String,
    /// Time between samples.
    pub interval: Duration,
    /// Bound of dialling and logging in together.
    pub connect_timeout: Duration,
}

impl fmt::Debug for MonitorSettings {
    /// Without the password: settings end up in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MonitorSettings")
            .field("address", &self.address)
            .field("tls", &self.tls)
            .field("user", &self.user)
            .field("password", &self.password.as_ref().map(|_| "…"))
            .field("database", &self.database)
            .field("interval", &self.interval)
            .field("connect_timeout", &self.connect_timeout)
            .finish()
    }
}

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A socket whose startup messages are watched for the backend's pid.
pub struct Sniffed {
    inner: Wary<Box<dyn Duplex>>,
    scan: KeyScan,
    /// Zero until BackendKeyData was read.
    pid: Arc<AtomicI32>,
}

impl AsyncRead for Sniffed {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
        if !this.scan.is_done()
            && let Some(pid) = this.scan.feed(&buf.filled()[before..])
        {
            this.pid.store(pid, Ordering::Relaxed);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Sniffed {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

/// A session that has logged in.
pub struct Opened {
    /// Asks queries; they are answered while `connection` is polled.
    pub client: Client,
    /// Moves the bytes; dropping it closes the socket.
    pub connection: Connection<Sniffed, NoTlsStream>,
    /// Pid of BackendKeyData; zero where none was sent.
    pub announced_pid: i32,
}

/// Why there is no session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// A sentence for the operator: no name, no connection, refused by PostgreSQL, or longer than `connect_timeout`.
    pub cause: String,
    /// Whether PostgreSQL runs, and only does not let this role in.
    pub answers: bool,
    /// Whether it says that it has no such thing, or not for this role (SQLSTATE classes 0A and 42).
    pub lacks: bool,
    /// Whether it gave a statement up: it was cancelled, or took too long.
    pub gave_up: bool,
}

impl Failed {
    /// There was no answer.
    pub fn silent(cause: String) -> Self {
        Self { cause, answers: false, lacks: false, gave_up: false }
    }

    /// What a driver says. PostgreSQL's own refusal is an answer, unless it says that it starts or stops.
    pub fn of(error: &tokio_postgres::Error) -> Self {
        let leaving = [&SqlState::ADMIN_SHUTDOWN, &SqlState::CRASH_SHUTDOWN, &SqlState::CANNOT_CONNECT_NOW];
        let answers = error.code().is_some_and(|code| !leaving.contains(&code));
        let lacks =
            error.code().is_some_and(|code| code.code().starts_with("0A") || code.code().starts_with("42"));
        let gave_up = error.code() == Some(&SqlState::QUERY_CANCELED);
        Self { cause: explain(error), answers, lacks, gave_up }
    }
}

/// Dials and logs in.
///
/// # Errors
/// A sentence for the operator.
pub async fn open(settings: &MonitorSettings) -> Result<Opened, String> {
    open_as(settings, APPLICATION_NAME).await
}

/// The same with the server's name resolved already.
///
/// # Errors
/// No session.
pub async fn open_at(settings: &MonitorSettings, at: Option<IpAddr>) -> Result<Opened, Failed> {
    bounded(settings, APPLICATION_NAME, at).await
}

/// The same under another `application_name`.
///
/// # Errors
/// As [`open`].
pub async fn open_as(settings: &MonitorSettings, application_name: &str) -> Result<Opened, String> {
    bounded(settings, application_name, None).await.map_err(|failed| failed.cause)
}

async fn bounded(settings: &MonitorSettings, name: &str, at: Option<IpAddr>) -> Result<Opened, Failed> {
    match tokio::time::timeout(settings.connect_timeout, log_in(settings, name, at)).await {
        Ok(result) => result,
        Err(_) => {
            let bound = settings.connect_timeout.as_millis();
            Err(Failed::silent(format!("{}: no login within {bound} ms", settings.address)))
        }
    }
}

async fn log_in(
    settings: &MonitorSettings,
    application_name: &str,
    at: Option<IpAddr>,
) -> Result<Opened, Failed> {
    let dialled = dial(&settings.address, at, settings.tls.as_ref()).await;
    let (inner, private) =
        dialled.map_err(|error| Failed::silent(format!("{}: {error}", settings.address)))?;
    let answered = if private { Answered::All } else { Answered::NotInTheClear };
    // The code is always that of the password in the clear.
    let inner = Wary::new(inner, answered, |_| EXPOSED);
    let pid = Arc::new(AtomicI32::new(0));
    let stream = Sniffed { inner, scan: KeyScan::default(), pid: Arc::clone(&pid) };
    let mut config = Config::new();
    config.user(&settings.user).dbname(&settings.database).application_name(application_name);
    config.ssl_mode(SslMode::Disable);
    if let Some(password) = &settings.password {
        config.password(password.as_bytes());
    }
    let (client, connection) = config.connect_raw(stream, NoTls).await.map_err(|e| Failed::of(&e))?;
    Ok(Opened { client, connection, announced_pid: pid.load(Ordering::Relaxed) })
}

/// A connection, and whether nobody can listen on it: local, or TLS with a server that showed who it is.
type Dialled = (Box<dyn Duplex>, bool);

async fn connect(host: &str, at: Option<IpAddr>, port: u16) -> io::Result<TcpStream> {
    let stream = match at {
        Some(ip) => TcpStream::connect((ip, port)).await?,
        None => TcpStream::connect((host, port)).await?,
    };
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn dial(address: &MonitorAddress, at: Option<IpAddr>, tls: Option<&ClientTls>) -> io::Result<Dialled> {
    let (host, port) = match address {
        MonitorAddress::Tcp { host, port } => (host.as_str(), *port),
        MonitorAddress::Unix { directory, port } => {
            let stream = UnixStream::connect(directory.join(format!(".s.PGSQL.{port}"))).await?;
            return Ok((Box::new(stream), true));
        }
    };
    let mut stream = connect(host, at, port).await?;
    let Some(tls) = tls else { return Ok(plain(stream)) };
    match tls.negotiate(&mut stream, host).await {
        Ok(Some(session)) => {
            let private = session.is_verified() || is_loopback(&stream);
            Ok((Box::new(TlsStream::new(stream, session)), private))
        }
        Ok(None) => Ok(plain(stream)),
        // As libpq does it: "prefer" goes on without.
        Err(_) if tls.may_be_plain() => Ok(plain(connect(host, at, port).await?)),
        Err(error) => Err(error),
    }
}

fn plain(stream: TcpStream) -> Dialled {
    let private = is_loopback(&stream);
    (Box::new(stream), private)
}

fn is_loopback(stream: &TcpStream) -> bool {
    stream.peer_addr().is_ok_and(|peer| peer.ip().to_canonical().is_loopback())
}

/// A cause with the address it is about, which many a cause begins with by itself.
pub fn at(address: &MonitorAddress, cause: &str) -> String {
    let address = address.to_string();
    if cause.starts_with(&address) { cause.to_owned() } else { format!("{address}: {cause}") }
}

/// A driver's error as one line, with PostgreSQL's own words and SQLSTATE where it spoke.
pub fn explain(error: &tokio_postgres::Error) -> String {
    if let Some(db) = error.as_db_error() {
        return format!("{} {}: {}", db.severity(), db.code().code(), db.message());
    }
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_named_once() {
        let address = MonitorAddress::Tcp { host: "db".into(), port: 5432 };
        assert_eq!(at(&address, "db:5432: Connection refused"), "db:5432: Connection refused");
        assert_eq!(at(&address, "FATAL 53300: sorry"), "db:5432: FATAL 53300: sorry");
    }

    #[test]
    fn a_password_is_never_printed() {
        let settings = MonitorSettings {
            address: MonitorAddress::Tcp { host: "::1".into(), port: 5432 },
            tls: None,
            user: "pgweir".into(),
            password: Some(Zeroizing::new("hunter2".to_owned())),
            database: "postgres".into(),
            interval: Duration::from_secs(1),
            connect_timeout: Duration::from_secs(5),
        };
        assert!(!format!("{settings:?}").contains("hunter2"));
        assert_eq!(settings.address.to_string(), "[::1]:5432");
    }
}
