"""A throw-away PostgreSQL cluster on a free port."""

import contextlib
import glob
import os
import pathlib
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psycopg2
import psycopg2.extras

from .util import eventually, free_port

HBA = """\
# type  database     user        address         method
local   all          all                         trust
host    all          u_password  127.0.0.1/32    password
host    all          u_md5       127.0.0.1/32    md5
host    all          u_scram     127.0.0.1/32    scram-sha-256
host    all          u_reject    127.0.0.1/32    reject
host    replication  all         127.0.0.1/32    trust
host    all          all         127.0.0.1/32    trust
"""

PASSWORD = "s3cret-of-the-suite"

ROLES = f"""
create role odoo login createdb;
create role batch login;
create role pgweir login;
grant pg_monitor, pg_signal_backend to pgweir;
create role weak_monitor login;
create role limited login connection limit 1;
create role repl login replication;
create role u_password login password '{PASSWORD}';
create role u_scram login password '{PASSWORD}';
create role u_reject login;
set password_encryption = 'md5';
create role u_md5 login password '{PASSWORD}';
reset password_encryption;
create database odoo owner odoo;
"""

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "wal_level": "logical",
    "max_wal_senders": "5",
    "max_replication_slots": "5",
    "shared_buffers": "64MB",
    "max_prepared_transactions": "5",
    "log_line_prefix": "%m [%p] %q%u@%d %a ",
    "autovacuum": "off",
    "jit": "off",
    "tcp_keepalives_idle": "30",
}


def bindir():
    """Where the newest installed PostgreSQL's server programs are."""
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/postgres"), key=lambda p: int(p.split("/")[4]))
    if found:
        return pathlib.Path(found[-1]).parent
    on_path = shutil.which("postgres")
    if on_path:
        return pathlib.Path(on_path).resolve().parent
    raise RuntimeError("no PostgreSQL server found: run script/setup")


def server_user():
    """The account that runs PostgreSQL, which refuses to run as root; None for the present one."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise RuntimeError("PostgreSQL refuses to run as root, and there is no other account")


def as_server_user(argv, die_with_parent=False):
    """The command line that runs `argv` as that account; with `die_with_parent` it gets SIGINT when this process is killed."""
    user, options = server_user(), []
    if user is not None:
        options += [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    if die_with_parent:
        options += ["--pdeathsig", "INT"]
    return (["setpriv", *options, "--"] if options else []) + [str(a) for a in argv]


# A process that is to die with its parent dies with the thread that began it: this one lasts.
_LASTING = ThreadPoolExecutor(1)


def spawn(argv, **more):
    """A process that lives as long as this one, whichever thread begins it."""
    if threading.current_thread() is threading.main_thread():
        return subprocess.Popen(argv, **more)
    return _LASTING.submit(subprocess.Popen, argv, **more).result()


def stat(pid):
    """A process's state and its parent; ("X", 0) when there is none. What is dead and was not waited for is "Z"."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return "X", 0
    return fields[0], int(fields[1])


def children_of(pid):
    """Pids of its children. `/proc/PID/task/TID/children` leaves some out while others end."""
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit() and stat(entry)[1] == pid]


