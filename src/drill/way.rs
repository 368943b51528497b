//! A way in: the target itself or a proxy before it, and who logs in there.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_postgres::config::Host;

use super::client::Link;

/// PostgreSQL's answer to SSLRequest is waited for so long when a way is tried first.
const PROBE_MAX: Duration = Duration::from_secs(10);
/// A first login may take so long.
const LOGIN_MAX: Duration = Duration::from_secs(30);
/// SSLRequest: length 8, code 80877103.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// Bytes both ways.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Duplex for T {}

/// Where a way leads, resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// Address and port.
    Tcp(SocketAddr),
    /// Path of the socket.
    Unix(PathBuf),
}

/// Who logs in, the same on every way.
#[derive(Clone)]
pub struct Account {
    /// Role.
    pub user: String,
    /// Its password, where the target's URL has one.
    pub password: Option<Vec<u8>>,
    /// The Odoo database.
    pub database: String,
}

/// A way in.
#[derive(Clone)]
pub struct Way {
    /// `direct`, or the proxy's HOST:PORT or NAME as the operator wrote it.
    pub name: String,
    /// Where it leads.
    pub endpoint: Endpoint,
    /// Who logs in.
    pub account: Arc<Account>,
    /// Whether SSLRequest is sent first, as libpq does over TCP: not where it is answered by TLS, which the drill does not speak.
    pub ssl_request: bool,
    /// Whether the startup parameter `options` carries the search path; else each BEGIN does.
    pub options: bool,
}

impl Way {
    /// The way of the target's URL.
    ///
    /// # Errors
    /// What is wrong with the URL, or that its host has no address.
    pub async fn direct(config: &tokio_postgres::Config) -> Result<Self, String> {
        let port = config.get_ports().first().copied().unwrap_or(5432);
        let endpoint = match config.get_hosts() {
            [] => Endpoint::Tcp(resolve("127.0.0.1", port).await?),
            [Host::Tcp(host)] => Endpoint::Tcp(resolve(host, port).await?),
            [Host::Unix(directory)] => Endpoint::Unix(directory.join(format!(".s.PGSQL.{port}"))),
            _ => return Err("the target has several hosts; the drill wants one".into()),
        };
        let user = config.get_user().ok_or("the target's URL names no user")?.to_owned();
        let database = config.get_dbname().unwrap_or(&user).to_owned();
        let password = config.get_password().map(<[u8]>::to_vec);
        let account = Arc::new(Account { user, password, database });
        let mut way = Self { name: "direct".into(), endpoint, account, ssl_request: false, options: true };
        way.probe().await?;
        Ok(way)
    }

    /// The way through a proxy at HOST:PORT, called NAME where NAME=HOST:PORT is given, for the same account.
    ///
    /// # Errors
    /// What is wrong with the address, or that nobody answers there.
    pub async fn through(&self, given: &str) -> Result<Self, String> {
        let (name, address) = named(given)?;
        let (host, port) = address
            .rsplit_once(':')
            .and_then(|(host, port)| Some((host, port.parse::<u16>().ok().filter(|port| *port > 0)?)))
            .filter(|(host, _)| !host.is_empty())
            .ok_or_else(|| format!("--through wants HOST:PORT or NAME=HOST:PORT, not {given:?}"))?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let endpoint = Endpoint::Tcp(resolve(host, port).await?);
        let mut way = Self { name: name.to_owned(), endpoint, ssl_request: false, ..self.clone() };
        way.probe().await?;
        Ok(way)
    }

    /// Tries what SSLRequest is answered with.
    async fn probe(&mut self) -> Result<(), String> {
        let cannot = |error: io::Error| format!("{} cannot be reached: {error}", self.name);
        if matches!(self.endpoint, Endpoint::Unix(_)) {
            return self.dial().await.map(|_| ()).map_err(cannot);
        }
        let asked = tokio::time::timeout(PROBE_MAX, async {
            let mut stream = self.dial().await?;
            stream.write_all(&SSL_REQUEST).await?;
            stream.read_u8().await
        });
        match asked.await {
            Ok(answer) => self.ssl_request = answer.map_err(cannot)? == b'N',
            Err(_) => return Err(format!("{} does not answer", self.name)),
        }
        Ok(())
    }

    /// Whether a session on this way finds the drill's schema by the startup parameter `options`.
    ///
    /// # Errors
    /// That nobody can log in here, even without it.
    pub async fn passes_options(&self) -> Result<bool, String> {
        let check = format!("SELECT 1 / (current_setting('search_path') = '{}')::int", super::odoo::SCHEMA);
        for options in [true, false] {
            let way = Self { options, ..self.clone() };
            let connecting = Link::connect(&way, &self.account.database, "pgweir drill", None);
            match tokio::time::timeout(LOGIN_MAX, connecting).await {
                Ok(Ok(mut link)) => {
                    let passed = options && link.query(&check).await.is_ok();
                    link.close().await;
                    return Ok(passed);
                }
                Ok(Err(_)) | Err(_) if options => {}
                Ok(Err(failure)) => {
                    return Err(format!("{}: {} {}", self.name, failure.label, failure.message));
                }
                Err(_) => return Err(format!("{}: no login within {} s", self.name, LOGIN_MAX.as_secs())),
            }
        }
        Ok(false)
    }

    async fn dial(&self) -> io::Result<Box<dyn Duplex>> {
        match &self.endpoint {
            Endpoint::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                Ok(Box::new(stream))
            }
            Endpoint::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
        }
    }

    /// A stream on which a startup message may follow.
    ///
    /// # Errors
    /// The socket's, or that the way answers SSLRequest otherwise than at first.
    pub async fn open(&self) -> io::Result<Box<dyn Duplex>> {
        let mut stream = self.dial().await?;
        if self.ssl_request {
            stream.write_all(&SSL_REQUEST).await?;
            if stream.read_u8().await? != b'N' {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "SSLRequest was not refused this time",
                ));
            }
        }
        Ok(stream)
    }
}

/// A proxy's name, which is its address where it has none, and its address.
///
/// # Errors
/// That the name is empty, or that of the target itself.
pub fn named(given: &str) -> Result<(&str, &str), String> {
    match given.split_once('=').unwrap_or((given, given)) {
        ("" | "direct", _) => Err(format!("--through {given}: a proxy needs a name of its own")),
        both => Ok(both),
    }
}

async fn resolve(host: &str, port: u16) -> Result<SocketAddr, String> {
    let mut found =
        tokio::net::lookup_host((host, port)).await.map_err(|error| format!("{host}: {error}"))?;
    found.next().ok_or_else(|| format!("{host} has no address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_may_have_a_name() {
        assert_eq!(named("db:6432"), Ok(("db:6432", "db:6432")));
        assert_eq!(named("pgweir=[::1]:6432"), Ok(("pgweir", "[::1]:6432")));
        assert!(named("=db:6432").is_err() && named("direct=db:6432").is_err());
    }
}
