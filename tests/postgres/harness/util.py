"""Waiting for events, and work in the background."""

import fcntl
import os
import pathlib
import random
import socket
import tempfile
import threading
import time
from concurrent.futures import Future

# A slow machine waits longer for events: every deadline of `eventually` is multiplied by this.
PATIENCE = float(os.environ.get("PGWEIR_PATIENCE", "1"))


def eventually(fn, timeout=40, interval=0.03, what=None):
    """The first truthy value of `fn`; AssertionError when there is none within `timeout` seconds.

    An AssertionError raised by `fn` means "not yet"; any other exception is a failure of the test. What has become true by the deadline counts,
    though this process slept over it: the last look begins after the deadline.
    """
    timeout *= PATIENCE
    deadline = time.monotonic() + timeout
    last = None
    while True:
        is_last = time.monotonic() > deadline
        try:
            last = fn()
            if last:
                return last
        except AssertionError as error:
            last = error
        if is_last:
            raise AssertionError(f"not within {timeout} s: {what or 'condition'}; last seen: {last!r}")
        time.sleep(interval)


def holds(fn, seconds, interval=0.05, what=None):
    """Asserts that `fn` is truthy at once and stays so for `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        value = fn()
        assert value, f"did not hold: {what or 'condition'}; saw {value!r}"
        if time.monotonic() > deadline:
            return
        time.sleep(interval)


def never(fn, seconds, interval=0.05, what=None):
    """Asserts that `fn` stays falsy for `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        value = fn()
        assert not value, f"must not happen: {what or 'condition'}; saw {value!r}"
        if time.monotonic() > deadline:
            return
        time.sleep(interval)


def background(fn, *args, **kwargs):
    """Runs `fn` in a daemon thread; a Future with its outcome."""
    future = Future()

    def run():
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - the Future carries it to the test
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


_given = set()
# Suites run beside each other: none gives away a port that another has just found free.
_OTHERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
_OWN = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
PORTS = (15000, 30000)


def free_port():
    """A TCP port that is free at every address of this host, and that no outgoing connection and no other run of the suite takes meanwhile."""
    candidates = _candidates()
    for _ in range(2000):
        port = random.choice(candidates)
        if port not in _given and _is_ours(port) and is_free(port):
            _given.add(port)
            return port
    raise RuntimeError("no free port")


def _candidates():
    """This process's share of the ports from which the kernel takes none for outgoing connections, if there are enough of them."""
    low, high = map(int, pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    outside = [port for port in range(*PORTS) if not low <= port <= high]
    if len(outside) < 2000:
        outside = [port for port in range(1100, 65500) if not low <= port <= high]
    if len(outside) < 2000:
        outside = range(*PORTS)
    return [port for port in outside if port % _OTHERS == _OWN % _OTHERS]


def is_free(port):
    """Whether nobody has it, at any address."""
    with socket.socket() as probe:
        try:
            probe.bind(("0.0.0.0", port))
        except OSError:
            return False
    return True


_reserved = None


def _is_ours(port):
    """Reserves a port against other runs of this account, for the life of this process: a byte of a file, locked."""
    global _reserved
    if _reserved is None:
        _reserved = open(pathlib.Path(tempfile.gettempdir()) / f"pgweir-ports-{os.geteuid()}", "ab")
    try:
        fcntl.lockf(_reserved, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except OSError:
        return False
    return True
