//! The process behind a client on this machine: by the peer credentials of a Unix socket, or by the owner of a loopback connection
//! (proc(5): `/proc/net/tcp` names the socket's inode, `/proc/PID/fd` who has it open).
//!
//! The second way reads other processes' descriptors, which the kernel allows for the same user or with CAP_SYS_PTRACE only (before Linux
//! 5.14: and CAP_DAC_READ_SEARCH). Every look-up is bounded and says why it failed; none is ever needed for a link to work.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::net::UnixStream;
use tokio::sync::Semaphore;

use super::socket::same_host;

/// Longest command line kept, in bytes.
const COMMAND_LINE_MAX: u64 = 4096;
/// Bytes read of each of `/proc/net/tcp` and `tcp6`: over 100,000 sockets.
const TABLE_BYTES_MAX: u64 = 16 << 20;
/// Bytes read of what /proc tells of one descriptor: what is wanted stands in its first four lines.
const DESCRIPTION_MAX: u64 = 512;
/// Descriptors looked at in one search.
const DESCRIPTORS_MAX: usize = 200_000;
/// To read what is told of a descriptor costs as much as to read that many links.
const DESCRIPTION_COSTS: usize = 10;
/// Look-ups at a time, each on a thread of its own.
const CONCURRENT_MAX: usize = 4;

/// Why a process could not be named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LookupError {
    /// The client is on another machine (or in another network or pid namespace).
    NotLocal,
    /// The kernel's table does not list the connection.
    NoSocket,
    /// Another user's process: CAP_SYS_PTRACE is missing (before Linux 5.14 also CAP_DAC_READ_SEARCH).
    Denied,
    /// The process has ended, or none has the socket open any more.
    Gone,
    /// More sockets or descriptors than one look-up may read.
    Bound,
    /// /proc could not be read.
    Io,
}

impl LookupError {
    /// Every cause.
    pub const ALL: [Self; 6] =
        [Self::NotLocal, Self::NoSocket, Self::Denied, Self::Gone, Self::Bound, Self::Io];

    /// The word in `status` and metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::NotLocal => "not_local",
            Self::NoSocket => "no_socket",
            Self::Denied => "denied",
            Self::Gone => "gone",
            Self::Bound => "bound",
            Self::Io => "io",
        }
    }

    fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::Gone,
            io::ErrorKind::PermissionDenied => Self::Denied,
            // ESRCH: the process ended between open and read.
            _ if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => Self::Gone,
            _ => Self::Io,
        }
    }
}

impl fmt::Display for LookupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// The process that connected (SO_PEERCRED). None where it lives in another pid namespace. Does not block.
pub fn peer_of_unix(stream: &UnixStream) -> Option<i32> {
    stream.peer_cred().ok()?.pid().filter(|pid| *pid > 0)
}

/// A process's arguments joined by blanks: its first 4 kB, trimmed. Blocking.
///
/// # Errors
/// `Gone` where it has ended (a zombie has no arguments), `Denied` under hidepid, `Io`.
pub fn command_line(pid: i32) -> Result<String, LookupError> {
    let mut raw = Vec::new();
    File::open(format!("/proc/{pid}/cmdline"))
        .and_then(|file| file.take(COMMAND_LINE_MAX).read_to_end(&mut raw))
        .map_err(|error| LookupError::of(&error))?;
    for byte in &mut raw {
        if *byte == 0 {
            *byte = b' ';
        }
    }
    let text = String::from_utf8_lossy(&raw).trim().to_owned();
    if text.is_empty() { Err(LookupError::Gone) } else { Ok(text) }
}

