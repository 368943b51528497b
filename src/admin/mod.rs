//! The admin port: one port for psql, Prometheus and curl.
//!
//! The first byte decides: zero begins a PostgreSQL packet, a capital letter an HTTP method, 0x16 TLS, in which the first byte decides
//! again. A console client may also ask for TLS. Pure: `command`, `parse`, `lex`, `chatter`, `help`, `view`, `tongue`, `encode`. Shell: `io`,
//! `places`, `console`, `session`, `answer`, `http`, and `serve` here.
//!
//! Bounds: [`CONNECTIONS_MAX`] connections, of which HTTP gets [`HTTP_MAX`] so that no scraper shuts an operator out; who has not logged
//! in or asked for anything gives way to newcomers (`places`); a login within [`STARTUP_TIMEOUT`]; messages of [`MESSAGE_LEN_MAX`] bytes; a peer that does not read is left after [`io::WRITE_TIMEOUT`].

pub mod answer;
pub mod chatter;
pub mod command;
pub mod console;
pub mod control;
pub mod encode;
pub mod help;
pub mod http;
pub mod io;
pub mod lex;
pub mod parse;
pub mod places;
pub mod session;
pub mod tongue;
pub mod view;

use std::io::{Error, Result};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicI32;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::timeout;

use arc_swap::{ArcSwap, ArcSwapOption};

use crate::auth::fingerprint::Fingerprint;
use crate::auth::scram::{ITERATIONS, Mock, Verifier};
use crate::tls::FIRST_BYTE;
use crate::tls::server::ServerTls;
use crate::tls::stream::TlsStream;
use control::Control;
use places::{Place, Places};

/// Connections to the admin port at most.
pub const CONNECTIONS_MAX: usize = 64;
/// HTTP connections at most, out of [`CONNECTIONS_MAX`].
pub const HTTP_MAX: usize = 32;
/// Connections at most that have not sent a byte.
const STRANGERS_MAX: usize = 512;
/// Refusals in progress at most; what comes beyond is closed without a word.
const REFUSALS_MAX: usize = 16;
/// From the connection to the end of the login.
pub const STARTUP_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a message's or HTTP request's body at most.
pub const MESSAGE_LEN_MAX: usize = 64 * 1024;
/// Between attempts to accept while the process has no descriptors or memory left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Who may log in.
#[derive(Clone, Debug)]
pub struct AdminUser {
    /// Name.
    pub name: String,
    /// What is kept of the password, for the console.
    pub verifier: Verifier,
    /// And for HTTP, where it comes with every request.
    pub fingerprint: Fingerprint,
    /// Whether commands are allowed (operator), or SHOW only (viewer).
    pub may_change: bool,
}

impl AdminUser {
    /// Keeps of a password what logins need.
    ///
    /// # Errors
    /// Only where the system has no random bytes.
    pub fn new(name: &str, password: &str, may_change: bool) -> Result<Self> {
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(Error::other)?;
        let fingerprint = Fingerprint::new(key, password);
        Ok(Self {
            name: name.to_owned(),
            verifier: Verifier::from_password(password),
            fingerprint,
            may_change,
        })
    }
}

/// TLS of the admin port.
#[derive(Clone, Debug)]
pub struct AdminTls {
    /// Certificate and demands.
    pub tls: ServerTls,
    /// Whether connections without it are refused.
    pub required: bool,
}

/// Settings of the admin port.
#[derive(Clone, Debug, Default)]
pub struct AdminSettings {
    /// Users; names are unique.
    pub users: Vec<AdminUser>,
    /// TLS, where there is any; may change at any time.
    pub tls: Arc<ArcSwapOption<AdminTls>>,
    /// Names under which browsers may reach the port, besides addresses and localhost; may change at any time.
    pub hosts: Arc<ArcSwap<Vec<String>>>,
}

/// What all connections share.
pub(crate) struct Shared {
    settings: AdminSettings,
    control: Arc<dyn Control>,
    /// Makes the salts of users that do not exist.
    mock: Mock,
    /// Pids told to clients: a number a connection.
    next_pid: AtomicI32,
    /// HTTP's routes.
    router: axum::Router,
}

/// Serves the admin port until its future is dropped, which ends all its connections.
///
/// # Errors
/// Only where the system has no random bytes, at the beginning.
pub async fn serve(listener: TcpListener, settings: AdminSettings, control: Arc<dyn Control>) -> Result<()> {
    let mut mock_secret = [0; 32];
    getrandom::fill(&mut mock_secret).map_err(Error::other)?;
    let mock = Mock::new(mock_secret, ITERATIONS);
    let (users, hosts) = (settings.users.clone(), Arc::clone(&settings.hosts));
    let router = http::router(Arc::new(http::Site::new(Arc::clone(&control), users, hosts)));
    let shared = Arc::new(Shared { settings, control, mock, next_pid: AtomicI32::new(1), router });
    let pools = Arc::new(Pools {
        strangers: Places::new(STRANGERS_MAX),
        connections: Places::new(CONNECTIONS_MAX),
        http: Places::new(HTTP_MAX),
        refusals: Arc::new(Semaphore::new(REFUSALS_MAX)),
    });
    let mut tasks = JoinSet::new();
    loop {
        let (stream, peer) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "admin port: accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
            Some(ended) = tasks.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "admin port: a connection's task panicked");
                }
                continue;
            }
        };
        prepare(&stream);
        if let Some(place) = pools.strangers.enter() {
            tasks.spawn(stranger(stream, peer, Arc::clone(&shared), Arc::clone(&pools), place));
        }
    }
}