def send(pids, number):
    """Signals those that are still there."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


class Cluster:
    """One cluster. `start()` it; `close()` stops it and removes its files. A cluster can be made from another's files, or be the standby
    of one that runs."""

    def __init__(self, max_connections=100, template=None, primary=None, port=None, **settings):
        self.base = pathlib.Path(tempfile.mkdtemp(prefix="pgweir-pg-"))
        self.base.chmod(0o755)
        self.data = self.base / "data"
        self.sockets = self.base
        self.port = port or free_port()
        self.max_connections = max_connections
        self.settings = {**SETTINGS, "max_connections": str(max_connections), **settings}
        self.process = None
        self.bin = bindir()
        user = server_user()
        if user is not None:
            os.chown(self.base, user.pw_uid, user.pw_gid)
        if primary is not None:
            self._run([self.bin / "pg_basebackup", "-D", self.data, "-h", "127.0.0.1", "-p", primary.port, "-U", "postgres",
                       "-R", "-X", "stream", "-c", "fast", "--no-sync"])
        elif template is None:
            self._run([self.bin / "initdb", "-D", self.data, "-U", "postgres", "--auth=trust", "-E", "UTF8",
                       "--locale=C", "--no-sync"])
        else:
            self._run(["cp", "-a", template.data, self.data])
        self._write(self.data / "pg_hba.conf", HBA)

    # -- life ----------------------------------------------------------------------------------------------------

    def start(self, wait=True):
        """Starts the server and, by default, waits until it answers."""
        options = {**self.settings, "port": str(self.port), "unix_socket_directories": str(self.sockets)}
        argv = [self.bin / "postgres", "-D", self.data]
        for key, value in options.items():
            argv += ["-c", f"{key}={value}"]
        with open(self.base / "server.log", "ab") as log:
            self.process = spawn(as_server_user(argv, die_with_parent=True), stdout=log, stderr=log, cwd="/", start_new_session=True)
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self, timeout=60):
        """Waits until the server accepts connections."""
        def ready():
            assert self.process.poll() is None, "PostgreSQL ended:\n" + self.log()[-3000:]
            try:
                self.direct().close()
                return True
            except psycopg2.OperationalError:
                return False
        eventually(ready, timeout=timeout, what="PostgreSQL ready")

    def stop(self, how=signal.SIGINT):
        """Stops the server: SIGINT is fast, SIGQUIT immediate; SIGKILL is for the postmaster alone, and its children find out."""
        if self.process and self.process.poll() is None:
            family = self._stop_forking() if how == signal.SIGKILL else []
            self.process.send_signal(how)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.send_signal(signal.SIGQUIT)
                self.process.wait(30)
            self._gone(family)
        self.process = None

    def crash(self):
        """Kills the server and all its processes with SIGKILL, as a power cut would, and waits until they are gone: one that still holds the
        shared memory keeps a new server from starting."""
        family = self.freeze()
        # Nobody listens any more when the first connection breaks.
        self.process.kill()
        self.process.wait(60)
        send(family, signal.SIGKILL)
        self._gone(family)
        self.process = None
        (self.data / "postmaster.pid").unlink(missing_ok=True)

    def freeze(self, on=True):
        """Stops all its processes where they are, as seen from the network a host that hangs; or lets them go on. Itself and its children."""
        if not on:
            family = [*children_of(self.process.pid), self.process.pid]
            send(family, signal.SIGCONT)
            return family
        family = self._stop_forking()
        send(family, signal.SIGSTOP)
        eventually(lambda: all(stat(pid)[0] in "TXZ" for pid in family), what="all its processes stand still")
        return family

    @contextlib.contextmanager
    def frozen(self):
        """Whatever it is asked meanwhile, it answers afterwards."""
        self.freeze()
        try:
            yield self
        finally:
            self.freeze(False)

    def _stop_forking(self):
        """Stops the postmaster; it and all its children."""
        pid = self.process.pid
        os.kill(pid, signal.SIGSTOP)
        # Until then it goes on with what it does: it may be making another child.
        eventually(lambda: stat(pid)[0] == "T", what="the postmaster stands still")
        # Each backend leads a session of its own.
        return [pid, *children_of(pid)]

    @staticmethod
    def _gone(family):
        eventually(lambda: all(stat(pid)[0] in "XZ" for pid in family), what="its processes are gone")

    def rule(self, line):
        """Puts a line in front of pg_hba.conf; it holds for whoever comes from now on."""
        self._write(self.data / "pg_hba.conf", f"{line}\n{HBA}")
        self.reload()

    def reload(self):
        """Has the server read its files again, and waits until whoever comes finds them read."""
        loaded = "select pg_conf_load_time()"
        before = self.value(loaded)
        self.sql("select pg_reload_conf()")
        eventually(lambda: self.value(loaded) > before, what="the configuration is read")

    def configure(self, name, value):
        """Sets a parameter for the whole server, and waits as `reload` does."""
        self.sql(f"alter system set {name} = {value}")
        self.reload()

    def promote(self):
        """Makes a standby the primary, and waits until it is."""
        self._run([self.bin / "pg_ctl", "promote", "-D", self.data, "-w", "-t", "60"])

    def restart(self):
        """Fast stop, then start."""
        self.stop()
        self.start()

    def close(self):
        """Stops the server at once and removes its files."""
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.base, ignore_errors=True)

    def log(self):
        """The server's log."""
        return (self.base / "server.log").read_text(errors="replace")

    # -- SQL -----------------------------------------------------------------------------------------------------

    def direct(self, user="postgres", dbname="postgres", app="direct", tcp=False, autocommit=True, **more):
        """A psycopg2 connection that bypasses pgweir; superusers find the reserved slots free."""
        host = "127.0.0.1" if tcp else str(self.sockets)
        conn = psycopg2.connect(host=host, port=self.port, user=user, dbname=dbname, application_name=app,
                                connect_timeout=30, **more)
        conn.autocommit = autocommit
        return conn

    def sql(self, text, *args, dbname="postgres"):
        """Runs a statement over a short direct superuser connection; the rows as dicts, or None."""
        conn = self._direct_for_the_suite(dbname)
        try:
            with conn.cursor(cursor_factory=psycopg2.extras.RealDictCursor) as cur:
                cur.execute(text, args or None)
                return [dict(r) for r in cur.fetchall()] if cur.description else None
        finally:
            conn.close()

    def _direct_for_the_suite(self, dbname):
        """Where the server is full on purpose there are three slots, and a backend that was let go of may still be leaving."""
        deadline = time.monotonic() + 20
        while True:
            try:
                return self.direct(dbname=dbname, app="suite")
            except psycopg2.OperationalError as error:
                if "too many clients" not in str(error) or time.monotonic() > deadline:
                    raise
            time.sleep(0.05)

    def value(self, text, *args, dbname="postgres"):
        """The first column of the first row."""
        row = self.sql(text, *args, dbname=dbname)[0]
        return next(iter(row.values()))

    def activity(self, like="%", where="true"):
        """Rows of pg_stat_activity of client backends, the suite's own excepted."""
        return self.sql("select *, (xact_start is not null) as in_tx from pg_stat_activity where backend_type in"
                        " ('client backend', 'walsender') and application_name like %s"
                        f" and application_name <> 'suite' and {where}", like)

    def count(self, like="%"):
        """How many client backends have such an application_name."""
        return self.value("select count(*) from pg_stat_activity where backend_type = 'client backend'"
                          " and application_name like %s and application_name <> 'suite'", like)

    def clear(self):
        """Ends what an earlier test left behind, and waits until it is gone: it would count, or hold a lock."""
        others = "from pg_stat_activity where backend_type in ('client backend', 'walsender') and pid <> pg_backend_pid()"
        eventually(lambda: not self.sql(f"select pg_terminate_backend(pid) {others}"), what="nobody is left")

    def sampler(self, like="%"):
        """A started Sampler of the number of client backends."""
        return Sampler(self, like)

    def backends_in_login(self):
        """Server processes whose client has not been authenticated yet: pg_stat_activity does not list them."""
        found = []
        for pid in children_of(self._postmaster()):
            try:
                title = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if "authentication" in title:
                found.append(title)
        return found

    # -- inside --------------------------------------------------------------------------------------------------

    def _postmaster(self):
        return int((self.data / "postmaster.pid").read_text().split()[0])

    def _write(self, path, text):
        path.write_text(text)
        user = server_user()
        if user is not None:
            os.chown(path, user.pw_uid, user.pw_gid)

    def _run(self, argv):
        done = subprocess.run(as_server_user(argv), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd="/", text=True)
        assert done.returncode == 0, done.stdout


