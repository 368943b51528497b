//! A throw-away PostgreSQL: own directory, free port, nobody's data. Never runs as root: then the user `postgres`, else `nobody`,
//! takes it over.

use std::fs;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, getuid, kill_process};

/// Tries to find a free port and to start on it.
const STARTS_MAX: usize = 5;
/// Polls of 50 ms until it answers.
const POLLS_MAX: usize = 2400;
/// Ports that tests may have.
const PORT_MIN: u16 = 10_000;
const PORTS: u32 = 4_900;

/// initdb takes seconds: one cluster is made per PostgreSQL version and build directory, and copied.
static TEMPLATE: Mutex<()> = Mutex::new(());

/// A running PostgreSQL with superuser `postgres`, trusting everybody on 127.0.0.1 and its Unix socket. Stopped and removed when dropped.
pub struct Pg {
    /// On 127.0.0.1, and in the Unix socket's name.
    pub port: u16,
    /// The data directory.
    pub dir: PathBuf,
    /// Where the Unix socket is.
    pub socket_dir: PathBuf,
    /// Keeps everything; removed when dropped.
    _home: tempfile::TempDir,
    server: Option<Child>,
}

impl Pg {
    /// Starts one with lines added to postgresql.conf.
    pub fn start(extra_conf: &str) -> Self {
        let home = tempfile::Builder::new().prefix("pgweir-pg-").tempdir_in("/tmp").expect("a directory");
        let dir = home.path().join("data");
        let socket_dir = home.path().join("socket");
        fs::create_dir(&socket_dir).expect("a directory");
        copy(&template(), &dir);
        let conf = format!(
            "listen_addresses = '127.0.0.1'\nunix_socket_directories = '{}'\nfsync = off\n\
             shared_buffers = '16MB'\nlogging_collector = off\nlc_messages = 'C'\n{extra_conf}\n",
            socket_dir.display()
        );
        fs::write(dir.join("postgresql.auto.conf"), conf).expect("written");
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).expect("permissions");
        give_away(home.path());
        let mut pg = Self { port: 0, dir, socket_dir, _home: home, server: None };
        for _ in 0..STARTS_MAX {
            // Somebody else may take the port in between: then PostgreSQL ends, and another is tried.
            pg.port = free_port();
            if pg.launch() {
                return pg;
            }
        }
        panic!("PostgreSQL did not start:\n{}", pg.log());
    }

    /// Stops it at once (as a crash; clients are cut off).
    pub fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let pid = i32::try_from(server.id()).ok().and_then(Pid::from_raw).expect("a pid");
            let _ = kill_process(pid, Signal::QUIT);
            let _ = server.wait();
        }
    }

    /// Starts it again after `stop`, on the same port.
    pub fn start_again(&mut self) {
        self.stop();
        assert!(self.launch(), "PostgreSQL did not start again:\n{}", self.log());
    }

    /// Replaces pg_hba.conf; takes effect at once.
    pub fn set_hba(&self, lines: &str) {
        fs::write(self.dir.join("pg_hba.conf"), lines).expect("written");
        self.run_psql("select pg_reload_conf()");
    }

    /// Runs SQL as superuser through psql; what it prints, unaligned. Panics where it fails.
    pub fn run_psql(&self, sql: &str) -> String {
        let output = Command::new("psql")
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", "postgres", "-h"])
            .arg(&self.socket_dir)
            .args(["-p", &self.port.to_string(), "-c", sql])
            .output()
            .expect("psql runs");
        assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// A superuser's session for a test, over the Unix socket.
    pub async fn connect(&self) -> tokio_postgres::Client {
        self.connect_as("postgres", "test").await
    }

    /// A session of any role on database `postgres`.
    pub async fn connect_as(&self, user: &str, application: &str) -> tokio_postgres::Client {
        let mut config = tokio_postgres::Config::new();
        config.host_path(&self.socket_dir).port(self.port).user(user).dbname("postgres");
        config.application_name(application);
        let (client, connection) = config.connect(tokio_postgres::NoTls).await.expect("connected");
        tokio::spawn(connection);
        client
    }

    /// The server's log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.socket_dir.join("log")
    }

    fn launch(&mut self) -> bool {
        let log = fs::File::create(self.log_path()).expect("a log");
        let mut command = unprivileged(&binary("postgres"));
        command.arg("-D").arg(&self.dir).args(["-p", &self.port.to_string()]);
        command.stdout(Stdio::null()).stderr(log);
        self.server = Some(command.spawn().expect("postgres runs"));
        for _ in 0..POLLS_MAX {
            if self.server.as_mut().is_none_or(|server| server.try_wait().is_ok_and(|end| end.is_some())) {
                self.server = None;
                return false;
            }
            if self.answers() {
                return true;
            }
            thread::sleep(Duration::from_millis(50));
        }
        self.stop();
        false
    }

    /// Both sockets are there, and the server lets clients in.
    fn answers(&self) -> bool {
        let unix = self.socket_dir.join(format!(".s.PGSQL.{}", self.port));
        UnixStream::connect(unix).is_ok()
            && TcpStream::connect(("127.0.0.1", self.port)).is_ok()
            && self.log().contains("ready to accept connections")
    }
}

