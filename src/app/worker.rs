//! Worker threads: each runs its links on a runtime of its own; nothing of a link ever crosses to another thread.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use tokio::sync::mpsc;

use crate::link::hub::{Client, Hub};
use crate::link::serve::{Accepted, serve};
use crate::link::stream::Stream;
use crate::listen::socket::tune_tcp;

/// Connections handed to a worker that it has not taken yet.
const HANDED_MAX: usize = 1024;

/// Connections at most that have sent no startup packet yet, or are being refused.
const STRANGERS_MAX: u32 = 2000;

/// A connection on its way to a worker.
pub struct Handed {
    /// The socket, non-blocking.
    pub socket: Socket,
    /// The listener, as written in the configuration.
    pub listener: Arc<str>,
    /// The lane of all that comes from it.
    pub lane: Option<Arc<str>>,
    /// Its place in the count of clients.
    pub tally: Client,
}

/// A socket that no runtime knows yet.
pub enum Socket {
    /// TCP, with the client's address.
    Tcp(OwnedFd, Option<SocketAddr>),
    /// Unix.
    Unix(OwnedFd),
}

/// The workers' mailboxes.
pub struct Workers {
    workers: Vec<Worker>,
}

struct Worker {
    mailbox: mpsc::Sender<Handed>,
    links: Arc<AtomicU32>,
}

impl Workers {
    /// Starts `count` threads.
    ///
    /// # Errors
    /// The system has no threads left.
    pub fn start(hub: &Arc<Hub>, count: usize) -> std::io::Result<Self> {
        let mut workers = Vec::new();
        for n in 0..count {
            let (mailbox, receiver) = mpsc::channel(HANDED_MAX);
            let links = Arc::new(AtomicU32::new(0));
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let (hub, tally) = (hub.clone(), links.clone());
            thread::Builder::new()
                .name(format!("pgweir-worker-{n}"))
                .spawn(move || runtime.block_on(work(hub, receiver, tally)))?;
            workers.push(Worker { mailbox, links });
        }
        Ok(Self { workers })
    }

    /// Whether there are so many connections that have not said who they are that another one is closed unheard.
    pub fn is_crowded(hub: &Hub) -> bool {
        let clients = hub.counters.clients.load(Ordering::Relaxed);
        let sessions = hub.counters.sessions.load(Ordering::Relaxed);
        clients.saturating_sub(sessions) >= STRANGERS_MAX
    }

    /// Hands a connection to the worker with the fewest links. A worker whose mailbox is full is too busy to serve it: the
    /// connection is closed, as a full listen queue would.
    pub fn hand(&self, handed: Handed) {
        let Some(worker) = self.workers.iter().min_by_key(|w| w.links.load(Ordering::Relaxed)) else {
            return;
        };
        worker.links.fetch_add(1, Ordering::Relaxed);
        if worker.mailbox.try_send(handed).is_err() {
            worker.links.fetch_sub(1, Ordering::Relaxed);
            tracing::warn!("a worker is too busy to take a connection");
        }
    }
}

async fn work(hub: Arc<Hub>, mut receiver: mpsc::Receiver<Handed>, links: Arc<AtomicU32>) {
    while let Some(handed) = receiver.recv().await {
        let leaving = Leaving(links.clone());
        let hub = hub.clone();
        let Handed { socket, listener, lane, tally } = handed;
        match adopt(&hub, socket, listener, lane) {
            Ok(accepted) => {
                let link = serve(hub, accepted, tally);
                // A panic in here ends this task, whose destructors give everything back.
                tokio::spawn(async move {
                    let _leaving = leaving;
                    link.await;
                });
            }
            Err(error) => tracing::debug!(%error, "a client was gone before it was served"),
        }
    }
}

struct Leaving(Arc<AtomicU32>);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn adopt(
    hub: &Hub,
    socket: Socket,
    listener: Arc<str>,
    listener_lane: Option<Arc<str>>,
) -> std::io::Result<Accepted> {
    match socket {
        Socket::Tcp(fd, peer) => {
            let stream = tokio::net::TcpStream::from_std(fd.into())?;
            tune_tcp(&stream, hub.settings.load().dead_after)?;
            let local = stream.local_addr().ok();
            Ok(Accepted { stream: Stream::Tcp(stream), peer, local, listener, listener_lane })
        }
        Socket::Unix(fd) => {
            let stream = tokio::net::UnixStream::from_std(fd.into())?;
            Ok(Accepted { stream: Stream::Unix(stream), peer: None, local: None, listener, listener_lane })
        }
    }
}
