//! Connections to PostgreSQL.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::hub::{LinkSettings, Upstream};
use super::stream::Stream;
use crate::listen::socket::tune_tcp;

/// Dials PostgreSQL within `connect_timeout`. Gives the connection and, over TCP, its own address.
///
/// # Errors
/// As the system says; `TimedOut` at the bound.
pub async fn dial(settings: &LinkSettings) -> io::Result<(Stream, Option<SocketAddr>)> {
    match timeout(settings.connect_timeout, connect(&settings.upstream, settings.dead_after)).await {
        Ok(done) => done,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

async fn connect(upstream: &Upstream, dead_after: Duration) -> io::Result<(Stream, Option<SocketAddr>)> {
    match upstream {
        Upstream::Tcp(host, port) => {
            let stream = match host.parse::<std::net::IpAddr>() {
                Ok(address) => TcpStream::connect((address, *port)).await?,
                Err(_) => TcpStream::connect((host.as_str(), *port)).await?,
            };
            tune_tcp(&stream, dead_after)?;
            let local = stream.local_addr().ok();
            Ok((Stream::Tcp(stream), local))
        }
        Upstream::Unix(path) => Ok((Stream::Unix(UnixStream::connect(path).await?), None)),
    }
}
