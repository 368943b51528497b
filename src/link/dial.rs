//! Connections to PostgreSQL.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::hub::LinkSettings;
use super::server::{Server, Upstream};
use super::stream::Stream;
use crate::listen::socket::tune_tcp;
use crate::tls::client::ClientTls;

/// A connection.
#[derive(Debug)]
pub struct Dialled {
    /// The connection.
    pub stream: Stream,
    /// Over TCP, its own address.
    pub local: Option<SocketAddr>,
    /// Whose it is: where the name was looked up, with what it led to.
    pub server: Arc<Server>,
}

/// Dials a server within `connect_timeout`, TLS included.
///
/// # Errors
/// As the system says; `TimedOut` at the bound. A server that is lost is not dialled.
pub async fn dial(settings: &LinkSettings, server: &Arc<Server>) -> io::Result<Dialled> {
    if server.is_lost() {
        return Err(io::ErrorKind::HostUnreachable.into());
    }
    match timeout(settings.connect_timeout, connect(settings, server)).await {
        Ok(done) => done,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

async fn connect(settings: &LinkSettings, server: &Arc<Server>) -> io::Result<Dialled> {
    let (host, port) = match &server.place {
        Upstream::Tcp(host, port) => (host, *port),
        Upstream::Unix(path) => {
            let stream = UnixStream::connect(path).await?.into();
            return Ok(Dialled { stream, local: None, server: server.clone() });
        }
    };
    let dead_after = settings.dead_after;
    let mut dialled = connect_tcp(server, host, port, dead_after).await?;
    let Some(tls) = settings.upstream_tls.as_ref().filter(|tls| tls.is_on()) else {
        return Ok(dialled);
    };
    match secure(&mut dialled.stream, tls, host).await {
        Ok(()) => Ok(dialled),
        // As libpq does it: "prefer" goes on without.
        Err(error) if tls.may_be_plain() => {
            tracing::debug!(%error, "no TLS with PostgreSQL, which tls = \"prefer\" allows");
            connect_tcp(server, host, port, dead_after).await
        }
        Err(error) => Err(error),
    }
}

async fn connect_tcp(
    server: &Arc<Server>,
    host: &str,
    port: u16,
    dead_after: Duration,
) -> io::Result<Dialled> {
    let stream = match server.at.or_else(|| host.parse::<IpAddr>().ok()) {
        Some(address) => TcpStream::connect((address, port)).await?,
        None => TcpStream::connect((host, port)).await?,
    };
    tune_tcp(&stream, dead_after)?;
    let local = stream.local_addr().ok();
    let server = server.found_at(stream.peer_addr().ok().map(|peer| peer.ip()));
    Ok(Dialled { stream: stream.into(), local, server })
}

async fn secure(stream: &mut Stream, tls: &ClientTls, host: &str) -> io::Result<()> {
    if let Some(session) = tls.negotiate(stream.socket_mut(), host).await? {
        stream.secure(session);
    }
    Ok(())
}