/// Answers at once, and finds out by itself when the peer's machine is gone.
fn prepare(stream: &TcpStream) {
    let probes = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(30))
        .with_interval(Duration::from_secs(10))
        .with_retries(3);
    let result =
        stream.set_nodelay(true).and_then(|()| socket2::SockRef::from(stream).set_tcp_keepalive(&probes));
    if let Err(error) = result {
        tracing::debug!(%error, "admin port: socket options");
    }
}

/// Who is connected, by how far they have come.
struct Pools {
    /// Connections that have not sent a byte: they must not use up the places of those who do.
    strangers: Arc<Places>,
    connections: Arc<Places>,
    http: Arc<Places>,
    refusals: Arc<Semaphore>,
}

/// Waits for a connection's first byte, then gives it a place or refuses it.
async fn stranger(
    stream: TcpStream,
    peer: SocketAddr,
    shared: Arc<Shared>,
    pools: Arc<Pools>,
    silent: Place,
) {
    let protocol = tokio::select! {
        protocol = protocol(&stream) => protocol,
        () = silent.taken() => None,
    };
    drop(silent);
    let Some(protocol) = protocol else { return };
    if let Some(place) = pools.connections.enter() {
        connection(stream, peer, shared, &pools, protocol, place).await;
    } else if let Ok(permit) = Arc::clone(&pools.refusals).try_acquire_owned() {
        tracing::warn!(%peer, limit = CONNECTIONS_MAX, "admin port: too many connections");
        refuse(stream, protocol, permit).await;
    }
}

/// What a connection's first byte says it is.
enum Protocol {
    Console,
    Tls,
    Http,
    Unknown,
}

impl Protocol {
    fn of(first: u8) -> Self {
        match first {
            0 => Self::Console,
            FIRST_BYTE => Self::Tls,
            b'A'..=b'Z' => Self::Http,
            _ => Self::Unknown,
        }
    }
}

async fn protocol(stream: &TcpStream) -> Option<Protocol> {
    let mut first = [0];
    match timeout(STARTUP_TIMEOUT, stream.peek(&mut first)).await {
        Ok(Ok(1)) => Some(Protocol::of(first[0])),
        _ => None,
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    shared: Arc<Shared>,
    pools: &Pools,
    protocol: Protocol,
    place: Place,
) {
    let tls = shared.settings.tls.load_full();
    match (protocol, tls) {
        (Protocol::Tls, Some(tls)) => secure(stream, peer, &shared, pools, &tls, place).await,
        (Protocol::Tls, None) => io::close_notify(Box::new(stream)).await,
        (Protocol::Http, Some(tls)) if tls.required => http::refuse_plain(Box::new(stream)).await,
        (protocol, _) => speak(stream, peer, &shared, pools, protocol, place, false).await,
    }
}

/// TLS without asking: browsers, and clients of PostgreSQL from 17 on. The first byte inside decides, as without it.
async fn secure(
    mut stream: TcpStream,
    peer: SocketAddr,
    shared: &Shared,
    pools: &Pools,
    tls: &AdminTls,
    place: Place,
) {
    let shaken = tokio::select! {
        shaken = timeout(STARTUP_TIMEOUT, tls.tls.accept(&mut stream, &[])) => shaken,
        () = place.taken() => return,
    };
    let session = match shaken {
        Ok(Ok(session)) => session,
        Ok(Err(error)) => {
            tracing::info!(%peer, error = error.to_string(), "admin port: no TLS with a client");
            return io::say_and_close(Box::new(stream), &[]).await;
        }
        Err(_) => return,
    };
    let mut stream = TlsStream::new(stream, session);
    let first = tokio::select! {
        first = timeout(STARTUP_TIMEOUT, stream.peek()) => first,
        () = place.taken() => return,
    };
    match first {
        Ok(Ok(Some(byte))) => match Protocol::of(byte) {
            Protocol::Tls => console::refuse_garbage(Box::new(stream)).await,
            protocol => speak(stream, peer, shared, pools, protocol, place, true).await,
        },
        _ => io::say_and_close(Box::new(stream), &[]).await,
    }
}

async fn speak(
    stream: impl io::Stream + 'static,
    peer: SocketAddr,
    shared: &Shared,
    pools: &Pools,
    protocol: Protocol,
    place: Place,
    is_secure: bool,
) {
    match protocol {
        Protocol::Console => {
            tokio::select! {
                () = Box::pin(console::run(Box::new(stream), peer, shared, &place, is_secure)) => {}
                () = place.taken() => {}
            }
        }
        Protocol::Http => match pools.http.enter() {
            Some(seat) => Box::pin(http::run(stream, shared.router.clone(), peer, vec![place, seat])).await,
            None => http::refuse(Box::new(stream)).await,
        },
        Protocol::Tls | Protocol::Unknown => console::refuse_garbage(Box::new(stream)).await,
    }
}

async fn refuse(stream: TcpStream, protocol: Protocol, _permit: OwnedSemaphorePermit) {
    match protocol {
        Protocol::Console => console::refuse_many(Box::new(stream)).await,
        Protocol::Http => http::refuse(Box::new(stream)).await,
        _ => {}
    }
}
