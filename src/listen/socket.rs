//! Listening sockets and the options of client and upstream sockets.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, TcpKeepalive, Type};

/// Connections the kernel keeps for us until they are accepted; it may cut this down (net.core.somaxconn).
const BACKLOG: i32 = 4096;
/// Longest time that keepalive can be told, in the kernel's terms (MAX_TCP_KEEPIDLE, in seconds).
const KEEPALIVE_S_MAX: u64 = 32_767;
/// So many different times until the first probe.
const TURNS: u32 = 16;
/// Counts those told.
static TURN: AtomicU32 = AtomicU32::new(0);

/// Binds a TCP listener, nonblocking, whose connections are tuned as by [`tune_tcp`]. `[::]` means IPv6 only, as with PostgreSQL: both
/// families take two listeners.
///
/// # Errors
/// Those of bind(2): in use, not allowed, not an address of this machine.
pub fn bind_tcp(address: SocketAddr, dead_after: Duration) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    tune_tcp(&socket, dead_after)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// The path of PostgreSQL's socket: `DIRECTORY/.s.PGSQL.PORT`.
pub fn unix_path(directory: &Path, port: u16) -> PathBuf {
    directory.join(format!(".s.PGSQL.{port}"))
}

/// A Unix socket's file: removed when dropped, unless another process has put its own there.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Open on the file itself (O_PATH), not on what listens behind it: as long as it is, the inode's number cannot go to a
    /// successor's file.
    file: OwnedFd,
}

impl SocketFile {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl SocketFile {
    fn open(path: PathBuf) -> io::Result<Self> {
        let file = rustix::fs::open(&path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { path, file })
    }