impl Drop for Pg {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A port below those that the kernel gives to outgoing connections, which are many while other tests run; and below those of the suite
/// against PostgreSQL. It may still be taken by the time it is used. Each test is a process: they begin at different places.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let first = std::process::id().wrapping_mul(37);
    for _ in 0..PORTS {
        let n = first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % PORTS;
        let port = PORT_MIN + u16::try_from(n).expect("few ports");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port");
}

fn template() -> PathBuf {
    let _one_at_a_time = TEMPLATE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let version = version();
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("pg-template-{version}"));
    if place.join("PG_VERSION").exists() {
        return place;
    }
    let home = tempfile::Builder::new().prefix("pgweir-initdb-").tempdir_in("/tmp").expect("a directory");
    give_away(home.path());
    let fresh = home.path().join("data");
    let output = unprivileged(&binary("initdb"))
        .args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "-D"])
        .arg(&fresh)
        .output()
        .expect("initdb runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Another test program may do the same: what is renamed last stays, what is not needed goes.
    let mine = place.with_extension(std::process::id().to_string());
    copy(&fresh, &mine);
    if fs::rename(&mine, &place).is_err() {
        let _ = fs::remove_dir_all(&mine);
    }
    place
}

fn version() -> String {
    let output = Command::new(binary("postgres")).arg("--version").output().expect("postgres runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_whitespace().nth(2).expect("a version").to_owned()
}

/// PGBIN, PATH, or the newest of Debian's.
fn binary(name: &str) -> PathBuf {
    let mut places: Vec<PathBuf> = std::env::var_os("PGBIN").map(PathBuf::from).into_iter().collect();
    places.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    let mut debian: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .map(|entries| {
            entries
                .flatten()
                .filter_map(|entry| {
                    Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin")))
                })
                .collect()
        })
        .unwrap_or_default();
    debian.sort_by_key(|(version, _)| std::cmp::Reverse(*version));
    places.extend(debian.into_iter().map(|(_, place)| place));
    places
        .into_iter()
        .map(|place| place.join(name))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("{name} is missing: install postgresql, or set PGBIN"))
}

/// PostgreSQL refuses to run as root.
fn unprivileged(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir("/tmp").env("LC_ALL", "C");
    if let Some((uid, gid)) = owner() {
        command.uid(uid).gid(gid);
    }
    command
}

fn give_away(path: &Path) {
    let Some((uid, gid)) = owner() else { return };
    chown(path, Some(uid), Some(gid)).expect("given away");
    if path.is_dir() {
        for entry in fs::read_dir(path).expect("a directory").flatten() {
            give_away(&entry.path());
        }
    }
}

/// Whom PostgreSQL runs as; none is ourselves.
fn owner() -> Option<(u32, u32)> {
    if !getuid().is_root() {
        return None;
    }
    let mut passwd = String::new();
    fs::File::open("/etc/passwd").and_then(|mut file| file.read_to_string(&mut passwd)).expect("/etc/passwd");
    ["postgres", "nobody"].iter().find_map(|name| {
        let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut columns = line.split(':').skip(2).map(str::parse);
        Some((columns.next()?.ok()?, columns.next()?.ok()?))
    })
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-r").arg(from).arg(to).status().expect("cp runs");
    assert!(status.success(), "{} cannot be copied", from.display());
    fs::set_permissions(to, fs::Permissions::from_mode(0o700)).expect("permissions");
}