/// The process at the client's end of a TCP connection within this machine; of several that share the socket after a fork, one.
/// `client` and `server` are the peer's and our own address of the accepted socket. Blocking.
///
/// # Errors
/// See [`LookupError`].
pub fn owner_of_loopback(client: SocketAddr, server: SocketAddr) -> Result<i32, LookupError> {
    if !same_host(client.ip(), server.ip()) {
        return Err(LookupError::NotLocal);
    }
    // A client with an AF_INET6 socket may have connected to a mapped IPv4 address: tcp6 has both kinds.
    let tables: &[&str] = match client.ip().to_canonical() {
        IpAddr::V4(_) => &["/proc/net/tcp", "/proc/net/tcp6"],
        IpAddr::V6(_) => &["/proc/net/tcp6"],
    };
    let mut failure = LookupError::NoSocket;
    for table in tables {
        let found = match File::open(table) {
            Ok(file) => find_socket(BufReader::with_capacity(64 << 10, file), client, server),
            Err(error) => Err(LookupError::of(&error)),
        };
        match found {
            Ok(socket) => return owner_of(socket),
            // No tcp6 where IPv6 is switched off.
            Err(LookupError::NoSocket | LookupError::Gone) => {}
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// A row of `/proc/net/tcp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SocketRow {
    inode: u64,
    uid: u32,
}

/// Finds the socket whose local end is `client` and whose peer is `server`.
fn find_socket(
    table: impl BufRead,
    client: SocketAddr,
    server: SocketAddr,
) -> Result<SocketRow, LookupError> {
    let wanted = (canonical(client), canonical(server));
    let mut table = table.take(TABLE_BYTES_MAX);
    let mut line = String::new();
    loop {
        line.clear();
        match table.read_line(&mut line) {
            Ok(0) if table.limit() == 0 => return Err(LookupError::Bound),
            Ok(0) => return Err(LookupError::NoSocket),
            Ok(_) => {}
            Err(error) => return Err(LookupError::of(&error)),
        }
        if let Some((ends, row)) = parse_row(&line)
            && ends == wanted
        {
            // Without an inode no process holds it: closed, lingering in the kernel.
            return if row.inode == 0 { Err(LookupError::Gone) } else { Ok(row) };
        }
    }
}

fn canonical(address: SocketAddr) -> (IpAddr, u16) {
    (address.ip().to_canonical(), address.port())
}

type Ends = ((IpAddr, u16), (IpAddr, u16));

/// Columns: number, local, remote, state, queues, timer, retransmits, uid, timeout, inode. The heading is no row.
fn parse_row(line: &str) -> Option<(Ends, SocketRow)> {
    let mut columns = line.split_ascii_whitespace().skip(1);
    let local = parse_end(columns.next()?)?;
    let remote = parse_end(columns.next()?)?;
    let uid = columns.nth(4)?.parse().ok()?;
    let inode = columns.nth(1)?.parse().ok()?;
    Some(((local, remote), SocketRow { inode, uid }))
}

/// `0100007F:1538`: the address as 32-bit words of this machine's byte order, the port as a number.
fn parse_end(text: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| {
        let digits = address.get(at * 8..at * 8 + 8)?;
        u32::from_str_radix(digits, 16).ok().map(u32::to_ne_bytes)
    };
    let ip = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for (at, chunk) in bytes.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(at)?);
            }
            IpAddr::V6(Ipv6Addr::from(bytes))
        }
        _ => return None,
    };
    Some((ip.to_canonical(), port))
}

