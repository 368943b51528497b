"""Hosts on one network, each a network namespace, for what is about addresses that move and links that go down.

A namespace has no name and lives as long as its descriptor or a process in it: nothing is left behind, whatever becomes of the tests.
"""

import contextlib
import ctypes
import json
import os
import subprocess

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNET = 0x40000000
# The calling thread's: the others stay where they are.
HERE = "/proc/thread-self/ns/net"


def _enter(call, argument, *more):
    if call(argument, *more) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _ip(*words):
    """Runs `ip` where the calling thread is; what it printed."""
    done = subprocess.run(["ip", *words], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stdout}"
    return done.stdout


class Place:
    """A network namespace."""

    def __init__(self):
        with _back_again():
            try:
                _enter(LIBC.unshare, CLONE_NEWNET)
            except OSError as error:
                raise RuntimeError(f"this machine cannot play several hosts: no network namespace can be made here (unshare: {error.strerror}). "
                                   "Root with CAP_SYS_ADMIN and CAP_NET_ADMIN is needed.") from None
            self.fd = os.open(HERE, os.O_RDONLY | os.O_CLOEXEC)
            try:
                _ip("link", "set", "lo", "up")
            except BaseException:
                os.close(self.fd)
                raise

    @property
    def path(self):
        """Its name for `ip`."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    @contextlib.contextmanager
    def on(self):
        """The calling thread, what it starts and the sockets it opens are there."""
        with _back_again():
            _enter(LIBC.setns, self.fd, CLONE_NEWNET)
            yield self

    def close(self):
        """Lets go of it."""
        os.close(self.fd)


@contextlib.contextmanager
def _back_again():
    home, name = os.open(HERE, os.O_RDONLY | os.O_CLOEXEC), os.readlink(HERE)
    try:
        yield
    finally:
        # Who may not leave may not come back either.
        if os.readlink(HERE) != name:
            _enter(LIBC.setns, home, CLONE_NEWNET)
        os.close(home)


class Host(Place):
    """One with an interface eth0, whose cable leads to the network's switch."""

    def __init__(self, network, name, address):
        super().__init__()
        self.network, self.name, self.address = network, name, address
        with network.switch.on():
            _ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", self.path)
            _ip("link", "set", name, "master", "switch", "up")
        with self.on():
            _ip("address", "add", f"{address}/24", "dev", "eth0")
            _ip("link", "set", "eth0", "up")

    def addresses(self):
        """What eth0 answers for."""
        with self.on():
            return [one["local"] for link in json.loads(_ip("-json", "-4", "address", "show", "dev", "eth0") or "[]")
                    for one in link.get("addr_info", [])]

    def cable(self, plugged):
        """Pulls the cable at the switch, or puts it in again."""
        with self.network.switch.on():
            _ip("link", "set", self.name, "up" if plugged else "down")


class Network:
    """A switch, and hosts by name and address."""

    def __init__(self, **hosts):
        self.hosts = {}
        self.switch = Place()
        try:
            with self.switch.on():
                _ip("link", "add", "switch", "type", "bridge")
                _ip("link", "set", "switch", "up")
            for name, address in hosts.items():
                self.hosts[name] = Host(self, name, address)
        except BaseException:
            self.close()
            raise

    def __getitem__(self, name):
        return self.hosts[name]

    def close(self):
        """Lets go of all; what still runs there keeps its own."""
        for place in [*self.hosts.values(), self.switch]:
            place.close()
