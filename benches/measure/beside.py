"""What sockets cost those beside them, without pgweir: HAProxy before a fake PostgreSQL of its own, with idle links of its own."""

import contextlib
import os
import shutil
import signal
import tempfile
import pathlib

from . import fake, load
from .targets import HAProxy

# A link of the crowd has 1.67 sockets in pgweir (a third waits without an upstream connection), and two in HAProxy.
LINKS_PER_LINK = 10 / 12
# Beside the crowd's: busy clients.
SPARE = 500


class Beside:
    """Start it, and let its crowd grow."""

    def __init__(self, bin_dir, links=0):
        self.cluster = fake.FakeCluster(bin_dir)
        self.links = int(links * LINKS_PER_LINK)
        self.proxy = HAProxy(self.cluster)
        self.proxy.connections = self.links + SPARE
        self.base = pathlib.Path(tempfile.mkdtemp(prefix="bench-beside-"))
        self.socks = []

    @property
    def port(self):
        """Where it listens."""
        return self.proxy.port

    def start(self):
        """Starts it with its links, each of which has asked once; itself."""
        self.cluster.start()
        self.proxy.start()
        for _ in range(self.links):
            self.socks.append(fake.login(self.port))
            fake.ask(self.socks[-1])
        return self

    def close(self):
        """Ends it and its clients."""
        for sock in self.socks:
            sock.close()
        self.proxy.close()
        if self.cluster.process:
            self.cluster.close()
        shutil.rmtree(self.base, ignore_errors=True)

    def cpu_ns(self):
        """CPU time of the proxy so far."""
        return self.proxy.cpu_ns()

    @contextlib.contextmanager
    def stopped(self):
        """It gets no CPU time inside."""
        os.kill(self.proxy.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.proxy.pid, signal.SIGCONT)

    def busy(self, clients, rate, seconds):
        """Busy clients at a fixed rate."""
        return load.busy(self, self.base, clients, rate, seconds)