/// Looks through the descriptors of the socket's user's processes.
fn owner_of(socket: SocketRow) -> Result<i32, LookupError> {
    let mut failure = LookupError::Gone;
    let mut left = DESCRIPTORS_MAX;
    for entry in fs::read_dir("/proc").map_err(|error| LookupError::of(&error))? {
        let Ok(entry) = entry else { continue };
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        // What fails here has ended in the meantime.
        if !entry.metadata().is_ok_and(|meta| meta.uid() == socket.uid) {
            continue;
        }
        match has_open(pid, socket.inode, &mut left) {
            Ok(true) => return Ok(pid),
            Ok(false) | Err(LookupError::Gone) => {}
            Err(LookupError::Bound) => return Err(LookupError::Bound),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

fn has_open(pid: i32, inode: u64, left: &mut usize) -> Result<bool, LookupError> {
    let descriptors = match fs::read_dir(format!("/proc/{pid}/fd")) {
        Ok(descriptors) => descriptors,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return has_described(pid, inode, left);
        }
        Err(error) => return Err(LookupError::of(&error)),
    };
    let wanted = format!("socket:[{inode}]");
    for entry in descriptors {
        *left = left.checked_sub(1).ok_or(LookupError::Bound)?;
        let target = entry.and_then(|entry| fs::read_link(entry.path()));
        if target.is_ok_and(|target| target.as_os_str() == &*wanted) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The same by what /proc tells of the descriptors: /proc/PID/fd is its owner's directory, which CAP_SYS_PTRACE does not open, while fdinfo
/// asks for nothing else. An inode's number is unique among sockets only, so the mount has to be that of sockets.
fn has_described(pid: i32, inode: u64, left: &mut usize) -> Result<bool, LookupError> {
    let mount = sockets_mount()?;
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo")).map_err(|error| LookupError::of(&error))? {
        *left = left.checked_sub(DESCRIPTION_COSTS).ok_or(LookupError::Bound)?;
        if entry.is_ok_and(|entry| described(&entry.path()) == Some((mount, inode))) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The mount of sockets, which is the same for all.
fn sockets_mount() -> Result<u64, LookupError> {
    static FOUND: OnceLock<u64> = OnceLock::new();
    if let Some(mount) = FOUND.get() {
        return Ok(*mount);
    }
    let (own, _peer) = std::os::unix::net::UnixStream::pair().map_err(|error| LookupError::of(&error))?;
    let own = format!("/proc/self/fdinfo/{}", own.as_raw_fd());
    let (mount, _) = described(Path::new(&own)).ok_or(LookupError::Denied)?;
    Ok(*FOUND.get_or_init(|| mount))
}

/// Mount and inode of a descriptor; none where it is gone, or the kernel does not tell (before Linux 5.14).
fn described(path: &Path) -> Option<(u64, u64)> {
    let mut text = String::new();
    File::open(path).ok()?.take(DESCRIPTION_MAX).read_to_string(&mut text).ok()?;
    let number = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok());
    Some((number("mnt_id:")?, number("ino:")?))
}

/// The same look-ups for async code: on threads, at most four at a time, failures counted by cause. Those that wait do so without a
/// bound of their own: the caller's login deadline is theirs.
#[derive(Debug)]
pub struct Lookups {
    permits: Arc<Semaphore>,
    failed: [AtomicU64; LookupError::ALL.len()],
}

impl Default for Lookups {
    fn default() -> Self {
        Self { permits: Arc::new(Semaphore::new(CONCURRENT_MAX)), failed: Default::default() }
    }
}

impl Lookups {
    /// See [`command_line`].
    ///
    /// # Errors
    /// As there.
    pub async fn command_line(&self, pid: i32) -> Result<String, LookupError> {
        self.run(move || command_line(pid)).await
    }

    /// See [`owner_of_loopback`].
    ///
    /// # Errors
    /// As there.
    pub async fn owner_of_loopback(
        &self,
        client: SocketAddr,
        server: SocketAddr,
    ) -> Result<i32, LookupError> {
        self.run(move || owner_of_loopback(client, server)).await
    }

    /// Counts a failure that was known without looking.
    pub fn failed(&self, cause: LookupError) {
        self.failed[cause as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Failures since start by cause, those that happened only.
    pub fn failures(&self) -> Vec<(&'static str, u64)> {
        LookupError::ALL
            .into_iter()
            .zip(&self.failed)
            .map(|(cause, count)| (cause.label(), count.load(Ordering::Relaxed)))
            .filter(|(_, count)| *count > 0)
            .collect()
    }

    async fn run<T: Send + 'static>(
        &self,
        look_up: impl FnOnce() -> Result<T, LookupError> + Send + 'static,
    ) -> Result<T, LookupError> {
        let result = self.on_a_thread(look_up).await;
        if let Err(cause) = &result {
            self.failed(*cause);
        }
        result
    }

    async fn on_a_thread<T: Send + 'static>(
        &self,
        look_up: impl FnOnce() -> Result<T, LookupError> + Send + 'static,
    ) -> Result<T, LookupError> {
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(|_| LookupError::Io)?;
        let job = tokio::task::spawn_blocking(move || {
            // Held by the thread, not by the waiter: a caller that gives up does not make room.
            let _permit = permit;
            look_up()
        });
        job.await.unwrap_or(Err(LookupError::Io))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use std::collections::HashSet;
    use std::net::{TcpListener, TcpStream};

    const TABLE: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1538 00000000:0000 0A 00000000:00000000 00:00000000 00000000   101        0 11 1 0 100 0 0 10 0
   1: 0100007F:1538 0100007F:C001 01 00000000:00000000 00:00000000 00000000   101        0 12 1 0 20 4 30 10 -1
   2: 0100007F:C001 0100007F:1538 01 00000000:00000000 00:00000000 00000000  1000        0 13 1 0 20 4 30 10 -1
   3: 0100007F:C002 0100007F:1538 06 00000000:00000000 03:00000EAD 00000000     0        0 0 3 0
";

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    fn me() -> i32 {
        i32::try_from(std::process::id()).expect("a pid")
    }

    fn pair(listen_on: &str, connect_to: Option<&str>) -> (TcpStream, SocketAddr, SocketAddr) {
        let listener = TcpListener::bind(listen_on).expect("bound");
        let port = listener.local_addr().expect("bound").port();
        let to = connect_to.map_or_else(
            || listener.local_addr().expect("bound"),
            |host| SocketAddr::new(host.parse().expect("an address"), port),
        );
        let stream = TcpStream::connect(to).expect("connected");
        let (accepted, peer) = listener.accept().expect("accepted");
        let own = accepted.local_addr().expect("connected");
        (stream, peer, own)
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn the_clients_end_is_found_in_the_table() {
        let find = |client| find_socket(TABLE.as_bytes(), address(client), address("127.0.0.1:5432"));
        assert_eq!(find("127.0.0.1:49153"), Ok(SocketRow { inode: 13, uid: 1000 }));
        assert_eq!(find("[::ffff:127.0.0.1]:49153"), Ok(SocketRow { inode: 13, uid: 1000 }));
        assert_eq!(find("127.0.0.1:49154"), Err(LookupError::Gone));
        assert_eq!(find("127.0.0.1:49155"), Err(LookupError::NoSocket));
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn mapped_addresses_are_ipv4() {
        let loopback = Some((IpAddr::V4(Ipv4Addr::LOCALHOST), 5432));
        assert_eq!(parse_end("0000000000000000FFFF00000100007F:1538"), loopback);
        assert_eq!(parse_end("0100007F:1538"), loopback);
        assert_eq!(
            parse_end("00000000000000000000000001000000:0001"),
            Some((IpAddr::V6(Ipv6Addr::LOCALHOST), 1))
        );
        for nonsense in
            ["", ":", "0100007F", "0100007:1538", "0100007G:1538", "é100007F:1538", "0100007F:15380"]
        {
            assert_eq!(parse_end(nonsense), None, "{nonsense}");
        }
    }

    #[test]
    fn the_owner_of_a_real_connection_is_this_process() {
        for (listen_on, connect_to) in
            [("127.0.0.1:0", None), ("[::1]:0", None), ("127.0.0.1:0", Some("::ffff:127.0.0.1"))]
        {
            let (_stream, client, server) = pair(listen_on, connect_to);
            assert_eq!(owner_of_loopback(client, server), Ok(me()), "{listen_on} {connect_to:?}");
        }
    }

    #[test]
    fn a_socket_is_known_by_its_description_as_well() {
        let (stream, ..) = pair("127.0.0.1:0", None);
        let link = fs::read_link(format!("/proc/self/fd/{}", stream.as_raw_fd())).expect("open");
        let link = link.to_string_lossy().into_owned();
        let inode: u64 = link.trim_start_matches("socket:[").trim_end_matches(']').parse().expect("a number");
        let (file, mut left) = (File::open("/proc/self/status").expect("open"), 1000);
        assert_eq!(has_described(me(), inode, &mut left), Ok(true));
        let file_inode = file.metadata().expect("open").ino();
        assert_eq!(has_described(me(), file_inode, &mut left), Ok(false), "a file's number is no socket's");
        assert_eq!(has_described(me(), inode, &mut 0), Err(LookupError::Bound));
        drop(stream);
        assert_eq!(has_described(me(), inode, &mut left), Ok(false));
    }

    #[test]
    fn what_cannot_be_found_says_why() {
        let (stream, client, server) = pair("127.0.0.1:0", None);
        drop(stream);
        let gone = owner_of_loopback(client, server).expect_err("closed");
        assert!(matches!(gone, LookupError::Gone | LookupError::NoSocket), "{gone}");
        let remote = owner_of_loopback(address("192.0.2.1:5000"), server);
        assert_eq!(remote, Err(LookupError::NotLocal));
    }

    #[test]
    fn command_lines_are_joined_and_missing_ones_are_gone() {
        let own = command_line(me()).expect("this process");
        let first = std::env::args().next().expect("a name");
        assert!(own.starts_with(&first) && !own.contains('\0'), "{own}");
        assert_eq!(command_line(i32::MAX), Err(LookupError::Gone));
    }

    #[test]
    fn labels_are_unique_and_counted_under_their_own_cause() {
        let labels: HashSet<_> = LookupError::ALL.iter().map(|cause| cause.label()).collect();
        assert_eq!(labels.len(), LookupError::ALL.len());
        for (at, cause) in LookupError::ALL.into_iter().enumerate() {
            assert_eq!(cause as usize, at);
        }
    }

    #[tokio::test]
    async fn async_look_ups_count_their_failures() {
        let lookups = Lookups::default();
        assert!(lookups.command_line(me()).await.is_ok());
        assert_eq!(lookups.failures(), []);
        assert_eq!(lookups.command_line(i32::MAX).await, Err(LookupError::Gone));
        assert_eq!(lookups.failures(), [("gone", 1)]);
        lookups.failed(LookupError::NotLocal);
        assert_eq!(lookups.failures(), [("not_local", 1), ("gone", 1)]);
    }

    #[tokio::test]
    async fn a_fifth_look_up_waits() {
        let lookups = Lookups::default();
        let taken = lookups.permits.acquire_many(4).await.expect("open");
        let mut fifth = std::pin::pin!(lookups.command_line(me()));
        assert!(fifth.as_mut().now_or_never().is_none());
        drop(taken);
        assert!(fifth.await.is_ok());
    }

    #[tokio::test]
    async fn a_unix_peer_is_known_by_its_pid() {
        let (ours, _theirs) = UnixStream::pair().expect("a pair");
        assert_eq!(peer_of_unix(&ours), Some(me()));
    }
}