    fn is_ours(&self) -> io::Result<bool> {
        let there = rustix::fs::lstat(&self.path)?;
        let ours = rustix::fs::fstat(&self.file)?;
        Ok((there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.is_ours().unwrap_or(false) {
            // Nobody is left to be told.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Binds `DIRECTORY/.s.PGSQL.PORT`, nonblocking, open to everybody (mode 0777, as PostgreSQL's default): who may come in is decided by
/// the login. A socket file that nobody answers on is replaced.
///
/// # Errors
/// `AddrInUse` where somebody answers, `AlreadyExists` where the file is no socket; a path over 107 bytes; those of bind(2).
pub fn bind_unix(directory: &Path, port: u16) -> io::Result<(UnixListener, SocketFile)> {
    let path = unix_path(directory, port);
    let address = SockAddr::unix(&path)?;
    remove_stale(&path, &address)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address)?;
    let file = SocketFile::open(path)?;
    fs::set_permissions(&file.path, fs::Permissions::from_mode(0o777))?;
    socket.listen(BACKLOG)?;
    Ok((socket.into(), file))
}

fn remove_stale(path: &Path, address: &SockAddr) -> io::Result<()> {
    let kind = match fs::symlink_metadata(path) {
        Ok(meta) => meta.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !kind.is_socket() {
        let text = format!("{} exists and is no socket", path.display());
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // A full backlog must answer EAGAIN, not wait.
    probe.set_nonblocking(true)?;
    match probe.connect(address) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.raw_os_error() != Some(Errno::AGAIN.raw_os_error()) => Err(error),
        Ok(()) | Err(_) => {
            let text = format!("somebody listens on {}", path.display());
            Err(io::Error::new(io::ErrorKind::AddrInUse, text))
        }
    }
}

/// When keepalive probes are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Probes {
    idle_s: u64,
    interval_s: u64,
    count: u32,
}

/// A quarter to half of the time silent, then probes over the rest: a dead peer is found when it is over. Whole seconds are all the kernel
/// knows, so that two seconds are the least.
///
/// Connections that began together are not probed together: `turn` spreads them. What goes to this host's own addresses passes a queue of
/// 1,000 packets a core (net.core.netdev_max_backlog), which drops the rest, and several thousand links that ask at one moment
/// would find each other dead. For the same reason there are many probes, not three.
fn probes(dead_after: Duration, turn: u32) -> Probes {
    let total_s = dead_after.as_secs().clamp(2, KEEPALIVE_S_MAX);
    let half_s = total_s / 2;
    let earlier_s = half_s / 2 * u64::from(turn % TURNS) / u64::from(TURNS);
    let idle_s = half_s - earlier_s;
    let interval_s = (total_s / 12).max(1);
    let count = ((total_s - idle_s) / interval_s).max(1);
    Probes { idle_s, interval_s, count: u32::try_from(count).unwrap_or(1) }
}

/// No delay for small messages, and a dead peer found within `dead_after`: by keepalive when the link is silent, by TCP_USER_TIMEOUT when
/// bytes sent stay unacknowledged. Zero leaves detection to the system. What a listener accepts has its options from the first byte on
/// (tcp(7)), and costs no system calls of its own; a listener is told again now and then, so that its clients differ in when they are probed.
///
/// # Errors
/// Those of setsockopt(2): the socket is already closed, or is not TCP.
pub fn tune_tcp(stream: &impl AsFd, dead_after: Duration) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    if dead_after.is_zero() {
        // A listener may have been told otherwise before.
        socket.set_keepalive(false)?;
        return socket.set_tcp_user_timeout(None);
    }
    let turn = TURN.fetch_add(1, Ordering::Relaxed);
    let Probes { idle_s, interval_s, count } = probes(dead_after, turn);
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(idle_s))
        .with_interval(Duration::from_secs(interval_s))
        .with_retries(count);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(dead_after))
}

/// Sets TCP_USER_TIMEOUT (tcp(7)); zero leaves it to the system. A connection that is gone already will say so itself.
pub fn set_user_timeout(socket: BorrowedFd<'_>, timeout: Duration) {
    let timeout = Some(timeout).filter(|timeout| !timeout.is_zero());
    let _ = SockRef::from(&socket).set_tcp_user_timeout(timeout);
}

/// Sets SO_RCVLOWAT (socket(7)): epoll reports a TCP socket readable when so many bytes are there, or EOF, or the window is full. Bytes
/// that lie there already are reported when the mark is lowered to them.
pub fn set_low_water(socket: BorrowedFd<'_>, bytes: u32) {
    let bytes = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    // SAFETY: setsockopt(2) reads `optlen` bytes at `optval`: exactly the integer that lives in this frame; the descriptor is borrowed,
    // so it is open. Neither rustix nor socket2 has this option. A failure changes nothing, and costs wake-ups only.
    #[allow(unsafe_code, reason = "proof above")]
    let _ = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVLOWAT,
            (&raw const bytes).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
}

/// Whether an address can only be this machine's.
pub fn is_local(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// Whether a connection's two ends are on this machine: loopback, or both the same address.
pub fn same_host(client: IpAddr, server: IpAddr) -> bool {
    is_local(client) || client.to_canonical() == server.to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_dead_peer_is_found_in_time() {
        for total_s in 2..=200 {
            for turn in 0..40 {
                let Probes { idle_s, interval_s, count } = probes(Duration::from_secs(total_s), turn);
                let found_s = idle_s + interval_s * u64::from(count);
                assert!(idle_s > 0 && interval_s > 0 && count > 0);
                assert!(idle_s <= total_s / 2, "it is asked in the first half of the time");
                assert!((total_s - interval_s..=total_s).contains(&found_s), "{total_s}: {found_s}");
            }
        }
        assert_eq!(probes(Duration::from_secs(60), 0), Probes { idle_s: 30, interval_s: 5, count: 6 });
        assert_eq!(probes(Duration::ZERO, 5), probes(Duration::from_secs(2), 0));
        assert!(probes(Duration::MAX, 0).idle_s <= KEEPALIVE_S_MAX);
    }

    #[test]
    fn those_that_begin_together_are_probed_at_different_times() {
        let mut idle_s: Vec<u64> =
            (0..TURNS).map(|turn| probes(Duration::from_secs(60), turn).idle_s).collect();
        idle_s.dedup();
        assert!(idle_s.len() >= 15 && idle_s.iter().all(|idle_s| (16..=30).contains(idle_s)), "{idle_s:?}");
    }

    #[test]
    fn options_reach_the_socket() {
        let listener =
            bind_tcp("127.0.0.1:0".parse().expect("an address"), Duration::from_secs(60)).expect("bound");
        let stream = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
        tune_tcp(&stream, Duration::from_secs(60)).expect("tuned");
        let socket = SockRef::from(&stream);
        assert!(socket.tcp_nodelay().expect("an option") && socket.keepalive().expect("an option"));
        let idle = socket.tcp_keepalive_time().expect("an option").as_secs();
        assert!((16..=30).contains(&idle), "{idle}");
        assert_eq!(socket.tcp_user_timeout().expect("an option"), Some(Duration::from_secs(60)));
        tune_tcp(&stream, Duration::ZERO).expect("tuned");
        assert!(socket.tcp_nodelay().expect("an option") && !socket.keepalive().expect("an option"));
        assert_eq!(socket.tcp_user_timeout().expect("an option"), None);
    }

    #[test]
    fn what_is_accepted_has_the_options_of_its_listener() {
        let listener =
            bind_tcp("127.0.0.1:0".parse().expect("an address"), Duration::from_secs(60)).expect("bound");
        let _near = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
        let far = loop {
            match listener.accept() {
                Ok((far, _)) => break far,
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        };
        let socket = SockRef::from(&far);
        assert!(socket.tcp_nodelay().expect("an option") && socket.keepalive().expect("an option"));
        let idle = socket.tcp_keepalive_time().expect("an option").as_secs();
        assert!((16..=30).contains(&idle), "{idle}");
        assert_eq!(socket.tcp_keepalive_interval().expect("an option"), Duration::from_secs(5));
        assert!(socket.tcp_keepalive_retries().expect("an option") >= 6);
        assert_eq!(socket.tcp_user_timeout().expect("an option"), Some(Duration::from_secs(60)));
    }

    #[test]
    fn a_tcp_listener_does_not_block() {
        let listener = bind_tcp("[::1]:0".parse().expect("an address"), Duration::ZERO).expect("bound");
        assert_eq!(listener.accept().expect_err("nobody came").kind(), io::ErrorKind::WouldBlock);
        let taken = bind_tcp(listener.local_addr().expect("bound"), Duration::ZERO).expect_err("taken");
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn a_unix_socket_is_open_to_all_and_goes_with_its_listener() {
        let dir = tempfile::tempdir().expect("a directory");
        let (listener, file) = bind_unix(dir.path(), 6432).expect("bound");
        let path = dir.path().join(".s.PGSQL.6432");
        assert_eq!(fs::metadata(&path).expect("a file").permissions().mode() & 0o777, 0o777);
        UnixStream::connect(&path).expect("connected");
        listener.accept().expect("a connection");
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn only_a_socket_nobody_answers_on_is_replaced() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = unix_path(dir.path(), 1);
        drop(UnixListener::bind(&path).expect("bound"));
        assert!(path.exists(), "a listener of std leaves its file");
        let (listener, file) = bind_unix(dir.path(), 1).expect("replaced");
        assert_eq!(bind_unix(dir.path(), 1).expect_err("answers").kind(), io::ErrorKind::AddrInUse);
        drop((listener, file));
        fs::write(&path, "precious").expect("written");
        assert_eq!(bind_unix(dir.path(), 1).expect_err("no socket").kind(), io::ErrorKind::AlreadyExists);
        assert!(path.exists());
    }

    #[test]
    fn the_file_of_a_successor_stays() {
        let dir = tempfile::tempdir().expect("a directory");
        let (listener, file) = bind_unix(dir.path(), 2).expect("bound");
        drop(listener);
        let (_listener, successor) = bind_unix(dir.path(), 2).expect("replaced");
        drop(file);
        assert!(successor.path().exists());
    }

    #[test]
    fn local_is_loopback_or_the_same_address() {
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        assert!(is_local(ip("127.8.0.1")) && is_local(ip("::1")) && is_local(ip("::ffff:127.0.0.1")));
        assert!(!is_local(ip("10.0.0.1")));
        assert!(same_host(ip("::ffff:10.0.0.1"), ip("10.0.0.1")));
        assert!(!same_host(ip("10.0.0.2"), ip("10.0.0.1")));
    }
}
