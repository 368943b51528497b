"""The fake PostgreSQL as a cluster that a proxy can be put before, and idle clients by the thousand."""

import pathlib
import resource
import socket
import subprocess
import sys

from harness import eventually, free_port
from harness.wire import packet, query, startup_packet

FILES_MIN = 30_000
READY = packet("Z", b"I")


def raise_file_limit():
    """As many file descriptors as this process may have; children inherit it. The limit."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(hard, FILES_MIN),) * 2)
    except (ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


class FakeCluster:
    """Looks like harness.Cluster to whoever connects."""

    def __init__(self, bin_dir=None):
        self.port = free_port()
        self.sockets = pathlib.Path("/nonexistent")
        self.max_connections = 0
        self.bin = bin_dir
        self.process = None

    def start(self):
        """Starts the process and waits until it listens; the cluster itself."""
        self.process = subprocess.Popen([sys.executable, str(pathlib.Path(__file__).with_name("upstream.py")), str(self.port)])
        eventually(self._listens, what="the fake PostgreSQL")
        return self

    def _listens(self):
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", self.port)) == 0

    def close(self):
        """Ends it."""
        self.process.kill()
        self.process.wait(10)


def login(port, app="idle", wait=True):
    """A plain socket logged in through `port`; with wait=False the startup packet is sent and nothing read."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=30)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(startup_packet("odoo", "bench", app))
    if wait:
        until_ready(sock)
    return sock


def ask(sock, sql="SELECT 1"):
    """One statement and its answer."""
    sock.sendall(query(sql))
    until_ready(sock)


def until_ready(sock):
    """Reads up to ReadyForQuery at the end of what came."""
    seen = b""
    while not (seen.endswith(READY) or seen.endswith(packet("Z", b"T"))):
        more = sock.recv(65536)
        if not more:
            raise EOFError(f"closed after {seen[-200:]!r}")
        seen += more