def template(**settings):
    """A stopped cluster with the suite's roles, whose files others are copied from."""
    cluster = Cluster(**settings).start()
    conn = cluster.direct(app="suite")
    for statement in ROLES.strip().rstrip(";").split(";\n"):
        conn.cursor().execute(statement)
    conn.close()
    cluster.stop()
    return cluster


class Sampler:
    """Counts client backends about a hundred times a second over one direct superuser connection. Those count that two looks in a row have
    seen: they were there together in between. One look takes its time, and may see one that ends and, later, the one that took its place."""

    def __init__(self, cluster, like):
        self.maximum = 0
        self.samples = 0
        self.by_app = {}
        self._stop = threading.Event()
        self._conn = cluster.direct(app="suite")
        self._like = like
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        with self._conn.cursor() as cur:
            while not self._stop.is_set():
                together = self._look(cur) & self._look(cur)
                self.maximum = max(self.maximum, len(together))
                apps = [app for _, _, app in together]
                for app in set(apps):
                    self.by_app[app] = max(self.by_app.get(app, 0), apps.count(app))
                self.samples += 1
                time.sleep(0.01)

    def _look(self, cur):
        cur.execute("select pid, backend_start, application_name from pg_stat_activity where backend_type = 'client backend'"
                    " and application_name like %s and application_name <> 'suite'", (self._like,))
        return set(cur.fetchall())

    def stop(self):
        """Ends sampling; the sampler itself."""
        self._stop.set()
        self._thread.join(10)
        self._conn.close()
        assert self.samples > 0
        return self
