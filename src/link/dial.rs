//! Connections to PostgreSQL.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::hub::{LinkSettings, Upstream};
use super::stream::Stream;
use crate::listen::socket::tune_tcp;
use crate::tls::client::ClientTls;

/// Dials PostgreSQL within `connect_timeout`, TLS included. Gives the connection and, over TCP, its own address.
///
/// # Errors
/// As the system says; `TimedOut` at the bound.
pub async fn dial(settings: &LinkSettings) -> io::Result<(Stream, Option<SocketAddr>)> {
    match timeout(settings.connect_timeout, connect(settings)).await {
        Ok(done) => done,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

async fn connect(settings: &LinkSettings) -> io::Result<(Stream, Option<SocketAddr>)> {
    let (host, port) = match &settings.upstream {
        Upstream::Tcp(host, port) => (host, *port),
        Upstream::Unix(path) => return Ok((UnixStream::connect(path).await?.into(), None)),
    };
    let dead_after = settings.dead_after;
    let (mut stream, local) = connect_tcp(host, port, dead_after).await?;
    let Some(tls) = settings.upstream_tls.as_ref().filter(|tls| tls.is_on()) else {
        return Ok((stream, local));
    };
    match secure(&mut stream, tls, host).await {
        Ok(()) => Ok((stream, local)),
        // As libpq does it: "prefer" goes on without.
        Err(error) if tls.may_be_plain() => {
            tracing::debug!(%error, "no TLS with PostgreSQL, which tls = \"prefer\" allows");
            connect_tcp(host, port, dead_after).await
        }
        Err(error) => Err(error),
    }
}

async fn connect_tcp(
    host: &str,
    port: u16,
    dead_after: Duration,
) -> io::Result<(Stream, Option<SocketAddr>)> {
    let stream = match host.parse::<std::net::IpAddr>() {
        Ok(address) => TcpStream::connect((address, port)).await?,
        Err(_) => TcpStream::connect((host, port)).await?,
    };
    tune_tcp(&stream, dead_after)?;
    let local = stream.local_addr().ok();
    Ok((stream.into(), local))
}

async fn secure(stream: &mut Stream, tls: &ClientTls, host: &str) -> io::Result<()> {
    if let Some(session) = tls.negotiate(stream.socket_mut(), host).await? {
        stream.secure(session);
    }
    Ok(())
}
