"""What is compared: a direct connection and proxies before the same server, each with its own default threading, TCP on
both sides, trust, no TLS, no logging of connections."""

import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile

from . import process
from harness import Weir, eventually, free_port, lane
from harness.cluster import as_server_user, server_user

CLIENTS_MAX = 12_000


class Target:
    """A port to connect to. `pid` is None where there is no proxy."""

    name = "direct"
    pid = None

    def __init__(self, cluster):
        self.cluster = cluster
        self.port = cluster.port

    def start(self):
        """Starts the proxy and waits until it listens; the target itself."""
        return self

    def close(self):
        """Ends the proxy."""

    def cpu_ns(self):
        """CPU time of the proxy so far."""
        return process.cpu_ns(self.pid) if self.pid else 0


class Spawned(Target):
    """A proxy with a configuration file in a directory of its own."""

    program = ""

    def __init__(self, cluster):
        super().__init__(cluster)
        self.port = free_port()
        self.base = pathlib.Path(tempfile.mkdtemp(prefix=f"bench-{self.program}-"))
        self.base.chmod(0o755)
        self.process = None

    @property
    def pid(self):
        return self.process.pid

    def start(self):
        argv = self.argv(shutil.which(self.program) or f"/usr/sbin/{self.program}")
        if server_user():
            shutil.chown(self.base, server_user().pw_uid, server_user().pw_gid)
        with open(self.base / "out", "wb") as out:
            self.process = subprocess.Popen(as_server_user(argv, die_with_parent=True), stdout=out, stderr=out, cwd="/")
        eventually(self._listens, what=f"{self.name} listening")
        return self

    def _listens(self):
        if self.process.poll() is not None:
            raise RuntimeError(f"{self.name} ended: " + (self.base / "out").read_text()[-2000:])
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", self.port)) == 0

    def close(self):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(10)
        shutil.rmtree(self.base, ignore_errors=True)


class PgBouncer(Spawned):
    """PgBouncer in session mode."""

    name = "PgBouncer"
    program = "pgbouncer"

    def argv(self, program):
        (self.base / "users").write_text('"odoo" ""\n')
        (self.base / "ini").write_text(
            f"[databases]\n* = host=127.0.0.1 port={self.cluster.port}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\n"
            f"auth_type = trust\nauth_file = {self.base / 'users'}\npool_mode = session\n"
            f"max_client_conn = {CLIENTS_MAX}\ndefault_pool_size = {CLIENTS_MAX // 2}\n"
            "log_connections = 0\nlog_disconnections = 0\nlog_stats = 0\n")
        return [program, "-q", self.base / "ini"]


class HAProxy(Spawned):
    """HAProxy in tcp mode."""

    name = "HAProxy"
    program = "haproxy"
    connections = CLIENTS_MAX // 2

    def argv(self, program):
        (self.base / "cfg").write_text(
            f"global\n  maxconn {self.connections}\n"
            "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n"
            f"listen pg\n  bind 127.0.0.1:{self.port}\n  server s 127.0.0.1:{self.cluster.port}\n")
        return [program, "-db", "-f", self.base / "cfg"]


class Pgweir(Target):
    """pgweir with one lane, the monitor on where there is a PostgreSQL to sample, and limits that are never met."""

    name = "pgweir"
    workers = 0

    def __init__(self, cluster, monitored=True):
        super().__init__(cluster)
        quota = cluster.max_connections if monitored else CLIENTS_MAX
        self.weir = Weir(
            cluster, lanes=[lane("bench", default=True, quota=quota, priority=1)],
            upstream={"headroom": 0}, monitor={"interval": "1s"} if monitored else {"user": None},
            limits={"max_clients": CLIENTS_MAX, "max_logins": CLIENTS_MAX, "workers": self.workers},
            env={"RUST_LOG": "warn"})
        self.port = self.weir.port

    @property
    def pid(self):
        return self.weir.pid

    def start(self):
        self.weir.start(wait=bool(self.weir.config.get("monitor")))
        eventually(self._up, what="pgweir up")
        return self

    def _up(self):
        if self.weir.process.poll() is not None:
            raise RuntimeError("pgweir ended: " + self.weir.log()[-2000:])
        return self.weir.http("/healthz")[0] == 200

    def close(self):
        self.weir.close()


class Pgweir1(Pgweir):
    """The same with a single worker thread, as PgBouncer has."""

    name = "pgweir, workers = 1"
    workers = 1


PROXIES = [PgBouncer, HAProxy, Pgweir, Pgweir1]
ALL = [Target, *PROXIES]
